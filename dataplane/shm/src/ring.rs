//! A ring of records of variable length between two processes, one producer and one consumer.
//!
//! ```text
//! head: words ever written      (producer's cache line)
//! tail: words ever consumed     (consumer's cache line)
//! data: a power of two of words; position & mask is the index, so records wrap anywhere
//! record: [length in octets | words of fields | kind] fields… octets…
//! ```
//!
//! The producer writes a record behind `head` and then publishes the new `head`: one that dies
//! before that has written nothing. The consumer copies a record out before it looks at it, since
//! the other process could change it at any time, and checks every length against what is
//! published. A ring whose positions contradict each other is emptied by its consumer, and that
//! is an error to count, never a panic.

use std::sync::atomic::{AtomicU64, Ordering};

/// Octets of a record's payload at most: the longest frame that RFC 9329 can carry is shorter.
pub const PAYLOAD_OCTETS_MAX: usize = 65_535;

/// Words of fixed fields of a record at most.
pub(crate) const FIELDS_MAX: usize = 16;

/// Words of a record at most.
const RECORD_WORDS_MAX: u64 = (1 + FIELDS_MAX + PAYLOAD_OCTETS_MAX.div_ceil(8)) as u64;

/// The ring has no room for the record; it was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ring to the other process is full: that process is not running or too slow")]
pub struct RingFull;

/// The ring's positions or a record's lengths contradict each other; the ring was emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingCorrupt;

/// A position on a cache line of its own: the two sides do not invalidate each other's.
#[repr(C, align(64))]
pub(crate) struct Position(AtomicU64);

/// Both positions of one ring.
#[repr(C)]
pub(crate) struct Positions {
    head: Position,
    tail: Position,
}

/// A ring in shared memory. Who holds which end is decided by the role-typed views.
#[derive(Clone, Copy)]
pub(crate) struct Ring<'a> {
    positions: &'a Positions,
    data: &'a [AtomicU64],
}

/// One record, copied out of the ring.
pub(crate) struct RawRecord<'a> {
    pub(crate) kind: u8,
    pub(crate) fields: &'a [u64],
    pub(crate) payload: &'a [u8],
}

/// The consumer's own memory for one record.
pub(crate) struct Scratch {
    fields: [u64; FIELDS_MAX],
    payload: Box<[u8]>,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        // Whole words, so that the last one can be copied like the others.
        let octets = PAYLOAD_OCTETS_MAX.next_multiple_of(8);
        Scratch { fields: [0; FIELDS_MAX], payload: vec![0; octets].into_boxed_slice() }
    }
}

impl<'a> Ring<'a> {
    /// The ring over `data`, a power of two of words.
    pub(crate) fn new(positions: &'a Positions, data: &'a [AtomicU64]) -> Ring<'a> {
        debug_assert!(data.len().is_power_of_two());
        Ring { positions, data }
    }

    /// Words ever written, as the producer published them.
    pub(crate) fn head(&self) -> u64 {
        self.positions.head.0.load(Ordering::Acquire)
    }

    /// Words ever consumed, as the consumer published them.
    pub(crate) fn tail(&self) -> u64 {
        self.positions.tail.0.load(Ordering::Acquire)
    }

    /// Writes a record. Producer only.
    pub(crate) fn push(&self, kind: u8, fields: &[u64], payload: &[u8]) -> Result<(), RingFull> {
        if fields.len() > FIELDS_MAX || payload.len() > PAYLOAD_OCTETS_MAX {
            return Err(RingFull);
        }
        let head = self.positions.head.0.load(Ordering::Relaxed);
        let used = head.wrapping_sub(self.tail());
        let words = (1 + fields.len() + payload.len().div_ceil(8)) as u64;
        if used.saturating_add(words) > self.data.len() as u64 {
            return Err(RingFull);
        }
        let header = (payload.len() as u64) << 32 | (fields.len() as u64) << 8 | u64::from(kind);
        let mut position = head;
        self.put(&mut position, header);
        fields.iter().for_each(|&field| self.put(&mut position, field));
        for chunk in payload.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.put(&mut position, u64::from_ne_bytes(word));
        }
        self.positions.head.0.store(position, Ordering::Release);
        Ok(())
    }

    /// Takes the oldest record. Consumer only.
    pub(crate) fn pop<'s>(
        &self,
        scratch: &'s mut Scratch,
    ) -> Option<Result<RawRecord<'s>, RingCorrupt>> {
        let tail = self.positions.tail.0.load(Ordering::Relaxed);
        let head = self.head();
        let available = head.wrapping_sub(tail);
        if available == 0 {
            return None;
        }
        let header = self.word(tail);
        let (octets, count) = ((header >> 32) as usize, (header >> 8) as usize & 0xff_ffff);
        let words = 1u64 + count as u64 + octets.div_ceil(8) as u64;
        if available > self.data.len() as u64
            || words > available.min(RECORD_WORDS_MAX)
            || count > FIELDS_MAX
            || octets > PAYLOAD_OCTETS_MAX
        {
            self.discard();
            return Some(Err(RingCorrupt));
        }
        let mut position = tail.wrapping_add(1);
        for field in &mut scratch.fields[..count] {
            *field = self.take(&mut position);
        }
        for chunk in scratch.payload[..octets.next_multiple_of(8)].chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.take(&mut position).to_ne_bytes());
        }
        self.positions.tail.0.store(position, Ordering::Release);
        Some(Ok(RawRecord {
            kind: header as u8,
            fields: &scratch.fields[..count],
            payload: &scratch.payload[..octets],
        }))
    }

    /// Throws away all that is published. Consumer only.
    pub(crate) fn discard(&self) {
        self.positions.tail.0.store(self.head(), Ordering::Release);
    }

    fn word(&self, position: u64) -> u64 {
        self.slot(position).load(Ordering::Relaxed)
    }

    fn take(&self, position: &mut u64) -> u64 {
        let word = self.word(*position);
        *position = position.wrapping_add(1);
        word
    }

    fn put(&self, position: &mut u64, word: u64) {
        self.slot(*position).store(word, Ordering::Relaxed);
        *position = position.wrapping_add(1);
    }

    fn slot(&self, position: u64) -> &AtomicU64 {
        &self.data[position as usize & (self.data.len() - 1)]
    }
}
