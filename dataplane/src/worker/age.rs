//! Dropping inner packets by age, before they are sealed.
//!
//! A sealed frame must be sent, so the queue of frames in a send buffer can be shortened only by what
//! is not put into it. How long its oldest frame has waited says when: the rule is CoDel's (RFC 8289),
//! applied where packets come instead of where they leave. A queue that empties now and then is left
//! alone; one that stands loses single packets, more and more often, until the hosts behind it slow
//! down. Tail drop would hold them only when the buffer is full, with all of it waiting before every
//! new packet.
//!
//! Packets come to the worker that owns the SA. Where the connection is another's, that one publishes
//! since when its queue waits ([`super::rooms`]).

use crate::net::Nanos;

/// A queue may stand for so long without doing harm (RFC 8289, 4.3: TARGET, 5 % of INTERVAL).
const TARGET: Nanos = 5_000_000;
/// How long it must stand before the first packet is dropped: a round trip of the inner hosts
/// (RFC 8289, 4.2: INTERVAL).
const INTERVAL: Nanos = 100_000_000;
/// Behind a frame that has waited for so long nothing is sealed: the path has stopped, or the hosts
/// do not listen.
const AGE_MAX: Nanos = 500_000_000;
/// A queue that is no longer than this is none, however slow the path (RFC 8289, 4.4: one MTU).
pub(crate) const OCTETS_FREE: usize = 3_000;

/// What the rule remembers of one connection, where packets for it are sealed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AgeDrop {
    /// Since when the queue stands, and INTERVAL on top; 0 when it does not.
    stands_until: Nanos,
    /// When the next packet is dropped, while packets are.
    next: Nanos,
    /// Packets dropped since dropping began.
    count: u32,
    dropping: bool,
}

impl AgeDrop {
    /// Whether a packet that comes at `now` may be sealed, where `waiting` octets wait to be sent, the
    /// oldest of them for `age`.
    pub(crate) fn admits(&mut self, now: Nanos, age: Nanos, waiting: usize) -> bool {
        if age < TARGET || waiting <= OCTETS_FREE {
            self.stands_until = 0;
            self.dropping = false;
            return true;
        }
        if age >= AGE_MAX {
            return false;
        }
        if self.stands_until == 0 {
            self.stands_until = now + INTERVAL;
        }
        if !self.dropping {
            return now < self.stands_until || self.begin(now);
        }
        if now < self.next {
            return true;
        }
        self.count = self.count.saturating_add(1);
        self.next += self.pause();
        false
    }

    /// The first drop. Soon after the last time, at nearly the rate of then (RFC 8289, 4.3).
    fn begin(&mut self, now: Nanos) -> bool {
        let recently = now.saturating_sub(self.next) < 16 * INTERVAL;
        self.count = if recently && self.count > 2 { self.count - 2 } else { 1 };
        self.dropping = true;
        self.next = now + self.pause();
        false
    }

    /// The control law: the time to the next drop shrinks with the root of their number, so that
    /// the rate of a TCP behind it falls evenly.
    fn pause(&self) -> Nanos {
        (INTERVAL as f64 / f64::from(self.count).sqrt()) as Nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Nanos = 1_000_000;

    /// Offers a packet each millisecond to a queue of this age; when packets are dropped, in ms.
    fn drops(rule: &mut AgeDrop, from: u64, to: u64, age: Nanos) -> Vec<u64> {
        (from..to).filter(|ms| !rule.admits(ms * MS, age, 100_000)).collect()
    }

    #[test]
    fn rfc8289_4_2_a_burst_shorter_than_the_interval_passes() {
        let mut rule = AgeDrop::default();
        for start in [1_000, 2_000, 3_000] {
            assert_eq!(drops(&mut rule, start, start + 100, 50 * MS), []);
            assert_eq!(drops(&mut rule, start + 100, start + 101, MS), []);
        }
    }

    #[test]
    fn rfc8289_4_3_a_standing_queue_loses_packets_ever_more_often() {
        let mut rule = AgeDrop::default();
        let dropped = drops(&mut rule, 1_000, 1_400, 50 * MS);
        assert_eq!(dropped, [1_100, 1_200, 1_271, 1_329, 1_379]);
        // It stands again soon after: no new beginning.
        assert_eq!(drops(&mut rule, 1_400, 1_401, MS), []);
        assert_eq!(drops(&mut rule, 1_401, 1_600, 50 * MS), [1_501, 1_559]);
    }

    #[test]
    fn rfc8289_4_4_what_is_no_queue_does_not_stand() {
        let mut rule = AgeDrop::default();
        assert!((1_000..2_000).all(|ms| rule.admits(ms * MS, AGE_MAX, OCTETS_FREE)));
    }

    #[test]
    fn behind_a_path_that_has_stopped_nothing_is_sealed() {
        let mut rule = AgeDrop::default();
        assert_eq!(drops(&mut rule, 1_000, 1_010, AGE_MAX).len(), 10);
        assert!(rule.admits(1_010 * MS, MS, 100_000));
    }
}
