//! Rekeys of CHILD and IKE SAs by request, and what happens when both sides want something at once (RFC
//! 7296, 2.8 and 2.25).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildConfig, ConnectionConfig, Event, IkeState, TransportChoice, message::NotifyType,
};
use pair::{Pair, Rng, Side, child, config, mirror};

const CREATE: u8 = 36;
const INFORMATIONAL: u8 = 37;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn up() -> Pair {
    let mut pair = Pair::up(config());
    pair.traffic = true;
    pair
}

fn rekey_child(pair: &mut Pair, by_a: bool) {
    let now = pair.now;
    let side = if by_a { &mut pair.a } else { &mut pair.b };
    let id = side.child().id;
    side.endpoint.rekey_child(now, id, &mut side.host).unwrap();
}

fn rekey_ike(pair: &mut Pair, by_a: bool) {
    let now = pair.now;
    let side = if by_a { &mut pair.a } else { &mut pair.b };
    let id = side.sa().id;
    side.endpoint.rekey_ike(now, id, &mut side.host).unwrap();
}

fn ike_rekeys(side: &Side) -> usize {
    side.events.iter().filter(|e| matches!(e, Event::IkeRekeyed { .. })).count()
}

/// Both ends have the same IKE SA with one pair, and nothing is left of others.
fn assert_agreed(pair: &Pair) {
    pair.assert_child();
    let (a, b) = (pair.a.sa(), pair.b.sa());
    assert_eq!((a.spi_i, a.spi_r), (b.spi_i, b.spi_r));
    assert_eq!((a.state, b.state), (IkeState::Established, IkeState::Established));
    for side in [&pair.a, &pair.b] {
        assert!(side.host.reserved.is_empty());
        assert!(side.host.outbound.contains(&side.child().id));
    }
}

// RFC 7296, 1.3.2, 2.8 and 2.18.
#[test]
fn either_side_rekeys_the_ike_sa_and_deletes_the_old_one() {
    for by_a in [true, false] {
        let mut pair = up();
        let before = pair.a.sa();
        rekey_ike(&mut pair, by_a);
        pair.run(seconds(1));
        let side = if by_a { &pair.a } else { &pair.b };
        let requests = side.requests();
        assert_eq!(requests[requests.len() - 2..], [CREATE, INFORMATIONAL]);
        let deleted = &side.sent.last().unwrap().2;
        assert_eq!(deleted[..8], before.spi_i.to_be_bytes(), "on the old IKE SA");
        assert_agreed(&pair);
        let (a, b) = (pair.a.sa(), pair.b.sa());
        assert_ne!((a.spi_i, a.spi_r), (before.spi_i, before.spi_r));
        assert_eq!(a.id, before.id, "one peer relation");
        assert!(a.initiator && !b.initiator, "who began stays who began");
        assert_eq!((ike_rekeys(&pair.a), ike_rekeys(&pair.b)), (1, 1));
        // The new one carries exchanges of both sides.
        rekey_child(&mut pair, true);
        pair.run(seconds(1));
        rekey_child(&mut pair, false);
        pair.run(seconds(1));
        assert_agreed(&pair);
    }
}

// RFC 9329, 1.2: whoever rekeys, the TCP Originator stays the same.
#[test]
fn the_originator_opens_connections_whoever_rekeyed() {
    let mut a = config();
    a.transport = TransportChoice::Tcp;
    let mut pair = Pair::up(a);
    for by_a in [false, true, false] {
        rekey_ike(&mut pair, by_a);
        pair.run(seconds(1));
        let connects = pair.a.connects.len();
        pair.cut();
        pair.run(seconds(1));
        assert_eq!((pair.a.connects.len(), pair.b.connects.len()), (connects + 1, 0));
        assert_eq!(pair.a.sa().path.conn, pair.b.sa().path.conn);
        assert_agreed(&pair);
    }
    assert!(pair.a.closes.is_empty() && pair.b.closes.is_empty());
}

// RFC 9329, 6.2: the Delete of the old IKE SA is sent again on a new connection only.
#[test]
fn over_tcp_the_delete_of_an_old_ike_sa_survives_a_lost_connection() {
    let mut a = config();
    a.transport = TransportChoice::Tcp;
    let mut pair = Pair::up(a);
    rekey_ike(&mut pair, true);
    pair.run(Duration::from_millis(22));
    let delete = pair.a.sent.last().unwrap().2.clone();
    assert_eq!(delete[18], INFORMATIONAL);
    pair.cut();
    pair.run(seconds(1));
    assert_eq!(pair.a.sent.iter().filter(|(_, _, m)| *m == delete).count(), 2);
    assert_agreed(&pair);
}

// RFC 7296, 1.3 and 2.7.
#[test]
fn a_rekey_with_a_wrong_group_is_corrected() {
    let mut a = config();
    a.proposals = vec!["aes128gcm16-prfsha256-x25519-ecp256".parse().unwrap()];
    a.children =
        vec![Arc::new(child(&["10.1.0.0/24"], &["10.2.0.0/24"], "aes128gcm16-ecp384-ecp256"))];
    let mut b = mirror(&a);
    let mut net: ChildConfig = (*b.children[0]).clone();
    net.proposals = vec!["aes128gcm16-ecp256".parse().unwrap()];
    b.children = vec![Arc::new(net)];
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    let old = pair.a.child().spi_in;
    rekey_child(&mut pair, true);
    pair.run(seconds(1));
    assert_ne!(pair.a.child().spi_in, old);
    assert_eq!(pair.a.child().suite.to_string(), "aes128gcm16-ecp256-noesn");
    assert_agreed(&pair);
    let mut b = (*pair.b.host.connections[0]).clone();
    b.proposals = vec!["aes128gcm16-prfsha256-ecp256".parse().unwrap()];
    let mut pair = Pair::new((*pair.a.host.connections[0]).clone(), b);
    pair.initiate();
    pair.run(seconds(1));
    rekey_ike(&mut pair, true);
    pair.run(seconds(1));
    assert_eq!(pair.a.requests().iter().filter(|x| **x == CREATE).count(), 2);
    assert_eq!(ike_rekeys(&pair.a), 1);
    assert_agreed(&pair);
}

// A pair in place of another is one of the same child: B's configuration has changed, and another
// child of it has what A asks for.
#[test]
fn a_rekey_does_not_make_a_pair_of_another_child() {
    let mut pair = Pair::up(config());
    let mut b = (*pair.b.host.connections[0]).clone();
    let mut other = (*b.children[0]).clone();
    other.name = "other".into();
    let net = child(&["10.2.7.0/24"], &["10.1.7.0/24"], "aes128gcm16-esn-noesn");
    b.children = vec![Arc::new(net), Arc::new(other)];
    let b = Arc::new(b);
    pair.b.host.connections = vec![b.clone()];
    pair.b.endpoint.reconfigure(pair.now, &b, &mut pair.b.host);
    let old = pair.a.child().id;
    rekey_child(&mut pair, true);
    pair.run(seconds(1));
    assert_eq!(pair.a.child().id, old, "what stands stands");
    assert_eq!(pair.b.child().name, "net");
    let refused = |e: &Event| {
        matches!(e, Event::RekeyFailed { reason, .. }
            if reason.to_string().contains(&NotifyType::TS_UNACCEPTABLE.to_string()))
    };
    assert!(pair.a.events.iter().any(refused));
}

// RFC 7296, 2.1: whoever has not heard the answer asks again, for up to 165 s here. The old IKE SA
// is there as long to give it.
#[test]
fn the_delete_of_an_old_ike_sa_is_answered_however_late_it_comes() {
    let mut pair = Pair::up(ConnectionConfig { dpd_delay: None, ..config() });
    let before = pair.a.sa();
    rekey_ike(&mut pair, true);
    pair.run(Duration::from_millis(15));
    pair.net.lose = [5, 0];
    pair.run(seconds(160));
    let answer = &pair.b.sent.last().unwrap().2;
    assert_eq!(answer[..8], before.spi_i.to_be_bytes());
    assert_eq!((answer[16], answer[18]), (46, INFORMATIONAL), "sealed with the old keys");
    assert_eq!(pair.a.requests().iter().filter(|x| **x == INFORMATIONAL).count(), 6);
    assert_agreed(&pair);
}

// RFC 7296, 2.8.1: both answer, two pairs are made, the one with the lowest nonce goes.
#[test]
fn simultaneous_rekeys_of_a_child_sa_leave_the_pair_of_the_higher_nonces() {
    let mut winners = [0, 0];
    for seed in 0..20 {
        let mut pair = up();
        pair.a.host.reseed(seed);
        pair.b.host.reseed(seed + 100);
        let old = (pair.a.child().spi_in, pair.b.child().spi_in);
        rekey_child(&mut pair, true);
        rekey_child(&mut pair, false);
        pair.run(seconds(1));
        assert_agreed(&pair);
        assert_ne!((pair.a.child().spi_in, pair.b.child().spi_in), old);
        // The winner deletes the old pair, the other its own new one: a Delete from each.
        for side in [&pair.a, &pair.b] {
            let requests = side.requests();
            assert_eq!(requests[requests.len() - 2..], [CREATE, INFORMATIONAL]);
        }
        // Whose pair is left: its initiator sent on it at once.
        winners[usize::from(pair.a.child().outbound)] += 1;
        pair.run(seconds(300));
        assert_agreed(&pair);
    }
    assert!(winners[0] > 0 && winners[1] > 0, "the nonces decide: {winners:?}");
}

// RFC 7296, 2.8.1: A's request is lost at first; B has rekeyed and deleted the pair when it comes.
#[test]
fn a_rekey_that_arrives_when_the_pair_is_gone_is_dropped() {
    for (lose, by) in [([1, 0], "A"), ([0, 1], "B")] {
        let mut pair = up();
        pair.net.lose = lose;
        rekey_child(&mut pair, true);
        rekey_child(&mut pair, false);
        pair.run(seconds(30));
        assert_agreed(&pair);
        let ups = pair.a.events.iter().filter(|e| matches!(e, Event::ChildUp { .. })).count();
        assert_eq!(ups, 2, "one rekey took place; {by} lost its first request");
    }
}

// RFC 7296, 2.25.1: B closes a pair, and A, which never hears of it, rekeys that.
#[test]
fn a_rekey_waits_while_the_peer_deletes_the_pair() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    let id = pair.b.child().id;
    pair.b.endpoint.terminate_child(now, id, &mut pair.b.host).unwrap();
    pair.net.lose = [0, 1];
    pair.run(Duration::from_millis(5));
    rekey_child(&mut pair, true);
    pair.run(Duration::from_millis(50));
    assert!(
        pair.a.events.iter().any(|e| matches!(e, Event::RekeyFailed { .. })),
        "TEMPORARY_FAILURE while B waits for the answer to its Delete"
    );
    pair.run(seconds(30));
    assert!(pair.a.host.installed.is_empty());
}

// What waits for a peer that cannot be reached waits once, and a Delete is not lost behind it.
#[test]
fn what_is_asked_for_again_and_again_waits_once_and_a_delete_is_never_dropped() {
    let mut a = config();
    a.transport = TransportChoice::Tcp;
    let mut pair = Pair::up(a);
    pair.net.tcp_refused = true;
    pair.cut();
    for _ in 0..200 {
        rekey_child(&mut pair, true);
        rekey_ike(&mut pair, true);
    }
    let (now, ike, id) = (pair.now, pair.a.sa().id, pair.a.child().id);
    for _ in 0..200 {
        pair.a.endpoint.terminate_child(now, id, &mut pair.a.host).unwrap();
    }
    for _ in 0..200 {
        pair.a.endpoint.initiate_child(now, ike, "net", &mut pair.a.host).unwrap();
    }
    pair.net.tcp_refused = false;
    let before = pair.a.requests().len();
    pair.run(seconds(20));
    assert!(pair.a.host.installed.values().all(|sa| sa.id != id), "it is deleted");
    let asked = pair.a.requests().len() - before;
    assert!(asked < 300, "{asked} requests");
    let failed = pair.a.events.iter().filter(|e| matches!(e, Event::ChildFailed { .. })).count();
    assert!(failed > 60, "a wish that finds no room is told of: {failed}");
    assert!(pair.a.host.reserved.is_empty());
}

// RFC 7296, 2.8.2: both rekey the IKE SA at once.
#[test]
fn simultaneous_rekeys_of_the_ike_sa_leave_one_which_inherits_the_child_sas() {
    let mut initiators = [0, 0];
    for seed in 0..20 {
        let mut pair = up();
        pair.a.host.reseed(seed);
        pair.b.host.reseed(seed + 100);
        let before = pair.a.sa();
        rekey_ike(&mut pair, true);
        rekey_ike(&mut pair, false);
        pair.run(seconds(1));
        assert_agreed(&pair);
        assert_ne!(pair.a.sa().spi_i, before.spi_i);
        assert_eq!((ike_rekeys(&pair.a), ike_rekeys(&pair.b)), (1, 1));
        // Each deletes one: the old one, and the one too many.
        for side in [&pair.a, &pair.b] {
            let requests = side.requests();
            assert_eq!(requests[requests.len() - 2..], [CREATE, INFORMATIONAL]);
        }
        let sent_by_a = pair.a.sent.iter().find(|(_, _, m)| m[18] == CREATE).unwrap();
        assert_eq!(sent_by_a.2[..8], before.spi_i.to_be_bytes());
        rekey_child(&mut pair, seed % 2 == 0);
        pair.run(seconds(100));
        assert_agreed(&pair);
        let by_a = pair.a.sent.last().unwrap().2[19] & 0x08 != 0;
        initiators[usize::from(by_a)] += 1;
    }
    assert!(initiators[0] > 0 && initiators[1] > 0, "the nonces decide: {initiators:?}");
}

// RFC 7296, 2.8.2: only one side notices that both rekey; no IKE SA too many is made.
#[test]
fn a_rekey_of_the_ike_sa_that_comes_late_is_forgotten() {
    for lose in [[1, 0], [0, 1], [2, 0], [0, 2]] {
        let mut pair = up();
        pair.net.lose = lose;
        rekey_ike(&mut pair, true);
        rekey_ike(&mut pair, false);
        pair.run(seconds(60));
        assert_agreed(&pair);
        assert_eq!((ike_rekeys(&pair.a), ike_rekeys(&pair.b)), (1, 1), "{lose:?}");
        rekey_child(&mut pair, true);
        pair.run(seconds(30));
        assert_agreed(&pair);
    }
}

// RFC 7296, 2.25.2: the IKE SA is rekeyed by one side while the other makes, rekeys or deletes a
// CHILD SA. Who asked for what cannot be had now asks again.
#[test]
fn a_rekey_of_the_ike_sa_and_a_change_of_a_child_sa_give_way_to_each_other() {
    for what in ["make", "rekey", "delete"] {
        for by_a in [true, false] {
            let mut a = config();
            let mut more = child(&["10.1.9.0/24"], &["10.2.9.0/24"], "aes128gcm16");
            more.name = "more".into();
            a.children.push(Arc::new(more));
            let mut pair = Pair::up(a);
            let spi = pair.a.sa().spi_i;
            rekey_ike(&mut pair, by_a);
            let now = pair.now;
            let side = if by_a { &mut pair.b } else { &mut pair.a };
            let (ike, id) = (side.sa().id, side.child().id);
            match what {
                "make" => {
                    side.endpoint.initiate_child(now, ike, "more", &mut side.host).unwrap();
                }
                "rekey" => side.endpoint.rekey_child(now, id, &mut side.host).unwrap(),
                _ => side.endpoint.terminate_child(now, id, &mut side.host).unwrap(),
            }
            pair.run(Duration::from_millis(50));
            let refused = |side: &Side| {
                side.events.iter().any(|e| {
                    matches!(e, Event::RekeyFailed { reason, .. }
                    if reason.to_string().contains(&NotifyType::TEMPORARY_FAILURE.to_string()))
                })
            };
            assert!(refused(if by_a { &pair.a } else { &pair.b }), "{what}");
            pair.run(seconds(60));
            assert_ne!(pair.a.sa().spi_i, spi, "rekeyed in the end");
            assert_eq!(pair.a.sa().spi_i, pair.b.sa().spi_i);
            let count = match what {
                "make" => 2,
                "rekey" => 1,
                _ => 0,
            };
            assert_eq!(pair.a.host.installed.len(), count, "{what}");
            assert_eq!(pair.b.host.installed.len(), count, "{what}");
            if what == "rekey" {
                assert!(pair.a.child().replaces.is_some());
            }
        }
    }
}

// RFC 7296, 2.25.2: B closes the IKE SA that A rekeys; and both close it.
#[test]
fn deleting_the_ike_sa_ends_a_rekey_and_another_delete() {
    for both in [true, false] {
        let mut pair = Pair::up(config());
        let (a, b) = (pair.a.sa().id, pair.b.sa().id);
        if both {
            pair.a.endpoint.terminate(pair.now, a, &mut pair.a.host).unwrap();
        } else {
            rekey_ike(&mut pair, true);
        }
        pair.b.endpoint.terminate(pair.now, b, &mut pair.b.host).unwrap();
        pair.run(seconds(100));
        pair.a.assert_empty();
        pair.b.assert_empty();
    }
}

// A termination that is asked for while a rekey is under way ends what comes of it.
#[test]
fn a_termination_during_a_rekey_ends_the_new_ike_sa() {
    let mut pair = Pair::up(config());
    rekey_ike(&mut pair, true);
    let ike = pair.a.sa().id;
    pair.a.endpoint.terminate(pair.now, ike, &mut pair.a.host).unwrap();
    pair.run(seconds(100));
    pair.a.assert_empty();
    pair.b.assert_empty();
}

/// Both sides rekey everything at random times over a bad network, for hours.
#[test]
fn rekeys_at_random_over_a_bad_network_end_in_agreement() {
    for seed in 0..20 {
        let mut a = config();
        a.transport = TransportChoice::Udp;
        a.retransmission.timeout = seconds(1);
        a.retransmission.tries = 12;
        a.retransmission.base = 1.1;
        let mut pair = Pair::up(a);
        pair.net.rng = Rng(seed);
        (pair.net.loss, pair.net.repeated, pair.net.reordered) = (20, 20, 30);
        let mut rng = Rng(seed + 1000);
        for _ in 0..100 {
            pair.run(Duration::from_millis(rng.next() % 4000));
            let by_a = rng.percent(50);
            if rng.percent(30) {
                rekey_ike(&mut pair, by_a);
                if rng.percent(50) {
                    rekey_ike(&mut pair, !by_a);
                }
            } else {
                for by_a in [by_a, !by_a] {
                    let now = pair.now;
                    let side = if by_a { &mut pair.a } else { &mut pair.b };
                    let Some(id) = side.host.outbound.last().copied() else { continue };
                    let _ = side.endpoint.rekey_child(now, id, &mut side.host);
                }
            }
        }
        (pair.net.loss, pair.net.repeated, pair.net.reordered) = (0, 0, 0);
        pair.run(seconds(200));
        assert_agreed(&pair);
        for side in [&pair.a, &pair.b] {
            assert!(ike_rekeys(side) > 10, "seed {seed}");
            assert!(!side.events.iter().any(|e| matches!(e, Event::IkeDown { .. })), "seed {seed}");
        }
    }
}

/// A asks for pairs with a group that B does not want at first.
fn with_a_wrong_group() -> Pair {
    let mut a = config();
    a.children =
        vec![Arc::new(child(&["10.1.0.0/24"], &["10.2.0.0/24"], "aes128gcm16-ecp384-ecp256"))];
    let mut b = mirror(&a);
    let mut net: ChildConfig = (*b.children[0]).clone();
    net.proposals = vec!["aes128gcm16-ecp256".parse().unwrap()];
    b.children = vec![Arc::new(net)];
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    pair
}

// RFC 7296, 1.3 and 2.25.1: the corrected request would not name the pair any more, and bring it back.
#[test]
fn a_termination_during_a_rekey_with_a_wrong_group_is_the_end_of_the_pair() {
    let mut pair = with_a_wrong_group();
    rekey_child(&mut pair, true);
    pair.run(Duration::from_millis(5));
    let (now, id) = (pair.now, pair.a.child().id);
    pair.a.endpoint.terminate_child(now, id, &mut pair.a.host).unwrap();
    pair.run(seconds(100));
    assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());
    assert_eq!(pair.a.sa().state, IkeState::Established);
}

// The same where the peer has replaced the pair, and its Delete comes before its answer.
#[test]
fn a_rekey_with_a_wrong_group_beside_another_leaves_one_pair() {
    for seed in 0..20 {
        let mut pair = with_a_wrong_group();
        pair.net.rng = Rng(seed);
        pair.net.reordered = 50;
        rekey_child(&mut pair, true);
        rekey_child(&mut pair, false);
        pair.run(seconds(100));
        assert_agreed(&pair);
    }
}

// The peer goes on with what it has agreed to: a configuration that is loaded meanwhile holds for the
// next rekey.
#[test]
fn the_answer_to_a_rekey_is_judged_by_what_was_offered() {
    let mut pair = up();
    rekey_ike(&mut pair, true);
    pair.run(Duration::from_millis(5));
    let mut a = (*pair.a.host.connections[0]).clone();
    a.proposals = vec!["aes256gcm16-prfsha512-ecp384".parse().unwrap()];
    let (now, a) = (pair.now, Arc::new(a));
    pair.a.host.connections = vec![a.clone()];
    pair.a.endpoint.reconfigure(now, &a, &mut pair.a.host);
    pair.run(seconds(10));
    assert_eq!(ike_rekeys(&pair.a), 1);
    assert_agreed(&pair);
}
