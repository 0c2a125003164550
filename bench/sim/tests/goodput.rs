//! Lower bounds of goodput, in virtual time: the same on every machine, however busy it is.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, outside of their functions"
)]

use std::time::Duration;

use culvert_sim::bulk::{Bulk, Path, fairness};
use culvert_sim::link::LinkConfig;
use culvert_tcpstack::CongestionControl::{self, Bbr, Cubic};

fn goodput(control: CongestionControl, rate: u64, round_trip_ms: u64, loss_percent: f64) -> f64 {
    let path = Path { rate, round_trip_ms, loss_percent };
    Bulk::single(control, path, Duration::from_secs(10)).run().unwrap()[0]
}

#[test]
fn random_loss_does_not_throttle_bbr() {
    let rate = goodput(Bbr, 100, 50, 1.0);
    assert!(rate >= 85.0, "{rate:.1} of 100 Mbit/s at 1 % and 50 ms");
    let rate = goodput(Bbr, 100, 50, 5.0);
    assert!(rate >= 75.0, "{rate:.1} of 100 Mbit/s at 5 % and 50 ms");
}

/// The first losses say little of a path; who takes them for congestion must not be held down for
/// long by that.
#[test]
fn none_is_stuck_where_much_is_lost() {
    let path = Path { rate: 100, round_trip_ms: 100, loss_percent: 5.0 };
    for seed in 1..=20 {
        let bulk = Bulk { seed, ..Bulk::single(Bbr, path, Duration::from_secs(8)) };
        let rate = bulk.run().unwrap()[0];
        assert!(rate >= 50.0, "{rate:.1} of 100 Mbit/s at 5 % and 100 ms, seed {seed}");
    }
}

/// Bad Wi-Fi loses, and round trips vary because frames wait to be sent together.
#[test]
fn random_loss_on_wifi_does_not_throttle_bbr() {
    for (round_trip_ms, aggregation_ms) in [(10, 2), (30, 4), (50, 4)] {
        for (loss_percent, least) in [(1.0, 65.0), (3.0, 40.0)] {
            let path = Path { rate: 100, round_trip_ms, loss_percent };
            let aggregation = Duration::from_millis(aggregation_ms);
            let mut bulk = Bulk::single(Bbr, path, Duration::from_secs(10));
            bulk.link = LinkConfig { aggregation, ..bulk.link };
            let rate = bulk.run().unwrap()[0];
            assert!(rate >= least, "{rate:.1} of 100 Mbit/s on {path:?}, {aggregation:?}");
        }
    }
}

/// A batch that the receiver takes at once brings more holes than one acknowledgment can tell of.
#[test]
fn what_has_arrived_is_not_sent_again() {
    for (aggregation_ms, loss_percent) in [(0, 5.0), (4, 1.0), (4, 5.0), (10, 5.0)] {
        let path = Path { rate: 200, round_trip_ms: 50, loss_percent };
        let aggregation = Duration::from_millis(aggregation_ms);
        let mut bulk = Bulk::single(Bbr, path, Duration::from_secs(5));
        bulk.link = LinkConfig { aggregation, ..bulk.link };
        let needless = bulk.needless().unwrap();
        assert!(
            needless < 0.0005,
            "{needless:.4} of what comes over {path:?}, {aggregation:?}, had come before"
        );
    }
}

#[test]
fn a_clean_link_is_filled() {
    for control in [Cubic, Bbr] {
        let rate = goodput(control, 100, 10, 0.0);
        assert!(rate >= 90.0, "{control:?}: {rate:.1} of 100 Mbit/s at 10 ms");
        let rate = goodput(control, 100, 50, 0.0);
        assert!(rate >= 88.0, "{control:?}: {rate:.1} of 100 Mbit/s at 50 ms");
    }
}

/// Rates over the second half of `seconds` on a link of 100 Mbit/s, 50 ms and a queue of one round
/// trip, for each of several times of starting.
fn shares(controls: &[CongestionControl], seconds: u64) -> Vec<Vec<f64>> {
    let link = Path { rate: 100, round_trip_ms: 50, loss_percent: 0.0 }.link();
    let run = |seed| {
        let duration = Duration::from_secs(seconds);
        Bulk { controls: controls.to_vec(), link, duration, warm_up: duration / 2, seed }.run()
    };
    (1..=2).map(|seed| run(seed).unwrap()).collect()
}

fn mean_fairness(runs: &[Vec<f64>]) -> f64 {
    runs.iter().map(|rates| fairness(rates)).sum::<f64>() / runs.len() as f64
}

#[test]
fn two_share() {
    for control in [Cubic, Bbr] {
        let runs = shares(&[control; 2], 40);
        assert!(runs.iter().all(|rates| rates.iter().sum::<f64>() > 88.0), "{runs:.1?}");
        assert!(mean_fairness(&runs) > 0.85, "{control:?}: {runs:.1?}");
    }
}

#[test]
fn sixteen_share_and_none_starves() {
    for control in [Cubic, Bbr] {
        let runs = shares(&[control; 16], 40);
        assert!(mean_fairness(&runs) > 0.85, "{control:?}: {runs:.1?}");
        let least = runs.iter().flatten().copied().fold(f64::MAX, f64::min);
        assert!(least > 2.0, "{control:?}: a sixteenth is 6, the least {least:.1} Mbit/s");
    }
}

/// Each of both controls keeps at least a fifth of the link beside the other.
#[test]
fn bbr_and_cubic_leave_each_other_room() {
    for each in [1, 8] {
        let mut controls = vec![Bbr; each];
        controls.resize(2 * each, Cubic);
        for rates in shares(&controls, 30) {
            let (bbr, cubic) = rates.split_at(each);
            for part in [bbr, cubic] {
                assert!(part.iter().sum::<f64>() > 20.0, "{each} of each: {rates:.1?}");
            }
        }
    }
}
