//! The key schedule: SKEYSEED, SK_* and KEYMAT (RFC 7296, 2.14, 2.17 and 2.18).

use crate::crypto::{SecretOctets, SkKey, prf, prf_plus};
use crate::host::KeyMaterial;
use crate::proposal::{Encryption, EspSuite, IkeSuite, Prf};
use serde::{Deserialize, Serialize};

/// What the keys of an IKE SA are made of, besides SKEYSEED.
pub(crate) struct Inputs<'a> {
    /// Nonce of the exchange's initiator.
    pub(crate) nonce_i: &'a [u8],
    /// Nonce of the exchange's responder.
    pub(crate) nonce_r: &'a [u8],
    /// SPI of the new SA's initiator.
    pub(crate) spi_i: u64,
    /// SPI of the new SA's responder.
    pub(crate) spi_r: u64,
}

/// The keys of an IKE SA.
#[derive(Serialize, Deserialize)]
pub(crate) struct IkeKeys {
    pub(crate) prf: Prf,
    pub(crate) sk_d: SecretOctets,
    pub(crate) sk_ei: SkKey,
    pub(crate) sk_er: SkKey,
    pub(crate) sk_pi: SecretOctets,
    pub(crate) sk_pr: SecretOctets,
}

/// `SKEYSEED = prf(Ni | Nr, g^ir)`.
pub(crate) fn skeyseed(f: Prf, inputs: &Inputs<'_>, shared: &[u8]) -> SecretOctets {
    let key = [inputs.nonce_i, inputs.nonce_r].concat();
    prf(f, &key, &[shared])
}

/// `SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr)`, with the old SA's PRF (RFC 7296, 2.18).
pub(crate) fn skeyseed_rekeyed(old: &IkeKeys, inputs: &Inputs<'_>, shared: &[u8]) -> SecretOctets {
    prf(old.prf, &old.sk_d, &[shared, inputs.nonce_i, inputs.nonce_r])
}

impl IkeKeys {
    /// `{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi |
    /// SPIr)`; an AEAD has no SK_a (RFC 5282, 7).
    pub(crate) fn derive(suite: &IkeSuite, skeyseed: &[u8], inputs: &Inputs<'_>) -> Option<Self> {
        let (spi_i, spi_r) = (inputs.spi_i.to_be_bytes(), inputs.spi_r.to_be_bytes());
        let key = suite.encryption.keymat_len();
        let own = suite.prf.output_len();
        let seed = [inputs.nonce_i, inputs.nonce_r, &spi_i, &spi_r];
        let all = prf_plus(suite.prf, skeyseed, &seed, 3 * own + 2 * key)?;
        let (sk_d, rest) = all.split_at_checked(own)?;
        let (sk_ei, rest) = rest.split_at_checked(key)?;
        let (sk_er, rest) = rest.split_at_checked(key)?;
        let (sk_pi, sk_pr) = rest.split_at_checked(own)?;
        Some(Self {
            prf: suite.prf,
            sk_d: SecretOctets::new(sk_d.to_vec()),
            sk_ei: SkKey::new(suite.encryption, sk_ei)?,
            sk_er: SkKey::new(suite.encryption, sk_er)?,
            sk_pi: SecretOctets::new(sk_pi.to_vec()),
            sk_pr: SecretOctets::new(sk_pr.to_vec()),
        })
    }

    /// `KEYMAT = prf+(SK_d, [g^ir (new) |] Ni | Nr)` for a CHILD SA: the keys of the exchange's
    /// initiator, then of its responder.
    pub(crate) fn keymat(
        &self,
        suite: &EspSuite,
        shared: Option<&SecretOctets>,
        nonce_i: &[u8],
        nonce_r: &[u8],
    ) -> Option<(KeyMaterial, KeyMaterial)> {
        let len = Encryption::keymat_len(suite.encryption);
        let shared = shared.map_or(&[][..], |s| s);
        let all = prf_plus(self.prf, &self.sk_d, &[shared, nonce_i, nonce_r], 2 * len)?;
        let (from_i, from_r) = all.split_at_checked(len)?;
        Some((KeyMaterial::new(from_i), KeyMaterial::new(from_r)))
    }
}
