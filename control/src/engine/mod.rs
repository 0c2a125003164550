//! The engine: what happens when something comes in, and what goes out because of it.
//!
//! Its owner calls [`Engine::turn`] whenever the bell rings or [`Engine::next_timeout`] passes. A
//! turn takes what the workers handed up, gives it to the protocol, does what is due, and hands
//! down what the protocol wants sent. It never blocks and keeps nothing that it does not bound.

mod commands;
mod happenings;
mod kept;
mod known;
mod lines;
mod records;
mod reload;
mod rows;
mod saved;
mod targets;
mod traffic;
mod usage;
mod waiters;

use std::collections::BTreeMap;
use std::time::Duration;

use culvert_api::{Event, Happening};
use culvert_dataplane_config::Dataplane;
use culvert_ike::message::Header;
use culvert_ike::{Endpoint, IkeSaId, IkeState, Instant, Transmit};
use culvert_shm::{ControlView, Down, Dscp, Layout};
use tokio::sync::broadcast;

use crate::config::Config;
use crate::forwarding::Forwarding;
use crate::history::History;
use crate::host::{self, Services};
use crate::log::Log;
use crate::starts::{Next, Starts};
use crate::tcp::{Service, Tcp};
use crate::traps::Traps;
use crate::{clock, convert};

pub use commands::{Beginnings, Begun};
use kept::Keeper;
use known::Known;
use lines::Paces;
use saved::Saver;
use waiters::Waiters;

/// Records taken in one turn, so that timers and clients get theirs too.
const RECORDS_A_TURN_MAX: usize = 256;
/// How often slow duties are done: retired keys, orphans, unused connections.
const TEND_INTERVAL: Duration = Duration::from_millis(500);
/// How often a dataplane that was met is looked at until its workers are at work.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// A dataplane that is away for so long has ended, and nobody uses what was retired.
const DATAPLANE_GONE_AFTER: Duration = Duration::from_secs(2);

/// How far the dataplane is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Link {
    /// There is none.
    Down,
    /// It is there since then, but its workers have not begun: what they are sent now they throw
    /// away when they do.
    Met { ns: u64 },
    /// Its workers are at work.
    Up,
}

/// Drives the protocol.
pub struct Engine {
    endpoint: Endpoint,
    services: Services,
    tcp: Tcp,
    starts: Starts,
    traps: Traps,
    history: History,
    log: Log,
    paces: Paces,
    waiters: Waiters,
    /// What was told of the SAs that stand.
    known: Known,
    saver: Saver,
    keeper: Keeper,
    /// IKE SAs that were restored and wait for the workers.
    restored: Vec<IkeSaId>,
    /// IKE messages dropped, by reason.
    drops: BTreeMap<&'static str, u64>,
    /// First requests that were answered with a demand.
    cookies_demanded: u64,
    puzzles_demanded: u64,
    /// Records of the workers that could not be read, and messages that found no room.
    malformed: u64,
    unsent: u64,
    dataplane: Link,
    dataplane_since: Instant,
    started: Instant,
    tended: Instant,
}

impl Engine {
    /// An engine that has no shared memory yet.
    #[must_use]
    pub fn new(config: Config, log: Log) -> Self {
        let now = clock::now();
        let mut octets = [0; 8];
        host::random(&mut octets);
        let mut starts = Starts::default();
        starts.configure(config.connections.values(), now);
        let mut keeper = Keeper::default();
        keeper.file_read(&config);
        Self {
            endpoint: Endpoint::new(config.limits.clone()),
            services: Services { forwarding: Forwarding::default(), config },
            // The upper half tells this process's requests from an earlier one's.
            tcp: Tcp::new(u64::from_ne_bytes(octets) & !0 << 32),
            starts,
            traps: Traps::default(),
            history: History::default(),
            log,
            paces: Paces::default(),
            waiters: Waiters::default(),
            known: Known::default(),
            saver: Saver::default(),
            keeper,
            restored: Vec::new(),
            drops: BTreeMap::new(),
            cookies_demanded: 0,
            puzzles_demanded: 0,
            malformed: 0,
            unsent: 0,
            dataplane: Link::Down,
            dataplane_since: now,
            started: now,
            tended: now,
        }
    }

    /// The sizes of the shared memory that this configuration needs.
    #[must_use]
    pub fn layout(&self) -> Layout {
        layout(&self.services.config.dataplane)
    }

    /// The events remembered, and the new ones from now on.
    #[must_use]
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.history.follow()
    }

    /// A dataplane was met. `view` is that of the shared memory when it is new to this process.
    pub fn dataplane_met(&mut self, view: Option<ControlView>) {
        if let Some(view) = view {
            self.services.forwarding.attach(view);
            self.find_connections();
            self.restore();
        }
        self.dataplane = Link::Met { ns: culvert_shm::monotonic_ns() };
    }

    /// Sees whether the workers of a dataplane that was met are at work: each has shown its
    /// heartbeat since.
    fn look_for_workers(&mut self) {
        let (Link::Met { ns }, Some(view)) = (self.dataplane, self.services.forwarding.view())
        else {
            return;
        };
        let stats =
            (0..view.region().layout().workers).map(|worker| view.region().worker_stats(worker));
        if stats.into_iter().flatten().all(|stats| stats.heartbeat_ns > ns) {
            self.dataplane = Link::Up;
            self.dataplane_since = clock::now();
            self.note(None, None, Happening::DataplaneUp);
            self.resume();
        }
    }

    /// The dataplane went.
    pub fn dataplane_down(&mut self) {
        let was_up = self.is_dataplane_up();
        self.dataplane = Link::Down;
        self.dataplane_since = clock::now();
        if was_up {
            self.note(None, None, Happening::DataplaneDown);
        }
    }

    /// Whether the dataplane is at work.
    #[must_use]
    pub fn is_dataplane_up(&self) -> bool {
        self.dataplane == Link::Up
    }

    /// Wants the bell to ring. Take one more turn before waiting for it.
    pub fn arm_bell(&mut self) {
        if let Some(view) = self.services.forwarding.view_mut() {
            view.arm_bell();
        }
    }

    /// Does all that there is to do; whether there was any record, so that there may be more.
    pub fn turn(&mut self) -> bool {
        self.look_for_workers();
        // What would be sent before the workers are at work, they would throw away.
        let is_idle = matches!(self.dataplane, Link::Met { .. });
        let records = if is_idle { 0 } else { self.take_records() };
        let now = clock::now();
        if !is_idle && self.endpoint.poll_timeout().is_some_and(|due| due <= now) {
            self.endpoint.handle_timeout(now, &mut self.services);
        }
        if now.since(self.tended) >= TEND_INTERVAL {
            self.tended = now;
            self.tend(now);
        }
        if self.is_dataplane_up() {
            self.start_due(now);
        }
        self.flush();
        self.set_traps();
        records > 0
    }

    /// When the next turn is due, records or not.
    #[must_use]
    pub fn next_timeout(&self) -> Instant {
        let starts = self.starts.next().filter(|_| self.is_dataplane_up());
        let met = matches!(self.dataplane, Link::Met { .. });
        let look = met.then(|| clock::now() + LOOK_INTERVAL);
        let protocol = self.endpoint.poll_timeout().filter(|_| !met);
        let due = [protocol, starts, look, Some(self.tended + TEND_INTERVAL)];
        due.into_iter().flatten().min().unwrap_or_default()
    }

    /// Saves what has changed, hands down what the protocol wants sent, and takes its events. Events may
    /// cause more to be sent, and so on until there is nothing more.
    fn flush(&mut self) {
        loop {
            self.keep_rests();
            self.save();
            if let Some(transmit) = self.endpoint.poll_transmit() {
                self.transmit(transmit);
                continue;
            }
            let Some(event) = self.endpoint.poll_event() else { break };
            self.happened(event);
        }
    }

    fn transmit(&mut self, transmit: Transmit) {
        match transmit {
            Transmit::Message { path, octets, behind } => {
                self.trace_message("sending", true, &path, &octets);
                let dscp = self.dscp_of(&octets);
                let path = convert::shm_path(&path);
                let worker = path.conn.map(|conn| conn.worker);
                let worker =
                    worker.unwrap_or_else(|| self.services.forwarding.worker_for(path.remote));
                let payload = &octets[..];
                // A connection has its own service level, and only it has a queue.
                let record = match behind && path.conn.is_some() {
                    true => Down::IkeSendBehind { path, payload },
                    false => Down::IkeSend { path, dscp, payload },
                };
                self.send(worker, &record);
            }
            Transmit::Keepalive { path } => {
                let worker = self.services.forwarding.worker_for(path.remote);
                let (path, payload) = (convert::shm_path(&path), &[culvert_shm::NAT_KEEPALIVE][..]);
                // It holds a NAT's state, and says nothing.
                let dscp = Dscp::DEFAULT;
                self.send(worker, &Down::IkeSend { path, dscp, payload });
            }
            Transmit::Connect { request, connection, local, remote } => {
                let worker = self.services.forwarding.worker_for(remote);
                let token = self.tcp.ask(request, worker, self.epoch());
                let Service { congestion, dscp } = self.services.config.tcp_service(&connection);
                // RFC 9329, 6.1: the same for all of them, whatever address they are from.
                let view = self.services.forwarding.view();
                let flow_label = view.map_or(0, |view| view.region().flow_label(&connection));
                let ask = Down::TcpConnect { token, local, remote, congestion, flow_label, dscp };
                if !self.send(worker, &ask) {
                    self.tcp.answered(token);
                    let reason = "the dataplane is not running or does not keep up";
                    self.endpoint.tcp_failed(clock::now(), request, reason, &mut self.services);
                }
            }
            Transmit::Close { conn } => {
                let conn = convert::conn(conn);
                self.send(conn.worker, &Down::TcpClose { conn, abort: false });
            }
        }
    }

    /// The service level of an IKE message in UDP: its connection's, as soon as that is known.
    fn dscp_of(&self, octets: &[u8]) -> Dscp {
        let connection = || {
            let (header, _) = Header::decode(octets).ok()?;
            let own = if header.from_initiator { header.spi_i } else { header.spi_r };
            self.endpoint.connection_by_spi(own)
        };
        let dscp = connection().and_then(|name| self.services.config.dscp(name));
        dscp.unwrap_or_default()
    }

    /// The dataplane's life.
    fn epoch(&self) -> u64 {
        self.services.forwarding.view().map_or(0, ControlView::dataplane_epoch)
    }

    /// Sends a record to a worker; whether it was taken. Without a dataplane nothing is: it would
    /// be thrown away when one comes.
    fn send(&mut self, worker: u16, record: &Down<'_>) -> bool {
        let is_up = self.is_dataplane_up();
        let view = self.services.forwarding.view_mut().filter(|_| is_up);
        let taken = view.is_some_and(|view| view.send(worker, record).is_ok());
        self.unsent += u64::from(!taken);
        taken
    }

    /// Slow duties.
    fn tend(&mut self, now: Instant) {
        let gone =
            self.dataplane == Link::Down && now.since(self.dataplane_since) >= DATAPLANE_GONE_AFTER;
        self.services.forwarding.tend(clock::to_ns(now), gone);
        self.tell_usage();
        self.tend_saved();
        self.end_expired(now);
        self.visit_connections(now);
        self.waiters.tidy();
        self.tell_left_out(now);
    }

    /// Deletes what is past its lifetime: the workers let no packet through any more.
    fn end_expired(&mut self, now: Instant) {
        for child in self.services.forwarding.expired(clock::to_ns(now)) {
            // It may be on its way out already.
            if self.endpoint.terminate_child(now, child, &mut self.services).is_ok() {
                tracing::info!(%child, "SA reached the end of its lifetime");
            }
        }
    }

    /// Begins what is to stand always and does not.
    fn start_due(&mut self, now: Instant) {
        while let Some((connection, child)) = self.starts.due(now) {
            match self.begin(now, &connection, &child) {
                Ok(ike) => self.starts.trying(&connection, &child, ike),
                Err(error) => {
                    let next = self.starts.failed(&connection, &child, now, random_octet());
                    let reason = error.to_string();
                    self.ended(&connection, &reason);
                    self.note(Some(&connection), None, Happening::IkeFailed { reason });
                    self.note_next(&connection, next);
                }
            }
        }
    }

    /// Tells what comes after a failure.
    fn note_next(&mut self, connection: &str, next: Next) {
        let happening = match next {
            Next::Nothing => return,
            Next::In(wait) => Happening::Retry { in_s: wait.as_secs() },
            Next::GivenUp(attempts) => Happening::GivenUp { attempts },
        };
        self.note(Some(connection), None, happening);
    }

    /// Deletes every SA of this process, politely, ends those of earlier ones, and forgets what was said.
    /// Afterwards take turns until [`Engine::is_stopped`], or no longer than one cares to wait.
    pub fn stop(&mut self) {
        self.forget_said();
        self.starts.hold_all();
        let orphans = self.services.forwarding.end_orphans(|_| true);
        if orphans > 0 {
            tracing::info!(orphans, "SAs of an earlier control process are ended");
        }
        let now = clock::now();
        let ids: Vec<IkeSaId> = self.endpoint.sas().map(|sa| sa.id).collect();
        for id in ids {
            // One that is gone meanwhile needs no deleting.
            let _ = self.endpoint.terminate(now, id, &mut self.services);
        }
        self.flush();
    }

    /// Whether no SA of this process is left.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.endpoint.is_empty()
    }

    /// Takes down whatever [`Engine::stop`] did not get an answer for.
    pub fn abandon(&mut self) {
        let left: Vec<IkeSaId> = self.endpoint.sas().map(|sa| sa.id).collect();
        left.into_iter().for_each(|ike| self.services.forwarding.forget_peer(ike));
        self.forget_saved();
    }

    /// The IKE SA in which a CHILD SA of a connection can be asked for: one that stands, or else one
    /// that this gateway is setting up; the youngest if there are several.
    fn usable(&self, connection: &str) -> Option<IkeSaId> {
        let usable = self.endpoint.sas_of(connection).filter_map(|sa| match sa.state {
            IkeState::Established => Some((true, sa.id)),
            IkeState::Connecting | IkeState::HalfOpen => sa.initiator.then_some((false, sa.id)),
            IkeState::Deleting => None,
        });
        usable.max().map(|(_, ike)| ike)
    }
}

/// The sizes of the shared memory. The dataplane computes the same from the same section.
#[must_use]
pub fn layout(dataplane: &Dataplane) -> Layout {
    Layout {
        workers: dataplane.workers(),
        sa_slots: dataplane.sas,
        policy_slots: dataplane.policies,
        peer_slots: dataplane.peers,
        conn_slots: dataplane.tcp_connections,
        ring_bytes: dataplane.ring_kib * 1024,
    }
}

fn random_octet() -> u8 {
    let mut octet = [0];
    host::random(&mut octet);
    u8::from_ne_bytes(octet)
}
