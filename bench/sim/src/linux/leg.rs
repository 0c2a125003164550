//! A DPDK port (net_af_packet) that carries IP packets to one neighbour.

use anyhow::Result;
use culvert_dpdk::{
    Burst, Device, Eal, Pool, Port, PortConfig, RxQueue, Started, TxQueue, devargs,
};
use culvert_tcpstack::Transmit;

/// Octets of an Ethernet header.
const ETHERNET: usize = 14;
/// Bursts taken from a port in one turn.
const BURSTS: usize = 8;

/// A started port, its queue pair, and packets that wait to be sent.
pub struct Leg {
    // The queues before the port, which closes the device when the last is gone.
    rx: RxQueue,
    tx: TxQueue,
    _port: Port,
    pool: Pool,
    to: [u8; 6],
    out: Burst,
    received: Burst,
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
        let Started { port, mut rx_queues, mut tx_queues } =
            Device::open(eal, &device)?.start(&config, &[pool])?;
        let (Some(rx), Some(tx)) = (rx_queues.pop(), tx_queues.pop()) else {
            anyhow::bail!("{interface} has no queue pair");
        };
        let (out, received) = (Burst::new(), Burst::new());
        Ok(Self { rx, tx, _port: port, pool, to, out, received, dropped: 0 })
    }

    /// Gives received IP packets to `take`; whether there were any.
    pub fn receive(&mut self, mut take: impl FnMut(&mut [u8])) -> bool {
        for turn in 0..BURSTS {
            if self.rx.burst(&mut self.received) == 0 {
                return turn > 0;
            }
            for mut mbuf in self.received.drain() {
                match mbuf.data_mut() {
                    [_, _, _, _, _, _, _, _, _, _, _, _, 8, 0, packet @ ..]
                    | [_, _, _, _, _, _, _, _, _, _, _, _, 0x86, 0xdd, packet @ ..] => take(packet),
                    _ => {}
                }
            }
        }
        true
    }

    /// Sends one IP packet, at the latest with the next [`Leg::flush`].
    pub fn send(&mut self, packet: &[u8]) {
        if self.has_room() {
            self.packet(packet.len(), |room| room.copy_from_slice(packet));
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

    fn packet<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut aside = Vec::new();
        let mut mbuf = self.pool.alloc();
        let room = mbuf.as_mut().and_then(|mbuf| mbuf.append(ETHERNET + len));
        let (whole, lost) = match room {
            Some(room) => (room, false),
            None => {
                aside.resize(ETHERNET + len, 0);
                (&mut aside[..], true)
            }
        };
        whole[..6].copy_from_slice(&self.to);
        whole[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
        let result = fill(&mut whole[ETHERNET..]);
        let ethertype = if whole[ETHERNET] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
        whole[12..14].copy_from_slice(&ethertype);
        let refused = mbuf.is_none_or(|mbuf| self.out.push(mbuf).is_err());
        self.dropped += u64::from(lost || refused);
        result
    }
}
