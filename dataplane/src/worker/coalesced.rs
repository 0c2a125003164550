//! Segments that the device has put together to one packet (LRO): longer than a buffer, they come
//! as a chain, and TCP wants them in one piece.

use culvert_dpdk::{ChecksumStatus, Mbuf};
use culvert_shm::Counter;
use culvert_tcpstack::RxChecksum;

use super::Worker;
use super::drops;
use super::handoff::Handed;
use super::link::Link;
use crate::net::DropReason;
use crate::net::ether::{self, Cast, EtherType, MacAddr};
use crate::net::ip::{self, Fragment, Header, protocol};

/// Octets of the longest frame: an IP packet behind an Ethernet header.
pub(crate) const FRAME_BYTES_MAX: usize = ether::HEADER_LEN + u16::MAX as usize;

impl<L: Link> Worker<L> {
    /// A frame that does not fit into one buffer: nothing but TCP for this gateway is so long.
    pub(crate) fn take_chain(
        &mut self,
        port: usize,
        own: MacAddr,
        mut frame: Mbuf,
    ) -> Result<(), DropReason> {
        let len = frame.read(0, &mut self.coalesced);
        if len < frame.len() {
            return Err(DropReason::NoRoom);
        }
        let octets = &self.coalesced[..len];
        let (link, cast) = ether::parse(octets, own)?;
        let packet = &octets[ether::HEADER_LEN..];
        let header = ip::parse_as(packet, link.ether_type == EtherType::Ipv4)?;
        ip::check_source(header.source)?;
        self.check_is_ours(port, cast, &header)?;
        let worker = self.segment_owner(&header, packet);
        if !frame.adj(ether::HEADER_LEN) {
            return Err(DropReason::NoRoom);
        }
        if worker == self.core.view.worker() {
            self.take_segment(frame);
        } else {
            self.core.hand_over(worker, Handed::Segment { packet: frame });
        }
        Ok(())
    }

    fn check_is_ours(&self, port: usize, cast: Cast, header: &Header) -> Result<(), DropReason> {
        let outer = &self.core.net.outer;
        if outer.port != port || !outer.own.contains(header.destination) || cast != Cast::Unicast {
            return Err(DropReason::IpNotOurs);
        }
        outer.own.check_sender(header.source)?;
        match (header.fragment, header.protocol) {
            (Fragment::Whole, protocol::TCP) => Ok(()),
            (Fragment::Whole, _) => Err(DropReason::NoRoom),
            _ => Err(DropReason::IpFragmentForUs),
        }
    }

    /// A TCP segment for a connection of this worker's, or several that the device has made one.
    pub(crate) fn take_segment(&mut self, mut packet: Mbuf) {
        let core = &mut self.core;
        core.count(Counter::TcpSegmentsIn);
        let checksum = match packet.l4_checksum() {
            ChecksumStatus::Bad => return core.count(Counter::TcpBadChecksum),
            ChecksumStatus::Good | ChecksumStatus::Absent => RxChecksum::Verified,
            ChecksumStatus::Unknown => RxChecksum::Unknown,
        };
        let now = super::stack_time(core.now_ns);
        let taken = if packet.is_contiguous() {
            self.tcp.receive(core, now, packet.data_mut(), checksum)
        } else {
            let len = packet.read(0, &mut self.coalesced);
            self.tcp.receive(core, now, &mut self.coalesced[..len], checksum)
        };
        if let Err(reason) = taken {
            core.count(drops::segment(reason));
        }
    }
}
