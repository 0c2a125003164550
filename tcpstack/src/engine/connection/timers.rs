//! Time: every deadline follows from the connection's state, so that none can be forgotten.

use super::{CloseReason, Connection, Context, State};
use crate::engine::connection::recovery::{Asked, Recovery};
use crate::engine::rack::TailLossProbe;
use crate::time::{Duration, Instant};

/// Keepalives without an answer after which a connection is dead (RFC 9293, 3.8.4).
const KEEPALIVES_MAX: u8 = 5;
/// Distance between unanswered keepalives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a connection that the caller has closed waits for a sign of the peer's, at the least.
const LINGER: Duration = Duration::from_secs(20);
/// And in retransmission timeouts: on a slow path a FIN has to leave again before that.
const LINGER_RTOS: u32 = 3;

/// Distance between probes of a closed window after the caller's close at the most: of several that fall
/// within [`LINGER`] one arrives.
const LINGER_PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// The times that do not follow from anything else.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timers {
    /// When TIME-WAIT began, or began anew.
    pub(super) time_wait_since: Instant,
    /// When the caller closed the connection.
    pub(super) closed_at: Instant,
    /// When the last tail loss, window or keepalive probe left.
    pub(super) probed: Instant,
}

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Retransmission,
    TailLossProbe,
    Reordering,
    Persist,
    UserTimeout,
    Keepalive,
    Linger,
}

/// The deadline that comes first; `one` if both come at once.
fn sooner(one: Option<(Instant, Due)>, other: Option<(Instant, Due)>) -> Option<(Instant, Due)> {
    match (one, other) {
        (Some((at, _)), Some((later, _))) if at <= later => one,
        (_, None) => one,
        _ => other,
    }
}

impl Connection {
    /// When [`Self::handle_timeout`] wants to be called, or segments wait to leave.
    pub(crate) fn deadline(&self, context: &Context<'_>) -> Option<Instant> {
        let timer = self.next_due(context).map(|(at, _)| at);
        [timer, self.rx.ack_by, self.tx.pace_until].into_iter().flatten().min()
    }

    fn next_due(&self, context: &Context<'_>) -> Option<(Instant, Due)> {
        let settings = context.settings;
        let linger = match self.state {
            State::Closed => return None,
            State::TimeWait => {
                return Some((self.timers.time_wait_since + settings.time_wait, Due::Linger));
            }
            _ if self.lingers() => Some((self.linger_until(context), Due::Linger)),
            _ => None,
        };
        let next = sooner(linger, self.repair_due());
        let next = sooner(next, self.reordering_due());
        let next = sooner(next, self.persist_due());
        let next = sooner(next, self.user_due(context));
        sooner(next, self.keepalive_due(context))
    }

    /// Whether the caller has closed it, and the peer has not said yet that it knows.
    fn lingers(&self) -> bool {
        use State::{Closing, FinWait1, FinWait2, LastAck};
        matches!(self.state, FinWait1 | FinWait2 | Closing | LastAck)
    }

    /// How long the peer has after the caller's close to take what waits, and to close too. One that
    /// answers probes of its closed window is alive (RFC 9293, 3.8.6.1, MUST-37), but nobody reads here
    /// any more: it is not waited for without end.
    fn linger_until(&self, context: &Context<'_>) -> Instant {
        let closed_at = self.timers.closed_at;
        let mut since = closed_at.max(self.tx.last_progress);
        if self.is_waiting() && self.waits_for_window() {
            since = since.max(self.last_heard.min(closed_at + context.settings.user_timeout));
        }
        since + LINGER.max(self.tx.rtt.rto_at_first() * LINGER_RTOS)
    }

    /// Whether something is not sent or not acknowledged.
    fn is_waiting(&self) -> bool {
        !self.tx.board.is_empty() || self.tx.nxt < self.tx.end()
    }

    /// Whether only the peer's closed window keeps back what is not acknowledged.
    fn waits_for_window(&self) -> bool {
        self.is_synchronized() && (self.tx.board.is_empty() || self.tx.edge <= self.tx.una)
    }

    /// The retransmission timeout, or before it the tail loss probe (RFC 8985, 7.2).
    fn repair_due(&self) -> Option<(Instant, Due)> {
        let first = self.tx.board.first()?;
        let probed = if self.tx.probe.is_out() { self.timers.probed } else { Instant::ZERO };
        let since = first.sent_at.max(self.tx.last_progress).max(self.tx.timed_out_at);
        let since = since.max(probed);
        let timeout = (since + self.tx.rtt.rto(), Due::Retransmission);
        let measured = self.tx.rtt.smoothed().is_some();
        if !self.tx.may_be_probed() || !self.sack || !measured || !self.tx.probe.may_leave() {
            return Some(timeout);
        }
        let wait = TailLossProbe::timeout(&self.tx.rtt, self.tx.may_be_acknowledged_late());
        // RFC 8985, 7.2: at the latest when the retransmission timer would fire.
        let probe = (self.tx.last_sent.max(self.tx.last_progress) + wait).min(timeout.0);
        Some((probe, Due::TailLossProbe))
    }

    fn reordering_due(&self) -> Option<(Instant, Due)> {
        self.tx.reorder_at.map(|at| (at, Due::Reordering))
    }

    fn persist_due(&self) -> Option<(Instant, Due)> {
        let since = self.tx.blocked_since?.max(self.timers.probed);
        let blocked = self.is_synchronized() && self.tx.is_blocked_by_peer();
        let most = if self.lingers() { LINGER_PROBE_INTERVAL } else { Duration::MAX };
        blocked.then(|| (since + self.tx.persist_interval().min(most), Due::Persist))
    }

    /// Data, or a SYN, has waited for too long (RFC 9293, 3.8.3).
    fn user_due(&self, context: &Context<'_>) -> Option<(Instant, Due)> {
        let limit = if self.is_synchronized() {
            context.settings.user_timeout
        } else {
            context.settings.connect_timeout
        };
        // A peer that keeps its window closed but answers is alive (RFC 9293, 3.8.6.1, MUST-37).
        let since = if self.waits_for_window() { self.last_heard } else { Instant::ZERO };
        self.is_waiting().then(|| (since.max(self.tx.last_progress) + limit, Due::UserTimeout))
    }

    fn keepalive_due(&self, context: &Context<'_>) -> Option<(Instant, Due)> {
        let idle = context.settings.keepalive?;
        if self.state != State::Established || !self.tx.board.is_empty() {
            return None;
        }
        let since = match self.keepalives_unanswered {
            0 => self.last_heard + idle,
            _ => self.timers.probed + KEEPALIVE_INTERVAL,
        };
        Some((since, Due::Keepalive))
    }

    /// Does what is due. Segments that this sets free leave with the next transmission.
    pub(crate) fn handle_timeout(&mut self, context: &Context<'_>) {
        let now = context.now;
        let Some((_, due)) = self.next_due(context).filter(|(at, _)| *at <= now) else { return };
        match due {
            Due::UserTimeout => self.end(self.timeout_reason()),
            Due::Linger => self.end(CloseReason::LocalClosed),
            Due::Retransmission => self.tx.time_out(now),
            Due::TailLossProbe => {
                self.tx.asked = Asked::Probe;
                self.timers.probed = now;
            }
            Due::Reordering => self.tx.check_reordering(now),
            Due::Persist => {
                self.tx.persist_backoff = self.tx.persist_backoff.saturating_add(1);
                // A closed window that opens by a little is avoided like any other.
                self.tx.override_silly = self.tx.edge > self.tx.nxt;
                self.probe(now);
            }
            Due::Keepalive => self.keep_alive(now),
        }
    }

    fn timeout_reason(&self) -> CloseReason {
        match self.is_synchronized() {
            _ if self.unreachable => CloseReason::Unreachable,
            true => CloseReason::Timeout,
            false => CloseReason::ConnectTimeout,
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        if self.keepalives_unanswered >= KEEPALIVES_MAX {
            self.end(self.timeout_reason());
            return;
        }
        self.keepalives_unanswered += 1;
        self.probe(now);
    }

    fn probe(&mut self, now: Instant) {
        self.timers.probed = now;
        self.probe_peer = true;
    }
}

impl super::sender::Sender {
    /// The reordering timer fired: what did not arrive in time is lost (RFC 8985, 6.3).
    fn check_reordering(&mut self, now: Instant) {
        self.reorder_at = None;
        let flight = self.flight();
        let lost = self.find_losses(now);
        self.judge_path(self.probe_loss(lost), now);
        if lost > 0 && matches!(*self.recovery, Recovery::Open) {
            self.begin_recovery(flight, now);
        }
    }
}
