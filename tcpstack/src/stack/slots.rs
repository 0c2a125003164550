//! The connections of a stack: each in a slot whose index is its name's.

use crate::api::{CloseReason, ConnId, ConnInfo};
use crate::sockets::Socket;
use crate::table::FourTuple;
use crate::time::Instant;

/// How far a connection is, as its caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// We sent a SYN. The caller has the name already.
    Connecting,
    /// We received a SYN. The caller does not know of it.
    HalfOpen,
    /// The handshake is done.
    Open,
    /// Nothing more is given to the caller but the reason. The peer is told in the background.
    Closing,
}

/// One connection.
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) tuple: FourTuple,
    pub(super) originator: bool,
    pub(super) phase: Phase,
    /// When this phase began.
    pub(super) since: Instant,
    pub(super) opened_at: Instant,
    pub(super) heard_at: Instant,
    /// When the send buffer was last empty, or last shrank.
    pub(super) progress_at: Instant,
    pub(super) challenged_at: Option<Instant>,
    /// Sequence number of the peer's first octet.
    pub(super) peer_first: u32,
    /// Octets consumed, by the caller or because the connection is closing.
    pub(super) octets_in: u64,
    pub(super) octets_out: u64,
    pub(super) segments_in: u64,
    /// What the caller wanted to write and could not; 0 if nothing.
    pub(super) wanted: usize,
    pub(super) news: News,
}

/// What the caller has not been told yet.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct News {
    pub(super) opened: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) closed: Option<CloseReason>,
    /// The caller has been told everything, that it is closed included.
    pub(super) done: bool,
}

impl Connection {
    pub(super) fn new(
        now: Instant,
        socket: Socket,
        tuple: FourTuple,
        phase: Phase,
        peer_first: u32,
    ) -> Self {
        Self {
            socket,
            tuple,
            originator: phase == Phase::Connecting,
            phase,
            since: now,
            opened_at: now,
            heard_at: now,
            progress_at: now,
            challenged_at: None,
            peer_first,
            octets_in: 0,
            octets_out: 0,
            segments_in: 0,
            wanted: 0,
            news: News::default(),
        }
    }

    pub(super) fn enter(&mut self, now: Instant, phase: Phase) {
        self.phase = phase;
        self.since = now;
    }

    /// The sequence number that the peer's next new octet has.
    pub(super) fn receive_next(&self) -> u32 {
        // Sequence numbers wrap, so the count does too.
        self.peer_first
            .wrapping_add(self.octets_in as u32)
            .wrapping_add(self.socket.unread() as u32)
    }

    pub(super) fn info(&self) -> ConnInfo {
        // The octets before this sequence number have been written by the caller.
        let written = self.socket.sent.first.wrapping_add(self.octets_out as u32);
        let unacknowledged = self.socket.unacknowledged();
        let ahead = written.wrapping_sub(self.socket.sent.next).cast_signed();
        let unsent = usize::try_from(ahead).unwrap_or(0).min(unacknowledged);
        ConnInfo {
            local: self.tuple.local,
            remote: self.tuple.remote,
            originator: self.originator,
            opened_at: self.opened_at,
            heard_at: self.heard_at,
            octets_in: self.octets_in,
            octets_out: self.octets_out,
            segments_in: self.segments_in,
            segments_out: self.socket.sent.segments,
            unread_bytes: self.socket.unread(),
            unsent_bytes: unsent,
            in_flight_bytes: unacknowledged - unsent,
        }
    }
}

/// A place for a connection.
#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// All places.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    limit: u32,
}

impl Slots {
    pub(super) fn new(limit: u32) -> Self {
        let capacity = limit as usize;
        Self { slots: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity), limit }
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
    pub(super) fn add(&mut self, connection: Connection) -> Option<ConnId> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.connection = Some(connection);
        Some(ConnId { index, generation: slot.generation })
    }

    /// Takes a connection out. Its name is never used again.
    pub(super) fn remove(&mut self, index: u32) -> Option<Connection> {
        let slot = self.slots.get_mut(index as usize)?;
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(connection)
    }

    pub(super) fn get(&self, index: u32) -> Option<&Connection> {
        self.slots.get(index as usize)?.connection.as_ref()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Connection> {
        self.slots.get_mut(index as usize)?.connection.as_mut()
    }

    /// The connection that the caller means, unless the caller has been told that it is closed.
    pub(super) fn named(&self, id: ConnId) -> Option<&Connection> {
        let slot = self.slots.get(id.index as usize)?;
        let connection = slot.connection.as_ref()?;
        (slot.generation == id.generation && !connection.news.done).then_some(connection)
    }

    /// The same, to be changed.
    pub(super) fn named_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.named(id)?;
        self.get_mut(id.index)
    }

    pub(super) fn id(&self, index: u32) -> ConnId {
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        ConnId { index, generation }
    }

    pub(super) fn tuple(&self, index: u32) -> Option<FourTuple> {
        Some(self.get(index)?.tuple)
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
