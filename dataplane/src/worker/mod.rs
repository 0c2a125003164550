//! One worker: a core, its queues of each port, its TCP connections and its SAs.
//!
//! [`Worker::poll`] is one batch. In the order in which a packet may meet them:
//!
//! 1. `records`: what control wrote since the last batch (IKE to send, slots to read again).
//! 2. `records` again: what other workers hand over, because the SA or the connection is here.
//! 3. `receive`: a burst of each port; segments go to the TCP stack, UDP and native ESP to
//!    `inbound`, packets of inner hosts to `outbound`.
//! 4. `stream`: what the connections have received, frame by frame: IKE up, ESP to `inbound`.
//! 5. Packets that these have made: ICMP errors, echo replies, from one tunnel into another.
//! 6. Timers: TCP, prefixes that do not come, packets that wait for a neighbour.
//! 7. `transmit`: the TCP stack's segments; then `egress` sends each port's burst.
//! 8. The batch boundary: control may free what was retired before it.
//!
//! A worker shares nothing that changes with another but rings ([`handoff`]) and the room of
//! connections ([`rooms`]). Nothing on this loop locks, logs or calls the kernel; what is dropped
//! is counted under a name (`drops`). Two exceptions: control's bell, rung at most once a batch
//! and only when control sleeps, and the sleep of an idle worker where the configuration asks for
//! it. The time and all ports are arguments, so that a test or a benchmark drives it by hand.

mod age;
mod coalesced;
mod core;
mod drops;
mod egress;
pub mod handoff;
pub mod idle;
mod ike;
mod inbound;
pub mod link;
pub mod network;
mod outbound;
mod path_mtu;
pub mod peer;
mod prefix_watch;
mod receive;
mod records;
pub mod rooms;
mod sa;
mod stream;
mod tcp;
mod transmit;
mod waiting;

use std::sync::Arc;

use culvert_dataplane_config as config;
use culvert_dpdk::{Burst, Mbuf, Offloads, Pool};
use culvert_esp::Provider;
use culvert_shm::{CloseReason, Counter, WorkerView};
use culvert_tcpstack::framing::Gathering;
use culvert_tcpstack::{
    self as tcpstack, ConfigError, CongestionControl, ConnId, EphemeralPorts, Event, Marking,
    Stack, StackConfig, TcpSecret, TxChecksum,
};

use self::core::Core;
use self::handoff::{Handed, Mesh};
use self::link::Link;
use self::network::{Network, NetworkError, PortParts};
use self::outbound::Origin;
use self::peer::PeerTable;
use self::rooms::Rooms;
use self::sa::SaTable;
use self::tcp::Tcp;
use self::transmit::Segments;
use crate::net::ether::Cast;
use crate::net::fragment::Identifications;
use crate::net::icmp::{RateLimit, TooBigLimit};
use crate::net::ip;
use crate::net::policy::PolicyTable;
use crate::net::{Nanos, SECOND};

pub use self::receive::IKE_PORT;
pub use self::stream::STRANGERS_MAX;
pub use self::tcp::PREFIX_TIMEOUT;

/// Events of the TCP stack that one batch takes.
const EVENTS_PER_BATCH: usize = 1024;

/// How often packets that wait for a neighbour are looked at, and connections are shown.
const TICK: Nanos = SECOND / 10;

/// Connections of which one batch tells the other workers.
const SHARED_PER_BATCH: usize = 64;

/// Connections whose prefix is overdue that one batch closes.
const SILENT_PER_BATCH: usize = 16;

/// What a worker is made of. It can be moved to the worker's thread, where the worker is made.
pub struct WorkerParts<L> {
    /// The worker's view of the shared memory.
    pub view: WorkerView,
    /// The outer side's port.
    pub outer: PortParts<L>,
    /// The inner side's port; `None` when both sides are on the outer one.
    pub inner: Option<PortParts<L>>,
    /// Where buffers come from; they hold the larger MTU of the two sides.
    pub pool: Pool,
    /// The rings to and from the other workers.
    pub mesh: Mesh<Handed>,
    /// The room of all workers' connections.
    pub rooms: Arc<Rooms>,
    /// The checked configuration.
    pub dataplane: Arc<config::Dataplane>,
    /// What seals and opens ESP.
    pub provider: Provider,
    /// From a good random source, for this worker alone: ports, the order of hash tables.
    pub seed: [u8; 32],
    /// From a good random source, the same for all workers of this process: TCP sequence numbers
    /// and SYN cookies.
    pub tcp_secret: TcpSecret,
}

/// A worker cannot be made of its parts.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Addresses or routes.
    #[error("the configuration's addresses or routes cannot be used: {0}")]
    Network(#[from] NetworkError),
    /// TCP.
    #[error("the configuration's TCP settings cannot be used: {0}")]
    Tcp(#[from] ConfigError),
}

/// A worker. It belongs to the thread that made it.
pub struct Worker<L> {
    core: Core<L>,
    tcp: Tcp,
    /// The message of the record that is being acted on.
    message: Vec<u8>,
    /// Where segments are put together that arrive as a chain of buffers.
    coalesced: Box<[u8]>,
    /// Ports on which peers may open connections.
    listens: Vec<u16>,
    /// What the outer port's device computes.
    offloads: Offloads,
    /// When that is done which is done only now and then.
    tick_at: Nanos,
    /// Control has been told that this worker begins.
    begun: bool,
}

/// The TCP stack's time.
pub(crate) fn stack_time(now_ns: Nanos) -> tcpstack::Instant {
    tcpstack::Instant(now_ns / 1000)
}

impl<L: Link> Worker<L> {
    /// Makes a worker and takes up everything that is in the shared memory and its own.
    ///
    /// # Errors
    /// The configuration holds what no worker can work with.
    pub fn new(parts: WorkerParts<L>) -> Result<Self, WorkerError> {
        let WorkerParts {
            view,
            outer,
            inner,
            pool,
            mesh,
            rooms,
            dataplane,
            provider,
            seed,
            tcp_secret,
        } = parts;
        let layout = *view.region().layout();
        let offloads = outer.offloads;
        let device = DeviceWork {
            checksum: offloads.tx_tcp_checksum,
            segmentation_bytes: transmit::segmentation_bytes(&outer, &pool),
        };
        let stack = stack(&dataplane, &view, layout.conn_slots, device, (seed, tcp_secret))?;
        // Other halves of the seed than the stack's use of it need not be told apart: all are
        // secret keys of keyed hashes, none is ever shown.
        let [table_seed, cache_seed] = halves(seed);
        let tcp = Tcp::new(view.worker(), stack, layout.conn_slots);
        let core = Core {
            net: Network::new(&dataplane, outer, inner, cache_seed)?,
            sas: SaTable::new(layout.sa_slots, provider),
            peers: PeerTable::new(layout.peer_slots),
            policies: PolicyTable::new(layout.policy_slots as usize, table_seed),
            mesh,
            rooms,
            gathering: Gathering::new(),
            pool,
            now_ns: 0,
            forwarded: Core::<L>::room_for_forwarded(),
            own: Burst::new(),
            error_limit: RateLimit::default(),
            too_big_limit: TooBigLimit::default(),
            told_limit: RateLimit::default(),
            big_datagram: vec![0; usize::from(u16::MAX)].into_boxed_slice(),
            identification: u16::from_be_bytes([seed[0], seed[1]]),
            identifications: Identifications::new(table_seed),
            view,
        };
        let message = Vec::with_capacity(usize::from(u16::MAX) + 1);
        let listens = dataplane.tcp_ports.clone();
        let coalesced = vec![0; coalesced::FRAME_BYTES_MAX].into_boxed_slice();
        let mut worker =
            Self { core, tcp, message, coalesced, listens, offloads, tick_at: 0, begun: false };
        worker.take_up(&layout);
        Ok(worker)
    }

    /// Reads all slots: after a restart everything goes on as it was.
    fn take_up(&mut self, layout: &culvert_shm::Layout) {
        (0..layout.peer_slots).for_each(|index| self.core.peers.reload(&self.core.view, index));
        (0..layout.sa_slots).for_each(|index| self.reload_sa(index));
        (0..layout.policy_slots).for_each(|index| self.reload_policy(index));
    }

    /// One batch at `now_ns`, nanoseconds of the monotonic clock. Returns whether there was
    /// anything to do.
    pub fn poll(&mut self, now_ns: Nanos) -> bool {
        self.core.now_ns = now_ns;
        self.core.view.heartbeat(now_ns);
        self.begun = self.begun || self.core.view.begin().is_ok();
        let mut work = self.take_records() + self.take_handed();
        for port in 0..self.core.net.ports.len() {
            work += self.receive(port);
        }
        work += self.take_events() + self.route_made();
        self.let_time_pass();
        // A timer may have made events, an event segments.
        work += self.take_events();
        let mut segments = Segments::new(&mut self.core, self.offloads);
        self.tcp.stack.poll_transmit(stack_time(now_ns), &mut segments);
        self.publish_shared();
        self.core.flush();
        self.core.view.batch_boundary();
        work > 0
    }

    /// Adds the cycles of a batch to the worker's account.
    pub fn count_cycles(&self, cycles: u64, busy: bool) {
        self.core.view.count_cycles(cycles, busy);
    }

    /// What the TCP stack has to tell; returns how much it was.
    fn take_events(&mut self) -> usize {
        for taken in 0..EVENTS_PER_BATCH {
            let Some(event) = self.tcp.stack.poll_event() else { return taken };
            let (core, tcp) = (&mut self.core, &mut self.tcp);
            let told = match event {
                Event::Opened { id, local, remote, .. } => {
                    let told = tcp.opened(&core.view, core.now_ns, id, (local, remote));
                    self.publish_room(id);
                    told
                }
                Event::Closed { id, reason } => {
                    core.rooms.publish(core.view.worker(), id.index, 0, None);
                    tcp.closed(&core.view, id, reason)
                }
                Event::Readable(id) => {
                    tcp.read(core, id);
                    None
                }
                Event::Writable(id) => {
                    self.publish_room(id);
                    None
                }
            };
            if let Some(message) = told {
                self.core.tell(&message);
            }
        }
        EVENTS_PER_BATCH
    }

    /// Sends what this batch has made for inner hosts and tunnels.
    fn route_made(&mut self) -> usize {
        if self.core.forwarded.is_empty() && self.core.own.is_empty() {
            return 0;
        }
        let mut forwarded = std::mem::take(&mut self.core.forwarded);
        let count = self.send_made(forwarded.drain(..), Origin::Forwarded(Cast::Unicast));
        // On the way out nothing is forwarded again: the room is put back as it was.
        self.core.forwarded = forwarded;
        // Errors about the forwarded ones are among these; about these there are none.
        let mut own = std::mem::take(&mut self.core.own);
        count + self.send_made(own.drain(), Origin::Own)
    }

    fn send_made(&mut self, packets: impl ExactSizeIterator<Item = Mbuf>, origin: Origin) -> usize {
        let count = packets.len();
        for packet in packets {
            match ip::parse(packet.data()) {
                Ok(header) => self.outbound(packet, &header, origin),
                Err(reason) => self.core.drop_for(reason),
            }
        }
        count
    }

    fn let_time_pass(&mut self) {
        let now_ns = self.core.now_ns;
        let now = stack_time(now_ns);
        if self.tcp.stack.poll_timeout().is_some_and(|at| at <= now) {
            self.tcp.stack.handle_timeout(now);
        }
        for _ in 0..SILENT_PER_BATCH {
            if !self.tcp.break_off_silent(&self.core.view, now_ns) {
                break;
            }
        }
        if now_ns >= self.tick_at {
            self.tick_at = now_ns + TICK;
            self.core.retry_waiting();
            self.tcp.show_some(&self.core.view);
            self.tcp.count_stack(&self.core.view);
        }
    }

    /// Tells the other workers, who may seal for a connection, how much it takes and since when what
    /// it has waits.
    fn publish_room(&mut self, id: ConnId) {
        let room = self.tcp.room_or_event(id);
        let since = self.tcp.waiting_since(id);
        self.core.rooms.publish(self.core.view.worker(), id.index, room, since);
    }

    /// Tells it of connections for which other workers have sealed, as long as frames wait there: some
    /// in each batch, in turn.
    fn publish_shared(&mut self) {
        for _ in 0..self.tcp.shared_len().min(SHARED_PER_BATCH) {
            let Some(id) = self.tcp.next_shared() else { return };
            self.publish_room(id);
        }
    }

    /// Writes a frame that another worker has sealed. Room for it was reserved; where the
    /// connection has gone since, the frame is lost, as it would have been on the wire.
    fn send_handed_frame(&mut self, frame: &Mbuf, conn: ConnId) {
        let octets = frame.data();
        let written = self.tcp.write_frame(conn, octets.len(), |out| {
            out.copy_from_slice(octets);
            octets.len()
        });
        if written.is_err() {
            self.core.count(Counter::HandoffTcpLost);
        }
        // What this batch sends of it does not wait: it is published behind that.
        self.tcp.share(conn);
    }

    /// Closes a connection because another worker has found its stream corrupt.
    fn break_off_corrupt(&mut self, conn: ConnId) {
        self.core.count(Counter::FramingCorrupt);
        self.tcp.break_off(conn, CloseReason::Protocol);
    }
}

/// What the outer port's device does for TCP segments.
#[derive(Clone, Copy)]
struct DeviceWork {
    checksum: bool,
    segmentation_bytes: usize,
}

fn stack(
    dataplane: &config::Dataplane,
    view: &WorkerView,
    connections: u32,
    device: DeviceWork,
    (seed, secret): ([u8; 32], TcpSecret),
) -> Result<Stack, ConfigError> {
    let settings = StackConfig {
        connections_max: connections,
        // A large NAT may hold half of the places, strangers a quarter of them.
        prefix_connections_max: (connections / 2).max(1),
        unproven_max: (connections / 4).max(1),
        buffers_bytes: dataplane.tcp_memory_mib as usize * 1024 * 1024,
        secret,
        congestion_control: match dataplane.tcp_congestion {
            config::Congestion::Bbr => CongestionControl::Bbr,
            config::Congestion::Cubic => CongestionControl::Cubic,
        },
        marking: Marking { label_key: view.region().label_key(), ..Marking::default() },
        mtu: dataplane.outer.mtu,
        tx_checksum: if device.checksum { TxChecksum::Device } else { TxChecksum::Software },
        segmentation_bytes: device.segmentation_bytes,
        // A local port names its worker, so that a NIC's flow rules can, too.
        ephemeral_ports: EphemeralPorts {
            stride: view.region().layout().workers,
            offset: view.worker(),
            ..EphemeralPorts::default()
        },
        ..StackConfig::default()
    };
    let mut stack = Stack::new(settings, seed)?;
    // RFC 9329, 5: a responder listens on the configured ports, 4500 among them.
    dataplane.tcp_ports.iter().for_each(|&port| stack.listen(port));
    Ok(stack)
}

fn halves(seed: [u8; 32]) -> [[u8; 16]; 2] {
    let mut halves = [[0; 16]; 2];
    let (first, second) = seed.split_at(16);
    halves[0].copy_from_slice(first);
    halves[1].copy_from_slice(second);
    halves
}
