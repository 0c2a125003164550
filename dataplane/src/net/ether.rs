//! Ethernet II frames (RFC 894, RFC 2464): header, address filter.

use super::DropReason;
use std::fmt;
use std::net::Ipv6Addr;

/// Octets of the header before the payload.
pub const HEADER_LEN: usize = 14;

/// A station's or a group's address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All stations on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// The address that no station has.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether a group is addressed, the broadcast address included.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether one station can have this address: neither a group's nor zero.
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Self::ZERO
    }

    /// The group that carries an IPv6 multicast address (RFC 2464, 7).
    pub const fn multicast_v6(group: Ipv6Addr) -> Self {
        let octets = group.octets();
        Self([0x33, 0x33, octets[12], octets[13], octets[14], octets[15]])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The payloads that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum EtherType {
    /// RFC 894.
    Ipv4 = 0x0800,
    /// RFC 826.
    Arp = 0x0806,
    /// RFC 2464.
    Ipv6 = 0x86dd,
}

/// VLAN tags: IEEE 802.1Q customer and service tags, and the older 0x9100 for the latter.
const VLAN_TYPES: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// To whom a frame that passed the filter was sent. ICMP errors are never sent about group frames
/// (RFC 1122, 3.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cast {
    /// To this port alone.
    Unicast,
    /// To a group of stations.
    Multicast,
    /// To all stations.
    Broadcast,
}

/// An Ethernet II header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Receiving station or group.
    pub destination: MacAddr,
    /// Sending station.
    pub source: MacAddr,
    /// What follows the header.
    pub ether_type: EtherType,
}

impl Header {
    /// Writes the header to the first [`HEADER_LEN`] octets of a frame.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when `frame` is shorter.
    #[inline]
    pub fn write(&self, frame: &mut [u8]) -> Result<(), DropReason> {
        let head = frame.first_chunk_mut::<HEADER_LEN>().ok_or(DropReason::NoRoom)?;
        head[..6].copy_from_slice(&self.destination.0);
        head[6..12].copy_from_slice(&self.source.0);
        head[12..].copy_from_slice(&(self.ether_type as u16).to_be_bytes());
        Ok(())
    }
}

/// Reads a frame's header and filters it for the port with the address `own`; the payload starts
/// at [`HEADER_LEN`] and may be followed by padding.
///
/// Group frames pass (ARP and neighbour solicitations come in them): what is above decides by the
/// returned [`Cast`].
///
/// # Errors
/// A `DropReason::Ether…`.
#[inline]
pub fn parse(frame: &[u8], own: MacAddr) -> Result<(Header, Cast), DropReason> {
    let head = frame.first_chunk::<HEADER_LEN>().ok_or(DropReason::EtherTruncated)?;
    let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = head;
    let destination = MacAddr([d0, d1, d2, d3, d4, d5]);
    let source = MacAddr([s0, s1, s2, s3, s4, s5]);
    let cast = match destination {
        MacAddr::BROADCAST => Cast::Broadcast,
        group if group.is_group() => Cast::Multicast,
        station if station == own => Cast::Unicast,
        _ => return Err(DropReason::EtherNotOurs),
    };
    if !source.is_station() {
        return Err(DropReason::EtherBadSource);
    }
    let ether_type = match u16::from_be_bytes([t0, t1]) {
        0x0800 => EtherType::Ipv4,
        0x0806 => EtherType::Arp,
        0x86dd => EtherType::Ipv6,
        tag if VLAN_TYPES.contains(&tag) => return Err(DropReason::EtherVlan),
        _ => return Err(DropReason::EtherUnknownType),
    };
    Ok((Header { destination, source, ether_type }, cast))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn frame(destination: MacAddr, source: MacAddr, ether_type: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(destination.0);
        frame.extend(source.0);
        frame.extend(ether_type.to_be_bytes());
        frame
    }

    #[test]
    fn own_and_group_frames_pass_with_their_cast() {
        let group = MacAddr::multicast_v6("ff02::1:ff00:1".parse().unwrap());
        assert_eq!(group.to_string(), "33:33:ff:00:00:01");
        for (destination, expected) in
            [(OWN, Cast::Unicast), (group, Cast::Multicast), (MacAddr::BROADCAST, Cast::Broadcast)]
        {
            let (header, cast) = parse(&frame(destination, PEER, 0x86dd), OWN).unwrap();
            assert_eq!(cast, expected);
            assert_eq!(header.source, PEER);
            assert_eq!(header.ether_type, EtherType::Ipv6);
        }
    }

    #[test]
    fn refused_frames_are_named() {
        for (frame, reason) in [
            (frame(PEER, OWN, 0x0800), DropReason::EtherNotOurs),
            (frame(OWN, MacAddr::BROADCAST, 0x0800), DropReason::EtherBadSource),
            (frame(OWN, MacAddr::ZERO, 0x0800), DropReason::EtherBadSource),
            (frame(OWN, PEER, 0x8100), DropReason::EtherVlan),
            (frame(OWN, PEER, 0x88a8), DropReason::EtherVlan),
            (frame(OWN, PEER, 0x88cc), DropReason::EtherUnknownType),
            // An IEEE 802.3 length instead of a type.
            (frame(OWN, PEER, 46), DropReason::EtherUnknownType),
            (frame(OWN, PEER, 0x0800)[..13].to_vec(), DropReason::EtherTruncated),
        ] {
            assert_eq!(parse(&frame, OWN), Err(reason));
        }
    }

    proptest! {
        #[test]
        fn any_octets_parse_or_are_named(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((header, _)) = parse(&octets, OWN) {
                let mut built = [0; HEADER_LEN];
                header.write(&mut built).unwrap();
                prop_assert_eq!(&built[..], &octets[..HEADER_LEN]);
            }
        }
    }
}
