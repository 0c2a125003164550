//! Where connections come from: how many there are of each source network, and which of those whose
//! peers have proven nothing gives way when places run short.
//!
//! A network has a limit, so that one of them cannot take every place. Below it, the oldest stranger of
//! the network that has most of them gives way: who floods us with handshakes pushes out his own
//! connections, from as many networks as he has, and not a peer from elsewhere that is about to prove
//! itself. Networks are told apart by powers of two of their strangers; among equals the one that has
//! been so for longest comes first.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

/// No connection, no network, or the end of a list.
const NONE: u32 = u32::MAX;
/// Powers of two that are told apart.
const SIZES: usize = 32;

/// An IPv4 /24 or an IPv6 /56: what one customer, office or attacker usually has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Prefix {
    V4([u8; 3]),
    V6([u8; 7]),
}

impl Prefix {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, c, _] = v4.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g])
            }
        }
    }
}

/// Hashes under a key that a peer does not know, so that nobody can choose colliding networks.
#[derive(Clone)]
struct Keyed(u64, u64);

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

/// The neighbours in a list.
#[derive(Clone, Copy)]
struct Links {
    before: u32,
    behind: u32,
}

const LOOSE: Links = Links { before: NONE, behind: NONE };

/// The ends of a list.
#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

const EMPTY: Ends = Ends { first: NONE, last: NONE };

/// Appends `item` to a list whose links `links` finds.
fn append<T>(ends: &mut Ends, items: &mut [T], item: u32, links: impl Fn(&mut T) -> &mut Links) {
    let before = std::mem::replace(&mut ends.last, item);
    *links(&mut items[item as usize]) = Links { before, behind: NONE };
    match before {
        NONE => ends.first = item,
        _ => links(&mut items[before as usize]).behind = item,
    }
}

/// Takes `item` out of its list.
fn take<T>(ends: &mut Ends, items: &mut [T], item: u32, links: impl Fn(&mut T) -> &mut Links) {
    let Links { before, behind } = std::mem::replace(links(&mut items[item as usize]), LOOSE);
    match before {
        NONE => ends.first = behind,
        _ => links(&mut items[before as usize]).behind = behind,
    }
    match behind {
        NONE => ends.last = before,
        _ => links(&mut items[behind as usize]).before = before,
    }
}

/// A source network with connections.
struct Network {
    connections: u32,
    /// Those whose peers have proven nothing, oldest first, and how many there are.
    strangers: Ends,
    count: u32,
    /// Among the networks with about as many strangers.
    links: Links,
}

/// What is known of a connection.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// [`NONE`] if it does not count (any more).
    network: u32,
    /// Among the strangers of its network.
    links: Links,
}

/// The connections of all source networks. A network is known for as long as one of its connections
/// counts, so there are never more than connections. Room for all of them at once would be dear; the
/// lists double a few times in their life instead, and never shrink.
pub(super) struct Sources {
    known: HashMap<Prefix, u32, Keyed>,
    networks: Vec<Network>,
    free: Vec<u32>,
    places: Box<[Place]>,
    /// Networks by the power of two of their strangers, 1 and more.
    by_size: [Ends; SIZES],
    strangers: u32,
    limit: u32,
}

impl Sources {
    /// For so many connections, of which `limit` may come from one network.
    pub(super) fn new(connections_max: u32, limit: u32, key: (u64, u64)) -> Self {
        let place = Place { network: NONE, links: LOOSE };
        Self {
            known: HashMap::with_hasher(Keyed(key.0, key.1)),
            networks: Vec::new(),
            free: Vec::new(),
            places: vec![place; connections_max as usize].into_boxed_slice(),
            by_size: [EMPTY; SIZES],
            strangers: 0,
            limit,
        }
    }

    /// Whether another connection from `source` may be opened.
    pub(super) fn admits(&self, source: IpAddr) -> bool {
        let network = self.known.get(&Prefix::of(source)).map(|&at| &self.networks[at as usize]);
        network.is_none_or(|network| network.connections < self.limit)
    }

    /// Which of 256 shares the network of `source` has of what is limited for all together.
    #[allow(clippy::cast_possible_truncation)] // A part of the hash.
    pub(super) fn share(&self, source: IpAddr) -> u8 {
        self.known.hasher().hash_one(Prefix::of(source)) as u8
    }

    /// How many strangers there are.
    pub(super) fn strangers(&self) -> u32 {
        self.strangers
    }

    /// A connection from `source` begins to count, as a stranger's or not.
    pub(super) fn add(&mut self, index: u32, source: IpAddr, stranger: bool) {
        let at = self.network(Prefix::of(source));
        self.networks[at as usize].connections += 1;
        self.places[index as usize].network = at;
        if stranger {
            self.strangers += 1;
            let strangers = &mut self.networks[at as usize].strangers;
            append(strangers, &mut self.places, index, |place| &mut place.links);
            self.resize(at, |count| count + 1);
        }
    }

    /// The peer of a connection is no stranger any more.
    pub(super) fn prove(&mut self, index: u32) {
        let at = self.places[index as usize].network;
        let Some(network) = self.networks.get_mut(at as usize) else { return };
        take(&mut network.strangers, &mut self.places, index, |place| &mut place.links);
        self.strangers -= 1;
        self.resize(at, |count| count - 1);
    }

    /// A connection from `source` counts no longer, which was a stranger's or not. Nothing happens if
    /// it did not count.
    pub(super) fn remove(&mut self, index: u32, source: IpAddr, stranger: bool) {
        if stranger {
            self.prove(index);
        }
        let at = std::mem::replace(&mut self.places[index as usize].network, NONE);
        let Some(network) = self.networks.get_mut(at as usize) else { return };
        network.connections -= 1;
        if network.connections == 0 {
            self.known.remove(&Prefix::of(source));
            self.free.push(at);
        }
    }

    /// Who gives way next: the oldest stranger of the network that has most of them.
    pub(super) fn victim(&self) -> Option<u32> {
        let largest = self.by_size.iter().rev().find(|list| list.first != NONE)?;
        Some(self.networks.get(largest.first as usize)?.strangers.first)
    }

    /// The network of a prefix, which is made if it is new.
    fn network(&mut self, prefix: Prefix) -> u32 {
        if let Some(&at) = self.known.get(&prefix) {
            return at;
        }
        let new = Network { connections: 0, strangers: EMPTY, count: 0, links: LOOSE };
        let at = match self.free.pop() {
            Some(at) => {
                self.networks[at as usize] = new;
                at
            }
            None => {
                self.networks.push(new);
                self.networks.len() as u32 - 1
            }
        };
        self.known.insert(prefix, at);
        at
    }

    /// Changes the number of a network's strangers.
    fn resize(&mut self, at: u32, change: impl Fn(u32) -> u32) {
        let network = &mut self.networks[at as usize];
        let (old, new) = (network.count.checked_ilog2(), change(network.count).checked_ilog2());
        network.count = change(network.count);
        if old == new {
            return;
        }
        if let Some(size) = old {
            let list = &mut self.by_size[size as usize];
            take(list, &mut self.networks, at, |network| &mut network.links);
        }
        if let Some(size) = new {
            let list = &mut self.by_size[size as usize];
            append(list, &mut self.networks, at, |network| &mut network.links);
        }
    }
}

/// Octets that a connection costs here, one alone in its network.
#[cfg(test)]
pub(super) const PLACE_BYTES: usize =
    size_of::<Place>() + size_of::<Network>() + size_of::<(Prefix, u32)>() + size_of::<u32>();

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(network: u8, host: u8) -> IpAddr {
        [198, 51, network, host].into()
    }

    #[test]
    fn the_oldest_of_the_network_with_most_strangers_gives_way() {
        let mut sources = Sources::new(16, 100, (1, 2));
        sources.add(0, address(1, 1), true);
        (1..6).for_each(|index| sources.add(index, address(2, index as u8), true));
        sources.add(6, address(3, 1), true);
        (7..12).for_each(|index| sources.add(index, address(4, index as u8), false));
        assert_eq!(sources.strangers(), 7);
        // Of five those that are four, two or three, and one like the others, who came before.
        let networks = [1, 2, 2, 2, 2, 2, 3];
        for victim in [1, 2, 3, 4, 0, 6, 5] {
            assert_eq!(sources.victim(), Some(victim));
            sources.remove(victim, address(networks[victim as usize], 1), true);
        }
        assert_eq!(sources.strangers(), 0);
        assert_eq!(sources.victim(), None);
    }

    #[test]
    fn the_limit_of_a_network_counts_all_of_its_connections() {
        let mut sources = Sources::new(4, 2, (1, 2));
        sources.add(0, address(1, 1), true);
        assert!(sources.admits(address(1, 9)));
        sources.add(1, address(1, 2), false);
        assert!(!sources.admits(address(1, 9)) && sources.admits(address(2, 9)));
        sources.prove(0);
        assert!(!sources.admits(address(1, 9)));
        sources.remove(0, address(1, 1), false);
        sources.remove(0, address(1, 1), false);
        assert!(sources.admits(address(1, 9)));
        sources.remove(1, address(1, 2), false);
        assert!(sources.known.is_empty());
    }

    proptest! {
        /// Whatever comes and goes, who gives way is of a network of the largest power of two, and the
        /// oldest there.
        #[test]
        fn agrees_with_a_plain_list(steps in prop::collection::vec((0u32..12, 0u8..4, 0u8..3), 0..80)) {
            let mut sources = Sources::new(12, 100, (3, 4));
            let mut plain: Vec<(u32, u8, bool)> = Vec::new();
            for (index, network, action) in steps {
                let at = plain.iter().position(|(other, ..)| *other == index);
                match (action, at) {
                    (0, None) => {
                        plain.push((index, network, true));
                        sources.add(index, address(network, 1), true);
                    }
                    (1, Some(at)) if plain[at].2 => {
                        plain[at].2 = false;
                        sources.prove(index);
                    }
                    (2, Some(at)) => {
                        let (_, network, stranger) = plain.remove(at);
                        sources.remove(index, address(network, 1), stranger);
                    }
                    _ => {}
                }
                let strangers = plain.iter().filter(|(.., stranger)| *stranger);
                let mut counts = [0u32; 4];
                strangers.clone().for_each(|(_, network, _)| counts[usize::from(*network)] += 1);
                prop_assert_eq!(sources.strangers(), counts.iter().sum::<u32>());
                let largest = counts.iter().max().unwrap().checked_ilog2();
                let victim = sources.victim();
                let network = plain.iter().find(|(other, ..)| Some(*other) == victim).map(|it| it.1);
                prop_assert_eq!(victim.is_some(), largest.is_some());
                if let Some(network) = network {
                    prop_assert_eq!(counts[usize::from(network)].checked_ilog2(), largest);
                    let oldest = strangers.clone().find(|(_, other, _)| *other == network);
                    prop_assert_eq!(victim, oldest.map(|it| it.0));
                }
            }
        }
    }
}
