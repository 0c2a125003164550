//! Segments from the TCP stack to the outer port: one mbuf each, or a chain of them that the device
//! cuts into segments (TSO).

use std::net::IpAddr;

use culvert_dpdk::{IpVersion, L4, Mbuf, Offloads, Pool, TxOffload};
use culvert_shm::Counter;
use culvert_tcpstack::{Packet, SEGMENTATION_BYTES_MAX, Transmit};

use super::core::Core;
use super::link::Link;
use super::network::{OUTER_PORT, PortParts};
use crate::net::ether;
use crate::net::ip::{V4_HEADER_LEN, V6_HEADER_LEN};

/// Where a TCP header has its own length.
const TCP_DATA_OFFSET: usize = 12;

/// Takes the stack's packets for a worker's outer port.
pub(crate) struct Segments<'a, L> {
    core: &'a mut Core<L>,
    /// What the device computes.
    offloads: Offloads,
    /// A buffer for the next segment.
    next: Option<Mbuf>,
}

impl<'a, L: Link> Segments<'a, L> {
    pub(crate) fn new(core: &'a mut Core<L>, offloads: Offloads) -> Self {
        Self { core, offloads, next: None }
    }

    fn send(&mut self, mut packet: Mbuf, segment_bytes: Option<u16>) {
        let Some(headers) = Headers::of(packet.data()) else { return };
        if self.offloads.tx_tcp_checksum {
            // The stack has filled the header's in; each segment that the device makes has its own.
            let ip_checksum = segment_bytes.is_some() && self.offloads.tx_ip_checksum;
            packet.request(&headers.request(segment_bytes, ip_checksum));
        }
        let payload = packet.len().saturating_sub(headers.len());
        let segments = segment_bytes.map_or(1, |bytes| payload.div_ceil(usize::from(bytes).max(1)));
        self.core.view.count(Counter::TcpSegmentsOut, segments as u64);
        self.core.send_outer(packet, headers.destination);
    }
}

impl<L: Link> Transmit for Segments<'_, L> {
    fn has_room(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.core.buffer();
        }
        self.next.is_some() && self.core.has_room(OUTER_PORT)
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        let fits = self.next.as_ref().is_some_and(|next| packet.bytes <= next.tailroom());
        let filled = match self.next.take_if(|_| fits) {
            Some(mut next) => next.append(packet.bytes).map(&mut fill).map(|()| next),
            None => self.core.pool.packet(packet.bytes, fill),
        };
        match filled {
            Some(filled) => self.send(filled, packet.segment_bytes),
            // The stack sends it again, as if it had been lost on the way.
            None => self.core.count(Counter::PoolEmpty),
        }
    }
}

/// The longest packet that a port cuts into segments, in octets; 0 if it cuts none.
pub(crate) fn segmentation_bytes<L>(port: &PortParts<L>, pool: &Pool) -> usize {
    let offloads = &port.offloads;
    if !offloads.tx_tso || !offloads.tx_tcp_checksum || !offloads.tx_segments {
        return 0;
    }
    let chain = usize::from(port.tx_segments_max) * pool.room() as usize;
    SEGMENTATION_BYTES_MAX.min(pool.packet_bytes_max()).min(chain)
}

/// What the headers of a packet say that the device has to know.
struct Headers {
    destination: IpAddr,
    ip: IpVersion,
    l3_len: usize,
    l4_len: usize,
}

impl Headers {
    fn of(packet: &[u8]) -> Option<Self> {
        let (ip, l3_len, destination) = match packet.first()? >> 4 {
            4 => {
                let octets = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?;
                (IpVersion::V4, V4_HEADER_LEN, octets.into())
            }
            _ => {
                let octets = <[u8; 16]>::try_from(packet.get(24..40)?).ok()?;
                (IpVersion::V6, V6_HEADER_LEN, octets.into())
            }
        };
        let l4_len = usize::from(packet.get(l3_len + TCP_DATA_OFFSET)? >> 4) * 4;
        Some(Self { destination, ip, l3_len, l4_len })
    }

    fn len(&self) -> usize {
        self.l3_len + self.l4_len
    }

    fn request(&self, segment_bytes: Option<u16>, ip_checksum: bool) -> TxOffload {
        TxOffload {
            l2_len: ether::HEADER_LEN as u8,
            l3_len: self.l3_len as u16,
            l4_len: self.l4_len as u8,
            ip: self.ip,
            ip_checksum: ip_checksum && self.ip == IpVersion::V4,
            l4_checksum: Some(L4::Tcp),
            tso_segment: segment_bytes,
        }
    }
}
