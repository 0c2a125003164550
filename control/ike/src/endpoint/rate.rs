//! How often something may be done at somebody's wish.

use std::time::Duration;

use crate::time::Instant;

/// So many events in each period.
pub(crate) struct Rate {
    most: u32,
    period: Duration,
    since: Option<Instant>,
    taken: u32,
}

impl Rate {
    /// At most `most` events in each `period`.
    pub(crate) const fn new(most: u32, period: Duration) -> Self {
        Self { most, period, since: None, taken: 0 }
    }

    /// Whether one more may be now.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.since(since) >= self.period) {
            self.since = Some(now);
            self.taken = 0;
        }
        self.taken = self.taken.saturating_add(1);
        self.taken <= self.most
    }
}
