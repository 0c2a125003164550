//! SYNs from everywhere, as many as a link carries.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_sim::host::Outbox;
use culvert_sim::link::{Link, LinkConfig};
use culvert_sim::packet::{Segment, flags};
use culvert_sim::random::Random;
use culvert_tcpstack::{ConnId, Event, Instant, RxChecksum, Stack, StackConfig};

use super::raw::config;

const SERVER: &str = "192.0.2.1:4500";
const CLIENT: &str = "198.51.100.9";
/// SYNs a second: 100 Mbit/s of them on Ethernet.
const FLOOD: u64 = 148_800;
const TICK: Duration = Duration::from_micros(100);

struct Site {
    client: Stack,
    server: Stack,
    there: Link,
    back: Link,
    now: Instant,
    random: Random,
    flood: bool,
    /// SYNs that the server got from nowhere.
    syns: u64,
    answers: u64,
    received: u64,
    opened_after: Option<Duration>,
}

impl Site {
    fn new(flood: bool) -> Self {
        let mut random = Random::new(8);
        let link = LinkConfig::clean(20, Duration::from_millis(20));
        let server_config = StackConfig { unproven_max: 16, ..config() };
        let mut server = Stack::new(server_config, [1; 32]).unwrap();
        server.listen(4500);
        Self {
            client: Stack::new(config(), [2; 32]).unwrap(),
            server,
            there: Link::new(link, random.fork()),
            back: Link::new(link, random.fork()),
            now: Instant(1_000_000),
            random,
            flood,
            syns: 0,
            answers: 0,
            received: 0,
            opened_after: None,
        }
    }

    /// Mbit/s that the client gets through in so many seconds, from its first SYN on.
    fn run(&mut self, seconds: u64) -> f64 {
        let (start, server) = (self.now, SERVER.parse::<SocketAddr>().unwrap());
        let client = CLIENT.parse::<IpAddr>().unwrap();
        let id = self.client.connect(self.now, client, server).unwrap();
        while self.now.since(start) < Duration::from_secs(seconds) {
            self.now = self.now + TICK;
            self.attack();
            self.serve();
            self.use_client(id, start);
        }
        self.received as f64 * 8e-6 / seconds as f64
    }

    fn attack(&mut self) {
        if !self.flood {
            return;
        }
        for _ in 0..FLOOD * TICK.as_micros() as u64 / 1_000_000 {
            let word = self.random.draw();
            let [a, b, c, d, e, f, ..] = word.to_be_bytes();
            let mut syn = Segment {
                source: ([11 + a % 80, b, c, d], u16::from_be_bytes([e, f]).max(1)).into(),
                destination: SERVER.parse().unwrap(),
                seq: word as u32,
                ack: 0,
                flags: flags::SYN,
                window: 1024,
                options: vec![2, 4, 5, 180],
                payload: Vec::new(),
            }
            .packet();
            self.syns += 1;
            self.server.handle_segment(self.now, &mut syn, RxChecksum::Unknown, &mut |_, _| 0);
        }
    }

    fn serve(&mut self) {
        let (now, received) = (self.now, &mut self.received);
        while let Some(mut packet) = self.there.pop(now) {
            self.server.handle_segment(now, &mut packet, RxChecksum::Unknown, &mut |_, octets| {
                *received += octets.len() as u64;
                octets.len()
            });
        }
        if self.server.poll_timeout().is_some_and(|at| at <= now) {
            self.server.handle_timeout(now);
        }
        while let Some(event) = self.server.poll_event() {
            match event {
                Event::Opened { id, .. } => self.server.vouch(id),
                other => assert!(matches!(other, Event::Readable(_)), "{other:?}"),
            }
        }
        let mut out = Outbox::unlimited();
        self.server.poll_transmit(now, &mut out);
        for packet in out.packets {
            // Answers to nowhere leave by another link.
            let to = Segment::read(&packet).unwrap().destination.ip();
            if to == CLIENT.parse::<IpAddr>().unwrap() {
                self.back.push(now, packet);
            } else {
                self.answers += 1;
            }
        }
    }

    fn use_client(&mut self, id: ConnId, start: Instant) {
        let now = self.now;
        while let Some(mut packet) = self.back.pop(now) {
            self.client.handle_segment(now, &mut packet, RxChecksum::Unknown, &mut |_, _| 0);
        }
        if self.client.poll_timeout().is_some_and(|at| at <= now) {
            self.client.handle_timeout(now);
        }
        while let Some(event) = self.client.poll_event() {
            if matches!(event, Event::Opened { .. }) {
                self.opened_after = Some(now.since(start));
            }
            assert!(!matches!(event, Event::Closed { .. }), "{event:?}");
        }
        while self.client.send_capacity(id) >= 1400 {
            self.client.send_with(id, 1400, |room| room.len()).unwrap();
        }
        let mut out = Outbox::unlimited();
        self.client.poll_transmit(now, &mut out);
        for packet in out.packets {
            self.there.push(now, packet);
        }
    }
}

/// RFC 4987, 3.6: a flood finds no queue to fill. The peer connects at its first attempt, is as
/// fast as without the flood, and the flood leaves nothing behind.
#[test]
fn a_syn_flood_neither_keeps_out_nor_slows_down_a_peer() {
    let calm = Site::new(false).run(5);
    let mut site = Site::new(true);
    let flooded = site.run(5);
    assert!(calm > 15.0, "{calm:.1} of 20 Mbit/s without a flood");
    assert!(flooded > 0.97 * calm, "{flooded:.1} Mbit/s, {calm:.1} without a flood");
    let round_trip = Duration::from_millis(22);
    assert!(site.opened_after.is_some_and(|time| time <= round_trip), "{:?}", site.opened_after);
    let stats = site.server.stats();
    assert!(site.syns > 500_000 && site.answers >= site.syns * 99 / 100, "{} SYNs", site.syns);
    assert_eq!(stats.cookies_accepted, 1);
    assert!(stats.buffer_bytes <= 1 << 20, "{} octets of buffers", stats.buffer_bytes);
    // A SYN asks nothing of any connection.
    let own = stats.segments_out - site.answers + stats.segments_in - site.syns;
    assert!(stats.connections_polled <= 2 * own, "{} for {own}", stats.connections_polled);
}
