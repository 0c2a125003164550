//! Cycles for a segment and octets for a connection, next to smoltcp's sockets.
//!
//! Two stacks hold the same connections, one at each end. Batches of 32 segments go from one to the
//! other, from two connections to sixteen at a time, then the next ones: each connection in turn,
//! so that with many of them every segment finds its connection cold. What the sender does (write,
//! send, take the ACK) and what the receiver does (take, read, acknowledge) are timed apart.
//! It is like for like: both ends of both have timestamps, SACK and CUBIC, segments are full ones, one
//! ACK answers a connection's share of a batch, checksums are the device's, and what is written is
//! copied into the send buffer and from there into the packet. The engine with BBR, the gateway's
//! default, has columns of its own. All alternate within one run, and a fixed loop between them shows
//! how fast the machine was at the time.

mod engine;
mod memory;
mod sockets;

use std::hash::Hasher;

use anyhow::{Result, ensure};
use culvert_dpdk::tsc;
use culvert_tcpstack::{CongestionControl, Instant, Packet, Transmit};
use siphasher::sip::SipHasher13;

pub use engine::EnginePair;
pub use memory::{Octets, octets};
pub use sockets::SocketPair;

/// Segments in a batch.
pub const BATCH: usize = 32;
/// Octets of a segment, and of a write.
pub const PAYLOAD: usize = 1400;
/// With this MTU such a segment is a full one, as nearly all of a busy tunnel are: two of them are
/// acknowledged at once (RFC 9293, 3.8.6.3).
pub(crate) const MTU: u16 = 1452;
/// The port of the end that listens.
pub(crate) const PORT: u16 = 4500;
/// Connections of one local address.
pub(crate) const PER_ADDRESS: usize = 10_000;
/// Virtual time between two batches, in microseconds.
const TICK: u64 = 1_000;

/// Two ends with connections between them.
pub trait Pair {
    /// The end of the data (0) writes one segment to each of `connections`, `each` times, and sends
    /// what may be sent.
    fn send(&mut self, now: Instant, connections: &[usize], each: usize, out: &mut Packets);
    /// An end takes packets and reads everything in them.
    fn receive(&mut self, end: usize, now: Instant, packets: &mut Packets);
    /// An end sends what is due.
    fn transmit(&mut self, end: usize, now: Instant, out: &mut Packets);
    /// Octets that the end of the data has got to the other's caller.
    fn received(&self) -> u64;
}

/// A batch of packets in memory that is used again.
pub struct Packets {
    octets: Vec<[u8; 1536]>,
    lens: Vec<usize>,
}

impl Default for Packets {
    fn default() -> Self {
        Self { octets: vec![[0; 1536]; 4 * BATCH], lens: Vec::new() }
    }
}

impl Packets {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// The packets.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.octets.iter_mut().zip(&self.lens).map(|(octets, len)| &mut octets[..*len])
    }

    /// Loses one of them.
    pub fn lose(&mut self, at: usize) {
        if at < self.lens.len() {
            self.lens.remove(at);
            self.octets[at..].rotate_left(1);
        }
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.lens.clear();
    }
}

impl Transmit for Packets {
    fn has_room(&mut self) -> bool {
        self.lens.len() < self.octets.len()
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        fill(&mut self.octets[self.lens.len()][..packet.bytes]);
        self.lens.push(packet.bytes);
    }
}

/// Cycles for one segment of data.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cycles {
    /// Received, read, acknowledged.
    pub received: f64,
    /// Written, sent, its ACK taken.
    pub sent: f64,
}

/// A pair of ends, where the turn is, and its clock.
pub struct Bench<P> {
    pair: P,
    connections: usize,
    next: usize,
    now: Instant,
    data: Packets,
    acks: Packets,
}

impl<P: Pair> Bench<P> {
    /// All connections are open.
    pub fn new(pair: P, connections: usize, now: Instant) -> Self {
        let (data, acks) = (Packets::default(), Packets::default());
        Self { pair, connections, next: 0, now, data, acks }
    }

    /// Moves at least `segments` segments and gives the cycles for each: the median of the
    /// batches, which an interrupt or another process does not shift.
    ///
    /// # Errors
    /// Nothing moves.
    pub fn run(&mut self, segments: usize) -> Result<Cycles> {
        let at_once = (BATCH / 2).min(self.connections);
        let each = BATCH / at_once;
        let (mut sent, mut received, mut moved, mut batches) = (Vec::new(), Vec::new(), 0, 0);
        let mut turn: Vec<usize> = Vec::with_capacity(at_once);
        while moved < segments {
            turn.clear();
            turn.extend((0..at_once).map(|step| (self.next + step) % self.connections));
            self.next = (self.next + at_once) % self.connections;
            let (segments, cycles) = self.batch(&turn, each);
            if segments > 0 {
                sent.push(cycles.sent / segments as f64);
                received.push(cycles.received / segments as f64);
            }
            moved += segments;
            batches += 1;
            ensure!(
                batches < 1000 + 20 * moved.max(BATCH),
                "{moved} segments in {batches} batches"
            );
        }
        Ok(Cycles { received: median(received), sent: median(sent) })
    }

    /// One batch: how many segments it moved, and the cycles for all of them.
    fn batch(&mut self, turn: &[usize], each: usize) -> (usize, Cycles) {
        self.now = Instant(self.now.0 + TICK);
        self.data.clear();
        self.acks.clear();
        let before = self.pair.received();
        let start = tsc();
        self.pair.send(self.now, turn, each, &mut self.data);
        let middle = tsc();
        self.pair.receive(1, self.now, &mut self.data);
        self.pair.transmit(1, self.now, &mut self.acks);
        let end = tsc();
        self.pair.receive(0, self.now, &mut self.acks);
        let sent = middle - start + (tsc() - end);
        let segments = (self.pair.received() - before) as usize / PAYLOAD;
        (segments, Cycles { received: (end - middle) as f64, sent: sent as f64 })
    }
}

/// One line of the table: medians over the rounds.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// How many connections have their turns.
    pub connections: usize,
    /// The engine with CUBIC.
    pub engine: Cycles,
    /// The engine with BBR.
    pub bbr: Cycles,
    /// smoltcp's sockets.
    pub sockets: Cycles,
    /// The fixed loop, in thousands of cycles.
    pub calibration: f64,
}

/// Measures both, alternating, with so many connections.
///
/// # Errors
/// A connection does not open, or nothing moves.
pub fn line(connections: usize, rounds: usize) -> Result<Line> {
    let now = Instant(1_000_000);
    let engine = |control| -> Result<_> {
        Ok(Bench::new(EnginePair::new(connections, control, now)?, connections, now))
    };
    let (mut engine, mut bbr) =
        (engine(CongestionControl::Cubic)?, engine(CongestionControl::Bbr)?);
    let mut sockets = Bench::new(SocketPair::new(connections, now)?, connections, now);
    // Every connection twice, so that windows are open and memory is there.
    let warm_up = 4 * connections.max(1000);
    engine.run(warm_up)?;
    bbr.run(warm_up)?;
    sockets.run(warm_up)?;
    let mut columns: [Vec<f64>; 7] = Default::default();
    for _ in 0..rounds {
        let segments = 20_000;
        let (engine, sockets) = (engine.run(segments)?, sockets.run(segments)?);
        let bbr = bbr.run(segments)?;
        let values = [
            engine.received,
            engine.sent,
            bbr.received,
            bbr.sent,
            sockets.received,
            sockets.sent,
            calibrate(),
        ];
        for (column, value) in columns.iter_mut().zip(values) {
            column.push(value);
        }
    }
    let [engine_in, engine_out, bbr_in, bbr_out, sockets_in, sockets_out, calibration] =
        columns.map(median);
    Ok(Line {
        connections,
        engine: Cycles { received: engine_in, sent: engine_out },
        bbr: Cycles { received: bbr_in, sent: bbr_out },
        sockets: Cycles { received: sockets_in, sent: sockets_out },
        calibration,
    })
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The same work every time: SipHash of 64 KiB. In thousands of cycles.
fn calibrate() -> f64 {
    let octets = vec![7; 1 << 16];
    let start = tsc();
    let mut hasher = SipHasher13::new();
    hasher.write(std::hint::black_box(&octets));
    std::hint::black_box(hasher.finish());
    (tsc() - start) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is compared is the same work: no more segments, and no other acknowledgments, than those
    /// of the batch.
    #[test]
    fn a_batch_is_the_same_for_both() {
        fn batches<P: Pair>(mut bench: Bench<P>) -> Vec<(usize, usize)> {
            let turns = [[0, 1, 2, 3], [4, 5, 6, 7]];
            bench.run(1000).unwrap(); // Windows are open.
            let one = |turn: &[usize; 4]| {
                let (segments, _) = bench.batch(turn, 2);
                assert_eq!(segments, 8);
                (bench.data.len(), bench.acks.len())
            };
            turns.iter().cycle().take(100).map(one).collect()
        }
        let now = Instant(1_000_000);
        let engine = EnginePair::new(8, CongestionControl::Cubic, now).unwrap();
        let sockets = SocketPair::new(8, now).unwrap();
        assert_eq!(batches(Bench::new(engine, 8, now)), [(8, 4); 100]);
        assert_eq!(batches(Bench::new(sockets, 8, now)), [(8, 4); 100]);
    }
}
