//! Which packets take which SA, and which decrypted packets may pass.
//!
//! **Outbound**: control cuts the remote selectors into destination prefixes and puts each into a
//! policy slot of the shared memory; a worker keeps a copy in a [`PolicyTable`], found by tuple
//! space search: the prefix lengths in use from long to short, for each one probe of a hash table
//! keyed by length and masked destination, there the chain of policies by priority. So the longest
//! destination prefix wins, then the lowest priority number, then the lowest slot index; a policy
//! whose source, protocol or ports do not match is passed over.
//!
//! A policy without SA is a trap: its packets are dropped, and control is told of the first one and
//! then once a second, so that it sets an SA up.
//!
//! **Inbound**: [`permits`] holds the decrypted packet against its SA's selectors
//! (RFC 4301, 5.2, step 4).
//!
//! **Fragments**: a fragment that is not the first has no ports, so it matches only selectors of
//! any port and opaque ones (RFC 4301, 7.2 describes the SAs for it). Where a policy names ports,
//! the first fragment takes it and the others do not: such traffic has to come unfragmented.

use super::hash::{Hasher, bits_of};
use super::ip::Flow;
use super::prefix::masked;
use super::{DropReason, Nanos, SECOND};
use culvert_shm::{Policy, SelectorList};
use std::net::IpAddr;

/// Policies of one destination prefix; a lookup walks no more for each prefix length.
pub const CHAIN_MAX: usize = 256;

/// How often control is told that packets meet the same trap.
pub const ACQUIRE_INTERVAL: Nanos = SECOND;

/// Why a policy was not taken over; it then takes no packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A slot beyond the table that was laid out at the start.
    #[error("policy slot {index} is beyond the {slots} of the layout: control is at fault")]
    BeyondTable {
        /// The slot.
        index: u32,
        /// Slots there are.
        slots: usize,
    },
    /// Too many policies to one destination.
    #[error("more than {CHAIN_MAX} policies to one destination prefix: merge traffic selectors")]
    ChainFull,
}

/// No policy, no head: the end of a chain, a free place.
const NONE: u32 = u32::MAX;

#[derive(Clone)]
struct Entry {
    policy: Policy,
    /// The next one to the same destination.
    next: u32,
    /// Of a trap: when control was last told of a packet; 0 if never.
    told: Nanos,
}

/// A destination prefix with policies.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    bits: u128,
    length: u8,
    v4: bool,
}

impl Key {
    #[inline]
    fn new(destination: IpAddr, length: u8) -> Self {
        let v4 = destination.is_ipv4();
        Self { bits: bits_of(masked(destination, length)), length, v4 }
    }

    fn of(policy: &Policy) -> Self {
        Self::new(policy.remote.address(), policy.remote.length())
    }
}

/// A place of the hash table.
#[derive(Clone, Copy)]
struct Head {
    key: Key,
    /// The chain's first policy; [`NONE`] marks the place free.
    first: u32,
}

impl Head {
    const FREE: Self = Self { key: Key { bits: 0, length: 0, v4: false }, first: NONE };
}

/// How many prefixes of each length there are, and which lengths are in use.
struct Lengths {
    counts: [u32; 129],
    used: [u64; 3],
}

impl Lengths {
    const fn new() -> Self {
        Self { counts: [0; 129], used: [0; 3] }
    }

    fn change(&mut self, length: u8, by: i32) {
        let length = usize::from(length);
        if let Some(count) = self.counts.get_mut(length) {
            *count = count.saturating_add_signed(by);
            let bit = 1 << (length % 64);
            if *count == 0 {
                self.used[length / 64] &= !bit;
            } else {
                self.used[length / 64] |= bit;
            }
        }
    }

    /// The lengths in use, longest first.
    #[inline]
    fn longest_first(&self) -> impl Iterator<Item = u8> {
        let words = self.used.into_iter().zip([0u8, 64, 128]).rev();
        words.flat_map(|(mut word, base)| {
            std::iter::from_fn(move || {
                let bit = word.checked_ilog2()?;
                word &= !(1 << bit);
                Some(base + bit as u8)
            })
        })
    }
}

/// A worker's copy of the outbound policies.
pub struct PolicyTable {
    /// By slot index.
    entries: Box<[Option<Entry>]>,
    /// Open addressing with linear probing; twice as many places as there can be prefixes.
    heads: Box<[Head]>,
    v4: Lengths,
    v6: Lengths,
    hasher: Hasher,
}

impl PolicyTable {
    /// An empty table for as many policy slots as the shared memory has. The seed is random and the
    /// worker's own.
    pub fn new(slots: usize, seed: [u8; 16]) -> Self {
        Self {
            entries: vec![None; slots].into(),
            heads: vec![Head::FREE; (slots * 2).next_power_of_two()].into(),
            v4: Lengths::new(),
            v6: Lengths::new(),
            hasher: Hasher::new(seed),
        }
    }

    /// Takes over what slot `index` holds now: a policy, or none. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`PolicyError`]; what the slot held before is gone in that case too.
    pub fn set(&mut self, index: u32, policy: Option<&Policy>) -> Result<(), PolicyError> {
        if index as usize >= self.entries.len() {
            return Err(PolicyError::BeyondTable { index, slots: self.entries.len() });
        }
        self.remove(index);
        match policy {
            Some(policy) => self.insert(index, policy),
            None => Ok(()),
        }
    }

    /// The policy that takes a packet.
    ///
    /// # Errors
    /// [`DropReason::PolicyNone`].
    #[inline]
    pub fn lookup(&self, flow: &Flow) -> Result<&Policy, DropReason> {
        self.find(flow).map(|(_, policy)| policy).ok_or(DropReason::PolicyNone)
    }

    /// A packet met a trap: its slot, if control is to be told, which is once in
    /// [`ACQUIRE_INTERVAL`] for each trap.
    pub fn acquire(&mut self, flow: &Flow, now: Nanos) -> Option<u32> {
        let (index, _) = self.find(flow).filter(|(_, policy)| policy.is_trap())?;
        let entry = self.entries.get_mut(index as usize)?.as_mut()?;
        if entry.told > 0 && now.saturating_sub(entry.told) < ACQUIRE_INTERVAL {
            return None;
        }
        entry.told = now;
        Some(index)
    }

    /// The policy that takes a packet, and its slot.
    #[inline]
    fn find(&self, flow: &Flow) -> Option<(u32, &Policy)> {
        let lengths = if flow.destination.is_ipv4() { &self.v4 } else { &self.v6 };
        for length in lengths.longest_first() {
            let place = self.place(Key::new(flow.destination, length));
            let mut next = self.heads.get(place).map_or(NONE, |head| head.first);
            while let Some(entry) = self.entry(next) {
                if takes(&entry.policy, flow) {
                    return Some((next, &entry.policy));
                }
                next = entry.next;
            }
        }
        None
    }

    fn entry(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index as usize)?.as_ref()
    }

    /// Writes a chain's link: that of the entry `from`, or the head at `place` before the first.
    fn link(&mut self, place: usize, from: u32, to: u32) {
        if from != NONE {
            if let Some(Some(entry)) = self.entries.get_mut(from as usize) {
                entry.next = to;
            }
        } else if let Some(head) = self.heads.get_mut(place) {
            head.first = to;
        }
    }

    fn insert(&mut self, index: u32, policy: &Policy) -> Result<(), PolicyError> {
        let key = Key::of(policy);
        let place = self.place(key);
        let first = self.heads.get(place).map_or(NONE, |head| head.first);
        let (mut before, mut next) = (NONE, first);
        let mut chain = 0;
        while let Some(entry) = self.entry(next) {
            chain += 1;
            if (entry.policy.priority, next) < (policy.priority, index) {
                before = next;
            }
            next = entry.next;
        }
        if chain >= CHAIN_MAX {
            return Err(PolicyError::ChainFull);
        }
        if first == NONE {
            if let Some(head) = self.heads.get_mut(place) {
                head.key = key;
            }
            self.lengths(key.v4).change(key.length, 1);
        }
        let behind = self.entry(before).map_or(first, |entry| entry.next);
        if let Some(entry) = self.entries.get_mut(index as usize) {
            *entry = Some(Entry { policy: *policy, next: behind, told: 0 });
        }
        self.link(place, before, index);
        Ok(())
    }

    fn remove(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        let key = Key::of(&entry.policy);
        let place = self.place(key);
        let (mut before, mut next) = (NONE, self.heads.get(place).map_or(NONE, |head| head.first));
        while next != index {
            let Some(entry) = self.entry(next) else { return };
            (before, next) = (next, entry.next);
        }
        self.link(place, before, entry.next);
        if before == NONE && entry.next == NONE {
            self.lengths(key.v4).change(key.length, -1);
            self.close_gap(place);
        }
    }

    fn lengths(&mut self, v4: bool) -> &mut Lengths {
        if v4 { &mut self.v4 } else { &mut self.v6 }
    }

    /// Where the search for a key begins.
    #[inline]
    fn home(&self, key: Key) -> usize {
        let tag = u16::from(key.length) << 1 | u16::from(key.v4);
        self.hasher.hash(key.bits, tag) as usize & (self.heads.len() - 1)
    }

    /// The place of a key, or the free one where it would be. There is always a free one: at most
    /// half of the places are in use.
    #[inline]
    fn place(&self, key: Key) -> usize {
        let mask = self.heads.len() - 1;
        let mut place = self.home(key);
        while self.heads.get(place).is_some_and(|head| head.first != NONE && head.key != key) {
            place = (place + 1) & mask;
        }
        place
    }

    /// Moves back what was pushed behind the place that became free, so that no search ends early.
    fn close_gap(&mut self, mut gap: usize) {
        let mask = self.heads.len() - 1;
        let mut place = gap;
        loop {
            place = (place + 1) & mask;
            let Some(&head) = self.heads.get(place) else { return };
            if head.first == NONE {
                return;
            }
            // It may move if its home does not lie between the gap and itself.
            let distance = |from: usize| place.wrapping_sub(from) & mask;
            if distance(self.home(head.key)) >= distance(gap) {
                self.heads.swap(gap, place);
                gap = place;
            }
        }
    }
}

/// Whether a policy whose prefix holds the destination takes the packet.
#[inline]
fn takes(policy: &Policy, flow: &Flow) -> bool {
    let (source, destination) =
        (flow.ports.map(|ports| ports.source), flow.ports.map(|ports| ports.destination));
    let destination_fits = match (policy.remote_ports, destination) {
        ((0, u16::MAX), _) => true,
        ((first, last), Some(port)) => first <= port && port <= last,
        ((first, last), None) => first > last,
    };
    destination_fits && policy.local.contains(flow.source, flow.protocol, source)
}

/// Holds a decrypted packet against the selectors of the SA that it came by: its source has to be
/// in the remote ones, its destination in the local ones.
///
/// # Errors
/// [`DropReason::PolicyInbound`].
#[inline]
pub fn permits(local: &SelectorList, remote: &SelectorList, flow: &Flow) -> Result<(), DropReason> {
    let (source, destination) =
        (flow.ports.map(|ports| ports.source), flow.ports.map(|ports| ports.destination));
    let permitted = remote.contains(flow.source, flow.protocol, source)
        && local.contains(flow.destination, flow.protocol, destination);
    if permitted { Ok(()) } else { Err(DropReason::PolicyInbound) }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
