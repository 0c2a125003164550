//! What survives: a killed control process, a killed dataplane, a cut TCP connection.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_api::Target;
use culvert_lab::capture::{Capture, check_nonces, esp_headers};
use culvert_lab::command::wait_until;
use culvert_lab::firewall::Policy;
use culvert_lab::flow::Flow;
use culvert_lab::gateway::{CONNECTION, Gateway, Settings};
use culvert_lab::topology::{Family, Lab, SIDE_A, SIDE_B};
use culvert_lab::traffic;

use crate::{PING_TIMEOUT, exchange, with_gateways};

/// How long a tunnel may take to come back by itself.
const RECOVERY: Duration = Duration::from_secs(60);
/// Pings of one round, five a second.
const ROUND_PINGS: u32 = 50;
/// Rounds that take longer than the least life time of an SA.
const REKEY_ROUNDS: u32 = 7;

fn ping_b(lab: &Lab, timeout: Duration) -> Result<()> {
    traffic::ping_until_answered(&lab.a.inside, SIDE_B.host.v4.into(), timeout)
}

/// Either end rekeys everything: the windows of Message IDs fit, and the IKE SA is the one that was.
fn rekey_from_both_ends(a: &Gateway<'_>, b: &Gateway<'_>) -> Result<()> {
    let (before, _) = a.only_sa()?;
    for gateway in [a, b] {
        gateway.rekey(Target::Connection(CONNECTION.into()))?;
        wait_until("the old SAs are gone at both ends", PING_TIMEOUT, || {
            Ok(a.only_sa().is_ok() && b.only_sa().is_ok())
        })?;
    }
    let (after, _) = a.only_sa()?;
    ensure!(after.id == before.id, "another IKE SA: {after:#?}");
    ensure!(after.spi_initiator != before.spi_initiator, "it was not rekeyed: {after:#?}");
    Ok(())
}

/// Both control processes are killed while datagrams run: none is lost, and the next processes go on
/// with the same SAs.
#[test]
fn killed_control_processes_lose_nothing() -> Result<()> {
    for transport in ["udp", "tcp"] {
        with_gateways(Settings::between(transport, Family::V4), |lab, a, b| {
            a.initiate()?;
            let flow = Flow::start(&lab.a.inside, &lab.b.inside, SIDE_B.host.v4.into())?;
            flow.wait_answer(PING_TIMEOUT)?;
            let (before, child) = a.only_sa()?;
            a.kill_control()?;
            b.kill_control()?;
            a.start_control()?;
            b.start_control()?;
            a.wait_ready()?;
            b.wait_ready()?;
            let (after, same) = a.only_sa()?;
            ensure!((before.id, &before.tcp) == (after.id, &after.tcp), "{after:#?}");
            ensure!(before.spi_initiator == after.spi_initiator, "{after:#?}");
            ensure!(child.spi_in == same.spi_in, "{after:#?}");
            ensure!(a.status()?.child_sas_orphaned == 0, "nothing is left without an owner");
            rekey_from_both_ends(a, b)?;
            flow.stop()?.check_whole()
        })?;
    }
    Ok(())
}

/// A dataplane is killed while datagrams run: they are lost while it is away, and no longer; over TCP
/// the originator connects again. The SAs stay.
#[test]
fn a_killed_dataplane_costs_what_it_is_away() -> Result<()> {
    for (transport, of_a) in [("udp", true), ("tcp", true), ("tcp", false)] {
        with_gateways(Settings::between(transport, Family::V4), |lab, a, b| {
            a.initiate()?;
            let flow = Flow::start(&lab.a.inside, &lab.b.inside, SIDE_B.host.v4.into())?;
            flow.wait_answer(PING_TIMEOUT)?;
            let (before, _) = a.only_sa()?;
            let killed = if of_a { &mut *a } else { &mut *b };
            killed.kill_dataplane()?;
            killed.start_dataplane()?;
            killed.wait_ready()?;
            flow.wait_answer(RECOVERY)?;
            let (after, _) = a.only_sa()?;
            ensure!(before.id == after.id, "{after:#?}");
            ensure!(before.spi_initiator == after.spi_initiator, "{after:#?}");
            rekey_from_both_ends(a, b)?;
            let tally = flow.stop()?;
            ensure!(tally.repeated == 0, "{tally}");
            if let (Some(first), Some(last)) = (tally.lost.first(), tally.lost.last()) {
                ensure!(*last <= *first + tally.silence, "lost at one time only: {tally}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A connection that no file of the gateway has.
const BRANCH: &str = "[connections.branch]
local = { auth = \"psk\", id = \"a.test\" }
remote = { auth = \"psk\", id = \"branch.test\" }
[connections.branch.children.net]
local_ts = [\"10.1.0.0/24\"]
remote_ts = [\"10.9.0.0/24\"]
[secrets.branch]
id = [\"branch.test\"]
secret = \"another secret\"
";

/// What an operator said is in the shared memory, which goes from whichever process survives to the one
/// that takes the dead one's place: so it outlives the dataplane, and then the control process.
#[test]
fn what_was_said_outlives_a_killed_dataplane() -> Result<()> {
    let (mut a, b) = Settings::between("udp", Family::V4);
    a.child_options.push("start_action = \"start\"".to_owned());
    with_gateways((a, b), |lab, a, b| {
        wait_until("it comes up by itself", PING_TIMEOUT, || Ok(a.only_sa().is_ok()))?;
        let more = lab.directory.path().join("more.toml");
        fs::write(&more, BRANCH)?;
        let load = format!("load {}", more.display());
        for line in [&load, "log --connection lab debug", "terminate --connection lab"] {
            let said = a.culvert(line)?;
            ensure!(said.status.success(), "{line}: {said:?}");
        }
        wait_until("the SAs are gone at both ends", PING_TIMEOUT, || {
            Ok(a.sas()?.is_empty() && b.sas()?.is_empty())
        })?;
        for _ in 0..2 {
            replace_dataplane(a)?;
            still_knows_what_was_said(a)?;
            a.kill_control()?;
            a.start_control()?;
            a.wait_ready()?;
            still_knows_what_was_said(a)?;
        }
        ensure!(b.sas()?.is_empty(), "nobody has called: {:#?}", b.sas()?);
        a.initiate()?;
        exchange(lab, Family::V4)
    })
}

/// Kills the dataplane and waits until another one is at work.
fn replace_dataplane(gateway: &mut Gateway<'_>) -> Result<()> {
    let before = gateway.status()?.dataplane.starts;
    gateway.kill_dataplane()?;
    gateway.start_dataplane()?;
    wait_until("the next dataplane is at work", RECOVERY, || {
        let dataplane = gateway.status()?.dataplane;
        Ok(dataplane.up && dataplane.starts > before)
    })
}

fn still_knows_what_was_said(gateway: &Gateway<'_>) -> Result<()> {
    ensure!(gateway.sas()?.is_empty(), "what was terminated stays down: {:#?}", gateway.sas()?);
    let connections = gateway.culvert("connections")?.stdout;
    ensure!(connections.contains("branch.test"), "what was loaded stays: {connections}");
    let levels = gateway.culvert("log")?.stdout;
    let level = levels.lines().find(|line| line.contains(CONNECTION));
    ensure!(level.is_some_and(|line| line.contains("debug")), "so does the log: {levels}");
    Ok(())
}

/// CHILD SAs are rekeyed before they end, make before break: pings that run all the while are
/// answered, and in the end under other SPIs.
#[test]
fn a_child_sa_is_rekeyed_under_traffic() -> Result<()> {
    let (mut a, b) = Settings::between("tcp", Family::V4);
    a.life_time_s = 60;
    with_gateways((a, b), |lab, a, b| {
        a.initiate()?;
        ping_b(lab, PING_TIMEOUT)?;
        let (_, before) = a.only_sa()?;
        let mut answered = 0;
        for _ in 0..REKEY_ROUNDS {
            answered += traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), ROUND_PINGS, 56)?;
        }
        let sent = REKEY_ROUNDS * ROUND_PINGS;
        ensure!(answered + 2 >= sent, "{answered} of {sent} pings were answered");
        wait_until("the old SA is gone at both ends", PING_TIMEOUT, || {
            Ok(a.only_sa().is_ok() && b.only_sa().is_ok())
        })?;
        let (_, after) = a.only_sa()?;
        ensure!(after.spi_in != before.spi_in, "the SA was not rekeyed: {after:#?}");
        exchange(lab, Family::V4)
    })
}

/// The worst fault would be a nonce used twice: the restarted dataplane goes on with the numbers in
/// shared memory.
#[test]
fn a_killed_dataplane_repeats_no_sequence_number() -> Result<()> {
    with_gateways(Settings::between("udp", Family::V4), |lab, a, _| {
        a.initiate()?;
        ping_b(lab, PING_TIMEOUT)?;
        let capture = Capture::start(&lab.firewall.namespace, "a0", &lab.directory)?;
        for _ in 0..3 {
            // Killed while packets are on their way.
            flood_and_kill(lab, a)?;
            a.start_dataplane()?;
            a.wait_ready()?;
            ping_b(lab, PING_TIMEOUT)?;
        }
        let headers = esp_headers(&capture.stop()?)?;
        let ours = headers.iter().filter(|header| header.source == SIDE_A.outer.v4).count();
        ensure!(ours > 300, "only {ours} ESP packets of gateway a were seen");
        check_nonces(&headers)
    })
}

fn flood_and_kill(lab: &Lab, gateway: &mut Gateway<'_>) -> Result<()> {
    thread::scope(|scope| {
        let ping = scope.spawn(|| {
            let to = SIDE_B.host.v4;
            traffic::ping_raw(&lab.a.inside, &format!("-n -q -i 0.002 -c 1000 -w 2 {to}"))
        });
        thread::sleep(Duration::from_millis(500));
        gateway.kill_dataplane()?;
        // Its result does not matter: most of it was lost on purpose.
        let _ = ping.join();
        Ok(())
    })
}

/// Over TCP the connection is gone with the dataplane: the originator opens another, and the SA with
/// its sequence numbers goes on in it (RFC 9329, 6.1).
#[test]
fn a_killed_dataplane_comes_back_over_tcp() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, _| {
        a.initiate()?;
        ping_b(lab, PING_TIMEOUT)?;
        let (before, _) = a.only_sa()?;
        let capture = Capture::start(&lab.firewall.namespace, "a0", &lab.directory)?;
        a.kill_dataplane()?;
        a.start_dataplane()?;
        a.wait_ready()?;
        ping_b(lab, RECOVERY)?;
        exchange(lab, Family::V4)?;
        check_nonces(&esp_headers(&capture.stop()?)?)?;
        let (after, _) = a.only_sa()?;
        ensure!(before.spi_initiator == after.spi_initiator, "the same IKE SA:\n{after:#?}");
        Ok(())
    })
}

/// RFC 9329, 6.1: when the connection closes, the originator makes a new one; SAs do not care.
#[test]
fn a_reset_connection_is_opened_again() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, _| {
        a.initiate()?;
        ping_b(lab, PING_TIMEOUT)?;
        let (before, _) = a.only_sa()?;
        lab.firewall.apply(Policy { reset_tcp: true, ..Policy::TCP_ONLY })?;
        // Segments of both directions have to meet the rule, or only one end learns of it.
        wait_until("both ends are reset", PING_TIMEOUT, || {
            traffic::ping_raw(&lab.a.inside, &format!("-n -c 1 -W 1 {}", SIDE_B.host.v4))?;
            traffic::ping_raw(&lab.b.inside, &format!("-n -c 1 -W 1 {}", SIDE_A.host.v4))?;
            Ok(lab.firewall.count("tcp_reset")? >= 2)
        })?;
        lab.firewall.apply(Policy::TCP_ONLY)?;
        ping_b(lab, RECOVERY)?;
        exchange(lab, Family::V4)?;
        let (after, _) = a.only_sa()?;
        ensure!(before.spi_initiator == after.spi_initiator, "the same IKE SA:\n{after:#?}");
        ensure!(before.tcp != after.tcp, "in another connection:\n{after:#?}");
        Ok(())
    })
}

/// A firewall that drops for a while is no reason to lose anything: TCP sends again.
#[test]
fn a_silent_firewall_is_outlived() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, _| {
        a.initiate()?;
        ping_b(lab, PING_TIMEOUT)?;
        lab.firewall.apply(Policy { drop_tcp: true, ..Policy::TCP_ONLY })?;
        let answered = traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), 10, 56)?;
        ensure!(answered == 0, "the firewall let {answered} through");
        lab.firewall.apply(Policy::TCP_ONLY)?;
        ping_b(lab, RECOVERY)?;
        exchange(lab, Family::V4)
    })
}

/// RFC 7296, 1.4.1: DELETE takes the SAs down at both ends, and the tunnel can be set up again.
#[test]
fn terminate_takes_down_both_ends() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, b| {
        for _ in 0..2 {
            a.initiate()?;
            ping_b(lab, PING_TIMEOUT)?;
            ensure!(a.terminate()?.len() == 1, "one IKE SA ended");
            wait_until("the SAs are gone at both ends", PING_TIMEOUT, || {
                Ok(a.sas()?.is_empty() && b.sas()?.is_empty())
            })?;
            ensure!(traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), 2, 56)? == 0, "no tunnel");
        }
        Ok(())
    })
}
