//! The replay window (RFC 4303, 3.4.3 and Appendix A).
//!
//! The window's storage belongs to the caller, since it lies in shared memory and outlives the
//! process. It is a ring of words: sequence number `s` has bit `s % 64` of word `s / 64` modulo the
//! ring's words, so nothing is ever shifted (as in RFC 6479). Moving the window up clears the bits
//! between the old top and the new one.
//!
//! There is one writer. It may be killed between any two stores, and every order that leaves
//! behind is safe: the new number's bit is set before the top moves, and bits between are cleared
//! after it, so a cut can make the window refuse a packet that it never saw, but never accept one
//! twice.

use std::sync::atomic::{AtomicU64, Ordering};

/// Packets of the smallest window (RFC 4303, 3.4.3).
pub const WINDOW_MIN: u32 = 32;
/// Packets of the largest window.
pub const WINDOW_MAX: u32 = 4096;

const WORD_BITS: u64 = 64;

/// A replay window over the caller's storage.
#[derive(Clone, Copy)]
pub struct ReplayWindow<'a> {
    /// The highest sequence number that was authentic; 0: none yet.
    top: &'a AtomicU64,
    /// A power of two of words, with a bit for each packet of the window at least.
    bits: &'a [AtomicU64],
    size: u64,
}

/// Why a sequence number is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Duplicate,
    TooOld,
}

impl<'a> ReplayWindow<'a> {
    /// A window of `size` packets, [`WINDOW_MIN`] to [`WINDOW_MAX`], over storage that was zero
    /// when the SA began.
    ///
    /// Of `bits` the first power of two of words that holds `size` bits is used. `None` when `size`
    /// is out of bounds or `bits` is too short. The size must stay the same for the SA's life.
    #[inline]
    pub fn new(top: &'a AtomicU64, bits: &'a [AtomicU64], size: u32) -> Option<ReplayWindow<'a>> {
        if !(WINDOW_MIN..=WINDOW_MAX).contains(&size) {
            return None;
        }
        let words = (size as usize).div_ceil(WORD_BITS as usize).next_power_of_two();
        Some(ReplayWindow { top, bits: bits.get(..words)?, size: u64::from(size) })
    }

    /// The highest sequence number that was authentic; 0: none yet.
    #[inline]
    pub fn top(&self) -> u64 {
        self.top.load(Ordering::Relaxed)
    }

    /// The whole sequence number of a packet whose header carries its low half: the only one with
    /// this low half from the window's bottom up to 2^32 - 1 above it.
    // RFC 4303, A2.1 and A2.2: cases A and B are one in modular arithmetic.
    #[inline]
    pub(crate) fn infer(&self, low: u32) -> u64 {
        let bottom = self.top().wrapping_sub(self.size - 1);
        bottom.wrapping_add(u64::from(low.wrapping_sub(bottom as u32)))
    }

    /// Whether a packet of this number may be received. Moves nothing.
    #[inline]
    pub(crate) fn check(&self, sequence: u64) -> Result<(), Refused> {
        let top = self.top();
        if sequence > top {
            // Inferred from a bottom below zero, the number lies before the SA's first packet.
            let before_first = top < self.size && sequence > top.wrapping_sub(self.size);
            return if before_first { Err(Refused::TooOld) } else { Ok(()) };
        }
        if sequence == 0 || top - sequence >= self.size {
            return Err(Refused::TooOld);
        }
        let word = self.word(sequence).load(Ordering::Relaxed);
        if word & bit(sequence) == 0 { Ok(()) } else { Err(Refused::Duplicate) }
    }

    /// Notes that the packet of this number, which [`ReplayWindow::check`] let pass, is authentic.
    /// Whether it is the newest so far.
    #[inline]
    pub(crate) fn accept(&self, sequence: u64) -> bool {
        let word = self.word(sequence);
        let top = self.top();
        // The release stores keep their order; on x86 they cost nothing.
        word.store(word.load(Ordering::Relaxed) | bit(sequence), Ordering::Release);
        if sequence <= top {
            return false;
        }
        self.top.store(sequence, Ordering::Release);
        self.clear_between(top, sequence);
        true
    }

    /// Clears the bits of the numbers above `old` and below `new`. Bits above `new` in its word
    /// stay: a turn of the ring ago they belong to the bottom of the window.
    #[inline]
    fn clear_between(&self, old: u64, new: u64) {
        let (old_word, new_word) = (old / WORD_BITS, new / WORD_BITS);
        let (words, span) = (self.bits.len() as u64, new_word - old_word);
        let above_old = !(bit(old) | (bit(old) - 1));
        let below_new = bit(new) - 1;
        if span == 0 {
            self.clear(old_word, above_old & below_new);
        } else if span <= words {
            // One whole turn on, both numbers share a word, and the new one's bit is set already.
            let shared = if span == words { bit(new) } else { 0 };
            self.clear(old_word, above_old & !shared);
            (old_word + 1..new_word).for_each(|index| self.clear(index, u64::MAX));
            self.clear(new_word, below_new);
        } else {
            (new_word - words + 1..new_word).for_each(|index| self.clear(index, u64::MAX));
            self.clear(new_word, !bit(new));
        }
    }

    #[inline]
    fn clear(&self, index: u64, mask: u64) {
        let word = &self.bits[index as usize & (self.bits.len() - 1)];
        word.store(word.load(Ordering::Relaxed) & !mask, Ordering::Release);
    }

    #[inline]
    fn word(&self, sequence: u64) -> &AtomicU64 {
        &self.bits[(sequence / WORD_BITS) as usize & (self.bits.len() - 1)]
    }
}

#[inline]
fn bit(sequence: u64) -> u64 {
    1 << (sequence % WORD_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Storage of a window, as shared memory has it.
    struct Storage {
        top: AtomicU64,
        bits: Vec<AtomicU64>,
    }

    impl Storage {
        fn new() -> Storage {
            let bits = (0..WINDOW_MAX / 64).map(|_| AtomicU64::new(0)).collect();
            Storage { top: AtomicU64::new(0), bits }
        }

        fn window(&self, size: u32) -> ReplayWindow<'_> {
            ReplayWindow::new(&self.top, &self.bits, size).unwrap()
        }
    }

    /// The window as RFC 4303, 3.4.3 says it: a set of the numbers received.
    struct Naive {
        received: HashSet<u64>,
        top: u64,
        size: u64,
    }

    impl Naive {
        fn receive(&mut self, sequence: u64) -> Result<bool, Refused> {
            if sequence == 0 || self.top.saturating_sub(sequence) >= self.size {
                return Err(Refused::TooOld);
            }
            if !self.received.insert(sequence) {
                return Err(Refused::Duplicate);
            }
            let newest = sequence > self.top;
            self.top = self.top.max(sequence);
            Ok(newest)
        }

        /// RFC 4303, A2.2, word for word.
        fn high_half(&self, low: u32) -> u64 {
            let (top_low, top_high) = (self.top as u32, self.top >> 32);
            let width = self.size as u32;
            let bottom_low = top_low.wrapping_sub(width - 1);
            if top_low >= width - 1 {
                if low >= bottom_low { top_high } else { top_high + 1 }
            } else if low >= bottom_low {
                top_high.wrapping_sub(1) & u64::from(u32::MAX)
            } else {
                top_high
            }
        }
    }

    fn receive(window: ReplayWindow<'_>, sequence: u64) -> Result<bool, Refused> {
        window.check(sequence).map(|()| window.accept(sequence))
    }

    /// Steps from one number to the next: mostly near, sometimes over the window or the ring.
    fn steps() -> impl Strategy<Value = Vec<i64>> {
        let step = prop_oneof![
            4 => -70i64..70,
            2 => -5_000i64..5_000,
            1 => -20i64..1_000_000,
            1 => Just(64), 1 => Just(1024), 1 => Just(4096), 1 => Just(0),
        ];
        proptest::collection::vec(step, 1..400)
    }

    fn sizes() -> impl Strategy<Value = u32> {
        prop_oneof![Just(32), Just(64), Just(1024), Just(4096), (1u32..=64).prop_map(|n| n * 64)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_window_is_the_naive_one(
            start in prop_oneof![1u64..200, (1u64 << 32) - 300..(1 << 32) + 300, Just(1 << 40)],
            steps in steps(),
            size in sizes(),
        ) {
            let storage = Storage::new();
            let mut naive = Naive { received: HashSet::new(), top: 0, size: u64::from(size) };
            let mut sequence = start;
            for step in steps {
                let got = receive(storage.window(size), sequence);
                prop_assert_eq!(got, naive.receive(sequence), "number {}", sequence);
                prop_assert_eq!(storage.window(size).top(), naive.top);
                sequence = naive.top.saturating_add_signed(step);
            }
        }

        // RFC 4303, A2.2
        #[test]
        fn the_high_half_is_inferred_as_the_appendix_says(
            top in prop_oneof![0u64..10_000, (1u64 << 32) - 5_000..(1 << 32) + 5_000, any::<u64>()],
            low in prop_oneof![0u32..10_000, u32::MAX - 5_000..=u32::MAX, any::<u32>()],
            size in sizes(),
        ) {
            let storage = Storage::new();
            storage.top.store(top, Ordering::Relaxed);
            let naive = Naive { received: HashSet::new(), top, size: u64::from(size) };
            let high = naive.high_half(low) & u64::from(u32::MAX);
            prop_assert_eq!(storage.window(size).infer(low), high << 32 | u64::from(low));
        }

        // A writer killed between two stores: emulated by storage in which any prefix of the
        // stores of `accept` has happened.
        #[test]
        fn a_cut_never_lets_a_number_in_twice(
            steps in steps(), cuts in proptest::collection::vec(0u8..4, 400), size in sizes(),
        ) {
            let storage = Storage::new();
            let mut received = HashSet::new();
            let mut sequence = 1;
            for (step, cut) in steps.into_iter().zip(cuts) {
                let window = storage.window(size);
                if window.check(sequence).is_ok() {
                    prop_assert!(received.insert(sequence), "{} twice", sequence);
                    match cut {
                        // Killed before the first store: the packet was not let through either.
                        0 => { received.remove(&sequence); }
                        1 => {
                            let word = window.word(sequence);
                            word.fetch_or(bit(sequence), Ordering::Relaxed);
                            received.remove(&sequence);
                        }
                        2 => {
                            window.word(sequence).fetch_or(bit(sequence), Ordering::Relaxed);
                            storage.top.fetch_max(sequence, Ordering::Relaxed);
                        }
                        _ => { window.accept(sequence); }
                    }
                }
                sequence = storage.window(size).top().saturating_add_signed(step);
            }
        }
    }

    #[test]
    fn extended_numbers_go_on_over_two_to_the_32() {
        let storage = Storage::new();
        let window = storage.window(64);
        let before = (1 << 32) - 2;
        storage.top.store(before - 1, Ordering::Relaxed);
        for sequence in before..before + 200 {
            assert_eq!(window.infer(sequence as u32), sequence);
            assert_eq!(receive(window, sequence), Ok(true));
            assert_eq!(window.check(sequence), Err(Refused::Duplicate));
        }
        // Late ones from this side of the boundary are still told apart.
        let top = (1 << 32) + 10;
        let other = Storage::new();
        other.top.store(top, Ordering::Relaxed);
        assert_eq!(other.window(64).infer(u32::MAX), (1 << 32) - 1);
        assert_eq!(other.window(64).infer(11), top + 1);
    }

    #[test]
    fn numbers_before_the_first_are_refused() {
        let storage = Storage::new();
        let window = storage.window(1024);
        assert_eq!(window.check(0), Err(Refused::TooOld));
        // Low half -5: with nothing received, that would be below zero.
        assert_eq!(window.check(window.infer(u32::MAX - 5)), Err(Refused::TooOld));
        assert_eq!(window.infer(1), 1);
        assert_eq!(receive(window, 1), Ok(true));
    }

    #[test]
    fn the_last_extended_numbers_do_not_wrap() {
        let storage = Storage::new();
        storage.top.store(u64::MAX - 2, Ordering::Relaxed);
        let window = storage.window(64);
        assert_eq!(receive(window, u64::MAX - 1), Ok(true));
        // The low half 7 would lie beyond 2^64.
        assert_eq!(window.check(window.infer(7)), Err(Refused::TooOld));
    }

    #[test]
    fn sizes_out_of_bounds_make_no_window() {
        let storage = Storage::new();
        let new =
            |size, words: usize| ReplayWindow::new(&storage.top, &storage.bits[..words], size);
        assert!(new(31, 64).is_none());
        assert!(new(4097, 64).is_none());
        assert!(new(1024, 15).is_none());
        assert!(new(1024, 16).is_some());
        assert!(new(4096, 64).is_some());
    }
}
