//! BBR (draft-cardwell-iccrg-bbr-congestion-control-00): pace at the bottleneck's delivery rate,
//! keep about two bandwidth-delay products in flight, and take loss alone for no sign of
//! congestion. On bad Wi-Fi that is the difference between 2 and 90 Mbit/s.

use super::{AckSample, INITIAL_WINDOW_SEGMENTS};
use crate::time::{Duration, Instant};

/// 2/ln(2): the lowest gain that doubles the rate each round trip.
const STARTUP_GAIN: f64 = 2.885;
const DRAIN_GAIN: f64 = 1.0 / STARTUP_GAIN;
const WINDOW_GAIN: f64 = 2.0;
/// The pacing gains of one probing cycle; each phase lasts a minimum round-trip time.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// For how many round trips a delivery rate is believed.
const BANDWIDTH_ROUNDS: u32 = 10;
/// For how long a minimum round-trip time is believed.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
const PROBE_RTT_TIME: Duration = Duration::from_millis(200);
const MIN_WINDOW_SEGMENTS: u64 = 4;
/// The pipe counts as full when the rate grew by less than this in so many rounds.
const FULL_GROWTH: f64 = 1.25;
const FULL_ROUNDS: u32 = 3;
/// Pace slightly below the estimate, so that no queue grows from its errors.
const PACING_MARGIN: f64 = 0.99;
/// The round-trip time taken for the first pacing rate.
const ASSUMED_RTT: Duration = Duration::from_millis(1);
const MAX_WINDOW: u64 = 1 << 32;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth { phase: usize, since: Instant },
    ProbeRtt { until: Option<Instant>, round_done: bool },
}

/// The largest value of the last rounds: three candidates in falling order, each with its round
/// (Kathleen Nichols' windowed filter).
#[derive(Clone, Copy, Debug, Default)]
struct MaxFilter {
    best: [(u32, f32); 3],
}

#[allow(clippy::cast_possible_truncation)] // An estimate needs no more than 24 bits.
impl MaxFilter {
    fn update(&mut self, round: u32, value: f64) {
        let value = value as f32;
        let best = &mut self.best;
        if value >= best[0].1 || round.saturating_sub(best[2].0) > BANDWIDTH_ROUNDS {
            *best = [(round, value); 3];
            return;
        }
        if value >= best[1].1 {
            best[1] = (round, value);
            best[2] = (round, value);
        } else if value >= best[2].1 {
            best[2] = (round, value);
        }
        if round.saturating_sub(best[0].0) > BANDWIDTH_ROUNDS {
            *best = [best[1], best[2], (round, value)];
            if round.saturating_sub(best[0].0) > BANDWIDTH_ROUNDS {
                *best = [best[1], best[2], (round, value)];
            }
        } else if best[1].0 == best[0].0 && round - best[1].0 > BANDWIDTH_ROUNDS / 4 {
            best[1] = (round, value);
            best[2] = (round, value);
        } else if best[2].0 == best[1].0 && round - best[2].0 > BANDWIDTH_ROUNDS / 2 {
            best[2] = (round, value);
        }
    }

    fn get(&self) -> f64 {
        f64::from(self.best[0].1)
    }
}

/// The state of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Bbr {
    mss: u64,
    mode: Mode,
    window: u64,
    /// The window before loss or `ProbeRtt` held it down.
    saved_window: u64,
    /// Octets a second.
    bandwidth: MaxFilter,
    pacing_rate: f64,
    min_rtt: Option<(Duration, Instant)>,
    round: u32,
    /// A round ends when something sent after this much had been delivered is delivered.
    round_end: u64,
    full_bandwidth: f64,
    full_rounds: u32,
    pipe_is_full: bool,
    /// In the first round of a recovery nothing more is sent than was delivered.
    conserve_until: Option<u64>,
    recovering: bool,
    /// Octets delivered beyond what the rate explains: acknowledgments that come in bursts.
    aggregation: MaxFilter,
    aggregation_epoch: (Instant, u64),
    delivered: u64,
}

#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
impl Bbr {
    pub(crate) fn new(mss: u64, now: Instant) -> Self {
        let window = INITIAL_WINDOW_SEGMENTS * mss;
        Self {
            mss,
            mode: Mode::Startup,
            window,
            saved_window: 0,
            bandwidth: MaxFilter::default(),
            pacing_rate: STARTUP_GAIN * window as f64 / ASSUMED_RTT.as_secs_f64(),
            min_rtt: None,
            round: 0,
            round_end: 0,
            full_bandwidth: 0.0,
            full_rounds: 0,
            pipe_is_full: false,
            conserve_until: None,
            recovering: false,
            aggregation: MaxFilter::default(),
            aggregation_epoch: (now, 0),
            delivered: 0,
        }
    }

    pub(crate) fn set_initial_window(&mut self, window: u64) {
        self.window = window;
    }

    pub(crate) fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1);
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    pub(crate) fn pacing_rate(&self) -> u64 {
        // The least window is always allowed in a round trip, so that bad estimates can mend.
        let rtt = self.min_rtt.map_or(MIN_RTT_WINDOW, |(rtt, _)| rtt.max(ASSUMED_RTT));
        let least = (MIN_WINDOW_SEGMENTS * self.mss) as f64 / rtt.as_secs_f64();
        self.pacing_rate.max(least) as u64
    }

    pub(crate) fn on_ack(&mut self, sample: &AckSample) {
        self.delivered = sample.delivered;
        let new_round = self.update_round(sample);
        self.update_bandwidth(sample);
        self.update_aggregation(sample);
        self.update_mode(sample, new_round);
        self.update_min_rtt(sample, new_round);
        self.set_pacing_rate();
        self.set_window(sample);
    }

    fn update_round(&mut self, sample: &AckSample) -> bool {
        let new_round = sample.prior_delivered >= self.round_end;
        if new_round {
            self.round_end = sample.delivered;
            self.round = self.round.saturating_add(1);
        }
        if new_round && self.conserve_until.is_some_and(|end| sample.prior_delivered >= end) {
            self.conserve_until = None;
        }
        new_round
    }

    fn update_bandwidth(&mut self, sample: &AckSample) {
        if sample.interval.is_zero() {
            return;
        }
        let octets = sample.delivered - sample.prior_delivered;
        let rate = octets as f64 / sample.interval.as_secs_f64();
        // A rate limited by the application says nothing unless it is the highest seen.
        if !sample.app_limited || rate >= self.bandwidth.get() {
            self.bandwidth.update(self.round, rate);
        }
    }

    /// How far acknowledgments run ahead of the rate (aggregation by Wi-Fi, thinning, GRO).
    fn update_aggregation(&mut self, sample: &AckSample) {
        let (since, acked) = &mut self.aggregation_epoch;
        let expected = self.bandwidth.get() * sample.now.since(*since).as_secs_f64();
        if *acked as f64 <= expected {
            (*since, *acked) = (sample.now, 0);
        }
        *acked += sample.newly_delivered;
        let expected = self.bandwidth.get() * sample.now.since(*since).as_secs_f64();
        let extra = (*acked as f64 - expected).clamp(0.0, self.window as f64);
        self.aggregation.update(self.round, extra);
    }

    /// The bandwidth-delay product times `gain`.
    fn inflight(&self, gain: f64) -> u64 {
        match self.min_rtt {
            Some((rtt, _)) if self.bandwidth.get() > 0.0 => {
                (gain * self.bandwidth.get() * rtt.as_secs_f64()) as u64
            }
            _ => INITIAL_WINDOW_SEGMENTS * self.mss,
        }
    }

    fn update_mode(&mut self, sample: &AckSample, new_round: bool) {
        self.check_full_pipe(sample, new_round);
        if self.mode == Mode::Startup && self.pipe_is_full {
            self.mode = Mode::Drain;
        }
        if self.mode == Mode::Drain && sample.pipe <= self.inflight(1.0) {
            self.enter_probe_bandwidth(sample.now);
        }
        self.advance_cycle(sample);
    }

    fn check_full_pipe(&mut self, sample: &AckSample, new_round: bool) {
        if self.pipe_is_full || !new_round || sample.app_limited {
            return;
        }
        if self.bandwidth.get() >= self.full_bandwidth * FULL_GROWTH {
            self.full_bandwidth = self.bandwidth.get();
            self.full_rounds = 0;
            return;
        }
        self.full_rounds += 1;
        self.pipe_is_full = self.full_rounds >= FULL_ROUNDS;
    }

    /// Starts a cycle at any phase but the draining one, so that connections do not probe at once.
    fn enter_probe_bandwidth(&mut self, now: Instant) {
        let draw = (now.micros() % 7) as usize;
        let phase = if draw == 0 { 0 } else { draw + 1 };
        self.mode = Mode::ProbeBandwidth { phase, since: now };
    }

    fn advance_cycle(&mut self, sample: &AckSample) {
        let Mode::ProbeBandwidth { phase, since } = self.mode else { return };
        let elapsed = sample.now.since(since) > self.min_rtt.map_or(Duration::ZERO, |(rtt, _)| rtt);
        let done = match CYCLE[phase] {
            gain if gain > 1.0 => {
                elapsed && (sample.lost > 0 || sample.prior_pipe >= self.inflight(gain))
            }
            gain if gain < 1.0 => elapsed || sample.prior_pipe <= self.inflight(1.0),
            _ => elapsed,
        };
        if done {
            self.mode =
                Mode::ProbeBandwidth { phase: (phase + 1) % CYCLE.len(), since: sample.now };
        }
    }

    fn update_min_rtt(&mut self, sample: &AckSample, new_round: bool) {
        let expired = self.min_rtt.is_some_and(|(_, at)| sample.now.since(at) > MIN_RTT_WINDOW);
        if let Some(rtt) = sample.rtt {
            if self.min_rtt.is_none() {
                self.start_pacing(rtt);
            }
            if expired || self.min_rtt.is_none_or(|(min, _)| rtt <= min) {
                self.min_rtt = Some((rtt, sample.now));
            }
        }
        let probing = matches!(self.mode, Mode::ProbeRtt { .. });
        if expired && !probing {
            self.saved_window = self.saved_window.max(self.window);
            self.mode = Mode::ProbeRtt { until: None, round_done: false };
        }
        self.run_probe_rtt(sample, new_round);
    }

    fn run_probe_rtt(&mut self, sample: &AckSample, new_round: bool) {
        let Mode::ProbeRtt { until, round_done } = self.mode else { return };
        match until {
            None if sample.pipe <= MIN_WINDOW_SEGMENTS * self.mss => {
                self.round_end = sample.delivered;
                let until = Some(sample.now + PROBE_RTT_TIME);
                self.mode = Mode::ProbeRtt { until, round_done: false };
            }
            None => {}
            Some(end) => {
                let round_done = round_done || new_round;
                self.mode = Mode::ProbeRtt { until, round_done };
                if round_done && sample.now >= end {
                    self.leave_probe_rtt(sample.now);
                }
            }
        }
    }

    fn leave_probe_rtt(&mut self, now: Instant) {
        if let Some((_, at)) = &mut self.min_rtt {
            *at = now;
        }
        self.window = self.window.max(self.saved_window);
        self.saved_window = 0;
        if self.pipe_is_full {
            self.enter_probe_bandwidth(now);
        } else {
            self.mode = Mode::Startup;
        }
    }

    fn gains(&self) -> (f64, f64) {
        match self.mode {
            Mode::Startup => (STARTUP_GAIN, STARTUP_GAIN),
            Mode::Drain => (DRAIN_GAIN, STARTUP_GAIN),
            Mode::ProbeBandwidth { phase, .. } => (CYCLE[phase], WINDOW_GAIN),
            Mode::ProbeRtt { .. } => (1.0, 1.0),
        }
    }

    fn set_pacing_rate(&mut self) {
        let rate = self.gains().0 * self.bandwidth.get() * PACING_MARGIN;
        // Until the pipe is full the rate only grows: early samples are low.
        if self.pipe_is_full || rate > self.pacing_rate {
            self.pacing_rate = rate;
        }
    }

    /// The first measured round trip replaces the assumed one.
    fn start_pacing(&mut self, rtt: Duration) {
        self.pacing_rate = STARTUP_GAIN * self.window as f64 / rtt.as_secs_f64().max(1e-6);
    }

    fn set_window(&mut self, sample: &AckSample) {
        let floor = MIN_WINDOW_SEGMENTS * self.mss;
        if sample.lost > 0 {
            self.window = self.window.saturating_sub(sample.lost).max(self.mss);
        }
        if self.conserve_until.is_some() {
            self.window = self.window.max(sample.pipe + sample.newly_delivered);
        } else {
            self.grow_window(sample);
        }
        self.window = self.window.clamp(floor, MAX_WINDOW);
        if matches!(self.mode, Mode::ProbeRtt { .. }) {
            self.window = self.window.min(floor);
        }
    }

    fn grow_window(&mut self, sample: &AckSample) {
        let extra = if self.pipe_is_full { self.aggregation.get() as u64 } else { 0 };
        let target = self.inflight(self.gains().1) + extra + 3 * self.mss;
        if self.pipe_is_full {
            self.window = (self.window + sample.newly_delivered).min(target);
        } else if self.window < target || sample.delivered < INITIAL_WINDOW_SEGMENTS * self.mss {
            self.window += sample.newly_delivered;
        }
    }

    /// Loss: for one round send no more than arrives, then go on as before.
    pub(crate) fn on_loss(&mut self, flight: u64) {
        if self.recovering {
            return;
        }
        self.recovering = true;
        self.saved_window = self.saved_window.max(self.window);
        self.conserve_until = Some(self.delivered);
        self.window = flight.max(MIN_WINDOW_SEGMENTS * self.mss);
    }

    pub(crate) fn on_recovered(&mut self) {
        self.recovering = false;
        self.conserve_until = None;
        if !matches!(self.mode, Mode::ProbeRtt { .. }) {
            self.window = self.window.max(self.saved_window);
            self.saved_window = 0;
        }
    }

    /// A timeout: the network may have changed altogether; begin with what is certain.
    pub(crate) fn on_timeout(&mut self, _flight: u64) {
        self.saved_window = self.saved_window.max(self.window);
        self.window = self.mss;
        self.full_bandwidth = 0.0;
    }

    /// After idling the estimates stand; pace at the estimate, without probing above it.
    pub(crate) fn on_restart(&mut self) {
        self.aggregation_epoch.1 = 0;
        if matches!(self.mode, Mode::ProbeBandwidth { .. }) {
            self.pacing_rate = self.bandwidth.get() * PACING_MARGIN;
        }
    }
}
