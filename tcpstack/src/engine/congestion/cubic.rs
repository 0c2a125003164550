//! CUBIC (RFC 9438).

use super::hystart::HyStart;
use super::{AckSample, initial_window};
use crate::time::{Duration, Instant};

/// Multiplicative decrease (RFC 9438, 4.6).
const BETA: f64 = 0.7;
/// The constant that sets how steep the cubic is (RFC 9438, 5), in segments a second cubed.
const C: f64 = 0.4;
/// The window never falls below this many segments.
const MIN_WINDOW_SEGMENTS: u64 = 2;
/// An upper bound, so that arithmetic cannot overflow whatever a peer acknowledges.
const MAX_WINDOW: u64 = 1 << 32;

/// Everything that a congestion event changes, kept so that a spurious one can be undone
/// (RFC 9438, 4.9).
#[derive(Clone, Copy, Debug)]
struct Epoch {
    window: u64,
    ssthresh: u64,
    /// Window before the last reduction, in segments; less if it made room for others.
    w_max: f64,
    /// Window before the last reduction, in segments: `cwnd_prior`.
    w_prior: f64,
    /// When the present growth started, later by the times in which the window was not used, and the
    /// window in segments then.
    start: Option<(Instant, f64)>,
    /// The window that Reno would have, in segments (RFC 9438, 4.3).
    w_est: f64,
    /// Fractions of octets not yet added.
    credit: f64,
}

impl Epoch {
    /// There are `ratio` of the present segments in one of before.
    fn scale_segments(&mut self, ratio: f64) {
        self.w_max *= ratio;
        self.w_prior *= ratio;
        self.w_est *= ratio;
        if let Some((_, window)) = &mut self.start {
            *window *= ratio;
        }
    }
}

/// The state of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Cubic {
    mss: u64,
    now: Epoch,
    before: Option<Epoch>,
    hystart: HyStart,
    /// Up to when it is known whether the window was used.
    judged_until: Instant,
}

#[allow(clippy::cast_precision_loss, clippy::cast_sign_loss, clippy::cast_possible_truncation)]
impl Cubic {
    pub(crate) fn new(mss: u64, now: Instant) -> Self {
        let judged_until = now;
        let now = Epoch {
            window: initial_window(mss),
            ssthresh: MAX_WINDOW,
            w_max: 0.0,
            w_prior: 0.0,
            start: None,
            w_est: 0.0,
            credit: 0.0,
        };
        Self { mss, now, before: None, hystart: HyStart::new(), judged_until }
    }

    pub(crate) fn set_initial_window(&mut self, window: u64) {
        self.now.window = window;
    }

    /// The path is known to be filled by this window: growth goes on from it without slow start.
    pub(crate) fn take_over(&mut self, window: u64) {
        self.now.window = window.max(self.floor());
        self.now.ssthresh = self.now.window;
    }

    pub(crate) fn set_mss(&mut self, mss: u64) {
        // The window is in octets; what changed is the segment (RFC 9293, 3.7.5).
        let before = std::mem::replace(&mut self.mss, mss.max(1));
        let ratio = before as f64 / self.mss as f64;
        for epoch in std::iter::once(&mut self.now).chain(&mut self.before) {
            epoch.scale_segments(ratio);
        }
    }

    fn segments(&self) -> f64 {
        self.now.window as f64 / self.mss as f64
    }

    fn floor(&self) -> u64 {
        MIN_WINDOW_SEGMENTS * self.mss
    }

    pub(crate) fn on_ack(&mut self, sample: &AckSample) {
        self.judge_use(sample.window_limited, sample.now);
        if sample.recovering || !sample.window_limited {
            return;
        }
        if self.now.window < self.now.ssthresh {
            self.slow_start(sample);
        } else {
            self.avoid(sample);
        }
        self.now.window = self.now.window.min(MAX_WINDOW);
    }

    /// The time since the last judgement counts as growth only if the window was used
    /// (RFC 9438, 4.2 and 5.8); else the window would jump as soon as it is.
    fn judge_use(&mut self, used: bool, now: Instant) {
        let elapsed = now.since(std::mem::replace(&mut self.judged_until, now));
        if let Some((start, _)) = self.now.start.as_mut().filter(|_| !used) {
            *start = *start + elapsed;
        }
    }

    fn slow_start(&mut self, sample: &AckSample) {
        // RFC 9406, 4.3: only while no threshold is known; later ones end at that.
        let is_first = self.now.ssthresh == MAX_WINDOW;
        if is_first && self.hystart.on_ack(sample) {
            self.now.ssthresh = self.now.window;
            return;
        }
        let room = self.now.ssthresh - self.now.window;
        // RFC 3465, 2.3: after a timeout one acknowledgment may cover what arrived long ago.
        let limit = if sample.timed_out { self.mss } else { u64::MAX };
        let divisor = if is_first { self.hystart.growth_divisor() } else { 1 };
        let growth = sample.newly_delivered.min(limit) / divisor;
        self.now.window += growth.min(room.max(1));
    }

    /// Congestion avoidance: the cubic, or Reno where that grows faster (RFC 9438, 4.2 to 4.5).
    fn avoid(&mut self, sample: &AckSample) {
        let window = self.segments();
        let acked = sample.newly_delivered as f64 / self.mss as f64;
        let (start, w_start) = *self.now.start.get_or_insert((sample.now, window));
        if self.now.w_est == 0.0 {
            self.now.w_est = window;
        }
        // RFC 9438, 4.3: alpha until the window of before the reduction is reached, then 1.
        let alpha =
            if self.now.w_est < self.now.w_prior { 3.0 * (1.0 - BETA) / (1.0 + BETA) } else { 1.0 };
        self.now.w_est += alpha * acked / window;

        let rtt = sample.smoothed_rtt.unwrap_or_default().as_secs_f64();
        let t = sample.now.since(start).as_secs_f64();
        let w_max = self.now.w_max.max(w_start);
        let k = ((w_max - w_start).max(0.0) / C).cbrt();
        let cubic = |t: f64| C * (t - k).powi(3) + w_max;
        if cubic(t) < self.now.w_est {
            let reno = (self.now.w_est * self.mss as f64) as u64;
            self.now.window = self.now.window.max(reno);
            return;
        }
        let target = cubic(t + rtt).clamp(window, 1.5 * window);
        self.now.credit += (target - window) / window * sample.newly_delivered as f64;
        let whole = self.now.credit.floor();
        self.now.credit -= whole;
        self.now.window += whole as u64;
    }

    /// The reduction of RFC 9438, 4.6 and 4.7.
    fn reduce(&mut self, flight: u64) {
        self.before = Some(self.now);
        let window = self.segments();
        // Fast convergence: make room when the last maximum was not reached again.
        self.now.w_max = if window < self.now.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.now.w_prior = window;
        self.now.ssthresh = ((self.used(flight) as f64 * BETA) as u64).max(self.floor());
        self.now.start = None;
        self.now.w_est = 0.0;
    }

    /// How much of the window `flight` octets use (RFC 9438, 4.6): all of it if no segment fits in
    /// what is left. A window of five segments and a half would else count as five.
    fn used(&self, flight: u64) -> u64 {
        if flight + self.mss > self.now.window { self.now.window } else { flight }
    }

    pub(crate) fn on_loss(&mut self, _now: Instant, flight: u64) {
        self.reduce(flight);
        self.now.window = self.now.ssthresh;
    }

    pub(crate) fn on_recovered(&mut self) {
        self.now.window = self.now.ssthresh.max(self.floor());
        self.before = None;
    }

    /// Slow start goes on from where it is (RFC 5681, 3.1).
    pub(crate) fn on_timeout_repaired(&mut self) {
        self.before = None;
    }

    pub(crate) fn on_timeout(&mut self, flight: u64) {
        // A second timeout in a row must not spoil what the first one remembered.
        if self.before.is_none() || self.now.window > self.mss {
            self.reduce(flight);
        }
        // RFC 9438, 4.8: the growth behind the slow start that follows is not up to the window of before.
        self.now.w_max = 0.0;
        self.now.window = self.mss;
    }

    pub(crate) fn on_spurious(&mut self) {
        if let Some(before) = self.before.take() {
            self.now = before;
        }
    }

    pub(crate) fn on_restart(&mut self, idle: Duration, rto: Duration, now: Instant) {
        self.judge_use(false, now);
        // RFC 5681, 4.1: after an RTO of silence the old window is no longer known to be safe.
        if idle > rto {
            self.now.ssthresh = self.now.ssthresh.max(self.now.window * 3 / 4);
            self.now.window = self.now.window.min(initial_window(self.mss));
            // Growth starts anew behind the slow start that follows.
            self.now.start = None;
            self.now.w_est = 0.0;
        }
    }

    pub(crate) fn window(&self) -> u64 {
        self.now.window
    }

    pub(crate) fn slow_start_threshold(&self) -> u64 {
        self.now.ssthresh
    }

    /// Spreads a window over a round trip: twice as fast in slow start, 1.2 times later, as Linux
    /// does, so that pacing never holds the window's growth back.
    pub(crate) fn pacing_rate(&self, smoothed_rtt: Duration) -> u64 {
        let per_second = self.now.window as f64 / smoothed_rtt.as_secs_f64().max(1e-6);
        let gain = if self.now.window < self.now.ssthresh / 2 { 2.0 } else { 1.2 };
        (per_second * gain) as u64
    }
}
