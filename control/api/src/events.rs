//! What happens in the gateway, as it is told to clients that follow.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Transport;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The connection it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// Number of the IKE SA it belongs to, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ike: Option<u64>,
    /// What it was.
    #[serde(flatten)]
    pub happening: Happening,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Happening {
    /// An IKE SA stands.
    IkeUp {
        /// The peer's address and port.
        remote: String,
        /// The peer's identity.
        remote_id: String,
        /// How its packets travel.
        transport: Transport,
    },
    /// An IKE SA is gone.
    IkeDown {
        /// Why.
        reason: String,
    },
    /// An IKE SA did not come about.
    IkeFailed {
        /// Why, and what to do.
        reason: String,
    },
    /// A CHILD SA stands.
    ChildUp {
        /// Its name in the configuration.
        child: String,
        /// The SPI that its packets arrive with.
        spi_in: String,
        /// The selectors of this side.
        local_ts: Vec<String>,
        /// The selectors of the peer's side.
        remote_ts: Vec<String>,
    },
    /// A CHILD SA is gone.
    ChildDown {
        /// Its name in the configuration.
        child: String,
        /// The SPI that its packets arrived with.
        spi_in: String,
        /// Why.
        reason: String,
    },
    /// A CHILD SA did not come about; the IKE SA may stand without it.
    ChildFailed {
        /// Its name in the configuration.
        child: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Nothing came back over UDP: the initiator goes on over TCP (RFC 9329, 5.1).
    Fallback {
        /// The peer's address and TCP port.
        remote: String,
    },
    /// The peer's packets now come from elsewhere.
    PathMoved {
        /// Where from.
        remote: String,
        /// How.
        transport: Transport,
    },
    /// The next attempt to set up a connection that is to stand always.
    Retry {
        /// When, in seconds from now.
        in_s: u64,
    },
    /// A TCP connection opened.
    TcpOpened {
        /// The peer's address and port.
        remote: String,
        /// Whether this gateway opened it.
        originator: bool,
    },
    /// A TCP connection closed.
    TcpClosed {
        /// The peer's address and port.
        remote: String,
        /// Why.
        reason: String,
    },
    /// The dataplane came, anew or again.
    DataplaneUp,
    /// The dataplane went. SAs stay; no packet passes until it is back.
    DataplaneDown,
    /// An event of a later version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IkeUp { remote, remote_id, transport } => {
                write!(f, "IKE SA up with {remote_id} at {remote} over {transport}")
            }
            Self::IkeDown { reason } => write!(f, "IKE SA down: {reason}"),
            Self::IkeFailed { reason } => write!(f, "IKE SA failed: {reason}"),
            Self::ChildUp { child, spi_in, local_ts, remote_ts } => {
                let (local_ts, remote_ts) = (local_ts.join(" "), remote_ts.join(" "));
                write!(f, "CHILD SA {child} {spi_in} up: {local_ts} === {remote_ts}")
            }
            Self::ChildDown { child, spi_in, reason } => {
                write!(f, "CHILD SA {child} {spi_in} down: {reason}")
            }
            Self::ChildFailed { child, reason } => write!(f, "CHILD SA {child} failed: {reason}"),
            Self::Fallback { remote } => write!(f, "no answer over UDP, trying TCP to {remote}"),
            Self::PathMoved { remote, transport } => {
                write!(f, "peer moved to {remote} over {transport}")
            }
            Self::Retry { in_s } => write!(f, "next attempt in {in_s} s"),
            Self::TcpOpened { remote, originator: true } => {
                write!(f, "TCP connection to {remote} open")
            }
            Self::TcpOpened { remote, originator: false } => {
                write!(f, "TCP connection from {remote} open")
            }
            Self::TcpClosed { remote, reason } => {
                write!(f, "TCP connection with {remote} closed: {reason}")
            }
            Self::DataplaneUp => f.write_str("dataplane up"),
            Self::DataplaneDown => f.write_str("dataplane down, packets do not pass"),
            Self::Unknown => f.write_str("an event that this version does not know"),
        }
    }
}
