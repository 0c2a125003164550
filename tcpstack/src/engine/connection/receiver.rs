//! The receiving direction: what is expected, what the peer may send, and when to acknowledge.

use super::runs::Runs;
use super::waiting::Waiting;
use super::{Context, Settings};
use crate::engine::buffer::{ChunkPool, ReceiveBuffer};
use crate::engine::lazy::{ENTRIES_KEPT, Idle, Lazy};
use crate::engine::offset::SequenceSpace;
use crate::engine::segment::{SACK_BLOCKS_MAX, TIMESTAMP_OPTION};
use crate::time::{Duration, Instant};
use std::ops::Range;

/// Window of a new connection, in octets; it grows with what a peer sends that has proven itself.
const WINDOW_INITIAL: u64 = 64 * 1024;
/// Segments at the start that are acknowledged at once, so that the peer's slow start is not held.
const QUICK_ACKS: u8 = 16;
/// A timestamp older than this says nothing (RFC 7323, 5.5).
const PAWS_LIFETIME: Duration = Duration::from_secs(24 * 24 * 3600);
/// Over how long the peer's sending is watched before its window grows: the round trip of a
/// satellite and more.
const GROWTH_PERIOD: Duration = Duration::from_secs(1);

/// What became of a segment's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    None,
    Accepted,
    /// All of it had come before.
    Duplicate,
    /// Held behind a hole.
    Held,
    /// No memory, or too many holes: it will be sent again.
    Refused,
}

/// The timestamp to echo, 0 until one is known, and when it came (RFC 7323, 4.3).
#[derive(Clone, Copy, Debug, Default)]
struct RecentTimestamp {
    known: bool,
    value: u32,
    at: Instant,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    pub(super) space: SequenceSpace,
    pub(super) nxt: u64,
    /// The right edge of the window as the peer knows it; never moves back (RFC 9293, 3.8.6.2.1).
    pub(super) edge: u64,
    pub(super) limit: u64,
    pub(super) scale: u8,
    /// The window may grow: nobody who is not known gets more than the first one.
    pub(super) proven: bool,
    pub(super) buffer: ReceiveBuffer,
    recent: RecentTimestamp,
    pub(super) last_ack_sent: u64,
    pub(super) quick_acks: u8,
    /// SACK blocks for which an acknowledgment has room; none if the peer does not know them.
    pub(super) blocks_max: u8,
    pub(super) ack_now: bool,
    pub(super) ack_by: Option<Instant>,
    pub(super) finished: bool,
    /// The peer has sent what nobody reads any more.
    pub(super) data_lost: bool,
    pub(super) holes: Lazy<Holes>,
    pub(super) growth: Growth,
}

/// What there is to know of segments that came out of order.
#[derive(Debug)]
pub(super) struct Holes {
    /// Where the peer's FIN lies, if it came before the octets in front of it.
    pub(super) fin: Option<u64>,
    /// What came twice and was not reported yet.
    pub(super) duplicate: Option<Range<u64>>,
    pub(super) runs: Runs,
    /// The segments behind the holes.
    pub(super) waiting: Waiting,
}

impl Holes {
    const fn none() -> Self {
        Self { fin: None, duplicate: None, runs: Runs::new(), waiting: Waiting::nothing() }
    }
}

impl Idle for Holes {
    const IDLE: &'static Self = &Self::none();

    fn idle() -> Self {
        Self::none()
    }

    fn is_idle(&self) -> bool {
        self.fin.is_none() && self.duplicate.is_none() && self.waiting.is_empty()
    }

    fn reset(&mut self) {
        let mut waiting = std::mem::replace(&mut self.waiting, Waiting::nothing());
        waiting.shrink_to(ENTRIES_KEPT);
        *self = Self { waiting, ..Self::none() };
    }
}

/// Autotuning: how much the peer has sent in the present period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growth {
    started: Instant,
    from: u64,
}

impl Receiver {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            space: SequenceSpace::new(0),
            nxt: 0,
            edge: 0,
            limit: WINDOW_INITIAL.min(settings.receive_max as u64),
            scale: settings.window_scale,
            proven: false,
            buffer: ReceiveBuffer::new(),
            recent: RecentTimestamp::default(),
            last_ack_sent: 0,
            quick_acks: QUICK_ACKS,
            blocks_max: 0,
            ack_now: false,
            ack_by: None,
            finished: false,
            data_lost: false,
            holes: Lazy::new(),
            growth: Growth { started: Instant::from_micros(0), from: 1 },
        }
    }

    /// The peer's SYN came with `isn`.
    pub(super) fn synchronize(&mut self, isn: u32) {
        self.space = SequenceSpace::new(isn);
        self.nxt = 1;
        self.edge = 1 + self.limit.min(u64::from(u16::MAX));
        self.last_ack_sent = 1;
    }

    /// Without window scaling the window has 16 bits.
    pub(super) fn limit_to_scale(&mut self) {
        self.limit = self.limit.min(u64::from(u16::MAX) << self.scale);
    }

    pub(super) fn next_wire(&self) -> u32 {
        self.space.wire(self.nxt)
    }

    pub(super) fn offset(&self, wire: u32) -> Option<u64> {
        self.space.offset(self.nxt, wire)
    }

    /// RFC 9293, 3.10.7.4, first check: whether some of it lies in the window.
    pub(super) fn is_acceptable(&self, start: u64, len: u64) -> bool {
        if len == 0 {
            // A peer that has filled the window acknowledges from its very edge, and one that has
            // probed the closed window with an octet from behind that (RFC 9293, A.2).
            return (self.nxt..=self.edge.max(self.nxt + 1)).contains(&start);
        }
        // With a closed window the acknowledgment of a probe still counts, its octet does not.
        start == self.nxt || (start < self.edge && start + len > self.nxt)
    }

    /// PAWS (RFC 7323, 5.2): whether a timestamp is older than the last one.
    pub(super) fn is_old_timestamp(&self, value: u32, now: Instant) -> bool {
        let RecentTimestamp { known, value: recent, at } = self.recent;
        known && value.wrapping_sub(recent).cast_signed() < 0 && now.since(at) < PAWS_LIFETIME
    }

    /// Whether a timestamp is younger than the last one.
    pub(super) fn is_new_timestamp(&self, value: u32, now: Instant) -> bool {
        let RecentTimestamp { known, value: recent, at } = self.recent;
        !known || value.wrapping_sub(recent).cast_signed() > 0 || now.since(at) >= PAWS_LIFETIME
    }

    /// Octets in order since the last acknowledgment.
    pub(super) fn unacknowledged(&self) -> u64 {
        self.nxt - self.last_ack_sent
    }

    /// Octets in order that were not taken.
    pub(super) fn unread(&self) -> u64 {
        self.data_end().saturating_sub(self.taken())
    }

    /// The end of the data in order: the peer's FIN is none.
    fn data_end(&self) -> u64 {
        self.nxt - u64::from(self.finished)
    }

    /// Remembers a timestamp to echo (RFC 7323, 4.3): that of the segment that covers the last
    /// acknowledgment sent.
    pub(super) fn note_timestamp(&mut self, value: u32, start: u64, now: Instant) {
        if start <= self.last_ack_sent && !self.is_old_timestamp(value, now) {
            self.recent = RecentTimestamp { known: true, value, at: now };
        }
    }

    pub(super) fn timestamp_echo(&self) -> u32 {
        self.recent.value
    }

    /// Takes the payload that begins at `start`; what lies in order goes to `deliver` from where
    /// it is, the rest waits.
    pub(super) fn take(
        &mut self,
        context: &mut Context<'_>,
        start: u64,
        payload: &mut [u8],
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Payload {
        let end = start + payload.len() as u64;
        if end <= self.nxt {
            self.note_duplicate(start..end);
            return Payload::Duplicate;
        }
        let from = self.nxt.max(start);
        let to = end.min(self.edge);
        self.note_first_duplicate(start, to);
        if from >= to {
            self.ack_now = true; // A probe of our closed window (RFC 9293, 3.8.6.1).
            return Payload::Refused;
        }
        let (Ok(skip), Ok(len)) = (usize::try_from(from - start), usize::try_from(to - from))
        else {
            return Payload::Refused;
        };
        let octets = &mut payload[skip..skip + len];
        // The SYN is not for the caller, and is never held.
        if from == self.nxt && self.taken() == self.nxt {
            self.pass_through(context, octets, deliver)
        } else {
            self.hold(context, from, octets, deliver)
        }
    }

    /// The common case: in order, nothing waits to be taken. The caller sees the octets in the
    /// packet, and then those behind the hole that they fill, if they do. No memory is needed for
    /// what the caller takes, so that a stream goes on when there is none.
    fn pass_through(
        &mut self,
        context: &mut Context<'_>,
        octets: &mut [u8],
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Payload {
        let taken = deliver(octets).min(octets.len());
        let at = self.nxt + taken as u64;
        self.buffer.pass(context.pool, at);
        let rest = &octets[taken..];
        if !rest.is_empty() && self.buffer.insert(context.pool, at, at, rest).is_err() {
            self.advance(context, at);
            self.ack_now = true;
            return Payload::Refused;
        }
        let end = self.nxt + octets.len() as u64;
        let run_end = self.buffer.run_end(end);
        self.advance(context, run_end);
        if !self.holes.waiting.is_empty() {
            self.fill_hole(context, deliver);
        }
        Payload::Accepted
    }

    /// Some of a hole is filled: acknowledged at once (RFC 5681, 4.2), and what lay behind it is
    /// lent.
    fn fill_hole(
        &mut self,
        context: &mut Context<'_>,
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) {
        self.ack_now = true;
        // Repetitions of the number before this one mean nothing any more.
        let told = if self.blocks_max > 0 { self.nxt } else { u64::MAX };
        self.holes.runs.forget_below(told);
        self.buffer.lend(context.pool, self.nxt, deliver);
        self.holes.waiting.end_below(self.nxt, context.now, context.head_of_line);
    }

    /// Behind a hole, or filling one.
    fn hold(
        &mut self,
        context: &mut Context<'_>,
        from: u64,
        octets: &[u8],
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Payload {
        let range = from..from + octets.len() as u64;
        if self.buffer.holds(&range) {
            // RFC 2883, 4: the run that holds the duplicate is the next block.
            self.note_run(from);
            return Payload::Duplicate;
        }
        if self.buffer.insert(context.pool, self.nxt, from, octets).is_err() {
            self.ack_now = true;
            return Payload::Refused;
        }
        let run_end = self.buffer.run_end(self.nxt);
        if run_end == self.nxt {
            self.note_run(from);
            self.holes.waiting.begin(range, context.now);
            // A peer without SACK counts acknowledgments that leave the window (RFC 5681, 2).
            if self.blocks_max > 0 {
                self.grow(context, self.buffer.octets_behind_holes());
            }
            return Payload::Held;
        }
        self.advance(context, run_end);
        self.fill_hole(context, deliver);
        Payload::Accepted
    }

    /// Lends what was not taken before.
    pub(super) fn lend(
        &mut self,
        context: &mut Context<'_>,
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) {
        self.buffer.lend(context.pool, self.data_end(), deliver);
    }

    fn advance(&mut self, context: &Context<'_>, to: u64) {
        self.nxt = to;
        self.buffer.in_order_below(to);
        self.grow(context, 0);
    }

    fn note_run(&mut self, from: u64) {
        self.ack_now = true; // RFC 5681, 4.2: out of order is acknowledged at once.
        // Without SACK each segment is answered by a repetition of its own (RFC 5681, 3.2).
        let run = self.buffer.run_containing(from).filter(|_| self.blocks_max > 0);
        self.holes.runs.grew(from, |known| run.as_ref().is_some_and(|run| run.contains(&known)));
    }

    /// Forgets the octets behind holes, which the peer keeps until they are acknowledged by number
    /// (RFC 2018, 8); nothing that was is given up.
    pub(super) fn renege(&mut self, pool: &mut ChunkPool) {
        let data_end = self.data_end();
        self.buffer.renege(pool, data_end);
        if !self.holes.waiting.is_empty() {
            self.holes.waiting.forget();
            self.holes.runs = Runs::new();
        }
    }

    /// Of several parts of a segment that came before the first is reported (RFC 2883, 4.2).
    fn note_first_duplicate(&mut self, start: u64, end: u64) {
        if start < self.nxt {
            self.note_duplicate(start..self.nxt);
        } else if !self.holes.waiting.is_empty()
            && let Some(held) = self.buffer.first_held(&(start..end))
        {
            self.note_duplicate(held);
        }
    }

    /// Remembers what to report as received twice (RFC 2883, 4).
    pub(super) fn note_duplicate(&mut self, range: Range<u64>) {
        self.ack_now = true;
        if !range.is_empty() {
            self.holes.duplicate = Some(range);
        }
    }

    /// The window grows when the peer sends half of it within [`GROWTH_PERIOD`], the octets `behind`
    /// holes included: while one loss follows the other hardly anything comes in order. Only what
    /// waits costs memory, of the proven up to the largest window.
    fn grow(&mut self, context: &Context<'_>, behind: u64) {
        let settings = context.settings;
        let arrived = self.nxt - self.growth.from + behind;
        if self.proven && arrived * 2 > self.limit && !context.pool.is_scarce() {
            let max = (settings.receive_max as u64).min(u64::from(u16::MAX) << self.scale);
            self.limit = (self.limit * 2).min(max);
        }
        if context.now.since(self.growth.started) > GROWTH_PERIOD {
            self.growth = Growth { started: context.now, from: self.nxt };
        }
    }

    /// Notes where the peer's FIN lies. The last word counts: whoever forges one is overruled when
    /// the peer repeats its own.
    pub(super) fn note_fin(&mut self, offset: u64) {
        self.holes.fin = Some(offset);
    }

    /// Takes the FIN if all before it has come. `true` once.
    pub(super) fn take_fin(&mut self) -> bool {
        if self.holes.fin != Some(self.nxt) {
            return false;
        }
        self.finished = true;
        // Nothing follows a FIN, whatever somebody has sent.
        *self.holes = Holes::none();
        self.nxt += 1;
        self.edge = self.edge.max(self.nxt);
        self.ack_now = true;
        true
    }

    /// Whether an acknowledgment has more to tell than a segment of data can carry: blocks, or that
    /// it is a repetition (RFC 5681, 2).
    pub(super) fn has_more_to_tell(&self) -> bool {
        !self.holes.waiting.is_empty() || self.holes.duplicate.is_some()
    }

    /// Takes the memory that whatever comes out of order needs.
    pub(super) fn hold_losses(&mut self, pool: &mut ChunkPool) {
        self.holes.hold(&mut pool.spares.losses.holes);
    }

    /// Gives back what an idle connection need not hold.
    pub(super) fn shrink(&mut self, pool: &mut ChunkPool) {
        self.holes.release(&mut pool.spares.losses.holes);
        self.buffer.shrink(pool);
    }

    pub(super) fn release(&mut self, pool: &mut ChunkPool) {
        self.buffer.release(pool);
    }
}

const _: () = assert!(TIMESTAMP_OPTION + 4 + 8 * (SACK_BLOCKS_MAX - 1) <= 40);
