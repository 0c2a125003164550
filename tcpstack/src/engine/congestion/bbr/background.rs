//! What the path loses whatever is sent.
//!
//! Congestion fills a queue before it drops, so that the round trips are long when it does; bad
//! radio loses from an empty queue as well. Losses are therefore counted over rounds in which round
//! trips were short, and that share of losses is expected everywhere else. Where nothing was lost
//! while the queue was empty it is zero, and BBR is what the draft says.
//!
//! Radio also makes every single round trip vary. What is short and long is told by the means of
//! whole rounds: the lowest of the last seconds is the empty queue, and a queue begins half way to
//! the highest.

use super::{AckSample, Bbr};
use crate::time::Duration;

/// `LossThresh`: more than this share lost means that too much is in flight.
const THRESHOLD: f32 = 0.02;
/// Losses scatter: so many standard deviations above the expected number are still no sign of
/// congestion, nor twice as many as long as there is no queue.
const SCATTER: f32 = 2.0;
/// No more than this share is ever taken for the path's own doing.
const BACKGROUND_MAX: f32 = 0.1;
/// Octets over which the share is taken at the least, in segments.
const PERIOD_SEGMENTS: u64 = 100;
/// The queue counts as empty at least up to this part of the lowest mean, and this time, above it.
const QUIET_DIVISOR: u32 = 4;
const QUIET_US: u32 = 2000;
/// The highest mean comes down by this part of the difference with each round.
const HIGHEST_DECAY: u32 = 32;
/// A mean that is not known.
const UNKNOWN: u32 = u32::MAX;

/// Means of the round-trip times of rounds, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Means {
    /// The lowest since the last `ProbeRTT`, and between it and the one before.
    lowest: [u32; 2],
    highest: u32,
}

impl Means {
    pub(super) const fn new() -> Self {
        Self { lowest: [UNKNOWN; 2], highest: 0 }
    }

    /// `ProbeRTT` begins: what the path was like before the last one is forgotten.
    pub(super) fn rotate(&mut self) {
        self.lowest = [UNKNOWN, self.lowest[0]];
    }

    /// That of the empty queue, once there is one.
    pub(super) fn empty(&self) -> Option<Duration> {
        let lowest = self.lowest[0].min(self.lowest[1]);
        (lowest != UNKNOWN).then(|| Duration::from_micros(lowest.into()))
    }

    fn update(&mut self, mean: u32) {
        self.lowest[0] = self.lowest[0].min(mean);
        self.highest -= self.highest.saturating_sub(mean) / HIGHEST_DECAY;
        self.highest = self.highest.max(mean);
    }

    /// Whether a round of this mean found packets waiting in a queue.
    fn is_queue(&self, mean: u32) -> bool {
        let empty = self.lowest[0].min(self.lowest[1]);
        let half_way = self.highest.saturating_sub(empty) / 2;
        let slack = half_way.max(empty / QUIET_DIVISOR + QUIET_US);
        mean > empty.saturating_add(slack)
    }
}

/// Counts of the round under way, and of quiet rounds since the share was last taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quiet {
    round_delivered: u64,
    pub(super) round_lost: u64,
    rtt_sum: Duration,
    rtt_count: u32,
    /// The mean of the last round, in microseconds.
    last_mean: u32,
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
            last_mean: 0,
            delivered: 0,
            lost: 0,
        }
    }

    fn mean_rtt(&self) -> Option<u32> {
        let mean = (self.rtt_count > 0).then(|| self.rtt_sum / self.rtt_count)?;
        Some(u32::try_from(mean.as_micros()).unwrap_or(UNKNOWN))
    }

    fn start_round(&mut self) {
        let last_mean = self.mean_rtt().unwrap_or(self.last_mean);
        *self = Self { last_mean, delivered: self.delivered, lost: self.lost, ..Self::default() };
    }
}

#[allow(clippy::cast_precision_loss)]
impl Bbr {
    /// More octets lost than this, of so many, mean congestion to who probes.
    pub(super) fn loss_threshold(&self, octets: u64) -> f32 {
        THRESHOLD * octets as f32 + self.explained(octets)
    }

    /// How many octets lost, of so many, the path explains by itself. One that has not been filled
    /// yet, and shows no queue, may lose whatever share one does: few rounds are too short to tell its
    /// own.
    pub(super) fn explained(&self, octets: u64) -> f32 {
        let (share, deviations) = match (self.has_queue(), self.pipe_was_full) {
            (true, _) => (self.background, SCATTER),
            (false, true) => (self.background, 2.0 * SCATTER),
            (false, false) => (BACKGROUND_MAX, SCATTER),
        };
        let segments = share * octets as f32 / self.mss as f32;
        (segments + deviations * segments.sqrt()) * self.mss as f32
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

    /// Whether packets wait in a queue now.
    pub(super) fn has_queue(&self) -> bool {
        let quiet = &self.signals.quiet;
        self.means.is_queue(quiet.mean_rtt().unwrap_or(quiet.last_mean))
    }

    /// A round is over: if its queue was empty, its losses are the path's.
    fn judge_round(&mut self) {
        let mean = self.signals.quiet.mean_rtt();
        if let Some(mean) = mean {
            self.means.update(mean);
        }
        let is_quiet = mean.is_some_and(|mean| !self.means.is_queue(mean));
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
        self.background = if first { share } else { (7.0 * self.background + share) / 8.0 };
    }
}
