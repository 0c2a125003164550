//! The round-trip time of the empty path: the lowest of the last seconds, and `ProbeRTT`, which
//! drains this connection's share of the queue now and then so that it can be seen.

use super::{AckSample, Bbr, Mode};
use crate::time::{Duration, Instant};

/// For how long a minimum round-trip time is believed: `MinRTTFilterLen`.
const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
/// Without a new minimum for so long, the path is drained: `ProbeRTTInterval`.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// For how long it is kept drained: `ProbeRTTDuration`.
const PROBE_TIME: Duration = Duration::from_millis(200);
/// `ProbeRTTCwndGain`.
const PROBE_WINDOW_GAIN: f64 = 0.5;
/// Not measured yet.
const UNKNOWN: u32 = u32::MAX;

/// The minima, in microseconds, and how far a probe has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    min_us: u32,
    min_at: Instant,
    /// `probe_rtt_min_delay` and its stamp: the minimum since the last probe.
    recent_us: u32,
    recent_at: Instant,
    /// When the probe under way may end, once the path is drained.
    drained_until: Option<Instant>,
    round_over: bool,
    expired: bool,
}

impl RoundTrip {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            min_us: UNKNOWN,
            min_at: now,
            recent_us: UNKNOWN,
            recent_at: now,
            drained_until: None,
            round_over: false,
            expired: false,
        }
    }

    /// The minimum, once there is one.
    pub(super) fn minimum(&self) -> Option<Duration> {
        (self.min_us != UNKNOWN).then(|| Duration::from_micros(self.min_us.into()))
    }

    /// `UpdateMinRTT`.
    fn update(&mut self, rtt: Option<Duration>, now: Instant) {
        self.expired = now.since(self.recent_at) > PROBE_INTERVAL;
        if let Some(rtt) = rtt {
            let us = u32::try_from(rtt.as_micros()).unwrap_or(UNKNOWN - 1).max(1);
            if us < self.recent_us || self.expired {
                (self.recent_us, self.recent_at) = (us, now);
            }
        }
        if self.recent_us < self.min_us || now.since(self.min_at) > MIN_RTT_WINDOW {
            (self.min_us, self.min_at) = (self.recent_us, self.recent_at);
        }
    }
}

impl Bbr {
    pub(super) fn update_round_trip(&mut self, sample: &AckSample) {
        let first = self.rtt.minimum().is_none();
        self.rtt.update(sample.rtt, sample.now);
        if let Some(rtt) = sample.rtt.filter(|_| first) {
            self.start_pacing(rtt);
        }
    }

    /// `CheckProbeRTT`.
    pub(super) fn check_probe_rtt(&mut self, sample: &AckSample) {
        if self.mode != Mode::ProbeRtt && self.rtt.expired && !self.idle_restart {
            self.save_window();
            self.mode = Mode::ProbeRtt;
            self.rtt.drained_until = None;
            self.means.rotate();
            self.cycle.stop_feedback();
            self.start_round();
        }
        if self.mode == Mode::ProbeRtt {
            self.run_probe_rtt(sample);
        }
        self.idle_restart = false;
    }

    /// `HandleProbeRTT`.
    fn run_probe_rtt(&mut self, sample: &AckSample) {
        // Low rates are our own doing now.
        self.held_back_until = sample.delivered + sample.pipe;
        match self.rtt.drained_until {
            None if sample.pipe <= self.probe_rtt_window() => {
                self.rtt.drained_until = Some(sample.now + PROBE_TIME);
                self.rtt.round_over = false;
                self.start_round();
            }
            None => {}
            Some(_) => {
                self.rtt.round_over |= self.round_started;
                if self.rtt.round_over {
                    self.check_probe_rtt_done(sample.now);
                }
            }
        }
    }

    /// `CheckProbeRTTDone` and `ExitProbeRTT`.
    pub(super) fn check_probe_rtt_done(&mut self, now: Instant) {
        if self.rtt.drained_until.is_none_or(|until| now <= until) {
            return;
        }
        self.rtt.recent_at = now;
        self.restore_window();
        self.forget_short_term();
        if self.pipe_was_full {
            self.start_down(now);
            self.mode = Mode::Cruise; // What is in flight lies below the product already.
        } else {
            self.mode = Mode::Startup;
        }
    }

    /// `ProbeRTTCwnd`.
    pub(super) fn probe_rtt_window(&self) -> u64 {
        self.product(PROBE_WINDOW_GAIN).max(self.least_window())
    }
}
