//! A session as a row of a table.

use super::child::Child;
use super::{Phase, Session};
use crate::event::{ChildSnapshot, IkeSnapshot, IkeState};

impl Session {
    /// A row for tables; `None` once it is gone.
    pub(crate) fn snapshot(&self) -> Option<IkeSnapshot> {
        let state = match &self.phase {
            Phase::Opening(_) | Phase::Init(_) => IkeState::Connecting,
            Phase::Auth(_) | Phase::HalfOpen(_) => IkeState::HalfOpen,
            Phase::Established => IkeState::Established,
            Phase::Deleting(_) => IkeState::Deleting,
            Phase::Closed(_) | Phase::Dead => return None,
        };
        let (spi_i, spi_r) = match (&self.sa, &self.phase) {
            (Some(sa), _) => sa.spis(),
            (None, Phase::Init(attempt)) => (attempt.spi_i, 0),
            (None, Phase::HalfOpen(answered)) => answered.spis,
            _ => (0, 0),
        };
        Some(IkeSnapshot {
            id: self.id,
            connection: self.connection_name(),
            state,
            initiator: self.initiator,
            spi_i,
            spi_r,
            local_id: self.local_id.clone(),
            remote_id: self.remote_id.clone(),
            suite: self.sa.as_ref().map(|sa| sa.suite),
            path: self.path,
            peer_addresses: self.peer_addresses.clone(),
            mobike: self.mobike,
            nat_local: self.nat.local,
            nat_remote: self.nat.remote,
            since: self.since,
            keyed: self.sa.as_ref().map_or(self.since, |sa| sa.keyed),
            rekey_at: self.clock.rekey_at,
            expires_at: self.clock.expires_at,
            reauth_at: self.reauth_at,
            last_heard: self.last_heard,
            children: self.children.iter().map(|c| self.child_snapshot(c)).collect(),
        })
    }

    fn child_snapshot(&self, child: &Child) -> ChildSnapshot {
        ChildSnapshot {
            id: child.id,
            name: child.config.name.clone(),
            spi_in: child.spi_in,
            spi_out: child.spi_out,
            suite: child.suite,
            mode: child.mode.choice(),
            transport: self.child_path().transport,
            local_ts: child.local_ts.clone(),
            remote_ts: child.remote_ts.clone(),
            since: child.since,
            rekey_at: child.clock.rekey_at,
            expires_at: child.clock.expires_at,
        }
    }
}
