//! What a NIC is asked to compute, and what it says it has checked.

use dpdk_sys as sys;

/// What a NIC found out about one checksum of a received packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumStatus {
    /// Not looked at: check it in software.
    Unknown,
    /// Correct.
    Good,
    /// Wrong: drop the packet.
    Bad,
    /// Not filled in, but the packet never left the machine (virtio, vhost), so its data is good.
    /// Fill it in before the packet leaves.
    Absent,
}

impl ChecksumStatus {
    pub(crate) fn of_ip(flags: u64) -> Self {
        match flags & sys::CULVERT_RTE_MBUF_F_RX_IP_CKSUM_MASK {
            sys::CULVERT_RTE_MBUF_F_RX_IP_CKSUM_GOOD => Self::Good,
            sys::CULVERT_RTE_MBUF_F_RX_IP_CKSUM_BAD => Self::Bad,
            sys::CULVERT_RTE_MBUF_F_RX_IP_CKSUM_MASK => Self::Absent,
            _ => Self::Unknown,
        }
    }

    pub(crate) fn of_l4(flags: u64) -> Self {
        match flags & sys::CULVERT_RTE_MBUF_F_RX_L4_CKSUM_MASK {
            sys::CULVERT_RTE_MBUF_F_RX_L4_CKSUM_GOOD => Self::Good,
            sys::CULVERT_RTE_MBUF_F_RX_L4_CKSUM_BAD => Self::Bad,
            sys::CULVERT_RTE_MBUF_F_RX_L4_CKSUM_NONE => Self::Absent,
            _ => Self::Unknown,
        }
    }
}

/// Version of the IP header that a [`TxOffload`] speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Transport protocol whose checksum the NIC fills in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum L4 {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What the NIC is to do to a packet as it sends it; ask only for what [`Offloads`] has enabled.
/// The checksum fields' contents do not matter: the transmit queue prepares them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxOffload {
    /// Octets in front of the IP header, at most 127.
    pub l2_len: u8,
    /// Octets of the IP header, extension headers included, at most 511.
    pub l3_len: u16,
    /// Octets of the TCP or UDP header; needed for segmentation.
    pub l4_len: u8,
    /// Which IP header it is.
    pub ip: IpVersion,
    /// Fill in the IPv4 header's checksum.
    pub ip_checksum: bool,
    /// Fill in this transport checksum.
    pub l4_checksum: Option<L4>,
    /// Cut the TCP payload into segments of that many octets, each with its own headers.
    pub tso_segment: Option<u16>,
}

impl TxOffload {
    pub(crate) fn flags(&self) -> u64 {
        let mut flags = match self.ip {
            IpVersion::V4 => sys::CULVERT_RTE_MBUF_F_TX_IPV4,
            IpVersion::V6 => sys::CULVERT_RTE_MBUF_F_TX_IPV6,
        };
        if self.ip_checksum && self.ip == IpVersion::V4 {
            flags |= sys::CULVERT_RTE_MBUF_F_TX_IP_CKSUM;
        }
        flags |= match self.l4_checksum {
            Some(L4::Tcp) => sys::CULVERT_RTE_MBUF_F_TX_TCP_CKSUM,
            Some(L4::Udp) => sys::CULVERT_RTE_MBUF_F_TX_UDP_CKSUM,
            None => 0,
        };
        if self.tso_segment.is_some() {
            // Segmentation implies the checksum of each segment.
            flags |= sys::CULVERT_RTE_MBUF_F_TX_TCP_SEG | sys::CULVERT_RTE_MBUF_F_TX_TCP_CKSUM;
        }
        flags
    }

    /// The lengths as `rte_mbuf.tx_offload` packs them: 7, 9, 8 and 16 bits from the lowest.
    pub(crate) fn lengths(&self) -> u64 {
        u64::from(self.l2_len & 0x7f)
            | u64::from(self.l3_len & 0x1ff) << 7
            | u64::from(self.l4_len) << 16
            | u64::from(self.tso_segment.unwrap_or(0)) << 24
    }
}

/// Offloads of a port: in [`crate::PortConfig`] those wanted, in [`crate::Device::offloads`] those
/// the device has, in [`crate::Port::offloads`] those enabled (both of the former).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Receive: IPv4 header checksums are checked.
    pub rx_ip_checksum: bool,
    /// Receive: TCP and UDP checksums are checked.
    pub rx_l4_checksum: bool,
    /// Transmit: IPv4 header checksums can be filled in.
    pub tx_ip_checksum: bool,
    /// Transmit: TCP checksums can be filled in.
    pub tx_tcp_checksum: bool,
    /// Transmit: UDP checksums can be filled in.
    pub tx_udp_checksum: bool,
    /// Transmit: TCP segmentation.
    pub tx_tso: bool,
    /// Transmit: packets of several mbufs.
    pub tx_segments: bool,
    /// Receive: frames larger than an mbuf are spread over several. Enabled only where the MTU
    /// needs it.
    pub rx_scatter: bool,
    /// Receive: consecutive segments of a TCP connection arrive as one packet of several mbufs,
    /// which cannot be forwarded (large receive offload).
    pub rx_lro: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self {
        rx_ip_checksum: true,
        rx_l4_checksum: true,
        tx_ip_checksum: true,
        tx_tcp_checksum: true,
        tx_udp_checksum: true,
        tx_tso: true,
        tx_segments: true,
        rx_scatter: true,
        rx_lro: true,
    };

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::of_bits(self.rx_bits() & other.rx_bits(), self.tx_bits() & other.tx_bits())
    }

    pub(crate) fn of_bits(rx: u64, tx: u64) -> Self {
        let has = |set: u64, bits: u64| set & bits == bits;
        Self {
            rx_ip_checksum: has(rx, sys::CULVERT_RTE_ETH_RX_OFFLOAD_IPV4_CKSUM),
            rx_l4_checksum: has(rx, RX_L4),
            tx_ip_checksum: has(tx, sys::CULVERT_RTE_ETH_TX_OFFLOAD_IPV4_CKSUM),
            tx_tcp_checksum: has(tx, sys::CULVERT_RTE_ETH_TX_OFFLOAD_TCP_CKSUM),
            tx_udp_checksum: has(tx, sys::CULVERT_RTE_ETH_TX_OFFLOAD_UDP_CKSUM),
            tx_tso: has(tx, sys::CULVERT_RTE_ETH_TX_OFFLOAD_TCP_TSO),
            tx_segments: has(tx, sys::CULVERT_RTE_ETH_TX_OFFLOAD_MULTI_SEGS),
            rx_scatter: has(rx, sys::CULVERT_RTE_ETH_RX_OFFLOAD_SCATTER),
            rx_lro: has(rx, sys::CULVERT_RTE_ETH_RX_OFFLOAD_TCP_LRO),
        }
    }

    pub(crate) fn rx_bits(self) -> u64 {
        bit(self.rx_ip_checksum, sys::CULVERT_RTE_ETH_RX_OFFLOAD_IPV4_CKSUM)
            | bit(self.rx_l4_checksum, RX_L4)
            | bit(self.rx_scatter, sys::CULVERT_RTE_ETH_RX_OFFLOAD_SCATTER)
            | bit(self.rx_lro, sys::CULVERT_RTE_ETH_RX_OFFLOAD_TCP_LRO)
    }

    pub(crate) fn tx_bits(self) -> u64 {
        bit(self.tx_ip_checksum, sys::CULVERT_RTE_ETH_TX_OFFLOAD_IPV4_CKSUM)
            | bit(self.tx_tcp_checksum, sys::CULVERT_RTE_ETH_TX_OFFLOAD_TCP_CKSUM)
            | bit(self.tx_udp_checksum, sys::CULVERT_RTE_ETH_TX_OFFLOAD_UDP_CKSUM)
            | bit(self.tx_tso, sys::CULVERT_RTE_ETH_TX_OFFLOAD_TCP_TSO)
            | bit(self.tx_segments, sys::CULVERT_RTE_ETH_TX_OFFLOAD_MULTI_SEGS)
    }

    /// Whether sent packets need `rte_eth_tx_prepare`, which writes the pseudo-header checksums
    /// that NICs want.
    pub(crate) fn needs_preparation(self) -> bool {
        self.tx_ip_checksum || self.tx_tcp_checksum || self.tx_udp_checksum || self.tx_tso
    }
}

const RX_L4: u64 =
    sys::CULVERT_RTE_ETH_RX_OFFLOAD_TCP_CKSUM | sys::CULVERT_RTE_ETH_RX_OFFLOAD_UDP_CKSUM;

fn bit(wanted: bool, bits: u64) -> u64 {
    if wanted { bits } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_survive_the_way_through_dpdks_bits() {
        assert_eq!(
            Offloads::of_bits(Offloads::ALL.rx_bits(), Offloads::ALL.tx_bits()),
            Offloads::ALL
        );
        let one = Offloads { tx_tso: true, ..Offloads::default() };
        assert_eq!(Offloads::ALL.and(one), one);
        assert!(one.needs_preparation());
        assert!(!Offloads { rx_l4_checksum: true, ..Offloads::default() }.needs_preparation());
    }

    #[test]
    fn a_device_that_checks_only_udp_does_not_count_as_checking_both() {
        let udp_only = Offloads::of_bits(sys::CULVERT_RTE_ETH_RX_OFFLOAD_UDP_CKSUM, 0);
        assert!(!udp_only.rx_l4_checksum);
    }

    #[test]
    fn checksum_status_has_four_values_in_each_layer() {
        use ChecksumStatus::{Absent, Bad, Good, Unknown};
        let l4 = |flags| ChecksumStatus::of_l4(flags);
        assert_eq!(l4(0), Unknown);
        assert_eq!(l4(sys::CULVERT_RTE_MBUF_F_RX_L4_CKSUM_GOOD), Good);
        assert_eq!(l4(sys::CULVERT_RTE_MBUF_F_RX_L4_CKSUM_BAD), Bad);
        assert_eq!(l4(sys::CULVERT_RTE_MBUF_F_RX_L4_CKSUM_NONE), Absent);
        // The layers do not look at each other's bits.
        assert_eq!(l4(sys::CULVERT_RTE_MBUF_F_RX_IP_CKSUM_BAD), Unknown);
        assert_eq!(ChecksumStatus::of_ip(sys::CULVERT_RTE_MBUF_F_RX_IP_CKSUM_GOOD), Good);
    }

    #[test]
    fn lengths_are_packed_as_the_mbuf_has_them() {
        let offload = TxOffload {
            l2_len: 14,
            l3_len: 20,
            l4_len: 32,
            ip: IpVersion::V4,
            ip_checksum: true,
            l4_checksum: Some(L4::Tcp),
            tso_segment: Some(1448),
        };
        let mut fields = sys::rte_mbuf__bindgen_ty_3__bindgen_ty_1::default();
        fields.set_l2_len(14);
        fields.set_l3_len(20);
        fields.set_l4_len(32);
        fields.set_tso_segsz(1448);
        let packed = sys::rte_mbuf__bindgen_ty_3 { __bindgen_anon_1: fields };
        // SAFETY: both views of the union are plain integers of the same eight octets.
        assert_eq!(offload.lengths(), unsafe { packed.tx_offload });
    }
}
