//! Slots: an index, a generation and a state, and values that are read under the state word.
//!
//! A slot's words change only while its state is not readable. The writer sets the state to
//! [`SlotState::Installing`], writes, and publishes; a reader copies between two looks at the
//! state word and keeps the copy only if the word was the same both times. Generation and state
//! share one word, so a slot that was freed and filled again in between is noticed too.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use zeroize::Zeroize;

use crate::words::{Record, WordReader, WordWriter};

/// Looks at a slot whose state keeps changing before the reader gives up.
const READ_ATTEMPTS_MAX: usize = 64;

/// A slot of a table as it was at one time: a later use of the same index has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRef {
    /// Index in the table.
    pub index: u32,
    /// Generation of the index, from 1.
    pub generation: u32,
}

impl fmt::Display for SlotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

impl Record for SlotRef {
    const WORDS: usize = 1;

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put_pair(self.index, self.generation);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<SlotRef> {
        let (index, generation) = words.take_pair()?;
        Some(SlotRef { index, generation })
    }
}

/// What a slot is being used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SlotState {
    /// Nobody's.
    Free = 0,
    /// Named (an SPI was given out), nothing written yet.
    Reserved = 1,
    /// Being written; not to be read.
    Installing = 2,
    /// In use.
    Live = 3,
    /// In use, but the control process that made it is gone and its successor does not know it.
    Orphan = 4,
    /// To be forgotten: workers drop it at the next look, control frees it after them.
    Retiring = 5,
}

impl SlotState {
    fn from_bits(bits: u64) -> Option<SlotState> {
        match bits & 0xff {
            0 => Some(SlotState::Free),
            1 => Some(SlotState::Reserved),
            2 => Some(SlotState::Installing),
            3 => Some(SlotState::Live),
            4 => Some(SlotState::Orphan),
            5 => Some(SlotState::Retiring),
            _ => None,
        }
    }

    /// Whether packets use the slot.
    pub fn in_use(self) -> bool {
        matches!(self, SlotState::Live | SlotState::Orphan)
    }
}

/// Words under a state word, written by one side only.
#[repr(C)]
pub(crate) struct Slot<const N: usize> {
    state: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> Slot<N> {
    /// Generation and state; `None` for a state that means nothing.
    #[inline]
    pub(crate) fn state(&self) -> (u32, Option<SlotState>) {
        let bits = self.state.load(Ordering::Acquire);
        ((bits >> 32) as u32, SlotState::from_bits(bits))
    }

    /// Moves the slot to another state of the same or another generation.
    pub(crate) fn set_state(&self, generation: u32, state: SlotState) {
        let bits = u64::from(generation) << 32 | u64::from(state as u8);
        self.state.store(bits, Ordering::Release);
    }

    /// Writes a value and publishes it as `state` of `generation`.
    pub(crate) fn publish<R: Record>(&self, generation: u32, state: SlotState, value: &R) {
        self.set_state(generation, SlotState::Installing);
        // No word may be seen before the slot says that it is being written.
        fence(Ordering::Release);
        let mut buffer = [0; N];
        value.encode(&mut WordWriter::new(&mut buffer));
        for (shared, word) in self.words.iter().zip(&buffer) {
            shared.store(*word, Ordering::Relaxed);
        }
        buffer.zeroize();
        self.set_state(generation, state);
    }

    /// The value and its generation and state, if the slot is in use; `None` when it is not, when
    /// it holds nonsense, or when it kept changing while it was read.
    pub(crate) fn read<R: Record>(&self) -> Option<(u32, SlotState, R)> {
        for _ in 0..READ_ATTEMPTS_MAX {
            let before = self.state.load(Ordering::Acquire);
            let state = SlotState::from_bits(before).filter(|state| state.in_use())?;
            let mut buffer = [0; N];
            for (shared, word) in self.words.iter().zip(&mut buffer) {
                *word = shared.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            let same = self.state.load(Ordering::Relaxed) == before;
            let value = same.then(|| R::decode(&mut WordReader::new(&buffer)));
            buffer.zeroize();
            if let Some(value) = value {
                return Some(((before >> 32) as u32, state, value?));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// As [`Slot::read`], of a few words only: `part` picks them.
    #[inline]
    pub(crate) fn read_part<T>(&self, part: impl Fn(&[AtomicU64]) -> Option<T>) -> Option<T> {
        let before = self.state.load(Ordering::Acquire);
        SlotState::from_bits(before).filter(|state| state.in_use())?;
        let value = part(&self.words);
        fence(Ordering::Acquire);
        // A slot that changes just now counts as gone: the next packet sees what it became.
        (self.state.load(Ordering::Relaxed) == before).then_some(value)?
    }

    /// Overwrites the words with zeros and frees the slot.
    pub(crate) fn erase(&self, generation: u32) {
        self.set_state(generation, SlotState::Installing);
        fence(Ordering::Release);
        for word in &self.words {
            word.store(0, Ordering::Relaxed);
        }
        self.set_state(generation, SlotState::Free);
    }
}

/// The generation after this one; 0 is never used, so that a zeroed memory names no slot.
pub(crate) fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[derive(Debug, PartialEq)]
    struct Pair(u64, u64);

    impl Record for Pair {
        const WORDS: usize = 2;

        fn encode(&self, out: &mut WordWriter<'_>) {
            out.put(self.0);
            out.put(self.1);
        }

        fn decode(words: &mut WordReader<'_>) -> Option<Pair> {
            Some(Pair(words.take()?, words.take()?))
        }
    }

    fn slot() -> Slot<2> {
        Slot { state: AtomicU64::new(0), words: [const { AtomicU64::new(0) }; 2] }
    }

    #[test]
    fn only_slots_in_use_are_read() {
        let slot = slot();
        assert_eq!(slot.read::<Pair>(), None);
        slot.set_state(1, SlotState::Reserved);
        assert_eq!(slot.read::<Pair>(), None);
        slot.publish(1, SlotState::Live, &Pair(3, 4));
        assert_eq!(slot.read(), Some((1, SlotState::Live, Pair(3, 4))));
        slot.set_state(1, SlotState::Orphan);
        assert_eq!(slot.read(), Some((1, SlotState::Orphan, Pair(3, 4))));
        slot.set_state(1, SlotState::Retiring);
        assert_eq!(slot.read::<Pair>(), None);
        slot.erase(1);
        assert_eq!(slot.state(), (1, Some(SlotState::Free)));
        assert!(slot.words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn a_state_that_means_nothing_is_not_in_use() {
        let slot = slot();
        slot.state.store(1 << 32 | 77, Ordering::Relaxed);
        assert_eq!(slot.state(), (1, None));
        assert_eq!(slot.read::<Pair>(), None);
    }

    #[test]
    fn a_reader_never_mixes_two_uses_of_a_slot() {
        let (slot, enough) = (slot(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1u32.. {
                    slot.publish(number, SlotState::Live, &Pair(number.into(), (!number).into()));
                    if number.is_multiple_of(8) {
                        std::thread::yield_now();
                    }
                    if number.is_multiple_of(3) {
                        slot.erase(number);
                    }
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let mut seen = 0;
            while seen < 20_000 {
                if let Some((generation, _, Pair(number, inverse))) = slot.read() {
                    assert_eq!((generation.into(), (!generation).into()), (number, inverse));
                    seen += 1;
                }
            }
            enough.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn no_generation_is_zero() {
        assert_eq!(next_generation(0), 1);
        assert_eq!(next_generation(u32::MAX), 1);
    }
}
