//! Peers whose address changes: by MOBIKE (RFC 4555), behind a NAT that forgets (RFC 7296, 2.23), and
//! in another TCP connection (RFC 9329, 6.1).

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use culvert_api::Transport;
use culvert_lab::command::wait_until;
use culvert_lab::firewall::Policy;
use culvert_lab::gateway::Settings;
use culvert_lab::relay::Relay;
use culvert_lab::strongswan::Connection;

use super::{
    CHILD, Peers, TCP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES, meet,
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
        let relay = Relay::respond(&peers.lab.b.gateway, listen)?;
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

/// The NAT between them forgets its mappings and makes others: the gateway takes the peer's new
/// port from its next authentic packet, whichever side is behind the NAT.
fn is_remapped(peers: &Peers<'_>) -> Result<()> {
    let nat = |first: u16| {
        let tcp_only = if peers.way.tcp { Policy::TCP_ONLY } else { Policy::default() };
        Policy { masquerade_a: true, mapped_from: Some(first), ..tcp_only }
    };
    peers.lab.firewall.apply(nat(20_000))?;
    peers.initiate()?;
    let flow = peers.flow(CHILD)?;
    flow.wait_answer(PING_TIMEOUT)?;
    let before = peers.ike()?.spi_initiator;
    peers.lab.firewall.apply(nat(30_000))?;
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
