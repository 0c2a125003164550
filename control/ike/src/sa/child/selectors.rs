//! The traffic selectors of a negotiation, and what transport mode asks of them (RFC 7296, 2.23.1).
//!
//! In transport mode the selectors of either side name one address, the one that its end of the IKE
//! SA has. Behind a NAT the two sides see different ones: each puts those that it sees itself in
//! place of the other's, and keeps the other's, with which the checksums of TCP and UDP are
//! computed at the far end (RFC 3948, 3.1.2).

use std::net::IpAddr;

use super::ChildWish;
use crate::config::ChildMode;
use crate::host::TransportEnds;
use crate::message::SelectorItem;
use crate::nat::Nat;
use crate::path::Path;
use crate::ts::TrafficSelector;

/// Selector types that are not known cannot be agreed to and are narrowed away.
pub(super) fn ranges(items: &[SelectorItem]) -> Vec<TrafficSelector> {
    let known = items.iter().filter_map(|item| match item {
        SelectorItem::Range(ts) => Some(*ts),
        SelectorItem::Other { .. } => None,
    });
    known.collect()
}

/// What of `allowed` lies at this one address.
pub(super) fn at(allowed: &[TrafficSelector], address: IpAddr) -> Vec<TrafficSelector> {
    let only = TrafficSelector::network(address, u8::MAX);
    allowed.iter().filter_map(|ts| ts.intersect(&only)).collect()
}

/// The address that all of them name, if it is one.
fn only_address(list: &[TrafficSelector]) -> Option<IpAddr> {
    let address = list.first()?.start;
    list.iter().all(|ts| ts.start == address && ts.end == address).then_some(address)
}

fn moved(list: &[TrafficSelector], address: IpAddr) -> Vec<TrafficSelector> {
    list.iter().map(|ts| TrafficSelector { start: address, end: address, ..*ts }).collect()
}

/// The peer's selectors of a pair in transport mode as this side sees them.
pub(super) struct Seen {
    pub(super) local_ts: Vec<TrafficSelector>,
    pub(super) remote_ts: Vec<TrafficSelector>,
    pub(super) ends: TransportEnds,
}

impl Seen {
    /// `None` where the peer's selectors are not those of transport mode.
    pub(super) fn new(
        local_ts: &[TrafficSelector],
        remote_ts: &[TrafficSelector],
        path: &Path,
        nat: Nat,
    ) -> Option<Self> {
        let (local_at_peer, remote_at_peer) = (only_address(local_ts)?, only_address(remote_ts)?);
        let (local, remote) = (path.local.ip(), path.remote.ip());
        let (local, remote) = (
            if nat.local { local } else { local_at_peer },
            if nat.remote { remote } else { remote_at_peer },
        );
        Some(Self {
            local_ts: moved(local_ts, local),
            remote_ts: moved(remote_ts, remote),
            ends: TransportEnds { local, remote, local_at_peer, remote_at_peer },
        })
    }
}

impl ChildWish {
    /// Local and remote selectors to ask for on this path; none if the pair cannot be had there.
    pub(in crate::sa) fn selectors(
        &self,
        path: &Path,
    ) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
        let config = &self.config;
        let (mut local, mut remote) = match config.mode {
            ChildMode::Tunnel => (config.local_ts.clone(), config.remote_ts.clone()),
            ChildMode::Transport => {
                (at(&config.local_ts, path.local.ip()), at(&config.remote_ts, path.remote.ip()))
            }
        };
        if self.single {
            local.truncate(1);
            remote.truncate(1);
        }
        (local, remote)
    }
}
