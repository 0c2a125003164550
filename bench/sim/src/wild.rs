//! A peer that arbitrary octets drive: for fuzzing and property tests.
//!
//! One end is the engine, the other is the input: whoever has opened the connection may send what
//! it likes. Each eight octets of the input are a step ([`step`]): segments before, in and behind
//! the window, overlapping and contradicting each other, acknowledgments and SACK blocks of
//! anything, timestamps of the past and of the future, options and headers that make no sense, FIN,
//! RST and SYN anywhere, time, and the engine's own caller. What the engine then says and delivers
//! is held against a [`model`] of what it has been sent. In the end the peer behaves, and the engine
//! must bring everything to both callers and forget the connection.
//!
//! With [`forged`](crate::forged) the segments are a stranger's and must not matter; here they are
//! the peer's, and reach the whole engine.

pub mod model;
mod step;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tcpstack::{
    CloseReason, CongestionControl, ConnId, Event, Instant, RxChecksum, SegmentOutcome, Stack,
    StackConfig, TcpSecret,
};

use self::model::{Model, Told, engine_octet};
use crate::host::Outbox;
use crate::packet::{Segment, flags};

/// Octets of a step.
const STEP: usize = 8;
/// The wildness lasts no longer: half the user timeout.
const WILD_MAX: Duration = Duration::from_secs(50);
/// How long everything may take once the peer behaves: some of the longest retransmission timers.
const TAME_MAX: Duration = Duration::from_secs(300);
/// How often a peer that behaves sends.
const TURN: Duration = Duration::from_millis(50);
/// Octets of its segments.
const CHUNK: usize = 1000;
const START: Instant = Instant(1_000_000);
/// The first octets of both streams wrap around 2^32.
const PEER_ISN: u32 = 0xffff_ff00;

/// What a run has reached.
#[derive(Debug, Clone, Default)]
pub struct Reached {
    /// What the engine's segments showed.
    pub told: Told,
    /// What became of the peer's segments while it was wild.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Why the connection ended.
    pub reason: Option<CloseReason>,
    /// Octets that the engine's caller got.
    pub delivered: usize,
    /// Octets that the peer got.
    pub received: usize,
}

struct Run {
    stack: Stack,
    buffers_bytes: u64,
    id: ConnId,
    model: Model,
    /// The engine's end and the peer's.
    ends: [SocketAddr; 2],
    now: Instant,
    /// The peer's clock and the last that it heard of the engine's, if timestamps were agreed on.
    clock: Option<(u32, u32)>,
    sack: bool,
    /// In a million, how much of what is lent the engine's caller takes.
    appetite: usize,
    window: u16,
    /// Octets of options or headers were free: the engine may have understood anything.
    raw: bool,
    closed: Option<CloseReason>,
    error: Option<anyhow::Error>,
    reached: Reached,
}

/// Runs what `input` says and holds the engine against the model.
///
/// # Errors
/// What the engine did wrong.
pub fn run(input: &[u8]) -> Result<Reached> {
    let (&kind, steps) = input.split_first().unwrap_or((&0, &[]));
    let mut run = Run::open(kind)?;
    for step in steps.chunks_exact(STEP) {
        if run.closed.is_some() {
            break;
        }
        let octets = std::array::from_fn(|at| step[at]);
        run.step(octets).with_context(|| format!("in step {octets:02x?}"))?;
    }
    run.tame()
}

impl Run {
    /// A connection as the bits of `kind` say.
    fn open(kind: u8) -> Result<Self> {
        let bit = |number: u8| kind & 1 << number != 0;
        let (timestamps, sack, scaled, engine_connects, v6) =
            (bit(0), bit(1), bit(2), bit(3), bit(5));
        let texts = if v6 {
            ["[2001:db8::1]:0", "[2001:db8::2]:0"]
        } else {
            ["192.0.2.1:0", "192.0.2.2:0"]
        };
        let mut ends: [SocketAddr; 2] = [texts[0].parse()?, texts[1].parse()?];
        let buffers_bytes = if bit(6) { 1 << 17 } else { 1 << 22 };
        let mut stack = Stack::new(config(kind, buffers_bytes), [9; 32])?;
        stack.listen(4500);
        let mut options = vec![2, 4, 5, 180];
        options.extend([1, 1, 4, 2].iter().filter(|_| sack));
        options.extend([1, 3, 3, 3].iter().filter(|_| scaled));
        options.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0].iter().filter(|_| timestamps));
        // Replaced when the connection opens.
        let mut id = ConnId { index: 0, generation: 0 };
        if engine_connects {
            ends[1].set_port(4500);
            id = stack.connect(START, ends[0].ip(), ends[1])?;
            ends[0] = stack.info(id).context("no connection")?.local;
        } else {
            ends[0].set_port(4500);
            ends[1].set_port(5000);
        }
        let mut run = Self {
            stack,
            buffers_bytes: buffers_bytes as u64,
            id,
            model: Model::new(PEER_ISN),
            ends,
            now: START,
            clock: None,
            sack,
            appetite: 1_000_000,
            window: u16::MAX,
            raw: false,
            closed: None,
            error: None,
            reached: Reached::default(),
        };
        run.shake_hands(options, scaled, timestamps, engine_connects)?;
        Ok(run)
    }

    fn shake_hands(
        &mut self,
        options: Vec<u8>,
        scaled: bool,
        timestamps: bool,
        engine_connects: bool,
    ) -> Result<()> {
        let syn = Segment { flags: flags::SYN, seq: PEER_ISN, options, ..self.segment(0, 0) };
        if !engine_connects {
            self.give(&mut syn.packet());
        }
        let answer = self.sent().pop().context("no SYN of the engine")?;
        ensure!(answer.flags & flags::SYN != 0, "{answer}");
        self.model.isn[1] = answer.seq;
        self.clock = answer.timestamps().filter(|_| timestamps).map(|(value, _)| (1, value));
        let agreed = scaled && (engine_connects || timestamps);
        self.model.scale = [if agreed { 3 } else { 0 }, if agreed { answer.scale() } else { 0 }];
        self.sack &= engine_connects || timestamps;
        self.model.open(syn.window, answer.window);
        let ack = self.model.wire(1, 0);
        let last = if engine_connects {
            Segment { flags: flags::SYN | flags::ACK, ack, ..syn }
        } else {
            self.segment(0, 0)
        };
        self.give(&mut last.packet());
        self.hear_events()?;
        self.turn()
    }

    /// A segment of the peer, at these offsets of its own stream and of the engine's.
    fn segment(&self, seq: i64, ack: i64) -> Segment {
        let options = self.clock.map(|(value, echo)| {
            [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
        });
        Segment {
            source: self.ends[1],
            destination: self.ends[0],
            seq: self.model.wire(0, seq),
            ack: self.model.wire(1, ack),
            flags: flags::ACK,
            window: self.window,
            options: options.unwrap_or_default(),
            payload: Vec::new(),
        }
    }

    /// The peer sends a segment.
    fn send(&mut self, segment: &Segment) {
        self.model.send(segment);
        self.give(&mut segment.packet());
    }

    /// The engine gets a packet, whose checksums the device has verified.
    fn give(&mut self, packet: &mut [u8]) {
        let Self { stack, model, error, appetite, now, .. } = self;
        let mut read = |_, octets: &mut [u8]| {
            let take = octets.len() * *appetite / 1_000_000;
            note(error, model.deliver(&octets[..take]));
            take
        };
        let outcome = stack.handle_segment(*now, packet, RxChecksum::Verified, &mut read);
        let name = match outcome {
            SegmentOutcome::Accepted => "accepted",
            SegmentOutcome::Dropped(reason) => reason.name(),
        };
        *self.reached.outcomes.entry(name).or_default() += 1;
    }

    /// The engine's segments of the connection.
    fn sent(&mut self) -> Vec<Segment> {
        if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
            self.stack.handle_timeout(self.now);
        }
        let mut out = Outbox::unlimited();
        self.stack.poll_transmit(self.now, &mut out);
        let all = out.packets.iter().filter_map(|packet| Segment::read(packet));
        all.filter(|segment| [segment.source, segment.destination] == self.ends).collect()
    }

    /// The engine acts, and the peer hears what it says.
    fn turn(&mut self) -> Result<()> {
        self.hear_events()?;
        for segment in self.sent() {
            self.model.hear(&segment).with_context(|| format!("the engine sent {segment}"))?;
            if let (Some((_, echo)), Some((value, _))) = (&mut self.clock, segment.timestamps()) {
                *echo = value;
            }
        }
        self.hear_events()?;
        let used = self.stack.stats().buffer_bytes;
        ensure!(used <= self.buffers_bytes, "{used} octets of buffers");
        self.error.take().map_or(Ok(()), Err)
    }

    fn hear_events(&mut self) -> Result<()> {
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::Opened { id, .. } => {
                    self.stack.vouch(id);
                    self.id = id;
                }
                Event::Closed { id, reason } if id == self.id => {
                    self.closed = Some(reason);
                    match reason {
                        CloseReason::PeerClosed => self.model.check_closed_by_peer()?,
                        CloseReason::PeerReset => self.model.check_reset_by_peer()?,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The engine's caller writes, as much as there is room for.
    fn write(&mut self, len: usize) {
        let len = len.min(self.stack.send_capacity(self.id));
        let from = self.model.written;
        let written = self.stack.send_with(self.id, len, |room| {
            for (octet, offset) in room.iter_mut().zip(from..) {
                *octet = engine_octet(offset);
            }
            len
        });
        self.model.written += written.unwrap_or(0);
    }

    /// The engine's caller reads everything.
    fn read(&mut self) {
        let (model, error) = (&mut self.model, &mut self.error);
        let mut read = |octets: &mut [u8]| {
            note(error, model.deliver(octets));
            octets.len()
        };
        while self.stack.recv(self.id, &mut read).is_ok_and(|read| read > 0) {}
    }

    /// The peer behaves: it sends what is missing up to the end of what it has ever sent, takes
    /// everything, and closes after the engine.
    fn tame(mut self) -> Result<Reached> {
        (self.appetite, self.window) = (1_000_000, u16::MAX);
        let end = self.now + TAME_MAX;
        let is_done =
            |model: &Model| model.delivered >= model.top && model.received >= model.written;
        while self.closed.is_none() && !is_done(&self.model) && self.now < end {
            self.read();
            self.behave(self.model.top, 0);
            self.pass(TURN)?;
        }
        let fine = self.closed.is_some() || is_done(&self.model) || self.raw;
        ensure!(
            fine,
            "{} of {} octets delivered, {} of {} received",
            self.model.delivered,
            self.model.top,
            self.model.received,
            self.model.written
        );
        self.check_reason()?;
        self.stack.close(self.id);
        for _ in 0..20 {
            let fin = self.model.engine_fin.is_some_and(|fin| self.model.received >= fin);
            self.behave(self.model.acked, if fin { flags::FIN } else { 0 });
            self.pass(TURN)?;
        }
        self.forget()?;
        let Model { told, delivered, received, .. } = self.model;
        Ok(Reached { told, delivered, received, reason: self.closed, ..self.reached })
    }

    /// The connection may end early, for a reason.
    fn check_reason(&self) -> Result<()> {
        let fine = match self.closed {
            None | Some(CloseReason::PeerClosed | CloseReason::PeerReset) => true,
            Some(CloseReason::LocalClosed) => self.model.engine_fin.is_some() || self.raw,
            Some(CloseReason::Timeout | CloseReason::Unreachable) => self.raw,
            Some(_) => false,
        };
        ensure!(fine, "the connection ended by {:?}", self.closed);
        Ok(())
    }

    /// One turn of a peer that behaves: data up to `top`, then an acknowledgment of everything.
    fn behave(&mut self, top: usize, last: u8) {
        let fin = usize::from(self.model.engine_fin.is_some_and(|fin| self.model.received >= fin));
        let ack = (self.model.received.max(self.model.claimed) + fin) as i64;
        let from = self.model.acked;
        for start in (from..top.min(from + 8 * CHUNK)).step_by(CHUNK) {
            let payload = step::text(start, top.min(start + CHUNK), 0);
            self.send(&Segment { payload, ..self.segment(start as i64, ack) });
        }
        let end = self.model.acked.max(top.min(from + 8 * CHUNK)) as i64;
        let bare = self.segment(end, ack);
        self.send(&Segment { flags: bare.flags | last, ..bare });
    }

    /// Time passes, timer by timer.
    fn pass(&mut self, time: Duration) -> Result<()> {
        let until = self.now + time;
        self.turn()?;
        while let Some(at) = self.stack.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.turn()?;
        }
        if let Some((value, _)) = &mut self.clock {
            *value = value.wrapping_add(time.as_millis() as u32);
        }
        self.now = until;
        self.turn()
    }

    /// Nobody says anything any more: the engine forgets the connection.
    fn forget(&mut self) -> Result<()> {
        let mut turns = 0;
        while let Some(at) = self.stack.poll_timeout() {
            self.now = self.now.max(at);
            self.turn()?;
            turns += 1;
            ensure!(turns < 100_000, "timers without end");
        }
        let left = self.stack.stats().buffer_bytes;
        ensure!(left == 0, "{left} octets of buffers are left without a connection");
        Ok(())
    }
}

fn note(error: &mut Option<anyhow::Error>, result: Result<()>) {
    if let Err(wrong) = result {
        error.get_or_insert(wrong);
    }
}

fn config(kind: u8, buffers_bytes: usize) -> StackConfig {
    let bbr = kind & 1 << 4 != 0;
    StackConfig {
        connections_max: 4,
        congestion_control: if bbr { CongestionControl::Bbr } else { CongestionControl::Cubic },
        rx_buffer_bytes: 1 << 16,
        tx_buffer_bytes: if kind & 1 << 7 != 0 { 1 << 18 } else { 1 << 16 },
        buffers_bytes,
        secret: TcpSecret::new([5; 32], Instant::ZERO),
        ..StackConfig::default()
    }
}
