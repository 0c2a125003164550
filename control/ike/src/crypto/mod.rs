//! The one seam to the cryptographic libraries: AES-GCM for SK payloads, HMAC as PRF, SHA-1 for
//! NAT detection, and key exchange.
//!
//! Nothing else of the crate names a library. Keys are zeroized when dropped and have no `Debug`.

mod dh;
mod modp;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, hmac};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::proposal::{Encryption, Prf};

pub(crate) use dh::{DhError, Private};

/// Octets of the IV of an SK payload (RFC 5282, 3.1).
pub(crate) const IV_LEN: usize = 8;
/// Octets of its integrity check value.
pub(crate) const ICV_LEN: usize = 16;

/// A secret of any length.
pub(crate) type SecretOctets = Zeroizing<Vec<u8>>;

/// SK_ei or SK_er: an AES-GCM key with its salt (RFC 5282).
pub(crate) struct SkKey {
    encryption: Encryption,
    /// Key and salt once more, for a control process that follows this one.
    octets: SecretOctets,
    key: LessSafeKey,
    salt: Zeroizing<[u8; Encryption::SALT_LEN]>,
}

impl Serialize for SkKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.encryption, &self.octets).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SkKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (encryption, octets) = <(Encryption, SecretOctets)>::deserialize(deserializer)?;
        Self::new(encryption, &octets).ok_or_else(|| D::Error::custom("a key of another length"))
    }
}

impl SkKey {
    /// Takes key and salt, as many octets as the algorithm says; `None` for any other number.
    pub(crate) fn new(encryption: Encryption, keymat: &[u8]) -> Option<Self> {
        let octets = Zeroizing::new(keymat.to_vec());
        let (key, salt) = keymat.split_at_checked(encryption.key_len())?;
        let algorithm = match encryption {
            Encryption::Aes128Gcm16 => &AES_128_GCM,
            Encryption::Aes256Gcm16 => &AES_256_GCM,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
        let salt = Zeroizing::new(salt.try_into().ok()?);
        Some(Self { encryption, octets, key, salt })
    }

    fn nonce(&self, iv: [u8; IV_LEN]) -> Nonce {
        let mut nonce = [0; Encryption::SALT_LEN + IV_LEN];
        nonce[..Encryption::SALT_LEN].copy_from_slice(&*self.salt);
        nonce[Encryption::SALT_LEN..].copy_from_slice(&iv);
        Nonce::assume_unique_for_key(nonce)
    }

    /// Checks and decrypts; the plain text, or `None` if the check fails.
    pub(crate) fn open<'a>(
        &self,
        aad: &[u8],
        iv: &[u8; IV_LEN],
        text: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        self.key.open_in_place(self.nonce(*iv), Aad::from(aad), text).ok()
    }

    /// Encrypts in place and appends the integrity check value.
    pub(crate) fn seal(&self, aad: &[u8], iv: &[u8; IV_LEN], text: &mut Vec<u8>) -> Option<()> {
        self.key.seal_in_place_append_tag(self.nonce(*iv), Aad::from(aad), text).ok()
    }
}

/// `prf(key, data...)` over the concatenation of the parts (RFC 7296, 2.13).
pub(crate) fn prf(prf: Prf, key: &[u8], parts: &[&[u8]]) -> SecretOctets {
    let algorithm = match prf {
        Prf::HmacSha256 => hmac::HMAC_SHA256,
        Prf::HmacSha384 => hmac::HMAC_SHA384,
        Prf::HmacSha512 => hmac::HMAC_SHA512,
    };
    let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
    parts.iter().for_each(|part| context.update(part));
    Zeroizing::new(context.sign().as_ref().to_vec())
}

/// `prf+(key, seed)`, `len` octets of it (RFC 7296, 2.13); `None` for more than 255 outputs.
pub(crate) fn prf_plus(f: Prf, key: &[u8], seed: &[&[u8]], len: usize) -> Option<SecretOctets> {
    let mut result = Zeroizing::new(Vec::with_capacity(len + f.output_len()));
    let mut last = SecretOctets::default();
    for counter in 1..=u8::MAX {
        let mut parts: Vec<&[u8]> = vec![&last];
        parts.extend_from_slice(seed);
        let counter = [counter];
        parts.push(&counter);
        last = prf(f, key, &parts);
        result.extend_from_slice(&last);
        if result.len() >= len {
            // The capacity was set aside, so that no copy of the secret stays behind.
            result.truncate(len);
            return Some(result);
        }
    }
    None
}

/// SHA-1 for NAT detection (RFC 7296, 2.23), where no security depends on it.
pub(crate) fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    parts.iter().for_each(|part| context.update(part));
    let mut result = [0; 20];
    result.copy_from_slice(context.finish().as_ref());
    result
}

/// Compares without a time that depends on where the difference is.
pub(crate) fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 4231, test case 2, for the three functions.
    #[test]
    fn prf_is_hmac() {
        let expected: [(Prf, &[u8]); 3] = [
            (Prf::HmacSha256, &[0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60]),
            (Prf::HmacSha384, &[0xaf, 0x45, 0xd2, 0xe3, 0x76, 0x48]),
            (Prf::HmacSha512, &[0x16, 0x4b, 0x7a, 0x7b, 0xfc, 0xf8]),
        ];
        for (f, start) in expected {
            let mac = prf(f, b"Jefe", &[b"what do ya want ", b"for nothing?"]);
            assert_eq!((&mac[..6], mac.len()), (start, f.output_len()));
        }
    }

    #[test]
    fn prf_plus_chains_its_outputs_and_ends_at_255() {
        let f = Prf::HmacSha256;
        let long = prf_plus(f, b"key", &[b"se", b"ed"], 100).unwrap();
        let first = prf(f, b"key", &[b"seed", &[1]]);
        let second = prf(f, b"key", &[&first, b"seed", &[2]]);
        assert_eq!((&long[..32], &long[32..64], long.len()), (&first[..], &second[..], 100));
        assert!(prf_plus(f, b"key", &[], 255 * 32).is_some());
        assert!(prf_plus(f, b"key", &[], 255 * 32 + 1).is_none());
    }

    #[test]
    fn sha1_is_that_of_fips_180() {
        assert_eq!(sha1(&[b"a", b"bc"])[..4], [0xa9, 0x99, 0x3e, 0x36]);
    }
}
