//! Segmentation by the outer port's device, and segments that it has put together.

use culvert_dpdk::Offloads;
use culvert_shm::{Counter, Transport};

use crate::fixture::{FAR_V4, Gateway, HOST_V4, SEGMENTS_MAX};
use crate::packets::{ping, with_hop_limit};
use crate::peer::{Peer, Sa, Wanted, esp_frame, frames, path};

/// Inner packets in one batch: a whole burst.
const PACKETS: u8 = 30;
/// Octets of a buffer at the most.
const BUFFER: usize = 2500;

fn inner(number: u8, source: &str, destination: &str) -> Vec<u8> {
    ping(source, destination, &[number; 1300])
}

#[test]
fn a_batch_leaves_and_arrives_in_packets_of_many_segments() {
    let offloads = Offloads {
        tx_tcp_checksum: true,
        tx_ip_checksum: true,
        tx_tso: true,
        tx_segments: true,
        ..Offloads::default()
    };
    let mut gateway = Gateway::with_offloads(offloads);
    let mut peer = Peer::with_long_packets(1);
    let (id, conn) = peer.begin(&mut gateway);
    let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Tcp, Some(conn))));
    let one_hop_on =
        |number, source, destination| with_hop_limit(inner(number, source, destination), 63);

    (0..PACKETS).for_each(|number| gateway.inner_packet(&inner(number, HOST_V4, FAR_V4)));
    let before = gateway.count(Counter::TcpSegmentsOut);
    peer.exchange(&mut gateway);
    let sent = frames(&peer.read(id));
    let opened: Vec<_> = sent.iter().map(|frame| sa.open(frame).unwrap().1).collect();
    let expected: Vec<_> = (0..PACKETS).map(|n| one_hop_on(n, HOST_V4, FAR_V4)).collect();
    assert_eq!(opened, expected);
    let device_limit = usize::from(SEGMENTS_MAX) * BUFFER;
    assert!((10_000..device_limit).contains(&peer.longest), "{} octets", peer.longest);
    let segments = gateway.count(Counter::TcpSegmentsOut) - before;
    let least = u64::from(PACKETS) * 9 / 10;
    assert!(segments >= least, "{segments} segments: those that the device makes count");

    let stream: Vec<u8> = (0..PACKETS)
        .flat_map(|number| esp_frame(&sa.seal(&inner(number, FAR_V4, HOST_V4))))
        .collect();
    let before = gateway.count(Counter::OuterRxPackets);
    peer.send(&mut gateway, id, &stream[..20_000]);
    peer.send(&mut gateway, id, &stream[20_000..]);
    let expected: Vec<_> = (0..PACKETS).map(|n| one_hop_on(n, FAR_V4, HOST_V4)).collect();
    assert_eq!(gateway.inner_packets(), expected);
    let packets = gateway.count(Counter::OuterRxPackets) - before;
    assert!(packets < u64::from(PACKETS) / 2, "{packets} packets for {PACKETS} frames");
    assert_eq!(gateway.count(Counter::PoolEmpty), 0);
}

/// A chain of buffers that is no TCP for the gateway goes nowhere.
#[test]
fn a_long_packet_for_somebody_else_is_refused() {
    let mut gateway = Gateway::new();
    gateway.outer_packet(&ping(FAR_V4, HOST_V4, &[0; 9000]));
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[0; 9000]));
    gateway.turn();
    assert_eq!(gateway.count(Counter::IpNotOurs), 2);
    assert!(gateway.outer_packets().is_empty() && gateway.inner_packets().is_empty());
}
