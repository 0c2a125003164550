//! The life of connections: opening, closing, and what strangers can do to them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod common;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use common::{A, ACK, B, FIN, Link, Net, RST, SYN, Segment, Tcp, V4, V6, syn};
use culvert_tcpstack::{
    CloseReason, ConnError, ConnId, ConnectError, DropReason, EphemeralPorts, Event,
    SegmentOutcome, Stack, StackConfig, TxChecksum,
};

fn dropped(reason: DropReason) -> SegmentOutcome {
    SegmentOutcome::Dropped(reason)
}

fn closed(id: ConnId, reason: CloseReason) -> Event {
    Event::Closed { id, reason }
}

/// RFC 9293, 3.5: SYN, SYN-ACK, ACK, in both families, and what each end is told.
#[test]
fn a_handshake_opens_a_connection_at_both_ends() {
    for addresses in [V4, V6] {
        let mut net = Net::new(5, Link::PERFECT, &StackConfig::default(), addresses);
        net.trace = Some(Vec::new());
        let [a, b] = net.open();
        let [at_a, at_b] = [(A, a), (B, b)].map(|(end, id)| net.stacks[end].info(id).unwrap());
        assert_eq!((at_a.local, at_a.remote), (at_b.remote, at_b.local));
        assert_eq!((at_a.originator, at_b.originator), (true, false));
        assert!(at_a.opened_at < at_b.opened_at, "the ACK takes its time");
        let trace = net.trace.take().unwrap();
        let flags: Vec<_> = trace.iter().map(|(end, _, p)| (*end, Tcp(p).flags())).collect();
        assert_eq!(flags, [(A, SYN), (B, SYN | ACK), (A, ACK)]);
    }
}

/// RFC 9293, 3.7.1: the MSS is the MTU without the headers. RFC 9293, 3.7.2: packets may not be
/// fragmented. Not-ECT, constant DSCP and flow label.
#[test]
fn packets_say_what_they_must() {
    for (addresses, mss) in [(V4, 1360_u16), (V6, 1340)] {
        let config = StackConfig { mtu: 1400, ..StackConfig::default() };
        let mut net = Net::new(6, Link::PERFECT, &config, addresses);
        net.trace = Some(Vec::new());
        let [a, _] = net.open();
        net.send(A, a, &[1; 5000]);
        net.run_for(Duration::from_millis(100));
        let trace = net.trace.take().unwrap();
        let [high, low] = mss.to_be_bytes();
        for (_, _, packet) in &trace[..2] {
            assert_eq!(Tcp(packet).options()[..4], [2, 4, high, low]);
        }
        assert_eq!(trace.iter().map(|(_, _, packet)| packet.len()).max(), Some(1400));
        for (_, _, packet) in &trace {
            if addresses == V4 {
                assert_eq!(packet[..2], [0x45, 0], "no options, DSCP 0, Not-ECT");
                assert_eq!(packet[6..8], [0x40, 0], "DF, no fragment");
            } else {
                assert_eq!(packet[..2], [0x60, packet[1] & 0xf], "DSCP 0, Not-ECT");
            }
        }
    }
}

/// RFC 9293, 3.10.7.1: a SYN to a closed port gets a RST that acknowledges it, and the other end
/// is told that it was refused.
#[test]
fn a_closed_port_refuses() {
    let mut net = Net::perfect();
    let remote = SocketAddr::new(net.addresses[B], 500);
    let id = net.stacks[A].connect(net.now, net.addresses[A], remote).unwrap();
    let syn = net.take(A).remove(0);
    assert_eq!(net.deliver(B, &syn), dropped(DropReason::PortClosed));
    let rst = net.take(B).remove(0);
    assert_eq!((Tcp(&rst).flags(), Tcp(&rst).seq()), (RST | ACK, 0));
    assert_eq!(Tcp(&rst).ack(), Tcp(&syn).seq().wrapping_add(1));
    assert_eq!(net.deliver(A, &rst), SegmentOutcome::Accepted);
    assert_eq!(net.events(A), [closed(id, CloseReason::Refused)]);
    assert_eq!(net.take(A), Vec::<Vec<u8>>::new());
    assert_eq!(net.stacks[A].recv(id, |_| 0), Err(ConnError::Gone));
}

/// RFC 9293, 3.10.7.1: a segment of no connection gets a RST with the number that it
/// acknowledges; a RST gets nothing.
#[test]
fn strangers_are_reset() {
    let mut net = Net::perfect();
    let stray = Segment { flags: ACK, ack: 0x1234_5678, ..syn(1000, 77) };
    assert_eq!(net.deliver(B, &stray.packet()), dropped(DropReason::NoConnection));
    let rst = net.take(B).remove(0);
    assert_eq!((Tcp(&rst).flags(), Tcp(&rst).seq()), (RST, 0x1234_5678));
    let fin = Segment { flags: FIN, data: vec![1, 2], ..syn(1000, 77) };
    net.deliver(B, &fin.packet());
    assert_eq!(Tcp(&net.take(B)[0]).ack(), 77 + 3);
    let rst = Segment { flags: RST, ..syn(1000, 77) };
    assert_eq!(net.deliver(B, &rst.packet()), dropped(DropReason::NoConnection));
    assert_eq!(net.take(B), Vec::<Vec<u8>>::new());
}

#[test]
fn a_flood_is_not_answered_by_a_flood() {
    let mut net = Net::perfect();
    let (mut resets, mut silent) = (0, 0);
    for port in 1..=1000 {
        let stray = Segment { flags: ACK, ..syn(port, 7) };
        let outcome = net.deliver(B, &stray.packet());
        // Hardly any looks as if its first octets had been overtaken.
        silent += u64::from(outcome == dropped(DropReason::HandshakeUnfinished));
        resets += net.take(B).len();
    }
    assert_eq!(resets, 200, "in one second");
    let stats = net.stacks[B].stats();
    assert_eq!((stats.resets_sent, stats.resets_suppressed), (200, 800 - silent));
    assert!(silent < 5, "{silent} of 1,000");
    net.run_for(Duration::from_secs(1));
    net.deliver(B, &Segment { flags: ACK, ..syn(1, 7) }.packet());
    assert_eq!(net.take(B).len(), 1);
}

/// Strays do not mute what is said to peers: each reason for a RST has a budget of its own.
#[test]
fn strays_do_not_mute_an_abort() {
    let mut net = Net::perfect();
    let [_, b] = net.open();
    for port in 1..=1000 {
        net.deliver(B, &Segment { flags: ACK, ..syn(port, 7) }.packet());
    }
    net.take(B);
    assert!(net.stacks[B].stats().resets_suppressed > 0);
    net.stacks[B].abort(b);
    let sent = net.take(B);
    assert_eq!(sent.iter().map(|p| Tcp(p).flags()).collect::<Vec<_>>(), [RST | ACK]);
}

/// RFC 9293, 3.10.7.1: strays from one network do not mute the RST that another one is due, whose
/// connection is lost.
#[test]
fn strays_do_not_mute_the_reset_of_another_network() {
    let mut net = Net::perfect();
    for port in 1..=1000 {
        net.deliver(B, &Segment { flags: ACK, ..syn(port, 7) }.packet());
    }
    net.take(B);
    assert!(net.stacks[B].stats().resets_suppressed > 0);
    let source = SocketAddr::from(([198, 51, 100, 9], 4500));
    let elsewhere = Segment { source, flags: ACK, ack: 99, ..syn(1, 7) };
    net.deliver(B, &elsewhere.packet());
    let sent = net.take(B);
    assert_eq!(sent.iter().map(|p| Tcp(p).flags()).collect::<Vec<_>>(), [RST]);
}

/// RFC 6528, 3: of two connections of the same ends the later one begins above the other by what the
/// clock of 4 microseconds has counted; of other ends it says nothing.
#[test]
fn rfc6528_3_initial_sequence_numbers_grow_for_the_same_ends_only() {
    let ports = EphemeralPorts { first: 50_000, last: 50_000, stride: 1, offset: 0 };
    let config = StackConfig { ephemeral_ports: ports, ..StackConfig::default() };
    let mut net = Net::new(12, Link::PERFECT, &config, V4);
    let mut isn = |port: u16| {
        let remote = SocketAddr::new(net.addresses[B], port);
        let id = net.stacks[A].connect(net.now, net.addresses[A], remote).unwrap();
        let syn = net.take(A).remove(0);
        net.stacks[A].abort(id);
        net.events(A);
        let at = net.now;
        net.now = at + Duration::from_secs(1);
        Tcp(&syn).seq()
    };
    let (first, other, later) = (isn(4500), isn(443), isn(4500));
    assert_eq!(later.wrapping_sub(first), 2 * 250_000);
    assert_ne!(other.wrapping_sub(first), 250_000, "another hash");
}

/// The peer closes: what it had sent is given out first, then the reason, and both ends finish
/// the close by themselves (RFC 9293, 3.6).
#[test]
fn a_peer_that_closes_is_heard_to_the_end() {
    let mut net = Net::perfect();
    let [a, b] = net.open();
    net.send(A, a, b"last words");
    net.stacks[A].close(a);
    assert_eq!(net.events(A), [closed(a, CloseReason::LocalClosed)]);
    net.run_for(Duration::from_secs(1));
    assert_eq!(net.events(B), [Event::Readable(b)]);
    assert_eq!(net.recv(B, b), b"last words");
    assert_eq!(net.events(B), [closed(b, CloseReason::PeerClosed)]);
    assert_eq!(net.stacks[B].send_with(b, 1, |_| 1), Err(ConnError::Gone));
    net.trace = Some(Vec::new());
    net.run_for(Duration::from_secs(62));
    let flags: Vec<u8> = net.trace.iter().flatten().map(|(_, _, p)| Tcp(p).flags()).collect();
    assert_eq!(flags, [FIN | ACK, ACK]);
    assert_eq!(net.stacks.each_ref().map(Stack::poll_timeout), [None, None], "nothing is left");
}

/// The peer aborts: what had come before is still readable when its event is handled.
#[test]
fn a_reset_ends_a_connection_at_once() {
    let mut net = Net::perfect();
    let [a, b] = net.open();
    net.send(A, a, b"half a fra");
    net.transmit();
    net.stacks[A].abort(a);
    assert_eq!(net.events(A), [closed(a, CloseReason::LocalAborted)]);
    net.run_for(Duration::from_millis(100));
    assert_eq!(net.stacks[B].poll_event(), Some(Event::Readable(b)));
    assert_eq!(net.recv(B, b), b"half a fra");
    assert_eq!(net.events(B), [closed(b, CloseReason::PeerReset)]);
}

/// What a peer sends after our close is discarded, so that its FIN is not kept back.
#[test]
fn a_talkative_peer_can_be_closed() {
    let mut net = Net::perfect();
    let [a, b] = net.open();
    net.stacks[B].close(b);
    assert_eq!(net.events(B), [closed(b, CloseReason::LocalClosed)]);
    net.send(A, a, &vec![1; 100_000]);
    net.run_for(Duration::from_secs(5));
    assert_eq!(net.events(A), [closed(a, CloseReason::PeerClosed)]);
    net.run_for(Duration::from_secs(62));
    assert_eq!(net.stacks.each_ref().map(Stack::poll_timeout), [None, None]);
}

/// A peer that never answers our FIN does not keep its slot.
#[test]
fn a_close_takes_only_so_long() {
    let config = StackConfig { connections_max: 1, ..StackConfig::default() };
    let mut net = Net::new(8, Link::PERFECT, &config, V4);
    let [a, _] = net.open();
    net.link.loss = 1000;
    net.stacks[A].close(a);
    net.events(A);
    let remote = SocketAddr::new(net.addresses[B], 4500);
    let again = |net: &mut Net| net.stacks[A].connect(net.now, net.addresses[A], remote);
    net.run_for(Duration::from_secs(19));
    assert!(net.stacks[A].poll_timeout().is_some(), "it still tries");
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.stacks[A].poll_timeout(), None);
    let new = again(&mut net).unwrap();
    assert_eq!((new.index, new.generation), (a.index, a.generation + 1));
}

/// Connections that linger after a close give way to new ones, once the caller knows of their end.
#[test]
fn those_that_linger_make_room() {
    let config = StackConfig { connections_max: 1, ..StackConfig::default() };
    let mut net = Net::new(8, Link::PERFECT, &config, V4);
    let [a, _] = net.open();
    net.link.loss = 1000;
    net.stacks[A].close(a);
    let remote = SocketAddr::new(net.addresses[B], 4500);
    let again = |net: &mut Net| net.stacks[A].connect(net.now, net.addresses[A], remote);
    assert_eq!(again(&mut net), Err(ConnectError::ConnectionsMax), "the caller must hear of it");
    assert_eq!(net.events(A), [closed(a, CloseReason::LocalClosed)]);
    assert!(again(&mut net).is_ok());
}

#[test]
fn nobody_answers() {
    let mut net = Net::perfect();
    net.link.loss = 1000;
    net.trace = Some(Vec::new());
    let id = net.connect();
    assert_eq!(net.stacks[A].send_with(id, 1, |_| 1), Err(ConnError::NotOpen));
    assert_eq!(net.stacks[A].recv(id, |_| 0), Err(ConnError::NotOpen));
    net.run_for(Duration::from_secs(9));
    assert_eq!(net.events(A), []);
    let syns = net.trace.iter().flatten().filter(|(_, _, p)| Tcp(p).flags() == SYN).count();
    assert!(syns >= 3, "{syns} SYNs");
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.events(A), [closed(id, CloseReason::ConnectTimeout)]);
}

/// RFC 6528: from one initial sequence number the next cannot be told, at either end.
#[test]
fn initial_sequence_numbers_do_not_follow_each_other() {
    let mut net = Net::perfect();
    net.trace = Some(Vec::new());
    for _ in 0..200 {
        net.connect();
    }
    net.run_for(Duration::from_millis(100));
    let trace = net.trace.take().unwrap();
    for (end, flags) in [(A, SYN), (B, SYN | ACK)] {
        let numbers: Vec<u32> = trace
            .iter()
            .filter(|(from, _, packet)| (*from, Tcp(packet).flags()) == (end, flags))
            .map(|(_, _, packet)| Tcp(packet).seq())
            .collect();
        assert_eq!(numbers.len(), 200);
        let steps: HashSet<u32> =
            numbers.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        assert_eq!(steps.len(), 199, "steps that repeat");
        // Were they near each other, the top octet would take few values.
        let tops: HashSet<u32> = numbers.iter().map(|number| number >> 24).collect();
        assert!(tops.len() > 100, "{} of 256 top octets", tops.len());
    }
}

/// RFC 5961, 3.2: a RST inside the window that is not exactly right does not end the connection
/// but is answered by an ACK, rarely; one that is right ends it.
#[test]
fn a_blind_reset_is_challenged() {
    let mut net = Net::perfect();
    let [a, b] = net.open();
    let info = net.stacks[B].info(b).unwrap();
    net.send(A, a, b"1234");
    let data = net.take(A).remove(0);
    let next = Tcp(&data).seq().wrapping_add(4);
    net.deliver(B, &data);
    let rst = |seq| {
        let (source, destination) = (info.remote, info.local);
        Segment { source, destination, seq, ack: 0, flags: RST, data: Vec::new() }.packet()
    };
    net.take(B);
    for offset in [1, 2, 100, 65_000] {
        let blind = rst(next.wrapping_add(offset));
        assert_eq!(net.deliver(B, &blind), dropped(DropReason::Challenged));
    }
    for offset in [0x8000_0000, u32::MAX] {
        let blind = rst(next.wrapping_add(offset));
        assert_eq!(net.deliver(B, &blind), dropped(DropReason::OutOfWindow));
    }
    let answers = net.take(B);
    assert_eq!(answers.len(), 1, "one challenge ACK for all of them");
    assert_eq!((Tcp(&answers[0]).flags(), Tcp(&answers[0]).ack()), (ACK, next));
    assert_eq!(Tcp(&answers[0]).seq(), Tcp(&data).ack());
    assert_eq!(net.events(B), [Event::Readable(b)]);
    assert_eq!(net.deliver(B, &rst(next)), SegmentOutcome::Accepted);
    assert_eq!(net.events(B), [closed(b, CloseReason::PeerReset)]);
}

/// RFC 5961, 4.2: a SYN on an open connection is answered by an ACK, whatever its number; a peer
/// that has really started anew answers that with a RST.
#[test]
fn a_blind_syn_is_challenged() {
    let mut net = Net::perfect();
    let [_, b] = net.open();
    let info = net.stacks[B].info(b).unwrap();
    let again = Segment { source: info.remote, destination: info.local, ..syn(0, 12_345) };
    assert_eq!(net.deliver(B, &again.packet()), dropped(DropReason::Challenged));
    let answer = net.take(B).remove(0);
    assert_eq!(Tcp(&answer).flags(), ACK);
    // The peer, which knows of nothing.
    let mut new = Net::perfect();
    new.deliver(A, &answer);
    let rst = new.take(A).remove(0);
    assert_eq!(net.deliver(B, &rst), SegmentOutcome::Accepted);
    assert_eq!(net.events(B), [closed(b, CloseReason::PeerReset)]);
    assert_eq!(net.deliver(B, &again.packet()), SegmentOutcome::Accepted);
}

/// Checksums are verified here or by the device, and filled in here or by the device.
#[test]
fn checksums_are_somebodys_task() {
    for (at, v6) in [(10, false), (37, false), (57, true)] {
        let mut net =
            Net::new(12, Link::PERFECT, &StackConfig::default(), if v6 { V6 } else { V4 });
        net.connect();
        let mut syn = net.take(A).remove(0);
        syn[at] ^= 1;
        assert_eq!(net.deliver(B, &syn), dropped(DropReason::BadChecksum));
        let verified = net.deliver_verified(B, &syn);
        assert_eq!(verified, SegmentOutcome::Accepted);
    }
    let config = StackConfig { tx_checksum: TxChecksum::Device, ..StackConfig::default() };
    let mut net = Net::new(12, Link::PERFECT, &config, V4);
    net.connect();
    let syn = net.take(A).remove(0);
    assert_eq!(syn[36..38], [0, 0]);
    assert_ne!(syn[10..12], [0, 0], "the header of IPv4 is complete");
}
