//! Many seeds, one after the other: whatever the link does, data arrives intact or the connection
//! ends with a reason, nothing grows beyond its limits, and in the end nothing is left. Where
//! nothing is very bad every connection ends in order, with smoltcp's sockets too.

use culvert_sim::link::LinkConfig;
use culvert_sim::scenario::{Ends, Scenario};
use culvert_tcpstack::CloseReason;

/// How many, unless `CULVERT_SIM_SEEDS` says otherwise.
const SEEDS: u64 = 600;

/// What the runs must have met, each many times.
type Hardship = (&'static str, fn(&Scenario) -> bool);

const HARDSHIPS: [Hardship; 13] = [
    ("bursts of loss", |run| run.links.iter().any(|link| link.bursts.is_some())),
    ("reordering", |run| any(run, |link| link.reorder)),
    ("duplication", |run| any(run, |link| link.duplicate)),
    ("corruption", |run| any(run, |link| link.corrupt)),
    ("ACK loss", |run| any(run, |link| link.ack_loss)),
    ("ACK thinning", |run| any(run, |link| link.ack_thinning - 1)),
    ("aggregation", |run| run.links.iter().any(|link| !link.aggregation.is_zero())),
    ("a short MTU", |run| run.links.iter().any(|link| link.mtu < 1500)),
    ("NAT rebinding", |run| run.rebindings.is_some_and(|count| count > 0)),
    ("IPv4", |run| !run.v6),
    ("IPv6", |run| run.v6),
    ("smoltcp and no excuse", |run| run.ends == Ends::EngineToSmol && run.is_mild()),
    ("smoltcp first and no excuse", |run| run.ends == Ends::SmolToEngine && run.is_mild()),
];

fn any(run: &Scenario, of: fn(&LinkConfig) -> u32) -> bool {
    run.links.iter().any(|link| of(link) > 0)
}

#[test]
fn every_seed_ends_well() {
    let count = std::env::var("CULVERT_SIM_SEEDS").ok().and_then(|count| count.parse().ok());
    let (mut steps, mut octets, mut failed, mut reasons) = (0, 0, Vec::new(), Vec::new());
    let mut met = [0; HARDSHIPS.len()];
    for seed in 1..=count.unwrap_or(SEEDS) {
        let scenario = Scenario::new(seed);
        match scenario.run() {
            Ok(report) => {
                steps += report.steps;
                octets += report.octets;
                for (met, (_, is)) in met.iter_mut().zip(HARDSHIPS) {
                    *met += u32::from(report.octets > 0 && is(&scenario));
                }
                reasons.extend(report.reasons.concat());
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    println!("{steps} steps, {octets} octets");
    assert!(steps > 2_000_000 && octets > 100_000_000, "{steps} steps, {octets} octets");
    // The runs see what they are there to see.
    for reason in [CloseReason::PeerClosed, CloseReason::LocalClosed, CloseReason::PeerReset] {
        assert!(reasons.contains(&reason), "no connection ended by {reason:?}");
    }
    for (met, (name, _)) in met.into_iter().zip(HARDSHIPS) {
        assert!(met >= 10, "{met} runs with {name}");
    }
}

#[test]
fn a_seed_repeats_its_run() {
    let run = || Scenario::new(11).run().unwrap();
    let (one, other) = (run(), run());
    assert_eq!((one.steps, one.octets, one.elapsed), (other.steps, other.octets, other.elapsed));
}
