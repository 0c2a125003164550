//! `culvert-sim`: repeats simulated runs and measures the TCP engine.
#![forbid(unsafe_code)]

use std::alloc::System;

use anyhow::Result;
use clap::{Parser, Subcommand};
use culvert_sim::flood::Hostile;
use culvert_sim::scenario::Scenario;
use culvert_sim::tables::{self, Goodput};
use culvert_sim::{cost, flood};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The TCP engine under bad links, foreign peers, floods and the clock.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Repeats the run of a seed and shows it.
    Replay {
        /// As a failed run has named it.
        seed: u64,
        /// Shows every packet where it leaves and where it arrives.
        #[arg(long)]
        packets: bool,
    },
    /// Runs many seeds one after the other.
    Seeds {
        /// The first.
        #[arg(default_value_t = 1)]
        first: u64,
        /// How many.
        #[arg(long, default_value_t = 1000)]
        count: u64,
    },
    /// Goodput and fairness, next to Linux's TCP over the same links.
    Goodput {
        /// Only the engine, in virtual time: quick, and the same on every machine.
        #[arg(long)]
        virtual_only: bool,
        /// Only how connections share a link.
        #[arg(long)]
        shares_only: bool,
        /// Seconds of each transfer.
        #[arg(long, default_value_t = 8)]
        seconds: u64,
        /// Runs of each path with losses, every one with others.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
        runs: u64,
        /// Only paths of this rate, in Mbit/s.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        rate: Option<u64>,
        /// Only paths of this round trip, in milliseconds.
        #[arg(long)]
        round_trip: Option<u64>,
        /// Only paths that lose so many packets of data, in percent.
        #[arg(long)]
        loss: Option<f64>,
    },
    /// Cycles for a segment and octets for a connection, next to smoltcp's sockets.
    Cost {
        /// Connections at the least.
        #[arg(long, default_value_t = 1)]
        least: usize,
        /// Connections at the most.
        #[arg(long, default_value_t = 100_000)]
        most: usize,
        /// Rounds, of which the median counts.
        #[arg(long, default_value_t = 15)]
        rounds: usize,
    },
    /// Cycles for a hostile segment next to an ordinary one, and what a peer has meanwhile.
    Flood {
        /// Hostile segments of each kind.
        #[arg(long, default_value_t = 2_000_000)]
        count: usize,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Replay { seed, packets } => {
            let scenario = Scenario::new(seed);
            println!("{scenario}");
            let report = if packets { scenario.show()? } else { scenario.run()? };
            println!("{report:#?}");
            Ok(())
        }
        Command::Seeds { first, count } => seeds(first, count),
        Command::Goodput {
            virtual_only,
            shares_only,
            seconds,
            runs,
            rate,
            round_trip: round_trip_ms,
            loss: loss_percent,
        } => tables::goodput(&Goodput {
            virtual_only,
            shares_only,
            seconds,
            runs,
            rate,
            round_trip_ms,
            loss_percent,
        }),
        Command::Cost { least, most, rounds } => {
            tables::cycles(least, most, rounds)?;
            let octets = cost::octets(most.min(10_000), &allocated)?;
            println!("\noctets for a connection: {octets:.0?}");
            Ok(())
        }
        Command::Flood { count } => floods(count),
    }
}

fn floods(count: usize) -> Result<()> {
    println!(
        "cycles for a segment, hostile ones a second on this core, and the peer's share of its"
    );
    println!("rate without them; ordinary: data received, read and acknowledged");
    for hostile in Hostile::ALL {
        let (before, line) = (flood::ordinary(20_000)?, flood::line(hostile, count)?);
        let ordinary = f64::midpoint(before, flood::ordinary(20_000)?);
        println!(
            "{:<8} {:6.0} cycles, ordinary {ordinary:.0} (x {:.2}), {:.2} million/s, peer {:.0} %, \
             {} octets held",
            format!("{hostile:?}"),
            line.cycles,
            line.cycles / ordinary,
            line.per_second * 1e-6,
            line.share * 100.0,
            line.buffer_bytes
        );
    }
    Ok(())
}

/// Octets allocated at present.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

fn seeds(first: u64, count: u64) -> Result<()> {
    let (mut steps, mut octets, mut failed) = (0, 0, 0);
    for seed in first..first + count {
        match Scenario::new(seed).run() {
            Ok(report) => {
                steps += report.steps;
                octets += report.octets;
            }
            Err(error) => {
                failed += 1;
                println!("{seed}: {}", error.root_cause());
            }
        }
    }
    println!("{count} seeds, {failed} failed, {steps} steps, {octets} octets checked");
    anyhow::ensure!(failed == 0, "{failed} seeds failed: culvert-sim replay SEED shows one");
    Ok(())
}
