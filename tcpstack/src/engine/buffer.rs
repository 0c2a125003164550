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
/// Chunks kept for reuse; more are returned to the system.
const KEPT_MAX: usize = 4096;
/// The chunks of one worker: bounded in all, recycled without the allocator.
#[derive(Debug)]
pub(crate) struct ChunkPool {
    free: Vec<Box<[u8]>>,
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
}

impl ChunkPool {
    /// A pool that hands out at most `octets_max` octets at a time.
    pub(crate) fn new(octets_max: usize) -> Self {
        let spares = AllSpares {
            waiting: Spares::new(),
            kept: Spares::new(),
            boards: Spares::new(),
            signals: Spares::new(),
        };
        let in_use_max = octets_max / CHUNK;
        Self { free: Vec::new(), in_use: 0, in_use_max, aside: Vec::new(), spares }
    }

    fn take(&mut self) -> Option<Box<[u8]>> {
        if self.in_use >= self.in_use_max {
            return None;
        }
        self.in_use += 1;
        Some(self.free.pop().unwrap_or_else(|| vec![0; CHUNK].into_boxed_slice()))
    }

    /// Room for a frame, to be given back to `aside`.
    fn take_aside(&mut self) -> Vec<u8> {
        let mut aside = std::mem::take(&mut self.aside);
        aside.resize(FRAME_MAX, 0);
        aside
    }

    fn has_room_for(&self, chunks: usize) -> bool {
        self.in_use + chunks <= self.in_use_max
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

    /// Whether more than three quarters are in use: time to stop growing windows.
    pub(crate) fn is_scarce(&self) -> bool {
        self.in_use * 4 > self.in_use_max * 3
    }
}

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;
