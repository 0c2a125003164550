//! Address prefixes and the gateway's own addresses.

use super::DropReason;
use super::ip;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network: an address with all bits behind `len` zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

/// A prefix length beyond the family's width: the configuration or the caller is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prefix length {len} is longer than the address {address}: at most 32 (IPv4), 128 (IPv6)")]
pub struct PrefixError {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The network of `len` bits that `address` is in; bits behind are cleared.
    ///
    /// # Errors
    /// [`PrefixError`] when the family has fewer than `len` bits.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        if len > width(address) {
            return Err(PrefixError { address, len });
        }
        Ok(Self { address: masked(address, len), len })
    }

    /// The prefix of one address alone.
    pub const fn host(address: IpAddr) -> Self {
        Self { address, len: width(address) }
    }

    /// First address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that addresses in it share.
    #[expect(clippy::len_without_is_empty, reason = "a prefix length, not a number of elements")]
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether `address` is of this family and inside.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.len) == self.address
    }

    /// Last address: the directed broadcast address of an IPv4 link.
    pub fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | !mask_v4(self.len)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | !mask_v6(self.len)).into(),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

const fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn mask_v4(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0)
}

fn mask_v6(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0)
}

/// `address` with all bits behind `len` zero.
#[inline]
pub(super) fn masked(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & mask_v4(len)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & mask_v6(len)).into(),
    }
}

/// Addresses of the gateway on one side.
#[derive(Clone, Debug, Default)]
pub struct OwnAddresses {
    list: Box<[(IpAddr, Prefix)]>,
}

/// Own addresses of one side; the list is searched from its start for every packet.
pub const OWN_ADDRESSES_MAX: usize = 64;

/// Why a list of own addresses was refused: the configuration is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnAddressesError {
    /// Too many.
    #[error("{0} addresses on one side: at most {OWN_ADDRESSES_MAX}")]
    TooMany(usize),
    /// Prefix length out of range.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// Not a station's address.
    #[error("{0} cannot be a gateway's own address: give a unicast address")]
    NotUnicast(IpAddr),
}

impl OwnAddresses {
    /// From addresses with their prefix lengths, as the configuration lists them.
    ///
    /// # Errors
    /// [`OwnAddressesError`].
    pub fn new(list: &[(IpAddr, u8)]) -> Result<Self, OwnAddressesError> {
        if list.len() > OWN_ADDRESSES_MAX {
            return Err(OwnAddressesError::TooMany(list.len()));
        }
        let list = list
            .iter()
            .map(|&(address, len)| match ip::check_source(address) {
                Ok(()) => Ok((address, Prefix::new(address, len)?)),
                Err(_) => Err(OwnAddressesError::NotUnicast(address)),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { list })
    }

    /// Whether `address` is one of ours.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.list.iter().any(|&(own, _)| own == address)
    }

    /// Whether `address` is the directed broadcast address or the network address of one of our
    /// IPv4 links (RFC 1812, 5.3.5); links of 31 and 32 bits have none (RFC 3021).
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        address.is_ipv4()
            && self.list.iter().any(|(_, prefix)| {
                prefix.len() < 31
                    && prefix.address().is_ipv4()
                    && (prefix.last() == address || prefix.address() == address)
            })
    }

    /// Refuses what nobody but this gateway, or no station of its links, can have sent: beside what
    /// [`ip::check_source`] names, own and broadcast addresses (RFC 1122, 3.2.1.3; RFC 1812, 5.3.7).
    ///
    /// # Errors
    /// [`DropReason::IpMartianSource`].
    #[inline]
    pub fn check_sender(&self, source: IpAddr) -> Result<(), DropReason> {
        if self.contains(source) || self.is_broadcast(source) {
            return Err(DropReason::IpMartianSource);
        }
        Ok(())
    }

    /// The own address to speak to `destination` from: one on its link, else the first of its
    /// family (RFC 6724, rule 8, on the few candidates there are).
    pub fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        let mut of_family =
            self.list.iter().filter(|(own, _)| own.is_ipv4() == destination.is_ipv4());
        let on_link = of_family.clone().find(|(_, prefix)| prefix.contains(destination));
        on_link.or_else(|| of_family.next()).map(|&(own, _)| own)
    }

    /// The connected prefixes, one for each address.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> + '_ {
        self.list.iter().map(|&(_, prefix)| prefix)
    }

    /// The addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.list.iter().map(|&(own, _)| own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_packets_sender_is_another_host() {
        let own = OwnAddresses::new(&[(addr("192.0.2.1"), 24), (addr("2001:db8::1"), 64)]).unwrap();
        for source in ["198.51.100.7", "192.0.2.9", "2001:db8::9", "2001:db8::"] {
            assert_eq!(own.check_sender(addr(source)), Ok(()), "{source}");
        }
        for source in ["192.0.2.1", "192.0.2.255", "192.0.2.0", "2001:db8::1"] {
            assert_eq!(own.check_sender(addr(source)), Err(DropReason::IpMartianSource));
        }
    }

    #[test]
    fn prefix_bounds() {
        let v4 = Prefix::new(addr("192.0.2.77"), 26).unwrap();
        assert_eq!(v4.to_string(), "192.0.2.64/26");
        assert_eq!(v4.last(), addr("192.0.2.127"));
        assert!(v4.contains(addr("192.0.2.127")) && !v4.contains(addr("192.0.2.128")));
        assert!(!v4.contains(addr("::192.0.2.100")));
        let all = Prefix::new(addr("2001:db8::1"), 0).unwrap();
        assert!(all.contains(addr("ffff::")) && !all.contains(addr("0.0.0.0")));
        assert_eq!(Prefix::new(addr("::1"), 128).unwrap(), Prefix::host(addr("::1")));
        assert!(Prefix::new(addr("10.0.0.0"), 33).is_err());
    }

    #[test]
    fn own_addresses_of_a_side() {
        let own = OwnAddresses::new(&[
            (addr("10.0.0.1"), 8),
            (addr("192.0.2.1"), 24),
            (addr("192.0.2.5"), 31),
            (addr("2001:db8::1"), 64),
        ])
        .unwrap();
        assert!(own.contains(addr("192.0.2.1")) && !own.contains(addr("192.0.2.2")));
        assert!(own.is_broadcast(addr("192.0.2.255")) && own.is_broadcast(addr("10.255.255.255")));
        assert!(!own.is_broadcast(addr("192.0.2.4")) && !own.is_broadcast(addr("2001:db8::")));
        assert_eq!(own.source_for(addr("192.0.2.9")), Some(addr("192.0.2.1")));
        assert_eq!(own.source_for(addr("198.51.100.1")), Some(addr("10.0.0.1")));
        assert_eq!(own.source_for(addr("2001:db8:1::")), Some(addr("2001:db8::1")));
        assert_eq!(OwnAddresses::default().source_for(addr("10.0.0.1")), None);
        let group = OwnAddresses::new(&[(addr("224.0.0.5"), 24)]);
        assert_eq!(group.unwrap_err(), OwnAddressesError::NotUnicast(addr("224.0.0.5")));
    }
}
