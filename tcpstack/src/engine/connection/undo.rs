//! Repairs that were for nothing: timestamps (Eifel, RFC 3522), what was sent before a timeout only
//! (F-RTO, RFC 5682), and duplicates that the peer reports (D-SACK, RFC 3708) show them.

use super::ack::{Deliveries, Echo};
use super::forward::Forward;
use super::recovery::Recovery;
use super::sender::Sender;
use crate::engine::lazy::Idle;
use crate::engine::scoreboard::Scoreboard;
use std::ops::Range;

/// Separate ranges sent again that are remembered; with more of them holes in one recovery it is not
/// undone by D-SACK.
const REPEATED_MAX: usize = 8;

/// What shows that a repair was for nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Undo {
    /// Retransmissions of an earlier recovery are in flight. What echoes one of them is older than
    /// the first one of this recovery, and yet tells of no first transmission; and that all of this
    /// one's were needless does not say that those were.
    after_another: bool,
    /// The timestamp of the first retransmission (Eifel, RFC 3522).
    first_retransmission: Option<u32>,
    repeated: Repeated,
}

impl Undo {
    /// Of a recovery that begins with this in flight.
    pub(super) fn of(board: &Scoreboard) -> Self {
        Self { after_another: board.has_repairs(), ..Self::default() }
    }

    /// `range` was sent again, with `timestamp` in its option.
    pub(super) fn repeated(&mut self, range: &Range<u64>, timestamp: u32) {
        self.first_retransmission.get_or_insert(timestamp);
        self.repeated.note(range.start, range.end);
    }
}

/// What was sent again, less what was reported as a duplicate: if nothing is left, the first
/// transmission of all of it had arrived.
#[derive(Clone, Copy, Debug, Default)]
struct Repeated {
    ranges: [(u64, u64); REPEATED_MAX],
    len: usize,
    /// Something was sent more than twice, or there was no room for it: then nothing is known.
    uncertain: bool,
}

impl Repeated {
    fn held(&self) -> &[(u64, u64)] {
        &self.ranges[..self.len]
    }

    fn note(&mut self, start: u64, end: u64) {
        if self.held().iter().any(|held| start < held.1 && held.0 < end) {
            self.uncertain = true;
            return;
        }
        let ranges = &mut self.ranges[..self.len];
        // Retransmissions come lowest first.
        match ranges.iter_mut().find(|held| held.1 == start) {
            Some(held) => held.1 = end,
            None => self.push(start, end),
        }
    }

    fn push(&mut self, start: u64, end: u64) {
        match self.ranges.get_mut(self.len) {
            Some(free) => {
                *free = (start, end);
                self.len += 1;
            }
            None => self.uncertain = true,
        }
    }

    /// The peer reports `duplicate`; `false` if that was not sent again.
    fn report(&mut self, duplicate: &Range<u64>) -> bool {
        let is_within = |held: &(u64, u64)| held.0 <= duplicate.start && duplicate.end <= held.1;
        let Some(at) = self.held().iter().position(is_within) else { return false };
        let (start, end) = self.ranges[at];
        self.len -= 1;
        self.ranges[at] = self.ranges[self.len];
        for (start, end) in [(start, duplicate.start), (duplicate.end, end)] {
            if start < end {
                self.push(start, end);
            }
        }
        true
    }

    fn is_all_reported(&self) -> bool {
        self.len == 0 && !self.uncertain
    }
}

impl Sender {
    /// Whether an acknowledgment shows that the repair under way was for nothing; it is undone then.
    /// `duplicate` is what it reports to have come twice.
    pub(super) fn check_spurious(
        &mut self,
        deliveries: &Deliveries,
        duplicate: Option<&Range<u64>>,
        echo: &Echo,
        advanced: bool,
    ) -> bool {
        if self.recovery.is_idle() {
            return false;
        }
        let original_after_timeout = self.is_original_after_timeout(deliveries);
        let (Recovery::Fast { undo, .. } | Recovery::Timeout { undo, .. }) = &mut *self.recovery
        else {
            return false;
        };
        // What the network alone has doubled says nothing of our retransmissions.
        let reported = duplicate.is_some_and(|range| undo.repeated.report(range));
        let all_duplicates = reported && undo.repeated.is_all_reported();
        let echoes_original =
            advanced && undo.first_retransmission.is_some_and(|first| echo.is_older_than(first));
        let of_this_one = !undo.after_another && (all_duplicates || echoes_original);
        let spurious = of_this_one || original_after_timeout;
        if spurious {
            self.board.unmark_lost();
            self.controller.on_spurious();
            *self.recovery = Recovery::Open;
        }
        spurious
    }

    /// F-RTO (RFC 5682, 2.1, step 3b, and 3.1): only what left before the timeout, and an
    /// acknowledgment that no retransmission explains. Those of a recovery that the timeout ended do
    /// explain it, and so do those after F-RTO: it is [over](Forward::Over) then. While it waits
    /// for the first segment (step 2) what was just sent when the timer fired may come in its own
    /// time; only what was overdue shows that the path was slow.
    fn is_original_after_timeout(&self, deliveries: &Deliveries) -> bool {
        let Recovery::Timeout { end, overdue, forward, .. } = *self.recovery else { return false };
        let original = !deliveries.repaired && deliveries.original.is_some_and(|at| at <= end);
        match forward {
            Forward::Repeated => {
                original && deliveries.first_unambiguous.is_some_and(|at| at <= overdue)
            }
            Forward::Probing(_) => original,
            Forward::Over => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3708_all_that_was_sent_again_must_be_reported() {
        let mut repeated = Repeated::default();
        repeated.note(10, 20);
        repeated.note(20, 30);
        repeated.note(50, 60);
        assert!(!repeated.report(&(30..40)), "never sent again");
        assert!(!repeated.report(&(25..35)), "not all of it was");
        assert!(repeated.report(&(15..25)));
        assert!(!repeated.report(&(15..25)), "the network has doubled it");
        assert!(repeated.report(&(50..60)));
        assert!(repeated.report(&(10..15)));
        assert!(!repeated.is_all_reported());
        assert!(repeated.report(&(25..30)));
        assert!(repeated.is_all_reported());
    }

    #[test]
    fn what_was_sent_thrice_or_in_too_many_pieces_is_not_known() {
        let mut thrice = Repeated::default();
        thrice.note(10, 20);
        thrice.note(10, 20);
        assert!(thrice.report(&(10..20)));
        assert!(!thrice.is_all_reported(), "the second retransmission may have been needed");

        let mut pieces = Repeated::default();
        let starts = || (0..=REPEATED_MAX as u64).map(|n| n * 20);
        starts().for_each(|start| pieces.note(start, start + 10));
        for start in starts() {
            pieces.report(&(start..start + 10));
        }
        assert!(!pieces.is_all_reported());
    }
}
