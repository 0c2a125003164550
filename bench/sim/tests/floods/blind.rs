//! RFC 5961: an attacker that knows the addresses and ports but sees no packet.

use std::time::Duration;

use culvert_sim::packet::{Segment, flags};
use culvert_tcpstack::SegmentOutcome;

use super::raw::Raw;

/// One of each class of offsets from the next expected octet: just before and behind it, inside the
/// window, at its edges, beyond, and at the far side of the sequence space.
fn offsets(window: u32) -> Vec<u32> {
    vec![
        1,
        2,
        window / 2,
        window - 1,
        window,
        window + 1,
        2 * window,
        0x3fff_ffff,
        0x7fff_ffff,
        0x8000_0000,
        0x8000_0001,
        0u32.wrapping_sub(2 * window),
        0u32.wrapping_sub(window),
        u32::MAX - 1,
        u32::MAX,
    ]
}

/// Acknowledgments that prove nothing (RFC 5961, 5.2): of what was never sent, or of long ago.
const ACKS: [u32; 5] = [1, 0x1000_0000, 0x7fff_ffff, 0x8000_0000, 0xf000_0000];

/// Forged segments are answered at the most so often in a second, all of them together
/// (RFC 5961, 7).
const CHALLENGES_MAX: usize = 20;

fn forge(raw: &Raw, offset: u32, ack: u32, flags: u8, payload: &[u8], timestamps: bool) -> Segment {
    let mut segment = raw.segment(payload);
    segment.seq = segment.seq.wrapping_add(offset);
    segment.ack = segment.ack.wrapping_add(ack);
    segment.flags = flags;
    if !timestamps {
        segment.options.clear();
    }
    segment
}

fn open(timestamps: bool) -> (Raw, u32) {
    let mut raw = Raw::open(timestamps);
    for _ in 0..20 {
        assert_eq!(raw.send(&[7; 1000]), SegmentOutcome::Accepted);
        raw.wait(Duration::from_millis(50));
    }
    raw.read.clear();
    // The window without scaling, about.
    (raw, 60_000)
}

/// RFC 5961, 3.2: only a RST with exactly the next expected number resets.
#[test]
fn a_blind_rst_resets_nothing() {
    for timestamps in [false, true] {
        let (mut raw, window) = open(timestamps);
        let before = raw.segments_out;
        for offset in offsets(window) {
            for flags in [flags::RST, flags::RST | flags::ACK] {
                let outcome = raw.deliver(&forge(&raw, offset, 0, flags, b"", timestamps));
                assert_ne!(outcome, SegmentOutcome::Accepted, "RST at {offset:#x}");
            }
        }
        raw.sent();
        assert!(raw.segments_out - before <= CHALLENGES_MAX);
        raw.assert_alive();
    }
}

/// RFC 5961, 4.2: a SYN, wherever it lies, is answered by a challenge at most.
#[test]
fn a_blind_syn_resets_nothing() {
    for timestamps in [false, true] {
        let (mut raw, window) = open(timestamps);
        for offset in offsets(window).into_iter().chain([0]) {
            for flags in [flags::SYN, flags::SYN | flags::ACK] {
                raw.deliver(&forge(&raw, offset, 0, flags, b"", timestamps));
                let sent = raw.sent();
                assert!(sent.iter().all(|segment| segment.flags & flags::RST == 0), "{sent:?}");
            }
        }
        assert!(raw.read.is_empty());
        raw.assert_alive();
    }
}

/// RFC 5961, 5.2: data whose acknowledgment is out of range is dropped, wherever it lies.
#[test]
fn blind_data_does_not_get_into_the_stream() {
    let (mut raw, window) = open(false);
    for offset in offsets(window).into_iter().chain([0]) {
        for ack in ACKS {
            for flags in [flags::ACK, flags::ACK | flags::PSH, flags::ACK | flags::FIN] {
                let outcome = raw.deliver(&forge(&raw, offset, ack, flags, b"forged!", false));
                assert_ne!(outcome, SegmentOutcome::Accepted, "{offset:#x} with ACK {ack:#x}");
            }
        }
    }
    let sent = raw.wait(Duration::from_millis(900));
    assert!(sent.len() <= CHALLENGES_MAX, "{} answers", sent.len());
    assert!(raw.read.is_empty());
    raw.assert_alive();
    assert_eq!(raw.read, b"still here", "nothing forged was kept behind a hole");
}

/// RFC 7323, 3.2: where timestamps were agreed on, data without one is dropped.
#[test]
fn blind_data_without_timestamps_does_not_get_into_the_stream() {
    let (mut raw, window) = open(true);
    for offset in offsets(window).into_iter().chain([0]) {
        let outcome = raw.deliver(&forge(&raw, offset, 0, flags::ACK, b"forged!", false));
        assert_ne!(outcome, SegmentOutcome::Accepted, "{offset:#x}");
    }
    raw.assert_alive();
    assert_eq!(raw.read, b"still here");
}

/// RFC 5961, 5.2: an acknowledgment out of range acknowledges nothing, and moves no window.
#[test]
fn a_blind_ack_acknowledges_nothing() {
    for timestamps in [false, true] {
        let (mut raw, _) = open(timestamps);
        let written = raw.write_all();
        let first = raw.sent();
        assert!(!first.is_empty() && written > 0);
        let before = raw.stack.info(raw.id).unwrap();
        for ack in [0x1000_0000, 0x7fff_ffff, 0x8000_0000, 0xf000_0000] {
            for window in [0, u16::MAX] {
                let forged = forge(&raw, 0, ack, flags::ACK, b"", timestamps);
                let outcome = raw.deliver(&Segment { window, ..forged });
                assert_ne!(outcome, SegmentOutcome::Accepted, "ACK {ack:#x}");
            }
        }
        let after = raw.stack.info(raw.id).unwrap();
        assert_eq!(before.in_flight_bytes, after.in_flight_bytes);
        raw.assert_alive();
    }
}

/// RFC 5961, 7: however many forged segments come, few are answered.
#[test]
fn a_storm_of_forged_segments_is_not_answered_by_a_storm() {
    let (mut raw, window) = open(true);
    let before = raw.segments_out;
    let seconds = 5;
    for _ in 0..seconds {
        for offset in 0..10_000 {
            raw.deliver(&forge(&raw, 1 + offset % window, 0, flags::RST, b"", true));
            raw.deliver(&forge(&raw, 1 + offset, 0, flags::SYN, b"", true));
            raw.sent();
        }
        raw.wait(Duration::from_secs(1));
    }
    let answers = raw.segments_out - before;
    assert!(answers <= (seconds + 1) * CHALLENGES_MAX, "{answers} answers in {seconds} s");
    assert!(raw.stack.stats().buffer_bytes == 0);
    raw.assert_alive();
}
