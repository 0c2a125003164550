//! Up to 32 mbufs, the unit in which packets are received, handed on, sent and freed.

use crate::Mbuf;
use std::{
    fmt,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    slice,
};

/// Mbufs in a full [`Burst`]: what drivers' vector paths take in one go.
pub const BURST_SIZE: usize = 32;

/// An array of owned mbufs, used from its front to its back and freed in bulk.
///
/// It lives on the stack or within a worker's state and never allocates. The mbufs are
/// `slots[head..tail]`; sending and draining advance `head`, receiving and pushing `tail`.
pub struct Burst {
    slots: [MaybeUninit<Mbuf>; BURST_SIZE],
    head: usize,
    tail: usize,
}

impl Burst {
    /// An empty burst.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: [const { MaybeUninit::uninit() }; BURST_SIZE], head: 0, tail: 0 }
    }

    /// Whether [`Burst::push`] would refuse.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.tail - self.head == BURST_SIZE
    }

    /// Adds an mbuf at the back.
    ///
    /// # Errors
    /// Gives the mbuf back when the burst is full.
    #[inline]
    pub fn push(&mut self, mbuf: Mbuf) -> Result<(), Mbuf> {
        let Some(slot) = self.free_slots().first_mut() else { return Err(mbuf) };
        slot.write(mbuf);
        self.tail += 1;
        Ok(())
    }

    /// Takes the mbufs out, first to last. Those not taken are freed when the iterator is dropped.
    #[inline]
    pub fn drain(&mut self) -> Drain<'_> {
        Drain { burst: self }
    }

    /// Takes the last mbuf out.
    pub(crate) fn pop(&mut self) -> Option<Mbuf> {
        if self.is_empty() {
            return None;
        }
        self.tail -= 1;
        // SAFETY: the burst was not empty, so its last slot held an mbuf, given up by moving `tail`
        // in front of it.
        Some(unsafe { self.slots[self.tail].assume_init_read() })
    }

    /// Frees all mbufs in one call.
    #[inline]
    pub fn clear(&mut self) {
        if self.is_empty() {
            return;
        }
        let mbufs = self.slots[self.head..self.tail].as_mut_ptr();
        let count = (self.tail - self.head) as u32;
        self.forget_first(self.len());
        // SAFETY: these slots held mbufs that the burst owned, and it has just forgotten them.
        unsafe { dpdk_sys::rte_pktmbuf_free_bulk(mbufs.cast(), count) };
    }

    /// Takes one mbuf out of the middle; those behind it move up.
    pub(crate) fn remove(&mut self, index: usize) -> Mbuf {
        self[index..].rotate_left(1);
        self.tail -= 1;
        // SAFETY: `index` was in bounds (slicing checks), so that the last slot held an mbuf, now
        // the one to remove; it is given up by moving `tail` in front of it.
        unsafe { self.slots[self.tail].assume_init_read() }
    }

    /// The slots behind the last mbuf, after moving the mbufs to the front if there are none.
    #[inline]
    pub(crate) fn free_slots(&mut self) -> &mut [MaybeUninit<Mbuf>] {
        if self.tail == BURST_SIZE && self.head > 0 {
            self.slots.rotate_left(self.head);
            self.tail -= self.head;
            self.head = 0;
        }
        &mut self.slots[self.tail..]
    }

    /// Takes over mbufs that were written to the first `count` of [`Burst::free_slots`].
    ///
    /// # Safety
    /// They are there, valid, and nobody else's.
    #[inline]
    pub(crate) unsafe fn filled(&mut self, count: usize) {
        debug_assert!(count <= BURST_SIZE - self.tail);
        self.tail += count;
    }

    /// Gives the first `count` mbufs up without freeing them: somebody else has them now.
    #[inline]
    pub(crate) fn forget_first(&mut self, count: usize) {
        debug_assert!(count <= self.len());
        self.head += count;
        if self.head == self.tail {
            (self.head, self.tail) = (0, 0);
        }
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Burst {
    type Target = [Mbuf];

    #[inline]
    fn deref(&self) -> &[Mbuf] {
        let mbufs = &self.slots[self.head..self.tail];
        // SAFETY: the slots between head and tail are initialised, and MaybeUninit<Mbuf> has the
        // layout of Mbuf.
        unsafe { slice::from_raw_parts(mbufs.as_ptr().cast(), mbufs.len()) }
    }
}

impl DerefMut for Burst {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Mbuf] {
        let mbufs = &mut self.slots[self.head..self.tail];
        // SAFETY: as in `deref`, and borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(mbufs.as_mut_ptr().cast(), mbufs.len()) }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.clear();
    }
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The mbufs of a burst, being taken out: see [`Burst::drain`].
#[derive(Debug)]
pub struct Drain<'a> {
    burst: &'a mut Burst,
}

impl Iterator for Drain<'_> {
    type Item = Mbuf;

    #[inline]
    fn next(&mut self) -> Option<Mbuf> {
        if self.burst.is_empty() {
            return None;
        }
        // SAFETY: the burst is not empty, so its first slot is initialised; it is given up at once.
        let mbuf = unsafe { self.burst.slots[self.burst.head].assume_init_read() };
        self.burst.forget_first(1);
        Some(mbuf)
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.burst.len(), Some(self.burst.len()))
    }
}

impl ExactSizeIterator for Drain<'_> {}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        self.burst.clear();
    }
}
