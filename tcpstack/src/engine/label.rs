//! IPv6 flow labels of connections for which the caller gives none.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

/// A flow label has 20 bits (RFC 8200, 3).
pub(crate) const FLOW_LABEL_MASK: u32 = 0xf_ffff;

/// The flow label of all connections between two hosts: it stays when a new connection takes the
/// place of a broken one, so that routers that spread flows by it choose the same way (RFC 9329, 6.1;
/// RFC 6437, 3). The IKE SA, whose label it ought to be, is not known when a SYN is answered.
#[allow(clippy::cast_possible_truncation)] // 20 bits.
pub(crate) fn flow_label(key: [u64; 2], local: IpAddr, remote: IpAddr) -> u32 {
    if local.is_ipv4() {
        return 0; // No field for it.
    }
    let mut hasher = SipHasher13::new_with_keys(key[0], key[1]);
    (local, remote).hash(&mut hasher);
    // RFC 6437, 3: zero means that there is none.
    (hasher.finish() as u32 & FLOW_LABEL_MASK).max(1)
}
