//! ESP seal and open, replay window, ESN, and the AEAD seam, without I/O.
//!
//! # How a packet passes
//! ```text
//! SPI | sequence number | IV | inner packet | padding | pad length | next header | ICV
//! \______ AAD ________/        \________________ encrypted ________________/
//! ```
//!
//! Outbound, the owner of the SA takes the next sequence number (stored before it is used, which
//! is the caller's duty), and [`OutboundSa::seal`] writes the whole packet into the caller's
//! buffer: the inner packet is copied once and encrypted where it lies. Where the inner packet
//! already lies in the right place, as in an mbuf with headroom, [`OutboundSa::seal_in_place`]
//! copies nothing.
//!
//! Inbound, [`InboundSa::open`] infers the high half of an extended sequence number from the
//! [`ReplayWindow`] (RFC 4303, Appendix A), refuses what is too old or was received before, then
//! checks the ICV and decrypts in place, and only then moves the window and looks at padding and
//! next header. The same code serves ESP in TCP, in UDP and native: what carries the packet is not
//! part of it.
//!
//! AES-GCM with a 16-octet ICV is all there is (RFC 4106). The IV is the sequence number, which
//! never repeats for a key; the nonce is the salt and the IV.
//!
//! # Keys
//! An SA holds its expanded key in place, without a pointer. The aes-gcm provider overwrites it
//! when the SA is dropped. ring offers no way to do so and hides the memory, so there the expanded
//! key stays in freed memory until it is used again; salts and key material copied by this crate
//! are overwritten in both cases. Whoever needs the former chooses [`Provider::AesGcm`].
#![forbid(unsafe_code)]

mod aead;
mod inbound;
mod outbound;
mod replay;

#[cfg(test)]
mod known_answers;

pub use aead::{Algorithm, KeymatError, Provider, UnknownProvider};
pub use inbound::{InboundSa, OpenError, Opened};
pub use outbound::{OutboundSa, SealError};
pub use replay::{ReplayWindow, WINDOW_MAX, WINDOW_MIN};

/// Octets of SPI and sequence number (RFC 4303, 2).
pub const HEADER_LEN: usize = 8;
/// Octets of the IV (RFC 4106, 3.1).
pub const IV_LEN: usize = 8;
/// Octets of the ICV (RFC 4106, 6).
pub const ICV_LEN: usize = 16;
/// Octets of the salt, the end of the key material (RFC 4106, 8.1).
pub const SALT_LEN: usize = 4;
/// Octets in front of the inner packet.
pub const FRONT_LEN: usize = HEADER_LEN + IV_LEN;
/// Octets behind the inner packet at most: padding, pad length, next header, ICV.
pub const BACK_LEN_MAX: usize = 3 + TRAILER_LEN + ICV_LEN;

/// Octets of pad length and next header.
const TRAILER_LEN: usize = 2;

/// Next header of an inner IPv4 packet.
pub const NEXT_HEADER_IPV4: u8 = 4;
/// Next header of an inner IPv6 packet.
pub const NEXT_HEADER_IPV6: u8 = 41;
/// Next header of a dummy packet (RFC 4303, 2.6).
pub const NEXT_HEADER_DUMMY: u8 = 59;

/// The AAD: SPI and sequence number, the latter in whole when it is extended (RFC 4106, 5).
struct Aad {
    octets: [u8; 12],
    used: usize,
}

impl Aad {
    #[inline]
    fn new(spi: u32, sequence: u64, esn: bool) -> Aad {
        let mut octets = [0; 12];
        octets[..4].copy_from_slice(&spi.to_be_bytes());
        if esn {
            octets[4..].copy_from_slice(&sequence.to_be_bytes());
            Aad { octets, used: 12 }
        } else {
            octets[4..8].copy_from_slice(&(sequence as u32).to_be_bytes());
            Aad { octets, used: 8 }
        }
    }

    #[inline]
    fn as_slice(&self) -> &[u8] {
        &self.octets[..self.used]
    }
}
