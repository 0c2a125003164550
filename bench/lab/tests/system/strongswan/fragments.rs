//! IKE fragmentation (RFC 7383): messages longer than a path may take go in pieces, each protected
//! by itself; over TCP they are taken, and none is sent.

use anyhow::{Result, ensure};
use culvert_lab::gateway::Settings;
use culvert_lab::strongswan::Connection;

use super::{CHILD, EVERY_WAY, PFS, meet};
use crate::PING_TIMEOUT;

/// Octets of each identity but for its end: with one of them IKE_AUTH exceeds the least fragment.
const ID_LEN: usize = 500;

fn long_identities(settings: &mut Settings, connection: &mut Connection) {
    let ids = ["a", "b"].map(|letter| format!("{}.test", letter.repeat(ID_LEN)));
    let [ours, theirs] = ids;
    (settings.local_id, settings.remote_id) = (ours.clone(), theirs.clone());
    (connection.local_id, connection.remote_id) = (theirs, ours);
}

/// RFC 7383, 2.5 and 2.6; RFC 9329, 6.8.
#[test]
fn long_messages_go_in_fragments_over_udp_and_whole_over_tcp() -> Result<()> {
    for way in EVERY_WAY {
        let adjust = |settings: &mut Settings, connection: &mut Connection| {
            long_identities(settings, connection);
            connection.options.push("fragmentation = force".into());
            connection.charon.push("fragment_size = 400".into());
            settings.options.push("fragment_size = 576".into());
        };
        meet(way, adjust, |peers| {
            peers.initiate()?;
            peers.initiate_child(PFS)?;
            peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)?;
            let log = peers.charon.log();
            ensure!(log.contains("splitting IKE message"), "strongSwan sends fragments:\n{log}");
            let taken = log.contains("reassembled fragmented IKE message");
            ensure!(taken != way.tcp, "the gateway sends fragments over UDP only:\n{log}");
            Ok(())
        })?;
    }
    Ok(())
}
