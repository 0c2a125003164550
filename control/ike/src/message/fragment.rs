//! IKE fragmentation (RFC 7383): a message cut into SKF payloads, each protected on its own, and put
//! together again.

use super::{CodecError, GENERIC_LEN, HEADER_LEN, Header, Message, PayloadType, encode_chain};
use super::{decode_chain, first_type, set_length};
use crate::crypto::{ICV_LEN, IV_LEN, SkKey};
use crate::time::Instant;

/// Octets of Fragment Number and Total Fragments.
pub(super) const NUMBERS_LEN: usize = 4;
/// Octets of a fragment that are not the message's.
const OVERHEAD: usize = HEADER_LEN + GENERIC_LEN + NUMBERS_LEN + IV_LEN + 1 + ICV_LEN;
/// Most fragments of one message.
const FRAGMENTS_MAX: u16 = 128;
/// Most octets of a message put together.
const REASSEMBLED_MAX: usize = 65_535;

/// Fragment Number, from 1, and Total Fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) number: u16,
    pub(crate) total: u16,
}

impl Numbers {
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let (number, total) = (body.get(..2)?, body.get(2..4)?);
        let read = |octets: &[u8]| octets.try_into().map(u16::from_be_bytes).ok();
        let numbers = Self { number: read(number)?, total: read(total)? };
        (numbers.number != 0 && numbers.number <= numbers.total).then_some(numbers)
    }
}

impl Message {
    /// The message in fragments of at most `limit` octets; `iv` gives a fresh IV for each.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when that takes more than [`FRAGMENTS_MAX`].
    pub(crate) fn seal_fragments(
        &self,
        key: &SkKey,
        iv: &mut dyn FnMut() -> [u8; IV_LEN],
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, CodecError> {
        let mut inner = Vec::new();
        encode_chain(&self.payloads, &mut inner)?;
        let chunks = inner.chunks(limit.saturating_sub(OVERHEAD).max(1));
        let total = u16::try_from(chunks.len()).map_err(|_| CodecError::TooLong)?;
        if total > FRAGMENTS_MAX {
            return Err(CodecError::TooLong);
        }
        let first = first_type(&self.payloads);
        chunks
            .zip(1..=total)
            .map(|(chunk, number)| {
                // RFC 7383, 2.5: only the first fragment names the first payload.
                let next = if number == 1 { first } else { PayloadType::NONE };
                seal_fragment(&self.header, next, Numbers { number, total }, chunk, key, iv())
            })
            .collect()
    }

    /// Fragment Number and Total Fragments of a decoded fragment; `None` for a whole message.
    pub(crate) fn fragment(&self) -> Option<Numbers> {
        self.sealed.and_then(|sealed| sealed.fragment)
    }

    /// Checks and decrypts one fragment of a message.
    ///
    /// # Errors
    /// As [`Message::open`].
    pub(crate) fn open_fragment<'a>(
        &self,
        octets: &'a mut [u8],
        key: &SkKey,
    ) -> Result<(PayloadType, &'a [u8]), CodecError> {
        let sealed = self.sealed.ok_or(CodecError::Header)?;
        Ok((sealed.first, self.decrypt(octets, key)?))
    }
}

fn seal_fragment(
    header: &Header,
    next: PayloadType,
    numbers: Numbers,
    chunk: &[u8],
    key: &SkKey,
    iv: [u8; IV_LEN],
) -> Result<Vec<u8>, CodecError> {
    let mut text = Vec::with_capacity(chunk.len() + 1 + ICV_LEN);
    text.extend_from_slice(chunk);
    text.push(0);
    let mut out = Vec::with_capacity(OVERHEAD + chunk.len());
    header.encode(PayloadType::SKF, &mut out);
    let length = GENERIC_LEN + NUMBERS_LEN + IV_LEN + text.len() + ICV_LEN;
    set_length(&mut out, HEADER_LEN + length)?;
    let length = u16::try_from(length).map_err(|_| CodecError::TooLong)?;
    out.extend_from_slice(&[next.0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&numbers.number.to_be_bytes());
    out.extend_from_slice(&numbers.total.to_be_bytes());
    // RFC 7383, 2.5 with RFC 5282, 5.1: the numbers are authenticated.
    key.seal(&out, &iv, &mut text).ok_or(CodecError::TooLong)?;
    out.extend_from_slice(&iv);
    out.extend_from_slice(&text);
    Ok(out)
}

/// The fragments of one message so far.
pub(crate) struct Reassembly {
    message_id: u32,
    total: u16,
    first: PayloadType,
    parts: Vec<Option<Vec<u8>>>,
    octets: usize,
    /// When they are given up.
    until: Option<Instant>,
}

impl Reassembly {
    fn new(message_id: u32, total: u16) -> Self {
        let parts = vec![None; usize::from(total)];
        Self { message_id, total, first: PayloadType::NONE, parts, octets: 0, until: None }
    }

    /// Until when the rest is waited for.
    pub(crate) const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Waits until then for the rest, unless that is settled already.
    pub(crate) const fn wait_until(&mut self, until: Instant) {
        if self.until.is_none() {
            self.until = Some(until);
        }
    }

    /// Takes an authentic fragment; gives the whole message with its last one. A sender that cuts
    /// smaller begins anew with more fragments; fewer are of an older attempt (RFC 7383, 2.6).
    ///
    /// # Errors
    /// [`CodecError::Syntax`] and [`CodecError::Critical`] of the whole; [`CodecError::Header`] when
    /// the fragment cannot belong to a message that is accepted.
    pub(crate) fn take(
        slot: &mut Option<Self>,
        header: &Header,
        numbers: Numbers,
        (first, part): (PayloadType, &[u8]),
    ) -> Result<Option<Message>, CodecError> {
        if numbers.total > FRAGMENTS_MAX {
            return Err(CodecError::Header);
        }
        let stale = |r: &Self| r.message_id != header.message_id || r.total < numbers.total;
        if slot.as_ref().is_none_or(stale) {
            *slot = Some(Self::new(header.message_id, numbers.total));
        }
        let Some(this) = slot.as_mut().filter(|r| r.total == numbers.total) else {
            return Err(CodecError::Header);
        };
        let Some(place) = this.parts.get_mut(usize::from(numbers.number) - 1) else {
            return Err(CodecError::Header);
        };
        if place.is_none() {
            this.octets += part.len();
            if this.octets > REASSEMBLED_MAX {
                *slot = None;
                return Err(CodecError::Header);
            }
            *place = Some(part.to_vec());
            if numbers.number == 1 {
                this.first = first;
            }
        }
        if this.parts.iter().any(Option::is_none) {
            return Ok(None);
        }
        let whole: Vec<u8> = this.parts.iter().flatten().flatten().copied().collect();
        let first = this.first;
        *slot = None;
        match decode_chain(first, &whole, 0)? {
            (payloads, None) => Ok(Some(Message::new(*header, payloads))),
            _ => Err(CodecError::Syntax("SK payload inside an SKF payload")),
        }
    }
}
