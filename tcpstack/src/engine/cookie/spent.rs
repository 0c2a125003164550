//! Cookies that have opened a connection, so that the same acknowledgment opens no second one.
//!
//! Two tables of fingerprints, of this period and of the last: as long as cookies live. A place is
//! written over when another cookie's fingerprint falls on it; whoever wants that must complete as
//! many handshakes as there are places.

/// The cookies spent in this period and in the last.
pub(super) struct Spent {
    /// No cookie is 0 there: an empty place.
    tables: [Box<[u32]>; 2],
    /// Which of the two is this period's.
    current: usize,
}

impl Spent {
    /// For a stack of so many connections: a place for two of them, more than open and end within a
    /// cookie's life.
    pub(super) fn new(connections_max: u32) -> Self {
        let places = (connections_max as usize).div_ceil(2).next_power_of_two();
        let table = || vec![0; places].into_boxed_slice();
        Self { tables: [table(), table()], current: 0 }
    }

    /// A period has passed.
    pub(super) fn turn(&mut self) {
        self.current ^= 1;
        self.tables[self.current].fill(0);
    }

    /// Where a cookie's keyed hash has its place, and what is written there.
    #[allow(clippy::cast_possible_truncation)] // Two parts of the hash.
    fn place(&self, hash: u64) -> (usize, u32) {
        (hash as usize & (self.tables[0].len() - 1), ((hash >> 32) as u32).max(1))
    }

    /// Remembers a cookie.
    pub(super) fn add(&mut self, hash: u64) {
        let (at, fingerprint) = self.place(hash);
        self.tables[self.current][at] = fingerprint;
    }

    /// Whether a cookie has been spent.
    pub(super) fn contains(&self, hash: u64) -> bool {
        let (at, fingerprint) = self.place(hash);
        self.tables.iter().any(|table| table[at] == fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_remembered_as_long_as_it_lives() {
        let mut spent = Spent::new(4);
        spent.add(0x1234_5678_0000_0001);
        assert!(spent.contains(0x1234_5678_0000_0001));
        assert!(!spent.contains(0x1234_5679_0000_0001) && !spent.contains(0));
        spent.turn();
        assert!(spent.contains(0x1234_5678_0000_0001));
        spent.turn();
        assert!(!spent.contains(0x1234_5678_0000_0001));
    }
}
