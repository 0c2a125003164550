//! The worker's memory for buffers, which all its connections share: who gives way when it is short,
//! and who is told when there is some again.

use super::Stack;
use super::holders::Place;
use crate::api::{ConnError, ConnId};
use crate::engine::buffer::CHUNK;

impl Stack {
    /// Octets that one [`Stack::send_with`] could take now, 0 if the connection cannot send.
    #[must_use]
    pub fn send_capacity(&self, id: ConnId) -> usize {
        let settings = self.context.settings();
        self.slots
            .named(id)
            .filter(|entry| entry.is_open())
            .map_or(0, |entry| entry.connection.send_capacity(settings))
            .min(self.context.send_room())
    }

    /// As [`Stack::send_capacity`]; when it is less than `len`, an [`Event::Writable`] follows as soon
    /// as there is as much.
    ///
    /// [`Event::Writable`]: crate::Event::Writable
    pub fn room_or_event(&mut self, id: ConnId, len: usize) -> usize {
        let room = self.send_capacity(id);
        if room < len {
            self.want(id, len);
        }
        room
    }

    /// Lends `len` octets of the send buffer to `write`, which says how many of them it has
    /// written, from the first on; so many are sent, as one frame, and this gives their number.
    /// At most a frame of RFC 9329 behind the stream prefix: 65,541 octets.
    /// All or nothing: if there is no room for `len` octets, `write` is not called, so that a frame
    /// is never torn.
    ///
    /// # Errors
    /// [`ConnError::Full`], and an [`Event::Writable`] follows; [`ConnError::Gone`];
    /// [`ConnError::NotOpen`] before [`Event::Opened`].
    ///
    /// [`Event::Writable`]: crate::Event::Writable
    /// [`Event::Opened`]: crate::Event::Opened
    pub fn send_with(
        &mut self,
        id: ConnId,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, ConnError> {
        let now = self.now;
        let mut context = self.context.borrow(now);
        let entry = super::writable(&mut self.slots, id)?;
        let Ok(written) = entry.connection.write_with(&mut context, len, write) else {
            self.want(id, len);
            return Err(ConnError::Full);
        };
        entry.octets_out += written as u64;
        self.due.push(id.index);
        Ok(written)
    }

    /// The caller waits for room for `len` octets: in the connection's own buffer, or in the memory
    /// of all.
    fn want(&mut self, id: ConnId, len: usize) {
        let settings = self.context.settings();
        let Ok(entry) = super::writable(&mut self.slots, id) else { return };
        entry.wanted = u32::try_from(len).unwrap_or(u32::MAX);
        if entry.connection.send_capacity(settings) >= len {
            self.starved.push(id.index);
        }
    }

    /// Notes that the caller may write what it waits to write.
    pub(super) fn notice_room(&mut self, index: u32) {
        let (settings, room) = (self.context.settings(), self.context.send_room());
        let Some(entry) = self.slots.get_mut(index).filter(|entry| entry.is_open()) else { return };
        let wanted = entry.wanted as usize;
        if wanted == 0 || entry.connection.send_capacity(settings) < wanted {
            return;
        }
        if room < wanted {
            self.starved.push(index);
            return;
        }
        entry.wanted = 0;
        entry.news.writable = true;
        self.eventful.push(index);
    }

    /// Wakes those that wait for memory, the one that has waited longest first, and as many as it
    /// is enough for. `false` if nobody was woken.
    pub(super) fn wake_starved(&mut self) -> bool {
        let (mut room, mut woken) = (self.context.send_room(), false);
        while let Some(index) = self.starved.front() {
            let wanted = self.slots.get(index).map_or(0, |entry| entry.wanted as usize);
            if wanted > room {
                break;
            }
            self.starved.pop();
            room -= wanted.next_multiple_of(CHUNK).min(room);
            self.notice_room(index);
            woken = true;
        }
        woken
    }

    /// Before data comes for a connection while memory for octets behind holes is short: who holds
    /// most of it loses what it holds (RFC 2018, 8), so that no few peers can keep it from the
    /// others by leaving a hole for ever. Its peer sends it again.
    pub(super) fn relieve(&mut self, index: u32) {
        let Some(entry) = self.slots.get(index) else { return };
        let victim = self.holders.victim_for(entry.place, entry.unproven);
        let Some(victim) = victim.filter(|victim| *victim != index) else { return };
        if let Some(entry) = self.slots.get_mut(victim) {
            entry.connection.renege(self.context.pool());
            self.stats.reneged += 1;
            self.note_holding(victim);
        }
    }

    /// Notes how much a connection holds behind holes.
    pub(super) fn note_holding(&mut self, index: u32) {
        let Some(entry) = self.slots.get_mut(index) else { return };
        let place = Place::of(entry.connection.chunks_behind_holes(), entry.unproven);
        if place != entry.place {
            self.holders.shift(index, std::mem::replace(&mut entry.place, place), place);
        }
    }
}
