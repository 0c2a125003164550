//! Round-trip time and retransmission timeout (RFC 6298).

use crate::time::{Duration, Instant};

/// What the RTO adds to the smoothed round-trip time at least: a peer may delay an acknowledgment
/// for so long on any path.
///
/// RFC 6298, 2.4 asks for an RTO of 1 s; Linux has long added 200 ms. Over a tunnel it has to lie
/// well below the timeout of the TCP inside (RFC 9329, 9.1), or both retransmit for one loss.
pub(crate) const RTO_MIN: Duration = Duration::from_millis(120);
/// The highest RTO (RFC 6298, 2.5 allows any maximum from 60 s).
pub(crate) const RTO_MAX: Duration = Duration::from_secs(60);
/// The RTO before the first measurement (RFC 6298, 2.1).
pub(crate) const RTO_INITIAL: Duration = Duration::from_secs(1);
/// The RTO after a handshake whose SYN was lost, until the first measurement (RFC 6298, 5.7).
pub(crate) const RTO_AFTER_LOST_SYN: Duration = Duration::from_secs(3);
/// A measurement above a minute says no more than this.
const RTT_MAX_US: u32 = 60_000_000;
/// For how long a minimum round-trip time is believed.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(300);

/// The estimator of RFC 6298, 2, with a windowed minimum for RACK (RFC 8985, 6.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct RttEstimator {
    /// Microseconds; 0 before the first measurement.
    srtt_us: u32,
    rttvar_us: u32,
    min_us: u32,
    backoff: u8,
    /// The SYN had to be sent again.
    syn_was_lost: bool,
    /// When the minimum was measured.
    min_at: Instant,
}

impl RttEstimator {
    pub(crate) const fn new() -> Self {
        Self {
            srtt_us: 0,
            rttvar_us: 0,
            min_us: 0,
            backoff: 0,
            syn_was_lost: false,
            min_at: Instant::ZERO,
        }
    }

    /// Takes a measurement; one of an ambiguous retransmission must not come here (Karn).
    pub(crate) fn sample(&mut self, rtt: Duration, now: Instant) {
        let rtt = u32::try_from(rtt.as_micros()).unwrap_or(RTT_MAX_US).clamp(1, RTT_MAX_US);
        if self.srtt_us == 0 {
            self.srtt_us = rtt;
            self.rttvar_us = rtt / 2;
        } else {
            // RFC 6298, 2.3: alpha 1/8, beta 1/4.
            let error = self.srtt_us.abs_diff(rtt);
            self.rttvar_us = (self.rttvar_us * 3 + error) / 4;
            self.srtt_us = ((self.srtt_us * 7 + rtt) / 8).max(1);
        }
        self.backoff = 0;
        if self.min_us == 0 || rtt <= self.min_us || now.since(self.min_at) >= MIN_RTT_WINDOW {
            (self.min_us, self.min_at) = (rtt, now);
        }
    }

    /// The smoothed round-trip time, once there is one.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        (self.srtt_us > 0).then(|| Duration::from_micros(self.srtt_us.into()))
    }

    /// The lowest round-trip time of the last minutes.
    pub(crate) fn minimum(&self) -> Option<Duration> {
        (self.min_us > 0).then(|| Duration::from_micros(self.min_us.into()))
    }

    /// The retransmission timeout, backed off (RFC 6298, 2 and 5.5).
    pub(crate) fn rto(&self) -> Duration {
        (self.rto_at_first() * (1 << self.backoff)).min(RTO_MAX)
    }

    /// The retransmission timeout before it is backed off (RFC 6298, 2).
    pub(crate) fn rto_at_first(&self) -> Duration {
        let variance = Duration::from_micros(u64::from(self.rttvar_us) * 4);
        let unmeasured = if self.syn_was_lost { RTO_AFTER_LOST_SYN } else { RTO_INITIAL };
        let base = self.smoothed().map_or(unmeasured, |srtt| srtt + variance.max(RTO_MIN));
        base.min(RTO_MAX)
    }

    /// Doubles the timeout after it fired (RFC 6298, 5.5).
    pub(crate) fn back_off(&mut self) {
        if self.rto() < RTO_MAX {
            self.backoff += 1;
        }
    }

    /// Whether the timer has fired since the last measurement.
    pub(crate) fn is_backed_off(&self) -> bool {
        self.backoff > 0
    }

    /// The handshake is done; whether its SYN was lost. Then the path may be slower than the first
    /// RTO took it for.
    pub(crate) fn handshake_done(&mut self) -> bool {
        self.syn_was_lost = self.is_backed_off();
        self.backoff = 0;
        self.syn_was_lost
    }

    /// Takes the back-off back: something new was acknowledged, and timestamps will tell how long that
    /// takes now.
    pub(crate) fn forgive(&mut self) {
        self.backoff = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_micros(1_000_000);

    #[test]
    fn rfc6298_2_first_and_later_measurements() {
        let mut rtt = RttEstimator::new();
        assert_eq!(rtt.rto(), RTO_INITIAL);
        rtt.sample(Duration::from_millis(100), NOW);
        assert_eq!(rtt.rto(), Duration::from_millis(300), "SRTT + 4 * RTT/2");
        rtt.sample(Duration::from_millis(180), NOW);
        assert_eq!(rtt.smoothed(), Some(Duration::from_millis(110)));
        // RTTVAR = 3/4 * 50 + 1/4 * 80 = 57.5 ms
        assert_eq!(rtt.rto(), Duration::from_micros(110_000 + 4 * 57_500));
    }

    #[test]
    fn rfc6298_5_5_back_off_is_bounded_and_ends_with_a_measurement() {
        let mut rtt = RttEstimator::new();
        rtt.sample(Duration::from_millis(100), NOW);
        for _ in 0..100 {
            rtt.back_off();
        }
        assert_eq!(rtt.rto(), RTO_MAX);
        rtt.sample(Duration::from_millis(100), NOW);
        assert_eq!(rtt.rto(), Duration::from_millis(250), "SRTT + 4 * 3/4 * RTT/2");
    }

    #[test]
    fn rfc6298_5_7_a_lost_syn_means_three_seconds_until_the_first_measurement() {
        let mut rtt = RttEstimator::new();
        rtt.back_off();
        assert!(rtt.handshake_done());
        assert_eq!(rtt.rto(), RTO_AFTER_LOST_SYN);
        rtt.sample(Duration::from_millis(100), NOW);
        assert_eq!(rtt.rto(), Duration::from_millis(300));
    }

    #[test]
    fn the_floor_suits_a_tunnel() {
        let mut rtt = RttEstimator::new();
        for _ in 0..100 {
            rtt.sample(Duration::from_micros(200), NOW);
        }
        assert_eq!(rtt.rto(), RTO_MIN + Duration::from_micros(200));
    }

    #[test]
    fn an_old_minimum_gives_way() {
        let mut rtt = RttEstimator::new();
        rtt.sample(Duration::from_millis(10), NOW);
        rtt.sample(Duration::from_millis(50), NOW + Duration::from_secs(299));
        assert_eq!(rtt.minimum(), Some(Duration::from_millis(10)));
        rtt.sample(Duration::from_millis(50), NOW + Duration::from_secs(300));
        assert_eq!(rtt.minimum(), Some(Duration::from_millis(50)));
    }
}
