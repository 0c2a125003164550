//! Packets by hand, for the stations around the gateway.

use std::net::IpAddr;

use culvert_dataplane::net::checksum;
use culvert_dataplane::net::encap::{Outer, overhead, write_native, write_udp};
use culvert_dataplane::net::icmp;
use culvert_dataplane::net::ip::{self, protocol};
use culvert_dataplane::net::udp::Fill;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn outer(source: &str, destination: &str) -> Outer {
    Outer {
        source: ip(source),
        destination: ip(destination),
        traffic_class: 0,
        hop_limit: 64,
        dont_fragment: true,
        identification: 0,
        flow_label: 0,
    }
}

/// A UDP datagram.
pub(crate) fn udp(source: (&str, u16), destination: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let outer = outer(source.0, destination.0);
    let mut packet = vec![0; overhead(outer.source.is_ipv4(), true)];
    packet.extend_from_slice(payload);
    write_udp(&mut packet, &outer, source.1, destination.1, Fill::Software).unwrap();
    packet
}

/// A native ESP packet.
pub(crate) fn esp(source: &str, destination: &str, esp: &[u8]) -> Vec<u8> {
    let outer = outer(source, destination);
    let mut packet = vec![0; overhead(outer.source.is_ipv4(), false)];
    packet.extend_from_slice(esp);
    write_native(&mut packet, &outer).unwrap();
    packet
}

/// An echo request.
pub(crate) fn ping(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let outer = outer(source, destination);
    let v4 = outer.source.is_ipv4();
    let at = overhead(v4, false);
    let mut packet = vec![0; at];
    packet.extend([if v4 { 8 } else { 128 }, 0, 0, 0, 0x12, 0x34, 0, 1]);
    packet.extend_from_slice(payload);
    let upper = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
    let len = packet.len() - at;
    let pseudo = if v4 {
        checksum::Sum::new()
    } else {
        checksum::pseudo(outer.source, outer.destination, upper, len)
    };
    checksum::fill(pseudo, &mut packet[at..], 2, false);
    outer.write_ip(&mut packet, upper).unwrap();
    packet
}

/// What a router says about a packet that was larger than `mtu`.
pub(crate) fn too_big(router: &str, packet: &[u8], mtu: u16) -> Vec<u8> {
    icmp_error(router, packet, icmp::Problem::TooBig { mtu })
}

/// What a router says about a packet.
pub(crate) fn icmp_error(router: &str, packet: &[u8], problem: icmp::Problem) -> Vec<u8> {
    let header = ip::parse(packet).unwrap();
    let mut out = vec![0; 1280];
    let len = icmp::write_error(problem, ip(router), &header, packet, &mut out).unwrap();
    out.truncate(len);
    out
}

/// A TCP SYN with a maximum segment size.
pub(crate) fn syn(source: &str, destination: &str, mss: u16) -> Vec<u8> {
    let outer = outer(source, destination);
    let at = overhead(outer.source.is_ipv4(), false);
    let mut packet = vec![0; at];
    packet.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend([2, 4]);
    packet.extend(mss.to_be_bytes());
    let len = packet.len() - at;
    let pseudo = checksum::pseudo(outer.source, outer.destination, protocol::TCP, len);
    checksum::fill(pseudo, &mut packet[at..], 16, false);
    outer.write_ip(&mut packet, protocol::TCP).unwrap();
    packet
}

/// Sets the hop limit of a packet and mends its checksum.
pub(crate) fn with_hop_limit(mut packet: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        packet[8] = hop_limit;
        mend(&mut packet);
    } else {
        packet[7] = hop_limit;
    }
    packet
}

/// Clears the don't-fragment bit of an IPv4 packet.
pub(crate) fn may_fragment(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] = 0;
    mend(&mut packet);
    packet
}

/// Makes an IPv4 packet the first fragment of a datagram.
pub(crate) fn first_fragment(mut packet: Vec<u8>) -> Vec<u8> {
    packet[6] = 0x20;
    mend(&mut packet);
    packet
}

/// Puts the fragments of one IPv6 packet together (RFC 8200, 4.5).
pub(crate) fn whole_v6(pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = pieces[0][..40].to_vec();
    whole[6] = pieces[0][40];
    for piece in pieces {
        assert_eq!((piece[6], &piece[44..48]), (44, &pieces[0][44..48]), "one identification");
        assert_eq!(usize::from(u16::from_be_bytes([piece[42], piece[43]]) & !7), whole.len() - 40);
        assert_eq!(piece[43] & 1 == 1, piece != pieces.last().unwrap());
        whole.extend_from_slice(&piece[48..]);
    }
    let len = (whole.len() - 40) as u16;
    whole[4..6].copy_from_slice(&len.to_be_bytes());
    whole
}

/// Marks an outer packet "congestion experienced" (RFC 3168, 5).
pub(crate) fn mark_congestion(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        packet[1] |= 3;
        mend(packet);
    } else {
        packet[1] |= 0x30;
    }
}

fn mend(packet: &mut [u8]) {
    checksum::fill(checksum::Sum::new(), &mut packet[..ip::V4_HEADER_LEN], 10, false);
}
