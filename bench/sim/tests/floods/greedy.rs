//! Peers that hold a connection and want it to cost as much as possible.

use std::time::Duration;

use culvert_sim::packet::Segment;
use culvert_tcpstack::{Event, SegmentOutcome};

use super::raw::Raw;

/// Octets of one chunk of buffer memory: what is in use is a multiple.
const CHUNK: u64 = 16 << 10;

/// RFC 9293, 3.8.6.1: a peer whose window stays shut is probed, ever more seldom, and holds no more
/// than one send buffer.
#[test]
fn a_peer_that_reads_nothing_costs_one_send_buffer_and_few_probes() {
    let mut raw = Raw::open(true);
    raw.write_all();
    let shut = Segment { window: 0, ..raw.segment(b"") };
    let (mut sent, mut seconds) = (0, 0);
    while seconds < 3600 {
        for segment in raw.sent() {
            // It takes what fits in the first window, then acknowledges no octet.
            let end = segment.seq.wrapping_add(segment.sequence_len());
            if sent < 60 && end.wrapping_sub(raw.ack).cast_signed() > 0 {
                raw.ack = end;
            }
            sent += 1;
            let ack = Segment { ack: raw.ack, seq: raw.seq, ..shut.clone() };
            raw.deliver(&ack);
        }
        raw.write_all();
        sent += raw.wait(Duration::from_secs(1)).len();
        seconds += 1;
        let answer = Segment { ack: raw.ack, ..shut.clone() };
        raw.deliver(&answer);
        let used = raw.stack.stats().buffer_bytes;
        let most = raw.config.tx_buffer_bytes as u64 + 2 * CHUNK;
        assert!(used <= most, "{used} octets of buffers");
    }
    assert!(sent < 60 + 400, "{sent} segments in an hour");
}

/// One octet a second holds nothing and is answered once.
#[test]
fn a_peer_that_sends_one_octet_a_second_costs_one_ack_each() {
    let mut raw = Raw::open(true);
    let (before, polled) = (raw.segments_out, raw.stack.stats().connections_polled);
    for second in 0..2000u32 {
        assert_eq!(raw.send(&[second as u8]), SegmentOutcome::Accepted);
        raw.wait(Duration::from_secs(1));
        assert_eq!(raw.stack.stats().buffer_bytes, 0);
    }
    assert_eq!(raw.read.len(), 2000);
    let answers = raw.segments_out - before;
    assert!((1900..=2010).contains(&answers), "{answers} answers to 2000 octets");
    let polled = raw.stack.stats().connections_polled - polled;
    assert!(polled <= 4 * 2000, "asked {polled} times for 2000 octets");
}

/// The SACK Panic class: single octets with holes between them, overlapping runs, again and again.
/// Memory stays within the receive buffer, and the octets that were kept are right.
#[test]
fn a_peer_that_leaves_holes_stays_within_the_receive_buffer() {
    let mut raw = Raw::open(true);
    let start = raw.seq;
    let window = 50_000u32;
    let octet = |at: u32| (at % 251) as u8;
    let mut refused = 0;
    for round in 0..4u32 {
        for at in (1 + round..window).step_by(2) {
            let len = 1 + (at * 7 + round) % 3;
            let payload: Vec<u8> = (at..at + len).map(octet).collect();
            raw.seq = start.wrapping_add(at);
            let outcome = raw.deliver(&raw.segment(&payload));
            refused += u32::from(outcome != SegmentOutcome::Accepted);
            let sent = raw.sent();
            assert!(sent.len() <= 1);
            assert!(sent.iter().all(|segment| segment.options.len() <= 40));
        }
        let used = raw.stack.stats().buffer_bytes;
        assert!(used <= raw.config.rx_buffer_bytes as u64 + CHUNK, "{used} octets of buffers");
    }
    println!("{refused} segments refused");
    assert!(raw.read.is_empty(), "the first octet is missing");
    // The true stream, in order, wins.
    let all: Vec<u8> = (0..window).map(octet).collect();
    raw.seq = start;
    for part in all.chunks(1000) {
        raw.send(part);
        raw.wait(Duration::from_millis(5));
    }
    assert!(raw.read.starts_with(&all), "{} of {window} octets", raw.read.len());
    assert_eq!(raw.stack.stats().buffer_bytes, 0);
}

/// RFC 9293, 3.10.7.4 and RFC 5961, 5: acknowledging what was never sent, also by SACK, moves
/// nothing and frees nothing.
#[test]
fn a_peer_that_acknowledges_what_was_never_sent_gains_nothing() {
    let mut raw = Raw::open(true);
    raw.write_all();
    let first = raw.sent();
    let sent: u32 = first.iter().map(Segment::sequence_len).sum();
    let before = raw.stack.info(raw.id).unwrap().in_flight_bytes;
    assert_eq!(before, sent as usize);
    for ahead in [1, 1000, 100_000, 0x4000_0000] {
        let mut optimist = raw.segment(b"");
        optimist.ack = raw.ack.wrapping_add(sent + ahead);
        assert_ne!(raw.deliver(&optimist), SegmentOutcome::Accepted);
        let mut sack = raw.segment(b"");
        let left = raw.ack.wrapping_add(sent + ahead);
        sack.options.extend([1, 1, 5, 10]);
        sack.options.extend(left.to_be_bytes());
        sack.options.extend(left.wrapping_add(1448).to_be_bytes());
        raw.deliver(&sack);
    }
    let sent_again = raw.sent();
    assert!(sent_again.iter().all(|segment| segment.payload.is_empty()), "no new data for lies");
    assert_eq!(raw.stack.info(raw.id).unwrap().in_flight_bytes, before);
    // And one that never acknowledges anything is given up.
    let mut closed = None;
    for _ in 0..1000 {
        raw.wait(Duration::from_secs(1));
        while let Some(event) = raw.stack.poll_event() {
            if let Event::Closed { reason, .. } = event {
                closed = Some(reason);
            }
        }
    }
    assert_eq!(closed.map(culvert_tcpstack::CloseReason::name), Some("timeout"));
    assert_eq!(raw.stack.stats().buffer_bytes, 0);
}
