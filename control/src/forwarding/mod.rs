//! What the dataplane is told: peers, SA pairs and policies in the shared memory.
//!
//! An SA goes through three steps: its slot, and with it the inbound SPI, is reserved when the
//! exchange begins; keys and selectors are installed before the reply leaves; policies send
//! packets into it at once or, for what a peer has asked for in place of another, when the peer may
//! be thought to have it. It is taken down in the reverse order, and its keys are overwritten once
//! every worker has passed.
//!
//! What an earlier control process left is claimed by the IKE SAs that are restored ([`claims`]).
//! SAs that belong to none are [`orphans`].

mod claims;
mod orphans;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use culvert_ike::{ChildId, ChildPath, ChildSa, IkeSaId, InstallError, Instant};
use culvert_shm::{
    ControlView, Down, Dscp, KeyMaterial, Name, Path, PeerConfig, Policy, SaConfig, SlotRef,
};

use crate::policies::{self, Match, WIDTH_SHIFT};
use crate::{clock, convert};
pub use orphans::Orphan;

/// How long an answer may be on its way to a peer, which is longer than an ordinary path takes.
const ANSWER_NS: u64 = 1_000_000_000;

/// A peer that was told of.
struct Peer {
    slot: SlotRef,
    owner: u16,
    path: Path,
    /// Whether its worker still has to be told of the path.
    untold: bool,
}

/// An SA pair that was told of.
pub struct Installed {
    /// Its slot.
    pub slot: SlotRef,
    /// The IKE SA that it belongs to.
    pub ike: IkeSaId,
    /// The protocol's name for it.
    pub child: ChildId,
    /// No packet passes from then on.
    pub deadline_ns: u64,
    matches: Vec<Match>,
    policies: Vec<(SlotRef, Match)>,
}

/// Policies with the same match: the newest must have the lowest number.
struct Precedence {
    lowest: u32,
    count: usize,
}

/// The shared memory as far as the control process writes SAs into it.
#[derive(Default)]
pub struct Forwarding {
    view: Option<ControlView>,
    peers: HashMap<IkeSaId, Peer>,
    by_peer: HashMap<SlotRef, IkeSaId>,
    reserved: HashMap<u32, SlotRef>,
    installed: HashMap<u32, Installed>,
    /// By inbound SPI.
    orphans: BTreeMap<u32, Orphan>,
    /// Orphans that an exchange under way had installed before its process died.
    unfinished: HashMap<u32, Orphan>,
    precedence: HashMap<Match, Precedence>,
    /// Inbound SPIs of SA pairs that peers asked for beside others with the same selectors, as when
    /// they reauthenticate, and since when: packets stay with the others while the answer is on its
    /// way.
    waiting: HashMap<u32, u64>,
    /// SAs whose worker had no room in its ring when they were installed.
    untold: Vec<SlotRef>,
}

impl Forwarding {
    /// The region's view, once there is a region.
    #[must_use]
    pub fn view(&self) -> Option<&ControlView> {
        self.view.as_ref()
    }

    /// The region's view, to write.
    pub fn view_mut(&mut self) -> Option<&mut ControlView> {
        self.view.as_mut()
    }

    /// The worker that messages and connections to this address go to.
    #[must_use]
    pub fn worker_for(&self, remote: SocketAddr) -> u16 {
        self.view.as_ref().map_or(0, |view| view.owner_for(remote))
    }

    // SAs.

    /// Reserves a slot; `random` makes the SPI unpredictable. `None`: no slot is free, or there is
    /// no shared memory yet.
    pub fn reserve(&mut self, random: u32) -> Option<u32> {
        let (slot, spi) = self.view.as_mut()?.reserve_sa(random).ok()?;
        self.reserved.insert(spi, slot);
        Some(spi)
    }

    /// Gives a reserved slot back.
    pub fn release(&mut self, spi_in: u32) {
        if let Some(orphan) = self.unfinished.remove(&spi_in) {
            self.end_orphan(&orphan);
        }
        if let (Some(slot), Some(view)) = (self.reserved.remove(&spi_in), &mut self.view) {
            view.retire_sa(slot);
        }
    }

    /// Installs an SA pair into its reserved slot.
    ///
    /// # Errors
    /// A table is full, or the selectors cannot be expressed.
    pub fn install(
        &mut self,
        sa: &ChildSa,
        replay_window: u32,
        deadline_ns: u64,
        dscp: Option<Dscp>,
    ) -> Result<(), InstallError> {
        let failed = |reason: &dyn std::fmt::Display| InstallError(reason.to_string());
        if let Some(orphan) = self.unfinished.remove(&sa.spi_in) {
            return self.install_again(orphan, sa);
        }
        let slot = self.reserved.get(&sa.spi_in).copied();
        let slot = slot.ok_or_else(|| failed(&"its SPI was not reserved"))?;
        let matches =
            policies::matches(&sa.local_ts, &sa.remote_ts).map_err(|error| failed(&error))?;
        let (peer, owner) = self.peer(sa, dscp)?;
        let config = config(sa, peer, owner, replay_window, deadline_ns)
            .ok_or_else(|| failed(&"its keys or selectors do not fit the table"))?;
        let view = self.view.as_mut().ok_or_else(|| failed(&"there is no dataplane"))?;
        if view.install_sa(slot, &config).is_err() {
            self.untold.push(slot);
        }
        self.reserved.remove(&sa.spi_in);
        let (ike, child) = (sa.ike, sa.id);
        let policies = Vec::new();
        let installed = Installed { slot, ike, child, deadline_ns, matches, policies };
        self.installed.insert(sa.spi_in, installed);
        if sa.outbound && !sa.initiator && self.is_served(sa.spi_in) {
            self.waiting.insert(sa.spi_in, culvert_shm::monotonic_ns());
        } else if sa.outbound
            && let Err(error) = self.enable_outbound(sa.spi_in)
        {
            self.remove(sa.spi_in);
            return Err(error);
        }
        self.replace_orphans(sa);
        Ok(())
    }

    /// Whether other pairs of this process take all that an SA pair would carry.
    fn is_served(&self, spi_in: u32) -> bool {
        let matches = self.installed.get(&spi_in).map(|sa| &sa.matches);
        let served = |wanted: &Match| {
            let mut policies = self.installed.values().flat_map(|sa| &sa.policies);
            // Orphans count there, too, and are about to end.
            self.precedence.contains_key(wanted) && policies.any(|(_, found)| found == wanted)
        };
        matches.is_some_and(|matches| matches.iter().all(served))
    }

    /// Lets those pairs carry packets that have waited for `due`.
    fn end_waiting(&mut self, due: impl Fn(u32, &Installed, u64) -> bool) {
        let waiting = self.waiting.iter();
        let due = waiting.filter(|(spi, since)| {
            self.installed.get(spi).is_none_or(|sa| due(**spi, sa, **since))
        });
        for spi_in in due.map(|(spi_in, _)| *spi_in).collect::<Vec<_>>() {
            self.waiting.remove(&spi_in);
            if let Err(error) = self.enable_outbound(spi_in) {
                tracing::warn!(spi_in = format!("{spi_in:08x}"), %error, "no packet is sent");
            }
        }
    }

    /// Sends packets into an SA pair.
    ///
    /// # Errors
    /// The table of policies is full; those of the pair are taken back.
    pub fn enable_outbound(&mut self, spi_in: u32) -> Result<(), InstallError> {
        let (Some(view), Some(sa)) = (&mut self.view, self.installed.get_mut(&spi_in)) else {
            return Ok(());
        };
        let Some((_, _, config)) = view.sa(sa.slot.index) else { return Ok(()) };
        for found in std::mem::take(&mut sa.matches) {
            let policy = Policy {
                remote: found.remote,
                remote_ports: found.remote_ports,
                local: found.local,
                sa: sa.slot,
                owner: config.owner,
                priority: next_priority(&self.precedence, &found),
            };
            let slot =
                view.install_policy(&policy).map_err(|full| InstallError(full.to_string()))?;
            note(&mut self.precedence, found, policy.priority);
            sa.policies.push((slot, found));
        }
        Ok(())
    }

    /// Takes an SA pair down: first no packet is sent into it, then it is forgotten.
    pub fn remove(&mut self, spi_in: u32) {
        let Some(sa) = self.installed.remove(&spi_in) else { return };
        let carried = |found: &Match| sa.policies.iter().any(|(_, other)| other == found);
        self.end_waiting(|_, successor, _| successor.matches.iter().any(carried));
        let Some(view) = &mut self.view else { return };
        for (slot, found) in sa.policies {
            view.retire_policy(slot);
            forget(&mut self.precedence, &found);
        }
        view.retire_sa(sa.slot);
        self.untold.retain(|slot| *slot != sa.slot);
    }

    /// An SA pair by the SPI that its packets arrive with.
    #[must_use]
    pub fn installed(&self, spi_in: u32) -> Option<&Installed> {
        self.installed.get(&spi_in)
    }

    /// The protocol's name for the SA pair in this slot.
    #[must_use]
    pub fn child_of(&self, slot: SlotRef) -> Option<ChildId> {
        self.installed.values().find(|sa| sa.slot == slot).map(|sa| sa.child)
    }

    /// SA pairs that are past their lifetime.
    #[must_use]
    pub fn expired(&self, now_ns: u64) -> Vec<ChildId> {
        let expired = self.installed.values().filter(|sa| sa.deadline_ns <= now_ns);
        expired.map(|sa| sa.child).collect()
    }

    // Peers.

    /// The peer of an SA and its worker. The first SA of an IKE SA makes the peer.
    fn peer(&mut self, sa: &ChildSa, dscp: Option<Dscp>) -> Result<(SlotRef, u16), InstallError> {
        if let Some(peer) = self.peers.get(&sa.ike) {
            return Ok((peer.slot, peer.owner));
        }
        let path = convert::esp_path(&sa.path);
        // Over TCP the connection's worker, which has to send the stream.
        let owner = path.conn.map_or_else(|| self.worker_for(path.remote), |conn| conn.worker);
        let config = PeerConfig {
            connection: Name::new(&sa.connection),
            remote_id: Name::new(&sa.remote_id.to_string()),
            owner,
            path,
            dscp,
        };
        let view = self.view.as_mut().ok_or_else(|| InstallError("no dataplane".into()))?;
        let slot = view.install_peer(&config).map_err(|full| InstallError(full.to_string()))?;
        self.by_peer.insert(slot, sa.ike);
        self.peers.insert(sa.ike, Peer { slot, owner, path, untold: false });
        Ok((slot, owner))
    }

    /// Sends a peer's packets another way.
    pub fn set_path(&mut self, ike: IkeSaId, path: &ChildPath) {
        let Some(peer) = self.peers.get_mut(&ike) else { return };
        let path = convert::esp_path(path);
        if peer.path == path && !peer.untold {
            return;
        }
        peer.path = path;
        peer.untold = true;
        self.tell_paths();
    }

    /// Tells workers of paths that they do not know yet, as far as their rings have room.
    fn tell_paths(&mut self) {
        let Some(view) = &mut self.view else { return };
        for peer in self.peers.values_mut().filter(|peer| peer.untold) {
            let record = Down::PathSet { peer: peer.slot, path: peer.path };
            peer.untold = view.send(peer.owner, &record).is_err();
        }
    }

    /// Where a worker moved a peer to, and the IKE SA that must follow.
    pub fn moved(&mut self, slot: SlotRef) -> Option<(IkeSaId, Path)> {
        let ike = *self.by_peer.get(&slot)?;
        let path = self.view.as_ref()?.peer_state(slot)?.path;
        let peer = self.peers.get_mut(&ike)?;
        peer.path = path;
        peer.untold = false;
        Some((ike, path))
    }

    /// When an authentic packet last came from a peer.
    #[must_use]
    pub fn last_inbound(&self, ike: IkeSaId) -> Option<Instant> {
        let state = self.view.as_ref()?.peer_state(self.peers.get(&ike)?.slot)?;
        (state.last_authentic_ns > 0).then(|| clock::from_ns(state.last_authentic_ns))
    }

    /// When a packet was last sent to a peer.
    #[must_use]
    pub fn last_outbound(&self, ike: IkeSaId) -> Option<Instant> {
        let view = self.view.as_ref()?;
        let of_peer = self.installed.values().filter(|sa| sa.ike == ike);
        let last_ns = of_peer.filter_map(|sa| Some(view.sa_counts(sa.slot)?.last_out_ns)).max()?;
        (last_ns > 0).then(|| clock::from_ns(last_ns))
    }

    /// Forgets a peer whose IKE SA is gone, with whatever SAs are left of it.
    pub fn forget_peer(&mut self, ike: IkeSaId) {
        let of_ike = self.installed.iter().filter(|(_, sa)| sa.ike == ike);
        let left: Vec<u32> = of_ike.map(|(spi_in, _)| *spi_in).collect();
        left.into_iter().for_each(|spi_in| self.remove(spi_in));
        let Some(peer) = self.peers.remove(&ike) else { return };
        self.by_peer.remove(&peer.slot);
        if let Some(view) = &mut self.view {
            view.retire_peer(peer.slot);
        }
    }

    /// What is due now and then: overwriting retired keys, ending orphans, telling workers what
    /// they had no room for.
    pub fn tend(&mut self, now_ns: u64, dataplane_gone: bool) {
        if self.orphans.values().any(|orphan| orphan.deadline_ns <= now_ns) {
            let ended = self.end_orphans(|orphan| orphan.deadline_ns <= now_ns);
            tracing::info!(ended, "orphaned SAs reached the end of their lifetime");
        }
        self.tell_paths();
        self.end_waiting(|_, _, since| now_ns.saturating_sub(since) >= ANSWER_NS);
        let Some(view) = &mut self.view else { return };
        self.untold.retain(|slot| view.announce_sa(*slot).is_err());
        view.collect(dataplane_gone);
        view.heartbeat(now_ns);
    }
}

/// An SA's slot; `None` if it does not fit.
fn config(
    sa: &ChildSa,
    peer: SlotRef,
    owner: u16,
    replay_window: u32,
    deadline_ns: u64,
) -> Option<SaConfig> {
    Some(SaConfig {
        peer,
        owner,
        algorithm: convert::algorithm(sa.suite.encryption),
        esn: sa.suite.esn,
        mode: convert::mode(&sa.mode),
        replay_window,
        spi_in: sa.spi_in,
        spi_out: sa.spi_out,
        keymat_in: KeyMaterial::new(sa.keymat_in.expose())?,
        keymat_out: KeyMaterial::new(sa.keymat_out.expose())?,
        name: Name::new(&sa.name),
        created_ns: culvert_shm::monotonic_ns(),
        deadline_ns,
        local: policies::selectors(&sa.local_ts).ok()?,
        remote: policies::selectors(&sa.remote_ts).ok()?,
    })
}

/// The priority of one more policy with this match: before all others of the same.
fn next_priority(precedence: &HashMap<Match, Precedence>, found: &Match) -> u32 {
    match precedence.get(found) {
        Some(others) => others.lowest.saturating_sub(1),
        // In the middle of its width, so that there is room below for a long time.
        None => found.width() << WIDTH_SHIFT | 1 << (WIDTH_SHIFT - 1),
    }
}

fn note(precedence: &mut HashMap<Match, Precedence>, found: Match, priority: u32) {
    let entry = precedence.entry(found).or_insert(Precedence { lowest: priority, count: 0 });
    entry.lowest = entry.lowest.min(priority);
    entry.count += 1;
}

fn forget(precedence: &mut HashMap<Match, Precedence>, found: &Match) {
    if let Some(entry) = precedence.get_mut(found) {
        entry.count -= 1;
        if entry.count == 0 {
            precedence.remove(found);
        }
    }
}

#[cfg(test)]
mod tests;
