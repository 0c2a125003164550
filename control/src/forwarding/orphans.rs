//! SAs of an earlier control process that no IKE SA is restored for: they forward until their lifetime
//! ends, unless the same child comes up anew with the same peer, or somebody terminates them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use culvert_ike::ChildSa;
use culvert_shm::{ControlView, Name, SaConfig, SlotRef, SlotState};

use super::{Forwarding, forget, note};
use crate::policies::Match;

/// An SA pair of an earlier control process.
pub struct Orphan {
    /// Its slot.
    pub slot: SlotRef,
    /// The peer's slot.
    pub peer: SlotRef,
    /// Name of the connection.
    pub connection: String,
    /// The peer's identity.
    pub remote_id: String,
    /// Name of the child.
    pub name: String,
    /// The SPI that its packets arrive with.
    pub spi_in: u32,
    /// No packet passes from then on.
    pub deadline_ns: u64,
    /// The SPI that packets to the peer bear.
    pub spi_out: u32,
    pub(super) policies: Vec<(SlotRef, Match)>,
}

impl Forwarding {
    /// Begins with a region's view, once: finds what an earlier control process left.
    pub fn attach(&mut self, mut view: ControlView) {
        let mut orphans = find_orphans(&view);
        let by_slot: HashMap<SlotRef, u32> =
            orphans.values().map(|orphan| (orphan.slot, orphan.spi_in)).collect();
        for index in 0..view.region().layout().policy_slots {
            let Some((slot, _, policy)) = view.policy(index) else { continue };
            let orphan = by_slot.get(&policy.sa).and_then(|spi_in| orphans.get_mut(spi_in));
            let Some(orphan) = orphan else {
                // Its SA went, and the process with it before it could take this too.
                view.retire_policy(slot);
                continue;
            };
            let found = Match {
                remote: policy.remote,
                remote_ports: policy.remote_ports,
                local: policy.local,
            };
            orphan.policies.push((slot, found));
            note(&mut self.precedence, found, policy.priority);
        }
        self.orphans = orphans;
        self.view = Some(view);
    }

    /// SA pairs of an earlier control process.
    pub fn orphans(&self) -> impl ExactSizeIterator<Item = &Orphan> {
        self.orphans.values()
    }

    /// The address that the peer of an orphan has.
    #[must_use]
    pub fn address_of(&self, orphan: &Orphan) -> Option<IpAddr> {
        let view = self.view.as_ref()?;
        let path = view.peer_state(orphan.peer).map(|state| state.path);
        let path = path.or_else(|| view.peer(orphan.peer.index).map(|(_, _, peer)| peer.path));
        path.map(|path| path.remote.ip())
    }

    /// Ends those orphans for which `ends` holds; how many.
    pub fn end_orphans(&mut self, ends: impl Fn(&Orphan) -> bool) -> usize {
        let (ended, left): (BTreeMap<u32, Orphan>, BTreeMap<u32, Orphan>) =
            std::mem::take(&mut self.orphans).into_iter().partition(|(_, orphan)| ends(orphan));
        self.orphans = left;
        ended.values().for_each(|orphan| self.end_orphan(orphan));
        ended.len()
    }

    /// The same child of the same peer stands anew.
    pub(super) fn replace_orphans(&mut self, sa: &ChildSa) {
        if self.orphans.is_empty() {
            return;
        }
        // Names in the shared memory may have been cut.
        let same = |name: &str, text: &str| name == Name::new(text).as_str();
        let remote_id = sa.remote_id.to_string();
        let replaced = self.end_orphans(|orphan| {
            same(&orphan.connection, &sa.connection)
                && same(&orphan.name, &sa.name)
                && same(&orphan.remote_id, &remote_id)
        });
        if replaced > 0 {
            tracing::info!(connection = sa.connection, child = sa.name, "orphaned SA replaced");
        }
    }

    /// Takes an orphan down.
    pub(super) fn end_orphan(&mut self, orphan: &Orphan) {
        let Some(view) = &mut self.view else { return };
        for (policy, found) in &orphan.policies {
            view.retire_policy(*policy);
            forget(&mut self.precedence, found);
        }
        view.retire_sa(orphan.slot);
        let others = self.orphans.values().chain(self.unfinished.values());
        if !self.by_peer.contains_key(&orphan.peer)
            && others.into_iter().all(|o| o.peer != orphan.peer)
        {
            view.retire_peer(orphan.peer);
        }
    }
}

/// By inbound SPI.
fn find_orphans(view: &ControlView) -> BTreeMap<u32, Orphan> {
    let sas = (0..view.region().layout().sa_slots).filter_map(|index| view.sa(index));
    let orphans = sas.filter(|(_, state, _)| *state == SlotState::Orphan);
    let describe = |(slot, _, sa): (SlotRef, SlotState, SaConfig)| {
        let peer = view.peer(sa.peer.index).filter(|(slot, ..)| *slot == sa.peer);
        let (connection, remote_id) =
            peer.map(|(_, _, peer)| (peer.connection, peer.remote_id)).unzip();
        Orphan {
            slot,
            peer: sa.peer,
            connection: connection.map(|name| name.to_string()).unwrap_or_default(),
            remote_id: remote_id.map(|name| name.to_string()).unwrap_or_default(),
            name: sa.name.to_string(),
            spi_in: sa.spi_in,
            spi_out: sa.spi_out,
            deadline_ns: sa.deadline_ns,
            policies: Vec::new(),
        }
    };
    orphans.map(describe).map(|orphan| (orphan.spi_in, orphan)).collect()
}
