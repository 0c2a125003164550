//! A DPDK port (net_af_packet) that carries IP packets to one neighbour.

use anyhow::Result;
use culvert_dpdk::{
    Burst, ChecksumStatus, Device, Eal, IpVersion, L4, Pool, Port, PortConfig, RxQueue, Started,
    TxOffload, TxQueue, devargs,
};
use culvert_tcpstack::{Packet, RxChecksum, Transmit};

/// Octets of an Ethernet header.
const ETHERNET: usize = 14;
/// Bursts taken from a port in one turn.
const BURSTS: usize = 8;

/// A started port, its queue pair, and packets that wait to be sent.
pub struct Leg {
    // The queues before the port, which closes the device when the last is gone.
    rx: RxQueue,
    tx: TxQueue,
    port: Port,
    pool: Pool,
    to: [u8; 6],
    out: Burst,
    received: Burst,
    /// Checksums and segments are the device's.
    device_work: bool,
    segments_max: u16,
    /// Packets that it was asked to cut.
    pub cut: u64,
    /// Packets that came as several segments in one.
    pub coalesced: u64,
    aside: Box<[u8]>,
    /// Packets that found neither a buffer nor room.
    pub dropped: u64,
}

impl Leg {
    /// Opens a port on `interface` of the calling thread's namespace; all frames go to `to`.
    ///
    /// # Errors
    /// DPDK refuses.
    pub fn open(eal: Eal, pool: Pool, number: u16, interface: &str, to: [u8; 6]) -> Result<Self> {
        let device = format!("{},framecnt=4096", devargs::af_packet(number, interface, 1));
        let config = PortConfig { promiscuous: true, ..PortConfig::default() };
        Self::start(Device::open(eal, &device)?, &config, pool, to)
    }

    /// Starts a device; all frames go to `to`.
    ///
    /// # Errors
    /// DPDK refuses.
    pub fn start(device: Device, config: &PortConfig, pool: Pool, to: [u8; 6]) -> Result<Self> {
        let segments_max = device.tx_segments_max();
        let Started { port, mut rx_queues, mut tx_queues } = device.start(config, &[pool])?;
        let (Some(rx), Some(tx)) = (rx_queues.pop(), tx_queues.pop()) else {
            anyhow::bail!("the device has no queue pair");
        };
        Ok(Self {
            rx,
            tx,
            segments_max,
            device_work: port.offloads().tx_tso,
            port,
            pool,
            to,
            out: Burst::new(),
            received: Burst::new(),
            cut: 0,
            coalesced: 0,
            aside: vec![0; ETHERNET + usize::from(u16::MAX)].into_boxed_slice(),
            dropped: 0,
        })
    }

    /// The longest packet that the device cuts, in octets; 0 if it cuts none.
    #[must_use]
    pub fn packet_bytes_max(&self) -> usize {
        let chain = usize::from(self.segments_max) * self.pool.room() as usize;
        if self.device_work { chain.min(self.pool.packet_bytes_max()) - ETHERNET } else { 0 }
    }

    /// The port itself.
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Gives received IP packets to `take`; whether there were any.
    pub fn receive(&mut self, mut take: impl FnMut(&mut [u8], RxChecksum)) -> bool {
        for turn in 0..BURSTS {
            if self.rx.burst(&mut self.received) == 0 {
                return turn > 0;
            }
            for mut mbuf in self.received.drain() {
                let checksum = match mbuf.l4_checksum() {
                    ChecksumStatus::Good | ChecksumStatus::Absent => RxChecksum::Verified,
                    ChecksumStatus::Unknown | ChecksumStatus::Bad => RxChecksum::Unknown,
                };
                let frame = if mbuf.is_contiguous() {
                    mbuf.data_mut()
                } else {
                    self.coalesced += 1;
                    let len = mbuf.read(0, &mut self.aside);
                    &mut self.aside[..len]
                };
                match frame {
                    [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, packet @ ..]
                    | [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, packet @ ..] => {
                        take(packet, checksum);
                    }
                    _ => {}
                }
            }
        }
        true
    }

    /// Sends one IP packet, at the latest with the next [`Leg::flush`].
    pub fn send(&mut self, packet: &[u8]) {
        if self.has_room() {
            let (bytes, mut at) = (packet.len(), 0);
            self.packet(Packet { bytes, segment_bytes: None }, |room| {
                room.copy_from_slice(&packet[at..at + room.len()]);
                at += room.len();
            });
        } else {
            self.dropped += 1;
        }
    }

    /// Sends what waits, as far as the device takes it.
    pub fn flush(&mut self) {
        self.tx.burst(&mut self.out);
    }
}

impl Transmit for Leg {
    fn has_room(&mut self) -> bool {
        if self.out.is_full() {
            self.flush();
        }
        !self.out.is_full() && self.pool.available() > 64
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        let mut first = true;
        let filled = self.pool.packet(ETHERNET + packet.bytes, |room| {
            if !std::mem::take(&mut first) {
                return fill(room);
            }
            let (header, room) = room.split_at_mut(ETHERNET);
            fill(room);
            let ethertype = if room[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
            header[..6].copy_from_slice(&self.to);
            header[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
            header[12..].copy_from_slice(&ethertype);
        });
        let Some(mut mbuf) = filled else {
            self.dropped += 1;
            return;
        };
        if self.device_work {
            let ip_checksum = self.port.offloads().tx_ip_checksum;
            mbuf.request(&request(mbuf.data(), packet.segment_bytes, ip_checksum));
        }
        self.cut += u64::from(packet.segment_bytes.is_some());
        self.dropped += u64::from(self.out.push(mbuf).is_err());
    }
}

/// What the device is to do for a segment.
fn request(frame: &[u8], tso_segment: Option<u16>, ip_checksum: bool) -> TxOffload {
    let (ip, l3_len) = if frame[12] == 8 { (IpVersion::V4, 20) } else { (IpVersion::V6, 40) };
    TxOffload {
        l2_len: ETHERNET as u8,
        l3_len,
        l4_len: (frame[ETHERNET + usize::from(l3_len) + 12] >> 4) * 4,
        ip,
        ip_checksum: ip_checksum && ip == IpVersion::V4 && tso_segment.is_some(),
        l4_checksum: Some(L4::Tcp),
        tso_segment,
    }
}
