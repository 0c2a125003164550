//! `kill -9` of the gateway's processes while strongSwan goes on: it does not notice.

use anyhow::{Context, Result, ensure};
use culvert_api::Target;

use super::{CHILD, Peers, meet_every_way, wait_child_rekeyed};
use crate::PING_TIMEOUT;

/// Either side's CREATE_CHILD_SA is answered: the windows of Message IDs fit.
fn rekey_from_both_sides(peers: &Peers<'_>) -> Result<()> {
    let old = peers.child(CHILD)?.spi_in;
    peers.charon.rekey_child(CHILD)?;
    wait_child_rekeyed(peers, CHILD, 1, &old)?;
    let old = peers.child(CHILD)?.spi_in;
    peers.gateway.rekey(Target::Child(old.clone()))?;
    wait_child_rekeyed(peers, CHILD, 1, &old)
}

/// The SAs are the ones that were, under the numbers that they had, and no datagram is lost.
#[test]
fn a_killed_control_process_is_not_noticed() -> Result<()> {
    meet_every_way(|peers| {
        peers.initiate()?;
        let flow = peers.flow(CHILD)?;
        flow.wait_answer(PING_TIMEOUT)?;
        let before = peers.ike()?;
        peers.gateway.kill_control()?;
        peers.gateway.start_control()?;
        peers.gateway.wait_ready()?;
        let after = peers.ike()?;
        ensure!((before.id, &before.spi_initiator) == (after.id, &after.spi_initiator));
        rekey_from_both_sides(peers)?;
        flow.stop()?.check_whole()
    })
}

/// Datagrams are lost only while the dataplane is away; the SAs stay.
#[test]
fn a_killed_dataplane_costs_what_it_is_away() -> Result<()> {
    meet_every_way(|peers| {
        peers.initiate()?;
        let flow = peers.flow(CHILD)?;
        flow.wait_answer(PING_TIMEOUT)?;
        let before = peers.ike()?;
        peers.gateway.kill_dataplane()?;
        peers.gateway.start_dataplane()?;
        peers.gateway.wait_ready()?;
        flow.wait_answer(PING_TIMEOUT).context("traffic comes back")?;
        let after = peers.ike()?;
        ensure!((before.id, &before.spi_initiator) == (after.id, &after.spi_initiator));
        rekey_from_both_sides(peers)?;
        let tally = flow.stop()?;
        // What was lost was lost at one time, before the traffic came back.
        ensure!(tally.repeated == 0, "{tally}");
        if let (Some(first), Some(last)) = (tally.lost.first(), tally.lost.last()) {
            ensure!(*last <= *first + tally.silence, "{tally}");
        }
        Ok(())
    })
}
