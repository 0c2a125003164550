//! A peer that is gone is noticed by IKE's own liveness check (RFC 7296, 2.4; RFC 9329, 6.7), and the
//! tunnel is set up again once it is back.

use anyhow::{Result, ensure};
use culvert_api::{Event, Happening};
use culvert_lab::command::wait_until;
use culvert_lab::gateway::Settings;
use culvert_lab::strongswan::Standing;

use super::{
    CHILD, Peers, TCP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES, meet,
};
use crate::PING_TIMEOUT;

fn impatient(settings: &mut Settings, dpd_action: &str) {
    let times = ["dpd_delay = 1", "retransmit_tries = 2", "tcp_response_timeout = 2"];
    settings.options.extend(times.map(str::to_owned));
    settings.child_options.push(format!("dpd_action = {dpd_action:?}"));
}

/// Waits until the gateway says that the peer does not answer.
fn wait_given_up(peers: &Peers<'_>) -> Result<()> {
    wait_until("the gateway gives the IKE SA up", PING_TIMEOUT, || {
        let gone = |event: &Event| matches!(event.happening, Happening::IkeDown { .. });
        Ok(peers.gateway.events()?.iter().any(gone))
    })
}

/// Over TCP, too, where the connection with the relay stands all the while.
#[test]
fn a_killed_strongswan_is_noticed_and_called_again() -> Result<()> {
    for way in [UDP_GATEWAY_INITIATES, TCP_GATEWAY_INITIATES] {
        meet(
            way,
            |settings, _| impatient(settings, "start"),
            |peers| {
                peers.initiate()?;
                let flow = peers.flow(CHILD)?;
                flow.wait_answer(PING_TIMEOUT)?;
                let old = peers.ike()?.spi_initiator;
                peers.charon.kill()?;
                wait_given_up(peers)?;
                peers.charon.start_again(&peers.lab.b.gateway)?;
                flow.wait_answer(PING_TIMEOUT * 3)?;
                ensure!(peers.ike()?.spi_initiator != old, "by a new IKE SA");
                ensure!(peers.charon.standing()? == Standing { ike: 1, children: 1 });
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// As responder the gateway takes everything down and lets strongSwan call.
#[test]
fn a_killed_initiator_is_forgotten_and_may_call_again() -> Result<()> {
    for way in [UDP_STRONGSWAN_INITIATES, TCP_STRONGSWAN_INITIATES] {
        meet(
            way,
            |settings, _| impatient(settings, "none"),
            |peers| {
                peers.initiate()?;
                peers.charon.kill()?;
                wait_given_up(peers)?;
                ensure!(peers.gateway.sas()?.is_empty(), "nothing is left: {:#?}", peers.ike()?);
                peers.charon.start_again(&peers.lab.a.gateway)?;
                peers.initiate()?;
                peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)
            },
        )?;
    }
    Ok(())
}
