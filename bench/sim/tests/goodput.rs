//! Lower bounds of goodput, in virtual time: the same on every machine, however busy it is.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, outside of their functions"
)]

use std::time::Duration;

use culvert_sim::bulk::{Bulk, Path, fairness};
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

#[test]
fn a_clean_link_is_filled() {
    for control in [Cubic, Bbr] {
        let rate = goodput(control, 100, 10, 0.0);
        assert!(rate >= 90.0, "{control:?}: {rate:.1} of 100 Mbit/s at 10 ms");
        let rate = goodput(control, 100, 50, 0.0);
        assert!(rate >= 88.0, "{control:?}: {rate:.1} of 100 Mbit/s at 50 ms");
    }
}

/// Two CUBIC connections. BBR's shares are in the table of `culvert-sim goodput`.
#[test]
fn two_share() {
    let path = Path { rate: 100, round_trip_ms: 20, loss_percent: 0.0 };
    let bulk = Bulk {
        controls: vec![Cubic; 2],
        link: path.link(),
        duration: Duration::from_secs(30),
        warm_up: Duration::from_secs(15),
        seed: 3,
    };
    let rates = bulk.run().unwrap();
    assert!(rates.iter().sum::<f64>() > 85.0, "{rates:?}");
    assert!(fairness(&rates) > 0.8, "{rates:?}");
}
