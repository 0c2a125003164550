//! Two connections and a link between them in virtual time: that a controller, recovery and pacing
//! together do what each promises alone.

use super::buffer::ChunkPool;
use super::congestion::CongestionControl;
use super::connection::{Connection, Context, Settings, State};
use super::segment::{FourTuple, parse};
use crate::api::{Packet, Transmit};
use crate::config::{RxChecksum, TxChecksum};
use crate::time::{Duration, Instant};
use std::collections::BinaryHeap;

/// A small generator, so that a seed replays a run (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn chance(&mut self, per_million: u64) -> bool {
        self.next() % 1_000_000 < per_million
    }
}

/// One direction of a link.
#[derive(Clone, Copy, Debug)]
struct LinkModel {
    octets_per_sec: u64,
    delay: Duration,
    queue_octets: u64,
    loss_per_million: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    at: std::cmp::Reverse<(Instant, u64)>,
    to: usize,
    packet: Vec<u8>,
}

struct End {
    connection: Connection,
    pool: ChunkPool,
    settings: Settings,
    head_of_line: hdrhistogram::Histogram<u64>,
    received: u64,
    busy_until: Instant,
}

struct Out(Vec<Vec<u8>>);
impl Transmit for Out {
    fn has_room(&mut self) -> bool {
        true
    }
    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        let mut octets = vec![0; packet.bytes];
        fill(&mut octets);
        self.0.push(octets);
    }
}

struct Pair {
    now: Instant,
    ends: [End; 2],
    link: LinkModel,
    random: Random,
    flight: BinaryHeap<InFlight>,
    serial: u64,
    written: u64,
}

fn settings(congestion_control: CongestionControl) -> Settings {
    Settings {
        mtu: 1500,
        receive_max: 16 << 20,
        send_max: 16 << 20,
        window_scale: 9,
        congestion_control,
        user_timeout: Duration::from_secs(100),
        connect_timeout: Duration::from_secs(20),
        keepalive: None,
        time_wait: Duration::from_secs(60),
        tx_checksum: TxChecksum::Software,
        segmentation_bytes: 0,
    }
}

impl Pair {
    fn new(control: CongestionControl, link: LinkModel, seed: u64) -> Self {
        let now = Instant::from_micros(1_000_000);
        let a: std::net::SocketAddr = "192.0.2.1:1000".parse().unwrap();
        let b: std::net::SocketAddr = "192.0.2.2:4500".parse().unwrap();
        let settings = settings(control);
        let end = |local, remote, isn| {
            let tuple = FourTuple::new(local, remote);
            End {
                connection: Connection::open(tuple, isn, 77, &settings, now),
                pool: ChunkPool::new(64 << 20),
                settings,
                head_of_line: hdrhistogram::Histogram::new_with_bounds(1, 60_000_000, 2).unwrap(),
                received: 0,
                busy_until: now,
            }
        };
        Self {
            now,
            ends: [end(a, b, 0xffff_ff00), end(b, a, 0x7fff_ff00)],
            link,
            random: Random(seed),
            flight: BinaryHeap::new(),
            serial: 0,
            written: 0,
        }
    }

    fn with<R>(
        &mut self,
        side: usize,
        f: impl FnOnce(&mut Connection, &mut Context<'_>) -> R,
    ) -> R {
        let now = self.now;
        let end = &mut self.ends[side];
        let mut context = Context {
            now,
            settings: &end.settings,
            pool: &mut end.pool,
            head_of_line: &mut end.head_of_line,
        };
        f(&mut end.connection, &mut context)
    }

    /// Sends what side `side` has to say onto the link.
    fn flush(&mut self, side: usize) {
        let mut out = Out(Vec::new());
        self.with(side, |connection, context| connection.transmit(context, u64::MAX, &mut out));
        for packet in out.0 {
            self.put(side, packet);
        }
    }

    fn put(&mut self, side: usize, packet: Vec<u8>) {
        let link = self.link;
        let start = self.ends[side].busy_until.max(self.now);
        let queued = start.since(self.now).as_secs_f64() * link.octets_per_sec as f64;
        if queued > link.queue_octets as f64 || self.random.chance(link.loss_per_million) {
            return;
        }
        let time = Duration::from_nanos(packet.len() as u64 * 1_000_000_000 / link.octets_per_sec);
        let done = start + time.max(Duration::from_micros(1));
        self.ends[side].busy_until = done;
        self.serial += 1;
        let at = std::cmp::Reverse((done + link.delay, self.serial));
        self.flight.push(InFlight { at, to: 1 - side, packet });
    }

    /// Runs until the next thing happens. `false` when nothing ever will.
    fn step(&mut self) -> bool {
        let deadlines = [0, 1].map(|side| self.with(side, |c, context| c.deadline(context)));
        let arrival = self.flight.peek().map(|f| f.at.0.0);
        let Some(next) = deadlines.into_iter().flatten().chain(arrival).min() else { return false };
        self.now = self.now.max(next);
        while self.flight.peek().is_some_and(|f| f.at.0.0 <= self.now) {
            let arrived = self.flight.pop().unwrap();
            self.deliver(arrived.to, arrived.packet);
        }
        for side in 0..2 {
            self.with(side, |c, context| c.handle_timeout(context));
            self.flush(side);
        }
        true
    }

    fn deliver(&mut self, side: usize, mut packet: Vec<u8>) {
        let arrived = parse(&packet, RxChecksum::Unknown).expect("our own packets are well formed");
        let (before, mut got) = (self.ends[side].received, 0);
        self.with(side, |connection, context| {
            connection.handle(
                context,
                &arrived.segment,
                &mut packet[arrived.payload.clone()],
                &mut |octets: &mut [u8]| {
                    let expected = (before + got..).map(pattern);
                    assert!(octets.iter().copied().eq(expected.take(octets.len())));
                    got += octets.len() as u64;
                    octets.len()
                },
            )
        });
        self.ends[side].received += got;
    }

    /// Writes as much as fits from an endless pattern; returns the octets written.
    fn write(&mut self, side: usize, from: u64, most: usize) -> usize {
        let mut total = 0;
        loop {
            let room = self.ends[side].connection.send_capacity(&self.ends[side].settings);
            let len = room.min(1400).min(most - total);
            if len == 0 {
                return total;
            }
            let start = from + total as u64;
            let written = self.with(side, |c, context| {
                c.write_with(context, len, |out| {
                    for (i, octet) in out.iter_mut().enumerate() {
                        *octet = pattern(start + i as u64);
                    }
                    out.len()
                })
            });
            match written {
                Ok(n) => total += n,
                Err(_) => return total,
            }
        }
    }

    /// Both ends open at once (RFC 9293, 3.5).
    fn connect(&mut self) {
        self.flush(0);
        self.flush(1);
        for _ in 0..50 {
            if self.ends.iter().all(|end| end.connection.state == State::Established) {
                return;
            }
            self.step();
        }
    }
}

fn pattern(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

const RATE: u64 = 1_250_000;

/// A pair with a link of 10 Mbit/s, 20 ms and this loss between its ends.
fn pair(control: CongestionControl, loss_per_million: u64) -> Pair {
    let delay = Duration::from_millis(10);
    let link = LinkModel { octets_per_sec: RATE, delay, queue_octets: 25_000, loss_per_million };
    let mut pair = Pair::new(control, link, 42);
    pair.connect();
    pair
}

impl Pair {
    /// Sends all that the connection takes for so long; the share of what the link carries that
    /// arrived.
    fn share(&mut self, time: Duration) -> f64 {
        let (start, before) = (self.now, self.ends[1].received);
        while self.now.since(start) < time {
            self.written += self.write(0, self.written, usize::MAX) as u64;
            self.flush(0);
            assert!(self.step(), "something is always due");
        }
        let arrived = self.ends[1].received - before;
        arrived as f64 / self.now.since(start).as_secs_f64() / RATE as f64
    }

    fn control(&mut self, control: CongestionControl) {
        self.with(0, |connection, context| connection.set_congestion_control(context, control));
    }
}

fn share(control: CongestionControl, loss_per_million: u64) -> f64 {
    pair(control, loss_per_million).share(Duration::from_secs(6))
}

/// What CUBIC leaves of a lossy link BBR takes once it governs, on the same connection.
#[test]
fn a_live_connection_takes_another_control() {
    let mut pair = pair(CongestionControl::Cubic, 20_000);
    let cubic = pair.share(Duration::from_secs(6));
    pair.control(CongestionControl::Bbr);
    let bbr = pair.share(Duration::from_secs(6));
    assert!(cubic < 0.6 && bbr > 0.8, "{cubic}, {bbr}");
    pair.control(CongestionControl::Cubic);
    pair.share(Duration::from_secs(2));
    let again = pair.share(Duration::from_secs(6));
    assert!((0.1..0.6).contains(&again), "{again}");
}

/// Also in the middle of repairs of every kind.
#[test]
fn a_control_may_change_at_any_time() {
    let mut pair = pair(CongestionControl::Bbr, 50_000);
    for turn in 0..400 {
        let next = [CongestionControl::Cubic, CongestionControl::Bbr][turn % 2];
        pair.control(next);
        pair.share(Duration::from_millis(37));
        let in_flight = pair.ends[0].connection.in_flight();
        assert!(in_flight < 20 * (25_000 + RATE / 50), "{in_flight} octets by {next:?}");
    }
    assert!(pair.ends[1].received > RATE, "{} octets in 15 s", pair.ends[1].received);
}

#[test]
fn both_controls_fill_a_clean_link() {
    for control in [CongestionControl::Cubic, CongestionControl::Bbr] {
        let share = share(control, 0);
        assert!((0.85..1.0).contains(&share), "{control:?}: {share}");
    }
}

/// Random loss does not throttle BBR; CUBIC backs off at each, but never stands still.
#[test]
fn loss_is_repaired() {
    let bbr = share(CongestionControl::Bbr, 10_000);
    assert!((0.8..1.0).contains(&bbr), "{bbr}");
    let cubic = share(CongestionControl::Cubic, 10_000);
    assert!((0.2..1.0).contains(&cubic), "{cubic}");
}
