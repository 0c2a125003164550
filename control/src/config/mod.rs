//! The configuration: one TOML file, in swanctl's words.
//!
//! The way of a file: `section` is what serde reads, with the place of every value; `check` turns
//! it into what the engine uses, in the protocol's terms, and reports every mistake with its line.
//! A file with a mistake is refused whole.

mod check;
mod children;
mod connection;
mod secret;
mod section;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_dataplane_config::{
    ConfigError, Congestion, Dataplane, Fixed, Problems, Restart, Source,
};
use culvert_ike::{ConnectionConfig, EndpointConfig};
use culvert_shm::{self as shm, Dscp};
use serde::{Deserialize, Serialize};

use crate::tcp::Service;

pub use secret::{SecretError, SecretText, Secrets};

/// Most connections.
pub const CONNECTIONS_MAX: usize = 65_536;
/// Most children of a connection.
pub const CHILDREN_MAX: usize = 64;

/// A checked configuration.
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// `[dataplane]`, which gives the shared memory its sizes and the gateway its addresses.
    pub dataplane: Dataplane,
    /// Where the sockets are.
    pub runtime_dir: PathBuf,
    /// Permissions of the control socket.
    pub socket_mode: u32,
    /// Group of the control socket, if it is not the process's.
    pub socket_group: Option<String>,
    /// The connections, by name.
    pub connections: BTreeMap<String, Connection>,
    /// The pre-shared keys.
    pub secrets: Arc<Secrets>,
    /// How much peers that are not authenticated yet may ask of the gateway.
    pub limits: EndpointConfig,
    /// What is allowed but not wise, each with its file.
    pub warnings: Vec<String>,
}

/// Connections and secrets that are added while the gateway runs.
pub struct Fragment {
    /// The connections, by name.
    pub connections: BTreeMap<String, Connection>,
    /// Each connection's section, as TOML.
    pub sections: BTreeMap<String, String>,
    /// The pre-shared keys.
    pub secrets: Secrets,
    /// The owners of each key, as they are written.
    pub owners: BTreeMap<String, Vec<String>>,
    /// What is allowed but not wise.
    pub warnings: Vec<String>,
}

/// A connection.
#[derive(Clone, PartialEq)]
pub struct Connection {
    /// What the protocol needs to know of it.
    pub ike: Arc<ConnectionConfig>,
    /// What the host needs to know of its children, in the order of `ike.children`.
    pub children: Vec<Child>,
    /// Congestion control of its TCP connections; `None`: the dataplane's.
    pub tcp_congestion: Option<Congestion>,
    /// Service level of its outer packets; `None`: default forwarding, but of ESP in UDP and native
    /// that of the packet inside.
    pub dscp: Option<Dscp>,
    /// Attempts in a row to set up what is to stand; `None`: for ever.
    pub keyingtries: Option<u32>,
}

/// A child of a connection, as far as the protocol does not need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// What is done when the gateway starts, and when its SA has ended for a reason that none of the
    /// others is about.
    pub start: Action,
    /// What is done when the peer has deleted its SA.
    pub close: Action,
    /// What is done when the peer does not answer any more.
    pub dpd: Action,
    /// How long its SA forwards at most; `None`: for ever.
    pub life_time: Option<Duration>,
}

impl Child {
    /// Whether traffic may ever have to set it up.
    #[must_use]
    pub fn may_trap(&self) -> bool {
        [self.start, self.close, self.dpd].contains(&Action::Trap)
    }
}

/// What is done about a child without SA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Nothing.
    #[default]
    None,
    /// It is set up when there is traffic for it.
    Trap,
    /// It is set up.
    Start,
}

impl Action {
    /// As the configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Trap => "trap",
            Self::Start => "start",
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or is wrong: every mistake with its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::from_source(&Source::read(path)?)
    }

    /// Checks a file that was read.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_source(source: &Source) -> Result<Self, ConfigError> {
        let file = source.parse()?;
        let mut problems = Problems::new();
        let config = check::file(&file, source, &mut problems);
        source.finish(config, problems)
    }

    /// Checks connections and secrets that are to be added to this configuration. `name` is what
    /// mistakes call the text.
    ///
    /// # Errors
    /// It is wrong: every mistake with its line.
    pub fn fragment(&self, name: &Path, text: String) -> Result<Fragment, ConfigError> {
        let source = Source::new(name, text);
        let section = source.parse()?;
        let sections = source.parse::<section::Connections>()?.texts();
        let mut problems = Problems::new();
        let fragment = check::fragment(&section, sections, self, &source, &mut problems);
        source.finish(Some(fragment), problems)
    }

    /// What of another configuration takes effect only when processes are started anew.
    #[must_use]
    pub fn fixed_differences(&self, other: &Self) -> Vec<Fixed> {
        let mut differences = self.dataplane.differences(&other.dataplane);
        let control = [
            ("[control] runtime_dir", Restart::Both, self.runtime_dir != other.runtime_dir),
            ("[control] socket_mode", Restart::Control, self.socket_mode != other.socket_mode),
            ("[control] socket_group", Restart::Control, self.socket_group != other.socket_group),
        ];
        let control = control.into_iter().filter(|(.., differs)| *differs);
        differences.extend(control.map(|(name, restart, _)| Fixed { name, restart }));
        differences
    }

    /// The congestion control of TCP connections with the peers of this connection.
    #[must_use]
    pub fn tcp_congestion(&self, connection: &str) -> shm::Congestion {
        let chosen = self.connection(connection).and_then(|connection| connection.tcp_congestion);
        match chosen.unwrap_or(self.dataplane.tcp_congestion) {
            Congestion::Bbr => shm::Congestion::Bbr,
            Congestion::Cubic => shm::Congestion::Cubic,
        }
    }

    /// The service level of the outer packets of this connection, if it has one of its own.
    #[must_use]
    pub fn dscp(&self, connection: &str) -> Option<Dscp> {
        self.connection(connection).and_then(|connection| connection.dscp)
    }

    /// What is to govern the TCP connections with the peers of this connection.
    #[must_use]
    pub fn tcp_service(&self, connection: &str) -> Service {
        let dscp = self.dscp(connection).unwrap_or_default();
        Service { congestion: self.tcp_congestion(connection), dscp }
    }

    /// The connection of this name.
    #[must_use]
    pub fn connection(&self, name: &str) -> Option<&Connection> {
        self.connections.get(name)
    }
}
