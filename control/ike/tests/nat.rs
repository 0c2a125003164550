//! NAT traversal (RFC 7296, 2.23; RFC 3948).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::time::Duration;

use culvert_ike::{Event, Path, Received, Transport, TransportChoice};
use pair::{NAT, Pair, config, mirror};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn started(a: culvert_ike::ConnectionConfig, b: culvert_ike::ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair
}

// RFC 7296, 2.23.
#[test]
fn behind_a_nat_ike_floats_to_port_4500_and_esp_is_encapsulated() {
    let mut pair = Pair::new(config(), mirror(&config()));
    pair.net.nat = true;
    pair.initiate();
    pair.run(seconds(1));
    pair.assert_child();
    let (a, b) = (pair.a.sa(), pair.b.sa());
    assert_eq!((a.path.local.port(), a.path.remote.port()), (4500, 4500));
    assert!(a.nat_local && !a.nat_remote && b.nat_remote && !b.nat_local);
    assert_eq!(b.path.remote.to_string(), format!("{NAT}:24500"));
    assert_eq!(b.path.local.port(), 4500);
    for side in [&pair.a, &pair.b] {
        assert_eq!(side.child().path.transport, Transport::Udp);
        assert_eq!(side.child().path.remote, side.sa().path.remote);
    }
}

// RFC 7296, 2.23: the peer behind the NAT is followed, but only by what is new and authentic.
#[test]
fn a_new_mapping_of_the_nat_moves_the_path_and_a_replay_does_not() {
    let mut a = config();
    a.dpd_delay = Some(seconds(10));
    let mut pair = Pair::new(a.clone(), mirror(&a));
    pair.net.nat = true;
    pair.initiate();
    pair.run(seconds(1));
    let last = pair.a.sent.last().unwrap().2.clone();
    let elsewhere = Path::udp(pair.b.sa().path.local, "198.51.100.66:6666".parse().unwrap());
    assert_eq!(pair.inject(false, &elsewhere, &last), Received::Repeated);
    assert_eq!(pair.b.sa().path.remote.to_string(), format!("{NAT}:24500"), "a repetition");
    pair.net.nat_shift = 7;
    pair.run(seconds(30));
    let moved = format!("{NAT}:24507");
    assert_eq!(pair.b.sa().path.remote.to_string(), moved);
    assert_eq!(pair.b.host.paths.values().next().unwrap().remote.to_string(), moved);
    assert!(pair.b.events.iter().any(|e| matches!(e, Event::PathMoved { .. })));
}

// RFC 7296, 2.23: only a peer behind a NAT may be seen elsewhere. Who is behind one itself, or sees no
// NAT at all, is not led away by one packet that somebody sends on from another address.
#[test]
fn esp_moves_only_a_peer_that_is_behind_a_nat() {
    let mut pair = Pair::new(config(), mirror(&config()));
    pair.net.nat = true;
    pair.initiate();
    pair.run(seconds(1));
    assert!(pair.a.child().path.pinned, "it is the initiator that is behind the NAT");
    assert!(!pair.b.child().path.pinned);

    // Encapsulated without a NAT: the one that believes in none follows nobody.
    let mut forced = config();
    forced.encap = true;
    let mut unforced = mirror(&forced);
    unforced.encap = false;
    let mut pair = started(forced, unforced);
    pair.run(seconds(1));
    for side in [&pair.a, &pair.b] {
        assert_eq!(side.child().path.transport, Transport::Udp);
        assert_eq!(side.child().path.pinned, !side.sa().nat_remote);
    }
    assert!(pair.a.child().path.pinned && !pair.b.child().path.pinned);
}

#[test]
fn encapsulation_can_be_forced_without_a_nat() {
    let mut a = config();
    a.encap = true;
    let mut b = mirror(&a);
    b.encap = false;
    let mut pair = started(a, b);
    pair.run(seconds(1));
    assert_eq!(pair.a.child().path.transport, Transport::Udp);
    assert_eq!(pair.b.child().path.transport, Transport::Udp, "it believes in a NAT");
}

#[test]
fn port_4500_from_the_start_needs_no_nat() {
    let mut a = config();
    (a.local_port, a.remote_port) = (4500, 4500);
    let pair = Pair::up(a);
    assert!(pair.a.sent.iter().all(|(_, path, _)| path.has_non_esp_marker()));
    assert_eq!(pair.b.sa().path.local.port(), 4500);
}

// RFC 3948, 4: only by the side behind the NAT, and only when nothing else was sent.
#[test]
fn a_nat_before_this_side_is_kept_alive() {
    let mut pair = Pair::new(config(), mirror(&config()));
    pair.net.nat = true;
    pair.initiate();
    pair.run(seconds(61));
    let a = &pair.a;
    assert_eq!(a.keepalives.len(), 3, "{:?}", a.keepalives);
    assert!(a.keepalives.iter().all(|(_, path)| *path == a.sa().path));
    assert!(pair.b.keepalives.is_empty(), "there is no NAT before B");
    // ESP flows: no need of them.
    for _ in 0..10 {
        pair.a.host.last_outbound = Some(pair.now);
        pair.run(seconds(15));
    }
    assert_eq!(pair.a.keepalives.len(), 3);
}

// RFC 9329, 6.6: not over TCP; and none without a NAT.
#[test]
fn there_are_no_keepalives_over_tcp_and_without_a_nat() {
    for (choice, nat) in [(TransportChoice::Tcp, true), (TransportChoice::Udp, false)] {
        let a = culvert_ike::ConnectionConfig { transport: choice, ..config() };
        let mut pair = Pair::new(a.clone(), mirror(&a));
        pair.net.nat = nat;
        pair.initiate();
        pair.run(seconds(100));
        assert!(pair.a.keepalives.is_empty() && pair.b.keepalives.is_empty());
    }
}
