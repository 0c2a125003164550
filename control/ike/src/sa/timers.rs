//! What a session does when its time has come.

use super::{Cx, IkeSa, Phase, Session};
use crate::endpoint::Received;
use crate::event::{Event, InitiationError};
use crate::path::Transport;
use crate::time::Instant;

impl Session {
    /// When something is due next.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Opening(opening) => Some(opening.deadline),
            Phase::Init(attempt) => Some(attempt.due),
            Phase::HalfOpen(answered) => Some(answered.deadline),
            Phase::Closed(until) => Some(*until),
            Phase::Auth(_) | Phase::Established | Phase::Deleting(_) | Phase::Dead => None,
        };
        [
            phase,
            self.outstanding.as_ref().map(|o| o.due),
            self.liveness_due(),
            self.link.retry_at(),
            self.retired_due(),
            self.later.iter().map(|(at, _)| *at).min(),
            self.lifetimes(),
            self.probe_due(),
            self.reauth_due(),
            self.superseded.filter(|_| matches!(self.phase, Phase::Established)),
            self.keepalive_due(),
            self.link.close_at(),
            self.keyed().filter_map(IkeSa::fragments_due).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        match &self.phase {
            Phase::Opening(opening) if opening.deadline <= now => {
                let remote = self.path.remote;
                self.fail(cx, InitiationError::NoAnswer { transport: Transport::Tcp, remote });
            }
            Phase::Init(attempt) if attempt.due <= now => self.init_due(cx),
            Phase::HalfOpen(answered) if answered.deadline <= now => {
                self.phase = Phase::Dead;
                let (path, error) = (self.path, InitiationError::WentSilent);
                cx.events.push_back(Event::Refused { path, error });
                self.close_connection(cx);
            }
            Phase::Closed(until) if *until <= now => {
                self.phase = Phase::Dead;
                self.close_connection(cx);
            }
            _ => {}
        }
        self.check_retired(cx);
        if self.outstanding.as_ref().is_some_and(|o| o.due <= now) {
            self.outstanding_due(cx);
        }
        self.retry_connection(cx);
        let later = std::mem::take(&mut self.later);
        let (due, later): (Vec<_>, Vec<_>) = later.into_iter().partition(|(at, _)| *at <= now);
        self.later = later;
        for (_, task) in due {
            self.push_task(cx, task);
        }
        self.check_lifetimes(cx);
        self.probe(cx);
        self.check_reauth(cx);
        self.keep_alive(cx);
        self.close_left(cx);
        self.forget_fragments(now);
        if self.superseded.is_some_and(|at| at <= now) {
            (self.superseded, self.outlived) = (None, true);
        }
        if self.liveness_due().is_some_and(|due| due <= now) {
            self.check_liveness(cx);
        }
    }

    /// A message was no whole one. If it was a fragment, the rest has as much time as this side gives to
    /// an answer (RFC 7383, 2.6).
    pub(super) fn not_whole(&mut self, now: Instant, received: Received) -> Received {
        if received == Received::Accepted {
            self.await_fragments(now);
        }
        received
    }

    pub(super) fn await_fragments(&mut self, now: Instant) {
        let until = now + self.retransmission().patience();
        let retired = self.retired.iter_mut().map(|retired| &mut retired.sa);
        self.sa.iter_mut().chain(retired).for_each(|sa| sa.await_rest(until));
    }

    /// Gives up messages of which fragments are missing.
    fn forget_fragments(&mut self, now: Instant) {
        let retired = self.retired.iter_mut().map(|retired| &mut retired.sa);
        self.sa.iter_mut().chain(retired).for_each(|sa| sa.forget_fragments(now));
    }
}
