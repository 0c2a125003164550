//! A bounded, sorted set of half-open ranges of stream offsets.
//!
//! It remembers what a peer has SACKed and which octets lie behind a hole. Neighbouring ranges
//! melt into one, all that an addition touches at once; the set never holds more than its limit, so a
//! peer that acknowledges or sends every second octet buys a refused insertion and not a long list.
//! The lowest ranges go first and new ones come last, neither of which moves any other.

use super::lazy::ENTRIES_KEPT;
use std::collections::VecDeque;
use std::ops::Range;

/// At most `LIMIT` disjoint, non-touching ranges in ascending order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges<const LIMIT: usize> {
    ranges: VecDeque<Range<u64>>,
    octets: u64,
    /// What changes have cost: ranges that others had to move for.
    #[cfg(test)]
    pub(super) moved: usize,
}

impl<const LIMIT: usize> Ranges<LIMIT> {
    pub(crate) const fn new() -> Self {
        Self {
            ranges: VecDeque::new(),
            octets: 0,
            #[cfg(test)]
            moved: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The highest range.
    pub(crate) fn last(&self) -> Option<&Range<u64>> {
        self.ranges.back()
    }

    /// The range that holds `offset`.
    pub(crate) fn containing(&self, offset: u64) -> Option<&Range<u64>> {
        let at = self.ranges.partition_point(|range| range.end <= offset);
        self.ranges.get(at).filter(|range| range.start <= offset)
    }

    /// The lowest part of `range` that is in the set.
    pub(crate) fn first_within(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let at = self.ranges.partition_point(|held| held.end <= range.start);
        let held = self.ranges.get(at)?;
        let common = held.start.max(range.start)..held.end.min(range.end);
        (!common.is_empty()).then_some(common)
    }

    /// Whether all of `range` is in the set.
    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        self.containing(range.start).is_some_and(|held| held.end >= range.end)
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
        self.fill(range, |_, _| {})
    }

    /// Adds `range`, and melts all that it touches into one range, once. Each part of it that was
    /// not in the set goes to `new`, the lowest first, with the range that it becomes a part of.
    /// `false` when it would make one more than the limit; nothing changes then.
    pub(crate) fn fill(
        &mut self,
        range: Range<u64>,
        mut new: impl FnMut(Range<u64>, &Range<u64>),
    ) -> bool {
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
            new(range.clone(), &range);
            #[cfg(test)]
            self.count_moved(from);
            self.ranges.insert(from, range);
            return true;
        }
        let merged =
            self.ranges[from].start.min(range.start)..self.ranges[to - 1].end.max(range.end);
        let mut rest = range;
        for held in self.ranges.range(from..to) {
            if rest.start < held.start {
                self.octets += held.start - rest.start;
                new(rest.start..held.start, &merged);
            }
            rest.start = held.end;
        }
        if rest.start < rest.end {
            self.octets += rest.end - rest.start;
            new(rest, &merged);
        }
        self.ranges[from] = merged;
        if from + 1 < to {
            self.ranges.drain(from + 1..to);
            #[cfg(test)]
            self.count_moved(from + 1);
        }
        true
    }

    /// Notes that the ranges before `place` move, or those from it on, whichever are fewer.
    #[cfg(test)]
    fn count_moved(&mut self, place: usize) {
        self.moved += place.min(self.ranges.len() - place);
    }

    /// Forgets everything below `offset`.
    pub(crate) fn trim_below(&mut self, offset: u64) {
        let gone = self.ranges.partition_point(|range| range.end <= offset);
        self.octets -= self.ranges.drain(..gone).map(|range| range.end - range.start).sum::<u64>();
        if let Some(first) = self.ranges.front_mut().filter(|first| first.start < offset) {
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
                let (mut new, mut whole) = (Vec::new(), None);
                let fits = ranges.fill(start..start + len, |part, merged| {
                    new.extend(part);
                    whole = Some(merged.clone());
                });
                prop_assert!(fits);
                let missing: Vec<u64> =
                    (start..start + len).filter(|octet| !model.contains(octet)).collect();
                prop_assert_eq!(new, missing);
                prop_assert!(whole.is_none_or(|whole| ranges.ranges.contains(&whole)));
                model.extend(start..start + len);
            }
            let probe = probe.0..probe.0 + probe.1;
            prop_assert_eq!(ranges.covers(&probe), probe.clone().all(|o| model.contains(&o)));
            let first = probe.clone().find(|o| model.contains(o)).map(|from| {
                from..(from..probe.end).find(|o| !model.contains(o)).unwrap_or(probe.end)
            });
            prop_assert_eq!(ranges.first_within(&probe), first);
            ranges.trim_below(floor);
            model.retain(|o| *o >= floor);
            let held: BTreeSet<u64> = ranges.ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(ranges.octets, held.len() as u64);
            prop_assert_eq!(held, model);
            let ranges = ranges.ranges.make_contiguous();
            prop_assert!(ranges.windows(2).all(|w| w[0].end < w[1].start));
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
