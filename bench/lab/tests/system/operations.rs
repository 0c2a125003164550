//! What an operator does to a gateway that forwards: a tunnel that traffic sets up, one that is moved
//! and renewed under traffic, a configuration that is reloaded.

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_api::{Happening, Target, Transport};
use culvert_lab::command::wait_until;
use culvert_lab::gateway::{Gateway, Settings};
use culvert_lab::topology::{Family, SIDE_B};
use culvert_lab::traffic;

use crate::{PING_TIMEOUT, exchange, with_gateways};

/// Pings of one round, five a second.
const ROUND_PINGS: u32 = 20;
/// Pings of a round that may be lost: a machine that does other things may lose one or two.
const LOST_MAX: u32 = 2;

#[test]
fn traffic_sets_a_trapped_child_up() -> Result<()> {
    let (mut a, b) = Settings::between("auto", Family::V4);
    a.child_options = vec!["start_action = \"trap\"".to_owned()];
    with_gateways((a, b), |lab, a, b| {
        ensure!(a.sas()?.is_empty(), "nothing before there is traffic: {:#?}", a.sas()?);
        exchange(lab, Family::V4)?;
        let acquired =
            |event: &culvert_api::Event| matches!(event.happening, Happening::Acquired { .. });
        ensure!(a.events()?.iter().any(acquired), "it is told: {:#?}", a.events()?);
        let trapped = a.counters()?.get("policy_trapped").copied().unwrap_or_default();
        ensure!(trapped > 0, "what met the trap is counted");
        ensure!(b.sas()?.len() == 1, "one IKE SA, however many packets asked: {:#?}", b.sas()?);
        Ok(())
    })
}

// RFC 9329, 7.1; RFC 7296, 2.8.
#[test]
fn a_tunnel_is_moved_and_renewed_under_traffic() -> Result<()> {
    with_gateways(Settings::between("auto", Family::V4), |lab, a, b| {
        a.initiate()?;
        traffic::ping_until_answered(&lab.a.inside, SIDE_B.host.v4.into(), PING_TIMEOUT)?;
        let ike = a.only_sa()?.0.id;
        for to in [Transport::Tcp, Transport::Native, Transport::Tcp] {
            let answered = std::thread::scope(|scope| -> Result<u32> {
                let pings = scope
                    .spawn(|| traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), ROUND_PINGS, 56));
                a.move_to(to)?;
                let target = Target::Connection("lab".to_owned());
                a.rekey(target)?;
                pings.join().map_err(|_| anyhow::anyhow!("the pings ended early"))?
            })?;
            ensure!(answered + LOST_MAX >= ROUND_PINGS, "{answered} pings while moving to {to}");
            wait_until("both ends are there", Duration::from_secs(10), || {
                let there = |gateway: &Gateway<'_>| {
                    gateway.only_sa().is_ok_and(|(sa, _)| sa.transport == to)
                };
                Ok(there(a) && there(b))
            })?;
        }
        ensure!(a.only_sa()?.0.id == ike, "it was one IKE SA all the while");
        exchange(lab, Family::V4)
    })
}

#[test]
fn a_reload_of_the_same_file_leaves_a_tunnel_alone() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, _| {
        a.initiate()?;
        traffic::ping_until_answered(&lab.a.inside, SIDE_B.host.v4.into(), PING_TIMEOUT)?;
        let spi = a.only_sa()?.1.spi_in;
        let said = a.culvert("reload")?;
        ensure!(said.stdout.ends_with("nothing changed\n"), "{said:?}");
        exchange(lab, Family::V4)?;
        ensure!(a.only_sa()?.1.spi_in == spi, "the same SA");
        Ok(())
    })
}
