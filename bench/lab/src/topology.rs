//! The lab's network: two sites, each a protected host behind a gateway, and a firewall between.
//!
//! ```text
//!  inside-a         gateway-a             firewall             gateway-b         inside-b
//!  eth0 ─────── inner0   outer0 ─────── a0      b0 ─────── outer0   inner0 ─────── eth0
//!  10.1.0.2  10.1.0.1   192.0.2.1 192.0.2.254  198.51.100.254 198.51.100.7 10.2.0.1 10.2.0.2
//!  fd00:1::2 fd00:1::1  2001:db8:a::1    ::ff  2001:db8:b::ff   ::7       fd00:2::1 fd00:2::2
//! ```
//!
//! A gateway's addresses are the kernel's own when strongSwan stands there ([`Owner::Kernel`]), and
//! unknown to the kernel when a DPDK port drives the interfaces ([`Owner::Dpdk`]) or a machine of its own
//! is plugged in ([`Owner::Guest`]).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use crate::cleanup::{self, Thing};
use crate::firewall::{Firewall, Policy};
use crate::namespace::{Namespace, connect};
use crate::turn::Turn;

/// Lines of each log that a report shows.
const REPORT_LINES: usize = 40;

/// One address of each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    const fn new(v4: [u8; 4], v6: [u16; 8]) -> Self {
        let [a, b, c, d] = v4;
        let [s, t, u, v, w, x, y, z] = v6;
        Self { v4: Ipv4Addr::new(a, b, c, d), v6: Ipv6Addr::new(s, t, u, v, w, x, y, z) }
    }

    /// The address of one family.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    fn both(self) -> [(IpAddr, u8); 2] {
        [(self.v4.into(), 24), (self.v6.into(), 64)]
    }
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// The addresses of one side.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The protected host.
    pub host: Pair,
    /// The gateway towards its protected network.
    pub inner: Pair,
    /// The gateway towards the Internet.
    pub outer: Pair,
    /// The firewall, the gateway's next hop.
    pub router: Pair,
}

impl Addresses {
    /// The protected network of one family, as a prefix.
    pub fn network(&self, family: Family) -> String {
        match family {
            Family::V4 => {
                let [a, b, c, _] = self.inner.v4.octets();
                format!("{a}.{b}.{c}.0/24")
            }
            Family::V6 => {
                let [a, b, ..] = self.inner.v6.segments();
                format!("{a:x}:{b:x}::/64")
            }
        }
    }
}

/// Side a: the branch, which initiates in the demonstration.
pub const SIDE_A: Addresses = Addresses {
    host: Pair::new([10, 1, 0, 2], [0xfd00, 1, 0, 0, 0, 0, 0, 2]),
    inner: Pair::new([10, 1, 0, 1], [0xfd00, 1, 0, 0, 0, 0, 0, 1]),
    outer: Pair::new([192, 0, 2, 1], [0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 1]),
    router: Pair::new([192, 0, 2, 254], [0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0xff]),
};

/// Side b: the centre, which responds in the demonstration.
pub const SIDE_B: Addresses = Addresses {
    host: Pair::new([10, 2, 0, 2], [0xfd00, 2, 0, 0, 0, 0, 0, 2]),
    inner: Pair::new([10, 2, 0, 1], [0xfd00, 2, 0, 0, 0, 0, 0, 1]),
    outer: Pair::new([198, 51, 100, 7], [0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 7]),
    router: Pair::new([198, 51, 100, 254], [0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0xff]),
};

/// Who drives a gateway's interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A DPDK port: the kernel has no address there and answers nothing.
    Dpdk,
    /// A DPDK port that is outer and inner side at once: there is no `inner0`, the protected host
    /// hangs on the same wire as the firewall.
    DpdkOneArmed,
    /// The kernel, with strongSwan on top.
    Kernel,
    /// A machine of its own ([`crate::guest`]) that is plugged in between them.
    Guest,
}

/// One side of the lab.
#[derive(Debug)]
pub struct Side {
    /// The protected host, interface `eth0`.
    pub inside: Namespace,
    /// The gateway, interfaces `outer0` and, unless one-armed, `inner0`.
    pub gateway: Namespace,
    /// Its addresses.
    pub addresses: Addresses,
    /// Who drives the gateway's interfaces.
    pub owner: Owner,
}

/// The whole network. Dropping it takes it away.
#[derive(Debug)]
pub struct Lab {
    /// The branch.
    pub a: Side,
    /// The centre.
    pub b: Side,
    /// The firewall between them.
    pub firewall: Firewall,
    /// Configurations and logs.
    pub directory: WorkDir,
    _turn: Turn,
}

impl Lab {
    /// Builds the network with an open firewall. Waits for its turn if another lab is running.
    pub fn build(a: Owner, b: Owner) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let turn = Turn::take()?;
        cleanup::install();
        cleanup::reap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = WorkDir::create(number)?;
        let router = Namespace::create(number, "firewall")?;
        router.forward()?;
        let a = Side::build(number, 'a', a, SIDE_A, &router)?;
        let b = Side::build(number, 'b', b, SIDE_B, &router)?;
        let firewall = Firewall::new(router, network_v4(SIDE_A.outer.v4));
        firewall.apply(Policy::default())?;
        Ok(Self { a, b, firewall, directory, _turn: turn })
    }

    /// Builds a lab for `scenario` and takes it away afterwards. A failure carries the ends of all
    /// logs.
    pub fn run(a: Owner, b: Owner, scenario: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let lab = Self::build(a, b)?;
        scenario(&lab).map_err(|error| {
            let report = lab.report();
            error.context(report)
        })
    }

    /// Leaves everything in place for [`cleanup::end`], to be looked at.
    pub fn keep(self) -> Result<()> {
        cleanup::keep()?;
        std::mem::forget(self);
        Ok(())
    }

    /// The ends of all logs, for a failure's message.
    pub fn report(&self) -> String {
        self.directory.report()
    }
}

impl Side {
    fn build(
        lab: u32,
        letter: char,
        owner: Owner,
        addresses: Addresses,
        router: &Namespace,
    ) -> Result<Self> {
        let inside = Namespace::create(lab, &format!("inside-{letter}"))?;
        let gateway = Namespace::create(lab, &format!("gateway-{letter}"))?;
        let mut router_end = format!("{letter}0");
        connect((&gateway, "outer0"), (router, &router_end))?;
        if owner == Owner::DpdkOneArmed {
            router_end = bridge(letter, &inside, router)?;
        } else {
            connect((&inside, "eth0"), (&gateway, "inner0"))?;
        }
        for (address, prefix_len) in addresses.router.both() {
            router.add_address(&router_end, address, prefix_len)?;
        }
        for (address, prefix_len) in addresses.host.both() {
            inside.add_address("eth0", address, prefix_len)?;
        }
        for via in [addresses.inner.v4.into(), addresses.inner.v6.into()] {
            inside.add_default_route(via)?;
        }
        let side = Self { inside, gateway, addresses, owner };
        side.prepare_gateway()?;
        Ok(side)
    }

    /// Gives the gateway's addresses to the kernel, or makes sure that it has none.
    fn prepare_gateway(&self) -> Result<()> {
        if self.owner != Owner::Kernel {
            // Without this the kernel would announce itself by link-local addresses.
            self.gateway.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
            return self.gateway.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        }
        for (address, prefix_len) in self.addresses.inner.both() {
            self.gateway.add_address("inner0", address, prefix_len)?;
        }
        for (address, prefix_len) in self.addresses.outer.both() {
            self.gateway.add_address("outer0", address, prefix_len)?;
        }
        for via in [self.addresses.router.v4.into(), self.addresses.router.v6.into()] {
            self.gateway.add_default_route(via)?;
        }
        self.gateway.forward()
    }
}

/// Joins the gateway's only wire and the protected host's in a bridge on the firewall. Returns the
/// bridge's name: the firewall's own addresses belong on it.
fn bridge(letter: char, inside: &Namespace, router: &Namespace) -> Result<String> {
    let name = format!("br-{letter}");
    let host_end = format!("host-{letter}");
    connect((inside, "eth0"), (router, &host_end))?;
    router.run(&format!("ip link add {name} type bridge"))?;
    for port in [format!("{letter}0"), host_end] {
        router.run(&format!("ip link set {port} master {name}"))?;
    }
    router.run(&format!("ip link set {name} up"))?;
    Ok(name)
}

fn network_v4(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 0)
}

/// A directory for configurations and logs, removed when dropped. With `CULVERT_LAB_KEEP_LOGS` in
/// the environment it stays, and its path is printed.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    fn create(lab: u32) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("culvert-lab-{}-{lab}", std::process::id()));
        // A process with the same id may have been killed here before.
        cleanup::delete_directory(&path);
        fs::create_dir_all(&path)?;
        cleanup::remember(Thing::Directory(path.clone()));
        Ok(Self { path })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new directory inside.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    fn report(&self) -> String {
        let mut logs = Vec::new();
        find_logs(&self.path, &mut logs);
        logs.sort();
        let mut report = String::new();
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(REPORT_LINES)..];
            let name = log.strip_prefix(&self.path).unwrap_or(&log).display();
            report += &format!("---- {name} ----\n{}\n", tail.join("\n"));
        }
        report
    }
}

fn find_logs(directory: &Path, logs: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_logs(&path, logs);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if std::env::var_os("CULVERT_LAB_KEEP_LOGS").is_some() {
            eprintln!("lab: logs stay in {}", self.path.display());
        } else {
            cleanup::delete_directory(&self.path);
        }
        cleanup::forget(&Thing::Directory(std::mem::take(&mut self.path)));
    }
}
