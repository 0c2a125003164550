//! The AEAD seam: AES-GCM by ring or by RustCrypto's aes-gcm, chosen when the process starts.
//!
//! Which is faster depends on the processor, so [`Provider::fastest`] measures. A key knows its
//! provider and dispatches with one predictable branch; there is no virtual call and no box.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, Aes256Gcm, KeyInit};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

use crate::{ICV_LEN, IV_LEN, SALT_LEN};

/// Octets of an AES-GCM nonce: salt and IV (RFC 4106, 4).
const NONCE_LEN: usize = SALT_LEN + IV_LEN;

/// An ESP algorithm, encryption and integrity in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// AES-GCM, 128-bit key, 16-octet ICV.
    Aes128Gcm16,
    /// AES-GCM, 256-bit key, 16-octet ICV.
    Aes256Gcm16,
}

impl Algorithm {
    /// Octets of the key.
    pub const fn key_len(self) -> usize {
        match self {
            Algorithm::Aes128Gcm16 => 16,
            Algorithm::Aes256Gcm16 => 32,
        }
    }

    /// Octets of key material for one direction: key and salt (RFC 4106, 8.1).
    pub const fn keymat_len(self) -> usize {
        self.key_len() + SALT_LEN
    }
}

/// Key material of the wrong length for its algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given} octets of key material, {algorithm:?} needs {}", algorithm.keymat_len())]
pub struct KeymatError {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Octets given.
    pub given: usize,
}

/// Who computes AES-GCM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    /// The ring crate: assembly, fastest where it knows the processor's vector instructions.
    Ring,
    /// The aes-gcm crate: Rust with intrinsics; overwrites its keys when they are dropped.
    AesGcm,
}

/// A provider's name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no AEAD provider: use \"ring\" or \"aes-gcm\"")]
pub struct UnknownProvider(String);

impl FromStr for Provider {
    type Err = UnknownProvider;

    fn from_str(name: &str) -> Result<Provider, UnknownProvider> {
        match name {
            "ring" => Ok(Provider::Ring),
            "aes-gcm" => Ok(Provider::AesGcm),
            _ => Err(UnknownProvider(name.to_owned())),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::Ring => "ring",
            Provider::AesGcm => "aes-gcm",
        })
    }
}

/// Octets of a packet that is sealed for the measurement.
const MEASURED_LEN: usize = 1408;
/// Packets of a round, about 20 to 50 µs.
const MEASURED_PACKETS: usize = 64;
/// Rounds of each provider, in turn.
const MEASURED_ROUNDS: usize = 16;

impl Provider {
    /// Both providers.
    pub const ALL: [Provider; 2] = [Provider::Ring, Provider::AesGcm];

    /// The provider that seals full-sized packets with AES-128-GCM fastest on this processor.
    ///
    /// It measures, for a few milliseconds: both take turns, and each one's best round counts,
    /// so that an interruption does not decide. To be called once, at the start of the process.
    pub fn fastest() -> Provider {
        let keys =
            Provider::ALL.map(|provider| Key::new(provider, Algorithm::Aes128Gcm16, &[0; 20]));
        let mut packet = [0; MEASURED_LEN];
        let mut best = [u128::MAX; 2];
        for _ in 0..MEASURED_ROUNDS {
            for (key, best) in keys.iter().flatten().zip(&mut best) {
                let start = Instant::now();
                for iv in 0..MEASURED_PACKETS as u64 {
                    std::hint::black_box(key.seal(iv.to_be_bytes(), &[0; 8], &mut packet));
                }
                *best = start.elapsed().as_nanos().min(*best);
            }
        }
        let [ring, aes_gcm] = best;
        if aes_gcm < ring { Provider::AesGcm } else { Provider::Ring }
    }
}

/// An expanded key with its salt. It has no `Debug`, on purpose.
pub(crate) struct Key {
    cipher: Cipher,
    salt: [u8; SALT_LEN],
}

enum Cipher {
    Ring(LessSafeKey),
    Aes128(Aes128Gcm),
    Aes256(Aes256Gcm),
}

/// The ICV is wrong: someone else made the packet, or it was changed on its way.
pub(crate) struct NotAuthentic;

impl Key {
    /// Expands key material: key, then salt (RFC 4106, 8.1).
    pub(crate) fn new(
        provider: Provider,
        algorithm: Algorithm,
        keymat: &[u8],
    ) -> Result<Key, KeymatError> {
        let wrong = KeymatError { algorithm, given: keymat.len() };
        if keymat.len() != algorithm.keymat_len() {
            return Err(wrong);
        }
        let (key, salt) = keymat.split_at(algorithm.key_len());
        let cipher = match (provider, algorithm) {
            (Provider::Ring, Algorithm::Aes128Gcm16) => Cipher::Ring(LessSafeKey::new(
                UnboundKey::new(&AES_128_GCM, key).map_err(|_| wrong)?,
            )),
            (Provider::Ring, Algorithm::Aes256Gcm16) => Cipher::Ring(LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM, key).map_err(|_| wrong)?,
            )),
            (Provider::AesGcm, Algorithm::Aes128Gcm16) => {
                Cipher::Aes128(Aes128Gcm::new_from_slice(key).map_err(|_| wrong)?)
            }
            (Provider::AesGcm, Algorithm::Aes256Gcm16) => {
                Cipher::Aes256(Aes256Gcm::new_from_slice(key).map_err(|_| wrong)?)
            }
        };
        let salt = salt.try_into().map_err(|_| wrong)?;
        Ok(Key { cipher, salt })
    }

    /// Encrypts `text` where it lies; the ICV. `None` only for a text beyond AES-GCM's 64 GiB.
    #[inline]
    pub(crate) fn seal(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        text: &mut [u8],
    ) -> Option<[u8; ICV_LEN]> {
        let nonce = self.nonce(iv);
        match &self.cipher {
            Cipher::Ring(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let icv = key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).ok()?;
                icv.as_ref().try_into().ok()
            }
            Cipher::Aes128(key) => {
                key.encrypt_inout_detached(&nonce.into(), aad, text.into()).ok().map(Into::into)
            }
            Cipher::Aes256(key) => {
                key.encrypt_inout_detached(&nonce.into(), aad, text.into()).ok().map(Into::into)
            }
        }
    }

    /// Checks the ICV (in constant time, both providers) and decrypts `text` where it lies.
    /// After an error its content is undefined.
    #[inline]
    pub(crate) fn open(
        &self,
        iv: [u8; IV_LEN],
        aad: &[u8],
        text: &mut [u8],
        icv: [u8; ICV_LEN],
    ) -> Result<(), NotAuthentic> {
        let nonce = self.nonce(iv);
        match &self.cipher {
            Cipher::Ring(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let (aad, icv) = (Aad::from(aad), icv.into());
                key.open_in_place_separate_tag(nonce, aad, icv, text, 0..).map(|_| ()).ok()
            }
            Cipher::Aes128(key) => {
                key.decrypt_inout_detached(&nonce.into(), aad, text.into(), &icv.into()).ok()
            }
            Cipher::Aes256(key) => {
                key.decrypt_inout_detached(&nonce.into(), aad, text.into(), &icv.into()).ok()
            }
        }
        .ok_or(NotAuthentic)
    }

    #[inline]
    fn nonce(&self, iv: [u8; IV_LEN]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..SALT_LEN].copy_from_slice(&self.salt);
        nonce[SALT_LEN..].copy_from_slice(&iv);
        nonce
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.salt.zeroize();
    }
}
