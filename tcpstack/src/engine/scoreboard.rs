//! The segments in flight and what has become of each: the SACK scoreboard, with what RACK
//! (RFC 8985) and delivery-rate sampling need to know of them.
//!
//! Segments lie in a queue in the order of their offsets and carry stable ids, so that a second
//! order, that of their last transmission, can be a linked list over the same entries. Every
//! operation touches each segment a bounded number of times over its life: SACK blocks that
//! repeat what is known cost a search and no walk, and loss detection walks from the oldest
//! transmission and stops at the first that is still young. What a peer sends can make none of
//! these lists longer than what we ourselves have in flight.

mod recut;
mod sent;
#[cfg(test)]
mod tests;

pub(crate) use sent::{Sent, Stamp};

use super::lazy::{ENTRIES_KEPT, Idle};
use super::ranges::Ranges;
use crate::time::{Duration, Instant};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Range;

/// Most separate SACKed ranges remembered; further ones are ignored until holes close.
const SACKED_RANGES_MAX: usize = 4096;

/// The end of a list.
const NIL: u64 = u64::MAX;

/// The scoreboard of one connection's sending direction.
#[derive(Debug)]
pub(crate) struct Scoreboard {
    segments: VecDeque<Sent>,
    /// The id of the first segment in the queue.
    first_id: u64,
    /// Oldest and newest transmission among those neither delivered nor lost.
    oldest: u64,
    newest: u64,
    sacked: Ranges<SACKED_RANGES_MAX>,
    /// Ids that were marked lost; an entry may be out of date.
    lost_queue: BinaryHeap<Reverse<u64>>,
    pipe: u64,
    sacked_octets: u64,
    sacked_segments: usize,
    lost_octets: u64,
    /// No octet from here on was sent again by a recovery.
    repaired_below: u64,
}

impl Scoreboard {
    pub(crate) const fn new() -> Self {
        Self {
            segments: VecDeque::new(),
            first_id: 0,
            oldest: NIL,
            newest: NIL,
            sacked: Ranges::new(),
            lost_queue: BinaryHeap::new(),
            pipe: 0,
            sacked_octets: 0,
            sacked_segments: 0,
            lost_octets: 0,
            repaired_below: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Octets believed to be in the network (RFC 6675's pipe, with RACK's marks).
    pub(crate) fn pipe(&self) -> u64 {
        self.pipe
    }

    /// The same with `octets` more, as far as a stamp has room for it.
    pub(crate) fn pipe_with(&self, octets: u64) -> u32 {
        u32::try_from(self.pipe + octets).unwrap_or(u32::MAX)
    }

    /// Octets that the peer has SACKed above the cumulative acknowledgment.
    pub(crate) fn sacked_octets(&self) -> u64 {
        self.sacked_octets
    }

    /// Whether something marked lost waits to be sent again.
    pub(crate) fn has_lost(&self) -> bool {
        self.lost_octets > 0
    }

    /// How many segments the peer has SACKed above the cumulative acknowledgment.
    pub(crate) fn sacked_segments(&self) -> usize {
        self.sacked_segments
    }

    /// The highest SACKed offset, if there is one.
    pub(crate) fn highest_sacked(&self) -> Option<u64> {
        self.sacked.last().map(|range| range.end)
    }

    /// Whether the peer holds anything above a hole.
    pub(crate) fn has_sacked(&self) -> bool {
        self.sacked_octets > 0
    }

    /// Notes a new segment at the end.
    pub(crate) fn push(&mut self, range: Range<u64>, stamp: Stamp) {
        let id = self.first_id + self.segments.len() as u64;
        self.pipe += range.end - range.start;
        self.segments.push_back(Sent {
            range,
            sent_at: stamp.sent_at,
            delivered: stamp.delivered,
            delivered_at: stamp.delivered_at,
            flight_started: stamp.flight_started,
            in_flight: stamp.in_flight,
            lost_before: stamp.lost_before,
            app_limited: stamp.app_limited,
            retransmitted: false,
            sacked: false,
            lost: false,
            earlier: NIL,
            later: NIL,
        });
        self.link(id);
    }

    fn index(&self, id: u64) -> Option<usize> {
        usize::try_from(id.checked_sub(self.first_id)?).ok().filter(|i| *i < self.segments.len())
    }

    fn get(&self, id: u64) -> Option<&Sent> {
        self.segments.get(self.index(id)?)
    }

    fn get_mut(&mut self, id: u64) -> Option<&mut Sent> {
        let index = self.index(id)?;
        self.segments.get_mut(index)
    }

    /// Appends to the list of transmissions, as the newest.
    fn link(&mut self, id: u64) {
        let newest = self.newest;
        if let Some(segment) = self.get_mut(id) {
            segment.earlier = newest;
            segment.later = NIL;
        }
        match self.get_mut(newest) {
            Some(previous) => previous.later = id,
            None => self.oldest = id,
        }
        self.newest = id;
    }

    fn unlink(&mut self, id: u64) {
        let Some((earlier, later)) = self.get(id).map(|s| (s.earlier, s.later)) else { return };
        if let Some(segment) = self.get_mut(earlier) {
            segment.later = later;
        } else if self.oldest == id {
            self.oldest = later;
        } else {
            return; // Not in the list: marked lost before.
        }
        match self.get_mut(later) {
            Some(segment) => segment.earlier = earlier,
            None => self.newest = earlier,
        }
        if let Some(segment) = self.get_mut(id) {
            (segment.earlier, segment.later) = (NIL, NIL);
        }
    }

    /// Takes a cumulative acknowledgment up to `una`; each segment delivered by it, and not by a
    /// SACK before, goes to `delivered`.
    pub(crate) fn acknowledge(&mut self, una: u64, mut delivered: impl FnMut(&Sent)) {
        while let Some(first) = self.segments.front() {
            if first.range.start >= una {
                break;
            }
            if first.range.end > una {
                self.trim_first(una);
                break;
            }
            if !first.sacked {
                delivered(first);
            }
            self.forget_first();
        }
        self.sacked.trim_below(una);
        if self.segments.is_empty() {
            self.lost_queue.clear();
        }
    }

    /// A part of the first segment is acknowledged: the rest stays in flight.
    fn trim_first(&mut self, una: u64) {
        let Some(first) = self.segments.front_mut() else { return };
        let gone = una - first.range.start;
        first.range.start = una;
        if first.sacked {
            self.sacked_octets -= gone;
        } else if first.lost {
            self.lost_octets -= gone;
        } else {
            self.pipe -= gone;
        }
    }

    fn forget_first(&mut self) {
        self.unlink(self.first_id);
        let Some(first) = self.segments.pop_front() else { return };
        self.first_id += 1;
        if first.sacked {
            self.sacked_octets -= first.len();
            self.sacked_segments -= 1;
        } else if first.lost {
            self.lost_octets -= first.len();
        } else {
            self.pipe -= first.len();
        }
    }

    /// Takes one SACK block (RFC 2018); each segment that it newly delivers goes to `delivered`.
    ///
    /// A segment counts once all its octets are SACKed. The work is that of what is newly told: the
    /// ranges known before melt into one once, however many holes between them the block closes.
    pub(crate) fn sack(&mut self, block: Range<u64>, mut delivered: impl FnMut(&Sent)) {
        if self.sacked.covers(&block) {
            return;
        }
        let mut sacked = std::mem::take(&mut self.sacked);
        sacked.fill(block, |gap, whole| self.mark_sacked(&gap, whole, &mut delivered));
        self.sacked = sacked;
    }

    /// Marks the segments that touch `gap` and now lie wholly in `whole`, the SACKed range around it.
    fn mark_sacked(
        &mut self,
        gap: &Range<u64>,
        whole: &Range<u64>,
        delivered: &mut impl FnMut(&Sent),
    ) {
        let from = self.segments.partition_point(|segment| segment.range.end <= gap.start);
        for index in from..self.segments.len() {
            let segment = &self.segments[index];
            if segment.range.start >= gap.end {
                break;
            }
            let is_whole = whole.start <= segment.range.start && segment.range.end <= whole.end;
            if segment.sacked || !is_whole {
                continue;
            }
            let id = self.first_id + index as u64;
            self.unlink(id);
            let segment = &mut self.segments[index];
            let len = segment.len();
            if segment.lost {
                self.lost_octets -= len;
            } else {
                self.pipe -= len;
            }
            segment.sacked = true;
            segment.lost = false;
            self.sacked_octets += len;
            self.sacked_segments += 1;
            delivered(segment);
        }
    }

    /// Marks as lost what was sent before the newest delivered transmission by more than
    /// `allowance` (RFC 8985, 6.2, step 5); each goes to `lost`. Returns when to look again.
    pub(crate) fn detect_lost(
        &mut self,
        newest_delivered: (Instant, u64),
        allowance: Duration,
        now: Instant,
        mut lost: impl FnMut(&Sent),
    ) -> Option<Instant> {
        while let Some(segment) = self.get(self.oldest) {
            if (segment.sent_at, segment.range.end) >= newest_delivered {
                break;
            }
            let due = segment.sent_at + allowance;
            if due > now {
                return Some(due);
            }
            lost(segment);
            self.mark_lost(self.oldest);
        }
        None
    }

    /// Marks one segment lost and takes it out of the order of transmissions.
    fn mark_lost(&mut self, id: u64) -> u64 {
        self.unlink(id);
        let Some(segment) = self.get_mut(id).filter(|segment| segment.in_pipe()) else { return 0 };
        segment.lost = true;
        let len = segment.len();
        self.pipe -= len;
        self.lost_octets += len;
        self.lost_queue.push(Reverse(id));
        len
    }

    /// Marks everything that is not SACKed as lost, after a retransmission timeout
    /// (RFC 8985, 6.3; RFC 6675, 5.1). Returns the octets newly lost.
    pub(crate) fn mark_all_lost(&mut self) -> u64 {
        let mut lost = 0;
        while self.oldest != NIL {
            lost += self.mark_lost(self.oldest);
        }
        lost
    }

    /// Marks the first segment that is not SACKed as lost: a sign of loss without RACK's times,
    /// such as a packet too big.
    pub(crate) fn mark_first_lost(&mut self, lost: impl FnOnce(&Sent)) {
        let found = self.segments.iter().position(|segment| !segment.sacked);
        let Some(index) = found.filter(|index| self.segments[*index].in_pipe()) else { return };
        lost(&self.segments[index]);
        self.mark_lost(self.first_id + index as u64);
    }

    /// Takes marks of loss back, as a timeout proved spurious: what was not sent again is in the
    /// network still, and has its place among what was sent since.
    pub(crate) fn unmark_lost(&mut self) {
        if !self.has_lost() {
            return;
        }
        while let Some(Reverse(id)) = self.lost_queue.pop() {
            let Some(segment) = self.get_mut(id).filter(|segment| segment.lost) else { continue };
            segment.lost = false;
            let len = segment.len();
            self.lost_octets -= len;
            self.pipe += len;
        }
        self.order();
    }

    /// The lowest segment to be sent again, if one is marked lost.
    pub(crate) fn next_lost(&mut self) -> Option<Range<u64>> {
        while let Some(Reverse(id)) = self.lost_queue.peek().copied() {
            match self.get(id) {
                Some(segment) if segment.lost => return Some(segment.range.clone()),
                _ => drop(self.lost_queue.pop()),
            }
        }
        None
    }

    /// The last segment in flight, which a tail loss probe repeats (RFC 8985, 7.3).
    pub(crate) fn last(&self) -> Option<&Sent> {
        self.segments.back()
    }

    /// A recovery has sent what lies below `end` again.
    pub(crate) fn repaired(&mut self, end: u64) {
        self.repaired_below = self.repaired_below.max(end);
    }

    /// Whether something in flight may be a recovery's repair.
    pub(crate) fn has_repairs(&self) -> bool {
        self.first().is_some_and(|first| first.range.start < self.repaired_below)
    }

    /// The first segment in flight.
    pub(crate) fn first(&self) -> Option<&Sent> {
        self.segments.front()
    }

    /// Whether the segment that begins at `start` is marked lost.
    pub(crate) fn is_lost(&self, start: u64) -> bool {
        self.at(start).is_some_and(|segment| segment.lost)
    }

    /// Whether the segment that began at `start` arrived, given that all below `una` did.
    pub(crate) fn is_delivered(&self, start: u64, una: u64) -> bool {
        start < una || self.at(start).is_some_and(|segment| segment.sacked)
    }

    /// Whether the segment that holds `offset` is longer than `len`.
    pub(crate) fn exceeds(&self, offset: u64, len: u64) -> bool {
        let index = self.segments.partition_point(|segment| segment.range.end <= offset);
        self.segments.get(index).is_some_and(|segment| segment.len() > len)
    }

    fn at(&self, start: u64) -> Option<&Sent> {
        let index = self.segments.partition_point(|segment| segment.range.end <= start);
        self.segments.get(index).filter(|segment| segment.range.start == start)
    }

    /// Notes that the segment starting at `start` was sent again.
    pub(crate) fn retransmitted(&mut self, start: u64, stamp: Stamp) {
        let index = self.segments.partition_point(|segment| segment.range.end <= start);
        let id = self.first_id + index as u64;
        self.unlink(id);
        let Some(segment) = self.segments.get_mut(index) else { return };
        let len = segment.len();
        if segment.lost {
            segment.lost = false;
            self.lost_octets -= len;
            self.pipe += len;
        }
        segment.retransmitted = true;
        segment.sent_at = stamp.sent_at;
        segment.delivered = stamp.delivered;
        segment.delivered_at = stamp.delivered_at;
        segment.flight_started = stamp.flight_started;
        segment.in_flight = stamp.in_flight;
        segment.lost_before = stamp.lost_before;
        segment.app_limited = stamp.app_limited;
        if !segment.sacked {
            self.link(id);
        }
    }
}

impl Idle for Scoreboard {
    const IDLE: &'static Self = &Self::new();

    fn idle() -> Self {
        Self::new()
    }

    fn is_idle(&self) -> bool {
        self.segments.is_empty()
    }

    fn reset(&mut self) {
        let Self { mut segments, mut sacked, mut lost_queue, .. } =
            std::mem::replace(self, Self::new());
        segments.shrink_to(ENTRIES_KEPT);
        sacked.clear();
        lost_queue.clear();
        lost_queue.shrink_to(ENTRIES_KEPT);
        *self = Self { segments, sacked, lost_queue, ..Self::new() };
    }
}
