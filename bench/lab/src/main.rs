//! The lab's command: the demonstration, and its end.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use culvert_lab::{cleanup, demo};

/// Default size of a bulk transfer, in megabytes: some seconds' worth over veth.
const MEGABYTES_DEFAULT: u64 = 100;
/// The largest: ten minutes' worth.
const MEGABYTES_MAX: u64 = 50_000;

/// A laboratory for Culvert: two sites and a firewall in network namespaces
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Show the job: UDP blocked, fallback to TCP, a ping and bulk transfers through the tunnel
    Demo {
        /// Leave everything running afterwards
        #[arg(long)]
        keep: bool,
        /// Size of each bulk transfer
        #[arg(long, value_name = "MB", default_value_t = MEGABYTES_DEFAULT,
              value_parser = clap::value_parser!(u64).range(1..=MEGABYTES_MAX))]
        megabytes: u64,
    },
    /// End a demonstration that was kept
    End {
        /// Which one; not needed when there is only one
        pid: Option<u32>,
    },
    /// Take away what killed labs left behind
    Reap,
}

fn main() -> ExitCode {
    match run(Arguments::parse().job) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(job: Job) -> anyhow::Result<()> {
    match job {
        Job::Demo { keep, megabytes } => demo::run(megabytes * 1_000_000, keep),
        Job::End { pid: Some(pid) } => demo::end(pid),
        Job::End { pid: None } => demo::end_only(),
        Job::Reap => {
            println!("{} namespaces taken away", cleanup::reap());
            Ok(())
        }
    }
}
