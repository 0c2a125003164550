//! A bounded, sorted set of half-open ranges of stream offsets.
//!
//! It remembers what a peer has SACKed and which octets lie behind a hole. Neighbouring ranges
//! melt into one; the set never holds more than its limit, so a peer that acknowledges or sends
//! every second octet buys a refused insertion and not a long list.

use super::lazy::ENTRIES_KEPT;
use std::ops::Range;

/// At most `LIMIT` disjoint, non-touching ranges in ascending order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges<const LIMIT: usize> {
    ranges: Vec<Range<u64>>,
    octets: u64,
}

impl<const LIMIT: usize> Ranges<LIMIT> {
    pub(crate) const fn new() -> Self {
        Self { ranges: Vec::new(), octets: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The highest range.
    pub(crate) fn last(&self) -> Option<&Range<u64>> {
        self.ranges.last()
    }

    /// The range that holds `offset`.
    pub(crate) fn containing(&self, offset: u64) -> Option<&Range<u64>> {
        let at = self.ranges.partition_point(|range| range.end <= offset);
        self.ranges.get(at).filter(|range| range.start <= offset)
    }

    /// Whether all of `range` is in the set.
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        self.containing(range.start).is_some_and(|held| held.end >= range.end)
    }

    /// The part of `range` from its start that is not in the set, up to the first octet that is.
    pub(crate) fn next_gap(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let at = self.ranges.partition_point(|held| held.end <= range.start);
        let mut start = range.start;
        let mut end = range.end;
        if let Some(held) = self.ranges.get(at) {
            if held.start <= start {
                start = held.end;
                end = end.min(self.ranges.get(at + 1).map_or(u64::MAX, |next| next.start));
            } else {
                end = end.min(held.start);
            }
        }
        (start < end).then_some(start..end)
    }

    /// How many octets the ranges hold.
    pub(crate) fn octets(&self) -> u64 {
        self.octets
    }

    /// How many octets the ranges hold on the average; zero for an empty set.
    pub(crate) fn mean_len(&self) -> u64 {
        self.octets / (self.ranges.len() as u64).max(1)
    }

    /// Adds `range`. `false` when it would make one more than the limit; nothing changes then.
    pub(crate) fn insert(&mut self, range: Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let from = self.ranges.partition_point(|held| held.end < range.start);
        let to = self.ranges.partition_point(|held| held.start <= range.end);
        if from == to {
            if self.ranges.len() >= LIMIT {
                return false;
            }
            self.octets += range.end - range.start;
            self.ranges.insert(from, range);
            return true;
        }
        let merged =
            self.ranges[from].start.min(range.start)..self.ranges[to - 1].end.max(range.end);
        self.octets -= octets(&self.ranges[from..to]);
        self.octets += merged.end - merged.start;
        self.ranges[from] = merged;
        self.ranges.drain(from + 1..to);
        true
    }

    /// Forgets everything below `offset`.
    pub(crate) fn trim_below(&mut self, offset: u64) {
        let gone = self.ranges.partition_point(|range| range.end <= offset);
        self.octets -= octets(&self.ranges[..gone]);
        self.ranges.drain(..gone);
        if let Some(first) = self.ranges.first_mut().filter(|first| first.start < offset) {
            self.octets -= offset - first.start;
            first.start = offset;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
        self.ranges.shrink_to(ENTRIES_KEPT);
        self.octets = 0;
    }
}

fn octets(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_octets(
            inserts in proptest::collection::vec((0u64..200, 0u64..20), 0..40),
            probe in (0u64..200, 1u64..30),
            floor in 0u64..200,
        ) {
            let mut ranges = Ranges::<1000>::new();
            let mut model = BTreeSet::new();
            for (start, len) in inserts {
                prop_assert!(ranges.insert(start..start + len));
                model.extend(start..start + len);
            }
            let probe = probe.0..probe.0 + probe.1;
            prop_assert_eq!(ranges.covers(&probe), probe.clone().all(|o| model.contains(&o)));
            let gap: Vec<u64> = probe
                .clone()
                .skip_while(|o| model.contains(o))
                .take_while(|o| !model.contains(o))
                .collect();
            let found: Vec<u64> = ranges.next_gap(&probe).into_iter().flatten().collect();
            prop_assert_eq!(found, gap);
            ranges.trim_below(floor);
            model.retain(|o| *o >= floor);
            let held: BTreeSet<u64> = ranges.ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(ranges.octets, held.len() as u64);
            prop_assert_eq!(held, model);
            prop_assert!(ranges.ranges.windows(2).all(|w| w[0].end < w[1].start));
        }
    }

    #[test]
    fn a_peer_cannot_make_it_grow() {
        let mut ranges = Ranges::<4>::new();
        for i in 0..4 {
            assert!(ranges.insert(i * 10..i * 10 + 1));
        }
        assert!(!ranges.insert(100..101), "a fifth hole is refused");
        assert!(ranges.insert(1..2), "but a held one may grow");
        assert_eq!(ranges.len(), 4);
    }
}
