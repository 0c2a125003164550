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
    /// The peer's identity, once it is authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What it was.
    #[serde(flatten)]
    pub happening: Happening,
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// This gateway.
    Here,
    /// The peer.
    Peer,
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
    /// An IKE SA has new keys.
    IkeRekeyed {
        /// The SPIs that it had, the initiator's and the responder's.
        old_spis: [String; 2],
        /// The SPIs that it has.
        spis: [String; 2],
        /// Who began.
        by: Side,
        /// Why, if this side began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A CHILD SA stands in place of another.
    ChildRekeyed {
        /// Its name in the configuration.
        child: String,
        /// The SPI that the packets of the old one arrive with.
        old_spi_in: String,
        /// The SPI that its packets arrive with.
        spi_in: String,
        /// Who began.
        by: Side,
        /// Why, if this side began.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// An SA could not be rekeyed. It stays, and another attempt follows.
    RekeyFailed {
        /// The CHILD SA's name; absent for the IKE SA itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        child: Option<String>,
        /// The CHILD SA's inbound SPI.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spi_in: Option<String>,
        /// Why, and what to do.
        reason: String,
    },
    /// A new IKE SA is being set up to take the place of this one.
    Reauthenticating {
        /// Its number.
        successor: u64,
    },
    /// A newly authenticated IKE SA has the place of this one.
    Reauthenticated {
        /// Its number.
        successor: u64,
    },
    /// No new IKE SA could be set up in place of this one, which stays.
    ReauthenticationFailed {
        /// Why, and what to do.
        reason: String,
    },
    /// A control process has taken up what the one before it left.
    Restored {
        /// IKE SAs that go on.
        ike_sas: u64,
        /// CHILD SAs that go on.
        child_sas: u64,
        /// CHILD SAs whose IKE SA could not be restored; they forward until their lifetime ends.
        orphans: u64,
    },
    /// The packets of an IKE SA and its CHILD SAs go another way.
    PathMoved {
        /// The peer's address and port.
        remote: String,
        /// How.
        transport: Transport,
        /// The peer's address and port until now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old_remote: Option<String>,
        /// How until now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        old_transport: Option<Transport>,
    },
    /// An IKE SA could not be moved. It goes the way that it went.
    MoveFailed {
        /// Why, and what to do.
        reason: String,
    },
    /// The TCP connection of an IKE SA is lost. Its SAs stay (RFC 9329, 6.1).
    TcpLost {
        /// Whether this gateway opens a new one; else the peer is waited for.
        reconnecting: bool,
    },
    /// The next attempt to set up a connection that is to stand always.
    Retry {
        /// When, in seconds from now.
        in_s: u64,
    },
    /// There is traffic for a child that traffic sets up.
    Acquired {
        /// Its name in the configuration.
        child: String,
    },
    /// What is to stand was tried so often in vain that it is left alone, as `keyingtries` says.
    GivenUp {
        /// How often.
        attempts: u32,
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
    /// The configuration changed: by `reload`, `load` or `unload`.
    Reconfigured {
        /// Connections that are new.
        added: u64,
        /// Connections that are gone.
        removed: u64,
        /// Connections that are other than before.
        changed: u64,
        /// Secrets that are new, gone or other than before.
        secrets: u64,
    },
    /// A configuration was refused; nothing of it was applied.
    ConfigurationRefused {
        /// Why: file, line, what is wrong.
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
            Self::IkeRekeyed { old_spis: [i, r], spis: [new_i, new_r], by, reason } => {
                write!(f, "IKE SA rekeyed from {i} {r} to {new_i} {new_r}")?;
                begun(f, *by, reason.as_deref())
            }
            Self::ChildRekeyed { child, old_spi_in, spi_in, by, reason } => {
                write!(f, "CHILD SA {child} rekeyed from {old_spi_in} to {spi_in}")?;
                begun(f, *by, reason.as_deref())
            }
            Self::RekeyFailed { child: None, reason, .. } => {
                write!(f, "IKE SA not rekeyed, it is tried again: {reason}")
            }
            Self::RekeyFailed { child: Some(child), spi_in, reason } => {
                let spi_in = spi_in.as_deref().unwrap_or_default();
                write!(f, "CHILD SA {child} {spi_in} not rekeyed, it is tried again: {reason}")
            }
            Self::Reauthenticating { successor } => {
                write!(f, "authenticating anew, by IKE SA {successor}")
            }
            Self::Reauthenticated { successor } => {
                write!(f, "authenticated anew: IKE SA {successor} has its place")
            }
            Self::ReauthenticationFailed { reason } => {
                write!(f, "not authenticated anew, it is tried again: {reason}")
            }
            Self::Restored { ike_sas, child_sas, orphans } => {
                write!(f, "restored {ike_sas} IKE SAs with {child_sas} CHILD SAs")?;
                match orphans {
                    0 => Ok(()),
                    _ => write!(f, ", {orphans} CHILD SAs are orphans"),
                }
            }
            Self::PathMoved { remote, transport, old_remote, old_transport } => {
                write!(f, "peer moved to {remote} over {transport}")?;
                match old_remote.as_ref().zip(*old_transport) {
                    Some((remote, transport)) => write!(f, ", from {remote} over {transport}"),
                    None => Ok(()),
                }
            }
            Self::MoveFailed { reason } => write!(f, "not moved: {reason}"),
            Self::TcpLost { reconnecting: true } => {
                f.write_str("TCP connection lost, a new one is being opened")
            }
            Self::TcpLost { reconnecting: false } => {
                f.write_str("TCP connection lost, the peer is to open a new one")
            }
            Self::Retry { in_s } => write!(f, "next attempt in {in_s} s"),
            Self::Acquired { child } => write!(f, "traffic for CHILD SA {child}, setting it up"),
            Self::GivenUp { attempts } => {
                write!(f, "given up after {attempts} attempts, as keyingtries says")
            }
            Self::TcpOpened { remote, originator: true } => {
                write!(f, "TCP connection to {remote} open")
            }
            Self::TcpOpened { remote, originator: false } => {
                write!(f, "TCP connection from {remote} open")
            }
            Self::TcpClosed { remote, reason } => {
                write!(f, "TCP connection with {remote} closed: {reason}")
            }
            Self::Reconfigured { added, removed, changed, secrets } => write!(
                f,
                "configuration: {added} connections added, {removed} removed, {changed} changed; \
                 {secrets} secrets differ"
            ),
            Self::ConfigurationRefused { reason } => {
                // A line of the reason for each mistake; an event is one line.
                write!(f, "configuration refused: {}", reason.replace('\n', "; "))
            }
            Self::DataplaneUp => f.write_str("dataplane up"),
            Self::DataplaneDown => f.write_str("dataplane down, packets do not pass"),
            Self::Unknown => f.write_str("an event that this version does not know"),
        }
    }
}

/// Who began a rekey, and why.
fn begun(f: &mut fmt::Formatter<'_>, by: Side, reason: Option<&str>) -> fmt::Result {
    match (by, reason) {
        (Side::Peer, _) => f.write_str(" by the peer"),
        (Side::Here, Some(reason)) => write!(f, " from here: {reason}"),
        (Side::Here, None) => f.write_str(" from here"),
    }
}
