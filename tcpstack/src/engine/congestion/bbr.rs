//! BBR (draft-ietf-ccwg-bbr): a model of the path, made of what it delivers, how long it takes and
//! what it loses, says how fast to send and how much to keep in flight.
//!
//! Each acknowledgment goes through [`Bbr::on_ack`]: it updates the model (the bandwidth here, the
//! round-trip time in [`probe_rtt`], the bounds that loss sets in [`loss`]), moves the state machine
//! ([`cycle`]), and from both follow pacing rate and window ([`control`]). A segment found lost
//! comes to [`Bbr::on_segment_lost`] first.
//!
//! In two things it departs from the draft. What a path loses whatever is sent, as bad Wi-Fi does,
//! is measured while the queue is empty, and counts as no sign of congestion ([`background`]): with
//! a fixed threshold of 2 % a path that loses 5 % would be left nearly unused. And a full queue is
//! given up by a share, and claimed again by a number of segments that is the same for everybody
//! ([`loss`], [`cycle`]), so that sixteen connections come to equal shares within seconds, not minutes.

mod background;
mod control;
mod cycle;
mod filter;
mod loss;
mod probe_rtt;
#[cfg(test)]
mod tests;

use super::{AckSample, LostSegment, initial_window};
use crate::engine::lazy::{Idle, Lazy, Spares};
use crate::time::{Duration, Instant};
use background::{Means, Quiet};
use cycle::Cycle;
use filter::RoundMax;
use loss::LossRound;

/// Lowest gain that doubles the rate each round trip: 4 ln 2.
const STARTUP_GAIN: f64 = 2.77;
/// The round-trip time taken for the first pacing rate.
const ASSUMED_RTT: Duration = Duration::from_millis(1);
/// The pipe counts as full when the rate grew by less than this in so many rounds.
const FULL_GROWTH: f32 = 1.25;
const FULL_ROUNDS: u8 = 3;
/// Drain ends after so many rounds even if the queue seems to stay: then the rate was overestimated.
const DRAIN_ROUNDS: u32 = 3;
/// For how many rounds aggregation is remembered.
const AGGREGATION_ROUNDS: u32 = 10;
/// The least window, in segments.
const MIN_WINDOW_SEGMENTS: u64 = 4;
/// No bound is known.
const UNBOUNDED: u64 = u64::MAX;

/// The states of the draft's section "State Machine"; the four of `ProbeBW` come in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Startup,
    Drain,
    Down,
    Cruise,
    Refill,
    Up,
    ProbeRtt,
}

/// What happened during the last rounds; an idle connection need not remember it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signals {
    /// Octets delivered beyond what the rate explains: acknowledgments that come in bursts.
    aggregation: RoundMax,
    /// Since when a burst is being counted, and what it has delivered.
    burst: (Instant, u64),
    loss: LossRound,
    quiet: Quiet,
}

impl Idle for Signals {
    const IDLE: &'static Self = &Self {
        aggregation: RoundMax::new(),
        burst: (Instant::ZERO, 0),
        loss: LossRound::new(),
        quiet: Quiet::new(),
    };

    fn idle() -> Self {
        Self::IDLE.clone()
    }

    /// It is shrunk only when nothing is in flight: then all of it is history.
    fn is_idle(&self) -> bool {
        true
    }
}

/// The state of one connection. Rates are octets a second.
#[derive(Debug)]
pub(crate) struct Bbr {
    mode: Mode,
    /// `full_bw_reached`: the path has been filled at least once.
    pipe_was_full: bool,
    /// `full_bw_now`, `full_bw` and `full_bw_count`: since the search last began.
    pipe_is_full: bool,
    full_rounds: u8,
    full_rate: f32,
    recovering: bool,
    idle_restart: bool,
    round_started: bool,
    round: u32,
    /// A round ends when something sent after this much had been delivered is delivered.
    round_end: u64,
    drain_round: u32,
    mss: u32,
    /// Of the draws that keep connections out of step.
    random: u32,
    window: u64,
    /// The window before loss or `ProbeRtt` held it down.
    saved_window: u64,
    pacing_rate: f32,
    /// The greatest rates of the previous and this probing cycle: `max_bw_filter`.
    rates: [f32; 2],
    /// `bw_shortterm` and `inflight_shortterm`: bounds for as long as nothing is probed.
    short_rate: f32,
    short_inflight: u64,
    /// `inflight_longterm`: more in flight than this was lost.
    long_inflight: u64,
    /// The share of octets that the path loses whatever is sent.
    background: f32,
    means: Means,
    rtt: probe_rtt::RoundTrip,
    cycle: Cycle,
    delivered: u64,
    /// What left before this much was delivered left while we held back: `app_limited`.
    held_back_until: u64,
    signals: Lazy<Signals>,
}

/// What an acknowledgment says of the delivery rate: `RS` of the draft.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Octets a second, zero if it does not say.
    rate: f32,
    /// Octets delivered since the newest delivered segment left.
    delivered: u64,
    app_limited: bool,
}

#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
impl Bbr {
    /// `seed` tells this connection's draws from others'.
    pub(crate) fn new(mss: u64, seed: u32, now: Instant) -> Self {
        let window = initial_window(mss);
        Self {
            mode: Mode::Startup,
            pipe_was_full: false,
            pipe_is_full: false,
            full_rounds: 0,
            full_rate: 0.0,
            recovering: false,
            idle_restart: false,
            round_started: false,
            round: 0,
            round_end: 0,
            drain_round: 0,
            mss: mss as u32,
            random: seed,
            window,
            saved_window: 0,
            pacing_rate: (STARTUP_GAIN * window as f64 / ASSUMED_RTT.as_secs_f64()) as f32,
            rates: [0.0; 2],
            short_rate: f32::INFINITY,
            short_inflight: UNBOUNDED,
            long_inflight: UNBOUNDED,
            background: 0.0,
            means: Means::new(),
            rtt: probe_rtt::RoundTrip::new(now),
            cycle: Cycle::new(now),
            delivered: 0,
            held_back_until: 0,
            signals: Lazy::new(),
        }
    }

    pub(crate) fn set_initial_window(&mut self, window: u64) {
        self.window = window;
    }

    pub(crate) fn set_mss(&mut self, mss: u64) {
        self.mss = mss.max(1) as u32;
    }

    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// Something is about to be in flight.
    pub(crate) fn hold(&mut self, spares: &mut Spares<Signals>) {
        self.signals.hold(spares);
    }

    /// Nothing is in flight: what only the last rounds showed is forgotten.
    pub(crate) fn shrink(&mut self, spares: &mut Spares<Signals>) {
        self.signals.release(spares);
    }

    fn mss(&self) -> u64 {
        u64::from(self.mss)
    }

    fn least_window(&self) -> u64 {
        MIN_WINDOW_SEGMENTS * self.mss()
    }

    /// `max_bw`.
    fn greatest_rate(&self) -> f32 {
        self.rates[0].max(self.rates[1])
    }

    /// `bw`: what may be sent given all that is known.
    fn rate(&self) -> f32 {
        self.greatest_rate().min(self.short_rate)
    }

    /// `UpdateOnACK`.
    pub(crate) fn on_ack(&mut self, sample: &AckSample) {
        let rate = self.take_rate(sample);
        self.update_round(sample);
        self.update_background(sample);
        self.update_rates(&rate);
        let loss_round_over = self.update_loss_round(sample, &rate);
        self.update_aggregation(sample);
        self.check_full_pipe(&rate);
        self.check_startup_loss(sample, loss_round_over);
        self.leave_startup();
        self.leave_drain(sample);
        self.advance_cycle(sample, &rate);
        self.update_round_trip(sample);
        self.check_probe_rtt(sample);
        self.advance_loss_round(&rate, loss_round_over);
        self.set_pacing_rate(self.gains().0);
        self.set_window(sample);
    }

    fn take_rate(&mut self, sample: &AckSample) -> Rate {
        self.delivered = sample.delivered;
        let delivered = sample.delivered - sample.prior_delivered;
        let seconds = sample.interval.as_secs_f32();
        Rate {
            rate: if seconds > 0.0 { delivered as f32 / seconds } else { 0.0 },
            delivered,
            app_limited: sample.app_limited || sample.prior_delivered < self.held_back_until,
        }
    }

    fn update_round(&mut self, sample: &AckSample) {
        self.round_started = sample.prior_delivered >= self.round_end;
        if self.round_started {
            self.start_round();
            self.round = self.round.wrapping_add(1);
            self.cycle.rounds += 1;
        }
    }

    /// `StartRound`.
    fn start_round(&mut self) {
        self.round_end = self.delivered;
    }

    /// `UpdateMaxBw`: a rate limited by the application says nothing unless it is the highest seen.
    fn update_rates(&mut self, rate: &Rate) {
        if !rate.app_limited || rate.rate >= self.greatest_rate() {
            self.rates[1] = self.rates[1].max(rate.rate);
        }
    }

    /// `AdvanceMaxBwFilter`: a new cycle; the last but one is forgotten.
    fn advance_rates(&mut self) {
        if self.rates[1] > 0.0 {
            self.rates = [self.rates[1], 0.0];
        }
    }

    /// How far acknowledgments run ahead of the rate (aggregation by Wi-Fi, thinning, GRO).
    fn update_aggregation(&mut self, sample: &AckSample) {
        let rate = f64::from(self.rate());
        let rounds = if self.pipe_was_full { AGGREGATION_ROUNDS } else { 1 };
        let signals = &mut *self.signals;
        let (since, acked) = &mut signals.burst;
        let mut expected = rate * sample.now.since(*since).as_secs_f64();
        if *acked as f64 <= expected {
            (*since, *acked) = (sample.now, 0);
            expected = 0.0;
        }
        *acked += sample.newly_delivered;
        let extra = (*acked as f64 - expected).clamp(0.0, self.window as f64);
        signals.aggregation.update(self.round, rounds, extra as f32);
    }

    /// `CheckFullBWReached`.
    fn check_full_pipe(&mut self, rate: &Rate) {
        if self.pipe_is_full || !self.round_started || rate.app_limited {
            return;
        }
        if rate.rate >= self.full_rate * FULL_GROWTH {
            self.search_full_pipe(rate.rate);
            return;
        }
        self.full_rounds += 1;
        self.pipe_is_full = self.full_rounds >= FULL_ROUNDS;
        self.pipe_was_full |= self.pipe_is_full;
    }

    /// `ResetFullBW`, and the rate from which on growth counts.
    fn search_full_pipe(&mut self, rate: f32) {
        self.full_rate = rate;
        self.full_rounds = 0;
        self.pipe_is_full = false;
    }

    fn leave_startup(&mut self) {
        if self.mode == Mode::Startup && self.pipe_was_full {
            self.mode = Mode::Drain;
            self.drain_round = self.round;
        }
    }

    /// `CheckDrainDone`.
    fn leave_drain(&mut self, sample: &AckSample) {
        if self.mode != Mode::Drain {
            return;
        }
        let late = self.round.wrapping_sub(self.drain_round) > DRAIN_ROUNDS;
        if late || sample.pipe <= self.inflight(1.0) {
            self.start_down(sample.now);
        }
    }

    /// After idling the estimates stand; pace at the estimate, without probing above it.
    pub(crate) fn on_restart(&mut self, now: Instant) {
        self.idle_restart = true;
        self.signals.burst = (now, 0);
        if self.is_probing_cycle() {
            self.set_pacing_rate(1.0);
        } else if self.mode == Mode::ProbeRtt {
            self.check_probe_rtt_done(now);
        }
    }

    /// A number below `bound`, by a generator that needs no more than 32 bits (xorshift).
    fn draw(&mut self, bound: u32) -> u32 {
        self.random = self.random.max(1);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random % bound.max(1)
    }
}
