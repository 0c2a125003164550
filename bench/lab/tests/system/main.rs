//! Whole-system tests: every one builds the lab's network, starts real programs in it and judges
//! them by what arrives. They need root, the packages of `scripts/setup`, and the workspace's
//! programs built (`cargo build --workspace --bins`); they run one at a time and each ends by
//! itself.

mod command;
mod flood;
mod foreign;
mod moves;
mod operations;
mod port;
mod strongswan;
mod survival;
mod tcp;
mod transport;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_lab::gateway::{Gateway, Settings};
use culvert_lab::namespace::Namespace;
use culvert_lab::topology::{Addresses, Family, Lab, Owner, SIDE_A, SIDE_B};
use culvert_lab::traffic;

/// Octets of a bulk transfer: enough to fill every buffer and window on the way several times.
const BULK: u64 = 4_000_000;
const PINGS: u32 = 5;
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A lab with two gateways, which `scenario` gets before any tunnel stands.
fn with_gateways(
    settings: (Settings, Settings),
    scenario: impl for<'lab> FnOnce(&'lab Lab, &mut Gateway<'lab>, &mut Gateway<'lab>) -> Result<()>,
) -> Result<()> {
    let owner = |settings: &Settings| {
        if settings.one_armed { Owner::DpdkOneArmed } else { Owner::Dpdk }
    };
    Lab::run(owner(&settings.0), owner(&settings.1), |lab| {
        let mut b = Gateway::start(lab, &lab.b, "gateway-b", &settings.1)?;
        let mut a = Gateway::start(lab, &lab.a, "gateway-a", &settings.0)?;
        scenario(lab, &mut a, &mut b)
            .map_err(|error| error.context(a.describe() + &b.describe()))?;
        a.check_alive()?;
        b.check_alive()
    })
}

/// Ping and a compared bulk transfer each way between the protected hosts.
fn exchange(lab: &Lab, family: Family) -> Result<()> {
    let (a, b) = (SIDE_A.host.of(family), SIDE_B.host.of(family));
    traffic::ping_until_answered(&lab.a.inside, b, PING_TIMEOUT)?;
    // A machine that does other things may lose one: what arrives is what is judged.
    let there = traffic::ping(&lab.a.inside, b, PINGS, 56)?;
    ensure!(there + 1 >= PINGS, "{there} of {PINGS} pings to {b} were answered");
    let back = traffic::ping(&lab.b.inside, a, PINGS, 1200)?;
    ensure!(back + 1 >= PINGS, "{back} of {PINGS} pings to {a} were answered");
    traffic::bulk(&lab.a.inside, &lab.b.inside, b, BULK)?;
    traffic::bulk(&lab.b.inside, &lab.a.inside, a, BULK)?;
    Ok(())
}

/// Makes the gateway's child one of transport mode: the gateway stands in the wire before a host that
/// has its outer address.
fn in_transport_mode(settings: &mut Settings) {
    settings.child_options.push("mode = \"transport\"".to_owned());
    let side = settings.side;
    let all: [IpAddr; 2] = [side.outer.v4.into(), side.outer.v6.into()];
    let hosts: [IpAddr; 2] = [side.host.v4.into(), side.host.v6.into()];
    settings.inner_routes = all.into_iter().zip(hosts).collect();
    settings.local_ts = vec!["dynamic".into()];
    settings.remote_ts = vec!["dynamic".into()];
}

/// The host behind a gateway has the gateway's outer address, and speaks from it.
fn becomes_the_end(host: &Namespace, side: &Addresses) -> Result<()> {
    for family in [Family::V4, Family::V6] {
        let (own, via) = (side.outer.of(family), side.inner.of(family));
        let bits = if own.is_ipv4() { 32 } else { 128 };
        host.add_address("lo", own, bits)?;
        let version = if own.is_ipv4() { "-4" } else { "-6" };
        host.run(&format!("ip {version} route replace default via {via} src {own}"))?;
    }
    Ok(())
}
