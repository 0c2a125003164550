//! Streams between two stacks over a link that is not kind: what arrives is what was sent, or the
//! connection ends with a reason.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod common;

use std::time::Duration;

use common::{A, B, Batch, End, Link, Net, Random, Tcp, V4, V6};
use culvert_tcpstack::{CloseReason, ConnError, ConnId, Event, StackConfig};
use proptest::prelude::*;

/// The least buffers, so that rings wrap all the time.
fn small() -> StackConfig {
    StackConfig {
        connections_max: 8,
        rx_buffer_bytes: 65_536,
        tx_buffer_bytes: 65_536,
        ..StackConfig::default()
    }
}

/// The stream of one direction: octet n is a function of n.
fn octet(n: usize) -> u8 {
    (n ^ n >> 8 ^ n >> 16) as u8
}

/// One direction of a transfer.
struct Flow {
    from: End,
    names: [ConnId; 2],
    total: usize,
    sent: usize,
    received: usize,
    random: Random,
}

impl Flow {
    /// Writes as many frames as there is room for. A frame is all or nothing.
    fn write(&mut self, net: &mut Net) {
        let id = self.names[self.from];
        while self.sent < self.total {
            let len = (self.random.next() as usize % 3000 + 1).min(self.total - self.sent);
            let room = net.stacks[self.from].send_capacity(id);
            let sent = net.stacks[self.from].send_with(id, len, |frame| {
                assert_eq!(frame.len(), len);
                for (n, place) in frame.iter_mut().enumerate() {
                    *place = octet(self.sent + n);
                }
                len
            });
            match sent {
                Ok(sent) => {
                    assert_eq!(sent, len);
                    self.sent += len;
                }
                Err(error) => {
                    assert_eq!(error, ConnError::Full);
                    return assert!(room < len, "there was room for the frame");
                }
            }
        }
    }

    /// Reads what has come, sometimes not all that is lent.
    fn read(&mut self, net: &mut Net) {
        let to = 1 - self.from;
        loop {
            let part = self.random.next() as usize;
            let received = self.received;
            let consumed = net.stacks[to].recv(self.names[to], |octets| {
                for (n, found) in octets.iter().enumerate() {
                    assert_eq!(*found, octet(received + n), "octet {}", received + n);
                }
                1 + part % octets.len()
            });
            match consumed {
                Ok(0) => break,
                Ok(consumed) => self.received += consumed,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Sends so many octets each way and shows that all of them arrive. The originator speaks first, as
/// in RFC 9329: its first octets complete the handshake even if its ACK was lost.
fn transfer(seed: u64, link: Link, addresses: [&str; 2], total: usize) -> Net {
    let mut net = Net::new(seed, link, &small(), addresses);
    let a = net.connect();
    let deadline = net.now + Duration::from_secs(600);
    let mut flows = [A, B].map(|from| Flow {
        from,
        names: [a; 2],
        total,
        sent: 0,
        received: 0,
        random: Random::new(seed.wrapping_add(from as u64)),
    });
    let mut open = [false; 2];
    while flows.iter().any(|flow| flow.received < total) {
        assert!(net.now < deadline, "stuck at {:?}", flows.map(|flow| flow.received));
        for end in [A, B] {
            for event in net.events(end) {
                if let Event::Opened { id, .. } = event {
                    open[end] = true;
                    flows.iter_mut().for_each(|flow| flow.names[end] = id);
                }
                assert!(!matches!(event, Event::Closed { .. }), "{event:?}");
            }
        }
        for flow in flows.iter_mut().filter(|flow| open[flow.from]) {
            flow.write(&mut net);
        }
        for flow in flows.iter_mut().filter(|flow| open[1 - flow.from]) {
            flow.read(&mut net);
        }
        net.step(deadline);
    }
    for flow in &flows {
        let info = net.stacks[flow.from].info(flow.names[flow.from]).unwrap();
        assert_eq!((info.octets_out, info.octets_in), (total as u64, total as u64));
    }
    net
}

/// Losses that make both ends retransmit at once, so that each hears only old octets from the
/// other: their ACKs have to count all the same (RFC 9293, 3.10.7.4).
#[test]
fn both_ends_may_time_out_at_once() {
    transfer(12_598_610_730_135_661_502, Link::BAD, V4, 300_000);
}

#[test]
fn a_perfect_link_needs_no_retransmission() {
    for addresses in [V4, V6] {
        let net = transfer(1, Link::PERFECT, addresses, 2_000_000);
        let data_segments = 2 * 2_000_000 / 1440;
        let sent = net.stacks[A].stats().segments_out + net.stacks[B].stats().segments_out;
        // Each data segment at most once more for frames that end before the segment does, and
        // at most one ACK for each.
        assert!(sent < 4 * data_segments, "{sent} segments");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Loss, duplication and reordering, all at once, both families: every octet arrives once and
    /// in order, although frames wrap in both rings all the time.
    #[test]
    fn a_bad_link_changes_nothing(seed: u64, v6: bool) {
        transfer(seed, Link::BAD, if v6 { V6 } else { V4 }, 300_000);
    }
}

/// A device that takes two packets at a time gets all of them, in order and without loss.
#[test]
fn a_full_device_loses_nothing() {
    let mut net = Net::perfect();
    let [a, b] = net.open();
    let octets: Vec<u8> = (0..20_000).map(octet).collect();
    net.send(A, a, &octets);
    let mut received = Vec::new();
    let give_up = net.now + Duration::from_secs(1);
    while received.len() < octets.len() {
        assert!(net.now < give_up, "stuck at {}", received.len());
        let mut batch = Batch { packets: Vec::new(), room: 2 };
        net.stacks[A].poll_transmit(net.now, &mut batch);
        net.now = net.now + Duration::from_millis(1);
        for packet in batch.packets {
            net.deliver(B, &packet);
        }
        received.extend(net.recv(B, b));
        for packet in net.take(B) {
            net.deliver(A, &packet);
        }
    }
    assert_eq!(received, octets);
    let data_segments = net.stacks[A].info(a).unwrap().segments_out - 2;
    assert_eq!(data_segments, 14, "segments for 20,000 octets");
}

/// While something waits for the device, `poll_timeout` does not let the caller sleep.
#[test]
fn waiting_for_the_device_is_no_reason_to_sleep() {
    let mut net = Net::perfect();
    let [a, _] = net.open();
    net.send(A, a, &[1; 100]);
    let mut full = Batch { packets: Vec::new(), room: 0 };
    net.stacks[A].poll_transmit(net.now, &mut full);
    assert!(net.stacks[A].poll_timeout().is_some_and(|at| at <= net.now));
    assert_eq!(net.take(A).len(), 1);
    assert!(net.stacks[A].poll_timeout().is_some_and(|at| at > net.now));
}

/// What waits in the send buffer is visible, told apart by whether it has been sent.
#[test]
fn unsent_octets_are_visible() {
    let mut net = Net::perfect();
    let [a, _] = net.open();
    net.send(A, a, &vec![1; 30_000]);
    let before = net.stacks[A].info(a).unwrap();
    assert_eq!((before.unsent_bytes, before.in_flight_bytes), (30_000, 0));
    let sent: usize = net.take(A).iter().map(|packet| Tcp(packet).data().len()).sum();
    assert!(0 < sent && sent < 30_000, "the first window of congestion control");
    let after = net.stacks[A].info(a).unwrap();
    assert_eq!((after.unsent_bytes, after.in_flight_bytes), (30_000 - sent, sent));
}

/// A caller that was refused is told when there is room, and not before.
#[test]
fn writable_follows_a_refusal() {
    let mut net = Net::new(3, Link::PERFECT, &small(), V4);
    let [a, b] = net.open();
    net.send(A, a, &vec![7; 65_000]);
    let refused = net.stacks[A].send_with(a, 40_000, |_| panic!("there is no room"));
    assert_eq!(refused, Err(ConnError::Full));
    assert_eq!(net.events(A), []);
    for _ in 0..100 {
        net.run_for(Duration::from_millis(20));
        net.recv(B, b);
        let room = net.stacks[A].send_capacity(a);
        match net.events(A).as_slice() {
            [] => assert!(room < 40_000),
            [Event::Writable(id)] => {
                assert!(*id == a && room >= 40_000);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("never writable");
}

/// Asking how much room there is takes no memory, so that an idle connection stays small.
#[test]
fn asking_for_room_takes_no_memory() {
    let mut net = Net::perfect();
    let [a, _] = net.open();
    let room = net.stacks[A].send_capacity(a);
    assert_eq!(net.stacks[A].room_or_event(a, room), room);
    assert_eq!(net.stacks[A].room_or_event(a, room + 1), room);
    assert_eq!(net.stacks[A].stats().buffer_bytes, 0);
    assert_eq!(net.events(A), [], "and no event comes before there is as much");
}

/// A peer that stops reading stops the sender; when it reads again, the rest follows, even if the
/// window update is lost (RFC 9293, 3.8.6.1: zero window probes).
#[test]
fn a_closed_window_opens_again() {
    let mut net = Net::new(4, Link::PERFECT, &small(), V4);
    let [a, b] = net.open();
    let total = 120_000;
    let mut sent = 0;
    let mut fill = |net: &mut Net| {
        while net.stacks[A].send_capacity(a) >= 1000 && sent < total {
            net.send(A, a, &(sent..sent + 1000).map(octet).collect::<Vec<u8>>());
            sent += 1000;
        }
    };
    fill(&mut net);
    net.run_for(Duration::from_secs(2));
    fill(&mut net);
    net.run_for(Duration::from_secs(30));
    // The last octets are less than a step of the window worth telling (RFC 9293, 3.8.6.2.2).
    let unread = net.stacks[B].info(b).unwrap().unread_bytes;
    assert!((65_536 - 1460..=65_536).contains(&unread), "{unread}");
    let mut received = net.recv(B, b);
    assert!(!net.take(B).is_empty(), "a window update, lost here");
    for _ in 0..200 {
        net.run_for(Duration::from_secs(1));
        fill(&mut net);
        received.extend(net.recv(B, b));
    }
    assert_eq!(received, (0..total).map(octet).collect::<Vec<u8>>());
    let closed = net.events(A).into_iter().any(|event| matches!(event, Event::Closed { .. }));
    assert!(!closed, "a peer that answers probes is alive");
}

/// Octets are unacknowledged and the peer says nothing: after the user timeout the connection ends
/// (RFC 9293, 3.8.3), and the link has seen it try.
#[test]
fn a_silent_peer_is_given_up() {
    let mut net = Net::perfect();
    let [a, _] = net.open();
    net.run_for(Duration::from_secs(3600));
    assert_eq!(net.events(A), [], "an idle connection stays");
    net.link.loss = 1000;
    net.send(A, a, b"is anybody there?");
    net.run_for(Duration::from_secs(99));
    assert_eq!(net.events(A), []);
    net.run_for(Duration::from_secs(2));
    assert_eq!(net.events(A), [Event::Closed { id: a, reason: CloseReason::Timeout }]);
    assert_eq!(net.stacks[A].info(a), None);
}
