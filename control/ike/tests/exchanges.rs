//! IKE exchanges between two endpoints, as RFC 7296 and RFC 9329 tell them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    AddressMatch, ChildFailure, ChildPath, DownReason, DropReason, EndpointConfig, Event, IkeState,
    InitiationError, Path, Received, Secret, Transport, TransportChoice, message::NotifyType,
};
use pair::{A, B, NAT, Pair, child, config, mirror};

const INIT: u8 = 34;
const AUTH: u8 = 35;
const CREATE: u8 = 36;
const INFORMATIONAL: u8 = 37;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn started(a: culvert_ike::ConnectionConfig, b: culvert_ike::ConnectionConfig) -> Pair {
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

// RFC 9329, 6.4.
#[test]
fn over_tcp_a_refusal_is_final_at_once() {
    let mut a = config();
    a.transport = TransportChoice::Tcp;
    let mut b = mirror(&a);
    b.proposals = vec!["aes256gcm16-prfsha512-x25519".parse().unwrap()];
    let mut pair = started(a, b);
    pair.run(seconds(1));
    assert!(matches!(pair.a.events[..], [Event::InitiationFailed { .. }]));
    assert_eq!(pair.a.closes.len(), 1, "the Originator closes its connection");
    pair.a.assert_empty();
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

// RFC 9329, 5.1.
#[test]
fn auto_falls_back_to_tcp_with_a_new_exchange() {
    let mut pair = Pair::new(config(), mirror(&config()));
    pair.net.udp_blocked = true;
    pair.initiate();
    pair.run(seconds(60));
    pair.assert_child();
    let inits: Vec<_> = pair.a.sent.iter().filter(|(_, _, m)| m[18] == INIT).collect();
    assert_eq!(inits.len(), 4, "three over UDP, one over TCP");
    let (udp, tcp) = (&inits[0], &inits[3]);
    assert_eq!((udp.1.transport, tcp.1.transport), (Transport::Udp, Transport::Tcp));
    assert_ne!(udp.2[..8], tcp.2[..8], "a new SPI");
    let key = |m: &[u8]| m[m.len() - 150..].to_vec();
    assert_ne!(key(&udp.2), key(&tcp.2), "new key, nonce and NAT digests");
    assert_eq!(pair.a.child().path.transport, Transport::Tcp);
    assert_eq!(pair.b.child().path.transport, Transport::Tcp);
    assert!(!pair.a.sa().nat_local && !pair.b.sa().nat_remote, "digests of the TCP ports");
    assert!(matches!(pair.a.events[0], Event::FallbackToTcp { transmissions: 3, .. }));
    assert_eq!(pair.a.sa().path.remote.port(), 4500);
}

// RFC 9329, 5.1: a late answer to the attempt over UDP is ignored.
#[test]
fn a_late_answer_over_udp_finds_nobody() {
    let mut pair = Pair::new(config(), mirror(&config()));
    pair.net.udp_blocked = true;
    pair.initiate();
    pair.run(seconds(60));
    let (_, path, octets) = pair.a.sent[0].clone();
    let reversed = Path::udp(path.remote, path.local);
    let before = pair.b.sent.len();
    pair.inject(false, &reversed, &octets);
    let late = pair.b.sent[before].2.clone();
    let state = pair.a.sa().spi_i;
    assert_eq!(pair.inject(true, &path, &late), Received::Dropped(DropReason::UnknownSpi));
    assert_eq!(pair.a.sa().spi_i, state);
}

#[test]
fn udp_only_never_tries_tcp_and_tcp_only_never_udp() {
    for (transport, udp, tcp) in
        [(TransportChoice::Udp, true, false), (TransportChoice::Tcp, false, true)]
    {
        let mut a = config();
        a.transport = transport;
        let pair = Pair::up(a);
        assert_eq!(pair.a.sent.iter().any(|(_, p, _)| p.transport == Transport::Udp), udp);
        assert_eq!(!pair.a.connects.is_empty(), tcp);
    }
    let mut a = config();
    a.transport = TransportChoice::Tcp;
    let mut b = mirror(&a);
    b.transport = TransportChoice::Udp;
    let mut pair = started(a, b);
    pair.run(seconds(1));
    assert!(matches!(
        pair.b.events[0],
        Event::Refused { error: InitiationError::NoConnection, .. }
    ));
}

#[test]
fn a_tcp_port_that_refuses_fails_the_initiation() {
    let mut a = config();
    a.transport = TransportChoice::Tcp;
    let mut pair = Pair::new(a.clone(), mirror(&a));
    pair.net.tcp_refused = true;
    pair.initiate();
    pair.run(seconds(1));
    let [Event::InitiationFailed { error, .. }] = &pair.a.events[..] else { panic!() };
    assert!(
        matches!(error, InitiationError::TcpFailed { reason, .. } if reason == "connection refused")
    );
    pair.a.assert_empty();
}

fn tcp_config() -> culvert_ike::ConnectionConfig {
    let mut a = config();
    a.transport = TransportChoice::Tcp;
    a
}

// RFC 9329, 6.1: SAs stay, the Originator reconnects, the responder's path follows.
#[test]
fn a_lost_tcp_connection_is_opened_again_by_the_originator_only() {
    let mut pair = Pair::up(tcp_config());
    let old = pair.b.sa().path;
    pair.cut();
    assert_eq!(pair.a.connects.len(), 2, "at once");
    assert_eq!(pair.b.connects.len(), 0);
    assert_eq!(pair.a.sa().state, IkeState::Established);
    pair.run(seconds(1));
    let new = pair.b.sa().path;
    assert_ne!(old.conn, new.conn);
    assert!(new.conn.is_some());
    assert_eq!(pair.a.requests(), [INIT, AUTH, INFORMATIONAL], "an empty one comes first");
    for side in [&pair.a, &pair.b] {
        assert_eq!(side.host.paths.values().next().unwrap().conn, new.conn);
        assert!(side.events.iter().any(|e| matches!(e, Event::TcpLost { .. })));
    }
    pair.assert_child();
}

#[test]
fn reconnecting_waits_longer_each_time() {
    let mut pair = Pair::up(tcp_config());
    pair.net.tcp_refused = true;
    pair.cut();
    pair.run(seconds(100));
    let start = pair.a.connects[1].as_micros();
    let at: Vec<u64> =
        pair.a.connects[1..].iter().map(|at| (at.as_micros() - start) / 1_000_000).collect();
    assert_eq!(at, [0, 1, 3, 7, 15, 31, 63], "1, 2, 4, 8, 16, 32 s");
    pair.net.tcp_refused = false;
    pair.run(seconds(100));
    assert!(pair.b.sa().path.conn.is_some());
    pair.assert_child();
}

// RFC 9329, 6.2: what waits for an answer goes again, on the new connection only, and is the same.
#[test]
fn over_tcp_a_request_is_repeated_on_a_new_connection_only() {
    let mut pair = Pair::up(tcp_config());
    pair.net.tcp_refused = true;
    pair.cut();
    let ike = pair.b.sa().id;
    pair.b.endpoint.terminate(pair.now, ike, &mut pair.b.host).unwrap();
    pair.run(seconds(20));
    assert_eq!(pair.b.requests(), [], "the responder has no connection");
    pair.net.tcp_refused = false;
    pair.run(seconds(20));
    assert_eq!(pair.b.requests(), [INFORMATIONAL], "sent on the new one");
    assert!(
        pair.b
            .events
            .iter()
            .any(|e| matches!(e, Event::IkeDown { reason: DownReason::TerminatedLocally, .. }))
    );
    assert!(
        pair.a
            .events
            .iter()
            .any(|e| matches!(e, Event::IkeDown { reason: DownReason::DeletedByPeer, .. }))
    );
    pair.a.assert_empty();
    pair.b.assert_empty();
    assert!(pair.tcp.is_empty(), "the connection is closed");
}

#[test]
fn over_tcp_a_silent_peer_is_given_up_without_repetition() {
    let mut a = tcp_config();
    a.dpd_delay = Some(seconds(30));
    let mut pair = Pair::up(a);
    pair.b.host.connections.clear();
    let count = pair.a.sent.len();
    // The peer forgets everything, and its TCP goes on acknowledging.
    pair.b.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
    pair.run(seconds(200));
    assert_eq!(pair.a.sent.len(), count + 1, "RFC 9329, 6.2");
    assert!(
        pair.a
            .events
            .iter()
            .any(|e| matches!(e, Event::IkeDown { reason: DownReason::PeerDead, .. }))
    );
    pair.a.assert_empty();
}

// RFC 9329, 6.1: one IKE SA for each connection.
#[test]
fn a_second_ike_sa_on_a_connection_is_refused() {
    let mut pair = Pair::up(tcp_config());
    let path = pair.b.sa().path;
    let mut init = pair.a.sent[0].2.clone();
    init[0] ^= 0xff;
    assert_eq!(pair.inject(false, &path, &init), Received::Dropped(DropReason::ConnectionInUse));
}

// RFC 9329, 6.1: "unless the Originator will use it for another session".
#[test]
fn a_connection_in_use_for_the_next_session_is_not_closed_behind_the_last() {
    let mut pair = Pair::up(tcp_config());
    let (path, init) = (pair.b.sa().path, pair.a.sent[0].2.clone());
    let ike = pair.a.sa().id;
    pair.a.endpoint.terminate(pair.now, ike, &mut pair.a.host).unwrap();
    pair.run(Duration::from_millis(15));
    assert_eq!(pair.b.endpoint.sas().count(), 0);
    // A would close it now; here it keeps it.
    pair.a.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
    assert_eq!(pair.inject(false, &path, &init), Received::Accepted);
    pair.run(seconds(6));
    assert!(pair.b.closes.is_empty(), "the first has lingered long enough");
    pair.run(seconds(30));
    assert_eq!(pair.b.closes, [path.conn.unwrap()], "the second never came up");
    pair.b.assert_empty();
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

// RFC 7296, 2.2 and 2.3.
#[test]
fn replayed_messages_do_nothing_or_bring_the_same_answer() {
    let mut pair = Pair::up(config());
    let path = pair.b.sa().path;
    let auth = pair.a.sent[1].2.clone();
    let init = pair.a.sent[0].2.clone();
    let before = (pair.b.host.installed.len(), pair.b.events.len());
    assert_eq!(pair.inject(false, &path, &auth), Received::Repeated);
    assert_eq!(pair.b.sent.last().unwrap().2, pair.b.sent[1].2, "the cached response");
    let answered = pair.inject(false, &path, &init);
    assert_eq!(answered, Received::Accepted, "an old IKE_SA_INIT begins a half-open SA, no more");
    let response = pair.b.sent[1].2.clone();
    let back = pair.a.sa().path;
    assert_eq!(pair.inject(true, &back, &response), Received::Dropped(DropReason::MessageId));
    assert_eq!((pair.b.host.installed.len(), pair.b.events.len()), before);
    for at in 28..auth.len() {
        let mut touched = auth.clone();
        touched[at] ^= 1;
        let received = pair.inject(false, &path, &touched);
        assert!(matches!(received, Received::Dropped(_)), "octet {at}");
    }
    pair.run(seconds(60));
    pair.assert_child();
}

// RFC 7296, 2.21.3: only what passed the integrity check may end an SA.
#[test]
fn a_forged_request_or_response_leaves_everything_as_it_was() {
    let mut a = config();
    a.dpd_delay = Some(seconds(5));
    let mut pair = Pair::new(a.clone(), mirror(&a));
    pair.initiate();
    pair.run(seconds(2));
    pair.net.udp_blocked = true;
    pair.run(seconds(5));
    let (to_b, to_a) = (pair.b.sa().path, pair.a.sa().path);
    let check = pair.a.sent.last().unwrap().2.clone();
    assert_eq!(check[18], INFORMATIONAL);
    let dropped = |received| matches!(received, Received::Dropped(_));
    for at in 0..check.len() {
        for bit in 0..8 {
            let mut forged = check.clone();
            forged[at] ^= 1 << bit;
            assert!(dropped(pair.inject(false, &to_b, &forged)), "octet {at} of the request");
        }
    }
    assert_eq!(pair.inject(false, &to_b, &check), Received::Accepted);
    let answer = pair.b.sent.last().unwrap().2.clone();
    for at in 0..answer.len() {
        let mut forged = answer.clone();
        forged[at] ^= 0x80;
        assert!(dropped(pair.inject(true, &to_a, &forged)), "octet {at} of the answer");
    }
    assert_eq!(pair.inject(true, &to_a, &answer), Received::Accepted);
    pair.assert_child();
}

#[test]
fn repeated_first_requests_make_one_half_open_sa() {
    let mut pair = started(config(), mirror(&config()));
    pair.run(Duration::from_millis(12));
    let path = Path::udp(format!("{B}:500").parse().unwrap(), format!("{A}:500").parse().unwrap());
    let init = pair.a.sent[0].2.clone();
    for _ in 0..5 {
        assert_eq!(pair.inject(false, &path, &init), Received::Repeated);
    }
    assert_eq!(pair.b.endpoint.len(), 1);
    assert!(pair.b.sent.iter().all(|(_, _, m)| *m == pair.b.sent[0].2));
    let mut other = init;
    *other.last_mut().unwrap() ^= 1;
    assert_eq!(pair.inject(false, &path, &other), Received::Dropped(DropReason::MessageId));
}

#[test]
fn half_open_sas_are_limited_in_all_and_for_each_source_and_end() {
    let limits = EndpointConfig {
        half_open_max: 5,
        half_open_per_source_max: 3,
        ..EndpointConfig::default()
    };
    let mut pair = Pair::with_limits(config(), mirror(&config()), limits);
    pair.initiate();
    pair.run(seconds(1));
    let init = pair.a.sent[0].2.clone();
    let knock = |pair: &mut Pair, spi: u8, from: &str| {
        let mut octets = init.clone();
        octets[0] = spi;
        let local = format!("{B}:500").parse().unwrap();
        pair.inject(false, &Path::udp(local, from.parse().unwrap()), &octets)
    };
    for spi in 0..3 {
        assert_eq!(knock(&mut pair, spi, "198.51.100.1:500"), Received::Accepted);
    }
    let full = Received::Dropped(DropReason::HalfOpenLimit);
    assert_eq!(knock(&mut pair, 3, "198.51.100.1:500"), full);
    for spi in 4..6 {
        assert_eq!(knock(&mut pair, spi, "198.51.100.2:500"), Received::Accepted);
    }
    assert_eq!(knock(&mut pair, 6, "198.51.100.3:500"), full, "five in all");
    pair.run(seconds(40));
    assert_eq!(pair.b.endpoint.len(), 1, "only the established one is left");
    assert_eq!(knock(&mut pair, 7, "198.51.100.1:500"), Received::Accepted);
}

// RFC 7296, 2.5.
#[test]
fn another_major_version_is_answered_with_ours() {
    let mut pair = Pair::new(config(), mirror(&config()));
    let path = Path::udp(format!("{B}:500").parse().unwrap(), format!("{A}:500").parse().unwrap());
    let mut octets = vec![1; 28];
    octets[17] = 0x30;
    octets[18] = INIT;
    octets[19] = 0x08;
    octets[24..28].copy_from_slice(&28u32.to_be_bytes());
    let dropped = Received::Dropped(DropReason::BadVersion);
    assert_eq!(pair.inject(false, &path, &octets), dropped);
    let answer = culvert_ike::message::Message::decode(&pair.b.sent[0].2).unwrap();
    assert!(answer.notify(NotifyType::INVALID_MAJOR_VERSION).is_some());
    assert_eq!((answer.header.major, answer.header.response), (2, true));
    octets[17] = 0x10;
    assert_eq!(pair.inject(false, &path, &octets), dropped);
    assert_eq!(pair.b.sent.len(), 1, "IKEv1 gets no answer");
}

// RFC 7296, 2.6.
#[test]
fn an_initiator_returns_the_cookie() {
    let mut pair = started(config(), mirror(&config()));
    pair.net.udp_blocked = true;
    pair.run(Duration::from_millis(1));
    let init = pair.a.sent[0].2.clone();
    let mut cookie = init[..28].to_vec();
    cookie[16] = 41;
    cookie[19] = 0x20;
    cookie[24..28].copy_from_slice(&44u32.to_be_bytes());
    cookie.extend_from_slice(&[0, 0, 0, 16, 0, 0, 0x40, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]);
    pair.net.udp_blocked = false;
    let path = pair.a.sa().path;
    assert_eq!(pair.inject(true, &path, &cookie), Received::Accepted);
    let again = &pair.a.sent[1].2;
    assert_eq!(again[36..44], [1, 2, 3, 4, 5, 6, 7, 8], "it comes first");
    assert_eq!(again[44..], init[28..], "all else is the same");
    pair.run(seconds(1));
    pair.assert_child();
}

// RFC 7296, 2.4 and 3.10.1.
#[test]
fn a_new_ike_sa_of_the_same_peer_replaces_the_old_one() {
    for unique in [true, false] {
        let mut a = config();
        a.unique = unique;
        let mut pair = Pair::up(a);
        let old = pair.b.sa().id;
        if !unique {
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

// The data plane saw an authentic ESP packet on another connection (RFC 9329, 6.1).
#[test]
fn ike_follows_the_path_of_esp() {
    let mut pair = Pair::up(tcp_config());
    let sa = pair.b.sa();
    let conn = Some(culvert_ike::ConnToken(999));
    let remote = "198.51.100.7:7777".parse().unwrap();
    let path = ChildPath { transport: Transport::Tcp, local: sa.path.local, remote, conn };
    pair.b.endpoint.path_moved(pair.now, sa.id, &path, &mut pair.b.host);
    assert_eq!((pair.b.sa().path.conn, pair.b.sa().path.remote), (conn, remote));
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
