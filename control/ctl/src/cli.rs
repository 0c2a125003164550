//! The command line.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Args, Parser, Subcommand};
use culvert_api::{Command, Confidential, SOCKET_PATH_DEFAULT, Target, Transport, Unloaded};

/// Shows what the Culvert gateway does, and tells it what to do.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 done, 1 the gateway said no, 2 the command line is wrong, \
                        3 the gateway cannot be reached.")]
pub(crate) struct Arguments {
    /// The gateway's control socket
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET_PATH_DEFAULT)]
    pub(crate) socket: PathBuf,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// The gateway at a glance
    Status,
    /// The configured connections
    Connections,
    /// IKE SAs and their CHILD SAs
    Sas {
        /// Only those of this connection
        connection: Option<String>,
    },
    /// TCP connections of the dataplane
    Tcp,
    /// What the dataplane's workers counted, packet drops by name among it
    Counters {
        /// Also those that are zero
        #[arg(long)]
        all: bool,
    },
    /// Set a connection up
    Initiate {
        /// Name of the connection
        connection: String,
        /// Name of its child [default: the first]
        #[arg(long)]
        child: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Delete SAs
    Terminate {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give SAs new keys: an IKE SA, a CHILD SA, or all of both of a connection or peer
    Rekey {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        wait: Wait,
    },
    /// Authenticate IKE SAs anew, with the same CHILD SAs, before the old ones are deleted
    Reauthenticate {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        wait: Wait,
    },
    /// Move IKE SAs with their CHILD SAs to another transport or address
    Move {
        #[command(flatten)]
        what: What,
        /// The transport; native where UDP meets no NAT
        #[arg(long, value_name = "TRANSPORT", value_parser = transport)]
        to: Transport,
        /// This gateway's address [default: as now]
        #[arg(long, value_name = "ADDRESS")]
        local: Option<IpAddr>,
        /// The peer's address [default: as now]
        #[arg(long, value_name = "ADDRESS")]
        remote: Option<IpAddr>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Read the configuration again and apply what differs
    Reload,
    /// Add connections and secrets, or change them, until the next reload
    Load {
        /// A file with sections [connections.<name>] and [secrets.<name>]; - reads standard input
        file: PathBuf,
    },
    /// Remove a connection or a secret, until the next reload
    Unload {
        #[command(flatten)]
        what: Removed,
    },
    /// Show what is logged of whom, or change it
    Log {
        /// Only of this connection
        #[arg(long, value_name = "NAME", conflicts_with = "peer", requires = "level")]
        connection: Option<String>,
        /// Only of this peer
        #[arg(long, value_name = "IDENTITY|ADDRESS", requires = "level")]
        peer: Option<String>,
        /// off, error, warn, info, debug or trace; default for no level of its own
        level: Option<String>,
    },
    /// What happened lately
    Events {
        /// Go on with what happens from now on
        #[arg(long, short)]
        follow: bool,
    },
    /// Check a configuration file without running it
    Check {
        /// The file
        file: PathBuf,
    },
}

/// How long to wait.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Wait so many seconds for the outcome; 0 does not wait
    #[arg(long = "wait", value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(..=3600))]
    seconds: u32,
}

/// SAs that a command is about.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct What {
    /// An IKE SA by its number in `culvert sas`
    #[arg(long, value_name = "ID")]
    ike: Option<u64>,
    /// A CHILD SA by its inbound SPI in `culvert sas`
    #[arg(long, value_name = "SPI")]
    child: Option<String>,
    /// Every IKE SA of a connection
    #[arg(long, value_name = "NAME")]
    connection: Option<String>,
    /// Every IKE SA with a peer
    #[arg(long, value_name = "IDENTITY|ADDRESS")]
    peer: Option<String>,
    /// Every IKE SA
    #[arg(long)]
    all: bool,
}

/// What is to be removed.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Removed {
    /// A connection; its SAs are deleted
    #[arg(long, value_name = "NAME")]
    connection: Option<String>,
    /// A secret
    #[arg(long, value_name = "NAME")]
    secret: Option<String>,
}

impl Removed {
    /// clap has seen to it that exactly one is given.
    fn what(&self) -> Unloaded {
        match (&self.connection, &self.secret) {
            (Some(connection), _) => Unloaded::Connection(connection.clone()),
            (_, secret) => Unloaded::Secret(secret.clone().unwrap_or_default()),
        }
    }
}

fn transport(text: &str) -> Result<Transport, String> {
    match text {
        "udp" => Ok(Transport::Udp),
        "tcp" => Ok(Transport::Tcp),
        "native" => Ok(Transport::Native),
        _ => Err("it is udp, tcp or native".to_owned()),
    }
}

impl Arguments {
    /// The request that the gateway gets.
    ///
    /// # Errors
    /// The file to load cannot be read.
    pub(crate) fn command(&self) -> io::Result<Command> {
        Ok(match &self.verb {
            Verb::Log { connection, peer, level } => Command::Log {
                connection: connection.clone(),
                peer: peer.clone(),
                level: level.clone(),
            },
            Verb::Reload => Command::Reload,
            Verb::Load { file } => Command::Load {
                name: file.display().to_string(),
                text: Confidential::new(read(file)?),
            },
            Verb::Unload { what } => Command::Unload { what: what.what() },
            Verb::Connections => Command::Connections,
            Verb::Sas { connection } => Command::Sas { connection: connection.clone() },
            Verb::Tcp => Command::Tcp,
            Verb::Counters { all } => Command::Counters { all: *all },
            Verb::Initiate { connection, child, wait } => Command::Initiate {
                connection: connection.clone(),
                child: child.clone(),
                wait_s: wait.seconds,
            },
            Verb::Terminate { what, wait } => {
                Command::Terminate { target: what.target(), wait_s: wait.seconds }
            }
            Verb::Rekey { what, wait } => {
                Command::Rekey { target: what.target(), wait_s: wait.seconds }
            }
            Verb::Reauthenticate { what, wait } => {
                Command::Reauthenticate { target: what.target(), wait_s: wait.seconds }
            }
            Verb::Move { what, to, local, remote, wait } => Command::Move {
                target: what.target(),
                to: *to,
                local: *local,
                remote: *remote,
                wait_s: wait.seconds,
            },
            Verb::Events { follow } => Command::Events { follow: *follow },
            // A check needs no gateway; it never comes here.
            Verb::Status | Verb::Check { .. } => Command::Status,
        })
    }
}

/// A file's text, or standard input's.
fn read(file: &Path) -> io::Result<String> {
    if file == Path::new("-") {
        return io::read_to_string(io::stdin());
    }
    let named =
        |cause: io::Error| io::Error::new(cause.kind(), format!("{}: {cause}", file.display()));
    fs::read_to_string(file).map_err(named)
}

impl What {
    /// clap has seen to it that exactly one is given.
    fn target(&self) -> Target {
        let ike = self.ike.map(Target::Ike);
        let child = || self.child.clone().map(Target::Child);
        let connection = || self.connection.clone().map(Target::Connection);
        let peer = || self.peer.clone().map(Target::Peer);
        ike.or_else(child).or_else(connection).or_else(peer).unwrap_or(Target::All {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command, String> {
        let parsed = Arguments::try_parse_from(line.split_whitespace());
        let parsed = parsed.map_err(|error| error.to_string());
        parsed.and_then(|arguments| arguments.command().map_err(|error| error.to_string()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn commands_become_requests() {
        let sas =
            |connection: Option<&str>| Command::Sas { connection: connection.map(Into::into) };
        assert_eq!(command("culvert sas"), Ok(sas(None)));
        assert_eq!(command("culvert sas branch --json"), Ok(sas(Some("branch"))));
        assert_eq!(
            command("culvert initiate branch --child net --wait 5"),
            Ok(Command::Initiate {
                connection: "branch".into(),
                child: Some("net".into()),
                wait_s: 5
            })
        );
        let target = Target::Child("c0de0001".into());
        assert_eq!(
            command("culvert terminate --child c0de0001"),
            Ok(Command::Terminate { target, wait_s: 60 })
        );
        let target = Target::Peer("branch.example".into());
        assert_eq!(
            command("culvert rekey --peer branch.example --wait 0"),
            Ok(Command::Rekey { target, wait_s: 0 })
        );
        assert_eq!(
            command("culvert reauthenticate --all"),
            Ok(Command::Reauthenticate { target: Target::All {}, wait_s: 60 })
        );
        let debug = Some("debug".to_owned());
        assert_eq!(
            command("culvert log --connection branch debug"),
            Ok(Command::Log { connection: Some("branch".into()), peer: None, level: debug })
        );
        let what = Unloaded::Secret("ike-branch".into());
        assert_eq!(command("culvert unload --secret ike-branch"), Ok(Command::Unload { what }));
        let to = Transport::Tcp;
        let local = "192.0.2.9".parse().ok();
        assert_eq!(
            command("culvert move --ike 3 --to tcp --local 192.0.2.9 --wait 5"),
            Ok(Command::Move { target: Target::Ike(3), to, local, remote: None, wait_s: 5 })
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = command("culvert load /nowhere/more.toml").expect_err("it is not there");
        assert!(error.starts_with("/nowhere/more.toml: "), "{error}");
    }

    #[test]
    fn a_termination_names_exactly_one_thing() {
        assert!(command("culvert terminate").is_err());
        assert!(command("culvert terminate --ike 1 --connection branch").is_err());
        assert!(command("culvert move --ike 1 --to ip").is_err());
        assert!(command("culvert log --connection branch").is_err());
    }
}
