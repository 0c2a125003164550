//! The ports of the process: opened from the configuration, split into one queue pair a worker.

use std::iter;

use culvert_dataplane_config::Dataplane;
use culvert_dpdk::{
    BURST_SIZE, Device, Eal, EalError, Memory, Offloads, Pool, PoolConfig, PoolError, Port,
    PortConfig, PortError, Started,
};

use crate::worker::handoff::HANDOFF_RING_ITEMS;
use crate::worker::link::QueuePair;
use crate::worker::network::PortParts;

/// Descriptors of each queue.
const DESCRIPTORS: u16 = 1024;
/// Mbufs that each lcore keeps to itself.
const CACHE: u32 = 256;
/// Octets of a frame beside its IP packet: Ethernet header, VLAN tag, check sequence; and what a
/// packet grows behind when it is sealed where it lies.
const AROUND_PACKET: u16 = 22 + 32;
/// Least octets behind an mbuf's headroom: what drivers without scatter want.
const ROOM_MIN: u16 = 2048;
/// Largest frame of a device's ring for which there are buffers.
const FRAME_MAX: u16 = 16_384;
/// The driver of kernel interfaces that DPDK makes.
const TAP_DRIVER: &str = "net_tap";
/// Octets of an mbuf's headroom.
const HEADROOM: u16 = 128;

/// A device or its memory could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortsError {
    /// DPDK did not start.
    #[error(transparent)]
    Eal(#[from] EalError),
    /// No memory for packets.
    #[error("{0}; raise dataplane.memory_mib or lower the number of workers")]
    Pool(#[from] PoolError),
    /// A port.
    #[error("the {side} port: {source}")]
    Port {
        /// Which side's.
        side: &'static str,
        /// What is wrong with it.
        source: PortError,
    },
    /// No CPU.
    #[error("cannot tell which CPUs this process may use: {0}")]
    Cpus(#[from] std::io::Error),
}

/// One worker's queue pairs: the outer side's, and the inner side's unless it is the same port.
pub(super) type WorkerPorts = (PortParts<QueuePair>, Option<PortParts<QueuePair>>);

/// The ports, running.
pub(super) struct Ports {
    /// For link state and statistics, with the side's name.
    pub(super) ports: Vec<(&'static str, Port)>,
    /// Where all buffers come from.
    pub(super) pool: Pool,
    /// By worker.
    pub(super) workers: Vec<WorkerPorts>,
}

/// Starts DPDK as the configuration says.
///
/// # Errors
/// [`PortsError::Eal`], or [`PortsError::Cpus`] when the worker's core is to be found here.
pub(super) fn start_eal(dataplane: &Dataplane) -> Result<Eal, PortsError> {
    let mib = dataplane.memory_mib;
    let memory = if dataplane.hugepages { Memory::Huge { mib } } else { Memory::Small { mib } };
    let mut cpus: Vec<u32> = dataplane.lcores.iter().copied().map(u32::from).collect();
    if cpus.is_empty() {
        cpus.extend(culvert_dpdk::available_cpus()?.first());
    }
    let mut builder = Eal::builder()
        .workers(cpus)
        .memory(memory)
        .file_prefix(format!("culvert-{}", std::process::id()))
        .device(&dataplane.outer_device);
    if let Some(inner) = &dataplane.inner_device {
        builder = builder.device(inner);
    }
    Ok(builder.init()?)
}

impl Ports {
    /// Opens and starts the ports, with as many queue pairs each as there are workers.
    ///
    /// # Errors
    /// Names the side and what is wrong.
    pub(super) fn open(eal: Eal, dataplane: &Dataplane) -> Result<Self, PortsError> {
        let workers = dataplane.workers();
        let ports = 1 + u32::from(dataplane.inner_device.is_some());
        let pool = Pool::new(eal, &pool_config(dataplane, ports))?;
        let outer = start(
            eal,
            "outer",
            &dataplane.outer_device,
            dataplane.outer.mtu,
            workers,
            pool,
            ports > 1,
        )?;
        let mut opened = vec![("outer", outer.0)];
        let mut inner_queues = Vec::new();
        if let Some(device) = &dataplane.inner_device {
            let (port, queues) =
                start(eal, "inner", device, dataplane.inner.mtu, workers, pool, false)?;
            opened.push(("inner", port));
            inner_queues = queues;
        }
        let inner_queues = inner_queues.into_iter().map(Some).chain(iter::repeat_with(|| None));
        let workers = outer.1.into_iter().zip(inner_queues).collect();
        Ok(Self { ports: opened, pool, workers })
    }
}

/// Enough for all descriptors, rings between workers, bursts and caches.
fn pool_config(dataplane: &Dataplane, ports: u32) -> PoolConfig {
    let workers = u32::from(dataplane.workers());
    let queues = 2 * u32::from(DESCRIPTORS) * ports;
    let rings = HANDOFF_RING_ITEMS as u32 * (workers - 1);
    let bursts = 16 * BURST_SIZE as u32;
    let mbufs = workers * (queues + rings + bursts + 2 * CACHE);
    let mtu = dataplane.outer.mtu.max(dataplane.inner.mtu);
    let devices = [Some(&dataplane.outer_device), dataplane.inner_device.as_ref()];
    let frame = devices.into_iter().flatten().filter_map(|device| frame_size(device)).max();
    let room = (mtu + AROUND_PACKET).max(ROOM_MIN).max(frame.unwrap_or(0));
    PoolConfig {
        mbufs: mbufs.next_power_of_two() - 1,
        cache: CACHE,
        data_room: room.next_multiple_of(64) + HEADROOM,
        ..PoolConfig::named("packets")
    }
}

/// The frames of net_af_packet's ring, where the device string sets them. The kernel puts IPv4
/// fragments together before they reach that ring, so frames may be longer than the MTU.
fn frame_size(device: &str) -> Option<u16> {
    let size = device.split(',').find_map(|argument| argument.strip_prefix("framesz="))?;
    size.parse().ok().filter(|size| *size <= FRAME_MAX)
}

/// The offloads to use. Segments that arrive `coalesced` are only for a port from which nothing is
/// forwarded in plain.
fn wanted(device: &Device, coalesced: bool) -> Offloads {
    Offloads {
        rx_lro: coalesced,
        // DPDK 22.11's net_tap cuts IPv4 only, and counts the Ethernet header against the MTU, so
        // that it refuses full segments.
        tx_tso: device.driver() != TAP_DRIVER,
        ..Offloads::ALL
    }
}

fn start(
    eal: Eal,
    side: &'static str,
    device: &str,
    mtu: u16,
    queues: u16,
    pool: Pool,
    coalesced: bool,
) -> Result<(Port, Vec<PortParts<QueuePair>>), PortsError> {
    let failed = |source| PortsError::Port { side, source };
    let device = Device::open(eal, device).map_err(failed)?;
    let config = PortConfig {
        rx_queues: queues,
        tx_queues: queues,
        rx_descriptors: DESCRIPTORS,
        tx_descriptors: DESCRIPTORS,
        mtu,
        offloads: wanted(&device, coalesced),
        ..PortConfig::default()
    };
    let tx_segments_max = device.tx_segments_max();
    let Started { port, rx_queues, tx_queues } = device.start(&config, &[pool]).map_err(failed)?;
    let (mac, offloads) = (port.mac(), port.offloads());
    let pairs = rx_queues.into_iter().zip(tx_queues);
    let parts = pairs
        .map(|(rx, tx)| PortParts { link: QueuePair { rx, tx }, mac, offloads, tx_segments_max })
        .collect();
    Ok((port, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_hold_the_frames_that_the_device_string_asks_for() {
        assert_eq!(frame_size("net_af_packet0,iface=inner0,framesz=8192,blocksz=8192"), Some(8192));
        assert_eq!(frame_size("net_af_packet0,iface=framesz"), None);
        assert_eq!(frame_size("net_af_packet0,framesz=60000"), None);
    }
}
