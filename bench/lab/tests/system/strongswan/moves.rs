//! Peers whose address changes: by MOBIKE (RFC 4555), behind a NAT that forgets (RFC 7296, 2.23), and
//! in another TCP connection (RFC 9329, 6.1).

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use culvert_api::{Target, Transport};
use culvert_lab::command::wait_until;
use culvert_lab::firewall::Policy;
use culvert_lab::gateway::{CONNECTION, Settings};
use culvert_lab::relay::Relay;
use culvert_lab::strongswan::{Connection, Standing};

use super::{
    CHILD, Peers, TCP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES, Way, meet, wait_child_rekeyed,
};
use crate::PING_TIMEOUT;

/// Another address for gateway a.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

/// RFC 4555, 3.5: strongSwan as initiator loses its address, gets another and says so; the IKE SA
/// stays, and ESP follows when the address has been checked (3.7). Its userspace ESP cannot change
/// addresses, so it rekeys the CHILD SA after that.
#[test]
fn strongswan_moves_to_another_address() -> Result<()> {
    let mobike = |connection: &mut Connection| connection.options.push("mobike = yes".into());
    meet(
        UDP_STRONGSWAN_INITIATES,
        |_, connection| mobike(connection),
        |peers| {
            peers.initiate()?;
            let flow = peers.flow(CHILD)?;
            flow.wait_answer(PING_TIMEOUT)?;
            let before = peers.ike()?.spi_initiator;
            let host = &peers.lab.a.gateway;
            // The second address stays when the first one goes.
            host.sysctl("net.ipv4.conf.outer0.promote_secondaries", "1")?;
            host.add_address("outer0", ELSEWHERE.into(), 24)?;
            host.run(&format!("ip addr del {}/24 dev outer0", peers.lab.a.addresses.outer.v4))?;
            wait_until("the gateway sees it elsewhere", PING_TIMEOUT, || {
                Ok(peers.ike()?.remote.starts_with(&ELSEWHERE.to_string()))
            })?;
            flow.wait_answer(PING_TIMEOUT)?;
            ensure!(peers.ike()?.spi_initiator == before, "the same IKE SA");
            let log = peers.charon.log();
            ensure!(log.contains("N(UPD_SA_ADDR)"), "by MOBIKE:\n{log}");
            ensure!(log.contains("N(COOKIE2)"), "with a check of the new address:\n{log}");
            Ok(())
        },
    )
}

/// RFC 9329, 7.1 and RFC 4555: one IKE SA goes from UDP to TCP and back, with strongSwan behind the
/// relay following by MOBIKE alone.
#[test]
fn the_gateway_moves_to_tcp_and_back() -> Result<()> {
    let adjust = |settings: &mut Settings, connection: &mut Connection| {
        settings.transport = "auto".into();
        connection.options.push("mobike = yes".into());
    };
    meet(UDP_GATEWAY_INITIATES, adjust, |peers| {
        let listen = SocketAddr::new(peers.lab.b.addresses.outer.v4.into(), 4500);
        let relay = Relay::respond(&peers.lab.b.gateway, listen, Ipv4Addr::LOCALHOST)?;
        peers.initiate()?;
        let flow = peers.flow(CHILD)?;
        flow.wait_answer(PING_TIMEOUT)?;
        let before = peers.ike()?.spi_initiator;
        for to in [Transport::Tcp, Transport::Udp, Transport::Tcp] {
            peers.gateway.move_to(to)?;
            flow.wait_answer(PING_TIMEOUT)?;
            ensure!(peers.ike()?.transport == to, "{:#?}", peers.ike()?);
        }
        ensure!(peers.ike()?.spi_initiator == before, "the same IKE SA");
        ensure!(relay.carried().connections == 2, "a connection for each move to TCP");
        Ok(())
    })
}

/// A NAT before side a that maps to ports from `first` on.
fn nat(peers: &Peers<'_>, first: u16) -> Policy {
    let open = if peers.way.tcp { Policy::TCP_ONLY } else { Policy::default() };
    Policy { masquerade_a: true, mapped_from: Some(first), ..open }
}

/// The NAT between them forgets its mappings and makes others: the gateway takes the peer's new
/// port from its next authentic packet, whichever side is behind the NAT.
fn is_remapped(peers: &Peers<'_>) -> Result<()> {
    peers.lab.firewall.apply(nat(peers, 20_000))?;
    peers.initiate()?;
    let flow = peers.flow(CHILD)?;
    flow.wait_answer(PING_TIMEOUT)?;
    let before = peers.ike()?.spi_initiator;
    peers.lab.firewall.apply(nat(peers, 30_000))?;
    flow.wait_answer(PING_TIMEOUT * 2)?;
    ensure!(peers.ike()?.spi_initiator == before, "the same IKE SA");
    if peers.way.gateway_initiates {
        return Ok(());
    }
    let remote = peers.ike()?.remote;
    let port: u16 = remote.rsplit(':').next().context("no port")?.parse()?;
    ensure!((30_000..30_100).contains(&port), "the peer is at {remote}");
    Ok(())
}

/// RFC 4555, 3.8: with MOBIKE the NAT forgets once under traffic, and once while nothing is sent but
/// the initiator's liveness checks: it notices, and says so by UPDATE_SA_ADDRESSES. No SA is lost, no
/// other is made, and either end can renew them afterwards.
fn is_remapped_with_mobike(way: Way) -> Result<()> {
    let adjust = |settings: &mut Settings, connection: &mut Connection| {
        connection.options.push("mobike = yes".into());
        // The initiator's only: whoever hears of the other's check needs none of its own.
        if way.gateway_initiates {
            settings.options.push("dpd_delay = 1".into());
        } else {
            connection.options.push("dpd_delay = 1s".into());
        }
    };
    meet(way, adjust, |peers| {
        is_remapped(peers)?;
        let before = peers.ike()?.spi_initiator;
        if !peers.way.gateway_initiates {
            // It compares the digests of an answer with those of the one before.
            wait_until("strongSwan has seen its mapping", PING_TIMEOUT, || {
                let seen = |line: &str| line.contains("response") && line.contains("N(NATD_D_IP)");
                Ok(peers.charon.log().lines().filter(|line| seen(line)).count() >= 2)
            })?;
        }
        peers.lab.firewall.apply(nat(peers, 40_000))?;
        wait_until("the initiator is at its new port", PING_TIMEOUT, || {
            let from = if peers.way.gateway_initiates { "254[400" } else { "254:400" };
            let lists = peers.charon.list_sas()? + &peers.ike()?.remote;
            Ok(lists.contains(from) && peers.charon.log().contains("N(UPD_SA_ADDR)"))
        })?;
        settled(peers)?;
        ensure!(peers.ike()?.spi_initiator == before, "the same IKE SA");
        peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)?;
        let old = peers.child(CHILD)?.spi_in;
        peers.charon.rekey_child(CHILD)?;
        wait_child_rekeyed(peers, CHILD, 1, &old)?;
        peers.gateway.rekey(Target::Connection(CONNECTION.into()))?;
        settled(peers)?;
        peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)
    })
}

/// Nothing is left at either end but one IKE SA with one CHILD SA.
fn settled(peers: &Peers<'_>) -> Result<()> {
    wait_until("one of each stands", PING_TIMEOUT, || {
        let one = Standing { ike: 1, children: 1 };
        Ok(peers.charon.standing()? == one && peers.gateway.only_sa().is_ok())
    })
}

#[test]
fn a_nat_forgets_strongswan_that_has_mobike() -> Result<()> {
    is_remapped_with_mobike(UDP_STRONGSWAN_INITIATES)
}

#[test]
fn a_nat_forgets_the_gateway_that_has_mobike() -> Result<()> {
    is_remapped_with_mobike(UDP_GATEWAY_INITIATES)
}

#[test]
fn a_nat_forgets_strongswan() -> Result<()> {
    meet(UDP_STRONGSWAN_INITIATES, |_, _| {}, |peers| is_remapped(peers))
}

/// strongSwan takes a new port from IKE messages only: the gateway's liveness check shows it.
#[test]
fn a_nat_forgets_the_gateway() -> Result<()> {
    let dpd = |settings: &mut Settings| settings.options.push("dpd_delay = 1".into());
    meet(UDP_GATEWAY_INITIATES, |settings, _| dpd(settings), |peers| is_remapped(peers))
}

/// Over TCP the connection is gone with the mapping, and the originator opens another.
#[test]
fn a_nat_forgets_a_tcp_connection() -> Result<()> {
    for way in [TCP_STRONGSWAN_INITIATES, TCP_GATEWAY_INITIATES] {
        meet(way, |_, _| {}, |peers| is_remapped(peers))?;
    }
    Ok(())
}
