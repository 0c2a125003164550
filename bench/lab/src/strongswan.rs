//! strongSwan as a foreign peer: charon with its userspace ESP (kernel-libipsec) in a gateway's
//! namespace, driven over vici by `swanctl`.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{self, Output};
use crate::namespace::Namespace;
use crate::process::{Process, Program};
use crate::topology::WorkDir;

const CHARON: &str = "/usr/lib/ipsec/charon";
const SWANCTL: &str = "/usr/sbin/swanctl";
/// kernel-libipsec has to come before kernel-netlink: the first that offers ESP is taken.
const PLUGINS: &str = "random nonce openssl aes sha1 sha2 hmac kdf gcm curve25519 \
                       kernel-libipsec kernel-netlink socket-default vici";
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long `swanctl --initiate` may take; charon itself gives up later.
const INITIATE_SECONDS: u32 = 20;

/// One connection with one CHILD SA, in swanctl's terms.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Our address; `None` for any.
    pub local: Option<IpAddr>,
    /// The peer's address; `None` for any, as a responder does.
    pub remote: Option<IpAddr>,
    /// The peer's UDP port, where it is not 500: then ours is 4500, and each IKE message carries the
    /// non-ESP marker from the first one on, as a stream needs it.
    pub remote_port: Option<u16>,
    /// Our identity.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// The pre-shared key.
    pub secret: String,
    /// The IKE proposal.
    pub proposal: String,
    /// The ESP proposal.
    pub esp_proposal: String,
    /// Our traffic selectors.
    pub local_ts: Vec<String>,
    /// The peer's traffic selectors.
    pub remote_ts: Vec<String>,
    /// Whether to ask for ESP in UDP even without a NAT; kernel-libipsec knows nothing else.
    pub encap: bool,
}

/// A running charon with one connection `lab` and its child `net` loaded.
#[derive(Debug)]
pub struct Strongswan {
    process: Process,
    namespace: String,
    directory: PathBuf,
    socket: String,
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
        for program in [CHARON, SWANCTL] {
            copy(program, &directory)?;
        }
        let socket = format!("unix://{}", directory.join("charon.vici").display());
        let conf = directory.join("strongswan.conf");
        fs::write(&conf, strongswan_conf(&socket))?;
        fs::write(directory.join("swanctl.conf"), swanctl_conf(connection))?;
        let program = Program {
            name,
            path: &directory.join("charon"),
            arguments: Vec::new(),
            environment: vec![
                ("STRONGSWAN_CONF".into(), conf.display().to_string()),
                ("SWANCTL_DIR".into(), directory.display().to_string()),
            ],
            private_run: true,
        };
        let process = Process::spawn(namespace, &program, &directory)?;
        let mut peer = Self { process, namespace: namespace.name().into(), directory, socket };
        peer.wait_ready()?;
        peer.swanctl("--load-all")?;
        Ok(peer)
    }

    fn wait_ready(&mut self) -> Result<()> {
        self.process.wait_for_log("spawning", START_TIMEOUT)?;
        let socket = self.directory.join("charon.vici");
        command::wait_until("charon opens its socket", START_TIMEOUT, || Ok(socket.exists()))
            .with_context(|| self.process.log_tail())
    }

    /// Runs a `swanctl` command line against this instance and expects success.
    pub fn swanctl(&self, line: &str) -> Result<String> {
        let output = self.try_swanctl(line)?;
        if !output.status.success() {
            bail!(
                "swanctl {line}: {}\n{}{}\n{}",
                output.status,
                output.stdout,
                output.stderr,
                self.process.log_tail()
            );
        }
        Ok(output.stdout)
    }

    fn try_swanctl(&self, line: &str) -> Result<Output> {
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(self.directory.join("swanctl"));
        command.args(line.split_whitespace()).args(["--uri", &self.socket]);
        command.env("SWANCTL_DIR", &self.directory);
        command.env("STRONGSWAN_CONF", self.directory.join("strongswan.conf"));
        command::output(command, "", command::TIMEOUT)
    }

    /// Initiates the child `net`, and with it the IKE SA. Returns when it stands.
    pub fn initiate(&self) -> Result<()> {
        self.swanctl(&format!("--initiate --child net --timeout {INITIATE_SECONDS}")).map(drop)
    }

    /// Deletes the IKE SA, with DELETE sent to the peer.
    pub fn terminate(&self) -> Result<()> {
        self.swanctl("--terminate --ike lab --timeout 10").map(drop)
    }

    /// `swanctl --list-sas`.
    pub fn list_sas(&self) -> Result<String> {
        self.swanctl("--list-sas")
    }

    /// charon's log so far.
    pub fn log(&self) -> String {
        self.process.log()
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

fn strongswan_conf(socket: &str) -> String {
    format!(
        "charon {{
    load = {PLUGINS}
    retransmit_timeout = 1.0
    retransmit_tries = 4
    plugins {{
        vici {{
            socket = {socket}
        }}
    }}
    filelog {{
        stderr {{
            default = 1
            ike = 2
            flush_line = yes
        }}
    }}
}}
swanctl {{
    load = random nonce openssl pem pkcs1 x509
}}
"
    )
}

fn swanctl_conf(connection: &Connection) -> String {
    let Connection { local_id, remote_id, secret, proposal, esp_proposal, .. } = connection;
    let mut endpoints = String::new();
    if let Some(local) = connection.local {
        let _ = writeln!(endpoints, "        local_addrs = {local}");
    }
    if let Some(remote) = connection.remote {
        let _ = writeln!(endpoints, "        remote_addrs = {remote}");
    }
    if let Some(port) = connection.remote_port {
        let _ = writeln!(endpoints, "        local_port = 4500\n        remote_port = {port}");
    }
    let encap = if connection.encap { "yes" } else { "no" };
    let local_ts = connection.local_ts.join(",");
    let remote_ts = connection.remote_ts.join(",");
    format!(
        "connections {{
    lab {{
        version = 2
{endpoints}        proposals = {proposal}
        mobike = no
        encap = {encap}
        local {{
            auth = psk
            id = {local_id}
        }}
        remote {{
            auth = psk
            id = {remote_id}
        }}
        children {{
            net {{
                local_ts = {local_ts}
                remote_ts = {remote_ts}
                esp_proposals = {esp_proposal}
            }}
        }}
    }}
}}
secrets {{
    ike-lab {{
        secret = \"{secret}\"
    }}
}}
"
    )
}
