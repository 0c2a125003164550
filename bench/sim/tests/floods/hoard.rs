//! Many peers that leave a hole each and fill their windows behind it, to keep the worker's memory
//! from everybody else.

use std::net::SocketAddr;

use culvert_sim::packet::Segment;
use culvert_tcpstack::{ConnId, Event, SegmentOutcome, StackConfig};

use super::raw::{Raw, config};

const PEERS: u16 = 512;
const MSS: usize = 1460;

fn open() -> Raw {
    let config = StackConfig { connections_max: 1024, ..config() };
    Raw::open_with(config, true)
}

fn peer(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([203, 0, high, low], 4567))
}

/// The names of the connections that have opened.
fn opened(raw: &mut Raw) -> Vec<ConnId> {
    let events = std::iter::from_fn(|| raw.stack.poll_event());
    events
        .filter_map(|event| match event {
            Event::Opened { id, .. } => Some(id),
            _ => None,
        })
        .collect()
}

/// Fills `window` octets behind a hole of one segment; how many segments were taken.
fn hoard(raw: &mut Raw, from: &Segment, window: usize) -> usize {
    let mut taken = 0;
    for start in (MSS..window).step_by(MSS) {
        let payload = vec![7; MSS.min(window - start)];
        let seq = from.seq.wrapping_add(start as u32);
        let outcome = raw.deliver(&Segment { seq, payload, ..from.clone() });
        taken += usize::from(outcome == SegmentOutcome::Accepted);
    }
    raw.sent();
    taken
}

/// A connection loses every fourth segment, which comes again behind the others, and sends as much
/// as its buffer takes. Gives what was not taken of it, and how many octets it could send.
fn work(raw: &mut Raw) -> (usize, usize) {
    let mut refused = 0;
    for round in 0..20u8 {
        let start = raw.seq;
        for at in [1, 2, 3, 0] {
            raw.seq = start.wrapping_add(at * MSS as u32);
            let segment = raw.segment(&[round; MSS]);
            refused += usize::from(raw.deliver(&segment) != SegmentOutcome::Accepted);
        }
        raw.seq = start.wrapping_add(4 * MSS as u32);
        raw.sent();
    }
    let sent = raw.write_all();
    assert_eq!(raw.read.len(), 20 * 4 * MSS, "the stream is whole");
    (refused, sent)
}

/// RFC 2018, 8: strangers that hold what they can give way to who has proven itself; they never get
/// more than the first window each.
#[test]
fn strangers_with_holes_cost_nobody_else_anything() {
    let undisturbed = work(&mut open());
    let mut raw = open();
    for number in 0..PEERS {
        let stranger = raw.open_other(peer(number));
        let held = hoard(&mut raw, &stranger, 4 << 20);
        assert!(held <= 65_536 / MSS, "{held} segments of one stranger");
        let used = raw.stack.stats().buffer_bytes;
        assert!(used <= raw.config.buffers_bytes as u64 / 2, "half is for sending: {used}");
    }
    assert_eq!(work(&mut raw), undisturbed);
    assert!(undisturbed.0 == 0 && raw.stack.stats().reneged > 0);
}

/// The same by peers that have proven themselves and have made their windows grow before: who holds
/// most gives way.
#[test]
fn proven_peers_with_holes_leave_others_their_share() {
    let undisturbed = work(&mut open());
    let mut raw = open();
    for number in 0..64 {
        let mut other = raw.open_other(peer(number));
        for id in opened(&mut raw) {
            raw.stack.vouch(id);
        }
        for turn in 0..1500 {
            let segment = Segment { payload: vec![7; MSS], ..other.clone() };
            assert_eq!(raw.deliver(&segment), SegmentOutcome::Accepted);
            other.seq = other.seq.wrapping_add(MSS as u32);
            if turn % 20 == 0 {
                raw.sent(); // The window moves on.
            }
        }
        raw.sent();
        hoard(&mut raw, &other, 1 << 20);
    }
    raw.read.clear();
    assert!(raw.stack.stats().buffer_bytes > raw.config.buffers_bytes as u64 / 4);
    assert_eq!(work(&mut raw), undisturbed);
}

/// One octet in each page of memory, as far as the window reaches: what is refused costs nothing.
#[test]
fn octets_here_and_there_do_not_fill_memory() {
    let mut raw = open();
    for _ in 0..75 {
        for _ in 0..20 {
            raw.send(&[7; MSS]);
        }
        raw.sent();
    }
    let start = raw.seq;
    for at in (1..1 << 20).step_by(16 << 10) {
        raw.seq = start.wrapping_add(at);
        let segment = raw.segment(b"x");
        raw.deliver(&segment);
    }
    let used = raw.stack.stats().buffer_bytes;
    assert!((8 << 14..=10 << 14).contains(&used), "{used} octets of buffers for 64");
}
