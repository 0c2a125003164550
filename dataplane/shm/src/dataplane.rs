//! The dataplane's views: one to attach, then one for each worker.

use std::cell::Cell;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use crate::bell::Bell;
use crate::conn::{ConnSlot, ConnWriter};
use crate::counters::Counter;
use crate::layout::WorkerBlock;
use crate::message::{Down, Malformed, Standing, Up, decode_down};
use crate::peer::{PeerConfig, PeerWriter};
use crate::policy::Policy;
use crate::region::Region;
use crate::ring::{RingFull, Scratch};
use crate::sa::{SaConfig, SaWriter, add};
use crate::slot::{SlotRef, SlotState};

/// Why the dataplane cannot attach.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Another dataplane has the region. Two of them would repeat sequence numbers.
    #[error("another dataplane is running with this shared memory: stop it first")]
    Busy,
    /// The region's file could not be locked.
    #[error("the shared memory could not be locked: {0} (is /proc mounted?)")]
    Lock(std::io::Error),
}

/// The dataplane's hold on a region, before it is split among the workers.
pub struct DataplaneView {
    region: Arc<Region>,
    bell: Arc<Bell>,
    lock: Arc<OwnedFd>,
    epoch: u64,
}

impl DataplaneView {
    /// Attaches to a region as its only dataplane: begins a new life (epoch), forgets the
    /// connections of the last one and drops what waits in the rings to the workers. Workers then
    /// rebuild what they need by looking at the tables.
    ///
    /// # Errors
    /// [`AttachError::Busy`] while another dataplane lives, in this process or another.
    pub fn attach(region: Arc<Region>, bell: Arc<Bell>) -> Result<DataplaneView, AttachError> {
        let lock = lock(&region)?;
        if !region.take_dataplane() {
            return Err(AttachError::Busy);
        }
        let epoch = region.header().dataplane.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        for worker in 0..region.layout().workers {
            region.conns(worker).iter().for_each(ConnSlot::erase);
            if let (Some(down), Some(block)) = (region.down(worker), region.worker(worker)) {
                down.discard();
                block.passed.store(down.tail(), Ordering::Release);
                block.epoch.store(0, Ordering::Release);
            }
        }
        Ok(DataplaneView { region, bell, lock: Arc::new(lock), epoch })
    }

    /// The region.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Splits the hold into one view for each worker, to be moved to their threads.
    pub fn into_workers(self) -> Vec<WorkerView> {
        (0..self.region.layout().workers)
            .map(|worker| WorkerView {
                region: Arc::clone(&self.region),
                bell: Arc::clone(&self.bell),
                _lock: Arc::clone(&self.lock),
                worker,
                epoch: self.epoch,
                scratch: Scratch::new(),
                pushed: false,
                rung: self.region.header().control.armed.load(Ordering::Acquire).wrapping_sub(1),
                _one_thread: PhantomData,
            })
            .collect()
    }
}

/// Attempts to lock the region: control's look at the lock ([`Region::has_dataplane`]) holds it for
/// a moment.
const LOCK_ATTEMPTS_MAX: usize = 5;
/// Between two attempts.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Locks the region for one dataplane.
fn lock(region: &Region) -> Result<OwnedFd, AttachError> {
    for _ in 0..LOCK_ATTEMPTS_MAX {
        if let Some(lock) = region.try_lock().map_err(AttachError::Lock)? {
            return Ok(lock);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(AttachError::Busy)
}

/// What a worker finds in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load<T> {
    /// In use.
    Live(SlotRef, T),
    /// Not in use, or no longer: forget what was kept of it.
    Gone,
}

/// One worker's view: the only writer of its block, its connections and the moving halves of the
/// SAs and peers that it owns.
///
/// It can be moved to the worker's thread but not shared, and there is only one for each worker.
pub struct WorkerView {
    region: Arc<Region>,
    bell: Arc<Bell>,
    _lock: Arc<OwnedFd>,
    worker: u16,
    epoch: u64,
    scratch: Scratch,
    pushed: bool,
    /// The arming of the bell that was answered last.
    rung: u64,
    _one_thread: PhantomData<Cell<()>>,
}

impl WorkerView {
    /// The worker's number.
    pub fn worker(&self) -> u16 {
        self.worker
    }

    /// The region.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Begins work: shows the epoch, and tells control that what it knew of this worker's
    /// connections is past.
    ///
    /// # Errors
    /// [`RingFull`] when control could not be told: try again.
    pub fn begin(&mut self) -> Result<(), RingFull> {
        self.block().epoch.store(self.epoch, Ordering::Release);
        self.send(&Up::Restarted { epoch: self.epoch })
    }

    // Tables.

    /// Looks at an SA slot. A live one of this worker's comes with the configuration, keys
    /// included, and its moving half taken up; others' SAs are [`Load::Gone`] for this worker.
    pub fn load_sa(&self, index: u32) -> Load<SaConfig> {
        let Some(slot) = self.region.sas().get(index as usize) else { return Load::Gone };
        match slot.config.read::<SaConfig>() {
            Some((generation, _, config)) if config.owner == self.worker => {
                SaWriter::new(&slot.moving).take_up(generation);
                Load::Live(SlotRef { index, generation }, config)
            }
            _ => Load::Gone,
        }
    }

    /// The moving half of an SA that [`WorkerView::load_sa`] gave; `None` for an index that the
    /// table does not have. For each packet.
    #[inline]
    pub fn sa(&self, index: u32) -> Option<SaWriter<'_>> {
        Some(SaWriter::new(&self.region.sas().get(index as usize)?.moving))
    }

    /// The owner of the live SA with this inbound SPI, whoever it is: who has to open its packets.
    /// A look at three words of the slot.
    #[inline]
    pub fn sa_owner(&self, spi: u32) -> Option<u16> {
        let sas = self.region.sas();
        let slot = sas.get(spi as usize & sas.len().wrapping_sub(1))?;
        let (owner, spi_in) = slot.config.read_part(SaConfig::owner_and_spi)?;
        (spi_in == spi).then_some(owner)
    }

    /// Whether an SA with this inbound SPI, which this worker does not know, may be about to be taken
    /// up: control has given the slot's SPI to a peer, which may use it before control has read that
    /// peer's answer.
    pub fn sa_is_coming(&self, spi: u32) -> bool {
        let sas = self.region.sas();
        let slot = sas.get(spi as usize & sas.len().wrapping_sub(1));
        match slot.and_then(|slot| slot.config.state().1) {
            Some(SlotState::Reserved | SlotState::Installing) => true,
            Some(SlotState::Live) => self.sa_owner(spi).is_some(),
            _ => false,
        }
    }

    /// Whether the SA is still in use: a look at its state word alone.
    #[inline]
    pub fn sa_in_use(&self, sa: SlotRef) -> bool {
        let slot = self.region.sas().get(sa.index as usize);
        slot.is_some_and(|slot| in_use(slot.config.state(), sa.generation))
    }

    /// Looks at a peer slot. A live one of this worker's has its path taken up; others' peers are
    /// [`Load::Gone`] for this worker. The path to use is [`PeerWriter`]'s state, not the
    /// configuration's.
    pub fn load_peer(&self, index: u32) -> Load<(PeerConfig, crate::Path)> {
        let Some(slot) = self.region.peers().get(index as usize) else { return Load::Gone };
        match slot.config.read::<PeerConfig>() {
            Some((generation, _, config)) if config.owner == self.worker => {
                let path = PeerWriter::new(&slot.moving, generation).take_up(&config);
                Load::Live(SlotRef { index, generation }, (config, path))
            }
            _ => Load::Gone,
        }
    }

    /// The moving half of a peer that [`WorkerView::load_peer`] gave.
    #[inline]
    pub fn peer(&self, peer: SlotRef) -> Option<PeerWriter<'_>> {
        let slot = self.region.peers().get(peer.index as usize)?;
        Some(PeerWriter::new(&slot.moving, peer.generation))
    }

    /// Looks at a policy slot.
    pub fn load_policy(&self, index: u32) -> Load<Policy> {
        let slot = self.region.policies().get(index as usize);
        match slot.and_then(|slot| slot.config.read()) {
            Some((generation, _, policy)) => Load::Live(SlotRef { index, generation }, policy),
            None => Load::Gone,
        }
    }

    /// This worker's hand on one of its connection slots.
    #[inline]
    pub fn conn(&self, index: u32) -> Option<ConnWriter<'_>> {
        self.region.conns(self.worker).get(index as usize).map(ConnWriter::new)
    }

    // Rings.

    /// Sends a record of the worker's own to control; the bell rings at the end of the batch.
    ///
    /// # Errors
    /// [`RingFull`] when control does not keep up; count it.
    pub fn send(&mut self, message: &Up<'_>) -> Result<(), RingFull> {
        self.send_for(Standing::Worker, message)
    }

    /// The same for what somebody else has caused: the ring is full for it sooner.
    ///
    /// # Errors
    /// As [`WorkerView::send`].
    pub fn send_for(&mut self, standing: Standing, message: &Up<'_>) -> Result<(), RingFull> {
        message.push(self.region.up(self.worker).ok_or(RingFull)?, standing)?;
        self.pushed = true;
        Ok(())
    }

    /// The next record of control.
    pub fn receive(&mut self) -> Option<Result<Down<'_>, Malformed>> {
        let record = self.region.down(self.worker)?.pop(&mut self.scratch)?;
        Some(decode_down(record))
    }

    /// The end of a batch: everything that was received has been acted on, and nothing is used
    /// any more that was retired before it. Call it with every turn of the loop.
    #[inline]
    pub fn batch_boundary(&mut self) {
        if let Some(down) = self.region.down(self.worker) {
            self.block().passed.store(down.tail(), Ordering::Release);
        }
        if self.pushed {
            self.pushed = false;
            self.ring_bell();
        }
    }

    /// Rings if control has armed the bell since it last rang. [`WorkerView::batch_boundary`] does
    /// it when something was sent.
    fn ring_bell(&mut self) {
        // The records were published before this look, and control arms before it looks at them.
        fence(Ordering::SeqCst);
        let armed = self.region.header().control.armed.load(Ordering::Relaxed);
        if armed != self.rung {
            self.rung = armed;
            self.bell.ring();
        }
    }

    // Statistics.

    /// Adds to a counter.
    #[inline]
    pub fn count(&self, counter: Counter, amount: u64) {
        add(&self.block().counters[counter as usize], amount);
    }

    /// Adds the cycles of a batch.
    #[inline]
    pub fn count_cycles(&self, cycles: u64, busy: bool) {
        let block = self.block();
        if busy {
            add(&block.cycles_busy, cycles);
            add(&block.bursts, 1);
        } else {
            add(&block.cycles_idle, cycles);
        }
    }

    /// Notes that the worker is alive.
    #[inline]
    pub fn heartbeat(&self, now_ns: u64) {
        self.block().heartbeat_ns.store(now_ns, Ordering::Relaxed);
    }

    /// When control last turned its loop, [`crate::monotonic_ns`].
    pub fn control_heartbeat_ns(&self) -> u64 {
        let heartbeat: &AtomicU64 = &self.region.header().control.heartbeat_ns;
        heartbeat.load(Ordering::Relaxed)
    }

    #[inline]
    fn block(&self) -> &WorkerBlock {
        self.region.own_block(self.worker)
    }
}

fn in_use(state: (u32, Option<SlotState>), generation: u32) -> bool {
    state.0 == generation && state.1.is_some_and(SlotState::in_use)
}
