//! The connections of a stack: each in a slot whose index is its name's.

use super::holders::Place;
use crate::api::{CloseReason, ConnId, ConnInfo};
use crate::engine::connection::{Connection, State};
use crate::table::FourTuple;
use crate::time::Instant;

/// One connection and what its caller knows of it.
pub(super) struct Entry {
    pub(super) connection: Connection,
    /// When the handshake was done; before that, when it began.
    pub(super) opened_at: Instant,
    pub(super) octets_in: u64,
    pub(super) octets_out: u64,
    pub(super) segments_in: u64,
    /// What the caller wanted to write and could not; 0 if nothing.
    pub(super) wanted: u32,
    /// The caller has not vouched for the peer: the connection gives way under pressure.
    pub(super) unproven: bool,
    /// Among those that hold octets behind holes.
    pub(super) place: Place,
    pub(super) news: News,
}

/// What the caller has not been told yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct News {
    pub(super) opened: bool,
    pub(super) was_opened: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) closed: Option<CloseReason>,
    /// The end has begun: nothing but what is left to read and the reason is told any more.
    pub(super) ending: bool,
    /// The caller has been told everything, that it is closed included.
    pub(super) done: bool,
}

impl Entry {
    pub(super) fn new(connection: Connection, now: Instant) -> Self {
        Self {
            opened_at: now,
            unproven: !connection.originator,
            connection,
            octets_in: 0,
            octets_out: 0,
            segments_in: 0,
            wanted: 0,
            place: Place::default(),
            news: News::default(),
        }
    }

    /// Whether the caller may read and write.
    pub(super) fn is_open(&self) -> bool {
        self.connection.is_synchronized() && !self.news.ending
    }

    /// Whether nothing is left to be said to the peer.
    pub(super) fn is_over(&self) -> bool {
        self.connection.state == State::Closed
    }

    /// Whether it was ended to make room for another one.
    fn has_given_way(&self) -> bool {
        self.connection.close_reason() == Some(CloseReason::Evicted)
    }

    pub(super) fn info(&self) -> ConnInfo {
        let (unsent, waiting_since) = self.connection.unsent();
        let bytes = |octets: u64| usize::try_from(octets).unwrap_or(usize::MAX);
        ConnInfo {
            local: self.connection.tuple.local.into(),
            remote: self.connection.tuple.remote.into(),
            originator: self.connection.originator,
            congestion_control: self.connection.congestion_control(),
            opened_at: self.opened_at,
            heard_at: self.connection.last_heard,
            octets_in: self.octets_in,
            octets_out: self.octets_out,
            segments_in: self.segments_in,
            segments_out: self.connection.segments_out,
            unread_bytes: bytes(self.connection.unread()),
            unsent_bytes: bytes(unsent),
            unsent_since: waiting_since,
            in_flight_bytes: bytes(self.connection.in_flight()),
        }
    }
}

/// A place for a connection. Boxed, so that a table of many empty places is small.
#[derive(Default)]
struct Slot {
    generation: u32,
    entry: Option<Box<Entry>>,
}

/// Places that are kept free for whoever comes next, as long as somebody can give way for that: a
/// sixteenth of all, but no more than come in one batch. Who gives way keeps its place until its caller
/// knows, which is when the batch is over.
const SPARE_MAX: u32 = 64;

/// All places.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: u32,
    /// Connections that have given way and are still there.
    leaving: u32,
}

impl Slots {
    pub(super) fn new(limit: u32) -> Self {
        let capacity = limit as usize;
        let (slots, free) = (Vec::with_capacity(capacity), Vec::with_capacity(capacity));
        Self { slots, free, limit, leaving: 0 }
    }

    /// Whether somebody should give way to the next connection.
    pub(super) fn is_short(&self) -> bool {
        let taken = (self.slots.len() - self.free.len()) as u32;
        self.limit - taken + self.leaving <= (self.limit / 16).min(SPARE_MAX)
    }

    /// A connection gives way.
    pub(super) fn note_leaving(&mut self) {
        self.leaving += 1;
    }

    /// Whether as many connections are there as may be.
    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty() && self.slots.len() == self.limit as usize
    }

    /// How many slots have ever been used.
    pub(super) fn used(&self) -> usize {
        self.slots.len()
    }

    /// Puts a connection into a free slot, unless there is none.
    pub(super) fn add(&mut self, entry: Entry) -> Option<ConnId> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.entry = Some(Box::new(entry));
        Some(ConnId { index, generation: slot.generation })
    }

    /// Takes a connection out. Its name is never used again.
    pub(super) fn remove(&mut self, index: u32) -> Option<Box<Entry>> {
        let slot = self.slots.get_mut(index as usize)?;
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.leaving -= u32::from(entry.has_given_way());
        self.free.push(index);
        Some(entry)
    }

    pub(super) fn get(&self, index: u32) -> Option<&Entry> {
        self.slots.get(index as usize)?.entry.as_deref()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.slots.get_mut(index as usize)?.entry.as_deref_mut()
    }

    /// The connection that the caller means, unless the caller has been told that it is closed.
    pub(super) fn named(&self, id: ConnId) -> Option<&Entry> {
        let slot = self.slots.get(id.index as usize)?;
        let entry = slot.entry.as_deref()?;
        (slot.generation == id.generation && !entry.news.done).then_some(entry)
    }

    /// The same, to be changed.
    pub(super) fn named_mut(&mut self, id: ConnId) -> Option<&mut Entry> {
        self.named(id)?;
        self.get_mut(id.index)
    }

    pub(super) fn id(&self, index: u32) -> ConnId {
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        ConnId { index, generation }
    }

    pub(super) fn tuple(&self, index: u32) -> Option<FourTuple> {
        Some(self.get(index)?.connection.tuple)
    }
}

/// A queue of indexes in which each is at most once, so that it is never longer than the slots
/// are many.
pub(super) struct Queue {
    order: std::collections::VecDeque<u32>,
    member: Vec<bool>,
}

impl Queue {
    pub(super) fn new(limit: u32) -> Self {
        let order = std::collections::VecDeque::with_capacity(limit as usize);
        Self { order, member: vec![false; limit as usize] }
    }

    /// Adds an index at the end, unless it is in the queue.
    pub(super) fn push(&mut self, index: u32) {
        if !std::mem::replace(&mut self.member[index as usize], true) {
            self.order.push_back(index);
        }
    }

    pub(super) fn front(&self) -> Option<u32> {
        self.order.front().copied()
    }

    pub(super) fn pop(&mut self) -> Option<u32> {
        let index = self.order.pop_front()?;
        self.member[index as usize] = false;
        Some(index)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle established connection costs: its slot, its entry, and its places in the table,
    /// the wheel, the queues and the lists of holders and sources. Buffers and scoreboard hold nothing
    /// then.
    #[test]
    fn an_idle_connection_costs_at_most_a_kibibyte() {
        let slot = size_of::<Slot>() + size_of::<u32>();
        let places = 2 * 8
            + 3 * (size_of::<u32>() + 1)
            + 2 * size_of::<u32>()
            + 32
            + super::super::sources::PLACE_BYTES;
        let entry = size_of::<Entry>();
        assert!(slot + places + entry <= 1024, "{slot} + {places} + {entry}");
    }
}
