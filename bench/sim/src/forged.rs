//! Runs that arbitrary octets drive: for fuzzing and property tests.
//!
//! Two engines talk, and each octet of the input decides what happens next: somebody writes, time
//! passes, packets under way are lost, repeated, exchanged or damaged, and a stranger who knows the
//! addresses and ports but sees no packet forges segments with any numbers. The stranger's segments
//! carry old timestamps or none and their RSTs miss the next expected octet, so that a right engine
//! takes none of them for the peer's (RFC 7323, 3.2 and 5.2; RFC 5961, 3.2): the model of the
//! streams must hold and the connection go on.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tcpstack::{CloseReason, ConnId, Event, Instant, StackConfig, TcpSecret};

use crate::host::{EngineHost, Host, Outbox};
use crate::packet::{self, Segment, flags};
use crate::random::Random;
use crate::stream::{Kind, Ledger, Reader};

const ADDRESSES: [&str; 2] = ["192.0.2.1", "198.51.100.7"];
/// How long the two may take to finish when nothing disturbs them any more.
const OVER: Duration = Duration::from_secs(900);

/// Whether damage is noticed: in fuzzing builds smoltcp takes every checksum for right.
#[expect(unexpected_cfgs, reason = "set by cargo-fuzz")]
const CHECKSUMS: bool = !cfg!(fuzzing);

/// The disturbances last no longer.
const DISTURBED_MAX: Duration = Duration::from_secs(50);
/// The connection must outlive them. The first round trip may be found to last as long as they do: then
/// a tail loss probe and the retransmission timer behind it come a minute later each, which is as far
/// as an RTO may be bounded (RFC 6298, 2.5), and one more follows if it was backed off.
const USER_TIMEOUT: Duration = Duration::from_secs(50 + 3 * 60 + 10);

struct Run {
    hosts: [EngineHost; 2],
    ids: [Option<ConnId>; 2],
    ports: [u16; 2],
    /// Under way from the end of this number, and the last that left it.
    wire: [VecDeque<Vec<u8>>; 2],
    last: [Option<Segment>; 2],
    readers: [Reader; 2],
    closed: [Option<CloseReason>; 2],
    ledger: Ledger,
    random: Random,
    now: Instant,
    error: Option<anyhow::Error>,
}

/// Runs what `input` says, lets both ends finish, and holds them against the model.
///
/// # Errors
/// What the engine did wrong.
pub fn run(input: &[u8]) -> Result<()> {
    let mut run = Run::new()?;
    for step in input.chunks_exact(4) {
        run.step([step[0], step[1], step[2], step[3]])?;
    }
    run.finish()
}

impl Run {
    fn new() -> Result<Self> {
        let mut random = Random::new(1);
        let config = StackConfig {
            connections_max: 4,
            rx_buffer_bytes: 1 << 16,
            tx_buffer_bytes: 1 << 16,
            buffers_bytes: 1 << 20,
            user_timeout: USER_TIMEOUT,
            secret: TcpSecret::new([5; 32], Instant::ZERO),
            ..StackConfig::default()
        };
        let mut host =
            |end: usize| EngineHost::new(config.clone(), ADDRESSES[end].parse()?, &mut random);
        let mut run = Self {
            hosts: [host(0)?, host(1)?],
            ids: [None; 2],
            ports: [0, 4500],
            wire: Default::default(),
            last: [None, None],
            readers: Default::default(),
            closed: [None; 2],
            ledger: Ledger::default(),
            random: Random::new(2),
            now: Instant(1_000_000),
            error: None,
        };
        let to = SocketAddr::new(ADDRESSES[1].parse()?, 4500);
        run.ids[0] = run.hosts[0].connect(run.now, to);
        for _ in 0..3 {
            run.turn(true)?;
        }
        ensure!(run.ids[1].is_some(), "the connection does not open");
        Ok(run)
    }

    /// Both ends send; what is under way arrives if `all`.
    fn turn(&mut self, all: bool) -> Result<()> {
        for end in 0..2 {
            let host = &mut self.hosts[end];
            if host.deadline().is_some_and(|at| at <= self.now) {
                host.timeout(self.now);
            }
            let mut out = Outbox::unlimited();
            host.transmit(self.now, &mut out);
            for packet in out.packets {
                self.last[end] = Segment::read(&packet);
                self.ports[end] = self.last[end].as_ref().map_or(0, |last| last.source.port());
                self.wire[end].push_back(packet);
            }
        }
        for end in 0..2 {
            while all && let Some(packet) = self.wire[1 - end].pop_front() {
                self.arrive(end, packet);
            }
            self.hear(end)?;
            self.hosts[end].check(self.ids[end].as_slice())?;
        }
        self.error.take().map_or(Ok(()), Err)
    }

    fn arrive(&mut self, end: usize, mut packet: Vec<u8>) {
        let (reader, ledger, error) = (&mut self.readers[end], &mut self.ledger, &mut self.error);
        self.hosts[end].receive(self.now, &mut packet, &mut |_, octets| {
            if let Err(wrong) = reader.read(ledger, end as u8, octets) {
                error.get_or_insert(wrong);
            }
            octets.len()
        });
    }

    fn hear(&mut self, end: usize) -> Result<()> {
        while let Some(event) = self.hosts[end].event() {
            match event {
                Event::Opened { id, .. } => {
                    self.hosts[end].vouch(id);
                    self.ids[end] = Some(id);
                }
                Event::Closed { reason, .. } => {
                    self.closed[end] = Some(reason);
                    if reason == CloseReason::PeerClosed {
                        self.ledger.check_end(&self.readers[end], end as u8)?;
                    }
                }
                Event::Readable(_) | Event::Writable(_) => {}
            }
        }
        Ok(())
    }

    fn step(&mut self, [what, a, b, c]: [u8; 4]) -> Result<()> {
        let end = usize::from(what >> 7);
        let wire = &mut self.wire[end];
        let at = usize::from(a) % wire.len().max(1);
        match what & 0xf {
            0..=2 => self.write(end, 14 + usize::from(a) * usize::from(b) / 8, c),
            3 => {
                let time = Duration::from_millis(u64::from(a) * u64::from(b) / 16);
                // Longer silence may end a connection.
                self.now = (self.now + time).min(Instant(1_000_000) + DISTURBED_MAX);
            }
            4 => drop(wire.remove(at)),
            5 => wire.extend(wire.get(at).cloned()),
            6 if !wire.is_empty() => wire.swap(at, 0),
            7 if CHECKSUMS => {
                // Two faults in one packet may cancel out in its checksum.
                if let Some(packet) = wire.get_mut(at).filter(|packet| packet::is_intact(packet)) {
                    packet::corrupt(packet, &mut self.random);
                }
            }
            8..=11 => {
                let forged = self.forge(end, what, [a, b, c]);
                forged.into_iter().for_each(|packet| self.arrive(end, packet));
            }
            _ => {
                if let Some(packet) = wire.pop_front() {
                    self.arrive(1 - end, packet);
                }
                return self.send();
            }
        }
        self.hear(0)?;
        self.hear(1)?;
        self.error.take().map_or(Ok(()), Err)
    }

    fn write(&mut self, end: usize, len: usize, kind: u8) {
        let Some(id) = self.ids[end].filter(|_| self.closed[end].is_none()) else { return };
        let kind = if kind & 7 == 0 { Kind::Urgent } else { Kind::Plain };
        let frame = self.ledger.write((end as u8, 1), kind, len);
        let taken = match kind {
            Kind::Plain => self.hosts[end].write(id, &frame),
            Kind::Urgent => self.hosts[end].write_urgent(id, &frame),
        };
        if !taken {
            self.ledger.refused((end as u8, 1), kind);
        }
    }

    /// Both ends send, nothing arrives.
    fn send(&mut self) -> Result<()> {
        let wires = std::mem::take(&mut self.wire);
        self.turn(false)?;
        for (wire, before) in self.wire.iter_mut().zip(wires) {
            let new = std::mem::replace(wire, before);
            wire.extend(new);
        }
        Ok(())
    }

    /// A stranger's segment for `end`.
    fn forge(&self, end: usize, what: u8, [a, b, c]: [u8; 3]) -> Option<Vec<u8>> {
        let last = self.last[1 - end].as_ref()?;
        let far = u32::from_be_bytes([a, b, c, what]);
        let near = u32::from(a) << (b & 15);
        let flags = c & !flags::RST | flags::ACK;
        let (seq, flags) = match what & 3 {
            // Beyond every window, and far behind it.
            0 => ((1 << 20) + (far >> 2), flags::RST | c & flags::ACK),
            1 => (far, flags),
            2 => (near, flags),
            _ => (0u32.wrapping_sub(near), flags),
        };
        let forged = Segment {
            source: SocketAddr::new(ADDRESSES[1 - end].parse().ok()?, self.ports[1 - end]),
            destination: SocketAddr::new(ADDRESSES[end].parse().ok()?, self.ports[end]),
            seq: last.seq.wrapping_add(seq),
            ack: last.ack.wrapping_add(u32::from(b) << (a & 31)),
            flags: flags & 0x3f,
            window: u16::from_be_bytes([b, c]),
            options: options(last, [a, b, c]),
            payload: vec![0xee; usize::from(c) * 4],
        };
        Some(forged.packet())
    }

    /// Nothing disturbs any more: everything arrives, and both close.
    fn finish(mut self) -> Result<()> {
        let (end, mut turns) = (self.now + OVER, 0u32);
        let mut closing = false;
        loop {
            self.turn(true)?;
            let quiet = (0..2).all(|end| self.is_read(end));
            if quiet && !closing {
                closing = true;
                self.ledger.close((0, 1));
                if let Some(id) = self.ids[0] {
                    self.hosts[0].close(id);
                }
            }
            let Some(next) = self.hosts.iter_mut().filter_map(Host::deadline).min() else {
                if self.wire.iter().all(VecDeque::is_empty) {
                    break;
                }
                continue;
            };
            self.now = self.now.max(next);
            turns += 1;
            ensure!(self.now < end && turns < 1_000_000, "not over after {turns} turns");
        }
        let [a, b] = self.closed;
        ensure!(
            a == Some(CloseReason::LocalClosed) && b == Some(CloseReason::PeerClosed),
            "the ends end by {a:?} and {b:?}"
        );
        self.hosts.iter_mut().try_for_each(Host::check_empty).context("in the end")
    }

    /// Whether everything written to `end` has been read.
    fn is_read(&self, end: usize) -> bool {
        self.ledger.is_drained((1 - end as u8, 1), &self.readers[end])
    }
}

/// Options of a stranger: none, SACK blocks, four octets of anything, or timestamps of weeks ago.
fn options(last: &Segment, [a, b, c]: [u8; 3]) -> Vec<u8> {
    match (a & 3, last.timestamps()) {
        (1, _) => {
            let left = last.ack.wrapping_add(u32::from(b) << 4);
            let right = left.wrapping_add(u32::from(c) << 4);
            [&[1, 1, 5, 10][..], &left.to_be_bytes(), &right.to_be_bytes()].concat()
        }
        (2, _) => vec![a, b, c, a ^ c],
        (3, Some((value, echo))) => {
            let old = value.wrapping_sub(1 << 30).to_be_bytes();
            [&[1, 1, 8, 10][..], &old, &echo.to_be_bytes()].concat()
        }
        _ => Vec::new(),
    }
}
