//! What is bounded: connections in all, of one source network and without proof, their memory and
//! ports, and what a packet costs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod common;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use common::{A, B, Link, Net, Tcp, V4, syn};
use culvert_tcpstack::{
    CloseReason, ConnError, ConnId, ConnectError, DropReason, EphemeralPorts, Event,
    SegmentOutcome, Stack, StackConfig,
};

fn dropped(reason: DropReason) -> SegmentOutcome {
    SegmentOutcome::Dropped(reason)
}

fn closed(id: ConnId, reason: CloseReason) -> Event {
    Event::Closed { id, reason }
}

/// RFC 4987, 3.6: a SYN costs nothing but its answer, so that a peer that completes its handshake
/// gets through any flood of those that do not.
#[test]
fn a_syn_flood_does_not_lock_the_door() {
    let config = StackConfig { connections_max: 4, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &config, V4);
    for port in 1..=10_000 {
        assert_eq!(net.deliver(B, &syn(port, 7).packet()), SegmentOutcome::Accepted);
        net.take(B);
    }
    net.open();
    let stats = net.stacks[B].stats();
    assert_eq!((stats.cookies_sent, stats.cookies_accepted), (10_001, 1));
    assert_eq!((stats.unproven_evicted, stats.buffer_bytes), (0, 0));
    assert_eq!(net.events(B), [], "the caller hears of none of them");
}

/// Connections whose peers have proven nothing are bounded: the oldest makes room.
#[test]
fn the_unproven_make_room() {
    let config = StackConfig { connections_max: 32, unproven_max: 4, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &config, V4);
    let [_, proven] = net.open();
    net.stacks[B].vouch(proven);
    let mut names = Vec::new();
    for _ in 0..4 {
        names.push(net.open()[1]);
    }
    net.connect();
    net.run_for(Duration::from_millis(200));
    let events = net.events(B);
    assert!(events.contains(&closed(names[0], CloseReason::Evicted)), "{events:?}");
    assert_eq!(net.stacks[B].stats().unproven_evicted, 1);
    for id in [proven, names[1], names[2], names[3]] {
        assert!(net.stacks[B].info(id).is_some());
    }
    net.run_for(Duration::from_millis(200));
    assert!(
        net.events(A)
            .iter()
            .any(|event| matches!(event, Event::Closed { reason: CloseReason::PeerReset, .. }))
    );
}

/// The same where places run short: one makes room for one, before all are taken.
#[test]
fn one_of_the_unproven_makes_room_where_places_run_short() {
    let config = StackConfig { connections_max: 32, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &config, V4);
    net.stacks[A] = Stack::new(StackConfig::default(), [1; 32]).unwrap();
    let names: Vec<ConnId> = (0..30).map(|_| net.open()[1]).collect();
    for (n, name) in names.iter().enumerate().take(3) {
        net.connect();
        net.run_for(Duration::from_millis(200));
        let events = net.events(B);
        assert!(events.contains(&closed(*name, CloseReason::Evicted)), "{events:?}");
        assert!(matches!(events[..], [_, Event::Opened { .. }]), "{events:?}");
        assert_eq!(net.stacks[B].stats().unproven_evicted, n as u64 + 1);
        assert!(names[n + 1..].iter().all(|id| net.stacks[B].info(*id).is_some()));
    }
}

/// They make room for connections of our own too.
#[test]
fn the_unproven_make_room_for_our_own() {
    let config = StackConfig { connections_max: 32, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &config, V4);
    net.stacks[A] = Stack::new(StackConfig::default(), [1; 32]).unwrap();
    let strangers: Vec<ConnId> = (0..30).map(|_| net.open()[1]).collect();
    let (here, remote) = (net.addresses[B], SocketAddr::new(net.addresses[A], 4500));
    for stranger in strangers {
        assert!(net.stacks[B].connect(net.now, here, remote).is_ok());
        assert_eq!(net.events(B), [closed(stranger, CloseReason::Evicted)]);
    }
    assert!(net.stacks[B].connect(net.now, here, remote).is_ok());
    assert!(net.stacks[B].connect(net.now, here, remote).is_ok());
    let none_left = net.stacks[B].connect(net.now, here, remote);
    assert_eq!(none_left, Err(ConnectError::ConnectionsMax));
}

/// Where there are so few places that none is kept free who comes in vain comes again.
#[test]
fn who_gives_way_keeps_its_place_until_its_caller_knows() {
    let config = StackConfig { connections_max: 4, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &config, V4);
    net.stacks[A] = Stack::new(StackConfig::default(), [1; 32]).unwrap();
    let names: Vec<ConnId> = (0..4).map(|_| net.open()[1]).collect();
    let late: Vec<ConnId> = (0..2).map(|_| net.connect()).collect();
    net.run_for(Duration::from_millis(20));
    assert_eq!(net.events(B), [closed(names[0], CloseReason::Evicted)], "the first of the late");
    late.iter().for_each(|id| net.send(A, *id, b"x"));
    net.run_for(Duration::from_millis(20));
    let events = net.events(B);
    assert_eq!(net.stacks[B].stats().unproven_evicted, 2, "for the second of them");
    assert!(events.contains(&closed(names[1], CloseReason::Evicted)), "{events:?}");
    net.run_for(Duration::from_secs(2));
    assert!(matches!(net.events(B)[..], [Event::Opened { .. }, Event::Readable(_)]));
    assert!(names[2..].iter().all(|id| net.stacks[B].info(*id).is_some()));
}

/// The receive window of a peer that has proven nothing stays as it was at first, whatever it sends.
#[test]
fn a_window_grows_for_the_proven_only() {
    let mut net = Net::perfect();
    let [a, b] = net.open();
    let mut widest = |vouched: bool| {
        net.trace = Some(Vec::new());
        for _ in 0..50 {
            net.send(A, a, &vec![1; net.stacks[A].send_capacity(a).min(65_000)]);
            net.run_for(Duration::from_millis(20));
            net.recv(B, b);
        }
        if !vouched {
            net.stacks[B].vouch(b);
        }
        let from_b = net.trace.take().unwrap().into_iter().filter(|(end, ..)| *end == B);
        from_b.map(|(_, _, p)| u32::from(Tcp(&p).window()) << 7).max().unwrap()
    };
    assert!((60_000..=65_536).contains(&widest(false)));
    assert!(widest(true) > 1 << 20);
}

/// A caller that could not write because the worker's memory was used up hears of it when there is
/// some again, whoever gives it back.
#[test]
fn memory_that_comes_free_wakes_those_who_wait_for_it() {
    let config = StackConfig { buffers_bytes: 256 << 10, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &config, V4);
    let [[large, _], [waits, _], [later, _]] = [net.open(), net.open(), net.open()];
    let fill = |net: &mut Net, id, len| net.stacks[A].send_with(id, len, |room| room.len());
    while fill(&mut net, large, 16_384).is_ok() {}
    while fill(&mut net, waits, 16_384).is_ok() {}
    assert_eq!(net.stacks[A].send_capacity(later), 0);
    assert_eq!(fill(&mut net, later, 1000), Err(ConnError::Full));
    assert_eq!(net.stacks[A].room_or_event(waits, 16_384), 0);
    assert_eq!(net.events(A), []);
    net.stacks[A].abort(large);
    net.transmit();
    let events = net.events(A);
    assert!(events.contains(&Event::Writable(later)), "{events:?}");
    assert_eq!(fill(&mut net, later, 1000), Ok(1000));
    assert!(events.contains(&closed(large, CloseReason::LocalAborted)));
}

/// One source network cannot take every place.
#[test]
fn a_source_network_has_its_limit() {
    let config = StackConfig { prefix_connections_max: 2, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &StackConfig::default(), V4);
    net.stacks[B] = Stack::new(config, [9; 32]).unwrap();
    net.stacks[B].listen(4500);
    let [_, first] = net.open();
    net.open();
    net.connect();
    let third = net.take(A).remove(0);
    assert_eq!(net.deliver(B, &third), dropped(DropReason::PrefixMax));
    let elsewhere = syn(9, 9).packet();
    assert_eq!(net.deliver(B, &elsewhere), SegmentOutcome::Accepted);
    net.stacks[B].abort(first);
    net.events(B);
    assert_eq!(net.deliver(B, &third), SegmentOutcome::Accepted);
}

/// Those that linger after a close do not count: who opens and closes, and then acknowledges nothing,
/// would lock out everybody behind the same NAT for as long as that is waited for.
#[test]
fn what_lingers_does_not_count_against_its_network() {
    let config = StackConfig { prefix_connections_max: 2, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &StackConfig::default(), V4);
    net.stacks[B] = Stack::new(config, [9; 32]).unwrap();
    net.stacks[B].listen(4500);
    let open = [net.open(), net.open()];
    open.iter().for_each(|[here, _]| net.stacks[A].close(*here));
    for packet in net.take(A) {
        net.deliver(B, &packet);
    }
    assert_eq!(net.events(B), open.map(|[_, there]| closed(there, CloseReason::PeerClosed)));
    assert_eq!(net.take(B).len(), 2, "each has its FIN to be acknowledged");
    net.connect();
    let syn = net.take(A).remove(0);
    assert_eq!(net.deliver(B, &syn), SegmentOutcome::Accepted);
}

/// Whoever completes handshakes without end, from a few networks, pushes out what he has opened himself
/// and not the peer from elsewhere that has not proven itself yet.
#[test]
fn a_flood_of_handshakes_pushes_out_its_own() {
    let config = StackConfig { connections_max: 64, unproven_max: 16, ..StackConfig::default() };
    let mut net = Net::new(9, Link::PERFECT, &StackConfig::default(), V4);
    net.stacks[B] = Stack::new(config, [9; 32]).unwrap();
    net.stacks[B].listen(4500);
    let open_from = |net: &mut Net, source: [u8; 4]| {
        let remote = SocketAddr::new(net.addresses[B], 4500);
        net.stacks[A].connect(net.now, source.into(), remote).unwrap();
        net.run_for(Duration::from_millis(20));
        let opened = |event| match event {
            Event::Opened { id, .. } => Some(id),
            _ => None,
        };
        net.events(B).into_iter().find_map(opened).unwrap()
    };
    let peer = open_from(&mut net, [203, 0, 113, 7]);
    for n in 0..100 {
        open_from(&mut net, [198, 51, n % 7, n]);
    }
    assert!(net.stacks[B].info(peer).is_some());
    assert_eq!(net.stacks[B].stats().unproven_evicted, 101 - 16);
    net.stacks[B].vouch(peer);
    open_from(&mut net, [203, 0, 113, 8]);
    assert!(net.stacks[B].info(peer).is_some());
}

/// `connections_max` holds at both ends.
#[test]
fn connections_are_bounded() {
    let config = StackConfig { connections_max: 3, ..StackConfig::default() };
    let mut net = Net::new(10, Link::PERFECT, &config, V4);
    let ids: HashSet<ConnId> = (0..3).map(|_| net.connect()).collect();
    let remote = SocketAddr::new(net.addresses[B], 4500);
    let fourth = net.stacks[A].connect(net.now, net.addresses[A], remote);
    assert_eq!(fourth, Err(ConnectError::ConnectionsMax));
    net.run_for(Duration::from_secs(1));
    let opened = net.events(B);
    assert_eq!(opened.len(), 3);
    for event in opened {
        let Event::Opened { id, .. } = event else { panic!("{event:?}") };
        net.stacks[B].vouch(id);
    }
    let outcome = net.deliver(B, &syn(9, 9).packet());
    assert_eq!(outcome, dropped(DropReason::ConnectionsMax));
    assert!(ids.iter().all(|id| net.stacks[A].info(*id).is_some()));
}

/// A local port names its worker, none is used twice towards one peer, and they do not follow
/// each other (RFC 6056).
#[test]
fn ephemeral_ports_name_the_worker() {
    let ports = EphemeralPorts { first: 40_000, last: 40_099, stride: 4, offset: 3 };
    let config = StackConfig { ephemeral_ports: ports, ..StackConfig::default() };
    let mut net = Net::new(11, Link::PERFECT, &config, V4);
    let local = |net: &mut Net| {
        let id = net.connect();
        net.stacks[A].info(id).unwrap().local.port()
    };
    let found: Vec<u16> = (0..25).map(|_| local(&mut net)).collect();
    assert!(found.iter().all(|port| (40_000..40_100).contains(port) && port % 4 == 3));
    assert_eq!(found.iter().collect::<HashSet<_>>().len(), 25);
    assert!(!found.is_sorted());
    let remote = SocketAddr::new(net.addresses[B], 4500);
    let here = net.addresses[A];
    assert_eq!(net.stacks[A].connect(net.now, here, remote), Err(ConnectError::NoPort));
    let elsewhere = SocketAddr::new(net.addresses[B], 4501);
    assert!(net.stacks[A].connect(net.now, here, elsewhere).is_ok());
}

/// RFC 9293, 3.9.1.1, MUST-46: an OPEN to a broadcast or multicast address among others.
#[test]
fn addresses_that_make_no_connection_are_refused() {
    let mut net = Net::perfect();
    for (local, remote) in [
        ("192.0.2.1", "[2001:db8::1]:4500"),
        ("0.0.0.0", "192.0.2.2:4500"),
        ("192.0.2.1", "224.0.0.1:4500"),
        ("192.0.2.1", "255.255.255.255:4500"),
        ("2001:db8::1", "[ff02::1]:4500"),
        ("192.0.2.1", "192.0.2.2:0"),
    ] {
        let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
        let refused = net.stacks[A].connect(net.now, local, remote);
        assert_eq!(refused, Err(ConnectError::Address));
    }
}

/// The cost of a packet does not depend on the number of connections: as many are looked at with
/// 10,000 open as with one. Counted, not timed.
#[test]
fn ten_thousand_connections_cost_nothing_extra() {
    let work = |connections: u32| {
        let config = StackConfig {
            rx_buffer_bytes: 65_536,
            tx_buffer_bytes: 65_536,
            prefix_connections_max: 20_000,
            unproven_max: 20_000,
            ..StackConfig::default()
        };
        let mut net = Net::new(13, Link::PERFECT, &config, V4);
        let mut ids = Vec::new();
        let mut opened = 0;
        for batch in 0..connections.div_ceil(100) {
            ids.extend((batch * 100..connections.min(batch * 100 + 100)).map(|_| net.connect()));
            net.run_for(Duration::from_millis(50));
            opened += net.events(B).len();
        }
        // The handshakes' timers are past after this.
        net.run_for(Duration::from_secs(20));
        assert_eq!(opened, connections as usize);
        let before = net.stacks[B].stats();
        let probe = ids[ids.len() / 2];
        for _ in 0..100 {
            // A length that divides the buffer: no segment is split where the ring wraps.
            net.send(A, probe, &[1; 1024]);
            net.run_for(Duration::from_millis(20));
            for event in net.events(B) {
                let Event::Readable(id) = event else { panic!("{event:?}") };
                assert_eq!(net.recv(B, id).len(), 1024);
            }
        }
        let after = net.stacks[B].stats();
        assert_eq!(after.segments_in - before.segments_in, 100);
        after.connections_polled - before.connections_polled
    };
    let one = work(1);
    assert!((100..=400).contains(&one), "{one} looks for 100 segments");
    assert_eq!(work(10_000), one);
}

/// A timer that has nothing to do any more when its time comes costs its connection nothing: that
/// sends when something is written, looks again when it is acknowledged, and is left alone then.
#[test]
fn a_timer_that_was_put_off_wakes_nobody() {
    let mut net = Net::perfect();
    let [a, _] = net.open();
    net.run_for(Duration::from_secs(20));
    let before = net.stacks[A].stats().connections_polled;
    for _ in 0..20 {
        net.send(A, a, &[1; 1000]);
        net.run_for(Duration::from_secs(1));
    }
    assert_eq!(net.stacks[A].stats().connections_polled - before, 40);
}
