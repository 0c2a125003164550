//! One segment in flight.

use crate::time::Instant;
use std::ops::Range;

/// One segment in flight. Offsets count the SYN and the FIN.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) range: Range<u64>,
    /// When it was last sent.
    pub(crate) sent_at: Instant,
    /// What the connection had delivered, and when, as it was last sent.
    pub(crate) delivered: u64,
    pub(crate) delivered_at: Instant,
    /// When the first segment of its flight was sent.
    pub(crate) flight_started: Instant,
    /// Octets in flight then, its own included.
    pub(crate) in_flight: u32,
    /// The low bits of what the connection had lost then.
    pub(crate) lost_before: u32,
    pub(crate) app_limited: bool,
    pub(crate) retransmitted: bool,
    pub(super) sacked: bool,
    pub(super) lost: bool,
    pub(super) earlier: u64,
    pub(super) later: u64,
}

impl Sent {
    pub(super) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether the peer has told that it holds it.
    pub(crate) fn is_sacked(&self) -> bool {
        self.sacked
    }

    /// Whether it was taken for lost and has not left again.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether its octets count as being in the network.
    pub(super) fn in_pipe(&self) -> bool {
        !self.sacked && !self.lost
    }
}

/// What the sender knew when it sent: the part of a rate sample taken at transmission.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stamp {
    pub(crate) sent_at: Instant,
    pub(crate) delivered: u64,
    pub(crate) delivered_at: Instant,
    pub(crate) flight_started: Instant,
    pub(crate) in_flight: u32,
    pub(crate) lost_before: u32,
    pub(crate) app_limited: bool,
}
