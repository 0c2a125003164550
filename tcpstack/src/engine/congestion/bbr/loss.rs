//! What losses say: how much in flight is too much for the path (while probing), and that the rate
//! has fallen (otherwise).

use super::cycle::PROBES_CONTENDED;
use super::{AckSample, Bbr, LostSegment, Mode, Rate, UNBOUNDED};
use crate::time::Instant;

/// A bound is never lowered to less than this share of what was: `Beta`, as CUBIC's.
const BETA: f64 = 0.7;
/// What an empty queue needs in flight is kept, and of it what cruising leaves to others.
const KEPT: f64 = 1.0 / (1.0 - super::cycle::HEADROOM);
/// Startup ends at so many separate losses in a round: `BBRStartupFullLossCnt`.
const STARTUP_LOSSES: u8 = 6;

/// One round trip of losses, and what it delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LossRound {
    /// A round ends when something sent after this much had been delivered is delivered.
    end: u64,
    /// `is_loss_in_round`.
    lossy: bool,
    /// Separate ranges lost, and where the last one ended.
    ranges: u8,
    range_end: u64,
    delivered: u64,
    lost: u64,
    /// `bw_latest` and `inflight_latest`: the most that this round delivered.
    rate: f32,
    inflight: u64,
    undo: Option<Undo>,
}

/// What a loss changed, in case it was none.
#[derive(Clone, Copy, Debug)]
struct Undo {
    short_rate: f32,
    short_inflight: u64,
    long_inflight: u64,
    /// The state that losses ended.
    mode: Option<Mode>,
}

impl LossRound {
    pub(super) const fn new() -> Self {
        Self {
            end: 0,
            lossy: false,
            ranges: 0,
            range_end: 0,
            delivered: 0,
            lost: 0,
            rate: 0.0,
            inflight: 0,
            undo: None,
        }
    }
}

#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
impl Bbr {
    /// `HandleLostPacket`.
    pub(crate) fn on_segment_lost(&mut self, segment: &LostSegment, now: Instant) {
        self.note_loss(segment.delivered);
        let octets = segment.range.end - segment.range.start;
        let signals = &mut *self.signals;
        signals.quiet.round_lost += octets;
        let round = &mut signals.loss;
        round.lost += octets;
        if round.range_end != segment.range.start {
            round.ranges = round.ranges.saturating_add(1);
        }
        round.range_end = segment.range.end;
        let (lost, in_flight) = (segment.lost_since, segment.in_flight);
        if self.cycle.is_probe && self.is_too_high(lost, in_flight, segment.sack) {
            let safe = self.inflight_at_loss(octets, lost, in_flight);
            self.in_flight_was_too_high(safe, segment.app_limited, now);
        }
    }

    /// `NoteLoss`.
    fn note_loss(&mut self, delivered: u64) {
        if self.signals.loss.lossy {
            return;
        }
        self.save_state();
        let round = &mut self.signals.loss;
        round.end = delivered;
        round.lossy = true;
    }

    /// `SaveStateUponLoss`.
    fn save_state(&mut self) {
        self.save_window();
        self.signals.loss.undo = Some(Undo {
            short_rate: self.short_rate,
            short_inflight: self.short_inflight,
            long_inflight: self.long_inflight,
            mode: None,
        });
    }

    fn note_mode_ended(&mut self, mode: Mode) {
        if let Some(undo) = &mut self.signals.loss.undo {
            undo.mode = Some(mode);
        }
    }

    /// `IsInflightTooHigh`. A single segment proves nothing: of a few it would be a large share.
    pub(super) fn is_too_high(&self, lost: u64, in_flight: u64, sack: bool) -> bool {
        // Asked at every acknowledgment: the threshold is not worth its cost until it decides.
        let too_many = lost > self.mss() && lost as f32 > self.loss_threshold(in_flight);
        too_many || (lost > 0 && !sack)
    }

    /// `InflightAtLoss`: how much of what was in flight was safe.
    fn inflight_at_loss(&self, octets: u64, lost: u64, in_flight: u64) -> u64 {
        let threshold = f64::from(self.loss_threshold(in_flight)) / in_flight.max(1) as f64;
        let before = in_flight.saturating_sub(octets) as f64;
        let lost_before = lost.saturating_sub(octets) as f64;
        let prefix = (threshold * before - lost_before) / (1.0 - threshold);
        (before + prefix.max(0.0)) as u64
    }

    /// `HandleInflightTooHigh`: once for each probe.
    fn in_flight_was_too_high(&mut self, safe: u64, app_limited: bool, now: Instant) {
        self.cycle.was_too_high = true;
        self.cycle.is_probe = false;
        self.cycle.contended = PROBES_CONTENDED;
        if !app_limited {
            let least = (self.target_inflight() as f64 * BETA) as u64;
            self.long_inflight = self.give_way(safe).max(least);
        }
        if self.mode == Mode::Up {
            self.note_mode_ended(Mode::Up);
            self.start_down(now);
        }
    }

    /// What may be in flight after `inflight` was too much. The draft keeps all of it, so that whoever
    /// has most of a full queue has it for ever; here a queue is given up as CUBIC gives it up,
    /// which is what lets shares become equal. A path without one is not left empty for that.
    fn give_way(&self, inflight: u64) -> u64 {
        let empty = self.means.empty().unwrap_or_default().as_secs_f64();
        let kept = (KEPT * f64::from(self.signals.loss.rate) * empty) as u64;
        ((inflight as f64 * BETA) as u64).max(kept.min(inflight))
    }

    /// `UpdateLatestDeliverySignals` and `UpdateCongestionSignals`; `true` at the end of a round of
    /// losses.
    pub(super) fn update_loss_round(&mut self, sample: &AckSample, rate: &Rate) -> bool {
        let round = &mut self.signals.loss;
        round.delivered += sample.newly_delivered;
        round.rate = round.rate.max(rate.rate);
        round.inflight = round.inflight.max(rate.delivered);
        if sample.prior_delivered < round.end {
            return false;
        }
        round.end = sample.delivered;
        let probing = matches!(self.mode, Mode::Startup | Mode::Refill | Mode::Up);
        if !probing && self.signals.loss.lossy {
            self.adapt_to_losses();
        }
        true
    }

    /// `AdaptLowerBoundsFromCongestion`. While the queue is empty, no more is congestion than what a
    /// probe takes for it.
    fn adapt_to_losses(&mut self) {
        let round = &self.signals.loss;
        let (lost, all) = (round.lost as f32, round.delivered + round.lost);
        if self.has_queue() && lost >= self.explained(all) {
            self.long_inflight = self.give_way(self.long_inflight.min(self.window));
            self.bound_short_term();
        } else if lost > self.loss_threshold(all) {
            self.bound_short_term();
        }
    }

    /// `InitLowerBounds` and `LossLowerBounds`: down to what the last round delivered.
    fn bound_short_term(&mut self) {
        if self.short_rate.is_infinite() {
            self.short_rate = self.greatest_rate();
        }
        if self.short_inflight == UNBOUNDED {
            self.short_inflight = self.window;
        }
        let round = self.signals.loss;
        self.short_rate = round.rate.max(self.short_rate * BETA as f32);
        let less = (self.short_inflight as f64 * BETA) as u64;
        self.short_inflight = round.inflight.max(less);
    }

    /// `AdvanceLatestDeliverySignals`: the next round begins with this acknowledgment.
    pub(super) fn advance_loss_round(&mut self, rate: &Rate, over: bool) {
        if !over {
            return;
        }
        let round = &mut self.signals.loss;
        (round.rate, round.inflight) = (rate.rate, rate.delivered);
        (round.delivered, round.lost) = (0, 0);
        (round.lossy, round.ranges) = (false, 0);
    }

    /// `ResetShortTermModel`.
    pub(super) fn forget_short_term(&mut self) {
        self.short_rate = f32::INFINITY;
        self.short_inflight = UNBOUNDED;
    }

    /// `ResetCongestionSignals`.
    pub(super) fn forget_congestion(&mut self) {
        let round = &mut self.signals.loss;
        round.lossy = false;
        (round.rate, round.inflight) = (0.0, 0);
    }

    /// `CheckStartupHighLoss`: a whole round of recovery with heavy losses fills the pipe too.
    ///
    /// The draft compares what was lost since the newest segment left with what was in flight then.
    /// Where the peer's window is full that is little, and nearly all of it holes: the share of losses
    /// in the round is not biased like that.
    pub(super) fn check_startup_loss(&mut self, sample: &AckSample, round_over: bool) {
        if self.pipe_was_full || !sample.recovering {
            return;
        }
        let round = &self.signals.loss;
        let too_high = self.is_too_high(round.lost, round.delivered + round.lost, sample.sack);
        let heavy = round_over && round.ranges >= STARTUP_LOSSES && too_high;
        let any = !sample.sack && round.lossy;
        if !heavy && !any {
            return;
        }
        self.note_mode_ended(Mode::Startup);
        self.pipe_was_full = true;
        self.pipe_is_full = true;
        self.long_inflight = self.product(1.0).max(self.signals.loss.inflight);
    }

    /// A recovery begins: the window of now comes back after it.
    pub(crate) fn on_loss(&mut self) {
        self.note_loss(self.delivered);
        self.save_window();
        self.recovering = true;
    }

    pub(crate) fn on_recovered(&mut self) {
        self.recovering = false;
        self.restore_window();
    }

    /// `OnEnterRTO`: the network may have changed altogether; begin with one segment beyond the `pipe`
    /// octets that may yet arrive.
    pub(crate) fn on_timeout(&mut self, pipe: u64) {
        self.on_loss();
        self.window = pipe + self.mss();
    }

    /// `HandleSpuriousLossDetection`.
    pub(crate) fn on_spurious(&mut self) {
        self.on_recovered();
        self.search_full_pipe(0.0);
        let round = &mut self.signals.loss;
        round.lossy = false;
        let Some(undo) = round.undo.take() else { return };
        self.short_rate = self.short_rate.max(undo.short_rate);
        self.short_inflight = self.short_inflight.max(undo.short_inflight);
        self.long_inflight = self.long_inflight.max(undo.long_inflight);
        match undo.mode {
            Some(Mode::Startup) if self.mode != Mode::Startup => {
                self.pipe_was_full = false;
                if self.mode != Mode::ProbeRtt {
                    self.mode = Mode::Startup;
                }
            }
            Some(Mode::Up) if !matches!(self.mode, Mode::Up | Mode::ProbeRtt) => {
                self.start_refill();
            }
            _ => {}
        }
    }
}
