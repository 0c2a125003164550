//! Buffers that start empty, grow by chunks from the worker's pool, and give them back.
//!
//! [`SendBuffer`] holds what was written and not yet acknowledged; a frame is sealed straight into
//! it, in one piece. [`ReceiveBuffer`] holds only what lies behind a hole or was not taken yet:
//! octets that arrive in order go to the caller from where the device put them.

mod receive;
mod send;
#[cfg(test)]
mod tests;

pub(crate) use receive::ReceiveBuffer;
pub(crate) use send::SendBuffer;

use super::congestion::Signals;
use super::connection::LossSpares;
use super::lazy::Spares;
use super::scoreboard::Scoreboard;
use crate::framing::PREFIX;

/// Octets in a chunk.
pub(crate) const CHUNK: usize = 16 * 1024;
const CHUNK_U64: u64 = CHUNK as u64;
/// The longest frame: a stream prefix, and what a 16-bit length can count (RFC 9329, 3).
pub(crate) const FRAME_MAX: usize = PREFIX.len() + u16::MAX as usize;
/// Octets that urgent frames may wait behind until they begin to leave, their own included: the
/// longest of them behind the rest of a longest frame. A peer can ask for one answer after another
/// and take none.
pub(crate) const URGENT_MAX: usize = 2 * FRAME_MAX;
/// Chunks that the longest segment touches.
const SEGMENT_CHUNKS: usize = (u16::MAX as usize).div_ceil(CHUNK) + 1;
/// Chunks kept for reuse; more are returned to the system.
const KEPT_MAX: usize = 4096;
/// The chunks of one worker: bounded in all, recycled without the allocator.
#[derive(Debug)]
pub(crate) struct ChunkPool {
    free: Vec<Box<[u8]>>,
    /// Chunks of receive buffers, and of all.
    held: usize,
    in_use: usize,
    in_use_max: usize,
    /// Where a frame is written before its octets find their places: [`FRAME_MAX`] octets from the
    /// first such frame on.
    aside: Vec<u8>,
    /// What goes from connection to connection beside chunks.
    pub(crate) spares: AllSpares,
}

/// Spare states of each kind.
#[derive(Debug)]
pub(crate) struct AllSpares {
    waiting: Spares<send::Waiting>,
    kept: Spares<receive::Kept>,
    pub(crate) boards: Spares<Scoreboard>,
    pub(crate) signals: Spares<Signals>,
    pub(crate) losses: LossSpares,
}

impl ChunkPool {
    /// A pool that hands out at most `octets_max` octets at a time.
    pub(crate) fn new(octets_max: usize) -> Self {
        let spares = AllSpares {
            waiting: Spares::new(),
            kept: Spares::new(),
            boards: Spares::new(),
            signals: Spares::new(),
            losses: LossSpares::new(),
        };
        let in_use_max = octets_max / CHUNK;
        Self { free: Vec::new(), held: 0, in_use: 0, in_use_max, aside: Vec::new(), spares }
    }

    /// A chunk for what is sent.
    fn take(&mut self) -> Option<Box<[u8]>> {
        self.has_room_for(1).then(|| self.hand_out())
    }

    /// Whether there are so many chunks for what was received.
    fn can_hold(&self, chunks: usize) -> bool {
        self.held + chunks <= self.held_max() && self.in_use + chunks <= self.in_use_max
    }

    /// A chunk for what was received.
    fn take_held(&mut self) -> Option<Box<[u8]>> {
        self.can_hold(1).then(|| {
            self.held += 1;
            self.hand_out()
        })
    }

    fn hand_out(&mut self) -> Box<[u8]> {
        self.in_use += 1;
        self.free.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice())
    }

    /// Half of all is kept for sending, so that no peer's holes keep anybody from it.
    fn held_max(&self) -> usize {
        self.in_use_max / 2
    }

    /// A quarter is kept for octets behind holes, so that senders do not make losses dear.
    fn sent_max(&self) -> usize {
        self.in_use_max - self.in_use_max / 4
    }

    /// Room for a frame, to be given back to `aside`.
    fn take_aside(&mut self) -> Vec<u8> {
        let mut aside = std::mem::take(&mut self.aside);
        aside.resize(FRAME_MAX, 0);
        aside
    }

    fn send_chunks(&self) -> usize {
        let sent = self.in_use - self.held;
        self.sent_max().saturating_sub(sent).min(self.in_use_max - self.in_use)
    }

    fn has_room_for(&self, chunks: usize) -> bool {
        chunks <= self.send_chunks()
    }

    /// Octets that can still be written.
    pub(crate) fn send_room(&self) -> usize {
        self.send_chunks() * CHUNK
    }

    fn give_back_held(&mut self, chunk: Box<[u8]>) {
        self.held -= 1;
        self.give_back(chunk);
    }

    /// Whether the next segment may find no chunk because others hold many: they have half of all,
    /// or a quarter while senders have the rest.
    pub(crate) fn is_pressed(&self) -> bool {
        let needed = SEGMENT_CHUNKS.min(self.held_max() / 8).max(1);
        self.held + needed > self.held_max()
            || (self.held > self.in_use_max / 4 && self.in_use + needed > self.in_use_max)
    }

    fn give_back(&mut self, chunk: Box<[u8]>) {
        self.in_use -= 1;
        if self.free.len() < KEPT_MAX {
            self.free.push(chunk);
        }
    }

    /// Octets handed out now.
    pub(crate) fn octets_in_use(&self) -> usize {
        self.in_use * CHUNK
    }

    /// Whether three quarters are in use: time to stop growing windows.
    pub(crate) fn is_scarce(&self) -> bool {
        self.in_use * 4 >= self.in_use_max * 3
    }
}

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;
