//! `ProbeBW`: slower, even, refilling, faster, and again, at times that differ from connection to
//! connection. Each turn measures what the path carries and makes room for others.

use super::{AckSample, Bbr, Mode, Rate, UNBOUNDED};
use crate::time::{Duration, Instant};

/// Between two probes pass at least so long, and by chance up to a second more.
const WAIT: Duration = Duration::from_secs(2);
const WAIT_MORE_MS: u32 = 1000;
/// After so many rounds a flow of Reno would have probed: then so may we.
const ROUNDS_MAX: u64 = 63;
/// What is left unused of the bound on what is in flight, for others to come: `Headroom`.
pub(super) const HEADROOM: f64 = 0.15;
/// The probes after one that went too high, so many, end after so many rounds: with up to 63
/// segments more, for everybody the same, however much he has. That lets small shares catch up.
pub(super) const PROBES_CONTENDED: u8 = 2;
const UP_ROUNDS_CONTENDED: u8 = 6;
/// The bound grows by up to 2 to this power segments a round.
const UP_ROUNDS_MAX: u8 = 30;

/// What the acknowledgments that come in now tell of: `ack_phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feedback {
    /// No probe.
    None,
    Refilling,
    /// A probe has begun; what comes left before it.
    Starting,
    /// The probe.
    Probe,
    /// The probe has ended; what comes left during it.
    Stopping,
}

/// Where a connection stands in the cycle.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cycle {
    since: Instant,
    wait_ms: u32,
    /// Rounds since the last probe: `rounds_since_probe_up`.
    pub(super) rounds: u32,
    feedback: Feedback,
    /// What is delivered or lost now was sent while probing: `is_bw_probe_sample`.
    pub(super) is_probe: bool,
    /// The last probe went too high: `prev_probe_too_high`.
    pub(super) was_too_high: bool,
    /// The last probe ended early because of the one before: `prev_probe_precautionary`.
    was_cautious: bool,
    /// Probes that end early yet, since one has gone too high: others may be at the limit too.
    pub(super) contended: u8,
    up_rounds: u8,
    /// Octets delivered since the bound last grew, and how many make it grow by a segment.
    up_acked: u64,
    up_step: u64,
}

impl Cycle {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            wait_ms: 0,
            rounds: 0,
            feedback: Feedback::None,
            is_probe: false,
            was_too_high: false,
            was_cautious: false,
            contended: 0,
            up_rounds: 0,
            up_acked: 0,
            up_step: UNBOUNDED,
        }
    }

    pub(super) fn stop_feedback(&mut self) {
        self.feedback = Feedback::Stopping;
    }
}

#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
impl Bbr {
    /// `IsInAProbeBWState`.
    pub(super) fn is_probing_cycle(&self) -> bool {
        matches!(self.mode, Mode::Down | Mode::Cruise | Mode::Refill | Mode::Up)
    }

    /// `StartProbeBW_DOWN`.
    pub(super) fn start_down(&mut self, now: Instant) {
        self.forget_congestion();
        self.cycle.rounds = self.draw(2);
        self.cycle.wait_ms = WAIT.as_millis() as u32 + self.draw(WAIT_MORE_MS);
        self.cycle.since = now;
        self.cycle.up_step = UNBOUNDED;
        self.cycle.feedback = Feedback::Stopping;
        self.start_round();
        self.mode = Mode::Down;
    }

    /// `StartProbeBW_REFILL`.
    pub(super) fn start_refill(&mut self) {
        self.forget_short_term();
        self.cycle.up_rounds = 0;
        self.cycle.up_acked = 0;
        self.cycle.was_cautious = false;
        self.cycle.feedback = Feedback::Refilling;
        self.start_round();
        self.mode = Mode::Refill;
    }

    /// `StartProbeBW_UP`.
    fn start_up(&mut self, rate: &Rate) {
        self.cycle.is_probe = true;
        self.cycle.feedback = Feedback::Starting;
        self.start_round();
        self.search_full_pipe(rate.rate);
        self.mode = Mode::Up;
        self.raise_slope();
    }

    /// `UpdateProbeBWCyclePhase`.
    pub(super) fn advance_cycle(&mut self, sample: &AckSample, rate: &Rate) {
        if !self.pipe_was_full || self.adapt_long_term(sample, rate) {
            return;
        }
        match self.mode {
            Mode::Down | Mode::Cruise if self.is_time_to_probe(sample.now) => self.start_refill(),
            Mode::Down if self.is_time_to_cruise(sample) => self.mode = Mode::Cruise,
            Mode::Refill if self.round_started => self.start_up(rate),
            Mode::Up => self.advance_up(sample, rate),
            _ => {}
        }
    }

    /// `IsTimeToProbeBW`: after the drawn time, or when Reno would have grown to this size.
    fn is_time_to_probe(&self, now: Instant) -> bool {
        let reno_rounds = (self.target_inflight() / self.mss()).min(ROUNDS_MAX);
        now.since(self.cycle.since) > Duration::from_millis(self.cycle.wait_ms.into())
            || u64::from(self.cycle.rounds) >= reno_rounds
    }

    /// `IsTimeToCruise`.
    fn is_time_to_cruise(&self, sample: &AckSample) -> bool {
        let product = self.with_quanta(self.product_of(self.greatest_rate(), 1.0));
        sample.pipe <= self.inflight_with_headroom().min(product)
    }

    fn advance_up(&mut self, sample: &AckSample, rate: &Rate) {
        if self.is_time_to_go_down(sample, rate) {
            self.cycle.was_too_high = false;
            self.start_down(sample.now);
        }
    }

    /// `IsTimeToGoDown`.
    fn is_time_to_go_down(&mut self, sample: &AckSample, rate: &Rate) -> bool {
        if self.cycle.was_too_high && sample.pipe >= self.long_inflight {
            self.cycle.was_cautious = true;
            return true;
        }
        if self.is_window_limited(sample) && self.window >= self.long_inflight {
            self.search_full_pipe(rate.rate);
            let all_for_now = self.cycle.up_rounds > UP_ROUNDS_CONTENDED;
            let contended = all_for_now && self.cycle.contended > 0;
            self.cycle.contended -= u8::from(contended);
            return contended;
        }
        self.pipe_is_full
    }

    /// Whether the window, not the pacing or the application, held the sender back.
    fn is_window_limited(&self, sample: &AckSample) -> bool {
        sample.prior_pipe + self.mss() > self.window
    }

    /// `InflightWithHeadroom`.
    pub(super) fn inflight_with_headroom(&self) -> u64 {
        if self.long_inflight == UNBOUNDED {
            return UNBOUNDED;
        }
        let headroom = ((HEADROOM * self.long_inflight as f64) as u64).max(self.mss());
        self.long_inflight.saturating_sub(headroom).max(self.least_window())
    }

    /// `TargetInflight`.
    pub(super) fn target_inflight(&self) -> u64 {
        self.product(1.0).min(self.window)
    }

    /// `AdaptLongTermModel`; `true` if it moved the state machine.
    fn adapt_long_term(&mut self, sample: &AckSample, rate: &Rate) -> bool {
        if self.cycle.feedback == Feedback::Starting && self.round_started {
            self.cycle.feedback = Feedback::Probe;
        }
        if self.cycle.feedback == Feedback::Stopping && self.round_started {
            self.cycle.is_probe = false;
            self.cycle.feedback = Feedback::None;
            if self.is_probing_cycle() && !rate.app_limited {
                self.advance_rates();
            }
            if self.is_probing_cycle() && self.cycle.was_cautious && !self.cycle.was_too_high {
                self.start_refill();
                return true;
            }
        }
        let safe = !self.is_too_high(sample.newest_lost, sample.newest_in_flight, sample.sack);
        if safe && self.long_inflight != UNBOUNDED {
            self.long_inflight = self.long_inflight.max(sample.newest_in_flight);
            if self.mode == Mode::Up {
                self.probe_upward(sample);
            }
        }
        false
    }

    /// `ProbeInflightLongtermUpward`.
    fn probe_upward(&mut self, sample: &AckSample) {
        if !self.is_window_limited(sample) || self.window < self.long_inflight {
            return; // The bound is not what limits us.
        }
        self.cycle.up_acked += sample.newly_delivered;
        let steps = self.cycle.up_acked / self.cycle.up_step;
        self.cycle.up_acked %= self.cycle.up_step;
        self.long_inflight = self.long_inflight.saturating_add(steps * self.mss());
        if self.round_started {
            self.raise_slope();
        }
    }

    /// `RaiseInflightLongtermSlope`: one segment a round, then two, four and so on.
    fn raise_slope(&mut self) {
        let growth = 1u64 << self.cycle.up_rounds;
        self.cycle.up_rounds = (self.cycle.up_rounds + 1).min(UP_ROUNDS_MAX);
        self.cycle.up_step = (self.window / growth).max(self.mss());
    }
}
