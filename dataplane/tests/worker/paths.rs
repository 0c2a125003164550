//! Where a peer's packets go: the path follows authentic and newest packets, and only them
//! (RFC 9329, 6.1 and 10).

use culvert_dataplane::net::ip as ip_format;
use culvert_shm::{Counter, Down, Path, Transport};

use crate::fixture::{FAR_V4, Gateway, HOST_V4, OUTER_V4, PEER_V4, Told};
use crate::packets::{ip, ping, udp};
use crate::peer::{Peer, Sa, Wanted, esp_frame, frames, path};

fn current(gateway: &Gateway, sa: &Sa) -> Path {
    gateway.control.peer_state(sa.peer).unwrap().path
}

// RFC 9329, 6.1: the responder answers on the connection of the last valid packet.
#[test]
fn the_path_moves_to_the_connection_of_the_newest_packet() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (first, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    let (second, conn) = peer.begin(&mut gateway);
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"over the second"));
    peer.send(&mut gateway, second, &esp_frame(&packet));
    assert_eq!(gateway.told(), [Told::PathMoved(sa.peer)]);
    assert_eq!(current(&gateway, &sa).conn, Some(conn));

    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"answer"));
    peer.exchange(&mut gateway);
    assert_eq!(peer.read(first), [], "nothing on the first");
    assert_eq!(frames(&peer.read(second)).len(), 1);

    // Both stay open for packets: RFC 9329, 6.1, until the originator closes the old one.
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"over the first again"));
    peer.send(&mut gateway, first, &esp_frame(&packet));
    assert_eq!(gateway.inner_packets().len(), 2);
    assert_eq!(gateway.told(), [Told::PathMoved(sa.peer)]);
}

// RFC 9329, 6.1 and 10: neither a replay, nor a forgery, nor an old packet that comes late.
#[test]
fn replayed_forged_and_late_packets_move_nothing() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (first, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    let before = path(Transport::Tcp, Some(conn));
    let late = sa.seal(&ping(FAR_V4, HOST_V4, b"late"));
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"once"));
    peer.send(&mut gateway, first, &esp_frame(&packet));

    let (second, _) = peer.begin(&mut gateway);
    peer.send(&mut gateway, second, &esp_frame(&packet));
    assert_eq!(gateway.count(Counter::EspReplayed), 1);
    peer.send(&mut gateway, second, &esp_frame(&late));
    assert_eq!(gateway.inner_packets().len(), 2, "a late packet is taken");
    let mut forged = sa.seal(&ping(FAR_V4, HOST_V4, b"forged"));
    forged[20] ^= 1;
    peer.send(&mut gateway, second, &esp_frame(&forged));

    assert_eq!(current(&gateway, &sa).conn, before.conn);
    assert_eq!(gateway.count(Counter::PathMoved), 0);
    assert!(!gateway.told().contains(&Told::PathMoved(sa.peer)));
}

// RFC 7296, 2.23: a NAT that gives the peer another port is followed.
#[test]
fn over_udp_the_path_follows_a_nat() {
    let mut gateway = Gateway::new();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"renumbered"));
    gateway.outer_packet(&udp((PEER_V4, 1025), (OUTER_V4, 4500), &packet));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"answer"));
    gateway.turn();
    let packets = gateway.outer_packets();
    let header = ip_format::parse(&packets[0]).unwrap();
    assert_eq!(header.upper(&packets[0])[2..4], 1025u16.to_be_bytes());
}

// A peer may use two paths at a time, or a bad NAT. Control hears of where it is, not of each packet: its
// ring is there for others, too.
#[test]
fn a_peer_that_moves_with_each_packet_does_not_fill_controls_ring() {
    let mut gateway = Gateway::new();
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
    let packet = |gateway: &mut Gateway, sa: &mut Sa, port: u16| {
        let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"from here and there"));
        gateway.outer_packet(&udp((PEER_V4, port), (OUTER_V4, 4500), &packet));
        gateway.turn();
    };
    for number in 0..1000 {
        packet(&mut gateway, &mut sa, 5000 + number % 2);
        gateway.inner_packets();
    }
    assert_eq!(gateway.count(Counter::PathMoved), 1000);
    let told = gateway.told().len();
    assert!((2..=10).contains(&told), "told {told} times");

    // What it was not told is made up for.
    gateway.pass(1_000, 100);
    packet(&mut gateway, &mut sa, 5001);
    packet(&mut gateway, &mut sa, 5001);
    assert_eq!(gateway.count(Counter::PathMoved), 1000);
    assert_eq!(gateway.told(), [Told::PathMoved(sa.peer)]);
}

// RFC 7296, 2.23: who has no NAT before the peer, or is behind one, is not led astray by a single
// packet that somebody has caught and sent on from elsewhere. The packet itself is as good as any.
#[test]
fn a_pinned_path_follows_nobody() {
    let mut gateway = Gateway::new();
    let pinned = Path { pinned: true, ..path(Transport::Udp, None) };
    let mut sa = Sa::install(&mut gateway, Wanted::by(pinned));
    let astray = |gateway: &mut Gateway, sa: &mut Sa| {
        let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"caught"));
        gateway.outer_packet(&udp((FAR_V4, 6666), (OUTER_V4, 4500), &packet));
        gateway.turn();
    };
    astray(&mut gateway, &mut sa);
    assert_eq!(gateway.inner_packets().len(), 1);
    assert_eq!(current(&gateway, &sa), pinned);
    assert_eq!(gateway.count(Counter::PathMoved), 0);

    // Not by a restart either, and only as long as control says so.
    gateway.restart_dataplane();
    astray(&mut gateway, &mut sa);
    assert_eq!(current(&gateway, &sa), pinned);
    let behind_nat = path(Transport::Udp, None);
    gateway.control.send(0, &Down::PathSet { peer: sa.peer, path: behind_nat }).unwrap();
    astray(&mut gateway, &mut sa);
    assert_eq!(current(&gateway, &sa).remote, (ip(FAR_V4), 6666).into());
}

// RFC 9329, 5: an SA that uses TCP stays there until IKE moves it.
#[test]
fn esp_alone_does_not_change_the_transport() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (_, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"by udp"));
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.turn();
    assert_eq!(gateway.inner_packets().len(), 1, "it is authentic, so it is taken");
    assert_eq!(current(&gateway, &sa).transport, Transport::Tcp);

    let moved = path(Transport::Udp, None);
    gateway.control.send(0, &Down::PathSet { peer: sa.peer, path: moved }).unwrap();
    gateway.turn();
    assert_eq!(current(&gateway, &sa), moved);
}

// RFC 9329, 6.1: the SA outlives its connection; 5: its packets are never sent another way.
#[test]
fn without_its_connection_a_peer_gets_nothing_and_keeps_its_sas() {
    let mut gateway = Gateway::new();
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    peer.stack.abort(id);
    peer.exchange(&mut gateway);
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"nowhere to go"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::PathNone), 1);
    assert!(gateway.outer_packets().is_empty());
    assert_eq!(gateway.control.sa_counts(sa.slot).unwrap().next_sequence, 1);

    let (second, _) = peer.begin(&mut gateway);
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"back again"));
    peer.send(&mut gateway, second, &esp_frame(&packet));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"welcome"));
    peer.exchange(&mut gateway);
    assert_eq!(frames(&peer.read(second)).len(), 1);
}
