//! Frames from the ports: Ethernet, ARP and neighbour discovery, own addresses, the rest.
//!
//! An address of the outer side: TCP to the stack, UDP 500 and 4500, native ESP, echo. An address
//! of the inner side: echo. Everything else that comes from the protected network goes the way
//! out; on a port of the outer side alone it is refused.

use std::net::{IpAddr, SocketAddr};

use culvert_dataplane_config::IKE_NATT_PORT;
use culvert_dpdk::{Burst, ChecksumStatus, Mbuf};
use culvert_shm::{Counter, Path, Standing, Transport};
use culvert_tcpstack::EphemeralPorts;

use super::Worker;
use super::core::Core;
use super::handoff::Handed;
use super::ike::{self, Encapsulated};
use super::link::Link;
use super::network::OUTER_PORT;
use super::outbound::Origin;
use super::peer::Arrival;
use crate::net::ether::{self, Cast, EtherType};
use crate::net::icmp;
use crate::net::icmp_error::{self, Complaint, IcmpError, Told};
use crate::net::ip::{self, Fragment, Header, protocol};
use crate::net::udp::{self, ZeroChecksum};
use crate::net::{DropReason, arp, nd};

/// IKE's own port (RFC 7296, 2).
pub const IKE_PORT: u16 = 500;

impl<L: Link> Worker<L> {
    /// Takes one burst of a port; returns its frames.
    pub(crate) fn receive(&mut self, port: usize) -> usize {
        let Some(link) = self.core.net.ports.get_mut(port).map(|port| &mut port.link) else {
            return 0;
        };
        let mut burst = Burst::new();
        let count = link.receive(&mut burst);
        if count == 0 {
            return 0;
        }
        let octets: usize = burst.iter().map(Mbuf::len).sum();
        let (packets_counter, octets_counter) = if port == OUTER_PORT {
            (Counter::OuterRxPackets, Counter::OuterRxOctets)
        } else {
            (Counter::InnerRxPackets, Counter::InnerRxOctets)
        };
        self.core.view.count(packets_counter, count as u64);
        self.core.view.count(octets_counter, octets as u64);
        for frame in burst.drain() {
            self.take_frame(port, frame);
        }
        count
    }

    fn take_frame(&mut self, port: usize, mut frame: Mbuf) {
        let Some(own) = self.core.net.ports.get(port).map(|port| port.mac) else { return };
        if !frame.linearize() {
            return match self.take_chain(port, own, frame) {
                Ok(()) => {}
                Err(reason) => self.core.drop_for(reason),
            };
        }
        let (header, cast) = match ether::parse(frame.data(), own) {
            Ok(parsed) => parsed,
            Err(reason) => return self.core.drop_for(reason),
        };
        if !frame.adj(ether::HEADER_LEN) {
            return;
        }
        let taken = match header.ether_type {
            EtherType::Arp => self.core.take_arp(port, &header, frame),
            EtherType::Ipv4 => self.take_packet(port, &header, cast, frame, true),
            EtherType::Ipv6 => self.take_packet(port, &header, cast, frame, false),
        };
        if let Err(reason) = taken {
            self.core.drop_for(reason);
        }
    }

    fn take_packet(
        &mut self,
        port: usize,
        frame: &ether::Header,
        cast: Cast,
        mut packet: Mbuf,
        v4: bool,
    ) -> Result<(), DropReason> {
        let header = ip::parse_as(packet.data(), v4)?;
        let padding = packet.len().saturating_sub(header.total_len);
        let _ = packet.trim(padding);
        if is_nd(&header, packet.data()) {
            return self.core.take_nd(port, frame, &header, packet.data());
        }
        ip::check_source(header.source)?;
        let Self { core, .. } = self;
        if core.net.outer.port == port && core.net.outer.own.contains(header.destination) {
            if cast != Cast::Unicast {
                return Err(DropReason::IpNotOurs);
            }
            core.net.outer.own.check_sender(header.source)?;
            return self.take_outer(packet, &header);
        }
        if core.net.inner.port != port {
            return Err(DropReason::IpNotOurs);
        }
        if core.net.inner.own.contains(header.destination) {
            core.answer_inner(packet, &header);
            return Ok(());
        }
        // RFC 1812, 5.3.4: what came as a link-layer broadcast is not forwarded.
        if cast != Cast::Unicast || core.net.inner.own.is_broadcast(header.destination) {
            return Err(DropReason::IpMartianDestination);
        }
        ip::check_forward(header.source, header.destination)?;
        self.outbound(packet, &header, Origin::Forwarded(cast));
        Ok(())
    }

    /// A packet to an address of the outer side.
    fn take_outer(&mut self, packet: Mbuf, header: &Header) -> Result<(), DropReason> {
        // Nothing outer is reassembled: ESP and TCP set DF, IKE fragments itself (RFC 7383).
        if header.fragment != Fragment::Whole {
            return Err(DropReason::IpFragmentForUs);
        }
        match header.protocol {
            protocol::TCP => {
                let worker = self.segment_owner(header, packet.data());
                if worker == self.core.view.worker() {
                    self.take_segment(packet);
                } else {
                    self.core.hand_over(worker, Handed::Segment { packet });
                }
                Ok(())
            }
            protocol::UDP => self.core.take_datagram(packet, header),
            protocol::ESP => self.core.take_native(packet, header),
            protocol::ICMP | protocol::ICMPV6 => self.take_icmp(packet, header),
            _ => Err(DropReason::IpUnknownProtocol),
        }
    }

    fn take_icmp(&mut self, packet: Mbuf, header: &Header) -> Result<(), DropReason> {
        let Some(told) = icmp_error::parse(packet.data(), header)? else {
            return self.core.answer_outer(packet, header);
        };
        // The connection or SA may be any worker's. A flood of such messages is not worth more.
        if self.core.told_limit.allow(self.core.now_ns) {
            let (own, workers) = (self.core.view.worker(), self.core.mesh.workers());
            for worker in (0..workers).filter(|worker| *worker != own) {
                self.core.hand_over(worker, Handed::IcmpError(told));
            }
            self.take_icmp_error(&told);
        }
        Ok(())
    }

    /// What the network says of a packet that may be this worker's.
    pub(crate) fn take_icmp_error(&mut self, told: &Told) {
        match told {
            Told::Segment(told) => self.take_segment_error(told),
            Told::Esp(told) => self.core.take_esp_too_big(told),
        }
    }

    /// RFC 9293, 3.7.5 and 3.9.2.2, MUST-54: what the network says of a segment reaches its
    /// connection, which believes it if the segment is in flight (RFC 5927, 4.1).
    fn take_segment_error(&mut self, told: &IcmpError) {
        let now = super::stack_time(self.core.now_ns);
        let IcmpError { local, remote, sequence, complaint } = *told;
        let stack = &mut self.tcp.stack;
        let (believed, counter) = match complaint {
            Complaint::TooBig(mtu) => {
                let believed = stack.packet_too_big(now, local, remote, sequence, mtu);
                (believed, Counter::IcmpTooBig)
            }
            Complaint::Unreachable | Complaint::Refused => {
                let hard = complaint == Complaint::Refused;
                let believed = stack.unreachable(now, local, remote, sequence, hard);
                (believed, Counter::IcmpUnreachable)
            }
        };
        if believed {
            self.core.count(counter);
        }
    }

    /// The worker whose connection a segment belongs to. A connection that a peer opens lives where
    /// its SYN arrives, and the NIC's hash sends the rest of it there too. The answers to one that
    /// this gateway opens may arrive anywhere: their port names its worker.
    pub(crate) fn segment_owner(&self, header: &Header, packet: &[u8]) -> u16 {
        let (own, workers) = (self.core.view.worker(), self.core.mesh.workers());
        let port = match header.upper(packet) {
            &[_, _, high, low, ..] => u16::from_be_bytes([high, low]),
            _ => return own,
        };
        let ephemeral = EphemeralPorts::default();
        let ours = (ephemeral.first..=ephemeral.last).contains(&port);
        if ours && !self.listens.contains(&port) { port % workers.max(1) } else { own }
    }
}

/// How a packet of its own came.
fn arrival(path: Path, header: &Header, may_move: bool) -> Arrival {
    let Header { traffic_class, hop_limit, .. } = *header;
    Arrival { path, traffic_class, hop_limit, may_move }
}

fn is_nd(header: &Header, packet: &[u8]) -> bool {
    header.protocol == protocol::ICMPV6
        && header.fragment != Fragment::Later
        && header.upper(packet).first().is_some_and(|&kind| nd::is_nd(kind))
}

impl<L: Link> Core<L> {
    fn take_arp(
        &mut self,
        port: usize,
        frame: &ether::Header,
        packet: Mbuf,
    ) -> Result<(), DropReason> {
        let message = arp::parse(frame, packet.data())?;
        let own = self.net.ports.get(port).map(|port| port.mac).unwrap_or_default();
        let mut received = Err(DropReason::ArpNotOurs);
        for side in self.net.sides_on(port) {
            match arp::receive(&message, &side.own) {
                Err(DropReason::ArpNotOurs) => {}
                decided => {
                    received = decided;
                    break;
                }
            }
        }
        let received = received?;
        if let Some(learnt) = received.learn {
            self.learn(port as u8, learnt);
        }
        if received.answer
            && let Some(mut answer) = self.buffer()
            && let Some(out) = answer.append(arp::FRAME_LEN)
        {
            message.reply(own).write_frame(message.sender_mac, out)?;
            self.count(Counter::ArpAnswered);
            self.transmit(port, answer);
        }
        Ok(())
    }

    fn take_nd(
        &mut self,
        port: usize,
        frame: &ether::Header,
        header: &Header,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let message = nd::parse(header, packet)?;
        let own = self.net.ports.get(port).map(|port| port.mac).unwrap_or_default();
        let mut received = Err(DropReason::NdNotOurs);
        for side in self.net.sides_on(port) {
            match nd::receive(&message, frame.source, &side.own) {
                Err(DropReason::NdNotOurs) => {}
                decided => {
                    received = decided;
                    break;
                }
            }
        }
        let received = received?;
        if let Some(learnt) = received.learn {
            self.learn(port as u8, learnt);
        }
        if let Some(advertisement) = received.answer
            && let Some(mut answer) = self.buffer()
            && let Some(out) = answer.append(nd::FRAME_LEN)
        {
            advertisement.write_frame(own, out)?;
            self.count(Counter::NdAnswered);
            self.transmit(port, answer);
        }
        Ok(())
    }

    /// A UDP datagram to an address of the outer side.
    fn take_datagram(&mut self, mut packet: Mbuf, header: &Header) -> Result<(), DropReason> {
        let upper = header.upper(packet.data());
        let udp = udp::parse(upper)?;
        let local = SocketAddr::new(header.destination, udp.destination);
        let remote = SocketAddr::new(header.source, udp.source);
        let payload = upper
            .get(udp::HEADER_LEN..udp::HEADER_LEN + udp.payload_len)
            .ok_or(DropReason::UdpBadLength)?;
        let (kind, transport) = match udp.destination {
            IKE_PORT => (Encapsulated::Ike(payload), Transport::Native),
            IKE_NATT_PORT => (ike::encapsulated(payload), Transport::Udp),
            _ => {
                self.count(Counter::UdpNoPort);
                return Ok(());
            }
        };
        let esp = matches!(kind, Encapsulated::Esp);
        match packet.l4_checksum() {
            ChecksumStatus::Good | ChecksumStatus::Absent => {}
            ChecksumStatus::Bad => return Err(DropReason::UdpBadChecksum),
            ChecksumStatus::Unknown => {
                let zero = if esp { ZeroChecksum::Accept } else { ZeroChecksum::Refuse };
                udp::verify(header, upper, &udp, zero)?;
            }
        }
        let path = ike::datagram_path(transport, local, remote);
        match kind {
            Encapsulated::Ike(message) => self.ike_up(Standing::Stranger, &path, message),
            Encapsulated::Keepalive => self.count(Counter::UdpKeepalive),
            Encapsulated::Esp => {
                let behind = packet.len() - header.header_len - udp::HEADER_LEN - udp.payload_len;
                if packet.trim(behind) && packet.adj(header.header_len + udp::HEADER_LEN) {
                    let arrival = arrival(path, header, true);
                    // What was refused has been counted.
                    let _ = self.take_esp(packet, &arrival);
                }
            }
        }
        Ok(())
    }

    /// A native ESP packet.
    fn take_native(&mut self, mut packet: Mbuf, header: &Header) -> Result<(), DropReason> {
        let end = |address: IpAddr| SocketAddr::new(address, 0);
        let path =
            ike::datagram_path(Transport::Native, end(header.destination), end(header.source));
        if packet.adj(header.header_len) {
            let arrival = arrival(path, header, false);
            // What was refused has been counted.
            let _ = self.take_esp(packet, &arrival);
        }
        Ok(())
    }

    /// ICMP to an address of the outer side: echo requests are answered.
    fn answer_outer(&mut self, mut packet: Mbuf, header: &Header) -> Result<(), DropReason> {
        let len = icmp::echo_reply(packet.data_mut(), header)?;
        if packet.trim(header.total_len.saturating_sub(len)) {
            self.count(Counter::IcmpEchoAnswered);
            self.send_outer(packet, header.source);
        }
        Ok(())
    }
}
