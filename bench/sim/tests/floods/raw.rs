//! A peer made by hand, which says what the test wants and sees every segment of the engine.

use std::net::SocketAddr;
use std::time::Duration;

use culvert_sim::host::Outbox;
use culvert_sim::packet::{Segment, flags};
use culvert_tcpstack::{
    ConnId, Event, Instant, RxChecksum, SegmentOutcome, Stack, StackConfig, TcpSecret,
};

/// MSS 1460, SACK permitted, timestamps, window scale 0.
const OFFER: [u8; 20] = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 0];
const ISN: u32 = 0xffff_fe00;

/// The engine, the peer's numbers, and what the engine's caller has read.
pub(crate) struct Raw {
    pub(crate) stack: Stack,
    pub(crate) id: ConnId,
    pub(crate) now: Instant,
    pub(crate) config: StackConfig,
    peer: SocketAddr,
    local: SocketAddr,
    /// The peer's next sequence number.
    pub(crate) seq: u32,
    /// What the peer has received.
    pub(crate) ack: u32,
    /// The peer's timestamp and its echo, if agreed.
    pub(crate) timestamps: Option<(u32, u32)>,
    pub(crate) read: Vec<u8>,
    /// The engine's last window and its shift.
    pub(crate) window: u16,
    pub(crate) scale: u8,
    /// Everything that the engine has sent, by count.
    pub(crate) segments_out: usize,
}

pub(crate) fn config() -> StackConfig {
    StackConfig {
        connections_max: 64,
        rx_buffer_bytes: 1 << 20,
        tx_buffer_bytes: 1 << 18,
        buffers_bytes: 16 << 20,
        secret: TcpSecret::new([3; 32], Instant::ZERO),
        ..StackConfig::default()
    }
}

impl Raw {
    /// Opens a connection from the peer to the engine.
    pub(crate) fn open(timestamps: bool) -> Self {
        Self::open_with(config(), timestamps)
    }

    /// The same, with other limits.
    pub(crate) fn open_with(config: StackConfig, timestamps: bool) -> Self {
        let mut stack = Stack::new(config.clone(), [4; 32]).unwrap();
        stack.listen(4500);
        let mut raw = Self {
            stack,
            id: ConnId { index: 0, generation: 0 },
            now: Instant(5_000_000),
            config,
            peer: "198.51.100.9:4567".parse().unwrap(),
            local: "192.0.2.1:4500".parse().unwrap(),
            seq: ISN,
            ack: 0,
            timestamps: None,
            read: Vec::new(),
            window: 0,
            scale: 0,
            segments_out: 0,
        };
        let offer = if timestamps { &OFFER[..] } else { &OFFER[..4] };
        let syn = Segment { flags: flags::SYN, options: offer.to_vec(), ..raw.segment(b"") };
        raw.deliver(&syn);
        let answer = raw.sent().pop().unwrap();
        assert_eq!(answer.flags, flags::SYN | flags::ACK);
        raw.seq = ISN.wrapping_add(1);
        raw.scale = answer.scale();
        raw.ack = answer.seq.wrapping_add(1);
        raw.timestamps = answer.timestamps().map(|(value, _)| (1, value));
        assert_eq!(raw.timestamps.is_some(), timestamps);
        assert_eq!(raw.deliver(&raw.segment(b"")), SegmentOutcome::Accepted);
        match raw.stack.poll_event() {
            Some(Event::Opened { id, .. }) => raw.id = id,
            other => panic!("{other:?}"),
        }
        raw.stack.vouch(raw.id);
        raw.sent();
        raw
    }

    /// Opens a connection of another peer, which has no timestamps and whose next octet is the
    /// first behind its SYN. What it sends is given by [`Raw::deliver`].
    pub(crate) fn open_other(&mut self, peer: SocketAddr) -> Segment {
        let mut other = Segment {
            source: peer,
            seq: ISN,
            flags: flags::SYN,
            options: OFFER[..4].to_vec(),
            ..self.segment(b"")
        };
        self.deliver(&other);
        let answer = self.sent().into_iter().find(|answer| answer.destination == peer).unwrap();
        other.seq = ISN.wrapping_add(1);
        other.ack = answer.seq.wrapping_add(1);
        (other.flags, other.options) = (flags::ACK, Vec::new());
        assert_eq!(self.deliver(&other), SegmentOutcome::Accepted);
        other
    }

    /// The peer's next segment, which acknowledges everything that it has received.
    pub(crate) fn segment(&self, payload: &[u8]) -> Segment {
        let options = self.timestamps.map(|(value, echo)| {
            [&[1, 1, 8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
        });
        Segment {
            source: self.peer,
            destination: self.local,
            seq: self.seq,
            ack: self.ack,
            flags: flags::ACK,
            window: 60_000,
            options: options.unwrap_or_default(),
            payload: payload.to_vec(),
        }
    }

    /// Gives the engine a segment; its caller reads everything.
    pub(crate) fn deliver(&mut self, segment: &Segment) -> SegmentOutcome {
        let read = &mut self.read;
        let mut packet = segment.packet();
        self.stack.handle_segment(self.now, &mut packet, RxChecksum::Unknown, &mut |_, octets| {
            read.extend_from_slice(octets);
            octets.len()
        })
    }

    /// Sends the peer's next octets.
    pub(crate) fn send(&mut self, payload: &[u8]) -> SegmentOutcome {
        let outcome = self.deliver(&self.segment(payload));
        self.seq = self.seq.wrapping_add(payload.len() as u32);
        outcome
    }

    /// What the engine sends now. The peer does not acknowledge it.
    pub(crate) fn sent(&mut self) -> Vec<Segment> {
        if self.stack.poll_timeout().is_some_and(|at| at <= self.now) {
            self.stack.handle_timeout(self.now);
        }
        let mut out = Outbox::unlimited();
        self.stack.poll_transmit(self.now, &mut out);
        self.segments_out += out.packets.len();
        let sent: Vec<Segment> =
            out.packets.iter().filter_map(|packet| Segment::read(packet)).collect();
        self.window = sent.last().map_or(self.window, |last| last.window);
        sent
    }

    /// Lets time pass, timer by timer, and gives what was sent meanwhile.
    pub(crate) fn wait(&mut self, time: Duration) -> Vec<Segment> {
        let end = self.now + time;
        let mut sent = self.sent();
        let mut turns = 0;
        while let Some(at) = self.stack.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            sent.extend(self.sent());
            turns += 1;
            assert!(turns < 100_000, "timers without end");
        }
        self.now = end;
        sent.extend(self.sent());
        sent
    }

    /// The engine's caller writes as much as it can.
    pub(crate) fn write_all(&mut self) -> usize {
        let mut written = 0;
        while self.stack.send_capacity(self.id) >= 1000 {
            written += self.stack.send_with(self.id, 1000, |room| room.len()).unwrap();
        }
        written
    }

    /// The connection works: octets arrive, and are acknowledged.
    pub(crate) fn assert_alive(&mut self) {
        let before = self.read.len();
        assert_eq!(self.send(b"still here"), SegmentOutcome::Accepted);
        assert_eq!(&self.read[before..], b"still here");
        let sent = self.wait(Duration::from_millis(500));
        assert!(
            sent.iter().any(|segment| segment.ack == self.seq),
            "{} is not acknowledged",
            self.seq
        );
        while let Some(event) = self.stack.poll_event() {
            assert!(!matches!(event, Event::Closed { .. }), "{event:?}");
        }
    }
}
