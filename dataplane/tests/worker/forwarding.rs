//! What a router does to inner packets: hop limits, sizes, and the news about them.

use culvert_dataplane::net::{arp, checksum, ip as ip_format, udp as udp_format};
use culvert_shm::{Counter, Down, Policy, Prefix, Selector, Transport};

use crate::fixture::{
    FAR_V4, FAR_V6, Gateway, HOST_V4, HOST_V6, INNER_V4, INNER_V6, OUTER_V4, OUTER_V6, PEER_V4,
    PEER_V6, Told,
};
use crate::packets::{ip, may_fragment, ping, syn, too_big, udp, whole_v6, with_hop_limit};
use crate::peer::{Peer, Sa, Wanted, esp_frame, frames, path, path_between};

fn tunnel() -> (Gateway, Sa) {
    let mut gateway = Gateway::new();
    let sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    (gateway, sa)
}

fn inner_of(sa: &Sa, packet: &[u8]) -> Vec<u8> {
    let header = ip_format::parse(packet).unwrap();
    sa.open(&header.upper(packet)[8..]).unwrap().1
}

// RFC 1191, 4 and RFC 8201, 4: the MTU of the tunnel. 1500 less IPv4, UDP, ESP: 1500 - 28 - 32
// leaves 1440 for the encrypted part, of which two octets are the trailer.
#[test]
fn a_packet_too_big_for_the_tunnel_is_answered_with_its_mtu() {
    let (mut gateway, sa) = tunnel();
    for (host, own, far, overhead) in
        [(HOST_V4, INNER_V4, FAR_V4, 28), (HOST_V6, INNER_V6, FAR_V6, 48)]
    {
        gateway.inner_packet(&ping(host, far, &vec![0; 1439 - overhead]));
        gateway.turn();
        assert!(gateway.outer_packets().is_empty());
        let answers = gateway.inner_packets();
        let [answer] = &answers[..] else { panic!("{} answers", answers.len()) };
        let header = ip_format::parse(answer).unwrap();
        assert_eq!((header.source, header.destination), (ip(own), ip(host)));
        let upper = header.upper(answer);
        let kind = if header.is_v4() { [3, 4] } else { [2, 0] };
        assert_eq!(upper[..2], kind);
        assert_eq!(u32::from_be_bytes(upper[4..8].try_into().unwrap()), 1438);

        gateway.inner_packet(&ping(host, far, &vec![0; 1438 - overhead]));
        gateway.turn();
        let packets = gateway.outer_packets();
        assert_eq!(packets.len(), 1, "what the answer says does fit");
        assert!(packets[0].len() <= 1500);
        assert_eq!(inner_of(&sa, &packets[0]).len(), 1438);
    }
    assert_eq!(gateway.count(Counter::IpTooBig), 2);
}

/// The MTU that the host is told of when it sends a packet of 1438 octets; `None` if that passes.
fn told_mtu(gateway: &mut Gateway) -> Option<u32> {
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[0; 1410]));
    gateway.turn();
    let answer = gateway.inner_packets().pop()?;
    let header = ip_format::parse(&answer).unwrap();
    let upper = header.upper(&answer);
    assert_eq!(upper[..2], [3, 4]);
    Some(u32::from_be_bytes(upper[4..8].try_into().unwrap()))
}

// RFC 4301, 8.2.1 and 8.2.2; RFC 1191, 4 and 6.3: of a narrow link on the way to a peer the hosts hear,
// whichever worker the router's message reaches, and only as long as that may be true.
#[test]
fn a_narrow_path_is_learnt_from_its_routers_and_forgotten_again() {
    for transport in [Transport::Udp, Transport::Native] {
        let mut gateway = Gateway::with_workers(2);
        let wanted = Wanted { owner: 1, ..Wanted::by(path(transport, None)) };
        let sa = Sa::install(&mut gateway, wanted);
        assert_eq!(told_mtu(&mut gateway), None);
        let lost = gateway.outer_packets().pop().unwrap();
        gateway.outer_packet(&too_big("203.0.113.1", &lost, 1400));
        gateway.turn();
        assert_eq!(gateway.count(Counter::IcmpTooBig), 1);

        let mtu = told_mtu(&mut gateway).unwrap();
        assert!(gateway.outer_packets().is_empty());
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &vec![0; mtu as usize - 28]));
        gateway.turn();
        let fits = gateway.outer_packets().pop().unwrap();
        assert!((1397..=1400).contains(&fits.len()), "{}", fits.len());

        gateway.now_ns += 601_000_000_000;
        assert_eq!(told_mtu(&mut gateway), None, "the path may be another one by now");

        let lost = gateway.outer_packets().pop().unwrap();
        gateway.outer_packet(&too_big("203.0.113.1", &lost, 1400));
        gateway.turn();
        assert!(told_mtu(&mut gateway).is_some());
        let elsewhere = path_between(transport, ip(OUTER_V4), ip("192.0.2.8"));
        gateway.control.send(1, &Down::PathSet { peer: sa.peer, path: elsewhere }).unwrap();
        assert_eq!(told_mtu(&mut gateway), None, "it is another one");
    }
}

// RFC 5927, 4.1; RFC 4301, 6.1.1: anybody can send such a message, so that it has to quote what was sent
// just now, and no path is made narrower than paths are.
#[test]
fn a_forged_packet_too_big_is_not_believed() {
    let (mut gateway, _sa) = tunnel();
    for _ in 0..3 {
        assert_eq!(told_mtu(&mut gateway), None);
    }
    let sent = gateway.outer_packets().pop().unwrap();
    let quoting = |gateway: &mut Gateway, at: usize, octet: u8, mtu: u16| {
        let mut quoted = sent.clone();
        quoted[at] ^= octet;
        if at < 20 {
            checksum::fill(checksum::Sum::new(), &mut quoted[..20], 10, false);
        }
        gateway.outer_packet(&too_big("203.0.113.1", &quoted, mtu));
        gateway.turn();
    };
    let (peer_address, spi, number) = (19, 28, 35);
    for at in [peer_address, spi, number] {
        quoting(&mut gateway, at, 0x40, 1400);
    }
    quoting(&mut gateway, number, 0, 1500);
    assert_eq!(gateway.count(Counter::IcmpTooBig), 0);
    assert_eq!(told_mtu(&mut gateway), None);

    quoting(&mut gateway, number, 0, 0);
    assert_eq!(gateway.count(Counter::IcmpTooBig), 1);
    assert_eq!(told_mtu(&mut gateway), Some(576 - 28 - 32 - 2));
}

// RFC 8200, 5; RFC 2473, 7.1: an IPv6 host sends 1280 octets in one piece, whatever it is told. Where
// these do not fit the outer packet may be fragmented on the way.
#[test]
fn the_least_ipv6_packet_passes_a_narrower_path() {
    let (mut gateway, sa) = tunnel();
    assert_eq!(told_mtu(&mut gateway), None);
    let lost = gateway.outer_packets().pop().unwrap();
    gateway.outer_packet(&too_big("203.0.113.1", &lost, 1000));
    let least = ping(HOST_V6, FAR_V6, &[0; 1280 - 48]);
    gateway.inner_packet(&least);
    gateway.inner_packet(&ping(HOST_V6, FAR_V6, &[0; 1281 - 48]));
    gateway.turn();
    let packets = gateway.outer_packets();
    let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
    let header = ip_format::parse(packet).unwrap();
    assert!(!header.dont_fragment && packet.len() > 1000);
    assert_eq!(inner_of(&sa, packet).len(), least.len());
    let answer = gateway.inner_packets().pop().unwrap();
    assert_eq!(answer[44..48], 1280u32.to_be_bytes());
}

// RFC 2473, 7.1; RFC 8200, 4.5 and 5: over IPv6 no router cuts what is too long, so that this gateway does
// where the least packet of an IPv6 host does not fit with what ESP adds.
#[test]
fn the_least_ipv6_packet_passes_a_narrow_ipv6_path_in_fragments() {
    for transport in [Transport::Udp, Transport::Native] {
        let mut gateway = Gateway::new();
        let path = path_between(transport, ip(OUTER_V6), ip(PEER_V6));
        let sa = Sa::install(&mut gateway, Wanted::by(path));
        let least = ping(HOST_V6, FAR_V6, &[6; 1280 - 48]);
        gateway.inner_packet(&least);
        gateway.turn();
        let lost = gateway.outer_packets();
        let [lost] = &lost[..] else { panic!("{} packets", lost.len()) };
        assert!(lost.len() > 1280, "the link is wide");
        gateway.outer_packet(&too_big("2001:db8:e::1", lost, 1280));
        let mut identifications = Vec::new();
        for _ in 0..2 {
            gateway.inner_packet(&least);
            gateway.turn();
            let pieces = gateway.outer_packets();
            assert_eq!(pieces.len(), 2);
            assert!(pieces.iter().all(|piece| piece.len() <= 1280));
            identifications.push(pieces[0][44..48].to_vec());
            let packet = whole_v6(&pieces);
            let header = ip_format::parse(&packet).unwrap();
            let upper = header.upper(&packet);
            let esp = if transport == Transport::Udp {
                let parsed = udp_format::parse(upper).unwrap();
                let strict = udp_format::ZeroChecksum::Refuse;
                assert!(udp_format::verify(&header, upper, &parsed, strict).is_ok());
                &upper[8..]
            } else {
                assert_eq!(header.protocol, 50);
                upper
            };
            assert_eq!(sa.open(esp).unwrap().1, with_hop_limit(least.clone(), 63));
        }
        assert_ne!(identifications[0], identifications[1]);
        assert_eq!(gateway.count(Counter::OuterIpv6Fragmented), 2);
    }
}

// RFC 4301, 8.2; RFC 791, 3.2.
#[test]
fn a_packet_that_may_be_fragmented_is_cut_before_it_is_sealed() {
    let (mut gateway, sa) = tunnel();
    gateway.inner_packet(&may_fragment(ping(HOST_V4, FAR_V4, &[5; 1460])));
    gateway.turn();
    let packets = gateway.outer_packets();
    assert_eq!(packets.len(), 2);
    let mut payload = Vec::new();
    for packet in &packets {
        assert!(packet.len() <= 1500);
        let inner = inner_of(&sa, packet);
        let header = ip_format::parse(&inner).unwrap();
        assert_eq!(header.hop_limit, 63);
        payload.extend_from_slice(header.upper(&inner));
    }
    assert_eq!(payload[8..], [5; 1460]);
    assert_eq!(gateway.count(Counter::Ipv4Fragmented), 1);
}

// RFC 4443, 2.4(f) and RFC 1812, 4.3.2.8: errors are limited, but who floods the gateway with what has to be
// answered must not keep another host from hearing what fits into the tunnel.
#[test]
fn a_flood_of_errors_leaves_the_mtu_to_be_told() {
    let (mut gateway, _sa) = tunnel();
    let other = "10.1.0.11";
    for _ in 0..100 {
        gateway.inner_packet(&with_hop_limit(ping(HOST_V4, FAR_V4, b"last hop"), 1));
        gateway.inner_packet(&ping(other, FAR_V4, &[0; 1440]));
        gateway.turn();
    }
    assert!(gateway.count(Counter::IcmpErrorLimited) >= 100);
    gateway.inner_packets();
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[0; 1440]));
    gateway.turn();
    let answer = gateway.inner_packets().pop().expect("the host is told");
    assert_eq!(answer[20..22], [3, 4]);
}

// RFC 1812, 5.3.1; RFC 4443, 3.3.
#[test]
fn the_last_hop_is_reported_to_the_host_inside() {
    let (mut gateway, _sa) = tunnel();
    for (host, own, far) in [(HOST_V4, INNER_V4, FAR_V4), (HOST_V6, INNER_V6, FAR_V6)] {
        gateway.inner_packet(&with_hop_limit(ping(host, far, b"traceroute"), 1));
        gateway.turn();
        let answers = gateway.inner_packets();
        let [answer] = &answers[..] else { panic!("{} answers", answers.len()) };
        let header = ip_format::parse(answer).unwrap();
        assert_eq!((header.source, header.destination), (ip(own), ip(host)));
        assert_eq!(header.upper(answer)[0], if header.is_v4() { 11 } else { 3 });
    }
    assert!(gateway.outer_packets().is_empty());
    assert_eq!(gateway.count(Counter::IpTimeExceeded), 2);
}

#[test]
fn the_last_hop_is_reported_through_the_tunnel() {
    let (mut gateway, mut sa) = tunnel();
    let packet = sa.seal(&with_hop_limit(ping(FAR_V4, HOST_V4, b"traceroute"), 1));
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.turn();
    assert!(gateway.inner_packets().is_empty());
    let packets = gateway.outer_packets();
    let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
    let inner = inner_of(&sa, packet);
    let header = ip_format::parse(&inner).unwrap();
    assert_eq!((header.source, header.destination), (ip(INNER_V4), ip(FAR_V4)));
    assert_eq!(header.upper(&inner)[0], 11);
}

// RFC 9329, 3: segments of inner connections fit into the tunnel, path MTU discovery or not.
#[test]
fn the_segment_size_of_inner_connections_is_clamped() {
    let (mut gateway, sa) = tunnel();
    for (asked, passed) in [(1460, 1398), (1398, 1398), (500, 500)] {
        gateway.inner_packet(&syn(HOST_V4, FAR_V4, asked));
        gateway.turn();
        let packets = gateway.outer_packets();
        let inner = inner_of(&sa, &packets[0]);
        let header = ip_format::parse(&inner).unwrap();
        let segment = header.upper(&inner);
        assert_eq!(u16::from_be_bytes([segment[22], segment[23]]), passed);
        assert!(checksum::verify(header.pseudo(), segment), "the checksum was mended");
    }
}

/// A policy that takes packets to the host back to where they came from: a hub and one spoke.
fn back_into_the_tunnel(gateway: &mut Gateway, sa: &Sa) {
    let policy = Policy {
        remote: Prefix::new(ip(HOST_V4), 32).unwrap(),
        remote_ports: (0, u16::MAX),
        local: Selector::ANY_V4,
        sa: sa.slot,
        owner: 0,
        priority: 0,
    };
    gateway.control.install_policy(&policy).unwrap();
    gateway.turn();
}

#[test]
fn a_packet_from_one_tunnel_goes_into_another() {
    let (mut gateway, mut sa) = tunnel();
    let inner = ping(FAR_V4, HOST_V4, b"to the hub");
    back_into_the_tunnel(&mut gateway, &sa);
    let packet = sa.seal(&inner);
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.turn();
    assert!(gateway.inner_packets().is_empty(), "it does not leave in plain text");
    let packets = gateway.outer_packets();
    assert_eq!(inner_of(&sa, &packets[0]), with_hop_limit(inner, 63), "one hop, not two");
}

// A hub: what one tunnel brings in one batch may be more packets than a burst has frames.
#[test]
fn a_batch_of_small_packets_goes_from_one_tunnel_into_another() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    back_into_the_tunnel(&mut gateway, &sa);
    let stream: Vec<u8> = (0..100)
        .flat_map(|number| esp_frame(&sa.seal(&ping(FAR_V4, HOST_V4, &[number; 40]))))
        .collect();
    peer.send(&mut gateway, id, &stream);
    assert_eq!(gateway.count(Counter::BatchFull), 0);
    let back = frames(&peer.read(id));
    let numbers = back.iter().map(|frame| sa.open(frame).unwrap().1[28]);
    assert_eq!(numbers.collect::<Vec<u8>>(), (0..100).collect::<Vec<u8>>());
}

#[test]
fn both_sides_may_be_on_one_port() {
    let mut gateway = Gateway::one_armed();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    let inbound = ping(FAR_V4, HOST_V4, b"in");
    let packet = sa.seal(&inbound);
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"out"));
    gateway.inner_packet(&ping(HOST_V4, INNER_V4, b"echo"));
    gateway.turn();
    assert_eq!(inner_of(&sa, &gateway.outer_packets()[0])[28..], *b"out");
    let received = gateway.inner_packets();
    assert_eq!(received.len(), 2);
    assert_eq!(received[0], with_hop_limit(inbound, 63));
    assert_eq!(received[1][28..], *b"echo");
}

#[test]
fn what_no_policy_takes_does_not_leave() {
    let (mut gateway, sa) = tunnel();
    gateway.inner_packet(&ping(HOST_V4, "8.8.8.8", b"to the Internet"));
    gateway.inner_packet(&ping("10.9.0.1", FAR_V4, b"from a network that has no tunnel"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::PolicyNone), 2);
    gateway.control.retire_policy(sa.policy);
    gateway.control.collect(false);
    gateway.turn();
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"its policy is gone"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::PolicyNone), 3);
    assert!(gateway.outer_packets().is_empty());
}

#[test]
fn the_first_packet_waits_for_its_neighbour() {
    let (mut gateway, mut sa) = tunnel();
    let inner = ping(FAR_V4, "10.1.0.77", b"unknown yet");
    let packet = sa.seal(&inner);
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.turn();
    let frames = gateway.inner_frames();
    let [request] = &frames[..] else { panic!("{} frames", frames.len()) };
    assert_eq!(request[12..14], [0x08, 0x06], "an ARP request");

    let v4 = |text: &str| text.parse().unwrap();
    let station = culvert_dataplane::net::ether::MacAddr([2, 0, 0, 0, 0, 0x77]);
    let reply = arp::Message {
        operation: arp::Operation::Reply,
        sender_mac: station,
        sender_ip: v4("10.1.0.77"),
        target_mac: crate::fixture::INNER_MAC,
        target_ip: v4(INNER_V4),
    };
    let mut frame = [0; 64];
    let len = reply.write_frame(crate::fixture::INNER_MAC, &mut frame).unwrap();
    gateway.arrive(0, false, &frame[..len]);
    gateway.turn();
    let frames = gateway.inner_frames();
    let [frame] = &frames[..] else { panic!("{} frames", frames.len()) };
    assert_eq!(frame[..6], station.0);
    assert_eq!(frame[14..], with_hop_limit(inner, 63)[..]);
}

#[test]
fn a_neighbour_that_does_not_answer_is_given_up() {
    let (mut gateway, mut sa) = tunnel();
    let packet = sa.seal(&ping(FAR_V4, "10.1.0.77", b"nobody there"));
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.pass(2_900, 100);
    assert_eq!(gateway.count(Counter::NeighbourRequested), 3);
    assert_eq!(gateway.count(Counter::NeighbourFailed), 0);
    gateway.pass(2_100, 100);
    assert_eq!(gateway.count(Counter::NeighbourFailed), 1);
}

// RFC 4861, 7.2.2; RFC 1812, 5.2.7.1: the sender of each packet that waited hears of it.
#[test]
fn that_a_neighbour_does_not_answer_is_reported() {
    let (mut gateway, mut sa) = tunnel();
    for (far, own, nobody, kind) in
        [(FAR_V4, INNER_V4, "10.1.0.77", [3, 1]), (FAR_V6, INNER_V6, "fd00:1::77", [1, 3])]
    {
        let packet = sa.seal(&ping(far, nobody, b"nobody there"));
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
        gateway.pass(5_000, 100);
        let packets = gateway.outer_packets();
        let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
        let inner = inner_of(&sa, packet);
        let header = ip_format::parse(&inner).unwrap();
        assert_eq!((header.source, header.destination), (ip(own), ip(far)));
        assert_eq!(header.upper(&inner)[..2], kind);
    }
    // Of the gateway's own packets nobody has to hear.
    let nobody = path_between(Transport::Udp, ip(OUTER_V4), ip("192.0.2.77"));
    gateway.control.send(0, &Down::PathSet { peer: sa.peer, path: nobody }).unwrap();
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"to a peer that is gone"));
    gateway.pass(5_000, 100);
    assert_eq!(gateway.count(Counter::NeighbourFailed), 3);
    assert_eq!(gateway.count(Counter::IcmpErrorSent), 2);
}

#[test]
fn traffic_that_meets_a_trap_is_dropped_and_control_hears_of_it_once() {
    let (mut gateway, sa) = tunnel();
    let trap = Policy {
        remote: Prefix::new(ip("10.7.0.0"), 16).unwrap(),
        remote_ports: (0, u16::MAX),
        local: Selector::ANY_V4,
        sa: Policy::TRAP,
        owner: 0,
        priority: 0,
    };
    let slot = gateway.control.install_policy(&trap).unwrap();
    gateway.turn();
    assert_eq!(gateway.told(), []);
    for payload in [b"first ", b"second"] {
        gateway.inner_packet(&ping(HOST_V4, "10.7.0.1", payload));
    }
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"another"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::PolicyTrapped), 2);
    assert_eq!(inner_of(&sa, &gateway.outer_packets()[0])[28..], *b"another", "others pass");
    assert_eq!(gateway.told(), [Told::Acquire(slot.index)], "one for both");
}
