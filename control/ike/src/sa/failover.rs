//! Other addresses of both gateways, when the present way over UDP gives no answer.
//!
//! The initiator is to find out where the peer can still be reached (RFC 4555, 3.5 and 3.11). A
//! request that was repeated some times goes by the next pair of addresses: this gateway's, and those
//! of which the peer has told (3.4). An answer shows that the pair works, and UPDATE_SA_ADDRESSES
//! follows on it. If none does, the present way is as good as any, and the request is repeated there
//! until the peer is given up.

use std::net::IpAddr;

use super::mobike::MOVE_TRIES;
use super::{Cx, Session};
use crate::path::{Path, Transport};

/// Most pairs of addresses that are tried, some 25 s each.
const PAIRS_MAX: usize = 8;

impl Session {
    /// The request under way got no answer once more. Whether it was sent by another pair of
    /// addresses.
    pub(super) fn try_elsewhere(&mut self, cx: &mut Cx<'_>) -> bool {
        let tries = MOVE_TRIES.min(self.retransmission().tries.saturating_add(1));
        let Some(outstanding) = &self.outstanding else { return false };
        // A way that somebody asked for is given up elsewhere.
        let asked_for = outstanding.via.is_some() && self.tried == 0;
        if outstanding.sent < tries || asked_for || !self.may_move() {
            return false;
        }
        if let Some(path) = self.elsewhere(cx).get(self.tried).copied() {
            self.tried += 1;
            self.try_path(cx, path);
            return true;
        }
        let Some(outstanding) = self.outstanding.as_mut().filter(|o| o.via.is_some()) else {
            return false;
        };
        (outstanding.via, outstanding.sent) = (None, tries);
        self.forget_updates();
        self.transmit(cx);
        true
    }

    /// What got no answer is not asked any more, and the peer was heard: the present way is as good as
    /// before. The next request without an answer goes by all pairs once more.
    pub(super) fn withdraw_request(&mut self) {
        self.outstanding = None;
        if std::mem::take(&mut self.tried) > 0 {
            self.forget_updates();
        }
    }

    /// The pairs of addresses besides the present one, by which the peer may be reached.
    fn elsewhere(&self, cx: &mut Cx<'_>) -> Vec<Path> {
        let Some(connection) = self.connection.as_ref() else { return Vec::new() };
        let (local, remote) = (self.path.local.ip(), self.path.remote.ip());
        if self.path.transport != Transport::Udp {
            return Vec::new();
        }
        let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
        for theirs in std::iter::once(remote).chain(self.peer_addresses.iter().copied()) {
            let route = cx.host.source_address(theirs);
            let further = connection.additional_addrs.iter().copied();
            for own in std::iter::once(local).chain(route).chain(further) {
                let new = (own, theirs) != (local, remote) && !pairs.contains(&(own, theirs));
                if new && own.is_ipv4() == theirs.is_ipv4() && self.lets_go(own, theirs) {
                    pairs.push((own, theirs));
                }
            }
        }
        pairs.into_iter().take(PAIRS_MAX).map(|(own, theirs)| self.udp_path(own, theirs)).collect()
    }
}
