//! Devices: opened by a device string, asked what they can, set up and started.
//!
//! [`Device::open`] probes, [`Device::start`] goes through DPDK's order of calls: configure, set up
//! each queue, start, filters. What cannot work is refused before that by comparing with what the
//! device says of itself, because drivers' own errors are mere numbers.

use crate::{
    Eal, Offloads, Pool, Port, RxQueue, Started, TxQueue,
    eal::is_pci,
    error::{Errno, PortError},
};
use dpdk_sys as sys;
use std::{
    ffi::{CStr, CString},
    ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// DPDK's functions that set ports up are not made for two threads at a time.
static CONTROL: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// Numbers of the ports that are open in this process.
pub(crate) fn control() -> MutexGuard<'static, Vec<u16>> {
    CONTROL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Least and most octets of MTU that IP allows and DPDK can express.
const MTU_MIN: u16 = 68;

/// The Toeplitz key that gives both directions of a flow the same hash: 16 bits, repeated.
const SYMMETRIC_KEY: [u8; 2] = [0x6d, 0x5a];
/// Longest key of any driver.
const RSS_KEY_MAX: usize = 64;

/// How a port is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// Receive queues, one for each worker that polls the port.
    pub rx_queues: u16,
    /// Transmit queues, one for each worker that sends.
    pub tx_queues: u16,
    /// Descriptors of each receive queue; adjusted to what the device can.
    pub rx_descriptors: u16,
    /// Descriptors of each transmit queue; adjusted to what the device can.
    pub tx_descriptors: u16,
    /// Largest IP packet, in octets.
    pub mtu: u16,
    /// Receive frames to every address.
    pub promiscuous: bool,
    /// Receive all multicast, as neighbour discovery needs.
    pub all_multicast: bool,
    /// Offloads to enable where the device has them.
    pub offloads: Offloads,
}

impl Default for PortConfig {
    /// One queue pair of 1,024 descriptors, an MTU of 1,500, all multicast, every offload that leaves
    /// packets as they are on the wire.
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: 1500,
            promiscuous: false,
            all_multicast: true,
            offloads: Offloads { rx_lro: false, ..Offloads::ALL },
        }
    }
}

/// A port of this process, closed when the last of its [`Device`], [`Port`] and queues is gone.
#[derive(Debug)]
pub(crate) struct OpenPort {
    id: u16,
    /// The device string, for errors.
    device: String,
}

impl OpenPort {
    #[inline]
    pub(crate) fn id(&self) -> u16 {
        self.id
    }

    pub(crate) fn check(&self, step: &'static str, status: i32) -> Result<(), PortError> {
        if status >= 0 {
            return Ok(());
        }
        Err(PortError::Setup { device: self.device.clone(), step, errno: Errno::of(status) })
    }

    fn info(&self) -> sys::rte_eth_dev_info {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: an open port; `info` is written. Failing leaves it as it is, all zero: a device
        // without queues, which `start` then refuses.
        unsafe { sys::rte_eth_dev_info_get(self.id, &mut info) };
        info
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        let mut open = control();
        let device = self.info().device;
        // SAFETY: an open port that no queue uses any more. A failure leaves nothing to be done.
        unsafe {
            sys::rte_eth_dev_stop(self.id);
            sys::rte_eth_dev_close(self.id);
        }
        if !is_pci(&self.device) && !device.is_null() {
            // A virtual device is made by opening it, so that closing it takes it away.
            // SAFETY: the bus keeps the device until this call.
            unsafe { sys::rte_dev_remove(device) };
        }
        open.retain(|&id| id != self.id);
    }
}

/// An opened device: what it is and can, before it is set up.
#[derive(Debug)]
pub struct Device {
    port: OpenPort,
    info: sys::rte_eth_dev_info,
}

// SAFETY: `info` has pointers into the driver's constant data only.
unsafe impl Send for Device {}

impl Device {
    /// Opens a device by its device string: a PCI address (`0000:03:00.0`) or a virtual device with
    /// its arguments (`net_af_packet0,iface=eth1`), which this makes.
    ///
    /// # Errors
    /// [`PortError::PciNotFound`], [`PortError::VdevNotFound`], [`PortError::InUse`],
    /// [`PortError::BadDevice`].
    pub fn open(_eal: Eal, device: &str) -> Result<Self, PortError> {
        let text = CString::new(device).ok().filter(|text| !text.is_empty());
        let text = text.ok_or_else(|| PortError::BadDevice { device: device.to_owned() })?;
        let mut open = control();
        // SAFETY: the EAL runs; the string is a C string that is copied.
        let status = unsafe { sys::rte_dev_probe(text.as_ptr()) };
        let id = match Errno::of(status) {
            errno if status < 0 && errno.number() != libc::EEXIST => {
                return Err(not_found(device, errno));
            }
            _ => find(&text).ok_or_else(|| not_found(device, Errno::of(libc::ENODEV)))?,
        };
        if open.contains(&id) {
            return Err(PortError::InUse { device: device.to_owned() });
        }
        open.push(id);
        drop(open);
        let port = OpenPort { id, device: device.to_owned() };
        let info = port.info();
        Ok(Self { port, info })
    }

    /// The driver's name, such as `net_ixgbe`.
    #[must_use]
    pub fn driver(&self) -> &str {
        if self.info.driver_name.is_null() {
            return "unknown";
        }
        // SAFETY: a constant C string of the driver's, which is never unloaded.
        let name = unsafe { CStr::from_ptr(self.info.driver_name) };
        name.to_str().unwrap_or("unknown")
    }

    /// Most receive and transmit queues.
    #[must_use]
    pub fn max_queues(&self) -> (u16, u16) {
        (self.info.max_rx_queues, self.info.max_tx_queues)
    }

    /// What the device can do for packets.
    #[must_use]
    pub fn offloads(&self) -> Offloads {
        Offloads::of_bits(self.info.rx_offload_capa, self.info.tx_offload_capa)
    }

    /// Most mbufs that a packet to be sent may have, with [`Offloads::tx_segments`].
    #[must_use]
    pub fn tx_segments_max(&self) -> u16 {
        match self.info.tx_desc_lim.nb_seg_max {
            0 => u16::MAX, // The driver names no limit.
            max => max,
        }
    }

    /// The NUMA socket the device is attached to, where it is known: packets' memory should be
    /// there, too.
    #[must_use]
    pub fn socket(&self) -> Option<u32> {
        // SAFETY: an open port.
        u32::try_from(unsafe { sys::rte_eth_dev_socket_id(self.port.id) }).ok()
    }

    /// Sets the device up and starts it. Receive queue n takes its mbufs from pool n, or from
    /// pool n modulo the number of pools.
    ///
    /// # Errors
    /// What [`PortError`] lists. The device is closed then.
    pub fn start(self, config: &PortConfig, pools: &[Pool]) -> Result<Started, PortError> {
        let offloads = self.choose_offloads(config, pools)?;
        let control = control();
        let rss = self.configure(config, offloads)?;
        self.set_up_queues(config, pools)?;
        let Self { port, .. } = self;
        // SAFETY: a configured port whose queues are set up.
        let status = unsafe { sys::rte_eth_dev_start(port.id) };
        drop(control);
        port.check("start", status)?;
        let port = Arc::new(port);
        let prepare = offloads.needs_preparation();
        let rx_queues = (0..config.rx_queues).map(|n| RxQueue::new(Arc::clone(&port), n));
        let tx_queues = (0..config.tx_queues).map(|n| TxQueue::new(Arc::clone(&port), n, prepare));
        let (rx_queues, tx_queues) = (rx_queues.collect(), tx_queues.collect());
        let port = Port::new(port, offloads, rss, config)?;
        Ok(Started { port, rx_queues, tx_queues })
    }

    /// Checks what can be checked by comparing, and settles the offloads.
    fn choose_offloads(&self, config: &PortConfig, pools: &[Pool]) -> Result<Offloads, PortError> {
        let info = &self.info;
        let device = || self.port.device.clone();
        if config.rx_queues > info.max_rx_queues || config.tx_queues > info.max_tx_queues {
            return Err(PortError::Queues {
                device: device(),
                rx: config.rx_queues,
                tx: config.tx_queues,
                max_rx: info.max_rx_queues,
                max_tx: info.max_tx_queues,
            });
        }
        let (mtu, min, max) = (config.mtu, info.min_mtu.max(MTU_MIN), info.max_mtu);
        if mtu < min || mtu > max {
            return Err(PortError::Mtu { device: device(), mtu, min, max });
        }
        let mut offloads = config.offloads.and(self.offloads());
        if config.rx_queues > 0 {
            let room = pools.iter().map(Pool::room).min().ok_or(PortError::NoPool)?;
            let frame = u32::from(mtu) + FRAME_OVERHEAD;
            if frame > room && !offloads.rx_scatter {
                return Err(PortError::MbufsTooSmall { device: device(), mtu, frame, room });
            }
            offloads.rx_scatter &= frame > room || offloads.rx_lro;
        }
        Ok(offloads)
    }

    /// `rte_eth_dev_configure`; returns whether RSS spreads packets over the queues.
    fn configure(&self, config: &PortConfig, offloads: Offloads) -> Result<bool, PortError> {
        let mut key: Vec<u8> = SYMMETRIC_KEY.into_iter().cycle().take(RSS_KEY_MAX).collect();
        let hashes = sys::CULVERT_RTE_ETH_RSS_IP
            | sys::CULVERT_RTE_ETH_RSS_TCP
            | sys::CULVERT_RTE_ETH_RSS_UDP;
        let hashes = hashes & self.info.flow_type_rss_offloads;
        let rss = config.rx_queues > 1 && hashes != 0;
        let mut raw = sys::rte_eth_conf::default();
        raw.rxmode.mtu = config.mtu.into();
        if offloads.rx_lro {
            raw.rxmode.max_lro_pkt_size = self.info.max_lro_pkt_size;
        }
        raw.rxmode.offloads = offloads.rx_bits();
        raw.txmode.offloads = offloads.tx_bits();
        if rss {
            raw.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            raw.rxmode.offloads |=
                sys::CULVERT_RTE_ETH_RX_OFFLOAD_RSS_HASH & self.info.rx_offload_capa;
            let length = usize::from(self.info.hash_key_size).min(RSS_KEY_MAX);
            raw.rx_adv_conf.rss_conf.rss_hf = hashes;
            if length > 0 {
                raw.rx_adv_conf.rss_conf.rss_key = key.as_mut_ptr();
                raw.rx_adv_conf.rss_conf.rss_key_len = length as u8;
            }
        }
        // SAFETY: an open, stopped port; the configuration and the key live through the call, which
        // copies them.
        let status = unsafe {
            sys::rte_eth_dev_configure(self.port.id, config.rx_queues, config.tx_queues, &raw)
        };
        self.port.check("configure", status)?;
        Ok(rss)
    }

    fn set_up_queues(&self, config: &PortConfig, pools: &[Pool]) -> Result<(), PortError> {
        let port = &self.port;
        let (mut rx, mut tx) = (config.rx_descriptors, config.tx_descriptors);
        // SAFETY: a configured port; both numbers are read and written.
        let status = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(port.id, &mut rx, &mut tx) };
        port.check("choosing the numbers of descriptors", status)?;
        // SAFETY: a configured port.
        let socket = unsafe { sys::rte_eth_dev_socket_id(port.id) } as u32;
        for (queue, pool) in (0..config.rx_queues).zip(pools.iter().cycle()) {
            // SAFETY: a configured, stopped port and one of its queues; the pool lives for ever.
            // Null: the driver's defaults, with the port's offloads.
            let status = unsafe {
                sys::rte_eth_rx_queue_setup(port.id, queue, rx, socket, ptr::null(), pool.as_ptr())
            };
            port.check("setting up a receive queue", status)?;
        }
        for queue in 0..config.tx_queues {
            // SAFETY: as above.
            let status =
                unsafe { sys::rte_eth_tx_queue_setup(port.id, queue, tx, socket, ptr::null()) };
            port.check("setting up a transmit queue", status)?;
        }
        Ok(())
    }
}

/// Octets of a frame besides its IP packet: Ethernet header, one VLAN tag, frame check sequence.
const FRAME_OVERHEAD: u32 = sys::RTE_ETHER_HDR_LEN + sys::RTE_ETHER_CRC_LEN + 4;

fn not_found(device: &str, errno: Errno) -> PortError {
    let device = device.to_owned();
    if is_pci(&device) {
        PortError::PciNotFound { device, errno }
    } else {
        PortError::VdevNotFound { device, errno }
    }
}

/// The first port of a probed device.
fn find(device: &CStr) -> Option<u16> {
    let mut iterator = sys::rte_dev_iterator::default();
    // SAFETY: the string is copied into the iterator, which is ours.
    if unsafe { sys::rte_eth_iterator_init(&mut iterator, device.as_ptr()) } != 0 {
        return None;
    }
    // SAFETY: an initialised iterator.
    let id = unsafe { sys::rte_eth_iterator_next(&mut iterator) };
    if u32::from(id) >= sys::RTE_MAX_ETHPORTS {
        return None; // exhausted, and cleaned up by that
    }
    // SAFETY: an initialised iterator that was left early.
    unsafe { sys::rte_eth_iterator_cleanup(&mut iterator) };
    Some(id)
}
