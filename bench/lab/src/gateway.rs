//! The gateway under test: the real `culvert-control` and `culvert-dataplane` in a namespace, with a
//! configuration of the lab's making, asked over the real control socket.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use culvert_api::{
    ChildSa, Client, Command, Event, IkeSa, Item, Outcome, Row, Status, Target, TcpConnection,
};

use crate::command::{self, Output, wait_until};
use crate::process::{Process, Program};
use crate::topology::{Addresses, Family, Lab, Owner, SIDE_A, SIDE_B, Side};

/// How long both processes may take until they have found each other. EAL alone takes 0.4 s.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an initiation may take: fallback from UDP waits for several retransmissions.
const INITIATE_SECONDS: u32 = 60;
/// The one connection that the lab configures, and its child.
pub const CONNECTION: &str = "lab";
/// The child of [`CONNECTION`].
pub const CHILD: &str = "net";

/// What a gateway of the lab is configured with. [`Settings::between`] gives a pair that fits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its addresses.
    pub side: Addresses,
    /// Worker cores.
    pub lcores: Vec<u32>,
    /// Whether packet memory is in hugepages.
    pub hugepages: bool,
    /// The DPDK device of the outer side, over the interface `outer0`.
    pub outer_device: String,
    /// The DPDK device of the inner side, over the interface `inner0`.
    pub inner_device: String,
    /// The same port for both sides.
    pub one_armed: bool,
    /// MTU of the outer side, in octets.
    pub mtu: u16,
    /// Further TCP ports to listen on.
    pub tcp_ports: Vec<u16>,
    /// The peer's address; `None` answers anybody.
    pub remote: Option<IpAddr>,
    /// `udp`, `tcp` or `auto`.
    pub transport: String,
    /// The peer's TCP port.
    pub tcp_remote_port: u16,
    /// Our identity.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// The pre-shared key.
    pub secret: String,
    /// IKE proposals.
    pub proposals: Vec<String>,
    /// ESP proposals.
    pub esp_proposals: Vec<String>,
    /// Life time of CHILD SAs in seconds; they are rekeyed before.
    pub life_time_s: u32,
    /// Our traffic selectors.
    pub local_ts: Vec<String>,
    /// The peer's traffic selectors.
    pub remote_ts: Vec<String>,
}

impl Settings {
    /// Gateway a, which initiates over `transport` and `outer`, and gateway b, which answers.
    /// Selectors cover both families inside.
    pub fn between(transport: &str, outer: Family) -> (Self, Self) {
        let networks = |side: Addresses| vec![side.network(Family::V4), side.network(Family::V6)];
        let one = |side: Addresses, peer: Addresses, ids: (&str, &str), lcore| Self {
            side,
            lcores: vec![lcore],
            hugepages: false,
            outer_device: "net_af_packet0,iface=outer0".to_owned(),
            inner_device: "net_af_packet1,iface=inner0".to_owned(),
            one_armed: false,
            mtu: 1500,
            tcp_ports: vec![4500],
            remote: None,
            transport: transport.to_owned(),
            tcp_remote_port: 4500,
            local_id: ids.0.to_owned(),
            remote_id: ids.1.to_owned(),
            secret: "lab secret".to_owned(),
            proposals: vec!["aes128gcm16-prfsha256-x25519".to_owned()],
            esp_proposals: vec!["aes128gcm16-esn".to_owned(), "aes128gcm16".to_owned()],
            life_time_s: 86_400,
            local_ts: networks(side),
            remote_ts: networks(peer),
        };
        let mut a = one(SIDE_A, SIDE_B, ("a.test", "b.test"), 0);
        a.remote = Some(SIDE_B.outer.of(outer));
        (a, one(SIDE_B, SIDE_A, ("b.test", "a.test"), 1))
    }

    fn to_toml(&self, runtime_dir: &Path) -> String {
        let Self { lcores, hugepages, mtu, tcp_ports, side, .. } = self;
        let Addresses { inner, outer, router, .. } = side;
        let inner_device = if self.one_armed {
            String::new()
        } else {
            format!("device = {:?}", self.inner_device)
        };
        let remote = self.remote.map_or("%any".to_owned(), |remote| remote.to_string());
        let local = match self.remote {
            Some(IpAddr::V4(_)) => outer.v4.to_string(),
            Some(IpAddr::V6(_)) => outer.v6.to_string(),
            None => "%any".to_owned(),
        };
        format!(
            "[dataplane]
lcores = {lcores:?}
hugepages = {hugepages}
memory_mib = 256
poll = \"adaptive\"
tcp_ports = {tcp_ports:?}
tcp_connections = 1024
sas = 1024

[dataplane.outer]
device = {outer_device:?}
addresses = [\"{}/24\", \"{}/64\"]
gateways = [\"{}\", \"{}\"]
mtu = {mtu}

[dataplane.inner]
{inner_device}
addresses = [\"{}/24\", \"{}/64\"]

[control]
runtime_dir = {runtime_dir:?}

[connections.{CONNECTION}]
local_addrs = [\"{local}\"]
remote_addrs = [\"{remote}\"]
transport = \"{transport}\"
tcp_remote_port = {port}
# An eighth of the default: the lab's wires are short, and a test should not wait.
retransmit_timeout_ms = 500
proposals = {proposals:?}
local = {{ auth = \"psk\", id = \"{local_id}\" }}
remote = {{ auth = \"psk\", id = \"{remote_id}\" }}

[connections.{CONNECTION}.children.{CHILD}]
local_ts = {local_ts:?}
remote_ts = {remote_ts:?}
esp_proposals = {esp_proposals:?}
life_time_s = {life_time_s}

[secrets.ike-lab]
id = [\"{remote_id}\"]
secret = \"{secret}\"
",
            outer.v4,
            outer.v6,
            router.v4,
            router.v6,
            inner.v4,
            inner.v6,
            outer_device = self.outer_device,
            transport = self.transport,
            port = self.tcp_remote_port,
            proposals = self.proposals,
            local_id = self.local_id,
            remote_id = self.remote_id,
            local_ts = self.local_ts,
            remote_ts = self.remote_ts,
            esp_proposals = self.esp_proposals,
            life_time_s = self.life_time_s,
            secret = self.secret,
        )
    }
}

/// A gateway: both processes and the way to ask them.
#[derive(Debug)]
pub struct Gateway<'lab> {
    name: String,
    side: &'lab Side,
    directory: PathBuf,
    runtime_dir: PathBuf,
    control: Option<Process>,
    dataplane: Option<Process>,
}

impl<'lab> Gateway<'lab> {
    /// Starts both processes on `side` of the lab and waits until they work together.
    pub fn start(
        lab: &'lab Lab,
        side: &'lab Side,
        name: &str,
        settings: &Settings,
    ) -> Result<Self> {
        ensure!(side.owner != Owner::Kernel, "the kernel drives the interfaces of this side");
        let directory = lab.directory.subdirectory(name)?;
        let runtime_dir = lab.directory.subdirectory(&format!("{name}/run"))?;
        let config = directory.join("culvert.toml");
        fs::write(&config, settings.to_toml(&runtime_dir))?;
        restrict(&config)?;
        let name = name.to_owned();
        let mut gateway =
            Self { name, side, directory, runtime_dir, control: None, dataplane: None };
        gateway.start_control()?;
        gateway.start_dataplane()?;
        gateway.wait_ready()?;
        Ok(gateway)
    }

    /// Starts the control process.
    pub fn start_control(&mut self) -> Result<()> {
        self.control = Some(self.spawn("culvert-control")?);
        Ok(())
    }

    /// Starts the dataplane.
    pub fn start_dataplane(&mut self) -> Result<()> {
        self.dataplane = Some(self.spawn("culvert-dataplane")?);
        Ok(())
    }

    fn spawn(&self, program: &str) -> Result<Process> {
        let path = binary(program)?;
        let program = Program {
            name: program,
            path: &path,
            arguments: vec![
                "--config".to_owned(),
                self.directory.join("culvert.toml").display().to_string(),
            ],
            environment: vec![("NO_COLOR".to_owned(), "1".to_owned())],
            private_run: true,
        };
        Process::spawn(&self.side.gateway, &program, &self.directory)
    }

    /// `kill -9` to the control process.
    pub fn kill_control(&mut self) -> Result<()> {
        self.control.take().context("control does not run")?.kill()
    }

    /// `kill -9` to the dataplane.
    pub fn kill_dataplane(&mut self) -> Result<()> {
        self.dataplane.take().context("the dataplane does not run")?.kill()
    }

    /// Waits until control answers and says that the dataplane is there.
    pub fn wait_ready(&mut self) -> Result<()> {
        let what = format!("{} is ready", self.name);
        let mut ended = Ok(());
        wait_until(&what, START_TIMEOUT, || {
            ended = self.check_alive();
            // A process that has ended will not come back: waiting on would only cost time.
            Ok(ended.is_err() || self.status().is_ok_and(|status| status.dataplane.up))
        })?;
        ended
    }

    /// Fails if a process that was started has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        let mut processes = [&mut self.control, &mut self.dataplane].into_iter().flatten();
        processes.try_for_each(Process::check_alive)
    }

    /// What it says about itself, for a failure's message: SAs, connections, counters.
    pub fn describe(&self) -> String {
        let said = |line: &str| match self.culvert(line) {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("{error:#}\n"),
        };
        let tables = ["sas", "tcp", "counters"].map(said).join("");
        format!("---- {} ----\n{tables}", self.name)
    }

    /// A client on the control socket.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(&self.runtime_dir.join(culvert_api::SOCKET_NAME))?)
    }

    /// The control socket's path.
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.join(culvert_api::SOCKET_NAME)
    }

    fn rows(&self, command: Command) -> Result<Vec<Row>> {
        let mut client = self.client()?;
        client.patience(Some(Duration::from_secs(u64::from(INITIATE_SECONDS) + 10)))?;
        Ok(client.rows(command)?)
    }

    /// `culvert status`.
    pub fn status(&self) -> Result<Status> {
        match self.rows(Command::Status)?.pop() {
            Some(Row::Status(status)) => Ok(status),
            other => bail!("no status but {other:?}"),
        }
    }

    /// `culvert sas`.
    pub fn sas(&self) -> Result<Vec<IkeSa>> {
        let rows = self.rows(Command::Sas { connection: None })?;
        Ok(rows
            .into_iter()
            .filter_map(|row| if let Row::IkeSa(sa) = row { Some(sa) } else { None })
            .collect())
    }

    /// The only IKE SA, with its only CHILD SA.
    pub fn only_sa(&self) -> Result<(IkeSa, ChildSa)> {
        let mut sas = self.sas()?;
        ensure!(sas.len() == 1, "{}: one IKE SA expected: {sas:#?}", self.name);
        let sa = sas.remove(0);
        ensure!(sa.children.len() == 1, "{}: one CHILD SA expected: {sa:#?}", self.name);
        let child = sa.children[0].clone();
        Ok((sa, child))
    }

    /// `culvert tcp`.
    pub fn tcp(&self) -> Result<Vec<TcpConnection>> {
        let rows = self.rows(Command::Tcp)?;
        Ok(rows
            .into_iter()
            .filter_map(|row| if let Row::Tcp(tcp) = row { Some(tcp) } else { None })
            .collect())
    }

    /// `culvert counters`: name and sum over all workers.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.rows(Command::Counters { all: true })?;
        Ok(rows
            .into_iter()
            .filter_map(
                |row| if let Row::Counter(c) = row { Some((c.name, c.total)) } else { None },
            )
            .collect())
    }

    /// The events that control remembers.
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.client()?.ask(Command::Events { follow: false }, |item| {
            if let Item::Event(event) = item {
                events.push(*event);
            }
        })?;
        Ok(events)
    }

    /// `culvert initiate lab`: returns when the SAs stand or it was given up.
    pub fn initiate(&self) -> Result<Vec<Row>> {
        self.rows(Command::Initiate {
            connection: CONNECTION.to_owned(),
            child: None,
            wait_s: INITIATE_SECONDS,
        })
        .with_context(|| format!("{} initiates", self.name))
    }

    /// `culvert terminate --connection lab`.
    pub fn terminate(&self) -> Result<Vec<Outcome>> {
        let target = Target::Connection(CONNECTION.to_owned());
        let rows = self.rows(Command::Terminate { target })?;
        Ok(rows
            .into_iter()
            .filter_map(|row| if let Row::Outcome(o) = row { Some(o) } else { None })
            .collect())
    }

    /// The `culvert` command itself, as a person runs it.
    pub fn culvert(&self, line: &str) -> Result<Output> {
        let mut command = std::process::Command::new(binary("culvert")?);
        command.arg("--socket").arg(self.socket()).args(line.split_whitespace());
        command::output(command, "", command::TIMEOUT)
    }

    /// The address that peers reach it by.
    pub fn outer(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.side.addresses.outer.of(family), port)
    }
}

/// Where the programs are: `CULVERT_BIN_DIR`, or beside this one.
fn binary(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("CULVERT_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let own = std::env::current_exe()?;
            let parent = own.parent().context("this program lies nowhere")?;
            // Test programs are in a directory of their own below the others.
            if parent.ends_with("deps") { parent.join("..") } else { parent.to_owned() }
        }
    };
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{name} is not in {}: build it first (cargo build --workspace --bins)",
        directory.display()
    );
    Ok(path)
}

/// The configuration holds a secret.
fn restrict(config: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(config, fs::Permissions::from_mode(0o600))?)
}
