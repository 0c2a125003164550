//! The tables that `culvert-sim` prints.

use std::time::Duration;

use anyhow::Result;
use culvert_tcpstack::CongestionControl;

use crate::bulk::{Bulk, Path, fairness};
use crate::cost;
use crate::linux::{self, Lab, Sender};

/// The congestion controls, in the order of the columns.
const CONTROLS: [CongestionControl; 2] = [CongestionControl::Cubic, CongestionControl::Bbr];
/// The round trips, in milliseconds.
const ROUND_TRIPS: [u64; 3] = [10, 50, 100];
/// The losses, in percent.
const LOSSES: [f64; 4] = [0.0, 0.1, 1.0, 5.0];

/// Runs of each mixture in virtual time.
const RUNS: u64 = 4;

/// What of the goodput is asked for.
#[derive(Debug, Clone, Default)]
pub struct Goodput {
    /// Only the engine in virtual time.
    pub virtual_only: bool,
    /// Only how connections share a link.
    pub shares_only: bool,
    /// Of each transfer.
    pub seconds: u64,
    /// Runs of each cell with losses, every one with others.
    pub runs: u64,
    /// Only paths of this rate, in Mbit/s.
    pub rate: Option<u64>,
    /// Only paths of this round trip, in milliseconds.
    pub round_trip_ms: Option<u64>,
    /// Only paths of this loss, in percent.
    pub loss_percent: Option<f64>,
}

impl Goodput {
    /// Whether only some paths are asked for, and no shares.
    fn is_selection(&self) -> bool {
        self.rate.is_some() || self.round_trip_ms.is_some() || self.loss_percent.is_some()
    }

    fn paths(&self, rates: &[u64]) -> Vec<Path> {
        let rates = self.rate.map_or(rates.to_vec(), |one| vec![one]);
        let round_trips = self.round_trip_ms.map_or(ROUND_TRIPS.to_vec(), |one| vec![one]);
        let losses = self.loss_percent.map_or(LOSSES.to_vec(), |one| vec![one]);
        let mut paths = Vec::new();
        for rate in rates {
            for round_trip_ms in &round_trips {
                for loss_percent in &losses {
                    let (round_trip_ms, loss_percent) = (*round_trip_ms, *loss_percent);
                    paths.push(Path { rate, round_trip_ms, loss_percent });
                }
            }
        }
        paths
    }
}

/// Prints goodput and fairness: the engine in virtual time, then, unless told not to, both over
/// the shim in real time.
///
/// # Errors
/// A transfer failed.
pub fn goodput(asked: &Goodput) -> Result<()> {
    let mut lab = None;
    if !asked.virtual_only {
        let (eal, pool) = linux::start_dpdk()?;
        lab = Some(Lab::new(eal, pool)?);
    }
    if !asked.shares_only {
        single(lab.as_mut(), asked)?;
    }
    if asked.is_selection() {
        return Ok(());
    }
    virtual_shares()?;
    lab.as_mut().map_or(Ok(()), real_shares)
}

/// One connection on every path.
fn single(mut lab: Option<&mut Lab>, asked: &Goodput) -> Result<()> {
    let carried = match &mut lab {
        Some(lab) if asked.rate.is_none() => Some(ceiling(lab)?),
        _ => None,
    };
    let Goodput { seconds, runs, .. } = asked;
    println!("Mbit/s of payload over {seconds} s from the SYN on, one connection.");
    println!("With losses the mean of {runs} runs; engine and Linux have the same seeds.");
    println!("Virtual: between two engines in virtual time. Shim: to Linux, in real time.");
    println!("            virtual: engine    shim: engine     shim: Linux    engine / Linux");
    println!("rate  ms  loss    cubic     bbr    cubic     bbr    cubic     bbr    cubic   bbr");
    for path in asked.paths(&rates(carried)) {
        let is_carried = carried.is_none_or(|most| path.rate <= most);
        row(lab.as_deref_mut().filter(|_| is_carried), path, asked)?;
    }
    Ok(())
}

/// The rates of the rows. What the shim carries at the most is one of them; in virtual time the
/// machine limits nothing.
fn rates(carried: Option<u64>) -> Vec<u64> {
    let mut rates = vec![100, carried.unwrap_or(1000), 1000];
    rates.dedup();
    rates
}

fn row(mut lab: Option<&mut Lab>, path: Path, asked: &Goodput) -> Result<()> {
    let Path { rate, round_trip_ms, loss_percent } = path;
    let duration = Duration::from_secs(asked.seconds);
    let runs = if loss_percent > 0.0 { asked.runs } else { 1 };
    print!("{rate:>4} {round_trip_ms:>3} {loss_percent:>5}");
    for control in CONTROLS {
        let run = |seed| Ok(Bulk { seed, ..Bulk::single(control, path, duration) }.run()?[0]);
        print!(" {:>8.1}", mean(runs, run)?);
    }
    if let Some(lab) = &mut lab {
        let times = [Duration::ZERO, duration];
        let mut both = |control, sender| {
            mean(runs, |seed| Ok(lab.goodput(path.link(), seed, control, &[sender], times)?[0]))
        };
        let [cubic, bbr] = CONTROLS;
        let engine = [both(cubic, Sender::Engine)?, both(bbr, Sender::Engine)?];
        let linux = [both(cubic, Sender::Linux("cubic"))?, both(bbr, Sender::Linux("bbr"))?];
        for rate in engine.iter().chain(&linux) {
            print!(" {rate:>8.1}");
        }
        print!("   {:>6.2} {:>5.2}", engine[0] / linux[0], engine[1] / linux[1]);
    }
    println!();
    Ok(())
}

/// The mean of `runs` runs, each with a seed of its own.
fn mean(runs: u64, mut run: impl FnMut(u64) -> Result<f64>) -> Result<f64> {
    let sum: f64 = (1..=runs).map(&mut run).sum::<Result<f64>>()?;
    Ok(sum / runs as f64)
}

/// The greatest rate, up to 1 Gbit/s, that Linux gets through the shim on this machine now: beyond
/// it the machine would be measured. A tenth is left free.
fn ceiling(lab: &mut Lab) -> Result<u64> {
    let path = Path { rate: 2_000, round_trip_ms: 10, loss_percent: 0.0 };
    let times = [Duration::from_secs(1), Duration::from_secs(4)];
    let linux = [Sender::Linux("cubic")];
    let reached = lab.goodput(path.link(), 1, CongestionControl::Cubic, &linux, times)?[0];
    let rate = ((reached * 0.9) as u64 / 50 * 50).clamp(150, 1000);
    println!("Linux gets {reached:.0} Mbit/s through the shim: its rows go up to {rate} Mbit/s.");
    Ok(rate)
}

fn print_shares(what: &str, rates: &[f64]) {
    let least = rates.iter().copied().fold(f64::MAX, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let (sum, index): (f64, f64) = (rates.iter().sum(), fairness(rates));
    println!("{what}: {sum:.1} in all, {least:.1} to {most:.1}, Jain {index:.3}");
}

/// How several engines share 100 Mbit/s: of each mixture several runs, that differ in when who
/// starts.
fn virtual_shares() -> Result<()> {
    println!("\nShares of 100 Mbit/s at 50 ms, the second half of 40 s, virtual time, {RUNS} runs");
    for control in CONTROLS {
        for count in [2, 16] {
            let runs = shares(&vec![control; count])?;
            print_runs(&format!("{count:>2} × engine {control:?}"), &runs);
        }
    }
    for each in [1, 8] {
        let mut controls = vec![CongestionControl::Bbr; each];
        controls.resize(2 * each, CongestionControl::Cubic);
        let runs = shares(&controls)?;
        let part = |of: std::ops::Range<usize>| -> Vec<Vec<f64>> {
            runs.iter().map(|rates| rates[of.clone()].to_vec()).collect()
        };
        print_runs(&format!("{each:>2} × engine Bbr, beside Cubic"), &part(0..each));
        print_runs(&format!("{each:>2} × engine Cubic, beside Bbr"), &part(each..2 * each));
    }
    Ok(())
}

fn shares(controls: &[CongestionControl]) -> Result<Vec<Vec<f64>>> {
    let link = Path { rate: 100, round_trip_ms: 50, loss_percent: 0.0 }.link();
    let run = |seed| {
        let (duration, warm_up) = (Duration::from_secs(40), Duration::from_secs(20));
        Bulk { controls: controls.to_vec(), link, duration, warm_up, seed }.run()
    };
    (1..=RUNS).map(run).collect()
}

fn print_runs(what: &str, runs: &[Vec<f64>]) {
    let all = runs.iter().flatten().copied();
    let least = all.clone().fold(f64::MAX, f64::min);
    let most = all.clone().fold(0.0, f64::max);
    let sum = all.sum::<f64>() / runs.len() as f64;
    let indexes: Vec<f64> = runs.iter().map(|rates| fairness(rates)).collect();
    let mean = indexes.iter().sum::<f64>() / indexes.len() as f64;
    let worst = indexes.into_iter().fold(1.0, f64::min);
    println!("{what}: {sum:.1} in all, {least:.1} to {most:.1}, Jain {mean:.3}, worst {worst:.3}");
}

/// How engines and Linux share 100 Mbit/s.
fn real_shares(lab: &mut Lab) -> Result<()> {
    println!("\nShares of 100 Mbit/s at 50 ms, the second half of 24 s, over the shim");
    let link = Path { rate: 100, round_trip_ms: 50, loss_percent: 0.0 }.link();
    let times = [Duration::from_secs(12), Duration::from_secs(24)];
    for control in CONTROLS {
        for each in [1, 8] {
            let mut senders = vec![Sender::Engine; each];
            senders.resize(2 * each, Sender::Linux("cubic"));
            let rates = lab.goodput(link, 1, control, &senders, times)?;
            let (engine, linux) = rates.split_at(each);
            print_shares(&format!("{each} × engine {control:?}, beside Linux"), engine);
            print_shares(&format!("{each} × Linux cubic, beside the engine"), linux);
        }
    }
    for control in ["cubic", "bbr"] {
        for count in [2, 16] {
            let senders = vec![Sender::Linux(control); count];
            let rates = lab.goodput(link, 1, CongestionControl::Bbr, &senders, times)?;
            print_shares(&format!("{count:>2} × Linux {control}"), &rates);
        }
    }
    Ok(())
}

/// Prints cycles for a segment, with `least` to `most` connections.
///
/// # Errors
/// A connection does not open, or nothing moves.
pub fn cycles(least: usize, most: usize, rounds: usize) -> Result<()> {
    println!("cycles for a segment of 1400 octets, medians of {rounds} rounds, interleaved");
    println!(
        "connections   cubic: in    out   smoltcp: in    out   ratio: in    out   bbr: in    out   \
         fixed loop"
    );
    for connections in [1, 1_000, 10_000, 100_000] {
        if !(least..=most).contains(&connections) {
            continue;
        }
        let line = cost::line(connections, rounds)?;
        let (engine, sockets) = (line.engine, line.sockets);
        println!(
            "{connections:>11} {:>11.0} {:>6.0} {:>13.0} {:>6.0} {:>11.2} {:>6.2} {:>9.0} {:>6.0} \
             {:>12.1}",
            engine.received,
            engine.sent,
            sockets.received,
            sockets.sent,
            engine.received / sockets.received,
            engine.sent / sockets.sent,
            line.bbr.received,
            line.bbr.sent,
            line.calibration,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_shim_carries_does_not_limit_virtual_time() {
        assert_eq!(rates(None), [100, 1000]);
        assert_eq!(rates(Some(450)), [100, 450, 1000]);
        assert_eq!(rates(Some(1000)), [100, 1000]);
    }
}
