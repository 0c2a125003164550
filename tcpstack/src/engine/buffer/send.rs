//! What was written and not yet acknowledged. A frame lies in one piece, so that it is sealed where
//! it is sent from.

use super::{CHUNK, ChunkPool, FRAME_MAX, Full, URGENT_MAX};
use crate::engine::lazy::{ENTRIES_KEPT, Idle, Lazy};
use crate::time::Instant;
use std::collections::VecDeque;

/// A run of written octets.
#[derive(Debug)]
pub(crate) struct Written {
    start: u64,
    len: usize,
    data: Box<[u8]>,
}

impl ChunkPool {
    /// A chunk that holds `octets`, which begin at `start`.
    fn take_with(&mut self, start: u64, octets: &[u8]) -> Option<Written> {
        let mut data = self.take()?;
        data[..octets.len()].copy_from_slice(octets);
        Some(Written { start, len: octets.len(), data })
    }
}

impl Written {
    fn end(&self) -> u64 {
        self.start + self.len as u64
    }
}

/// A frame that has not been sent whole, and when it was written.
#[derive(Clone, Copy, Debug)]
struct Frame {
    start: u64,
    end: u64,
    written_at: Instant,
}

/// What was written and not yet acknowledged.
#[derive(Debug)]
pub(crate) struct SendBuffer {
    end: u64,
    waiting: Lazy<Waiting>,
}

/// The octets themselves.
#[derive(Debug)]
pub(crate) struct Waiting {
    chunks: VecDeque<Written>,
    /// Frames not yet wholly sent, in order: one that is started, urgent ones, the others.
    frames: VecDeque<Frame>,
    /// The end of the last urgent frame. None of them lies behind a frame that it could have
    /// overtaken, so that this is where the next one goes.
    urgent_end: u64,
}

impl Waiting {
    const fn nothing() -> Self {
        Self { chunks: VecDeque::new(), frames: VecDeque::new(), urgent_end: 0 }
    }
}

impl Idle for Waiting {
    const IDLE: &'static Self = &Self::nothing();

    fn idle() -> Self {
        Self::nothing()
    }

    fn is_idle(&self) -> bool {
        self.chunks.is_empty() && self.frames.is_empty()
    }

    fn reset(&mut self) {
        self.chunks.shrink_to(ENTRIES_KEPT);
        self.frames.shrink_to(ENTRIES_KEPT);
        self.urgent_end = 0;
    }
}

impl SendBuffer {
    pub(crate) const fn new() -> Self {
        Self { end: 1, waiting: Lazy::new() }
    }

    /// The offset behind the last octet written.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// When the oldest octet that waits at or behind `next` was written.
    pub(crate) fn waiting_since(&self) -> Option<Instant> {
        self.waiting.frames.front().map(|frame| frame.written_at)
    }

    /// Lets `fill` write up to `len` octets in one piece and keeps as many as it says: one frame.
    pub(crate) fn write_with(
        &mut self,
        pool: &mut ChunkPool,
        now: Instant,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, Full> {
        self.waiting.hold(&mut pool.spares.waiting);
        if len > CHUNK {
            return self.write_large(pool, now, len, fill);
        }
        let fits = self.waiting.chunks.back().is_some_and(|last| last.data.len() - last.len >= len);
        if !fits {
            let data = pool.take().ok_or(Full)?;
            self.waiting.chunks.push_back(Written { start: self.end, len: 0, data });
        }
        let Some(last) = self.waiting.chunks.back_mut() else { return Err(Full) };
        let written = fill(&mut last.data[last.len..last.len + len]).min(len);
        last.len += written;
        if last.len == 0 {
            let unused = self.waiting.chunks.pop_back();
            unused.into_iter().for_each(|chunk| pool.give_back(chunk.data));
        }
        self.end += written as u64;
        self.note_frame(written, now);
        Ok(written)
    }

    /// A frame larger than a chunk is filled aside and then spread over several; only IKE messages
    /// with many certificates are that large.
    fn write_large(
        &mut self,
        pool: &mut ChunkPool,
        now: Instant,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, Full> {
        if len > FRAME_MAX || !pool.has_room_for(len.div_ceil(CHUNK)) {
            return Err(Full);
        }
        let mut aside = pool.take_aside();
        let written = fill(&mut aside[..len]).min(len);
        for piece in aside[..written].chunks(CHUNK) {
            if let Some(chunk) = pool.take_with(self.end, piece) {
                self.end += piece.len() as u64;
                self.waiting.chunks.push_back(chunk);
            }
        }
        pool.aside = aside;
        self.note_frame(written, now);
        Ok(written)
    }

    fn note_frame(&mut self, written: usize, now: Instant) {
        if written > 0 {
            let start = self.end - written as u64;
            self.waiting.frames.push_back(Frame { start, end: self.end, written_at: now });
        }
    }

    /// Lets `fill` write a frame of `len` octets in front of all frames that have not been started
    /// and are not urgent themselves, given that everything below `next` has been sent: how IKE
    /// overtakes ESP (order between messages is not promised). At most [`URGENT_MAX`] octets of
    /// them wait, and nothing is written urgently into a buffer that has grown to `chunks_max`.
    pub(crate) fn write_urgent(
        &mut self,
        pool: &mut ChunkPool,
        (now, next): (Instant, u64),
        (len, chunks_max): (usize, usize),
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Full> {
        let boundary = self.unstarted(next);
        let before = usize::try_from(boundary.saturating_sub(next)).unwrap_or(usize::MAX);
        // One more for the rest of a chunk that the frame divides.
        let chunks = len.div_ceil(CHUNK) + 1;
        if before.saturating_add(len) > URGENT_MAX
            || self.waiting.chunks.len() + chunks > chunks_max
            || len > FRAME_MAX
            || !pool.has_room_for(chunks)
        {
            return Err(Full);
        }
        self.waiting.hold(&mut pool.spares.waiting);
        let mut aside = pool.take_aside();
        fill(&mut aside[..len]);
        self.insert(pool, boundary, &aside[..len]);
        pool.aside = aside;
        let frames = &mut self.waiting.frames;
        let place = frames.partition_point(|frame| frame.start < boundary);
        let by = len as u64;
        for frame in frames.range_mut(place..) {
            (frame.start, frame.end) = (frame.start + by, frame.end + by);
        }
        let (start, end) = (boundary, boundary + by);
        frames.insert(place, Frame { start, end, written_at: now });
        self.waiting.urgent_end = end;
        Ok(())
    }

    /// Puts `octets` at `boundary`, where a frame begins; what lies behind moves up. There is room
    /// in the pool.
    fn insert(&mut self, pool: &mut ChunkPool, boundary: u64, octets: &[u8]) {
        let chunks = &mut self.waiting.chunks;
        let mut place = chunks.partition_point(|chunk| chunk.end() <= boundary);
        if let Some(divided) = chunks.get_mut(place).filter(|chunk| chunk.start < boundary) {
            let kept = usize::try_from(boundary - divided.start).unwrap_or(divided.len);
            let rest = pool.take_with(boundary, &divided.data[kept..divided.len]);
            divided.len = kept;
            place += 1;
            rest.into_iter().for_each(|rest| chunks.insert(place, rest));
        }
        for chunk in chunks.range_mut(place..) {
            chunk.start += octets.len() as u64;
        }
        self.end += octets.len() as u64;
        // What fits goes behind the chunk in front, the rest into chunks of its own.
        let mut at = boundary;
        let mut rest = octets;
        if let Some(front) = place.checked_sub(1).and_then(|front| chunks.get_mut(front)) {
            let fits = rest.len().min(front.data.len() - front.len);
            front.data[front.len..front.len + fits].copy_from_slice(&rest[..fits]);
            front.len += fits;
            (at, rest) = (at + fits as u64, &rest[fits..]);
        }
        for piece in rest.chunks(CHUNK) {
            pool.take_with(at, piece).into_iter().for_each(|chunk| chunks.insert(place, chunk));
            (at, place) = (at + piece.len() as u64, place + 1);
        }
    }

    /// Where the first frame begins of which no octet was sent and which is not urgent.
    fn unstarted(&self, next: u64) -> u64 {
        if self.waiting.urgent_end > next {
            return self.waiting.urgent_end;
        }
        // What was sent whole is not in the list, so only the first one can be started.
        match self.waiting.frames.front() {
            Some(first) if first.start < next => first.end,
            Some(first) => first.start,
            None => self.end,
        }
    }

    /// Notes that everything below `next` was sent once.
    pub(crate) fn sent(&mut self, next: u64) {
        while self.waiting.frames.front().is_some_and(|frame| frame.end <= next) {
            self.waiting.frames.pop_front();
        }
    }

    /// Forgets what lies below `una`.
    pub(crate) fn acknowledged(&mut self, pool: &mut ChunkPool, una: u64) {
        while self.waiting.chunks.front().is_some_and(|first| first.end() <= una) {
            if let Some(first) = self.waiting.chunks.pop_front() {
                pool.give_back(first.data);
            }
        }
    }

    /// Copies the octets from `start` on into `out`; what was not written stays as it is.
    pub(crate) fn read(&self, start: u64, out: &mut [u8]) {
        let mut at = self.waiting.chunks.partition_point(|chunk| chunk.end() <= start);
        let (mut from, mut done) = (start, 0);
        while done < out.len() {
            let Some(chunk) = self.waiting.chunks.get(at) else { return };
            let Ok(skip) = usize::try_from(from.saturating_sub(chunk.start)) else { return };
            let take = (chunk.len - skip).min(out.len() - done);
            out[done..done + take].copy_from_slice(&chunk.data[skip..skip + take]);
            (done, from, at) = (done + take, from + take as u64, at + 1);
        }
    }

    /// Gives back what an idle connection need not hold.
    pub(crate) fn shrink(&mut self, pool: &mut ChunkPool) {
        self.waiting.release(&mut pool.spares.waiting);
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self, pool: &mut ChunkPool) {
        for chunk in std::mem::take(&mut self.waiting.chunks) {
            pool.give_back(chunk.data);
        }
        self.waiting.frames.clear();
        self.shrink(pool);
    }
}
