//! What lies behind a hole, or arrived in order and was not taken yet.

use super::{CHUNK, CHUNK_U64, ChunkPool, Full};
use crate::engine::lazy::{ENTRIES_KEPT, Idle, Lazy};
use crate::engine::ranges::Ranges;
use std::collections::VecDeque;
use std::ops::Range;

/// Most separate runs of octets held behind holes for one connection: a burst that loses every
/// second segment of 12 MB.
const HOLES_MAX: usize = 4096;
/// So many runs may be of any length; with more, their mean must reach `RUN_MEAN_MIN` octets, so
/// that a peer that sends single octets cannot make the list long.
const HOLES_FREE: usize = 64;
const RUN_MEAN_MIN: u64 = 256;
/// So many chunks may hold single octets behind holes; with more, their mean must reach
/// `CHUNK_MEAN_MIN` octets, so that a peer that sends an octet here and there does not fill memory
/// with them: one segment in each is enough.
const CHUNKS_FREE: u64 = 8;
const CHUNK_MEAN_MIN: u64 = 1024;

/// What lies behind a hole, or arrived in order and was not taken yet.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    /// The offset of the first page, a multiple of the chunk size.
    base: u64,
    /// Octets below this were taken by the caller.
    taken: u64,
    kept: Lazy<Kept>,
}

/// The octets themselves.
#[derive(Debug)]
pub(crate) struct Kept {
    /// Chunk-sized pages from `base` on; a page without octets has no chunk.
    pages: VecDeque<Option<Box<[u8]>>>,
    /// How many of them have one.
    chunks: usize,
    /// What is held at or above the next expected octet.
    held: Ranges<HOLES_MAX>,
}

impl Kept {
    const fn nothing() -> Self {
        Self { pages: VecDeque::new(), chunks: 0, held: Ranges::new() }
    }
}

impl Idle for Kept {
    const IDLE: &'static Self = &Self::nothing();

    fn idle() -> Self {
        Self::nothing()
    }

    fn is_idle(&self) -> bool {
        self.pages.is_empty()
    }

    fn reset(&mut self) {
        self.pages.shrink_to(ENTRIES_KEPT);
        self.held.clear();
    }
}

impl ReceiveBuffer {
    pub(crate) const fn new() -> Self {
        Self { base: 0, taken: 1, kept: Lazy::new() }
    }

    /// The octets below this were taken.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// The caller took octets up to `offset` without their being held; nothing below them waits.
    pub(crate) fn pass(&mut self, pool: &mut ChunkPool, offset: u64) {
        self.taken = offset;
        if !self.kept.held.is_empty() {
            self.kept.held.trim_below(offset);
        }
        if self.kept.held.is_empty() {
            return self.restart(pool);
        }
        self.drop_pages(pool);
    }

    /// Begins anew at what was taken, without memory.
    fn restart(&mut self, pool: &mut ChunkPool) {
        self.release(pool);
        self.base = self.taken / CHUNK_U64 * CHUNK_U64;
    }

    /// Keeps `data`, which begins at `offset`, at or above what was taken and at or above `next`, the
    /// first octet that has not come. What begins there is refused for want of memory only: it makes
    /// holes fewer.
    pub(crate) fn insert(
        &mut self,
        pool: &mut ChunkPool,
        next: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<(), Full> {
        if offset > next && self.is_scattered(next, data.len()) {
            return Err(Full);
        }
        self.kept.hold(&mut pool.spares.kept);
        if !self.make_pages(pool, offset..offset + data.len() as u64) {
            return Err(Full);
        }
        if !self.kept.held.insert(offset..offset + data.len() as u64) {
            return Err(Full);
        }
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (page, from) = self.place(at);
            let take = (CHUNK - from).min(rest.len());
            if let Some(Some(chunk)) = self.kept.pages.get_mut(page) {
                chunk[from..from + take].copy_from_slice(&rest[..take]);
            }
            (at, rest) = (at + take as u64, &rest[take..]);
        }
        Ok(())
    }

    /// Whether the peer has left more holes than a path makes.
    fn is_scattered(&self, next: u64, len: usize) -> bool {
        let held = &self.kept.held;
        let (in_order, _) = self.place(next);
        let chunks = self.kept.chunks.saturating_sub(in_order) as u64;
        // The last place is kept for what comes in order.
        held.len() >= HOLES_MAX - 1
            || (held.len() > HOLES_FREE && held.mean_len() < RUN_MEAN_MIN)
            || (chunks > CHUNKS_FREE && held.octets() + (len as u64) < chunks * CHUNK_MEAN_MIN)
    }

    #[allow(clippy::cast_possible_truncation)] // Bounded by the window, far below 2^32.
    fn place(&self, offset: u64) -> (usize, usize) {
        let distance = offset - self.base;
        ((distance / CHUNK_U64) as usize, (distance % CHUNK_U64) as usize)
    }

    /// Gives each page of `range` a chunk; none if there are too few.
    fn make_pages(&mut self, pool: &mut ChunkPool, range: Range<u64>) -> bool {
        let (first, _) = self.place(range.start);
        let (last, _) = self.place(range.end - 1);
        let Kept { pages, chunks, .. } = &mut *self.kept;
        let is_missing = |page: &usize| pages.get(*page).is_none_or(Option::is_none);
        if !pool.can_hold((first..=last).filter(is_missing).count()) {
            return false;
        }
        while pages.len() <= last {
            pages.push_back(None);
        }
        for page in pages.range_mut(first..=last).filter(|page| page.is_none()) {
            *page = pool.take_held();
            *chunks += 1;
        }
        true
    }

    /// The end of the run of octets that begins at `offset`, or `offset` if there is a hole.
    pub(crate) fn run_end(&self, offset: u64) -> u64 {
        self.kept.held.containing(offset).map_or(offset, |run| run.end)
    }

    /// The runs held above `next`, for SACK blocks; the lowest and highest first.
    pub(crate) fn run_containing(&self, offset: u64) -> Option<Range<u64>> {
        self.kept.held.containing(offset).cloned()
    }

    /// Whether all of `range` is held already.
    pub(crate) fn holds(&self, range: &Range<u64>) -> bool {
        self.kept.held.covers(range)
    }

    /// The first part of `range` that is held.
    pub(crate) fn first_held(&self, range: &Range<u64>) -> Option<Range<u64>> {
        self.kept.held.first_within(range)
    }

    /// Octets below `next` are in order now: they only wait to be taken.
    pub(crate) fn in_order_below(&mut self, next: u64) {
        if !self.kept.held.is_empty() {
            self.kept.held.trim_below(next);
        }
    }

    /// Lends the octets below `next` to `take` piece by piece, until it takes less than it is lent.
    pub(crate) fn lend(
        &mut self,
        pool: &mut ChunkPool,
        next: u64,
        mut take: impl FnMut(&mut [u8]) -> usize,
    ) {
        while self.taken < next {
            let (page, from) = self.place(self.taken);
            let Some(Some(chunk)) = self.kept.pages.get_mut(page) else { break };
            let len = usize::try_from(next - self.taken).map_or(CHUNK, |n| n.min(CHUNK - from));
            let done = take(&mut chunk[from..from + len]).min(len);
            self.taken += done as u64;
            self.drop_pages(pool);
            if done < len {
                break;
            }
        }
        // The last page goes too when nothing in it is needed any more.
        if self.kept.held.is_empty() && self.taken >= next {
            self.restart(pool);
        }
    }

    /// Returns the pages below what was taken.
    fn drop_pages(&mut self, pool: &mut ChunkPool) {
        while self.base + CHUNK_U64 <= self.taken && !self.kept.pages.is_empty() {
            let page = self.kept.pages.pop_front();
            self.give_back(pool, page);
            self.base += CHUNK_U64;
        }
    }

    fn give_back(&mut self, pool: &mut ChunkPool, page: Option<Option<Box<[u8]>>>) {
        if let Some(Some(chunk)) = page {
            pool.give_back_held(chunk);
            self.kept.chunks -= 1;
        }
    }

    /// How many octets are held above the first that has not come.
    pub(crate) fn octets_behind_holes(&self) -> u64 {
        self.kept.held.octets()
    }

    /// Chunks in use while there is something behind a hole; none if there is not.
    pub(crate) fn chunks_behind_holes(&self) -> usize {
        if self.kept.held.is_empty() { 0 } else { self.kept.chunks }
    }

    /// Forgets what lies behind holes, at or above `next`.
    pub(crate) fn renege(&mut self, pool: &mut ChunkPool, next: u64) {
        if self.kept.held.is_empty() {
            return;
        }
        self.kept.held.clear();
        if self.taken >= next {
            return self.restart(pool);
        }
        let (last, _) = self.place(next - 1);
        while self.kept.pages.len() > last + 1 {
            let page = self.kept.pages.pop_back();
            self.give_back(pool, page);
        }
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self, pool: &mut ChunkPool) {
        if self.kept.is_idle() {
            return;
        }
        while !self.kept.pages.is_empty() {
            let page = self.kept.pages.pop_front();
            self.give_back(pool, page);
        }
        self.kept.held.clear();
    }

    /// Gives back what an idle connection need not hold.
    pub(crate) fn shrink(&mut self, pool: &mut ChunkPool) {
        self.kept.release(&mut pool.spares.kept);
    }
}
