//! Linux's TCP as the other end, in network namespaces made for the purpose.
//!
//! ```text
//! engine ── port e0 ═ e1 ─┐
//!                         shim (links) ── s1 ═ m0 (middle: forwards, conntrack) m1 ═ r0 (right)
//! left: Linux ── l0 ═ s0 ─┘
//! ```
//! Each `═` is a veth pair. The engine sits on a real DPDK port, and so does the shim: its legs are
//! DPDK ports on their ends of the pairs, and between the legs are the same [`Link`](crate::link)s
//! as in the simulator, now in real time. Where rates are measured the shim has a thread of its own;
//! elsewhere engine and shim share one. Neighbours are static: no ARP is lost to the shim.

mod engine;
mod leg;
mod peer;
mod runs;
mod shim;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_dpdk::{Eal, LogLevel, Memory, Pool, PoolConfig};
use culvert_lab::namespace::{Namespace, connect};
use culvert_lab::{cleanup, command};

pub use engine::{Engine, Task};
pub use leg::Leg;
pub use peer::{Flow, listen, pattern, receive, send};
pub use runs::Sender;
pub use shim::Shim;

/// Addresses of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Addresses {
    /// Host number `host` of the link number `link`.
    const fn new(link: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 77, link, host),
            v6: Ipv6Addr::new(0xfd77, link as u16, 0, 0, 0, 0, 0, host as u16),
        }
    }

    /// The one of a family.
    #[must_use]
    pub const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    /// The one of the same family as `other`.
    #[must_use]
    pub const fn like(self, other: IpAddr) -> IpAddr {
        self.of(if other.is_ipv4() { Family::V4 } else { Family::V6 })
    }

    const fn both(self) -> [IpAddr; 2] {
        [self.of(Family::V4), self.of(Family::V6)]
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

/// The engine's addresses.
pub const ENGINE: Addresses = Addresses::new(1, 1);
/// The left Linux's.
pub const LEFT: Addresses = Addresses::new(1, 2);
/// The right Linux's.
pub const RIGHT: Addresses = Addresses::new(2, 1);
const MIDDLE: [Addresses; 2] = [Addresses::new(1, 254), Addresses::new(2, 254)];
/// Largest TCP buffers of both Linux hosts, in octets.
const BUFFER_MAX: u32 = 64 << 20;
/// Counts what conntrack calls invalid, in both directions (nf_conntrack_tcp_be_liberal is 0).
const RULES: &str = "table inet sim {
    counter invalid { }
    chain forward { type filter hook forward priority 0; ct state invalid counter name invalid; }
}";

/// The namespaces, the engine's port and the shim's legs.
pub struct Lab {
    /// Linux on the engine's side.
    pub left: Namespace,
    /// Forwards and tracks connections.
    pub middle: Namespace,
    /// Linux on the other side.
    pub right: Namespace,
    /// The shim's legs.
    pub shim: Shim,
    /// The engine's port.
    pub port: Option<Leg>,
    /// Last, because the legs' interfaces are inside.
    _shim_namespace: Namespace,
}

/// Starts DPDK, once in a process.
///
/// # Errors
/// DPDK does not start.
pub fn start_dpdk() -> Result<(Eal, Pool)> {
    cleanup::install();
    cleanup::reap();
    let eal = Eal::builder()
        .memory(Memory::Small { mib: 256 })
        .log_level(LogLevel::Error)
        .file_prefix(format!("culvert-sim-{}", std::process::id()))
        .init()?;
    let pool = Pool::new(eal, &PoolConfig { mbufs: 32_767, ..PoolConfig::named("sim") })?;
    Ok((eal, pool))
}

/// Makes sure that this kernel has a congestion control.
///
/// # Errors
/// It has not, or does not tell.
pub fn require_congestion_control(name: &str) -> Result<()> {
    let all = command::line("sysctl -n net.ipv4.tcp_available_congestion_control")?;
    ensure!(
        all.split_whitespace().any(|had| had == name),
        "this kernel has no {name}, only {all}: load its module (modprobe tcp_{name})"
    );
    Ok(())
}

impl Lab {
    /// Builds everything. It goes when this is dropped, or the process is interrupted.
    ///
    /// # Errors
    /// Not root, or something that a script of this house installs is missing.
    pub fn new(eal: Eal, pool: Pool) -> Result<Self> {
        let left = Namespace::create(77, "left")?;
        let middle = Namespace::create(77, "middle")?;
        let right = Namespace::create(77, "right")?;
        let shim = Namespace::create(77, "shim")?;
        connect((&shim, "e0"), (&shim, "e1"))?;
        connect((&left, "l0"), (&shim, "s0"))?;
        connect((&middle, "m0"), (&shim, "s1"))?;
        connect((&middle, "m1"), (&right, "r0"))?;
        for (host, interface, addresses) in [
            (&left, "l0", LEFT),
            (&middle, "m0", MIDDLE[0]),
            (&middle, "m1", MIDDLE[1]),
            (&right, "r0", RIGHT),
        ] {
            host.add_address(interface, addresses.of(Family::V4), 24)?;
            host.add_address(interface, addresses.of(Family::V6), 64)?;
        }
        for (host, router) in [(&left, MIDDLE[0]), (&right, MIDDLE[1])] {
            router.both().iter().try_for_each(|via| host.add_default_route(*via))?;
        }
        middle.forward()?;
        middle.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", "0")?;
        command::succeed(
            {
                let mut nft = middle.command("nft");
                nft.args(["-f", "-"]);
                nft
            },
            RULES,
        )?;
        // Legs take frames to any address, and write the one that the kernel expects.
        for router in MIDDLE[0].both() {
            left.run(&format!("ip neigh add {router} lladdr 02:00:00:00:00:77 dev l0"))?;
        }
        for host in [ENGINE, LEFT].into_iter().flat_map(Addresses::both) {
            middle.run(&format!("ip neigh add {host} lladdr 02:00:00:00:00:77 dev m0"))?;
        }
        for host in [&left, &right] {
            for key in ["tcp_rmem", "tcp_wmem"] {
                let mut sysctl = host.command("sysctl");
                sysctl.args(["-q", "-w", &format!("net.ipv4.{key}=4096 131072 {BUFFER_MAX}")]);
                command::succeed(sysctl, "")?;
            }
            // Nothing remembered from one transfer to the next.
            host.sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
        }
        let leg = |number, interface: &str, to: [u8; 6]| {
            shim.enter(|| Leg::open(eal, pool, number, interface, to))
                .with_context(|| format!("a DPDK port on {interface}"))
        };
        let any = [2, 0, 0, 0, 0, 0x77];
        let port = leg(0, "e0", any)?;
        let shim_legs = Shim::new(
            vec![(ENGINE, leg(1, "e1", any)?), (LEFT, leg(2, "s0", mac(&left, "l0")?)?)],
            leg(3, "s1", mac(&middle, "m0")?)?,
        );
        Ok(Self { left, middle, right, shim: shim_legs, port: Some(port), _shim_namespace: shim })
    }

    /// Packets that conntrack called invalid so far.
    ///
    /// # Errors
    /// The counter cannot be read.
    pub fn invalid(&self) -> Result<u64> {
        let text = self.middle.run("nft list counter inet sim invalid")?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|number| number.parse().ok()).with_context(|| text.clone())
    }

    /// Connections that conntrack knows: that it tracks at all.
    ///
    /// # Errors
    /// The number cannot be read.
    pub fn tracked(&self) -> Result<u64> {
        let text = self.middle.run("sysctl -n net.netfilter.nf_conntrack_count")?;
        text.trim().parse().with_context(|| text.clone())
    }
}

fn mac(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let text = namespace.run(&format!("cat /sys/class/net/{interface}/address"))?;
    let mut mac = [0; 6];
    for (octet, part) in mac.iter_mut().zip(text.trim().split(':')) {
        *octet = u8::from_str_radix(part, 16)?;
    }
    Ok(mac)
}

/// How long the loop sleeps when nothing is to be done.
const NAP: Duration = Duration::from_micros(20);
