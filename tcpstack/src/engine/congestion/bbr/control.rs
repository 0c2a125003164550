//! From the model to the window and the pacing rate.

use super::super::{AckSample, initial_window};
use super::{ASSUMED_RTT, Bbr, Mode, STARTUP_GAIN};
use crate::time::Duration;

/// Pace slightly below the estimate, so that no queue grows from its errors: `PacingMarginPercent`.
const PACING_MARGIN: f64 = 0.99;
/// An upper bound, so that arithmetic cannot overflow whatever a peer acknowledges.
const MAX_WINDOW: u64 = 1 << 32;
/// What leaves at once takes this long at the pacing rate, within bounds: `send_quantum`.
const QUANTUM_TIME: f64 = 1e-3;
const QUANTUM_MAX: u64 = 64 << 10;
/// Quanta that are on the way through the hosts: the draft's "TCP Offload Budget".
const QUANTA: u64 = 3;
/// Without a round-trip time the least rate sends the least window in so long.
const SLOWEST_RTT: Duration = Duration::from_secs(10);

#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
impl Bbr {
    /// Gains of pacing rate and window (the draft's "Summary of Control Behavior").
    pub(super) fn gains(&self) -> (f64, f64) {
        match self.mode {
            Mode::Startup => (STARTUP_GAIN, 2.0),
            Mode::Drain => (0.5, 2.0),
            Mode::Down => (0.9, 2.0),
            Mode::Cruise | Mode::Refill => (1.0, 2.0),
            Mode::Up => (1.25, 2.25),
            Mode::ProbeRtt => (1.0, 0.5),
        }
    }

    /// Octets a second at which to pace.
    pub(crate) fn pacing_rate(&self) -> u64 {
        // The least window is always allowed in a round trip, so that bad estimates can mend.
        let rtt = self.rtt.minimum().map_or(SLOWEST_RTT, |rtt| rtt.max(ASSUMED_RTT));
        let least = self.least_window() as f64 / rtt.as_secs_f64();
        f64::from(self.pacing_rate).max(least) as u64
    }

    /// `SetPacingRateWithGain`.
    pub(super) fn set_pacing_rate(&mut self, gain: f64) {
        let rate = (gain * f64::from(self.rate()) * PACING_MARGIN) as f32;
        // Until the pipe is full the rate only grows: early samples are low.
        if self.pipe_was_full || rate > self.pacing_rate {
            self.pacing_rate = rate;
        }
    }

    /// The first measured round trip replaces the assumed one.
    pub(super) fn start_pacing(&mut self, rtt: Duration) {
        let seconds = rtt.as_secs_f64().max(1e-6);
        self.pacing_rate = (STARTUP_GAIN * self.window as f64 / seconds) as f32;
    }

    /// Another controller was here before, with this window: Startup goes on from it.
    pub(crate) fn take_over(&mut self, window: u64, smoothed_rtt: Option<Duration>) {
        self.window = window.clamp(self.least_window(), MAX_WINDOW);
        if let Some(rtt) = smoothed_rtt {
            self.start_pacing(rtt);
        }
    }

    /// What fills the path without a queue, for a controller that does not pace by a rate; `None`
    /// as long as the path has not been filled.
    pub(crate) fn full_window(&self) -> Option<u64> {
        let bound = self.long_inflight.min(self.short_inflight);
        self.pipe_was_full
            .then(|| self.inflight(1.0).min(bound).clamp(self.least_window(), MAX_WINDOW))
    }

    /// `BDPMultiple`: the product of rate and round trip, times `gain`.
    pub(super) fn product(&self, gain: f64) -> u64 {
        self.product_of(self.rate(), gain)
    }

    pub(super) fn product_of(&self, rate: f32, gain: f64) -> u64 {
        match self.rtt.minimum() {
            Some(rtt) if rate > 0.0 => (gain * f64::from(rate) * rtt.as_secs_f64()) as u64,
            _ => initial_window(self.mss()),
        }
    }

    /// `Inflight`: the same with room for what the hosts batch.
    pub(super) fn inflight(&self, gain: f64) -> u64 {
        self.with_quanta(self.product(gain))
    }

    /// `QuantizationBudget`.
    pub(super) fn with_quanta(&self, inflight: u64) -> u64 {
        let quantum = (f64::from(self.pacing_rate) * QUANTUM_TIME) as u64;
        let quantum = quantum.min(QUANTUM_MAX).max(2 * self.mss());
        let more = if self.mode == Mode::Up { 2 * self.mss() } else { 0 };
        inflight.max(QUANTA * quantum).max(self.least_window()) + more
    }

    /// `SetCwnd`: down to the target at once, up by no more than was delivered.
    pub(super) fn set_window(&mut self, sample: &AckSample) {
        let target = self.product(self.gains().1) + self.signals.aggregation.get() as u64;
        let target = self.with_quanta(target);
        let first = sample.delivered < initial_window(self.mss());
        if self.pipe_was_full {
            self.window = (self.window + sample.newly_delivered).min(target);
        } else if self.window < target || first {
            self.window += sample.newly_delivered;
        }
        self.window = self.window.clamp(self.least_window(), MAX_WINDOW);
        self.bound_window();
    }

    /// `BoundCwndForProbeRTT` and `BoundCwndForModel`.
    fn bound_window(&mut self) {
        let bound = match self.mode {
            Mode::Startup | Mode::Drain => self.short_inflight,
            Mode::Down | Mode::Refill | Mode::Up => self.long_inflight.min(self.short_inflight),
            Mode::Cruise => self.inflight_with_headroom().min(self.short_inflight),
            Mode::ProbeRtt => {
                self.inflight_with_headroom().min(self.short_inflight).min(self.probe_rtt_window())
            }
        };
        self.window = self.window.min(bound.max(self.least_window()));
    }

    /// `SaveCwnd`.
    pub(super) fn save_window(&mut self) {
        let held_down = self.recovering || self.mode == Mode::ProbeRtt;
        self.saved_window =
            if held_down { self.saved_window.max(self.window) } else { self.window };
    }

    /// `RestoreCwnd`.
    pub(super) fn restore_window(&mut self) {
        self.window = self.window.max(self.saved_window);
    }
}
