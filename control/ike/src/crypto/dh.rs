//! Key exchange: x25519, ecp256 and ecp384 by aws-lc-rs, modp2048 by an own exponentiation.
//!
//! Private keys come from the randomness of the caller. Public values are checked as RFC 6989
//! demands: points of the ECP groups must lie on the curve (2.3; the library does), values of the
//! MODP group in its range (2.1; [`super::modp`]), and an x25519 result of zero is refused (RFC
//! 8031, 5).

use aws_lc_rs::agreement::{ECDH_P256, ECDH_P384, PrivateKey, UnparsedPublicKey, X25519, agree};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::SecretOctets;
use super::modp;
use crate::proposal::KeyExchange;

/// First octet of an uncompressed point (SEC 1), which IKE leaves out (RFC 5903, 7).
const UNCOMPRESSED: u8 = 4;
/// How often a private key is drawn before giving up: an ECP scalar is out of range with a
/// probability below 2^-32.
const DRAWS_MAX: usize = 8;

/// Why there is no shared secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DhError {
    /// The peer's public value is not one of the group.
    #[error("the public value is not one of {0}")]
    BadPublic(KeyExchange),
    /// No private key came out of the random source.
    #[error("the random source gave no usable private key")]
    NoPrivate,
}

enum Inner {
    Curve(PrivateKey),
    Modp(Box<modp::Private>),
}

/// A private key with its public value, for one exchange.
pub(crate) struct Private {
    group: KeyExchange,
    inner: Inner,
    public: Vec<u8>,
    /// The private key once more, for a control process that follows this one.
    octets: SecretOctets,
}

impl Serialize for Private {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.group, &self.octets).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Private {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (group, octets) = <(KeyExchange, SecretOctets)>::deserialize(deserializer)?;
        Self::new(group, octets).ok_or_else(|| D::Error::custom("a private key of no group"))
    }
}

impl Private {
    /// A new key from octets of `random`.
    pub(crate) fn generate(
        group: KeyExchange,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Self, DhError> {
        let len = match group {
            KeyExchange::X25519 | KeyExchange::Ecp256 => 32,
            KeyExchange::Ecp384 => 48,
            KeyExchange::Modp2048 => modp::EXPONENT_LEN,
        };
        for _ in 0..DRAWS_MAX {
            let mut octets = Zeroizing::new(vec![0; len]);
            random(&mut octets);
            if let Some(private) = Self::new(group, octets) {
                return Ok(private);
            }
        }
        Err(DhError::NoPrivate)
    }

    /// The key of these octets, if they are one.
    fn new(group: KeyExchange, octets: SecretOctets) -> Option<Self> {
        let (algorithm, prefix) = match group {
            KeyExchange::X25519 => (&X25519, &[][..]),
            KeyExchange::Ecp256 => (&ECDH_P256, &[UNCOMPRESSED][..]),
            KeyExchange::Ecp384 => (&ECDH_P384, &[UNCOMPRESSED][..]),
            KeyExchange::Modp2048 => {
                let private = modp::Private::new(&octets)?;
                let public = private.public();
                return Some(Self { group, inner: Inner::Modp(Box::new(private)), public, octets });
            }
        };
        let key = PrivateKey::from_private_key(algorithm, &octets).ok()?;
        let public = key.compute_public_key().ok()?;
        let public = public.as_ref().strip_prefix(prefix)?.to_vec();
        Some(Self { group, inner: Inner::Curve(key), public, octets })
    }

    /// The group.
    pub(crate) const fn group(&self) -> KeyExchange {
        self.group
    }

    /// Key Exchange Data to send.
    pub(crate) fn public(&self) -> &[u8] {
        &self.public
    }

    /// The shared secret with the peer's Key Exchange Data: the x coordinate for ECP groups
    /// (RFC 5903, 7), as long as the prime for MODP (RFC 7296, 2.14).
    pub(crate) fn agree(&self, peer: &[u8]) -> Result<SecretOctets, DhError> {
        let bad = DhError::BadPublic(self.group);
        if peer.len() != self.group.public_len() {
            return Err(bad);
        }
        let keep = |secret: &[u8]| Ok(Zeroizing::new(secret.to_vec()));
        match (&self.inner, self.group) {
            (Inner::Modp(private), _) => private.agree(peer).ok_or(bad),
            (Inner::Curve(key), KeyExchange::X25519) => {
                agree(key, UnparsedPublicKey::new(&X25519, peer), bad, keep)
            }
            (Inner::Curve(key), _) => {
                let point = [&[UNCOMPRESSED], peer].concat();
                agree(key, UnparsedPublicKey::new(key.algorithm(), point), bad, keep)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [KeyExchange; 4] =
        [KeyExchange::X25519, KeyExchange::Ecp256, KeyExchange::Ecp384, KeyExchange::Modp2048];

    fn counting(start: u8) -> impl FnMut(&mut [u8]) {
        let mut next = start;
        move |out| {
            for octet in out {
                *octet = next;
                next = next.wrapping_mul(5).wrapping_add(3);
            }
        }
    }

    #[test]
    fn both_sides_agree_in_every_group() {
        for group in ALL {
            let a = Private::generate(group, &mut counting(1)).unwrap();
            let b = Private::generate(group, &mut counting(2)).unwrap();
            assert_ne!(a.public(), b.public());
            assert_eq!(a.public().len(), group.public_len());
            assert_eq!(a.agree(b.public()).unwrap(), b.agree(a.public()).unwrap(), "{group}");
        }
    }

    // RFC 5903, 8.1: the 256-bit group.
    #[test]
    fn ecp256_gives_the_known_answer() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
                .collect()
        };
        let i = hex("C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433");
        let r = hex("C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53");
        let i = Private::generate(KeyExchange::Ecp256, &mut |out| out.copy_from_slice(&i)).unwrap();
        let r = Private::generate(KeyExchange::Ecp256, &mut |out| out.copy_from_slice(&r)).unwrap();
        assert_eq!(
            i.agree(r.public()).unwrap()[..],
            hex("D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE")[..]
        );
    }

    // RFC 6989, 2.1 and 2.3; RFC 8031, 5.
    #[test]
    fn values_outside_the_group_are_refused() {
        for group in ALL {
            let key = Private::generate(group, &mut counting(9)).unwrap();
            let refused = Err(DhError::BadPublic(group));
            let len = group.public_len();
            for bad in [vec![0; len], vec![0xff; len], vec![2; len - 1], vec![2; len + 1], vec![]] {
                // x25519 takes any value but those of small order (RFC 7748, 5).
                if group == KeyExchange::X25519 && bad == vec![0xff; len] {
                    continue;
                }
                assert_eq!(key.agree(&bad), refused, "{group} {bad:02x?}");
            }
        }
        let key = Private::generate(KeyExchange::Ecp256, &mut counting(9)).unwrap();
        let mut off_curve = key.public().to_vec();
        off_curve[63] ^= 1;
        assert!(key.agree(&off_curve).is_err());
    }

    #[test]
    fn a_random_source_of_zeros_ends_in_an_error() {
        let result = Private::generate(KeyExchange::Ecp384, &mut |out| out.fill(0));
        assert_eq!(result.err(), Some(DhError::NoPrivate));
    }
}
