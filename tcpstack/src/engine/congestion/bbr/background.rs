//! What the path loses whatever is sent.
//!
//! Congestion fills a queue before it drops, so that the round trips are long when it does; bad
//! radio loses from an empty queue as well. Losses are therefore counted over rounds in which the
//! round trips stayed near the minimum, and that share of losses is expected everywhere else. Where
//! nothing was lost while the queue was empty it is zero, and BBR is what the draft says.

use super::{AckSample, Bbr};
use crate::time::Duration;

/// `LossThresh`: more than this share lost means that too much is in flight.
const THRESHOLD: f32 = 0.02;
/// Losses scatter: so many times the expected share is still no sign.
const SCATTER: f32 = 1.5;
/// No more than this share is ever taken for the path's own doing.
const BACKGROUND_MAX: f32 = 0.1;
/// Octets over which the share is taken at the least, in segments.
const PERIOD_SEGMENTS: u64 = 100;
/// The queue counts as empty up to this part of the minimum round trip, and this time, above it.
const QUIET_DIVISOR: u32 = 8;
const QUIET_TIME: Duration = Duration::from_millis(1);

/// Counts of the round under way, and of quiet rounds since the share was last taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quiet {
    round_delivered: u64,
    pub(super) round_lost: u64,
    rtt_sum: Duration,
    rtt_count: u32,
    delivered: u64,
    lost: u64,
}

impl Quiet {
    pub(super) const fn new() -> Self {
        Self {
            round_delivered: 0,
            round_lost: 0,
            rtt_sum: Duration::ZERO,
            rtt_count: 0,
            delivered: 0,
            lost: 0,
        }
    }

    fn mean_rtt(&self) -> Option<Duration> {
        (self.rtt_count > 0).then(|| self.rtt_sum / self.rtt_count)
    }

    fn start_round(&mut self) {
        *self = Self { delivered: self.delivered, lost: self.lost, ..Self::default() };
    }
}

#[allow(clippy::cast_precision_loss)]
impl Bbr {
    /// The share of losses above which they mean congestion.
    pub(super) fn loss_threshold(&self) -> f32 {
        THRESHOLD + self.tolerated()
    }

    /// The share of losses that scatter explains.
    pub(super) fn tolerated(&self) -> f32 {
        SCATTER * self.background
    }

    pub(super) fn update_background(&mut self, sample: &AckSample) {
        if self.round_started {
            self.judge_round();
        }
        let quiet = &mut self.signals.quiet;
        quiet.round_delivered += sample.newly_delivered;
        if let Some(rtt) = sample.rtt {
            quiet.rtt_sum += rtt;
            quiet.rtt_count += 1;
        }
    }

    /// Whether round trips of this length mean that packets wait in a queue.
    pub(super) fn has_queue(&self, rtt: Duration) -> bool {
        self.rtt.minimum().is_some_and(|min| rtt > min + min / QUIET_DIVISOR + QUIET_TIME)
    }

    /// A round is over: if its queue was empty, its losses are the path's.
    fn judge_round(&mut self) {
        let mean = self.signals.quiet.mean_rtt();
        let is_quiet = mean.is_some_and(|mean| !self.has_queue(mean));
        let least = PERIOD_SEGMENTS * self.mss();
        let quiet = &mut self.signals.quiet;
        if is_quiet {
            quiet.delivered += quiet.round_delivered;
            quiet.lost += quiet.round_lost;
        }
        quiet.start_round();
        let all = quiet.delivered + quiet.lost;
        if all < least {
            return;
        }
        let share = (quiet.lost as f32 / all as f32).min(BACKGROUND_MAX);
        (quiet.delivered, quiet.lost) = (0, 0);
        // The first is taken as it is: startup must not end at a path's own losses.
        let first = self.background == 0.0 && !self.pipe_was_full;
        self.background = if first { share } else { (3.0 * self.background + share) / 4.0 };
    }
}
