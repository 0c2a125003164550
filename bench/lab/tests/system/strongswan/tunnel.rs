//! A tunnel comes up, carries everything and goes.

use anyhow::{Result, ensure};
use culvert_api::Transport;
use culvert_lab::command::wait_until;
use culvert_lab::relay::Relay;
use culvert_lab::strongswan::{Connection, Standing};
use culvert_lab::topology::{Family, SIDE_A};

use super::{
    CHILD, PFS, Peers, TCP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES, meet, meet_every_way,
};
use crate::{PING_TIMEOUT, exchange};

fn carried_everything(peers: &Peers<'_>, transport: Transport) -> Result<()> {
    exchange(peers.lab, Family::V4)?;
    let (sa, child) = peers.gateway.only_sa()?;
    ensure!(sa.transport == transport, "{sa:#?}");
    ensure!(child.octets_in > 4_000_000 && child.octets_out > 4_000_000, "{child:#?}");
    Ok(())
}

#[test]
fn udp_gateway_initiates() -> Result<()> {
    meet(
        UDP_GATEWAY_INITIATES,
        |_, _| {},
        |peers| {
            peers.initiate()?;
            carried_everything(peers, Transport::Udp)?;
            peers.gateway.terminate()?;
            let nothing = Standing { ike: 0, children: 0 };
            ensure!(peers.charon.standing()? == nothing, "DELETE reached strongSwan");
            Ok(())
        },
    )
}

#[test]
fn udp_strongswan_initiates() -> Result<()> {
    meet(
        UDP_STRONGSWAN_INITIATES,
        |_, _| {},
        |peers| {
            peers.initiate()?;
            carried_everything(peers, Transport::Udp)?;
            peers.charon.terminate()?;
            let left = peers.gateway.sas()?;
            ensure!(left.is_empty(), "strongSwan's DELETE was obeyed: {left:#?}");
            Ok(())
        },
    )
}

#[test]
fn tcp_gateway_initiates() -> Result<()> {
    meet(
        TCP_GATEWAY_INITIATES,
        |_, _| {},
        |peers| {
            peers.initiate()?;
            carried_everything(peers, Transport::Tcp)?;
            let carried = peers.relay.as_ref().map(Relay::carried);
            ensure!(carried.is_some_and(|carried| carried.connections == 1), "{carried:?}");
            Ok(())
        },
    )
}

#[test]
fn tcp_strongswan_initiates() -> Result<()> {
    meet(
        TCP_STRONGSWAN_INITIATES,
        |_, _| {},
        |peers| {
            peers.initiate()?;
            carried_everything(peers, Transport::Tcp)?;
            ensure!(peers.ike()?.remote.starts_with(&SIDE_A.outer.v4.to_string()), "address");
            Ok(())
        },
    )
}

/// RFC 7296, 2.21.2: both roles say what is wrong, and no SA stands.
#[test]
fn a_wrong_key_is_reported_by_both() -> Result<()> {
    let wrong = |connection: &mut Connection| {
        connection.secret = "another secret".into();
    };
    meet(
        UDP_GATEWAY_INITIATES,
        |_, connection| wrong(connection),
        |peers| {
            let error = format!("{:#}", peers.gateway.initiate().expect_err("the keys differ"));
            ensure!(error.contains("AUTHENTICATION_FAILED"), "the peer's notify is named: {error}");
            ensure!(peers.gateway.sas()?.is_empty(), "no SA stands: {:#?}", peers.gateway.sas()?);
            ensure!(peers.charon.log().contains("MAC mismatched"), "strongSwan saw a wrong AUTH");
            Ok(())
        },
    )
}

/// RFC 7296, 1.3.1: a further CHILD SA beside the first, with a key exchange of its own; each carries
/// what is its own, and one may go while the other stays.
#[test]
fn children_come_and_go_one_by_one() -> Result<()> {
    meet_every_way(|peers| {
        peers.initiate()?;
        let first = peers.flow(CHILD)?;
        first.wait_answer(PING_TIMEOUT)?;
        peers.initiate_child(PFS)?;
        ensure!(peers.charon.standing()? == Standing { ike: 1, children: 2 });
        let second = peers.flow(PFS)?;
        second.wait_answer(PING_TIMEOUT)?;
        for child in [CHILD, PFS] {
            let child = peers.child(child)?;
            ensure!(child.packets_in > 0 && child.packets_out > 0, "{child:#?}");
        }
        second.stop()?.check_whole()?;
        // Whoever did not ask for it takes it down.
        if peers.way.gateway_initiates {
            peers.charon.terminate_child(PFS)?;
        } else {
            peers.gateway.terminate_child(&peers.child(PFS)?.spi_in)?;
        }
        wait_until("it is gone at both ends", PING_TIMEOUT, || {
            let one = Standing { ike: 1, children: 1 };
            Ok(peers.charon.standing()? == one && peers.gateway.only_sa().is_ok())
        })?;
        peers.child(CHILD)?;
        first.stop()?.check_whole()
    })
}
