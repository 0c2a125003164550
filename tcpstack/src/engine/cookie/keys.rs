//! The keys of cookies, one for each period.
//!
//! Each follows from the one before by a one-way function, and the one before is forgotten when its
//! cookies are too old: whoever reads a worker's memory cannot tell which cookies were given out
//! earlier. All workers begin with the same octets at the same time and so agree without talking.

use crate::time::{Duration, Instant};
use siphasher::sip::SipHasher24;
use std::hash::{Hash, Hasher};
use zeroize::Zeroize;

/// How long a key makes cookies; it is accepted for as long again.
pub(super) const PERIOD: Duration = Duration::from_secs(32);

/// A SipHash key.
pub(super) type Key = (u64, u64);

/// What a state makes.
#[derive(Clone, Copy)]
enum Step {
    Next,
    Key,
}

/// A pseudo-random function of a secret: it cannot be turned back.
fn derive(state: Key, step: Step) -> Key {
    let half = |side: u64| {
        let mut hasher = SipHasher24::new_with_keys(state.0, state.1);
        (step as u64, side).hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}

/// The key of the present period and that of the one before.
#[derive(Clone, Zeroize)]
#[zeroize(drop)]
pub(super) struct Keys {
    #[zeroize(skip)]
    since: Instant,
    /// The number of the present period.
    #[zeroize(skip)]
    period: u64,
    /// What the keys of later periods follow from.
    state: Key,
    current: Key,
    previous: Option<Key>,
}

impl Keys {
    /// Keys that follow from `state`, whose first period begins at `since`.
    pub(super) fn new(state: Key, since: Instant) -> Self {
        Self { since, period: 0, state, current: derive(state, Step::Key), previous: None }
    }

    /// Goes on to the period of `now`. `true` if it is another than before. A step for each period
    /// that has passed, whoever sends what.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        let period = now.since(self.since).as_secs() / PERIOD.as_secs();
        let turned = period > self.period;
        while self.period < period {
            self.state = derive(self.state, Step::Next);
            self.previous = Some(self.current);
            self.current = derive(self.state, Step::Key);
            self.period += 1;
        }
        turned
    }

    /// The key of cookies that are made now.
    pub(super) fn current(&self) -> Key {
        self.current
    }

    /// The keys of cookies that are accepted now.
    pub(super) fn accepted(&self) -> impl Iterator<Item = Key> {
        [Some(self.current), self.previous].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_micros(5_000_000);

    fn after(periods: u32) -> Keys {
        let mut keys = Keys::new((1, 2), START);
        keys.turn(START + PERIOD * periods);
        keys
    }

    #[test]
    fn workers_agree_whenever_they_look() {
        let mut often = Keys::new((1, 2), START);
        for second in 0..=320 {
            often.turn(START + Duration::from_secs(second));
        }
        assert!(often.accepted().eq(after(10).accepted()));
    }

    #[test]
    fn a_key_is_accepted_for_one_more_period() {
        let held = after(3).current();
        assert!(after(4).accepted().any(|key| key == held) && after(4).current() != held);
        assert!(!after(5).accepted().any(|key| key == held));
        assert_eq!(after(0).accepted().count(), 1);
    }

    #[test]
    fn time_does_not_go_back() {
        let mut keys = after(3);
        assert!(!keys.turn(START));
        assert_eq!(keys.current(), after(3).current());
    }
}
