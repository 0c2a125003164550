//! Two workers: connections on one, SAs on the other.

use culvert_shm::{Congestion, Counter, Down, Dscp, Transport};

use crate::fixture::{FAR_V4, Gateway, HOST_V4, OUTER_V4, PEER_V4, Told, pool_of};
use crate::packets::{ip, ping, udp};
use crate::peer::{Peer, Sa, Wanted, esp_frame, frames, path};

/// A connection on worker 0, and its peer's SAs on worker 1.
fn apart() -> (Gateway, Peer, culvert_tcpstack::ConnId, Sa) {
    apart_in(Gateway::with_workers(2))
}

fn apart_in(mut gateway: Gateway) -> (Gateway, Peer, culvert_tcpstack::ConnId, Sa) {
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    assert_eq!(conn.worker, 0);
    let wanted = Wanted { owner: 1, ..Wanted::by(path(Transport::Tcp, Some(conn))) };
    let sa = Sa::install(&mut gateway, wanted);
    (gateway, peer, id, sa)
}

#[test]
fn packets_reach_the_sas_owner_and_its_frames_the_connections() {
    let (mut gateway, mut peer, id, mut sa) = apart();
    let inbound = ping(FAR_V4, HOST_V4, &[1; 1000]);
    let packet = sa.seal(&inbound);
    peer.send(&mut gateway, id, &esp_frame(&packet));
    assert_eq!(gateway.inner_packets().len(), 1);

    // From the inner port of worker 0 to worker 1, which seals, and back to the connection.
    for _ in 0..3 {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[2; 1000]));
    }
    peer.exchange(&mut gateway);
    let numbers: Vec<u64> =
        frames(&peer.read(id)).iter().map(|frame| sa.open(frame).unwrap().0).collect();
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!(gateway.count(Counter::HandoffFull), 0);
    assert_eq!(gateway.count(Counter::HandoffSent), gateway.count(Counter::HandoffReceived));
}

#[test]
fn datagrams_reach_the_sas_owner() {
    let mut gateway = Gateway::with_workers(2);
    let wanted = Wanted { owner: 1, ..Wanted::by(path(Transport::Udp, None)) };
    let mut sa = Sa::install(&mut gateway, wanted);
    let packet = sa.seal(&ping(FAR_V4, HOST_V4, b"in"));
    gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"out"));
    gateway.turn();
    assert_eq!(gateway.inner_packets().len(), 1);
    assert_eq!(gateway.outer_packets().len(), 1);
}

// RFC 9329, 6.1: whoever finds the corruption, the connection is closed.
#[test]
fn corruption_found_by_the_sas_owner_closes_the_connection() {
    let (mut gateway, mut peer, id, mut sa) = apart();
    let mut forged = sa.seal(&ping(FAR_V4, HOST_V4, b"forged"));
    forged[25] ^= 1;
    peer.send(&mut gateway, id, &esp_frame(&forged));
    assert!(peer.closed(id));
    assert_eq!(gateway.count(Counter::FramingCorrupt), 1);
}

#[test]
fn a_full_connection_elsewhere_drops_before_sealing() {
    let (mut gateway, mut peer, id, sa) = apart();
    const PACKETS: u64 = 400;
    for number in 0..PACKETS {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[number as u8; 1300]));
        gateway.turn();
    }
    let dropped = gateway.count(Counter::TcpBackpressure);
    assert!(dropped > 0);
    assert_eq!(gateway.count(Counter::HandoffTcpLost), 0, "nothing was lost after sealing");
    let counts = gateway.control.sa_counts(sa.slot).unwrap();
    assert_eq!(counts.packets_out + dropped, PACKETS);

    // When the peer takes the octets, there is room again.
    let _ = gateway.outer_frames();
    let mut stream = Vec::new();
    for _ in 0..60 {
        gateway.pass(200, 100);
        peer.exchange(&mut gateway);
        stream.extend(peer.read(id));
    }
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"again"));
    peer.exchange(&mut gateway);
    stream.extend(peer.read(id));
    assert_eq!(frames(&stream).len() as u64, counts.packets_out + 1);
}

// The answers to a connection that this gateway opens reach whatever queue the NIC's hash says.
#[test]
fn segments_find_the_worker_whose_port_they_are_for() {
    for worker in [0, 1] {
        let mut gateway = Gateway::with_workers(2);
        let mut peer = Peer::new(1);
        peer.stack.listen(4500);
        // All of the peer's packets arrive at worker 0.
        let remote = (ip(PEER_V4), 4500).into();
        let connect = Down::TcpConnect {
            token: 3,
            local: None,
            remote,
            congestion: Congestion::Bbr,
            flow_label: 0,
            dscp: Dscp::DEFAULT,
        };
        gateway.control.send(worker, &connect).unwrap();
        peer.exchange(&mut gateway);
        let told = gateway.told();
        let [Told::Opened { conn, token: 3, .. }] = told[..] else { panic!("{told:?}") };
        assert_eq!(conn.worker, worker);
    }
}

// What waited for long when a queue ended says nothing of the next one: packets are sealed again.
#[test]
fn after_a_standing_queue_packets_pass_again() {
    let (mut gateway, mut peer, id, sa) = apart();
    for number in 0..100 {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[number; 1300]));
    }
    gateway.turn();
    // The path has stopped: nothing is acknowledged, and behind what is old nothing is sealed.
    let _ = gateway.outer_frames();
    gateway.pass(600, 100);
    let sealed = gateway.control.sa_counts(sa.slot).unwrap().packets_out;
    assert_eq!(gateway.count(Counter::TcpAged), 0);
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"behind it"));
    gateway.turn();
    assert_eq!(gateway.count(Counter::TcpAged), 1);
    assert_eq!(gateway.control.sa_counts(sa.slot).unwrap().packets_out, sealed);

    let mut stream = Vec::new();
    for _ in 0..60 {
        gateway.pass(200, 100);
        peer.exchange(&mut gateway);
        stream.extend(peer.read(id));
    }
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"again"));
    peer.exchange(&mut gateway);
    stream.extend(peer.read(id));
    let frames = frames(&stream);
    assert_eq!(frames.len() as u64, sealed + 1);
    let (_, last) = sa.open(frames.last().unwrap()).unwrap();
    assert!(last.ends_with(b"again"));
}

// What was not sealed takes no room: neither for want of a buffer nor of a sequence number.
#[test]
fn room_that_was_not_used_is_given_back() {
    let pool = pool_of("unsealed", 127);
    let (mut gateway, mut peer, id, sa) = apart_in(Gateway::with_pool(2, pool));
    let mut held: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
    // One for the packet that arrives, none for the frame.
    held.pop();
    for number in 0..400u32 {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[number as u8; 1300]));
        gateway.turn();
    }
    assert!(gateway.count(Counter::PoolEmpty) >= 400);
    assert_eq!(gateway.control.sa_counts(sa.slot).unwrap().packets_out, 0);
    drop(held);
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, b"there is room"));
    peer.exchange(&mut gateway);
    assert_eq!(gateway.count(Counter::TcpBackpressure), 0);
    let frames = frames(&peer.read(id));
    assert_eq!(frames.len(), 1);
    assert!(sa.open(&frames[0]).unwrap().1.ends_with(b"there is room"));
}
