//! Packets that nobody sane would send. A panic in a worker is everybody's outage, so whatever
//! comes ends in an outcome with a name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{A, B, Link, Net, Segment, Tcp, V4, V6};
use culvert_tcpstack::{
    ConnId, ConnInfo, DropReason, Event, RxChecksum, SegmentOutcome, StackConfig,
};
use proptest::prelude::*;

fn config() -> StackConfig {
    StackConfig {
        connections_max: 8,
        unproven_max: 4,
        rx_buffer_bytes: 65_536,
        tx_buffer_bytes: 65_536,
        ..StackConfig::default()
    }
}

/// A segment on a connection whose numbers the attacker nearly knows.
#[derive(Debug, Clone)]
struct Forged {
    to_a: bool,
    seq: u32,
    ack: u32,
    flags: u8,
    data: usize,
    options: Vec<u8>,
    window: u16,
    wait_ms: u64,
    send: usize,
    read: bool,
    close: bool,
}

/// An offset that is small, near a window, near half the space, or anything.
fn offset() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => (0u32..5).prop_map(|n| n.wrapping_sub(2)),
        2 => (0u32..200_000).prop_map(|n| n.wrapping_sub(100_000)),
        1 => (0u32..5).prop_map(|n| n.wrapping_add(0x7fff_fffe)),
        1 => any::<u32>(),
    ]
}

fn forged() -> impl Strategy<Value = Forged> {
    let option = prop_oneof![
        Just(vec![1]),
        Just(vec![0]),
        any::<[u8; 2]>().prop_map(|mss| vec![2, 4, mss[0], mss[1]]),
        any::<u8>().prop_map(|shift| vec![3, 3, shift]),
        Just(vec![4, 2]),
        any::<[u8; 8]>().prop_map(|block| [&[5, 10][..], &block].concat()),
        any::<[u8; 8]>().prop_map(|times| [&[8, 10][..], &times].concat()),
        prop::collection::vec(any::<u8>(), 1..8),
    ];
    let options = prop::collection::vec(option, 0..4).prop_map(|options| {
        let mut octets = options.concat();
        octets.truncate(40);
        octets.resize(octets.len().next_multiple_of(4), 1);
        octets
    });
    // Mostly a plain ACK, or else anything.
    let flags = prop_oneof![3 => Just(0x10), 1 => Just(0x18), 1 => Just(0x11), 2 => any::<u8>()];
    let data = prop_oneof![Just(0), 1usize..1500, Just(1460)];
    let window = prop_oneof![Just(0), Just(1), any::<u16>()];
    let numbers = (any::<bool>(), offset(), offset(), flags, data, options, window);
    let steps = (0u64..3000, 0usize..4000, any::<bool>(), prop::bool::weighted(0.05));
    (numbers, steps).prop_map(
        |((to_a, seq, ack, flags, data, options, window), (wait_ms, send, read, close))| Forged {
            to_a,
            seq,
            ack,
            flags,
            data,
            options,
            window,
            wait_ms,
            send,
            read,
            close,
        },
    )
}

/// The packet, between the two ends of a connection whose last true segment is given.
fn packet(forged: &Forged, ends: (SocketAddr, SocketAddr), last: (u32, u32)) -> Vec<u8> {
    let mut packet = Segment {
        source: ends.0,
        destination: ends.1,
        seq: last.0.wrapping_add(forged.seq),
        ack: last.1.wrapping_add(forged.ack),
        flags: forged.flags,
        data: [&forged.options[..], &vec![7; forged.data]].concat(),
    }
    .packet();
    packet[32] = ((5 + forged.options.len() / 4) << 4) as u8;
    packet[34..36].copy_from_slice(&forged.window.to_be_bytes());
    packet
}

/// The caller of a stack under attack: does what it is told and what comes to its mind.
fn use_connection(net: &mut Net, end: usize, id: ConnId, forged: &Forged) {
    net.events(end);
    let written = net.stacks[end].send_with(id, forged.send, |room| room.len());
    assert!(written.is_err() || written == Ok(forged.send));
    if forged.read {
        while net.stacks[end].recv(id, |octets| octets.len()).is_ok_and(|read| read > 0) {}
    }
    if forged.close {
        net.stacks[end].close(id);
    }
}

/// Whether something will happen by itself, if octets wait to be sent or acknowledged.
fn has_timer(net: &mut Net, end: usize, id: ConnId) -> bool {
    net.events(end); // What has ended is gone from here on.
    let waits = |info: ConnInfo| info.in_flight_bytes > 0 || info.unsent_bytes > 0;
    let stack = &net.stacks[end];
    !stack.info(id).is_some_and(waits) || stack.poll_timeout().is_some()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Forged segments on open connections, with right addresses and ports and numbers near the
    /// right ones, between true traffic: the stack goes on, and a connection that the attack has
    /// not ended goes on too, or ends by a timeout.
    #[test]
    fn forged_segments_are_survived(steps in prop::collection::vec(forged(), 1..60)) {
        let mut net = Net::new(1, Link::PERFECT, &config(), V4);
        net.trace = Some(Vec::new());
        let names = net.open();
        let info = net.stacks[A].info(names[A]).unwrap();
        for step in &steps {
            let (to, from, ends) = if step.to_a {
                (A, B, (info.remote, info.local))
            } else {
                (B, A, (info.local, info.remote))
            };
            let trace = net.trace.as_ref().unwrap();
            let last = trace.iter().rev().find(|(end, _, _)| *end == from).map(|(_, _, packet)| {
                let tcp = Tcp(packet);
                (tcp.seq().wrapping_add(tcp.data().len() as u32), tcp.ack())
            });
            let forged = packet(step, ends, last.unwrap());
            net.deliver_verified(to, &forged);
            for end in [A, B] {
                use_connection(&mut net, end, names[end], step);
            }
            net.run_for(Duration::from_millis(step.wait_ms));
            for end in [A, B] {
                prop_assert!(has_timer(&mut net, end, names[end]), "for what waits");
            }
        }
        for end in [A, B] {
            net.stacks[end].close(names[end]);
        }
        net.run_for(Duration::from_secs(300));
        net.events(A);
        net.events(B);
        net.run_for(Duration::from_secs(300));
        prop_assert_eq!(net.stacks.each_ref().map(culvert_tcpstack::Stack::poll_timeout), [None, None]);
        // Whatever happened, a new connection works.
        net.events(B);
        net.open();
    }

    /// Octets that are no packet, and packets with any octets changed or cut off.
    #[test]
    fn noise_is_survived(
        v6: bool,
        changes in prop::collection::vec((0usize..80, any::<u8>()), 0..6),
        length in 0usize..120,
        noise in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut net = Net::new(2, Link::PERFECT, &config(), if v6 { V6 } else { V4 });
        net.connect();
        let mut syn = net.take(A).remove(0);
        for (at, octet) in changes {
            let at = at % syn.len();
            syn[at] = octet;
        }
        syn.truncate(length);
        for packet in [&syn, &noise] {
            for checksum in [RxChecksum::Verified, RxChecksum::Unknown] {
                net.deliver_as(B, packet, checksum);
                net.deliver_as(A, packet, checksum);
                net.run_for(Duration::from_secs(30));
            }
        }
        net.events(B);
    }
}

/// Each way of being no segment for this stack has its name.
#[test]
fn what_is_no_segment_is_dropped_under_its_name() {
    let mut net = Net::new(3, Link::PERFECT, &config(), V4);
    net.connect();
    let syn = net.take(A).remove(0);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = syn.clone();
        change(&mut packet);
        packet
    };
    let cases = [
        (DropReason::Malformed, changed(&|packet| packet.clear())),
        (DropReason::Malformed, changed(&|packet| packet[0] = 0x55)),
        (DropReason::Malformed, changed(&|packet| packet.truncate(39))),
        (DropReason::Malformed, changed(&|packet| packet[32] = 0x40)),
        (DropReason::Malformed, changed(&|packet| packet[12..16].fill(0))),
        (DropReason::Malformed, changed(&|packet| packet[12..16].fill(0xff))),
        (DropReason::Malformed, changed(&|packet| packet[16] = 224)),
        (DropReason::Malformed, changed(&|packet| packet[20..22].fill(0))),
        (DropReason::Fragment, changed(&|packet| packet[6] |= 0x20)),
        (DropReason::Fragment, changed(&|packet| packet[7] = 1)),
        (DropReason::NotTcp, changed(&|packet| packet[9] = 17)),
    ];
    for (reason, packet) in cases {
        let outcome = net.deliver_verified(B, &packet);
        assert_eq!(outcome, SegmentOutcome::Dropped(reason), "{packet:02x?}");
    }
    assert_eq!(net.take(B), Vec::<Vec<u8>>::new(), "none of them is answered");
    // Ethernet pads short frames.
    let padded = changed(&|packet| packet.extend([0; 6]));
    assert_eq!(net.deliver(B, &padded), SegmentOutcome::Accepted);
    net.run_for(Duration::from_secs(1));
    assert!(matches!(net.events(B)[..], [Event::Opened { .. }]));
}
