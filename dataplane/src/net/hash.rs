//! Keyed hashing of addresses for the tables.
//!
//! Strangers choose what is hashed, so the places must not be guessable: two rounds of a 64 by 64
//! bit multiplication folded to 64 bits, keyed with random octets. That is not a MAC, and does not
//! have to be: nobody sees a hash, and the tables bound what a collision costs.

use std::net::IpAddr;

/// The first 256 bits of the fraction of pi: keeps factors from being short, whatever the key.
const SALT: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// The keyed hash function of one table.
#[derive(Clone)]
pub(super) struct Hasher([u64; 2]);

impl Hasher {
    pub(super) fn new(seed: [u8; 16]) -> Self {
        let seed = u128::from_ne_bytes(seed);
        Self([seed as u64 ^ SALT[0], (seed >> 64) as u64 ^ SALT[1]])
    }

    /// Hash of 128 bits and a small tag that tells kinds of them apart.
    #[inline]
    pub(super) fn hash(&self, bits: u128, tag: u16) -> u64 {
        let [k0, k1] = self.0;
        let round = fold(bits as u64 ^ k0, (bits >> 64) as u64 ^ k1);
        fold(round ^ u64::from(tag) ^ SALT[2], k1.rotate_left(32) ^ SALT[3])
    }
}

/// The two halves of the product, xored.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// An address as 128 bits; IPv4 in the lower 32, so the family has to go into the tag.
#[inline]
pub(super) fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neighbouring addresses, the usual keys, spread over the places of a small table.
    #[test]
    fn consecutive_addresses_spread() {
        for seed in 0..20u8 {
            let hasher = Hasher::new([seed.wrapping_mul(91); 16]);
            let mut places = [0; 64];
            for low in 0..64 * 16 {
                places[(hasher.hash(0xc000_0200 + low, 4) % 64) as usize] += 1;
            }
            assert!(places.iter().all(|&count| count > 0 && count < 64), "{places:?}");
        }
    }

    #[test]
    fn seed_and_tag_matter() {
        let (one, two) = (Hasher::new([1; 16]), Hasher::new([2; 16]));
        assert_ne!(one.hash(5, 4), two.hash(5, 4));
        assert_ne!(one.hash(5, 4), one.hash(5, 6));
    }
}
