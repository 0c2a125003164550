//! Addresses with a prefix length: of an interface, where the host bits say who one is, and of a
//! network, where they must be zero.

use std::{fmt, net::IpAddr, str::FromStr};

/// An address with the length of its on-link prefix, as in `192.0.2.1/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    address: IpAddr,
    prefix_len: u8,
}

/// A network, as in `192.0.2.0/24`: all host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    address: IpAddr,
    prefix_len: u8,
}

/// Why a text is no address or network. The text itself is the caller's to quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `/`.
    #[error("has no prefix length: write it as in 192.0.2.1/24")]
    NoPrefix,
    /// What stands before the `/` is no address.
    #[error("is not an IPv4 or IPv6 address")]
    Address,
    /// What stands after the `/` is no number of bits of this family.
    #[error("has a prefix length that is not between 0 and {0}")]
    PrefixLength(u8),
    /// A network with host bits set.
    #[error("has host bits set: the network is {0}")]
    HostBits(Network),
}

impl InterfaceAddress {
    /// The address itself.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the on-link prefix, in bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// The on-link network.
    #[must_use]
    pub fn network(&self) -> Network {
        Network { address: mask(self.address, self.prefix_len), prefix_len: self.prefix_len }
    }
}

impl Network {
    /// A network of its address and prefix length.
    ///
    /// # Errors
    /// The length is too large for the family, or host bits are set.
    pub fn new(address: IpAddr, prefix_len: u8) -> Result<Self, AddressError> {
        if prefix_len > bits(address) {
            return Err(AddressError::PrefixLength(bits(address)));
        }
        let network = Self { address: mask(address, prefix_len), prefix_len };
        if network.address == address { Ok(network) } else { Err(AddressError::HostBits(network)) }
    }

    /// The first address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
                IpAddr::V4((u32::from(address) | host).into())
            }
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(self.prefix_len.into()).unwrap_or(0);
                IpAddr::V6((u128::from(address) | host).into())
            }
        }
    }

    /// Length of the prefix, in bits.
    #[must_use]
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// Whether the address is of this family and inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && mask(address, self.prefix_len) == self.address
    }
}

/// Number of bits of an address of this family.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with all bits after the prefix cleared.
fn mask(address: IpAddr, prefix_len: u8) -> IpAddr {
    let host_bits = u32::from(bits(address).saturating_sub(prefix_len));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    }
}

/// Takes `address/length` apart.
fn split(text: &str) -> Result<(IpAddr, u8), AddressError> {
    let (address, length) = text.split_once('/').ok_or(AddressError::NoPrefix)?;
    let address: IpAddr = address.parse().map_err(|_| AddressError::Address)?;
    let max = bits(address);
    let all_digits = !length.is_empty() && length.bytes().all(|octet| octet.is_ascii_digit());
    match length.parse() {
        Ok(length) if length <= max && all_digits => Ok((address, length)),
        _ => Err(AddressError::PrefixLength(max)),
    }
}

impl FromStr for InterfaceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (address, prefix_len) = split(text)?;
        Ok(Self { address, prefix_len })
    }
}

impl FromStr for Network {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (address, prefix_len) = split(text)?;
        Self::new(address, prefix_len)
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix_len)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix_len)
    }
}
