//! The peers (IKE SAs) that this worker owns, and the way to each.

use culvert_shm::{ConnRef, Dscp, Load, Path, SlotRef, Transport, WorkerView};

use super::age::{AgeDrop, OCTETS_FREE};
use super::path_mtu::PathMtu;
use super::rooms::Rooms;
use crate::net::Nanos;
use crate::net::icmp::RateLimit;

/// Times a second that control is told of a peer that moves, in the long run.
const MOVES_TOLD_PER_SECOND: u32 = 10;
/// Times at once.
const MOVES_TOLD_BURST: u32 = 8;

/// Where one peer is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) slot: SlotRef,
    pub(crate) path: Path,
    /// The service level of all packets to it in UDP or natively; `None`: that of the packet inside.
    pub(crate) dscp: Option<Dscp>,
    /// When to drop packets because those before them wait on another worker's connection.
    pub(crate) age: AgeDrop,
    /// What fits through the path, if it is narrower than the link.
    pub(crate) mtu: PathMtu,
    /// What control has to hear of its moves.
    pub(crate) news: News,
}

/// Control hears where a peer is, but not of each of many moves: a peer that has several paths may
/// move with each packet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct News {
    limit: RateLimit,
    pub(crate) due: bool,
}

impl Default for News {
    fn default() -> Self {
        Self { limit: RateLimit::new(MOVES_TOLD_PER_SECOND, MOVES_TOLD_BURST), due: false }
    }
}

/// How an ESP packet came, which is how its peer may be reached from now on.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The way back.
    pub(crate) path: Path,
    /// Outer DSCP and ECN; over TCP, whose segments carry no packet of their own, only whether the
    /// segment was marked CE.
    pub(crate) traffic_class: u8,
    /// What is left of the outer TTL or hop limit; over TCP that of a new packet.
    pub(crate) hop_limit: u8,
    /// False on a TCP connection that this gateway opened: only the TCP Responder follows the
    /// packets, the Originator sends where it connected to (RFC 9329, 6.1).
    pub(crate) may_move: bool,
}

/// The owned peers by slot.
pub(crate) struct PeerTable {
    slots: Box<[Option<Peer>]>,
}

impl PeerTable {
    pub(crate) fn new(slots: u32) -> Self {
        Self { slots: vec![None; slots as usize].into_boxed_slice() }
    }

    /// Reads slot `index` again.
    pub(crate) fn reload(&mut self, view: &WorkerView, index: u32) {
        let Some(entry) = self.slots.get_mut(index as usize) else { return };
        *entry = match view.load_peer(index) {
            Load::Live(slot, (config, path)) => {
                let (age, mtu, news) = Default::default();
                Some(Peer { slot, path, dscp: config.dscp, age, mtu, news })
            }
            Load::Gone => None,
        };
    }

    pub(crate) fn get(&self, slot: SlotRef) -> Option<&Peer> {
        self.slots.get(slot.index as usize)?.as_ref().filter(|peer| peer.slot == slot)
    }

    /// What is known of what fits through the path to a peer.
    pub(crate) fn path_mtu(&mut self, slot: SlotRef) -> Option<&mut PathMtu> {
        let entry = self.slots.get_mut(slot.index as usize).and_then(Option::as_mut);
        entry.filter(|peer| peer.slot == slot).map(|peer| &mut peer.mtu)
    }

    /// Notes whether control has still to be told that a peer has moved.
    pub(crate) fn set_news(&mut self, slot: SlotRef, due: bool) {
        let entry = self.slots.get_mut(slot.index as usize).and_then(Option::as_mut);
        if let Some(peer) = entry.filter(|peer| peer.slot == slot) {
            peer.news.due = due;
        }
    }

    /// Whether control has to be told now that a peer has moved.
    pub(crate) fn has_news(&mut self, slot: SlotRef, now_ns: Nanos) -> bool {
        let entry = self.slots.get_mut(slot.index as usize).and_then(Option::as_mut);
        let peer = entry.filter(|peer| peer.slot == slot && peer.news.due);
        peer.is_some_and(|peer| peer.news.limit.allow(now_ns))
    }

    /// Whether another packet may be sealed for this peer, whose connection is another worker's, by
    /// the age of those that wait there (RFC 9329, 9.1).
    pub(crate) fn admits(
        &mut self,
        slot: SlotRef,
        rooms: &Rooms,
        conn: ConnRef,
        now_ns: Nanos,
    ) -> bool {
        let entry = self.slots.get_mut(slot.index as usize).and_then(Option::as_mut);
        let Some(peer) = entry.filter(|peer| peer.slot == slot) else { return false };
        match rooms.waiting_since(conn.worker, conn.index) {
            Some(since) => peer.age.admits(now_ns, now_ns.saturating_sub(since), OCTETS_FREE + 1),
            None => peer.age.admits(now_ns, 0, 0),
        }
    }

    /// Sends the peer's packets another way from now on. False when there is no such peer.
    pub(crate) fn set_path(&mut self, view: &WorkerView, slot: SlotRef, path: Path) -> bool {
        let entry = self.slots.get_mut(slot.index as usize).and_then(Option::as_mut);
        let Some(peer) = entry.filter(|peer| peer.slot == slot) else { return false };
        if (path.transport, path.local.ip(), path.remote.ip())
            != (peer.path.transport, peer.path.local.ip(), peer.path.remote.ip())
        {
            peer.mtu = PathMtu::default();
        }
        peer.path = path;
        if let Some(writer) = view.peer(slot) {
            writer.set_path(path);
        }
        true
    }

    /// Whether an authentic and newest packet that came by `arrival` moves the peer.
    ///
    /// RFC 9329, 6.1: the TCP Responder answers on the connection of the last valid packet. Over
    /// UDP, RFC 7296, 2.23 does the same for a NAT that renumbers; where control knows of none that
    /// could, a packet from elsewhere has been carried there by somebody who wants the answers. The transport itself never
    /// changes by ESP alone: an SA that uses TCP stays there (RFC 9329, 5) until IKE moves it.
    pub(crate) fn moves(peer: &Peer, arrival: &Arrival) -> bool {
        let (old, new) = (&peer.path, &arrival.path);
        match (old.transport, new.transport) {
            (Transport::Tcp, Transport::Tcp) => arrival.may_move && old.conn != new.conn,
            (Transport::Udp, Transport::Udp) => {
                !old.pinned && (old.remote != new.remote || old.local != new.local)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(transport: Transport, remote: &str, conn: Option<u32>) -> Path {
        Path {
            transport,
            local: "192.0.2.1:4500".parse().unwrap(),
            remote: remote.parse().unwrap(),
            conn: conn.map(|index| ConnRef { worker: 0, index, generation: 1 }),
            pinned: false,
        }
    }

    fn moves(old: Path, new: Path, may_move: bool) -> bool {
        let slot = SlotRef { index: 0, generation: 1 };
        let arrival = Arrival { path: new, traffic_class: 0, hop_limit: 64, may_move };
        let (age, mtu, news) = Default::default();
        PeerTable::moves(&Peer { slot, path: old, dscp: None, age, mtu, news }, &arrival)
    }

    // RFC 9329, 6.1: the connection of the last valid packet, whatever address it comes from.
    #[test]
    fn the_responder_follows_the_peer_to_its_new_connection() {
        let old = path(Transport::Tcp, "198.51.100.7:40000", Some(1));
        let new = path(Transport::Tcp, "203.0.113.9:1024", Some(2));
        assert!(moves(old, new, true));
        assert!(!moves(old, old, true));
        assert!(moves(Path { conn: None, ..old }, new, true), "a detached peer comes back");
    }

    // RFC 9329, 6.1: only the Responder chooses by what it receives.
    #[test]
    fn the_originator_stays_on_the_connection_it_opened() {
        let old = path(Transport::Tcp, "198.51.100.7:4500", Some(1));
        let new = path(Transport::Tcp, "198.51.100.7:4500", Some(2));
        assert!(!moves(old, new, false));
    }

    // RFC 7296, 2.23, and RFC 9329, 5: no change of transport without IKE.
    #[test]
    fn a_nat_may_renumber_but_the_transport_stays() {
        let udp = path(Transport::Udp, "198.51.100.7:4500", None);
        assert!(moves(udp, path(Transport::Udp, "198.51.100.7:1025", None), true));
        let tcp = path(Transport::Tcp, "198.51.100.7:40000", Some(1));
        assert!(!moves(tcp, udp, true));
        assert!(!moves(udp, tcp, true));
        assert!(!moves(
            Path { pinned: true, ..udp },
            path(Transport::Udp, "198.51.100.7:1025", None),
            true
        ));
        let native = path(Transport::Native, "198.51.100.7:0", None);
        assert!(!moves(native, path(Transport::Native, "198.51.100.8:0", None), true));
    }
}
