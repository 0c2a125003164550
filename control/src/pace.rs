//! So many of a thing in each second; of the others only the number is kept.

use std::time::Duration;

use culvert_ike::Instant;

const SECOND: Duration = Duration::from_secs(1);

/// The pace of one thing.
pub struct Pace {
    most: u32,
    since: Instant,
    taken: u32,
    left_out: u64,
}

impl Pace {
    /// `most` in a second.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self { most, since: Instant::default(), taken: 0, left_out: 0 }
    }

    /// Whether one more may be now; if not, it is counted.
    pub fn take(&mut self, now: Instant) -> bool {
        if now.since(self.since) >= SECOND {
            (self.since, self.taken) = (now, 0);
        }
        let may = self.taken < self.most;
        if may {
            self.taken += 1;
        } else {
            self.left_out += 1;
        }
        may
    }

    /// How many were left out since the last call, when their second is over.
    pub fn left_out(&mut self, now: Instant) -> Option<u64> {
        let over = now.since(self.since) >= SECOND;
        (over && self.left_out > 0).then(|| std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_for_a_second_is_counted() {
        let at = |ms: u64| Instant::from_micros(5_000_000 + ms * 1000);
        let mut pace = Pace::new(3);
        let taken = (0..10).filter(|n| pace.take(at(n * 50))).count();
        assert_eq!((taken, pace.left_out(at(999))), (3, None), "there may be more of it");
        assert_eq!((pace.left_out(at(1000)), pace.left_out(at(1001))), (Some(7), None));
        assert!(pace.take(at(1002)), "the next second");
        assert_eq!(pace.left_out(at(3000)), None);
    }
}
