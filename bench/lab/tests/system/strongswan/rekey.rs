//! Rekeys with traffic running (RFC 7296, 2.8): make before break, so that nothing is lost.

use anyhow::{Result, ensure};
use culvert_lab::command::wait_until;
use culvert_lab::strongswan::Standing;

use super::{CHILD, EVERY_WAY, PFS, Peers, meet};
use crate::PING_TIMEOUT;

/// Waits until the child has other SPIs than `old` and nothing else is left.
fn wait_child_rekeyed(peers: &Peers<'_>, name: &str, old: &str) -> Result<()> {
    wait_until(&format!("{name} is rekeyed"), PING_TIMEOUT, || {
        let settled = peers.charon.standing()? == Standing { ike: 1, children: 2 };
        Ok(settled && peers.child(name)?.spi_in != old)
    })
}

fn wait_ike_rekeyed(peers: &Peers<'_>, old: &str) -> Result<()> {
    wait_until("the IKE SA is rekeyed", PING_TIMEOUT, || {
        let settled = peers.charon.standing()? == Standing { ike: 1, children: 2 };
        Ok(settled && peers.ike()?.spi_initiator != old)
    })
}

/// RFC 7296, 1.3.2, 1.3.3 and 2.8: CHILD SAs with and without a key exchange, and the IKE SA, again
/// and again; what it carries does not notice.
#[test]
fn strongswan_rekeys_everything_and_nothing_is_lost() -> Result<()> {
    for way in EVERY_WAY {
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
                for _ in 0..2 {
                    for child in [CHILD, PFS] {
                        let old = peers.child(child)?.spi_in;
                        peers.charon.rekey_child(child)?;
                        wait_child_rekeyed(peers, child, &old)?;
                    }
                    let old = peers.ike()?.spi_initiator;
                    peers.charon.rekey_ike()?;
                    wait_ike_rekeyed(peers, &old)?;
                }
                let list = peers.charon.list_sas()?;
                ensure!(list.contains("ESP:AES_GCM_16-128/CURVE_25519"), "a key exchange: {list}");
                ensure!(list.contains("ESP:AES_GCM_16-128\n"), "none: {list}");
                flows.into_iter().try_for_each(|flow| flow.stop()?.check_whole())
            },
        )?;
    }
    Ok(())
}
