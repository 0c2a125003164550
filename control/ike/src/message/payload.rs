//! The bodies of the payloads (RFC 7296, 3.3 to 3.13).

use std::net::IpAddr;

use super::CodecError;
use super::read::Reader;
use super::sa::{self, Proposal};
use super::types::{NotifyType, PayloadType, Protocol};
use crate::ts::{SELECTORS_MAX, TrafficSelector};

/// Shortest and longest nonce (RFC 7296, 3.9).
const NONCE_LEN: std::ops::RangeInclusive<usize> = 16..=256;
/// Most SPIs of one Delete payload.
const DELETE_SPIS_MAX: usize = 256;
/// Most selectors of one TS payload that are kept: twice what is used. A peer may list up to 255, and is
/// narrowed to the first ones (RFC 7296, 2.9).
const WIRE_SELECTORS_MAX: usize = 2 * SELECTORS_MAX;

const TS_IPV4_ADDR_RANGE: u8 = 7;
const TS_IPV6_ADDR_RANGE: u8 = 8;

/// A notification (RFC 7296, 3.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Protocol of the SPI; [`Protocol::NONE`] without one.
    pub protocol: Protocol,
    /// SPI that it is about; mostly empty.
    pub spi: Vec<u8>,
    /// What it says.
    pub kind: NotifyType,
    /// Data.
    pub data: Vec<u8>,
}

/// An entry of a TS payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorItem {
    /// A range of IPv4 or IPv6 addresses.
    Range(TrafficSelector),
    /// Another TS Type, kept as its octets behind the length; narrowed away.
    Other {
        /// TS Type.
        kind: u8,
        /// The octet that holds the protocol in the known types.
        protocol: u8,
        /// The rest.
        data: Vec<u8>,
    },
}

/// A payload. Bits that RFC 7296 reserves are ignored and sent as zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Security Association.
    Sa(Vec<Proposal>),
    /// Key Exchange: group and Key Exchange Data.
    Ke(u16, Vec<u8>),
    /// Identification of the initiator: ID Type and data.
    IdI(u8, Vec<u8>),
    /// Identification of the responder.
    IdR(u8, Vec<u8>),
    /// Authentication: method and data.
    Auth(u8, Vec<u8>),
    /// Nonce.
    Nonce(Vec<u8>),
    /// Notify.
    Notify(Notify),
    /// Delete: protocol and SPIs, all of one length (none for IKE).
    Delete(Protocol, Vec<Vec<u8>>),
    /// Vendor ID.
    Vendor(Vec<u8>),
    /// Traffic Selectors of the initiator.
    TsI(Vec<SelectorItem>),
    /// Traffic Selectors of the responder.
    TsR(Vec<SelectorItem>),
    /// The keys that solve a puzzle (RFC 8019, 8.2).
    PuzzleSolution(Vec<u8>),
    /// A payload of RFC 7296 that this implementation does not use, as its octets.
    Unused(PayloadType, Vec<u8>),
}

impl Payload {
    /// A notification without an SPI.
    pub fn notify(kind: NotifyType, data: impl Into<Vec<u8>>) -> Self {
        Self::Notify(Notify { protocol: Protocol::NONE, spi: Vec::new(), kind, data: data.into() })
    }

    /// Traffic selectors of the initiator or the responder.
    pub fn selectors(initiator: bool, ts: &[TrafficSelector]) -> Self {
        let items = ts.iter().copied().map(SelectorItem::Range).collect();
        if initiator { Self::TsI(items) } else { Self::TsR(items) }
    }

    /// Its type.
    pub const fn kind(&self) -> PayloadType {
        match self {
            Self::Sa(_) => PayloadType::SA,
            Self::Ke(..) => PayloadType::KE,
            Self::IdI(..) => PayloadType::ID_I,
            Self::IdR(..) => PayloadType::ID_R,
            Self::Auth(..) => PayloadType::AUTH,
            Self::Nonce(_) => PayloadType::NONCE,
            Self::Notify(_) => PayloadType::NOTIFY,
            Self::Delete(..) => PayloadType::DELETE,
            Self::Vendor(_) => PayloadType::VENDOR,
            Self::TsI(_) => PayloadType::TS_I,
            Self::TsR(_) => PayloadType::TS_R,
            Self::PuzzleSolution(_) => PayloadType::PS,
            Self::Unused(kind, _) => *kind,
        }
    }

    /// Takes a body apart; `None` for a payload that is unknown and may be skipped.
    pub(super) fn decode(
        kind: PayloadType,
        critical: bool,
        body: &[u8],
    ) -> Result<Option<Self>, CodecError> {
        if !kind.is_defined() {
            // RFC 7296, 2.5: skipped, unless the sender says that it must not be.
            return if critical { Err(CodecError::Critical(kind.0)) } else { Ok(None) };
        }
        let payload = match kind {
            PayloadType::SA => Some(Self::Sa(sa::decode(body)?)),
            PayloadType::KE => ke(body),
            PayloadType::ID_I => typed(body).map(|(kind, data)| Self::IdI(kind, data)),
            PayloadType::ID_R => typed(body).map(|(kind, data)| Self::IdR(kind, data)),
            PayloadType::AUTH => typed(body).map(|(method, data)| Self::Auth(method, data)),
            PayloadType::NONCE => {
                NONCE_LEN.contains(&body.len()).then(|| Self::Nonce(body.to_vec()))
            }
            PayloadType::NOTIFY => notify(body),
            PayloadType::DELETE => delete(body),
            PayloadType::VENDOR => Some(Self::Vendor(body.to_vec())),
            PayloadType::PS => Some(Self::PuzzleSolution(body.to_vec())),
            PayloadType::TS_I => selectors(body).map(Self::TsI),
            PayloadType::TS_R => selectors(body).map(Self::TsR),
            _ => Some(Self::Unused(kind, body.to_vec())),
        };
        payload.map(Some).ok_or(CodecError::Syntax(name(kind)))
    }

    pub(super) fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Self::Sa(proposals) => sa::encode(proposals, out)?,
            Self::Ke(group, data) => {
                out.extend_from_slice(&group.to_be_bytes());
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(data);
            }
            Self::IdI(kind, data) | Self::IdR(kind, data) | Self::Auth(kind, data) => {
                out.extend_from_slice(&[*kind, 0, 0, 0]);
                out.extend_from_slice(data);
            }
            Self::Notify(n) => {
                let spi_len = u8::try_from(n.spi.len()).map_err(|_| CodecError::TooLong)?;
                out.extend_from_slice(&[n.protocol.0, spi_len]);
                out.extend_from_slice(&n.kind.0.to_be_bytes());
                out.extend_from_slice(&n.spi);
                out.extend_from_slice(&n.data);
            }
            Self::Delete(protocol, spis) => {
                let spi_len = spis.first().map_or(0, Vec::len);
                let spi_len = u8::try_from(spi_len).map_err(|_| CodecError::TooLong)?;
                let count = u16::try_from(spis.len()).map_err(|_| CodecError::TooLong)?;
                out.extend_from_slice(&[protocol.0, spi_len]);
                out.extend_from_slice(&count.to_be_bytes());
                spis.iter().for_each(|spi| out.extend_from_slice(spi));
            }
            Self::TsI(items) | Self::TsR(items) => {
                let count = u8::try_from(items.len()).map_err(|_| CodecError::TooLong)?;
                out.extend_from_slice(&[count, 0, 0, 0]);
                items.iter().try_for_each(|item| encode_selector(item, out))?;
            }
            Self::Nonce(data)
            | Self::Vendor(data)
            | Self::PuzzleSolution(data)
            | Self::Unused(_, data) => {
                out.extend_from_slice(data);
            }
        }
        Ok(())
    }
}

/// What an error calls a payload.
const fn name(kind: PayloadType) -> &'static str {
    match kind {
        PayloadType::KE => "KE payload",
        PayloadType::ID_I | PayloadType::ID_R => "identification payload",
        PayloadType::AUTH => "AUTH payload",
        PayloadType::NONCE => "nonce",
        PayloadType::NOTIFY => "notify payload",
        PayloadType::DELETE => "delete payload",
        PayloadType::TS_I | PayloadType::TS_R => "traffic selector payload",
        _ => "payload",
    }
}

fn ke(body: &[u8]) -> Option<Payload> {
    let mut r = Reader::new(body);
    let (group, _reserved) = (r.u16()?, r.u16()?);
    (r.left() > 0).then(|| Payload::Ke(group, r.rest().to_vec()))
}

/// A type octet, three reserved ones, and data: identification and AUTH payloads.
fn typed(body: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut r = Reader::new(body);
    let kind = r.u8()?;
    r.take(3)?;
    Some((kind, r.rest().to_vec()))
}

fn notify(body: &[u8]) -> Option<Payload> {
    let mut r = Reader::new(body);
    let (protocol, spi_len, kind) = (r.u8()?, r.u8()?, r.u16()?);
    let spi = r.take(usize::from(spi_len))?.to_vec();
    let data = r.rest().to_vec();
    Some(Payload::Notify(Notify {
        protocol: Protocol(protocol),
        spi,
        kind: NotifyType(kind),
        data,
    }))
}

fn delete(body: &[u8]) -> Option<Payload> {
    let mut r = Reader::new(body);
    let (protocol, spi_len, count) = (r.u8()?, usize::from(r.u8()?), usize::from(r.u16()?));
    // RFC 7296, 3.11: no SPI for IKE, one of four octets for ESP and AH.
    let good = match Protocol(protocol) {
        Protocol::IKE => spi_len == 0 && count == 0,
        _ => spi_len == 4 && (1..=DELETE_SPIS_MAX).contains(&count),
    };
    if !good || r.left() != spi_len * count {
        return None;
    }
    let spis = (0..count).map(|_| r.take(spi_len).map(<[u8]>::to_vec)).collect::<Option<_>>()?;
    Some(Payload::Delete(Protocol(protocol), spis))
}

fn selectors(body: &[u8]) -> Option<Vec<SelectorItem>> {
    let mut r = Reader::new(body);
    let count = usize::from(r.u8()?);
    r.take(3)?;
    if count == 0 {
        return None;
    }
    let mut items: Vec<_> = (0..count).map(|_| selector(&mut r)).collect::<Option<_>>()?;
    items.truncate(WIRE_SELECTORS_MAX);
    (r.left() == 0).then_some(items)
}

fn selector(r: &mut Reader<'_>) -> Option<SelectorItem> {
    let (kind, protocol, length) = (r.u8()?, r.u8()?, r.u16()?);
    let mut r = Reader::new(r.take(usize::from(length).checked_sub(4)?)?);
    if !matches!(kind, TS_IPV4_ADDR_RANGE | TS_IPV6_ADDR_RANGE) {
        return Some(SelectorItem::Other { kind, protocol, data: r.rest().to_vec() });
    }
    let (port_start, port_end) = (r.u16()?, r.u16()?);
    let (start, end): (IpAddr, IpAddr) = match kind {
        TS_IPV4_ADDR_RANGE => (r.v4()?.into(), r.v4()?.into()),
        _ => (r.v6()?.into(), r.v6()?.into()),
    };
    let ts = TrafficSelector { protocol, port_start, port_end, start, end };
    (r.left() == 0 && ts.is_valid()).then_some(SelectorItem::Range(ts))
}

fn encode_selector(item: &SelectorItem, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let at = out.len();
    match item {
        SelectorItem::Range(ts) => {
            let kind = if ts.start.is_ipv4() { TS_IPV4_ADDR_RANGE } else { TS_IPV6_ADDR_RANGE };
            out.extend_from_slice(&[kind, ts.protocol, 0, 0]);
            out.extend_from_slice(&ts.port_start.to_be_bytes());
            out.extend_from_slice(&ts.port_end.to_be_bytes());
            for address in [ts.start, ts.end] {
                match address {
                    IpAddr::V4(a) => out.extend_from_slice(&a.octets()),
                    IpAddr::V6(a) => out.extend_from_slice(&a.octets()),
                }
            }
        }
        SelectorItem::Other { kind, protocol, data } => {
            out.extend_from_slice(&[*kind, *protocol, 0, 0]);
            out.extend_from_slice(data);
        }
    }
    let length = u16::try_from(out.len() - at).map_err(|_| CodecError::TooLong)?;
    out[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}
