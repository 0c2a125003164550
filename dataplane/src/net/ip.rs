//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers: a total check, a view, the hop limit.
//!
//! [`parse`] looks at everything in the IP header that later code relies on, so that nobody
//! behind it checks lengths again: `packet[..header.total_len]` exists, `header.upper(packet)`
//! is the upper-layer data. A frame's padding is cut off by `total_len`.

use super::DropReason;
use super::checksum;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Octets of an IPv4 header without options.
pub const V4_HEADER_LEN: usize = 20;
/// Octets of the fixed IPv6 header.
pub const V6_HEADER_LEN: usize = 40;
/// Octets of an IPv6 packet that every link carries (RFC 8200, 5).
pub const V6_MTU_MIN: usize = 1280;
/// Extension headers that are walked before an IPv6 packet is refused. RFC 8200, 4.1 names six
/// kinds and one repetition; one more is grace.
pub const EXTENSION_HEADERS_MAX: usize = 8;
/// Hop limit of packets that this gateway originates (the default of the IANA registry).
pub const HOP_LIMIT: u8 = 64;

/// Upper-layer protocol numbers and IPv6 extension headers (IANA).
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP: the next header of ESP in tunnel mode.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// DCCP.
    pub const DCCP: u8 = 33;
    /// IPv6 in IP: the next header of ESP in tunnel mode.
    pub const IPV6: u8 = 41;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ESP.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 mobility header.
    pub const MOBILITY: u8 = 135;
    /// UDP-Lite.
    pub const UDP_LITE: u8 = 136;
}

/// A packet's place in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// The whole datagram.
    Whole,
    /// The first fragment, which starts with the upper-layer header.
    First,
    /// A later fragment: no upper-layer header, so no ports.
    Later,
}

/// The ports of TCP, UDP, SCTP, DCCP and UDP-Lite. For ICMP both hold type · 256 + code, the
/// 16-bit value that traffic selectors use in place of ports (RFC 7296, 3.13.1), for the Mobility
/// Header type · 256 (RFC 4301, 4.4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
}

/// What selectors look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol, behind the extension headers.
    pub protocol: u8,
    /// Ports where the protocol has them and the packet carries them; `None` for later fragments.
    pub ports: Option<Ports>,
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family as the source.
    pub destination: IpAddr,
    /// Octets before the upper-layer data: IPv4 options and IPv6 extension headers included.
    pub header_len: usize,
    /// Octets of the packet, header included.
    pub total_len: usize,
    /// Upper-layer protocol, behind the extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// DSCP (upper six bits) and ECN (lower two).
    pub traffic_class: u8,
    /// Place in the datagram.
    pub fragment: Fragment,
    /// IPv4's don't-fragment bit; true for IPv6, which routers never fragment.
    pub dont_fragment: bool,
}

impl Header {
    /// Whether the packet is IPv4.
    pub const fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// The upper-layer data of the packet that this header was parsed from.
    pub fn upper<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(self.header_len..self.total_len).unwrap_or(&[])
    }

    /// As [`Header::upper`], for changing it.
    pub fn upper_mut<'a>(&self, packet: &'a mut [u8]) -> &'a mut [u8] {
        packet.get_mut(self.header_len..self.total_len).unwrap_or(&mut [])
    }

    /// Sum of the pseudo header for the upper layer's checksum.
    pub fn pseudo(&self) -> checksum::Sum {
        let length = self.total_len - self.header_len;
        checksum::pseudo(self.source, self.destination, self.protocol, length)
    }

    /// What selectors look at.
    ///
    /// # Errors
    /// [`DropReason::TransportTruncated`] when the packet has to carry ports and does not: a first
    /// fragment cut so small only to pass filters (RFC 1858, 3) or a broken packet.
    #[inline]
    pub fn flow(&self, packet: &[u8]) -> Result<Flow, DropReason> {
        let ports = match self.fragment {
            Fragment::Later => None,
            Fragment::Whole | Fragment::First => ports(self.protocol, self.upper(packet))?,
        };
        let Self { source, destination, protocol, .. } = *self;
        Ok(Flow { source, destination, protocol, ports })
    }
}

fn ports(protocol: u8, upper: &[u8]) -> Result<Option<Ports>, DropReason> {
    use protocol::{DCCP, ICMP, ICMPV6, MOBILITY, SCTP, TCP, UDP, UDP_LITE};
    match protocol {
        TCP | UDP | UDP_LITE | SCTP | DCCP => match upper {
            &[s0, s1, d0, d1, ..] => Ok(Some(Ports {
                source: u16::from_be_bytes([s0, s1]),
                destination: u16::from_be_bytes([d0, d1]),
            })),
            _ => Err(DropReason::TransportTruncated),
        },
        ICMP | ICMPV6 => match upper {
            &[kind, code, ..] => {
                let value = u16::from_be_bytes([kind, code]);
                Ok(Some(Ports { source: value, destination: value }))
            }
            _ => Err(DropReason::TransportTruncated),
        },
        MOBILITY => match upper {
            &[_, _, kind, ..] => {
                let value = u16::from_be_bytes([kind, 0]);
                Ok(Some(Ports { source: value, destination: value }))
            }
            _ => Err(DropReason::TransportTruncated),
        },
        _ => Ok(None),
    }
}

/// Checks the packet that starts at `packet[0]`; octets behind its length are ignored (padding).
///
/// # Errors
/// A `DropReason::Ip…` that names the first fault.
#[inline]
pub fn parse(packet: &[u8]) -> Result<Header, DropReason> {
    match packet.first().map(|octet| octet >> 4) {
        Some(4) => parse_v4(packet),
        Some(6) => parse_v6(packet),
        Some(_) => Err(DropReason::IpBadVersion),
        None => Err(DropReason::IpTruncated),
    }
}

/// As [`parse`], for a packet whose frame or ESP trailer already said which version it is.
///
/// # Errors
/// [`DropReason::IpBadVersion`] for the other version, else as [`parse`].
#[inline]
pub fn parse_as(packet: &[u8], v4: bool) -> Result<Header, DropReason> {
    let header = parse(packet)?;
    if header.is_v4() == v4 { Ok(header) } else { Err(DropReason::IpBadVersion) }
}

#[inline]
fn parse_v4(packet: &[u8]) -> Result<Header, DropReason> {
    let fixed = packet.first_chunk::<V4_HEADER_LEN>().ok_or(DropReason::IpTruncated)?;
    let &[ihl, tos, l0, l1, _, _, f0, f1, ttl, protocol, _, _, addresses @ ..] = fixed;
    let header_len = usize::from(ihl & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([l0, l1]));
    if header_len < V4_HEADER_LEN || total_len < header_len {
        return Err(DropReason::IpBadLength);
    }
    let packet = packet.get(..total_len).ok_or(DropReason::IpTruncated)?;
    let (header, upper) = packet.split_at(header_len);
    // Nearly always there are no options, and a sum of a known length needs no loop.
    let options = header.get(V4_HEADER_LEN..).unwrap_or(&[]);
    let sum = checksum::Sum::new().with(fixed);
    let sum = if options.is_empty() { sum } else { sum.with(options) };
    if sum.folded() != 0xffff {
        return Err(DropReason::IpBadChecksum);
    }
    check_v4_options(options)?;
    let flags = u16::from_be_bytes([f0, f1]);
    let fragment = fragment_of(flags & 0x2000 != 0, usize::from(flags & 0x1fff) * 8, upper.len())?;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    Ok(Header {
        source: Ipv4Addr::new(s0, s1, s2, s3).into(),
        destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
        header_len,
        total_len,
        protocol,
        hop_limit: ttl,
        traffic_class: tos,
        fragment,
        dont_fragment: flags & 0x4000 != 0,
    })
}

/// Classifies by offset and "more fragments" and refuses what no datagram can be made of.
fn fragment_of(more: bool, offset: usize, len: usize) -> Result<Fragment, DropReason> {
    // RFC 791: all but the last are multiples of eight; the end stays within 65,535 octets.
    let impossible = more && (len == 0 || !len.is_multiple_of(8));
    if impossible || offset + len > 0xffff {
        return Err(DropReason::IpBadFragment);
    }
    Ok(match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    })
}

/// Option numbers of IPv4 (RFC 791, 3.1).
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

/// Cuts the next option off IPv4 options and returns it with the rest; an empty one at their end.
/// Shared with fragmentation.
pub(super) fn next_v4_option(options: &[u8]) -> Result<(&[u8], &[u8]), DropReason> {
    let len = match options {
        [] | [OPTION_END, ..] => 0,
        [OPTION_NOP, ..] => 1,
        [_, len, ..] if *len >= 2 => usize::from(*len),
        _ => return Err(DropReason::IpBadOptions),
    };
    options.split_at_checked(len).ok_or(DropReason::IpBadOptions)
}

/// Walks at most 40 octets of options, one or more each. Source routes are refused (RFC 7126,
/// 4.3 and 4.4), the rest passes unread.
fn check_v4_options(mut options: &[u8]) -> Result<(), DropReason> {
    loop {
        let (option, rest) = next_v4_option(options)?;
        match option.first() {
            None => return Ok(()),
            Some(&(OPTION_LSRR | OPTION_SSRR)) => return Err(DropReason::IpSourceRoute),
            Some(_) => options = rest,
        }
    }
}

fn parse_v6(packet: &[u8]) -> Result<Header, DropReason> {
    let fixed = packet.first_chunk::<V6_HEADER_LEN>().ok_or(DropReason::IpTruncated)?;
    let &[c0, c1, _, _, l0, l1, next, hop_limit, addresses @ ..] = fixed;
    let payload_len = usize::from(u16::from_be_bytes([l0, l1]));
    if payload_len == 0 && next == protocol::HOP_BY_HOP {
        return Err(DropReason::IpJumbogram);
    }
    let total_len = V6_HEADER_LEN + payload_len;
    let packet = packet.get(..total_len).ok_or(DropReason::IpTruncated)?;
    let chain = walk_extensions(packet, next)?;
    let (source, destination) = addresses.split_at(16);
    Ok(Header {
        source: v6_address(source)?,
        destination: v6_address(destination)?,
        header_len: chain.end,
        total_len,
        protocol: chain.protocol,
        hop_limit,
        traffic_class: c0 << 4 | c1 >> 4,
        fragment: chain.fragment,
        dont_fragment: true,
    })
}

fn v6_address(octets: &[u8]) -> Result<IpAddr, DropReason> {
    let octets = octets.first_chunk::<16>().ok_or(DropReason::IpTruncated)?;
    Ok(Ipv6Addr::from(*octets).into())
}

/// Where a chain of extension headers led to.
struct Chain {
    end: usize,
    protocol: u8,
    fragment: Fragment,
}

/// Follows the chain to the upper-layer header (RFC 8200, 4), at most [`EXTENSION_HEADERS_MAX`]
/// headers far. Behind a later fragment's header there is nothing to follow.
fn walk_extensions(packet: &[u8], first: u8) -> Result<Chain, DropReason> {
    use protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING};
    let mut chain = Chain { end: V6_HEADER_LEN, protocol: first, fragment: Fragment::Whole };
    for position in 0..=EXTENSION_HEADERS_MAX {
        let rest = packet.get(chain.end..).unwrap_or(&[]);
        match chain.protocol {
            // RFC 8200, 4.1: only directly behind the IPv6 header.
            HOP_BY_HOP if position > 0 => return Err(DropReason::IpBadOptions),
            // RFC 4301, 4.4.1.1: these are skipped. AH, ESP and the Mobility Header are not.
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT => {}
            _ => return Ok(chain),
        }
        if position == EXTENSION_HEADERS_MAX {
            break;
        }
        let &[next, len, word @ ..] = rest.first_chunk::<8>().ok_or(DropReason::IpTruncated)?;
        let len = if chain.protocol == FRAGMENT { 8 } else { 8 + usize::from(len) * 8 };
        let body = rest.get(len..).ok_or(DropReason::IpTruncated)?;
        // RFC 5095: a router neither processes nor sends type 0 with segments left.
        if chain.protocol == ROUTING && word[0] == 0 && word[1] != 0 {
            return Err(DropReason::IpSourceRoute);
        }
        if chain.protocol == FRAGMENT {
            let field = u16::from_be_bytes([word[0], word[1]]);
            let offset = usize::from(field & 0xfff8);
            chain.fragment =
                nested(chain.fragment, fragment_of(field & 1 != 0, offset, body.len())?)?;
        }
        chain.protocol = next;
        chain.end += len;
        if chain.fragment == Fragment::Later {
            return Ok(chain);
        }
    }
    Err(DropReason::IpTooManyExtensions)
}

/// A second fragment header in one packet serves only evasion; an atomic fragment (RFC 6946) is a
/// whole datagram and may stand before nothing else.
fn nested(outer: Fragment, inner: Fragment) -> Result<Fragment, DropReason> {
    if outer == Fragment::Whole { Ok(inner) } else { Err(DropReason::IpBadFragment) }
}

/// DSCP and ECN of a packet whose header nobody needs to know whole; `None` if it is too short.
#[inline]
pub fn traffic_class(packet: &[u8]) -> Option<u8> {
    match *packet.first_chunk::<2>()? {
        [0x40..=0x4f, class] => Some(class),
        [head, class] => Some(head << 4 | class >> 4),
    }
}

/// Takes one hop off a packet that [`parse`] accepted and mends IPv4's checksum (RFC 1624).
///
/// # Errors
/// [`DropReason::IpHopLimit`], the packet unchanged, when nothing would be left: the caller may
/// send a time exceeded.
#[inline]
pub fn decrement_hop_limit(packet: &mut [u8]) -> Result<(), DropReason> {
    match packet {
        [0x40..=0x4f, _, _, _, _, _, _, _, ttl, protocol, c0, c1, ..] => {
            if *ttl <= 1 {
                return Err(DropReason::IpHopLimit);
            }
            let old = u16::from_be_bytes([*ttl, *protocol]);
            *ttl -= 1;
            let new = u16::from_be_bytes([*ttl, *protocol]);
            let sum = checksum::update(u16::from_be_bytes([*c0, *c1]), old, new);
            [*c0, *c1] = sum.to_be_bytes();
            Ok(())
        }
        [0x60..=0x6f, _, _, _, _, _, _, hop_limit, ..] => {
            if *hop_limit <= 1 {
                return Err(DropReason::IpHopLimit);
            }
            *hop_limit -= 1;
            Ok(())
        }
        _ => Err(DropReason::IpBadVersion),
    }
}

/// Refuses source addresses that no packet from the wire can have (RFC 1122, 3.2.1.3; RFC 4291,
/// 2.5.2, 2.5.3, 2.7; RFC 6890): unspecified, loopback, group, class E, IPv4-mapped.
#[inline]
pub fn check_source(source: IpAddr) -> Result<(), DropReason> {
    let martian = match source {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first == 0 || first == 127 || first >= 224
        }
        IpAddr::V6(v6) => {
            v6.is_unspecified()
                || v6.is_loopback()
                || v6.is_multicast()
                || v6.to_ipv4_mapped().is_some()
        }
    };
    if martian { Err(DropReason::IpMartianSource) } else { Ok(()) }
}

/// Refuses what is never forwarded: link-local sources (RFC 3927, 2.7; RFC 4291, 2.5.6), and
/// destinations that are unspecified, loopback, group, limited broadcast and class E, link-local,
/// IPv4-mapped.
#[inline]
pub fn check_forward(source: IpAddr, destination: IpAddr) -> Result<(), DropReason> {
    let of_a_link = match source {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if of_a_link {
        return Err(DropReason::IpMartianSource);
    }
    let martian = match destination {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            first == 0 || first == 127 || first >= 224 || v4.is_link_local()
        }
        IpAddr::V6(v6) => check_source(v6.into()).is_err() || v6.is_unicast_link_local(),
    };
    if martian { Err(DropReason::IpMartianDestination) } else { Ok(()) }
}

#[cfg(test)]
#[path = "ip_tests.rs"]
mod tests;
