//! Pre-shared key authentication (RFC 7296, 2.15).

use crate::crypto::{SecretOctets, equal, prf};
use crate::host::Secret;
use crate::keys::IkeKeys;

/// Shared Key Message Integrity Code (RFC 7296, 3.8).
pub(crate) const METHOD_SHARED_KEY: u8 = 2;

const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// What one side signs.
pub(crate) struct Signed<'a> {
    /// Its own IKE_SA_INIT message, as the octets that went over the wire.
    pub(crate) message: &'a [u8],
    /// The other side's nonce.
    pub(crate) nonce: &'a [u8],
    /// ID Type of its ID payload.
    pub(crate) id_kind: u8,
    /// Data of its ID payload.
    pub(crate) id_data: &'a [u8],
    /// Whether it is the initiator: SK_pi, else SK_pr.
    pub(crate) initiator: bool,
}

/// `AUTH = prf(prf(Shared Secret, "Key Pad for IKEv2"), <SignedOctets>)`.
pub(crate) fn shared_key(keys: &IkeKeys, secret: &Secret, signed: &Signed<'_>) -> SecretOctets {
    let sk_p = if signed.initiator { &keys.sk_pi } else { &keys.sk_pr };
    // RestOfIDPayload: type, three reserved octets, data.
    let maced_id = prf(keys.prf, sk_p, &[&[signed.id_kind, 0, 0, 0], signed.id_data]);
    let key = prf(keys.prf, secret.expose(), &[KEY_PAD]);
    prf(keys.prf, &key, &[signed.message, signed.nonce, &maced_id])
}

/// Whether the peer's AUTH data is right.
pub(crate) fn verify(keys: &IkeKeys, secret: &Secret, signed: &Signed<'_>, auth: &[u8]) -> bool {
    equal(&shared_key(keys, secret, signed), auth)
}
