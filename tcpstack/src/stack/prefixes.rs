//! How many connections come from where: a limit for each source network, so that one of them
//! cannot take every place.

use std::collections::HashMap;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

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

impl std::hash::BuildHasher for Keyed {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

/// The connections of each source network. An entry lives as long as one of its connections, so
/// there are never more than connections. Room for all of them at once would cost each connection 21
/// octets; the map doubles a few times in its life instead, and never shrinks.
pub(super) struct Prefixes {
    counts: HashMap<Prefix, u32, Keyed>,
    limit: u32,
}

impl Prefixes {
    pub(super) fn new(limit: u32, key: (u64, u64)) -> Self {
        Self { counts: HashMap::with_hasher(Keyed(key.0, key.1)), limit }
    }

    /// Whether another connection from `source` may be opened.
    pub(super) fn admits(&self, source: IpAddr) -> bool {
        self.counts.get(&Prefix::of(source)).is_none_or(|count| *count < self.limit)
    }

    pub(super) fn add(&mut self, source: IpAddr) {
        *self.counts.entry(Prefix::of(source)).or_insert(0) += 1;
    }

    pub(super) fn remove(&mut self, source: IpAddr) {
        let prefix = Prefix::of(source);
        if let Some(count) = self.counts.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&prefix);
            }
        }
    }
}
