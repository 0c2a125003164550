//! The SA payload: proposals, transforms and attributes (RFC 7296, 3.3).

use super::CodecError;
use super::read::Reader;
use super::types::Protocol;
use crate::proposal::{PROPOSALS_MAX, TRANSFORMS_MAX};

/// Most attributes of one transform.
const ATTRIBUTES_MAX: usize = 8;
/// Attribute Format bit: the value is in the length field.
const TV: u16 = 0x8000;
/// "More proposals" and "more transforms" follow.
const MORE_PROPOSALS: u8 = 2;
const MORE_TRANSFORMS: u8 = 3;

/// Transform Type (RFC 7296, 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransformType(pub u8);

#[allow(missing_docs)] // The names are those of RFC 7296, 3.3.2.
impl TransformType {
    pub const ENCR: Self = Self(1);
    pub const PRF: Self = Self(2);
    pub const INTEG: Self = Self(3);
    pub const KE: Self = Self(4);
    pub const ESN: Self = Self(5);
}

/// A transform attribute (RFC 7296, 3.3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Type and a value of two octets.
    Short(u16, u16),
    /// Type and a value of any length.
    Long(u16, Vec<u8>),
}

impl Attribute {
    /// Type of the Key Length attribute.
    pub const KEY_LENGTH: u16 = 14;
}

/// A transform (RFC 7296, 3.3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// What it is for.
    pub kind: TransformType,
    /// Which one.
    pub id: u16,
    /// Its attributes.
    pub attributes: Vec<Attribute>,
}

impl Transform {
    /// A transform without attributes.
    pub const fn new(kind: TransformType, id: u16) -> Self {
        Self { kind, id, attributes: Vec::new() }
    }

    /// A transform with a key length in bits.
    pub fn with_key_bits(kind: TransformType, id: u16, bits: u16) -> Self {
        Self { kind, id, attributes: vec![Attribute::Short(Attribute::KEY_LENGTH, bits)] }
    }

    /// Its key length: `Some(None)` without one; `None` if an attribute is not understood, so that
    /// the transform must not be chosen (RFC 7296, 3.3.6).
    pub fn key_bits(&self) -> Option<Option<u16>> {
        match self.attributes[..] {
            [] => Some(None),
            [Attribute::Short(Attribute::KEY_LENGTH, bits)] => Some(Some(bits)),
            _ => None,
        }
    }
}

/// A proposal (RFC 7296, 3.3.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its number, from 1.
    pub number: u8,
    /// IKE, ESP or AH.
    pub protocol: Protocol,
    /// The sender's SPI; empty in IKE_SA_INIT.
    pub spi: Vec<u8>,
    /// Its transforms, in the order of the message.
    pub transforms: Vec<Transform>,
}

impl Proposal {
    /// The ids of one type.
    pub fn of_type(&self, kind: TransformType) -> impl Iterator<Item = &Transform> {
        self.transforms.iter().filter(move |t| t.kind == kind)
    }
}

pub(super) fn decode(body: &[u8]) -> Result<Vec<Proposal>, CodecError> {
    let mut r = Reader::new(body);
    let mut proposals = Vec::new();
    let mut more = true;
    while more {
        if proposals.len() == PROPOSALS_MAX {
            return Err(CodecError::Syntax("SA payload with too many proposals"));
        }
        let (proposal, last) = proposal(&mut r).ok_or(CodecError::Syntax("proposal"))?;
        proposals.push(proposal);
        more = !last;
    }
    match r.left() {
        0 => Ok(proposals),
        _ => Err(CodecError::Syntax("octets behind the last proposal")),
    }
}

/// One proposal, and whether it says that it is the last.
fn proposal(r: &mut Reader<'_>) -> Option<(Proposal, bool)> {
    let (more, _reserved, length) = (r.u8()?, r.u8()?, r.u16()?);
    let mut r = Reader::new(r.take(usize::from(length).checked_sub(4)?)?);
    let (number, protocol, spi_len, count) = (r.u8()?, r.u8()?, r.u8()?, r.u8()?);
    let spi = r.take(usize::from(spi_len))?.to_vec();
    let count = usize::from(count);
    if !matches!(more, 0 | MORE_PROPOSALS) || count > TRANSFORMS_MAX {
        return None;
    }
    let mut transforms = Vec::new();
    for index in 0..count {
        let (transform, last) = transform(&mut r)?;
        transforms.push(transform);
        if last != (index + 1 == count) {
            return None;
        }
    }
    let proposal = Proposal { number, protocol: Protocol(protocol), spi, transforms };
    (r.left() == 0).then_some((proposal, more == 0))
}

fn transform(r: &mut Reader<'_>) -> Option<(Transform, bool)> {
    let (more, _reserved, length) = (r.u8()?, r.u8()?, r.u16()?);
    let mut r = Reader::new(r.take(usize::from(length).checked_sub(4)?)?);
    let (kind, _reserved, id) = (r.u8()?, r.u8()?, r.u16()?);
    let mut attributes = Vec::new();
    while r.left() > 0 {
        if attributes.len() == ATTRIBUTES_MAX {
            return None;
        }
        let (kind, value) = (r.u16()?, r.u16()?);
        attributes.push(match kind & TV {
            0 => Attribute::Long(kind, r.take(usize::from(value))?.to_vec()),
            _ => Attribute::Short(kind & !TV, value),
        });
    }
    if !matches!(more, 0 | MORE_TRANSFORMS) {
        return None;
    }
    Some((Transform { kind: TransformType(kind), id, attributes }, more == 0))
}

pub(super) fn encode(proposals: &[Proposal], out: &mut Vec<u8>) -> Result<(), CodecError> {
    for (index, p) in proposals.iter().enumerate() {
        let at = out.len();
        let more = u8::from(index + 1 < proposals.len()) * MORE_PROPOSALS;
        let spi_len = u8::try_from(p.spi.len()).map_err(|_| CodecError::TooLong)?;
        let count = u8::try_from(p.transforms.len()).map_err(|_| CodecError::TooLong)?;
        out.extend_from_slice(&[more, 0, 0, 0, p.number, p.protocol.0, spi_len, count]);
        out.extend_from_slice(&p.spi);
        for (index, t) in p.transforms.iter().enumerate() {
            let at = out.len();
            let more = u8::from(index + 1 < p.transforms.len()) * MORE_TRANSFORMS;
            out.extend_from_slice(&[more, 0, 0, 0, t.kind.0, 0]);
            out.extend_from_slice(&t.id.to_be_bytes());
            t.attributes.iter().try_for_each(|a| encode_attribute(a, out))?;
            set_length(out, at)?;
        }
        set_length(out, at)?;
    }
    Ok(())
}

fn encode_attribute(attribute: &Attribute, out: &mut Vec<u8>) -> Result<(), CodecError> {
    match attribute {
        Attribute::Short(kind, value) => {
            out.extend_from_slice(&(kind | TV).to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
        Attribute::Long(kind, value) => {
            let len = u16::try_from(value.len()).map_err(|_| CodecError::TooLong)?;
            out.extend_from_slice(&(kind & !TV).to_be_bytes());
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(value);
        }
    }
    Ok(())
}

fn set_length(out: &mut [u8], at: usize) -> Result<(), CodecError> {
    let length = u16::try_from(out.len() - at).map_err(|_| CodecError::TooLong)?;
    out[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}
