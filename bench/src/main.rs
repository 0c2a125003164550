//! `culvert-bench`: what the parts reach on this machine, in one run.
#![forbid(unsafe_code)]

mod aead;
mod esp;
mod measure;
mod stream;
mod whole;

use clap::Parser;
use culvert_dpdk::{Eal, Memory, available_cpus, tsc_hz};
use culvert_esp::Provider;

/// Packet memory, in MiB.
const MEMORY_MIB: u32 = 512;

/// Measures the AEAD, ESP, ESP in TCP, and the whole dataplane between virtual devices.
///
/// One core, octets of inner packets, medians of interleaved rounds. "cycles" are those of the time
/// stamp counter; "x cal" is the time of one packet in units of a fixed AES-GCM loop that ran at
/// the same moment, to compare runs on machines that change their speed.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

fn main() -> anyhow::Result<()> {
    Arguments::parse();
    let cpus = available_cpus()?;
    let memory = Memory::Small { mib: MEMORY_MIB };
    let eal = Eal::builder().workers(cpus.into_iter().take(1)).memory(memory).init()?;
    let hz = tsc_hz(eal);
    let provider = Provider::fastest();
    println!("TSC {:.2} GHz, fastest AEAD provider: {provider}", hz as f64 / 1e9);
    measure::group("AEAD alone", hz, &mut aead::cases()?)?;
    measure::group("ESP alone", hz, &mut esp::cases()?)?;
    measure::group("ESP in frames in TCP, no NIC", hz, &mut stream::cases(provider)?)?;
    measure::group("the whole dataplane", hz, &mut whole::cases(eal, provider)?)?;
    Ok(())
}
