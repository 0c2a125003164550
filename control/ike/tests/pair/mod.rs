//! Two endpoints, a network between them and a virtual clock.
//!
//! [`Pair::run`] carries messages and fires timers in order of time until a point in time; the
//! network delays, and as told loses, repeats, reorders, translates addresses (NAT) or forbids UDP
//! or TCP. All randomness comes from a seed, so that every run is the same.

pub(crate) mod crash;
mod host;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildConfig, ChildSa, ConnToken, ConnectionConfig, Endpoint, EndpointConfig, Event, IkeSaId,
    IkeSnapshot, Instant, Path, Received, Secret, Transmit, Transport,
};

pub(crate) use host::TestHost;

/// One way through the network.
const LATENCY: Duration = Duration::from_millis(10);
/// The address and first port that a NAT before A shows to B.
pub(crate) const NAT: &str = "198.51.100.99";
const NAT_PORTS: u16 = 20_000;

/// A generator of test randomness (splitmix64).
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Whether something of this probability, in percent, happens.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// One gateway.
pub(crate) struct Side {
    pub(crate) endpoint: Endpoint,
    pub(crate) host: TestHost,
    pub(crate) events: Vec<Event>,
    /// Every message it sent, whether it arrived or not.
    pub(crate) sent: Vec<(Instant, Path, Vec<u8>)>,
    /// What became of every message that reached it.
    pub(crate) received: Vec<Received>,
    /// When it asked for a TCP connection.
    pub(crate) connects: Vec<Instant>,
    /// When it sent a NAT keepalive, and where to.
    pub(crate) keepalives: Vec<(Instant, Path)>,
    pub(crate) closes: Vec<ConnToken>,
    /// The messages that must not overtake ESP packets.
    pub(crate) behind: Vec<Vec<u8>>,
    /// What outlives the process.
    pub(crate) kept: crash::Kept,
}

impl Side {
    fn new(address: IpAddr, seed: u64, config: EndpointConfig) -> Self {
        let host = TestHost::new(address, seed);
        let kept = crash::Kept::new(&config);
        Self {
            endpoint: Endpoint::new(config),
            host,
            events: Vec::new(),
            sent: Vec::new(),
            received: Vec::new(),
            connects: Vec::new(),
            keepalives: Vec::new(),
            closes: Vec::new(),
            behind: Vec::new(),
            kept,
        }
    }

    /// The only IKE SA.
    pub(crate) fn sa(&self) -> IkeSnapshot {
        let mut sas: Vec<_> = self.endpoint.sas().collect();
        assert_eq!(sas.len(), 1, "{sas:?}");
        sas.remove(0)
    }

    /// The only pair of CHILD SAs.
    pub(crate) fn child(&self) -> &ChildSa {
        assert_eq!(self.host.installed.len(), 1);
        self.host.installed.values().next().unwrap()
    }

    /// Nothing is left: no SA, no SPI, no timer.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.endpoint.sas().count(), 0);
        assert!(self.endpoint.is_empty() && self.endpoint.poll_timeout().is_none());
        assert!(self.host.installed.is_empty() && self.host.reserved.is_empty());
    }

    /// Exchange types of the requests sent so far, in order, repetitions included.
    pub(crate) fn requests(&self) -> Vec<u8> {
        self.sent.iter().filter(|(_, _, m)| m[19] & 0x20 == 0).map(|(_, _, m)| m[18]).collect()
    }
}

/// What the network does. `a_to_b` is `true` for messages of A.
pub(crate) struct Net {
    pub(crate) rng: Rng,
    pub(crate) udp_blocked: bool,
    pub(crate) tcp_refused: bool,
    /// Nothing over UDP reaches this address or comes from it.
    pub(crate) cut_off: Option<IpAddr>,
    /// Percent of messages that are lost (UDP), repeated (UDP), delayed by some latencies (UDP).
    pub(crate) loss: u64,
    pub(crate) repeated: u64,
    pub(crate) reordered: u64,
    /// How many of the next messages of A, and of B, are lost.
    pub(crate) lose: [u32; 2],
    /// A is behind a NAT.
    pub(crate) nat: bool,
    /// Added to the ports that the NAT shows, to let it forget its mapping.
    pub(crate) nat_shift: u16,
    /// When processes die.
    pub(crate) crash: crash::Plan,
}

enum What {
    Message(Path, Vec<u8>),
    Opened(culvert_ike::ConnectRequest, ConnToken, SocketAddr, SocketAddr),
    Failed(culvert_ike::ConnectRequest),
}

pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) a: Side,
    pub(crate) b: Side,
    pub(crate) net: Net,
    wire: BTreeMap<(Instant, u64), (bool, What)>,
    order: u64,
    /// Check at each step that traffic flows.
    pub(crate) traffic: bool,
    /// Open TCP connections, by token: A's end and B's end as each sees the other.
    pub(crate) tcp: BTreeMap<ConnToken, (SocketAddr, SocketAddr)>,
}

pub(crate) const A: &str = "192.0.2.1";
pub(crate) const B: &str = "203.0.113.1";

pub(crate) fn child(local: &[&str], remote: &[&str], proposal: &str) -> ChildConfig {
    let list = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
    let mut child = ChildConfig::new("net", list(local), list(remote));
    child.proposals = vec![proposal.parse().unwrap()];
    child
}

/// A connection as A has it; B has its mirror.
pub(crate) fn config() -> ConnectionConfig {
    let mut config =
        ConnectionConfig::new("ab", "a.test".parse().unwrap(), "b.test".parse().unwrap());
    config.remote_addrs = vec![culvert_ike::AddressMatch::Address(B.parse().unwrap())];
    config.mobike = false;
    config.proposals = vec!["aes128gcm16-prfsha256-x25519".parse().unwrap()];
    let net = child(&["10.1.0.0/24"], &["10.2.0.0/24"], "aes128gcm16-esn-noesn");
    config.children = vec![Arc::new(net)];
    config
}

/// The same connection from the other side, with any remote address.
pub(crate) fn mirror(config: &ConnectionConfig) -> ConnectionConfig {
    let remote_id = config.remote_id.exact().unwrap().clone();
    let mut mirror = config.clone();
    mirror.local_id = remote_id;
    mirror.remote_id = culvert_ike::IdentityPattern::Exact(config.local_id.clone());
    mirror.remote_addrs = vec![culvert_ike::AddressMatch::Any];
    mirror.children = config
        .children
        .iter()
        .map(|c| {
            let (local_ts, remote_ts) = (c.remote_ts.clone(), c.local_ts.clone());
            Arc::new(ChildConfig { local_ts, remote_ts, ..(**c).clone() })
        })
        .collect();
    mirror
}

impl Pair {
    pub(crate) fn new(a: ConnectionConfig, b: ConnectionConfig) -> Self {
        Self::with_limits(a, b, EndpointConfig::default())
    }

    pub(crate) fn with_limits(
        a: ConnectionConfig,
        b: ConnectionConfig,
        limits: EndpointConfig,
    ) -> Self {
        let mut pair = Self {
            now: Instant::from_micros(1_000_000),
            a: Side::new(A.parse().unwrap(), 1, EndpointConfig::default()),
            b: Side::new(B.parse().unwrap(), 2, limits),
            net: Net {
                rng: Rng(3),
                udp_blocked: false,
                tcp_refused: false,
                cut_off: None,
                loss: 0,
                repeated: 0,
                reordered: 0,
                lose: [0, 0],
                nat: false,
                nat_shift: 0,
                crash: crash::Plan::default(),
            },
            wire: BTreeMap::new(),
            order: 0,
            traffic: false,
            tcp: BTreeMap::new(),
        };
        pair.a.host.psk = vec![(b.local_id.clone(), Secret::new(b"shared".to_vec()))];
        pair.b.host.psk = vec![(a.local_id.clone(), Secret::new(b"shared".to_vec()))];
        pair.a.host.connections = vec![Arc::new(a)];
        pair.b.host.connections = vec![Arc::new(b)];
        pair
    }

    /// A initiates.
    pub(crate) fn initiate(&mut self) -> IkeSaId {
        let connection = self.a.host.connections[0].clone();
        self.a.endpoint.initiate(self.now, &connection, None, &mut self.a.host).unwrap()
    }

    /// An established pair.
    pub(crate) fn up(a: ConnectionConfig) -> Self {
        let b = mirror(&a);
        let mut pair = Self::new(a, b);
        pair.initiate();
        pair.run(Duration::from_secs(1));
        assert_eq!(pair.a.host.installed.len(), 1, "{:?}", pair.a.events);
        pair
    }

    fn side(&mut self, a: bool) -> &mut Side {
        if a { &mut self.a } else { &mut self.b }
    }

    fn put(&mut self, at: Instant, to_a: bool, what: What) {
        self.order += 1;
        self.wire.insert((at, self.order), (to_a, what));
    }

    /// The address of A as B sees it.
    fn translate(&self, a: SocketAddr) -> SocketAddr {
        match self.net.nat {
            true => SocketAddr::new(
                NAT.parse().unwrap(),
                NAT_PORTS + a.port() % 10_000 + self.net.nat_shift,
            ),
            false => a,
        }
    }

    fn translate_back(&self, seen: SocketAddr) -> Option<SocketAddr> {
        let nat: IpAddr = NAT.parse().unwrap();
        match (self.net.nat, seen.ip() == nat) {
            (true, true) => {
                let port = seen.port().checked_sub(NAT_PORTS + self.net.nat_shift)?;
                Some(SocketAddr::new(A.parse().unwrap(), port))
            }
            (false, false) => Some(seen),
            _ => None,
        }
    }

    /// Takes what a side wants to send.
    fn collect(&mut self, from_a: bool) {
        let now = self.now;
        self.side(from_a).save();
        while let Some(transmit) = self.side(from_a).endpoint.poll_transmit() {
            match transmit {
                Transmit::Message { path, octets, behind } => {
                    self.side(from_a).behind.extend(behind.then_some(octets.clone()));
                    self.side(from_a).kept.check(&octets);
                    self.side(from_a).sent.push((now, path, octets.clone()));
                    self.carry(from_a, &path, octets);
                }
                Transmit::Keepalive { path } => self.side(from_a).keepalives.push((now, path)),
                Transmit::Connect { request, remote, .. } => {
                    self.side(from_a).connects.push(now);
                    self.open(from_a, request, remote);
                }
                Transmit::Close { conn } => {
                    self.side(from_a).closes.push(conn);
                    if self.tcp.remove(&conn).is_some() {
                        let other = self.side(!from_a);
                        other.endpoint.tcp_closed(now, conn, &mut other.host);
                    }
                }
            }
        }
        while let Some(event) = self.side(from_a).endpoint.poll_event() {
            self.side(from_a).events.push(event);
        }
    }

    fn open(&mut self, from_a: bool, request: culvert_ike::ConnectRequest, remote: SocketAddr) {
        assert!(from_a, "only A initiates in these tests");
        let at = self.now + LATENCY * 2;
        if self.net.tcp_refused {
            self.put(at, from_a, What::Failed(request));
            return;
        }
        self.order += 1;
        let conn = ConnToken(self.order);
        let local = SocketAddr::new(A.parse().unwrap(), 5_000 + (self.order % 50_000) as u16);
        self.tcp.insert(conn, (local, remote));
        self.put(at, from_a, What::Opened(request, conn, local, remote));
    }

    fn carry(&mut self, from_a: bool, path: &Path, octets: Vec<u8>) {
        if path.transport == Transport::Tcp {
            let Some((a, b)) = path.conn.and_then(|conn| self.tcp.get(&conn)).copied() else {
                return;
            };
            let (local, remote) = if from_a { (b, self.translate(a)) } else { (a, b) };
            let path = Path { local, remote, ..*path };
            self.put(self.now + LATENCY, !from_a, What::Message(path, octets));
            return;
        }
        let (local, remote) = match from_a {
            true => (path.remote, self.translate(path.local)),
            false => match self.translate_back(path.remote) {
                Some(a) => (a, path.local),
                None => return,
            },
        };
        let lose = &mut self.net.lose[usize::from(!from_a)];
        if *lose > 0 {
            *lose -= 1;
            return;
        }
        let cut_off = self.net.cut_off.is_some_and(|ip| [local.ip(), remote.ip()].contains(&ip));
        if cut_off || self.net.udp_blocked {
            return;
        }
        if self.net.rng.percent(self.net.loss) {
            return;
        }
        let copies = 1 + u32::from(self.net.rng.percent(self.net.repeated));
        for copy in 0..copies {
            let late = self.net.rng.percent(self.net.reordered) || copy > 0;
            let wait = if late { 1 + (self.net.rng.next() % 300) as u32 } else { 1 };
            let message = What::Message(Path::udp(local, remote), octets.clone());
            self.put(self.now + LATENCY * wait, !from_a, message);
        }
    }

    /// Lets one message of anybody reach a side now.
    pub(crate) fn inject(&mut self, to_a: bool, path: &Path, octets: &[u8]) -> Received {
        let now = self.now;
        let side = self.side(to_a);
        let mut received = side.endpoint.handle_message(now, path, octets, &mut side.host);
        if self.crash(to_a) {
            // What a process died over comes again to the next one.
            let side = self.side(to_a);
            received = side.endpoint.handle_message(now, path, octets, &mut side.host);
        }
        self.side(to_a).received.push(received);
        self.collect(true);
        self.collect(false);
        received
    }

    fn deliver(&mut self, to_a: bool, what: What) {
        let now = self.now;
        match what {
            What::Message(path, octets) => {
                if path.conn.is_none_or(|conn| self.tcp.contains_key(&conn)) {
                    self.inject(to_a, &path, &octets);
                }
            }
            What::Opened(request, conn, local, remote) => {
                let side = self.side(to_a);
                side.endpoint.tcp_opened(now, request, conn, local, remote, &mut side.host);
            }
            What::Failed(request) => {
                let side = self.side(to_a);
                side.endpoint.tcp_failed(now, request, "connection refused", &mut side.host);
            }
        }
    }

    /// Cuts every TCP connection; both sides see it.
    pub(crate) fn cut(&mut self) {
        let now = self.now;
        for conn in std::mem::take(&mut self.tcp).into_keys() {
            for a in [true, false] {
                let side = self.side(a);
                side.endpoint.tcp_closed(now, conn, &mut side.host);
            }
        }
        self.collect(true);
        self.collect(false);
    }

    /// Whoever sends does so on a pair that the other receives on: no packet would be lost.
    fn check_traffic(&self) {
        for (own, other) in [(&self.a, &self.b), (&self.b, &self.a)] {
            let Some(newest) = own.host.outbound.last() else { continue };
            let sa = own.host.installed.values().find(|sa| sa.id == *newest).unwrap();
            assert!(other.host.installed.contains_key(&sa.spi_out), "traffic into the void");
        }
    }

    /// Runs for this long.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.collect(true);
            self.collect(false);
            let wire = self.wire.first_key_value().map(|((at, _), _)| *at);
            let timers = [self.a.endpoint.poll_timeout(), self.b.endpoint.poll_timeout()];
            let next = wire.into_iter().chain(timers.into_iter().flatten()).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            assert!(next >= self.now || timers.contains(&Some(next)), "time runs forward");
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry().filter(|e| e.key().0 <= self.now) {
                let (to_a, what) = entry.remove();
                self.deliver(to_a, what);
            }
            if self.traffic {
                self.collect(true);
                self.collect(false);
                self.check_traffic();
            }
            for a in [true, false] {
                let now = self.now;
                let side = self.side(a);
                if side.endpoint.poll_timeout().is_some_and(|at| at <= now) {
                    side.endpoint.handle_timeout(now, &mut side.host);
                    // A timer comes again by itself to who did not live to save what it did.
                    let again = self.crash(a);
                    let side = self.side(a);
                    let after = side.endpoint.poll_timeout();
                    assert!(again || after.is_none_or(|at| at > now), "a due timer stays due");
                }
            }
        }
        self.now = end;
        self.collect(true);
        self.collect(false);
    }

    /// Both have one pair, and what one sends on the other receives on with the same keys.
    pub(crate) fn assert_child(&self) {
        let (a, b) = (self.a.child(), self.b.child());
        assert_eq!((a.spi_in, a.spi_out), (b.spi_out, b.spi_in));
        assert!(a.keymat_in == b.keymat_out && a.keymat_out == b.keymat_in);
        assert!(a.keymat_in != a.keymat_out);
        assert_eq!((&a.local_ts, &a.remote_ts), (&b.remote_ts, &b.local_ts));
        assert_eq!(a.suite, b.suite);
    }
}
