//! The gateway under test: the real `culvert-control` and `culvert-dataplane` in a namespace, with a
//! configuration of the lab's making, asked over the real control socket.

mod settings;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use culvert_api::{
    ChildSa, Client, Command, Event, IkeSa, Item, Outcome, Row, Status, Target, TcpConnection,
    Transport,
};

use crate::command::{self, Output, wait_until};
use crate::process::{Process, Program};
use crate::topology::{Family, Lab, Owner, Side};

pub use settings::{CHILD, CONNECTION, Settings};

/// How long both processes may take until they have found each other. EAL alone takes 0.4 s.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an initiation may take: fallback from UDP waits for several retransmissions.
const INITIATE_SECONDS: u32 = 60;
/// How long anything may take that is done to an SA that stands.
const COMMAND_SECONDS: u32 = 20;

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
        let free = matches!(side.owner, Owner::Dpdk | Owner::DpdkOneArmed);
        ensure!(free, "{:?} has the interfaces of this side", side.owner);
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
        self.initiate_child(CHILD)
    }

    /// `culvert initiate lab --child <child>`.
    pub fn initiate_child(&self, child: &str) -> Result<Vec<Row>> {
        self.rows(Command::Initiate {
            connection: CONNECTION.to_owned(),
            child: Some(child.to_owned()),
            wait_s: INITIATE_SECONDS,
        })
        .with_context(|| format!("{} initiates {child}", self.name))
    }

    /// `culvert terminate --connection lab`: returns without waiting for the peer's answer.
    pub fn terminate(&self) -> Result<Vec<Outcome>> {
        let target = Target::Connection(CONNECTION.to_owned());
        self.outcomes(Command::Terminate { target, wait_s: 0 })
    }

    /// `culvert terminate --child <spi>`.
    pub fn terminate_child(&self, spi_in: &str) -> Result<Vec<Outcome>> {
        let target = Target::Child(spi_in.to_owned());
        self.outcomes(Command::Terminate { target, wait_s: COMMAND_SECONDS })
    }

    /// `culvert rekey`: returns when the new SAs stand.
    pub fn rekey(&self, target: Target) -> Result<Vec<Outcome>> {
        self.outcomes(Command::Rekey { target, wait_s: COMMAND_SECONDS })
    }

    /// `culvert reauthenticate --connection lab`: returns when the new IKE SA has taken over.
    pub fn reauthenticate(&self) -> Result<Vec<Outcome>> {
        let target = Target::Connection(CONNECTION.to_owned());
        self.outcomes(Command::Reauthenticate { target, wait_s: COMMAND_SECONDS })
    }

    /// `culvert move --connection lab`: returns when the peer has followed.
    pub fn move_to(&self, to: Transport) -> Result<Vec<Outcome>> {
        let target = Target::Connection(CONNECTION.to_owned());
        let (local, remote, wait_s) = (None, None, COMMAND_SECONDS);
        self.outcomes(Command::Move { target, to, local, remote, wait_s })
    }

    fn outcomes(&self, command: Command) -> Result<Vec<Outcome>> {
        let rows = self.rows(command).with_context(|| format!("{} is told", self.name))?;
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
