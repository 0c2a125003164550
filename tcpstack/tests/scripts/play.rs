//! Plays scripts in the manner of packetdrill against a whole stack, in virtual time.
//!
//! A script is text, one step a line, `#` begins a comment:
//!
//! ```text
//! listen | connect | open [timestamps|bare|far] N     (N: the peer's window; see `Play::open`)
//! < FLAGS SEQ(LEN) [ack N] [win N] [mss N] [ws N] [sackok] [ts=V[:E]] [sack A-B,C-D] [=> REASON]
//! > FLAGS SEQ(LEN) [ack N] [win N] [mss N] [ws N] [sackok] [ts[=0][:E]] [sack A-B,C-D] [cut N]
//! > nothing
//! write N | read N | close | abort | eager | lazy | full | empty
//! too-big SEQ MTU yes|no | unreachable SEQ hard|soft yes|no     (whether it is believed)
//! event opened | event closed REASON | event writable
//! ```
//!
//! `<` gives the stack a segment, or a batch of several with `|` between; `>` expects one of it. FLAGS are of `SFRPUEW.`, where `.` is ACK,
//! `E` ECE, `W` CWR, and `P` need not be named. Between `full` and `empty` the device takes no packet. SEQ and ack count from the initial sequence numbers of each side, so
//! that the SYN is 0; `=N` is an absolute number. Both real ones lie just below 2^32, so that every script wraps. A step may begin
//! with `+T`: it happens T seconds after the step before it, and a segment that is expected must leave
//! then, by [`TOLERANCE`]; `+T1~T2` gives bounds. Without it, it must leave at once. An option that is not named
//! must not be there; `cut N` says that the device is to make segments of N octets of it. Segments that nobody expected fail the script.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_tcpstack::{
    CloseReason, CongestionControl, ConnId, Event, Instant, Packet, Stack, StackConfig, Transmit,
    TxChecksum,
};

use crate::text::{pattern, seconds};
use crate::wire::{Family, Segment};

mod segments;

/// How much later than expected a segment may leave: two ticks of the timers.
pub(crate) const TOLERANCE: Duration = Duration::from_millis(2);
/// The peer's initial sequence number: its first octets wrap around 2^32.
const PEER_ISN: u32 = 0xffff_fc00;
const PEER_PORT: u16 = 4500;
/// A buffer of a device that cuts packets.
const PIECE: usize = 2000;

struct Out {
    packets: Vec<(Packet, Vec<u8>)>,
    /// The buffers of the device, in octets.
    piece: usize,
    full: bool,
}

impl Transmit for Out {
    fn has_room(&mut self) -> bool {
        !self.full
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        let mut octets = vec![0xa5; packet.bytes];
        octets.chunks_mut(self.piece).for_each(&mut fill);
        self.packets.push((packet, octets));
    }
}

/// A stack and its hand-made peer.
pub(crate) struct Play {
    pub(crate) stack: Stack,
    family: Family,
    pub(crate) now: Instant,
    pub(crate) id: Option<ConnId>,
    /// When the last step happened.
    mark: Instant,
    /// What left and was not expected yet.
    sent: VecDeque<(Instant, Segment)>,
    events: VecDeque<Event>,
    our_port: u16,
    our_isn: Option<u32>,
    our_clock: Option<u32>,
    last_value: u32,
    written: u64,
    read: u64,
    eager: bool,
    /// The device takes nothing.
    full: bool,
    /// The shift of our windows.
    scale: u8,
    /// Checksums and segments are the device's.
    device: bool,
    /// The step being played.
    step: String,
}

/// A configuration for scripts: CUBIC, whose window follows from the segments alone.
pub(crate) fn config() -> StackConfig {
    StackConfig { congestion_control: CongestionControl::Cubic, ..StackConfig::default() }
}

/// Plays a script with the default configuration, over IPv4 and over IPv6.
pub(crate) fn play(script: &str) {
    play_with(|_| {}, script);
}

/// Plays a script with another configuration, over IPv4 and over IPv6.
pub(crate) fn play_with(change: impl Fn(&mut StackConfig), script: &str) {
    for family in Family::BOTH {
        let mut config = config();
        change(&mut config);
        Play::new(family, config).play(script).end();
    }
}

/// Plays a script in which numbers of one family occur.
pub(crate) fn play_over(family: Family, script: &str) {
    Play::new(family, config()).play(script).end();
}

impl Play {
    /// The MTU is larger by 20 octets over IPv6, so that segments are as large in either family.
    pub(crate) fn new(family: Family, mut config: StackConfig) -> Self {
        config.mtu += (family.header() - Family::V4.header()) as u16;
        let now = Instant(10_000_000);
        let scale = (0..).find(|shift| config.rx_buffer_bytes >> shift <= 0xffff).unwrap();
        let device = config.tx_checksum == TxChecksum::Device;
        Self {
            family,
            device,
            stack: Stack::new(config, [7; 32]).unwrap(),
            now,
            id: None,
            mark: now,
            sent: VecDeque::new(),
            events: VecDeque::new(),
            our_port: 0,
            our_isn: None,
            our_clock: None,
            last_value: 0,
            written: 0,
            read: 0,
            eager: true,
            full: false,
            scale,
            step: String::new(),
        }
    }

    /// Plays the steps of `script`.
    pub(crate) fn play(mut self, script: &str) -> Self {
        for line in script.lines() {
            let line = line.split('#').next().unwrap().trim();
            if !line.is_empty() {
                self.step = line.to_owned();
                self.play_step(line);
            }
        }
        self
    }

    /// Plays a step and adds the octets that leave then to `stream`, whatever their segments.
    pub(crate) fn quietly(mut self, step: &str, stream: &mut Vec<u8>) -> Self {
        self.collect();
        self.take_sent(stream);
        self = self.play(step);
        self.run_until(self.now);
        self.take_sent(stream);
        self
    }

    fn take_sent(&mut self, stream: &mut Vec<u8>) {
        for (_, segment) in self.sent.drain(..) {
            stream.extend(segment.data);
        }
    }

    /// The script is over: nothing else may have left.
    pub(crate) fn end(mut self) {
        self.step = "the end".to_owned();
        self.nothing_unexpected();
    }

    fn fail(&self, why: &str) -> ! {
        panic!(
            "at \"{}\" over {:?}, {:?} after the step before: {why}",
            self.step,
            self.family,
            self.now.since(self.mark)
        )
    }

    fn nothing_unexpected(&self) {
        if let Some((at, segment)) = self.sent.front() {
            let shown = self.show(segment);
            self.fail(&format!("nobody expected {shown} at {:?}", at.since(self.mark)));
        }
    }

    fn play_step(&mut self, line: &str) {
        let (delay, words) = match line.strip_prefix('+') {
            Some(rest) => {
                let (time, words) = rest.split_once(' ').unwrap();
                let mut bounds = time.split('~').map(seconds);
                let low = bounds.next().unwrap();
                ((low, bounds.next().unwrap_or(low + TOLERANCE)), words)
            }
            None => ((Duration::ZERO, TOLERANCE), line),
        };
        if words.trim() == "> nothing" {
            self.run_until(self.mark + delay.0);
            self.nothing_unexpected();
            self.mark = self.now;
        } else if let Some(expected) = words.strip_prefix('>') {
            self.expect(delay, expected);
        } else if let Some(event) = words.strip_prefix("event ") {
            self.expect_event(&event.split_whitespace().collect::<Vec<_>>());
        } else {
            self.run_until(self.mark + delay.0);
            self.nothing_unexpected();
            self.mark = self.now;
            match words.strip_prefix('<') {
                Some(batch) => batch.split('|').for_each(|arriving| self.arrive(arriving)),
                None => self.act(words),
            }
            self.collect();
        }
    }

    fn act(&mut self, words: &str) {
        let mut words = words.split_whitespace();
        let verb = words.next().unwrap();
        let rest: Vec<&str> = words.collect();
        let number = |at: usize| rest[at].parse::<u64>().unwrap();
        match verb {
            "listen" => {
                self.our_port = PEER_PORT;
                self.stack.listen(PEER_PORT);
            }
            "connect" => {
                let remote = SocketAddr::new(self.family.peer(), PEER_PORT);
                self.id = Some(self.stack.connect(self.now, self.family.us(), remote).unwrap());
            }
            "open" => self.open(&rest),
            "write" => self.write(number(0)),
            "read" => self.expect_read(number(0)),
            "eager" => self.eager = true,
            "lazy" => self.eager = false,
            "full" => self.full = true,
            "empty" => self.full = false,
            "close" => self.stack.close(self.id()),
            "abort" => self.stack.abort(self.id()),
            "too-big" => self.too_big(number(0), number(1) as u16, rest[2] == "yes"),
            "unreachable" => self.unreachable(number(0), rest[1] == "hard", rest[2] == "yes"),
            _ => self.fail("no such step"),
        }
    }

    pub(crate) fn id(&self) -> ConnId {
        self.id.expect("a connection")
    }

    /// Opens a connection of our own, to a peer with this window, an MSS of 1000 and SACK; or with
    /// timestamps and a window scale of 7 too; or with nothing but the MSS. The round trip takes no
    /// time, so that pacing does not spread what follows; a far peer's takes 100 ms.
    fn open(&mut self, words: &[&str]) {
        let (options, ts, window, time) = match words {
            ["timestamps", window] => ("sackok ws 7 ts=1", "ts", window, "+0"),
            ["bare", window] => ("", "", window, "+0"),
            ["far", window] => ("sackok", "", window, "+0.1"),
            [window] => ("sackok", "", window, "+0"),
            _ => self.fail("open [timestamps|bare|far] WINDOW"),
        };
        let scale = self.scale;
        let steps = format!(
            "connect
             > S 0(0) mss 1460 ws {scale} sackok ts:0
             {time} < S. 0(0) ack 1 win {window} mss 1000 {options}
             > . 1(0) ack 1 {ts}
             event opened"
        );
        let step = std::mem::take(&mut self.step);
        for line in steps.lines() {
            self.step = format!("{step}: {line}");
            self.play_step(line.trim());
        }
        self.step = step;
    }

    fn write(&mut self, len: u64) {
        let (mut left, from) = (len as usize, self.written);
        while left > 0 {
            let len = left.min(4096);
            let start = from + (self.written - from);
            let written = self.stack.send_with(self.id(), len, |room| {
                for (octet, offset) in room.iter_mut().zip(start..) {
                    *octet = pattern(offset);
                }
                len
            });
            if written != Ok(len) {
                self.fail(&format!("the write was refused: {written:?}"));
            }
            self.written += len as u64;
            left -= len;
        }
    }

    fn expect_read(&mut self, len: u64) {
        let (id, mut from, mut left) = (self.id(), self.read, len as usize);
        loop {
            let taken = self.stack.recv(id, |octets| {
                let take = octets.len().min(left);
                for (octet, offset) in octets[..take].iter().zip(from..) {
                    assert_eq!(*octet, pattern(offset), "received octet {offset}");
                }
                take
            });
            let taken = taken.unwrap();
            (from, left) = (from + taken as u64, left - taken);
            if taken == 0 || left == 0 {
                break;
            }
        }
        self.read = from;
        if left > 0 {
            self.fail(&format!("{left} octets are missing"));
        }
    }

    fn too_big(&mut self, seq: u64, mtu: u16, believed: bool) {
        let (local, remote, seq) = self.quoted(seq);
        let answer = self.stack.packet_too_big(self.now, local, remote, seq, mtu);
        if answer != believed {
            self.fail(&format!("believed: {answer}"));
        }
    }

    fn unreachable(&mut self, seq: u64, hard: bool, believed: bool) {
        let (local, remote, seq) = self.quoted(seq);
        let answer = self.stack.unreachable(self.now, local, remote, seq, hard);
        if answer != believed {
            self.fail(&format!("believed: {answer}"));
        }
        self.collect();
    }

    /// What an ICMP message quotes of a segment of ours.
    fn quoted(&self, seq: u64) -> (SocketAddr, SocketAddr, u32) {
        (
            SocketAddr::new(self.family.us(), self.our_port),
            SocketAddr::new(self.family.peer(), PEER_PORT),
            self.our_isn.unwrap().wrapping_add(seq as u32),
        )
    }

    fn expect_event(&mut self, words: &[&str]) {
        let next = loop {
            match self.events.pop_front() {
                Some(Event::Readable(_)) => {}
                other => break other,
            }
        };
        let as_expected = match (words, next) {
            (["opened"], Some(Event::Opened { id, .. })) => {
                self.id = Some(id);
                true
            }
            (["writable"], Some(Event::Writable(_))) | (["none"], None) => true,
            (["closed", reason], Some(Event::Closed { reason: CloseReason::PeerClosed, .. })) => {
                *reason == "peer-closed"
            }
            (["closed", reason], Some(Event::Closed { reason: got, .. })) => *reason == got.name(),
            _ => false,
        };
        if !as_expected {
            self.fail(&format!("the event was {next:?}"));
        }
    }

    /// Lets time pass, and the timers run, up to `until`.
    pub(crate) fn run_until(&mut self, until: Instant) {
        while let Some(at) = self.next_due().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.stack.handle_timeout(self.now);
            self.collect();
        }
        self.now = self.now.max(until);
        self.stack.handle_timeout(self.now); // The caller's actions happen at this time.
    }

    /// When the stack wants to be called. As long as something waits for the device that is at once.
    fn next_due(&self) -> Option<Instant> {
        let at = self.stack.poll_timeout();
        if self.full { at.map(|_| self.now + TOLERANCE) } else { at }
    }

    /// Takes what the stack sends now, and its events.
    fn collect(&mut self) {
        let piece = if self.device { PIECE } else { usize::MAX };
        let mut out = Out { packets: Vec::new(), piece, full: self.full };
        self.stack.poll_transmit(self.now, &mut out);
        for (meta, packet) in out.packets {
            let segment = if self.device {
                Segment::parse_for_device(packet, self.family, meta.segment_bytes)
            } else {
                assert_eq!(meta.segment_bytes, None);
                Segment::parse(&packet, self.family)
            };
            if self.our_isn.is_none() || segment.flags & 0x12 == 0x12 {
                self.our_isn = Some(segment.seq);
                self.our_port = segment.source_port;
            }
            if let Some((value, _)) = segment.timestamps {
                self.our_clock.get_or_insert(value);
                self.last_value = value;
            }
            self.sent.push_back((self.now, segment));
        }
        while let Some(event) = self.stack.poll_event() {
            self.events.push_back(event);
        }
    }
}
