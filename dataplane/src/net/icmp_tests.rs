//! Tests of echo and of ICMP errors.

use super::super::udp;
use super::*;
use proptest::prelude::*;

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Addresses of a host and of the gateway.
fn pair(v4: bool) -> (IpAddr, IpAddr) {
    if v4 { (addr("10.1.0.7"), addr("10.1.0.1")) } else { (addr("fd00:1::7"), addr("fd00:1::1")) }
}

fn own() -> OwnAddresses {
    OwnAddresses::new(&[(addr("10.1.0.1"), 24), (addr("fd00:1::1"), 64)]).unwrap()
}

fn packet(source: IpAddr, destination: IpAddr, protocol: u8, upper: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; ip_header_len(source.is_ipv4())];
    packet.extend(upper);
    Outer {
        source,
        destination,
        traffic_class: 0x2b,
        hop_limit: 64,
        dont_fragment: false,
        identification: 0x1234,
        flow_label: 0,
    }
    .write_ip(&mut packet, protocol)
    .unwrap();
    packet
}

fn echo(v4: bool, payload: &[u8]) -> Vec<u8> {
    let (host, gateway) = pair(v4);
    let (kind, number) = if v4 { (8, protocol::ICMP) } else { (128, protocol::ICMPV6) };
    let mut message = vec![kind, 0, 0, 0, 0xab, 0xcd, 0, 1];
    message.extend(payload);
    let pseudo =
        if v4 { Sum::new() } else { checksum::pseudo(host, gateway, number, message.len()) };
    checksum::fill(pseudo, &mut message, 2, false);
    packet(host, gateway, number, &message)
}

fn verified(packet: &[u8]) -> (ip::Header, &[u8]) {
    let header = ip::parse(packet).unwrap();
    let pseudo = if header.is_v4() { Sum::new() } else { header.pseudo() };
    assert!(checksum::verify(pseudo, header.upper(packet)), "ICMP checksum");
    (header, header.upper(packet))
}

#[test]
fn echo_is_answered_with_its_data() {
    for v4 in [true, false] {
        let mut octets = echo(v4, b"abcdefg");
        octets.extend([0; 3]); // Ethernet padding
        let header = ip::parse(&octets).unwrap();
        let len = echo_reply(&mut octets, &header).unwrap();
        let (reply, upper) = verified(&octets[..len]);
        assert_eq!((reply.source, reply.destination), (header.destination, header.source));
        assert_eq!(reply.hop_limit, 64);
        assert_eq!(reply.traffic_class, 0x28, "DSCP kept, ECN not");
        assert_eq!(upper[0], if v4 { 0 } else { 129 });
        assert_eq!(upper[4..], *b"\xab\xcd\0\x01abcdefg");
    }
}

#[test]
fn echo_with_options_is_answered_without() {
    let mut octets = echo(true, b"abcd");
    octets.splice(20..20, [148, 4, 0, 0]);
    octets[0] = 0x46;
    octets[3] += 4;
    checksum::fill(Sum::new(), &mut octets[..24], 10, false);
    let header = ip::parse(&octets).unwrap();
    let len = echo_reply(&mut octets, &header).unwrap();
    let (reply, upper) = verified(&octets[..len]);
    assert_eq!((reply.header_len, &upper[8..]), (20, &b"abcd"[..]));
}

#[test]
fn other_messages_are_left_alone() {
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut octets = echo(true, b"abcd");
        change(&mut octets);
        checksum::fill(Sum::new(), &mut octets[..20], 10, false);
        octets
    };
    for (octets, reason) in [
        (changed(|p| p[22] ^= 1), DropReason::IcmpBadChecksum),
        (changed(|p| p[6] |= 0x20), DropReason::IpBadFragment),
        (changed(|p| p[7] = 1), DropReason::IpFragmentForUs),
        (changed(|p| p[3] = 27), DropReason::IcmpTruncated),
        (changed(|p| p[9] = 58), DropReason::IcmpNotServed),
        // Timestamp request: type 13; the checksum moves by as much.
        (changed(|p| (p[20], p[22]) = (13, p[22].wrapping_sub(5))), DropReason::IcmpNotServed),
    ] {
        let mut copy = octets.clone();
        let result = ip::parse(&octets).and_then(|header| echo_reply(&mut copy, &header));
        assert_eq!(result, Err(reason));
        assert_eq!(copy, octets);
    }
}

#[test]
fn error_quotes_what_its_limit_allows() {
    for v4 in [true, false] {
        let (host, gateway) = pair(v4);
        let far = addr(if v4 { "10.9.0.1" } else { "fd00:9::1" });
        for len in [8, 3000] {
            let offending = packet(host, far, protocol::UDP, &vec![0x5a; len]);
            let header = ip::parse(&offending).unwrap();
            let mut out = [0; ERROR_MAX_V6];
            let problem = Problem::TooBig { mtu: 1390 };
            let source = error_source(&header, &own()).unwrap();
            assert_eq!(source, gateway);
            let built = write_error(problem, source, &header, &offending, &mut out).unwrap();
            let (error, upper) = verified(&out[..built]);
            assert_eq!((error.source, error.destination), (gateway, host));
            assert_eq!(upper[..2], if v4 { [3, 4] } else { [2, 0] });
            assert_eq!(upper[4..8], [0, 0, 0x05, 0x6e]);
            assert!(offending.starts_with(&upper[8..]));
            let limit = if v4 { ERROR_MAX_V4 } else { ERROR_MAX_V6 };
            assert_eq!(built, limit.min(error.header_len + 8 + offending.len()));
        }
    }
}

#[test]
fn types_and_codes_of_rfc_792_and_4443() {
    for (problem, v4, v6) in [
        (Problem::HopLimit, [11, 0], [3, 0]),
        (Problem::NoRoute, [3, 0], [1, 0]),
        (Problem::HostUnreachable, [3, 1], [1, 3]),
        (Problem::Prohibited, [3, 13], [1, 1]),
    ] {
        for (is_v4, expected) in [(true, v4), (false, v6)] {
            let (host, gateway) = pair(is_v4);
            let offending = packet(host, gateway, 17, &[0; 8]);
            let header = ip::parse(&offending).unwrap();
            let mut out = [0; 200];
            let len = write_error(problem, gateway, &header, &offending, &mut out).unwrap();
            assert_eq!(verified(&out[..len]).1[..2], expected);
            let short = write_error(problem, gateway, &header, &offending, &mut out[..len - 1]);
            assert_eq!(short, Err(DropReason::NoRoom));
        }
    }
}

#[test]
fn source_is_the_address_that_was_spoken_to() {
    let two = OwnAddresses::new(&[(addr("10.1.0.1"), 24), (addr("192.0.2.1"), 24)]).unwrap();
    let offending = packet(addr("10.1.0.7"), addr("192.0.2.1"), 17, &[0; 8]);
    let header = ip::parse(&offending).unwrap();
    assert_eq!(error_source(&header, &two), Some(addr("192.0.2.1")));
    let only_v6 = OwnAddresses::new(&[(addr("fd00:1::1"), 64)]).unwrap();
    assert_eq!(error_source(&header, &only_v6), None);
}

/// RFC 1122, 3.2.2 and RFC 4443, 2.4(e), case by case.
#[test]
fn when_to_keep_silent() {
    let answered =
        |octets: &[u8], cast| may_answer(&ip::parse(octets).unwrap(), octets, cast, &own());
    for v4 in [true, false] {
        let (host, gateway) = pair(v4);
        let far = addr(if v4 { "10.9.0.1" } else { "fd00:9::1" });
        let number = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
        let fine = packet(host, far, 17, &[0; 8]);
        assert!(answered(&fine, Cast::Unicast));
        assert!(!answered(&fine, Cast::Multicast) && !answered(&fine, Cast::Broadcast));
        let echo = if v4 { 8 } else { 128 };
        assert!(answered(&packet(host, far, number, &[echo, 0, 0, 0, 0, 0, 0, 0]), Cast::Unicast));
        let silent: &[u8] = if v4 { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4, 127, 137] };
        for &kind in silent {
            let error = packet(host, far, number, &[kind, 0, 0, 0, 0, 0, 0, 0]);
            assert!(!answered(&error, Cast::Unicast), "type {kind}");
        }
        assert!(!answered(&packet(host, far, number, &[]), Cast::Unicast));
        assert!(!answered(&packet(gateway, far, 17, &[0; 8]), Cast::Unicast));
        let (groups, nobody): (&[&str], &[&str]) = if v4 {
            (
                &["224.0.0.5", "255.255.255.255", "10.1.0.255"],
                &["0.0.0.0", "127.0.0.1", "10.1.0.255"],
            )
        } else {
            (&["ff02::1"], &["::", "::1", "ff02::1"])
        };
        for group in groups {
            assert!(!answered(&packet(host, addr(group), 17, &[0; 8]), Cast::Unicast), "{group}");
        }
        for source in nobody {
            assert!(!answered(&packet(addr(source), far, 17, &[0; 8]), Cast::Unicast), "{source}");
        }
    }
    let mut later = packet(addr("10.1.0.7"), addr("10.9.0.1"), 17, &[0; 8]);
    later[7] = 1;
    checksum::fill(Sum::new(), &mut later[..20], 10, false);
    assert!(!answered(&later, Cast::Unicast));
}

#[test]
fn rate_limit_is_a_burst_and_then_a_rate() {
    let mut limit = RateLimit::new(10, 5);
    let start = 100 * SECOND;
    assert_eq!((0..20).filter(|_| limit.allow(start)).count(), 5);
    assert!(!limit.allow(start + SECOND / 10 - 1));
    assert!(limit.allow(start + SECOND / 10));
    assert!(!limit.allow(start), "time gone back");
    // A long quiet time gives the burst again and no more.
    assert_eq!((0..20).filter(|_| limit.allow(start + 1000 * SECOND)).count(), 5);
    let steady = (0..1000).filter(|ms| limit.allow(start + 2000 * SECOND + ms * SECOND / 1000));
    assert_eq!(steady.count(), 5 + 9);
}

proptest! {
    #[test]
    fn echo_of_any_content(payload in proptest::collection::vec(any::<u8>(), 0..300), v4 in any::<bool>()) {
        let mut octets = echo(v4, &payload);
        let header = ip::parse(&octets).unwrap();
        let len = echo_reply(&mut octets, &header).unwrap();
        prop_assert_eq!(&verified(&octets[..len]).1[8..], &payload[..]);
    }

    #[test]
    fn any_message_is_answered_or_named(
        message in proptest::collection::vec(any::<u8>(), 0..80), v4 in any::<bool>(),
    ) {
        let (host, gateway) = pair(v4);
        let number = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
        let mut octets = packet(host, gateway, number, &message);
        let header = ip::parse(&octets).unwrap();
        let _ = may_answer(&header, &octets, Cast::Unicast, &own());
        let _ = echo_reply(&mut octets, &header);
    }

    #[test]
    fn error_about_anything_is_well_formed(
        upper in proptest::collection::vec(any::<u8>(), udp::HEADER_LEN..1500),
        v4 in any::<bool>(), mtu in any::<u16>(),
    ) {
        let (host, gateway) = pair(v4);
        let offending = packet(host, gateway, 17, &upper);
        let header = ip::parse(&offending).unwrap();
        let mut out = [0; ERROR_MAX_V6];
        let problem = Problem::TooBig { mtu };
        let len = write_error(problem, gateway, &header, &offending, &mut out).unwrap();
        let (error, _) = verified(&out[..len]);
        prop_assert!(!may_answer(&error, &out[..len], Cast::Unicast, &own()));
    }
}
