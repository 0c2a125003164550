//! IKE over TCP (RFC 9329, 5 and 6): fallback, lost connections, repetition.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::time::Duration;

use culvert_ike::{
    ChildPath, ConnectRequest, DownReason, DropReason, EndpointConfig, Event, IkeState,
    InitiationError, Path, Received, Transport, TransportChoice,
};
use pair::{Pair, config, mirror};

const INIT: u8 = 34;
const AUTH: u8 = 35;
const INFORMATIONAL: u8 = 37;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn started(a: culvert_ike::ConnectionConfig, b: culvert_ike::ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair
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

/// When A asked for connections after the first one, in milliseconds after it lost that.
fn calls(pair: &Pair) -> Vec<u64> {
    let lost = pair.a.connects[1].as_micros();
    pair.a.connects[1..].iter().map(|at| (at.as_micros() - lost) / 1000).collect()
}

/// Whether each wait is as long as the rule says: at once, then 1, 2, 4, ... s, and up to a quarter more.
fn waits_double(calls: &[u64]) -> bool {
    let waits = calls.windows(2).map(|pair| pair[1] - pair[0]);
    calls[0] == 0
        && waits.zip(0..).all(|(wait, tries)| {
            let least = 1000 << tries;
            (least..least + least / 4 + 100).contains(&wait)
        })
}

#[test]
fn reconnecting_waits_longer_each_time() {
    let all: Vec<Vec<u64>> = (0..2)
        .map(|seed| {
            let mut pair = Pair::up(tcp_config());
            pair.a.host.reseed(seed);
            pair.net.tcp_refused = true;
            pair.cut();
            pair.run(seconds(100));
            let calls = calls(&pair);
            pair.net.tcp_refused = false;
            pair.run(seconds(100));
            assert!(pair.b.sa().path.conn.is_some());
            pair.assert_child();
            calls
        })
        .collect();
    for calls in &all {
        assert!(calls.len() == 7 && waits_double(calls), "{calls:?}");
    }
    assert_ne!(all[0], all[1], "those who have lost one gateway do not call it in step");
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

// RFC 9329, 6.1: a peer that has lost its state, or what stands before it, may take every connection
// and close it again unused. It does not answer any the more for that, and is not knocked up.
#[test]
fn a_peer_that_takes_connections_and_does_not_answer_is_given_up() {
    for (mobike, open_ms) in [(true, 5000), (false, 5000), (true, 50), (false, 50)] {
        let mut pair = Pair::up(culvert_ike::ConnectionConfig { mobike, ..tcp_config() });
        pair.b.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
        let lost = pair.now + seconds(5);
        pair.run(seconds(5));
        while pair.now < lost + seconds(70) {
            pair.cut();
            pair.run(Duration::from_millis(open_ms));
        }
        let dead = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::PeerDead, .. });
        assert!(pair.a.events.iter().any(dead), "no answer for longer than tcp_response_timeout");
        let at = pair.a.connects.iter().map(|at| at.as_micros().saturating_sub(lost.as_micros()));
        let waited: Vec<u64> = at.skip(1).collect();
        assert!(waited.len() <= 7, "at once, then with back-off: {waited:?}");
        pair.run(seconds(10));
        pair.a.assert_empty();
    }
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

// The data plane saw an authentic ESP packet on another connection (RFC 9329, 6.1).
#[test]
fn ike_follows_the_path_of_esp() {
    let mut pair = Pair::up(tcp_config());
    let sa = pair.b.sa();
    let conn = Some(culvert_ike::ConnToken(999));
    let remote = "198.51.100.7:7777".parse().unwrap();
    let path =
        ChildPath { transport: Transport::Tcp, local: sa.path.local, remote, conn, pinned: false };
    pair.b.endpoint.path_moved(pair.now, sa.id, &path, &mut pair.b.host);
    assert_eq!((pair.b.sa().path.conn, pair.b.sa().path.remote), (conn, remote));
}

// A process that dies when it is told of a connection is followed by one that is told once more.
#[test]
fn a_connection_in_use_that_is_told_of_again_stays() {
    let mut pair = Pair::up(tcp_config());
    let (now, path, side) = (pair.now, pair.a.sa().path, &mut pair.a);
    let (request, conn) = (ConnectRequest(u64::MAX), path.conn.unwrap());
    side.endpoint.tcp_opened(now, request, conn, path.local, path.remote, &mut side.host);
    pair.run(Duration::from_secs(1));
    assert!(pair.a.closes.is_empty());
}

// A CHILD SA has no gap where it is rekeyed: over TCP IKE messages overtake ESP packets, and so must not
// those that end the old pair, in either direction. All others may.
#[test]
fn the_messages_that_end_a_child_sa_do_not_overtake_its_packets() {
    for by_a in [true, false] {
        let mut pair = Pair::up(tcp_config());
        let now = pair.now;
        let side = if by_a { &mut pair.a } else { &mut pair.b };
        let id = side.child().id;
        side.endpoint.rekey_child(now, id, &mut side.host).unwrap();
        pair.run(Duration::from_secs(1));
        for side in [&pair.a, &pair.b] {
            let [ends] = &side.behind[..] else { panic!("{} messages", side.behind.len()) };
            assert_eq!(ends[18], 37, "INFORMATIONAL");
            assert_eq!(side.sent.last().map(|(.., octets)| octets), Some(ends));
        }
    }
}

// RFC 9329, 6.1 and 6.2: the responder has asked for new keys, and its connection broke before the answer
// came. It does not know the new IKE SA, and must hear of the new connection on the old one.
#[test]
fn a_rekey_whose_answer_was_lost_with_its_connection_is_finished_on_the_next() {
    for mobike in [false, true] {
        let mut pair = Pair::up(culvert_ike::ConnectionConfig { mobike, ..tcp_config() });
        let (now, ike) = (pair.now, pair.b.sa().id);
        pair.b.endpoint.rekey_ike(now, ike, &mut pair.b.host).unwrap();
        pair.run(Duration::from_millis(15));
        pair.cut();
        pair.run(seconds(200));
        for side in [&pair.a, &pair.b] {
            assert_eq!(side.sa().state, IkeState::Established);
            assert!(side.events.iter().any(|e| matches!(e, Event::IkeRekeyed { .. })));
        }
        let spis = |side: &pair::Side| (side.sa().spi_i, side.sa().spi_r);
        assert_eq!(spis(&pair.a), spis(&pair.b));
        assert!(pair.b.sa().path.conn.is_some());
        pair.assert_child();
    }
}

// RFC 9329, 6.1: what carries no IKE SA is closed.
#[test]
fn who_ends_a_half_open_ike_sa_closes_its_connection() {
    let mut b = mirror(&tcp_config());
    b.transport = TransportChoice::Tcp;
    let mut pair = started(tcp_config(), b);
    pair.run(Duration::from_millis(35));
    let half_open = pair.b.sa();
    assert_eq!(half_open.state, IkeState::HalfOpen);
    pair.b.endpoint.terminate(pair.now, half_open.id, &mut pair.b.host).unwrap();
    pair.run(Duration::from_millis(1));
    assert_eq!(pair.b.closes, [half_open.path.conn.unwrap()]);
}
