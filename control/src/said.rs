//! What an operator said to the running gateway and no file knows: connections and secrets that were
//! loaded or unloaded, children that are held down, levels of the log.
//!
//! Each thing said is a record in the shared memory, beside the snapshots of IKE SAs and with the
//! same protection, until it is taken back or the gateway is stopped in good order. A control process
//! that takes the place of one that died is told all of it again.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::SecretText;
use crate::log::Scope;
use crate::starts::Rest;

/// Room for most records: what is longer is copied once, by a buffer that grows.
const RECORD_OCTETS: usize = 4096;

/// What a record is about. There is at most one about each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// The connection of this name.
    Connection(String),
    /// The secret of this name.
    Secret(String),
    /// The children of the connection of this name, while they do not stand.
    Rests(String),
    /// The level of the log for a connection or peer, or for all.
    Log(Option<Scope>),
}

impl Topic {
    /// Whether it is told anew by a reload: the file says all about connections and secrets.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Connection(_) | Self::Secret(_))
    }
}

/// A thing said.
#[derive(Serialize, Deserialize)]
pub enum Said {
    /// A connection was loaded (its section, as TOML), or one that the file has was unloaded.
    Connection {
        /// Its name.
        name: String,
        /// Its section with its header; `None`: unloaded.
        text: Option<String>,
    },
    /// A secret was loaded, or one that the file has was unloaded.
    Secret {
        /// Its name.
        name: String,
        /// The key and its owners; `None`: unloaded.
        key: Option<LoadedKey>,
    },
    /// What is done about children while they do not stand.
    Rests {
        /// Their connection.
        connection: String,
        /// Each child by its name.
        children: Vec<(String, Rest)>,
    },
    /// A level of the log.
    Log {
        /// Whose; `None`: all.
        scope: Option<Scope>,
        /// The level, or the specification for all.
        level: String,
    },
}

/// A secret that was loaded.
#[derive(Serialize, Deserialize)]
pub struct LoadedKey {
    /// Identities that it belongs to, as they were written.
    pub owners: Vec<String>,
    /// The key in hexadecimal digits, with their prefix.
    pub secret: SecretText,
}

/// Octets that are no record of this version.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be read: {0}")]
pub struct Unreadable(#[from] serde_json::Error);

impl Said {
    /// What it is about.
    #[must_use]
    pub fn topic(&self) -> Topic {
        match self {
            Self::Connection { name, .. } => Topic::Connection(name.clone()),
            Self::Secret { name, .. } => Topic::Secret(name.clone()),
            Self::Rests { connection, .. } => Topic::Rests(connection.clone()),
            Self::Log { scope, .. } => Topic::Log(scope.clone()),
        }
    }

    /// The record: overwritten when dropped, since it may hold a key.
    ///
    /// # Errors
    /// Never in practice: the types have nothing that cannot be written.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
        let mut octets = Zeroizing::new(Vec::with_capacity(RECORD_OCTETS));
        serde_json::to_writer(&mut *octets, self)?;
        Ok(octets)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// It is none.
    pub fn decode(octets: &[u8]) -> Result<Self, Unreadable> {
        Ok(serde_json::from_slice(octets)?)
    }
}
