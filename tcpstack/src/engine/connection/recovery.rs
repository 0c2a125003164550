//! How the repair of losses begins: when RACK or repeated acknowledgments show one, and when the
//! retransmission timer fires.

use super::forward::Forward;
use super::sender::Sender;
use super::undo::Undo;
use crate::engine::lazy::Idle;
use crate::engine::pmtu::ProbeLoss;
use crate::engine::prr::Prr;
use crate::engine::rtt::RTO_INITIAL;
use crate::engine::scoreboard::Sent;
use crate::time::Instant;

/// Where the repair of losses stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Recovery {
    /// Nothing is being repaired.
    Open,
    /// Repair since SACK and RACK showed a loss, until `end` is acknowledged.
    Fast { end: u64, window: Option<(Prr, u64)>, undo: Undo },
    /// Repair after a retransmission timeout, when what left up to `overdue` was taken for lost.
    Timeout { end: u64, overdue: Instant, undo: Undo, forward: Forward },
}

impl Recovery {
    pub(super) fn is_fast(&self) -> bool {
        matches!(self, Self::Fast { .. })
    }

    pub(super) fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

impl Idle for Recovery {
    const IDLE: &'static Self = &Self::Open;

    fn idle() -> Self {
        Self::Open
    }

    fn is_idle(&self) -> bool {
        matches!(self, Self::Open)
    }
}

/// The segment that a timer asks for, whatever windows and pacing say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Asked {
    #[default]
    Nothing,
    /// A tail loss probe (RFC 8985, 7.3).
    Probe,
    /// The first one in flight, after a retransmission timeout (RFC 6298, 5.4).
    First,
}

/// What is in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// Octets not acknowledged: `FlightSize` of RFC 5681.
    pub(super) outstanding: u64,
    /// Those among them that were not SACKed either: `RecoverFS` of RFC 9937.
    pub(super) unsacked: u64,
}

impl Sender {
    /// A recovery starts now; `flight` was in flight before the acknowledgment that tells of the
    /// loss.
    pub(super) fn begin_recovery(&mut self, flight: Flight, now: Instant) {
        self.controller.on_loss(now, flight.outstanding);
        self.probe.cancel();
        let window = self.recovery_window(flight);
        *self.recovery = Recovery::Fast { end: self.nxt, window, undo: Undo::of(&self.board) };
    }

    /// The window of a recovery that begins with `flight`, if PRR governs it.
    pub(super) fn recovery_window(&self, flight: Flight) -> Option<(Prr, u64)> {
        self.controller
            .recovery_target()
            .filter(|_| self.sack)
            .map(|_| (Prr::begin(flight.unsacked), self.board.pipe() + u64::from(self.mss)))
    }

    /// The retransmission timer fired.
    pub(super) fn time_out(&mut self, now: Instant) {
        if self.una == 0 {
            return self.time_out_handshake(now);
        }
        let flight = self.nxt - self.una;
        if self.board.highest_sacked().is_some_and(|_| self.head_is_sacked()) {
            self.board.renege(); // The peer took its SACKs back (RFC 2018, 8).
        }
        let head = self.board.first().map_or(0..0, |first| first.range.clone());
        if let Some(mss) = self.path.timed_out(&head, self.mss, now) {
            self.narrow(mss);
        }
        let overdue = self.mark_lost_by_timeout(now);
        self.controller.on_timeout(flight, self.board.pipe());
        self.asked = Asked::First;
        self.rtt.back_off();
        self.timed_out_at = now;
        self.inflation = 0;
        self.probe.cancel();
        self.reorder_at = None;
        self.judge_path(ProbeLoss::TimedOut, now); // A probe of the path must not leave again as it was.
        let (undo, forward) = match *self.recovery {
            Recovery::Timeout { undo, forward, .. } => (undo, forward.timed_out()),
            // RFC 5682, 2.1: not with retransmissions of a fast recovery in flight.
            Recovery::Fast { .. } => (Undo::of(&self.board), Forward::Over),
            Recovery::Open => (Undo::of(&self.board), Forward::Repeated),
        };
        *self.recovery = Recovery::Timeout { end: self.nxt, overdue, undo, forward };
    }

    /// The peer's window was closed and opens. What is in flight and has timed out was dropped there and
    /// leaves at once: its timer tells how often the closed window was probed, no more. What left again
    /// within the last round trip may yet be acknowledged.
    pub(super) fn reopened(&mut self, now: Instant) {
        let Some(first) = self.board.first() else { return self.restart(now) };
        let round_trip = self.rtt.smoothed().unwrap_or(RTO_INITIAL);
        if self.recovery.is_timeout() && now.since(first.sent_at) > round_trip {
            self.rtt.forgive();
            self.board.mark_first_lost(|_| {});
            self.asked = Asked::First;
        }
    }

    /// Sending begins again with nothing in flight. After so long a silence the congestion window is
    /// not known to be safe (RFC 5681, 4.1).
    fn restart(&mut self, now: Instant) {
        let (idle, rto) = (now.since(self.last_sent), self.rtt.rto());
        if idle > rto {
            self.controller.on_restart(idle, rto, now);
        }
    }

    /// With SACK what left a short time ago may yet arrive, and RACK goes on to watch it
    /// (RFC 8985, 6.3); without it everything counts as lost. Gives the time up to which it does.
    fn mark_lost_by_timeout(&mut self, now: Instant) -> Instant {
        if self.sack {
            let recovering = !matches!(*self.recovery, Recovery::Open);
            return self.rack.timed_out(&mut self.board, &self.rtt, recovering, now);
        }
        self.board.mark_all_lost();
        now
    }

    /// The loss of a SYN says little of congestion on the path: only the first window is smaller.
    fn time_out_handshake(&mut self, now: Instant) {
        self.rtt.back_off();
        self.timed_out_at = now;
        self.board.mark_all_lost();
    }

    fn head_is_sacked(&self) -> bool {
        self.board.first().is_some_and(Sent::is_sacked)
    }
}
