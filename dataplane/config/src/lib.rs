//! The `[dataplane]` section of the configuration, read by both processes.
//!
//! One TOML file configures the gateway. The dataplane reads its own section and the runtime
//! directory ([`load`]); the control process reads the whole file and hands this crate the same
//! section ([`Section`], [`Section::check`]), so that both agree on the layout of the shared
//! memory and on the addresses that the gateway answers to.
//!
//! The way of a file: [`Source`] holds the text, serde turns it into values that remember where
//! they stood, `check` turns those into [`Dataplane`] and writes every mistake it finds into
//! [`Problems`], each with the line it stands on.
#![forbid(unsafe_code)]

mod address;
mod check;
mod section;
mod source;

pub use address::{AddressError, InterfaceAddress, Network};
pub use section::{Section, SideSection};
pub use source::{ConfigError, FILE_OCTETS_MAX, PROBLEMS_MAX, Problem, Problems, Source};

use std::{net::IpAddr, path::Path, path::PathBuf};

use serde::Deserialize;

/// Where the configuration is looked for when no other file is named.
pub const CONFIG_PATH_DEFAULT: &str = "/etc/culvert/culvert.toml";
/// Where the sockets of the gateway are when the file does not say otherwise.
pub const RUNTIME_DIR_DEFAULT: &str = "/run/culvert";
/// The port that every gateway listens on, for UDP and TCP (RFC 9329, 2).
pub const IKE_NATT_PORT: u16 = 4500;

/// Most worker cores.
pub const WORKERS_MAX: usize = 64;
/// Most TCP ports listened on, 4500 included.
pub const TCP_PORTS_MAX: usize = 16;
/// Most TCP connections of one worker.
pub const TCP_CONNECTIONS_MAX: u32 = 1 << 20;
/// Most SA pairs: an SPI has 32 bits, of which 20 name the slot.
pub const SAS_MAX: u32 = 1 << 20;
/// Largest replay window, in packets.
pub const REPLAY_WINDOW_MAX: u32 = 4096;
/// Most addresses of one side.
pub const ADDRESSES_MAX: usize = 16;
/// Most routes of one side.
pub const ROUTES_MAX: usize = 4096;
/// Largest MTU of a port, in octets.
pub const MTU_MAX: u16 = 9000;

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Poll {
    /// Never sleeps: the core is the worker's own.
    Busy,
    /// Sleeps shortly when nothing came: for laboratories and shared cores.
    Adaptive,
}

/// Which implementation seals and opens ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aead {
    /// The fastest on this machine, measured at start.
    Auto,
    /// The crate `ring`.
    Ring,
    /// The crate `aes-gcm`.
    AesGcm,
}

/// Congestion control of TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// Paces at the measured rate; random loss does not throttle the tunnel.
    Bbr,
    /// RFC 9438.
    Cubic,
}

/// A checked `[dataplane]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Cores of the workers, one queue pair each. Empty: one worker on the first core available.
    pub lcores: Vec<u16>,
    /// Whether packet memory is in hugepages.
    pub hugepages: bool,
    /// Packet memory, in MiB.
    pub memory_mib: u32,
    /// How workers wait.
    pub poll: Poll,
    /// Which AEAD carries ESP.
    pub aead: Aead,
    /// TCP ports listened on, ascending, [`IKE_NATT_PORT`] always among them.
    pub tcp_ports: Vec<u16>,
    /// TCP connections for each worker.
    pub tcp_connections: u32,
    /// Congestion control of TCP connections of which the configuration says nothing else.
    pub tcp_congestion: Congestion,
    /// Memory of all TCP buffers of a worker together, in MiB. It is taken as it is used.
    pub tcp_memory_mib: u32,
    /// Replay window of new SAs in packets, a multiple of 64 (RFC 4303, 3.4.3).
    pub replay_window: u32,
    /// SA pairs that the table holds, a power of two.
    pub sas: u32,
    /// Outbound policies that the table holds: one for each pair of selectors, cut into prefixes.
    pub policies: u32,
    /// Peers (IKE SAs) that the table holds.
    pub peers: u32,
    /// Size of each ring between a worker and the control process, in KiB, a power of two.
    pub ring_kib: u32,
    /// Devargs or PCI address of the port towards the Internet.
    pub outer_device: String,
    /// The port towards the protected network; `None` when it is the outer one.
    pub inner_device: Option<String>,
    /// The side towards the Internet.
    pub outer: Side,
    /// The side towards the protected network.
    pub inner: Side,
}

impl Dataplane {
    /// Number of workers: one for each core named, one when none is.
    #[must_use]
    pub fn workers(&self) -> u16 {
        u16::try_from(self.lcores.len().clamp(1, WORKERS_MAX)).unwrap_or(1)
    }

    /// The settings in which another section differs and that take effect only when processes are
    /// started anew: all but `replay_window`, which is that of new SAs, and `tcp_congestion`, which
    /// control tells the workers with each peer that is authenticated.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Fixed> {
        // No field can be forgotten here.
        let Self {
            lcores,
            hugepages,
            memory_mib,
            poll,
            aead,
            tcp_ports,
            tcp_connections,
            tcp_congestion: _,
            tcp_memory_mib,
            replay_window: _,
            sas,
            policies,
            peers,
            ring_kib,
            outer_device,
            inner_device,
            outer,
            inner,
        } = self;
        let cores =
            if self.workers() == other.workers() { Restart::Dataplane } else { Restart::Both };
        // What only follows `sas` is not worth a word of its own.
        let follow = |derived: fn(&Self) -> bool| derived(self) && derived(other);
        let policies_follow = follow(|of| of.policies == check::policies_default(of.sas));
        let peers_follow = follow(|of| of.peers == of.sas);
        let all = [
            ("[dataplane] lcores", cores, *lcores != other.lcores),
            ("[dataplane] hugepages", Restart::Dataplane, *hugepages != other.hugepages),
            ("[dataplane] memory_mib", Restart::Dataplane, *memory_mib != other.memory_mib),
            ("[dataplane] poll", Restart::Dataplane, *poll != other.poll),
            ("[dataplane] aead", Restart::Dataplane, *aead != other.aead),
            ("[dataplane] tcp_ports", Restart::Dataplane, *tcp_ports != other.tcp_ports),
            (
                "[dataplane] tcp_connections",
                Restart::Both,
                *tcp_connections != other.tcp_connections,
            ),
            (
                "[dataplane] tcp_memory_mib",
                Restart::Dataplane,
                *tcp_memory_mib != other.tcp_memory_mib,
            ),
            ("[dataplane] sas", Restart::Both, *sas != other.sas),
            (
                "[dataplane] policies",
                Restart::Both,
                *policies != other.policies && !policies_follow,
            ),
            ("[dataplane] peers", Restart::Both, *peers != other.peers && !peers_follow),
            ("[dataplane] ring_kib", Restart::Both, *ring_kib != other.ring_kib),
            ("[dataplane.outer] device", Restart::Dataplane, *outer_device != other.outer_device),
            ("[dataplane.inner] device", Restart::Dataplane, *inner_device != other.inner_device),
            ("[dataplane.outer]", Restart::Both, *outer != other.outer),
            ("[dataplane.inner]", Restart::Dataplane, *inner != other.inner),
        ];
        let differing = all.into_iter().filter(|(.., differs)| *differs);
        differing.map(|(name, restart, _)| Fixed { name, restart }).collect()
    }
}

/// Which processes have to be started anew for a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// The dataplane, which is the only one to read it. SAs go on.
    Dataplane,
    /// The control process, which is the only one to read it. SAs go on.
    Control,
    /// Both: the shared memory and with it all SAs depend on it, or both processes use it.
    Both,
}

/// A setting that takes effect only when processes are started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// As the file spells it, with its section.
    pub name: &'static str,
    /// Which processes.
    pub restart: Restart,
}

/// Addresses and routes of one side of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// The gateway's own addresses, each with the length of its on-link prefix.
    pub addresses: Vec<InterfaceAddress>,
    /// Default gateways, at most one for each address family, on-link.
    pub gateways: Vec<IpAddr>,
    /// Further networks and the on-link router that leads there.
    pub routes: Vec<Route>,
    /// Largest IP packet of the port, in octets.
    pub mtu: u16,
}

impl Side {
    /// The side's own address on the link that `neighbour` is on, if it is on any.
    #[must_use]
    pub fn on_link(&self, neighbour: IpAddr) -> Option<&InterfaceAddress> {
        self.addresses.iter().find(|address| address.network().contains(neighbour))
    }
}

/// A network behind an on-link router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where the route leads.
    pub to: Network,
    /// The router, on-link on this side, of the same address family.
    pub via: IpAddr,
}

/// What the dataplane needs of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its own section.
    pub dataplane: Dataplane,
    /// Where `shm.sock` is.
    pub runtime_dir: PathBuf,
}

/// Reads the parts of the file that concern the dataplane.
///
/// Other sections are the control process's to check: a mistake in a connection does not keep the
/// dataplane from starting.
///
/// # Errors
/// The file cannot be read, or it is wrong: every mistake with its line.
pub fn load(path: &Path) -> Result<Settings, ConfigError> {
    let source = Source::read(path)?;
    let file: File = source.parse()?;
    let mut problems = Problems::new();
    let dataplane = file.dataplane.check(&source, &mut problems);
    let dataplane = source.finish(dataplane, problems)?;
    let runtime_dir =
        file.control.runtime_dir.unwrap_or_else(|| PathBuf::from(RUNTIME_DIR_DEFAULT));
    Ok(Settings { dataplane, runtime_dir })
}

/// The file as the dataplane sees it: sections of others are not looked at.
#[derive(Deserialize)]
struct File {
    dataplane: Section,
    #[serde(default)]
    control: Control,
}

#[derive(Default, Deserialize)]
struct Control {
    runtime_dir: Option<PathBuf>,
}

#[cfg(test)]
mod tests;
