//! Tests of the IP header checks.

use super::*;
use proptest::prelude::*;

const UDP4: [u8; 28] = [
    0x45, 0x02, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100,
    7, // IPv4
    0x01, 0xf4, 0x11, 0x94, 0, 8, 0, 0, // UDP 500 to 4500
];

/// IPv4 with a right checksum after a change.
fn v4(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = UDP4.to_vec();
    change(&mut packet);
    let len = usize::from(packet[0] & 15) * 4;
    let len = len.clamp(20, packet.len());
    checksum::fill(checksum::Sum::new(), &mut packet[..len], 10, false);
    packet
}

/// IPv6 from 2001:db8::1 to 2001:db8::2 with a chain of headers already in `payload`.
fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x61, 0x20, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend("2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend("2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

#[test]
fn v4_header_is_read_and_padding_cut() {
    let mut packet = v4(|_| ());
    packet.extend([0; 18]);
    let header = parse(&packet).unwrap();
    assert_eq!(header.total_len, 28);
    assert_eq!(header.upper(&packet), &UDP4[20..]);
    assert_eq!((header.protocol, header.hop_limit, header.traffic_class), (17, 64, 2));
    assert!(header.dont_fragment);
    let flow = header.flow(&packet).unwrap();
    assert_eq!(flow.ports, Some(Ports { source: 500, destination: 4500 }));
    assert_eq!(flow.destination, IpAddr::from([198, 51, 100, 7]));
}

#[test]
fn v4_faults_are_named() {
    let wrong_sum = {
        let mut packet = v4(|_| ());
        packet[10] ^= 1;
        packet
    };
    let with_options = |options: [u8; 4]| {
        v4(|p| {
            p[0] = 0x46;
            p[3] = 32;
            p.splice(20..20, options);
        })
    };
    for (packet, reason) in [
        (vec![], DropReason::IpTruncated),
        (vec![0x55; 40], DropReason::IpBadVersion),
        (UDP4[..19].to_vec(), DropReason::IpTruncated),
        (v4(|p| p[0] = 0x44), DropReason::IpBadLength),
        (v4(|p| p[3] = 19), DropReason::IpBadLength),
        (v4(|p| p[3] = 29), DropReason::IpTruncated),
        (wrong_sum, DropReason::IpBadChecksum),
        (with_options([131, 3, 4, 0]), DropReason::IpSourceRoute),
        (with_options([137, 3, 4, 0]), DropReason::IpSourceRoute),
        (with_options([7, 1, 0, 0]), DropReason::IpBadOptions),
        (with_options([7, 5, 0, 0]), DropReason::IpBadOptions),
        (with_options([1, 1, 1, 7]), DropReason::IpBadOptions),
        // More fragments behind 8 octets at offset 65,528: ends beyond 65,535.
        (v4(|p| [p[6], p[7]] = [0x3f, 0xff]), DropReason::IpBadFragment),
    ] {
        assert_eq!(parse(&packet), Err(reason), "{packet:02x?}");
    }
    assert_eq!(parse(&with_options([148, 4, 0, 0])).unwrap().header_len, 24);
}

#[test]
fn v4_fragments_are_told_apart_and_only_the_first_has_ports() {
    for (field, fragment, has_ports) in [
        (0x0000, Fragment::Whole, true),
        (0x2000, Fragment::First, true),
        (0x2001, Fragment::Later, false),
        (0x0001, Fragment::Later, false),
    ] {
        let packet = v4(|p| p[6..8].copy_from_slice(&u16::to_be_bytes(field)));
        let header = parse(&packet).unwrap();
        assert_eq!(header.fragment, fragment);
        assert_eq!(header.flow(&packet).unwrap().ports.is_some(), has_ports);
    }
}

/// RFC 1858, 3: a first fragment without the whole of what filters look at.
#[test]
fn packet_without_its_ports_has_no_flow() {
    let packet = v4(|p| {
        p.truncate(23);
        p[3] = 23;
    });
    let header = parse(&packet).unwrap();
    assert_eq!(header.flow(&packet), Err(DropReason::TransportTruncated));
}

#[test]
fn v6_chain_leads_to_the_upper_layer() {
    let mut payload = vec![60, 0, 1, 4, 0, 0, 0, 0]; // hop-by-hop: PadN
    payload.extend([44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]); // destination options
    payload.extend([17, 0, 0, 1, 0, 0, 0, 9]); // first fragment
    payload.extend([0x01, 0xf4, 0x11, 0x94, 0, 8, 0, 0]);
    let packet = v6(0, &payload);
    let header = parse(&packet).unwrap();
    assert_eq!((header.header_len, header.protocol), (40 + 8 + 16 + 8, 17));
    assert_eq!(header.fragment, Fragment::First);
    assert_eq!(header.traffic_class, 0x12);
    let ports = header.flow(&packet).unwrap().ports;
    assert_eq!(ports, Some(Ports { source: 500, destination: 4500 }));
}

#[test]
fn v6_later_fragment_is_followed_no_further() {
    // Its octets would be another fragment header if they were read.
    let packet = v6(44, &[44, 0, 0, 8, 0, 0, 0, 9, 44, 0, 0, 1, 0, 0, 0, 9]);
    let header = parse(&packet).unwrap();
    assert_eq!((header.fragment, header.protocol, header.header_len), (Fragment::Later, 44, 48));
    assert_eq!(header.flow(&packet).unwrap().ports, None);
}

/// RFC 6946: offset zero and no more fragments is a whole datagram.
#[test]
fn v6_atomic_fragment_is_whole() {
    let packet = v6(44, &[17, 0, 0, 0, 0, 0, 0, 9, 1, 0xf4, 0x11, 0x94, 0, 8, 0, 0]);
    assert_eq!(parse(&packet).unwrap().fragment, Fragment::Whole);
}

/// RFC 4301, 4.4.1.1: for selectors AH and ESP are what they carry; of a Mobility Header the type counts
/// (RFC 6275, 6.1.1: what follows it is to be ignored). Else a packet could show a selector the TCP
/// header behind one, which its receiver never looks at.
#[test]
fn v6_selectors_see_ah_and_the_mobility_header() {
    let tcp = [0x01, 0xf4, 0x11, 0x94, 0, 8, 0, 0];
    let mobility = [&[6, 0, 5, 0, 0, 0, 0, 0][..], &tcp].concat();
    let packet = v6(135, &mobility);
    let header = parse(&packet).unwrap();
    assert_eq!((header.protocol, header.header_len), (135, 40));
    let binding_update = Some(Ports { source: 5 << 8, destination: 5 << 8 });
    assert_eq!(header.flow(&packet).unwrap().ports, binding_update);
    let packet = v6(135, &mobility[..2]);
    let flow = parse(&packet).unwrap().flow(&packet);
    assert_eq!(flow, Err(DropReason::TransportTruncated));

    let packet = v6(51, &[&[6, 4][..], &[0; 22], &tcp].concat());
    let header = parse(&packet).unwrap();
    assert_eq!((header.protocol, header.header_len), (51, 40));
    assert_eq!(header.flow(&packet).unwrap().ports, None);
}

#[test]
fn v6_faults_are_named() {
    let chain = |count: usize| {
        let mut payload = [60, 0, 1, 4, 0, 0, 0, 0].repeat(count);
        let last = payload.len() - 8;
        payload[last] = 59;
        v6(60, &payload)
    };
    assert!(parse(&chain(EXTENSION_HEADERS_MAX)).is_ok());
    let fragment_in_fragment = [44, 0, 0, 1, 0, 0, 0, 9, 17, 0, 0, 1, 0, 0, 0, 9];
    for (packet, reason) in [
        (v6(17, &[])[..39].to_vec(), DropReason::IpTruncated),
        (v6(17, &[0; 8])[..47].to_vec(), DropReason::IpTruncated),
        (v6(0, &[]), DropReason::IpJumbogram),
        (v6(60, &[17, 1, 1, 4, 0, 0, 0, 0]), DropReason::IpTruncated),
        (v6(60, &[17, 0, 1]), DropReason::IpTruncated),
        (v6(60, &[0, 0, 1, 4, 0, 0, 0, 0]), DropReason::IpBadOptions),
        (v6(43, &[17, 0, 0, 1, 0, 0, 0, 0]), DropReason::IpSourceRoute),
        (v6(44, &[17, 0, 0, 1, 0, 0, 0, 0, 1]), DropReason::IpBadFragment),
        (v6(44, &fragment_in_fragment), DropReason::IpBadFragment),
        (chain(EXTENSION_HEADERS_MAX + 1), DropReason::IpTooManyExtensions),
    ] {
        assert_eq!(parse(&packet), Err(reason), "{packet:02x?}");
    }
}

#[test]
fn hop_limit_goes_down_to_one() {
    let mut packet = v4(|p| p[8] = 2);
    decrement_hop_limit(&mut packet).unwrap();
    assert_eq!(parse(&packet).unwrap().hop_limit, 1);
    let before = packet.clone();
    assert_eq!(decrement_hop_limit(&mut packet), Err(DropReason::IpHopLimit));
    assert_eq!(packet, before);
    let mut packet = v6(59, &[]);
    decrement_hop_limit(&mut packet).unwrap();
    assert_eq!(parse(&packet).unwrap().hop_limit, 63);
}

#[test]
fn martians() {
    for source in [
        "0.1.2.3",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::",
        "::1",
        "ff02::1",
        "::ffff:192.0.2.1",
    ] {
        assert_eq!(check_source(source.parse().unwrap()), Err(DropReason::IpMartianSource));
    }
    for fine in ["192.0.2.1", "10.0.0.1", "2001:db8::1"] {
        assert_eq!(check_source(fine.parse().unwrap()), Ok(()));
        let fine = fine.parse().unwrap();
        assert_eq!(check_forward(fine, fine), Ok(()));
    }
    let fine = "192.0.2.1".parse().unwrap();
    for destination in ["169.254.1.1", "fe80::1", "224.0.0.1", "255.255.255.255"] {
        let result = check_forward(fine, destination.parse().unwrap());
        assert_eq!(result, Err(DropReason::IpMartianDestination));
    }
    for source in ["169.254.1.1", "fe80::1"] {
        let result = check_forward(source.parse().unwrap(), fine);
        assert_eq!(result, Err(DropReason::IpMartianSource));
    }
}

proptest! {
    #[test]
    fn any_octets_parse_or_are_named(
        mut octets in proptest::collection::vec(any::<u8>(), 0..128),
        version in 0u8..16,
        fix in any::<bool>(),
    ) {
        if let Some(first) = octets.first_mut() {
            *first = version << 4 | *first & 15;
        }
        if fix && octets.len() >= 20 && version == 4 {
            let len = (usize::from(octets[0] & 15) * 4).clamp(20, octets.len());
            let total = octets.len() as u16;
            octets[2..4].copy_from_slice(&total.to_be_bytes());
            checksum::fill(checksum::Sum::new(), &mut octets[..len], 10, false);
        }
        if fix && octets.len() >= 40 && version == 6 {
            let payload = octets.len() as u16 - 40;
            octets[4..6].copy_from_slice(&payload.to_be_bytes());
        }
        if let Ok(header) = parse(&octets) {
            prop_assert!(header.header_len <= header.total_len && header.total_len <= octets.len());
            prop_assert_eq!(header.upper(&octets).len(), header.total_len - header.header_len);
            let _ = header.flow(&octets);
        }
    }

    #[test]
    fn mutated_packets_parse_or_are_named(at in 0usize..28, octet in any::<u8>(), keep in 0usize..=28) {
        let packet = v4(|p| p[at] = octet);
        let _ = parse(&packet[..keep]).map(|header| header.flow(&packet[..keep]));
    }

    #[test]
    fn hop_limit_keeps_the_checksum_right(ttl in 2u8.., id in any::<u16>(), protocol in any::<u8>()) {
        let mut packet = v4(|p| {
            p[8] = ttl;
            p[9] = protocol;
            p[4..6].copy_from_slice(&id.to_be_bytes());
        });
        decrement_hop_limit(&mut packet).unwrap();
        prop_assert_eq!(parse(&packet).unwrap().hop_limit, ttl - 1);
    }
}
