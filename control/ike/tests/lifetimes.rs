//! What lifetimes and volumes do to SAs: they are rekeyed in time, and end where that fails (RFC 7296,
//! 2.8).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{ConnectionConfig, DownReason, Event, Lifetime, Volume};
use pair::{Pair, Side, config};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ike_rekeys(side: &Side) -> usize {
    side.events.iter().filter(|e| matches!(e, Event::IkeRekeyed { .. })).count()
}

fn short_lived() -> ConnectionConfig {
    let mut a = config();
    a.lifetime = Lifetime::tenths(seconds(4000));
    let mut net = (*a.children[0]).clone();
    net.lifetime = Lifetime::tenths(seconds(1000));
    a.children = vec![Arc::new(net)];
    a
}

// RFC 7296, 2.8: make before break, for as long as the tunnel lives.
#[test]
fn sas_are_rekeyed_before_their_time_is_over_with_jitter() {
    let mut pair = Pair::up(short_lived());
    pair.traffic = true;
    let mut rekeyed = Vec::new();
    let mut last = pair.a.child().spi_in;
    for second in 0..40_000 {
        pair.run(seconds(1));
        // While both pairs stand there is no single one.
        if pair.a.host.installed.len() == 1 && pair.a.child().spi_in != last {
            last = pair.a.child().spi_in;
            rekeyed.push(second);
        }
    }
    pair.assert_child();
    assert_eq!((pair.a.sa().spi_i, pair.a.sa().spi_r), (pair.b.sa().spi_i, pair.b.sa().spi_r));
    let waits: Vec<u64> = rekeyed.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(waits.iter().all(|wait| (895..=1001).contains(wait)), "{waits:?}");
    assert!(waits.windows(2).any(|w| w[0] != w[1]), "jitter");
    assert!((9..=12).contains(&ike_rekeys(&pair.a)), "{}", ike_rekeys(&pair.a));
    assert!(!pair.a.events.iter().any(|e| matches!(e, Event::IkeDown { .. })));
    assert_eq!(pair.a.events.iter().filter(|e| matches!(e, Event::IkeUp { .. })).count(), 1);
}

// RFC 7296, 2.8: "an implementation MUST close the IKE SA and any associated Child SAs".
#[test]
fn what_cannot_be_rekeyed_ends_with_its_ike_sa_when_its_time_is_over() {
    let mut a = short_lived();
    a.dpd_delay = None;
    let mut pair = Pair::up(a);
    // Both data planes refuse every new pair.
    (pair.a.host.broken, pair.b.host.broken) = (true, true);
    pair.run(seconds(1090));
    let failed = |e: &&Event| matches!(e, Event::RekeyFailed { child: Some(_), .. });
    assert!(pair.a.events.iter().chain(&pair.b.events).filter(failed).count() > 3, "tried again");
    assert_eq!(pair.a.host.installed.len(), 1);
    pair.run(seconds(30));
    let expired = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::Expired, .. });
    assert!(pair.a.events.iter().chain(&pair.b.events).any(expired));
    pair.a.assert_empty();
    pair.b.assert_empty();
}

// The same where it has carried too much.
#[test]
fn a_pair_whose_rekeys_fail_ends_with_its_ike_sa_when_it_has_carried_all_that_it_may() {
    let mut a = config();
    let mut net = (*a.children[0]).clone();
    net.octets = Volume { rekey: Some(1000), life: Some(2000) };
    a.children = vec![Arc::new(net)];
    let mut pair = Pair::up(a);
    pair.b.host.broken = true;
    let (ike, id) = (pair.a.sa().id, pair.a.child().id);
    for used in [1000, 1500, 2000] {
        pair.a.endpoint.child_used(pair.now, ike, id, (used, 0), &mut pair.a.host);
        pair.run(seconds(1));
    }
    let expired = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::Expired, .. });
    assert!(pair.a.events.iter().any(expired));
    pair.run(seconds(10));
    pair.a.assert_empty();
    pair.b.assert_empty();
}

#[test]
fn a_pair_is_rekeyed_and_ended_by_what_it_has_carried() {
    for (used, down) in [
        ((999_999, 0), None),
        ((1_000_000, 0), Some(DownReason::Rekeyed)),
        ((0, 500), Some(DownReason::Rekeyed)),
        ((2_000_000, 0), Some(DownReason::Expired)),
    ] {
        let mut a = config();
        let mut net = (*a.children[0]).clone();
        net.octets = Volume { rekey: Some(1_111_111), life: Some(2_000_000) };
        net.packets = Volume { rekey: Some(500), life: None };
        a.children = vec![Arc::new(net)];
        let mut pair = Pair::up(a);
        // Jitter makes it earlier by up to a tenth.
        let used = if used.0 == 1_000_000 { (1_111_111, 0) } else { used };
        let (ike, id) = (pair.a.sa().id, pair.a.child().id);
        for _ in 0..3 {
            pair.a.endpoint.child_used(pair.now, ike, id, used, &mut pair.a.host);
        }
        pair.run(seconds(1));
        let reason = pair.a.events.iter().find_map(|e| match e {
            Event::ChildDown { child, reason, .. } if *child == id => Some(*reason),
            _ => None,
        });
        assert_eq!(reason, down, "{used:?}");
        assert_eq!(pair.a.host.installed.len(), usize::from(down != Some(DownReason::Expired)));
    }
}
