//! What a worker does when a batch brought nothing.
//!
//! A gateway on its own cores spins: the next packet finds it awake. On shared cores (a laboratory,
//! a small virtual machine) it may sleep, shortly at first and longer the longer nothing comes.

use std::time::Duration;

use culvert_dataplane_config::Poll;

/// Empty batches in a row before the first sleep: a flow at 10,000 packets a second never sleeps.
const SPINS_BEFORE_SLEEP: u32 = 256;
/// First sleep, microseconds.
const SLEEP_US_MIN: u64 = 10;
/// Longest sleep, microseconds. It bounds what idleness adds to the latency of a packet.
const SLEEP_US_MAX: u64 = 500;

/// Counts empty batches and says how long to sleep.
#[derive(Debug)]
pub struct Idle {
    poll: Poll,
    empty: u32,
    sleep_us: u64,
}

impl Idle {
    /// Starts awake.
    #[must_use]
    pub fn new(poll: Poll) -> Self {
        Self { poll, empty: 0, sleep_us: SLEEP_US_MIN }
    }

    /// To be called after each batch; `worked` when it did anything. `None`: go on at once.
    pub fn after_batch(&mut self, worked: bool) -> Option<Duration> {
        if worked || self.poll == Poll::Busy {
            self.empty = 0;
            self.sleep_us = SLEEP_US_MIN;
            return None;
        }
        self.empty = self.empty.saturating_add(1);
        if self.empty <= SPINS_BEFORE_SLEEP {
            return None;
        }
        let sleep = Duration::from_micros(self.sleep_us);
        self.sleep_us = (self.sleep_us * 2).min(SLEEP_US_MAX);
        Some(sleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_worker_never_sleeps() {
        let mut idle = Idle::new(Poll::Busy);
        assert!((0..10_000).all(|_| idle.after_batch(false).is_none()));
    }

    #[test]
    fn an_idle_worker_sleeps_longer_and_longer_up_to_the_bound() {
        let mut idle = Idle::new(Poll::Adaptive);
        assert!((0..SPINS_BEFORE_SLEEP).all(|_| idle.after_batch(false).is_none()));
        let sleeps: Vec<_> = (0..10).filter_map(|_| idle.after_batch(false)).collect();
        assert_eq!(sleeps.len(), 10);
        assert_eq!(sleeps[0], Duration::from_micros(SLEEP_US_MIN));
        assert!(sleeps.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(sleeps[9], Duration::from_micros(SLEEP_US_MAX));
    }

    #[test]
    fn one_packet_wakes_it_for_good() {
        let mut idle = Idle::new(Poll::Adaptive);
        while idle.after_batch(false).is_none() {}
        assert_eq!(idle.after_batch(true), None);
        assert!((0..SPINS_BEFORE_SLEEP).all(|_| idle.after_batch(false).is_none()));
    }
}
