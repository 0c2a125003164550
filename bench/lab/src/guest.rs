//! A machine of its own in a gateway's place: Debian's kernel in QEMU, where the machine's own kernel
//! lacks what a peer needs. Linux's ESP (transport mode, native ESP, extended sequence numbers) runs
//! there, with strongSwan's charon to make its SAs.
//!
//! ```text
//!            gateway's namespace
//!  firewall ─ outer0 ─ bridge ─ tap ─ eth0 ┌────────┐ eth1 ─ tap ─ bridge ─ inner0 ─ inside
//!                                          │ guest  │
//!              127.0.0.1:4502 ─────── eth2 └────────┘        vici, for `swanctl`
//! ```
//!
//! The processor is emulated: nothing depends on what the machine's own has, and a boot takes some
//! seconds. The kernel comes from `scripts/setup`, which unpacks Debian's and installs nothing; the
//! rest is an archive of the programs that stand on this machine ([`image`]).

mod image;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::namespace::Namespace;
use crate::process::{Process, Program};
use crate::topology::{Owner, Side};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Emulated, on a machine that does other things, too.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
/// What charon says when it takes commands.
const READY: &str = "spawning 16 worker threads";
/// vici's port, in the guest and on the loopback of its namespace.
const VICI_PORT: u16 = 4502;
/// What QEMU's network for [`VICI_PORT`] expects of a guest.
const VICI_ADDRESS: &str = "10.0.2.15/24";
/// The TCP port where the guest sends back what it gets.
pub(crate) const ECHO_PORT: u16 = 7002;
/// Nothing is left to the device: what leaves the guest is what a wire would carry.
const NIC: &str = "virtio-net-pci,romfile=,csum=off,gso=off,guest_csum=off,guest_tso4=off,\
                   guest_tso6=off,guest_ecn=off,guest_ufo=off";

/// vici's address as charon listens on it.
pub(crate) fn vici() -> String {
    format!("tcp://0.0.0.0:{VICI_PORT}")
}

/// vici's address for a `swanctl` in the guest's namespace.
pub(crate) fn vici_from_outside() -> String {
    format!("tcp://127.0.0.1:{VICI_PORT}")
}

/// Boots a guest in the gateway's place on `side`, with a charon that reads `strongswan_conf`. Returns
/// the machine when charon takes commands; its log is the guest's console.
pub(crate) fn boot(side: &Side, directory: &Path, strongswan_conf: &str) -> Result<Process> {
    ensure!(side.owner == Owner::Guest, "there is no room for a guest on this side");
    let kernel = image::Kernel::find()?;
    let archive = image::build(&kernel, directory, &init(side), strongswan_conf)?;
    for interface in ["outer0", "inner0"] {
        plug_in(&side.gateway, interface)?;
    }
    let program = Program {
        name: "guest",
        path: Path::new(QEMU),
        arguments: arguments(&kernel.image, &archive),
        environment: Vec::new(),
        private_run: false,
    };
    let mut machine = Process::spawn(&side.gateway, &program, directory)?;
    machine.wait_for_log(READY, BOOT_TIMEOUT)?;
    Ok(machine)
}

/// Joins `interface` with a tap device of the same name behind a bridge.
fn plug_in(namespace: &Namespace, interface: &str) -> Result<()> {
    let (tap, bridge) = (tap(interface), format!("br-{interface}"));
    namespace.run(&format!("ip tuntap add {tap} mode tap"))?;
    namespace.run(&format!("ip link add {bridge} type bridge"))?;
    for port in [interface, &tap] {
        namespace.run(&format!("ip link set {port} master {bridge} up"))?;
    }
    namespace.run(&format!("ip link set {bridge} up")).map(drop)
}

fn tap(interface: &str) -> String {
    format!("tap-{interface}")
}

fn arguments(kernel: &Path, archive: &Path) -> Vec<String> {
    let mut line = format!(
        "-nodefaults -display none -no-reboot -serial stdio -accel tcg -cpu max -m 256 \
         -kernel {} -initrd {}",
        kernel.display(),
        archive.display()
    );
    for (interface, mac) in [("outer0", "52:54:00:00:00:01"), ("inner0", "52:54:00:00:00:02")] {
        let tap = tap(interface);
        let _ = write!(
            line,
            " -netdev tap,id={interface},ifname={tap},script=no,downscript=no,vnet_hdr=off \
             -device {NIC},netdev={interface},mac={mac}"
        );
    }
    let _ = write!(
        line,
        " -netdev user,id=vici,restrict=on,hostfwd=tcp:127.0.0.1:{VICI_PORT}-:{VICI_PORT} \
         -device {NIC},netdev=vici"
    );
    let mut arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let boot = "console=ttyS0 quiet panic=-1 random.trust_cpu=on";
    arguments.extend(["-append".to_owned(), boot.to_owned()]);
    arguments
}

/// The guest's first and only script: addresses, routes, the echo service, charon.
fn init(side: &Side) -> String {
    let mut script = String::from(
        "#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod /$module; done
sysctl -q -w net.ipv4.ip_forward=1
sysctl -q -w net.ipv6.conf.all.forwarding=1
for interface in lo eth0 eth1 eth2; do ip link set $interface up; done
",
    );
    let addresses = side.addresses;
    for (interface, pair) in [("eth0", addresses.outer), ("eth1", addresses.inner)] {
        let _ = writeln!(script, "ip addr add {}/24 dev {interface}", pair.v4);
        let _ = writeln!(script, "ip addr add {}/64 dev {interface} nodad", pair.v6);
    }
    let _ = writeln!(script, "ip addr add {VICI_ADDRESS} dev eth2");
    let _ = writeln!(script, "ip route add default via {}", addresses.router.v4);
    let _ = writeln!(script, "ip -6 route add default via {}", addresses.router.v6);
    let _ = writeln!(script, "nc -ll -p {ECHO_PORT} -e cat &");
    script.push_str("exec /usr/lib/ipsec/charon\n");
    script
}
