//! A value of several words with one writer, which may die at any instruction.
//!
//! The cell holds two copies and a count of the writes. The writer fills the copy that readers do
//! not use and then raises the count, whose lowest bit names the copy to read. A writer killed in
//! the middle has touched only the copy that nobody reads: the old value stays readable, which a
//! plain sequence lock cannot offer. A reader takes its copy and looks at the count again; one
//! further write leaves its copy alone, so a reader loses only against a writer that is two
//! writes ahead.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Copies that a reader throws away before it gives up.
const READ_ATTEMPTS_MAX: usize = 64;

/// `N` words that are read whole or not at all.
#[repr(C)]
pub(crate) struct Cell<const N: usize> {
    /// Writes so far; its lowest bit names the copy to read.
    count: AtomicU64,
    copies: [[AtomicU64; N]; 2],
}

impl<const N: usize> Cell<N> {
    /// Writes a value; only ever called by the cell's one writer.
    pub(crate) fn write(&self, value: &[u64; N]) {
        let next = self.count.load(Ordering::Relaxed).wrapping_add(1);
        // The words may not be seen before the count that took readers away from this copy, which
        // an earlier write stored.
        fence(Ordering::Release);
        for (shared, word) in self.copy(next).iter().zip(value) {
            shared.store(*word, Ordering::Relaxed);
        }
        self.count.store(next, Ordering::Release);
    }

    /// The last complete value; `None` only when the writer outruns the reader again and again.
    pub(crate) fn read(&self) -> Option<[u64; N]> {
        for _ in 0..READ_ATTEMPTS_MAX {
            let count = self.count.load(Ordering::Acquire);
            let mut value = [0; N];
            for (shared, word) in self.copy(count).iter().zip(&mut value) {
                *word = shared.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if self.count.load(Ordering::Relaxed) == count {
                return Some(value);
            }
            std::hint::spin_loop();
        }
        None
    }

    fn copy(&self, count: u64) -> &[AtomicU64; N] {
        let [even, odd] = &self.copies;
        if count & 1 == 0 { even } else { odd }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn cell() -> Cell<4> {
        let copy = || [const { AtomicU64::new(0) }; 4];
        Cell { count: AtomicU64::new(0), copies: [copy(), copy()] }
    }

    #[test]
    fn a_writer_that_dies_in_the_middle_leaves_the_old_value() {
        let cell = cell();
        cell.write(&[1, 2, 3, 4]);
        // The next write's copy, half filled, its count not raised.
        cell.copy(2)[0].store(9, Ordering::Relaxed);
        cell.copy(2)[1].store(9, Ordering::Relaxed);
        assert_eq!(cell.read(), Some([1, 2, 3, 4]));
        // Its successor writes as if nothing had happened.
        cell.write(&[5, 6, 7, 8]);
        assert_eq!(cell.read(), Some([5, 6, 7, 8]));
    }

    #[test]
    fn a_reader_never_sees_halves_of_two_values() {
        let cell = cell();
        let enough = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1u64.. {
                    cell.write(&[number, !number, number ^ 0xff, number << 1]);
                    if number.is_multiple_of(8) {
                        std::thread::yield_now();
                    }
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let (mut last, mut seen) = (0, 0);
            while seen < 20_000 {
                // A reader may lose against a writer that never pauses; it then says so.
                let Some([number, inverse, mixed, doubled]) = cell.read() else { continue };
                if number > 0 {
                    assert_eq!([inverse, mixed, doubled], [!number, number ^ 0xff, number << 1]);
                    seen += 1;
                }
                assert!(number >= last, "time does not run backwards");
                last = number;
            }
            enough.store(true, Ordering::Relaxed);
        });
    }
}
