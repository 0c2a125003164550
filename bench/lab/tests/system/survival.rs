//! What survives: a killed control process, a killed dataplane, a cut TCP connection.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_lab::capture::{Capture, check_nonces, esp_headers};
use culvert_lab::command::wait_until;
use culvert_lab::firewall::Policy;
use culvert_lab::gateway::{Gateway, Settings};
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

#[test]
fn killing_control_does_not_stop_traffic() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, b| {
        a.initiate()?;
        exchange(lab, Family::V4)?;
        a.kill_control()?;
        b.kill_control()?;
        exchange(lab, Family::V4)?;
        a.start_control()?;
        b.start_control()?;
        a.wait_ready()?;
        b.wait_ready()?;
        exchange(lab, Family::V4)?;
        let status = a.status()?;
        ensure!(status.child_sas_orphaned == 1, "the old SA is listed as orphaned: {status:#?}");
        Ok(())
    })
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
