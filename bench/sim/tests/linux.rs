//! The engine against Linux's TCP over a real DPDK port: both directions, both families, every
//! congestion control at either end, through a shim that loses, delays and reorders, with conntrack
//! between that must not call a single packet invalid. Needs root, and a kernel that has BBR.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_sim::link::LinkConfig;
use culvert_sim::linux::{Family, Lab, require_congestion_control, start_dpdk};
use culvert_tcpstack::CongestionControl;

/// For each exchange, both ways.
const LIMIT: Duration = Duration::from_secs(12);
const OCTETS: u64 = 3_000_000;

fn bad(delay_ms: u64) -> LinkConfig {
    LinkConfig {
        loss: 5_000,
        reorder: 10_000,
        reorder_by: Duration::from_millis(3),
        duplicate: 1_000,
        ..LinkConfig::clean(100, Duration::from_millis(2 * delay_ms))
    }
}

#[test]
fn octets_arrive_both_ways_and_conntrack_has_no_objection() -> Result<()> {
    let (eal, pool) = start_dpdk()?;
    let mut lab = Lab::new(eal, pool)?;
    let controls = ["cubic", "bbr"];
    controls.iter().try_for_each(|name| require_congestion_control(name))?;
    let clean = LinkConfig::clean(100, Duration::from_millis(10));
    for (family, link) in [(Family::V4, clean), (Family::V4, bad(5)), (Family::V6, bad(5))] {
        for linux in controls {
            for engine in [CongestionControl::Cubic, CongestionControl::Bbr] {
                lab.exchange(family, [link; 2], (engine, linux), OCTETS, LIMIT)
                    .with_context(|| format!("{family:?}, {engine:?}, Linux with {linux}"))?;
                let lost: u64 = lab.shim.stats().iter().map(|link| link.lost).sum();
                ensure!((lost > 0) == (link.loss > 0), "the shim lost {lost} packets");
            }
        }
    }
    ensure!(lab.tracked()? > 0, "conntrack does not track");
    ensure!(lab.invalid()? == 0, "conntrack calls {} packets invalid", lab.invalid()?);
    Ok(())
}
