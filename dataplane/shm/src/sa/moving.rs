//! The owner worker's half of an SA slot: what moves with every packet.

use std::sync::atomic::{AtomicU64, Ordering};

use super::REPLAY_WORDS;
use super::sequence::SequenceCounter;

/// Why a packet of an SA was dropped, as the SA's own counts tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum SaDrop {
    /// Received before, or behind the replay window.
    Replay,
    /// The ICV is wrong.
    Icv,
    /// The packet's form is wrong: length, padding, next header.
    Malformed,
    /// The inner packet is outside the selectors.
    Selector,
    /// The SA is past its deadline.
    Expired,
    /// No sequence number is left.
    Exhausted,
    /// The path could not take the packet: no connection, no room, no route.
    Path,
}

impl SaDrop {
    /// All of them, in the order of [`SaCounts::drops`].
    pub const ALL: [SaDrop; 7] = [
        SaDrop::Replay,
        SaDrop::Icv,
        SaDrop::Malformed,
        SaDrop::Selector,
        SaDrop::Expired,
        SaDrop::Exhausted,
        SaDrop::Path,
    ];

    /// Its name in tables and metrics.
    pub fn name(self) -> &'static str {
        match self {
            SaDrop::Replay => "replay",
            SaDrop::Icv => "icv",
            SaDrop::Malformed => "malformed",
            SaDrop::Selector => "selector",
            SaDrop::Expired => "expired",
            SaDrop::Exhausted => "exhausted",
            SaDrop::Path => "path",
        }
    }
}

/// Counts of one direction.
#[repr(C)]
struct Flow {
    packets: AtomicU64,
    octets: AtomicU64,
    last_ns: AtomicU64,
}

/// The owner worker's half of an SA slot.
#[repr(C, align(64))]
pub(crate) struct SaMoving {
    // Outbound.
    generation: AtomicU64,
    next_sequence: AtomicU64,
    outbound: Flow,
    _outbound_pad: [AtomicU64; 3],
    // Inbound.
    replay_top: AtomicU64,
    inbound: Flow,
    _inbound_pad: [AtomicU64; 4],
    replay_bits: [AtomicU64; REPLAY_WORDS],
    drops: [AtomicU64; 8],
}

/// What an SA has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaCounts {
    /// Packets opened and let through.
    pub packets_in: u64,
    /// Octets of inner packets that were opened and let through.
    pub octets_in: u64,
    /// When the last packet came in, [`crate::monotonic_ns`]; 0: none yet.
    pub last_in_ns: u64,
    /// Packets sealed.
    pub packets_out: u64,
    /// Octets of inner packets that were sealed.
    pub octets_out: u64,
    /// When the last packet went out, [`crate::monotonic_ns`]; 0: none yet.
    pub last_out_ns: u64,
    /// The sequence number of the next packet out.
    pub next_sequence: u64,
    /// The highest sequence number received.
    pub replay_top: u64,
    /// Dropped packets, in the order of [`SaDrop::ALL`].
    pub drops: [u64; SaDrop::ALL.len()],
}

impl SaMoving {
    /// The counts, if they are those of this generation; `None` before the worker has taken the
    /// SA up. Each number is whole; together they are as of nearly the same time.
    pub(crate) fn counts(&self, generation: u32) -> Option<SaCounts> {
        if self.generation.load(Ordering::Acquire) != u64::from(generation) {
            return None;
        }
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let mut drops = [0; SaDrop::ALL.len()];
        for (count, value) in drops.iter_mut().zip(&self.drops) {
            *count = get(value);
        }
        Some(SaCounts {
            packets_in: get(&self.inbound.packets),
            octets_in: get(&self.inbound.octets),
            last_in_ns: get(&self.inbound.last_ns),
            packets_out: get(&self.outbound.packets),
            octets_out: get(&self.outbound.octets),
            last_out_ns: get(&self.outbound.last_ns),
            next_sequence: get(&self.next_sequence),
            replay_top: get(&self.replay_top),
            drops,
        })
    }
}

/// Adds to a count that has only this writer.
#[inline]
pub(crate) fn add(count: &AtomicU64, amount: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// The owner worker's hand on an SA slot. Not `Sync`: it belongs to its worker's thread.
#[derive(Clone, Copy)]
pub struct SaWriter<'a> {
    moving: &'a SaMoving,
    _one_thread: std::marker::PhantomData<&'a std::cell::Cell<()>>,
}

impl<'a> SaWriter<'a> {
    pub(crate) fn new(moving: &'a SaMoving) -> SaWriter<'a> {
        SaWriter { moving, _one_thread: std::marker::PhantomData }
    }

    /// Takes up the SA of `generation`: goes on with its numbers and window if they are already
    /// that generation's, else starts afresh. Dying in the middle starts afresh again, and no
    /// number was used in between.
    pub(crate) fn take_up(&self, generation: u32) {
        let moving = self.moving;
        if moving.generation.load(Ordering::Acquire) == u64::from(generation) {
            return;
        }
        moving.generation.store(0, Ordering::Release);
        // A window's and a flow's words below must not be seen as the old generation's.
        std::sync::atomic::fence(Ordering::Release);
        moving.next_sequence.store(1, Ordering::Relaxed);
        moving.replay_top.store(0, Ordering::Relaxed);
        let flows = [&moving.outbound, &moving.inbound];
        let flow_words =
            flows.into_iter().flat_map(|flow| [&flow.packets, &flow.octets, &flow.last_ns]);
        for word in flow_words.chain(&moving.replay_bits).chain(&moving.drops) {
            word.store(0, Ordering::Relaxed);
        }
        moving.generation.store(u64::from(generation), Ordering::Release);
    }

    /// The outbound sequence number's counter.
    #[inline]
    pub fn sequence(&self) -> SequenceCounter<'a> {
        SequenceCounter::new(&self.moving.next_sequence)
    }

    /// The replay window's storage: the highest number received, and [`REPLAY_WORDS`] words of bits.
    #[inline]
    pub fn replay(&self) -> (&'a AtomicU64, &'a [AtomicU64]) {
        (&self.moving.replay_top, &self.moving.replay_bits)
    }

    /// Counts an opened packet of `octets` inner octets.
    #[inline]
    pub fn count_in(&self, octets: u64, now_ns: u64) {
        count(&self.moving.inbound, octets, now_ns);
    }

    /// Counts a sealed packet of `octets` inner octets.
    #[inline]
    pub fn count_out(&self, octets: u64, now_ns: u64) {
        count(&self.moving.outbound, octets, now_ns);
    }

    /// Counts a dropped packet.
    #[inline]
    pub fn count_drop(&self, reason: SaDrop) {
        add(&self.moving.drops[reason as usize], 1);
    }
}

#[inline]
fn count(flow: &Flow, octets: u64, now_ns: u64) {
    add(&flow.packets, 1);
    add(&flow.octets, octets);
    flow.last_ns.store(now_ns, Ordering::Relaxed);
}
