//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use culvert_api::{Command, SOCKET_PATH_DEFAULT, Target};

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
        /// Wait so many seconds for the outcome; 0 does not wait
        #[arg(long, value_name = "SECONDS", default_value_t = 60,
              value_parser = clap::value_parser!(u32).range(..=3600))]
        wait: u32,
    },
    /// Delete SAs
    Terminate(What),
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

/// SAs to delete.
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
}

impl Arguments {
    /// The request that the gateway gets.
    pub(crate) fn command(&self) -> Command {
        match &self.verb {
            Verb::Connections => Command::Connections,
            Verb::Sas { connection } => Command::Sas { connection: connection.clone() },
            Verb::Tcp => Command::Tcp,
            Verb::Counters { all } => Command::Counters { all: *all },
            Verb::Initiate { connection, child, wait } => Command::Initiate {
                connection: connection.clone(),
                child: child.clone(),
                wait_s: *wait,
            },
            Verb::Terminate(what) => Command::Terminate { target: what.target() },
            Verb::Events { follow } => Command::Events { follow: *follow },
            // A check needs no gateway; it never comes here.
            Verb::Status | Verb::Check { .. } => Command::Status,
        }
    }
}

impl What {
    /// clap has seen to it that exactly one is given.
    fn target(&self) -> Target {
        match (&self.ike, &self.child, &self.connection) {
            (Some(ike), ..) => Target::Ike(*ike),
            (_, Some(child), _) => Target::Child(child.clone()),
            (_, _, connection) => Target::Connection(connection.clone().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command, String> {
        let parsed = Arguments::try_parse_from(line.split_whitespace());
        parsed.map(|arguments| arguments.command()).map_err(|error| error.to_string())
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
            Ok(Command::Terminate { target })
        );
    }

    #[test]
    fn a_termination_names_exactly_one_thing() {
        assert!(command("culvert terminate").is_err());
        assert!(command("culvert terminate --ike 1 --connection branch").is_err());
    }
}
