//! Two stacks and a link between them that loses, delays, reorders and duplicates by a seed, in
//! virtual time. Whatever happens can be repeated from the seed.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_tcpstack::{
    ConnId, Event, Instant, Packet, RxChecksum, SegmentOutcome, Stack, StackConfig, Transmit,
};

/// Which end.
pub type End = usize;
/// The end that connects.
pub const A: End = 0;
/// The end that listens on 4500.
pub const B: End = 1;

/// The addresses of the ends.
pub const V4: [&str; 2] = ["192.0.2.1", "198.51.100.7"];
pub const V6: [&str; 2] = ["2001:db8::1", "2001:db8:ffff::7"];

/// What the link does, in parts of 1000.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    pub loss: u64,
    pub duplication: u64,
    pub reordering: u64,
    pub delay: Duration,
}

impl Link {
    pub const PERFECT: Self =
        Self { loss: 0, duplication: 0, reordering: 0, delay: Duration::from_millis(5) };
    pub const BAD: Self =
        Self { loss: 30, duplication: 20, reordering: 50, delay: Duration::from_millis(10) };
}

/// A small generator; what it gives is good enough to lose packets by (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// True so many times of 1000.
    pub fn happens(&mut self, of_1000: u64) -> bool {
        self.next() % 1000 < of_1000
    }
}

/// Takes packets, up to a number.
pub struct Batch {
    pub packets: Vec<Vec<u8>>,
    pub room: usize,
}

impl Batch {
    pub fn unlimited() -> Self {
        Self { packets: Vec::new(), room: usize::MAX }
    }
}

impl Transmit for Batch {
    fn has_room(&mut self) -> bool {
        self.packets.len() < self.room
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        assert!(self.has_room(), "a packet without asking for room");
        // What is not written stays visible.
        let mut octets = vec![0xa5; packet.bytes];
        fill(&mut octets);
        self.packets.push(octets);
    }
}

/// The two stacks, the link and the clock.
pub struct Net {
    pub stacks: [Stack; 2],
    pub now: Instant,
    pub link: Link,
    pub addresses: [IpAddr; 2],
    /// Every packet that was put on the link, in order, if wanted.
    pub trace: Option<Vec<(End, Instant, Vec<u8>)>>,
    random: Random,
    in_flight: BTreeMap<(Instant, u64), (End, Vec<u8>)>,
    sent: u64,
}

/// Octets of a frame at the most.
const FRAME_MAX: usize = 65_541;

impl Net {
    pub fn new(seed: u64, link: Link, config: &StackConfig, addresses: [&str; 2]) -> Self {
        let stack = |end: u8| {
            let mut octets = [end; 32];
            octets[..8].copy_from_slice(&seed.to_le_bytes());
            Stack::new(config.clone(), octets).unwrap()
        };
        let mut stacks = [stack(1), stack(2)];
        stacks[B].listen(4500);
        Self {
            stacks,
            now: Instant(1_000_000),
            link,
            addresses: addresses.map(|address| address.parse().unwrap()),
            trace: None,
            random: Random::new(seed),
            in_flight: BTreeMap::new(),
            sent: 0,
        }
    }

    /// Two ends with default limits and a link without faults.
    pub fn perfect() -> Self {
        Self::new(1, Link::PERFECT, &StackConfig::default(), V4)
    }

    pub fn connect(&mut self) -> ConnId {
        let remote = SocketAddr::new(self.addresses[B], 4500);
        self.stacks[A].connect(self.now, self.addresses[A], remote).unwrap()
    }

    /// Opens a connection and gives its names at A and at B.
    pub fn open(&mut self) -> [ConnId; 2] {
        let a = self.connect();
        self.run_for(Duration::from_millis(200));
        let b = match self.events(B).as_slice() {
            [Event::Opened { id, originator: false, .. }] => *id,
            other => panic!("{other:?}"),
        };
        match self.events(A).as_slice() {
            [Event::Opened { id, originator: true, .. }] => assert_eq!(*id, a),
            other => panic!("{other:?}"),
        }
        [a, b]
    }

    pub fn events(&mut self, end: End) -> Vec<Event> {
        std::iter::from_fn(|| self.stacks[end].poll_event()).collect()
    }

    pub fn send(&mut self, end: End, id: ConnId, octets: &[u8]) {
        for frame in octets.chunks(FRAME_MAX) {
            let sent = self.stacks[end].send_with(id, frame.len(), |room| {
                room.copy_from_slice(frame);
                frame.len()
            });
            assert_eq!(sent, Ok(frame.len()));
        }
    }

    pub fn recv(&mut self, end: End, id: ConnId) -> Vec<u8> {
        let mut all = Vec::new();
        while self.stacks[end]
            .recv(id, |octets| {
                all.extend_from_slice(octets);
                octets.len()
            })
            .unwrap()
            > 0
        {}
        all
    }

    /// Gives a packet to an end at once.
    pub fn deliver(&mut self, end: End, packet: &[u8]) -> SegmentOutcome {
        self.deliver_as(end, packet, RxChecksum::Unknown)
    }

    /// The same, by a device that has verified the checksums.
    pub fn deliver_verified(&mut self, end: End, packet: &[u8]) -> SegmentOutcome {
        self.deliver_as(end, packet, RxChecksum::Verified)
    }

    pub fn deliver_as(&mut self, end: End, packet: &[u8], checksum: RxChecksum) -> SegmentOutcome {
        let keep = &mut |_, _: &mut [u8]| 0;
        self.stacks[end].handle_segment(self.now, &mut packet.to_vec(), checksum, keep)
    }

    /// What an end wants to send now, taken off the link.
    pub fn take(&mut self, end: End) -> Vec<Vec<u8>> {
        let mut batch = Batch::unlimited();
        self.stacks[end].poll_transmit(self.now, &mut batch);
        batch.packets
    }

    /// Puts what both ends want to send on the link.
    pub fn transmit(&mut self) {
        for end in [A, B] {
            for packet in self.take(end) {
                if let Some(trace) = &mut self.trace {
                    trace.push((end, self.now, packet.clone()));
                }
                self.put(1 - end, packet);
            }
        }
    }

    fn put(&mut self, to: End, packet: Vec<u8>) {
        if self.random.happens(self.link.loss) {
            return;
        }
        let copies = 1 + u64::from(self.random.happens(self.link.duplication));
        for _ in 0..copies {
            let mut at = self.now + self.link.delay;
            if self.random.happens(self.link.reordering) {
                at = at + self.link.delay * (self.random.next() % 3 + 1) as u32;
            }
            self.sent += 1;
            self.in_flight.insert((at, self.sent), (to, packet.clone()));
        }
    }

    /// Lets time pass to the next thing that happens, at most to `until`.
    pub fn step(&mut self, until: Instant) {
        self.transmit();
        let arrival = self.in_flight.keys().next().map(|(at, _)| *at);
        let timers = self.stacks.iter().filter_map(Stack::poll_timeout);
        let next = timers.chain(arrival).min().unwrap_or(until).min(until);
        self.now = self.now.max(next);
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (end, packet) = entry.remove();
            self.deliver(end, &packet);
        }
        for stack in &mut self.stacks {
            if stack.poll_timeout().is_some_and(|at| at <= self.now) {
                stack.handle_timeout(self.now);
            }
        }
    }

    /// Lets this time pass.
    pub fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step(until);
        }
        self.transmit();
    }
}

/// A view of a TCP segment in an IP packet, at fixed offsets, written independently of the stack.
pub struct Tcp<'a>(pub &'a [u8]);

impl Tcp<'_> {
    fn header(&self) -> &[u8] {
        if self.0[0] >> 4 == 4 { &self.0[20..] } else { &self.0[40..] }
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.header()[at..at + 4].try_into().unwrap())
    }

    pub fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.header()[0], self.header()[1]])
    }

    pub fn seq(&self) -> u32 {
        self.word(4)
    }

    pub fn ack(&self) -> u32 {
        self.word(8)
    }

    pub fn window(&self) -> u16 {
        u16::from_be_bytes([self.header()[14], self.header()[15]])
    }

    pub fn flags(&self) -> u8 {
        self.header()[13]
    }

    pub fn data(&self) -> &[u8] {
        &self.header()[usize::from(self.header()[12] >> 4) * 4..]
    }

    pub fn options(&self) -> &[u8] {
        &self.header()[20..usize::from(self.header()[12] >> 4) * 4]
    }
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// An IPv4 TCP segment made by hand.
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub data: Vec<u8>,
}

impl Segment {
    /// The IP packet, with right checksums.
    pub fn packet(&self) -> Vec<u8> {
        let (IpAddr::V4(source), IpAddr::V4(destination)) =
            (self.source.ip(), self.destination.ip())
        else {
            panic!("IPv4 only");
        };
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([5 << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&self.data);
        let mut pseudo = [source.octets(), destination.octets()].concat();
        pseudo.extend([0, 6]);
        pseudo.extend((tcp.len() as u16).to_be_bytes());
        let sum = checksum(&[&pseudo[..], &tcp].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend((20 + tcp.len() as u16).to_be_bytes());
        ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        ip.extend(source.octets());
        ip.extend(destination.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(tcp);
        ip
    }
}

/// A SYN from a stranger to B.
pub fn syn(port: u16, seq: u32) -> Segment {
    Segment {
        source: SocketAddr::from(([203, 0, 113, 9], port)),
        destination: SocketAddr::new(V4[B].parse().unwrap(), 4500),
        seq,
        ack: 0,
        flags: SYN,
        data: Vec::new(),
    }
}

/// The Internet checksum (RFC 1071).
pub fn checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
