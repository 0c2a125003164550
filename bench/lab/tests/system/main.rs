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

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_lab::gateway::{Gateway, Settings};
use culvert_lab::topology::{Family, Lab, Owner, SIDE_A, SIDE_B};
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
