//! `culvert-dataplane`: the poll-mode process of the gateway.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use culvert_dataplane::process;
use culvert_dataplane_config::{CONFIG_PATH_DEFAULT, Settings, load};
use tracing_subscriber::EnvFilter;

/// The configuration or the command line is wrong.
const EXIT_USAGE: u8 = 2;

/// Carries the packets of the Culvert gateway: DPDK ports, TCP, ESP.
///
/// Runs beside culvert-control, which hands it the tunnels. Either may be restarted while the other
/// goes on. Set RUST_LOG=debug to hear more.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file; only its [dataplane] section and control.runtime_dir are read
    #[arg(long, value_name = "FILE", default_value = CONFIG_PATH_DEFAULT)]
    config: PathBuf,
    /// Check the configuration, say what it asks for, and end without touching a device
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let settings = match load(&arguments.config) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("culvert-dataplane: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if arguments.check {
        print_summary(&settings);
        return ExitCode::SUCCESS;
    }
    start_logging();
    match process::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// To standard error, which systemd takes into its journal; in colours on a terminal.
fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let stderr = std::io::stderr;
    let colours = stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(stderr).init();
}

fn print_summary(settings: &Settings) {
    let dataplane = &settings.dataplane;
    let inner = dataplane.inner_device.as_deref().unwrap_or("the outer port");
    println!("workers          {} (lcores {:?})", dataplane.workers(), dataplane.lcores);
    println!("outer            {}, MTU {}", dataplane.outer_device, dataplane.outer.mtu);
    dataplane.outer.addresses.iter().for_each(|address| println!("                 {address}"));
    println!("inner            {inner}, MTU {}", dataplane.inner.mtu);
    dataplane.inner.addresses.iter().for_each(|address| println!("                 {address}"));
    println!("TCP ports        {:?}", dataplane.tcp_ports);
    println!("TCP connections  {} for each worker", dataplane.tcp_connections);
    println!("SAs              {}", dataplane.sas);
    println!("control          {}", settings.runtime_dir.display());
}
