//! IKE SAs that take the place of others: after a reauthentication, and of a peer that begins anew.

use super::Endpoint;
use crate::event::{DownReason, Event, IkeSaId};
use crate::host::Host;
use crate::sa::{Replaces, Succession};
use crate::time::Instant;

/// Most IKE SAs of one peer that are left behind and wait for an answer to their Delete. A peer that
/// begins one after the other and answers none would fill the table with them.
const LEFT_BEHIND_MAX: usize = 8;

impl Endpoint {
    pub(super) fn end_predecessor(&mut self, now: Instant, ike: IkeSaId, host: &mut dyn Host) {
        self.with(now, ike, host, |s, cx| s.terminate(cx, DownReason::Reauthenticated));
    }

    /// The peer has left this IKE SA to this side. It is deleted, unless the other one that the peer had
    /// set up beside it has gone before, or was forgotten with the process that had it.
    pub(super) fn end_outlived(&mut self, now: Instant, ike: IkeSaId, host: &mut dyn Host) {
        if !self.table.same_peer(ike).is_empty() {
            self.with(now, ike, host, |s, cx| s.terminate(cx, DownReason::Replaced));
        }
    }

    /// Begins the IKE SA that is to take the place of another. What it cannot be begun for now is
    /// tried again by the old one.
    pub(super) fn begin_successor(
        &mut self,
        now: Instant,
        mut succession: Succession,
        host: &mut dyn Host,
    ) {
        let connection = self.table.get(succession.old).and_then(|s| s.connection.clone());
        let Some(connection) = connection else { return };
        if self.table.successor_of(succession.old).is_some() {
            // The last one has not been given up yet.
            return;
        }
        let child = match succession.children.is_empty() {
            true => None,
            false => Some(succession.children.remove(0).name.clone()),
        };
        if let Ok(id) = self.initiate(now, &connection, child.as_deref(), host) {
            let old = succession.old;
            if let Some(session) = self.table.get_mut(id) {
                session.succeed_to(succession);
            }
            self.table.sync(id);
            self.events.push_back(Event::Reauthenticating { ike: old, successor: id });
        }
    }

    /// The peer of this IKE SA was authenticated: its older ones go.
    pub(super) fn replace_others(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        how: Replaces,
        host: &mut dyn Host,
    ) {
        let others = self.table.same_peer(ike);
        let several = others.len() > 1;
        let excess = others.len().saturating_sub(LEFT_BEHIND_MAX);
        // The oldest first.
        for (index, other) in others.into_iter().enumerate() {
            let (Some(new), Some(old)) = (self.table.get(ike), self.table.get(other)) else {
                continue;
            };
            if new.begun_with(old) {
                // Whatever either has said in its first message: both know which one is to stay.
                let loser = if new.yields_to(old) { ike } else { other };
                self.with(now, loser, host, |s, cx| s.terminate(cx, DownReason::Replaced));
                continue;
            }
            self.with(now, other, host, |session, cx| match how {
                // Who has forgotten it repeats nothing on it.
                Replaces::Silently => session.vanish(cx, DownReason::Replaced),
                _ if index < excess => session.vanish(cx, DownReason::Replaced),
                Replaces::WithDelete => session.terminate(cx, DownReason::Replaced),
                Replaces::Later => session.supersede(cx, several),
            });
        }
    }
}
