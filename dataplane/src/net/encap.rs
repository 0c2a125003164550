//! Outer headers of ESP and IKE: native ESP (RFC 4303, protocol 50) and UDP (RFC 3948), and what
//! becomes of DSCP and ECN on the way in and out (RFC 4301, 5.1.2; RFC 6040).
//!
//! The payload (ESP, or IKE with its marker) is written into the packet first, behind
//! [`overhead`] octets; [`write_native`] or [`write_udp`] then puts the headers before it.

use super::DropReason;
use super::checksum::{self, Sum};
use super::ip::{V4_HEADER_LEN, V6_HEADER_LEN, protocol};
use super::udp;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How the outer packets of a peer look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Own address.
    pub source: IpAddr,
    /// The peer's address, of the same family.
    pub destination: IpAddr,
    /// DSCP and ECN of the outer header; see [`outer_traffic_class`].
    pub traffic_class: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4: the don't-fragment bit. ESP sets it, so that the path's MTU is found; IKE over UDP
    /// leaves it clear, because a message that is lost to its size is lost for ever.
    pub dont_fragment: bool,
    /// IPv4 identification: unique for packets that may be fragmented, any value for others
    /// (RFC 6864, 4).
    pub identification: u16,
    /// IPv6 flow label, 20 bits; the same for a peer's packets and not guessable (RFC 6438, 3).
    pub flow_label: u32,
}

/// Octets of the IP header of a family.
pub const fn ip_header_len(v4: bool) -> usize {
    if v4 { V4_HEADER_LEN } else { V6_HEADER_LEN }
}

/// Octets before the ESP packet or IKE message: the IP header and, in UDP, eight more.
pub const fn overhead(v4: bool, in_udp: bool) -> usize {
    ip_header_len(v4) + if in_udp { udp::HEADER_LEN } else { 0 }
}

impl Outer {
    /// Writes an IP header for the whole of `packet`, whose upper-layer data is `upper_protocol`'s.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when the packet is shorter than the header or longer than the family
    /// can say; [`DropReason::IpBadVersion`] when the addresses are of different families.
    pub fn write_ip(&self, packet: &mut [u8], upper_protocol: u8) -> Result<(), DropReason> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.write_v4(packet, upper_protocol, source, destination)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.write_v6(packet, upper_protocol, source, destination)
            }
            _ => Err(DropReason::IpBadVersion),
        }
    }

    fn write_v4(
        &self,
        packet: &mut [u8],
        upper_protocol: u8,
        source: Ipv4Addr,
        destination: Ipv4Addr,
    ) -> Result<(), DropReason> {
        let total_len = u16::try_from(packet.len()).map_err(|_| DropReason::NoRoom)?;
        let head = packet.first_chunk_mut::<V4_HEADER_LEN>().ok_or(DropReason::NoRoom)?;
        let flags: u16 = if self.dont_fragment { 0x4000 } else { 0 };
        head[0] = 0x45;
        head[1] = self.traffic_class;
        head[2..4].copy_from_slice(&total_len.to_be_bytes());
        head[4..6].copy_from_slice(&self.identification.to_be_bytes());
        head[6..8].copy_from_slice(&flags.to_be_bytes());
        head[8] = self.hop_limit;
        head[9] = upper_protocol;
        head[12..16].copy_from_slice(&source.octets());
        head[16..].copy_from_slice(&destination.octets());
        checksum::fill(Sum::new(), head, 10, false);
        Ok(())
    }

    fn write_v6(
        &self,
        packet: &mut [u8],
        upper_protocol: u8,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) -> Result<(), DropReason> {
        let payload_len = packet.len().checked_sub(V6_HEADER_LEN).ok_or(DropReason::NoRoom)?;
        let payload_len = u16::try_from(payload_len).map_err(|_| DropReason::NoRoom)?;
        let head = packet.first_chunk_mut::<V6_HEADER_LEN>().ok_or(DropReason::NoRoom)?;
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        head[..4].copy_from_slice(&word.to_be_bytes());
        head[4..6].copy_from_slice(&payload_len.to_be_bytes());
        head[6] = upper_protocol;
        head[7] = self.hop_limit;
        head[8..24].copy_from_slice(&source.octets());
        head[24..].copy_from_slice(&destination.octets());
        Ok(())
    }
}

/// Puts the IP header before an ESP packet that starts at [`overhead`]`(v4, false)`.
///
/// # Errors
/// As [`Outer::write_ip`].
pub fn write_native(packet: &mut [u8], outer: &Outer) -> Result<(), DropReason> {
    outer.write_ip(packet, protocol::ESP)
}

/// Puts IP and UDP headers before a payload that starts at [`overhead`]`(v4, true)`.
///
/// ESP gives [`udp::Fill::Zero`]: RFC 3948, 2.1 wants it zero over IPv4, and over IPv6 it is then
/// computed, because receivers that follow RFC 8200 drop zero. IKE gives another.
///
/// # Errors
/// As [`Outer::write_ip`].
pub fn write_udp(
    packet: &mut [u8],
    outer: &Outer,
    source_port: u16,
    destination_port: u16,
    fill: udp::Fill,
) -> Result<(), DropReason> {
    let at = ip_header_len(outer.source.is_ipv4());
    let datagram = packet.get_mut(at..).ok_or(DropReason::NoRoom)?;
    let source = (outer.source, source_port);
    udp::write(datagram, source, (outer.destination, destination_port), fill)?;
    outer.write_ip(packet, protocol::UDP)
}

/// Explicit congestion notification: the lower two bits of the traffic class (RFC 3168, 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ecn {
    /// Not ECN-capable.
    NotEct = 0,
    /// ECN-capable, codepoint 1.
    Ect1 = 1,
    /// ECN-capable, codepoint 0.
    Ect0 = 2,
    /// Congestion experienced.
    Ce = 3,
}

impl Ecn {
    /// The codepoint in a traffic class.
    pub const fn of(traffic_class: u8) -> Self {
        match traffic_class & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }
}

/// How outer headers take over the inner ECN field (RFC 6040, 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EcnMode {
    /// Copy it: UDP and native ESP, whose packets map one to one.
    Normal,
    /// Not-ECT always: TCP, whose segments do not map to inner packets and whose own ECN answers
    /// for the outer path (RFC 9329, 9.5).
    Compatibility,
}

/// The outer traffic class for an inner one: DSCP copied (RFC 4301, 5.1.2.1) or, given
/// `fixed_dscp` (six bits), hidden; ECN by mode.
pub const fn outer_traffic_class(inner: u8, mode: EcnMode, fixed_dscp: Option<u8>) -> u8 {
    let dscp = match fixed_dscp {
        Some(dscp) => dscp << 2,
        None => inner & 0xfc,
    };
    match mode {
        EcnMode::Normal => dscp | inner & 3,
        EcnMode::Compatibility => dscp,
    }
}

/// The inner ECN field after decapsulation: RFC 6040, 4.2, figure 4.
///
/// # Errors
/// [`DropReason::EcnIllegal`] for CE over Not-ECT: congestion that the inner flow could not learn
/// of otherwise.
#[inline]
pub const fn combine_ecn(inner: Ecn, outer: Ecn) -> Result<Ecn, DropReason> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => Err(DropReason::EcnIllegal),
        (Ecn::NotEct, _) => Ok(Ecn::NotEct),
        (_, Ecn::Ce) | (Ecn::Ce, _) => Ok(Ecn::Ce),
        (Ecn::Ect0, Ecn::Ect1) => Ok(Ecn::Ect1),
        (inner, _) => Ok(inner),
    }
}

/// Writes an ECN field into a packet that [`super::ip::parse`] accepted and mends IPv4's checksum.
pub fn set_ecn(packet: &mut [u8], ecn: Ecn) {
    match packet {
        [first @ 0x40..=0x4f, tos, _, _, _, _, _, _, _, _, c0, c1, ..] => {
            let old = u16::from_be_bytes([*first, *tos]);
            *tos = *tos & 0xfc | ecn as u8;
            let new = u16::from_be_bytes([*first, *tos]);
            let sum = checksum::update(u16::from_be_bytes([*c0, *c1]), old, new);
            [*c0, *c1] = sum.to_be_bytes();
        }
        [0x60..=0x6f, second, ..] => *second = *second & 0xcf | (ecn as u8) << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::ip;
    use super::*;
    use proptest::prelude::*;

    fn outer(v4: bool) -> Outer {
        let texts = if v4 { ["192.0.2.1", "198.51.100.7"] } else { ["2001:db8::1", "2001:db8::2"] };
        Outer {
            source: texts[0].parse().unwrap(),
            destination: texts[1].parse().unwrap(),
            traffic_class: 0xb9,
            hop_limit: ip::HOP_LIMIT,
            dont_fragment: true,
            identification: 7,
            flow_label: 0xfff1_2345,
        }
    }

    #[test]
    fn native_esp_of_both_families_parses_back() {
        for v4 in [true, false] {
            let mut packet = vec![0xaa; overhead(v4, false) + 60];
            write_native(&mut packet, &outer(v4)).unwrap();
            let header = ip::parse(&packet).unwrap();
            assert_eq!((header.protocol, header.hop_limit, header.traffic_class), (50, 64, 0xb9));
            assert_eq!(header.destination, outer(v4).destination);
            assert_eq!(header.upper(&packet), &[0xaa; 60]);
            assert!(header.dont_fragment);
        }
        let mut packet = vec![0; 40];
        write_native(&mut packet, &outer(false)).unwrap();
        assert_eq!(packet[..4], [0x6b, 0x91, 0x23, 0x45]);
    }

    #[test]
    fn no_room_is_named() {
        assert_eq!(write_native(&mut [0; 19], &outer(true)), Err(DropReason::NoRoom));
        assert_eq!(write_native(&mut [0; 39], &outer(false)), Err(DropReason::NoRoom));
        let mut long = vec![0; 0x1_0000];
        assert_eq!(write_native(&mut long, &outer(true)), Err(DropReason::NoRoom));
        for len in [0, 19, 27] {
            let mut short = vec![0; len];
            let result = write_udp(&mut short, &outer(true), 4500, 4500, udp::Fill::Software);
            assert_eq!(result, Err(DropReason::NoRoom));
        }
    }

    /// RFC 6040, figure 4, row by row: inner Not-ECT, ECT(0), ECT(1), CE; outer in that order.
    #[test]
    fn decapsulation_table_of_rfc_6040() {
        use Ecn::{Ce, Ect0, Ect1, NotEct};
        let outers = [NotEct, Ect0, Ect1, Ce];
        let table = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in table {
            for (outer, expected) in outers.into_iter().zip(row) {
                let combined = combine_ecn(inner, outer);
                assert_eq!(combined, expected.ok_or(DropReason::EcnIllegal), "{inner:?} {outer:?}");
            }
        }
    }

    #[test]
    fn encapsulation_modes_of_rfc_6040() {
        assert_eq!(outer_traffic_class(0xb9, EcnMode::Normal, None), 0xb9);
        assert_eq!(outer_traffic_class(0xbb, EcnMode::Compatibility, None), 0xb8);
        assert_eq!(outer_traffic_class(0xbb, EcnMode::Normal, Some(0)), 0x03);
    }

    #[test]
    fn ecn_is_set_and_nothing_else() {
        for v4 in [true, false] {
            for ecn in [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce] {
                let mut packet = vec![0; 60];
                write_native(&mut packet, &outer(v4)).unwrap();
                let mut expected = ip::parse(&packet).unwrap();
                set_ecn(&mut packet, ecn);
                expected.traffic_class = 0xb8 | ecn as u8;
                assert_eq!(ip::parse(&packet), Ok(expected));
                assert_eq!(Ecn::of(expected.traffic_class), ecn);
            }
        }
    }

    proptest! {
        #[test]
        fn udp_encapsulation_parses_back(
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            v4 in any::<bool>(),
            ports in any::<(u16, u16)>(),
            zero in any::<bool>(),
        ) {
            let mut packet = vec![0; overhead(v4, true)];
            packet.extend(&payload);
            let fill = if zero { udp::Fill::Zero } else { udp::Fill::Software };
            write_udp(&mut packet, &outer(v4), ports.0, ports.1, fill).unwrap();
            let header = ip::parse(&packet).unwrap();
            let upper = header.upper(&packet);
            let udp_header = udp::parse(upper).unwrap();
            prop_assert_eq!((udp_header.source, udp_header.destination), ports);
            prop_assert_eq!(&upper[udp::HEADER_LEN..], &payload[..]);
            prop_assert_eq!(udp_header.checksum == 0, v4 && zero);
            prop_assert!(udp::verify(&header, upper, &udp_header, udp::ZeroChecksum::Refuse).is_ok());
        }
    }
}
