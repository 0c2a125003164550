//! What a seed stands for: who the ends are, what lies between them, and what their callers do.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tcpstack::{
    CloseReason, CongestionControl, EphemeralPorts, Instant, StackConfig, TcpSecret, TxChecksum,
};

use crate::caller::{Callers, End, Habits};
use crate::host::{EngineHost, Host};
use crate::link::{Bursts, Link, LinkConfig};
use crate::nat::{self, Nat};
use crate::random::Random;
use crate::smol::SmolHost;
use crate::world::World;

/// Everyone goes home after so long.
const CURFEW: Duration = Duration::from_secs(600);
/// By then the last timer must be gone: user timeout, retransmissions of a FIN and TIME-WAIT.
const OVER: Duration = Duration::from_secs(3600);
/// How long a SYN may stay unanswered where nothing is very bad: several connections may fill a short
/// queue of a slow link and have four answers in a row dropped, which is all there are in the engine's
/// own ten seconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(100);
/// Silence after which the engine asks.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Who is at the ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// The engine at both.
    Engines,
    /// The engine connects to smoltcp's sockets.
    EngineToSmol,
    /// smoltcp's sockets connect to the engine.
    SmolToEngine,
}

/// A run that a seed describes.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// From which everything follows.
    pub seed: u64,
    /// Who is at the ends.
    pub ends: Ends,
    /// Congestion control of each engine.
    pub controls: [CongestionControl; 2],
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// How many connections there are.
    pub connections: u32,
    /// How many may be there that nobody vouched for.
    pub unproven_max: u32,
    /// Receive and send buffers.
    pub buffer_bytes: [usize; 2],
    /// Memory of all buffers of one end.
    pub buffers_bytes: usize,
    /// Packets that a device takes in one turn.
    pub room: usize,
    /// Each direction.
    pub links: [LinkConfig; 2],
    /// How often the NAT in front of end 0 rebinds; `None` without one.
    pub rebindings: Option<u32>,
    /// The longest packet that the device of each end cuts, in octets; 0 if it cuts none.
    pub segmentation_bytes: [usize; 2],
    /// The callers of each end.
    pub habits: [Habits; 2],
}

/// What a run came to.
#[derive(Debug, Clone)]
pub struct Report {
    /// Packets delivered and turns taken.
    pub steps: u64,
    /// Octets read and found right.
    pub octets: u64,
    /// Virtual time.
    pub elapsed: Duration,
    /// The longest time that octets waited behind a hole.
    pub stood_still: Duration,
    /// Why the connections of each end ended.
    pub reasons: [Vec<CloseReason>; 2],
}

impl Scenario {
    /// The scenario of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let ends =
            random.pick(&[Ends::Engines, Ends::Engines, Ends::EngineToSmol, Ends::SmolToEngine]);
        let (mild, both) = (random.happens(400_000), ends == Ends::Engines);
        let control =
            |random: &mut Random| random.pick(&[CongestionControl::Cubic, CongestionControl::Bbr]);
        let controls = [control(&mut random), control(&mut random)];
        let links = [link(&mut random, mild), link(&mut random, mild)];
        let buffer = |random: &mut Random| random.pick(&[1 << 16, 1 << 18, 1 << 20, 1 << 22]);
        let starved = !mild && random.happens(100_000);
        Self {
            seed,
            ends,
            controls,
            v6: random.happens(300_000),
            connections: random.within(1..=if both { 6 } else { 3 }) as u32,
            unproven_max: if mild || !random.happens(100_000) { 64 } else { 2 },
            buffer_bytes: [buffer(&mut random), buffer(&mut random)],
            buffers_bytes: if starved { 1 << 18 } else { 64 << 20 },
            room: random.pick(&[usize::MAX, usize::MAX, 1, 7, 64]),
            links,
            rebindings: (!mild && both && random.happens(150_000))
                .then(|| random.within(0..=2) as u32),
            segmentation_bytes: [0; 2].map(|_: usize| random.pick(&[0, 0, 5_000, 65_535])),
            habits: [habits(&mut random, mild, both, true), habits(&mut random, mild, both, false)],
        }
    }

    /// Whether nothing is so bad that a connection may end other than in order.
    #[must_use]
    pub fn is_mild(&self) -> bool {
        let calm = |link: &LinkConfig| {
            link.loss <= 30_000
                && link.bursts.is_none()
                && link.corrupt <= 10_000
                && link.ack_loss <= 200_000
                && link.ack_thinning <= 2
                && link.mtu >= 1500
        };
        self.links.iter().all(calm)
            && self.habits.iter().all(|habits| habits.end != End::Abort)
            && self.rebindings.is_none()
            && self.unproven_max >= self.connections
            && self.buffers_bytes > 1 << 20
    }

    /// Runs it.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn run(&self) -> Result<Report> {
        self.play(false)
    }

    /// Runs it and shows every packet.
    ///
    /// # Errors
    /// What the engine did wrong.
    pub fn show(&self) -> Result<Report> {
        self.play(true)
    }

    fn play(&self, shows: bool) -> Result<Report> {
        let mut world = self.world()?;
        world.shows = shows;
        let started = world.now;
        world.run(started + OVER).with_context(|| format!("{self}"))?;
        let reasons = [0, 1].map(|end: usize| world.callers[end].reasons.clone());
        if self.is_mild() {
            let orderly = |end: usize| {
                // Whoever closes before it has read everything says so by a RST (RFC 9293, 3.6.1);
                // nobody else resets a connection.
                let rude = self.habits[1 - end].end == End::Rude;
                let cut_short = if rude { world.callers[end].cut_short } else { 0 };
                let in_order = |reason: &&CloseReason| {
                    matches!(reason, CloseReason::LocalClosed | CloseReason::PeerClosed)
                };
                let ended = reasons[end].len();
                reasons[end].iter().filter(in_order).count() + cut_short == ended
            };
            ensure!(orderly(0) && orderly(1), "{self}\nno reason for {reasons:?}");
        }
        let elapsed = world.now.since(started);
        let octets = world.ledger.octets_checked;
        let stood_still = world.hosts.iter().map(|host| host.stood_still()).max();
        let stood_still = stood_still.unwrap_or_default();
        Ok(Report { steps: world.steps, octets, elapsed, stood_still, reasons })
    }

    fn world(&self) -> Result<World> {
        let mut random = Random::new(!self.seed);
        let texts = if self.v6 {
            ["2001:db8::1", "2001:db8:ffff::7", "2001:db8:a::1", "2001:db8:b::1"]
        } else {
            ["192.0.2.1", "198.51.100.7", "203.0.113.1", "203.0.113.77"]
        };
        let mut addresses = [IpAddr::from([0, 0, 0, 0]); 4];
        for (address, text) in addresses.iter_mut().zip(texts) {
            *address = text.parse()?;
        }
        let hosts =
            [self.host(0, addresses[0], &mut random)?, self.host(1, addresses[1], &mut random)?];
        let links = self.links.map(|config| Link::new(config, random.fork()));
        let start = Instant(1_000_000);
        let callers = [0, 1].map(|end: u8| {
            Callers::new(end, self.habits[usize::from(end)], random.fork(), start + CURFEW)
        });
        let mut world = World::new(hosts, links, callers, SocketAddr::new(addresses[1], 4500));
        let mut times = |count: u32, most: u64| {
            let at = |_| start + Duration::from_micros(random.within(0..=most));
            let mut times: Vec<Instant> = (0..count).map(at).collect();
            times.sort_unstable_by(|one, other| other.cmp(one));
            times
        };
        world.connect_at = times(self.connections, 3_000_000);
        if let Some(rebindings) = self.rebindings {
            world.nat = Some(Nat::new(addresses[0], [addresses[2], addresses[3]]));
            world.rebind_at = times(rebindings, 10_000_000);
        }
        world.room = self.room;
        Ok(world)
    }

    fn host(&self, end: usize, local: IpAddr, random: &mut Random) -> Result<Box<dyn Host>> {
        let smol = match self.ends {
            Ends::Engines => false,
            Ends::EngineToSmol => end == 1,
            Ends::SmolToEngine => end == 0,
        };
        if smol {
            return Ok(Box::new(SmolHost::new(local, self.buffer_bytes[end], random.draw())));
        }
        let (first, count) = nat::PORTS;
        let default = StackConfig::default();
        let config = StackConfig {
            connections_max: 64,
            unproven_max: self.unproven_max,
            buffers_bytes: self.buffers_bytes,
            secret: TcpSecret::new(random.octets(), Instant::ZERO),
            congestion_control: self.controls[end],
            keepalive: Some(KEEPALIVE),
            connect_timeout: if self.is_mild() { CONNECT_TIMEOUT } else { default.connect_timeout },
            rx_buffer_bytes: self.buffer_bytes[end],
            tx_buffer_bytes: self.buffer_bytes[1 - end],
            tx_checksum: match self.segmentation_bytes[end] {
                0 => TxChecksum::Software,
                _ => TxChecksum::Device,
            },
            segmentation_bytes: self.segmentation_bytes[end],
            ephemeral_ports: EphemeralPorts {
                first,
                last: first + count - 1,
                stride: 1,
                offset: 0,
            },
            ..default
        };
        Ok(Box::new(EngineHost::new(config, local, random)?))
    }
}

fn link(random: &mut Random, mild: bool) -> LinkConfig {
    let rate = random.pick(&[1, 10, 10, 100, 100, 1000]);
    let round_trip = Duration::from_micros(random.within(100..=200_000));
    let clean = LinkConfig::clean(rate, round_trip);
    let some = |random: &mut Random, often: u32, most: u64| {
        if random.happens(often) { random.within(0..=most) as u32 } else { 0 }
    };
    let wild = u64::from(!mild);
    LinkConfig {
        queue_octets: random.pick(&[clean.queue_octets, 20_000, 1 << 20]),
        loss: some(random, 600_000, 30_000 + wild * 120_000),
        bursts: (!mild && random.happens(200_000)).then(|| Bursts {
            enter: random.within(100..=20_000) as u32,
            leave: random.within(20_000..=500_000) as u32,
            loss: random.within(300_000..=1_000_000) as u32,
        }),
        reorder: some(random, 400_000, 100_000),
        reorder_by: Duration::from_micros(random.within(100..=100_000)),
        duplicate: some(random, 300_000, 50_000),
        corrupt: some(random, 300_000, 10_000 + wild * 40_000),
        ack_loss: some(random, 200_000, 200_000 + wild * 500_000),
        ack_thinning: if random.happens(200_000) {
            random.pick(&[2, 2 + 8 * wild as u32])
        } else {
            1
        },
        mtu: if !mild && random.happens(100_000) { 1300 } else { 1500 },
        aggregation: if random.happens(200_000) {
            Duration::from_micros(random.within(100..=10_000))
        } else {
            Duration::ZERO
        },
        ..clean
    }
}

fn habits(random: &mut Random, mild: bool, engines: bool, opens: bool) -> Habits {
    let end = match (opens, random.within(0..=9)) {
        (_, 0) if !mild => End::Abort,
        (true, 1..=3) => End::Rude,
        (true, _) => End::Polite,
        (false, 1) => End::Rude,
        (false, _) => End::Passive,
    };
    Habits {
        // The end that opens sends first (RFC 9329, 4).
        frames: random.within(u64::from(opens)..=200) as u32,
        frame_max: random.pick(&[100, 1_500, 1_500, 9_000, 60_000]),
        pause: Duration::from_micros(random.pick(&[2_000, 20_000, 1_000_000])),
        urgent: if engines { random.pick(&[0, 50_000]) } else { 0 },
        hesitates: random.pick(&[0, 0, 100_000, 1_000_000]),
        reading_pause: Duration::from_micros(random.pick(&[1_000, 300_000, 20_000_000])),
        end,
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#?}\nrepeat it with: culvert-sim replay {}", self.seed)
    }
}
