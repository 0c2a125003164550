//! Proportional rate reduction (RFC 9937): how much may be sent for each acknowledgment while a
//! loss is being repaired.

/// The state of one recovery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prr {
    /// Octets in flight at the start, `RecoverFS`.
    recover_flight: u64,
    delivered: u64,
    out: u64,
}

impl Prr {
    /// A recovery begins with `recover_flight` octets not yet known as delivered.
    pub(crate) fn begin(recover_flight: u64) -> Self {
        Self { recover_flight: recover_flight.max(1), delivered: 0, out: 0 }
    }

    /// Octets were sent during the recovery.
    pub(crate) fn sent(&mut self, octets: u64) {
        self.out += octets;
    }

    /// An acknowledgment delivered `delivered` octets; returns the congestion window from now on.
    /// `safe` says that it advanced the cumulative point and told of no further loss (RFC 9937, 5).
    pub(crate) fn on_ack(
        &mut self,
        delivered: u64,
        pipe: u64,
        ssthresh: u64,
        mss: u64,
        safe: bool,
    ) -> u64 {
        self.delivered += delivered;
        let mut allowance = if pipe > ssthresh {
            // Proportional part: as much goes out as came in, scaled down.
            (self.delivered * ssthresh).div_ceil(self.recover_flight).saturating_sub(self.out)
        } else {
            // Slow-start or conservative reduction bound.
            let limit = self.delivered.saturating_sub(self.out).max(delivered);
            (limit + if safe { mss } else { 0 }).min(ssthresh - pipe)
        };
        if self.out == 0 {
            allowance = allowance.max(mss); // The fast retransmission itself always goes out.
        }
        pipe + allowance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc9937_halving_sends_one_for_each_two_delivered() {
        // Twenty segments of 1,000 in flight, one lost, ssthresh ten.
        let mut prr = Prr::begin(20_000);
        let mut pipe = 19_000u64;
        let mut sent = 0;
        for _ in 0..18 {
            pipe -= 1_000;
            let window = prr.on_ack(1_000, pipe, 10_000, 1_000, false);
            while pipe + 1_000 <= window {
                pipe += 1_000;
                sent += 1;
                prr.sent(1_000);
            }
        }
        assert!((8..=10).contains(&sent), "about half of what was delivered went out: {sent}");
        assert!(pipe <= 11_000, "and the flight ends near ssthresh: {pipe}");
    }

    #[test]
    fn the_fast_retransmission_always_leaves() {
        let mut prr = Prr::begin(10_000);
        let window = prr.on_ack(1_000, 9_000, 5_000, 1_000, false);
        assert!(window >= 10_000);
    }

    #[test]
    fn after_heavy_loss_it_grows_back_no_faster_than_slow_start() {
        let mut prr = Prr::begin(20_000);
        prr.sent(1_000);
        let window = prr.on_ack(1_000, 2_000, 10_000, 1_000, true);
        assert_eq!(window, 2_000 + 2_000, "delivered plus one segment");
        let window = prr.on_ack(1_000, 2_000, 10_000, 1_000, false);
        assert_eq!(window, 2_000 + 1_000, "not when the ack tells of more loss");
    }
}
