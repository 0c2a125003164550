//! A peer that arbitrary octets drive: what the engine delivers, acknowledges and sends is right
//! whatever the peer does, and in the end nothing is left.

use std::collections::BTreeMap;

use culvert_sim::random::Random;
use culvert_sim::wild::run;
use culvert_tcpstack::CloseReason;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_engine_keeps_its_head(input in prop::collection::vec(any::<u8>(), 0..1200)) {
        if let Err(error) = run(&input) {
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
    }
}

/// The runs reach what they are there to reach: the code of acknowledgments, windows, SACK blocks,
/// reassembly and loss recovery, and every way of being dropped that a peer has.
#[test]
fn every_part_of_the_engine_is_reached() {
    let mut random = Random::new(4);
    let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut sack, mut duplicate, mut repeated, mut shut, mut jump) = (0, 0, 0, 0, 0);
    let (mut delivered, mut received, mut reasons) = (0, 0, Vec::new());
    for _ in 0..400 {
        let input: Vec<u8> = (0..1000).map(|_| random.draw() as u8).collect();
        let reached = run(&input).unwrap_or_else(|error| panic!("{error:#}\n{input:?}"));
        for (name, count) in reached.outcomes {
            *outcomes.entry(name).or_default() += count;
        }
        sack += reached.told.sack;
        duplicate += reached.told.duplicate;
        repeated += reached.told.repeated;
        shut += reached.told.shut;
        jump += reached.told.jump;
        delivered += reached.delivered;
        received += reached.received;
        reasons.push(reached.reason);
    }
    for name in [
        "malformed",
        "fragment",
        "not-tcp",
        "port-closed",
        "no-connection",
        "out-of-window",
        "old-timestamp",
        "bad-acknowledgment",
        "no-memory",
        "challenged",
    ] {
        assert!(outcomes.contains_key(name), "nothing was dropped as {name}: {outcomes:?}");
    }
    let all: u64 = outcomes.values().sum();
    assert!(outcomes["accepted"] * 3 > all, "{} of {all} accepted", outcomes["accepted"]);
    assert!(
        sack > 1000 && duplicate > 100,
        "{sack} answers with blocks, {duplicate} of duplicates"
    );
    assert!(repeated > 1000, "{repeated} segments sent again");
    assert!(shut > 100 && jump > 10, "{shut} closed windows, {jump} holes filled");
    assert!(delivered > 1_000_000 && received > 1_000_000, "{delivered} and {received} octets");
    for reason in [CloseReason::PeerClosed, CloseReason::PeerReset, CloseReason::LocalClosed] {
        assert!(reasons.contains(&Some(reason)), "no run ended by {reason:?}");
    }
}
