//! Rekeys with traffic running (RFC 7296, 2.8): make before break, so that nothing is lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_api::{ChildSa, IkeSa, Target};
use culvert_lab::command::wait_until;
use culvert_lab::flow::Tally;
use culvert_lab::gateway::Settings;
use culvert_lab::strongswan::{Connection, Standing};

use super::{
    CHILD, PFS, Peers, TCP_GATEWAY_INITIATES, UDP_STRONGSWAN_INITIATES, meet, meet_every_way,
    wait_child_rekeyed,
};
use crate::PING_TIMEOUT;

/// What is an hour in short may take this long at most.
const HOUR: Duration = Duration::from_secs(120);

fn wait_ike_rekeyed(peers: &Peers<'_>, old: &str) -> Result<()> {
    wait_until("the IKE SA is rekeyed", PING_TIMEOUT, || {
        let settled = peers.charon.standing()? == Standing { ike: 1, children: 2 };
        Ok(settled && peers.ike()?.spi_initiator != old)
    })
}

/// RFC 7296, 1.3.2, 1.3.3 and 2.8: CHILD SAs with and without a key exchange, and the IKE SA, again
/// and again, by whoever these ask; what it carries does not notice.
fn rekeys_lose_nothing(
    rekey_child: impl Fn(&Peers<'_>, &str, &str) -> Result<()>,
    rekey_ike: impl Fn(&Peers<'_>, &IkeSa) -> Result<()>,
) -> Result<()> {
    meet_every_way(|peers| {
        peers.initiate()?;
        peers.initiate_child(PFS)?;
        let flows = [peers.flow(CHILD)?, peers.flow(PFS)?];
        for flow in &flows {
            flow.wait_answer(PING_TIMEOUT)?;
        }
        for _ in 0..2 {
            for child in [CHILD, PFS] {
                let old = peers.child(child)?.spi_in;
                rekey_child(peers, child, &old)?;
                wait_child_rekeyed(peers, child, 2, &old)?;
            }
            let old = peers.ike()?;
            rekey_ike(peers, &old)?;
            wait_ike_rekeyed(peers, &old.spi_initiator)?;
        }
        let list = peers.charon.list_sas()?;
        ensure!(list.contains("ESP:AES_GCM_16-128/CURVE_25519"), "a key exchange: {list}");
        ensure!(list.contains("ESP:AES_GCM_16-128\n"), "none: {list}");
        flows.into_iter().try_for_each(|flow| flow.stop()?.check_whole())
    })
}

#[test]
fn strongswan_rekeys_everything_and_nothing_is_lost() -> Result<()> {
    rekeys_lose_nothing(
        |peers, child, _| peers.charon.rekey_child(child),
        |peers, _| peers.charon.rekey_ike(),
    )
}

#[test]
fn the_gateway_rekeys_everything_and_nothing_is_lost() -> Result<()> {
    rekeys_lose_nothing(
        |peers, _, spi| peers.gateway.rekey(Target::Child(spi.to_owned())).map(drop),
        |peers, ike| peers.gateway.rekey(Target::Ike(ike.id.context("an orphan")?)).map(drop),
    )
}

/// An hour of rekeys once a minute, in half a minute: both CHILD SAs every second and the IKE SA every
/// three. Over UDP both ends do it, and meet in every way that RFC 7296, 2.8 and 2.25 foresee. Over
/// TCP only the gateway does: strongSwan 5.9.8 ignores a request while it works on an answer with the
/// same Message ID ("already processing"), and over TCP nobody repeats it (RFC 9329, 6.2). Nothing
/// is lost, nothing comes under a dead SA, and in the end there is one of each.
#[test]
fn an_hour_of_rekeys_loses_nothing() -> Result<()> {
    for way in [UDP_STRONGSWAN_INITIATES, TCP_GATEWAY_INITIATES] {
        let times = |settings: &mut Settings, connection: &mut Connection| {
            gateway_every_second(settings);
            if !way.tcp {
                strongswan_every_second(connection);
            }
        };
        meet(way, times, |peers| {
            peers.initiate()?;
            peers.initiate_child(PFS)?;
            let flows = [peers.flow(CHILD)?, peers.flow(PFS)?];
            wait_until("sixty CHILD SAs and ten IKE SAs were made", HOUR, || {
                let log = peers.charon.log();
                let count = |text: &str| log.matches(text).count();
                Ok(count("inbound CHILD_SA") >= 60 && count("rekeyed between") >= 10)
            })?;
            flows.iter().try_for_each(|flow| flow.wait_answer(PING_TIMEOUT))?;
            for flow in flows {
                check(&flow.stop()?, peers)?;
            }
            let mut counters = peers.gateway.counters()?;
            counters.retain(|name, count| name.starts_with("esp_") && *count > 0);
            let names: Vec<&str> = counters.keys().map(String::as_str).collect();
            ensure!(names == ["esp_opened", "esp_sealed"], "ESP was dropped: {counters:#?}");
            wait_until("the same SAs stand at both ends", PING_TIMEOUT, || agree(peers))
        })?;
    }
    Ok(())
}

/// Nothing was lost but by strongSwan 5.9.8 itself, which drops an answer while it works on a request
/// with the same Message ID. If the IKE SA is rekeyed before it asks again, it never makes the pair that
/// was agreed on, and what the gateway sends there is lost until the next rekey.
fn check(tally: &Tally, peers: &Peers<'_>) -> Result<()> {
    if !peers.charon.log().contains("already processing") {
        return tally.check_whole();
    }
    ensure!(tally.repeated == 0 && tally.lost.len() < tally.sent, "{tally}");
    Ok(())
}

/// Whether there is one of each, which both ends know by the same SPIs. What strongSwan forgot that it
/// had asked for, a pair each time at most, the gateway does not rekey and soon deletes.
fn agree(peers: &Peers<'_>) -> Result<bool> {
    let forgotten = peers.charon.log().matches("already processing").count();
    let (ike, list) = (peers.ike()?, peers.charon.list_sas()?);
    let (alive, left): (Vec<_>, Vec<_>) =
        ike.children.iter().partition(|child| child.rekey_s.is_some());
    let both = matches!(&alive[..], [one, other] if one.name != other.name);
    let known = |child: &&ChildSa| list.contains(&child.spi_in) && list.contains(&child.spi_out);
    let standing = peers.charon.standing()? == Standing { ike: 1, children: 2 };
    Ok(standing && both && alive.iter().all(known) && left.len() <= forgotten)
}

fn gateway_every_second(settings: &mut Settings) {
    let times = ["rekey_time = 3", "over_time = 60", "rand_time = 1"];
    settings.options.extend(times.map(str::to_owned));
    settings.child_options.extend(["rekey_time = 1", "rand_time = 0"].map(str::to_owned));
    settings.sections += "rekey_time = 1\nrand_time = 0\nlife_time = 60\n";
}

fn strongswan_every_second(connection: &mut Connection) {
    let text = |lines: [&str; 3]| lines.map(str::to_owned);
    connection.options.extend(text(["rekey_time = 3s", "over_time = 60s", "rand_time = 1s"]));
    for child in &mut connection.children {
        child.options.extend(text(["rekey_time = 1s", "life_time = 60s", "rand_time = 0s"]));
    }
}
