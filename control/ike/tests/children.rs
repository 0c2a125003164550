//! CHILD SAs: narrowed, made, replaced, deleted (RFC 7296, 1.3, 1.4.1, 2.8 and 2.9).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{ChildFailure, DownReason, EndpointConfig, Event, IkeState, message::NotifyType};
use pair::{Pair, child, config, mirror};

const INIT: u8 = 34;
const AUTH: u8 = 35;
const CREATE: u8 = 36;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn started(a: culvert_ike::ConnectionConfig, b: culvert_ike::ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair
}

// RFC 7296, 2.9.
#[test]
fn the_responder_narrows_to_what_both_want() {
    let mut a = config();
    a.children = vec![Arc::new(child(
        &["10.1.0.0/16", "2001:db8:1::/48"],
        &["10.2.0.7[tcp/443]", "10.2.0.0/16"],
        "aes128gcm16",
    ))];
    let mut b = mirror(&a);
    b.children = vec![Arc::new(child(
        &["10.2.0.0/25", "10.2.0.128/25", "192.0.2.0/24"],
        &["10.1.4.0/24", "2001:db8::/32"],
        "aes128gcm16",
    ))];
    let mut pair = started(a, b);
    pair.run(seconds(1));
    pair.assert_child();
    let text = |ts: &[culvert_ike::TrafficSelector]| -> Vec<String> {
        ts.iter().map(ToString::to_string).collect()
    };
    assert_eq!(text(&pair.a.child().local_ts), ["10.1.4.0/24", "2001:db8:1::/48"]);
    assert_eq!(text(&pair.a.child().remote_ts), ["10.2.0.0/25", "10.2.0.128/25"]);
}

// RFC 7296, 1.2 and 2.21.2: the IKE SA stays without a CHILD SA.
#[test]
fn what_goes_wrong_with_the_child_sa_leaves_the_ike_sa() {
    let cases: [(&str, &str, NotifyType, ChildFailure); 2] = [
        ("10.9.0.0/24", "aes128gcm16", NotifyType::TS_UNACCEPTABLE, ChildFailure::TsUnacceptable),
        (
            "10.2.0.0/24",
            "aes256gcm16",
            NotifyType::NO_PROPOSAL_CHOSEN,
            ChildFailure::NoProposalChosen,
        ),
    ];
    for (ts, proposal, notify, failure) in cases {
        let a = config();
        let mut b = mirror(&a);
        b.children = vec![Arc::new(child(&[ts], &["10.1.0.0/24"], proposal))];
        let mut pair = started(a, b);
        pair.run(seconds(1));
        let failed = |events: &[Event]| {
            events.iter().find_map(|e| match e {
                Event::ChildFailed { reason, .. } => Some(reason.clone()),
                _ => None,
            })
        };
        assert_eq!(failed(&pair.a.events), Some(ChildFailure::PeerRefused(notify)));
        assert_eq!(failed(&pair.b.events), Some(failure));
        assert_eq!(pair.a.sa().state, IkeState::Established);
        assert_eq!(pair.b.sa().state, IkeState::Established);
        assert!(pair.a.host.installed.is_empty() && pair.a.host.reserved.is_empty());
        assert!(pair.b.host.installed.is_empty() && pair.b.host.reserved.is_empty());
    }
}

#[test]
fn a_data_plane_that_refuses_costs_the_child_sa_only() {
    for broken_a in [true, false] {
        let mut pair = started(config(), mirror(&config()));
        if broken_a {
            pair.a.host.broken = true;
        } else {
            pair.b.host.broken = true;
        }
        pair.run(seconds(1));
        assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());
        assert!(pair.a.host.reserved.is_empty() && pair.b.host.reserved.is_empty());
        assert_eq!(pair.a.sa().state, IkeState::Established);
        assert!(pair.a.events.iter().any(|e| matches!(e, Event::ChildFailed { .. })));
    }
}

#[test]
fn either_side_deletes_a_child_sa_and_the_ike_sa_stays() {
    for by_a in [true, false] {
        let mut pair = Pair::up(config());
        let now = pair.now;
        let side = if by_a { &mut pair.a } else { &mut pair.b };
        let id = side.child().id;
        side.endpoint.terminate_child(now, id, &mut side.host).unwrap();
        pair.run(seconds(1));
        assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());
        assert_eq!(pair.a.sa().state, IkeState::Established);
        assert_eq!(pair.b.sa().state, IkeState::Established);
    }
}

// RFC 7296, 1.4.1: both delete the same pair at once.
#[test]
fn simultaneous_deletes_of_a_child_sa_meet() {
    let mut pair = Pair::up(config());
    let (a, b) = (pair.a.child().id, pair.b.child().id);
    pair.a.endpoint.terminate_child(pair.now, a, &mut pair.a.host).unwrap();
    pair.b.endpoint.terminate_child(pair.now, b, &mut pair.b.host).unwrap();
    pair.run(seconds(1));
    assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());
    assert_eq!(pair.a.sa().state, IkeState::Established);
}

// RFC 7296, 1.3.1.
#[test]
fn further_child_sas_come_by_create_child_sa_with_and_without_key_exchange() {
    for proposal in ["aes256gcm16-esn", "aes128gcm16-ecp256"] {
        let mut a = config();
        let mut more = child(&["10.1.9.0/24"], &["10.2.9.0/24"], proposal);
        more.name = "more".into();
        a.children.push(Arc::new(more));
        let mut pair = Pair::up(a);
        let ike = pair.a.sa().id;
        pair.a.endpoint.initiate_child(pair.now, ike, "more", &mut pair.a.host).unwrap();
        pair.run(seconds(1));
        assert_eq!(pair.a.requests(), [INIT, AUTH, CREATE]);
        assert_eq!(pair.a.sa().children.len(), 2);
        let more = pair.a.host.installed.values().find(|c| c.name == "more").unwrap();
        let theirs = &pair.b.host.installed[&more.spi_out];
        assert!(more.keymat_in == theirs.keymat_out && more.keymat_out == theirs.keymat_in);
        assert_eq!(more.suite.key_exchange.is_some(), proposal.contains("ecp256"));
    }
}

// RFC 7296, 1.3.3 and 2.8: make before break.
#[test]
fn either_side_rekeys_a_child_sa_with_and_without_key_exchange() {
    for (by_a, proposal) in
        [(true, "aes128gcm16-esn"), (false, "aes128gcm16-x25519"), (true, "aes256gcm16-ecp384")]
    {
        let mut a = config();
        a.children = vec![Arc::new(child(&["10.1.0.0/24"], &["10.2.0.0/24"], proposal))];
        let mut pair = Pair::up(a);
        let old = (pair.a.child().clone(), pair.b.child().clone());
        let now = pair.now;
        let side = if by_a { &mut pair.a } else { &mut pair.b };
        let id = side.child().id;
        side.endpoint.rekey_child(now, id, &mut side.host).unwrap();
        pair.run(Duration::from_millis(15));
        // The answering side sends on the old pair until that is deleted.
        let answering = if by_a { &pair.b } else { &pair.a };
        assert_eq!(answering.host.installed.len(), 2);
        let new = answering.host.installed.values().find(|c| c.replaces.is_some()).unwrap();
        assert!(!answering.host.outbound.contains(&new.id));
        pair.run(seconds(1));
        pair.assert_child();
        for (side, old) in [(&pair.a, &old.0), (&pair.b, &old.1)] {
            assert_eq!(side.child().replaces, Some(old.id));
            assert!(side.child().keymat_in != old.keymat_in && side.child().spi_in != old.spi_in);
            assert!(side.host.outbound.contains(&side.child().id));
            assert!(side.events.iter().any(|e| matches!(e,
                Event::ChildDown { child, reason: DownReason::Rekeyed, .. } if *child == old.id)));
        }
    }
}

// RFC 7296, 1.3 and 2.8: the most pairs that there may be leave room for their rekeys.
#[test]
fn as_many_pairs_as_there_may_be_can_be_rekeyed() {
    let limits = EndpointConfig { children_per_ike_max: 1, ..EndpointConfig::default() };
    let mut pair = Pair::with_limits(config(), mirror(&config()), limits);
    pair.initiate();
    pair.run(seconds(1));
    for _ in 0..3 {
        let id = pair.a.child().id;
        pair.a.endpoint.rekey_child(pair.now, id, &mut pair.a.host).unwrap();
        pair.run(seconds(1));
        pair.assert_child();
        assert_eq!(pair.a.child().replaces, Some(id));
    }
    let ike = pair.a.sa().id;
    pair.a.endpoint.initiate_child(pair.now, ike, "net", &mut pair.a.host).unwrap();
    pair.run(seconds(1));
    pair.assert_child();
    let refused = ChildFailure::PeerRefused(NotifyType::NO_ADDITIONAL_SAS);
    let told = |e: &Event| matches!(e, Event::ChildFailed { reason, .. } if *reason == refused);
    assert!(pair.a.events.iter().any(told));
}
