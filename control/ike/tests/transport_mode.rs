//! Transport mode (RFC 7296, 1.3.1), also with a NAT in between (2.23.1).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildConfig, ChildFailure, ChildMode, ConnectionConfig, Event, Mode, Transport,
    TransportChoice, TransportEnds,
};
use pair::{A, B, NAT, Pair, Side, child, config, mirror};

const ANY: &[&str] = &["0.0.0.0/0", "::/0"];

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn between(local: &[&str], remote: &[&str], mode: ChildMode) -> ChildConfig {
    ChildConfig { mode, ..child(local, remote, "aes128gcm16-esn-noesn") }
}

fn with_children(children: Vec<ChildConfig>) -> ConnectionConfig {
    ConnectionConfig { children: children.into_iter().map(Arc::new).collect(), ..config() }
}

fn transport() -> ConnectionConfig {
    with_children(vec![between(ANY, ANY, ChildMode::Transport)])
}

fn ends(side: &Side) -> TransportEnds {
    match side.child().mode {
        Mode::Transport(ends) => ends,
        Mode::Tunnel => panic!("a tunnel"),
    }
}

fn selectors(side: &Side) -> [String; 2] {
    let sa = side.child();
    [&sa.local_ts, &sa.remote_ts].map(|list| list.iter().map(ToString::to_string).collect())
}

fn views(ends: TransportEnds) -> [String; 4] {
    let TransportEnds { local, remote, local_at_peer, remote_at_peer } = ends;
    [local, remote, local_at_peer, remote_at_peer].map(|address| address.to_string())
}

fn failure(side: &Side) -> Option<&ChildFailure> {
    side.events.iter().find_map(|event| match event {
        Event::ChildFailed { reason, .. } => Some(reason),
        _ => None,
    })
}

// RFC 7296, 1.3.1: asked for, granted, and between the two ends only.
#[test]
fn both_sides_agree_and_the_selectors_are_the_ends_of_the_ike_sa() {
    for choice in [TransportChoice::Udp, TransportChoice::Tcp] {
        let mut pair = Pair::up(ConnectionConfig { transport: choice, ..transport() });
        pair.assert_child();
        assert_eq!(selectors(&pair.a), [format!("{A}/32"), format!("{B}/32")]);
        assert_eq!(views(ends(&pair.a)), [A, B, A, B], "no NAT: both views are one");
        assert_eq!(views(ends(&pair.b)), [B, A, B, A]);
        assert_eq!(pair.a.sa().children[0].mode, ChildMode::Transport);
        for by_a in [true, false] {
            let now = pair.now;
            let Side { endpoint, host, .. } = if by_a { &mut pair.a } else { &mut pair.b };
            let id = host.installed.values().next().unwrap().id;
            endpoint.rekey_child(now, id, host).unwrap();
            pair.run(seconds(2));
            pair.assert_child();
            assert!(pair.a.child().replaces.is_some());
            assert_eq!(views(ends(&pair.b)), [B, A, B, A], "a rekey keeps the mode");
        }
    }
}

// RFC 7296, 2.9: protocols and ports are narrowed as ever.
#[test]
fn what_the_ends_may_say_is_narrowed() {
    let l2tp = &["0.0.0.0/0[udp/1701]"];
    let a = transport();
    let mut b = mirror(&a);
    b.children = vec![Arc::new(between(l2tp, ANY, ChildMode::Transport))];
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    pair.assert_child();
    assert_eq!(selectors(&pair.a), [format!("{A}/32"), format!("{B}/32[udp/1701]")]);
}

// RFC 7296, 1.3.1: "If this is unacceptable to the initiator, the initiator MUST delete the SA."
#[test]
fn a_tunnel_in_its_place_is_deleted() {
    let a = transport();
    let mut b = mirror(&a);
    b.children = vec![Arc::new(between(ANY, ANY, ChildMode::Tunnel))];
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    assert_eq!(failure(&pair.a), Some(&ChildFailure::TunnelOnly));
    assert!(pair.b.events.iter().any(|e| matches!(e, Event::ChildUp { .. })), "it was made");
    assert!(pair.b.host.installed.is_empty() && pair.a.host.reserved.is_empty(), "and deleted");
    assert_eq!((pair.a.sa().children.len(), pair.b.sa().children.len()), (0, 0));
}

#[test]
fn who_does_not_ask_for_it_does_not_get_it() {
    let a = with_children(vec![between(ANY, ANY, ChildMode::Tunnel)]);
    let mut b = mirror(&a);
    b.children = vec![Arc::new(between(ANY, ANY, ChildMode::Transport))];
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    assert_eq!(failure(&pair.b), Some(&ChildFailure::TsUnacceptable));
    assert!(pair.b.host.installed.is_empty() && pair.a.host.reserved.is_empty());
}

// Both kinds side by side: each request gets what it asks for.
#[test]
fn tunnel_and_transport_mode_live_in_one_ike_sa() {
    let net = between(&["10.1.0.0/24"], &["10.2.0.0/24"], ChildMode::Tunnel);
    let host = ChildConfig { name: "host".into(), ..between(ANY, ANY, ChildMode::Transport) };
    let mut pair = Pair::up(with_children(vec![net, host]));
    let ike = pair.a.sa().id;
    pair.a.endpoint.initiate_child(pair.now, ike, "host", &mut pair.a.host).unwrap();
    pair.run(seconds(1));
    for side in [&pair.a, &pair.b] {
        let modes: Vec<_> = side.sa().children.iter().map(|c| c.mode).collect();
        assert_eq!(modes, [ChildMode::Tunnel, ChildMode::Transport]);
    }
}

// RFC 7296, 2.23.1: each side has the addresses that it sees, and remembers the other's for the
// checksums.
#[test]
fn behind_a_nat_each_side_sees_its_own_addresses() {
    for choice in [TransportChoice::Udp, TransportChoice::Tcp] {
        let a = ConnectionConfig { transport: choice, ..transport() };
        let mut pair = Pair::new(a.clone(), mirror(&a));
        pair.net.nat = true;
        pair.initiate();
        pair.run(seconds(1));
        assert_eq!(selectors(&pair.a), [format!("{A}/32"), format!("{B}/32")]);
        assert_eq!(selectors(&pair.b), [format!("{B}/32"), format!("{NAT}/32")]);
        assert_eq!(views(ends(&pair.a)), [A, B, NAT, B], "B computes with the NAT's address");
        assert_eq!(views(ends(&pair.b)), [B, NAT, B, A], "A computes with its own");
        let expected = if choice == TransportChoice::Tcp { Transport::Tcp } else { Transport::Udp };
        assert_eq!(pair.a.child().path.transport, expected);
    }
}

// The configuration names neither end: nothing is asked for that could not be had.
#[test]
fn selectors_without_the_ends_make_no_pair() {
    let far = between(&["10.1.0.0/24"], &["10.2.0.0/24"], ChildMode::Transport);
    let a = with_children(vec![far]);
    let mut pair = Pair::new(a.clone(), mirror(&a));
    pair.initiate();
    pair.run(seconds(1));
    assert_eq!(failure(&pair.a), Some(&ChildFailure::Elsewhere));
    assert!(pair.a.sa().children.is_empty() && pair.a.host.reserved.is_empty());
    let ike = pair.a.sa().id;
    pair.a.endpoint.initiate_child(pair.now, ike, "net", &mut pair.a.host).unwrap();
    pair.run(seconds(1));
    assert!(pair.a.sa().children.is_empty() && pair.a.host.reserved.is_empty());
}
