//! What happens to the whole scoreboard at once, rarely: the peer takes SACKs back, or the path
//! turns out narrower.

use super::{NIL, Scoreboard, Sent};
use crate::time::Instant;
use std::cmp::Reverse;
use std::ops::Range;

impl Scoreboard {
    /// Forgets all SACKs: the peer took them back (RFC 2018, 8), as a timeout must assume.
    pub(crate) fn renege(&mut self) {
        self.sacked.clear();
        for index in 0..self.segments.len() {
            if self.segments[index].sacked {
                self.segments[index].sacked = false;
                let len = self.segments[index].len();
                self.sacked_octets -= len;
                self.sacked_segments -= 1;
                self.pipe += len;
            }
        }
        self.order();
    }

    /// Puts what is in the network into the order of its last transmissions, which the detection of
    /// losses walks (RFC 8985, 6.2, step 5).
    pub(super) fn order(&mut self) {
        let in_pipe = |(id, sent): (u64, &Sent)| sent.in_pipe().then_some((sent.sent_at, id));
        let mut order: Vec<(Instant, u64)> =
            (self.first_id..).zip(&self.segments).filter_map(in_pipe).collect();
        order.sort_unstable();
        (self.oldest, self.newest) = (NIL, NIL);
        order.into_iter().for_each(|(_, id)| self.link(id));
    }

    /// Cuts what is in flight into segments of at most `mss` octets, as the path turned out narrower.
    /// Ids change, so nothing may hold one.
    pub(crate) fn resegment(&mut self, mss: u64) {
        let old = std::mem::take(&mut self.segments);
        let (had_sacked, repaired_below) = (self.sacked.clone(), self.repaired_below);
        *self = Self { sacked: had_sacked, repaired_below, ..Self::new() };
        for sent in old {
            let mut start = sent.range.start;
            while start < sent.range.end {
                let end = sent.range.end.min(start + mss);
                self.push_copy(&sent, start..end);
                start = end;
            }
        }
        self.order();
    }

    fn push_copy(&mut self, sent: &Sent, range: Range<u64>) {
        let id = self.first_id + self.segments.len() as u64;
        let len = range.end - range.start;
        // A piece may have been SACKed while the whole was not.
        let sacked = sent.sacked || self.sacked.covers(&range);
        let lost = sent.lost && !sacked;
        self.segments.push_back(Sent { range, sacked, lost, earlier: NIL, later: NIL, ..*sent });
        if sacked {
            self.sacked_octets += len;
            self.sacked_segments += 1;
        } else if lost {
            self.lost_octets += len;
            self.lost_queue.push(Reverse(id));
        } else {
            self.pipe += len;
        }
    }
}
