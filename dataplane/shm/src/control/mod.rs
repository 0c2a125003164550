//! Control's view: everything that the control process writes.

mod rings;
mod succession;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::conn::{ConnInfo, ConnState, ConnStats};
use crate::message::Down;
use crate::peer::{PeerConfig, PeerState};
use crate::policy::Policy;
use crate::region::Region;
use crate::ring::{RingFull, Scratch};
use crate::sa::{SPI_MIN, SaConfig, SaCounts};
use crate::saved::{Shelf, Store};
use crate::slot::{Slot, SlotRef, SlotState, next_generation};
use crate::types::ConnRef;

/// A table has no free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table of {table} is full ({slots} slots): raise its size in the configuration")]
pub struct TableFull {
    /// Which table.
    pub table: &'static str,
    /// Its size.
    pub slots: usize,
}

/// Why an SA was not installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The slot is not reserved under this generation: it was retired meanwhile, or never reserved.
    #[error("the SA's slot is not reserved any more")]
    NotReserved,
    /// The configuration's inbound SPI does not name the slot.
    #[error("the SPI {0:#010x} does not name the SA's slot")]
    WrongSpi(u32),
    /// It is installed, but its owner could not be told: announce it later.
    #[error(transparent)]
    RingFull(#[from] RingFull),
}

/// Which table a retired slot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    Sa,
    Policy,
    Peer,
}

/// A slot on its way out: marked, not yet passed by every worker.
struct Retired {
    table: Table,
    slot: SlotRef,
    /// For each worker the ring position behind the record that tells it; `None`: not told yet.
    told: Box<[Option<u64>]>,
}

/// What [`ControlView::collect`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Slots overwritten and free again.
    pub freed: usize,
    /// Slots that still wait for a worker.
    pub waiting: usize,
}

/// What the control process writes and reads. There is one for each region; it cannot be cloned.
///
/// Every change tells the workers with a `*Changed` record. When a worker's ring is full the
/// change stands; the worker finds it when it is told again ([`ControlView::announce_sa`],
/// [`ControlView::collect`]) or starts anew.
pub struct ControlView {
    region: Arc<Region>,
    scratch: Scratch,
    free_sas: Vec<u32>,
    free_policies: Vec<u32>,
    free_peers: Vec<u32>,
    retired: Vec<Retired>,
    /// Workers, by number, and the policies that they still have to be told of.
    untold_policies: BTreeSet<(u16, u32)>,
    /// Owners, by number, and the claimed SAs that they still have to be told of.
    untold_sas: BTreeSet<(u16, u32)>,
    stores: [Store; Shelf::ALL.len()],
    /// SA slots that a predecessor had reserved; nobody has claimed them yet.
    left_reserved: Vec<u32>,
    next_worker: u16,
    /// The worker whose record was received last, and the position behind it.
    received: Option<(u16, u64)>,
}

impl ControlView {
    /// Control's view of a region, new or adopted; `None` when this process already has it, or met it
    /// as the dataplane.
    ///
    /// Free slots are found by looking at all. What a dead predecessor left is settled: slots that
    /// it had half written are erased, live ones become orphans (their traffic goes on), retiring ones
    /// go on retiring. What an IKE SA that is restored still needs is to be claimed; then
    /// [`ControlView::release_unclaimed`] gives the SA slots free that were only reserved.
    pub fn new(region: Arc<Region>) -> Option<ControlView> {
        if !region.take_control() {
            return None;
        }
        let line = &region.header().control;
        line.epoch.fetch_add(1, Ordering::AcqRel);
        let stores = Shelf::ALL.map(|shelf| Store::open(&region, shelf));
        let mut view = ControlView {
            region,
            scratch: Scratch::new(),
            free_sas: Vec::new(),
            free_policies: Vec::new(),
            free_peers: Vec::new(),
            retired: Vec::new(),
            untold_policies: BTreeSet::new(),
            untold_sas: BTreeSet::new(),
            stores,
            left_reserved: Vec::new(),
            next_worker: 0,
            received: None,
        };
        view.settle();
        Some(view)
    }

    fn settle(&mut self) {
        let region = Arc::clone(&self.region);
        let workers = usize::from(region.layout().workers);
        let mut retired = Vec::new();
        let mut retire = |table, slot| {
            retired.push(Retired { table, slot, told: vec![None; workers].into() });
        };
        let sas = region.sas().iter().map(|slot| &slot.config);
        self.left_reserved = succession::reserved(sas.clone());
        self.free_sas = settle_table(sas, |slot| retire(Table::Sa, slot));
        let policies = region.policies().iter().map(|slot| &slot.config);
        self.free_policies = settle_table(policies, |slot| retire(Table::Policy, slot));
        let peers = region.peers().iter().map(|slot| &slot.config);
        self.free_peers = settle_table(peers, |slot| retire(Table::Peer, slot));
        self.retired = retired;
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    // SAs.

    /// Reserves an SA slot and gives its inbound SPI: `random`'s high bits, the index below.
    ///
    /// `random` must be unpredictable. The SPI is never one of the reserved ones, 0 to 255
    /// (RFC 4303, 2.1).
    ///
    /// # Errors
    /// [`TableFull`] when no slot is free.
    pub fn reserve_sa(&mut self, random: u32) -> Result<(SlotRef, u32), TableFull> {
        let slots = self.region.sas();
        let full = TableFull { table: "SAs", slots: slots.len() };
        let index = self.free_sas.pop().ok_or(full)?;
        let slot = &slots[index as usize].config;
        let generation = next_generation(slot.state().0);
        slot.set_state(generation, SlotState::Reserved);
        let mask = slots.len() as u32 - 1;
        let mut spi = random & !mask | index;
        if spi < SPI_MIN {
            spi |= SPI_MIN.max(slots.len() as u32);
        }
        Ok((SlotRef { index, generation }, spi))
    }

    /// Fills a reserved slot and tells the owner.
    ///
    /// # Errors
    /// [`InstallError`]; after [`InstallError::RingFull`] the SA is installed, and
    /// [`ControlView::announce_sa`] tells the owner later.
    pub fn install_sa(&mut self, sa: SlotRef, config: &SaConfig) -> Result<(), InstallError> {
        let slots = self.region.sas();
        let slot = slots.get(sa.index as usize).ok_or(InstallError::NotReserved)?;
        if slot.config.state() != (sa.generation, Some(SlotState::Reserved)) {
            return Err(InstallError::NotReserved);
        }
        if config.spi_in < SPI_MIN || config.spi_in & (slots.len() as u32 - 1) != sa.index {
            return Err(InstallError::WrongSpi(config.spi_in));
        }
        slot.config.publish(sa.generation, SlotState::Live, config);
        Ok(self.send(config.owner, &Down::SaChanged { index: sa.index })?)
    }

    /// Tells the owner of an SA to look at it again.
    ///
    /// # Errors
    /// [`RingFull`] when it could not be told.
    pub fn announce_sa(&mut self, sa: SlotRef) -> Result<(), RingFull> {
        match self.sa(sa.index) {
            Some((_, _, config)) => self.send(config.owner, &Down::SaChanged { index: sa.index }),
            None => Ok(()),
        }
    }

    /// Ends an SA, or gives back a reserved one. Its keys are overwritten by
    /// [`ControlView::collect`].
    pub fn retire_sa(&mut self, sa: SlotRef) {
        self.retire(Table::Sa, sa);
    }

    /// An SA in use: generation, state, configuration.
    pub fn sa(&self, index: u32) -> Option<(SlotRef, SlotState, SaConfig)> {
        let (generation, state, config) = self.region.sas().get(index as usize)?.config.read()?;
        Some((SlotRef { index, generation }, state, config))
    }

    /// What an SA has done; `None` before its owner has taken it up.
    pub fn sa_counts(&self, sa: SlotRef) -> Option<SaCounts> {
        self.region.sas().get(sa.index as usize)?.moving.counts(sa.generation)
    }

    // Peers.

    /// Fills a peer slot and tells the owner.
    ///
    /// # Errors
    /// [`TableFull`] when no slot is free. That the owner could not be told is no error here: it
    /// looks at the peer when it takes up the first SA.
    pub fn install_peer(&mut self, config: &PeerConfig) -> Result<SlotRef, TableFull> {
        let slots = self.region.peers();
        let full = TableFull { table: "peers", slots: slots.len() };
        let index = self.free_peers.pop().ok_or(full)?;
        let slot = &slots[index as usize].config;
        let generation = next_generation(slot.state().0);
        slot.publish(generation, SlotState::Live, config);
        let _ = self.send(config.owner, &Down::PeerChanged { index });
        Ok(SlotRef { index, generation })
    }

    /// Ends a peer; retire its SAs first.
    pub fn retire_peer(&mut self, peer: SlotRef) {
        self.retire(Table::Peer, peer);
    }

    /// A peer in use: generation, state, configuration.
    pub fn peer(&self, index: u32) -> Option<(SlotRef, SlotState, PeerConfig)> {
        let (generation, state, config) = self.region.peers().get(index as usize)?.config.read()?;
        Some((SlotRef { index, generation }, state, config))
    }

    /// Where a peer is now; `None` before its owner has taken it up.
    pub fn peer_state(&self, peer: SlotRef) -> Option<PeerState> {
        self.region.peers().get(peer.index as usize)?.moving.state(peer.generation)
    }

    // Policies.

    /// Fills a policy slot and tells all workers; one whose ring is full is told by
    /// [`ControlView::collect`].
    ///
    /// # Errors
    /// [`TableFull`] when no slot is free.
    pub fn install_policy(&mut self, policy: &Policy) -> Result<SlotRef, TableFull> {
        let slots = self.region.policies();
        let full = TableFull { table: "policies", slots: slots.len() };
        let index = self.free_policies.pop().ok_or(full)?;
        let slot = &slots[index as usize].config;
        let generation = next_generation(slot.state().0);
        slot.publish(generation, SlotState::Live, policy);
        self.announce_policy(index);
        Ok(SlotRef { index, generation })
    }

    /// Ends a policy.
    pub fn retire_policy(&mut self, policy: SlotRef) {
        self.retire(Table::Policy, policy);
    }

    /// A policy in use: generation, state, value.
    pub fn policy(&self, index: u32) -> Option<(SlotRef, SlotState, Policy)> {
        let (generation, state, policy) =
            self.region.policies().get(index as usize)?.config.read()?;
        Some((SlotRef { index, generation }, state, policy))
    }

    // Retiring.

    fn retire(&mut self, table: Table, slot: SlotRef) {
        let (generation, state) = self.state(table, slot.index);
        let retirable =
            matches!(state, Some(SlotState::Reserved | SlotState::Live | SlotState::Orphan));
        if generation != slot.generation || !retirable {
            return;
        }
        if state == Some(SlotState::Reserved) {
            // No worker has seen it.
            self.free(table, slot);
            return;
        }
        self.set_state(table, slot, SlotState::Retiring);
        let workers = usize::from(self.region.layout().workers);
        self.retired.push(Retired { table, slot, told: vec![None; workers].into() });
        self.tell_retired();
    }

    /// Overwrites and frees the retired slots that every worker has passed, and tells workers of claimed
    /// slots and of the policies for which their rings had no room.
    ///
    /// Call it now and then, and with `dataplane_gone` while no dataplane is linked: nobody can be
    /// using a slot then. A dataplane that lives on without its link is still waited for, since a
    /// slot given to another SA under its hands could repeat a sequence number.
    pub fn collect(&mut self, dataplane_gone: bool) -> Collected {
        self.tell_policies();
        self.tell_sas();
        if self.retired.is_empty() {
            return Collected::default();
        }
        self.tell_retired();
        let dataplane_gone = dataplane_gone && !self.region.has_dataplane();
        let mut waiting = Vec::new();
        let mut freed = 0;
        for retired in std::mem::take(&mut self.retired) {
            if dataplane_gone || self.is_passed(&retired) {
                self.free(retired.table, retired.slot);
                freed += 1;
            } else {
                waiting.push(retired);
            }
        }
        self.retired = waiting;
        Collected { freed, waiting: self.retired.len() }
    }

    /// Tells the workers that have not been told yet, as far as their rings have room.
    fn tell_retired(&mut self) {
        let mut retired = std::mem::take(&mut self.retired);
        for entry in &mut retired {
            let index = entry.slot.index;
            let record = match entry.table {
                Table::Sa => Down::SaChanged { index },
                Table::Policy => Down::PolicyChanged { index },
                Table::Peer => Down::PeerChanged { index },
            };
            for (worker, told) in (0u16..).zip(entry.told.iter_mut()) {
                if told.is_none() && self.send(worker, &record).is_ok() {
                    *told = self.region.down(worker).map(|ring| ring.head());
                }
            }
        }
        self.retired = retired;
    }

    fn is_passed(&self, retired: &Retired) -> bool {
        (0u16..).zip(&retired.told).all(|(worker, told)| {
            let passed = self.region.worker(worker).map(|block| &block.passed);
            match (told, passed) {
                // Positions only grow; compared as serial numbers in case they ever wrap.
                (Some(told), Some(passed)) => {
                    passed.load(Ordering::Acquire).wrapping_sub(*told) < u64::MAX / 2
                }
                _ => false,
            }
        })
    }

    fn state(&self, table: Table, index: u32) -> (u32, Option<SlotState>) {
        let index = index as usize;
        match table {
            Table::Sa => self.region.sas().get(index).map(|slot| slot.config.state()),
            Table::Policy => self.region.policies().get(index).map(|slot| slot.config.state()),
            Table::Peer => self.region.peers().get(index).map(|slot| slot.config.state()),
        }
        .unwrap_or((0, None))
    }

    fn set_state(&self, table: Table, slot: SlotRef, state: SlotState) {
        let index = slot.index as usize;
        match table {
            Table::Sa => self.region.sas()[index].config.set_state(slot.generation, state),
            Table::Policy => {
                self.region.policies()[index].config.set_state(slot.generation, state);
            }
            Table::Peer => self.region.peers()[index].config.set_state(slot.generation, state),
        }
    }

    fn free(&mut self, table: Table, slot: SlotRef) {
        let index = slot.index as usize;
        let free = match table {
            Table::Sa => {
                self.region.sas()[index].config.erase(slot.generation);
                &mut self.free_sas
            }
            Table::Policy => {
                self.region.policies()[index].config.erase(slot.generation);
                &mut self.free_policies
            }
            Table::Peer => {
                self.region.peers()[index].config.erase(slot.generation);
                &mut self.free_peers
            }
        };
        free.push(slot.index);
    }

    // What the dataplane shows.

    /// The dataplane's life; another number means that it was restarted.
    pub fn dataplane_epoch(&self) -> u64 {
        self.region.header().dataplane.epoch.load(Ordering::Acquire)
    }

    /// A connection in use.
    pub fn conn(
        &self,
        worker: u16,
        index: u32,
    ) -> Option<(ConnRef, ConnState, ConnInfo, ConnStats)> {
        let slot = self.region.conns(worker).get(index as usize)?;
        let (generation, state, info, stats) = slot.read()?;
        Some((ConnRef { worker, index, generation }, state, info, stats))
    }

    /// The worker that should own a peer of UDP or native ESP: any will do, so they are spread by
    /// address.
    pub fn owner_for(&self, remote: SocketAddr) -> u16 {
        let octets = match remote.ip() {
            std::net::IpAddr::V4(v4) => u128::from(v4.to_bits()),
            std::net::IpAddr::V6(v6) => v6.to_bits(),
        };
        let folded = (octets as u64 ^ (octets >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((folded >> 32) % u64::from(self.region.layout().workers)) as u16
    }
}

/// Settles what a predecessor left in a table; the free slots, lowest last.
fn settle_table<'a, const N: usize>(
    slots: impl Iterator<Item = &'a Slot<N>>,
    mut retire: impl FnMut(SlotRef),
) -> Vec<u32> {
    let mut free = Vec::new();
    for (index, slot) in (0u32..).zip(slots) {
        let (generation, state) = slot.state();
        match state {
            Some(SlotState::Free) => free.push(index),
            Some(SlotState::Live | SlotState::Orphan) => {
                slot.set_state(generation, SlotState::Orphan);
            }
            Some(SlotState::Retiring) => retire(SlotRef { index, generation }),
            // Whoever comes back for it claims it.
            Some(SlotState::Reserved) => {}
            Some(SlotState::Installing) | None => {
                slot.erase(generation);
                free.push(index);
            }
        }
    }
    free.reverse();
    free
}
