//! The 2048-bit MODP group (RFC 3526, 3): g = 2, exponentiation in constant time.

use crypto_bigint::modular::ConstMontyForm;
use crypto_bigint::{U512, U2048, const_monty_params};
use zeroize::{Zeroize, Zeroizing};

use super::SecretOctets;

const_monty_params!(
    Prime,
    U2048,
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
     020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
     4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
     EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
     98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
     9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
     E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
     3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF",
    "The prime of the group."
);

type Element = ConstMontyForm<Prime, { U2048::LIMBS }>;

/// Octets of an element.
const LEN: usize = 256;
/// Octets of a private exponent: 512 bits, more than twice the group's strength (RFC 3526, 8).
pub(super) const EXPONENT_LEN: usize = 64;

/// A private exponent.
pub(super) struct Private(U512);

impl Drop for Private {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Private {
    /// The exponent of these octets; `None` if they are not [`EXPONENT_LEN`].
    pub(super) fn new(octets: &[u8]) -> Option<Self> {
        (octets.len() == EXPONENT_LEN).then(|| Self(U512::from_be_slice(octets)))
    }

    pub(super) fn public(&self) -> Vec<u8> {
        let result = Element::new(&U2048::from_u8(2)).pow(&self.0).retrieve();
        be_octets(&result).to_vec()
    }

    /// `peer ^ self`; `None` unless 1 < peer < p - 1 (RFC 6989, 2.1). The prime is a safe one, so
    /// no further check is due.
    pub(super) fn agree(&self, peer: &[u8]) -> Option<SecretOctets> {
        let peer: &[u8; LEN] = peer.try_into().ok()?;
        let peer = U2048::from_be_slice(peer);
        let top = prime().wrapping_sub(&U2048::ONE);
        if peer <= U2048::ONE || peer >= top {
            return None;
        }
        let mut secret = Element::new(&peer).pow(&self.0).retrieve();
        let octets = be_octets(&secret);
        secret.zeroize();
        Some(octets)
    }
}

fn prime() -> U2048 {
    *<Prime as crypto_bigint::modular::ConstMontyParams<{ U2048::LIMBS }>>::PARAMS
        .modulus()
        .as_ref()
}

/// Big-endian, with leading zeros.
fn be_octets(value: &U2048) -> SecretOctets {
    let words = value.as_words().iter().rev();
    Zeroizing::new(words.flat_map(|word| word.to_be_bytes()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_add_up() {
        // (2^3)^5 = 2^15, far below the prime.
        let five = Private(U512::from_u8(5));
        let eight = be_octets(&U2048::from_u8(8));
        assert_eq!(five.agree(&eight).unwrap(), be_octets(&U2048::from_u32(1 << 15)));
        assert_eq!(Private(U512::from_u8(3)).public(), *eight);
    }

    #[test]
    fn the_ends_of_the_range_are_refused() {
        let key = Private(U512::from_u8(7));
        let top = prime().wrapping_sub(&U2048::ONE);
        let two_less = prime().wrapping_sub(&U2048::from_u8(2));
        for bad in [U2048::ZERO, U2048::ONE, top, prime(), U2048::MAX] {
            assert!(key.agree(&be_octets(&bad)).is_none());
        }
        assert!(key.agree(&be_octets(&U2048::from_u8(2))).is_some());
        assert!(key.agree(&be_octets(&two_less)).is_some());
    }

    #[test]
    fn the_prime_is_that_of_the_rfc() {
        // Fermat: 2^(p-1) = 1 holds for the prime and for hardly any mistyped number.
        let exponent = prime().wrapping_sub(&U2048::ONE);
        assert_eq!(Element::new(&U2048::from_u8(2)).pow(&exponent).retrieve(), U2048::ONE);
    }
}
