//! IKE exchanges between two endpoints, as RFC 7296 and RFC 9329 tell them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    AddressMatch, ConnectionConfig, DownReason, EndpointConfig, Event, IkeState, InitiationError,
    Path, Received, Secret, Transport, TransportChoice, Uniqueness, message::NotifyType,
};
use pair::{A, B, Pair, child, config, mirror};

const INIT: u8 = 34;
const AUTH: u8 = 35;
const INFORMATIONAL: u8 = 37;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn started(a: ConnectionConfig, b: ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair
}

// RFC 7296, 1.2.
#[test]
fn two_exchanges_make_an_ike_sa_with_its_first_child_sa() {
    let pair = Pair::up(config());
    assert_eq!(pair.a.requests(), [INIT, AUTH]);
    pair.assert_child();
    let (a, b) = (pair.a.sa(), pair.b.sa());
    assert_eq!((a.spi_i, a.spi_r), (b.spi_i, b.spi_r));
    assert_eq!((a.state, b.state), (IkeState::Established, IkeState::Established));
    assert!(a.initiator && !b.initiator);
    assert_eq!(a.remote_id.unwrap().to_string(), "b.test");
    assert_eq!(b.remote_id.unwrap().to_string(), "a.test");
    assert!(pair.a.child().suite.esn, "esn stands first");
    assert_eq!(pair.a.child().path.transport, Transport::Native, "no NAT");
    assert!(matches!(pair.a.events[..], [Event::IkeUp { .. }, Event::ChildUp { .. }]));
    assert!(matches!(pair.b.events[..], [Event::IkeUp { .. }, Event::ChildUp { .. }]));
}

#[test]
fn every_suite_works() {
    for prf in ["prfsha256", "prfsha384", "prfsha512"] {
        for group in ["x25519", "ecp256", "ecp384", "modp2048"] {
            for aes in ["aes128gcm16", "aes256gcm16"] {
                let mut config = config();
                config.proposals = vec![format!("{aes}-{prf}-{group}").parse().unwrap()];
                config.children = vec![Arc::new(child(&["10.1.0.0/24"], &["10.2.0.0/24"], aes))];
                let pair = Pair::up(config);
                pair.assert_child();
                assert_eq!(pair.a.sa().suite.unwrap().to_string(), format!("{aes}-{prf}-{group}"));
                assert!(!pair.a.child().suite.esn);
            }
        }
    }
}

#[test]
fn addresses_may_be_ipv6_and_identities_of_any_type() {
    for (a, b) in [
        ("192.0.2.1", "2001:db8::1"),
        ("ann@example", "keyid:#00ff"),
        ("asn1dn:#300d310b3009060355040613024348", "fqdn:x"),
    ] {
        let mut config = config();
        config.local_id = a.parse().unwrap();
        config.remote_id = b.parse().unwrap();
        config.remote_addrs = vec![AddressMatch::Address("2001:db8::2".parse().unwrap())];
        config.local_addrs = vec![AddressMatch::Address("2001:db8::1".parse().unwrap())];
        let mut b = mirror(&config);
        b.local_addrs = vec![AddressMatch::Any];
        let mut pair = started(config, b);
        pair.run(seconds(1));
        pair.assert_child();
        assert_eq!(pair.b.sa().path.remote, "[2001:db8::1]:500".parse().unwrap());
    }
}

// RFC 7296, 1.2 and 2.7.
#[test]
fn a_wrong_group_is_corrected_by_invalid_ke_payload() {
    let mut a = config();
    a.proposals = vec!["aes128gcm16-prfsha256-x25519-ecp384".parse().unwrap()];
    let mut b = mirror(&a);
    b.proposals = vec!["aes128gcm16-prfsha256-ecp384".parse().unwrap()];
    let mut pair = started(a, b);
    pair.run(seconds(1));
    assert_eq!(pair.a.requests(), [INIT, INIT, AUTH]);
    assert_eq!(pair.a.sent[0].2[..8], pair.a.sent[1].2[..8], "the same SPI");
    pair.assert_child();
    assert_eq!(pair.a.sa().suite.unwrap().to_string(), "aes128gcm16-prfsha256-ecp384");
}

#[test]
fn without_a_common_proposal_both_sides_say_so() {
    let a = config();
    let mut b = mirror(&a);
    b.proposals = vec!["aes256gcm16-prfsha512-x25519".parse().unwrap()];
    let mut pair = started(a, b);
    pair.run(seconds(1));
    assert!(pair.a.events.is_empty(), "over UDP anybody may have sent the refusal");
    pair.run(seconds(20));
    let [Event::InitiationFailed { error, .. }] = &pair.a.events[..] else {
        panic!("{:?}", pair.a.events)
    };
    assert_eq!(*error, InitiationError::PeerRefused(NotifyType::NO_PROPOSAL_CHOSEN));
    assert!(matches!(
        pair.b.events[0],
        Event::Refused { error: InitiationError::NoProposalChosen, .. }
    ));
    pair.a.assert_empty();
    pair.b.assert_empty();
}

// RFC 7296, 2.21.2.
#[test]
fn a_wrong_key_of_the_initiator_is_refused_and_named_at_both_sides() {
    let mut pair = Pair::new(config(), mirror(&config()));
    pair.a.host.psk[0].1 = Secret::new(b"another".to_vec());
    pair.initiate();
    pair.run(seconds(10));
    let [Event::InitiationFailed { error, .. }] = &pair.a.events[..] else {
        panic!("{:?}", pair.a.events)
    };
    assert_eq!(*error, InitiationError::PeerRefused(NotifyType::AUTHENTICATION_FAILED));
    let [Event::Refused { error, .. }] = &pair.b.events[..] else { panic!() };
    assert!(error.to_string().starts_with("a.test could not be authenticated"));
    pair.a.assert_empty();
    pair.b.assert_empty();
}

#[test]
fn identities_that_are_not_configured_are_refused() {
    let a = config();
    let mut b = mirror(&a);
    b.remote_id = "*.elsewhere".parse().unwrap();
    let mut pair = started(a.clone(), b);
    pair.run(seconds(10));
    let refused = |event: &Event| {
        matches!(event, Event::Refused { error: InitiationError::IdentityNotAccepted { remote }, .. }
            if remote.to_string() == "a.test")
    };
    assert!(pair.b.events.iter().any(refused));

    let mut loose = a;
    loose.remote_id = "*.elsewhere".parse().unwrap();
    let mut pair = Pair::new(loose.clone(), mirror(&config()));
    pair.a.host.psk.push((A.parse().unwrap(), Secret::new(b"shared".to_vec())));
    pair.a.host.psk.push((B.parse().unwrap(), Secret::new(b"shared".to_vec())));
    pair.initiate();
    pair.run(seconds(1));
    // RFC 7296, 2.21.2: the responder, which was content, is told.
    assert!(pair.a.events.iter().any(|e| matches!(
        e,
        Event::InitiationFailed { error: InitiationError::WrongIdentity { .. }, .. }
    )));
    let gone = DownReason::PeerRefused(NotifyType::AUTHENTICATION_FAILED);
    assert!(
        pair.b.events.iter().any(|e| matches!(e, Event::IkeDown { reason, .. } if *reason == gone))
    );
    assert!(pair.b.host.installed.is_empty());
    pair.a.assert_empty();
}

// RFC 7296, 2.1: strongSwan's times.
#[test]
fn a_request_without_answer_is_repeated_and_given_up() {
    let mut a = config();
    a.transport = TransportChoice::Udp;
    let mut pair = Pair::new(a.clone(), mirror(&a));
    pair.net.udp_blocked = true;
    pair.initiate();
    pair.run(seconds(400));
    let at: Vec<u64> = pair.a.sent.iter().map(|(at, ..)| at.as_micros() / 100_000).collect();
    let start = at[0];
    let at: Vec<u64> = at.iter().map(|at| at - start).collect();
    assert_eq!(at, [0, 40, 112, 241, 474, 894], "tenths of seconds");
    assert!(pair.a.sent.iter().all(|(_, _, octets)| *octets == pair.a.sent[0].2));
    let [Event::InitiationFailed { error, .. }] = &pair.a.events[..] else { panic!() };
    assert!(matches!(error, InitiationError::NoAnswer { transport: Transport::Udp, .. }));
    pair.a.assert_empty();
}

// RFC 7296, 1.4.1.
#[test]
fn either_side_deletes_the_ike_sa() {
    for by_a in [true, false] {
        let mut pair = Pair::up(config());
        let now = pair.now;
        let side = if by_a { &mut pair.a } else { &mut pair.b };
        let ike = side.sa().id;
        side.endpoint.terminate(now, ike, &mut side.host).unwrap();
        assert_eq!(side.sa().state, IkeState::Deleting);
        pair.run(seconds(10));
        let (own, other) = if by_a { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        let down =
            |reason| move |e: &Event| matches!(e, Event::IkeDown { reason: r, .. } if *r == reason);
        assert!(own.events.iter().any(down(DownReason::TerminatedLocally)));
        assert!(other.events.iter().any(down(DownReason::DeletedByPeer)));
        pair.a.assert_empty();
        pair.b.assert_empty();
    }
}

#[test]
fn a_lost_answer_to_a_delete_is_repeated() {
    let mut pair = Pair::up(config());
    let ike = pair.a.sa().id;
    pair.a.endpoint.terminate(pair.now, ike, &mut pair.a.host).unwrap();
    pair.run(Duration::from_millis(15));
    // B has answered; the answer is lost.
    pair.net.udp_blocked = true;
    assert_eq!(pair.b.endpoint.sas().count(), 0);
    let path = Path::udp(format!("{B}:500").parse().unwrap(), format!("{A}:500").parse().unwrap());
    let delete = pair.a.sent.last().unwrap().2.clone();
    assert_eq!(pair.inject(false, &path, &delete), Received::Repeated);
    let sent = &pair.b.sent;
    assert_eq!(sent[sent.len() - 1].2, sent[sent.len() - 2].2, "the same octets");
}

// RFC 7296, 2.4.
#[test]
fn liveness_is_checked_when_nothing_authentic_came() {
    let mut a = config();
    a.dpd_delay = Some(seconds(30));
    let mut b = mirror(&a);
    b.dpd_delay = None;
    let mut pair = started(a, b);
    pair.run(seconds(100));
    let checks = pair.a.requests().iter().filter(|x| **x == INFORMATIONAL).count();
    assert_eq!(checks, 3);
    // ESP is as good a proof as IKE.
    pair.a.host.last_inbound = Some(pair.now + seconds(50));
    pair.run(seconds(70));
    assert_eq!(pair.a.requests().iter().filter(|x| **x == INFORMATIONAL).count(), checks);
    pair.a.host.last_inbound = None;
    pair.net.udp_blocked = true;
    pair.run(seconds(400));
    assert!(
        pair.a
            .events
            .iter()
            .any(|e| matches!(e, Event::IkeDown { reason: DownReason::PeerDead, .. }))
    );
    pair.a.assert_empty();
}

// RFC 7296, 2.4 and 3.10.1.
#[test]
fn a_new_ike_sa_of_the_same_peer_replaces_the_old_one() {
    for unique in [Uniqueness::Replace, Uniqueness::No] {
        let mut a = config();
        a.unique = unique;
        let mut pair = Pair::up(a);
        let old = pair.b.sa().id;
        if unique == Uniqueness::No {
            // The peer has lost its state: INITIAL_CONTACT.
            pair.a.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
            pair.a.host.installed.clear();
        }
        pair.initiate();
        pair.run(seconds(20));
        pair.assert_child();
        assert_ne!(pair.b.sa().id, old);
        assert!(pair.b.events.iter().any(|e| matches!(e,
            Event::IkeDown { ike, reason: DownReason::Replaced | DownReason::DeletedByPeer, .. } if *ike == old)));
    }
}

// RFC 7296, 2.4: what INITIAL_CONTACT allows is not done where several use one identity, and whoever
// does so cannot say it.
#[test]
fn with_unique_never_ike_sas_of_one_identity_live_side_by_side() {
    for (own, stay) in [(Uniqueness::Never, 2), (Uniqueness::No, 1)] {
        for others in [Uniqueness::Never, Uniqueness::No] {
            let a = ConnectionConfig { unique: others, ..config() };
            let b = ConnectionConfig { unique: own, ..mirror(&a) };
            let mut pair = Pair::new(a, b);
            pair.initiate();
            pair.run(seconds(1));
            // Another gateway of the same identity.
            pair.a.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
            pair.initiate();
            pair.run(seconds(100));
            let expected = if others == Uniqueness::Never { 2 } else { stay };
            assert_eq!(pair.b.endpoint.sas().count(), expected, "{own:?} here, {others:?} there");
        }
    }
}

// Where IKE SAs of one peer replace each other, one that begins them without end and answers nothing has
// no more than a few, whether it says INITIAL_CONTACT or not.
#[test]
fn a_peer_that_begins_anew_again_and_again_fills_no_table() {
    for (theirs, most) in [(Uniqueness::Never, 11), (Uniqueness::No, 2)] {
        let a = ConnectionConfig { unique: theirs, ..config() };
        let b = ConnectionConfig { unique: Uniqueness::Replace, ..mirror(&a) };
        let mut pair = Pair::new(a, b);
        for _ in 0..40 {
            pair.a.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
            pair.initiate();
            pair.run(Duration::from_millis(100));
        }
        assert!(pair.b.endpoint.len() <= most, "{theirs:?}: {}", pair.b.endpoint.len());
        pair.run(seconds(300));
        assert_eq!(pair.b.sa().children.len(), 1, "the last one stands");
        assert_eq!(pair.b.host.installed.len(), 1);
    }
}

// What a responder can see of an IKE_AUTH that never comes: a path that loses long messages, say.
#[test]
fn a_peer_that_does_not_go_on_is_told_of() {
    let mut pair = started(config(), mirror(&config()));
    while pair.b.endpoint.is_empty() {
        pair.run(Duration::from_millis(1));
    }
    pair.net.udp_blocked = true;
    pair.run(seconds(29));
    assert!(pair.b.events.is_empty(), "it may be slow");
    pair.run(seconds(2));
    let [Event::Refused { path, error }] = &pair.b.events[..] else { panic!() };
    assert_eq!((path.remote.ip().to_string().as_str(), error), (A, &InitiationError::WentSilent));
    pair.b.assert_empty();
}

#[test]
fn terminating_before_it_is_up_ends_it_at_once() {
    let mut pair = started(config(), mirror(&config()));
    let ike = pair.a.sa().id;
    pair.a.endpoint.terminate(pair.now, ike, &mut pair.a.host).unwrap();
    pair.run(seconds(60));
    assert!(matches!(
        pair.a.events[..],
        [Event::InitiationFailed { error: InitiationError::Terminated, .. }]
    ));
    pair.a.assert_empty();
    pair.b.assert_empty();
}

/// Everything comes up and goes down again however bad the network is.
#[test]
fn loss_repetition_and_reordering_end_in_agreement() {
    for seed in 0..60 {
        let mut a = config();
        a.transport = TransportChoice::Udp;
        a.retransmission.tries = 12;
        a.retransmission.base = 1.2;
        a.dpd_delay = Some(seconds(20));
        let mut pair = Pair::new(a.clone(), mirror(&a));
        pair.net.rng = pair::Rng(seed);
        (pair.net.loss, pair.net.repeated, pair.net.reordered) = (25, 20, 30);
        pair.initiate();
        pair.run(seconds(300));
        pair.assert_child();
        let ike = pair.a.sa().id;
        pair.a.endpoint.terminate(pair.now, ike, &mut pair.a.host).unwrap();
        pair.run(seconds(600));
        pair.a.assert_empty();
        pair.b.assert_empty();
        assert_eq!(pair.b.events.iter().filter(|e| matches!(e, Event::IkeUp { .. })).count(), 1);
    }
}

// What a responder has answered is as it was; what it may agree to is as it is configured now.
#[test]
fn a_connection_that_is_configured_no_more_accepts_nobody() {
    let mut pair = started(config(), mirror(&config()));
    pair.run(Duration::from_millis(15));
    assert_eq!(pair.b.sa().state, IkeState::HalfOpen);
    pair.b.host.connections.clear();
    pair.run(seconds(1));
    assert!(pair.b.events.iter().any(|e| matches!(e, Event::Refused { .. })));
    assert!(pair.b.host.installed.is_empty());
}

#[test]
fn a_connection_that_is_changed_meanwhile_is_the_new_one() {
    let mut pair = started(config(), mirror(&config()));
    pair.run(Duration::from_millis(15));
    let mut b = (*pair.b.host.connections[0]).clone();
    b.children = vec![Arc::new(child(&["10.2.9.0/24"], &["10.1.9.0/24"], "aes128gcm16"))];
    pair.b.host.connections = vec![Arc::new(b)];
    pair.run(seconds(1));
    assert_eq!(pair.b.sa().state, IkeState::Established);
    assert!(pair.b.host.installed.is_empty(), "a child that is configured no more");
}

// The peer has chosen from what was offered: a configuration that is loaded meanwhile takes nothing back.
#[test]
fn the_answer_to_a_first_request_is_judged_by_what_was_offered() {
    let mut pair = started(config(), mirror(&config()));
    pair.run(Duration::from_millis(5));
    let mut a = (*pair.a.host.connections[0]).clone();
    a.proposals = vec!["aes256gcm16-prfsha512-ecp384".parse().unwrap()];
    let (now, a) = (pair.now, Arc::new(a));
    pair.a.host.connections = vec![a.clone()];
    pair.a.endpoint.reconfigure(now, &a, &mut pair.a.host);
    pair.run(seconds(1));
    pair.assert_child();
}
