//! How much each TCP connection can take, for workers that do not own it.
//!
//! An inner packet has to be dropped before it is sealed when its connection is full, and sealing
//! happens at the owner of the SA. Where that is not the owner of the connection, the room is told
//! across: its owner publishes what is free, and those who seal reserve from it.

use std::sync::atomic::{AtomicU32, Ordering};

/// Octets kept back when room is published: frames that were reserved from an older figure and are
/// still on the ring find their place there.
const ROOM_KEPT: usize = 32 * 1024;

/// Octets that can be written to each connection of each worker.
#[derive(Debug)]
pub struct Rooms {
    connections: usize,
    rooms: Box<[AtomicU32]>,
}

impl Rooms {
    /// For `workers` workers of `connections` connections each, none with any room.
    #[must_use]
    pub fn new(workers: u16, connections: u32) -> Self {
        let count = usize::from(workers) * connections as usize;
        Self {
            connections: connections as usize,
            rooms: (0..count).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Says that connection `index` of `worker` has `octets` free. Only ever by its owner.
    pub fn publish(&self, worker: u16, index: u32, octets: usize) {
        if let Some(room) = self.room(worker, index) {
            let free = u32::try_from(octets.saturating_sub(ROOM_KEPT)).unwrap_or(u32::MAX);
            room.store(free, Ordering::Relaxed);
        }
    }

    /// Reserves `octets` for a frame that is about to be sealed; false when there is no room.
    pub fn reserve(&self, worker: u16, index: u32, octets: usize) -> bool {
        let Some(room) = self.room(worker, index) else { return false };
        let Ok(octets) = u32::try_from(octets) else { return false };
        let less = |free: u32| free.checked_sub(octets);
        room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn room(&self, worker: u16, index: u32) -> Option<&AtomicU32> {
        let index = usize::try_from(index).ok().filter(|&index| index < self.connections)?;
        self.rooms.get(usize::from(worker) * self.connections + index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_reserved_than_was_published() {
        let rooms = Rooms::new(2, 3);
        assert!(!rooms.reserve(1, 2, 1), "nothing is published yet");
        rooms.publish(1, 2, ROOM_KEPT + 3000);
        assert!(rooms.reserve(1, 2, 1500));
        assert!(rooms.reserve(1, 2, 1500));
        assert!(!rooms.reserve(1, 2, 1));
        assert!(!rooms.reserve(0, 2, 1), "another worker's connection of the same index");
    }

    #[test]
    fn there_is_no_room_where_there_is_no_connection() {
        let rooms = Rooms::new(1, 1);
        rooms.publish(0, 1, usize::MAX);
        rooms.publish(1, 0, usize::MAX);
        assert!(!rooms.reserve(0, 1, 0));
        assert!(!rooms.reserve(1, 0, 0));
        assert!(!rooms.reserve(0, 0, usize::MAX));
    }
}
