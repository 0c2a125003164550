//! Where everything lies in the memory.
//!
//! The header says the sizes of the tables; all offsets follow from them. Both processes compute
//! them for themselves, from a [`Layout`] they have checked and copied: nothing in the memory can
//! lead an access out of it.

use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::conn::ConnSlot;
use crate::counters::COUNTERS_MAX;
use crate::peer::PeerSlot;
use crate::policy::PolicySlot;
use crate::ring::Positions;
use crate::sa::SaSlot;
use crate::saved::{SavedBlock, SavedSlot, Shelf};

/// Workers at most.
pub const WORKERS_MAX: u16 = 128;
/// Slots of a table at most.
pub const SLOTS_MAX: u32 = 1 << 20;
/// Octets of a ring at least: two records of the greatest length.
pub const RING_BYTES_MIN: u32 = 1 << 18;
/// Octets of a ring at most.
pub const RING_BYTES_MAX: u32 = 1 << 26;

/// First word of every region: "Culvert" and a NUL.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"Culvert\0");

/// Every section begins on a cache line.
const CACHE_LINE: u64 = 64;
/// The store begins on a page, whatever their size, so that it can be closed to the dataplane.
const PAGE_MAX: u64 = 64 * 1024;

/// The sizes of a region's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Workers of the dataplane, 1 to [`WORKERS_MAX`].
    pub workers: u16,
    /// SA slots, a power of two up to [`SLOTS_MAX`].
    pub sa_slots: u32,
    /// Policy slots, up to [`SLOTS_MAX`].
    pub policy_slots: u32,
    /// Peer slots, up to [`SLOTS_MAX`].
    pub peer_slots: u32,
    /// Connection slots of each worker, up to [`SLOTS_MAX`].
    pub conn_slots: u32,
    /// Octets of each ring (one for each direction and worker), a power of two from
    /// [`RING_BYTES_MIN`] to [`RING_BYTES_MAX`].
    pub ring_bytes: u32,
}

/// Sizes that make no region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The number of workers is 0 or above [`WORKERS_MAX`].
    #[error("{0} workers: there must be 1 to {WORKERS_MAX}")]
    Workers(u16),
    /// A table is empty or has more than [`SLOTS_MAX`] slots.
    #[error("{slots} {table} slots: there must be 1 to {SLOTS_MAX}")]
    Slots {
        /// Which table.
        table: &'static str,
        /// Its slots.
        slots: u32,
    },
    /// The SA slots are no power of two, so an SPI could not hold a slot's index.
    #[error("{0} SA slots: the number must be a power of two")]
    SaSlots(u32),
    /// A ring's size is no power of two, or out of bounds.
    #[error(
        "rings of {0} octets: a power of two from {RING_BYTES_MIN} to {RING_BYTES_MAX} is needed"
    )]
    RingBytes(u32),
}

impl Layout {
    /// Checks the bounds that the fields name.
    ///
    /// # Errors
    /// [`LayoutError`] names the first field that is out of bounds.
    pub fn validate(&self) -> Result<(), LayoutError> {
        if self.workers == 0 || self.workers > WORKERS_MAX {
            return Err(LayoutError::Workers(self.workers));
        }
        let tables = [
            ("SA", self.sa_slots),
            ("policy", self.policy_slots),
            ("peer", self.peer_slots),
            ("connection", self.conn_slots),
        ];
        for (table, slots) in tables {
            if slots == 0 || slots > SLOTS_MAX {
                return Err(LayoutError::Slots { table, slots });
            }
        }
        if !self.sa_slots.is_power_of_two() {
            return Err(LayoutError::SaSlots(self.sa_slots));
        }
        let bounds = RING_BYTES_MIN..=RING_BYTES_MAX;
        if !self.ring_bytes.is_power_of_two() || !bounds.contains(&self.ring_bytes) {
            return Err(LayoutError::RingBytes(self.ring_bytes));
        }
        Ok(())
    }

    /// Slots and blocks of a shelf of the store, which follow from the number of peers.
    pub(crate) fn saved(&self, shelf: Shelf) -> (u32, u32) {
        shelf.size(self.peer_slots)
    }

    /// Octets of a region of these sizes, which must be valid.
    pub fn region_bytes(&self) -> u64 {
        Offsets::of(self).total
    }

    pub(crate) fn to_words(self) -> [u64; LAYOUT_WORDS] {
        [
            u64::from(self.workers),
            u64::from(self.sa_slots),
            u64::from(self.policy_slots),
            u64::from(self.peer_slots),
            u64::from(self.conn_slots),
            u64::from(self.ring_bytes),
        ]
    }

    /// The layout of these words, if it is one.
    pub(crate) fn from_words(words: [u64; LAYOUT_WORDS]) -> Option<Layout> {
        let [workers, rest @ ..] = words;
        let [sa_slots, policy_slots, peer_slots, conn_slots, ring_bytes] =
            rest.map(|word| u32::try_from(word).unwrap_or(u32::MAX));
        let workers = u16::try_from(workers).ok()?;
        let layout = Layout { workers, sa_slots, policy_slots, peer_slots, conn_slots, ring_bytes };
        layout.validate().is_ok().then_some(layout)
    }
}

/// Words of a layout in header and hello.
pub(crate) const LAYOUT_WORDS: usize = 6;

/// The first page: who made it and how it is laid out, then a line of each process.
#[repr(C, align(64))]
pub(crate) struct Header {
    pub(crate) magic: AtomicU64,
    /// [`abi`].
    pub(crate) abi: AtomicU64,
    pub(crate) total: AtomicU64,
    pub(crate) layout: [AtomicU64; LAYOUT_WORDS],
    /// Random, for [`crate::Region::label_key`].
    pub(crate) label_key: [AtomicU64; 2],
    pub(crate) control: ControlLine,
    pub(crate) dataplane: DataplaneLine,
}

/// What this build expects in [`Header::abi`]: version, and fingerprint of the counters.
pub(crate) const fn abi() -> u64 {
    (crate::ABI_VERSION as u64) << 32 | crate::Counter::fingerprint() as u64
}

/// Control's line of the header.
#[repr(C, align(64))]
pub(crate) struct ControlLine {
    /// Lives of the control process so far.
    pub(crate) epoch: AtomicU64,
    /// When control last turned its loop.
    pub(crate) heartbeat_ns: AtomicU64,
    /// Raised whenever control wants the bell to ring once.
    pub(crate) armed: AtomicU64,
    /// The last name that control gave to an SA or a request; none is used twice.
    pub(crate) last_name: AtomicU64,
}

/// The dataplane's line of the header.
#[repr(C, align(64))]
pub(crate) struct DataplaneLine {
    /// Lives of the dataplane so far.
    pub(crate) epoch: AtomicU64,
}

/// A worker's statistics, counters and ring positions.
#[repr(C, align(64))]
pub(crate) struct WorkerBlock {
    pub(crate) cycles_busy: AtomicU64,
    pub(crate) cycles_idle: AtomicU64,
    pub(crate) bursts: AtomicU64,
    pub(crate) heartbeat_ns: AtomicU64,
    /// The dataplane's epoch in which the worker runs; 0: it does not.
    pub(crate) epoch: AtomicU64,
    /// Position in the ring from control that the worker passed at its last batch boundary.
    pub(crate) passed: AtomicU64,
    _pad: [AtomicU64; 2],
    pub(crate) counters: [AtomicU64; COUNTERS_MAX],
    pub(crate) up: Positions,
    pub(crate) down: Positions,
    /// The record of the ring to control that control is acting on.
    pub(crate) acting: Acting,
}

/// Control's note of a record that it is acting on: the ring position shifted up, below it how many
/// control processes have begun to.
#[repr(C, align(64))]
pub(crate) struct Acting(AtomicU64);

/// Bits below the position.
const TRIES_BITS: u32 = 2;

impl Acting {
    /// Begins to act on the record at `position`; the how many-th process this is to do so.
    pub(crate) fn begin(&self, position: u64) -> u64 {
        let before = self.0.load(Ordering::Relaxed);
        let same = before >> TRIES_BITS == position << TRIES_BITS >> TRIES_BITS;
        let tries = if same { (before & ((1 << TRIES_BITS) - 1)) + 1 } else { 1 };
        let tries = tries.min((1 << TRIES_BITS) - 1);
        self.0.store(position << TRIES_BITS | tries, Ordering::Release);
        tries
    }
}

/// Octets from the region's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    pub(crate) sas: u64,
    pub(crate) policies: u64,
    pub(crate) peers: u64,
    pub(crate) workers: u64,
    /// From one worker's sections to the next one's.
    pub(crate) worker_stride: u64,
    /// Within a worker's sections.
    pub(crate) conns: u64,
    pub(crate) up: u64,
    pub(crate) down: u64,
    /// Slots and blocks of each shelf of the store, which is the last section.
    pub(crate) shelves: [(u64, u64); Shelf::ALL.len()],
    pub(crate) total: u64,
}

impl Offsets {
    /// Offsets of a valid layout; with its bounds no sum comes near 2^64.
    pub(crate) fn of(layout: &Layout) -> Offsets {
        let table = |slots: u32, octets: usize| {
            (u64::from(slots) * octets as u64).next_multiple_of(CACHE_LINE)
        };
        let sas = size_of::<Header>() as u64;
        let policies = sas + table(layout.sa_slots, size_of::<SaSlot>());
        let peers = policies + table(layout.policy_slots, size_of::<PolicySlot>());
        let workers = peers + table(layout.peer_slots, size_of::<PeerSlot>());
        let conns = size_of::<WorkerBlock>() as u64;
        let up = conns + table(layout.conn_slots, size_of::<ConnSlot>());
        let down = up + u64::from(layout.ring_bytes);
        let worker_stride = down + u64::from(layout.ring_bytes);
        let workers_end = workers + u64::from(layout.workers) * worker_stride;
        let store = workers_end.next_multiple_of(PAGE_MAX);
        let mut end = store;
        let shelves = Shelf::ALL.map(|shelf| {
            let (slots, blocks) = layout.saved(shelf);
            let saved_slots = end;
            let saved_blocks = saved_slots + table(slots, size_of::<SavedSlot>());
            end = saved_blocks + table(blocks, size_of::<SavedBlock>());
            (saved_slots, saved_blocks)
        });
        // A whole page is left for the alignment, so that the total shows every other size.
        let total = workers_end + PAGE_MAX + (end - store);
        Offsets { sas, policies, peers, workers, worker_stride, conns, up, down, shelves, total }
    }

    /// Where the store begins; it goes to the end.
    pub(crate) fn store(&self) -> u64 {
        self.shelves[0].0
    }
}

// The ABI: a change here is a change of ABI_VERSION.
const _: () = {
    assert!(size_of::<Header>() == 256);
    assert!(size_of::<WorkerBlock>() == 64 + 8 * COUNTERS_MAX + 5 * 64);
    assert!(size_of::<PolicySlot>() == 128);
    assert!(size_of::<PeerSlot>() == 448);
    assert!(size_of::<ConnSlot>() == 128);
    assert!(size_of::<SavedSlot>() == 8);
    assert!(size_of::<SavedBlock>() == 512);
    assert!(size_of::<SaSlot>() == 2304);
    assert!(size_of::<SaSlot>().is_multiple_of(CACHE_LINE as usize));
    assert!(RING_BYTES_MIN as usize >= 2 * (crate::ring::PAYLOAD_OCTETS_MAX + 256));
};
