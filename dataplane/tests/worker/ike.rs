//! IKE over UDP, between the wire and control.

use culvert_dataplane::net::ip as ip_format;
use culvert_shm::{CloseReason, Congestion, Counter, Down, Dscp, NAT_KEEPALIVE, Path, Transport};

use crate::fixture::{FAR_V4, Gateway, HOST_V4, OUTER_V4, OUTER_V6, PEER_V4, PEER_V6, Told};
use crate::packets::{ip, ping, udp};
use crate::peer::{Peer, Sa, Wanted, frames, ike_frame, ike_message, path};

fn ike_path(transport: Transport, own: &str, other: &str, other_port: u16) -> Path {
    let own_port = if transport == Transport::Native { 500 } else { 4500 };
    Path {
        transport,
        local: (ip(own), own_port).into(),
        remote: (ip(other), other_port).into(),
        conn: None,
        pinned: false,
    }
}

// RFC 7296, 2: port 500 as it is; RFC 3948, 2.2: port 4500 behind the marker.
#[test]
fn messages_pass_both_ways_on_ports_500_and_4500() {
    for (own, other) in [(OUTER_V4, PEER_V4), (OUTER_V6, PEER_V6)] {
        let mut gateway = Gateway::new();
        let message = ike_message(200);
        let marked = [&[0; 4][..], &message].concat();
        gateway.outer_packet(&udp((other, 1024), (own, 500), &message));
        gateway.outer_packet(&udp((other, 1025), (own, 4500), &marked));
        gateway.turn();
        let native = ike_path(Transport::Native, own, other, 1024);
        let natt = ike_path(Transport::Udp, own, other, 1025);
        assert_eq!(
            gateway.told(),
            [Told::Ike(native, message.clone()), Told::Ike(natt, message.clone())]
        );

        for path in [native, natt] {
            gateway.send_ike(path, &message);
        }
        gateway.turn();
        let sent = gateway.outer_packets();
        let payloads: Vec<_> = sent
            .iter()
            .map(|packet| ip_format::parse(packet).unwrap().upper(packet)[8..].to_vec())
            .collect();
        assert_eq!(payloads, [message, marked]);
    }
}

// RFC 3948, 2.3.
#[test]
fn keepalives_and_other_ports_are_only_counted() {
    let mut gateway = Gateway::new();
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &[0xff]));
    gateway.outer_packet(&udp((PEER_V4, 53), (OUTER_V4, 53), b"hello"));
    let mut damaged = udp((PEER_V4, 500), (OUTER_V4, 500), &ike_message(28));
    *damaged.last_mut().unwrap() ^= 1;
    gateway.outer_packet(&damaged);
    gateway.turn();
    assert_eq!(gateway.count(Counter::UdpKeepalive), 1);
    assert_eq!(gateway.count(Counter::UdpNoPort), 1);
    assert_eq!(gateway.count(Counter::UdpBadChecksum), 1);
    assert!(gateway.told().is_empty());
    assert!(gateway.outer_frames().is_empty());
}

// RFC 3948, 2.3: one octet, and no marker before it.
#[test]
fn a_keepalive_goes_as_it_is() {
    let mut gateway = Gateway::new();
    let path = ike_path(Transport::Udp, OUTER_V4, PEER_V4, 1025);
    let keepalive = Down::IkeSend { path, dscp: Dscp::DEFAULT, payload: &[NAT_KEEPALIVE] };
    gateway.control.send(0, &keepalive).unwrap();
    gateway.turn();
    let packets = gateway.outer_packets();
    let [packet] = &packets[..] else { panic!("{} packets", packets.len()) };
    assert_eq!(ip_format::parse(packet).unwrap().upper(packet)[8..], [0xff]);
}

#[test]
fn a_message_longer_than_the_mtu_goes_in_fragments_over_ipv4_only() {
    let mut gateway = Gateway::new();
    let message = ike_message(4000);
    let path = ike_path(Transport::Native, OUTER_V4, PEER_V4, 500);
    gateway.send_ike(path, &message);
    gateway.turn();
    let packets = gateway.outer_packets();
    assert_eq!(packets.len(), 3);
    let datagram: Vec<u8> = packets
        .iter()
        .flat_map(|packet| ip_format::parse(packet).unwrap().upper(packet).to_vec())
        .collect();
    assert_eq!(datagram[8..], message[..]);

    let path = ike_path(Transport::Native, OUTER_V6, PEER_V6, 500);
    gateway.send_ike(path, &message);
    gateway.turn();
    assert_eq!(gateway.count(Counter::IkeTooBig), 1);
}

#[test]
fn nothing_is_sent_from_an_address_that_is_not_ours() {
    let mut gateway = Gateway::new();
    let path = ike_path(Transport::Native, "192.0.2.99", PEER_V4, 500);
    gateway.send_ike(path, &ike_message(28));
    gateway.turn();
    assert_eq!(gateway.count(Counter::IkeDownNoPath), 1);
    assert!(gateway.outer_frames().is_empty());
}

// A peer that asks again and again and takes no answer: what waits for it is bounded, the rest is
// dropped under a name, and goes on when it takes something.
#[test]
fn answers_that_a_peer_does_not_take_are_bounded() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (_, conn) = peer.begin(&mut gateway);
    let path = path(Transport::Tcp, Some(conn));
    let message = ike_message(4000);
    let answer = |gateway: &mut Gateway| {
        gateway.send_ike(path, &message);
        gateway.turn();
    };
    (0..100).for_each(|_| answer(&mut gateway));
    let full = gateway.count(Counter::IkeDownFull);
    assert!((50..90).contains(&full), "{full} of 100");
    assert_eq!(gateway.count(Counter::IkeDown), 100 - full);
    assert_eq!(gateway.count(Counter::IkeDownNoPath), 0);
    peer.exchange(&mut gateway);
    gateway.pass(3_000, 100);
    peer.exchange(&mut gateway);
    answer(&mut gateway);
    assert_eq!(gateway.count(Counter::IkeDownFull), full);
}

// Anybody can send more IKE messages than control can take. Over TCP a peer's do not come again
// (RFC 9329, 6.2), and of a lost connection control is told only once.
#[test]
fn a_flood_of_strangers_crowds_out_neither_known_peers_nor_what_control_has_to_know() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (known, conn) = peer.begin(&mut gateway);
    let (unknown, other) = peer.begin(&mut gateway);
    let congestion = Congestion::Bbr;
    gateway.control.send(0, &Down::TcpProven { conn, congestion, dscp: Dscp::DEFAULT }).unwrap();
    gateway.turn();
    let _ = gateway.told();
    let flood = udp((PEER_V4, 500), (OUTER_V4, 500), &ike_message(1400));
    while gateway.count(Counter::RingUpFull) == 0 {
        gateway.outer_packet(&flood);
        gateway.turn();
    }
    let passed = gateway.count(Counter::IkeUp);

    let message = ike_message(1200);
    peer.send(&mut gateway, unknown, &ike_frame(&ike_message(1400)));
    assert_eq!(gateway.count(Counter::RingUpFull), 2, "a connection alone proves nothing");
    peer.send(&mut gateway, known, &ike_frame(&message));
    peer.stack.abort(unknown);
    peer.exchange(&mut gateway);

    assert_eq!(gateway.count(Counter::RingUpFull), 2);
    assert_eq!(gateway.count(Counter::IkeUp), passed + 1);
    let told = gateway.told();
    let (strangers, rest) = told.split_at(passed as usize);
    assert!(strangers.iter().all(|told| matches!(told, Told::Ike(..))));
    let [Told::Ike(way, payload), closed] = rest else { panic!("{rest:?}") };
    assert_eq!((way.conn, payload), (Some(conn), &message));
    assert_eq!(*closed, Told::Closed { conn: other, reason: CloseReason::Reset });
}

// Control may have missed the end of a connection while its ring was full. What it asks of one that
// is gone is answered by that: its peer would wait for ever for what cannot come.
#[test]
fn who_means_a_connection_that_is_gone_is_told_so() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    peer.stack.abort(id);
    peer.exchange(&mut gateway);
    assert_eq!(gateway.told(), [Told::Closed { conn, reason: CloseReason::Reset }]);
    let path = path(Transport::Tcp, Some(conn));
    let asked = [
        Down::IkeSend { path, dscp: Dscp::DEFAULT, payload: &ike_message(60) },
        Down::TcpClose { conn, abort: false },
        Down::TcpClose { conn, abort: true },
    ];
    for down in asked {
        gateway.control.send(0, &down).unwrap();
        gateway.turn();
        assert_eq!(gateway.told(), [Told::Closed { conn, reason: CloseReason::Local }]);
    }
    assert_eq!(gateway.count(Counter::IkeDownNoPath), 1);
}

// What ends an SA is behind the last packets of it, everything else before all that has not begun.
#[test]
fn messages_overtake_packets_but_for_those_that_must_not() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let tcp = path(Transport::Tcp, Some(conn));
    let sa = Sa::install(&mut gateway, Wanted::by(tcp));
    // More than leaves at once waits.
    for _ in 0..3 {
        (0..30).for_each(|_| gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[1; 1300])));
        gateway.turn();
    }
    let (last, first) = (ike_message(100), ike_message(200));
    gateway.control.send(0, &Down::IkeSendBehind { path: tcp, payload: &last }).unwrap();
    gateway.send_ike(tcp, &first);
    gateway.turn();
    let mut stream = Vec::new();
    for _ in 0..20 {
        peer.exchange(&mut gateway);
        stream.extend(peer.read(id));
        gateway.pass(100, 100);
    }
    let frames = frames(&stream);
    let at = |message: &Vec<u8>| frames.iter().position(|frame| frame == message).unwrap();
    assert_eq!(frames.len() as u64, gateway.count(Counter::EspSealed) + 2);
    assert_eq!(at(&last), frames.len() - 1);
    assert!(at(&first) < at(&last) - 1, "{} of {}", at(&first), frames.len());
    assert!(frames[..at(&first)].iter().all(|frame| sa.open(frame).is_ok()));
}

// Behind a queue that takes nothing more a message would be lost, and over TCP it does not come again.
#[test]
fn a_message_that_finds_the_queue_full_goes_before_it() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (_, conn) = peer.begin(&mut gateway);
    let tcp = path(Transport::Tcp, Some(conn));
    let _sa = Sa::install(&mut gateway, Wanted::by(tcp));
    while gateway.count(Counter::TcpBackpressure) == 0 {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[1; 1300]));
        gateway.turn();
    }
    let message = ike_message(4000);
    gateway.control.send(0, &Down::IkeSendBehind { path: tcp, payload: &message }).unwrap();
    gateway.turn();
    assert_eq!((gateway.count(Counter::IkeDown), gateway.count(Counter::IkeDownFull)), (1, 0));
}
