use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const MSS: u64 = 10;

fn stamp(at: u64) -> Stamp {
    let now = Instant::from_micros(at);
    Stamp { sent_at: now, delivered_at: now, flight_started: now, ..Stamp::default() }
}

/// What a segment is in the model.
#[derive(Clone, Debug)]
struct Naive {
    range: Range<u64>,
    sent_at: u64,
    sacked: bool,
    lost: bool,
}

/// The scoreboard without any thought for cost.
#[derive(Default)]
struct Model {
    segments: Vec<Naive>,
    octets: BTreeSet<u64>,
    una: u64,
    nxt: u64,
}

impl Model {
    fn sum(&self, which: impl Fn(&Naive) -> bool) -> u64 {
        let len = |s: &Naive| s.range.end - s.range.start;
        self.segments.iter().filter(|s| which(s)).map(len).sum()
    }

    fn acknowledge(&mut self, una: u64) -> u64 {
        let whole = |s: &Naive| s.range.end <= una;
        let delivered = self.sum(|s| whole(s) && !s.sacked);
        self.segments.retain(|s| !whole(s));
        if let Some(first) = self.segments.first_mut() {
            first.range.start = first.range.start.max(una);
        }
        self.una = una;
        delivered
    }

    fn sack(&mut self, block: Range<u64>) -> u64 {
        let new: BTreeSet<u64> = block.filter(|octet| !self.octets.contains(octet)).collect();
        self.octets.extend(&new);
        let mut delivered = 0;
        for segment in self.segments.iter_mut().filter(|s| !s.sacked) {
            // Only what a block newly tells is looked at.
            if segment.range.clone().any(|octet| new.contains(&octet))
                && segment.range.clone().all(|octet| self.octets.contains(&octet))
            {
                delivered += segment.range.end - segment.range.start;
                (segment.sacked, segment.lost) = (true, false);
            }
        }
        delivered
    }

    /// RFC 8985, 6.2, step 5, over all segments.
    fn detect(&mut self, newest: (u64, u64), allowance: u64, now: u64) -> u64 {
        let is_lost = |s: &Naive| {
            !s.sacked
                && !s.lost
                && (s.sent_at, s.range.end) < newest
                && s.sent_at + allowance <= now
        };
        let lost = self.sum(is_lost);
        self.segments.iter_mut().for_each(|s| s.lost |= is_lost(s));
        lost
    }

    fn next_lost(&self) -> Option<Range<u64>> {
        self.segments.iter().find(|s| s.lost).map(|s| s.range.clone())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(u64),
    Acknowledge(u64),
    Sack(u64, u64),
    Detect(u64),
    Retransmit,
    TimeOut,
    Spurious,
    Renege,
    Narrow,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u64..=MSS).prop_map(Step::Send),
        2 => (0u64..60).prop_map(Step::Acknowledge),
        5 => (0u64..200, 1u64..40).prop_map(|(start, len)| Step::Sack(start, len)),
        3 => (0u64..10).prop_map(Step::Detect),
        4 => Just(Step::Retransmit),
        1 => Just(Step::TimeOut),
        1 => Just(Step::Spurious),
        1 => Just(Step::Renege),
        1 => Just(Step::Narrow),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn behaves_as_the_naive_one(steps in steps()) {
        let (mut board, mut model) = (Scoreboard::new(), Model::default());
        for (at, step) in steps.into_iter().enumerate() {
            let at = at as u64;
            match step {
                Step::Send(len) => {
                    let range = model.nxt..model.nxt + len;
                    model.nxt += len;
                    board.push(range.clone(), stamp(at));
                    model.segments.push(Naive { range, sent_at: at, sacked: false, lost: false });
                }
                Step::Acknowledge(len) => {
                    let una = (model.una + len).min(model.nxt);
                    let mut delivered = 0;
                    board.acknowledge(una, |sent| delivered += sent.len());
                    prop_assert_eq!(delivered, model.acknowledge(una));
                }
                Step::Sack(start, len) => {
                    let start = model.una + start;
                    let block = start..(start + len).min(model.nxt);
                    if block.start >= block.end {
                        continue;
                    }
                    let mut delivered = 0;
                    board.sack(block.clone(), |sent| delivered += sent.len());
                    prop_assert_eq!(delivered, model.sack(block));
                }
                Step::Detect(allowance) => {
                    let newest = (at.saturating_sub(2), model.nxt);
                    let as_time = (Instant::from_micros(newest.0), newest.1);
                    let now = Instant::from_micros(at);
                    let (mut lost, allowed) = (0, Duration::from_micros(allowance));
                    let again = board.detect_lost(as_time, allowed, now, |sent| lost += sent.len());
                    prop_assert_eq!(lost, model.detect(newest, allowance, at));
                    prop_assert!(again.is_none_or(|again| again > now));
                }
                Step::Retransmit => {
                    let next = board.next_lost();
                    prop_assert_eq!(&next, &model.next_lost());
                    let Some(range) = next else { continue };
                    board.retransmitted(range.start, stamp(at));
                    let found = model.segments.iter_mut().find(|s| s.range == range).unwrap();
                    (found.lost, found.sent_at) = (false, at);
                }
                Step::TimeOut => {
                    let lost = board.mark_all_lost();
                    prop_assert_eq!(lost, model.sum(|s| !s.sacked && !s.lost));
                    model.segments.iter_mut().for_each(|s| s.lost |= !s.sacked);
                }
                Step::Spurious => {
                    board.unmark_lost();
                    model.segments.iter_mut().for_each(|s| s.lost = false);
                }
                Step::Renege => {
                    board.renege();
                    model.octets.clear();
                    model.segments.iter_mut().for_each(|s| s.sacked = false);
                    board.mark_all_lost();
                    model.segments.iter_mut().for_each(|s| s.lost = true);
                }
                Step::Narrow => {
                    board.mark_all_lost();
                    board.resegment(MSS / 3);
                    let cut = |s: Naive| {
                        let starts = s.range.clone().step_by((MSS / 3) as usize);
                        let end = s.range.end;
                        let octets = &model.octets;
                        let piece = |start| {
                            let range = start..end.min(start + MSS / 3);
                            let sacked = s.sacked || range.clone().all(|o| octets.contains(&o));
                            Naive { range, sacked, lost: !sacked, sent_at: s.sent_at }
                        };
                        starts.map(piece).collect::<Vec<_>>()
                    };
                    model.segments = model.segments.drain(..).flat_map(cut).collect();
                }
            }
            prop_assert_eq!(board.pipe(), model.sum(|s| !s.sacked && !s.lost), "pipe");
            prop_assert_eq!(board.sacked_octets(), model.sum(|s| s.sacked), "sacked");
            prop_assert_eq!(board.has_lost(), model.segments.iter().any(|s| s.lost));
            prop_assert_eq!(board.segments.len(), model.segments.len());
        }
    }
}

/// SACK Panic: a peer that acknowledges every second octet buys no long list.
#[test]
fn single_octets_are_remembered_up_to_a_limit() {
    let mut board = Scoreboard::new();
    board.push(0..100_000, stamp(1));
    for octet in 0..50_000 {
        board.sack(2 * octet + 1..2 * octet + 2, |_| panic!("no segment is whole"));
    }
    assert_eq!(board.sacked.len(), SACKED_RANGES_MAX);
}

/// SACK Panic: one block over thousands of holes costs what it newly tells, and one merger; and holes
/// that close one after the other, the lowest first, move nothing.
#[test]
fn thousands_of_holes_cost_no_more_than_they_are() {
    let mut board = Scoreboard::new();
    let ranges = SACKED_RANGES_MAX as u64;
    for n in 0..=2 * ranges {
        board.push(n * MSS..(n + 1) * MSS, stamp(n));
    }
    for n in 0..ranges {
        board.sack((2 * n + 1) * MSS..(2 * n + 2) * MSS, |_| {});
    }
    for n in 0..ranges / 2 {
        board.acknowledge((2 * n + 2) * MSS, |_| {});
    }
    assert_eq!(board.sacked.moved, 0, "new ones come last, old ones go first");

    let (mut delivered, left) = (0, ranges / 2);
    board.sack(ranges * MSS..(2 * ranges + 1) * MSS, |_| delivered += 1);
    assert_eq!(delivered, left + 1, "and not those that were known");
    let moved = board.sacked.moved as u64;
    assert!(moved <= left, "{moved} ranges were moved for {left} holes");
}

/// RFC 8985, 6.2, step 5: what a narrower path has cut keeps its place in the order of transmissions,
/// or a segment that was just sent again hides those behind it that are overdue.
#[test]
fn rfc8985_6_2_pieces_keep_their_place_in_the_order_of_transmissions() {
    let mut board = Scoreboard::new();
    for n in 0..3 {
        board.push(n * MSS..(n + 1) * MSS, stamp(n));
    }
    board.retransmitted(0, stamp(100));
    board.sack(2 * MSS..3 * MSS, |_| {});
    board.resegment(MSS / 2);
    let (newest, now) = ((Instant::from_micros(100), MSS), Instant::from_micros(110));
    let mut lost = Vec::new();
    let again = board
        .detect_lost(newest, Duration::from_micros(50), now, |sent| lost.push(sent.range.clone()));
    assert_eq!(lost, [MSS..MSS + MSS / 2, MSS + MSS / 2..2 * MSS]);
    assert_eq!(again, Some(Instant::from_micros(150)), "the first half of what was sent again");
}

/// RFC 3522, 3.2: the pieces of what a recovery has sent again are its repairs still, or the next one
/// takes the acknowledgment of one for that of a first transmission.
#[test]
fn rfc3522_3_2_pieces_of_a_repair_are_repairs() {
    let mut board = Scoreboard::new();
    board.push(0..2 * MSS, stamp(0));
    board.retransmitted(0, stamp(100));
    board.repaired(2 * MSS);
    board.resegment(MSS);
    assert!(board.has_repairs());
    board.acknowledge(MSS, |_| {});
    assert!(board.has_repairs(), "the second piece");
    board.push(2 * MSS..3 * MSS, stamp(110));
    board.acknowledge(2 * MSS, |_| {});
    assert!(!board.has_repairs());
}

/// RFC 8985, 6.2, step 5: what was taken for lost by mistake keeps its place too, or what was sent since
/// hides it for a round trip if it is lost after all.
#[test]
fn rfc8985_6_2_what_was_no_loss_keeps_its_place_in_the_order_of_transmissions() {
    let mut board = Scoreboard::new();
    board.push(0..MSS, stamp(0));
    board.mark_all_lost();
    for n in 1..3 {
        board.push(n * MSS..(n + 1) * MSS, stamp(n));
    }
    board.unmark_lost();
    board.sack(MSS..2 * MSS, |_| {});
    let (newest, now) = ((Instant::from_micros(1), 2 * MSS), Instant::from_micros(10));
    let mut lost = None;
    board
        .detect_lost(newest, Duration::from_micros(5), now, |sent| lost = Some(sent.range.clone()));
    assert_eq!(lost, Some(0..MSS));
}
