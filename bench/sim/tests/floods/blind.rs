//! RFC 5961: an attacker that knows the addresses and ports but sees no packet, and tries every
//! offset of the window.

use std::collections::BTreeSet;
use std::time::Duration;

use culvert_sim::packet::{Segment, flags};
use culvert_tcpstack::{DropReason, SegmentOutcome};

use super::raw::Raw;

/// Beyond the window's edges as far as this every offset is tried, too.
const BEYOND: u32 = 3_000;
/// Offsets far from the window: in twice its length, and at the far side of the sequence space.
const FAR: [u32; 8] = [
    0x2_0000,
    0x10_0000,
    0x3fff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xc000_0000,
    0xfff0_0000,
];
/// Acknowledgments that prove nothing (RFC 5961, 5.2): of what was never sent, or of long ago.
const ACKS: [u32; 5] = [1, 0x1000_0000, 0x7fff_ffff, 0x8000_0000, 0xf000_0000];
/// Forged segments are answered at most so often in a second on one connection (RFC 5961, 7).
const CHALLENGES_PER_SECOND: usize = 5;
/// Virtual time between two forged segments.
const GAP: Duration = Duration::from_micros(500);

/// Every offset in the window but its left edge, and what lies around and far away.
fn offsets(window: u32) -> impl Iterator<Item = u32> {
    let near = (1..window + BEYOND).chain((1..BEYOND).map(u32::wrapping_neg));
    near.chain(FAR)
}

/// A connection over which some octets have come, and its window.
fn open(timestamps: bool) -> (Raw, u32) {
    let mut raw = Raw::open(timestamps);
    for _ in 0..20 {
        assert_eq!(raw.send(&[7; 1000]), SegmentOutcome::Accepted);
        raw.wait(Duration::from_millis(50));
    }
    raw.read.clear();
    let scale = u32::from(raw.scale);
    let window = u32::from(raw.window) << scale;
    assert!(window >= 0xffff, "a window of {window}");
    // All of a window without scaling, and the same part of a larger one.
    (raw, window.min(0xffff))
}

/// Delivers forged segments one after the other, lets the engine send after each, and gives what
/// became of them. Counts the answers against the limit.
fn storm(raw: &mut Raw, forged: impl Iterator<Item = Segment>) -> BTreeSet<&'static str> {
    let (mut outcomes, mut answers, start) = (BTreeSet::new(), 0, raw.now);
    for segment in forged {
        outcomes.insert(match raw.deliver(&segment) {
            SegmentOutcome::Accepted => "accepted",
            SegmentOutcome::Dropped(reason) => reason.name(),
        });
        raw.now = raw.now + GAP;
        for answer in raw.sent() {
            assert_eq!(answer.flags, flags::ACK, "{answer} to {segment}");
            assert_eq!((answer.ack, &answer.payload[..]), (raw.seq, &b""[..]));
            answers += 1;
        }
    }
    let seconds = raw.now.since(start).as_secs() as usize + 1;
    assert!(seconds > 1, "too short to see a limit");
    assert!(answers > 0, "the limit is there for what is answered");
    let most = CHALLENGES_PER_SECOND * seconds;
    assert!(answers <= most, "{answers} answers in {seconds} s");
    outcomes
}

/// RFC 5961, 3.2: only a RST with exactly the next expected number resets.
#[test]
fn a_blind_rst_resets_nothing() {
    for timestamps in [false, true] {
        let (mut raw, window) = open(timestamps);
        let base = raw.segment(b"");
        for flags in [flags::RST, flags::RST | flags::ACK] {
            let forged = offsets(window).map(|offset| {
                let seq = base.seq.wrapping_add(offset);
                Segment { seq, flags, options: Vec::new(), ..base.clone() }
            });
            let outcomes = storm(&mut raw, forged);
            assert_eq!(outcomes, BTreeSet::from(["challenged", "out-of-window"]));
        }
        raw.assert_alive();
    }
}

/// RFC 5961, 4.2: a SYN, wherever it lies, is answered by a challenge at most.
#[test]
fn a_blind_syn_resets_nothing() {
    for timestamps in [false, true] {
        let (mut raw, window) = open(timestamps);
        let base = raw.segment(b"");
        for flags in [flags::SYN, flags::SYN | flags::ACK] {
            let forged = offsets(window).chain([0]).map(|offset| {
                let seq = base.seq.wrapping_add(offset);
                Segment { seq, flags, ..base.clone() }
            });
            assert_eq!(storm(&mut raw, forged), BTreeSet::from(["challenged"]));
        }
        assert!(raw.read.is_empty());
        raw.assert_alive();
    }
}

/// RFC 5961, 5.2: data whose acknowledgment is out of range is dropped, wherever it lies.
#[test]
fn blind_data_does_not_get_into_the_stream() {
    let (mut raw, window) = open(false);
    let base = raw.segment(b"forged!");
    for (number, ack) in ACKS.into_iter().enumerate() {
        let kinds = [flags::ACK, flags::ACK | flags::PSH, flags::ACK | flags::FIN];
        let flags = kinds[number % kinds.len()];
        let forged = offsets(window).chain([0]).map(|offset| {
            let (seq, ack) = (base.seq.wrapping_add(offset), base.ack.wrapping_add(ack));
            Segment { seq, ack, flags, ..base.clone() }
        });
        let outcomes = storm(&mut raw, forged);
        assert_eq!(outcomes, BTreeSet::from(["bad-acknowledgment", "out-of-window"]));
    }
    assert!(raw.read.is_empty());
    raw.assert_alive();
    assert_eq!(raw.read, b"still here", "nothing forged was kept behind a hole");
}

/// RFC 7323, 3.2: where timestamps were agreed on, data without one is dropped, whatever it
/// acknowledges; so is data with an old one (5.2).
#[test]
fn blind_data_without_timestamps_does_not_get_into_the_stream() {
    let (mut raw, window) = open(true);
    let base = raw.segment(b"forged!");
    for offset in offsets(window).chain([0]) {
        let forged = Segment { options: Vec::new(), ..base.clone() };
        let outcome = raw.deliver(&Segment { seq: base.seq.wrapping_add(offset), ..forged });
        assert_eq!(outcome, SegmentOutcome::Dropped(DropReason::OldTimestamp), "{offset:#x}");
    }
    let (value, echo) = raw.timestamps.unwrap();
    let old = value.wrapping_sub(1 << 30).to_be_bytes();
    let options = [&[1, 1, 8, 10][..], &old, &echo.to_be_bytes()].concat();
    let forged = offsets(window).chain([0]).map(|offset| {
        let seq = base.seq.wrapping_add(offset);
        Segment { seq, options: options.clone(), ..base.clone() }
    });
    assert_eq!(storm(&mut raw, forged), BTreeSet::from(["old-timestamp"]));
    raw.assert_alive();
    assert_eq!(raw.read, b"still here");
}

/// RFC 5961, 5.2: an acknowledgment out of range acknowledges nothing and moves no window. One in
/// range, from anywhere in the window but by somebody who does not see the timestamps, neither.
#[test]
fn a_blind_ack_acknowledges_nothing() {
    for timestamps in [false, true] {
        let (mut raw, window) = open(timestamps);
        let written = raw.write_all();
        let in_flight: u32 = raw.sent().iter().map(Segment::sequence_len).sum();
        assert!(in_flight > 1000 && written > 0);
        let before = raw.stack.info(raw.id).unwrap();
        let base = raw.segment(b"");
        // Just behind what was sent, and far away on either side.
        for ack in [in_flight + 1, 0x1000_0000, 0x7fff_ffff, 0x8000_0000, 0xf000_0000] {
            for offset in offsets(window).chain([0]) {
                let (seq, ack) = (base.seq.wrapping_add(offset), base.ack.wrapping_add(ack));
                let window = if offset % 2 == 0 { 0 } else { u16::MAX };
                let outcome = raw.deliver(&Segment { seq, ack, window, ..base.clone() });
                assert_ne!(outcome, SegmentOutcome::Accepted, "ACK {ack:#x} at {offset:#x}");
            }
        }
        // Every acknowledgment that is in range.
        for ack in (0..=in_flight).filter(|_| timestamps) {
            let (ack, options) = (base.ack.wrapping_add(ack), Vec::new());
            let outcome = raw.deliver(&Segment { ack, window: 0, options, ..base.clone() });
            assert_eq!(outcome, SegmentOutcome::Dropped(DropReason::OldTimestamp));
        }
        let after = raw.stack.info(raw.id).unwrap();
        assert_eq!(before.in_flight_bytes, after.in_flight_bytes);
        assert_eq!(before.unsent_bytes, after.unsent_bytes);
        raw.assert_alive();
    }
}

/// RFC 5961, 7: however many forged segments come, few are answered.
#[test]
fn a_storm_of_forged_segments_is_not_answered_by_a_storm() {
    let (mut raw, window) = open(true);
    let (before, base) = (raw.segments_out, raw.segment(b""));
    let seconds = 5;
    for _ in 0..seconds {
        for offset in 0..10_000 {
            for (offset, flags) in [(offset % window, flags::RST), (offset, flags::SYN)] {
                let seq = base.seq.wrapping_add(1 + offset);
                raw.deliver(&Segment { seq, flags, ..base.clone() });
                raw.sent();
            }
        }
        raw.wait(Duration::from_secs(1));
    }
    let answers = raw.segments_out - before;
    let most = (seconds + 1) * CHALLENGES_PER_SECOND;
    assert!(answers > 0 && answers <= most, "{answers} answers in {seconds} s");
    assert!(raw.stack.stats().buffer_bytes == 0);
    raw.assert_alive();
}
