//! Reauthentication (RFC 7296, 2.8.3; RFC 4478): a new IKE SA is set up beside the old one, with the
//! same CHILD SAs, and the old one is deleted only then.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

use super::child::ChildWish;
use super::exchange::{Asked, Task};
use super::{Cx, Phase, Session, saved};
use crate::config::ChildConfig;
use crate::event::{DownReason, IkeSaId};
use crate::message::{Message, NotifyType, Payload};
use crate::time::Instant;

/// The part of a peer's AUTH_LIFETIME that is left for reauthentication: a tenth.
const MARGIN: u32 = 10;
/// How long after the time that it allows a responder ends the IKE SA: a reauthentication under way may
/// be done.
const GRACE: Duration = Duration::from_secs(60);
/// The shortest time that is heeded of those that a responder allows in IKE_AUTH: with less, who is
/// authenticated would authenticate again at once, for ever.
const SOONEST: Duration = Duration::from_secs(10);
/// Wait after a reauthentication that failed; doubled after each further one, up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// What a new IKE SA is to take over.
#[derive(Serialize, Deserialize)]
pub(crate) struct Succession {
    /// The IKE SA that it takes the place of.
    pub(crate) old: IkeSaId,
    /// The CHILD SAs that are still to be asked for.
    #[serde(with = "saved::children")]
    pub(crate) children: Vec<Arc<ChildConfig>>,
}

/// The time for which a responder allows the IKE SA, less what is left for reauthentication.
fn allowed_lifetime(message: &Message) -> Option<Duration> {
    let notify = message.notify(NotifyType::AUTH_LIFETIME)?;
    let seconds = <[u8; 4]>::try_from(&notify.data[..]).ok().map(u32::from_be_bytes)?;
    let time = Duration::from_secs(seconds.into());
    Some(time.saturating_sub(time / MARGIN))
}

impl Session {
    /// AUTH_LIFETIME for the initiator, which alone can authenticate again (RFC 4478, 3).
    pub(super) fn auth_lifetime(&self) -> Option<Payload> {
        let time = self.connection.as_ref()?.reauth_time?;
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
        Some(Payload::notify(NotifyType::AUTH_LIFETIME, seconds.to_be_bytes()))
    }

    /// When to authenticate again: by configuration, or before the time that the responder allows. The
    /// responder, which has told of its own, ends the IKE SA soon after that (RFC 4478, 2).
    pub(super) fn note_auth_lifetime(&mut self, cx: &Cx<'_>, message: &Message) {
        let own = self.connection.as_ref().and_then(|c| c.reauth_time);
        if !self.initiator {
            self.reauth_at = own.map(|time| cx.now + time + GRACE);
            return;
        }
        let allowed = allowed_lifetime(message).map(|time| time.max(SOONEST));
        let time = own.into_iter().chain(allowed).min();
        self.reauth_at = time.map(|time| cx.now + time);
    }

    /// The responder may say at any time how long it allows (RFC 4478, 2). Only earlier than before:
    /// the configuration here, and what waits for its next attempt, hold all the same.
    pub(super) fn heed_auth_lifetime(&mut self, cx: &Cx<'_>, message: &Message) {
        if let Some(time) = allowed_lifetime(message).filter(|_| self.initiator) {
            let at = cx.now + time;
            self.reauth_at = Some(self.reauth_at.map_or(at, |before| before.min(at)));
        }
    }

    /// When reauthentication is due, or at the responder the end.
    pub(super) fn reauth_due(&self) -> Option<Instant> {
        self.reauth_at.filter(|_| matches!(self.phase, Phase::Established))
    }

    pub(super) fn check_reauth(&mut self, cx: &mut Cx<'_>) {
        if self.reauth_due().is_none_or(|due| due > cx.now) {
            return;
        }
        if self.initiator {
            self.reauthenticate(cx);
        } else {
            // RFC 4478, 2: the peer had its time.
            self.terminate(cx, DownReason::AuthExpired);
        }
    }

    /// Has the endpoint begin a new IKE SA.
    pub(crate) fn reauthenticate(&mut self, cx: &Cx<'_>) {
        self.wants_successor = true;
        // Should it fail, this is tried again: by the initiator, which alone has to.
        if self.initiator {
            let wait = RETRY.saturating_mul(1 << self.reauth_tries.min(6));
            self.reauth_tries = self.reauth_tries.saturating_add(1);
            self.reauth_at = Some(cx.now + wait.min(RETRY_MAX));
        }
    }

    /// The IKE SA whose place this one is on its way to take.
    pub(crate) fn predecessor(&self) -> Option<IkeSaId> {
        self.succession.as_ref().map(|s| s.old)
    }

    /// What a successor has to take over, if one is wanted now.
    pub(crate) fn take_succession(&mut self) -> Option<Succession> {
        if !std::mem::take(&mut self.wants_successor) {
            return None;
        }
        let standing = self.children.iter().filter(|c| c.leaving.is_none()).map(|c| &c.config);
        let mut children: Vec<Arc<ChildConfig>> = Vec::new();
        for config in standing.chain(self.wished()) {
            if children.iter().all(|known| known.name != config.name) {
                children.push(config.clone());
            }
        }
        Some(Succession { old: self.id, children })
    }

    /// The children of which a pair is asked for, or is to be.
    fn wished(&self) -> impl Iterator<Item = &Arc<ChildConfig>> {
        let asked = self.outstanding.iter().filter_map(|o| match &o.asked {
            Asked::Child(request) => Some(&request.wish),
            _ => None,
        });
        let later = self.later.iter().map(|(_, task)| task);
        let waiting = self.tasks.iter().chain(later).filter_map(|task| match task {
            Task::Child(wish) => Some(wish),
            _ => None,
        });
        asked.chain(waiting).filter(|wish| wish.replaces.is_none()).map(|wish| &wish.config)
    }

    /// Asks for what the first exchange did not bring.
    pub(super) fn ask_inherited(&mut self, cx: &mut Cx<'_>) {
        let Some(succession) = &mut self.succession else { return };
        for config in std::mem::take(&mut succession.children) {
            self.push_task(cx, Task::Child(ChildWish::new(config)));
        }
    }

    /// The IKE SA that this one has taken over from: once all exchanges are done, and nothing is put
    /// off that would be missed meanwhile.
    pub(crate) fn take_predecessor(&mut self) -> Option<IkeSaId> {
        let done = matches!(self.phase, Phase::Established)
            && self.outstanding.is_none()
            && self.tasks.is_empty()
            && self.later.is_empty()
            && self.succession.as_ref().is_some_and(|s| s.children.is_empty());
        if done { self.succession.take().map(|s| s.old) } else { None }
    }
}
