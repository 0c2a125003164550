//! strongSwan as a foreign peer: charon with its userspace ESP (kernel-libipsec) in a gateway's
//! namespace, or with Linux's ESP in a machine of its own, driven over vici by `swanctl`.

mod conf;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{self, Output};
use crate::guest;
use crate::namespace::Namespace;
use crate::process::{Process, Program};
use crate::topology::{Side, WorkDir};

use conf::Esp;
pub use conf::{Child, Connection};

const CHARON: &str = "/usr/lib/ipsec/charon";
const SWANCTL: &str = "/usr/sbin/swanctl";
/// vici's socket in charon's directory.
const SOCKET: &str = "charon.vici";
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long `swanctl --initiate` may take; charon itself gives up later.
const INITIATE_SECONDS: u32 = 20;

/// A running charon with one connection `lab` loaded.
#[derive(Debug)]
pub struct Strongswan {
    name: String,
    /// charon, or the machine that it runs on; `None` while it is killed.
    process: Option<Process>,
    directory: PathBuf,
    /// Of the namespace where vici is reached; a Unix socket is reached from any.
    namespace: Option<String>,
    uri: String,
}

/// SAs that stand, as strongSwan counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// IKE SAs that are established.
    pub ike: usize,
    /// CHILD SAs that are installed.
    pub children: usize,
}

impl Strongswan {
    /// Starts charon in `namespace` and loads `connection`.
    pub fn start(
        namespace: &Namespace,
        directory: &WorkDir,
        name: &str,
        connection: &Connection,
    ) -> Result<Self> {
        let directory = directory.subdirectory(name)?;
        let uri = format!("unix://{}", directory.join(SOCKET).display());
        let mut peer =
            Self { name: name.to_owned(), process: None, directory, namespace: None, uri };
        copy(CHARON, &peer.directory)?;
        peer.configure(&conf::strongswan_conf(&peer.uri, Esp::Userspace, connection), connection)?;
        peer.start_again(namespace)?;
        Ok(peer)
    }

    /// Boots a machine with charon and Linux's ESP in the gateway's place on `side`, whose owner is
    /// [`Owner::Guest`](crate::topology::Owner::Guest), and loads `connection`.
    pub fn boot(side: &Side, directory: &WorkDir, connection: &Connection) -> Result<Self> {
        let mut peer = Self {
            name: "guest".to_owned(),
            process: None,
            directory: directory.subdirectory("guest")?,
            namespace: Some(side.gateway.name().to_owned()),
            uri: guest::vici_from_outside(),
        };
        let strongswan = conf::strongswan_conf(&guest::vici(), Esp::Kernel, connection);
        peer.configure(&strongswan, connection)?;
        peer.process = Some(guest::boot(side, &peer.directory, &strongswan)?);
        peer.swanctl("--load-all")?;
        Ok(peer)
    }

    fn configure(&self, strongswan: &str, connection: &Connection) -> Result<()> {
        copy(SWANCTL, &self.directory)?;
        fs::write(self.directory.join("strongswan.conf"), strongswan)?;
        Ok(fs::write(self.directory.join("swanctl.conf"), conf::swanctl_conf(connection))?)
    }

    /// Starts charon with the same configuration after [`Strongswan::kill`].
    pub fn start_again(&mut self, namespace: &Namespace) -> Result<()> {
        let socket = self.directory.join(SOCKET);
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let program = Program {
            name: &self.name,
            path: &self.directory.join("charon"),
            arguments: Vec::new(),
            environment: self.environment().into(),
            private_run: true,
        };
        let mut process = Process::spawn(namespace, &program, &self.directory)?;
        let opened = command::wait_until("charon opens its socket", START_TIMEOUT, || {
            process.check_alive().map(|()| socket.exists())
        });
        opened.with_context(|| process.log_tail())?;
        self.process = Some(process);
        self.swanctl("--load-all").map(drop)
    }

    /// `kill -9`: no DELETE goes out.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("charon does not run")?.kill()
    }

    fn environment(&self) -> [(String, String); 2] {
        let path = |path: &Path| path.display().to_string();
        [
            ("STRONGSWAN_CONF".into(), path(&self.directory.join("strongswan.conf"))),
            ("SWANCTL_DIR".into(), path(&self.directory)),
        ]
    }

    /// Runs a `swanctl` command line against this instance and expects success.
    pub fn swanctl(&self, line: &str) -> Result<String> {
        let output = self.try_swanctl(line)?;
        if !output.status.success() {
            let Output { status, stdout, stderr } = output;
            bail!("swanctl {line}: {status}\n{stdout}{stderr}\n{}", self.log_tail());
        }
        Ok(output.stdout)
    }

    fn try_swanctl(&self, line: &str) -> Result<Output> {
        let program = self.directory.join("swanctl");
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(line.split_whitespace()).args(["--uri", &self.uri]);
        command.envs(self.environment());
        command::output(command, "", command::TIMEOUT)
    }

    /// Initiates a child, and with it the IKE SA where there is none. Returns when it stands.
    pub fn initiate(&self, child: &str) -> Result<()> {
        self.swanctl(&format!("--initiate --child {child} --timeout {INITIATE_SECONDS}")).map(drop)
    }

    /// Deletes the IKE SA, with DELETE sent to the peer.
    pub fn terminate(&self) -> Result<()> {
        self.swanctl("--terminate --ike lab --timeout 10").map(drop)
    }

    /// Deletes a child and leaves the rest.
    pub fn terminate_child(&self, child: &str) -> Result<()> {
        self.swanctl(&format!("--terminate --child {child} --timeout 10")).map(drop)
    }

    /// Begins to rekey a child's SA.
    pub fn rekey_child(&self, child: &str) -> Result<()> {
        self.swanctl(&format!("--rekey --child {child}")).map(drop)
    }

    /// Begins to rekey the IKE SA.
    pub fn rekey_ike(&self) -> Result<()> {
        self.swanctl("--rekey --ike lab").map(drop)
    }

    /// Begins to reauthenticate.
    pub fn reauthenticate(&self) -> Result<()> {
        self.swanctl("--rekey --ike lab --reauth").map(drop)
    }

    /// `swanctl --list-sas`.
    pub fn list_sas(&self) -> Result<String> {
        self.swanctl("--list-sas")
    }

    /// How many SAs stand.
    pub fn standing(&self) -> Result<Standing> {
        let list = self.list_sas()?;
        let count = |state: &str| list.lines().filter(|line| line.contains(state)).count();
        Ok(Standing { ike: count(", ESTABLISHED,"), children: count(", INSTALLED,") })
    }

    /// charon's log so far.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }
}

/// Copies a program to `directory`: Debian's AppArmor profiles go by path, and would deny it the
/// lab's files.
fn copy(program: &str, directory: &Path) -> Result<()> {
    let program = Path::new(program);
    let name = program.file_name().context("a program has a name")?;
    fs::copy(program, directory.join(name))
        .with_context(|| format!("{}: run scripts/setup", program.display()))?;
    Ok(())
}
