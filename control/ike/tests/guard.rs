//! Cookies and puzzles of a responder under load (RFC 7296, 2.6; RFC 8019; RFC 9329, 6.3), and
//! limits for each source.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::time::Duration;

use culvert_ike::{
    DropReason, EndpointConfig, Path, Received, TransportChoice,
    message::{Message, NotifyType, Payload},
};
use pair::{B, Pair, config, mirror};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn pair(transport: TransportChoice, cookie_threshold: usize, puzzle_threshold: usize) -> Pair {
    let mut a = config();
    a.transport = transport;
    let b = mirror(&a);
    let limits = EndpointConfig {
        cookie_threshold,
        puzzle_threshold,
        puzzle_bits: 10,
        ..EndpointConfig::default()
    };
    Pair::with_limits(a, b, limits)
}

fn first_answer(pair: &Pair) -> Message {
    Message::decode(&pair.b.sent[0].2).unwrap()
}

// RFC 7296, 2.6.
#[test]
fn under_load_a_peer_over_udp_must_return_a_cookie() {
    let mut pair = pair(TransportChoice::Udp, 0, usize::MAX);
    pair.initiate();
    pair.run(Duration::from_millis(15));
    assert_eq!(pair.b.endpoint.len(), 0, "no state is kept");
    let answer = first_answer(&pair);
    assert_eq!(answer.payloads.len(), 1);
    assert!(answer.notify(NotifyType::COOKIE).unwrap().data.len() <= 64);
    pair.run(seconds(1));
    pair.assert_child();
    let again = Message::decode(&pair.a.sent[1].2).unwrap();
    assert_eq!(again.payloads[0], answer.payloads[0], "it comes first");
}

// RFC 9329, 6.3: none over TCP without a puzzle; the port is no part of it.
#[test]
fn over_tcp_there_is_no_cookie_without_a_puzzle() {
    let mut cookies = pair(TransportChoice::Tcp, 0, usize::MAX);
    cookies.initiate();
    cookies.run(seconds(1));
    cookies.assert_child();
    assert!(first_answer(&cookies).notify(NotifyType::COOKIE).is_none());
    let mut puzzles = pair(TransportChoice::Tcp, 0, 0);
    puzzles.initiate();
    puzzles.run(seconds(5));
    puzzles.assert_child();
    let answer = first_answer(&puzzles);
    assert!(answer.notify(NotifyType::COOKIE).is_some());
    assert_eq!(answer.notify(NotifyType::PUZZLE).unwrap().data, [0, 5, 10]);
    assert_eq!(puzzles.tcp.len(), 1, "the same connection");
}

#[test]
fn a_cookie_holds_the_address_and_not_the_port() {
    let mut pair = pair(TransportChoice::Udp, 0, usize::MAX);
    pair.initiate();
    pair.run(Duration::from_millis(22));
    let with_cookie = pair.a.sent[1].2.clone();
    pair.net.udp_blocked = true;
    let path = |from: &str| Path::udp(format!("{B}:500").parse().unwrap(), from.parse().unwrap());
    let before = pair.b.sent.len();
    let received = pair.inject(false, &path("198.51.100.1:500"), &with_cookie);
    assert_eq!(received, Received::CookieDemanded);
    let answer = Message::decode(&pair.b.sent[before].2).unwrap();
    assert!(answer.notify(NotifyType::COOKIE).is_some(), "another address: another cookie");
    assert_eq!(pair.b.endpoint.len(), 0);
    let mut forged = with_cookie.clone();
    forged[40] ^= 1;
    pair.inject(false, &path("192.0.2.1:500"), &forged);
    assert_eq!(pair.b.endpoint.len(), 0);
    // Two changes of the secret later it is worth nothing.
    pair.inject(false, &path("192.0.2.1:7777"), &with_cookie);
    assert_eq!(pair.b.endpoint.len(), 1, "another port");
    pair.run(seconds(200));
    assert_eq!(pair.b.endpoint.len(), 0, "the half-open SA is gone");
    pair.inject(false, &path("192.0.2.1:500"), &with_cookie);
    assert_eq!(pair.b.endpoint.len(), 0, "an old cookie");
}

// RFC 8019, 7.1.
#[test]
fn a_puzzle_is_solved_and_a_wrong_solution_is_not_taken() {
    let mut pair = pair(TransportChoice::Udp, 0, 0);
    pair.initiate();
    pair.run(seconds(2));
    pair.assert_child();
    let solved = pair.a.sent.iter().rev().find(|(_, _, m)| m[18] == 34).unwrap().2.clone();
    let mut message = Message::decode(&solved).unwrap();
    assert!(matches!(message.payloads[1], Payload::PuzzleSolution(_)), "behind the cookie");
    let count = pair.b.endpoint.len();
    let path = pair.b.sa().path;
    message.payloads[1] = Payload::PuzzleSolution(vec![7; 32]);
    let dropped = Received::Dropped(DropReason::PuzzleUnsolved);
    assert_eq!(pair.inject(false, &path, &message.encode().unwrap()), dropped);
    message.payloads.remove(1);
    assert_eq!(pair.inject(false, &path, &message.encode().unwrap()), dropped);
    message.payloads.remove(0);
    let demanded = Received::PuzzleDemanded;
    assert_eq!(pair.inject(false, &path, &message.encode().unwrap()), demanded, "no cookie");
    assert_eq!(pair.b.endpoint.len(), count);
    assert_eq!(pair.inject(false, &path, &solved), Received::Accepted, "the right one");
    assert_eq!(pair.b.endpoint.len(), count + 1);
}

// RFC 9329, 6.3 and 6.3.1: to stay without state a responder closes the connection, and "the proper
// Initiator that repeats its request would need to re-establish the TCP connection". The cookie does not
// hold the port.
#[test]
fn a_puzzle_that_takes_longer_than_its_connection_is_answered_on_another() {
    for refused in [false, true] {
        let mut pair = pair(TransportChoice::Tcp, 0, 0);
        pair.b.endpoint.set_limits(EndpointConfig {
            puzzle_threshold: 0,
            puzzle_bits: 14,
            ..EndpointConfig::default()
        });
        pair.initiate();
        // It has come, and takes some 16 steps of a millisecond.
        pair.run(Duration::from_millis(42));
        assert_eq!(pair.a.sent.len(), 1);
        pair.net.tcp_refused = refused;
        pair.cut();
        pair.run(seconds(5));
        assert_eq!(pair.a.connects.len(), 2);
        if refused {
            pair.a.assert_empty();
            pair.b.assert_empty();
        } else {
            pair.assert_child();
        }
    }
}

// RFC 9329, 6.3 and 6.4: who does not come again loses the connection.
#[test]
fn a_connection_without_a_corrected_request_is_closed() {
    let mut pair = pair(TransportChoice::Tcp, 0, 0);
    pair.initiate();
    pair.run(Duration::from_millis(31));
    assert_eq!(pair.b.sent.len(), 1);
    let conn = pair.b.sent[0].1.conn.unwrap();
    // The Originator falls silent.
    pair.a.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
    pair.run(seconds(14));
    assert!(pair.b.closes.is_empty());
    pair.run(seconds(2));
    assert_eq!(pair.b.closes, [conn]);
    pair.b.assert_empty();
}
