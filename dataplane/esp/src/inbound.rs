//! Opening: from an ESP packet to an inner packet.

use std::ops::Range;

use crate::aead::{Algorithm, Key, KeymatError, NotAuthentic, Provider};
use crate::replay::{Refused, ReplayWindow};
use crate::{Aad, FRONT_LEN, HEADER_LEN, ICV_LEN, IV_LEN, NEXT_HEADER_DUMMY, TRAILER_LEN};

/// Octets of an ESP packet at least: one word of ciphertext.
const PACKET_MIN: usize = FRONT_LEN + 4 + ICV_LEN;

/// Why an ESP packet is dropped. Up to [`OpenError::IcvFailed`] nobody knows who sent it; from
/// there on the peer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OpenError {
    /// It is too short to hold header, IV, trailer and ICV.
    #[error("the packet is shorter than an ESP packet can be")]
    TooShort,
    /// It does not end on a multiple of four octets (RFC 4303, 2.4).
    #[error("the packet's length is no multiple of four octets")]
    Misaligned,
    /// Its SPI is another SA's.
    #[error("the packet's SPI is not this SA's")]
    WrongSpi,
    /// A packet of its sequence number was received before (RFC 4303, 3.4.3).
    #[error("a packet of this sequence number was received before")]
    Replayed,
    /// Its sequence number lies behind the replay window (RFC 4303, 3.4.3).
    #[error("the packet's sequence number lies behind the replay window")]
    TooOld,
    /// The ICV is wrong: forged, damaged, or sealed with another key.
    #[error("the packet's integrity check failed")]
    IcvFailed,
    /// It is authentic, but its padding is not 1, 2, 3 and so on, or is longer than the packet
    /// (RFC 4303, 2.4).
    #[error("the peer's padding is malformed")]
    BadPadding,
    /// It is authentic and a dummy, to be dropped without further ado (RFC 4303, 2.6).
    #[error("a dummy packet of the peer")]
    Dummy,
}

/// An authentic packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Where the inner packet lies in the buffer. It may be followed by TFC padding, which the
    /// inner packet's own length tells apart (RFC 4303, 2.7).
    pub inner: Range<usize>,
    /// What the inner packet is; the caller decides which it takes.
    pub next_header: u8,
    /// The sequence number, in whole.
    pub sequence: u64,
    /// Whether it is the highest so far: only then may the peer's path follow the packet.
    pub newest: bool,
}

/// The inbound half of a CHILD SA: expanded key, salt, SPI. It has no `Debug`, on purpose.
pub struct InboundSa {
    key: Key,
    spi: u32,
    esn: bool,
}

impl InboundSa {
    /// Expands the key. `keymat` is key and salt (RFC 4106, 8.1) and stays the caller's to
    /// overwrite.
    ///
    /// # Errors
    /// [`KeymatError`] when `keymat` has not [`Algorithm::keymat_len`] octets.
    pub fn new(
        provider: Provider,
        algorithm: Algorithm,
        spi: u32,
        keymat: &[u8],
        esn: bool,
    ) -> Result<InboundSa, KeymatError> {
        Ok(InboundSa { key: Key::new(provider, algorithm, keymat)?, spi, esn })
    }

    /// The SPI.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Opens `packet`, from its SPI to its ICV, where it lies.
    ///
    /// The window moves if the packet is authentic, whatever is wrong with it otherwise. After an
    /// error the buffer's content is undefined.
    ///
    /// # Errors
    /// [`OpenError`], the first thing that is wrong.
    #[inline]
    pub fn open(&self, packet: &mut [u8], window: &ReplayWindow<'_>) -> Result<Opened, OpenError> {
        let len = packet.len();
        if len < PACKET_MIN {
            return Err(OpenError::TooShort);
        }
        if !len.is_multiple_of(4) {
            return Err(OpenError::Misaligned);
        }
        let (front, rest) = packet.split_at_mut(FRONT_LEN);
        let (text, icv) = rest.split_at_mut(len - FRONT_LEN - ICV_LEN);
        if word(&front[..4]) != self.spi {
            return Err(OpenError::WrongSpi);
        }

        // RFC 4303, 3.4.3: the window is looked at first and moved only after the ICV.
        let low = word(&front[4..HEADER_LEN]);
        let sequence = if self.esn { window.infer(low) } else { u64::from(low) };
        window.check(sequence).map_err(|refused| match refused {
            Refused::Duplicate => OpenError::Replayed,
            Refused::TooOld => OpenError::TooOld,
        })?;
        let aad = Aad::new(self.spi, sequence, self.esn);
        let iv: [u8; IV_LEN] = array(&front[HEADER_LEN..]);
        self.key
            .open(iv, aad.as_slice(), text, array(icv))
            .map_err(|NotAuthentic| OpenError::IcvFailed)?;
        let newest = window.accept(sequence);

        let (inner_len, next_header) = trailer(text)?;
        Ok(Opened { inner: FRONT_LEN..FRONT_LEN + inner_len, next_header, sequence, newest })
    }
}

/// The inner packet's octets and the next header, from the decrypted text.
#[inline]
fn trailer(text: &[u8]) -> Result<(usize, u8), OpenError> {
    let Some((body, &[pad_len, next_header])) = text.split_last_chunk::<TRAILER_LEN>() else {
        return Err(OpenError::TooShort);
    };
    // RFC 4303, 2.6: the rest of a dummy packet need not be well-formed.
    if next_header == NEXT_HEADER_DUMMY {
        return Err(OpenError::Dummy);
    }
    let inner_len = body.len().checked_sub(usize::from(pad_len)).ok_or(OpenError::BadPadding)?;
    // RFC 4303, 2.4: the receiver should inspect the padding.
    let in_order = body[inner_len..].iter().zip(1u8..=255).all(|(&octet, want)| octet == want);
    if in_order { Ok((inner_len, next_header)) } else { Err(OpenError::BadPadding) }
}

/// A word of a slice of four octets.
#[inline]
fn word(octets: &[u8]) -> u32 {
    u32::from_be_bytes(array(octets))
}

/// The slice, whose length the caller knows, as an array.
#[inline]
fn array<const N: usize>(octets: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(octets);
    array
}
