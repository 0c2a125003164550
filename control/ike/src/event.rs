//! What an endpoint tells its host: messages to send, events, rows for tables.

mod reason;

pub use reason::{ChildFailure, DownReason, InitiationError, MoveFailure, RekeyCause};

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::config::ChildMode;
use crate::id::Identity;
use crate::path::{ConnToken, ConnectRequest, Path, Transport};
use crate::proposal::{EspSuite, IkeSuite};
use crate::time::Instant;
use crate::ts::TrafficSelector;

/// Names one IKE SA in this endpoint for its whole life, across rekeys. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IkeSaId(pub u64);

/// Names one pair of CHILD SAs in this endpoint. Never reused; a rekey makes a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChildId(pub u64);

impl fmt::Display for IkeSaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ChildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something for the host to do on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// Send an IKE message (without marker and TCP length) on this path.
    Message {
        /// The way it goes.
        path: Path,
        /// The IKE message, from its header on.
        octets: Vec<u8>,
        /// It ends an SA whose last ESP packets may wait to be sent over the same TCP connection: it
        /// must not overtake them.
        behind: bool,
    },
    /// Send a NAT keepalive, the single octet 0xff in UDP, on this path (RFC 3948, 2.3).
    Keepalive {
        /// The way it goes.
        path: Path,
    },
    /// Open a TCP connection, send the prefix, and report with [`crate::Endpoint::tcp_opened`] or
    /// [`crate::Endpoint::tcp_failed`].
    Connect {
        /// Returned with the outcome.
        request: ConnectRequest,
        /// Name of the connection whose peer it leads to.
        connection: String,
        /// Address to connect from; `None`: the route's.
        local: Option<IpAddr>,
        /// Where to connect to.
        remote: SocketAddr,
    },
    /// Close a TCP connection that carries no IKE SA any more (RFC 9329, 6.1), after what was written
    /// to it has been sent.
    Close {
        /// The connection.
        conn: ConnToken,
    },
}

/// Something worth a log line and a line in `culvert events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer is authenticated.
    IkeUp {
        /// The IKE SA.
        ike: IkeSaId,
        /// Connection, for people.
        connection: String,
    },
    /// An IKE SA that was up is gone, and its CHILD SAs with it; the peer handle may be forgotten.
    IkeDown {
        /// The IKE SA.
        ike: IkeSaId,
        /// Connection, for people.
        connection: String,
        /// Why.
        reason: DownReason,
    },
    /// An IKE SA has new keys.
    IkeRekeyed {
        /// The IKE SA.
        ike: IkeSaId,
    },
    /// A new IKE SA is being set up to take the place of another (RFC 7296, 2.8.3).
    Reauthenticating {
        /// The old one, which lives on until then.
        ike: IkeSaId,
        /// The new one.
        successor: IkeSaId,
    },
    /// This gateway has begun to rekey an SA.
    Rekeying {
        /// The IKE SA.
        ike: IkeSaId,
        /// The pair of CHILD SAs; `None`: the IKE SA itself.
        child: Option<ChildId>,
        /// Why.
        cause: RekeyCause,
    },
    /// An SA could not be rekeyed. It stays, and another attempt follows until its lifetime is over.
    RekeyFailed {
        /// The IKE SA.
        ike: IkeSaId,
        /// The pair of CHILD SAs; `None`: the IKE SA itself.
        child: Option<ChildId>,
        /// Why, and what to do.
        reason: ChildFailure,
    },
    /// A pair of CHILD SAs is installed.
    ChildUp {
        /// The IKE SA.
        ike: IkeSaId,
        /// The pair.
        child: ChildId,
        /// Name in the configuration.
        name: String,
        /// The pair that it replaces by a rekey.
        replaces: Option<ChildId>,
    },
    /// A pair of CHILD SAs is removed.
    ChildDown {
        /// The IKE SA.
        ike: IkeSaId,
        /// The pair.
        child: ChildId,
        /// Name in the configuration.
        name: String,
        /// Why.
        reason: DownReason,
    },
    /// No CHILD SA was made, though the IKE SA lives (RFC 7296, 1.3.1).
    ChildFailed {
        /// The IKE SA.
        ike: IkeSaId,
        /// Name in the configuration, where the request got that far.
        name: Option<String>,
        /// Why, and what to do.
        reason: ChildFailure,
    },
    /// An initiation by this gateway came to nothing.
    InitiationFailed {
        /// The IKE SA that did not come up.
        ike: IkeSaId,
        /// Connection, for people.
        connection: String,
        /// Whose fault, and what to do.
        error: InitiationError,
    },
    /// A peer's attempt to set up an IKE SA was turned down, or came to nothing.
    Refused {
        /// The way it came.
        path: Path,
        /// Why.
        error: InitiationError,
    },
    /// UDP got no answer; TCP is tried now (RFC 9329, 5.1).
    FallbackToTcp {
        /// The IKE SA.
        ike: IkeSaId,
        /// Transmissions over UDP without an answer.
        transmissions: u32,
    },
    /// The TCP connection of an IKE SA is lost; its SAs stay (RFC 9329, 6.1).
    TcpLost {
        /// The IKE SA.
        ike: IkeSaId,
        /// Whether this gateway, as the Originator, opens a new one.
        reconnecting: bool,
    },
    /// An IKE SA goes another way, because an authentic new message came on it.
    PathMoved {
        /// The IKE SA.
        ike: IkeSaId,
        /// The way it goes now.
        path: Path,
    },
    /// A move of [`crate::Endpoint::move_to`] came to nothing: the IKE SA goes the way that it went.
    MoveFailed {
        /// The IKE SA.
        ike: IkeSaId,
        /// Why, and what to do.
        reason: MoveFailure,
    },
}

/// State of an IKE SA in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IkeState {
    /// Waiting for a TCP connection, or for the answer to IKE_SA_INIT.
    Connecting,
    /// Keys exist, the peer is not authenticated yet.
    HalfOpen,
    /// The peer is authenticated.
    Established,
    /// Waiting for the answer to a Delete.
    Deleting,
}

impl fmt::Display for IkeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::Deleting => "deleting",
        })
    }
}

/// An IKE SA as a row of a table.
#[derive(Clone, Debug)]
pub struct IkeSnapshot {
    /// Its name in this endpoint.
    pub id: IkeSaId,
    /// Connection; empty for a responder's half-open SA.
    pub connection: String,
    /// State.
    pub state: IkeState,
    /// Whether this gateway sent the first IKE_SA_INIT; over TCP it is then the Originator, and
    /// stays so whoever rekeys (RFC 9329, 1.2).
    pub initiator: bool,
    /// SPI of the IKE SA's initiator.
    pub spi_i: u64,
    /// SPI of the IKE SA's responder; 0 until it is known.
    pub spi_r: u64,
    /// This gateway's identity, once a connection is chosen.
    pub local_id: Option<Identity>,
    /// The peer's identity, once authenticated.
    pub remote_id: Option<Identity>,
    /// Algorithms, once agreed.
    pub suite: Option<IkeSuite>,
    /// The way it goes.
    pub path: Path,
    /// Further addresses of the peer, as it says (RFC 4555, 3.4).
    pub peer_addresses: Vec<IpAddr>,
    /// Whether it can be moved (RFC 4555).
    pub mobike: bool,
    /// Whether a NAT sits before this gateway.
    pub nat_local: bool,
    /// Whether a NAT sits before the peer.
    pub nat_remote: bool,
    /// When the peer was authenticated, else when the attempt began.
    pub since: Instant,
    /// When its keys were made.
    pub keyed: Instant,
    /// When it is rekeyed; `None`: never, or that is under way.
    pub rekey_at: Option<Instant>,
    /// When it ends if no rekey succeeds; `None`: never.
    pub expires_at: Option<Instant>,
    /// When it is authenticated anew; `None`: never by this side.
    pub reauth_at: Option<Instant>,
    /// When the last authentic message came.
    pub last_heard: Instant,
    /// Its CHILD SAs.
    pub children: Vec<ChildSnapshot>,
}

/// A pair of CHILD SAs as a row of a table.
#[derive(Clone, Debug)]
pub struct ChildSnapshot {
    /// Its name in this endpoint.
    pub id: ChildId,
    /// Name in the configuration.
    pub name: String,
    /// SPI of packets to this gateway.
    pub spi_in: u32,
    /// SPI of packets to the peer.
    pub spi_out: u32,
    /// Algorithm and extended sequence numbers.
    pub suite: EspSuite,
    /// Tunnel or transport mode.
    pub mode: ChildMode,
    /// How ESP is carried.
    pub transport: Transport,
    /// Selectors of this gateway's side.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors of the peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// When it was installed.
    pub since: Instant,
    /// When it is rekeyed for its age; `None`: never, or that is under way.
    pub rekey_at: Option<Instant>,
    /// When it ends if no rekey succeeds; `None`: never.
    pub expires_at: Option<Instant>,
}
