//! Reauthentication make-before-break (RFC 7296, 2.8.3; RFC 4478).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{ConnectionConfig, DownReason, Event, TransportChoice, Uniqueness};
use pair::{Pair, Side, child, config, mirror};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn two_children() -> ConnectionConfig {
    let mut a = config();
    a.unique = Uniqueness::No;
    let mut more = child(&["10.1.9.0/24"], &["10.2.9.0/24"], "aes128gcm16");
    more.name = "more".into();
    a.children.push(Arc::new(more));
    a
}

fn with_both(a: ConnectionConfig, b: ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    let ike = pair.a.sa().id;
    pair.a.endpoint.initiate_child(pair.now, ike, "more", &mut pair.a.host).unwrap();
    pair.run(seconds(1));
    assert_eq!(pair.a.host.installed.len(), 2);
    pair
}

fn assert_taken_over(pair: &Pair, old: culvert_ike::IkeSaId) {
    let sa = pair.a.sa();
    assert_ne!(sa.id, old);
    let mut names: Vec<_> = sa.children.iter().map(|c| c.name.clone()).collect();
    names.sort();
    assert_eq!(names, ["more", "net"]);
    assert_eq!(pair.b.sa().children.len(), 2);
    let reason = |side: &Side| {
        side.events.iter().find_map(|e| match e {
            Event::IkeDown { reason, .. } => Some(*reason),
            _ => None,
        })
    };
    assert_eq!(reason(&pair.a), Some(DownReason::Reauthenticated));
    assert_eq!(reason(&pair.b), Some(DownReason::DeletedByPeer));
}

#[test]
fn all_child_sas_stand_on_the_new_ike_sa_before_the_old_one_goes() {
    for transport in [TransportChoice::Udp, TransportChoice::Tcp] {
        let mut a = two_children();
        a.transport = transport;
        let mut pair = with_both(a.clone(), mirror(&a));
        let old = pair.a.sa().id;
        pair.a.endpoint.reauthenticate(pair.now, old, &mut pair.a.host).unwrap();
        let mut most = 0;
        for _ in 0..2000 {
            pair.run(Duration::from_millis(5));
            assert!(pair.a.host.installed.len() >= 2 && pair.b.host.installed.len() >= 2);
            most = most.max(pair.a.host.installed.len());
        }
        assert_eq!(most, 4, "make before break");
        assert_taken_over(&pair, old);
    }
}

// RFC 4478: the responder says how long, the initiator authenticates again in time.
#[test]
fn the_initiator_heeds_the_lifetime_that_the_responder_allows() {
    let a = two_children();
    let mut b = mirror(&a);
    b.reauth_time = Some(seconds(1000));
    let mut pair = with_both(a, b);
    let old = pair.a.sa().id;
    pair.run(seconds(890));
    assert_eq!(pair.a.sa().id, old);
    pair.run(seconds(15));
    assert_taken_over(&pair, old);
    let next = pair.a.sa().id;
    pair.run(seconds(1000));
    assert_ne!(pair.a.sa().id, next, "again and again");
}

/// Runs until B has the successor of its IKE SA, which it gives.
fn run_to_successor(pair: &mut Pair) -> culvert_ike::IkeSaId {
    let old = pair.b.sa().id;
    let begun = pair.a.sa().id;
    pair.a.endpoint.reauthenticate(pair.now, begun, &mut pair.a.host).unwrap();
    loop {
        pair.run(Duration::from_millis(1));
        let new = pair.b.endpoint.sas().find(|sa| sa.id != old);
        if let Some(new) = new.filter(|sa| sa.state == culvert_ike::IkeState::Established) {
            return new.id;
        }
    }
}

// The responder has no time for a pair that is to come over (TEMPORARY_FAILURE), because it rekeys
// the new IKE SA: the old one stays until the pair is there.
#[test]
fn a_pair_that_is_put_off_keeps_the_old_ike_sa() {
    let a = two_children();
    let mut pair = with_both(a.clone(), mirror(&a));
    let old = pair.a.sa().id;
    let new = run_to_successor(&mut pair);
    pair.b.endpoint.rekey_ike(pair.now, new, &mut pair.b.host).unwrap();
    let stands = |side: &Side, name| side.host.installed.values().any(|sa| sa.name == name);
    for _ in 0..6000 {
        pair.run(Duration::from_millis(10));
        for side in [&pair.a, &pair.b] {
            assert!(stands(side, "net") && stands(side, "more"), "make before break");
        }
    }
    assert_taken_over(&pair, old);
}

// A pair that fails on the new IKE SA does not cost the one that works, until it has been tried for a
// while.
#[test]
fn a_pair_that_fails_keeps_the_old_ike_sa_for_a_while() {
    for repaired in [true, false] {
        let a = ConnectionConfig { unique: Uniqueness::No, ..config() };
        let mut pair = Pair::up(a);
        let old = pair.a.sa().id;
        pair.b.host.broken = true;
        pair.a.endpoint.reauthenticate(pair.now, old, &mut pair.a.host).unwrap();
        pair.run(seconds(30));
        assert_eq!(pair.a.endpoint.sas().count(), 2);
        assert_eq!((pair.a.host.installed.len(), pair.b.host.installed.len()), (1, 1));
        pair.b.host.broken = !repaired;
        for _ in 0..120 {
            pair.run(seconds(1));
            assert!(!repaired || !pair.a.host.installed.is_empty());
        }
        assert_ne!(pair.a.sa().id, old, "the old one is gone in the end");
        assert_eq!(pair.a.host.installed.len(), usize::from(repaired));
        let failed = |e: &Event| matches!(e, Event::ChildFailed { name: Some(_), .. });
        assert_eq!(pair.a.events.iter().any(failed), !repaired);
    }
}

// RFC 4478, 2: "The original Responder that sends the AUTH_LIFETIME notification SHOULD send a DELETE
// notification soon after the end of the lifetime period". A cannot authenticate anew, since its key
// is another one by now.
#[test]
fn the_responder_ends_an_ike_sa_whose_peer_does_not_authenticate_anew() {
    let a = ConnectionConfig { unique: Uniqueness::No, ..config() };
    let mut b = mirror(&a);
    b.reauth_time = Some(seconds(1000));
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(500));
    pair.a.host.psk[0].1 = culvert_ike::Secret::new(b"another".to_vec());
    // A rekey changes nothing of it.
    let ike = pair.a.sa().id;
    pair.a.endpoint.rekey_ike(pair.now, ike, &mut pair.a.host).unwrap();
    pair.run(seconds(500));
    assert_eq!(pair.b.host.installed.len(), 1);
    pair.run(seconds(70));
    let ended = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::AuthExpired, .. });
    assert!(pair.b.events.iter().any(ended));
    assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());
}

#[test]
fn a_reauthentication_that_fails_leaves_the_old_ike_sa_and_is_tried_again() {
    let mut a = two_children();
    a.reauth_time = Some(seconds(500));
    a.transport = TransportChoice::Udp;
    a.retransmission.tries = 2;
    let mut b = mirror(&a);
    b.reauth_time = None;
    let mut pair = with_both(a, b);
    let old = pair.a.sa().id;
    pair.run(seconds(490));
    pair.net.udp_blocked = true;
    pair.run(seconds(60));
    assert!(pair.a.events.iter().any(|e| matches!(e, Event::InitiationFailed { .. })));
    assert!(pair.a.endpoint.sas().any(|sa| sa.id == old && sa.children.len() == 2));
    pair.net.udp_blocked = false;
    pair.run(seconds(100));
    assert_taken_over(&pair, old);
}

// An attempt may take longer than the wait for the next one: there is one at a time, and what is tried
// in vain is tried less and less often.
#[test]
fn there_is_one_attempt_at_a_time_and_they_become_rare() {
    let a = ConnectionConfig {
        reauth_time: Some(seconds(500)),
        transport: TransportChoice::Udp,
        ..config()
    };
    let b = ConnectionConfig { reauth_time: None, ..mirror(&a) };
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(490));
    pair.net.udp_blocked = true;
    pair.run(seconds(95));
    assert_eq!(pair.a.endpoint.sas().count(), 2, "the old one and its successor");
    pair.net.udp_blocked = false;
    pair.run(seconds(120));
    for side in [&pair.a, &pair.b] {
        assert_eq!((side.endpoint.sas().count(), side.host.installed.len()), (1, 1));
    }
    let begun = |pair: &Pair| {
        pair.a.events.iter().filter(|e| matches!(e, Event::Reauthenticating { .. })).count()
    };
    assert_eq!(begun(&pair), 1);
    // The responder lives, but lets nobody in anew.
    let held = pair.b.host.psk.clone();
    pair.b.host.psk = Vec::new();
    pair.run(seconds(6 * 3600));
    assert!((5..=14).contains(&begun(&pair)), "{} attempts in six hours", begun(&pair));
    pair.b.host.psk = held;
    pair.run(seconds(2 * 3600));
    assert_eq!((pair.a.host.installed.len(), pair.b.host.installed.len()), (1, 1));
}

// Whom it cannot call, an end cannot have authenticated anew.
#[test]
fn an_end_without_the_peers_address_says_so() {
    let mut pair = Pair::up(config());
    let ike = pair.b.sa().id;
    let refused = pair.b.endpoint.reauthenticate(pair.now, ike, &mut pair.b.host);
    assert!(matches!(refused, Err(culvert_ike::InitiateError::NoRemoteAddress(_))), "{refused:?}");
}

// RFC 7296, 2.8.3: whoever authenticates anew deletes the old IKE SA when all has come over, and not
// the responder before, whatever its `unique` says.
#[test]
fn the_responder_leaves_the_old_ike_sa_to_the_initiator_for_a_while() {
    let a = ConnectionConfig { unique: Uniqueness::No, ..config() };
    let b = ConnectionConfig { unique: Uniqueness::Replace, ..mirror(&a) };
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    let old = pair.b.sa().id;
    pair.initiate();
    pair.run(seconds(30));
    for side in [&pair.a, &pair.b] {
        assert_eq!((side.endpoint.sas().count(), side.host.installed.len()), (2, 2));
    }
    // A third one: the first is in the way now.
    pair.initiate();
    pair.run(seconds(1));
    assert!(pair.b.endpoint.sas().all(|sa| sa.id != old), "at most one predecessor is kept");
    pair.run(seconds(70));
    assert_eq!((pair.a.endpoint.sas().count(), pair.b.endpoint.sas().count()), (1, 1));
    assert_eq!((pair.a.host.installed.len(), pair.b.host.installed.len()), (1, 1));
    let told = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::DeletedByPeer, .. });
    assert_eq!(pair.a.events.iter().filter(|e| told(e)).count(), 2, "with a Delete each");
}

// What was to take the place of an IKE SA may go again before it has.
#[test]
fn an_ike_sa_whose_successor_is_gone_stays() {
    let a = ConnectionConfig { unique: Uniqueness::No, ..config() };
    let b = ConnectionConfig { unique: Uniqueness::Replace, ..mirror(&a) };
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    let old = pair.b.sa().id;
    for wait in [30, 200] {
        let second = pair.initiate();
        pair.run(seconds(1));
        assert_eq!(pair.b.endpoint.sas().count(), 2);
        pair.a.endpoint.terminate(pair.now, second, &mut pair.a.host).unwrap();
        pair.run(seconds(wait));
        assert_eq!(pair.b.sa().id, old, "{wait} s later");
        pair.assert_child();
    }
}

// Both ends are configured to begin: one IKE SA stays, the same at both, whatever arrives first.
#[test]
fn ike_sas_that_both_ends_begin_at_once_become_one() {
    for (head_start, lost) in
        [(0, [0, 0]), (5, [0, 0]), (15, [0, 0]), (0, [1, 0]), (0, [0, 1]), (8, [2, 1])]
    {
        let a = ConnectionConfig { unique: Uniqueness::Replace, ..config() };
        let mut b = mirror(&a);
        b.remote_addrs = vec![culvert_ike::AddressMatch::Address(pair::A.parse().unwrap())];
        let mut pair = Pair::new(a, b);
        pair.net.lose = lost;
        pair.initiate();
        pair.run(Duration::from_millis(head_start));
        let connection = pair.b.host.connections[0].clone();
        pair.b.endpoint.initiate(pair.now, &connection, None, &mut pair.b.host).unwrap();
        pair.run(seconds(100));
        let (of_a, of_b) = (pair.a.sa(), pair.b.sa());
        assert_eq!((of_a.spi_i, of_a.spi_r), (of_b.spi_i, of_b.spi_r), "{head_start} ms, {lost:?}");
        assert!(of_a.initiator, "that of the lower identity");
        pair.assert_child();
    }
}

// RFC 7296, 2.8.3: the peer rekeys a CHILD SA of the old IKE SA meanwhile. Its Delete of the old pair
// lets no packet leave by the new one any more: that goes with its IKE SA, and those who have it
// already deleted are not to take packets from there (1.4.1).
#[test]
fn a_rekey_that_the_peer_has_begun_on_the_old_ike_sa_takes_no_packet_back_there() {
    for begun_ms in 0..50 {
        let mut pair = Pair::up(config());
        pair.traffic = true;
        let (old, child, now) = (pair.a.sa().id, pair.b.child().id, pair.now);
        pair.a.endpoint.reauthenticate(now, old, &mut pair.a.host).unwrap();
        pair.run(Duration::from_millis(begun_ms));
        pair.b.endpoint.rekey_child(pair.now, child, &mut pair.b.host).unwrap();
        pair.run(seconds(70));
        assert_ne!(pair.a.sa().id, old, "{begun_ms} ms");
        pair.assert_child();
    }
}

// What is asked for while the successor is being set up, or just before, comes over too.
#[test]
fn a_pair_that_is_asked_for_meanwhile_comes_over() {
    for (before, after) in [(0, 0), (5, 0), (0, 5), (0, 25), (0, 35)] {
        let a = two_children();
        let mut pair = Pair::new(a.clone(), mirror(&a));
        pair.initiate();
        pair.run(seconds(1));
        let ike = pair.a.sa().id;
        let ask = |pair: &mut Pair| {
            pair.a.endpoint.initiate_child(pair.now, ike, "more", &mut pair.a.host).unwrap();
        };
        if after == 0 {
            ask(&mut pair);
            pair.run(Duration::from_millis(before));
        }
        pair.a.endpoint.reauthenticate(pair.now, ike, &mut pair.a.host).unwrap();
        if after > 0 {
            pair.run(Duration::from_millis(after));
            ask(&mut pair);
        }
        pair.run(seconds(10));
        assert_taken_over(&pair, ike);
    }
}

// RFC 7296, 2.4: INITIAL_CONTACT says that there is no other IKE SA. One that the peer has set up since the
// attempt began is another.
#[test]
fn an_attempt_that_takes_long_does_not_deny_the_ike_sa_that_the_peer_has_begun() {
    let mut a = two_children();
    a.transport = TransportChoice::Udp;
    let mut b = mirror(&a);
    b.remote_addrs = vec![culvert_ike::AddressMatch::Address(pair::A.parse().unwrap())];
    let mut pair = Pair::new(a, b.clone());
    pair.net.lose = [5, 0];
    pair.initiate();
    pair.run(Duration::from_millis(5));
    pair.net.lose = [0, 0];
    pair.run(Duration::from_millis(1));
    pair.b.endpoint.initiate(pair.now, &Arc::new(b), None, &mut pair.b.host).unwrap();
    pair.run(seconds(3));
    pair.net.lose = [4, 0];
    pair.run(seconds(200));
    let count = |side: &Side| side.endpoint.sas().count();
    assert_eq!((count(&pair.a), count(&pair.b)), (2, 2));
    assert_eq!(pair.a.host.installed.len(), pair.b.host.installed.len());
}

// RFC 4478, 3: "A zero value signifies that the Initial exchange should begin immediately". A responder
// that says so in each of them is not called without a pause.
#[test]
fn a_responder_that_allows_no_time_is_not_called_in_a_loop() {
    let a = ConnectionConfig { unique: Uniqueness::No, ..config() };
    let b = ConnectionConfig { reauth_time: Some(Duration::ZERO), ..mirror(&a) };
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(60));
    let begun =
        pair.a.events.iter().filter(|e| matches!(e, Event::Reauthenticating { .. })).count();
    assert!((4..=6).contains(&begun), "{begun} times in a minute");
    pair.assert_child();
}
