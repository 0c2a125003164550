//! A hierarchical timer wheel: one deadline for each connection, O(1) to set and to stop, and
//! to advance by any time at a cost that depends only on what expires and on the number of levels.
//!
//! Level 0 has a slot for each of the next 64 ticks, level 1 one for each of the next 64 spans of
//! 64 ticks, and so on. When time enters a span of a higher level, the entries of its slot move
//! down. A slot is the head of a doubly linked list through the entries, and one word for each
//! level has a bit for each slot that is not empty, so that empty time is skipped.
//!
//! A deadline that comes nearer moves its entry. One that is put off, or given up, does not: most
//! are with every packet, while few are ever reached. Only when time gets to where its entry lies
//! does it move to where it belongs, and nobody else hears of it.

#[cfg(test)]
mod tests;

use crate::time::Instant;

/// A tick is 2^10 µs, about a millisecond: finer than any timer of TCP.
const TICK_BITS: u32 = 10;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Five levels reach 2^30 ticks, twelve days. A later deadline is kept at the end and put in
/// again when time gets there.
const LEVELS: usize = 5;
const REACH_TICKS: u64 = 1 << (SLOT_BITS * LEVELS as u32);
/// No entry: the end of a list.
const NONE: u32 = u32::MAX;

/// A tick that does not come.
const NEVER: u64 = u64::MAX;

/// One entry, by its key. Two share a cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Entry {
    next: u32,
    previous: u32,
    /// The tick that it is due, if ever.
    due: u64,
    /// The tick, not later than that, at which it is looked at; [`NEVER`] if it is not in the wheel.
    place: u64,
    level: u8,
    slot: u8,
}

const IDLE: Entry =
    Entry { next: NONE, previous: NONE, due: NEVER, place: NEVER, level: 0, slot: 0 };

/// The timers of all connections, each named by the index of its connection.
pub(crate) struct Wheel {
    /// Everything due before this tick has expired.
    now: u64,
    heads: [[u32; SLOTS]; LEVELS],
    /// Which slots are not empty.
    occupied: [u64; LEVELS],
    entries: Vec<Entry>,
}

impl Wheel {
    /// A wheel without timers, with room for keys below `keys_max`.
    pub(crate) fn new(now: Instant, keys_max: u32) -> Self {
        Self {
            now: now.0 >> TICK_BITS,
            heads: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            entries: Vec::with_capacity(keys_max as usize),
        }
    }

    /// Makes keys below `count` usable.
    pub(crate) fn grow(&mut self, count: usize) {
        if self.entries.len() < count {
            self.entries.resize(count, IDLE);
        }
    }

    /// Sets the timer of `key`, or with `None` stops it. It expires in the first
    /// [`Wheel::expire`] that is not before `due`, and less than a tick late.
    pub(crate) fn set(&mut self, key: u32, due: Option<Instant>) {
        // Rounded up: a timer must not expire early.
        let due = due.map_or(NEVER, |due| due.0.saturating_add((1 << TICK_BITS) - 1) >> TICK_BITS);
        let Some(entry) = self.entries.get_mut(key as usize) else { return };
        entry.due = due;
        if due < entry.place {
            self.take_out(key);
            self.insert(key, due);
        }
    }

    /// Takes an entry out of its list, if it is in one. Gives when it was due.
    fn take_out(&mut self, key: u32) -> u64 {
        let Some(entry) = self.entries.get_mut(key as usize) else { return NEVER };
        let Entry { next, previous, due, place, level, slot } = std::mem::replace(entry, IDLE);
        if place == NEVER {
            return due;
        }
        let (level, slot) = (usize::from(level), usize::from(slot));
        match self.entries.get_mut(previous as usize) {
            Some(entry) => entry.next = next,
            None => self.heads[level][slot] = next,
        }
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = previous;
        }
        if self.heads[level][slot] == NONE {
            self.occupied[level] &= !(1 << slot);
        }
        due
    }

    /// Takes out a timer that is due at `now`; `None` when there is none left. Timers come in the
    /// order of their ticks.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<u32> {
        let now = now.0 >> TICK_BITS;
        while self.now <= now {
            // The rest of the span of level 0, from the current tick on.
            let slot = (self.now % SLOTS as u64) as u32;
            let ahead = self.occupied[0] & (u64::MAX << slot);
            let span = self.now - u64::from(slot);
            if ahead != 0 {
                let reached = span + u64::from(ahead.trailing_zeros());
                if reached > now {
                    break;
                }
                self.now = reached;
                let key = self.heads[0][ahead.trailing_zeros() as usize];
                let due = self.take_out(key);
                if due <= reached {
                    return Some(key);
                }
                self.insert(key, due);
                continue;
            }
            let Some(next) = self.next_span(span).filter(|next| *next <= now) else { break };
            self.now = next;
            self.cascade();
        }
        self.settle(now);
        None
    }

    /// The time of the next timer, or an earlier time at which entries move: never later than a
    /// timer.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let slot = (self.now % SLOTS as u64) as u32;
        let span = self.now - u64::from(slot);
        let ahead = self.occupied[0] & (u64::MAX << slot);
        let tick = if ahead == 0 {
            self.next_span(span)?
        } else {
            span + u64::from(ahead.trailing_zeros())
        };
        Some(Instant(tick << TICK_BITS))
    }

    /// When nothing happens up to `now`, time goes on, but not into a span that holds entries: its
    /// entries move down first.
    fn settle(&mut self, now: u64) {
        let slot = (self.now % SLOTS as u64) as u32;
        let next = self.next_span(self.now - u64::from(slot));
        let ahead = self.occupied[0] & (u64::MAX << slot);
        debug_assert!(ahead != 0 || next.is_none_or(|next| next > now));
        if ahead == 0 && now > self.now {
            self.now = now;
        }
    }

    /// The first tick of the next occupied span above level 0, seen from the span of level 0 that
    /// begins at `span`.
    fn next_span(&self, span: u64) -> Option<u64> {
        let mut nearest = None;
        for level in 1..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let current = span >> shift;
            // The current slot of this level has moved down already, so an entry in it is one
            // round ahead.
            let slot = (current % SLOTS as u64) as u32;
            let turned = self.occupied[level].rotate_right(slot + 1);
            let ahead = u64::from(turned.trailing_zeros()) + 1;
            let tick = (current + ahead) << shift;
            nearest = Some(nearest.map_or(tick, |nearest: u64| nearest.min(tick)));
        }
        nearest
    }

    /// Moves the entries of every span that begins at the current tick down.
    fn cascade(&mut self) {
        for level in (1..LEVELS).rev() {
            let shift = SLOT_BITS * level as u32;
            if !self.now.is_multiple_of(1 << shift) {
                continue;
            }
            let slot = ((self.now >> shift) % SLOTS as u64) as usize;
            let mut key = std::mem::replace(&mut self.heads[level][slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while let Some(entry) = self.entries.get_mut(key as usize) {
                let Entry { next, due, .. } = std::mem::replace(entry, IDLE);
                self.insert(key, due);
                key = next;
            }
        }
    }

    fn insert(&mut self, key: u32, due: u64) {
        if key as usize >= self.entries.len() || due == NEVER {
            return;
        }
        let place = due.clamp(self.now, self.now + REACH_TICKS - 1);
        // The level is that of the highest group of bits in which the place differs from now.
        // Only the topmost level wraps: there a slot before the current one is a round ahead.
        let differing = (place ^ self.now) | 1;
        let level = (((63 - differing.leading_zeros()) / SLOT_BITS) as usize).min(LEVELS - 1);
        let slot = ((place >> (SLOT_BITS * level as u32)) % SLOTS as u64) as usize;
        let next = std::mem::replace(&mut self.heads[level][slot], key);
        self.occupied[level] |= 1 << slot;
        if let Some(entry) = self.entries.get_mut(next as usize) {
            entry.previous = key;
        }
        if let Some(entry) = self.entries.get_mut(key as usize) {
            let (level, slot) = (level as u8, slot as u8);
            *entry = Entry { next, previous: NONE, due, place: due, level, slot };
        }
    }
}
