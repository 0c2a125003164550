//! Goodput and fairness in virtual time: several senders share one bottleneck to one receiver.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_tcpstack::{
    CongestionControl, ConnId, Event, Instant, RxChecksum, Stack, StackConfig, TcpSecret,
    TxChecksum,
};

use crate::host::Outbox;
use crate::link::{Link, LinkConfig};
use crate::packet;
use crate::random::Random;

/// What one write brings: a frame of a full inner packet.
const FRAME: usize = 1402;
/// Buffers beyond the product of rate and round trip of every path measured here.
pub const BUFFER_BYTES: usize = 64 << 20;
const RECEIVER: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

/// A bottleneck and who shares it.
#[derive(Debug, Clone)]
pub struct Bulk {
    /// One sender for each.
    pub controls: Vec<CongestionControl>,
    /// The way of the data. ACKs go over the same without loss.
    pub link: LinkConfig,
    /// How long they send.
    pub duration: Duration,
    /// From when on octets count.
    pub warm_up: Duration,
    /// Of losses and starting times.
    pub seed: u64,
}

impl Bulk {
    /// One connection from its first SYN on, over a link with independent losses.
    #[must_use]
    pub fn single(control: CongestionControl, path: Path, duration: Duration) -> Self {
        Self {
            controls: vec![control],
            link: path.link(),
            duration,
            warm_up: Duration::ZERO,
            seed: 1,
        }
    }

    /// Mbit/s of payload that each sender got to the receiver's caller.
    ///
    /// # Errors
    /// A stack refused its configuration, or a connection did not open or broke.
    pub fn run(&self) -> Result<Vec<f64>> {
        self.play(&mut Run::new(self)?)
    }

    /// The share of segments with data that came to the receiver although they had come before:
    /// retransmissions for nothing.
    ///
    /// # Errors
    /// As with [`Self::run`].
    pub fn needless(&self) -> Result<f64> {
        let mut run = Run { arrivals: Some(Arrivals::default()), ..Run::new(self)? };
        self.play(&mut run)?;
        let Arrivals { known, again } = run.arrivals.unwrap_or_default();
        Ok(again as f64 / (known.len() as u64 + again) as f64)
    }

    fn play(&self, run: &mut Run) -> Result<Vec<f64>> {
        let (start, end) = (run.now + self.warm_up, run.now + self.duration);
        let mut before = Vec::new();
        while run.now < end {
            run.turn()?;
            if before.is_empty() && run.now >= start {
                before = run.received.clone();
            }
        }
        let seconds = run.now.since(start).as_secs_f64();
        let rate = |(now, then): (&u64, &u64)| (now - then) as f64 * 8e-6 / seconds;
        Ok(run.received.iter().zip(&before).map(rate).collect())
    }
}

/// A path of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Path {
    /// Mbit/s of IP packets.
    pub rate: u64,
    /// Round trip in milliseconds.
    pub round_trip_ms: u64,
    /// Percent of the packets with data that are lost.
    pub loss_percent: f64,
}

impl Path {
    /// The direction of the data.
    #[must_use]
    pub fn link(&self) -> LinkConfig {
        let clean = LinkConfig::clean(self.rate, Duration::from_millis(self.round_trip_ms));
        LinkConfig { loss: (self.loss_percent * 1e4) as u32, ..clean }
    }
}

/// Jain's index of fairness: 1 if all get the same, 1/n if one gets everything.
#[must_use]
pub fn fairness(rates: &[f64]) -> f64 {
    let (sum, squares) =
        (rates.iter().sum::<f64>(), rates.iter().map(|rate| rate * rate).sum::<f64>());
    sum * sum / (squares * rates.len() as f64)
}

struct Sender {
    stack: Stack,
    id: Option<ConnId>,
    starts_at: Instant,
}

/// Segments with data that came to the receiver.
#[derive(Default)]
struct Arrivals {
    /// Source and sequence number of each.
    known: HashSet<(SocketAddr, u32)>,
    /// How many came again.
    again: u64,
}

impl Arrivals {
    fn note(&mut self, packet: &[u8]) {
        let Some(segment) = packet::Segment::read(packet) else { return };
        if !segment.payload.is_empty() && !self.known.insert((segment.source, segment.seq)) {
            self.again += 1;
        }
    }
}

struct Run {
    now: Instant,
    senders: Vec<Sender>,
    receiver: Stack,
    there: Link,
    back: Link,
    received: Vec<u64>,
    /// If anybody asks.
    arrivals: Option<Arrivals>,
}

/// A stack for bulk data: large buffers, checksums left out on both sides.
fn config(control: CongestionControl, random: &mut Random) -> StackConfig {
    StackConfig {
        connections_max: 64,
        congestion_control: control,
        rx_buffer_bytes: BUFFER_BYTES,
        tx_buffer_bytes: BUFFER_BYTES,
        buffers_bytes: 16 * BUFFER_BYTES,
        tx_checksum: TxChecksum::Device,
        secret: TcpSecret::new(random.octets(), Instant::ZERO),
        ..StackConfig::default()
    }
}

fn address(sender: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, sender as u8 + 1))
}

fn sender_of(address: IpAddr) -> Option<usize> {
    match address {
        IpAddr::V4(v4) => usize::from(v4.octets()[3]).checked_sub(1),
        IpAddr::V6(_) => None,
    }
}

impl Run {
    fn new(bulk: &Bulk) -> Result<Self> {
        let mut random = Random::new(bulk.seed);
        let now = Instant(1_000_000);
        let alone = bulk.controls.len() == 1;
        let senders = bulk.controls.iter().map(|control| {
            let stack = Stack::new(config(*control, &mut random), random.octets())?;
            let wait = if alone { 0 } else { random.within(0..=200_000) };
            Ok(Sender { stack, id: None, starts_at: now + Duration::from_micros(wait) })
        });
        let senders = senders.collect::<Result<Vec<_>>>()?;
        let mut receiver =
            Stack::new(config(CongestionControl::Bbr, &mut random), random.octets())?;
        receiver.listen(4500);
        let back = LinkConfig { loss: 0, ..bulk.link };
        // As the shim has it: the same seed loses the same segments in virtual and in real time.
        let mut losses = Random::new(bulk.seed);
        Ok(Self {
            now,
            received: vec![0; senders.len()],
            arrivals: None,
            senders,
            receiver,
            there: Link::new(bulk.link, losses.fork()).with_acks_apart(),
            back: Link::new(back, losses.fork()),
        })
    }

    fn turn(&mut self) -> Result<()> {
        let starts = self.senders.iter().filter(|sender| sender.id.is_none());
        let timers = self.senders.iter().filter_map(|sender| sender.stack.poll_timeout());
        let next = starts.map(|sender| sender.starts_at).chain(timers);
        let others = [self.receiver.poll_timeout(), self.there.next(), self.back.next()];
        let next = next.chain(others.into_iter().flatten()).min().context("nothing happens")?;
        self.now = self.now.max(next);
        self.receive();
        self.acknowledge()?;
        for number in 0..self.senders.len() {
            self.send(number)?;
        }
        Ok(())
    }

    fn receive(&mut self) {
        let now = self.now;
        while let Some(mut packet) = self.there.pop(now) {
            if let Some(arrivals) = &mut self.arrivals {
                arrivals.note(&packet);
            }
            let from = packet::addresses(&packet).and_then(|(source, _)| sender_of(source));
            let Some(received) = from.and_then(|from| self.received.get_mut(from)) else {
                continue;
            };
            self.receiver.handle_segment(
                now,
                &mut packet,
                RxChecksum::Verified,
                &mut |_, octets| {
                    *received += octets.len() as u64;
                    octets.len()
                },
            );
        }
    }

    fn acknowledge(&mut self) -> Result<()> {
        let now = self.now;
        if self.receiver.poll_timeout().is_some_and(|at| at <= now) {
            self.receiver.handle_timeout(now);
        }
        while let Some(event) = self.receiver.poll_event() {
            if let Event::Opened { id, .. } = event {
                self.receiver.vouch(id);
            }
            anyhow::ensure!(!matches!(event, Event::Closed { .. }), "{event:?}");
        }
        let mut out = Outbox::unlimited();
        self.receiver.poll_transmit(now, &mut out);
        for packet in out.packets {
            self.back.push(now, packet);
        }
        while let Some(mut packet) = self.back.pop(now) {
            let to = packet::addresses(&packet).and_then(|(_, to)| sender_of(to));
            if let Some(sender) = to.and_then(|to| self.senders.get_mut(to)) {
                let stack = &mut sender.stack;
                stack.handle_segment(now, &mut packet, RxChecksum::Verified, &mut |_, _| 0);
            }
        }
        Ok(())
    }

    fn send(&mut self, number: usize) -> Result<()> {
        let (now, sender) = (self.now, &mut self.senders[number]);
        let stack = &mut sender.stack;
        if stack.poll_timeout().is_some_and(|at| at <= now) {
            stack.handle_timeout(now);
        }
        match sender.id {
            None if sender.starts_at <= now => {
                let remote = SocketAddr::new(RECEIVER, 4500);
                sender.id = Some(stack.connect(now, address(number), remote)?);
            }
            None => return Ok(()),
            Some(id) => {
                while stack.send_capacity(id) >= FRAME {
                    stack.send_with(id, FRAME, |room| room.len())?;
                }
            }
        }
        while let Some(event) = stack.poll_event() {
            anyhow::ensure!(!matches!(event, Event::Closed { .. }), "sender {number}: {event:?}");
        }
        let mut out = Outbox::unlimited();
        stack.poll_transmit(now, &mut out);
        for packet in out.packets {
            self.there.push(now, packet);
        }
        Ok(())
    }
}
