//! Started ports: what the control thread sees of them. Packets go through the queues.

use crate::{
    Offloads, PortConfig, RxQueue, TxQueue,
    device::{OpenPort, control},
    error::PortError,
};
use dpdk_sys as sys;
use std::sync::Arc;

/// A started port and its queues.
#[derive(Debug)]
pub struct Started {
    /// For the control thread.
    pub port: Port,
    /// Receive queues, by number.
    pub rx_queues: Vec<RxQueue>,
    /// Transmit queues, by number.
    pub tx_queues: Vec<TxQueue>,
}

/// A started port: its properties, state and counters. Packets go through its queues.
#[derive(Debug)]
pub struct Port {
    port: Arc<OpenPort>,
    offloads: Offloads,
    rss: bool,
    mtu: u16,
}

/// State of a port's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether there is one.
    pub up: bool,
    /// Mbit/s, where the driver knows.
    pub speed_mbps: Option<u32>,
}

/// A port's counters since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Octets received.
    pub rx_octets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Octets sent.
    pub tx_octets: u64,
    /// Packets that came while no descriptor was free: the worker is too slow.
    pub rx_missed: u64,
    /// Packets that came damaged.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
    /// Descriptors that could not be refilled: the pool is too small.
    pub rx_no_mbuf: u64,
}

impl Port {
    /// A port that has just been started; sets its filters.
    pub(crate) fn new(
        port: Arc<OpenPort>,
        offloads: Offloads,
        rss: bool,
        config: &PortConfig,
    ) -> Result<Self, PortError> {
        let port = Self { port, offloads, rss, mtu: config.mtu };
        port.set_filters(config)?;
        Ok(port)
    }

    /// The port's number, as in [`crate::Mbuf::port`].
    #[must_use]
    pub fn id(&self) -> u16 {
        self.port.id()
    }

    /// The MTU it was started with, in octets of IP packet.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// The offloads that are enabled.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Whether the NIC spreads flows over the receive queues, both directions of a flow to the
    /// same one where its hash is Toeplitz's.
    #[must_use]
    pub fn rss(&self) -> bool {
        self.rss
    }

    /// The Ethernet address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: an open port; it fails for others only.
        unsafe { sys::rte_eth_macaddr_get(self.port.id(), &mut address) };
        address.addr_bytes
    }

    /// The state of the link, as last known: it does not wait.
    #[must_use]
    pub fn link(&self) -> Link {
        let mut link = sys::rte_eth_link::default();
        let _one_at_a_time = control();
        // SAFETY: an open port; failing leaves `link` zero, which is down.
        unsafe { sys::rte_eth_link_get_nowait(self.port.id(), &mut link) };
        let known = link.link_speed != 0 && link.link_speed != u32::MAX;
        Link { up: link.link_status() != 0, speed_mbps: known.then_some(link.link_speed) }
    }

    /// The counters; all zero where the driver has none.
    #[must_use]
    pub fn stats(&self) -> PortStats {
        let mut raw = sys::rte_eth_stats::default();
        let _one_at_a_time = control();
        // SAFETY: an open port; counters may be read while queues run.
        unsafe { sys::rte_eth_stats_get(self.port.id(), &mut raw) };
        PortStats {
            rx_packets: raw.ipackets,
            rx_octets: raw.ibytes,
            tx_packets: raw.opackets,
            tx_octets: raw.obytes,
            rx_missed: raw.imissed,
            rx_errors: raw.ierrors,
            tx_errors: raw.oerrors,
            rx_no_mbuf: raw.rx_nombuf,
        }
    }

    /// Which frames the port takes besides its own. Virtual devices that take everything anyway
    /// have no such switch, so that "not supported" is no error.
    fn set_filters(&self, config: &PortConfig) -> Result<(), PortError> {
        let _one_at_a_time = control();
        let supported = |status: i32| if status == -libc::ENOTSUP { 0 } else { status };
        if config.promiscuous {
            // SAFETY: a started port.
            let status = unsafe { sys::rte_eth_promiscuous_enable(self.port.id()) };
            self.port.check("promiscuous mode", supported(status))?;
        }
        if config.all_multicast {
            // SAFETY: a started port.
            let status = unsafe { sys::rte_eth_allmulticast_enable(self.port.id()) };
            self.port.check("receiving all multicast", supported(status))?;
        }
        Ok(())
    }
}
