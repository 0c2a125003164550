//! Reauthentication (RFC 7296, 2.8.3): a new IKE SA takes the old one's place.

use anyhow::{Result, ensure};
use culvert_lab::command::wait_until;
use culvert_lab::flow::Flow;
use culvert_lab::strongswan::{Connection, Standing};

use super::{
    CHILD, PFS, Peers, TCP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES, meet,
};
use crate::PING_TIMEOUT;

/// Waits until another IKE SA than `old` stands with both children, and nothing else.
fn wait_reauthenticated(peers: &Peers<'_>, old: &str) -> Result<()> {
    wait_until("a new IKE SA has taken over", PING_TIMEOUT * 2, || {
        let settled = peers.charon.standing()? == Standing { ike: 1, children: 2 };
        Ok(settled
            && peers.ike()?.spi_initiator != old
            && [CHILD, PFS].iter().all(|child| peers.child(child).is_ok()))
    })
}

/// strongSwan closes both directions of an old IKE SA's pairs at once: of each flow, what is on its way
/// just then may be lost, and nothing else.
fn lost_no_more_than_one(flow: Flow) -> Result<()> {
    let tally = flow.stop()?;
    ensure!(tally.lost.len() <= 1 && tally.repeated == 0, "{tally}");
    Ok(())
}

/// strongSwan makes the new IKE SA before it breaks the old one. Over
/// UDP only: a new IKE SA needs a TCP connection of its own (RFC 9329, 6.1), of which strongSwan
/// knows nothing.
#[test]
fn strongswan_makes_before_it_breaks() -> Result<()> {
    let adjust = |connection: &mut Connection| {
        connection.charon.push("make_before_break = yes".into());
    };
    meet(
        UDP_STRONGSWAN_INITIATES,
        |_, connection| adjust(connection),
        |peers| {
            peers.initiate()?;
            peers.initiate_child(PFS)?;
            let flows = [peers.flow(CHILD)?, peers.flow(PFS)?];
            for flow in &flows {
                flow.wait_answer(PING_TIMEOUT)?;
            }
            let old = peers.ike()?.spi_initiator;
            peers.charon.reauthenticate()?;
            wait_reauthenticated(peers, &old)?;
            flows.into_iter().try_for_each(lost_no_more_than_one)
        },
    )
}

/// strongSwan breaks the old IKE SA first: what is lost is lost in between, and everything stands
/// again. As responder it calls the gateway back.
#[test]
fn strongswan_breaks_before_it_makes() -> Result<()> {
    for way in [UDP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES] {
        let adjust = |connection: &mut Connection| {
            connection.charon.push("make_before_break = no".into());
        };
        meet(
            way,
            |_, connection| adjust(connection),
            |peers| {
                peers.initiate()?;
                peers.initiate_child(PFS)?;
                let flows = [peers.flow(CHILD)?, peers.flow(PFS)?];
                let old = peers.ike()?.spi_initiator;
                peers.charon.reauthenticate()?;
                wait_reauthenticated(peers, &old)?;
                flows.iter().try_for_each(|flow| flow.wait_answer(PING_TIMEOUT))
            },
        )?;
    }
    Ok(())
}

/// The gateway makes the new IKE SA before it breaks the old one; over TCP in a connection of its own.
#[test]
fn the_gateway_makes_before_it_breaks() -> Result<()> {
    for way in [UDP_GATEWAY_INITIATES, TCP_GATEWAY_INITIATES] {
        meet(
            way,
            |_, _| {},
            |peers| {
                peers.initiate()?;
                peers.initiate_child(PFS)?;
                let flows = [peers.flow(CHILD)?, peers.flow(PFS)?];
                for flow in &flows {
                    flow.wait_answer(PING_TIMEOUT)?;
                }
                let old = peers.ike()?.spi_initiator;
                peers.gateway.reauthenticate()?;
                wait_reauthenticated(peers, &old)?;
                flows.into_iter().try_for_each(lost_no_more_than_one)
            },
        )?;
    }
    Ok(())
}
