//! RST: for segments that belong to nothing, and for connections that end at once.

use super::Stack;
use crate::api::{CloseReason, ConnId};
use crate::engine::connection::Reset;
use crate::engine::segment::{Flags, Marks, Options, Outgoing, Segment};
use crate::table::FourTuple;
use crate::time::Instant;

/// Shares of the RSTs to strays: a source network has one of them. Which it is nobody else knows.
const SHARES: usize = 256;

/// Why a RST is sent. Each reason has a budget of its own, so that who floods us with strays does
/// not mute what we have to say to our peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A segment that belongs to nothing (RFC 9293, 3.10.7.1 and 3.10.7.3), from a network with this
    /// share. One budget for all would be muted for all by whoever uses it up, and would show who has a
    /// connection with us: strays that are forged in a peer's name leave it as it is then
    /// (CVE-2016-5696).
    Stray(u8),
    /// A connection that we end at once.
    Abort,
    /// A connection that gives way to a newer one.
    Eviction,
}

impl Cause {
    /// RSTs in a second, and at once. A stray's source may be forged: a flood is not answered by a
    /// flood. The others go to peers that have completed a handshake, once for each.
    fn per_second_max(self) -> u16 {
        match self {
            Self::Stray(_) => 200,
            Self::Abort | Self::Eviction => 2000,
        }
    }

    /// The place of its budget.
    fn budget(self) -> usize {
        match self {
            Self::Stray(share) => usize::from(share),
            Self::Abort => SHARES,
            Self::Eviction => SHARES + 1,
        }
    }
}

/// How many RSTs have been sent in a second.
pub(super) struct Budgets {
    second: u64,
    spent: [u16; SHARES + 2],
}

impl Default for Budgets {
    fn default() -> Self {
        Self { second: 0, spent: [0; SHARES + 2] }
    }
}

impl Budgets {
    fn take(&mut self, cause: Cause, now: Instant) -> bool {
        let second = now.micros() / 1_000_000;
        if second != self.second {
            *self = Self { second, ..Self::default() };
        }
        let spent = &mut self.spent[cause.budget()];
        *spent = spent.saturating_add(1);
        *spent <= cause.per_second_max()
    }
}

impl Stack {
    pub(super) fn abort_with(&mut self, id: ConnId, reason: CloseReason) {
        if self.slots.named(id).is_some() {
            self.break_off(id.index, reason);
            self.end(id.index, reason);
        }
    }

    /// Ends a connection with a RST, if its peer is to have one. The caller is told elsewhere.
    pub(super) fn break_off(&mut self, index: u32, reason: CloseReason) {
        let Some(entry) = self.slots.get_mut(index) else { return };
        let (tuple, marks) = (entry.connection.tuple, entry.connection.marks());
        let reset = entry.connection.reset(self.now);
        entry.connection.end(reason);
        if let Some(reset) = reset {
            let evicted = reason == CloseReason::Evicted;
            let cause = if evicted { Cause::Eviction } else { Cause::Abort };
            self.send_reset((&tuple, marks), reset, cause);
        }
    }

    /// RFC 9293, 3.10.7.1: a segment of no connection is answered by RST.
    pub(super) fn refuse(&mut self, tuple: &FourTuple, segment: &Segment) {
        let (seq, ack) = match segment.ack {
            Some(ack) => (ack, None),
            None => {
                #[allow(clippy::cast_possible_truncation)] // Below 2^16.
                let ack = segment.seq.wrapping_add(segment.sequence_len() as u32);
                (0, Some(ack))
            }
        };
        // RFC 7323, 5.2: the value that came is echoed; ours says nothing.
        let timestamps = segment.options.timestamps.map(|(value, _)| (0, value));
        let marks = self.marks(tuple);
        let cause = Cause::Stray(self.sources.share(tuple.remote.ip()));
        self.send_reset((tuple, marks), Reset { seq, ack, timestamps }, cause);
    }

    fn send_reset(&mut self, (tuple, marks): (&FourTuple, Marks), reset: Reset, cause: Cause) {
        if !self.resets.take(cause, self.now) {
            self.stats.resets_suppressed += 1;
            return;
        }
        self.stats.resets_sent += 1;
        let Reset { seq, ack, timestamps } = reset;
        let answer = Outgoing {
            seq,
            ack,
            flags: Flags { rst: true, ..Flags::default() },
            window: 0,
            options: Options { timestamps, ..Options::default() },
        };
        self.replies.push(tuple, marks, &answer, self.config.tx_checksum);
    }
}
