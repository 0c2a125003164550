//! Outbound sequence numbers, none of which is ever given out twice.

use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

/// No outbound sequence number is left: the SA must be rekeyed (RFC 4303, 3.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the SA has used up its sequence numbers: rekey it")]
pub struct SequenceExhausted;

/// The outbound sequence number of an SA, which is also its AES-GCM nonce: it never repeats,
/// whatever process dies when.
///
/// The number behind the one given out is stored before it is returned, so before anything is
/// sealed with it. What was stored stays in the shared memory when the process is killed.
#[derive(Clone, Copy)]
pub struct SequenceCounter<'a> {
    next: &'a AtomicU64,
}

impl<'a> SequenceCounter<'a> {
    /// The counter over a word that holds the next number to give out.
    pub fn new(next: &'a AtomicU64) -> SequenceCounter<'a> {
        SequenceCounter { next }
    }

    /// The last number that may be sent: 2^32 - 1, or 2^64 - 2 with extended numbers.
    #[inline]
    pub fn last(esn: bool) -> u64 {
        if esn { u64::MAX - 1 } else { u64::from(u32::MAX) }
    }

    /// Gives out the next number, from 1.
    ///
    /// # Errors
    /// [`SequenceExhausted`] when the last number has been given out: it does not wrap
    /// (RFC 4303, 3.3.3). Also when the word is 0, which no SA that was taken up has.
    #[inline]
    pub fn next(&self, esn: bool) -> Result<u64, SequenceExhausted> {
        let number = self.next.load(Ordering::Relaxed);
        if number == 0 || number > SequenceCounter::last(esn) {
            return Err(SequenceExhausted);
        }
        self.next.store(number + 1, Ordering::Release);
        // Nothing that follows, the sealing above all, is moved before the store.
        compiler_fence(Ordering::SeqCst);
        Ok(number)
    }

    /// The number given out last; 0 before the first.
    #[inline]
    pub fn given(&self) -> u64 {
        self.next.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Numbers that are left.
    #[inline]
    pub fn left(&self, esn: bool) -> u64 {
        let next = self.next.load(Ordering::Relaxed);
        SequenceCounter::last(esn).saturating_add(1).saturating_sub(next)
    }
}
