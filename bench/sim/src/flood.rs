//! What floods cost: cycles for each hostile segment next to an ordinary one in the same run, and
//! what becomes of a peer that connects and sends while SYNs come as fast as one core takes them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, Result, ensure};
use culvert_dpdk::tsc;
use culvert_tcpstack::{
    CongestionControl, ConnId, Event, Instant, RxChecksum, Stack, StackConfig, TcpSecret,
    TxChecksum,
};

use crate::cost::{BATCH, Bench, EnginePair, PORT, Packets, median};
use crate::packet::{Segment, flags};
use crate::random::Random;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 9));
/// Hostile segments that come with each turn of the peer.
const TURN: usize = 8 * BATCH;
/// Octets of the peer's frames.
const FRAME: usize = 1400;

/// A kind of hostile segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hostile {
    /// SYNs from everywhere, each answered by a cookie (RFC 4987, 3.6).
    Syn,
    /// Acknowledgments of cookies that nobody sent.
    Cookie,
    /// RSTs in the window of an open connection (RFC 5961, 3.2).
    Reset,
    /// SYNs on an open connection (RFC 5961, 4.2).
    Restart,
    /// Data in the window of an open connection, without its timestamps (RFC 7323, 3.2).
    Data,
}

impl Hostile {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Syn, Self::Cookie, Self::Reset, Self::Restart, Self::Data];

    /// A segment of it; `peer` is the last true one of an open connection. None is at the left edge
    /// of the window.
    fn segment(self, peer: &Segment, random: &mut Random) -> Segment {
        let word = random.draw();
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        let anyone = SocketAddr::from(([11 + a % 80, b, c, d], u16::from_be_bytes([e, f]).max(1)));
        let next = peer.seq.wrapping_add(peer.sequence_len());
        let blind = Segment {
            seq: next.wrapping_add(1 + u32::from(u16::from_be_bytes([g, h])) % 60_000),
            options: Vec::new(),
            ..peer.clone()
        };
        let (flags, ack) = (flags::SYN, word as u32);
        let payload = vec![0xee; 100];
        match self {
            Self::Syn => {
                let options = vec![2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
                Segment { source: anyone, flags, ack: 0, options, ..blind }
            }
            Self::Cookie => Segment { source: anyone, ack, ..blind },
            Self::Reset => Segment { flags: flags::RST, ..blind },
            Self::Restart => Segment { flags, ..blind },
            Self::Data => Segment { payload, ..blind },
        }
    }
}

/// What a flood costs and what a peer has of it.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// The kind.
    pub hostile: Hostile,
    /// Cycles for a hostile segment, its answer included.
    pub cycles: f64,
    /// Hostile segments a second that one core takes, with the peer's own beside them.
    pub per_second: f64,
    /// Octets of the flood that stayed in buffers.
    pub buffer_bytes: u64,
    /// What the peer got through in the same virtual time, against a run without the flood.
    pub share: f64,
}

/// Cycles for an ordinary segment of data received, read and acknowledged.
///
/// # Errors
/// The connection does not open, or nothing moves.
pub fn ordinary(segments: usize) -> Result<f64> {
    let now = Instant(1_000_000);
    let mut bench = Bench::new(EnginePair::new(1, CongestionControl::Bbr, now)?, 1, now);
    bench.run(segments)?;
    Ok(bench.run(segments)?.received)
}

/// Floods a stack with `count` segments while a peer uses it.
///
/// # Errors
/// The peer cannot connect at its first attempt, or the connection ends.
pub fn line(hostile: Hostile, count: usize) -> Result<Line> {
    let turns = count.div_ceil(TURN);
    let calm = Site::new()?.run(None, turns)?;
    let mut site = Site::new()?;
    let started = Clock::now();
    let flooded = site.run(Some(hostile), turns)?;
    let seconds = started.elapsed().as_secs_f64() - site.making.as_secs_f64();
    Ok(Line {
        hostile,
        cycles: median(std::mem::take(&mut site.cycles)),
        per_second: (turns * TURN) as f64 / seconds,
        buffer_bytes: site.server.stats().buffer_bytes,
        share: flooded as f64 / calm as f64,
    })
}

/// A server and its peer, which are one round trip apart in each turn.
struct Site {
    client: Stack,
    server: Stack,
    random: Random,
    now: Instant,
    received: u64,
    /// Cycles for a hostile segment, in each turn.
    cycles: Vec<f64>,
    /// The time that making hostile segments took.
    making: Duration,
    /// The peer's last segment.
    last: Option<Segment>,
    to_server: Packets,
    to_client: Packets,
}

impl Site {
    fn new() -> Result<Self> {
        let config = StackConfig {
            tx_checksum: TxChecksum::Device,
            secret: TcpSecret::new([9; 32], Instant::ZERO),
            ..StackConfig::default()
        };
        let mut server = Stack::new(config.clone(), [1; 32])?;
        server.listen(PORT);
        Ok(Self {
            client: Stack::new(config, [2; 32])?,
            server,
            random: Random::new(5),
            now: Instant(1_000_000),
            received: 0,
            cycles: Vec::new(),
            making: Duration::ZERO,
            last: None,
            to_server: Packets::default(),
            to_client: Packets::default(),
        })
    }

    /// Octets that the peer gets through in so many turns. It connects amidst a flood of SYNs or
    /// cookies; one of its own connection begins when that is there.
    fn run(&mut self, hostile: Option<Hostile>, turns: usize) -> Result<u64> {
        let server = SocketAddr::new(SERVER.into(), PORT);
        let id = self.client.connect(self.now, PEER, server)?;
        for _ in 0..turns {
            self.now = self.now + Duration::from_millis(2);
            let last = self.last.clone();
            let is_there = last.as_ref().is_some_and(|last| last.flags & flags::SYN == 0);
            let anywhere = matches!(hostile, Some(Hostile::Syn | Hostile::Cookie));
            if let Some(hostile) = hostile.filter(|_| is_there || anywhere) {
                self.flood(hostile, &last.unwrap_or_else(|| template(server)));
            }
            self.use_connection(id)?;
        }
        ensure!(self.client.info(id).is_some_and(|info| info.octets_out > 0), "never connected");
        Ok(self.received)
    }

    fn flood(&mut self, hostile: Hostile, peer: &Segment) {
        let started = Clock::now();
        let mut packets: Vec<Vec<u8>> =
            (0..TURN).map(|_| hostile.segment(peer, &mut self.random).packet()).collect();
        self.making += started.elapsed();
        for batch in packets.chunks_mut(BATCH) {
            self.to_client.clear();
            let start = tsc();
            for packet in &mut *batch {
                self.server.handle_segment(self.now, packet, RxChecksum::Verified, &mut |_, _| 0);
            }
            self.server.poll_transmit(self.now, &mut self.to_client);
            self.cycles.push((tsc() - start) as f64 / batch.len() as f64);
        }
    }

    /// The peer sends what it may, the server reads and answers.
    fn use_connection(&mut self, id: ConnId) -> Result<()> {
        let Self { client, server, now, received, .. } = self;
        for stack in [&mut *client, &mut *server] {
            if stack.poll_timeout().is_some_and(|at| at <= *now) {
                stack.handle_timeout(*now);
            }
        }
        for _ in 0..BATCH {
            let _: Result<_, _> = client.send_with(id, FRAME, |room| room.len());
        }
        self.to_server.clear();
        client.poll_transmit(*now, &mut self.to_server);
        for packet in self.to_server.iter_mut() {
            self.last = Segment::read(packet);
            server.handle_segment(*now, packet, RxChecksum::Verified, &mut |_, octets| {
                *received += octets.len() as u64;
                octets.len()
            });
        }
        while let Some(event) = server.poll_event() {
            if let Event::Opened { id, .. } = event {
                server.vouch(id);
            }
        }
        self.to_client.clear();
        server.poll_transmit(*now, &mut self.to_client);
        for packet in self.to_client.iter_mut() {
            let segment = Segment::read(packet).context("an answer that is no TCP")?;
            if segment.destination.ip() == PEER {
                client.handle_segment(*now, packet, RxChecksum::Verified, &mut |_, _| 0);
            }
        }
        while let Some(event) = client.poll_event() {
            ensure!(!matches!(event, Event::Closed { .. }), "the peer's connection: {event:?}");
        }
        Ok(())
    }
}

/// A segment to the server before the peer has sent one.
fn template(server: SocketAddr) -> Segment {
    Segment {
        source: SocketAddr::new(PEER, 1),
        destination: server,
        seq: 0,
        ack: 0,
        flags: flags::ACK,
        window: 1000,
        options: Vec::new(),
        payload: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4987, 3.6 and RFC 5961: no flood keeps the peer out, slows it down or holds memory.
    #[test]
    fn a_peer_has_its_share_in_every_flood() {
        for hostile in Hostile::ALL {
            let line = line(hostile, 20_000).unwrap();
            assert!(line.share > 0.95, "{line:?}");
            assert!(line.buffer_bytes <= 1 << 20, "{line:?}");
        }
    }
}
