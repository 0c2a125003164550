//! The words of a script.

use std::time::Duration;

use crate::wire::Segment;

/// The first value of the peer's timestamp clock, which wraps soon too.
const PEER_CLOCK: u32 = 0xffff_fff0;

/// The value of the peer's timestamp clock; 0 is the echo of a segment that knows none.
pub(crate) fn peer_clock(words: &str) -> u32 {
    match words {
        "0" => 0,
        ms => PEER_CLOCK.wrapping_add(ms.parse::<i32>().unwrap().cast_unsigned()),
    }
}

pub(crate) fn seconds(words: &str) -> Duration {
    Duration::from_secs_f64(words.parse().unwrap())
}

pub(crate) fn parse_segment(
    words: &str,
    mut segment: Segment,
    isn: u32,
    other_isn: u32,
    timestamps: impl Fn(&str) -> (u32, u32),
) -> Segment {
    let offset = |isn: u32, word: &str| match word.strip_prefix('=') {
        Some(absolute) => absolute.parse().unwrap(),
        None => isn.wrapping_add(word.parse::<i64>().unwrap() as u32),
    };
    let mut words = words.split_whitespace();
    for letter in words.next().unwrap().chars() {
        segment.flags |= 1 << "FSRP.UEW".find(letter).unwrap();
    }
    let (seq, len) = words.next().unwrap().trim_end_matches(')').split_once('(').unwrap();
    segment.seq = offset(isn, seq);
    segment.data = vec![0; len.parse().unwrap()];
    while let Some(word) = words.next() {
        let mut number = || words.next().unwrap();
        match word {
            "ack" => segment.ack = offset(other_isn, number()),
            "win" => segment.window = number().parse().unwrap(),
            "mss" => segment.mss = Some(number().parse().unwrap()),
            "ws" => segment.scale = Some(number().parse().unwrap()),
            "cut" => segment.cut = Some(number().parse().unwrap()),
            "sackok" => segment.sack_permitted = true,
            "sack" => {
                let blocks = number().split(',').map(|block| block.split_once('-').unwrap());
                segment.sack = blocks
                    .map(|(left, right)| (offset(other_isn, left), offset(other_isn, right)))
                    .collect();
            }
            ts if ts.starts_with("ts") => {
                segment.timestamps = Some(timestamps(ts[2..].trim_start_matches('=')));
            }
            other => panic!("no such word: {other}"),
        }
    }
    segment
}

/// The octet at `offset` of either stream.
pub(crate) fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8
}
