//! Sealing: from an inner packet to an ESP packet.

use crate::aead::{Algorithm, Key, KeymatError, Provider};
use crate::{Aad, FRONT_LEN, HEADER_LEN, ICV_LEN, IV_LEN, TRAILER_LEN};

/// Padding of at most three octets (RFC 4303, 2.4).
const PADDING: [u8; 3] = [1, 2, 3];

/// Why a packet cannot be sealed. All of it is this gateway's own fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The buffer is shorter than the sealed packet.
    #[error("a buffer of {given} octets, the sealed packet needs {needed}")]
    BufferTooShort {
        /// Octets needed.
        needed: usize,
        /// Octets given.
        given: usize,
    },
    /// The sequence number is 0, or above 2^32 - 1 without extended numbers (RFC 4303, 3.3.3).
    #[error("the sequence number {0} cannot be sent")]
    SequenceNumber(u64),
    /// The packet is longer than AES-GCM can seal.
    #[error("the packet is too long for AES-GCM")]
    TooLong,
}

/// The outbound half of a CHILD SA: expanded key, salt, SPI. It has no `Debug`, on purpose.
///
/// It does not change, so workers may share it; the sequence number is the caller's, who must never
/// use one twice.
pub struct OutboundSa {
    key: Key,
    spi: u32,
    esn: bool,
}

impl OutboundSa {
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
    ) -> Result<OutboundSa, KeymatError> {
        Ok(OutboundSa { key: Key::new(provider, algorithm, keymat)?, spi, esn })
    }

    /// The SPI.
    pub fn spi(&self) -> u32 {
        self.spi
    }

    /// Octets of the ESP packet around an inner packet of `inner_len` octets.
    #[inline]
    pub const fn sealed_len(inner_len: usize) -> usize {
        FRONT_LEN + inner_len + padding_len(inner_len) + TRAILER_LEN + ICV_LEN
    }

    /// Seals `inner` into the front of `out`; octets written. The inner packet is copied once and
    /// encrypted where it lies then.
    ///
    /// # Errors
    /// [`SealError::BufferTooShort`] when `out` has less than [`OutboundSa::sealed_len`] octets,
    /// [`SealError::SequenceNumber`] for a number that the SA cannot send.
    #[inline]
    pub fn seal(
        &self,
        sequence: u64,
        next_header: u8,
        inner: &[u8],
        out: &mut [u8],
    ) -> Result<usize, SealError> {
        let needed = OutboundSa::sealed_len(inner.len());
        if out.len() < needed {
            return Err(SealError::BufferTooShort { needed, given: out.len() });
        }
        out[FRONT_LEN..FRONT_LEN + inner.len()].copy_from_slice(inner);
        self.seal_in_place(sequence, next_header, out, inner.len())
    }

    /// Seals the inner packet that lies at [`FRONT_LEN`] of `packet`, `inner_len` octets long; the
    /// ESP packet's octets. In front of it `packet` has room for header and IV, behind it for
    /// trailer and ICV.
    ///
    /// # Errors
    /// As [`OutboundSa::seal`].
    #[inline]
    pub fn seal_in_place(
        &self,
        sequence: u64,
        next_header: u8,
        packet: &mut [u8],
        inner_len: usize,
    ) -> Result<usize, SealError> {
        // RFC 4106, 3.1: the IV may be a counter; with ESN it is all of the sequence number.
        self.seal_with_iv(sequence, sequence.to_be_bytes(), next_header, packet, inner_len)
    }

    #[inline]
    pub(crate) fn seal_with_iv(
        &self,
        sequence: u64,
        iv: [u8; IV_LEN],
        next_header: u8,
        packet: &mut [u8],
        inner_len: usize,
    ) -> Result<usize, SealError> {
        // RFC 4303, 3.3.3: the first number is 1, and the counter must not cycle.
        if sequence == 0 || (!self.esn && sequence > u64::from(u32::MAX)) {
            return Err(SealError::SequenceNumber(sequence));
        }
        let needed = OutboundSa::sealed_len(inner_len);
        let given = packet.len();
        let packet = packet.get_mut(..needed).ok_or(SealError::BufferTooShort { needed, given })?;
        let (front, rest) = packet.split_at_mut(FRONT_LEN);
        let (text, icv) = rest.split_at_mut(needed - FRONT_LEN - ICV_LEN);

        front[..4].copy_from_slice(&self.spi.to_be_bytes());
        front[4..HEADER_LEN].copy_from_slice(&(sequence as u32).to_be_bytes());
        front[HEADER_LEN..].copy_from_slice(&iv);

        // RFC 4303, 2.4: 1, 2, 3 up to a multiple of four octets, then pad length, next header.
        let padding = padding_len(inner_len);
        let trailer = &mut text[inner_len..];
        trailer[..padding].copy_from_slice(&PADDING[..padding]);
        trailer[padding] = padding as u8;
        trailer[padding + 1] = next_header;

        let aad = Aad::new(self.spi, sequence, self.esn);
        let computed = self.key.seal(iv, aad.as_slice(), text).ok_or(SealError::TooLong)?;
        icv.copy_from_slice(&computed);
        Ok(needed)
    }
}

/// Octets of padding behind an inner packet.
#[inline]
const fn padding_len(inner_len: usize) -> usize {
    (inner_len + TRAILER_LEN).wrapping_neg() % 4
}
