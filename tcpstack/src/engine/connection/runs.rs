//! Which runs of octets behind holes the next acknowledgments tell of (RFC 2018, 4).

use std::ops::Range;

/// Most runs remembered. If more change in one batch the oldest wait for the cumulative
/// acknowledgment, and one batch is answered by no more acknowledgments than this.
const RUNS_MAX: usize = 32;

/// An octet of each run that grew, the last one first. The first `untold` grew since the last
/// acknowledgment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Runs {
    octets: [u64; RUNS_MAX],
    len: u8,
    untold: u8,
}

#[allow(clippy::cast_possible_truncation)] // Nothing exceeds RUNS_MAX.
impl Runs {
    pub(super) const fn new() -> Self {
        Self { octets: [0; RUNS_MAX], len: 0, untold: 0 }
    }

    /// Whether one grew since the last acknowledgment.
    pub(super) fn has_untold(&self) -> bool {
        self.untold > 0
    }

    /// The run of `octet` grew. `is_same` knows its other octets.
    pub(super) fn grew(&mut self, octet: u64, is_same: impl Fn(u64) -> bool) {
        self.retain(|known| !is_same(known));
        let kept = usize::from(self.len).min(RUNS_MAX - 1);
        self.octets.copy_within(..kept, 1);
        self.octets[0] = octet;
        self.len = kept as u8 + 1;
        self.untold = (self.untold + 1).min(self.len);
    }

    /// Everything below `next` is in order.
    pub(super) fn forget_below(&mut self, next: u64) {
        self.retain(|known| known >= next);
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        let (mut len, mut untold) = (0, 0);
        for at in 0..self.len {
            let octet = self.octets[usize::from(at)];
            if keep(octet) {
                self.octets[len] = octet;
                len += 1;
                untold += u8::from(at < self.untold);
            }
        }
        (self.len, self.untold) = (len as u8, untold);
    }

    /// The places of what an acknowledgment tells that has room for `room` runs, or for `last` if
    /// none follows it. The oldest leave first; the last one begins at place 0 with the newest, and
    /// goes on with what was told before.
    pub(super) fn next(&self, room: usize, last: usize) -> Range<usize> {
        let untold = usize::from(self.untold);
        if untold > last {
            return last.max(untold.saturating_sub(room))..untold;
        }
        0..usize::from(self.len).min(last)
    }

    /// The octets at these places.
    pub(super) fn at(&self, places: Range<usize>) -> &[u64] {
        &self.octets[places]
    }

    /// From this place on all was told.
    pub(super) fn told_from(&mut self, place: usize) {
        self.untold = self.untold.min(place as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(count: u64) -> Runs {
        let mut runs = Runs::new();
        (1..=count).for_each(|octet| runs.grew(octet, |_| false));
        runs
    }

    fn told(mut runs: Runs, room: usize, last: usize) -> Vec<Vec<u64>> {
        let mut acknowledgments = Vec::new();
        loop {
            let places = runs.next(room, last);
            acknowledgments.push(runs.at(places.clone()).to_vec());
            runs.told_from(places.start);
            if places.start == 0 {
                return acknowledgments;
            }
        }
    }

    #[test]
    fn rfc2018_4_the_last_acknowledgment_tells_of_the_newest() {
        assert_eq!(told(grown(2), 3, 3), [[2, 1]]);
        assert_eq!(told(grown(7), 3, 3), [vec![3, 2, 1], vec![4], vec![7, 6, 5]]);
        assert_eq!(told(grown(4), 3, 2), [vec![2, 1], vec![4, 3]], "room for a duplicate");
        assert_eq!(told(grown(0), 3, 3), [Vec::<u64>::new()], "a window update");
    }

    #[test]
    fn rfc2018_4_what_was_told_fills_the_room() {
        let mut runs = grown(4);
        runs.told_from(0);
        runs.grew(9, |octet| octet == 2);
        assert_eq!(told(runs, 3, 3), [[9, 4, 3]]);
        runs.forget_below(4);
        assert_eq!(told(runs, 3, 3), [[9, 4]]);
    }

    #[test]
    fn a_batch_full_of_holes_is_answered_by_a_limited_number() {
        let acknowledgments = told(grown(1000), 1, 1);
        assert_eq!(acknowledgments.len(), RUNS_MAX);
        assert_eq!(acknowledgments.last().unwrap(), &[1000]);
    }
}
