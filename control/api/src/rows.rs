//! The rows of the tables.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One row of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Row {
    /// Of `status`.
    Status(Status),
    /// Of `connections`.
    Connection(Connection),
    /// Of `sas`.
    IkeSa(IkeSa),
    /// Of `tcp`.
    Tcp(TcpConnection),
    /// Of `counters`.
    Counter(Counter),
    /// Of `log`.
    LogLevel(LogLevel),
    /// Of every command that changes something.
    Outcome(Outcome),
    /// A row of a later version.
    #[serde(other)]
    Unknown,
}

/// The gateway as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the control process.
    pub version: String,
    /// Its process number.
    pub pid: u32,
    /// Since when it runs, in seconds.
    pub uptime_s: u64,
    /// The configuration it runs with.
    pub config: String,
    /// The other process.
    pub dataplane: DataplaneStatus,
    /// Connections configured.
    pub connections: u64,
    /// IKE SAs that stand.
    pub ike_sas: u64,
    /// IKE SAs that are being set up.
    pub ike_sas_half_open: u64,
    /// CHILD SAs that stand, those of an earlier control process among them.
    pub child_sas: u64,
    /// CHILD SAs of an earlier control process: they forward until their lifetime ends.
    pub child_sas_orphaned: u64,
    /// CHILD SAs that the table has room for.
    pub child_sas_max: u64,
    /// Open TCP connections.
    pub tcp_connections: u64,
    /// Octets of inner packets taken from peers by the CHILD SAs that stand.
    pub octets_in: u64,
    /// Octets of inner packets sent to peers by the CHILD SAs that stand.
    pub octets_out: u64,
}

/// The dataplane as the control process sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataplaneStatus {
    /// Whether it is there.
    pub up: bool,
    /// Since when it is there, or gone, in seconds.
    pub since_s: u64,
    /// Its worker cores.
    pub workers: u16,
    /// How often a dataplane took the shared memory up.
    pub starts: u64,
}

/// A configured connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its name.
    pub name: String,
    /// Addresses of this side, empty for any.
    pub local_addrs: Vec<String>,
    /// Addresses of the peer, empty for any: such a connection only answers.
    pub remote_addrs: Vec<String>,
    /// `udp`, `tcp` or `auto`.
    pub transport: String,
    /// Identity of this side.
    pub local_id: String,
    /// Identity of the peer.
    pub remote_id: String,
    /// Its children.
    pub children: Vec<Child>,
    /// IKE SAs of it that stand.
    pub ike_sas: u64,
}

/// A configured child of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Child {
    /// Its name.
    pub name: String,
    /// Selectors of this side.
    pub local_ts: Vec<String>,
    /// Selectors of the peer's side.
    pub remote_ts: Vec<String>,
    /// `none`, `trap` or `start`.
    pub start_action: String,
    /// What is done when the peer has deleted it, likewise.
    #[serde(default)]
    pub close_action: String,
    /// What is done when the peer does not answer any more, likewise.
    #[serde(default)]
    pub dpd_action: String,
    /// How it is now.
    #[serde(default)]
    pub now: Standing,
    /// When it is tried again, in seconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_s: Option<u64>,
    /// Why its connection failed or ended last, while it does not stand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a configured child is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It stands, with one peer or several.
    Up,
    /// It does not stand, and nothing is done about it.
    #[default]
    Down,
    /// It is being set up.
    Trying,
    /// It is tried again at [`Child::retry_s`].
    Waiting,
    /// Traffic sets it up.
    Trapped,
    /// Somebody terminated it; it stays down until somebody initiates it.
    Held,
    /// It was tried in vain as often as `keyingtries` says.
    GivenUp,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Trying => "being set up",
            Self::Waiting => "waiting",
            Self::Trapped => "waits for traffic",
            Self::Held => "terminated",
            Self::GivenUp => "given up",
            Self::Unknown => "unknown",
        })
    }
}

/// An IKE SA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IkeSa {
    /// Its number while this control process runs. Absent when an earlier one made it: only its
    /// CHILD SAs are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The connection it belongs to.
    pub connection: String,
    /// How far it is.
    pub state: IkeState,
    /// Who began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// How its packets travel.
    pub transport: Transport,
    /// Address and port of this side.
    pub local: String,
    /// Address and port of the peer.
    pub remote: String,
    /// Identity of this side.
    pub local_id: String,
    /// Identity of the peer, empty until it is proven.
    pub remote_id: String,
    /// The initiator's SPI, sixteen hexadecimal digits.
    pub spi_initiator: String,
    /// The responder's SPI, sixteen hexadecimal digits.
    pub spi_responder: String,
    /// The algorithms agreed on, in the configuration's spelling.
    pub proposal: String,
    /// The TCP connection it is on: worker, index and generation as in [`TcpConnection`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<String>,
    /// Whether it can be moved to other addresses and transports (RFC 4555).
    #[serde(default)]
    pub mobike: bool,
    /// Whether a NAT sits before this gateway.
    #[serde(default)]
    pub nat_local: bool,
    /// Whether a NAT sits before the peer.
    #[serde(default)]
    pub nat_remote: bool,
    /// Since when it stands, in seconds.
    pub age_s: u64,
    /// When it is rekeyed, in seconds from now; absent: never, or that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey_s: Option<u64>,
    /// When it is authenticated anew, in seconds from now; absent: not by this side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reauth_s: Option<u64>,
    /// When its lifetime ends, in seconds from now; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
    /// Its CHILD SAs.
    pub children: Vec<ChildSa>,
}

/// How far an IKE SA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IkeState {
    /// A TCP connection is being opened for it, or `IKE_SA_INIT` is under way (RFC 7296, 1.2).
    Connecting,
    /// It has keys, but the peer is not authenticated yet (RFC 7296, 1.2).
    HalfOpen,
    /// It stands.
    Established,
    /// It is being deleted.
    Deleting,
    /// An earlier control process made it.
    Orphaned,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// Who began an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// This gateway.
    Initiator,
    /// The peer.
    Responder,
}

/// How packets travel between the gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// ESP straight in IP; IKE on UDP 500.
    Native,
    /// In UDP 4500 (RFC 3948).
    Udp,
    /// In a TCP stream (RFC 9329).
    Tcp,
}

/// A CHILD SA: the pair of both directions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChildSa {
    /// Its name in the configuration.
    pub name: String,
    /// How far it is.
    pub state: ChildState,
    /// Tunnel or transport mode.
    #[serde(default)]
    pub mode: Mode,
    /// The SPI that the peer's packets carry, eight hexadecimal digits. Also its name for
    /// `terminate`.
    pub spi_in: String,
    /// The SPI that packets to the peer carry, eight hexadecimal digits.
    pub spi_out: String,
    /// Algorithm, in the configuration's spelling, such as `aes128gcm16-esn`.
    pub proposal: String,
    /// Selectors of this side.
    pub local_ts: Vec<String>,
    /// Selectors of the peer's side.
    pub remote_ts: Vec<String>,
    /// Packets taken from the peer.
    pub packets_in: u64,
    /// Octets of inner packets taken from the peer.
    pub octets_in: u64,
    /// Packets sent to the peer.
    pub packets_out: u64,
    /// Octets of inner packets sent to the peer.
    pub octets_out: u64,
    /// Packets from the peer that were refused, for whatever reason.
    pub drops_in: u64,
    /// Packets to the peer that were dropped, for whatever reason.
    pub drops_out: u64,
    /// Since when it stands, in seconds.
    pub age_s: u64,
    /// When a packet last used it, in seconds before now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
    /// When it is rekeyed for its age, in seconds from now; absent: never, or that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey_s: Option<u64>,
    /// When its lifetime ends, in seconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_s: Option<u64>,
}

/// What the packets of a CHILD SA hold (RFC 4301, 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Whole IP packets of the networks behind both ends.
    Tunnel,
    /// What packets between the two ends carry.
    Transport,
    /// A mode of a later version, or one that an earlier one does not tell.
    #[default]
    #[serde(other)]
    Unknown,
}

/// How far a CHILD SA is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildState {
    /// Its SPI is given out, its keys are not there yet.
    Installing,
    /// It forwards.
    Installed,
    /// It is being taken down.
    Retiring,
    /// It forwards, but an earlier control process made it.
    Orphaned,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// A TCP connection of the dataplane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// Worker, index and generation: `0/12/3`.
    pub id: String,
    /// Address and port of this side.
    pub local: String,
    /// Address and port of the peer.
    pub remote: String,
    /// Whether this gateway opened it.
    pub originator: bool,
    /// The connection of the configuration whose peer it carries, if one does yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The congestion control that governs it: `bbr` or `cubic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// Octets received.
    pub octets_in: u64,
    /// Octets sent.
    pub octets_out: u64,
    /// Since when it is open, in seconds.
    pub age_s: u64,
    /// When a whole frame last came, in seconds before now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_s: Option<u64>,
}

/// A counter of the dataplane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counter {
    /// Its name.
    pub name: String,
    /// What it counts.
    pub help: String,
    /// The sum of all workers.
    pub total: u64,
    /// Each worker's part.
    pub workers: Vec<u64>,
}

/// What is logged of whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogLevel {
    /// `all`, `connection` or `peer`.
    pub scope: String,
    /// The connection's name, or the peer's identity or address.
    pub name: String,
    /// The level, or the specification for all.
    pub level: String,
}

/// What became of something that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// For people.
    pub message: String,
    /// The connection it belongs to.
    pub connection: String,
    /// Number of the IKE SA, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ike: Option<u64>,
    /// The CHILD SA's inbound SPI, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<String>,
    /// Whether this one of several did not work. Of one alone a [`crate::Refusal`] says so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
}

impl fmt::Display for IkeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connecting => "connecting",
            Self::HalfOpen => "half-open",
            Self::Established => "established",
            Self::Deleting => "deleting",
            Self::Orphaned => "orphaned",
            Self::Unknown => "?",
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tunnel => "tunnel",
            Self::Transport => "transport",
            Self::Unknown => "?",
        })
    }
}

impl fmt::Display for ChildState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Installing => "installing",
            Self::Installed => "installed",
            Self::Retiring => "retiring",
            Self::Orphaned => "orphaned",
            Self::Unknown => "?",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initiator => "initiator",
            Self::Responder => "responder",
        })
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}
