//! Transport mode: the gateway stands in the wire before a host that has its outer address (RFC 4301,
//! 3.3 and 4.1).

use culvert_dataplane::net::ip::{self as ip_format, Fragment, Header};
use culvert_dataplane::net::udp as udp_format;
use culvert_shm::{Counter, Path, Transport, TransportEnds};

use crate::fixture::{Gateway, OUTER_V4, OUTER_V6, PEER_V4, PEER_V6};
use crate::packets::{esp, ip, ping, too_big, udp, whole_v6, with_hop_limit};
use crate::peer::{Peer, Sa, Wanted, esp_frame, frames, path, path_between};

/// What lies behind the headers of an ESP packet on the wire, and its IP header.
fn sealed(packet: &[u8], transport: Transport) -> (Header, Vec<u8>) {
    let header = ip_format::parse(packet).unwrap();
    let udp = if transport == Transport::Udp { udp_format::HEADER_LEN } else { 0 };
    (header, header.upper(packet)[udp..].to_vec())
}

fn wrapped(path: &Path, esp_packet: &[u8]) -> Vec<u8> {
    let (own, other) = (path.local.ip().to_string(), path.remote.ip().to_string());
    match path.transport {
        Transport::Udp => udp((&other, 4500), (&own, 4500), esp_packet),
        _ => esp(&other, &own, esp_packet),
    }
}

// RFC 4303, 3.1.1: behind the IP header there is ESP, and in it what the IP header was before.
#[test]
fn what_packets_of_the_host_carry_passes_natively_and_in_udp() {
    for transport in [Transport::Native, Transport::Udp] {
        for (own, other) in [(OUTER_V4, PEER_V4), (OUTER_V6, PEER_V6)] {
            let mut gateway = Gateway::before_a_host();
            let path = path_between(transport, ip(own), ip(other));
            let sa = Sa::install(&mut gateway, Wanted::between_ends(path));
            let outbound = ping(own, other, &[2; 900]);
            gateway.inner_packet(&outbound);
            gateway.turn();
            let packets = gateway.outer_packets();
            let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
            let (header, esp_packet) = sealed(packet, transport);
            assert_eq!((header.source, header.destination), (ip(own), ip(other)));
            assert_eq!(header.hop_limit, 63, "the host's own, one hop on");
            let before = ip_format::parse(&outbound).unwrap();
            let (protocol, data) = sa.open_data(&esp_packet);
            assert_eq!((protocol, &data[..]), (before.protocol, before.upper(&outbound)));

            let inbound = ping(other, own, &[3; 900]);
            let header = ip_format::parse(&inbound).unwrap();
            let packet = sa.seal_data(1, header.protocol, header.upper(&inbound));
            gateway.outer_packet(&wrapped(&path, &packet));
            gateway.turn();
            assert_eq!(gateway.inner_packets(), [with_hop_limit(inbound, 63)]);
        }
    }
}

fn octets(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

// RFC 4303, 3.1.1, as scapy has it, which knows nothing of this gateway: it seals what the gateway
// opens, and the gateway seals to the octet what it seals.
#[test]
fn scapy_makes_the_same_packets() {
    let vectors = include_str!("transport_mode.vectors");
    let mut seen = 0;
    for vector in vectors.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = vector.split(' ').collect();
        let &[direction, transport, given, expected] = &fields[..] else { panic!("{vector}") };
        let (given, expected) = (octets(given), octets(expected));
        let ends = if given[0] >> 4 == 4 { (OUTER_V4, PEER_V4) } else { (OUTER_V6, PEER_V6) };
        let transport = if transport == "udp" { Transport::Udp } else { Transport::Native };
        let mut gateway = Gateway::before_a_host();
        let path = path_between(transport, ip(ends.0), ip(ends.1));
        Sa::install(&mut gateway, Wanted::between_ends(path));
        let made = if direction == "out" {
            gateway.inner_packet(&given);
            gateway.turn();
            gateway.outer_packets()
        } else {
            gateway.outer_packet(&given);
            gateway.turn();
            gateway.inner_packets()
        };
        assert_eq!(made, [expected], "{vector}");
        seen += 1;
    }
    assert_eq!(seen, 40, "vectors");
}

// RFC 9329, 6.5 allows it: there is no IP header to come from, so the SA's own addresses make one.
#[test]
fn over_tcp_the_header_is_made_anew() {
    let mut gateway = Gateway::before_a_host();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let wanted = Wanted::between_ends(path(Transport::Tcp, Some(conn)));
    let sa = Sa::install(&mut gateway, wanted);
    let inbound = ping(PEER_V4, OUTER_V4, &[1; 1300]);
    let header = ip_format::parse(&inbound).unwrap();
    let packet = sa.seal_data(1, header.protocol, header.upper(&inbound));
    peer.send(&mut gateway, id, &esp_frame(&packet));
    assert_eq!(gateway.inner_packets(), [with_hop_limit(inbound, 63)]);

    let outbound = ping(OUTER_V4, PEER_V4, &[2; 1300]);
    gateway.inner_packet(&outbound);
    peer.exchange(&mut gateway);
    let sent = frames(&peer.read(id));
    let [frame] = &sent[..] else { panic!("{} frames", sent.len()) };
    assert_eq!(sa.open_data(frame), (1, outbound[20..].to_vec()));
}

// RFC 7296, 2.23.1, and RFC 3948, 3.1.2: the peer knows itself by another address than this side.
#[test]
fn behind_a_nat_checksums_are_mended() {
    let mut gateway = Gateway::before_a_host();
    let path = path(Transport::Udp, None);
    let ends = TransportEnds {
        remote_at_peer: ip("10.9.0.5"),
        ..Wanted::between_ends(path).transport.unwrap()
    };
    let sa = Sa::install(&mut gateway, Wanted { transport: Some(ends), ..Wanted::by(path) });
    // L2TP of the peer as it left the peer.
    let inbound = udp(("10.9.0.5", 1701), (OUTER_V4, 1701), b"from behind the NAT");
    gateway.outer_packet(&wrapped(&path, &sa.seal_data(1, 17, &inbound[20..])));
    gateway.turn();
    let packets = gateway.inner_packets();
    let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
    let header = ip_format::parse(packet).unwrap();
    assert_eq!((header.source, header.destination), (ip(PEER_V4), ip(OUTER_V4)));
    let upper = header.upper(packet);
    let parsed = udp_format::parse(upper).unwrap();
    let strict = udp_format::ZeroChecksum::Refuse;
    assert!(udp_format::verify(&header, upper, &parsed, strict).is_ok());
    assert_eq!(upper[8..], *b"from behind the NAT");
}

// RFC 4303, 3.3.4: fragments are made behind ESP, and none goes into it.
#[test]
fn long_packets_are_cut_behind_esp_and_fragments_do_not_pass() {
    let mut gateway = Gateway::before_a_host();
    let path = path(Transport::Native, None);
    let sa = Sa::install(&mut gateway, Wanted::between_ends(path));
    let mut long = ping(OUTER_V4, PEER_V4, &[7; 1472]);
    assert_eq!(long.len(), 1500);
    gateway.inner_packet(&long);
    gateway.turn();
    assert_eq!(gateway.count(Counter::IpTooBig), 1, "DF: its sender is told");
    assert!(gateway.outer_packets().is_empty());
    gateway.inner_frames();

    clear_dont_fragment(&mut long);
    gateway.inner_packet(&long);
    gateway.turn();
    let pieces = gateway.outer_packets();
    assert_eq!(pieces.len(), 2);
    let mut whole = Vec::new();
    for (piece, place) in pieces.iter().zip([Fragment::First, Fragment::Later]) {
        let header = ip_format::parse(piece).unwrap();
        assert_eq!((header.protocol, header.fragment), (50, place));
        whole.extend_from_slice(header.upper(piece));
    }
    assert_eq!(sa.open_data(&whole), (1, long[20..].to_vec()));

    let mut fragment = ping(OUTER_V4, PEER_V4, &[7; 64]);
    set_flags(&mut fragment, 0x2000);
    gateway.inner_packet(&fragment);
    gateway.turn();
    assert_eq!(gateway.count(Counter::EspTransportUnfit), 1);
    assert!(gateway.outer_packets().is_empty());
}

// RFC 8200, 5: 1280 octets go in one ESP packet, whatever is known of the path; and they go as what the
// SA is for, not as a tunnel's.
#[test]
fn the_least_ipv6_packet_stays_in_transport_mode() {
    let mut gateway = Gateway::before_a_host();
    let path = path_between(Transport::Native, ip(OUTER_V6), ip(PEER_V6));
    let sa = Sa::install(&mut gateway, Wanted::between_ends(path));
    gateway.inner_packet(&ping(OUTER_V6, PEER_V6, &[7; 1300]));
    gateway.turn();
    let lost = gateway.outer_packets().pop().unwrap();
    sa.open_data(&sealed(&lost, Transport::Native).1);
    gateway.outer_packet(&too_big("2001:db8:e::1", &lost, 1280));
    let least = ping(OUTER_V6, PEER_V6, &[7; 1280 - 48]);
    gateway.inner_packet(&least);
    gateway.turn();
    assert_eq!(gateway.count(Counter::IcmpTooBig), 1);
    let packet = whole_v6(&gateway.outer_packets());
    let (protocol, data) = sa.open_data(&sealed(&packet, Transport::Native).1);
    assert_eq!((protocol, &data[..]), (58, &least[40..]));
}

// RFC 4301, 5.2: neither passes in the clear what has to be protected, nor another's packet in it.
#[test]
fn nothing_but_the_ends_uses_the_sa() {
    let mut gateway = Gateway::before_a_host();
    let path = path(Transport::Native, None);
    let sa = Sa::install(&mut gateway, Wanted::between_ends(path));
    gateway.inner_packet(&ping("10.1.0.10", PEER_V4, b"another host's"));
    gateway.outer_packet(&udp((PEER_V4, 1701), (OUTER_V4, 1701), b"in the clear"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::PolicyNone), 1);
    assert!(gateway.outer_packets().is_empty() && gateway.inner_packets().is_empty());
    // A whole packet, as in a tunnel, is data of protocol 4 here and not unpacked.
    let inner = ping("10.2.0.20", "10.1.0.10", b"as in a tunnel");
    gateway.outer_packet(&wrapped(&path, &sa.seal_as(1, &inner)));
    gateway.turn();
    let packets = gateway.inner_packets();
    let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
    let header = ip_format::parse(packet).unwrap();
    assert_eq!((header.protocol, header.destination), (4, ip(OUTER_V4)));
}

// Without a host behind it the gateway itself is the end.
#[test]
fn the_gateway_answers_for_itself() {
    let mut gateway = Gateway::new();
    let path = path(Transport::Native, None);
    let sa = Sa::install(&mut gateway, Wanted::between_ends(path));
    let asked = ping(PEER_V4, OUTER_V4, b"are you there");
    gateway.outer_packet(&wrapped(&path, &sa.seal_data(1, 1, &asked[20..])));
    gateway.turn();
    let packets = gateway.outer_packets();
    let [reply] = &packets[..] else { panic!("{} answers", packets.len()) };
    let (header, esp_packet) = sealed(reply, Transport::Native);
    assert_eq!((header.protocol, header.destination), (50, ip(PEER_V4)));
    let (protocol, data) = sa.open_data(&esp_packet);
    assert_eq!((protocol, data[0], &data[8..]), (1, 0, &b"are you there"[..]));
}

fn set_flags(packet: &mut [u8], flags: u16) {
    packet[6..8].copy_from_slice(&flags.to_be_bytes());
    let header = &mut packet[..20];
    culvert_dataplane::net::checksum::fill(Default::default(), header, 10, false);
}

fn clear_dont_fragment(packet: &mut [u8]) {
    set_flags(packet, 0);
}
