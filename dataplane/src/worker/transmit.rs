//! Segments from the TCP stack to the outer port.

use culvert_dpdk::{IpVersion, L4, Mbuf, TxOffload};
use culvert_shm::Counter;
use culvert_tcpstack::Transmit;

use super::core::Core;
use super::link::Link;
use super::network::OUTER_PORT;
use crate::net::ether;
use crate::net::ip::{V4_HEADER_LEN, V6_HEADER_LEN};

/// Takes the stack's packets for a worker's outer port.
pub(crate) struct Segments<'a, L> {
    core: &'a mut Core<L>,
    /// Whether the device fills in checksums.
    device_checksum: bool,
    /// A buffer for the next segment.
    next: Option<Mbuf>,
}

impl<'a, L: Link> Segments<'a, L> {
    pub(crate) fn new(core: &'a mut Core<L>, device_checksum: bool) -> Self {
        Self { core, device_checksum, next: None }
    }

    fn send(&mut self, mut packet: Mbuf) {
        let Some(destination) = destination(packet.data()) else { return };
        if self.device_checksum {
            packet.request(&checksum_request(packet.data()));
        }
        self.core.count(Counter::TcpSegmentsOut);
        self.core.send_outer(packet, destination);
    }
}

impl<L: Link> Transmit for Segments<'_, L> {
    fn has_room(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.core.buffer();
        }
        self.next.is_some() && self.core.has_room(OUTER_PORT)
    }

    fn packet<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.next.take().or_else(|| self.core.buffer());
        match buffer.as_mut().and_then(|buffer| buffer.append(len)) {
            Some(out) => {
                let result = fill(out);
                if let Some(packet) = buffer {
                    self.send(packet);
                }
                result
            }
            None => {
                // The MTU fits into a buffer and `has_room` has found one, so only a device of a
                // larger MTU than its buffers gets here. The stack sends the segment again.
                self.core.count(Counter::PoolEmpty);
                fill(&mut vec![0; len])
            }
        }
    }
}

fn destination(packet: &[u8]) -> Option<std::net::IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?.into()),
    }
}

fn checksum_request(packet: &[u8]) -> TxOffload {
    let v4 = packet.first().is_some_and(|octet| octet >> 4 == 4);
    let (ip, l3_len) =
        if v4 { (IpVersion::V4, V4_HEADER_LEN) } else { (IpVersion::V6, V6_HEADER_LEN) };
    TxOffload {
        l2_len: ether::HEADER_LEN as u8,
        l3_len: l3_len as u16,
        l4_len: 0,
        ip,
        ip_checksum: v4,
        l4_checksum: Some(L4::Tcp),
        tso_segment: None,
    }
}
