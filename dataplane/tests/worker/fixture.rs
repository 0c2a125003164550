//! A gateway in one thread: workers whose ports are queues in memory, the control process's end of
//! a real region, and a clock that moves when a test says so.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use culvert_dataplane::net::ether::{self, EtherType, MacAddr};
use culvert_dataplane::worker::handoff::Mesh;
use culvert_dataplane::worker::link::Link;
use culvert_dataplane::worker::network::PortParts;
use culvert_dataplane::worker::rooms::Rooms;
use culvert_dataplane::worker::{Worker, WorkerParts};
use culvert_dataplane_config::{Aead, Congestion, Dataplane, Poll, Route, Side};
use culvert_dpdk::{Burst, Eal, Memory, Offloads, Pool, PoolConfig};
use culvert_esp::Provider;
use culvert_shm::{
    Bell, ConnRef, ConnectFailure, ControlView, Counter, DataplaneView, Down, Dscp, Layout, Path,
    Region, Up,
};
use culvert_tcpstack::{Instant, TcpSecret};

pub(crate) const OUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub(crate) const INNER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// The Internet's router on the outer link; also the peers that are on the link.
pub(crate) const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
/// The host on the inner link.
pub(crate) const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);

pub(crate) const OUTER_V4: &str = "192.0.2.1";
pub(crate) const PEER_V4: &str = "192.0.2.7";
pub(crate) const OUTER_V6: &str = "2001:db8::1";
pub(crate) const PEER_V6: &str = "2001:db8::7";
pub(crate) const INNER_V4: &str = "10.1.0.1";
pub(crate) const HOST_V4: &str = "10.1.0.10";
pub(crate) const FAR_V4: &str = "10.2.0.20";
pub(crate) const INNER_V6: &str = "fd00:1::1";
pub(crate) const HOST_V6: &str = "fd00:1::10";
pub(crate) const FAR_V6: &str = "fd00:2::20";

pub(crate) const LAYOUT: Layout = Layout {
    workers: 1,
    sa_slots: 16,
    policy_slots: 16,
    peer_slots: 8,
    conn_slots: 16,
    ring_bytes: 1 << 18,
};

/// DPDK's memory, once for all tests of this process; packets never leave it.
fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    *EAL.get_or_init(|| {
        let memory = Memory::Small { mib: 64 };
        let prefix = format!("culvert-test-{}", std::process::id());
        Eal::builder().memory(memory).file_prefix(prefix).init().unwrap()
    })
}

/// Where the buffers of all tests come from that do not look at how many there are.
fn pool() -> Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    *POOL.get_or_init(|| pool_of("packets", 4095))
}

/// So many buffers for one test.
pub(crate) fn pool_of(name: &str, mbufs: u32) -> Pool {
    Pool::new(eal(), &PoolConfig { mbufs, cache: 0, ..PoolConfig::named(name) }).unwrap()
}

/// Buffers of a packet that the outer port takes.
pub(crate) const SEGMENTS_MAX: u16 = 20;

/// A frame in flight.
pub(crate) type Frame = Vec<u8>;

/// A port of queues in memory.
#[derive(Clone)]
pub(crate) struct Wire {
    pool: Pool,
    /// It takes nothing more: the queue is full.
    full: Rc<Cell<bool>>,
    arriving: Rc<RefCell<VecDeque<Frame>>>,
    sent: Rc<RefCell<Vec<Frame>>>,
}

impl Wire {
    fn new(pool: Pool) -> Self {
        Self { pool, full: Rc::default(), arriving: Rc::default(), sent: Rc::default() }
    }
}

impl Link for Wire {
    fn receive(&mut self, burst: &mut Burst) -> usize {
        let mut count = 0;
        while !burst.is_full() {
            let mut arriving = self.arriving.borrow_mut();
            let Some(frame) = arriving.front() else { break };
            let mut rest = &frame[..];
            let buffer = self.pool.packet(frame.len(), |room| {
                room.copy_from_slice(rest.split_off(..room.len()).unwrap());
            });
            let Some(buffer) = buffer else { break };
            arriving.pop_front();
            burst.push(buffer).unwrap();
            count += 1;
        }
        count
    }

    fn transmit(&mut self, burst: &mut Burst) -> usize {
        if self.full.get() {
            return 0;
        }
        let frames = burst.drain().map(|frame| frame.segments().flatten().copied().collect());
        let mut sent = self.sent.borrow_mut();
        let before = sent.len();
        sent.extend(frames);
        sent.len() - before
    }
}

fn side(addresses: [&str; 2], gateways: &[&str]) -> Side {
    Side {
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        gateways: gateways.iter().map(|text| text.parse().unwrap()).collect(),
        routes: Vec::new(),
        mtu: 1500,
    }
}

fn dataplane(workers: u16) -> Dataplane {
    Dataplane {
        lcores: (0..workers).collect(),
        hugepages: false,
        memory_mib: 64,
        poll: Poll::Busy,
        aead: Aead::Ring,
        tcp_ports: vec![443, 4500],
        tcp_congestion: Congestion::Bbr,
        tcp_memory_mib: 64,
        tcp_connections: LAYOUT.conn_slots,
        replay_window: 64,
        sas: LAYOUT.sa_slots,
        policies: LAYOUT.policy_slots,
        peers: LAYOUT.peer_slots,
        ring_kib: LAYOUT.ring_bytes / 1024,
        outer_device: "memory".to_owned(),
        inner_device: None,
        outer: side(["192.0.2.1/24", "2001:db8::1/64"], &["192.0.2.254", "2001:db8::ff"]),
        inner: side(["10.1.0.1/24", "fd00:1::1/64"], &[]),
    }
}

/// The gateway and both ends of everything it is connected to.
pub(crate) struct Gateway {
    pub(crate) control: ControlView,
    region: Arc<Region>,
    bell: Arc<Bell>,
    /// Whether both sides are on the outer port.
    one_armed: bool,
    /// Whether a host behind it has its outer addresses.
    before_a_host: bool,
    /// What the outer port's device computes.
    offloads: Offloads,
    pool: Pool,
    workers: Vec<Worker<Wire>>,
    outer: Vec<Wire>,
    inner: Vec<Wire>,
    pub(crate) now_ns: u64,
    /// Outer frames for which a test has not asked yet.
    outer_sent: Vec<Frame>,
    inner_sent: Vec<Frame>,
}

/// How a gateway is built.
struct Shape {
    workers: u16,
    one_armed: bool,
    before_a_host: bool,
    offloads: Offloads,
    pool: Pool,
}

impl Default for Shape {
    fn default() -> Self {
        let (offloads, pool) = (Offloads::default(), pool());
        Self { workers: 1, one_armed: false, before_a_host: false, offloads, pool }
    }
}

impl Gateway {
    pub(crate) fn new() -> Self {
        Self::with_workers(1)
    }

    /// Both sides on one port.
    pub(crate) fn one_armed() -> Self {
        Self::made(&Shape { one_armed: true, ..Shape::default() })
    }

    pub(crate) fn with_workers(workers: u16) -> Self {
        Self::made(&Shape { workers, ..Shape::default() })
    }

    /// In the wire before the host on the inner link, which has the gateway's outer addresses.
    pub(crate) fn before_a_host() -> Self {
        Self::made(&Shape { before_a_host: true, ..Shape::default() })
    }

    /// With an outer port that has these offloads.
    pub(crate) fn with_offloads(offloads: Offloads) -> Self {
        Self::made(&Shape { offloads, ..Shape::default() })
    }

    /// With buffers of its own.
    pub(crate) fn with_pool(workers: u16, pool: Pool) -> Self {
        Self::made(&Shape { workers, pool, ..Shape::default() })
    }

    /// Fresh, its neighbours known.
    fn made(shape: &Shape) -> Self {
        let Shape { workers, one_armed, before_a_host, offloads, pool } = *shape;
        let layout = Layout { workers, ..LAYOUT };
        let region = Arc::new(Region::create(&layout).unwrap());
        let bell = Arc::new(Bell::new().unwrap());
        let control = ControlView::new(Arc::clone(&region)).unwrap();
        let mut gateway = Self {
            control,
            region,
            bell,
            one_armed,
            before_a_host,
            offloads,
            pool,
            workers: Vec::new(),
            outer: Vec::new(),
            inner: Vec::new(),
            now_ns: 1_000_000_000,
            outer_sent: Vec::new(),
            inner_sent: Vec::new(),
        };
        gateway.start();
        gateway.introduce_neighbours();
        gateway
    }

    fn start(&mut self) {
        let view = DataplaneView::attach(Arc::clone(&self.region), Arc::clone(&self.bell)).unwrap();
        let workers = self.region.layout().workers;
        let mut config = dataplane(workers);
        if self.before_a_host {
            config.inner.routes = [("192.0.2.1/32", HOST_V4), ("2001:db8::1/128", HOST_V6)]
                .map(|(to, via)| Route { to: to.parse().unwrap(), via: via.parse().unwrap() })
                .into();
        }
        let config = Arc::new(config);
        let rooms = Arc::new(Rooms::new(workers, LAYOUT.conn_slots));
        let meshes = Mesh::between(usize::from(workers), 64);
        for (view, mesh) in view.into_workers().into_iter().zip(meshes) {
            let (outer, inner) = (Wire::new(self.pool), Wire::new(self.pool));
            let parts = WorkerParts {
                view,
                outer: PortParts {
                    offloads: self.offloads,
                    tx_segments_max: SEGMENTS_MAX,
                    ..port(outer.clone(), OUTER_MAC)
                },
                inner: (!self.one_armed).then(|| port(inner.clone(), INNER_MAC)),
                pool: self.pool,
                mesh,
                rooms: Arc::clone(&rooms),
                dataplane: Arc::clone(&config),
                provider: Provider::Ring,
                seed: [7; 32],
                tcp_secret: TcpSecret::new([9; 32], Instant::ZERO),
            };
            self.workers.push(Worker::new(parts).unwrap());
            self.outer.push(outer);
            self.inner.push(inner);
        }
    }

    /// Kills the dataplane as SIGKILL does, and starts it again on the same memory.
    pub(crate) fn restart_dataplane(&mut self) {
        self.workers.clear();
        self.outer.clear();
        self.inner.clear();
        // The successor maps the memory anew, as another process does.
        let memory = self.region.fd().try_clone_to_owned().unwrap();
        self.region = Arc::new(Region::adopt(memory).unwrap());
        self.start();
        self.introduce_neighbours();
    }

    /// Lets the stations on the links ask for our addresses, so that theirs are known.
    fn introduce_neighbours(&mut self) {
        use culvert_dataplane::net::{arp, nd};
        let v4 = |text: &str| text.parse().unwrap();
        let v6 = |text: &str| text.parse().unwrap();
        let mut frame = [0; 128];
        for (mac, own, own6, asked, asked6, outer) in [
            (PEER_MAC, PEER_V4, PEER_V6, OUTER_V4, OUTER_V6, true),
            (HOST_MAC, HOST_V4, HOST_V6, INNER_V4, INNER_V6, false),
        ] {
            let outer = outer || self.one_armed;
            let request = arp::Message::request(mac, v4(own), v4(asked));
            let len = request.write_frame(MacAddr::BROADCAST, &mut frame).unwrap();
            self.arrive(0, outer, &frame[..len]);
            let len = nd::write_solicitation(mac, v6(own6), v6(asked6), None, &mut frame).unwrap();
            self.arrive(0, outer, &frame[..len]);
        }
        self.turn();
        self.outer_sent.clear();
        self.inner_sent.clear();
        while self.control.receive().is_some() {}
    }

    /// Fills the transmit queues of all ports, or empties them.
    pub(crate) fn fill_queues(&mut self, full: bool) {
        self.outer.iter().chain(&self.inner).for_each(|wire| wire.full.set(full));
    }

    /// Puts a frame on a port of a worker.
    pub(crate) fn arrive(&mut self, worker: usize, outer: bool, frame: &[u8]) {
        let wire = if outer { &self.outer } else { &self.inner };
        wire[worker].arriving.borrow_mut().push_back(frame.to_vec());
    }

    /// Puts an IP packet of the peer's on the outer port of worker 0.
    pub(crate) fn outer_packet(&mut self, packet: &[u8]) {
        self.outer_packet_to(0, packet);
    }

    pub(crate) fn outer_packet_to(&mut self, worker: usize, packet: &[u8]) {
        self.arrive(worker, true, &framed(PEER_MAC, OUTER_MAC, packet));
    }

    /// Puts an IP packet of the host's on the inner port of worker 0.
    pub(crate) fn inner_packet(&mut self, packet: &[u8]) {
        let own = if self.one_armed { OUTER_MAC } else { INNER_MAC };
        self.arrive(0, self.one_armed, &framed(HOST_MAC, own, packet));
    }

    /// Lets every worker turn until all that has arrived is dealt with.
    pub(crate) fn turn(&mut self) {
        for _ in 0..4 {
            for worker in &mut self.workers {
                worker.poll(self.now_ns);
            }
        }
        for wire in &self.outer {
            let mut sent = wire.sent.borrow_mut();
            let (inner, outer) =
                sent.drain(..).partition(|frame| self.one_armed && frame[..6] == HOST_MAC.0);
            self.outer_sent.extend::<Vec<Frame>>(outer);
            self.inner_sent.extend::<Vec<Frame>>(inner);
        }
        for wire in &self.inner {
            self.inner_sent.append(&mut wire.sent.borrow_mut());
        }
    }

    /// Lets time pass in steps of `step_ms`, with turns.
    pub(crate) fn pass(&mut self, total_ms: u64, step_ms: u64) {
        for _ in 0..total_ms / step_ms {
            self.now_ns += step_ms * 1_000_000;
            self.turn();
        }
    }

    /// Frames sent on the outer port since the last time.
    pub(crate) fn outer_frames(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.outer_sent)
    }

    /// Frames sent on the inner port since the last time.
    pub(crate) fn inner_frames(&mut self) -> Vec<Frame> {
        std::mem::take(&mut self.inner_sent)
    }

    /// IP packets sent to the peer since the last time.
    pub(crate) fn outer_packets(&mut self) -> Vec<Vec<u8>> {
        let frames = self.outer_frames();
        frames.iter().filter_map(|frame| packet_to(PEER_MAC, frame)).collect()
    }

    /// IP packets sent to the inner host since the last time.
    pub(crate) fn inner_packets(&mut self) -> Vec<Vec<u8>> {
        let frames = self.inner_frames();
        frames.iter().filter_map(|frame| packet_to(HOST_MAC, frame)).collect()
    }

    /// Puts `to` in the place of these words of the shared memory, wherever they are.
    pub(crate) fn rewrite(&self, from: &[u64], to: &[u64]) {
        let octets = |words: &[u64]| words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>();
        let len = usize::try_from(self.region.layout().region_bytes()).unwrap();
        let mut memory = vec![0; len];
        rustix::io::pread(self.region.fd(), &mut memory[..], 0).unwrap();
        let (from, to) = (octets(from), octets(to));
        let found = (0..len - from.len()).step_by(8).filter(|at| memory[*at..].starts_with(&from));
        let found: Vec<usize> = found.collect();
        assert_eq!(found.len(), 1, "these words are to be found once");
        rustix::io::pwrite(self.region.fd(), &to, found[0] as u64).unwrap();
    }

    /// What a counter says, over all workers.
    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.region.counter_total(counter)
    }

    /// Control sends an IKE message.
    pub(crate) fn send_ike(&mut self, path: Path, payload: &[u8]) {
        let message = Down::IkeSend { path, dscp: Dscp::DEFAULT, payload };
        self.control.send(0, &message).unwrap();
    }

    /// Control asks for a connection to port 4500 of [`PEER_V4`].
    pub(crate) fn connect(
        &mut self,
        token: u64,
        local: Option<IpAddr>,
        congestion: culvert_shm::Congestion,
    ) {
        let remote = (crate::packets::ip(PEER_V4), 4500).into();
        let dscp = Dscp::DEFAULT;
        let connect = Down::TcpConnect { token, local, remote, congestion, flow_label: 0, dscp };
        self.control.send(0, &connect).unwrap();
    }

    /// What the workers have told control since the last time.
    pub(crate) fn told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some((_, message)) = self.control.receive() {
            match message.unwrap() {
                Up::IkeMessage { path, payload } => told.push(Told::Ike(path, payload.to_vec())),
                Up::TcpOpened { conn, originator, token, .. } => {
                    told.push(Told::Opened { conn, originator, token });
                }
                Up::TcpClosed { conn, reason } => told.push(Told::Closed { conn, reason }),
                Up::TcpConnectFailed { token, reason } => {
                    told.push(Told::ConnectFailed(token, reason));
                }
                Up::PathMoved { peer } => told.push(Told::PathMoved(peer)),
                Up::Acquire { policy } => told.push(Told::Acquire(policy)),
                Up::SequenceNearlyExhausted { sa } => told.push(Told::SequenceLow(sa)),
                Up::Restarted { .. } => {}
            }
        }
        told
    }
}

/// [`Up`], owned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Ike(Path, Vec<u8>),
    Opened { conn: ConnRef, originator: bool, token: u64 },
    Closed { conn: ConnRef, reason: culvert_shm::CloseReason },
    ConnectFailed(u64, ConnectFailure),
    PathMoved(culvert_shm::SlotRef),
    SequenceLow(culvert_shm::SlotRef),
    Acquire(u32),
}

fn port(link: Wire, mac: MacAddr) -> PortParts<Wire> {
    PortParts { link, mac: mac.0, offloads: Offloads::default(), tx_segments_max: 1 }
}

/// An IP packet in an Ethernet frame.
pub(crate) fn framed(source: MacAddr, destination: MacAddr, packet: &[u8]) -> Frame {
    let v4 = packet[0] >> 4 == 4;
    let ether_type = if v4 { EtherType::Ipv4 } else { EtherType::Ipv6 };
    let mut frame = vec![0; ether::HEADER_LEN];
    ether::Header { destination, source, ether_type }.write(&mut frame).unwrap();
    frame.extend_from_slice(packet);
    frame
}

/// The IP packet of a frame for this station; what asks whether the station is still there is left
/// out.
fn packet_to(station: MacAddr, frame: &[u8]) -> Option<Vec<u8>> {
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    let (header, _) = ether::parse(frame, station).unwrap();
    let packet = frame.get(ether::HEADER_LEN..)?;
    let asks = match header.ether_type {
        EtherType::Arp => true,
        EtherType::Ipv4 => false,
        EtherType::Ipv6 => packet[6] == 58 && packet[40] == NEIGHBOUR_SOLICITATION,
    };
    (!asks && header.destination == station).then(|| packet.to_vec())
}
