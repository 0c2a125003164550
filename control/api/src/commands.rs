//! What the gateway can be asked for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::Transport;

/// What the gateway can be asked for.
///
/// Commands with a `wait_s` answer with one [`crate::Outcome`] for each SA that they are about, as
/// soon as it is there, or with [`crate::Code::Timeout`] when it takes longer than so many seconds;
/// it then goes on without the client. With 0 the outcome says only that it has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    /// One [`crate::Status`].
    Status,
    /// One [`crate::Connection`] for each that is configured.
    Connections,
    /// One [`crate::IkeSa`] for each, with its CHILD SAs.
    Sas {
        /// Only those of this connection.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<String>,
    },
    /// One [`crate::TcpConnection`] for each that is open.
    Tcp,
    /// One [`crate::Counter`] for each that the workers keep.
    Counters {
        /// Also those that are zero.
        #[serde(default)]
        all: bool,
    },
    /// Sets a connection up.
    Initiate {
        /// Name of the connection.
        connection: String,
        /// Name of one of its children; the first one if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        child: Option<String>,
        /// How long to wait for the outcome, in seconds.
        #[serde(default)]
        wait_s: u32,
    },
    /// Deletes SAs.
    Terminate {
        /// Which ones.
        #[serde(flatten)]
        target: Target,
        /// How long to wait for the outcome, in seconds.
        #[serde(default)]
        wait_s: u32,
    },
    /// Gives SAs new keys (RFC 7296, 2.8): an IKE SA its own, not those of its CHILD SAs; a CHILD SA
    /// its own; of a connection, of a peer or of all every IKE SA and every CHILD SA.
    Rekey {
        /// Which ones.
        #[serde(flatten)]
        target: Target,
        /// How long to wait for the outcome, in seconds.
        #[serde(default)]
        wait_s: u32,
    },
    /// Authenticates IKE SAs anew, make before break (RFC 7296, 2.8.3).
    Reauthenticate {
        /// Which ones; of a CHILD SA the IKE SA that it belongs to.
        #[serde(flatten)]
        target: Target,
        /// How long to wait for the outcome, in seconds.
        #[serde(default)]
        wait_s: u32,
    },
    /// Moves IKE SAs with their CHILD SAs to another transport or other addresses (RFC 4555; RFC
    /// 9329, 7.1).
    Move {
        /// Which ones; of a CHILD SA the IKE SA that it belongs to.
        #[serde(flatten)]
        target: Target,
        /// The transport.
        to: Transport,
        /// This gateway's address; as now if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        local: Option<IpAddr>,
        /// The peer's address; as now if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remote: Option<IpAddr>,
        /// How long to wait for the outcome, in seconds.
        #[serde(default)]
        wait_s: u32,
    },
    /// Reads the configuration file again and applies what differs: an [`crate::Outcome`] for each
    /// thing that changed. A wrong file, or one that needs the processes to be started anew, is
    /// refused whole. What [`Command::Load`] and [`Command::Unload`] did is undone.
    Reload,
    /// Adds connections and secrets, or changes those of the same name, until the next
    /// [`Command::Reload`].
    Load {
        /// What mistakes call the text.
        name: String,
        /// Sections `[connections.<name>]` and `[secrets.<name>]`.
        text: Confidential,
    },
    /// Removes a connection or a secret, until the next [`Command::Reload`].
    Unload {
        /// Which one.
        #[serde(flatten)]
        what: Unloaded,
    },
    /// What is logged: one [`crate::LogLevel`] for all, and one for each connection and peer that
    /// has its own. With a level it is set first.
    Log {
        /// A connection.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        connection: Option<String>,
        /// Or a peer, by its identity or its address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<String>,
        /// `off`, `error`, `warn`, `info`, `debug` or `trace`; of a connection or peer also `default`
        /// for none of its own, of all also a specification such as `info,culvert_ike=debug`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        level: Option<String>,
    },
    /// The events still remembered, each as an [`crate::Event`].
    Events {
        /// Whether to go on with new ones until the client closes.
        #[serde(default)]
        follow: bool,
    },
}

impl Command {
    /// How long the gateway may wait with its answer, in seconds.
    #[must_use]
    pub fn wait_s(&self) -> u32 {
        match self {
            Self::Initiate { wait_s, .. }
            | Self::Terminate { wait_s, .. }
            | Self::Rekey { wait_s, .. }
            | Self::Reauthenticate { wait_s, .. }
            | Self::Move { wait_s, .. } => *wait_s,
            _ => 0,
        }
    }
}

/// SAs that a command is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// An IKE SA by its number.
    Ike(u64),
    /// A CHILD SA by the SPI that its packets arrive with, eight hexadecimal digits.
    Child(String),
    /// Every IKE SA of a connection.
    Connection(String),
    /// Every IKE SA with a peer, by its identity or its address.
    Peer(String),
    /// Every IKE SA.
    All {},
}

/// What can be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unloaded {
    /// A connection, by name: its SAs are deleted.
    Connection(String),
    /// A secret, by name.
    Secret(String),
}

/// A text with secrets: overwritten when dropped, and never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Confidential(String);

impl Confidential {
    /// Takes a text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Gives the text away; whoever takes it has to overwrite it.
    #[must_use]
    pub fn into_text(mut self) -> String {
        std::mem::take(&mut self.0)
    }
}

impl std::fmt::Debug for Confidential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Confidential")
    }
}

impl Drop for Confidential {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
