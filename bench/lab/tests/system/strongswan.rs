//! A gateway and strongSwan, both ways round, over UDP and over TCP.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use culvert_api::Transport;
use culvert_lab::firewall::Policy;
use culvert_lab::gateway::{Gateway, Settings};
use culvert_lab::relay::Relay;
use culvert_lab::strongswan::{Connection, Strongswan};
use culvert_lab::topology::{Family, Lab, Owner, SIDE_A, SIDE_B};

use crate::exchange;

/// strongSwan's side of [`Settings::between`], in place of `settings`.
fn strongswan(settings: &Settings) -> Connection {
    Connection {
        local: None,
        remote: settings.remote,
        remote_port: None,
        local_id: settings.local_id.clone(),
        remote_id: settings.remote_id.clone(),
        secret: settings.secret.clone(),
        proposal: settings.proposals[0].clone(),
        // kernel-libipsec has no extended sequence numbers.
        esp_proposal: "aes128gcm16".into(),
        local_ts: settings.local_ts.clone(),
        remote_ts: settings.remote_ts.clone(),
        encap: true,
    }
}

/// IPv4 only: kernel-libipsec's TUN device takes its routes by family.
fn pair(transport: &str) -> (Settings, Settings) {
    let (mut a, mut b) = Settings::between(transport, Family::V4);
    for settings in [&mut a, &mut b] {
        settings.local_ts.truncate(1);
        settings.remote_ts.truncate(1);
    }
    (a, b)
}

fn check(gateway: &Gateway<'_>, transport: Transport) -> Result<()> {
    let (sa, child) = gateway.only_sa()?;
    ensure!(sa.transport == transport, "{sa:#?}");
    ensure!(child.octets_in > 4_000_000 && child.octets_out > 4_000_000, "{child:#?}");
    Ok(())
}

#[test]
fn udp_gateway_initiates() -> Result<()> {
    let (a, b) = pair("udp");
    Lab::run(Owner::Dpdk, Owner::Kernel, |lab| {
        let peer = Strongswan::start(&lab.b.gateway, &lab.directory, "charon", &strongswan(&b))?;
        let gateway = Gateway::start(lab, &lab.a, "gateway-a", &a)?;
        gateway.initiate()?;
        exchange(lab, Family::V4)?;
        check(&gateway, Transport::Udp)?;
        gateway.terminate()?;
        ensure!(!peer.list_sas()?.contains("ESTABLISHED"), "DELETE reached strongSwan");
        Ok(())
    })
}

#[test]
fn udp_strongswan_initiates() -> Result<()> {
    let (a, b) = pair("udp");
    Lab::run(Owner::Kernel, Owner::Dpdk, |lab| {
        let gateway = Gateway::start(lab, &lab.b, "gateway-b", &b)?;
        let peer = Strongswan::start(&lab.a.gateway, &lab.directory, "charon", &strongswan(&a))?;
        peer.initiate()?;
        exchange(lab, Family::V4)?;
        check(&gateway, Transport::Udp)?;
        peer.terminate()?;
        ensure!(gateway.sas()?.is_empty(), "strongSwan's DELETE was obeyed: {:#?}", gateway.sas()?);
        Ok(())
    })
}

#[test]
fn tcp_gateway_initiates() -> Result<()> {
    let (a, b) = pair("tcp");
    Lab::run(Owner::Dpdk, Owner::Kernel, |lab| {
        lab.firewall.apply(Policy::TCP_ONLY)?;
        let listen = SocketAddr::new(SIDE_B.outer.v4.into(), 4500);
        let relay = Relay::respond(&lab.b.gateway, listen)?;
        let _peer = Strongswan::start(&lab.b.gateway, &lab.directory, "charon", &strongswan(&b))?;
        let gateway = Gateway::start(lab, &lab.a, "gateway-a", &a)?;
        gateway.initiate()?;
        exchange(lab, Family::V4)?;
        check(&gateway, Transport::Tcp)?;
        ensure!(relay.carried().connections == 1, "{:?}", relay.carried());
        Ok(())
    })
}

#[test]
fn tcp_strongswan_initiates() -> Result<()> {
    let (a, b) = pair("tcp");
    Lab::run(Owner::Kernel, Owner::Dpdk, |lab| {
        lab.firewall.apply(Policy::TCP_ONLY)?;
        let gateway = Gateway::start(lab, &lab.b, "gateway-b", &b)?;
        let remote = gateway.outer(Family::V4, 4500);
        let relay = Relay::originate(&lab.a.gateway, remote)?;
        let connection = Connection {
            remote: Some(relay.address.ip()),
            remote_port: Some(relay.address.port()),
            ..strongswan(&a)
        };
        let peer = Strongswan::start(&lab.a.gateway, &lab.directory, "charon", &connection)?;
        peer.initiate()?;
        exchange(lab, Family::V4)?;
        check(&gateway, Transport::Tcp)?;
        ensure!(gateway.only_sa()?.0.remote.starts_with(&SIDE_A.outer.v4.to_string()), "address");
        Ok(())
    })
}

/// RFC 7296, 2.21.2: both roles say what is wrong, and no SA stands.
#[test]
fn a_wrong_key_is_reported_by_both() -> Result<()> {
    let (a, b) = pair("udp");
    Lab::run(Owner::Dpdk, Owner::Kernel, |lab| {
        let wrong = Connection { secret: "another secret".into(), ..strongswan(&b) };
        let peer = Strongswan::start(&lab.b.gateway, &lab.directory, "charon", &wrong)?;
        let gateway = Gateway::start(lab, &lab.a, "gateway-a", &a)?;
        let error = format!("{:#}", gateway.initiate().expect_err("the keys differ"));
        ensure!(error.contains("AUTHENTICATION_FAILED"), "the peer's notify is named: {error}");
        ensure!(gateway.sas()?.is_empty(), "no SA stands: {:#?}", gateway.sas()?);
        ensure!(peer.log().contains("MAC mismatched"), "strongSwan saw a wrong AUTH payload");
        Ok(())
    })
}
