//! The lab's own parts, proven by foreign peers alone: strongSwan on both sides, over UDP and
//! through two relays over TCP. If these fail, the lab is at fault and not the gateway.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use culvert_lab::firewall::Policy;
use culvert_lab::relay::Relay;
use culvert_lab::strongswan::{Child, Connection, Strongswan};
use culvert_lab::topology::{Family, Lab, Owner, SIDE_A, SIDE_B};
use culvert_lab::traffic;

fn connection(a: bool) -> Connection {
    let (local, remote) = if a { (SIDE_A, SIDE_B) } else { (SIDE_B, SIDE_A) };
    let ids = if a { ("a.test", "b.test") } else { ("b.test", "a.test") };
    Connection {
        local: None,
        remote: None,
        remote_port: None,
        local_id: ids.0.into(),
        remote_id: ids.1.into(),
        secret: "lab secret".into(),
        proposal: "aes128gcm16-prfsha256-x25519".into(),
        encap: true,
        options: Vec::new(),
        children: vec![Child {
            name: "net".into(),
            esp_proposal: "aes128gcm16".into(),
            local_ts: vec![local.network(Family::V4)],
            remote_ts: vec![remote.network(Family::V4)],
            options: Vec::new(),
        }],
        charon: Vec::new(),
    }
}

/// Ping and a compared transfer each way.
fn exchange(lab: &Lab) -> Result<()> {
    ensure!(traffic::ping(&lab.a.inside, SIDE_B.host.v4.into(), 5, 56)? >= 4, "pings were lost");
    traffic::bulk(&lab.a.inside, &lab.b.inside, SIDE_B.host.v4.into(), 2_000_000)?;
    traffic::bulk(&lab.b.inside, &lab.a.inside, SIDE_A.host.v4.into(), 2_000_000)?;
    Ok(())
}

#[test]
fn strongswan_to_strongswan_over_udp() -> Result<()> {
    Lab::run(Owner::Kernel, Owner::Kernel, |lab| {
        let a = Connection { remote: Some(SIDE_B.outer.v4.into()), ..connection(true) };
        let _b = Strongswan::start(&lab.b.gateway, &lab.directory, "charon-b", &connection(false))?;
        let a = Strongswan::start(&lab.a.gateway, &lab.directory, "charon-a", &a)?;
        a.initiate("net")?;
        exchange(lab)
    })
}

#[test]
fn strongswan_to_strongswan_through_two_relays_where_udp_is_dropped() -> Result<()> {
    Lab::run(Owner::Kernel, Owner::Kernel, |lab| {
        lab.firewall.apply(Policy::TCP_ONLY)?;
        let listen = SocketAddr::new(SIDE_B.outer.v4.into(), 4500);
        let b_relay = Relay::respond(&lab.b.gateway, listen, Ipv4Addr::LOCALHOST)?;
        let a_relay = Relay::originate(&lab.a.gateway, Ipv4Addr::LOCALHOST, listen)?;
        let a = Connection {
            remote: Some(a_relay.address.ip()),
            remote_port: Some(a_relay.address.port()),
            ..connection(true)
        };
        let _b = Strongswan::start(&lab.b.gateway, &lab.directory, "charon-b", &connection(false))?;
        let a = Strongswan::start(&lab.a.gateway, &lab.directory, "charon-a", &a)?;
        a.initiate("net")?;
        exchange(lab)?;
        ensure!(b_relay.carried().connections == 1, "one connection carries everything");
        ensure!(a_relay.carried().to_tcp > 1000, "the transfer went through the relay");
        Ok(())
    })
}

#[test]
fn the_firewall_drops_what_it_says() -> Result<()> {
    Lab::run(Owner::Kernel, Owner::Kernel, |lab| {
        let peer = SIDE_B.outer.v4.into();
        ensure!(traffic::ping(&lab.a.gateway, peer, 2, 56)? == 2, "the sites reach each other");
        lab.firewall.apply(Policy::TCP_ONLY)?;
        traffic::bulk(&lab.a.gateway, &lab.b.gateway, peer, 100_000)?;
        lab.a.gateway.enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(b"x", (SIDE_B.outer.v4, 500))?;
            Ok(())
        })?;
        ensure!(lab.firewall.count("udp_dropped")? == 1, "UDP is dropped and counted");
        lab.firewall.apply(Policy { reset_tcp: true, ..Policy::default() })?;
        let cut = traffic::bulk(&lab.a.gateway, &lab.b.gateway, peer, 100_000);
        ensure!(cut.is_err(), "an RST ends a connection");
        ensure!(lab.firewall.count("tcp_reset")? >= 1, "and is counted");
        Ok(())
    })
}
