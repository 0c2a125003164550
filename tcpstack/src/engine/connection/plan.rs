//! What may leave next: retransmissions, probes and new data, as windows and pacing allow.

use super::ack::REPETITIONS;
use super::recovery::{Asked, Recovery};
use super::sender::{Sender, len};
use crate::time::Instant;
use std::ops::Range;

/// What may leave next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Retransmit(Range<u64>),
    /// One segment, and unless it is to leave `alone`, more behind it.
    New {
        range: Range<u64>,
        alone: bool,
    },
    /// Nothing for now.
    Nothing,
}

impl Sender {
    /// The window for loss recovery where PRR governs it, else the controller's.
    fn window(&self) -> u64 {
        match *self.recovery {
            Recovery::Fast { window: Some((_, window)), .. } => window,
            _ => self.controller.window() + self.inflation,
        }
    }

    /// What may leave now. Retransmissions come first; pacing holds both back.
    pub(super) fn plan(&mut self, now: Instant) -> Plan {
        self.pace_until = None;
        match std::mem::take(&mut self.asked) {
            // While the device was full it may have been acknowledged, or found (not) to be lost.
            Asked::Probe if self.may_be_probed() => return self.plan_probe(),
            Asked::First if self.board.has_lost() => {
                return self.board.next_lost().map_or(Plan::Nothing, Plan::Retransmit);
            }
            Asked::Probe | Asked::First | Asked::Nothing => {}
        }
        let forward = self.is_probing_forward();
        if forward && !self.may_probe_forward() {
            return Plan::Nothing; // The next acknowledgment decides.
        }
        // What is not there is not changed: it would take memory.
        let lost = if forward || !self.board.has_lost() { None } else { self.board.next_lost() };
        let step = self.next_probe_of_path(now);
        let alone = step.is_some() || forward;
        let fresh = step.or_else(|| self.next_new());
        if lost.is_none() && fresh.is_none() {
            self.note_application_limit();
            self.note_blocked(now);
            return Plan::Nothing;
        }
        if let Some(until) = self.pacer.blocked_until(now) {
            self.pace_until = Some(until);
            // A pacer that is faster than the window fills it soon, if there is so much to send: half of
            // it proves that (RFC 7661, 4.1).
            self.window_limited = 2 * self.board.pipe() >= self.window();
            return Plan::Nothing;
        }
        match (lost, fresh) {
            (Some(range), _) if self.may_leave(&range) || self.is_fast_retransmit() => {
                Plan::Retransmit(range)
            }
            (None, Some(range)) if self.may_leave(&range) => Plan::New { range, alone },
            _ => {
                self.window_limited = true;
                Plan::Nothing
            }
        }
    }

    /// A segment may leave if the window allows, and always if nothing else is in flight.
    fn may_leave(&self, range: &Range<u64>) -> bool {
        self.board.pipe() + len(range) <= self.window() || self.board.pipe() == 0
    }

    /// Without SACK one segment at a time is known to be lost: it leaves at once (RFC 6582, 3.2).
    fn is_fast_retransmit(&self) -> bool {
        !self.sack && self.recovery.is_fast()
    }

    /// A segment larger than the others, to find out what the path carries (RFC 4821, 7.2). Enough can
    /// follow it at once to show its loss (RFC 4821, 7.4): else only a timer would, which narrows the
    /// window. RACK needs one segment for that, however short, and three repetitions need three.
    fn next_probe_of_path(&mut self, now: Instant) -> Option<Range<u64>> {
        if !matches!(*self.recovery, Recovery::Open) {
            return None;
        }
        let size = self.path.step(self.mss, now)?;
        let range = self.nxt..self.nxt + u64::from(size);
        let (mss, segments) = (u64::from(self.mss), if self.sack { 1 } else { REPETITIONS });
        let end = self.buffer.end().min(range.end + segments * mss);
        let fits = end > range.end + (segments - 1) * mss
            && end <= self.edge
            && self.board.pipe() + end - range.start <= self.controller.window();
        fits.then_some(range)
    }

    /// The next segment that was never sent, if the peer's window takes it.
    pub(super) fn next_new(&self) -> Option<Range<u64>> {
        let end = self.end().min(self.nxt + u64::from(self.mss).max(1)).min(self.edge);
        if end <= self.nxt {
            return None;
        }
        // Silly window avoidance (RFC 9293, 3.8.6.2.1): a full segment, or all there is, or half
        // of the largest window seen.
        let range = self.nxt..end;
        let worthwhile = self.override_silly
            || len(&range) >= u64::from(self.mss)
            || end == self.end()
            || len(&range) * 2 >= self.window_max;
        worthwhile.then_some(range)
    }

    /// `range`, one segment that may leave, and what may leave behind it: up to `most` octets.
    pub(super) fn lengthen(&self, range: Range<u64>, most: u64, now: Instant) -> Range<u64> {
        let mss = u64::from(self.mss);
        if len(&range) < mss || most < 2 * mss {
            return range;
        }
        let rate = self.controller.pacing_rate(self.rtt.smoothed());
        let paced = rate.map_or(u64::MAX, |rate| self.pacer.allowance(now, rate) + mss);
        let window = self.window().saturating_sub(self.board.pipe());
        let waiting = self.buffer.end().saturating_sub(range.start);
        let room = most.min(paced).min(window).min(self.edge.saturating_sub(range.start));
        // Whole segments, unless it is all there is.
        let run =
            if waiting <= room && !self.fin { waiting } else { room.min(waiting) / mss * mss };
        range.start..range.start + run.max(mss)
    }

    /// A tail loss probe: new data if the window takes it, else the last segment again
    /// (RFC 8985, 7.3).
    fn plan_probe(&mut self) -> Plan {
        if let Some(range) = self.next_new() {
            self.probe.sent(&range, false);
            return Plan::New { range, alone: true };
        }
        let Some(range) = self.board.last().map(|last| last.range.clone()) else {
            return Plan::Nothing;
        };
        self.probe.sent(&range, true);
        Plan::Retransmit(range)
    }

    /// From here the override timeout and that of the window's probe run, whatever else the peer
    /// sends meanwhile (RFC 9293, 3.8.6.1 and 3.8.6.2.1).
    fn note_blocked(&mut self, now: Instant) {
        if self.is_blocked_by_peer() {
            self.blocked_since.get_or_insert(now);
        } else {
            self.blocked_since = None;
        }
    }

    fn note_application_limit(&mut self) {
        self.window_limited = false;
        if self.board.pipe() < self.window() {
            self.app_limited_until = (self.delivered + self.board.pipe()).max(1);
        }
    }
}
