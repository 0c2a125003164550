//! RFC 9329's streams: the prefix, lengths, corruption, and who says what first.

use std::collections::BTreeSet;

use culvert_dataplane::net::icmp::Problem;
use culvert_shm::{
    CloseReason, Congestion, ConnRef, ConnectFailure, Counter, Down, Dscp, Transport,
};
use culvert_tcpstack::Instant;
use culvert_tcpstack::framing::{MESSAGE_BYTES_MAX, PREFIX};

use crate::fixture::{FAR_V4, Gateway, HOST_V4, LAYOUT, OUTER_V6, PEER_V6, Told};
use crate::packets::{icmp_error, ip, ping};
use crate::peer::{Packets, Peer, Sa, Wanted, esp_frame, frames, ike_frame, ike_message, path};

// RFC 9329, 5: on each configured port, of each family.
#[test]
fn every_configured_port_is_listened_on_over_both_families() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    peer.connect(&mut gateway, 4500);
    peer.connect(&mut gateway, 443);
    peer.connect_from(&mut gateway, PEER_V6, OUTER_V6, 4500);
    assert_eq!(gateway.count(Counter::TcpOpened), 3);
    assert!(gateway.told().is_empty(), "control hears of a stream when its prefix has come");
}

// RFC 9329, 6.1: the whole prefix first, however it is cut.
#[test]
fn the_prefix_may_come_in_single_octets() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let id = peer.connect(&mut gateway, 4500);
    let message = ike_message(40);
    let stream = [&PREFIX[..], &ike_frame(&message)].concat();
    for (at, octet) in stream.iter().enumerate() {
        assert!(gateway.told().iter().all(|told| !matches!(told, Told::Ike(..))));
        peer.send(&mut gateway, id, &[*octet]);
        assert_eq!(gateway.count(Counter::FramingIke), u64::from(at + 1 == stream.len()));
    }
    let told = gateway.told();
    assert!(matches!(&told[..], [Told::Ike(_, payload)] if *payload == message));
}

// RFC 9329, 4: a stream of something else is closed, and gets not one octet.
#[test]
fn a_stream_without_the_prefix_is_closed_without_an_answer() {
    for stream in [&b"GET / HTTP/1.1\r\n"[..], b"IKETCX", b"X", b"IKEtcp"] {
        let mut gateway = Gateway::new();
        let mut peer = Peer::new(1);
        let id = peer.connect(&mut gateway, 4500);
        peer.send(&mut gateway, id, stream);
        assert!(peer.closed(id));
        assert_eq!(peer.read(id), []);
        assert_eq!(gateway.count(Counter::FramingBadPrefix), 1);
        assert!(gateway.told().is_empty(), "control never hears of it");
    }
}

// RFC 9329, 6.1: a message of an existing session is not accepted without the prefix either.
#[test]
fn a_valid_frame_without_the_prefix_is_not_looked_at() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let id = peer.connect(&mut gateway, 4500);
    peer.send(&mut gateway, id, &ike_frame(&ike_message(28)));
    assert!(peer.closed(id));
    assert_eq!(gateway.count(Counter::FramingIke), 0);
}

#[test]
fn a_silent_stream_is_closed_after_five_seconds() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let silent = peer.connect(&mut gateway, 4500);
    let (begun, _) = peer.begin(&mut gateway);
    peer.send(&mut gateway, silent, b"IKE");
    gateway.pass(4_900, 100);
    peer.exchange(&mut gateway);
    assert!(!peer.closed(silent));
    gateway.pass(200, 100);
    peer.exchange(&mut gateway);
    assert!(peer.closed(silent), "a part of the prefix is no prefix");
    assert!(!peer.closed(begun), "silence after the prefix is no offence");
    assert_eq!(gateway.count(Counter::FramingSilent), 1);
}

// RFC 9329, 3.1 and 3.2: lengths 0 and 1 are fatal; 3: length 2 is ignored; 6.6: keepalives too.
#[test]
fn lengths_0_and_1_close_and_2_and_3_are_ignored() {
    for length in [0u8, 1] {
        let mut gateway = Gateway::new();
        let mut peer = Peer::new(1);
        let (id, conn) = peer.begin(&mut gateway);
        peer.send(&mut gateway, id, &[0, length]);
        assert!(peer.closed(id));
        assert_eq!(gateway.count(Counter::FramingBadLength), 1);
        assert_eq!(gateway.told(), [Told::Closed { conn, reason: CloseReason::Protocol }]);
    }
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, _) = peer.begin(&mut gateway);
    for _ in 0..100 {
        peer.send(&mut gateway, id, &[0, 2, 0, 3, 0xff]);
    }
    assert!(!peer.closed(id), "they do not count as corruption");
    assert_eq!(peer.read(id), []);
    assert_eq!(gateway.count(Counter::FramingKeepalive), 200);
}

// RFC 9329, 6.1: not for a few packets of unknown SPIs, but for too many in a row.
#[test]
fn a_few_unknown_spis_are_survived_and_many_in_a_row_are_not() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let stranger = esp_frame(&[0x77; 64]);
    let few = culvert_dataplane::worker::STRANGERS_MAX - 1;
    for _ in 0..3 {
        for _ in 0..few {
            peer.send(&mut gateway, id, &stranger);
        }
        peer.send(&mut gateway, id, &ike_frame(&ike_message(28)));
    }
    assert!(!peer.closed(id), "an IKE message between them ends the row");
    let _ = gateway.told();
    for _ in 0..=few {
        peer.send(&mut gateway, id, &stranger);
    }
    assert!(peer.closed(id));
    assert_eq!(gateway.count(Counter::FramingCorrupt), 1);
    assert_eq!(gateway.told(), [Told::Closed { conn, reason: CloseReason::Protocol }]);
}

// RFC 7296, 2.8: a responder may send on an SA as soon as it has answered, and so before control has
// read the answer. RFC 9329, 6.1: that is no corruption.
#[test]
fn packets_that_are_ahead_of_their_sa_are_no_corruption() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let (slot, spi) = gateway.control.reserve_sa(0x5555_0000).unwrap();
    let early = [&spi.to_be_bytes()[..], &[0x77; 60]].concat();
    peer.send(&mut gateway, id, &esp_frame(&early).repeat(50));
    assert!(!peer.closed(id));
    assert_eq!(gateway.count(Counter::EspSpiUnknown), 50);

    // Where no SA came of it the SPI is nobody's again.
    gateway.control.retire_sa(slot);
    peer.send(&mut gateway, id, &esp_frame(&early).repeat(8));
    assert!(peer.closed(id));
    assert_eq!(gateway.told(), [Told::Closed { conn, reason: CloseReason::Protocol }]);
}

// RFC 9329, 6.1: a message received in part ends with its connection.
#[test]
fn half_a_frame_is_forgotten_with_its_connection() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let message = ike_message(100);
    let frame = ike_frame(&message);
    let (first, conn) = peer.begin(&mut gateway);
    peer.send(&mut gateway, first, &frame[..50]);
    peer.stack.abort(first);
    peer.exchange(&mut gateway);
    assert_eq!(gateway.told(), [Told::Closed { conn, reason: CloseReason::Reset }]);
    assert_eq!(gateway.count(Counter::FramingPartial), 1);

    let (second, _) = peer.begin(&mut gateway);
    peer.send(&mut gateway, second, &frame[50..]);
    assert_eq!(gateway.count(Counter::FramingIke), 0, "the halves were not put together");
}

// Anybody can open a connection and send the prefix. Those whose peer is not authenticated share a
// quarter of the places, and the oldest of them makes room for the next.
#[test]
fn a_connection_gives_way_until_its_peer_is_authenticated() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (authenticated, conn) = peer.begin(&mut gateway);
    gateway
        .control
        .send(0, &Down::TcpProven { conn, congestion: Congestion::Bbr, dscp: Dscp::DEFAULT })
        .unwrap();
    gateway.turn();
    let (stranger, _) = peer.begin(&mut gateway);
    for _ in 1..LAYOUT.conn_slots / 4 {
        peer.begin(&mut gateway);
    }
    assert!(!peer.closed(stranger), "there was room for so many");
    peer.begin(&mut gateway);
    peer.exchange(&mut gateway);
    assert!(peer.closed(stranger));
    assert!(!peer.closed(authenticated));
}

// RFC 9329, 4: only the originator sends the prefix; 3.1: IKE behind the marker.
#[test]
fn control_answers_in_frames_and_without_a_prefix() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    peer.send(&mut gateway, id, &ike_frame(&ike_message(40)));
    let told = gateway.told();
    let [Told::Ike(path, _)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(path.conn, Some(conn));
    let answer = ike_message(300);
    gateway.send_ike(*path, &answer);
    peer.exchange(&mut gateway);
    assert_eq!(frames(&peer.read(id)), [answer]);
}

// RFC 9329, 3: what a frame cannot express is not sent, never cut.
#[test]
fn a_message_too_long_for_a_frame_is_an_error() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let path = path(Transport::Tcp, Some(conn));
    for (len, fits) in [(MESSAGE_BYTES_MAX - 4, true), (MESSAGE_BYTES_MAX - 3, false)] {
        let payload = ike_message(len);
        gateway.send_ike(path, &payload);
        peer.exchange(&mut gateway);
        let read = peer.read(id);
        assert_eq!(read.len(), if fits { usize::from(u16::MAX) } else { 0 });
    }
    assert_eq!(gateway.count(Counter::IkeTooBig), 1);
    assert!(!peer.closed(id));
}

// RFC 9329, 6.1: the originator's first octets are the prefix, once, before any message.
#[test]
fn the_originator_sends_the_prefix_together_with_its_first_message() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    peer.stack.listen(4500);
    let remote = (ip(crate::fixture::PEER_V4), 4500).into();
    gateway.connect(9, None, Congestion::Bbr);
    peer.exchange(&mut gateway);
    let told = gateway.told();
    let [Told::Opened { conn, originator: true, token: 9 }] = told[..] else { panic!("{told:?}") };
    let mut path = path(Transport::Tcp, Some(conn));
    path.remote = remote;
    for len in [60, 70] {
        let payload = ike_message(len);
        gateway.send_ike(path, &payload);
        peer.exchange(&mut gateway);
    }
    let id = peer.events.iter().find_map(|event| match event {
        culvert_tcpstack::Event::Opened { id, .. } => Some(*id),
        _ => None,
    });
    let stream = peer.read(id.unwrap());
    assert_eq!(stream[..6], PREFIX);
    assert_eq!(frames(&stream[6..]), [ike_message(60), ike_message(70)]);

    gateway.control.send(0, &Down::TcpClose { conn, abort: false }).unwrap();
    peer.exchange(&mut gateway);
    assert_eq!(gateway.told(), [Told::Closed { conn, reason: CloseReason::Local }]);
    assert!(peer.closed(id.unwrap()));
}

#[test]
fn a_refused_connection_is_reported_by_its_token() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    gateway.connect(5, None, Congestion::Bbr);
    peer.exchange(&mut gateway);
    // An address that is not the gateway's.
    let local = Some(ip("192.0.2.99"));
    gateway.connect(6, local, Congestion::Bbr);
    peer.exchange(&mut gateway);
    let failed = [
        Told::ConnectFailed(5, ConnectFailure::Refused),
        Told::ConnectFailed(6, ConnectFailure::NoAddress),
    ];
    assert_eq!(gateway.told(), failed);
}

// RFC 9293, 3.9.2.2, MUST-54: a filter's word about our SYN reaches the connection, and control
// hears at once that this way is closed.
#[test]
fn a_connection_that_the_network_refuses_is_reported_by_its_token() {
    let mut gateway = Gateway::new();
    gateway.connect(5, None, Congestion::Bbr);
    gateway.turn();
    let syn = gateway.outer_packets().pop().unwrap();
    let mut elsewhere = syn.clone();
    elsewhere[24..28].copy_from_slice(&[0; 4]);
    for (quoted, believed) in [(elsewhere, 0), (syn, 1)] {
        gateway.outer_packet(&icmp_error(FAR_V4, &quoted, Problem::Prohibited));
        gateway.turn();
        assert_eq!(gateway.count(Counter::IcmpUnreachable), believed);
    }
    assert_eq!(gateway.told(), [Told::ConnectFailed(5, ConnectFailure::Unreachable)]);
}

// What control says with the connect, and later of a peer that it knows by then, governs. Until
// then the dataplane's own setting does.
#[test]
fn each_connection_has_the_congestion_control_that_control_says() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let shown = |gateway: &Gateway, conn: ConnRef| {
        let (found, _, _, stats) = gateway.control.conn(conn.worker, conn.index).unwrap();
        assert_eq!(found, conn);
        stats.congestion.unwrap()
    };
    let (id, accepted) = peer.begin(&mut gateway);
    assert_eq!(shown(&gateway, accepted), Congestion::Bbr);
    let _ = gateway.told();
    let congestion = Congestion::Cubic;
    gateway
        .control
        .send(0, &Down::TcpProven { conn: accepted, congestion, dscp: Dscp::DEFAULT })
        .unwrap();
    gateway.turn();
    assert_eq!(shown(&gateway, accepted), Congestion::Cubic);

    peer.stack.listen(4500);
    gateway.connect(9, None, congestion);
    peer.exchange(&mut gateway);
    let told = gateway.told();
    let [Told::Opened { conn, token: 9, .. }] = told[..] else { panic!("{told:?}") };
    assert_eq!(shown(&gateway, conn), Congestion::Cubic);

    // The stream goes on.
    let path = path(Transport::Tcp, Some(accepted));
    let payload = ike_message(300);
    gateway.send_ike(path, &payload);
    peer.exchange(&mut gateway);
    assert_eq!(frames(&peer.read(id)), [payload]);
}

// RFC 9329, 6.1: the IPv6 flow label is that of the connection before, also when the dataplane was
// started anew in between; of connections that this gateway opens it is what control says.
#[test]
fn the_flow_label_outlives_connections_and_the_dataplane() {
    fn labels(gateway: &mut Gateway) -> BTreeSet<u32> {
        let packets = gateway.outer_packets();
        let first = |packet: &Vec<u8>| u32::from_be_bytes(packet[..4].try_into().unwrap());
        packets.iter().map(|packet| first(packet) & 0xf_ffff).collect()
    }
    let mut gateway = Gateway::new();
    let remote = (ip(PEER_V6), 4500).into();
    let mut answers = BTreeSet::new();
    for number in 1..=3 {
        if number == 3 {
            gateway.restart_dataplane();
        }
        let mut peer = Peer::new(number);
        let now = Instant(gateway.now_ns / 1000);
        peer.stack.connect(now, ip(PEER_V6), (ip(OUTER_V6), 4500).into()).unwrap();
        let mut syn = Packets::default();
        peer.stack.poll_transmit(now, &mut syn);
        gateway.outer_packet(&syn.0[0]);
        gateway.turn();
        answers.extend(labels(&mut gateway));

        let (congestion, flow_label) = (Congestion::Bbr, 0x4_5678);
        let dscp = Dscp::DEFAULT;
        let connect =
            Down::TcpConnect { token: 1, local: None, remote, congestion, flow_label, dscp };
        gateway.control.send(0, &connect).unwrap();
        gateway.turn();
        assert_eq!(labels(&mut gateway), BTreeSet::from([flow_label]));
    }
    assert!(answers.len() == 1 && !answers.contains(&0), "{answers:x?}");
}

// RFC 9329, 6.1: SAs come and go. Of one that is gone the peer may have a whole queue under way, which
// the Delete has overtaken.
#[test]
fn what_was_under_way_when_its_sa_ended_is_no_corruption() {
    for owner in 0..2 {
        let mut gateway = Gateway::with_workers(2);
        let mut peer = Peer::new(1);
        let (id, conn) = peer.begin(&mut gateway);
        let wanted = Wanted { owner, ..Wanted::by(path(Transport::Tcp, Some(conn))) };
        let mut sa = Sa::install(&mut gateway, wanted);
        let next = |sa: &mut Sa| esp_frame(&sa.seal(&ping(FAR_V4, HOST_V4, b"of the old SA")));
        let first = next(&mut sa);
        peer.send(&mut gateway, id, &first);
        assert_eq!(gateway.inner_packets().len(), 1);

        gateway.control.retire_sa(sa.slot);
        gateway.turn();
        gateway.control.collect(false);
        let late: Vec<u8> = (0..50).flat_map(|_| next(&mut sa)).collect();
        peer.send(&mut gateway, id, &late);
        assert!(!peer.closed(id));
        assert_eq!(gateway.count(Counter::EspSpiUnknown), 50);
        assert!(gateway.inner_packets().is_empty());

        let strangers = esp_frame(&[0x77; 64]).repeat(8);
        peer.send(&mut gateway, id, &strangers);
        assert!(peer.closed(id), "others are strangers as ever");
    }
}
