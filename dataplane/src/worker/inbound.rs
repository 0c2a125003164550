//! ESP packets to inner packets: the way in.
//!
//! SPI → slot → the SA's owner → open → the peer's path → in transport mode a new IP header →
//! selectors → ECN → hop limit → the inner side, an own address, or another tunnel.

use std::net::IpAddr;
use std::ops::Range;

use culvert_dpdk::Mbuf;
use culvert_esp::{OpenError, ReplayWindow};
use culvert_shm::{Counter, SaDrop, SlotRef, Standing, Transport, Up};

use super::core::Core;
use super::drops::open_error;
use super::handoff::Handed;
use super::link::Link;
use super::peer::{Arrival, PeerTable};
use crate::net::encap::{self, Ecn};
use crate::net::ether::Cast;
use crate::net::icmp::Problem;
use crate::net::ip::{self, Flow, Header, protocol};
use crate::net::{DropReason, policy};

/// Who has an SA.
pub(crate) enum Place {
    Here,
    Elsewhere(u16),
    Nowhere,
}

/// An opened ESP packet.
pub(crate) struct Opened {
    pub(crate) sa: SlotRef,
    /// Where the inner packet lies in the ESP packet.
    pub(crate) inner: Range<usize>,
    pub(crate) next_header: u8,
}

/// Why an ESP packet was not opened; it has been counted.
pub(crate) enum Refused {
    NoSa,
    Esp(OpenError),
}

impl<L: Link> Core<L> {
    /// Finds the worker that may open `packet`.
    #[inline]
    pub(crate) fn place(&self, packet: &[u8]) -> Place {
        let Some(&spi) = packet.first_chunk() else { return Place::Nowhere };
        let spi = u32::from_be_bytes(spi);
        if self.sas.by_spi(spi).is_some() {
            return Place::Here;
        }
        match self.view.sa_owner(spi) {
            Some(owner) if owner != self.view.worker() => Place::Elsewhere(owner),
            _ => Place::Nowhere,
        }
    }

    /// Opens an ESP packet of an SA of this worker's in place, and lets the peer's path follow it.
    pub(crate) fn open(&mut self, packet: &mut [u8], arrival: &Arrival) -> Result<Opened, Refused> {
        let spi = packet.first_chunk().map_or(0, |spi| u32::from_be_bytes(*spi));
        let sa = self.sas.by_spi(spi).filter(|sa| self.view.sa_in_use(sa.slot));
        let (Some(sa), Some(writer)) = (sa, self.view.sa(self.sas.index_of(spi))) else {
            self.count(Counter::EspSpiUnknown);
            return Err(Refused::NoSa);
        };
        if self.now_ns >= sa.deadline_ns {
            writer.count_drop(SaDrop::Expired);
            self.count(Counter::EspSaExpired);
            return Err(Refused::NoSa);
        }
        let (top, bits) = writer.replay();
        let Some(window) = ReplayWindow::new(top, bits, sa.replay_window) else {
            return Err(Refused::NoSa);
        };
        match sa.inbound.open(packet, &window) {
            Ok(opened) => {
                let (slot, peer) = (sa.slot, sa.peer);
                if opened.newest {
                    self.heard(peer, arrival);
                }
                Ok(Opened { sa: slot, inner: opened.inner, next_header: opened.next_header })
            }
            Err(error) => {
                let (counter, drop) = open_error(&error);
                writer.count_drop(drop);
                self.count(counter);
                Err(Refused::Esp(error))
            }
        }
    }

    /// An authentic packet, newer than all before it, came from a peer.
    ///
    /// RFC 9329, 6.1 and 10: only such a packet may move the path. A replay never gets here, and
    /// an old one that was only late does not count.
    fn heard(&mut self, peer: SlotRef, arrival: &Arrival) {
        if let Some(writer) = self.view.peer(peer) {
            writer.authentic(self.now_ns);
        }
        let Some(known) = self.peers.get(peer) else { return };
        let (moves, due) = (PeerTable::moves(known, arrival), known.news.due);
        if moves && self.peers.set_path(&self.view, peer, arrival.path) {
            self.count(Counter::PathMoved);
            self.peers.set_news(peer, true);
        }
        if (moves || due) && self.peers.has_news(peer, self.now_ns) {
            let told = self.tell_for(Standing::Peer, &Up::PathMoved { peer });
            self.peers.set_news(peer, !told);
        }
    }

    /// An ESP packet in a buffer of its own: from UDP, native, or another worker.
    pub(crate) fn take_esp(&mut self, mut packet: Mbuf, arrival: &Arrival) -> Result<(), Refused> {
        match self.place(packet.data()) {
            Place::Here => {}
            Place::Elsewhere(worker) => {
                self.hand_over(worker, Handed::Esp { packet, arrival: *arrival });
                return Ok(());
            }
            Place::Nowhere => {
                self.count(Counter::EspSpiUnknown);
                return Err(Refused::NoSa);
            }
        }
        let opened = self.open(packet.data_mut(), arrival)?;
        let behind = packet.len().saturating_sub(opened.inner.end);
        if packet.trim(behind) && packet.adj(opened.inner.start) {
            self.deliver(packet, &opened, arrival);
        }
        Ok(())
    }

    /// Sends an inner packet on its way: `packet` is what ESP held.
    pub(crate) fn deliver(&mut self, mut packet: Mbuf, opened: &Opened, arrival: &Arrival) {
        // RFC 9329, 9.5: a segment has no inner header of its own to take the mark over.
        let in_stream = arrival.path.transport == Transport::Tcp;
        if in_stream && Ecn::of(arrival.traffic_class) == Ecn::Ce {
            return self.count(Counter::EspCongestion);
        }
        let mode = self.sas.get(opened.sa).and_then(|sa| sa.transport_mode);
        let v4 = match (mode, opened.next_header) {
            (None, protocol::IPV4) => true,
            (None, protocol::IPV6) => false,
            (None, _) => return self.refuse(opened.sa, SaDrop::Malformed, Counter::EspNextHeader),
            (Some(mode), next_header) => {
                let Arrival { traffic_class, hop_limit, .. } = *arrival;
                let whole = packet.prepend(mode.header_len()).is_some()
                    && mode.restore(packet.data_mut(), next_header, traffic_class, hop_limit);
                if !whole {
                    return self.drop_for(DropReason::NoRoom);
                }
                mode.is_v4()
            }
        };
        let checked = ip::parse_as(packet.data(), v4)
            .and_then(|header| Ok((header, header.flow(packet.data())?)));
        let (mut header, flow) = match checked {
            Ok(checked) => checked,
            Err(_) => {
                return self.refuse(opened.sa, SaDrop::Malformed, Counter::InnerMalformed);
            }
        };
        // RFC 4301, 5.2, step 4: the packet must be one that the peer may send through this SA.
        let permitted = self
            .sas
            .get(opened.sa)
            .is_some_and(|sa| policy::permits(&sa.local, &sa.remote, &flow).is_ok());
        if !permitted {
            return self.refuse(opened.sa, SaDrop::Selector, Counter::EspSelector);
        }
        // RFC 4303, 2.7: what lies behind the inner packet is padding against traffic analysis.
        let padding = packet.len().saturating_sub(header.total_len);
        let _ = packet.trim(padding);
        match encap::combine_ecn(Ecn::of(header.traffic_class), Ecn::of(arrival.traffic_class)) {
            Ok(ecn) if ecn != Ecn::of(header.traffic_class) => {
                encap::set_ecn(packet.data_mut(), ecn);
                header.traffic_class = header.traffic_class & 0xfc | ecn as u8;
            }
            Ok(_) => {}
            Err(reason) => return self.drop_for(reason),
        }
        if let Some(writer) = self.view.sa(opened.sa.index) {
            writer.count_in(header.total_len as u64, self.now_ns);
        }
        self.count(Counter::EspOpened);
        self.route_inner(packet, &header, &flow);
    }

    /// Refuses an inner packet that is longer than a buffer, and so than any link: a stream brings such.
    /// Its sender is told what fits if the SA is for it (RFC 1191, 4; RFC 8201, 4).
    #[cold]
    pub(crate) fn refuse_long(&mut self, packet: &[u8], opened: &Opened) {
        self.drop_for(DropReason::NoRoom);
        let Some(sa) = self.sas.get(opened.sa).filter(|sa| sa.transport_mode.is_none()) else {
            return;
        };
        let Ok(header) = ip::parse_as(packet, opened.next_header == protocol::IPV4) else { return };
        let permitted = header
            .flow(packet)
            .is_ok_and(|flow| policy::permits(&sa.local, &sa.remote, &flow).is_ok());
        if permitted && header.dont_fragment {
            let problem = Problem::TooBig { mtu: self.net.inner.mtu as u16 };
            self.report_problem(problem, &header, packet, Cast::Unicast);
        }
    }

    fn refuse(&mut self, sa: SlotRef, drop: SaDrop, counter: Counter) {
        if let Some(writer) = self.view.sa(sa.index) {
            writer.count_drop(drop);
        }
        self.count(counter);
    }

    /// Whether an address of the outer side, which packets in transport mode are for, is nobody's
    /// behind this gateway.
    fn is_host(&self, address: IpAddr) -> bool {
        self.net.outer.own.contains(address) && self.net.inner.routes.lookup(address).is_none()
    }

    /// Forwards a packet that left an SA.
    fn route_inner(&mut self, mut packet: Mbuf, header: &Header, flow: &Flow) {
        let Header { source, destination, .. } = *header;
        if let Err(reason) = ip::check_source(source) {
            return self.drop_for(reason);
        }
        if self.net.inner.own.contains(destination) || self.is_host(destination) {
            return self.answer_inner(packet, header);
        }
        if let Err(reason) = ip::check_forward(source, destination) {
            return self.drop_for(reason);
        }
        if self.policies.lookup(flow).is_ok() {
            // To another tunnel: the way out takes the hop.
            return self.queue_for_tunnel(packet);
        }
        if let Err(reason) = ip::decrement_hop_limit(packet.data_mut()) {
            self.drop_for(reason);
            return self.report_problem(Problem::HopLimit, header, packet.data(), Cast::Unicast);
        }
        self.send_inner(packet, header);
    }
}
