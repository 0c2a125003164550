//! What an acknowledgment tells: deliveries, round-trip times, losses, and repairs that were for
//! nothing.

use super::Connection;
use super::recovery::{Flight, Recovery};
use super::sender::Sender;
use crate::engine::congestion::{AckSample, Controller, LostSegment};
use crate::engine::lazy::Idle;
use crate::engine::scoreboard::Sent;
use crate::engine::segment::{SACK_BLOCKS_MAX, Segment, timestamp};
use crate::time::{Duration, Instant};
use std::ops::Range;

/// Repetitions of an acknowledgment that mean a loss (RFC 5681, 3.2).
pub(super) const REPETITIONS: u64 = 3;

/// What one acknowledgment newly delivered.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    octets: u64,
    /// Of the largest segment.
    largest: u64,
    /// The segment sent last among them, for the delivery rate.
    newest: Option<Sent>,
    /// Sent once, and earliest: its round trip is a measurement (RFC 6298, 3), unless something
    /// that was sent again is acknowledged along with it: then it may have waited behind that.
    pub(super) first_unambiguous: Option<Instant>,
    last_unambiguous: Option<Instant>,
    /// The lowest end of what was sent once only.
    pub(super) original: Option<u64>,
    /// Something that was sent again is among them.
    pub(super) repaired: bool,
}

impl Deliveries {
    fn take(&mut self, sent: &Sent) {
        let octets = sent.range.end - sent.range.start;
        self.octets += octets;
        self.largest = self.largest.max(octets);
        self.repaired |= sent.retransmitted;
        if !sent.retransmitted {
            let end = sent.range.end;
            self.original = Some(self.original.map_or(end, |lowest| lowest.min(end)));
            self.first_unambiguous =
                Some(self.first_unambiguous.map_or(sent.sent_at, |at| at.min(sent.sent_at)));
            self.last_unambiguous =
                Some(self.last_unambiguous.map_or(sent.sent_at, |at| at.max(sent.sent_at)));
        }
        if self.newest.as_ref().is_none_or(|newest| sent.sent_at >= newest.sent_at) {
            self.newest = Some(sent.clone());
        }
    }
}

/// What the acknowledgment's options say beyond the number.
pub(super) struct Echo {
    /// The timestamp that it echoes.
    value: Option<u32>,
    offset: u32,
}

impl Echo {
    /// Whether it names a transmission earlier than `at`.
    fn is_before(&self, at: Instant) -> bool {
        self.is_older_than(timestamp(at, self.offset))
    }

    /// Whether it names a transmission before the one with `timestamp`.
    pub(super) fn is_older_than(&self, timestamp: u32) -> bool {
        self.value.is_some_and(|value| value.wrapping_sub(timestamp).cast_signed() < 0)
    }
}

impl Connection {
    /// Takes the acknowledgment `ack` (an offset within the acceptable range) of `segment`.
    pub(super) fn take_acknowledgment(&mut self, segment: &Segment, ack: u64, now: Instant) {
        let echo = Echo {
            value: segment.options.timestamps.filter(|_| self.timestamps).map(|(_, echo)| echo),
            offset: self.timestamp_offset,
        };
        let tx = &mut self.tx;
        let advanced = ack > tx.una;
        if !advanced && segment.options.sack.len() == 0 && tx.awaits_nothing() {
            return; // The peer's data.
        }
        let prior_pipe = tx.board.pipe();
        let acked = ack.saturating_sub(tx.una);
        let flight = tx.flight();
        let says_nothing_else = tx.says_nothing_else(segment, ack);
        let repeated = ack == tx.una && says_nothing_else && !tx.board.is_empty();
        let (deliveries, duplicate) = tx.note_deliveries(segment, ack, self.sack, &echo, now);
        if advanced {
            tx.progressed(ack, now);
        }
        tx.measure(&deliveries, &echo, (advanced, duplicate.is_some()), now);
        let spurious = tx.check_spurious(&deliveries, duplicate.as_ref(), &echo, advanced);
        let repeats = !advanced && says_nothing_else && segment.options.sack.len() == 0;
        if tx.probe.acknowledged(ack, duplicate.as_ref(), repeats) {
            tx.controller.on_loss(now, flight.outstanding);
            tx.controller.on_recovered();
        }
        let lost = match (spurious, tx.sack) {
            (true, _) => 0,
            (false, true) => tx.find_losses(now),
            (false, false) => tx.count_repetitions(repeated, acked, now),
        };
        tx.judge_path(tx.probe_loss(lost), now);
        let before = (tx.recovery.is_fast(), tx.recovery.is_timeout());
        tx.update_recovery(&deliveries, flight, lost, advanced, now);
        if repeated || advanced || deliveries.octets > 0 {
            tx.step_forward(advanced, echo.value.is_some());
        }
        tx.inform_controller(&deliveries, before, prior_pipe, now);
    }
}

impl Sender {
    /// Whether everything was acknowledged and no repair or probe is left to be judged.
    fn awaits_nothing(&self) -> bool {
        self.board.is_empty() && self.recovery.is_idle() && !self.probe.is_out()
    }

    /// Updates the scoreboard by the cumulative number and the SACK blocks. Also gives what a block
    /// reports as a duplicate (RFC 2883).
    fn note_deliveries(
        &mut self,
        segment: &Segment,
        ack: u64,
        sack: bool,
        echo: &Echo,
        now: Instant,
    ) -> (Deliveries, Option<Range<u64>>) {
        let mut deliveries = Deliveries::default();
        let has_blocks = sack && segment.options.sack.len() > 0;
        let told = has_blocks.then(|| self.sack_blocks(segment, ack));
        let in_flight = !self.board.is_empty();
        let Self { board, rack, rtt, .. } = self;
        let min_rtt = rtt.minimum();
        let mut note = |sent: &Sent| {
            deliveries.take(sent);
            rack.delivered(sent, now, echo.is_before(sent.sent_at), min_rtt);
        };
        if in_flight {
            board.acknowledge(ack, &mut note);
        }
        let mut duplicate = None;
        if let Some((above, twice)) = told {
            duplicate = twice;
            for block in above.into_iter().filter(|block| in_flight && !block.is_empty()) {
                board.sack(block, &mut note);
            }
        }
        if duplicate.is_some() {
            rack.dsack(ack, self.nxt);
        }
        self.path.delivered(deliveries.largest, self.mss);
        self.delivered += deliveries.octets;
        if deliveries.octets > 0 {
            self.delivered_at = now;
        }
        (deliveries, duplicate)
    }

    /// The SACK blocks above `ack` in the order of their octets, and what is reported as a duplicate.
    ///
    /// The peer names the block that grew last first (RFC 2018, 4), and one acknowledgment may tell
    /// of several that are new. Taken in that order, segments would seem to have overtaken each other
    /// (RFC 8985, 6.2, step 3).
    fn sack_blocks(
        &self,
        segment: &Segment,
        ack: u64,
    ) -> ([Range<u64>; SACK_BLOCKS_MAX], Option<Range<u64>>) {
        let mut above: [Range<u64>; SACK_BLOCKS_MAX] = Default::default();
        let mut first: Option<Range<u64>> = None;
        let mut is_duplicate = false;
        for (index, (left, right)) in segment.options.sack.iter().enumerate() {
            let Some(block) = block(self.space, self.una, left, right) else { continue };
            if block.end > self.nxt {
                continue; // Acknowledges what was never sent.
            }
            // RFC 2883, 4: a first block below the acknowledgment, or within the second one.
            is_duplicate |= index == 0 && block.end <= ack;
            is_duplicate |= index == 1
                && first.as_ref().is_some_and(|d| d.start >= block.start && d.end <= block.end);
            if index == 0 {
                first = Some(block.clone());
            }
            if block.start >= ack {
                above[index] = block;
            }
        }
        above.sort_unstable_by_key(|block| block.start);
        (above, first.filter(|_| is_duplicate))
    }

    fn measure(
        &mut self,
        deliveries: &Deliveries,
        echo: &Echo,
        (advanced, duplicate): (bool, bool),
        now: Instant,
    ) {
        if let Some(sent_at) = deliveries.first_unambiguous.filter(|_| !deliveries.repaired) {
            self.take_round_trip(now.since(sent_at), now);
        } else if let Some(value) = echo.value.filter(|_| advanced && !duplicate) {
            // Only retransmissions were acknowledged: the timestamp tells which (RFC 7323, 4.1). The
            // acknowledgment of a duplicate echoes what came before it (RFC 7323, 4.3), and that this
            // one advances says that those of the first transmission were lost.
            let ms = timestamp(now, echo.offset).wrapping_sub(value);
            if ms < 60_000 {
                self.take_round_trip(Duration::from_millis(u64::from(ms.max(1))), now);
            }
        }
        // Without timestamps only a measurement ends a back-off (RFC 6298, 5): where the path has become
        // slower than the RTO, each segment would else be sent twice, and none be measured.
        if advanced && echo.value.is_some() {
            self.rtt.forgive();
        }
    }

    fn take_round_trip(&mut self, round_trip: Duration, now: Instant) {
        self.rtt.sample(round_trip, now);
        self.probe.measured();
    }

    /// Lets RACK mark what is lost by now. Returns the octets newly lost.
    pub(super) fn find_losses(&mut self, now: Instant) -> u64 {
        // RACK needs SACK (RFC 8985, 3).
        if !self.sack || self.board.is_empty() {
            self.reorder_at = None;
            return 0;
        }
        let recovering = !matches!(*self.recovery, Recovery::Open);
        let head_was_lost = self.board.first().is_some_and(Sent::is_lost);
        let Self { board, rack, rtt, controller, lost, path, delivered, .. } = self;
        let mut losses = Losses::new(controller, lost, (*delivered, true), path.probe_start(), now);
        self.reorder_at = rack.detect(board, rtt, recovering, now, |sent| losses.take(sent));
        let octets = losses.octets;
        if !head_was_lost {
            self.suspect_head(now);
        }
        octets
    }

    /// If the first segment is lost, again perhaps: does the path carry segments of that size?
    fn suspect_head(&mut self, now: Instant) {
        let Some(head) = self.board.first().filter(|head| head.is_lost()) else { return };
        if self.path.probe_start() == Some(head.range.start) {
            return; // Judged by itself.
        }
        if let Some(mss) = self.path.lost(&head.range, self.mss, now) {
            self.set_mss(mss);
            self.board.resegment(u64::from(mss));
        }
    }

    /// Takes the first segment that is not SACKed for lost. Returns its octets.
    fn lose_first(&mut self, now: Instant) -> u64 {
        let Self { board, controller, lost, path, delivered, .. } = self;
        let mut losses =
            Losses::new(controller, lost, (*delivered, false), path.probe_start(), now);
        board.mark_first_lost(|sent| losses.take(sent));
        losses.octets
    }

    /// Whether an acknowledgment carries no octet and leaves the window as it is: if the number is the
    /// same too it is a duplicate (RFC 5681, 2).
    fn says_nothing_else(&self, segment: &Segment, ack: u64) -> bool {
        segment.sequence_len() == 0
            && ack + (u64::from(segment.window) << self.peer_scale) == self.edge
    }

    /// What RACK cannot do for a peer without SACK: three repetitions of an acknowledgment mean a
    /// loss, and so does one that stops short of the recovery's end (RFC 6582, 3.2). Each
    /// repetition tells that a segment left the network, so that another may follow it, before the
    /// third too (RFC 3042). Returns the octets newly lost.
    fn count_repetitions(&mut self, repeated: bool, acked: u64, now: Instant) -> u64 {
        let mss = u64::from(self.mss);
        let recovering = self.recovery.is_fast();
        if acked > 0 {
            let partial = matches!(*self.recovery, Recovery::Fast { end, .. } if self.una < end);
            let back = if acked >= mss { mss } else { 0 };
            self.inflation = if partial { self.inflation.saturating_sub(acked) + back } else { 0 };
            return if partial { self.lose_first(now) } else { 0 };
        }
        if !repeated || self.recovery.is_timeout() {
            return 0;
        }
        self.inflation = (self.inflation + mss).min(self.nxt - self.una);
        let third = !recovering && self.inflation >= REPETITIONS * mss;
        if third { self.lose_first(now) } else { 0 }
    }

    fn update_recovery(
        &mut self,
        deliveries: &Deliveries,
        flight: Flight,
        lost: u64,
        advanced: bool,
        now: Instant,
    ) {
        let ended = self.end_recovery();
        // RFC 6675, 5: what left after the window had come down, and was lost, is another loss.
        let again = ended && (self.board.has_lost() || self.board.has_repairs());
        if (lost > 0 || again) && self.recovery.is_idle() {
            self.begin_recovery(flight, now);
        }
        if self.recovery.is_idle() {
            return;
        }
        if let Recovery::Fast { window: Some((prr, window)), .. } = &mut *self.recovery {
            let target = self.controller.recovery_target().unwrap_or(*window);
            let pipe = self.board.pipe();
            let safe = advanced && lost == 0;
            *window = prr.on_ack(deliveries.octets, pipe, target, u64::from(self.mss), safe);
        }
    }

    /// Ends the recovery if all that was in flight at its start has arrived; `true` if it has.
    fn end_recovery(&mut self) -> bool {
        let (end, fast) = match *self.recovery {
            Recovery::Fast { end, .. } => (end, true),
            Recovery::Timeout { end, .. } => (end, false),
            Recovery::Open => return false,
        };
        if self.una < end {
            return false;
        }
        *self.recovery = Recovery::Open;
        if fast {
            self.inflation = 0;
            self.controller.on_recovered();
        } else {
            self.controller.on_timeout_repaired();
        }
        self.rack.recovery_ended();
        true
    }

    fn inform_controller(
        &mut self,
        deliveries: &Deliveries,
        (was_fast, was_timeout): (bool, bool),
        prior_pipe: u64,
        now: Instant,
    ) {
        let Some(newest) = &deliveries.newest else { return };
        // The rate over the longer of sending and acknowledging (delivery rate estimation, 3.2.2).
        let send_elapsed = newest.sent_at.since(newest.flight_started);
        let ack_elapsed = now.since(newest.delivered_at);
        let interval = send_elapsed.max(ack_elapsed);
        let plausible = self.rtt.minimum().is_none_or(|min| interval >= min);
        let sample = AckSample {
            now,
            newly_delivered: deliveries.octets,
            delivered: self.delivered,
            prior_delivered: newest.delivered,
            interval: if plausible { interval } else { Duration::ZERO },
            rtt: deliveries
                .last_unambiguous
                .filter(|_| !deliveries.repaired)
                .map(|at| now.since(at)),
            smoothed_rtt: self.rtt.smoothed(),
            pipe: self.board.pipe(),
            prior_pipe,
            app_limited: newest.app_limited,
            window_limited: self.window_limited,
            una: self.una,
            nxt: self.nxt,
            newest_in_flight: newest.in_flight.into(),
            newest_lost: self.lost.wrapping_sub(newest.lost_before).into(),
            sack: self.sack,
            recovering: was_fast || self.recovery.is_fast(),
            timed_out: was_timeout,
        };
        let sent_at = newest.sent_at;
        self.set_flight_start(sent_at);
        self.controller.on_ack(&sample);
    }
}

/// Segments as they are found lost. A probe of the path among them tells nothing of congestion
/// (RFC 4821, 7.5).
struct Losses<'a> {
    controller: &'a mut Controller,
    lost: &'a mut u32,
    delivered: u64,
    sack: bool,
    /// Where a probe of the path begins.
    path_probe: Option<u64>,
    now: Instant,
    /// Octets that do tell.
    octets: u64,
}

impl<'a> Losses<'a> {
    fn new(
        controller: &'a mut Controller,
        lost: &'a mut u32,
        (delivered, sack): (u64, bool),
        path_probe: Option<u64>,
        now: Instant,
    ) -> Self {
        Self { controller, lost, delivered, sack, path_probe, now, octets: 0 }
    }

    fn take(&mut self, sent: &Sent) {
        if self.path_probe == Some(sent.range.start) {
            return;
        }
        let octets = sent.range.end - sent.range.start;
        self.octets += octets;
        #[allow(clippy::cast_possible_truncation)] // A segment's.
        let low_bits = octets as u32;
        *self.lost = self.lost.wrapping_add(low_bits);
        let segment = LostSegment {
            range: sent.range.clone(),
            in_flight: sent.in_flight.into(),
            lost_since: self.lost.wrapping_sub(sent.lost_before).into(),
            delivered: self.delivered,
            app_limited: sent.app_limited,
            sack: self.sack,
        };
        self.controller.on_segment_lost(&segment, self.now);
    }
}

/// A SACK block as offsets, if it is one.
fn block(
    space: crate::engine::offset::SequenceSpace,
    una: u64,
    left: u32,
    right: u32,
) -> Option<Range<u64>> {
    let range = space.offset(una, left)?..space.offset(una, right)?;
    (range.start < range.end).then_some(range)
}
