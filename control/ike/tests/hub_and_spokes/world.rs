//! A hub, its spokes, the network between them, and the one virtual clock. Every gateway's own clock
//! runs a little faster or slower.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildPath, ConnToken, ConnectRequest, ConnectionConfig, Endpoint, EndpointConfig, Event,
    Instant, Path, Transmit, Transport,
};

use crate::death::{Kept, Sent};
use crate::esp::Sealed;
use crate::host::{Rng, SimHost};

/// One way through the network.
pub(crate) const LATENCY: Duration = Duration::from_millis(10);
/// The hub's address, and its place among the nodes.
pub(crate) const HUB_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
pub(crate) const HUB: usize = 0;
/// The port that a NAT shows in place of local port 0.
const NAT_PORTS: u16 = 20_000;

/// A gateway.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) host: SimHost,
    /// Its identity.
    pub(crate) id: String,
    /// By how many millionths its clock runs fast.
    ppm: i64,
    pub(crate) limits: EndpointConfig,
    pub(crate) kept: Kept,
}

impl Node {
    pub(crate) fn new(id: String, host: SimHost, ppm: i64, limits: EndpointConfig) -> Self {
        let endpoint = Endpoint::new(limits.clone());
        Self { endpoint, host, id, ppm, limits, kept: Kept::default() }
    }

    pub(crate) fn local(&self, now: Instant) -> Instant {
        let now = i128::from(now.as_micros());
        Instant::from_micros((now + now * i128::from(self.ppm) / 1_000_000) as u64)
    }

    /// When its clock shows `due`, or just after.
    fn global(&self, due: Instant) -> Instant {
        let due = i128::from(due.as_micros()) * 1_000_000;
        Instant::from_micros((due / (1_000_000 + i128::from(self.ppm)) + 2) as u64)
    }
}

/// The way between a spoke and the hub.
#[derive(Default)]
pub(crate) struct Link {
    /// Behind a NAT: what it adds to ports.
    pub(crate) nat: Option<u16>,
    pub(crate) udp_blocked: bool,
    pub(crate) tcp_refused: bool,
    /// Percent of messages that are lost, repeated, late (UDP).
    pub(crate) bad: Option<(u64, u64, u64)>,
    /// When something last went wrong that may interrupt traffic.
    pub(crate) hurt: Instant,
}

/// What is under way to a gateway.
pub(crate) enum What {
    Message(Path, Vec<u8>),
    Opened(ConnectRequest, ConnToken, SocketAddr, SocketAddr),
    Failed(ConnectRequest),
    Closed(ConnToken),
    /// Whoever used this connection may be dead.
    Unused(ConnToken),
    /// ESP of a tunnel, under this SPI and key; whether it has to be taken.
    Esp {
        spoke: usize,
        sealed: Sealed,
        seen: ChildPath,
        due: bool,
    },
}

/// A TCP connection of a spoke: its end, and how the hub sees it.
pub(crate) struct Conn {
    spoke: usize,
    pub(crate) own: SocketAddr,
    pub(crate) seen: SocketAddr,
    /// Who has closed it: what is under way to there is lost.
    pub(crate) closed_by: Option<usize>,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) rng: Rng,
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Vec<Link>,
    wire: BTreeMap<(Instant, u64), (usize, What)>,
    order: u64,
    pub(crate) conns: HashMap<ConnToken, Conn>,
    timers: BTreeSet<(Instant, usize)>,
    timer_of: Vec<Option<Instant>>,
    /// Spokes by the address that the hub sees.
    by_address: HashMap<IpAddr, usize>,
    /// Spokes for which something has happened since they were last looked at.
    pub(crate) touched: HashSet<usize>,
    pub(crate) events: HashMap<&'static str, u64>,
    /// Spokes of which ESP was lost that had to be taken, and why.
    pub(crate) lost: Vec<(usize, String)>,
    pub(crate) sent: Sent,
}

impl World {
    pub(crate) fn new(seed: u64, nodes: Vec<Node>) -> Self {
        let links = nodes.iter().map(|_| Link::default()).collect();
        let timer_of = vec![None; nodes.len()];
        let now = Instant::from_micros(1_000_000_000);
        let mut world = Self {
            now,
            rng: Rng(seed),
            nodes,
            links,
            wire: BTreeMap::new(),
            order: 0,
            conns: HashMap::new(),
            timers: BTreeSet::new(),
            timer_of,
            by_address: HashMap::new(),
            touched: HashSet::new(),
            events: HashMap::new(),
            lost: Vec::new(),
            sent: Sent::default(),
        };
        for n in 1..world.nodes.len() {
            world.links[n].nat = n.is_multiple_of(3).then_some(0);
            world.readdress(n);
        }
        world
    }

    /// The address of a spoke as the hub sees it.
    fn public(&self, n: usize) -> IpAddr {
        match self.links[n].nat {
            Some(_) => Ipv4Addr::from(0x6440_0000 + n as u32).into(),
            None => self.nodes[n].host.address,
        }
    }

    fn readdress(&mut self, n: usize) {
        self.by_address.retain(|_, other| *other != n);
        self.by_address.insert(self.public(n), n);
    }

    fn translate(&self, n: usize, own: SocketAddr) -> SocketAddr {
        let port =
            self.links[n].nat.map_or(own.port(), |shift| NAT_PORTS + own.port() % 10_000 + shift);
        SocketAddr::new(self.public(n), port)
    }

    /// The spoke and its port that the hub reaches by this address.
    fn translate_back(&self, seen: SocketAddr) -> Option<(usize, SocketAddr)> {
        let n = *self.by_address.get(&seen.ip())?;
        let port = match self.links[n].nat {
            Some(shift) => seen.port().checked_sub(NAT_PORTS + shift)?,
            None => seen.port(),
        };
        // Of another port there is no mapping any more.
        matches!(port, 500 | 4500).then(|| (n, SocketAddr::new(self.nodes[n].host.address, port)))
    }

    /// Takes what a gateway wants sent, what it tells, and when it is to act next.
    pub(crate) fn collect<R>(&mut self, n: usize, result: R) -> R {
        while let Some(transmit) = self.nodes[n].endpoint.poll_transmit() {
            self.send(n, transmit);
        }
        while let Some(event) = self.nodes[n].endpoint.poll_event() {
            self.happened(n, &event);
        }
        let node = &self.nodes[n];
        self.set_timer(n, node.endpoint.poll_timeout().map(|due| node.global(due)));
        result
    }

    pub(crate) fn set_timer(&mut self, n: usize, due: Option<Instant>) {
        if self.timer_of[n] != due {
            if let Some(old) = self.timer_of[n] {
                self.timers.remove(&(old, n));
            }
            self.timers.extend(due.map(|due| (due, n)));
            self.timer_of[n] = due;
        }
    }

    fn happened(&mut self, n: usize, event: &Event) {
        let name = match event {
            Event::IkeDown { ike, .. } => {
                self.nodes[n].host.paths.remove(ike);
                "IKE SAs down"
            }
            Event::IkeUp { .. } => "IKE SAs up",
            Event::IkeRekeyed { .. } => "IKE SAs rekeyed",
            Event::ChildUp { replaces: Some(_), .. } => "pairs rekeyed",
            Event::FallbackToTcp { .. } => "fallbacks to TCP",
            Event::TcpLost { .. } => "connections lost",
            Event::PathMoved { .. } => "paths moved",
            Event::Reauthenticating { .. } => "reauthentications",
            _ => return,
        };
        *self.events.entry(name).or_default() += 1;
    }

    pub(crate) fn put(&mut self, at: Instant, to: usize, what: What) {
        self.order += 1;
        self.wire.insert((at, self.order), (to, what));
    }

    fn send(&mut self, from: usize, transmit: Transmit) {
        match transmit {
            Transmit::Message { path, octets, .. } => {
                self.sent.check(&octets);
                match path.transport {
                    Transport::Tcp => self.send_tcp(from, &path, octets),
                    _ => self.send_udp(from, &path, octets),
                }
            }
            Transmit::Keepalive { .. } => {}
            Transmit::Connect { request, remote, .. } => self.open(from, request, remote),
            Transmit::Close { conn } => self.close(from, conn),
        }
    }

    pub(crate) fn close(&mut self, from: usize, conn: ConnToken) {
        if let Some(closed) = self.conns.get_mut(&conn) {
            let other = if from == HUB { closed.spoke } else { HUB };
            closed.closed_by = Some(from);
            self.put(self.now + LATENCY, other, What::Closed(conn));
        }
    }

    /// The connections of a gateway, in the order in which they were opened.
    pub(crate) fn connections_of(&self, n: usize) -> impl Iterator<Item = ConnToken> + use<> {
        let of_it = self.conns.iter().filter(|(_, conn)| n == HUB || conn.spoke == n);
        let mut of_it: Vec<_> = of_it.map(|(token, _)| *token).collect();
        of_it.sort_unstable();
        of_it.into_iter()
    }

    fn send_tcp(&mut self, from: usize, path: &Path, octets: Vec<u8>) {
        let token = path.conn.unwrap();
        let Some(conn) = self.conns.get(&token) else {
            // Nobody is there any more: a reset.
            return self.put(self.now + LATENCY * 2, from, What::Closed(token));
        };
        let hub = SocketAddr::new(HUB_ADDRESS, 4500);
        let (to, seen) = match from {
            HUB => (conn.spoke, Path::tcp(conn.own, hub, token)),
            _ => (HUB, Path::tcp(hub, conn.seen, token)),
        };
        self.put(self.now + LATENCY, to, What::Message(seen, octets));
    }

    fn send_udp(&mut self, from: usize, path: &Path, octets: Vec<u8>) {
        let Some((to, spoke, seen)) = self.way(from, path.local, path.remote) else { return };
        let link = &self.links[spoke];
        let (lost, repeated, late) = link.bad.unwrap_or_default();
        if link.udp_blocked || self.rng.percent(lost) {
            return;
        }
        for copy in 0..1 + u32::from(self.rng.percent(repeated)) {
            let late = copy > 0 || self.rng.percent(late);
            let wait = if late { 1 + self.rng.below(300) as u32 } else { 1 };
            let message = What::Message(seen, octets.clone());
            self.put(self.now + LATENCY * wait, to, message);
        }
    }

    /// Where a datagram with these addresses arrives, over whose link, and how it looks there.
    pub(crate) fn way(
        &self,
        from: usize,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Option<(usize, usize, Path)> {
        if from != HUB {
            let own = local.ip() == self.nodes[from].host.address && remote.ip() == HUB_ADDRESS;
            return own.then(|| (HUB, from, Path::udp(remote, self.translate(from, local))));
        }
        let (n, own) = self.translate_back(remote)?;
        Some((n, n, Path::udp(own, local)))
    }

    fn open(&mut self, from: usize, request: ConnectRequest, remote: SocketAddr) {
        let at = self.now + LATENCY * 2;
        if from == HUB || self.links[from].tcp_refused {
            return self.put(at, from, What::Failed(request));
        }
        self.order += 1;
        let token = ConnToken(self.order);
        let own =
            SocketAddr::new(self.nodes[from].host.address, 5_000 + (self.order % 5_000) as u16);
        let seen = self.translate(from, own);
        self.conns.insert(token, Conn { spoke: from, own, seen, closed_by: None });
        self.put(at, from, What::Opened(request, token, own, remote));
    }

    /// All TCP connections of a spoke break. It notices; the hub does only when it writes.
    pub(crate) fn cut(&mut self, n: usize, both_notice: bool) {
        for token in self.connections_of(n) {
            self.conns.remove(&token);
            self.act(n, |e, now, host| e.tcp_closed(now, token, host));
            if both_notice {
                self.act(HUB, |e, now, host| e.tcp_closed(now, token, host));
            }
        }
    }

    /// A spoke is elsewhere now.
    pub(crate) fn move_spoke(&mut self, n: usize) {
        self.nodes[n].host.address = loop {
            self.order += 1;
            let address = Ipv4Addr::from(0xac10_0000 + (self.order % 0xf_0000) as u32);
            if !self.by_address.contains_key(&address.into()) {
                break address.into();
            }
        };
        self.readdress(n);
        // A NAT's mapping was the old address's.
        self.rebind(n);
        self.cut(n, false);
    }

    /// The NAT of a spoke forgets.
    pub(crate) fn rebind(&mut self, n: usize) {
        if let Some(shift) = &mut self.links[n].nat {
            *shift = (*shift + 1) % 5_000;
        }
    }

    /// A gateway dies and comes back knowing nothing.
    pub(crate) fn reboot(&mut self, n: usize) {
        let (seed, id) = (self.rng.next(), self.nodes[n].id.clone());
        let old = &mut self.nodes[n];
        let connections: Vec<Arc<ConnectionConfig>> = std::mem::take(&mut old.host.connections);
        let host = SimHost::new(seed, old.host.address, connections);
        *old = Node::new(id, host, old.ppm, old.limits.clone());
        self.wire.retain(|_, (to, _)| *to != n);
        self.conns.retain(|_, conn| n != HUB && conn.spoke != n);
        self.act(n, |_, _, _| {});
    }

    fn deliver(&mut self, to: usize, what: What) {
        let of_control = !matches!(what, What::Esp { .. });
        if of_control && self.nodes[to].kept.is_away() {
            return self.nodes[to].kept.wait(what);
        }
        match what {
            What::Message(path, octets) => {
                if path.conn.is_some_and(|token| self.is_lost(to, token)) {
                    return;
                }
                let spoke = if to == HUB { self.spoke_of(&path) } else { Some(to) };
                self.act(to, |e, now, host| e.handle_message(now, &path, &octets, host));
                self.touched.extend(spoke);
            }
            What::Opened(request, token, own, remote) => {
                self.act(to, |e, now, host| e.tcp_opened(now, request, token, own, remote, host));
                self.touched.insert(to);
            }
            What::Failed(request) => {
                self.act(to, |e, now, host| e.tcp_failed(now, request, "refused", host));
            }
            What::Esp { spoke, sealed, seen, due } => {
                let taken = self.takes_esp(to, &sealed, &seen);
                if let (true, Err(why)) = (due, taken) {
                    self.lost.push((spoke, format!("what {to} is sent by {seen:?}: {why}")));
                }
            }
            What::Unused(token) => self.close_unused(to, token),
            What::Closed(token) => {
                self.conns.remove(&token);
                self.act(to, |e, now, host| e.tcp_closed(now, token, host));
            }
        }
    }

    fn spoke_of(&self, path: &Path) -> Option<usize> {
        match path.conn {
            Some(token) => self.conns.get(&token).map(|conn| conn.spoke),
            None => self.translate_back(path.remote).map(|(n, _)| n),
        }
    }

    /// The next thing that happens until `end`; false if there is nothing more.
    pub(crate) fn step(&mut self, end: Instant) -> bool {
        let wire = self.wire.first_key_value().map(|((at, _), _)| *at);
        let timer = self.timers.first().map(|(at, _)| *at);
        let Some(next) = wire.into_iter().chain(timer).min().filter(|next| *next <= end) else {
            self.now = end;
            return false;
        };
        self.now = self.now.max(next);
        if wire == Some(next) {
            let (_, (to, what)) = self.wire.pop_first().unwrap();
            self.deliver(to, what);
        } else if let Some((_, n)) = self.timers.first().copied() {
            self.act(n, |e, now, host| e.handle_timeout(now, host));
            assert!(self.timer_of[n].is_none_or(|at| at > self.now), "what is due stays due");
            if n != HUB {
                self.touched.insert(n);
            }
        }
        true
    }

    /// Both ends of a tunnel, for whoever looks for what went wrong.
    pub(crate) fn show(&self, n: usize) {
        let hurt = self.now.since(self.links[n].hurt);
        println!("hurt {hurt:?} ago; behind a NAT: {}", self.links[n].nat.is_some());
        for (node, other) in [(n, HUB), (HUB, n)].map(|(a, b)| (&self.nodes[a], &self.nodes[b])) {
            let local = node.local(self.now);
            let of_it = |sa: &culvert_ike::IkeSnapshot| {
                sa.remote_id.as_ref().is_none_or(|id| id.to_string() == other.id)
            };
            for sa in node.endpoint.sas().filter(of_it) {
                println!(
                    "{}: {} {:?} {}, up {:?}, heard {:?} ago, {} pairs, ESP {:?}",
                    node.id,
                    sa.id,
                    sa.state,
                    sa.path,
                    local.since(sa.since),
                    local.since(sa.last_heard),
                    sa.children.len(),
                    node.host.paths.get(&sa.id).map(|p| (p.transport, p.remote)),
                );
            }
        }
    }

    /// Messages and connections under way.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.wire.len(), self.conns.len())
    }
}
