//! The octets of IKEv2 messages (RFC 7296, 3) and their values.
//!
//! [`Message::decode`] checks the header and takes the chain of payloads in the clear apart. Where
//! an SK payload ends the chain, [`Message::open`] checks its integrity, decrypts it and takes the
//! chain inside apart. [`Message::encode`] and [`Message::seal`] are the ways back.
//!
//! Every length is checked against what is there, every count against a named limit, and nothing is
//! allocated by a number that a peer merely claims.

mod fragment;
mod payload;
mod read;
mod sa;
mod types;

use crate::crypto::{ICV_LEN, IV_LEN, SkKey};

pub(crate) use fragment::{Numbers, Reassembly};
pub use payload::{Notify, Payload, SelectorItem};
pub use sa::{Attribute, Proposal, Transform, TransformType};
pub use types::{ExchangeType, NotifyType, PayloadType, Protocol};

/// Octets of an IKE header.
pub const HEADER_LEN: usize = 28;
/// Most payloads of one chain.
pub const PAYLOADS_MAX: usize = 64;
/// Octets of a generic payload header.
const GENERIC_LEN: usize = 4;

/// Why octets are no message. Only [`CodecError::Icv`] and the header's errors can be caused by
/// somebody other than the peer once the message was protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Shorter than a header, or its Length field is not the length of the message.
    #[error("no IKE header, or its length is not that of the message")]
    Header,
    /// A payload or a field in it is malformed: INVALID_SYNTAX.
    #[error("malformed {0}")]
    Syntax(&'static str),
    /// An unknown payload with the critical bit: UNSUPPORTED_CRITICAL_PAYLOAD.
    #[error("unknown critical payload {0}")]
    Critical(u8),
    /// The integrity check failed.
    #[error("the integrity check failed")]
    Icv,
    /// A message to send would be longer than its fields can say.
    #[error("a message is longer than 65,535 octets")]
    TooLong,
}

/// The IKE header (RFC 7296, 3.1), without the fields that follow from the payloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// SPI of the IKE SA's initiator.
    pub spi_i: u64,
    /// SPI of its responder; 0 in the first message.
    pub spi_r: u64,
    /// Major version, 2.
    pub major: u8,
    /// Minor version, 0.
    pub minor: u8,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// The I flag: sent by the original initiator of this IKE SA.
    pub from_initiator: bool,
    /// The R flag: a response.
    pub response: bool,
    /// The V flag: the sender speaks a higher major version.
    pub higher_version: bool,
    /// Message ID.
    pub message_id: u32,
}

impl Header {
    const FLAG_INITIATOR: u8 = 0x08;
    const FLAG_VERSION: u8 = 0x10;
    const FLAG_RESPONSE: u8 = 0x20;

    /// Reads the header of a whole message; also gives the first payload's type.
    ///
    /// # Errors
    /// [`CodecError::Header`] when there are fewer than [`HEADER_LEN`] octets or the Length field is
    /// not the number of octets.
    pub fn decode(octets: &[u8]) -> Result<(Self, PayloadType), CodecError> {
        let mut r = read::Reader::new(octets);
        let header = (|| {
            let (spi_i, spi_r) = (r.u64()?, r.u64()?);
            let (next, version, exchange, flags) = (r.u8()?, r.u8()?, r.u8()?, r.u8()?);
            let (message_id, length) = (r.u32()?, r.u32()?);
            let header = Self {
                spi_i,
                spi_r,
                major: version >> 4,
                minor: version & 0x0f,
                exchange: ExchangeType(exchange),
                from_initiator: flags & Self::FLAG_INITIATOR != 0,
                response: flags & Self::FLAG_RESPONSE != 0,
                higher_version: flags & Self::FLAG_VERSION != 0,
                message_id,
            };
            Some((header, PayloadType(next), length))
        })();
        match header {
            Some((header, next, length)) if usize::try_from(length) == Ok(octets.len()) => {
                Ok((header, next))
            }
            _ => Err(CodecError::Header),
        }
    }

    fn encode(&self, next: PayloadType, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.spi_i.to_be_bytes());
        out.extend_from_slice(&self.spi_r.to_be_bytes());
        let flags = u8::from(self.from_initiator) * Self::FLAG_INITIATOR
            + u8::from(self.response) * Self::FLAG_RESPONSE
            + u8::from(self.higher_version) * Self::FLAG_VERSION;
        out.extend_from_slice(&[
            next.0,
            self.major << 4 | self.minor & 0x0f,
            self.exchange.0,
            flags,
        ]);
        out.extend_from_slice(&self.message_id.to_be_bytes());
        // The Length field; `finish` fills it in.
        out.extend_from_slice(&[0; 4]);
    }
}

/// An SK payload that has not been opened yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sealed {
    /// Type of the first payload inside.
    first: PayloadType,
    /// Where the IV begins in the message.
    at: usize,
    /// Set where it is an SKF payload (RFC 7383).
    fragment: Option<Numbers>,
}

/// A message: its header and its payloads in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The payloads: those in the clear after [`Message::decode`], those inside SK after
    /// [`Message::open`].
    pub payloads: Vec<Payload>,
    sealed: Option<Sealed>,
}

impl Message {
    /// A message to be encoded or sealed.
    pub const fn new(header: Header, payloads: Vec<Payload>) -> Self {
        Self { header, payloads, sealed: None }
    }

    /// Takes a message apart as far as it is in the clear.
    ///
    /// # Errors
    /// [`CodecError::Header`], [`CodecError::Syntax`] or [`CodecError::Critical`].
    pub fn decode(octets: &[u8]) -> Result<Self, CodecError> {
        let (header, first) = Header::decode(octets)?;
        let (payloads, sealed) = decode_chain(first, octets, HEADER_LEN)?;
        Ok(Self { header, payloads, sealed })
    }

    /// Whether the message ends with an SK payload.
    pub const fn is_sealed(&self) -> bool {
        self.sealed.is_some()
    }

    /// Checks and decrypts the SK payload of a decoded message and takes what is inside apart.
    /// `octets` are those of [`Message::decode`] and are decrypted in place.
    ///
    /// Payloads in the clear before SK are not protected by more than the integrity check, and RFC
    /// 7296 puts none there: they are dropped.
    ///
    /// # Errors
    /// [`CodecError::Icv`] when the check fails (nothing in the message is then known to be from the
    /// peer); [`CodecError::Syntax`] and [`CodecError::Critical`] are authentic.
    pub(crate) fn open(&self, octets: &mut [u8], key: &SkKey) -> Result<Self, CodecError> {
        let sealed = self.sealed.ok_or(CodecError::Syntax("message without SK payload"))?;
        let plain = self.decrypt(octets, key)?;
        let (payloads, inner) = decode_chain(sealed.first, plain, 0)?;
        if inner.is_some() {
            return Err(CodecError::Syntax("SK payload inside an SK payload"));
        }
        Ok(Self { header: self.header, payloads, sealed: None })
    }

    /// Checks and decrypts what is inside the SK or SKF payload, without padding.
    fn decrypt<'a>(&self, octets: &'a mut [u8], key: &SkKey) -> Result<&'a [u8], CodecError> {
        let sealed = self.sealed.ok_or(CodecError::Header)?;
        let (aad, rest) = octets.split_at_mut_checked(sealed.at).ok_or(CodecError::Icv)?;
        let (iv, text) = rest.split_at_mut_checked(IV_LEN).ok_or(CodecError::Icv)?;
        let iv: [u8; IV_LEN] = (&*iv).try_into().map_err(|_| CodecError::Icv)?;
        let plain = key.open(aad, &iv, text).ok_or(CodecError::Icv)?;
        let pad_len = usize::from(*plain.last().ok_or(CodecError::Syntax("SK padding"))?);
        let len = plain.len().checked_sub(pad_len + 1).ok_or(CodecError::Syntax("SK padding"))?;
        plain.get(..len).ok_or(CodecError::Syntax("SK padding"))
    }

    /// The octets of a message in the clear.
    ///
    /// # Errors
    /// [`CodecError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut out = Vec::with_capacity(512);
        self.header.encode(first_type(&self.payloads), &mut out);
        encode_chain(&self.payloads, &mut out)?;
        finish(out)
    }

    /// The octets of the message with all payloads inside one SK payload. `iv` must never have been
    /// used with this key (RFC 5282, 3.1).
    ///
    /// # Errors
    /// [`CodecError::TooLong`].
    pub(crate) fn seal(&self, key: &SkKey, iv: [u8; IV_LEN]) -> Result<Vec<u8>, CodecError> {
        let mut inner = Vec::with_capacity(512);
        encode_chain(&self.payloads, &mut inner)?;
        // AES-GCM needs no padding, only the Pad Length octet.
        inner.push(0);
        let mut out = Vec::with_capacity(HEADER_LEN + GENERIC_LEN + IV_LEN + inner.len() + ICV_LEN);
        self.header.encode(PayloadType::SK, &mut out);
        let length = u16::try_from(GENERIC_LEN + IV_LEN + inner.len() + ICV_LEN)
            .map_err(|_| CodecError::TooLong)?;
        out.extend_from_slice(&[first_type(&self.payloads).0, 0]);
        out.extend_from_slice(&length.to_be_bytes());
        let total = out.len() + usize::from(length) - GENERIC_LEN;
        set_length(&mut out, total)?;
        // RFC 5282, 5.1: all up to the end of SK's generic header is authenticated.
        key.seal(&out, &iv, &mut inner).ok_or(CodecError::TooLong)?;
        out.extend_from_slice(&iv);
        out.extend_from_slice(&inner);
        Ok(out)
    }

    /// The first notification of this type.
    pub fn notify(&self, kind: NotifyType) -> Option<&Notify> {
        self.notifies().find(|n| n.kind == kind)
    }

    /// All notifications.
    pub fn notifies(&self) -> impl Iterator<Item = &Notify> {
        self.payloads.iter().filter_map(|p| match p {
            Payload::Notify(n) => Some(n),
            _ => None,
        })
    }

    /// The nonce.
    pub fn nonce(&self) -> Option<&[u8]> {
        self.payloads.iter().find_map(|p| match p {
            Payload::Nonce(nonce) => Some(&nonce[..]),
            _ => None,
        })
    }

    /// The first notification that reports an error.
    pub fn error(&self) -> Option<&Notify> {
        self.notifies().find(|n| n.kind.is_error())
    }
}

fn first_type(payloads: &[Payload]) -> PayloadType {
    payloads.first().map_or(PayloadType::NONE, Payload::kind)
}

fn encode_chain(payloads: &[Payload], out: &mut Vec<u8>) -> Result<(), CodecError> {
    for (index, payload) in payloads.iter().enumerate() {
        let next = payloads.get(index + 1).map_or(PayloadType::NONE, Payload::kind);
        let at = out.len();
        out.extend_from_slice(&[next.0, 0, 0, 0]);
        payload.encode_body(out)?;
        let length = u16::try_from(out.len() - at).map_err(|_| CodecError::TooLong)?;
        out[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

fn set_length(out: &mut [u8], total: usize) -> Result<(), CodecError> {
    let length = u32::try_from(total).map_err(|_| CodecError::TooLong)?;
    out[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

fn finish(mut out: Vec<u8>) -> Result<Vec<u8>, CodecError> {
    let total = out.len();
    set_length(&mut out, total)?;
    Ok(out)
}

/// Takes the chain of payloads apart that begins at `at` with one of type `first`.
fn decode_chain(
    first: PayloadType,
    octets: &[u8],
    at: usize,
) -> Result<(Vec<Payload>, Option<Sealed>), CodecError> {
    let mut r = read::Reader::new(octets.get(at..).unwrap_or_default());
    let mut payloads = Vec::new();
    let mut kind = first;
    for _ in 0..PAYLOADS_MAX {
        if kind == PayloadType::NONE {
            break;
        }
        let (next, critical, body) = generic(&mut r).ok_or(CodecError::Syntax("payload length"))?;
        if matches!(kind, PayloadType::SK | PayloadType::SKF) {
            // RFC 7296, 3.14: it must be the last one, and its Next Payload names the first inside.
            let at = octets.len() - r.left() - body.len();
            let (at, fragment) = match kind {
                PayloadType::SK => (at, None),
                _ => {
                    let numbers = Numbers::read(body).ok_or(CodecError::Syntax("SKF payload"))?;
                    (at + fragment::NUMBERS_LEN, Some(numbers))
                }
            };
            return match r.left() {
                0 => Ok((payloads, Some(Sealed { first: next, at, fragment }))),
                _ => Err(CodecError::Syntax("octets behind the SK payload")),
            };
        }
        if let Some(payload) = Payload::decode(kind, critical, body)? {
            payloads.push(payload);
        }
        kind = next;
    }
    match r.left() {
        _ if kind != PayloadType::NONE => Err(CodecError::Syntax("message with too many payloads")),
        0 => Ok((payloads, None)),
        _ => Err(CodecError::Syntax("octets behind the last payload")),
    }
}

/// One generic payload header and the body it announces.
fn generic<'a>(r: &mut read::Reader<'a>) -> Option<(PayloadType, bool, &'a [u8])> {
    let (next, flags, length) = (r.u8()?, r.u8()?, r.u16()?);
    let body = r.take(usize::from(length).checked_sub(GENERIC_LEN)?)?;
    Some((PayloadType(next), flags & 0x80 != 0, body))
}

#[cfg(test)]
mod tests;
