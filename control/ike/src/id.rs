//! Identities (RFC 7296, 3.5), in swanctl's spelling.
//!
//! `192.0.2.1` and `2001:db8::1` are addresses, `gw.example` is an FQDN, `ann@example` an e-mail
//! address, `@gw.example` an FQDN too, `@#0a0b` a key id. A prefix names the type where the
//! spelling would be read as another: `fqdn:`, `email:`, `ipv4:`, `ipv6:`, `keyid:`, `asn1dn:`, with
//! `#` before hexadecimal octets (`asn1dn:#3010…`). `%any`, `*.example` and `*@example` are
//! patterns for many identities.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

mod dn;

/// Longest identification data that is accepted, in octets.
pub const ID_OCTETS_MAX: usize = 1024;

/// ID Type of RFC 7296, 3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum IdKind {
    /// ID_IPV4_ADDR.
    Ipv4,
    /// ID_FQDN.
    Fqdn,
    /// ID_RFC822_ADDR.
    Rfc822,
    /// ID_IPV6_ADDR.
    Ipv6,
    /// ID_DER_ASN1_DN.
    DerDn,
    /// ID_DER_ASN1_GN.
    DerGn,
    /// ID_KEY_ID.
    KeyId,
}

impl IdKind {
    /// The kind with this number, if it is one of RFC 7296.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Ipv4,
            2 => Self::Fqdn,
            3 => Self::Rfc822,
            5 => Self::Ipv6,
            9 => Self::DerDn,
            10 => Self::DerGn,
            11 => Self::KeyId,
            _ => return None,
        })
    }

    /// Its number on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 1,
            Self::Fqdn => 2,
            Self::Rfc822 => 3,
            Self::Ipv6 => 5,
            Self::DerDn => 9,
            Self::DerGn => 10,
            Self::KeyId => 11,
        }
    }

    const fn from_prefix(prefix: &str) -> Option<Self> {
        Some(match prefix.as_bytes() {
            b"ipv4" => Self::Ipv4,
            b"ipv6" => Self::Ipv6,
            b"fqdn" | b"dns" => Self::Fqdn,
            b"email" | b"rfc822" | b"userfqdn" => Self::Rfc822,
            b"asn1dn" => Self::DerDn,
            b"asn1gn" => Self::DerGn,
            b"keyid" => Self::KeyId,
            _ => return None,
        })
    }
}

/// Why a spelling is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("an identity is empty; write a name such as `gw.example`, or `%any` for a peer")]
    Empty,
    /// A pattern where one identity is needed.
    #[error("`{0}` stands for many identities; name one")]
    Pattern(String),
    /// Not hexadecimal.
    #[error("`{0}` is not an even number of hexadecimal digits")]
    Hex(String),
    /// Not an address of the type.
    #[error("`{0}` is not an IP address of that type")]
    Address(String),
    /// A distinguished name spelled out.
    #[error(
        "the distinguished name `{0}` cannot be encoded from text; write its DER as `asn1dn:#<hexadecimal>`"
    )]
    DistinguishedName(String),
    /// Longer than [`ID_OCTETS_MAX`].
    #[error("an identity has {0} octets, at most {ID_OCTETS_MAX} are allowed")]
    TooLong(usize),
}

/// One identity: its type and the octets of its Identification Data.
///
/// Equality is that of the octets, save that FQDNs and the domains of e-mail addresses ignore
/// case ([`Identity::same_as`]).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(IdKind, Vec<u8>)")]
pub struct Identity {
    kind: IdKind,
    data: Vec<u8>,
}

impl TryFrom<(IdKind, Vec<u8>)> for Identity {
    type Error = &'static str;

    fn try_from((kind, data): (IdKind, Vec<u8>)) -> Result<Self, &'static str> {
        Self::from_wire(kind, &data).ok_or("no identity of this kind")
    }
}

impl Identity {
    /// An identity from the wire; `None` if an address has the wrong length, or the data is empty or
    /// longer than [`ID_OCTETS_MAX`].
    pub fn from_wire(kind: IdKind, data: &[u8]) -> Option<Self> {
        let good = match kind {
            IdKind::Ipv4 => data.len() == 4,
            IdKind::Ipv6 => data.len() == 16,
            _ => !data.is_empty() && data.len() <= ID_OCTETS_MAX,
        };
        good.then(|| Self { kind, data: data.to_vec() })
    }

    /// Its type.
    pub const fn kind(&self) -> IdKind {
        self.kind
    }

    /// Its Identification Data.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Whether both name the same one: as `==`, but names of the DNS ignore case.
    pub fn same_as(&self, other: &Self) -> bool {
        self.kind == other.kind
            && match self.kind {
                IdKind::Fqdn | IdKind::Rfc822 => self.data.eq_ignore_ascii_case(&other.data),
                _ => self.data == other.data,
            }
    }
}

impl From<IpAddr> for Identity {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => Self { kind: IdKind::Ipv4, data: a.octets().to_vec() },
            IpAddr::V6(a) => Self { kind: IdKind::Ipv6, data: a.octets().to_vec() },
        }
    }
}

impl FromStr for Identity {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(IdError::Empty);
        }
        let id = match text.split_once(':') {
            Some((prefix, rest)) if IdKind::from_prefix(prefix).is_some() => {
                from_prefixed(IdKind::from_prefix(prefix).unwrap_or(IdKind::Fqdn), rest)?
            }
            _ => from_bare(text)?,
        };
        if id.data.is_empty() {
            return Err(IdError::Empty);
        }
        if id.data.len() > ID_OCTETS_MAX {
            return Err(IdError::TooLong(id.data.len()));
        }
        Ok(id)
    }
}

fn from_prefixed(kind: IdKind, rest: &str) -> Result<Identity, IdError> {
    let address = || IdError::Address(rest.to_owned());
    if let Some(digits) = rest.strip_prefix('#') {
        let data = from_hex(digits)?;
        if matches!((kind, data.len()), (IdKind::Ipv4, 4) | (IdKind::Ipv6, 16))
            || !matches!(kind, IdKind::Ipv4 | IdKind::Ipv6)
        {
            return Ok(Identity { kind, data });
        }
        return Err(address());
    }
    match kind {
        IdKind::Ipv4 => Ok(IpAddr::V4(rest.parse().map_err(|_| address())?).into()),
        IdKind::Ipv6 => Ok(IpAddr::V6(rest.parse().map_err(|_| address())?).into()),
        IdKind::DerDn | IdKind::DerGn => Err(IdError::DistinguishedName(rest.to_owned())),
        IdKind::Fqdn | IdKind::Rfc822 | IdKind::KeyId => {
            Ok(Identity { kind, data: rest.as_bytes().to_vec() })
        }
    }
}

fn from_bare(text: &str) -> Result<Identity, IdError> {
    let named = |kind, name: &str| Ok(Identity { kind, data: name.as_bytes().to_vec() });
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    if text == "%any" || text.starts_with('*') {
        return Err(IdError::Pattern(text.to_owned()));
    }
    if let Some(digits) = text.strip_prefix("@#") {
        return Ok(Identity { kind: IdKind::KeyId, data: from_hex(digits)? });
    }
    if let Some(mail) = text.strip_prefix("@@") {
        return named(IdKind::Rfc822, mail);
    }
    if let Some(name) = text.strip_prefix('@') {
        return named(IdKind::Fqdn, name);
    }
    if text.contains('=') {
        return Err(IdError::DistinguishedName(text.to_owned()));
    }
    named(if text.contains('@') { IdKind::Rfc822 } else { IdKind::Fqdn }, text)
}

fn from_hex(digits: &str) -> Result<Vec<u8>, IdError> {
    let wrong = || IdError::Hex(digits.to_owned());
    if !digits.is_ascii() || digits.is_empty() || !digits.len().is_multiple_of(2) {
        return Err(wrong());
    }
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).map_err(|_| wrong()))
        .collect()
}

impl fmt::Display for Identity {
    /// swanctl's spelling, which [`FromStr`] reads back. A distinguished name is printed for
    /// people, as `C=…, O=…`; one that is no valid DER is printed in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::str::from_utf8(&self.data)
            .ok()
            .filter(|t| !t.chars().any(|c| c.is_control() || c.is_whitespace()));
        match (self.kind, text) {
            (IdKind::Ipv4, _) if let Ok(octets) = <[u8; 4]>::try_from(&self.data[..]) => {
                Ipv4Addr::from(octets).fmt(f)
            }
            (IdKind::Ipv6, _) if let Ok(octets) = <[u8; 16]>::try_from(&self.data[..]) => {
                Ipv6Addr::from(octets).fmt(f)
            }
            (IdKind::DerDn, _) if let Some(name) = dn::display(&self.data) => f.write_str(&name),
            (IdKind::Fqdn | IdKind::Rfc822, Some(name)) => {
                // Bare, where it is read back as the same type.
                if name.parse::<Self>().as_ref() == Ok(self) {
                    f.write_str(name)
                } else if self.kind == IdKind::Fqdn && !name.starts_with('#') {
                    write!(f, "fqdn:{name}")
                } else if !name.starts_with('#') {
                    write!(f, "email:{name}")
                } else {
                    self.fmt_hex(f)
                }
            }
            _ => self.fmt_hex(f),
        }
    }
}

impl Identity {
    fn fmt_hex(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            IdKind::Ipv4 => "ipv4:#",
            IdKind::Ipv6 => "ipv6:#",
            IdKind::Fqdn => "fqdn:#",
            IdKind::Rfc822 => "email:#",
            IdKind::DerDn => "asn1dn:#",
            IdKind::DerGn => "asn1gn:#",
            IdKind::KeyId => "keyid:#",
        })?;
        self.data.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// Identities that a peer may have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdentityPattern {
    /// `%any`.
    Any,
    /// Exactly one.
    Exact(Identity),
    /// `*.example` or `*@example`: FQDNs or e-mail addresses that end so (held without the `*`).
    Suffix(IdKind, String),
}

impl IdentityPattern {
    /// Whether `id` is one of these.
    pub fn matches(&self, id: &Identity) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(own) => own.same_as(id),
            Self::Suffix(kind, suffix) => {
                let split = id.data.len().checked_sub(suffix.len());
                *kind == id.kind
                    && split.is_some_and(|at| {
                        at > 0 && id.data[at..].eq_ignore_ascii_case(suffix.as_bytes())
                    })
            }
        }
    }

    /// How narrow it is; among several that match, the narrowest is taken.
    pub const fn rank(&self) -> u8 {
        match self {
            Self::Any => 0,
            Self::Suffix(..) => 1,
            Self::Exact(_) => 2,
        }
    }

    /// The identity, where this is exactly one.
    pub const fn exact(&self) -> Option<&Identity> {
        match self {
            Self::Exact(id) => Some(id),
            Self::Any | Self::Suffix(..) => None,
        }
    }
}

impl FromStr for IdentityPattern {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let text = text.trim();
        match text.strip_prefix('*') {
            _ if text == "%any" || text == "*" => Ok(Self::Any),
            Some(suffix) if suffix.starts_with('.') && suffix.len() > 1 => {
                Ok(Self::Suffix(IdKind::Fqdn, suffix.to_owned()))
            }
            Some(suffix) if suffix.starts_with('@') && suffix.len() > 1 => {
                Ok(Self::Suffix(IdKind::Rfc822, suffix.to_owned()))
            }
            Some(_) => Err(IdError::Pattern(text.to_owned())),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("%any"),
            Self::Exact(id) => id.fmt(f),
            Self::Suffix(_, suffix) => write!(f, "*{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> Identity {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_swanctl_give_their_types() {
        let cases = [
            ("192.0.2.1", IdKind::Ipv4, &[192, 0, 2, 1][..]),
            ("gw.example", IdKind::Fqdn, b"gw.example"),
            ("@gw.example", IdKind::Fqdn, b"gw.example"),
            ("ann@example", IdKind::Rfc822, b"ann@example"),
            ("@@ann", IdKind::Rfc822, b"ann"),
            ("@#0aFF", IdKind::KeyId, &[0x0a, 0xff]),
            ("keyid:branch-7", IdKind::KeyId, b"branch-7"),
            ("fqdn:192.0.2.1", IdKind::Fqdn, b"192.0.2.1"),
            ("ipv6:::1", IdKind::Ipv6, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ("asn1dn:#3000", IdKind::DerDn, &[0x30, 0]),
        ];
        for (text, kind, data) in cases {
            let id = id(text);
            assert_eq!((id.kind(), id.data()), (kind, data), "{text}");
        }
        assert_eq!(id("2001:db8::1").kind(), IdKind::Ipv6, "a colon is no type prefix");
    }

    #[test]
    fn wrong_spellings_say_what_to_write() {
        let error = |text: &str| text.parse::<Identity>().unwrap_err();
        assert_eq!(error(""), IdError::Empty);
        assert_eq!(error("%any"), IdError::Pattern("%any".into()));
        assert_eq!(error("@#0"), IdError::Hex("0".into()));
        assert_eq!(error("ipv4:::1"), IdError::Address("::1".into()));
        assert_eq!(error("C=CH, CN=gw"), IdError::DistinguishedName("C=CH, CN=gw".into()));
        assert!(error("C=CH").to_string().contains("asn1dn:#"));
    }

    #[test]
    fn patterns_match_by_domain_without_regard_to_case() {
        let pattern: IdentityPattern = "*.Example".parse().unwrap();
        assert!(pattern.matches(&id("gw.eXample")));
        assert!(!pattern.matches(&id("@.example")), "something must stand before the dot");
        assert!(!pattern.matches(&id("x@y.example")), "an e-mail address is no FQDN");
        assert!("*@example".parse::<IdentityPattern>().unwrap().matches(&id("ann@example")));
        assert!("gw.example".parse::<IdentityPattern>().unwrap().matches(&id("GW.example")));
        assert!("gw*".parse::<IdentityPattern>().is_ok_and(|p| !p.matches(&id("gw1"))));
        assert!("*gw".parse::<IdentityPattern>().is_err());
    }

    proptest! {
        #[test]
        fn display_is_read_back(kind in prop::sample::select(vec![
            IdKind::Fqdn, IdKind::Rfc822, IdKind::KeyId, IdKind::DerGn, IdKind::Ipv4, IdKind::Ipv6,
        ]), data in prop::collection::vec(any::<u8>(), 1..24), text in "[@#a-z0-9:.=%*]{1,12}", plain: bool) {
            let data = match kind {
                IdKind::Ipv4 => vec![data[0]; 4],
                IdKind::Ipv6 => vec![data[0]; 16],
                _ if plain => text.into_bytes(),
                _ => data,
            };
            let id = Identity::from_wire(kind, &data).unwrap();
            prop_assert_eq!(id.to_string().parse::<Identity>(), Ok(id));
        }

        #[test]
        fn no_text_and_no_der_panics(text in ".{0,40}", der in prop::collection::vec(any::<u8>(), 1..80)) {
            let _ = text.parse::<Identity>();
            let _ = text.parse::<IdentityPattern>();
            let _ = Identity::from_wire(IdKind::DerDn, &der).unwrap().to_string();
        }
    }
}
