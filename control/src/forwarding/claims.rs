//! What IKE SAs that are restored find again of theirs in the shared memory.
//!
//! An earlier control process may have died at any point, so what it left is compared with what
//! its snapshots say: an SA that no IKE SA claims is ended, policies that are missing are added,
//! and an SA that was installed while its exchange was still under way is taken as it is when the
//! exchange comes to its end again, sequence numbers and all.

use std::collections::HashSet;
use std::collections::btree_map::Entry;

use culvert_ike::{ChildClaim, ChildSa, IkeSaId, InstallError};
use culvert_shm::{SlotRef, SlotState};

use super::orphans::Orphan;
use super::{Forwarding, Installed, Peer};
use crate::policies::{self, Match};

impl Forwarding {
    /// Takes up an SA pair; whether it is there.
    pub fn claim(&mut self, claim: &ChildClaim<'_>) -> bool {
        let left = self.orphans.entry(claim.spi_in);
        let Entry::Occupied(left) = left else { return false };
        if left.get().spi_out != claim.spi_out {
            return false;
        }
        let orphan = left.remove();
        if !self.claim_peer(claim.ike, orphan.peer) {
            self.end_orphan(&orphan);
            return false;
        }
        let matches = policies::matches(claim.local_ts, claim.remote_ts).unwrap_or_default();
        self.adopt(orphan, (claim.ike, claim.id), matches);
        if claim.outbound
            && self.installed.get(&claim.spi_in).is_some_and(|sa| !sa.matches.is_empty())
        {
            // It waited when the process before died, and the answer may not have left yet: it waits
            // once more, if others serve. That is seen when all are claimed.
            self.waiting.insert(claim.spi_in, culvert_shm::monotonic_ns());
        }
        true
    }

    /// Takes up an SPI whose exchange is under way.
    pub fn claim_spi(&mut self, ike: IkeSaId, spi_in: u32) {
        let Some(view) = &mut self.view else { return };
        if let Some(slot) = view.claim_reserved(spi_in) {
            self.reserved.insert(spi_in, slot);
            return;
        }
        let Some(orphan) = self.orphans.remove(&spi_in) else { return };
        if self.claim_peer(ike, orphan.peer) {
            self.unfinished.insert(spi_in, orphan);
        } else {
            self.end_orphan(&orphan);
        }
    }

    /// Installs an SA pair that a process installed before it died.
    pub(super) fn install_again(
        &mut self,
        orphan: Orphan,
        sa: &ChildSa,
    ) -> Result<(), InstallError> {
        let view = self.view.as_ref().ok_or_else(|| InstallError("no dataplane".into()))?;
        let found = view.sa(orphan.slot.index).filter(|(slot, ..)| *slot == orphan.slot);
        // Other keys under this SPI would be a fault, and the same ones begun anew the worst.
        let same = found.is_some_and(|(_, _, config)| {
            config.spi_out == sa.spi_out
                && config.keymat_in.as_bytes() == sa.keymat_in.expose()
                && config.keymat_out.as_bytes() == sa.keymat_out.expose()
        });
        if !same {
            self.end_orphan(&orphan);
            return Err(InstallError("an earlier process installed another SA there".into()));
        }
        let matches = policies::matches(&sa.local_ts, &sa.remote_ts)
            .map_err(|error| InstallError(error.to_string()))?;
        self.adopt(orphan, (sa.ike, sa.id), matches);
        // This side asked for it: the peer has it.
        if sa.outbound { self.enable_outbound(sa.spi_in) } else { Ok(()) }
    }

    /// Makes an orphan one of this process's SAs. Those `matches` that have no policy get one when the
    /// SA is to send.
    fn adopt(
        &mut self,
        orphan: Orphan,
        (ike, child): (IkeSaId, culvert_ike::ChildId),
        mut matches: Vec<Match>,
    ) {
        let Some(view) = &mut self.view else { return };
        view.claim_sa(orphan.slot);
        for (policy, found) in &orphan.policies {
            view.claim_policy(*policy);
            matches.retain(|wanted| wanted != found);
        }
        let Orphan { slot, deadline_ns, policies, spi_in, .. } = orphan;
        let installed = Installed { slot, ike, child, deadline_ns, matches, policies };
        self.installed.insert(spi_in, installed);
    }

    /// Makes the peer of an SA the IKE SA's; whether it is there.
    fn claim_peer(&mut self, ike: IkeSaId, slot: SlotRef) -> bool {
        if let Some(peer) = self.peers.get(&ike) {
            return peer.slot == slot;
        }
        let Some(view) = &mut self.view else { return false };
        let found = view.peer(slot.index).filter(|(found, ..)| *found == slot);
        let Some((_, _, config)) = found else { return false };
        view.claim_peer(slot);
        let path = view.peer_state(slot).map_or(config.path, |state| state.path);
        let peer = Peer { slot, owner: config.owner, path, untold: false };
        self.by_peer.insert(slot, ike);
        self.peers.insert(ike, peer);
        true
    }

    /// Ends what nobody has claimed, once every IKE SA is restored. Where some could not be, SAs may be
    /// theirs and stay as orphans.
    pub fn end_unclaimed(&mut self, some_lost: bool) {
        let claimed: HashSet<SlotRef> = self.by_peer.keys().copied().collect();
        let ended = self.end_orphans(|orphan| !some_lost || claimed.contains(&orphan.peer));
        if ended > 0 {
            tracing::info!(ended, "SAs that no IKE SA knows are ended");
        }
        let alone = self.waiting.keys().copied().filter(|spi_in| !self.is_served(*spi_in));
        let alone: Vec<u32> = alone.collect();
        self.end_waiting(|spi_in, _, _| alone.contains(&spi_in));
        let Some(view) = &mut self.view else { return };
        view.release_unclaimed();
        let orphans = self.orphans.values().chain(self.unfinished.values());
        let needed: HashSet<SlotRef> = orphans.map(|orphan| orphan.peer).collect();
        for index in 0..view.region().layout().peer_slots {
            let Some((slot, SlotState::Orphan, _)) = view.peer(index) else { continue };
            if !needed.contains(&slot) {
                view.retire_peer(slot);
            }
        }
    }

    /// The peer of an IKE SA, where it has CHILD SAs or had.
    #[must_use]
    pub fn peer_of(&self, ike: IkeSaId) -> Option<SlotRef> {
        self.peers.get(&ike).map(|peer| peer.slot)
    }
}
