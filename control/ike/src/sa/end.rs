//! How a session ends: deleted, given up, refused.

use super::exchange::{Asked, Task};
use super::{AT_ONCE, Cx, LINGER, Phase, SUCCESSION, Session};
use crate::event::{DownReason, Event, InitiationError};
use crate::path::Path;

impl Session {
    /// Ends an IKE SA that was up, at once and without a message; its CHILD SAs go too. Repetitions
    /// of the peer's last request are answered a little longer.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        if !self.is_up() {
            return;
        }
        self.phase = Phase::Closed(cx.now + LINGER);
        if let Some(outstanding) = self.outstanding.take() {
            self.abandon(cx, outstanding.asked);
        }
        while let Some(child) = self.children.first().map(|c| c.id) {
            self.remove_child(cx, child, Some(DownReason::IkeGone));
        }
        for task in std::mem::take(&mut self.tasks) {
            if let Task::DeleteStray(spi_in) = task {
                cx.host.release_child(spi_in);
            }
        }
        self.retired.clear();
        self.later.clear();
        let connection = self.connection_name();
        cx.events.push_back(Event::IkeDown { ike: self.id, connection, reason });
    }

    /// Ends an IKE SA that was up, and keeps nothing of it.
    pub(crate) fn vanish(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        self.close(cx, reason);
        self.phase = Phase::Dead;
        self.close_connection(cx);
    }

    /// Gives back what an unanswered request holds.
    pub(super) fn abandon(&mut self, cx: &mut Cx<'_>, asked: Asked) {
        match asked {
            Asked::Child(request) => cx.host.release_child(request.spi_in),
            Asked::DeleteStray(spi_in) => cx.host.release_child(spi_in),
            Asked::Auth
            | Asked::Liveness
            | Asked::DeleteIke
            | Asked::DeleteChild(_)
            | Asked::Ike(_)
            | Asked::Update(_)
            | Asked::ReturnCheck(..)
            | Asked::Addresses => {}
        }
    }

    /// Ends an initiation that came to nothing.
    pub(super) fn fail(&mut self, cx: &mut Cx<'_>, error: InitiationError) {
        if let Phase::Auth(auth) = std::mem::replace(&mut self.phase, Phase::Dead) {
            auth.release(cx);
        }
        self.outstanding = None;
        self.close_connection(cx);
        let connection = self.connection_name();
        cx.events.push_back(Event::InitiationFailed { ike: self.id, connection, error });
    }

    /// Turns a peer's attempt down; the refusal was sent as a response.
    pub(super) fn refuse(&mut self, cx: &mut Cx<'_>, path: &Path, error: InitiationError) {
        self.phase = Phase::Closed(cx.now + LINGER);
        cx.events.push_back(Event::Refused { path: *path, error });
    }

    /// The peer has set up another IKE SA. If this one is one of several that are left behind by now,
    /// and not the newest, it goes at once.
    pub(crate) fn supersede(&mut self, cx: &mut Cx<'_>, several: bool) {
        if several && self.superseded.is_some() {
            self.terminate(cx, DownReason::Replaced);
        } else {
            self.superseded = Some(cx.now + SUCCESSION);
        }
    }

    /// Whether the time is over in which the peer might have deleted this one beside another.
    pub(crate) const fn take_outlived(&mut self) -> bool {
        std::mem::replace(&mut self.outlived, false)
    }

    /// Whether this IKE SA and `other`, of the same peer, were begun at once, each by another end.
    pub(crate) fn begun_with(&self, other: &Self) -> bool {
        let apart = self.since.since(other.since).max(other.since.since(self.since));
        self.initiator != other.initiator && apart < AT_ONCE && self.begun_by() != other.begun_by()
    }

    /// Which of two that were begun at once stays: that of the end with the lower identity. Both ends
    /// see it alike.
    pub(crate) fn yields_to(&self, other: &Self) -> bool {
        other.begun_by() < self.begun_by()
    }

    /// The identity of the end that began it.
    fn begun_by(&self) -> Option<(u8, &[u8])> {
        let id = if self.initiator { self.local_id.as_ref() } else { self.remote_id.as_ref() };
        id.map(|id| (id.kind().number(), id.data()))
    }

    /// Deletes the IKE SA at the wish of this side.
    pub(crate) fn terminate(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        match self.phase {
            Phase::Established => {
                self.phase = Phase::Deleting(reason);
                // What else is waiting has lost its sense.
                self.tasks.retain(|task| matches!(task, Task::DeleteStray(_)));
                self.tasks.push_back(Task::DeleteIke);
                self.pump(cx);
            }
            Phase::Opening(_) | Phase::Init(_) | Phase::Auth(_) => {
                self.fail(cx, InitiationError::Terminated);
            }
            Phase::HalfOpen(_) => {
                self.phase = Phase::Dead;
                self.close_connection(cx);
            }
            Phase::Deleting(_) | Phase::Closed(_) | Phase::Dead => {}
        }
    }
}
