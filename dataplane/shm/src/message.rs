//! What the two processes say to each other over the rings.
//!
//! The `*Changed` records of [`Down`] carry no value: they mean "look at this slot again", so
//! losing or repeating one is harmless once the next has come.

mod down;
#[cfg(test)]
mod tests;
mod up;

use num_enum::TryFromPrimitive;

pub(crate) use down::decode_down;
pub use down::{Down, NAT_KEEPALIVE};
pub(crate) use up::decode_up;
pub use up::{Standing, Up};

/// A record that could not be understood: the other process wrote nonsense, or the memory is
/// damaged. The record, or all that waited in a damaged ring, was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Two control processes died while they acted on this record: it is passed over.
    #[error("control died twice while acting on it; it is passed over")]
    Deadly,
    /// The ring's positions contradict each other; it was emptied.
    #[error("the ring's positions contradict each other, it was emptied")]
    Ring,
    /// The record is of no kind that this version knows, or its fields mean nothing.
    #[error("a record of kind {kind} has no meaning, it was dropped")]
    Record {
        /// The record's kind.
        kind: u8,
    },
}

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromPrimitive)]
#[repr(u16)]
pub enum ConnectFailure {
    /// The peer answered with a reset.
    Refused = 1,
    /// No answer in time.
    TimedOut = 2,
    /// The network says that the peer cannot be reached (RFC 9293, 3.9.2.2).
    Unreachable = 3,
    /// The worker's connection table is full.
    TableFull = 4,
    /// No local port is free.
    NoPort = 5,
    /// The gateway has no such local address, or none of the peer's family.
    NoAddress = 6,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromPrimitive)]
#[repr(u16)]
pub enum CloseReason {
    /// The peer closed it.
    Peer = 1,
    /// The peer reset it.
    Reset = 2,
    /// It was not answered any more.
    TimedOut = 3,
    /// This gateway closed it on control's word.
    Local = 4,
    /// The stream does not follow RFC 9329: no prefix, or a length that cannot be.
    Protocol = 5,
    /// The prefix did not come in time.
    Silent = 6,
    /// The dataplane was restarted; its connections are gone.
    Restarted = 7,
    /// It was not answered any more, and the network says that the peer cannot be reached.
    Unreachable = 8,
}
