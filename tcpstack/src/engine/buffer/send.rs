//! What was written and not yet acknowledged. A frame lies in one piece, so that it is sealed where
//! it is sent from.

use super::{CHUNK, ChunkPool, Full};
use crate::engine::lazy::{Idle, Lazy};
use crate::time::Instant;
use std::collections::VecDeque;
use std::ops::Range;

/// A run of written octets.
#[derive(Debug)]
struct Written {
    start: u64,
    len: usize,
    data: Box<[u8]>,
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
struct Waiting {
    chunks: VecDeque<Written>,
    /// Frames not yet wholly sent, in order.
    frames: VecDeque<Frame>,
}

impl Waiting {
    const fn nothing() -> Self {
        Self { chunks: VecDeque::new(), frames: VecDeque::new() }
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
        let needed = len.div_ceil(CHUNK);
        if !pool.has_room_for(needed) {
            return Err(Full);
        }
        let mut aside = vec![0; len];
        let written = fill(&mut aside).min(len);
        for piece in aside[..written].chunks(CHUNK) {
            let mut data = pool.take().ok_or(Full)?;
            data[..piece.len()].copy_from_slice(piece);
            self.waiting.chunks.push_back(Written { start: self.end, len: piece.len(), data });
            self.end += piece.len() as u64;
        }
        self.note_frame(written, now);
        Ok(written)
    }

    fn note_frame(&mut self, written: usize, now: Instant) {
        if written > 0 {
            let start = self.end - written as u64;
            self.waiting.frames.push_back(Frame { start, end: self.end, written_at: now });
        }
    }

    /// Writes `frame` in front of all frames that have not been started, given that everything
    /// below `next` has been sent: how IKE overtakes ESP (order between messages is not promised).
    pub(crate) fn write_urgent(
        &mut self,
        pool: &mut ChunkPool,
        now: Instant,
        next: u64,
        frame: &[u8],
    ) -> Result<(), Full> {
        let boundary = self.unstarted(next);
        let overtaken: Vec<(Vec<u8>, Instant)> = self
            .waiting
            .frames
            .iter()
            .filter(|held| held.start >= boundary)
            .map(|held| (self.copy_of(held.start..held.end), held.written_at))
            .collect();
        // Room for all of it must be certain before anything is moved.
        let octets = frame.len() + overtaken.iter().map(|(held, _)| held.len()).sum::<usize>();
        if !pool.has_room_for(octets.div_ceil(CHUNK) * 2 + 1) {
            return Err(Full);
        }
        self.truncate(pool, boundary);
        self.write_with(pool, now, frame.len(), |out| copy(frame, out))?;
        for (held, written_at) in overtaken {
            self.write_with(pool, written_at, held.len(), |out| copy(&held, out))?;
        }
        Ok(())
    }

    fn copy_of(&self, range: Range<u64>) -> Vec<u8> {
        let mut octets = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        self.read(range.start, &mut octets);
        octets
    }

    /// Where the first frame begins of which no octet was sent.
    fn unstarted(&self, next: u64) -> u64 {
        self.waiting
            .frames
            .iter()
            .map(|frame| frame.start)
            .find(|start| *start >= next)
            .unwrap_or(self.end)
    }

    fn truncate(&mut self, pool: &mut ChunkPool, end: u64) {
        while let Some(last) = self.waiting.chunks.back_mut() {
            if last.start < end {
                last.len = last.len.min(usize::try_from(end - last.start).unwrap_or(last.len));
                break;
            }
            if let Some(gone) = self.waiting.chunks.pop_back() {
                pool.give_back(gone.data);
            }
        }
        self.waiting.frames.retain(|frame| frame.end <= end);
        self.end = end;
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
    pub(crate) fn shrink(&mut self) {
        self.waiting.shrink();
    }

    /// Gives everything back.
    pub(crate) fn release(&mut self, pool: &mut ChunkPool) {
        for chunk in std::mem::take(&mut self.waiting.chunks) {
            pool.give_back(chunk.data);
        }
        self.waiting.frames.clear();
        self.waiting.shrink();
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    to[..from.len()].copy_from_slice(from);
    from.len()
}
