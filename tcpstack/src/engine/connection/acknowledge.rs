//! What we tell the peer of what we received: when, which window, which blocks.

use super::receiver::Receiver;
use crate::engine::segment::SackBlocks;
use crate::time::{Duration, Instant};
use std::ops::Range;

/// How long an acknowledgment may wait (RFC 9293, 3.8.6.3 allows 500 ms).
const ACK_DELAY: Duration = Duration::from_millis(25);

impl Receiver {
    /// Decides when the octets that came in order are acknowledged (RFC 5681, 4.2): every second
    /// full segment at once, else after a delay. `payload` octets came just now: more than `mss` are
    /// several segments that a device has put together, and count as such.
    pub(super) fn schedule_ack(&mut self, mss: u16, payload: usize, now: Instant) {
        if self.window_opened() {
            self.ack_now = true;
        }
        if self.unacknowledged() == 0 {
            return;
        }
        if self.quick_acks > 0 {
            let segments = payload.div_ceil(usize::from(mss));
            self.quick_acks =
                self.quick_acks.saturating_sub(u8::try_from(segments).unwrap_or(u8::MAX));
            self.ack_now = true;
        }
        if self.unacknowledged() >= 2 * u64::from(mss) {
            self.ack_now = true;
        }
        self.ack_by.get_or_insert(now + ACK_DELAY);
    }

    /// Whether the window has opened enough to be worth telling: by half of the largest, however few
    /// segments that are (RFC 9293, 3.8.6.2.2).
    fn window_opened(&self) -> bool {
        (self.taken() + self.limit).saturating_sub(self.edge) >= self.limit / 2
    }

    /// The window field of the next segment; moves the right edge.
    pub(super) fn advertise(&mut self, mss: u16) -> u16 {
        let wanted = (self.taken() + self.limit).max(self.edge);
        // Silly window avoidance: small steps are not told (RFC 9293, 3.8.6.2.2).
        let worthwhile = wanted - self.edge >= u64::from(mss).min(self.limit / 2);
        let edge = if worthwhile { wanted } else { self.edge };
        let field = u16::try_from((edge - self.nxt) >> self.scale).unwrap_or(u16::MAX);
        // What rounding and 16 bits leave is what the peer learns; what it learnt before stays
        // acceptable (RFC 7323, 2.4).
        self.edge = self.edge.max(self.nxt + (u64::from(field) << self.scale));
        field
    }

    pub(super) fn taken(&self) -> u64 {
        // Before any data the caller has taken nothing, and the SYN is not for it.
        self.buffer.taken().max(1)
    }

    /// An acknowledgment leaves. Another one must follow it if it had no room for all blocks.
    pub(super) fn acknowledged(&mut self) {
        let repeats = self.last_ack_sent == self.nxt;
        self.last_ack_sent = self.nxt;
        self.ack_by = None;
        self.ack_now = self.has_more_to_tell() && self.told(repeats);
    }

    /// What the next acknowledgment has room for was told; `true` if that was not all. Without SACK
    /// only a repetition tells of what lies behind a hole.
    fn told(&mut self, repeats: bool) -> bool {
        if (self.blocks_max > 0 || repeats) && self.holes.runs.has_untold() {
            let from = self.next_runs().start;
            self.holes.runs.told_from(from);
        }
        let rest = self.holes.runs.has_untold();
        if !rest {
            self.holes.duplicate = None;
        }
        rest
    }

    /// Whether an acknowledgment must leave now.
    pub(super) fn wants_ack(&self, now: Instant) -> bool {
        self.ack_now || self.ack_by.is_some_and(|at| at <= now)
    }

    /// The runs that the next acknowledgment tells of, by their places. The last one of a batch
    /// tells of the duplicate.
    fn next_runs(&self) -> Range<usize> {
        let last = self.blocks_max - u8::from(self.reports_duplicate());
        self.holes.runs.next(usize::from(self.blocks_max.max(1)), usize::from(last))
    }

    fn reports_duplicate(&self) -> bool {
        self.blocks_max > 0 && self.holes.duplicate.is_some()
    }

    /// The SACK blocks of the next acknowledgment: a duplicate first (RFC 2883), then runs, those that
    /// grew last in front (RFC 2018, 4).
    pub(super) fn sack_blocks(&self) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        if self.blocks_max == 0 || !self.has_more_to_tell() {
            return blocks;
        }
        let places = self.next_runs();
        if let Some(range) = self.holes.duplicate.as_ref().filter(|_| places.start == 0) {
            blocks.push(self.space.wire(range.start), self.space.wire(range.end));
        }
        for octet in self.holes.runs.at(places) {
            if let Some(run) = self.buffer.run_containing(*octet) {
                blocks.push(self.space.wire(run.start), self.space.wire(run.end));
            }
        }
        blocks
    }
}
