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
