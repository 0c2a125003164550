//! Frames from the wire: every parser between Ethernet and what ESP, TCP and IKE are handed.
#![no_main]

use std::net::IpAddr;

use culvert_dataplane::net::{arp, ether, fragment, icmp, ip, mss, nd, prefix, udp};
use libfuzzer_sys::fuzz_target;

const OWN: ether::MacAddr = ether::MacAddr([2, 0, 0, 0, 0, 1]);

fuzz_target!(|data: &[u8]| {
    let list: [(IpAddr, u8); 2] = [
        ("192.0.2.1".parse().expect("an address"), 24),
        ("2001:db8::1".parse().expect("an address"), 64),
    ];
    let own = prefix::OwnAddresses::new(&list).expect("valid addresses");
    let Ok((frame, cast)) = ether::parse(data, OWN) else { return };
    let payload = &data[ether::HEADER_LEN..];
    if frame.ether_type == ether::EtherType::Arp {
        if let Ok(message) = arp::parse(&frame, payload) {
            let _ = arp::receive(&message, &own);
        }
        return;
    }
    let v4 = frame.ether_type == ether::EtherType::Ipv4;
    let Ok(header) = ip::parse_as(payload, v4) else { return };
    assert!(header.header_len <= header.total_len && header.total_len <= payload.len());
    packet(&header, &payload[..header.total_len], frame.source, cast, &own);
});

/// An IP packet whose header is sound.
fn packet(
    header: &ip::Header,
    packet: &[u8],
    from: ether::MacAddr,
    cast: ether::Cast,
    own: &prefix::OwnAddresses,
) {
    let _ = header.flow(packet);
    if let Ok(message) = nd::parse(header, packet) {
        let _ = nd::receive(&message, from, own);
    }
    let upper = header.upper(packet);
    if let Ok(datagram) = udp::parse(upper) {
        assert!(udp::HEADER_LEN + datagram.payload_len <= upper.len());
        let _ = udp::verify(header, upper, &datagram, udp::ZeroChecksum::Refuse);
    }
    if icmp::may_answer(header, packet, cast, own) {
        let mut error = [0; icmp::ERROR_MAX_V6];
        if let Some(source) = icmp::error_source(header, own) {
            let problem = icmp::Problem::HopLimit;
            let length = icmp::write_error(problem, source, header, packet, &mut error);
            ip::parse(&error[..length.expect("room for any error")]).expect("a sound packet");
        }
    }
    let mut changed = packet.to_vec();
    let _ = mss::clamp(&mut changed, header, mss::for_mtu(1400, header.is_v4()));
    ip::parse(&changed).expect("a clamped packet is sound");
    let _ = icmp::echo_reply(&mut changed, header);
    if ip::decrement_hop_limit(&mut changed).is_ok() {
        ip::parse(&changed).expect("a forwarded packet is sound");
    }
    fragments(header, packet);
}

/// Fragments are sound packets, fit the MTU, and hold every octet once.
fn fragments(header: &ip::Header, packet: &[u8]) {
    const MTU: usize = 576;
    let Ok(mut pieces) = fragment::fragments(packet, header, MTU) else { return };
    let mut out = [0; MTU];
    let mut total = 0;
    while let Some(Ok(length)) = pieces.write_next(&mut out) {
        let piece = ip::parse(&out[..length]).expect("a fragment is sound");
        total += piece.total_len - piece.header_len;
        assert!(total <= packet.len(), "fragments have no end");
    }
}
