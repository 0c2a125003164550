//! The whole dataplane: two workers with tables, policies, neighbours and shared memory, joined by
//! DPDK's `net_ring` devices, which need no kernel. Control is played by this module: it installs
//! one SA with fixed keys, over TCP or native.
//!
//! ```text
//! load -> [inner A] worker A [outer A] <-> [outer B] worker B [inner B] -> count
//! ```
//!
//! Both workers run on this one core, in turn, a burst each; the cycles of each one's turn are
//! counted apart. What worker A does is the way out, what worker B does the way in. `net_ring`
//! computes no checksums: TCP's are made and verified in software here.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path as FilePath;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, bail};
use culvert_dataplane::worker::handoff::Mesh;
use culvert_dataplane::worker::link::QueuePair;
use culvert_dataplane::worker::network::PortParts;
use culvert_dataplane::worker::rooms::Rooms;
use culvert_dataplane::worker::{Worker, WorkerParts};
use culvert_dataplane_config::{Dataplane, Problems, Section, Source};
use culvert_dpdk::{
    BURST_SIZE, Burst, Device, Eal, Offloads, Pool, PoolConfig, PortConfig, RxQueue, Started,
    TxQueue, tsc,
};
use culvert_esp::Provider;
use culvert_shm::{
    Bell, ConnRef, ControlView, DataplaneView, Down, Dscp, Layout, Name, Path, PeerConfig, Policy,
    Prefix, Region, SaConfig, Selector, SelectorList, SlotRef, Transport, Up, monotonic_ns,
};
use culvert_tcpstack::{Instant, TcpSecret};
use serde::Deserialize;

use crate::measure::{Case, SIZES};

/// Turns that a round may take before the tunnel counts as broken.
const TURNS_MAX: usize = 100_000;
/// How long setting up may take, in nanoseconds: TCP sends a lost SYN again after a second.
const SETUP_NS: u64 = 10_000_000_000;
/// Octets of an Ethernet header.
const ETHERNET_LEN: usize = 14;
const WINDOW: u32 = 1024;
const RING_BYTES: u32 = 1 << 20;

/// Stands for the first IKE message, with which the prefix is sent (RFC 9329, 4).
const NO_MESSAGE: [u8; 28] = [0; 28];

/// The MAC address of a port: side, then 0 for the gateway's outer port, 1 for its inner one, and
/// 2 for the host behind it.
const fn mac(side: usize, port: u8) -> [u8; 6] {
    [2, 0, 0, 0, side as u8, port]
}

const fn outer(side: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1 + side as u8)
}

const fn host(side: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 1 + side as u8, 0, 2)
}

fn network(side: usize) -> Option<Prefix> {
    Prefix::new(Ipv4Addr::new(10, 1 + side as u8, 0, 0).into(), 24)
}

/// The configuration of one side.
fn settings(side: usize) -> anyhow::Result<Dataplane> {
    #[derive(Deserialize)]
    struct File {
        dataplane: Section,
    }
    let text = format!(
        "[dataplane]
sas = 64
tcp_connections = 64
[dataplane.outer]
device = \"net_ring0\"
addresses = [\"{}/24\"]
[dataplane.inner]
device = \"net_ring1\"
addresses = [\"10.{}.0.1/24\"]
",
        outer(side),
        1 + side
    );
    let source = Source::new(FilePath::new("culvert-bench"), text);
    let mut problems = Problems::new();
    let checked = source.parse::<File>()?.dataplane.check(&source, &mut problems);
    Ok(source.finish(checked, problems)?)
}

/// A `net_ring` device: what is sent on it is received from it.
fn ring(eal: Eal, name: &str, pool: Pool) -> anyhow::Result<(RxQueue, TxQueue)> {
    let Started { mut rx_queues, mut tx_queues, .. } =
        Device::open(eal, name)?.start(&PortConfig::default(), &[pool])?;
    rx_queues.pop().zip(tx_queues.pop()).context("a port without queues")
}

/// One side: worker, its control, and what the host behind it sees.
struct Side {
    worker: Worker<QueuePair>,
    control: ControlView,
    to_inner: TxQueue,
    from_inner: RxQueue,
}

impl Side {
    fn new(
        side: usize,
        pool: Pool,
        provider: Provider,
        outer: QueuePair,
        inner: [(RxQueue, TxQueue); 2],
    ) -> anyhow::Result<Self> {
        let dataplane = Arc::new(settings(side)?);
        let layout = Layout {
            workers: 1,
            sa_slots: dataplane.sas,
            policy_slots: 64,
            peer_slots: 64,
            conn_slots: dataplane.tcp_connections,
            ring_bytes: RING_BYTES,
        };
        let region = Arc::new(Region::create(&layout)?);
        let control = ControlView::new(Arc::clone(&region)).context("a second control")?;
        let view = DataplaneView::attach(region, Arc::new(Bell::new()?))?;
        let [(inner_rx, to_inner), (from_inner, inner_tx)] = inner;
        let parts = |link, port| PortParts {
            link,
            mac: mac(side, port),
            offloads: Offloads::default(),
            tx_segments_max: 1,
        };
        let worker = Worker::new(WorkerParts {
            view: view.into_workers().pop().context("no worker")?,
            outer: parts(outer, 0),
            inner: Some(parts(QueuePair { rx: inner_rx, tx: inner_tx }, 1)),
            pool,
            mesh: Mesh::between(1, 1).pop().context("no mesh")?,
            rooms: Arc::new(Rooms::new(1, layout.conn_slots)),
            dataplane,
            provider,
            seed: [side as u8; 32],
            tcp_secret: TcpSecret::new([side as u8; 32], Instant::ZERO),
        })?;
        Ok(Self { worker, control, to_inner, from_inner })
    }

    /// What has come out of the inner port: counts IP packets, and answers ARP as the host would.
    fn take(&mut self, side: usize, burst: &mut Burst) -> usize {
        self.from_inner.burst(burst);
        let mut answers = Burst::new();
        let mut packets = 0;
        for mut mbuf in burst.drain() {
            let frame = mbuf.data_mut();
            if frame.get(12..14) == Some(&[0x08, 0x06]) {
                answer_arp(frame, mac(side, 2), host(side));
                // There is room for as many answers as questions.
                let _ = answers.push(mbuf);
            } else {
                packets += 1;
            }
        }
        self.to_inner.burst(&mut answers);
        packets
    }
}

/// Turns an ARP request (RFC 826) for `address` into the reply.
fn answer_arp(frame: &mut [u8], mac: [u8; 6], address: Ipv4Addr) {
    let Some(arp) = frame.get(..42).map(<[u8]>::to_vec) else { return };
    let mut reply = arp.clone();
    reply[..6].copy_from_slice(&arp[6..12]);
    reply[6..12].copy_from_slice(&mac);
    reply[21] = 2;
    reply[22..28].copy_from_slice(&mac);
    reply[28..32].copy_from_slice(&address.octets());
    reply[32..42].copy_from_slice(&arp[22..32]);
    frame[..42].copy_from_slice(&reply);
}

/// A frame of host a with an IPv4 packet of `size` octets for host b.
fn load_frame(size: usize) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_LEN + size];
    frame[..6].copy_from_slice(&mac(0, 1));
    frame[6..12].copy_from_slice(&mac(0, 2));
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[ETHERNET_LEN..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&host(0).octets());
    ip[16..20].copy_from_slice(&host(1).octets());
    let sum = ip[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = sum.sum();
    let folded = !(((sum & 0xffff) + (sum >> 16)) as u16);
    ip[10..12].copy_from_slice(&folded.to_be_bytes());
    ip[20..22].copy_from_slice(&4000_u16.to_be_bytes());
    ip[22..24].copy_from_slice(&4001_u16.to_be_bytes());
    ip[24..26].copy_from_slice(&((size - 20) as u16).to_be_bytes());
    frame
}

/// Both sides, and the SA between them.
struct Rig {
    sides: [Side; 2],
    pool: Pool,
    burst: Burst,
}

impl Rig {
    fn new(eal: Eal, number: usize, pool: Pool, provider: Provider) -> anyhow::Result<Self> {
        let ring = |index: usize| ring(eal, &format!("net_ring{}", 6 * number + index), pool);
        let ((a_rx, b_tx), (b_rx, a_tx)) = (ring(0)?, ring(1)?);
        let a = QueuePair { rx: a_rx, tx: a_tx };
        let b = QueuePair { rx: b_rx, tx: b_tx };
        let a = Side::new(0, pool, provider, a, [ring(2)?, ring(3)?])?;
        let b = Side::new(1, pool, provider, b, [ring(4)?, ring(5)?])?;
        Ok(Self { sides: [a, b], pool, burst: Burst::new() })
    }

    /// Sets the tunnel up and waits until packets pass.
    fn tunnel(&mut self, transport: Transport) -> anyhow::Result<()> {
        let conns = match transport {
            Transport::Tcp => self.connect()?.map(Some),
            Transport::Native | Transport::Udp => [None, None],
        };
        let mut peers = Vec::new();
        let mut reserved = Vec::new();
        for (side, conn) in conns.into_iter().enumerate() {
            let control = &mut self.sides[side].control;
            let (conn, path) = match conn {
                Some((conn, path)) => (Some(conn), path),
                None => (None, addresses(side)),
            };
            let path = Path { transport, local: path.0, remote: path.1, conn, pinned: false };
            let name = Name::new("bench");
            let config =
                PeerConfig { connection: name, remote_id: name, owner: 0, path, dscp: None };
            peers.push(control.install_peer(&config)?);
            reserved.push(control.reserve_sa(0x5000_0000)?);
        }
        for side in 0..2 {
            let (sa, spi_in) = reserved[side];
            let config = sa_config(side, peers[side], spi_in, reserved[1 - side].1)?;
            let control = &mut self.sides[side].control;
            control.install_sa(sa, &config)?;
            control.install_policy(&Policy {
                remote: network(1 - side).context("a prefix")?,
                remote_ports: (0, u16::MAX),
                local: Selector::ANY_V4,
                sa,
                owner: 0,
                priority: 1,
            })?;
        }
        let deadline = monotonic_ns() + SETUP_NS;
        while monotonic_ns() < deadline {
            if self.turn(&load_frame(64), 1).2 > 0 {
                return Ok(());
            }
        }
        bail!("no packet passes the tunnel")
    }

    /// Opens a TCP connection from a to b. Returns each side's name for it and its two ends.
    fn connect(&mut self) -> anyhow::Result<[Connected; 2]> {
        let remote = SocketAddr::new(outer(1).into(), 4500);
        let connect = Down::TcpConnect {
            token: 1,
            local: Some(outer(0).into()),
            remote,
            congestion: culvert_shm::Congestion::Bbr,
            flow_label: 0,
            dscp: Dscp::DEFAULT,
        };
        // What is sent to a worker before its first turn is not for it.
        self.turn(&[], 0);
        self.sides[0].control.send(0, &connect)?;
        let mut opened = [None, None];
        let deadline = monotonic_ns() + SETUP_NS;
        while monotonic_ns() < deadline {
            self.turn(&[], 0);
            for (side, opened) in self.sides.iter_mut().zip(&mut opened) {
                match side.control.receive() {
                    Some((_, Ok(Up::TcpOpened { conn, local, remote, originator, .. }))) => {
                        *opened = Some((conn, (local, remote)));
                        if originator {
                            let path = Path {
                                transport: Transport::Tcp,
                                local,
                                remote,
                                conn: Some(conn),
                                pinned: false,
                            };
                            side.control.send(
                                0,
                                &Down::IkeSend { path, dscp: Dscp::DEFAULT, payload: &NO_MESSAGE },
                            )?;
                        }
                    }
                    Some((_, Ok(Up::TcpConnectFailed { reason, .. }))) => bail!("{reason:?}"),
                    _ => {}
                }
            }
            if let [Some(a), Some(b)] = opened {
                return Ok([a, b]);
            }
        }
        bail!("no TCP connection")
    }

    /// One burst: `count` copies of `frame` for worker A, both workers' turns, and what came out.
    /// Returns the cycles of each worker and the packets that arrived.
    fn turn(&mut self, frame: &[u8], count: usize) -> (u64, u64, usize) {
        let [a, b] = &mut self.sides;
        if count > 0 && self.pool.alloc_bulk(&mut self.burst, count) {
            let mut load = Burst::new();
            for mut mbuf in self.burst.drain() {
                if mbuf.extend_from_slice(frame) {
                    // As many as were allocated fit.
                    let _ = load.push(mbuf);
                }
            }
            a.to_inner.burst(&mut load);
        }
        let now = monotonic_ns();
        let start = tsc();
        a.worker.poll(now);
        let middle = tsc();
        b.worker.poll(now);
        let end = tsc();
        a.take(0, &mut self.burst);
        let arrived = b.take(1, &mut self.burst);
        (middle.wrapping_sub(start), end.wrapping_sub(middle), arrived)
    }
}

/// A side's name for a connection, and its local and remote end.
type Connected = (ConnRef, (SocketAddr, SocketAddr));

/// Local and remote end of native ESP.
fn addresses(side: usize) -> (SocketAddr, SocketAddr) {
    let end = |side| SocketAddr::new(IpAddr::from(outer(side)), 0);
    (end(side), end(1 - side))
}

fn sa_config(side: usize, peer: SlotRef, spi_in: u32, spi_out: u32) -> anyhow::Result<SaConfig> {
    let keymat = |from: usize| culvert_shm::KeyMaterial::new(&[7 + from as u8; 20]);
    let selectors = SelectorList::new(&[Selector::ANY_V4]).context("a selector")?;
    Ok(SaConfig {
        peer,
        owner: 0,
        algorithm: culvert_shm::Algorithm::Aes128Gcm16,
        esn: true,
        mode: culvert_shm::Mode::Tunnel,
        replay_window: WINDOW,
        spi_in,
        spi_out,
        keymat_in: keymat(1 - side).context("key material")?,
        keymat_out: keymat(side).context("key material")?,
        name: Name::new("net"),
        created_ns: monotonic_ns(),
        deadline_ns: u64::MAX,
        local: selectors,
        remote: selectors,
    })
}

/// One case. All of a transport share the tunnel: DPDK has no room for a port in each.
struct Whole {
    rig: Rc<RefCell<Rig>>,
    transport: Transport,
    size: usize,
    inbound: bool,
}

impl Case for Whole {
    fn name(&self) -> String {
        let direction = if self.inbound { "in " } else { "out" };
        let transport = if self.transport == Transport::Tcp { "in TCP" } else { "native" };
        format!("dataplane, net_ring, ESP {transport}, {direction}")
    }

    fn size(&self) -> usize {
        self.size
    }

    fn run(&mut self, packets: usize) -> u64 {
        let frame = load_frame(self.size);
        let (mut cycles, mut arrived, mut turns) = (0, 0, 0);
        while arrived < packets {
            let (out, within, now) = self.rig.borrow_mut().turn(&frame, BURST_SIZE);
            cycles += if self.inbound { within } else { out };
            arrived += now;
            turns += 1;
            assert!(turns < TURNS_MAX, "the tunnel has stopped");
        }
        // Bursts are whole: a few packets more than asked for may have arrived.
        (cycles as f64 * packets as f64 / arrived as f64) as u64
    }
}

/// Native and TCP, both directions, every size.
pub(crate) fn cases(eal: Eal, provider: Provider) -> anyhow::Result<Vec<Box<dyn Case>>> {
    let pool = Pool::new(eal, &PoolConfig { mbufs: 32_767, ..PoolConfig::named("bench") })?;
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for (number, transport) in [Transport::Native, Transport::Tcp].into_iter().enumerate() {
        let mut rig = Rig::new(eal, number, pool, provider)?;
        rig.tunnel(transport)?;
        let rig = Rc::new(RefCell::new(rig));
        for size in SIZES {
            for inbound in [false, true] {
                cases.push(Box::new(Whole { rig: Rc::clone(&rig), transport, size, inbound }));
            }
        }
    }
    Ok(cases)
}
