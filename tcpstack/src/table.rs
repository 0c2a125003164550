//! The connection table: from a 4-tuple to the index of its connection, in one look-up.
//!
//! Open addressing with linear probing, at most half full, allocated once. Each place holds the
//! index and 32 bits of the keyed hash; only when these match is the connection's own 4-tuple
//! looked at. Removal shifts the followers back, so there are no tombstones and the cost of a
//! look-up does not grow with the connections that have come and gone.

use std::net::{IpAddr, SocketAddr};

use crate::secret::Secret;

/// An address and a port. Scope and flow label of an IPv6 [`SocketAddr`] are not part of the end of
/// a connection, and each connection would pay for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct End {
    ip: IpAddr,
    port: u16,
}

impl End {
    pub(crate) fn new(ip: IpAddr, port: u16) -> Self {
        Self { ip, port }
    }

    pub(crate) fn ip(&self) -> IpAddr {
        self.ip
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        self.ip.is_ipv4()
    }
}

impl From<SocketAddr> for End {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip(), address.port())
    }
}

impl From<End> for SocketAddr {
    fn from(End { ip, port }: End) -> Self {
        Self::new(ip, port)
    }
}

/// A connection's two ends, seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FourTuple {
    pub(crate) local: End,
    pub(crate) remote: End,
}

impl FourTuple {
    pub(crate) fn new(local: impl Into<End>, remote: impl Into<End>) -> Self {
        Self { local: local.into(), remote: remote.into() }
    }

    fn hash(&self, secret: &Secret) -> u32 {
        // The longest 4-tuple: two IPv6 addresses and two ports.
        let mut octets = [0; 36];
        let mut end = 0;
        let mut put = |from: &[u8]| {
            octets[end..end + from.len()].copy_from_slice(from);
            end += from.len();
        };
        for address in [self.local, self.remote] {
            match address.ip() {
                IpAddr::V4(ip) => put(&ip.octets()),
                IpAddr::V6(ip) => put(&ip.octets()),
            }
            put(&address.port().to_be_bytes());
        }
        // Lengths differ by family, so the two never give the same octets.
        (secret.hash(&octets[..end]) >> 32) as u32
    }
}

#[derive(Clone, Copy)]
struct Place {
    hash: u32,
    /// The index plus one; 0 is an empty place.
    index_plus_one: u32,
}

const EMPTY: Place = Place { hash: 0, index_plus_one: 0 };

/// The table of one stack.
pub(crate) struct Table {
    places: Vec<Place>,
}

impl Table {
    /// A table for `connections_max` connections: at most half of its places are ever taken.
    pub(crate) fn new(connections_max: u32) -> Self {
        let places = (connections_max as usize * 2).next_power_of_two();
        Self { places: vec![EMPTY; places] }
    }

    /// The connection with this 4-tuple. `tuple_of` gives the 4-tuple of an index.
    pub(crate) fn find(
        &self,
        secret: &Secret,
        tuple: &FourTuple,
        tuple_of: impl Fn(u32) -> Option<FourTuple>,
    ) -> Option<u32> {
        let hash = tuple.hash(secret);
        let at = self.position(hash, |index| tuple_of(index) == Some(*tuple))?;
        Some(self.places[at].index_plus_one - 1)
    }

    /// Adds a connection whose 4-tuple is not in the table.
    pub(crate) fn insert(&mut self, secret: &Secret, tuple: &FourTuple, index: u32) {
        let hash = tuple.hash(secret);
        let mut at = self.home(hash);
        while self.places[at].index_plus_one != 0 {
            at = self.after(at);
        }
        self.places[at] = Place { hash, index_plus_one: index + 1 };
    }

    /// Removes the connection of this index, which has this 4-tuple, if it is there.
    pub(crate) fn remove(&mut self, secret: &Secret, tuple: &FourTuple, index: u32) {
        let hash = tuple.hash(secret);
        let Some(mut hole) = self.position(hash, |found| found == index) else { return };
        let mut at = self.after(hole);
        while self.places[at].index_plus_one != 0 {
            // A follower may fill the hole unless it is nearer to its home than the hole is.
            let home = self.home(self.places[at].hash);
            if self.distance(home, at) >= self.distance(hole, at) {
                self.places[hole] = self.places[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.places[hole] = EMPTY;
    }

    /// Where the connection with this hash is that `is_it` knows by its index.
    fn position(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        let mut at = self.home(hash);
        // Half of the places are empty, so this ends.
        while let Some(index) = self.places[at].index_plus_one.checked_sub(1) {
            if self.places[at].hash == hash && is_it(index) {
                return Some(at);
            }
            at = self.after(at);
        }
        None
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.places.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn tuple(port: u16) -> FourTuple {
        let local: SocketAddr = "192.0.2.1:4500".parse().unwrap();
        FourTuple::new(local, SocketAddr::from(([198, 51, 100, 7], port)))
    }

    proptest! {
        /// Against a map: what is in the table is found, what is not is not, at any load up to
        /// the limit, whatever came and went.
        #[test]
        fn behaves_as_a_map(
            seed: [u8; 32],
            steps in prop::collection::vec((any::<bool>(), 0u16..24), 1..300),
        ) {
            let secret = Secret::new(seed);
            let mut table = Table::new(16);
            let mut model = BTreeMap::new();
            for (insert, port) in steps {
                let tuple_of = |index: u32| Some(tuple(index as u16));
                if insert && model.len() < 16 && !model.contains_key(&port) {
                    table.insert(&secret, &tuple(port), u32::from(port));
                    model.insert(port, u32::from(port));
                } else if !insert {
                    table.remove(&secret, &tuple(port), u32::from(port));
                    model.remove(&port);
                }
                for port in 0..24 {
                    let found = table.find(&secret, &tuple(port), tuple_of);
                    prop_assert_eq!(found, model.get(&port).copied());
                }
            }
        }
    }

    #[test]
    fn ends_are_not_interchangeable() {
        let secret = Secret::new([7; 32]);
        let mut table = Table::new(4);
        let there = tuple(9);
        let back = FourTuple { local: there.remote, remote: there.local };
        table.insert(&secret, &there, 3);
        assert_eq!(table.find(&secret, &there, |_| Some(there)), Some(3));
        assert_eq!(table.find(&secret, &back, |_| Some(there)), None);
    }
}
