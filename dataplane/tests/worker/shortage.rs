//! Buffers: none is lost, and what happens where there are none or the device takes none.

use culvert_dataplane::net::arp;
use culvert_dpdk::{Mbuf, Pool};
use culvert_shm::{Counter, Down, Transport};

use crate::fixture::{
    FAR_V4, Gateway, HOST_MAC, HOST_V4, INNER_MAC, INNER_V4, OUTER_MAC, OUTER_V4, PEER_MAC,
    PEER_V4, pool_of,
};
use crate::packets::{esp, first_fragment, may_fragment, ping, too_big, udp, with_hop_limit};
use crate::peer::{Peer, Sa, Wanted, esp_frame, frames, ike_message, path};

/// Takes all buffers out of a pool.
fn exhaust(pool: Pool) -> Vec<Mbuf> {
    std::iter::from_fn(|| pool.alloc()).collect()
}

/// The stations answer what they were asked when a packet was sent to them.
fn confirm_neighbours(gateway: &mut Gateway) {
    let v4 = |text: &str| text.parse().unwrap();
    let mut frame = [0; 64];
    for (mac, address, own, outer) in [
        (PEER_MAC, PEER_V4, (OUTER_MAC, OUTER_V4), true),
        (HOST_MAC, HOST_V4, (INNER_MAC, INNER_V4), false),
    ] {
        let reply = arp::Message {
            operation: arp::Operation::Reply,
            sender_mac: mac,
            sender_ip: v4(address),
            target_mac: own.0,
            target_ip: v4(own.1),
        };
        let len = reply.write_frame(own.0, &mut frame).unwrap();
        gateway.arrive(0, outer, &frame[..len]);
    }
    gateway.turn();
}

/// Sends packets of every kind both ways, many of which are dropped.
fn traffic(gateway: &mut Gateway, sa: &mut Sa) {
    let sealed = sa.seal(&ping(FAR_V4, HOST_V4, &[1; 700]));
    let mut forged = sa.seal(&ping(FAR_V4, HOST_V4, &[2; 700]));
    forged[40] ^= 1;
    let misdirected = sa.seal(&ping("10.9.9.9", HOST_V4, b"outside the selectors"));
    let to_nobody = sa.seal(&ping(FAR_V4, "10.1.0.99", b"no such neighbour"));
    for packet in [&sealed, &sealed, &forged, &misdirected, &to_nobody, &vec![7; 64]] {
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), packet));
        gateway.outer_packet(&esp(PEER_V4, OUTER_V4, packet));
    }
    gateway.outer_packet(&udp((PEER_V4, 500), (OUTER_V4, 500), &ike_message(300)));
    gateway.outer_packet(&first_fragment(udp((PEER_V4, 500), (OUTER_V4, 500), &[0; 64])));
    gateway.outer_packet(&too_big("203.0.113.1", &esp(OUTER_V4, PEER_V4, &[1; 64]), 1300));
    gateway.outer_packet(&ping(PEER_V4, OUTER_V4, b"echo"));
    for packet in [
        ping(HOST_V4, FAR_V4, &[3; 1200]),
        ping(HOST_V4, FAR_V4, &[3; 1460]),
        may_fragment(ping(HOST_V4, FAR_V4, &[4; 1460])),
        with_hop_limit(ping(HOST_V4, FAR_V4, b"last hop"), 1),
        ping(HOST_V4, "10.77.0.1", b"no policy"),
    ] {
        gateway.inner_packet(&packet);
    }
    gateway.turn();
}

// Every path on which a packet ends gives its buffer back.
#[test]
fn no_buffer_is_lost_whatever_becomes_of_the_packets() {
    let pool = pool_of("counted", 1023);
    let before = pool.available();
    let mut gateway = Gateway::with_pool(2, pool);
    let mut peer = Peer::new(1);
    let (_, conn) = peer.begin(&mut gateway);
    let tcp = path(Transport::Tcp, Some(conn));
    let wanted = Wanted { owner: 1, ..Wanted::by(path(Transport::Udp, None)) };
    let mut sa = Sa::install(&mut gateway, wanted);
    for way in [path(Transport::Udp, None), path(Transport::Native, None), tcp] {
        gateway.control.send(1, &Down::PathSet { peer: sa.peer, path: way }).unwrap();
        for full in [false, true] {
            gateway.fill_queues(full);
            traffic(&mut gateway, &mut sa);
        }
        gateway.fill_queues(false);
        let held = exhaust(pool);
        traffic(&mut gateway, &mut sa);
        drop(held);
        confirm_neighbours(&mut gateway);
    }
    for counter in [
        Counter::PoolEmpty,
        Counter::OuterTxFull,
        Counter::InnerTxFull,
        Counter::EspIcvFailed,
        Counter::EspSelector,
        Counter::HandoffReceived,
        Counter::Ipv4Fragmented,
        Counter::IpTooBig,
    ] {
        assert!(gateway.count(counter) > 0, "{counter:?}");
    }
    // What waited for a neighbour that does not answer is given up.
    gateway.pass(5_000, 100);
    peer.exchange(&mut gateway);
    gateway.pass(1_000, 100);
    assert_eq!(pool.available(), before);
}

// Without buffers, or with a full queue, nothing of a stream is lost: the stack sends it when it can.
#[test]
fn a_stream_waits_for_buffers_and_for_the_device() {
    let pool = pool_of("awaited", 255);
    let mut gateway = Gateway::with_pool(1, pool);
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let tcp = path(Transport::Tcp, Some(conn));
    let sa = Sa::install(&mut gateway, Wanted::by(tcp));
    confirm_neighbours(&mut gateway);
    let mut received = Vec::new();
    for number in 0..10 {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[number; 1000]));
        if number % 2 == 0 {
            // One for the packet that arrives.
            let mut all = exhaust(pool);
            all.pop();
            gateway.pass(300, 100);
        } else {
            gateway.fill_queues(true);
            gateway.pass(300, 100);
            gateway.fill_queues(false);
        }
        gateway.pass(1_000, 50);
        peer.exchange(&mut gateway);
        received.extend(peer.read(id));
    }
    let numbers: Vec<u64> =
        frames(&received).iter().map(|frame| sa.open(frame).unwrap().0).collect();
    assert_eq!(numbers, (1..=10).collect::<Vec<u64>>());
    assert!(gateway.count(Counter::PoolEmpty) > 0 && gateway.count(Counter::OuterTxFull) > 0);
}

// What is said about a packet needs a buffer: where there is none it is left out under a name.
#[test]
fn without_a_buffer_for_an_answer_the_answer_is_left_out() {
    let pool = pool_of("answers", 63);
    let mut gateway = Gateway::with_pool(1, pool);
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    let packet = esp_frame(&sa.seal(&ping(FAR_V4, HOST_V4, b"there is no room for it")));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[3; 1460]));
    let mut all = exhaust(pool);
    // For the packet that arrives, and none for what is said about it.
    all.pop();
    gateway.turn();
    assert_eq!(gateway.count(Counter::IpTooBig), 1);
    assert_eq!(gateway.count(Counter::PoolEmpty), 1);
    assert!(gateway.inner_packets().is_empty());
    drop(all);
    peer.send(&mut gateway, id, &packet);
    assert_eq!(gateway.inner_packets().len(), 1);
}
