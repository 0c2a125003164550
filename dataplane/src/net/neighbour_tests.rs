//! Tests of the neighbour cache.

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const START: Nanos = 1000 * SECOND;

fn hop(last: u16) -> NextHop {
    let [high, low] = last.to_be_bytes();
    NextHop { neighbour: Ipv4Addr::new(10, 1, high, low).into(), port: 1 }
}

fn cache(capacity: usize, gateways: &[NextHop]) -> NeighbourCache {
    NeighbourCache::new(capacity, gateways.iter().copied(), [7; 16]).unwrap()
}

fn answer(hop: NextHop, mac: MacAddr) -> Learnt {
    let (mac, address) = (Some(mac), hop.neighbour);
    Learnt { address, mac, solicited: true, overrides: true, create: false }
}

fn question(hop: NextHop, mac: MacAddr) -> Learnt {
    Learnt { solicited: false, create: true, ..answer(hop, mac) }
}

/// RFC 4861, 7.2.2: three requests a second apart, then the packet's sender is told.
#[test]
fn unknown_neighbour_is_asked_for_three_times() {
    let mut cache = cache(64, &[]);
    for round in 0..3 {
        let now = START + round * SECOND;
        assert_eq!(cache.resolve(now, hop(1)), Resolution::Request);
        assert_eq!(cache.resolve(now, hop(1)), Resolution::Wait);
        assert_eq!(cache.resolve(now + SECOND - 1, hop(1)), Resolution::Wait);
    }
    let failed = START + 3 * SECOND;
    assert_eq!(cache.resolve(failed, hop(1)), Resolution::Unreachable);
    assert_eq!(cache.resolve(failed + FAILED_HOLD - 1, hop(1)), Resolution::Unreachable);
    assert_eq!(cache.resolve(failed + FAILED_HOLD, hop(1)), Resolution::Request);
}

#[test]
fn answer_is_used_until_it_is_old_and_then_probed() {
    let mut cache = cache(64, &[]);
    cache.resolve(START, hop(1));
    cache.learn(START, 1, &answer(hop(1), A));
    assert_eq!(cache.resolve(START + REACHABLE - 1, hop(1)), Resolution::Known(A));
    let old = START + REACHABLE;
    // Traffic goes on during the probes, until three of them stayed unanswered.
    for round in 0..3 {
        assert_eq!(cache.resolve(old + round * SECOND, hop(1)), Resolution::Probe(A));
        assert_eq!(cache.resolve(old + round * SECOND, hop(1)), Resolution::Known(A));
    }
    assert_eq!(cache.resolve(old + 3 * SECOND, hop(1)), Resolution::Request);
    cache.learn(old + 3 * SECOND, 1, &answer(hop(1), B));
    assert_eq!(cache.resolve(old + 4 * SECOND, hop(1)), Resolution::Known(B));
}

#[test]
fn probe_is_confirmed_even_without_an_address() {
    let mut cache = cache(64, &[]);
    cache.learn(START, 1, &question(hop(1), A));
    assert_eq!(cache.resolve(START, hop(1)), Resolution::Probe(A));
    cache.learn(START, 1, &Learnt { mac: None, overrides: false, ..answer(hop(1), A) });
    assert_eq!(cache.resolve(START + 20 * SECOND, hop(1)), Resolution::Known(A));
}

/// RFC 4861, 7.2.5.
#[test]
fn unsolicited_news_is_stale_and_the_override_flag_counts() {
    let mut cache = cache(64, &[]);
    cache.resolve(START, hop(1));
    cache.learn(START, 1, &answer(hop(1), A));
    // Not overriding: doubt, but no change.
    cache.learn(START, 1, &Learnt { overrides: false, ..answer(hop(1), B) });
    assert_eq!(cache.resolve(START, hop(1)), Resolution::Probe(A));
    cache.learn(START, 1, &answer(hop(1), A));
    assert_eq!(cache.resolve(START, hop(1)), Resolution::Known(A));
    // Overriding, and pretending to be an answer that nobody asked for: to be proven first.
    cache.learn(START, 1, &answer(hop(1), B));
    assert_eq!(cache.resolve(START, hop(1)), Resolution::Probe(B));
    // News that only repeats what is known does not count as proof either.
    cache.learn(START + SECOND, 1, &question(hop(1), B));
    assert_eq!(cache.resolve(START + SECOND, hop(1)), Resolution::Probe(B));
}

#[test]
fn only_questions_create_entries() {
    let mut cache = cache(64, &[]);
    cache.learn(START, 1, &answer(hop(1), A));
    assert_eq!(cache.resolve(START, hop(1)), Resolution::Request);
    cache.learn(START, 1, &question(hop(2), A));
    assert_eq!(cache.resolve(START, hop(2)), Resolution::Probe(A));
    // The same address on another port is another neighbour.
    assert_eq!(cache.resolve(START, NextHop { port: 0, ..hop(2) }), Resolution::Request);
}

#[test]
fn gateway_cannot_be_pushed_out() {
    let gateway = hop(254);
    let mut cache = cache(16, &[gateway, gateway]);
    assert_eq!(cache.resolve(START, gateway), Resolution::Request);
    cache.learn(START, 1, &answer(gateway, A));
    for stranger in 1000..20_000 {
        cache.learn(START, 1, &question(hop(stranger), B));
        cache.resolve(START, hop(stranger));
        cache.learn(START, 1, &answer(hop(stranger), B));
    }
    assert_eq!(cache.resolve(START, gateway), Resolution::Known(A));
}

#[test]
fn neighbours_in_use_survive_questions_and_scans() {
    let mut cache = cache(8, &[]);
    for used in 0..7 {
        cache.resolve(START, hop(used));
        cache.learn(START, 1, &answer(hop(used), A));
    }
    for stranger in 1000..2000 {
        cache.learn(START, 1, &question(hop(stranger), B));
        // A scan through the tunnel: addresses that nobody has.
        cache.resolve(START + 1, hop(stranger + 1000));
    }
    for used in 0..7 {
        assert_eq!(cache.resolve(START + 2, hop(used)), Resolution::Known(A), "{used}");
    }
}

#[test]
fn longest_unused_gives_way_when_all_are_reachable() {
    let mut cache = cache(8, &[]);
    for neighbour in 0..8 {
        cache.resolve(START + u64::from(neighbour), hop(neighbour));
        cache.learn(START, 1, &answer(hop(neighbour), A));
    }
    cache.resolve(START + 10, hop(0));
    assert_eq!(cache.resolve(START + 11, hop(100)), Resolution::Request);
    assert_eq!(cache.resolve(START + 12, hop(0)), Resolution::Known(A));
    assert_eq!(cache.resolve(START + 12, hop(1)), Resolution::Request);
}

#[test]
fn gateways_are_limited() {
    let gateways = |count: u16| NeighbourCache::new(8, (0..count).map(hop), [0; 16]).map(drop);
    assert_eq!(gateways(PINNED_MAX as u16), Ok(()));
    assert_eq!(gateways(PINNED_MAX as u16 + 1), Err(TooManyGateways));
}

proptest! {
    /// RETRANS_TIMER: a neighbour that stays silent is asked at most once a second, however many
    /// packets want to go there.
    #[test]
    fn requests_are_paced(
        steps in proptest::collection::vec(0u64..700, 1..300),
        known in any::<bool>(),
    ) {
        let mut cache = cache(8, &[]);
        if known {
            cache.learn(START, 1, &question(hop(1), A));
        }
        let (mut now, mut last) = (START, None);
        for ms in steps {
            now += ms * SECOND / 1000;
            if matches!(cache.resolve(now, hop(1)), Resolution::Request | Resolution::Probe(_)) {
                prop_assert!(last.is_none_or(|last| now - last >= RETRANSMIT));
                last = Some(now);
            }
        }
        prop_assert!(last.is_some());
    }
}
