//! The neighbour cache: link-layer addresses of next hops, for ARP and neighbour discovery alike.
//!
//! Every worker has a cache of its own and is its only user; what a worker learns from an ARP or
//! neighbour discovery packet ([`Learnt`], a plain value) it applies and sends to the others, which
//! apply it too. That is simpler than one shared table and as correct: lookups write (they age
//! entries and count probes), so a shared table would need a writer, and a question back to it for
//! each miss. What it costs is a request for each worker that needs a neighbour.
//!
//! States are those of RFC 4861, 7.3.2 without DELAY, and they move only when somebody looks: there
//! is no timer. Whether the packet that waits for an address is kept or dropped is the caller's.
//!
//! What stations on the link cannot do: push out a gateway (configured gateways are pinned, with
//! places of their own), push out a neighbour in use by asking for our address (such entries only
//! take free places), or confirm a neighbour that was not asked for.

use super::ether::MacAddr;
use super::hash::{Hasher, bits_of};
use super::route::NextHop;
use super::{Nanos, SECOND};
use std::net::IpAddr;

/// Time between two requests (RFC 4861, 10: RETRANS_TIMER).
pub const RETRANSMIT: Nanos = SECOND;
/// Requests, to the group or to a known station, before giving up (RFC 4861, 10:
/// MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT).
pub const REQUESTS_MAX: u8 = 3;
/// Time for which an answer proves a neighbour reachable (RFC 4861, 10: REACHABLE_TIME).
pub const REACHABLE: Nanos = 30 * SECOND;
/// Time for which a neighbour that did not answer is not asked again.
pub const FAILED_HOLD: Nanos = 3 * SECOND;
/// Gateways that are pinned.
pub const PINNED_MAX: usize = 64;
/// Places in which a neighbour may be; the least useful of them gives way.
const WAYS: usize = 8;

/// Something that a packet said about a neighbour; to be applied by every worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learnt {
    /// The neighbour.
    pub address: IpAddr,
    /// Its link-layer address; `None` when an advertisement only confirms it.
    pub mac: Option<MacAddr>,
    /// It answers a request: counts as proof of reachability when one was sent.
    pub solicited: bool,
    /// May replace a different address that is known.
    pub overrides: bool,
    /// The neighbour asked for our address, so it is about to be needed: worth a free place.
    pub create: bool,
}

/// What to do with a packet for a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Send it there.
    Known(MacAddr),
    /// Send it there, and a request to that station alone too.
    Probe(MacAddr),
    /// Send a request to the group; the packet has to wait.
    Request,
    /// A request is under way; the packet has to wait.
    Wait,
    /// The neighbour does not answer: drop the packet, its sender may be told.
    Unreachable,
}

/// More gateways than can be pinned: the configuration is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {PINNED_MAX} different gateways: remove routes")]
pub struct TooManyGateways;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// Requests to the group are under way; `at` is the next one's time.
    Incomplete {
        sent: u8,
        at: Nanos,
    },
    Reachable {
        until: Nanos,
    },
    Stale,
    /// Requests to the station are under way.
    Probe {
        sent: u8,
        at: Nanos,
    },
    Failed {
        until: Nanos,
    },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hop: NextHop,
    mac: MacAddr,
    state: State,
    /// Last lookup, or creation.
    used: Nanos,
}

impl Entry {
    const FREE: Self = Self {
        hop: NextHop { neighbour: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), port: 0 },
        mac: MacAddr::ZERO,
        state: State::Free,
        used: 0,
    };

    fn is(&self, hop: NextHop) -> bool {
        self.state != State::Free && self.hop == hop
    }

    /// The order in which entries give way: what costs least first, the longest unused among them.
    fn worth(&self) -> (u8, Nanos) {
        let class = match self.state {
            State::Free => 0,
            State::Failed { .. } => 1,
            State::Incomplete { .. } => 2,
            State::Stale => 3,
            State::Probe { .. } | State::Reachable { .. } => 4,
        };
        (class, self.used)
    }

    /// RFC 4861, 7.3.3, for a packet to be sent now.
    fn resolve(&mut self, now: Nanos) -> Resolution {
        self.used = now;
        let again = now.saturating_add(RETRANSMIT);
        match self.state {
            State::Reachable { until } if now < until => Resolution::Known(self.mac),
            State::Reachable { .. } | State::Stale => {
                self.state = State::Probe { sent: 1, at: again };
                Resolution::Probe(self.mac)
            }
            State::Probe { at, .. } if now < at => Resolution::Known(self.mac),
            State::Probe { sent, .. } if sent < REQUESTS_MAX => {
                self.state = State::Probe { sent: sent + 1, at: again };
                Resolution::Probe(self.mac)
            }
            State::Incomplete { at, .. } if now < at => Resolution::Wait,
            State::Incomplete { sent, .. } if sent < REQUESTS_MAX => {
                self.state = State::Incomplete { sent: sent + 1, at: again };
                Resolution::Request
            }
            State::Incomplete { .. } => {
                self.state = State::Failed { until: now.saturating_add(FAILED_HOLD) };
                Resolution::Unreachable
            }
            State::Failed { until } if now < until => Resolution::Unreachable,
            // New, failed long enough ago, or silent where it was: the group is asked.
            State::Free | State::Failed { .. } | State::Probe { .. } => {
                self.state = State::Incomplete { sent: 1, at: again };
                Resolution::Request
            }
        }
    }

    /// RFC 4861, 7.2.3 and 7.2.5. "Solicited" is believed only while a request is under way.
    fn learn(&mut self, now: Nanos, learnt: &Learnt) {
        let asked = matches!(self.state, State::Incomplete { .. } | State::Probe { .. });
        let proven = asked && learnt.solicited;
        let reachable = State::Reachable { until: now.saturating_add(REACHABLE) };
        let known =
            !matches!(self.state, State::Free | State::Incomplete { .. } | State::Failed { .. });
        match learnt.mac {
            // Nothing was known: take what is said.
            Some(mac) if !known => {
                self.mac = mac;
                self.state = if proven { reachable } else { State::Stale };
            }
            // Another address, and it may replace the known one.
            Some(mac) if mac != self.mac && learnt.overrides => {
                self.mac = mac;
                self.state = if proven { reachable } else { State::Stale };
            }
            // Another address that may not: find out who is right.
            Some(mac) if mac != self.mac => {
                if matches!(self.state, State::Reachable { .. }) {
                    self.state = State::Stale;
                }
            }
            // What was known, confirmed.
            _ if known && proven => self.state = reachable,
            _ => {}
        }
    }
}

/// One worker's cache.
pub struct NeighbourCache {
    pinned: Box<[Entry]>,
    /// Sets of [`WAYS`] entries; their number is a power of two.
    sets: Box<[[Entry; WAYS]]>,
    hasher: Hasher,
}

impl NeighbourCache {
    /// A cache of at least `capacity` neighbours besides the pinned `gateways` (repetitions count
    /// once). The seed is random and the worker's own.
    ///
    /// # Errors
    /// [`TooManyGateways`] for more than [`PINNED_MAX`].
    pub fn new(
        capacity: usize,
        gateways: impl IntoIterator<Item = NextHop>,
        seed: [u8; 16],
    ) -> Result<Self, TooManyGateways> {
        let mut pinned: Vec<Entry> = Vec::new();
        for hop in gateways {
            if pinned.iter().all(|entry| entry.hop != hop) {
                pinned.push(Entry { hop, ..Entry::FREE });
            }
        }
        if pinned.len() > PINNED_MAX {
            return Err(TooManyGateways);
        }
        let sets = capacity.div_ceil(WAYS).max(1).next_power_of_two();
        Ok(Self {
            pinned: pinned.into(),
            sets: vec![[Entry::FREE; WAYS]; sets].into(),
            hasher: Hasher::new(seed),
        })
    }

    /// Looks a next hop up for a packet that is to be sent now; starts or repeats a resolution when
    /// it falls due, which the caller carries out as the answer says.
    #[inline]
    pub fn resolve(&mut self, now: Nanos, hop: NextHop) -> Resolution {
        let (pinned, set) = self.places(hop);
        if let Some(entry) = pinned {
            return entry.resolve(now);
        }
        if let Some(entry) = set.iter_mut().find(|entry| entry.is(hop)) {
            return entry.resolve(now);
        }
        match set.iter_mut().min_by_key(|entry| entry.worth()) {
            Some(victim) => {
                *victim = Entry { hop, ..Entry::FREE };
                victim.resolve(now)
            }
            None => Resolution::Unreachable,
        }
    }

    /// Applies what was learnt on `port`, by this worker or another.
    pub fn learn(&mut self, now: Nanos, port: u8, learnt: &Learnt) {
        let hop = NextHop { neighbour: learnt.address, port };
        let (pinned, set) = self.places(hop);
        if let Some(entry) = pinned {
            return entry.learn(now, learnt);
        }
        if let Some(entry) = set.iter_mut().find(|entry| entry.is(hop)) {
            return entry.learn(now, learnt);
        }
        let giving_way = |state| matches!(state, State::Free | State::Failed { .. });
        let place = set.iter_mut().find(|entry| giving_way(entry.state));
        if let (true, Some(_), Some(place)) = (learnt.create, learnt.mac, place) {
            *place = Entry { hop, used: now, ..Entry::FREE };
            place.learn(now, learnt);
        }
    }

    /// The pinned entry of a hop, if it is a gateway, and the set that it would be in otherwise.
    fn places(&mut self, hop: NextHop) -> (Option<&mut Entry>, &mut [Entry]) {
        let pinned = self.pinned.iter_mut().find(|entry| entry.hop == hop);
        let family = if hop.neighbour.is_ipv4() { 4 } else { 6 };
        let hash = self.hasher.hash(bits_of(hop.neighbour), family << 8 | u16::from(hop.port));
        let place = hash as usize & (self.sets.len() - 1);
        (pinned, self.sets.get_mut(place).map_or(&mut [], <[Entry; WAYS]>::as_mut_slice))
    }
}

#[cfg(test)]
#[path = "neighbour_tests.rs"]
mod tests;
