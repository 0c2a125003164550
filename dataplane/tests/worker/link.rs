//! The link: ARP, neighbour discovery, echo, and what is refused there.

use culvert_dataplane::net::ether::MacAddr;
use culvert_dataplane::net::{arp, icmp, ip as ip_format, nd};
use culvert_shm::Counter;

use crate::fixture::{
    Gateway, HOST_MAC, HOST_V4, HOST_V6, INNER_MAC, INNER_V4, INNER_V6, OUTER_MAC, OUTER_V4,
    OUTER_V6, PEER_MAC, PEER_V4, PEER_V6, framed,
};
use crate::packets::{first_fragment, ip, ping, syn, udp};

// RFC 826; RFC 1122, 2.3.2.
#[test]
fn arp_requests_for_own_addresses_are_answered_on_their_port() {
    let mut gateway = Gateway::new();
    let v4 = |text: &str| text.parse().unwrap();
    let mut frame = [0; 64];
    let request = arp::Message::request(PEER_MAC, v4(PEER_V4), v4(OUTER_V4));
    let len = request.write_frame(MacAddr::BROADCAST, &mut frame).unwrap();
    gateway.arrive(0, true, &frame[..len]);
    // The inner address is not on the outer link.
    let request = arp::Message::request(PEER_MAC, v4(PEER_V4), v4(INNER_V4));
    let len = request.write_frame(MacAddr::BROADCAST, &mut frame).unwrap();
    gateway.arrive(0, true, &frame[..len]);
    gateway.turn();

    let mut answer = [0; 64];
    let reply = arp::Message {
        operation: arp::Operation::Reply,
        sender_mac: OUTER_MAC,
        sender_ip: v4(OUTER_V4),
        target_mac: PEER_MAC,
        target_ip: v4(PEER_V4),
    };
    let len = reply.write_frame(PEER_MAC, &mut answer).unwrap();
    assert_eq!(gateway.outer_frames(), [answer[..len].to_vec()]);
    assert_eq!(gateway.count(Counter::ArpIgnored), 1);
}

// RFC 4861, 7.2.4.
#[test]
fn neighbour_solicitations_are_answered() {
    let mut gateway = Gateway::new();
    let v6 = |text: &str| text.parse().unwrap();
    let mut frame = [0; 128];
    let len = nd::write_solicitation(HOST_MAC, v6(HOST_V6), v6(INNER_V6), None, &mut frame);
    gateway.arrive(0, false, &frame[..len.unwrap()]);
    gateway.turn();
    let packets = gateway.inner_packets();
    let [packet] = &packets[..] else { panic!("{} answers", packets.len()) };
    let header = ip_format::parse(packet).unwrap();
    let message = nd::parse(&header, packet).unwrap();
    assert_eq!(
        message,
        nd::Message::Advertisement {
            target: v6(INNER_V6),
            target_mac: Some(INNER_MAC),
            solicited: true,
            overrides: true,
        }
    );
}

// RFC 1122, 3.2.2.6; RFC 4443, 4.2.
#[test]
fn echo_requests_to_own_addresses_are_answered_on_both_sides() {
    let mut gateway = Gateway::new();
    for (source, own, outer) in [
        (PEER_V4, OUTER_V4, true),
        (PEER_V6, OUTER_V6, true),
        (HOST_V4, INNER_V4, false),
        (HOST_V6, INNER_V6, false),
    ] {
        let request = ping(source, own, b"culvert");
        if outer {
            gateway.outer_packet(&request);
        } else {
            gateway.inner_packet(&request);
        }
        gateway.turn();
        let packets = if outer { gateway.outer_packets() } else { gateway.inner_packets() };
        let [reply] = &packets[..] else { panic!("{} answers to {source}", packets.len()) };
        let header = ip_format::parse(reply).unwrap();
        assert_eq!((header.source, header.destination), (ip(own), ip(source)));
        let kind = if header.is_v4() { 0 } else { 129 };
        assert_eq!(header.upper(reply)[..2], [kind, 0]);
        assert_eq!(header.upper(reply)[icmp::HEADER_LEN..], *b"culvert");
    }
    assert_eq!(gateway.count(Counter::IcmpEchoAnswered), 4);
}

// RFC 1122, 3.2.1.3; RFC 1812, 5.3.7: no station sends from these, and none is to get the answer.
#[test]
fn nobody_speaks_from_our_own_or_a_broadcast_address() {
    let mut gateway = Gateway::new();
    let sources = [
        (OUTER_V4, OUTER_V4),
        ("192.0.2.255", OUTER_V4),
        ("192.0.2.0", OUTER_V4),
        (OUTER_V6, OUTER_V6),
    ];
    for (source, own) in sources {
        gateway.outer_packet(&ping(source, own, b"culvert"));
        gateway.outer_packet(&udp((source, 500), (own, 500), &[0x55; 64]));
        gateway.outer_packet(&syn(source, own, 1400));
    }
    gateway.turn();
    assert_eq!(gateway.count(Counter::IpMartianSource), 12);
    assert!(gateway.told().is_empty());
    assert!(gateway.outer_frames().is_empty(), "not even a question for a neighbour");
}

#[test]
fn outer_fragments_are_refused_under_a_name() {
    let mut gateway = Gateway::new();
    let datagram = udp((PEER_V4, 500), (OUTER_V4, 500), &[0; 64]);
    gateway.outer_packet(&first_fragment(datagram));
    gateway.turn();
    assert_eq!(gateway.count(Counter::OuterFragment), 1);
    assert!(gateway.told().is_empty());
    assert!(gateway.outer_frames().is_empty());
}

#[test]
fn the_outer_side_forwards_nothing() {
    let mut gateway = Gateway::new();
    gateway.outer_packet(&ping(PEER_V4, HOST_V4, b"in plain text"));
    gateway.outer_packet(&ping(PEER_V4, INNER_V4, b"an inner address from outside"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::IpNotOurs), 2);
    assert!(gateway.inner_frames().is_empty());
    assert!(gateway.outer_frames().is_empty());
}

#[test]
fn frames_for_others_and_damaged_ones_are_named() {
    let mut gateway = Gateway::new();
    let packet = ping(PEER_V4, OUTER_V4, b"x");
    gateway.arrive(0, true, &framed(PEER_MAC, HOST_MAC, &packet));
    gateway.arrive(0, true, &framed(PEER_MAC, OUTER_MAC, &packet)[..13]);
    let mut damaged = packet;
    damaged[10] ^= 1;
    gateway.outer_packet(&damaged);
    gateway.turn();
    assert_eq!(gateway.count(Counter::EthernetNotOurs), 1);
    assert_eq!(gateway.count(Counter::EthernetShort), 1);
    assert_eq!(gateway.count(Counter::Ipv4BadChecksum), 1);
    assert!(gateway.outer_frames().is_empty());
}
