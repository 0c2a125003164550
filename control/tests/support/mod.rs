//! The real control process, and a dataplane that plays the rings without any packet.
//!
//! Two control processes are joined by [`Network`], which carries what one of them sends to the
//! other: UDP datagrams unless it is told to drop them, and the frames of TCP connections.

#![allow(dead_code, reason = "each test binary uses its part of this")]

mod network;
pub(crate) mod pair;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_api::{Client, IkeSa, Item, Row, Status};
use culvert_shm::rendezvous::{self, Bundle, Link};
use culvert_shm::{
    CloseReason, Congestion, ConnInfo, ConnRef, ConnStats, DataplaneView, Down, Dscp, Layout, Load,
    Path as EspPath, Policy, SaConfig, Transport, Up, WorkerView,
};

pub(crate) use network::Network;

/// How long something may take that takes a moment.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `found` gives something.
pub(crate) fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < until, "did not happen in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A gateway's control process, in a directory of its own.
pub(crate) struct Gateway {
    pub(crate) dir: tempfile::TempDir,
    process: Child,
}

impl Gateway {
    /// Starts it with this configuration, to which `[control]` is added.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(config, |_| {})
    }

    /// [`Self::start`], with something of the process set before.
    pub(crate) fn start_with(config: &str, set: impl FnOnce(&mut Command)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        configure(dir.path(), config);
        let process = spawn(dir.path(), set);
        let gateway = Self { dir, process };
        gateway.client();
        gateway
    }

    /// Sends it SIGHUP.
    pub(crate) fn hang_up(&self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("signalled");
    }

    /// Kills it as a crash would, and starts another one in its place.
    pub(crate) fn crash_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("ended");
    }

    /// Starts another one in the place of one that has ended.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.dir.path(), |_| {});
        self.client();
    }

    /// Writes another configuration, for the next one or a reload.
    pub(crate) fn configure(&self, config: &str) {
        configure(self.dir.path(), config);
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(&mut self) -> std::process::ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
        eventually("the process ends", || self.process.try_wait().expect("its status"))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join(culvert_api::SOCKET_NAME)
    }

    /// A client, as soon as the process serves any.
    pub(crate) fn client(&self) -> Client {
        eventually("the control socket is there", || Client::connect(&self.socket()).ok())
    }

    pub(crate) fn status(&self) -> Status {
        let rows = self.client().rows(culvert_api::Command::Status).expect("a status");
        match rows.as_slice() {
            [Row::Status(status)] => status.clone(),
            other => panic!("not one status: {other:?}"),
        }
    }

    pub(crate) fn sas(&self) -> Vec<IkeSa> {
        let command = culvert_api::Command::Sas { connection: None };
        let rows = self.client().rows(command).expect("SAs");
        rows.into_iter()
            .map(|row| match row {
                Row::IkeSa(sa) => sa,
                other => panic!("not an SA: {other:?}"),
            })
            .collect()
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let command = culvert_api::Command::Counters { all: true };
        let rows = self.client().rows(command).expect("counters");
        let total = rows.iter().find_map(|row| match row {
            Row::Counter(counter) if counter.name == name => Some(counter.total),
            _ => None,
        });
        total.unwrap_or(0)
    }

    /// What happened so far, as lines.
    pub(crate) fn events(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let command = culvert_api::Command::Events { follow: false };
        self.client()
            .ask(command, |item| {
                if let Item::Event(event) = item {
                    lines.push(event.happening.to_string());
                }
            })
            .expect("events");
        lines
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configure(dir: &Path, config: &str) {
    let control = format!("\n[control]\nruntime_dir = \"{}\"\n", dir.display());
    let path = dir.join("culvert.toml");
    std::fs::write(&path, format!("{config}{control}")).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, mode).expect("its secrets are nobody else's");
}

fn spawn(dir: &Path, set: impl FnOnce(&mut Command)) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-control"));
    command.arg("--config").arg(dir.join("culvert.toml")).arg("--log").arg("debug");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .expect("a log file");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    set(&mut command);
    command.spawn().expect("started")
}

/// The sizes that the tests' configurations lead to.
pub(crate) const LAYOUT: Layout = Layout {
    workers: 1,
    sa_slots: 64,
    policy_slots: 256,
    peer_slots: 64,
    conn_slots: 64,
    ring_bytes: 256 * 1024,
};

/// The `[dataplane]` section for [`LAYOUT`].
pub(crate) fn dataplane_section(outer: &str, inner: &str) -> String {
    format!(
        "[dataplane]\nsas = 64\npolicies = 256\npeers = 64\ntcp_connections = 64\nring_kib = 256\n\
         [dataplane.outer]\ndevice = \"net_null0\"\naddresses = [\"{outer}\"]\n\
         [dataplane.inner]\naddresses = [\"{inner}\"]\n"
    )
}

/// A dataplane with one worker, whose packets are records.
pub(crate) struct Dataplane {
    pub(crate) bundle: Bundle,
    link: Option<Link>,
    worker: WorkerView,
    socket: PathBuf,
    conns: HashMap<ConnRef, ConnRef>,
    next_conn: u32,
    /// SAs as the worker has them, by slot.
    pub(crate) sas: HashMap<u32, SaConfig>,
    /// Policies as the worker has them, by slot.
    pub(crate) policies: HashMap<u32, Policy>,
    /// The path of each peer, by slot.
    pub(crate) paths: HashMap<u32, EspPath>,
    /// Connections that control closed.
    pub(crate) closed: Vec<ConnRef>,
    /// Connections that control says an authenticated peer uses.
    pub(crate) proven: Vec<ConnRef>,
    /// Service levels: of what, and which.
    pub(crate) dscps: BTreeSet<(&'static str, Option<u8>)>,
    /// Flow labels of the connections that it was asked to open.
    pub(crate) labels: Vec<u32>,
}

impl Dataplane {
    /// Meets the gateway's control process and begins work.
    pub(crate) fn connect(gateway: &Gateway) -> Self {
        let socket = gateway.dir.path().join("shm.sock");
        let (link, bundle) = rendezvous::connect(&socket, None, &LAYOUT).expect("met");
        let view = DataplaneView::attach(Arc::clone(&bundle.region), Arc::clone(&bundle.bell))
            .expect("attached");
        let mut worker = view.into_workers().pop().expect("one worker");
        worker.begin().expect("room in the ring");
        worker.batch_boundary();
        worker.heartbeat(culvert_shm::monotonic_ns());
        let mut dataplane = Self {
            bundle,
            link: Some(link),
            worker,
            socket,
            conns: HashMap::new(),
            next_conn: 0,
            sas: HashMap::new(),
            policies: HashMap::new(),
            paths: HashMap::new(),
            closed: Vec::new(),
            proven: Vec::new(),
            dscps: BTreeSet::new(),
            labels: Vec::new(),
        };
        // What is there already, as after a restart of the dataplane.
        for index in 0..LAYOUT.sa_slots {
            dataplane.look_at_sa(index);
        }
        for index in 0..LAYOUT.policy_slots {
            dataplane.look_at_policy(index);
        }
        dataplane
    }

    /// Meets the control process again when it is gone, with the memory it had.
    fn reconnect(&mut self) {
        if self.link.as_ref().is_some_and(Link::is_gone) {
            self.link = None;
        }
        if self.link.is_none()
            && let Ok((link, _)) = rendezvous::connect(&self.socket, Some(&self.bundle), &LAYOUT)
        {
            self.link = Some(link);
        }
    }

    pub(crate) fn send(&mut self, record: &Up<'_>) {
        self.worker.send(record).expect("room in the ring");
        self.worker.batch_boundary();
    }

    fn look_at_sa(&mut self, index: u32) {
        match self.worker.load_sa(index) {
            Load::Live(_, config) => self.sas.insert(index, config),
            Load::Gone => self.sas.remove(&index),
        };
    }

    fn look_at_policy(&mut self, index: u32) {
        match self.worker.load_policy(index) {
            Load::Live(_, policy) => self.policies.insert(index, policy),
            Load::Gone => self.policies.remove(&index),
        };
    }

    /// Shows what governs a connection, as a worker does.
    pub(crate) fn govern(&self, conn: ConnRef, congestion: Congestion) {
        let stats = ConnStats { congestion: Some(congestion), ..ConnStats::default() };
        self.worker.conn(conn.index).expect("a slot").show(&stats);
    }

    /// Opens a connection to `remote` as a worker shows and reports it.
    pub(crate) fn open(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        token: Option<u64>,
    ) -> ConnRef {
        let conn = ConnRef { worker: 0, index: self.next_conn, generation: 1 };
        self.next_conn += 1;
        let originator = token.is_some();
        let info = ConnInfo { local, remote, originator, opened_ns: culvert_shm::monotonic_ns() };
        self.worker.conn(conn.index).expect("a slot").open(conn, &info);
        let token = token.unwrap_or(0);
        self.send(&Up::TcpOpened { conn, local, remote, originator, token });
        conn
    }

    /// Damages the shared memory wherever these octets are; how often that was.
    pub(crate) fn damage(&self, octets: &[u8]) -> usize {
        let fd = self.bundle.region.fd();
        let len = LAYOUT.region_bytes();
        let mut memory = vec![0; usize::try_from(len).expect("a small region")];
        rustix::io::pread(fd, &mut memory[..], 0).expect("read");
        let found = memory.windows(octets.len()).enumerate().filter(|(_, w)| *w == octets);
        let found: Vec<usize> = found.map(|(at, _)| at).collect();
        for at in &found {
            rustix::io::pwrite(fd, b"?", *at as u64).expect("written");
        }
        found.len()
    }

    /// Counts a packet in and one out on each SA, as if they had passed.
    pub(crate) fn count_traffic(&mut self, octets: u64) {
        let now_ns = culvert_shm::monotonic_ns();
        for index in self.sas.keys() {
            let sa = self.worker.sa(*index).expect("a slot");
            sa.count_in(octets, now_ns);
            sa.count_out(octets, now_ns);
        }
    }

    /// Tells control that the sequence numbers of the only SA are nearly used up.
    pub(crate) fn exhaust(&mut self) {
        let index = *self.sas.keys().next().expect("an SA");
        let Load::Live(sa, _) = self.worker.load_sa(index) else { panic!("no SA in its slot") };
        self.send(&Up::SequenceNearlyExhausted { sa });
    }

    /// Moves the peer of the only SA, as a worker does that has opened a packet from there.
    pub(crate) fn move_peer(&mut self, remote: SocketAddr) {
        let peer = self.sas.values().next().expect("an SA").peer;
        let local = self.paths[&peer.index].local;
        let local = SocketAddr::new(local.ip(), 4500);
        let path = EspPath { transport: Transport::Udp, local, remote, conn: None, pinned: false };
        self.worker.peer(peer).expect("a slot").set_path(path);
        self.paths.insert(peer.index, path);
        self.send(&Up::PathMoved { peer });
    }

    /// Does what control says, with nobody at the other end.
    pub(crate) fn serve(&mut self) {
        for out in take(self) {
            if let Out::Close(conn) = out {
                self.closed.push(conn);
                self.close(conn, CloseReason::Local);
            }
        }
    }

    fn close(&mut self, conn: ConnRef, reason: CloseReason) {
        self.worker.conn(conn.index).expect("a slot").close();
        self.send(&Up::TcpClosed { conn, reason });
    }
}

/// What a dataplane does on the network because of a record.
enum Out {
    Message(EspPath, Vec<u8>),
    Connect { token: u64, local: Option<IpAddr>, remote: SocketAddr, congestion: Congestion },
    Close(ConnRef),
}

/// Takes the records of control that wait, and what they send to the network.
fn take(dataplane: &mut Dataplane) -> Vec<Out> {
    dataplane.reconnect();
    dataplane.worker.heartbeat(culvert_shm::monotonic_ns());
    let mut out = Vec::new();
    let mut looks = Vec::new();
    while let Some(record) = dataplane.worker.receive() {
        match record.expect("a record with meaning") {
            Down::IkeSend { path, dscp, payload } => {
                if path.transport == Transport::Udp {
                    dataplane.dscps.insert(("IKE in UDP", Some(dscp.bits())));
                }
                out.push(Out::Message(path, payload.to_vec()));
            }
            Down::IkeSendBehind { path, payload } => {
                out.push(Out::Message(path, payload.to_vec()));
            }
            Down::TcpConnect { token, local, remote, congestion, flow_label, dscp } => {
                dataplane.dscps.insert(("TCP opened", Some(dscp.bits())));
                dataplane.labels.push(flow_label);
                out.push(Out::Connect { token, local, remote, congestion });
            }
            Down::TcpClose { conn, .. } => out.push(Out::Close(conn)),
            Down::TcpProven { conn, congestion, dscp } => {
                dataplane.dscps.insert(("TCP accepted", Some(dscp.bits())));
                dataplane.govern(conn, congestion);
                dataplane.proven.push(conn);
            }
            Down::SaChanged { index } => looks.push(index),
            Down::PolicyChanged { index } => dataplane.look_at_policy(index),
            Down::PeerChanged { index } => {
                match dataplane.worker.load_peer(index) {
                    Load::Live(_, (peer, path)) => {
                        dataplane.dscps.insert(("ESP", peer.dscp.map(Dscp::bits)));
                        dataplane.paths.insert(index, path)
                    }
                    Load::Gone => dataplane.paths.remove(&index),
                };
            }
            Down::PathSet { peer, path } => {
                dataplane.worker.peer(peer).expect("a slot").set_path(path);
                dataplane.paths.insert(peer.index, path);
            }
        }
    }
    looks.into_iter().for_each(|index| dataplane.look_at_sa(index));
    dataplane.worker.batch_boundary();
    out
}
