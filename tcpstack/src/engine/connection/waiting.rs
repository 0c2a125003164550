//! How long segments wait behind a hole: the head-of-line delay of RFC 9329, 9.1.
//!
//! Each segment that is held is noted with the time of its arrival; when the octets before it have
//! come, its wait goes into the worker's histogram, one sample for each segment.

use crate::time::{Duration, Instant};
use std::ops::Range;

/// Arrivals told apart for one connection (6 KiB). Of those beyond, each counts with its neighbour
/// in the stream.
const ARRIVALS_MAX: usize = 256;
/// Neighbours that come within this time are one arrival.
const GRAIN: Duration = Duration::from_millis(1);

/// Segments that lie next to each other in the stream and came at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrival {
    octets: Range<u64>,
    at: Instant,
    segments: u32,
}

/// What waits behind holes, in the order of the stream.
#[derive(Debug)]
pub(super) struct Waiting(Vec<Arrival>);

impl Waiting {
    pub(super) const fn nothing() -> Self {
        Self(Vec::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps room for at most so many arrivals.
    pub(super) fn shrink_to(&mut self, arrivals: usize) {
        self.0.shrink_to(arrivals);
    }

    /// A segment with `octets`, of which some are new, has to wait.
    pub(super) fn begin(&mut self, octets: Range<u64>, now: Instant) {
        let at = self.0.partition_point(|held| held.octets.start <= octets.start);
        let full = self.0.len() >= ARRIVALS_MAX;
        if let Some(before) = at.checked_sub(1).map(|before| &mut self.0[before])
            && (full || before.octets.end == octets.start && now.since(before.at) <= GRAIN)
        {
            before.octets.end = before.octets.end.max(octets.end);
            before.segments += 1;
        } else if full {
            self.0[0].octets.start = octets.start;
            self.0[0].segments += 1;
        } else {
            self.0.insert(at, Arrival { octets, at: now, segments: 1 });
        }
    }

    /// What waits is given up, and will be sent again.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// All octets below `next` have come: those that waited for them wait no longer. Arrivals that
    /// were put together for want of room may lie behind further holes: they wait for the last.
    pub(super) fn end_below(
        &mut self,
        next: u64,
        now: Instant,
        delays: &mut hdrhistogram::Histogram<u64>,
    ) {
        let reached = self.0.partition_point(|held| held.octets.start < next);
        let ends = |held: &mut Arrival| held.octets.end <= next;
        for arrival in self.0.extract_if(..reached, ends) {
            let waited = u64::try_from(now.since(arrival.at).as_micros()).unwrap_or(u64::MAX);
            delays.saturating_record_n(waited, arrival.segments.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;

    fn delays() -> Histogram<u64> {
        Histogram::new_with_bounds(1, 60_000_000, 2).unwrap()
    }

    fn ms(ms: u64) -> Instant {
        Instant(ms * 1000)
    }

    #[test]
    fn every_segment_has_its_own_wait() {
        let (mut waiting, mut delays) = (Waiting::nothing(), delays());
        waiting.begin(300..400, ms(10));
        waiting.begin(100..200, ms(20));
        waiting.begin(400..500, ms(30));
        waiting.end_below(200, ms(50), &mut delays);
        assert_eq!((delays.len(), delays.count_between(29_000, 31_000)), (1, 1));
        waiting.end_below(500, ms(110), &mut delays);
        assert_eq!(delays.len(), 3);
        assert_eq!(delays.count_between(79_000, 81_000), 1);
        assert_eq!(delays.count_between(99_000, 101_000), 1);
        assert!(waiting.is_empty());
    }

    #[test]
    fn neighbours_of_one_batch_take_one_entry_and_count_each() {
        let (mut waiting, mut delays) = (Waiting::nothing(), delays());
        for segment in 1..=32 {
            waiting.begin(segment * 10..segment * 10 + 10, ms(5));
        }
        assert_eq!(waiting.0.len(), 1);
        waiting.end_below(330, ms(9), &mut delays);
        assert_eq!((delays.len(), delays.count_between(3_900, 4_100)), (32, 32));
    }

    #[test]
    fn a_peer_cannot_make_it_grow() {
        let (mut waiting, mut delays) = (Waiting::nothing(), delays());
        for segment in (1..=1000).rev() {
            waiting.begin(segment * 10..segment * 10 + 5, ms(0));
        }
        for segment in 1..=1000 {
            waiting.begin(segment * 10 + 5..segment * 10 + 8, ms(7));
        }
        assert_eq!(waiting.0.len(), ARRIVALS_MAX);
        assert!(waiting.0.is_sorted_by_key(|held| held.octets.start));
        waiting.end_below(20_000, ms(8), &mut delays);
        assert_eq!(delays.len(), 2000, "none is forgotten");
    }
}
