//! How often something may be said to anybody.

use std::time::Duration;

use crate::time::Instant;

/// How many at once, and in each [`PERIOD`].
const BURST: u32 = 10;
const PERIOD: Duration = Duration::from_secs(1);

/// [`BURST`] events in each [`PERIOD`].
#[derive(Default)]
pub(super) struct Rate {
    since: Option<Instant>,
    taken: u32,
}

impl Rate {
    /// Whether one more may be now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.since(since) >= PERIOD) {
            self.since = Some(now);
            self.taken = 0;
        }
        self.taken += 1;
        self.taken <= BURST
    }
}
