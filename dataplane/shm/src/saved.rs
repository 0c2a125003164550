//! What the control process keeps for the one that follows it: a snapshot of each IKE SA, and what
//! an operator said to the running gateway.
//!
//! The store has a [`Shelf`] for each of the two, so that neither can take the other's room: a table
//! of slots, one for each IKE SA or thing said, and a table of blocks. A slot is one word that names
//! the first block of a snapshot; each block names the next.
//!
//! ```text
//! slot:  0 (nothing) | LOST | first block + 1
//! block: next block + 1, or 0 | words of [octets, checksum, octets…]
//! ```
//!
//! A new snapshot is written into free blocks, and then one store of the slot's word puts it in
//! the old one's place: a writer that dies at any instruction leaves the old one or the new one
//! whole, and blocks that no slot names, which its successor overwrites. Where there is no room
//! for a snapshot its slot says so ([`Saved::Lost`]): an old one must not be taken for the present
//! one, since the numbers in it have been used.
//!
//! Only control reads and writes the store. Snapshots hold keys, so blocks are overwritten with
//! zeros as soon as they are not named any more. The dataplane keeps the memory alive and locked
//! against swapping, but may not touch it (`Region::hide_store`).

use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use siphasher::sip::SipHasher13;
use zeroize::Zeroizing;

use crate::region::Region;

/// A part of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shelf {
    /// Snapshots of IKE SAs, one slot for each peer of the layout.
    IkeSas,
    /// What an operator said to the running gateway: at least [`OPERATOR_SLOTS_MIN`] slots.
    Operator,
}

impl Shelf {
    pub(crate) const ALL: [Shelf; 2] = [Shelf::IkeSas, Shelf::Operator];

    /// Its slots and blocks in a region for so many peers.
    pub(crate) fn size(self, peer_slots: u32) -> (u32, u32) {
        match self {
            Shelf::IkeSas => (peer_slots, peer_slots * BLOCKS_PER_SLOT),
            Shelf::Operator => {
                let slots = peer_slots.max(OPERATOR_SLOTS_MIN);
                (slots, slots)
            }
        }
    }
}

/// Blocks for each slot of [`Shelf::IkeSas`]: on average a snapshot may take half of them, since
/// the next one is written beside it.
pub const BLOCKS_PER_SLOT: u32 = 4;
/// Slots of [`Shelf::Operator`] at least, and as many blocks.
pub const OPERATOR_SLOTS_MIN: u32 = 1024;
/// Octets of a snapshot at most.
pub const SAVED_OCTETS_MAX: usize = 64 * 1024;

/// Words of a block's content.
const CONTENT_WORDS: usize = 63;
/// Words before a snapshot's octets: their number and the checksum.
const HEADER_WORDS: usize = 2;
/// Blocks of a snapshot at most.
const CHAIN_MAX: usize = (SAVED_OCTETS_MAX / 8 + HEADER_WORDS).div_ceil(CONTENT_WORDS);
/// A slot whose snapshot is not to be had.
const LOST: u64 = u64::MAX;

/// A slot's word.
#[repr(C)]
pub(crate) struct SavedSlot(AtomicU64);

/// 512 octets of a snapshot.
#[repr(C, align(64))]
pub(crate) struct SavedBlock {
    next: AtomicU64,
    words: [AtomicU64; CONTENT_WORDS],
}

impl SavedBlock {
    fn erase(&self) {
        self.next.store(0, Ordering::Relaxed);
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// What a slot holds.
pub enum Saved {
    /// A snapshot, as it was given to [`crate::ControlView::save`].
    Octets(Zeroizing<Vec<u8>>),
    /// There was something whose snapshot found no room, or cannot be read.
    Lost,
}

/// Why something was not saved. Its slot is [`Saved::Lost`] then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SaveError {
    /// It is longer than [`SAVED_OCTETS_MAX`].
    #[error("{0} octets are too long for a snapshot, at most {SAVED_OCTETS_MAX} are kept")]
    TooLong(usize),
    /// Too few blocks are free.
    #[error("the store for the next control process is full: raise `peers` in the configuration")]
    Full,
    /// There is no such slot.
    #[error("the store of snapshots has no slot {0}")]
    NoSlot(u32),
}

/// Control's hand on a shelf: which slots and blocks are free.
pub(crate) struct Store {
    shelf: Shelf,
    slots: Vec<u32>,
    blocks: Vec<u32>,
}

impl Store {
    /// Settles what a predecessor left: chains that make no sense are lost, and blocks that no
    /// slot names are overwritten.
    pub(crate) fn open(region: &Region, shelf: Shelf) -> Store {
        let (slots, blocks) = (region.saved_slots(shelf), region.saved_blocks(shelf));
        let mut named = vec![false; blocks.len()];
        let mut free = Vec::new();
        for (index, slot) in (0u32..).zip(slots) {
            match slot.0.load(Ordering::Acquire) {
                0 => free.push(index),
                LOST => {}
                first => {
                    let chain = chain(blocks, first);
                    let sound = chain
                        .as_ref()
                        .is_some_and(|chain| chain.iter().all(|&block| !named[block as usize]));
                    match chain.filter(|_| sound) {
                        Some(chain) => chain.iter().for_each(|&b| named[b as usize] = true),
                        None => slot.0.store(LOST, Ordering::Release),
                    }
                }
            }
        }
        let unnamed = (0u32..).zip(&named).filter(|(_, named)| !**named);
        let unnamed: Vec<u32> = unnamed.map(|(index, _)| index).collect();
        unnamed.iter().for_each(|&index| blocks[index as usize].erase());
        free.reverse();
        Store { shelf, slots: free, blocks: unnamed }
    }

    /// Takes a free slot.
    pub(crate) fn take_slot(&mut self) -> Option<u32> {
        self.slots.pop()
    }

    /// Puts a snapshot in the place of the slot's present one.
    pub(crate) fn write(
        &mut self,
        region: &Region,
        slot: u32,
        octets: &[u8],
    ) -> Result<(), SaveError> {
        let Some(word) = region.saved_slots(self.shelf).get(slot as usize) else {
            return Err(SaveError::NoSlot(slot));
        };
        let needed = (octets.len().div_ceil(8) + HEADER_WORDS).div_ceil(CONTENT_WORDS);
        if octets.len() > SAVED_OCTETS_MAX {
            self.replace(region, word, LOST);
            return Err(SaveError::TooLong(octets.len()));
        }
        if needed > self.blocks.len() {
            // The old one goes first: a death between the two loses this one.
            self.replace(region, word, LOST);
        }
        if needed > self.blocks.len() {
            return Err(SaveError::Full);
        }
        let chain = self.blocks.split_off(self.blocks.len() - needed);
        fill(region.saved_blocks(self.shelf), &chain, octets);
        // Every word of the snapshot is there before the slot names it.
        fence(Ordering::Release);
        let first = chain.first().map_or(0, |&first| u64::from(first) + 1);
        self.replace(region, word, first);
        Ok(())
    }

    /// Overwrites what the slot holds and says so.
    pub(crate) fn lose(&mut self, region: &Region, slot: u32) {
        if let Some(word) = region.saved_slots(self.shelf).get(slot as usize) {
            self.replace(region, word, LOST);
        }
    }

    /// Forgets what the slot holds, and gives the slot back.
    pub(crate) fn free_slot(&mut self, region: &Region, slot: u32) {
        if let Some(word) = region.saved_slots(self.shelf).get(slot as usize) {
            self.replace(region, word, 0);
            self.slots.push(slot);
        }
    }

    /// Lets a slot name something else, and overwrites what it named before.
    fn replace(&mut self, region: &Region, slot: &SavedSlot, value: u64) {
        let blocks = region.saved_blocks(self.shelf);
        let old = slot.0.swap(value, Ordering::AcqRel);
        for block in chain(blocks, old).unwrap_or_default() {
            blocks[block as usize].erase();
            self.blocks.push(block);
        }
    }
}

/// What a slot holds; `None` for nothing.
pub(crate) fn read(region: &Region, shelf: Shelf, slot: u32) -> Option<Saved> {
    let first = region.saved_slots(shelf).get(slot as usize)?.0.load(Ordering::Acquire);
    if first == 0 {
        return None;
    }
    Some(contents(region.saved_blocks(shelf), first).map_or(Saved::Lost, Saved::Octets))
}

/// The blocks of a chain; `None` if it leads out of the table, round in a circle, or is no chain.
fn chain(blocks: &[SavedBlock], first: u64) -> Option<Vec<u32>> {
    let mut chain = Vec::new();
    let mut next = first;
    while next != 0 {
        let index = u32::try_from(next.checked_sub(1)?).ok()?;
        let block = blocks.get(index as usize)?;
        if chain.len() == CHAIN_MAX || chain.contains(&index) {
            return None;
        }
        chain.push(index);
        next = block.next.load(Ordering::Relaxed);
    }
    (!chain.is_empty()).then_some(chain)
}

fn fill(blocks: &[SavedBlock], chain: &[u32], octets: &[u8]) {
    let header = [octets.len() as u64, checksum(octets)];
    let content = octets.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    let mut words = header.into_iter().chain(content);
    for (at, &index) in chain.iter().enumerate() {
        let block = &blocks[index as usize];
        let next = chain.get(at + 1).map_or(0, |&next| u64::from(next) + 1);
        block.next.store(next, Ordering::Relaxed);
        for (shared, word) in block.words.iter().zip(words.by_ref()) {
            shared.store(word, Ordering::Relaxed);
        }
    }
}

fn contents(blocks: &[SavedBlock], first: u64) -> Option<Zeroizing<Vec<u8>>> {
    let chain = chain(blocks, first)?;
    let words = chain.iter().flat_map(|&index| &blocks[index as usize].words);
    let mut words = words.map(|word| word.load(Ordering::Relaxed));
    let octets = usize::try_from(words.next()?).ok().filter(|&len| len <= SAVED_OCTETS_MAX)?;
    let sum = words.next()?;
    // Its room is set aside, so that no copy of a secret stays behind.
    let mut content = Zeroizing::new(Vec::with_capacity(octets.next_multiple_of(8)));
    words.take(octets.div_ceil(8)).for_each(|word| content.extend(word.to_le_bytes()));
    if content.len() < octets {
        return None;
    }
    content.truncate(octets);
    (checksum(&content) == sum).then_some(content)
}

/// Tells damage, not deceit: whoever could forge a snapshot has the keys.
fn checksum(octets: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(octets);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use proptest::prelude::*;

    const LAYOUT: Layout = Layout {
        workers: 1,
        sa_slots: 16,
        policy_slots: 1,
        peer_slots: 4,
        conn_slots: 1,
        ring_bytes: 1 << 18,
    };

    const SHELF: Shelf = Shelf::IkeSas;

    fn region() -> Region {
        Region::create(&LAYOUT).unwrap()
    }

    fn octets(region: &Region, slot: u32) -> Option<Vec<u8>> {
        match read(region, SHELF, slot)? {
            Saved::Octets(octets) => Some(octets.to_vec()),
            Saved::Lost => None,
        }
    }

    fn is_lost(region: &Region, slot: u32) -> bool {
        matches!(read(region, SHELF, slot), Some(Saved::Lost))
    }

    fn holds(region: &Region, mark: u64) -> bool {
        let blocks = region.saved_blocks(SHELF).iter();
        blocks.flat_map(|block| &block.words).any(|word| word.load(Ordering::Relaxed) == mark)
    }

    #[test]
    fn a_snapshot_replaces_the_one_before_and_leaves_nothing_of_it() {
        let region = region();
        let mut store = Store::open(&region, SHELF);
        let slot = store.take_slot().unwrap();
        let long: Vec<u8> = (0..1500u32).map(|n| n as u8).collect();
        for content in [&b"first"[..], &[], &long, &[0x77; 8]] {
            store.write(&region, slot, content).unwrap();
            assert_eq!(octets(&region, slot).unwrap(), content);
        }
        let mark = 0x7777_7777_7777_7777;
        assert!(holds(&region, mark));
        store.free_slot(&region, slot);
        assert!(read(&region, SHELF, slot).is_none() && !holds(&region, mark));
        let all = (LAYOUT.peer_slots as usize, (LAYOUT.peer_slots * BLOCKS_PER_SLOT) as usize);
        assert_eq!((store.slots.len(), store.blocks.len()), all, "everything is free again");
    }

    /// What has no room must not leave an older state to be taken up.
    #[test]
    fn what_finds_no_room_is_lost_and_not_old() {
        let region = region();
        let mut store = Store::open(&region, SHELF);
        let (one, two) = (store.take_slot().unwrap(), store.take_slot().unwrap());
        store.write(&region, one, &[1; 3_000]).unwrap();
        store.write(&region, two, &[2; 2_500]).unwrap();
        assert_eq!(store.write(&region, two, &[3; 5_500]), Err(SaveError::Full));
        assert!(is_lost(&region, two));
        assert_eq!(octets(&region, one).unwrap(), [1; 3_000]);
        // In place of the old one there is room; it is just not beside it any more.
        store.write(&region, one, &[4; 6_000]).unwrap();
        assert_eq!(octets(&region, one).unwrap(), [4; 6_000]);
        let long = vec![0; SAVED_OCTETS_MAX + 1];
        assert_eq!(store.write(&region, one, &long), Err(SaveError::TooLong(long.len())));
        assert!(is_lost(&region, one));
    }

    /// A writer that dies before the slot names the new blocks, after each word that it stores.
    #[test]
    fn a_writer_that_dies_in_the_middle_leaves_the_old_snapshot_and_its_successor_cleans_up() {
        let new: Vec<u8> = (0..700u32).map(|n| (n % 250) as u8 + 1).collect();
        for dead_after in 0..2 * 64 {
            let region = region();
            let mut store = Store::open(&region, SHELF);
            let slot = store.take_slot().unwrap();
            store.write(&region, slot, b"old").unwrap();
            let chain = store.blocks.split_off(store.blocks.len() - 2);
            fill(region.saved_blocks(SHELF), &chain, &new);
            // The words that it did not come to.
            let words = chain.iter().flat_map(|&index| {
                let block = &region.saved_blocks(SHELF)[index as usize];
                std::iter::once(&block.next).chain(&block.words)
            });
            words.skip(dead_after).for_each(|word| word.store(0, Ordering::Relaxed));
            drop(store);
            assert_eq!(octets(&region, slot).unwrap(), b"old");
            let store = Store::open(&region, SHELF);
            assert_eq!(octets(&region, slot).unwrap(), b"old");
            assert_eq!(store.blocks.len() as u32, LAYOUT.peer_slots * BLOCKS_PER_SLOT - 1);
            let named = region.saved_slots(SHELF)[slot as usize].0.load(Ordering::Relaxed) - 1;
            for (index, block) in region.saved_blocks(SHELF).iter().enumerate() {
                let clean = block.words.iter().all(|word| word.load(Ordering::Relaxed) == 0);
                assert_eq!(clean, index as u64 != named, "block {index}");
            }
        }
    }

    /// Dead between naming the new blocks and overwriting the old ones.
    #[test]
    fn a_writer_that_dies_after_the_swap_leaves_the_new_snapshot() {
        let region = region();
        let mut store = Store::open(&region, SHELF);
        let slot = store.take_slot().unwrap();
        store.write(&region, slot, &[0x55; 8]).unwrap();
        let chain = store.blocks.split_off(store.blocks.len() - 1);
        fill(region.saved_blocks(SHELF), &chain, b"new");
        region.saved_slots(SHELF)[slot as usize]
            .0
            .store(u64::from(chain[0]) + 1, Ordering::Release);
        drop(store);
        assert_eq!(octets(&region, slot).unwrap(), b"new");
        Store::open(&region, SHELF);
        assert_eq!(octets(&region, slot).unwrap(), b"new");
        assert!(!holds(&region, 0x5555_5555_5555_5555), "the old one's keys are gone");
    }

    /// Neither what an operator says nor IKE SAs can take the other's room.
    #[test]
    fn the_shelves_are_apart() {
        let region = region();
        let mut sas = Store::open(&region, SHELF);
        let mut operator = Store::open(&region, Shelf::Operator);
        let slot = sas.take_slot().unwrap();
        sas.write(&region, slot, b"an IKE SA").unwrap();
        let mut said = Vec::new();
        let full = loop {
            said.push(operator.take_slot().unwrap());
            if let Err(error) = operator.write(&region, *said.last().unwrap(), &[1; 2_000]) {
                break error;
            }
        };
        assert_eq!((full, said.len()), (SaveError::Full, OPERATOR_SLOTS_MIN as usize / 4 + 1));
        assert_eq!(octets(&region, slot).unwrap(), b"an IKE SA");
        sas.write(&region, slot, &[2; 3_500]).unwrap();
        assert!(matches!(read(&region, Shelf::Operator, said[0]), Some(Saved::Octets(_))));
    }

    #[test]
    fn a_damaged_snapshot_is_lost() {
        let region = region();
        let mut store = Store::open(&region, SHELF);
        let (one, two) = (store.take_slot().unwrap(), store.take_slot().unwrap());
        store.write(&region, one, &[9; 100]).unwrap();
        store.write(&region, two, &[8; 100]).unwrap();
        let word = |slot: u32| region.saved_slots(SHELF)[slot as usize].0.load(Ordering::Relaxed);
        let block = &region.saved_blocks(SHELF)[word(one) as usize - 1];
        block.words[5].fetch_xor(1 << 40, Ordering::Relaxed);
        assert!(is_lost(&region, one));
        // Two slots with one chain: the second has lost its own.
        region.saved_slots(SHELF)[two as usize].0.store(word(one), Ordering::Relaxed);
        Store::open(&region, SHELF);
        assert!(is_lost(&region, two));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever lies in the store is read without harm, and the store can be used afterwards.
        #[test]
        fn nonsense_is_settled(
            slots in proptest::collection::vec(prop_oneof![0u64..30, any::<u64>()], 4),
            nexts in proptest::collection::vec(prop_oneof![0u64..30, any::<u64>()], 16),
            lengths in proptest::collection::vec(prop_oneof![0u64..5000, any::<u64>()], 16),
        ) {
            let region = region();
            for (slot, word) in region.saved_slots(SHELF).iter().zip(slots) {
                slot.0.store(word, Ordering::Relaxed);
            }
            for ((block, next), length) in region.saved_blocks(SHELF).iter().zip(nexts).zip(lengths) {
                block.next.store(next, Ordering::Relaxed);
                block.words[0].store(length, Ordering::Relaxed);
            }
            let mut store = Store::open(&region, SHELF);
            for slot in 0..LAYOUT.peer_slots {
                let _ = read(&region, SHELF, slot);
            }
            let taken = LAYOUT.peer_slots as usize - store.slots.len();
            for slot in (0..LAYOUT.peer_slots).filter(|_| taken > 0) {
                if read(&region, SHELF, slot).is_some() {
                    store.free_slot(&region, slot);
                }
            }
            prop_assert_eq!(store.slots.len() as u32, LAYOUT.peer_slots);
            prop_assert_eq!(store.blocks.len() as u32, LAYOUT.peer_slots * BLOCKS_PER_SLOT);
            let slot = store.take_slot().unwrap();
            store.write(&region, slot, &[7; 3_000]).unwrap();
            prop_assert_eq!(octets(&region, slot).unwrap(), [7; 3_000]);
        }
    }
}
