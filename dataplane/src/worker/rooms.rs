//! How much each TCP connection can take, and how old what waits there is, for workers that do not
//! own it.
//!
//! An inner packet has to be dropped before it is sealed when its connection is full or what waits
//! there is old, and sealing happens at the owner of the SA. Where that is not the owner of the
//! connection, both are told across: the connection's owner publishes them, and those who seal
//! reserve from the one and go by the other.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::net::Nanos;

/// Octets kept back when room is published: frames that were reserved from an older figure and are
/// still on the ring find their place there.
const ROOM_KEPT: usize = 32 * 1024;

/// What one connection can take.
#[derive(Debug, Default)]
struct Room {
    /// Octets that can be written to it.
    free: AtomicU32,
    /// Since when the oldest frame of its queue waits to be sent; 0 when there is no queue.
    waiting_since: AtomicU64,
}

/// The room of each connection of each worker.
#[derive(Debug)]
pub struct Rooms {
    connections: usize,
    rooms: Box<[Room]>,
}

impl Rooms {
    /// For `workers` workers of `connections` connections each, none with any room.
    #[must_use]
    pub fn new(workers: u16, connections: u32) -> Self {
        let count = usize::from(workers) * connections as usize;
        Self {
            connections: connections as usize,
            rooms: (0..count).map(|_| Room::default()).collect(),
        }
    }

    /// Says that connection `index` of `worker` has `octets` free, and since when the oldest frame
    /// waits there if there is a queue. Only ever by its owner.
    pub fn publish(&self, worker: u16, index: u32, octets: usize, waiting_since: Option<Nanos>) {
        if let Some(room) = self.room(worker, index) {
            let free = u32::try_from(octets.saturating_sub(ROOM_KEPT)).unwrap_or(u32::MAX);
            room.free.store(free, Ordering::Relaxed);
            room.waiting_since.store(waiting_since.unwrap_or(0), Ordering::Relaxed);
        }
    }

    /// Reserves `octets` for a frame that is about to be sealed; false when there is no room.
    pub fn reserve(&self, worker: u16, index: u32, octets: usize) -> bool {
        let Some(room) = self.room(worker, index) else { return false };
        let Ok(octets) = u32::try_from(octets) else { return false };
        let less = |free: u32| free.checked_sub(octets);
        room.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Gives back what was reserved for a frame that was not sealed after all. What the owner has
    /// published in between counts it twice: that is a part of the octets kept back.
    pub fn give_back(&self, worker: u16, index: u32, octets: usize) {
        let Some(room) = self.room(worker, index) else { return };
        let Ok(octets) = u32::try_from(octets) else { return };
        let more = |free: u32| Some(free.saturating_add(octets));
        let _ = room.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Since when the oldest frame waits to be sent there; `None` when there is no queue.
    #[must_use]
    pub fn waiting_since(&self, worker: u16, index: u32) -> Option<Nanos> {
        let since = self.room(worker, index)?.waiting_since.load(Ordering::Relaxed);
        (since > 0).then_some(since)
    }

    fn room(&self, worker: u16, index: u32) -> Option<&Room> {
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
        rooms.publish(1, 2, ROOM_KEPT + 3000, Some(7));
        assert!(rooms.reserve(1, 2, 1500));
        assert!(rooms.reserve(1, 2, 1500));
        assert!(!rooms.reserve(1, 2, 1));
        rooms.give_back(1, 2, 1500);
        assert!(rooms.reserve(1, 2, 1500));
        assert!(!rooms.reserve(0, 2, 1), "another worker's connection of the same index");
        assert_eq!((rooms.waiting_since(1, 2), rooms.waiting_since(0, 2)), (Some(7), None));
        rooms.publish(1, 2, 0, None);
        assert_eq!(rooms.waiting_since(1, 2), None);
    }

    #[test]
    fn there_is_no_room_where_there_is_no_connection() {
        let rooms = Rooms::new(1, 1);
        rooms.publish(0, 1, usize::MAX, Some(7));
        rooms.publish(1, 0, usize::MAX, Some(7));
        assert!(!rooms.reserve(0, 1, 0));
        assert!(!rooms.reserve(1, 0, 0));
        assert!(!rooms.reserve(0, 0, usize::MAX));
        assert_eq!(rooms.waiting_since(1, 0), None);
    }
}
