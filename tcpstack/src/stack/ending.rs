//! The end of connections: told to the caller, said to the peer, forgotten.

use super::Stack;
use super::holders::Place;
use crate::api::{CloseReason, ConnId};

impl Stack {
    /// The connection is over for the caller, for this reason unless it has one already. What has
    /// to be said to the peer is said in the background.
    pub(super) fn end(&mut self, index: u32, reason: CloseReason) {
        let Some(entry) = self.slots.get_mut(index) else { return };
        if !entry.news.ending {
            // What lingers gives way to whoever comes, and counts against nobody.
            let (source, stranger) = (entry.connection.tuple.remote.ip(), entry.unproven);
            entry.unproven = false;
            self.sources.remove(index, source, stranger);
            entry.connection.close(self.now);
            entry.news.ending = true;
            entry.news.closed = Some(reason);
            entry.news.writable = false;
            if matches!(reason, CloseReason::LocalClosed | CloseReason::LocalAborted) {
                entry.news.readable = false;
            }
            let id = self.slots.id(index);
            self.note_ended(id);
            self.eventful.push(index);
        }
        self.due.push(index);
    }

    /// Remembers who may be forgotten first; those that are gone are dropped before the queue
    /// doubles.
    pub(super) fn note_ended(&mut self, id: ConnId) {
        if self.ended.len() >= 2 * self.config.connections_max as usize {
            let slots = &self.slots;
            self.ended.retain(|id| slots.get(id.index).is_some() && slots.id(id.index) == *id);
        }
        self.ended.push_back(id);
    }

    /// Forgets the connection that has been over for longest, so that those that linger after a
    /// close lock nobody out, if there is one of which the caller has heard everything.
    fn evict_ended(&mut self) {
        for _ in 0..self.ended.len() {
            let Some(id) = self.ended.pop_front() else { break };
            let Some(entry) = self.slots.get(id.index).filter(|_| self.slots.id(id.index) == id)
            else {
                continue; // It is gone.
            };
            if entry.news.done {
                return self.release(id.index);
            }
            self.ended.push_back(id);
        }
    }

    /// Makes a place for one connection if they run short: by one that is over, else by one whose peer
    /// has proven nothing.
    pub(super) fn make_place(&mut self) {
        if self.slots.is_short() {
            self.evict_ended();
        }
        if self.slots.is_short() {
            self.evict_unproven();
        }
    }

    /// Ends a connection whose peer has proven nothing, if there is one: the oldest of the source
    /// network that has most of them.
    pub(super) fn evict_unproven(&mut self) {
        if let Some(index) = self.sources.victim() {
            self.stats.unproven_evicted += 1;
            self.slots.note_leaving();
            self.abort_with(self.slots.id(index), CloseReason::Evicted);
        }
    }

    /// Gives the slot free if neither the peer nor the caller has to be told anything.
    pub(super) fn release_if_over(&mut self, index: u32) {
        if self.slots.get(index).is_some_and(|entry| entry.news.done && entry.is_over()) {
            self.release(index);
        }
    }

    /// Forgets a connection without a word to the peer.
    pub(super) fn release(&mut self, index: u32) {
        let Some(tuple) = self.slots.tuple(index) else { return };
        self.table.remove(&self.secret, &tuple, index);
        self.sources.remove(index, tuple.remote.ip(), false);
        self.wheel.set(index, None);
        if let Some(mut entry) = self.slots.remove(index) {
            self.holders.shift(index, entry.place, Place::default());
            entry.connection.release(self.context.pool());
        }
    }
}
