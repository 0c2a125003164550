//! The last steps of a packet: route, neighbour, Ethernet header, port.

use std::net::IpAddr;

use culvert_dpdk::{Burst, Mbuf};
use culvert_shm::Counter;

use super::core::Core;
use super::handoff::Handed;
use super::link::Link;
use super::network::{OUTER_PORT, Port};
use crate::net::DropReason;
use crate::net::arp;
use crate::net::ether::{self, Cast, EtherType, MacAddr};
use crate::net::fragment::{self, Fragments};
use crate::net::icmp::Problem;
use crate::net::ip::{self, Header};
use crate::net::nd;
use crate::net::neighbour::{Learnt, Resolution};
use crate::net::route::NextHop;

impl<L: Link> Core<L> {
    /// Sends an outer packet.
    pub(crate) fn send_outer(&mut self, packet: Mbuf, destination: IpAddr) {
        match self.net.outer.routes.lookup(destination) {
            Some(hop) => self.send_to(hop, packet),
            None => self.drop_for(DropReason::IpNoRoute),
        }
    }

    /// Sends an outer packet of this gateway's in fragments: over IPv4 as long as the link takes, over
    /// IPv6 no longer than every path (RFC 8200, 5), so that no router has to speak of one.
    pub(crate) fn send_cut(&mut self, packet: &[u8], to: IpAddr) -> Result<(), DropReason> {
        let header = ip::parse(packet)?;
        let link = self.net.outer.mtu;
        let (mtu, counter, cut) = if header.is_v4() {
            (link, Counter::Ipv4Fragmented, fragment::fragments(packet, &header, link))
        } else {
            let (mtu, number) = (link.min(ip::V6_MTU_MIN), self.identifications.next(to));
            let cut = fragment::source_fragments(packet, &header, mtu, number);
            (mtu, Counter::OuterIpv6Fragmented, cut)
        };
        let mut cut = cut?;
        self.count(counter);
        self.send_pieces(&mut cut, mtu, to);
        Ok(())
    }

    /// Sends the pieces of an outer packet, each of at most `mtu` octets.
    pub(crate) fn send_pieces(&mut self, cut: &mut Fragments<'_>, mtu: usize, to: IpAddr) {
        while let Some(piece) = self.next_fragment(cut, mtu) {
            self.send_outer(piece, to);
        }
    }

    /// Sends a forwarded packet to the protected network, in fragments if its link takes no more;
    /// its sender is told where that must not be.
    pub(crate) fn send_inner(&mut self, packet: Mbuf, header: &Header) {
        let Some(hop) = self.net.inner.routes.lookup(header.destination) else {
            self.drop_for(DropReason::IpNoRoute);
            return self.report_problem(Problem::NoRoute, header, packet.data(), Cast::Unicast);
        };
        let mtu = self.net.inner.mtu;
        if header.total_len <= mtu {
            return self.send_to(hop, packet);
        }
        if header.dont_fragment {
            self.drop_for(DropReason::IpTooBig);
            let problem = Problem::TooBig { mtu: mtu as u16 };
            return self.report_problem(problem, header, packet.data(), Cast::Unicast);
        }
        let mut cut = match fragment::fragments(packet.data(), header, mtu) {
            Ok(cut) => cut,
            Err(reason) => return self.drop_for(reason),
        };
        self.count(Counter::Ipv4Fragmented);
        while let Some(piece) = self.next_fragment(&mut cut, mtu) {
            self.send_to(hop, piece);
        }
    }

    /// The next piece of a packet, of at most `mtu` octets, in a buffer of its own.
    pub(crate) fn next_fragment(&self, cut: &mut Fragments<'_>, mtu: usize) -> Option<Mbuf> {
        let mut piece = self.buffer()?;
        let room = mtu.min(piece.tailroom());
        let written = cut.write_next(piece.append(room)?)?;
        match written {
            Ok(len) if piece.trim(room - len) => Some(piece),
            Ok(_) => None,
            Err(reason) => {
                self.drop_for(reason);
                None
            }
        }
    }

    /// Sends a packet to a neighbour, asking for its address where that is needed.
    fn send_to(&mut self, hop: NextHop, packet: Mbuf) {
        let resolution = self.net.neighbours.resolve(self.now_ns, hop);
        match resolution {
            Resolution::Known(mac) => self.frame_to(hop, mac, packet),
            Resolution::Probe(mac) => {
                self.ask(hop, Some(mac));
                self.frame_to(hop, mac, packet);
            }
            Resolution::Request | Resolution::Wait => {
                if resolution == Resolution::Request {
                    self.ask(hop, None);
                }
                if self.net.waiting.keep(hop, packet).is_err() {
                    self.drop_for(DropReason::NeighbourPending);
                }
            }
            Resolution::Unreachable => self.give_up(&packet),
        }
    }

    /// Drops a packet whose next hop does not answer, and tells its sender, unless that is the gateway
    /// itself (RFC 4861, 7.2.2; RFC 1812, 5.2.7.1).
    #[cold]
    fn give_up(&mut self, packet: &Mbuf) {
        self.drop_for(DropReason::NeighbourFailed);
        if let Ok(header) = ip::parse(packet.data())
            && !self.net.outer.own.contains(header.source)
        {
            self.report_problem(Problem::HostUnreachable, &header, packet.data(), Cast::Unicast);
        }
    }

    /// Looks at the packets that wait for a neighbour again.
    pub(crate) fn retry_waiting(&mut self) {
        for _ in 0..self.net.waiting.len() {
            let Some((hop, packet)) = self.net.waiting.take() else { return };
            self.send_to(hop, packet);
        }
    }

    fn frame_to(&mut self, hop: NextHop, destination: MacAddr, mut packet: Mbuf) {
        let port = usize::from(hop.port);
        let Some(source) = self.net.ports.get(port).map(|port| port.mac) else { return };
        let v4 = hop.neighbour.is_ipv4();
        let ether_type = if v4 { EtherType::Ipv4 } else { EtherType::Ipv6 };
        let header = ether::Header { destination, source, ether_type };
        let written = packet
            .prepend(ether::HEADER_LEN)
            .ok_or(DropReason::NoRoom)
            .and_then(|head| header.write(head));
        match written {
            Ok(()) => self.transmit(port, packet),
            Err(reason) => self.drop_for(reason),
        }
    }

    /// Asks for a neighbour's address: all stations, or the one `known`.
    fn ask(&mut self, hop: NextHop, known: Option<MacAddr>) {
        let port = usize::from(hop.port);
        let Some(own) = self.net.ports.get(port).map(|port| port.mac) else { return };
        let source = self.net.sides_on(port).find_map(|side| side.own.source_for(hop.neighbour));
        let Some(mut frame) = self.buffer() else { return };
        let written = match (source, hop.neighbour) {
            (Some(IpAddr::V4(source)), IpAddr::V4(target)) => {
                let to = known.unwrap_or(MacAddr::BROADCAST);
                let request = arp::Message::request(own, source, target);
                frame.append(arp::FRAME_LEN).map(|out| request.write_frame(to, out))
            }
            (Some(IpAddr::V6(source)), IpAddr::V6(target)) => frame
                .append(nd::FRAME_LEN)
                .map(|out| nd::write_solicitation(own, source, target, known, out)),
            _ => None,
        };
        if let Some(Ok(_)) = written {
            self.count(Counter::NeighbourRequested);
            self.transmit(port, frame);
        }
    }

    /// Applies what was learnt of a neighbour, here and at the other workers, and sends what
    /// waited for it.
    pub(crate) fn learn(&mut self, port: u8, learnt: Learnt) {
        self.count(Counter::NeighbourLearnt);
        for worker in 0..self.mesh.workers() {
            if worker != self.view.worker() {
                self.hand_over(worker, Handed::Neighbour { port, learnt });
            }
        }
        self.learnt_elsewhere(port, &learnt);
    }

    /// Applies what another worker has learnt.
    pub(crate) fn learnt_elsewhere(&mut self, port: u8, learnt: &Learnt) {
        self.net.neighbours.learn(self.now_ns, port, learnt);
        self.retry_waiting();
    }

    /// Puts a frame into its port's burst, which is sent when it is full or the batch ends.
    #[inline]
    pub(crate) fn transmit(&mut self, port: usize, frame: Mbuf) {
        let Some(out) = self.net.ports.get_mut(port) else { return };
        if let Err(frame) = out.out.push(frame) {
            self.flush_port(port);
            if let Some(out) = self.net.ports.get_mut(port) {
                // Flushing has emptied the burst, so there is room.
                let _ = out.out.push(frame);
            }
        }
    }

    /// Whether a port takes another frame, after sending what waits if that is a whole burst.
    pub(crate) fn has_room(&mut self, port: usize) -> bool {
        if self.net.ports.get(port).is_some_and(|port| port.out.is_full()) {
            self.send_burst(port);
        }
        self.net.ports.get(port).is_some_and(|port| !port.out.is_full())
    }

    /// Sends all ports' bursts.
    pub(crate) fn flush(&mut self) {
        for port in 0..self.net.ports.len() {
            self.flush_port(port);
        }
    }

    /// Sends a port's burst; what the device does not take is dropped: a full queue stays full for
    /// longer than a batch, and waiting here would stop the other port.
    fn flush_port(&mut self, port: usize) {
        self.send_burst(port);
        let Some(out) = self.net.ports.get_mut(port).map(|port| &mut port.out) else { return };
        let refused = out.len();
        out.clear();
        if refused > 0 {
            let counter =
                if port == OUTER_PORT { Counter::OuterTxFull } else { Counter::InnerTxFull };
            self.view.count(counter, refused as u64);
        }
    }

    /// Sends as much of a port's burst as the device takes, and counts it.
    fn send_burst(&mut self, port: usize) {
        let Some(Port { link, out, .. }) = self.net.ports.get_mut(port) else { return };
        if out.is_empty() {
            return;
        }
        let octets = |burst: &Burst| burst.iter().map(|frame| frame.len() as u64).sum::<u64>();
        let waiting = octets(out);
        let sent = link.transmit(out);
        let (packets_counter, octets_counter) = if port == OUTER_PORT {
            (Counter::OuterTxPackets, Counter::OuterTxOctets)
        } else {
            (Counter::InnerTxPackets, Counter::InnerTxOctets)
        };
        self.view.count(packets_counter, sent as u64);
        self.view.count(octets_counter, waiting - octets(out));
    }
}
