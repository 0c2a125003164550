//! What calls of an endpoint come to.

use std::net::IpAddr;

use crate::event::{ChildId, IkeSaId};

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A new, valid message, or one whose error was answered.
    Accepted,
    /// A repeated request; the cached response was sent again.
    Repeated,
    /// A first request that is to come again with a cookie (RFC 7296, 2.6). Nothing was kept.
    CookieDemanded,
    /// A first request that is to come again with a cookie and a solved puzzle (RFC 8019, 7.1).
    /// Nothing was kept.
    PuzzleDemanded,
    /// Nothing was done.
    Dropped(DropReason),
}

/// Why a message was dropped; each is a counter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// Longer than [`EndpointConfig::message_octets_max`].
    TooLong,
    /// No IKE header, or its length is not the message's.
    BadHeader,
    /// A major version other than 2 (answered with INVALID_MAJOR_VERSION where that is due).
    BadVersion,
    /// No IKE SA has this SPI.
    UnknownSpi,
    /// An exchange type or a flag that does not fit the state of the SA.
    UnexpectedExchange,
    /// A Message ID outside the window, or a response that nobody waits for.
    MessageId,
    /// The payloads of an unprotected message cannot be decoded.
    BadPayload,
    /// The integrity check of the SK payload failed.
    BadIcv,
    /// Too many half-open IKE SAs in all, or of this source.
    HalfOpenLimit,
    /// A first request with the right cookie, and without the puzzle's solution or with a wrong one:
    /// its sender cannot solve puzzles, or does not want to (RFC 8019, 7.1.4).
    PuzzleUnsolved,
    /// More first requests are refused than are worth an answer and a line in the log.
    RefusalLimit,
    /// Too many IKE SAs.
    SaLimit,
    /// A TCP connection that carries an established IKE SA already (RFC 9329, 6.1).
    ConnectionInUse,
}

impl DropReason {
    /// A name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLong => "ike_too_long",
            Self::BadHeader => "ike_bad_header",
            Self::BadVersion => "ike_bad_version",
            Self::UnknownSpi => "ike_unknown_spi",
            Self::UnexpectedExchange => "ike_unexpected_exchange",
            Self::MessageId => "ike_message_id",
            Self::BadPayload => "ike_bad_payload",
            Self::BadIcv => "ike_bad_icv",
            Self::HalfOpenLimit => "ike_half_open_limit",
            Self::PuzzleUnsolved => "ike_puzzle_unsolved",
            Self::RefusalLimit => "ike_refusal_limit",
            Self::SaLimit => "ike_sa_limit",
            Self::ConnectionInUse => "ike_connection_in_use",
        }
    }
}

/// Why nothing was initiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitiateError {
    /// No address to send to.
    #[error(
        "`{0}` names no single remote address; set `remote_addrs` to the peer's address to initiate it"
    )]
    NoRemoteAddress(String),
    /// No route.
    #[error("no route leads to {0}; check the gateway's addresses and routes")]
    NoRoute(IpAddr),
    /// No such child.
    #[error("`{connection}` has no child `{child}`")]
    NoSuchChild {
        /// Connection.
        connection: String,
        /// What was asked for.
        child: String,
    },
    /// The table is full.
    #[error("{0} IKE SAs exist, which is the limit")]
    TooManyIkeSas(usize),
    /// No SPI for the CHILD SA.
    #[error("the table of CHILD SAs is full; raise `dataplane.sas`")]
    TooManyChildren,
    /// The IKE SA is not in a state to do so.
    #[error("IKE SA {0} is not established")]
    NotEstablished(IkeSaId),
    /// The IKE SA cannot be moved from here.
    #[error(
        "IKE SA {0} cannot be moved from here: it must be established, begun by this gateway and allow MOBIKE on both sides; and CHILD SAs in transport mode stay at their addresses"
    )]
    Immovable(IkeSaId),
    /// Unknown SA.
    #[error(transparent)]
    UnknownSa(#[from] UnknownSa),
}

/// There is no such SA (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownSa {
    /// No such IKE SA.
    #[error("there is no IKE SA {0}; `culvert sas` lists them")]
    Ike(IkeSaId),
    /// No such CHILD SA.
    #[error("there is no CHILD SA {0}; `culvert sas` lists them")]
    Child(ChildId),
}
