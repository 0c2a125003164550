//! How things are measured here.
//!
//! Virtual machines share their processor: the same loop may take twice as long a minute later. So
//! every case is run in short rounds, all cases of a group in turn, each next to a calibration loop
//! (a fixed number of AES-GCM seals). What counts is the median over the rounds; the column
//! `x cal` is the median of the ratios to the calibration of the same moment, and holds better than
//! any other figure when two runs are compared.

use culvert_dpdk::tsc;
use culvert_esp::{Algorithm, OutboundSa, Provider};

/// Rounds of each case.
const ROUNDS: usize = 101;
/// Packets of one round: a fraction of a millisecond, so that most rounds are not interrupted.
const PACKETS: usize = 512;
/// Inner packet of the calibration, in octets.
const CALIBRATION_LEN: usize = 1408;

/// Inner packets measured, in octets.
pub(crate) const SIZES: [usize; 3] = [64, 576, 1400];

/// Something to be measured.
pub(crate) trait Case {
    /// Name in the table.
    fn name(&self) -> String;

    /// Octets of an inner packet.
    fn size(&self) -> usize;

    /// Handles `packets` packets and returns how many TSC cycles that took. What only prepares them
    /// is not counted.
    fn run(&mut self, packets: usize) -> u64;
}

/// The calibration loop.
struct Calibration {
    sa: OutboundSa,
    inner: Vec<u8>,
    out: Vec<u8>,
    sequence: u64,
}

impl Calibration {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            sa: OutboundSa::new(Provider::Ring, Algorithm::Aes128Gcm16, 1000, &[1; 20], true)?,
            inner: vec![2; CALIBRATION_LEN],
            out: vec![0; OutboundSa::sealed_len(CALIBRATION_LEN)],
            sequence: 0,
        })
    }

    /// Cycles of one seal.
    fn run(&mut self) -> f64 {
        const SEALS: u64 = 200;
        let start = tsc();
        for _ in 0..SEALS {
            self.sequence += 1;
            let sealed = self.sa.seal(self.sequence, 4, &self.inner, &mut self.out);
            std::hint::black_box(&sealed);
        }
        tsc().wrapping_sub(start) as f64 / SEALS as f64
    }
}

/// Measures the cases of one group side by side and prints a row for each. `hz` is the
/// frequency of the time stamp counter.
pub(crate) fn group(title: &str, hz: u64, cases: &mut [Box<dyn Case>]) -> anyhow::Result<()> {
    let mut calibration = Calibration::new()?;
    let mut cycles = vec![Vec::with_capacity(ROUNDS); cases.len()];
    let mut ratios = vec![Vec::with_capacity(ROUNDS); cases.len()];
    // The first round warms caches and branch predictors.
    for round in 0..=ROUNDS {
        for (index, case) in cases.iter_mut().enumerate() {
            let reference = calibration.run();
            let each = case.run(PACKETS) as f64 / PACKETS as f64;
            if round > 0 {
                cycles[index].push(each);
                ratios[index].push(each / reference);
            }
        }
    }
    println!("\n{title:<46} octets  Gbit/s    Mpps  cycles  x cal");
    for ((case, cycles), ratios) in cases.iter().zip(&mut cycles).zip(&mut ratios) {
        let each = median(cycles);
        let packets_per_second = hz as f64 / each;
        println!(
            "{:<46} {:>6} {:>7.2} {:>7.2} {:>7.0} {:>6.2}",
            case.name(),
            case.size(),
            packets_per_second * case.size() as f64 * 8.0 / 1e9,
            packets_per_second / 1e6,
            each,
            median(ratios),
        );
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
