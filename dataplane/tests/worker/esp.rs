//! ESP in TCP, in UDP and native: the same SA code, whatever carries it.

use culvert_dataplane::net::ip as ip_format;
use culvert_shm::{Counter, SaDrop, Transport};
use culvert_tcpstack::framing;

use crate::fixture::{
    FAR_V4, FAR_V6, Gateway, HOST_V4, HOST_V6, INNER_V4, OUTER_V4, OUTER_V6, PEER_V4, PEER_V6, Told,
};
use crate::packets::{esp, ip, may_fragment, ping, too_big, udp, with_hop_limit};
use crate::peer::{
    Peer, Sa, Wanted, esp_frame, frames, ike_frame, ike_message, path, path_between,
};

/// What an inner packet looks like one hop further on.
fn one_hop_on(packet: &[u8]) -> Vec<u8> {
    with_hop_limit(packet.to_vec(), 63)
}

#[test]
fn inner_packets_pass_in_a_tcp_stream_both_ways() {
    for esn in [false, true] {
        let mut gateway = Gateway::new();
        let mut peer = Peer::new(1);
        let (id, conn) = peer.begin(&mut gateway);
        let wanted = Wanted { esn, ..Wanted::by(path(Transport::Tcp, Some(conn))) };
        let mut sa = Sa::install(&mut gateway, wanted);

        for (host, far) in [(HOST_V4, FAR_V4), (HOST_V6, FAR_V6)] {
            let inbound = ping(far, host, &[1; 1300]);
            let packet = sa.seal(&inbound);
            peer.send(&mut gateway, id, &esp_frame(&packet));
            assert_eq!(gateway.inner_packets(), [one_hop_on(&inbound)]);

            let outbound = ping(host, far, &[2; 1300]);
            gateway.inner_packet(&outbound);
            peer.exchange(&mut gateway);
            let sent = frames(&peer.read(id));
            let [frame] = &sent[..] else { panic!("{} frames", sent.len()) };
            let (_, inner) = sa.open(frame).unwrap();
            assert_eq!(inner, one_hop_on(&outbound));
        }
        let counts = gateway.control.sa_counts(sa.slot).unwrap();
        assert_eq!((counts.packets_in, counts.packets_out, counts.next_sequence), (2, 2, 3));
    }
}

// RFC 1191, 4; RFC 8201, 4: a stream carries packets that are longer than any link, and than a buffer. Who
// sends them is told so, and nobody else.
#[test]
fn a_packet_longer_than_a_buffer_is_answered_with_what_fits() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    for (far, host, kind) in [(FAR_V4, HOST_V4, [3, 4]), (FAR_V6, HOST_V6, [2, 0])] {
        for inner in [
            ping(far, host, &[1; 4000]),
            may_fragment_v4(ping(far, host, &[1; 4000])),
            ping(host, far, &[1; 4000]),
        ] {
            let packet = esp_frame(&sa.seal(&inner));
            peer.send(&mut gateway, id, &packet);
        }
        peer.exchange(&mut gateway);
        let answers = frames(&peer.read(id));
        let expected = if ip(far).is_ipv4() { 1 } else { 2 };
        assert_eq!(answers.len(), expected);
        let (_, inner) = sa.open(&answers[0]).unwrap();
        let header = ip_format::parse(&inner).unwrap();
        assert_eq!(header.destination, ip(far));
        let upper = header.upper(&inner);
        assert_eq!((&upper[..2], &upper[4..8]), (&kind[..], &1500u32.to_be_bytes()[..]));
    }
    assert_eq!(gateway.count(Counter::NoRoom), 6);
    assert!(gateway.inner_frames().is_empty());
}

fn may_fragment_v4(packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 { may_fragment(packet) } else { packet }
}

// RFC 3948, 2.1: in UDP 4500, no checksum over IPv4; RFC 4303: natively, protocol 50.
#[test]
fn inner_packets_pass_in_udp_and_native_over_both_families() {
    for transport in [Transport::Udp, Transport::Native] {
        for (own, other) in [(OUTER_V4, PEER_V4), (OUTER_V6, PEER_V6)] {
            let mut gateway = Gateway::new();
            let path = path_between(transport, ip(own), ip(other));
            let mut sa = Sa::install(&mut gateway, Wanted::by(path));
            for (host, far) in [(HOST_V4, FAR_V4), (HOST_V6, FAR_V6)] {
                let inbound = ping(far, host, &[1; 900]);
                let sealed = sa.seal(&inbound);
                gateway.outer_packet(&match transport {
                    Transport::Udp => udp((other, 4500), (own, 4500), &sealed),
                    _ => esp(other, own, &sealed),
                });
                gateway.turn();
                assert_eq!(gateway.inner_packets(), [one_hop_on(&inbound)]);

                let outbound = ping(host, far, &[2; 900]);
                gateway.inner_packet(&outbound);
                gateway.turn();
                let packets = gateway.outer_packets();
                let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
                let header = ip_format::parse(packet).unwrap();
                assert_eq!((header.source, header.destination), (ip(own), ip(other)));
                let upper = header.upper(packet);
                let sealed = if transport == Transport::Udp {
                    assert_eq!(upper[..4], [0x11, 0x94, 0x11, 0x94], "port 4500 to 4500");
                    let zero = upper[6..8] == [0, 0];
                    assert_eq!(zero, header.is_v4(), "RFC 3948, 2.1; RFC 8200, 8.1");
                    &upper[8..]
                } else {
                    assert_eq!(header.protocol, 50);
                    upper
                };
                let (_, inner) = sa.open(sealed).unwrap();
                assert_eq!(inner, one_hop_on(&outbound));
            }
        }
    }
}

// RFC 4303, 3.4.3.
#[test]
fn replays_and_forgeries_do_not_pass() {
    let mut gateway = Gateway::new();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"once"));
    let mut forged = sa.seal(&ping(FAR_V4, HOST_V4, b"never"));
    *forged.last_mut().unwrap() ^= 1;
    for packet in [&packet, &packet, &forged] {
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), packet));
    }
    gateway.turn();
    assert_eq!(gateway.inner_packets().len(), 1);
    assert_eq!(gateway.count(Counter::EspReplayed), 1);
    assert_eq!(gateway.count(Counter::EspIcvFailed), 1);
    let counts = gateway.control.sa_counts(sa.slot).unwrap();
    assert_eq!(counts.drops[SaDrop::Replay as usize], 1);
    assert_eq!(counts.drops[SaDrop::Icv as usize], 1);
}

// RFC 4301, 5.2, step 4.
#[test]
fn authentic_packets_outside_the_selectors_do_not_pass() {
    let mut gateway = Gateway::new();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    for inner in [
        ping("10.3.0.1", HOST_V4, b"a source that is not the peer's"),
        ping(FAR_V4, "10.9.0.1", b"a destination that is not for it"),
    ] {
        let packet = sa.seal(&inner);
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    }
    gateway.turn();
    assert_eq!(gateway.count(Counter::EspSelector), 2);
    assert!(gateway.inner_frames().is_empty());
}

// RFC 3927, 2.7 and RFC 4291, 2.5.6: what is sent from an address of one link stays there.
// RFC 1122, 3.2.1.3: nothing comes from a group or a loopback address, and none is answered.
#[test]
fn nothing_is_forwarded_or_answered_that_no_host_elsewhere_can_have_sent() {
    let mut gateway = Gateway::new();
    let wanted = Wanted { anything: true, ..Wanted::by(path(Transport::Udp, None)) };
    let mut sa = Sa::install(&mut gateway, wanted);
    for (source, host, far) in [("169.254.7.7", HOST_V4, FAR_V4), ("fe80::7", HOST_V6, FAR_V6)] {
        gateway.inner_packet(&ping(source, far, b"out"));
        let packet = sa.seal(&ping(source, host, b"in"));
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    }
    for source in ["224.0.0.5", "127.0.0.1", "0.0.0.0"] {
        let packet = sa.seal(&ping(source, INNER_V4, b"to the gateway"));
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    }
    gateway.turn();
    assert_eq!(gateway.count(Counter::IpMartianSource), 7);
    assert_eq!(gateway.count(Counter::IcmpEchoAnswered), 0);
    assert!(gateway.outer_frames().is_empty() && gateway.inner_frames().is_empty());
}

// RFC 9329, 6.1: a failed check of a packet with a known SPI is corruption; the SA survives.
#[test]
fn a_forged_packet_closes_its_stream_but_not_its_sa() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    let mut forged = sa.seal(&ping(FAR_V4, HOST_V4, b"forged"));
    forged[30] ^= 1;
    peer.send(&mut gateway, id, &esp_frame(&forged));
    assert!(peer.closed(id));
    assert_eq!(gateway.count(Counter::FramingCorrupt), 1);

    // Traffic goes on over a new connection, without a word of IKE.
    let (second, _) = peer.begin(&mut gateway);
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"good"));
    peer.send(&mut gateway, second, &esp_frame(&packet));
    assert_eq!(gateway.inner_packets().len(), 1);
}

#[test]
fn an_sa_past_its_deadline_takes_and_gives_nothing() {
    let mut gateway = Gateway::new();
    let deadline_ns = gateway.now_ns + 1_000_000_000;
    let wanted = Wanted { deadline_ns, ..Wanted::by(path(Transport::Udp, None)) };
    let mut sa = Sa::install(&mut gateway, wanted);
    gateway.now_ns = deadline_ns;
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"late"));
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"late"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::EspSaExpired), 2);
    assert!(gateway.inner_frames().is_empty() && gateway.outer_frames().is_empty());
}

#[test]
fn a_retired_sa_is_forgotten_before_control_overwrites_its_keys() {
    let mut gateway = Gateway::new();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    gateway.control.retire_sa(sa.slot);
    // Even before the worker has read the record it looks at the slot's state.
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"gone"));
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"gone"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::EspSpiUnknown), 1);
    assert_eq!(gateway.count(Counter::PolicyStale), 1);
    gateway.control.collect(false);
    gateway.turn();
    assert_eq!(gateway.control.collect(false).waiting, 0);
}

/// A repeated sequence number is a repeated nonce: the worst fault there can be.
#[test]
fn a_killed_dataplane_goes_on_with_the_next_sequence_number_and_the_old_window() {
    let mut gateway = Gateway::new();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    let once = sa.seal(&ping(FAR_V4, HOST_V4, b"once"));
    let mut numbers = Vec::new();
    for _ in 0..2 {
        for _ in 0..3 {
            gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"out"));
        }
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &once));
        gateway.turn();
        for packet in gateway.outer_packets() {
            let header = ip_format::parse(&packet).unwrap();
            numbers.push(sa.open(&header.upper(&packet)[8..]).unwrap().0);
        }
        gateway.restart_dataplane();
    }
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    assert_eq!(gateway.count(Counter::EspReplayed), 1, "the window was not forgotten");
}

// RFC 9329, 9: drop before sealing, never after.
#[test]
fn a_full_stream_drops_inner_packets_before_they_are_sealed() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    // The peer acknowledges nothing, so the send buffer fills.
    const PACKETS: u64 = 400;
    for number in 0..PACKETS {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[number as u8; 1300]));
        gateway.turn();
    }
    let dropped = gateway.count(Counter::TcpBackpressure);
    assert!(dropped > 0, "nothing was dropped");
    let counts = gateway.control.sa_counts(sa.slot).unwrap();
    assert_eq!(counts.packets_out + dropped, PACKETS);
    assert_eq!(counts.next_sequence, counts.packets_out + 1, "no number for what was dropped");
    assert_eq!(counts.drops[SaDrop::Path as usize], dropped);
    // What was sealed arrives, all of it.
    let _ = gateway.outer_frames();
    let mut stream = Vec::new();
    for _ in 0..60 {
        gateway.pass(200, 100);
        peer.exchange(&mut gateway);
        stream.extend(peer.read(id));
    }
    let numbers: Vec<u64> = frames(&stream).iter().map(|frame| sa.open(frame).unwrap().0).collect();
    let expected: Vec<u64> = (1..=counts.packets_out).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn the_gateways_own_inner_address_can_be_reached_through_the_tunnel() {
    let mut gateway = Gateway::new();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    let packet = sa.seal(&ping(FAR_V4, INNER_V4, b"are you there"));
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.turn();
    let packets = gateway.outer_packets();
    let [reply] = &packets[..] else { panic!("{} answers", packets.len()) };
    let (_, inner) = sa.open(&ip_format::parse(reply).unwrap().upper(reply)[8..]).unwrap();
    let header = ip_format::parse(&inner).unwrap();
    assert_eq!((header.source, header.destination), (ip(INNER_V4), ip(FAR_V4)));
    assert_eq!(header.upper(&inner)[8..], *b"are you there");
}

// RFC 9293, 3.7.5, and RFC 5927, 7.2: a router's word about the outer path is taken for a segment
// that is in flight, and for no other.
#[test]
fn a_narrow_outer_path_gets_smaller_segments() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    let outbound = ping(HOST_V4, FAR_V4, &[2; 1300]);
    gateway.inner_packet(&outbound);
    gateway.turn();
    let lost = gateway.outer_packets().pop().unwrap();
    assert!(lost.len() > 1300);

    let mut elsewhere = lost.clone();
    elsewhere[24..28].copy_from_slice(&[0; 4]);
    gateway.outer_packet(&too_big(FAR_V4, &elsewhere, 600));
    gateway.turn();
    assert_eq!(gateway.count(Counter::IcmpTooBig), 0, "nothing of that number is in flight");

    gateway.outer_packet(&too_big(FAR_V4, &lost, 600));
    gateway.turn();
    assert_eq!(gateway.count(Counter::IcmpTooBig), 1);
    peer.exchange_narrow(&mut gateway, 600);
    let sent = frames(&peer.read(id));
    let [frame] = &sent[..] else { panic!("{} frames", sent.len()) };
    assert_eq!(sa.open(frame).unwrap().1, one_hop_on(&outbound));
}

// RFC 9329, 9.5: the mark of a segment cannot be handed on to the inner packets, which are dropped
// instead. They were authentic, and neither IKE nor the stream suffers.
#[test]
fn inner_packets_of_a_segment_that_met_congestion_are_dropped() {
    for (own, other) in [(OUTER_V4, PEER_V4), (OUTER_V6, PEER_V6)] {
        let mut gateway = Gateway::new();
        let mut peer = Peer::new(1);
        let id = peer.connect_from(&mut gateway, other, own, 4500);
        peer.send(&mut gateway, id, &framing::PREFIX);
        let told = gateway.told();
        let [Told::Opened { conn, .. }] = told[..] else { panic!("{told:?}") };
        let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
        let mut marked = ike_frame(&ike_message(60));
        for number in 0..2 {
            let packet = sa.seal(&ping(FAR_V4, HOST_V4, &[number; 40]));
            marked.extend(esp_frame(&packet));
        }
        let last = esp_frame(&sa.seal(&ping(FAR_V4, HOST_V4, b"begins there")));
        let (begun, rest) = last.split_at(30);
        marked.extend(begun);

        peer.congested = true;
        peer.send(&mut gateway, id, &marked);
        peer.congested = false;
        assert_eq!(gateway.count(Counter::EspCongestion), 2);
        assert_eq!(gateway.count(Counter::EspOpened), 0);
        assert!(gateway.inner_packets().is_empty());
        assert!(matches!(gateway.told()[..], [Told::Ike(..)]), "IKE is not the inner hosts'");
        assert!(gateway.control.peer_state(sa.peer).unwrap().last_authentic_ns > 0);

        peer.send(&mut gateway, id, rest);
        assert_eq!(gateway.inner_packets().len(), 1, "what ends in another segment passes");
        assert!(!peer.closed(id));
    }
}
