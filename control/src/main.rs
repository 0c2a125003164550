//! `culvert-control`: reads the configuration, opens the sockets, gives up its rights, and runs.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use culvert_control::config::Config;
use culvert_control::log::{self, Log};
use culvert_control::{process, run};
use culvert_dataplane_config::CONFIG_PATH_DEFAULT;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// The control process of the Culvert gateway: IKE, SAs, the control socket.
#[derive(Debug, Parser)]
#[command(name = "culvert-control", version)]
struct Arguments {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG_PATH_DEFAULT)]
    config: PathBuf,
    /// Check the configuration and end: 0 if it is right, 1 if not
    #[arg(long)]
    check: bool,
    /// What to log, as in `info` or `culvert_control=debug`
    #[arg(long, env = "CULVERT_LOG", default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.check {
        return report(&config);
    }
    match start(&arguments, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a right configuration holds, for people.
fn report(config: &Config) -> ExitCode {
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let children: usize =
        config.connections.values().map(|connection| connection.children.len()).sum();
    println!(
        "{} is right: {} connections with {children} children, {} worker(s)",
        config.path.display(),
        config.connections.len(),
        config.dataplane.workers()
    );
    ExitCode::SUCCESS
}

/// Writes to standard error from now on, with a filter that can be changed.
fn open_log(specification: &str) -> anyhow::Result<Log> {
    let filter = log::filter(specification).context("--log")?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
    let set = move |filter| handle.reload(filter).map_err(|error| error.to_string());
    Ok(Log::new(specification, Box::new(set)))
}

fn start(arguments: &Arguments, config: Config) -> anyhow::Result<()> {
    let log = open_log(&arguments.log)?;
    process::shut_away();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(run::run(config, true, log));
    // A reload may wait for ever for its file.
    runtime.shutdown_background();
    Ok(ended?)
}
