//! Congestion control: how much may be in flight and how fast it leaves.
//!
//! The connection tells each controller what was delivered, lost or proved spurious; a controller
//! answers with a window and, if it paces, a rate. Which one runs is chosen for each connection, and
//! may be chosen anew while it lives: the successor begins with what was found of the path.

mod bbr;
mod cubic;
mod hystart;
#[cfg(test)]
mod tests;

use super::lazy::Spares;
use crate::time::{Duration, Instant};
use bbr::Bbr;
pub(crate) use bbr::Signals;
use cubic::Cubic;
use std::ops::Range;

/// The congestion control of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CongestionControl {
    /// CUBIC (RFC 9438) with HyStart++ (RFC 9406).
    Cubic,
    /// BBR: paces at the measured delivery rate, so that random loss does not throttle the tunnel.
    #[default]
    Bbr,
}

/// What one acknowledgment told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckSample {
    pub(crate) now: Instant,
    /// Octets newly delivered, by acknowledgment or SACK.
    pub(crate) newly_delivered: u64,
    /// Octets delivered over the life of the connection.
    pub(crate) delivered: u64,
    /// What was delivered when the newest delivered segment left.
    pub(crate) prior_delivered: u64,
    /// Over how long the difference was delivered; zero if the sample is not usable.
    pub(crate) interval: Duration,
    /// Round-trip time of the newest segment, if it was sent once.
    pub(crate) rtt: Option<Duration>,
    pub(crate) smoothed_rtt: Option<Duration>,
    /// Octets in flight now and before the acknowledgment.
    pub(crate) pipe: u64,
    pub(crate) prior_pipe: u64,
    /// The newest segment left while there was nothing more to send.
    pub(crate) app_limited: bool,
    /// The sender fills its window: only then may a window grow (RFC 9438, 5.8; RFC 7661).
    pub(crate) window_limited: bool,
    pub(crate) una: u64,
    pub(crate) nxt: u64,
    /// Octets in flight when the newest delivered segment left, its own included.
    pub(crate) newest_in_flight: u64,
    /// Octets found lost since it left.
    pub(crate) newest_lost: u64,
    /// Whether the peer sends SACK, so that more than one loss in a round trip is seen.
    pub(crate) sack: bool,
    pub(crate) recovering: bool,
    /// A retransmission timeout is being repaired.
    pub(crate) timed_out: bool,
}

/// A segment found lost.
#[derive(Clone, Debug)]
pub(crate) struct LostSegment {
    pub(crate) range: Range<u64>,
    /// Octets in flight when it left, its own included.
    pub(crate) in_flight: u64,
    /// Octets found lost since it left, its own included.
    pub(crate) lost_since: u64,
    /// Octets delivered over the life of the connection.
    pub(crate) delivered: u64,
    /// It left while there was nothing more to send.
    pub(crate) app_limited: bool,
    /// Whether the peer sends SACK.
    pub(crate) sack: bool,
}

/// The controller of one connection.
#[derive(Debug)]
pub(crate) enum Controller {
    Cubic(Cubic),
    Bbr(Bbr),
}

/// The initial window in octets for segments of `mss` octets (RFC 6928, 2): ten segments, fewer of
/// those that are larger than Ethernet's.
pub(crate) fn initial_window(mss: u64) -> u64 {
    (10 * mss).min(14_600.max(2 * mss))
}

impl Controller {
    /// `seed` differs from connection to connection.
    pub(crate) fn new(kind: CongestionControl, mss: u64, seed: u32, now: Instant) -> Self {
        match kind {
            CongestionControl::Cubic => Self::Cubic(Cubic::new(mss, now)),
            CongestionControl::Bbr => Self::Bbr(Bbr::new(mss, seed, now)),
        }
    }

    /// Which one it is.
    pub(crate) fn kind(&self) -> CongestionControl {
        match self {
            Self::Cubic(_) => CongestionControl::Cubic,
            Self::Bbr(_) => CongestionControl::Bbr,
        }
    }

    /// The controller of the other kind, as if it had found of the path what this one has.
    pub(crate) fn successor(
        &self,
        mss: u64,
        seed: u32,
        smoothed_rtt: Option<Duration>,
        now: Instant,
    ) -> Self {
        match self {
            Self::Cubic(cubic) => {
                let mut bbr = Bbr::new(mss, seed, now);
                bbr.take_over(cubic.window(), smoothed_rtt);
                Self::Bbr(bbr)
            }
            Self::Bbr(bbr) => {
                let mut cubic = Cubic::new(mss, now);
                match bbr.full_window() {
                    Some(window) => cubic.take_over(window),
                    None => cubic.set_initial_window(bbr.window()),
                }
                Self::Cubic(cubic)
            }
        }
    }

    /// The handshake is done: this much may be in flight at first.
    pub(crate) fn set_initial_window(&mut self, window: u64) {
        match self {
            Self::Cubic(cubic) => cubic.set_initial_window(window),
            Self::Bbr(bbr) => bbr.set_initial_window(window),
        }
    }

    /// The segment size changed with the path.
    pub(crate) fn set_mss(&mut self, mss: u64) {
        match self {
            Self::Cubic(cubic) => cubic.set_mss(mss),
            Self::Bbr(bbr) => bbr.set_mss(mss),
        }
    }

    pub(crate) fn on_ack(&mut self, sample: &AckSample) {
        match self {
            Self::Cubic(cubic) => cubic.on_ack(sample),
            Self::Bbr(bbr) => bbr.on_ack(sample),
        }
    }

    /// A segment was found lost, by an acknowledgment that [`Self::on_ack`] hears of later, or by
    /// the time that passed.
    pub(crate) fn on_segment_lost(&mut self, segment: &LostSegment, now: Instant) {
        match self {
            Self::Cubic(_) => {} // It answers to the first loss of a round trip, by `on_loss`.
            Self::Bbr(bbr) => bbr.on_segment_lost(segment, now),
        }
    }

    /// A loss was found with `flight` octets outstanding; at most once a round trip.
    pub(crate) fn on_loss(&mut self, now: Instant, flight: u64) {
        match self {
            Self::Cubic(cubic) => cubic.on_loss(now, flight),
            Self::Bbr(bbr) => bbr.on_loss(),
        }
    }

    /// The recovery ended: all that was outstanding at its start has been acknowledged.
    pub(crate) fn on_recovered(&mut self) {
        match self {
            Self::Cubic(cubic) => cubic.on_recovered(),
            Self::Bbr(bbr) => bbr.on_recovered(),
        }
    }

    /// All that was outstanding when the retransmission timer fired has been acknowledged.
    pub(crate) fn on_timeout_repaired(&mut self) {
        match self {
            Self::Cubic(cubic) => cubic.on_timeout_repaired(),
            Self::Bbr(bbr) => bbr.on_recovered(),
        }
    }

    /// The retransmission timer fired with `flight` octets outstanding, of which `pipe` may yet
    /// arrive.
    pub(crate) fn on_timeout(&mut self, flight: u64, pipe: u64) {
        match self {
            Self::Cubic(cubic) => cubic.on_timeout(flight),
            Self::Bbr(bbr) => bbr.on_timeout(pipe),
        }
    }

    /// The last loss or timeout was none: go back to the state before it.
    pub(crate) fn on_spurious(&mut self) {
        match self {
            Self::Cubic(cubic) => cubic.on_spurious(),
            Self::Bbr(bbr) => bbr.on_spurious(),
        }
    }

    /// Sending starts again after the connection was idle for `idle`.
    pub(crate) fn on_restart(&mut self, idle: Duration, rto: Duration, now: Instant) {
        match self {
            Self::Cubic(cubic) => cubic.on_restart(idle, rto, now),
            Self::Bbr(bbr) => bbr.on_restart(now),
        }
    }

    /// Something is about to be in flight.
    pub(crate) fn hold(&mut self, spares: &mut Spares<Signals>) {
        if let Self::Bbr(bbr) = self {
            bbr.hold(spares);
        }
    }

    /// Nothing is in flight: gives back what only the last rounds needed.
    pub(crate) fn shrink(&mut self, spares: &mut Spares<Signals>) {
        match self {
            Self::Cubic(_) => {}
            Self::Bbr(bbr) => bbr.shrink(spares),
        }
    }

    /// Octets that may be in flight.
    pub(crate) fn window(&self) -> u64 {
        match self {
            Self::Cubic(cubic) => cubic.window(),
            Self::Bbr(bbr) => bbr.window(),
        }
    }

    /// The window that loss recovery comes down to, for PRR; `None` if the controller governs
    /// recovery by itself.
    pub(crate) fn recovery_target(&self) -> Option<u64> {
        match self {
            Self::Cubic(cubic) => Some(cubic.slow_start_threshold()),
            Self::Bbr(_) => None,
        }
    }

    /// Octets a second at which to pace.
    pub(crate) fn pacing_rate(&self, smoothed_rtt: Option<Duration>) -> Option<u64> {
        match self {
            Self::Cubic(cubic) => smoothed_rtt.map(|srtt| cubic.pacing_rate(srtt)),
            Self::Bbr(bbr) => Some(bbr.pacing_rate()),
        }
    }
}
