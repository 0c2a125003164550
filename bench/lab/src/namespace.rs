//! Network namespaces and the veth pairs between them.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cleanup::{self, Thing};
use crate::command;

/// Offloads of a veth that would let partial checksums and 64 KiB frames reach a DPDK port.
const OFFLOADS: &str = "tx off rx off tso off gso off gro off";

/// A named network namespace. Dropping it deletes it, and with it every interface inside.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates the namespace `cv<pid>-<lab>-<role>` with its loopback up.
    pub fn create(lab: u32, role: &str) -> Result<Self> {
        let name = format!("{}{}-{lab}-{role}", cleanup::PREFIX, std::process::id());
        command::line(&format!("ip netns add {name}"))?;
        cleanup::remember(Thing::Namespace(name.clone()));
        let namespace = Self { name };
        namespace.run("ip link set lo up")?;
        Ok(namespace)
    }

    /// Its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside. `ip netns exec` replaces itself by the program, so the
    /// child's process id is the program's own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command line, split at white space, inside and expects success.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command")?);
        command.args(words);
        command::succeed(command, "")
    }

    /// Runs `work` on a thread inside the namespace: sockets made there belong to it for ever.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.move_thread()?;
                work()
            });
            inside.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// Moves the calling thread inside, for good.
    pub fn move_thread(&self) -> Result<()> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter {}", self.name))
    }

    /// Sets a kernel parameter inside, such as `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(&format!("sysctl -q -w {key}={value}")).map(drop)
    }

    /// Gives `interface` an address. Duplicate address detection is off, so that an IPv6 address
    /// can be used at once.
    pub fn add_address(&self, interface: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        self.run(&format!("ip addr add {address}/{prefix_len} dev {interface} {nodad}")).map(drop)
    }

    /// Adds the default route of the family of `via`.
    pub fn add_default_route(&self, via: IpAddr) -> Result<()> {
        let family = if via.is_ipv6() { "-6" } else { "-4" };
        self.run(&format!("ip {family} route add default via {via}")).map(drop)
    }

    /// Sets the MTU of `interface`, in octets of the IP packet.
    pub fn set_mtu(&self, interface: &str, mtu: u16) -> Result<()> {
        self.run(&format!("ip link set {interface} mtu {mtu}")).map(drop)
    }

    /// Switches on the forwarding of packets, as a router does.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        cleanup::delete_namespace(&self.name);
        cleanup::forget(&Thing::Namespace(std::mem::take(&mut self.name)));
    }
}

/// Lays a cable: a veth pair with one end in each namespace, both up, without offloads.
pub fn connect(one: (&Namespace, &str), other: (&Namespace, &str)) -> Result<()> {
    let ((left, left_end), (right, right_end)) = (one, other);
    command::line(&format!(
        "ip link add {left_end} netns {} type veth peer name {right_end} netns {}",
        left.name(),
        right.name()
    ))?;
    for (namespace, end) in [one, other] {
        namespace.run(&format!("ethtool -K {end} {OFFLOADS}"))?;
        namespace.run(&format!("ip link set {end} up"))?;
    }
    Ok(())
}
