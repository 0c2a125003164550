//! Pacing: spreading a window over the round trip, in bursts small enough for the path and large
//! enough for the worker.

use crate::time::Instant;

/// How far ahead of its rate a connection may send: covers a worker's batch and a timer tick.
const BURST_NS: u64 = 1_000_000;
/// How much lateness is made up for: a worker that sleeps wakes up late each time, and would lose
/// that share of the rate. No more, or what an idle connection did not send would come at once.
const LATE_NS: u64 = 1_000_000;

/// The release time of one connection's next segment, in nanoseconds: at 10 Gbit/s a segment
/// takes about one microsecond, and rounding to that would let a third more through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pacer {
    next_ns: u64,
}

impl Pacer {
    pub(crate) const fn new() -> Self {
        Self { next_ns: 0 }
    }

    /// When the next segment may leave; `None` if it may now.
    pub(crate) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        let ahead = now.micros() * 1000 + BURST_NS;
        (self.next_ns > ahead)
            .then(|| Instant::from_micros((self.next_ns - BURST_NS).div_ceil(1000)))
    }

    /// Octets that may leave at `now`, besides the segment with which the rate is exceeded.
    pub(crate) fn allowance(&self, now: Instant, rate: u64) -> u64 {
        let now_ns = now.micros() * 1000;
        let next_ns = self.next_ns.max(now_ns.saturating_sub(LATE_NS));
        let free_ns = (now_ns + BURST_NS).saturating_sub(next_ns);
        free_ns.saturating_mul(rate) / 1_000_000_000
    }

    /// `octets` leave at `now`, paced at `rate` octets a second.
    pub(crate) fn sent(&mut self, now: Instant, octets: u64, rate: u64) {
        let earliest = (now.micros() * 1000).saturating_sub(LATE_NS);
        self.next_ns = self.next_ns.max(earliest) + Self::time_ns(octets, rate);
    }

    fn time_ns(octets: u64, rate: u64) -> u64 {
        octets.saturating_mul(1_000_000_000) / rate.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;

    /// Sends as fast as the pacer lets it for `time`; returns the octets sent.
    fn run(rate: u64, time: Duration) -> u64 {
        let mut pacer = Pacer::new();
        let start = Instant::from_micros(1_000_000);
        let (mut now, mut sent) = (start, 0);
        while now.since(start) < time {
            match pacer.blocked_until(now) {
                Some(at) => now = at,
                None => {
                    pacer.sent(now, 1_400, rate);
                    sent += 1_400;
                }
            }
        }
        sent
    }

    #[test]
    fn a_worker_that_wakes_up_late_keeps_the_rate() {
        let (mut pacer, rate) = (Pacer::new(), 12_500_000);
        let start = Instant::from_micros(1_000_000);
        let (mut now, mut sent) = (start, 0);
        while now.since(start) < Duration::from_secs(1) {
            match pacer.blocked_until(now) {
                Some(at) => now = at + Duration::from_micros(700),
                None => {
                    pacer.sent(now, 1_400, rate);
                    sent += 1_400;
                }
            }
        }
        assert!(sent > rate * 99 / 100, "{sent} of {rate}");
    }

    #[test]
    fn what_is_allowed_at_once_is_what_one_by_one_would_be() {
        let now = Instant::from_micros(1_000_000);
        for rate in [100_000u64, 12_500_000, 1_250_000_000] {
            let mut pacer = Pacer::new();
            let allowed = pacer.allowance(now, rate) + 1_400;
            let mut sent = 0;
            while pacer.blocked_until(now).is_none() {
                pacer.sent(now, 1_400, rate);
                sent += 1_400;
            }
            assert!(allowed.abs_diff(sent) <= 1_400, "{allowed} or {sent} at {rate}");
        }
    }

    #[test]
    fn the_rate_is_kept_from_slow_to_very_fast() {
        for rate in [100_000u64, 12_500_000, 1_250_000_000] {
            let sent = run(rate, Duration::from_secs(1));
            let surplus = sent.abs_diff(rate);
            assert!(surplus <= rate / 500 + 4_200, "{rate} octets a second gave {sent}");
        }
    }
}
