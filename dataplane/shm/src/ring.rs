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

    /// Words of its data.
    pub(crate) fn words(&self) -> u64 {
        self.data.len() as u64
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
        self.push_within(self.words(), kind, fields, payload)
    }

    /// Writes a record if not more than `limit` words are in use then. Producer only.
    pub(crate) fn push_within(
        &self,
        limit: u64,
        kind: u8,
        fields: &[u64],
        payload: &[u8],
    ) -> Result<(), RingFull> {
        if fields.len() > FIELDS_MAX || payload.len() > PAYLOAD_OCTETS_MAX {
            return Err(RingFull);
        }
        let head = self.positions.head.0.load(Ordering::Relaxed);
        let used = head.wrapping_sub(self.tail());
        let words = (1 + fields.len() + payload.len().div_ceil(8)) as u64;
        if used.saturating_add(words) > limit.min(self.words()) {
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
        let record = self.peek(scratch)?;
        if let Ok((_, end)) = &record {
            self.release(*end);
        }
        Some(record.map(|(record, _)| record))
    }

    /// The oldest record, and the position behind it up to which [`Ring::release`] lets go. A ring
    /// that makes no sense is emptied. Consumer only.
    pub(crate) fn peek<'s>(
        &self,
        scratch: &'s mut Scratch,
    ) -> Option<Result<(RawRecord<'s>, u64), RingCorrupt>> {
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
        let record = RawRecord {
            kind: header as u8,
            fields: &scratch.fields[..count],
            payload: &scratch.payload[..octets],
        };
        Some(Ok((record, position)))
    }

    /// Lets go of all records before this position. Consumer only.
    pub(crate) fn release(&self, position: u64) {
        self.positions.tail.0.store(position, Ordering::Release);
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

#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    /// A ring over plain memory.
    pub(crate) struct Memory {
        pub(super) positions: Positions,
        pub(super) data: Vec<AtomicU64>,
    }

    impl Memory {
        pub(crate) fn new(words: usize) -> Memory {
            let position = || Position(AtomicU64::new(0));
            let data = (0..words).map(|_| AtomicU64::new(0)).collect();
            Memory { positions: Positions { head: position(), tail: position() }, data }
        }

        pub(crate) fn ring(&self) -> Ring<'_> {
            Ring::new(&self.positions, &self.data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::tests_support::Memory;
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A push of a record, or a pop.
    #[derive(Clone, Debug)]
    enum Step {
        Push(u8, Vec<u64>, Vec<u8>),
        Pop,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let octets = proptest::collection::vec(any::<u8>(), 0..200);
        let fields = proptest::collection::vec(any::<u64>(), 0..=FIELDS_MAX);
        let push = (any::<u8>(), fields, octets).prop_map(|(k, f, o)| Step::Push(k, f, o));
        proptest::collection::vec(prop_oneof![3 => push, 2 => Just(Step::Pop)], 1..200)
    }

    proptest! {
        #[test]
        fn a_ring_is_a_bounded_queue(start in any::<u64>(), steps in steps()) {
            let memory = Memory::new(128);
            memory.positions.head.0.store(start, Ordering::Relaxed);
            memory.positions.tail.0.store(start, Ordering::Relaxed);
            let (ring, mut scratch) = (memory.ring(), Scratch::new());
            let mut queue: VecDeque<(u8, Vec<u64>, Vec<u8>)> = VecDeque::new();
            let mut used = 0;
            for step in steps {
                match step {
                    Step::Push(kind, fields, octets) => {
                        let words = 1 + fields.len() + octets.len().div_ceil(8);
                        let fits = used + words <= 128;
                        prop_assert_eq!(ring.push(kind, &fields, &octets).is_ok(), fits);
                        if fits {
                            used += words;
                            queue.push_back((kind, fields, octets));
                        }
                    }
                    Step::Pop => {
                        let got = ring.pop(&mut scratch).map(|record| {
                            let record = record.unwrap();
                            (record.kind, record.fields.to_vec(), record.payload.to_vec())
                        });
                        let want = queue.pop_front();
                        if let Some((_, fields, octets)) = &want {
                            used -= 1 + fields.len() + octets.len().div_ceil(8);
                        }
                        prop_assert_eq!(got, want);
                    }
                }
            }
        }

        #[test]
        fn a_corrupted_ring_gives_errors_and_recovers(
            head in any::<u64>(),
            distance in prop_oneof![0u64..64, any::<u64>()],
            words in proptest::collection::vec(prop_oneof![0u64..1 << 12, any::<u64>()], 64),
        ) {
            let memory = Memory::new(64);
            memory.positions.head.0.store(head, Ordering::Relaxed);
            memory.positions.tail.0.store(head.wrapping_sub(distance), Ordering::Relaxed);
            for (shared, word) in memory.data.iter().zip(words) {
                shared.store(word, Ordering::Relaxed);
            }
            let (ring, mut scratch) = (memory.ring(), Scratch::new());
            // Every pop consumes a word at least or empties the ring, so it ends.
            let popped = (0..=64).take_while(|_| ring.pop(&mut scratch).is_some()).count();
            prop_assert!(popped <= 64);
            prop_assert_eq!(ring.tail(), head);
            prop_assert!(ring.push(9, &[1], b"after").is_ok());
            let record = ring.pop(&mut scratch).unwrap().unwrap();
            prop_assert_eq!((record.kind, record.payload), (9, &b"after"[..]));
        }
    }

    #[test]
    fn a_producer_with_a_broken_tail_refuses_to_overwrite() {
        let memory = Memory::new(64);
        memory.positions.tail.0.store(1000, Ordering::Relaxed);
        assert_eq!(memory.ring().push(1, &[], &[]), Err(RingFull));
    }

    #[test]
    fn records_of_the_greatest_length_pass_and_longer_ones_do_not() {
        let memory = Memory::new(1 << 14);
        let (ring, mut scratch) = (memory.ring(), Scratch::new());
        let octets: Vec<u8> = (0..PAYLOAD_OCTETS_MAX).map(|n| n as u8).collect();
        assert_eq!(ring.push(1, &[], &vec![0; PAYLOAD_OCTETS_MAX + 1]), Err(RingFull));
        ring.push(1, &[7; FIELDS_MAX], &octets).unwrap();
        assert_eq!(ring.pop(&mut scratch).unwrap().unwrap().payload, octets);
        assert!(ring.pop(&mut scratch).is_none());
    }

    /// A message that says itself what it must be.
    fn checksummed(number: u64) -> Vec<u8> {
        (0..number % 300).map(|at| (number.wrapping_mul(31) ^ at) as u8).collect()
    }

    #[test]
    fn two_threads_pass_every_record_whole_and_in_order() {
        const RECORDS: u64 = 50_000;
        let memory = Memory::new(256);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..RECORDS {
                    let payload = checksummed(number);
                    while memory.ring().push(1, &[number], &payload).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut scratch = Scratch::new();
            for number in 0..RECORDS {
                let record = loop {
                    if memory.ring().head() != memory.ring().tail() {
                        break memory.ring().pop(&mut scratch).unwrap().unwrap();
                    }
                    std::thread::yield_now();
                };
                assert_eq!(record.fields, [number]);
                assert_eq!(record.payload, checksummed(number));
            }
        });
    }

    #[test]
    fn a_producer_that_dies_before_publishing_has_written_nothing() {
        let memory = Memory::new(64);
        let (ring, mut scratch) = (memory.ring(), Scratch::new());
        ring.push(1, &[1], b"whole").unwrap();
        // The words of a second record are there, its end is not published.
        let mut position = ring.head();
        ring.put(&mut position, 5 << 32 | 1);
        ring.put(&mut position, 0x1234);
        assert_eq!(ring.pop(&mut scratch).unwrap().unwrap().payload, b"whole");
        assert!(ring.pop(&mut scratch).is_none());
        // Its successor writes over it.
        ring.push(2, &[], b"next").unwrap();
        assert_eq!(ring.pop(&mut scratch).unwrap().unwrap().payload, b"next");
    }
}
