//! The demonstration: the job that the gateway is for, told step by step while it happens.
//!
//! A branch (side a) may only use TCP. Its gateway tries UDP, hears nothing, falls back to TCP, sets
//! up the tunnel, and carries a ping and two bulk transfers between the networks behind the two
//! gateways. What is said is what was measured; a step that fails ends the demonstration with the
//! programs' logs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::capture::{Capture, Packet};
use crate::firewall::Policy;
use crate::gateway::{Gateway, Settings};
use crate::topology::{Family, Lab, Owner, SIDE_A, SIDE_B};
use crate::traffic::{self, Transfer};

const PINGS: u32 = 5;
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Shows the job, carrying `octets` each way. With `keep`, everything stays afterwards.
pub fn run(octets: u64, keep: bool) -> Result<()> {
    step("Building the network: a branch (a), a firewall, and the centre (b).");
    println!(
        "
    inside-a          gateway-a           firewall           gateway-b          inside-b
    {:<17} {:<19} {:<18} {:<18} {}
    ",
        SIDE_A.host.v4, SIDE_A.outer.v4, "drops all but TCP", SIDE_B.outer.v4, SIDE_B.host.v4
    );
    let lab = Lab::build(Owner::Dpdk, Owner::Dpdk)?;
    lab.firewall.apply(Policy::TCP_ONLY)?;
    let shown = show(&lab, octets).map_err(|error| error.context(lab.report()))?;
    if keep {
        how_to_go_on(&lab, &shown);
        std::mem::forget(shown);
        return lab.keep();
    }
    what_to_try();
    Ok(())
}

/// The two gateways once the job is shown.
type Shown<'lab> = (Gateway<'lab>, Gateway<'lab>);

fn show(lab: &Lab, octets: u64) -> Result<Shown<'_>> {
    let (a, b) = Settings::between("auto", Family::V4);
    step("Starting both gateways: culvert-control and culvert-dataplane in each, on DPDK ports.");
    let b = Gateway::start(lab, &lab.b, "gateway-b", &b)?;
    let a = Gateway::start(lab, &lab.a, "gateway-a", &a)?;
    ensure!(
        traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), 1, 56)? == 0,
        "the networks reach each other without a tunnel"
    );
    println!(
        "    They run. Without a tunnel, {} does not reach {}.",
        SIDE_A.host.v4, SIDE_B.host.v4
    );
    tunnel(lab, &a)?;
    carry(lab, &a, octets)?;
    step("What gateway-a says about it (culvert sas, culvert tcp, culvert counters):");
    for table in ["sas", "tcp", "counters"] {
        print_indented(&a.culvert(table)?.stdout);
    }
    Ok((a, b))
}

fn tunnel(lab: &Lab, a: &Gateway<'_>) -> Result<()> {
    step("Gateway-a sets up the tunnel: UDP first, TCP when nothing comes back.");
    let start = Instant::now();
    a.initiate()?;
    let elapsed = start.elapsed();
    for event in a.events()? {
        println!("    {}", event.happening);
    }
    let dropped = lab.firewall.count("udp_dropped")?;
    println!(
        "    The firewall dropped {dropped} UDP packets; after {elapsed:.1?} the tunnel stands."
    );
    let (sa, _) = a.only_sa()?;
    ensure!(sa.transport == culvert_api::Transport::Tcp, "not over TCP: {sa:#?}");
    ensure!(dropped > 0, "UDP was never tried");
    Ok(())
}

fn carry(lab: &Lab, a: &Gateway<'_>, octets: u64) -> Result<()> {
    step("Carrying traffic between the two protected networks.");
    let dropped_before = lab.firewall.count("udp_dropped")?;
    traffic::ping_until_answered(&lab.a.inside, SIDE_B.host.v4.into(), PING_TIMEOUT)?;
    let answered = traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), PINGS, 56)?;
    println!("    ping inside-a -> inside-b: {answered} of {PINGS} answered");
    ensure!(answered + 1 >= PINGS, "pings were lost");
    let there = traffic::bulk(&lab.a.inside, &lab.b.inside, SIDE_B.host.v4.into(), octets)?;
    tell("inside-a -> inside-b", there);
    let back = traffic::bulk(&lab.b.inside, &lab.a.inside, SIDE_A.host.v4.into(), octets)?;
    tell("inside-b -> inside-a", back);
    let (_, child) = a.only_sa()?;
    println!(
        "    Through the SA: {} packets and {} octets out, {} packets and {} octets in.",
        child.packets_out, child.octets_out, child.packets_in, child.octets_in
    );
    ensure!(child.octets_out >= octets && child.octets_in >= octets, "the SA did not carry it");
    proof_on_the_wire(lab)?;
    let dropped = lab.firewall.count("udp_dropped")? - dropped_before;
    ensure!(dropped == 0, "{dropped} UDP packets were sent after the fallback");
    println!("    No UDP packet was sent after the fallback.");
    Ok(())
}

/// Looks at the wire during a ping: TCP is all there is.
fn proof_on_the_wire(lab: &Lab) -> Result<()> {
    let capture = Capture::start(&lab.firewall.namespace, "a0", &lab.directory)?;
    traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), PINGS, 56)?;
    let packets = capture.stop()?;
    let tcp = packets.iter().filter(|packet| packet.is_tcp()).count();
    println!(
        "    On the wire during {PINGS} pings: {} IP packets, {tcp} of them TCP.",
        packets.len()
    );
    ensure!(tcp > 0, "the ping did not pass the firewall");
    ensure!(!packets.iter().any(Packet::is_udp), "UDP on the wire");
    Ok(())
}

fn tell(what: &str, transfer: Transfer) {
    println!(
        "    bulk {what}: {:.1} MB in {:.2?}, every octet compared: {:.0} Mbit/s",
        transfer.octets as f64 / 1e6,
        transfer.elapsed,
        transfer.megabits_per_second()
    );
}

fn how_to_go_on(lab: &Lab, (a, b): &Shown<'_>) {
    step("Everything keeps running.");
    println!(
        "    As the protected host:  ip netns exec {} ping {}
    Gateway a's state:      culvert --socket {} sas
    Gateway b's state:      culvert --socket {} status
    Watch the wire:         ip netns exec {} tcpdump -ni a0
    (culvert lies beside culvert-lab, in target/release.)

    To end it:              scripts/demo --end {}
",
        lab.a.inside.name(),
        SIDE_B.host.v4,
        a.socket().display(),
        b.socket().display(),
        lab.firewall.namespace.name(),
        std::process::id(),
    );
}

fn what_to_try() {
    step("That is the job. What to try next:");
    println!(
        "    scripts/demo --keep      the same, left running: look around in it
    scripts/test             every test, the peers of other makers among them
    target/release/culvert-bench   what the parts reach without a network
    scripts/example.toml     a configuration to start from
"
    );
}

fn step(text: &str) {
    println!("\n==> {text}");
}

fn print_indented(text: &str) {
    for line in text.lines() {
        println!("    {line}");
    }
    println!();
}

/// Ends the kept lab of process `pid`.
pub fn end(pid: u32) -> Result<()> {
    let ended = crate::cleanup::end(pid);
    ensure!(ended > 0, "no lab of process {pid}; running are {:?}", crate::cleanup::kept());
    println!("Ended: {ended} namespaces and everything in them.");
    Ok(())
}

/// Ends the only kept lab.
pub fn end_only() -> Result<()> {
    let kept = crate::cleanup::kept();
    ensure!(kept.len() < 2, "several labs run: say which of {kept:?}");
    end(*kept.first().context("no lab was kept")?)
}
