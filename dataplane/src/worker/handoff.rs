//! The mesh of rings between workers: each pair has one for each direction.
//!
//! A TCP connection lives on the worker whose queue its packets reach; an SA belongs to the one
//! worker that may advance its sequence number and its replay window. Where the two differ, the
//! packet itself travels: one producer, one consumer, no lock, no allocation after the start.

use culvert_dpdk::Mbuf;
use culvert_shm::SlotRef;
use culvert_tcpstack::ConnId;
use rtrb::{Consumer, Producer, PushError, RingBuffer};

use super::peer::Arrival;
use crate::net::icmp_error::Told;
use crate::net::neighbour::Learnt;

/// Packets that may wait on one ring, from one worker to one other.
pub const HANDOFF_RING_ITEMS: usize = 1024;

/// What one worker hands to another.
#[derive(Debug)]
pub enum Handed {
    /// An ESP packet of an SA that the receiver owns.
    Esp {
        /// From the SPI on.
        packet: Mbuf,
        /// How it came.
        arrival: Arrival,
    },
    /// An inner packet for an SA that the receiver owns.
    Inner {
        /// The IP packet.
        packet: Mbuf,
        /// The SA that its policy names.
        sa: SlotRef,
    },
    /// What the network says about a segment or an ESP packet that may be the receiver's.
    IcmpError(Told),
    /// A TCP segment to a local port of the receiver's.
    Segment {
        /// The IP packet.
        packet: Mbuf,
    },
    /// A sealed frame for a connection that the receiver owns; room for it was reserved.
    Frame {
        /// Length field and ESP packet.
        frame: Mbuf,
        /// The connection.
        conn: ConnId,
    },
    /// The stream of a connection that the receiver owns is corrupt: a packet on it had the SPI of
    /// an SA and a wrong ICV.
    Corrupt {
        /// The connection.
        conn: ConnId,
    },
    /// What a packet said about a neighbour: it reached only one queue of the port.
    Neighbour {
        /// Number of the port.
        port: u8,
        /// What it said.
        learnt: Learnt,
    },
}

/// One worker's ends of all its rings.
#[derive(Debug)]
pub struct Mesh<T> {
    to: Vec<Option<Producer<T>>>,
    from: Vec<Consumer<T>>,
    /// The ring that is looked at first: the one behind that of the last item.
    turn: usize,
}

impl<T> Mesh<T> {
    /// Rings between `workers` workers, the ends of worker `n` at index `n`. Each ring takes
    /// `capacity` items.
    #[must_use]
    pub fn between(workers: usize, capacity: usize) -> Vec<Self> {
        let mut meshes: Vec<Self> = (0..workers)
            .map(|_| Self {
                to: Vec::with_capacity(workers),
                from: Vec::with_capacity(workers),
                turn: 0,
            })
            .collect();
        for sender in 0..workers {
            for receiver in 0..workers {
                if sender == receiver {
                    meshes[sender].to.push(None);
                    continue;
                }
                let (producer, consumer) = RingBuffer::new(capacity);
                meshes[sender].to.push(Some(producer));
                meshes[receiver].from.push(consumer);
            }
        }
        meshes
    }

    /// Hands `item` to `worker`.
    ///
    /// # Errors
    /// Gives the item back when the ring is full, and when there is no such other worker.
    pub fn send(&mut self, worker: u16, item: T) -> Result<(), T> {
        match self.to.get_mut(usize::from(worker)) {
            Some(Some(ring)) => ring.push(item).map_err(|PushError::Full(item)| item),
            _ => Err(item),
        }
    }

    /// Whether `worker` could take an item now. A ring only gains room between this and a
    /// [`Mesh::send`], because there is no other producer.
    #[must_use]
    pub fn has_room(&self, worker: u16) -> bool {
        matches!(self.to.get(usize::from(worker)), Some(Some(ring)) if !ring.is_full())
    }

    /// Number of workers, this one included.
    #[must_use]
    pub fn workers(&self) -> u16 {
        u16::try_from(self.to.len()).unwrap_or(u16::MAX)
    }

    /// The next item that any other worker has handed over. The rings take turns: one that is never
    /// empty, because its worker is flooded, must not stop the others.
    pub fn receive(&mut self) -> Option<T> {
        let rings = self.from.len();
        (0..rings).find_map(|step| {
            let ring = (self.turn + step) % rings;
            let item = self.from.get_mut(ring)?.pop().ok()?;
            self.turn = ring + 1;
            Some(item)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_reaches_only_the_worker_it_is_meant_for() {
        let mut meshes = Mesh::between(3, 4);
        assert_eq!(meshes[0].workers(), 3);
        meshes[0].send(2, "a").unwrap();
        meshes[1].send(2, "b").unwrap();
        assert_eq!(meshes[0].receive(), None);
        assert_eq!(meshes[1].receive(), None);
        assert_eq!(meshes[2].receive(), Some("a"));
        assert_eq!(meshes[2].receive(), Some("b"));
        assert_eq!(meshes[2].receive(), None);
    }

    /// One worker's queue of the NIC is flooded with packets that it hands over, as fast as they are
    /// taken: those of the others get through all the same.
    #[test]
    fn a_ring_that_is_never_empty_does_not_stop_the_others() {
        let mut meshes = Mesh::between(3, 4);
        (0..4).for_each(|_| meshes[0].send(2, "flood").unwrap());
        (0..4).for_each(|_| meshes[1].send(2, "peer").unwrap());
        let mut taken = Vec::new();
        for _ in 0..8 {
            let item = meshes[2].receive().unwrap();
            if item == "flood" {
                meshes[0].send(2, item).unwrap();
            }
            taken.push(item);
        }
        assert_eq!(taken.iter().filter(|item| **item == "peer").count(), 4, "{taken:?}");
    }

    #[test]
    fn a_full_ring_gives_the_item_back() {
        let mut meshes = Mesh::between(2, 1);
        assert!(meshes[0].has_room(1) && !meshes[0].has_room(0));
        meshes[0].send(1, 1).unwrap();
        assert!(!meshes[0].has_room(1));
        assert_eq!(meshes[0].send(1, 2), Err(2));
        assert_eq!(meshes[1].receive(), Some(1));
        meshes[0].send(1, 2).unwrap();
    }

    #[test]
    fn there_is_no_ring_to_oneself_or_to_nobody() {
        let mut meshes = Mesh::between(2, 1);
        assert_eq!(meshes[0].send(0, 1), Err(1));
        assert_eq!(meshes[0].send(7, 1), Err(1));
    }
}
