//! Many seeds, one after the other: whatever the link does, data arrives intact or the connection
//! ends with a reason, nothing grows beyond its limits, and in the end nothing is left.

use culvert_sim::scenario::{Ends, Scenario};
use culvert_tcpstack::CloseReason;

/// How many, unless `CULVERT_SIM_SEEDS` says otherwise.
const SEEDS: u64 = 250;

#[test]
fn every_seed_ends_well() {
    let count = std::env::var("CULVERT_SIM_SEEDS").ok().and_then(|count| count.parse().ok());
    let (mut steps, mut octets, mut failed, mut reasons) = (0, 0, Vec::new(), Vec::new());
    let mut foreign = 0;
    for seed in 1..=count.unwrap_or(SEEDS) {
        let scenario = Scenario::new(seed);
        match scenario.run() {
            Ok(report) => {
                steps += report.steps;
                octets += report.octets;
                foreign += u32::from(scenario.ends != Ends::Engines && report.octets > 0);
                reasons.extend(report.reasons.concat());
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    println!("{steps} steps, {octets} octets");
    assert!(steps > 1_000_000 && octets > 50_000_000, "{steps} steps, {octets} octets");
    // The runs see what they are there to see.
    for reason in [CloseReason::PeerClosed, CloseReason::LocalClosed, CloseReason::PeerReset] {
        assert!(reasons.contains(&reason), "no connection ended by {reason:?}");
    }
    assert!(foreign > 20, "{foreign} runs with smoltcp's sockets");
}

#[test]
fn a_seed_repeats_its_run() {
    let run = || Scenario::new(11).run().unwrap();
    let (one, other) = (run(), run());
    assert_eq!((one.steps, one.octets, one.elapsed), (other.steps, other.octets, other.elapsed));
}
