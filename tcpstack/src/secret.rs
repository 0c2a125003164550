//! Numbers that a peer must not guess, from the seed that the caller gave.

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// The keys of one stack.
pub(crate) struct Secret {
    table: (u64, u64),
    numbers: (u64, u64),
    drawn: u64,
}

impl Secret {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        let word = |at: usize| {
            let mut octets = [0; 8];
            octets.copy_from_slice(&seed[at..at + 8]);
            u64::from_le_bytes(octets)
        };
        Self { table: (word(0), word(8)), numbers: (word(16), word(24)), drawn: 0 }
    }

    /// The hash of a 4-tuple in the connection table: a peer that does not know the key cannot
    /// choose addresses and ports that collide.
    pub(crate) fn hash(&self, octets: &[u8]) -> u64 {
        SipHasher13::new_with_keys(self.table.0, self.table.1).hash(octets)
    }

    /// A number that nobody can tell from those drawn before.
    pub(crate) fn draw(&mut self) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.numbers.0, self.numbers.1);
        hasher.write_u64(self.drawn);
        self.drawn += 1;
        hasher.finish()
    }
}
