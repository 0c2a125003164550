//! The two clocks: the monotonic one of the protocol and the shared memory, and the wall's.

use std::time::{SystemTime, UNIX_EPOCH};

use culvert_ike::Instant;

/// Now, on the clock that both processes and the protocol share.
#[must_use]
pub fn now() -> Instant {
    from_ns(culvert_shm::monotonic_ns())
}

/// A time out of the shared memory.
#[must_use]
pub fn from_ns(nanoseconds: u64) -> Instant {
    Instant::from_micros(nanoseconds / 1000)
}

/// A time for the shared memory.
#[must_use]
pub fn to_ns(time: Instant) -> u64 {
    time.as_micros().saturating_mul(1000)
}

/// Milliseconds since 1970, for people.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
