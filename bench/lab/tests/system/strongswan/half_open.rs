//! Cookies (RFC 7296, 2.6): when strangers hold half-open IKE SAs, an initiator has to show that it
//! receives at its address before the responder keeps anything for it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_lab::flood::init_request;
use culvert_lab::namespace::Namespace;

use super::{
    CHILD, TCP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES, meet,
};
use crate::{PING_TIMEOUT, flood};

/// Has a stranger in `from` begin `count` IKE SAs with `to` and leave each half-open: the answer is
/// taken, and nothing follows.
fn leave_half_open(from: &Namespace, to: SocketAddr, count: u64) -> Result<()> {
    from.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        for spi in 1..=count {
            socket.send(&init_request(spi))?;
            let mut answer = [0; 1500];
            let length = socket.recv(&mut answer).context("no answer to IKE_SA_INIT")?;
            let keys = answer.get(16) == Some(&33);
            ensure!(keys, "an SA payload expected: {:02x?}", &answer[..length]);
        }
        Ok(())
    })
}

/// strongSwan asks the gateway for a cookie, over UDP and, not knowing that there is one, over TCP.
#[test]
fn strongswan_demands_a_cookie() -> Result<()> {
    for way in [UDP_GATEWAY_INITIATES, TCP_GATEWAY_INITIATES] {
        let threshold = |charon: &mut Vec<String>| charon.push("cookie_threshold = 2".into());
        meet(
            way,
            |_, connection| threshold(&mut connection.charon),
            |peers| {
                let charon = SocketAddr::new(peers.lab.b.addresses.outer.v4.into(), 500);
                leave_half_open(&peers.lab.b.gateway, charon, 2)?;
                peers.initiate()?;
                let log = peers.charon.log();
                ensure!(log.contains("generating IKE_SA_INIT response 0 [ N(COOKIE) ]"), "{log}");
                ensure!(log.contains("parsed IKE_SA_INIT request 0 [ N(COOKIE) SA"), "{log}");
                peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)
            },
        )?;
    }
    Ok(())
}

/// The gateway asks strongSwan for a cookie over UDP. Over TCP the connection has shown the address,
/// and a cookie alone is not asked for (RFC 9329, 6.3).
#[test]
fn the_gateway_demands_a_cookie_over_udp_alone() -> Result<()> {
    for way in [UDP_STRONGSWAN_INITIATES, TCP_STRONGSWAN_INITIATES] {
        let threshold = |options: &mut Vec<String>| options.push("cookie_threshold = 0".into());
        meet(
            way,
            |settings, _| threshold(&mut settings.control_options),
            |peers| {
                peers.initiate()?;
                let log = peers.charon.log();
                let asked = log.contains("parsed IKE_SA_INIT response 0 [ N(COOKIE) ]");
                ensure!(asked != way.tcp, "{log}");
                peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)
            },
        )?;
    }
    Ok(())
}

/// strongSwan gets in through a flood of others' first requests, with the gateway's own limits.
#[test]
fn strongswan_gets_in_through_a_flood() -> Result<()> {
    meet(
        UDP_STRONGSWAN_INITIATES,
        |settings, _| flood::forgetful(settings, &[]),
        |peers| {
            let (router, gateway) = (&peers.lab.firewall.namespace, &peers.gateway);
            let flood = flood::flood_until_it_demands(router, gateway, flood::COOKIES)?;
            peers.initiate()?;
            let log = peers.charon.log();
            ensure!(log.contains("parsed IKE_SA_INIT response 0 [ N(COOKIE) ]"), "{log}");
            let through = peers.flow(CHILD)?;
            through.wait_answer(PING_TIMEOUT)?;
            flood::stays_within(gateway, &flood, flood::COOKIE_THRESHOLD + 1)?;
            through.wait_answer(PING_TIMEOUT)?;
            flood::subsides(gateway, flood)
        },
    )
}
