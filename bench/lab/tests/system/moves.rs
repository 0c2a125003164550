//! Tunnels that change their way under traffic, and what transport mode carries.

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_api::Transport;
use culvert_lab::command::wait_until;
use culvert_lab::firewall::Policy;
use culvert_lab::flow::Flow;
use culvert_lab::gateway::{Gateway, Settings};
use culvert_lab::topology::{Family, SIDE_A, SIDE_B};
use culvert_lab::traffic;

use crate::{
    BULK, PING_TIMEOUT, PINGS, becomes_the_end, exchange, in_transport_mode, with_gateways,
};

/// How long a tunnel on TCP may stay there once UDP passes: a few probes, and what follows.
const BACK_TIMEOUT: Duration = Duration::from_secs(45);

fn transport_of(gateway: &Gateway<'_>) -> Result<Transport> {
    Ok(gateway.only_sa()?.0.transport)
}

/// RFC 9329, 5 and 7.1: UDP is dropped, so the tunnel stands on TCP. The firewall opens, and the
/// tunnel moves by itself, on one IKE SA, to UDP behind a NAT and to native ESP without one; what
/// runs through it notices nothing.
fn back_from_tcp(masquerade_a: bool, expected: Transport) -> Result<()> {
    let (mut a, b) = Settings::between("auto", Family::V4);
    a.options.push("udp_probe = \"10s\"".to_owned());
    with_gateways((a, b), |lab, a, b| {
        lab.firewall.apply(Policy { masquerade_a, ..Policy::TCP_ONLY })?;
        a.initiate()?;
        ensure!(transport_of(a)? == Transport::Tcp, "{:#?}", a.sas()?);
        let before = a.only_sa()?.0;
        let flow = Flow::start(&lab.a.inside, &lab.b.inside, SIDE_B.host.of(Family::V4))?;
        flow.wait_answer(PING_TIMEOUT)?;
        // A probe that UDP does not answer leaves the tunnel where it is.
        let probed = || Ok(lab.firewall.count("udp_dropped")? >= 8);
        wait_until("UDP is tried in vain", BACK_TIMEOUT, probed)?;
        ensure!(transport_of(a)? == Transport::Tcp, "{:#?}", a.sas()?);

        lab.firewall.relax(Policy { masquerade_a, ..Policy::default() })?;
        wait_until("the tunnel leaves TCP", BACK_TIMEOUT, || Ok(transport_of(a)? == expected))?;
        wait_until("the other end, too", BACK_TIMEOUT, || Ok(transport_of(b)? == expected))?;
        let after = a.only_sa()?.0;
        ensure!(after.spi_initiator == before.spi_initiator, "one IKE SA: {after:#?}");
        let tcp_is_gone = || Ok(a.tcp()?.is_empty() && b.tcp()?.is_empty());
        wait_until("the connection is closed", BACK_TIMEOUT, tcp_is_gone)?;
        flow.stop()?.check_whole()?;
        exchange(lab, Family::V4)
    })
}

#[test]
fn when_the_firewall_opens_the_tunnel_moves_from_tcp_to_native_esp_by_itself() -> Result<()> {
    back_from_tcp(false, Transport::Native)
}

#[test]
fn when_the_firewall_opens_the_tunnel_moves_from_tcp_to_udp_behind_a_nat() -> Result<()> {
    back_from_tcp(true, Transport::Udp)
}

/// RFC 4301, 4.4.1.1: what the selectors leave out does not pass.
#[test]
fn selectors_of_a_protocol_and_of_ports_hold_end_to_end() -> Result<()> {
    let (mut a, mut b) = Settings::between("udp", Family::V4);
    a.local_ts = vec!["10.1.0.0-10.1.0.9[tcp]".into()];
    a.remote_ts = vec!["10.2.0.0/24[tcp/1-65535]".into()];
    // The responder narrows: 10.1.0.0/24 and the ports that a bulk transfer takes.
    b.remote_ts = vec!["10.1.0.0/24".into()];
    b.local_ts = vec!["10.2.0.0/24[tcp/1024-65535]".into()];
    with_gateways((a, b), |lab, a, b| {
        a.initiate()?;
        let child = a.only_sa()?.1;
        ensure!(child.local_ts == ["10.1.0.0-10.1.0.9[tcp]"], "{child:#?}");
        ensure!(child.remote_ts == ["10.2.0.0/24[tcp/1024-65535]"], "{child:#?}");
        let host = SIDE_B.host.of(Family::V4);
        traffic::bulk(&lab.a.inside, &lab.b.inside, host, BULK)?;
        let answered = traffic::ping(&lab.a.inside, host, PINGS, 56)?;
        ensure!(answered == 0, "{answered} pings passed a tunnel for TCP");
        ensure!(a.counters()?["policy_none"] >= u64::from(PINGS), "{:#?}", a.counters()?);
        ensure!(b.counters()?["esp_selector"] == 0, "nothing else was sent into it");
        Ok(())
    })
}

/// Both gateways stand in the wire before a host that has their outer address.
fn between_hosts(transport: &str, outer: Family) -> (Settings, Settings) {
    let (mut a, mut b) = Settings::between(transport, outer);
    in_transport_mode(&mut a);
    in_transport_mode(&mut b);
    (a, b)
}

/// RFC 7296, 1.3.1 and 2.23.1: what the two ends say to each other, and nothing around it.
fn carries_in_transport_mode(
    transport: &str,
    family: Family,
    policy: Policy,
    expected: Transport,
) -> Result<()> {
    with_gateways(between_hosts(transport, family), |lab, a, b| {
        lab.firewall.apply(policy)?;
        becomes_the_end(&lab.a.inside, &SIDE_A)?;
        becomes_the_end(&lab.b.inside, &SIDE_B)?;
        a.initiate()?;
        let (sa, child) = a.only_sa()?;
        ensure!(sa.transport == expected, "{sa:#?}");
        let (own, other) = (SIDE_A.outer.of(family), SIDE_B.outer.of(family));
        let bits = if own.is_ipv4() { 32 } else { 128 };
        ensure!(child.local_ts == [format!("{own}/{bits}")], "{child:#?}");
        traffic::ping_until_answered(&lab.a.inside, other, PING_TIMEOUT)?;
        let answered = traffic::ping(&lab.a.inside, other, PINGS, 1200)?;
        ensure!(answered + 1 >= PINGS, "{answered} of {PINGS} pings were answered");
        // TCP's checksum covers the addresses: behind a NAT it arrives only mended.
        traffic::bulk(&lab.a.inside, &lab.b.inside, other, BULK)?;
        if !policy.masquerade_a {
            traffic::bulk(&lab.b.inside, &lab.a.inside, own, BULK)?;
        }
        ensure!(b.only_sa()?.1.octets_in > BULK, "{:#?}", b.sas()?);
        // Another address of the same host is not the end's.
        let inside = SIDE_B.host.of(family);
        ensure!(traffic::ping(&lab.a.inside, inside, 2, 56)? == 0, "{inside} is no end");
        Ok(())
    })
}

#[test]
fn transport_mode_carries_natively() -> Result<()> {
    let open = Policy::default();
    carries_in_transport_mode("udp", Family::V4, open, Transport::Native)?;
    carries_in_transport_mode("udp", Family::V6, open, Transport::Native)
}

#[test]
fn transport_mode_carries_over_tcp() -> Result<()> {
    carries_in_transport_mode("tcp", Family::V4, Policy::TCP_ONLY, Transport::Tcp)
}

#[test]
fn transport_mode_carries_through_a_nat() -> Result<()> {
    let nat = Policy { masquerade_a: true, drop_esp: true, ..Policy::default() };
    carries_in_transport_mode("udp", Family::V4, nat, Transport::Udp)?;
    let nat = Policy { masquerade_a: true, ..Policy::TCP_ONLY };
    carries_in_transport_mode("tcp", Family::V4, nat, Transport::Tcp)
}
