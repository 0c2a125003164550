//! Tests of neighbour discovery.

use super::*;
use proptest::prelude::*;

const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn addr(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn own_ip() -> Ipv6Addr {
    addr("2001:db8::1")
}

fn peer_ip() -> Ipv6Addr {
    addr("2001:db8::2")
}

fn own() -> OwnAddresses {
    OwnAddresses::new(&[(own_ip().into(), 64)]).unwrap()
}

/// A packet with the given ICMPv6 message, its checksum right.
fn packet(source: Ipv6Addr, destination: Ipv6Addr, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, protocol::ICMPV6, hop_limit];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(message);
    let len = message.len() as u32;
    let pseudo = checksum::pseudo_v6(source, destination, protocol::ICMPV6, len);
    checksum::fill(pseudo, &mut packet[V6_HEADER_LEN..], 2, false);
    packet
}

fn message(kind: u8, flags: u8, target: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend(options);
    message
}

fn parsed(packet: &[u8]) -> Result<Message, DropReason> {
    parse(&ip::parse(packet).unwrap(), packet)
}

fn packet_of(frame: &[u8]) -> &[u8] {
    &frame[ether::HEADER_LEN..]
}

#[test]
fn solicitation_is_answered_and_the_answer_learnt() {
    let mut frame = [0; FRAME_LEN];
    write_solicitation(PEER, peer_ip(), own_ip(), None, &mut frame).unwrap();
    let (header, cast) = ether::parse(&frame, OWN).unwrap();
    assert_eq!(header.destination.to_string(), "33:33:ff:00:00:01");
    assert_eq!(cast, ether::Cast::Multicast);
    let solicitation = parsed(packet_of(&frame)).unwrap();
    let source_mac = Some(PEER);
    let expected = Message::Solicitation { source: peer_ip(), target: own_ip(), source_mac };
    assert_eq!(solicitation, expected);

    let received = receive(&solicitation, header.source, &own()).unwrap();
    let learnt = Learnt {
        address: peer_ip().into(),
        mac: Some(PEER),
        solicited: false,
        overrides: true,
        create: true,
    };
    assert_eq!(received.learn, Some(learnt));
    received.answer.unwrap().write_frame(OWN, &mut frame).unwrap();

    // The asker's view of the answer.
    let (header, _) = ether::parse(&frame, PEER).unwrap();
    assert_eq!(header.source, OWN);
    let advertisement = parsed(packet_of(&frame)).unwrap();
    let peers = OwnAddresses::new(&[(peer_ip().into(), 64)]).unwrap();
    let learnt = receive(&advertisement, OWN, &peers).unwrap().learn.unwrap();
    assert_eq!((learnt.address, learnt.mac), (own_ip().into(), Some(OWN)));
    assert!(learnt.solicited && learnt.overrides);
}

/// RFC 4861, 7.2.4: an asker without address is answered to all nodes, unsolicited.
#[test]
fn duplicate_address_detection_is_answered_to_all_nodes() {
    let none = Ipv6Addr::UNSPECIFIED;
    let octets = packet(none, solicited_node(own_ip()), 255, &message(135, 0, own_ip(), &[]));
    let received = receive(&parsed(&octets).unwrap(), PEER, &own()).unwrap();
    assert_eq!(received.learn, None);
    let mut frame = [0; FRAME_LEN];
    received.answer.unwrap().write_frame(OWN, &mut frame).unwrap();
    assert_eq!(frame[..6], [0x33, 0x33, 0, 0, 0, 1]);
    let Message::Advertisement { solicited, .. } = parsed(packet_of(&frame)).unwrap() else {
        panic!("not an advertisement");
    };
    assert!(!solicited);
}

#[test]
fn probe_goes_to_the_known_station() {
    let mut frame = [0; FRAME_LEN];
    write_solicitation(OWN, own_ip(), peer_ip(), Some(PEER), &mut frame).unwrap();
    let (header, cast) = ether::parse(&frame, PEER).unwrap();
    assert_eq!((header.destination, cast), (PEER, ether::Cast::Unicast));
    assert_eq!(ip::parse(packet_of(&frame)).unwrap().destination, IpAddr::from(peer_ip()));
}

/// RFC 4861, 7.1.1 and 7.1.2, line by line.
#[test]
fn validation_of_rfc_4861() {
    let mac = [1, 1, 2, 0, 0, 0, 0, 2];
    let target_mac = [2, 1, 2, 0, 0, 0, 0, 2];
    let ns = |options: &[u8]| message(135, 0, own_ip(), options);
    let na = |flags| message(136, flags, peer_ip(), &target_mac);
    let (none, group, all) = (Ipv6Addr::UNSPECIFIED, solicited_node(own_ip()), addr("ff02::1"));
    let with_code = {
        let mut message = ns(&mac);
        message[1] = 1;
        message
    };
    for (octets, reason) in [
        (packet(peer_ip(), own_ip(), 254, &ns(&mac)), DropReason::NdHopLimit),
        (packet(peer_ip(), own_ip(), 255, &with_code), DropReason::NdMalformed),
        (packet(peer_ip(), own_ip(), 255, &ns(&[])[..23]), DropReason::NdMalformed),
        (packet(peer_ip(), own_ip(), 255, &message(135, 0, all, &[])), DropReason::NdBadAddress),
        (packet(peer_ip(), own_ip(), 255, &ns(&[1, 0, 0, 0, 0, 0, 0, 0])), DropReason::NdMalformed),
        (packet(peer_ip(), own_ip(), 255, &ns(&[1, 2, 2, 0, 0, 0, 0, 2])), DropReason::NdMalformed),
        (packet(peer_ip(), own_ip(), 255, &ns(&[5])), DropReason::NdMalformed),
        (packet(peer_ip(), own_ip(), 255, &ns(&[1, 1, 1, 0, 0, 0, 0, 2])), DropReason::NdMalformed),
        (packet(none, own_ip(), 255, &ns(&[])), DropReason::NdBadAddress),
        (packet(none, group, 255, &ns(&mac)), DropReason::NdBadAddress),
        (packet(peer_ip(), all, 255, &ns(&mac)), DropReason::NdBadAddress),
        (packet(peer_ip(), all, 255, &na(FLAG_SOLICITED)), DropReason::NdBadAddress),
        (packet(none, own_ip(), 255, &na(0)), DropReason::NdBadAddress),
        (
            packet(peer_ip(), own_ip(), 255, &message(134, 0, own_ip(), &[])),
            DropReason::NdNotServed,
        ),
        (
            packet(peer_ip(), own_ip(), 255, &message(137, 0, own_ip(), &[])),
            DropReason::NdNotServed,
        ),
    ] {
        assert_eq!(parsed(&octets), Err(reason), "{octets:02x?}");
    }
    let mut broken = packet(peer_ip(), own_ip(), 255, &ns(&mac));
    broken[50] ^= 4;
    assert_eq!(parsed(&broken), Err(DropReason::IcmpBadChecksum));
    // An unknown option is stepped over (RFC 4861, 4.6).
    let nonce = [&[14, 1, 0, 0, 0, 0, 0, 0][..], &mac].concat();
    assert!(parsed(&packet(peer_ip(), own_ip(), 255, &ns(&nonce))).is_ok());
    assert!(parsed(&packet(peer_ip(), all, 255, &na(FLAG_OVERRIDE))).is_ok());
}

#[test]
fn options_are_walked_to_a_limit() {
    let nonce = [14, 1, 0, 0, 0, 0, 0, 0];
    let many =
        |count| packet(peer_ip(), own_ip(), 255, &message(135, 0, own_ip(), &nonce.repeat(count)));
    assert!(parsed(&many(OPTIONS_MAX)).is_ok());
    assert_eq!(parsed(&many(OPTIONS_MAX + 1)), Err(DropReason::NdMalformed));
}

#[test]
fn own_addresses_are_never_taken_over() {
    let target_mac = Some(PEER);
    let claim =
        Message::Advertisement { target: own_ip(), target_mac, solicited: false, overrides: true };
    assert_eq!(receive(&claim, PEER, &own()), Err(DropReason::NdOwnAddress));
    let source_mac = Some(PEER);
    let spoof = Message::Solicitation { source: own_ip(), target: own_ip(), source_mac };
    assert_eq!(receive(&spoof, PEER, &own()), Err(DropReason::NdOwnAddress));
    let other = Message::Solicitation { source: peer_ip(), target: peer_ip(), source_mac };
    assert_eq!(receive(&other, PEER, &own()), Err(DropReason::NdNotOurs));
}

proptest! {
    #[test]
    fn any_message_parses_or_is_named(
        kind in 133u8..138,
        flags in any::<u8>(),
        options in proptest::collection::vec(any::<u8>(), 0..64),
        keep in 0usize..88,
    ) {
        let mut octets = message(kind, flags, own_ip(), &options);
        octets.truncate(keep);
        let octets = packet(peer_ip(), own_ip(), 255, &octets);
        if let Ok(message) = parsed(&octets) {
            let _ = receive(&message, PEER, &own());
        }
    }
}
