//! IKE fragmentation (RFC 7383), and answers to messages of unknown IKE SAs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildConfig, ConnectionConfig, DropReason, Fragmentation, Received, Transport, TransportChoice,
    message::{Message, NotifyType},
};
use pair::{Pair, Rng, Side, config, mirror};

const AUTH: u8 = 35;
const SKF: u8 = 53;

/// Many selectors make IKE_AUTH long.
fn long() -> ConnectionConfig {
    let mut a = config();
    let list = |net: u8| (0..16).map(|n| format!("10.{net}.{n}.0/24").parse().unwrap()).collect();
    a.children = vec![Arc::new(ChildConfig::new("net", list(1), list(2)))];
    a.fragment_size = 300;
    a
}

fn auths(side: &Side) -> Vec<&[u8]> {
    side.sent.iter().filter(|(_, _, m)| m[18] == AUTH).map(|(_, _, m)| &m[..]).collect()
}

// RFC 7383, 2.5.
#[test]
fn long_messages_go_in_fragments_over_udp() {
    let pair = Pair::up(long());
    pair.assert_child();
    for side in [&pair.a, &pair.b] {
        let auths = auths(side);
        assert!(auths.len() > 2);
        for (index, fragment) in auths.iter().enumerate() {
            assert_eq!(fragment[16], SKF);
            assert!(fragment.len() <= 300 - 52);
            assert_eq!(fragment[28] == 0, index > 0, "only the first names the first payload");
            assert_eq!(fragment[32..34], (index as u16 + 1).to_be_bytes());
            assert_eq!(fragment[34..36], (auths.len() as u16).to_be_bytes());
            assert_eq!(fragment[20..24], [0, 0, 0, 1], "one Message ID");
        }
    }
}

// RFC 9329 has no use for fragments, but they are agreed on over TCP too.
#[test]
fn over_tcp_nothing_is_cut() {
    let mut a = long();
    a.transport = TransportChoice::Tcp;
    let pair = Pair::up(a);
    assert_eq!((auths(&pair.a).len(), auths(&pair.b).len()), (1, 1));
    let init = Message::decode(&pair.a.sent[0].2).unwrap();
    assert_eq!(pair.a.sent[0].1.transport, Transport::Tcp);
    assert!(init.notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED).is_some());
}

// RFC 7383, 2.3.
#[test]
fn whoever_is_not_known_to_take_fragments_gets_none() {
    for (own, others) in
        [(Fragmentation::Yes, Fragmentation::No), (Fragmentation::No, Fragmentation::Yes)]
    {
        let mut a = long();
        a.fragmentation = own;
        let mut b = mirror(&a);
        b.fragmentation = others;
        let mut pair = Pair::new(a, b);
        pair.initiate();
        pair.run(Duration::from_secs(1));
        pair.assert_child();
        assert_eq!((auths(&pair.a).len(), auths(&pair.b).len()), (1, 1));
    }
}

// RFC 7383, 2.3: to say that fragments are supported is to take them, not to send them.
#[test]
fn whoever_only_accepts_fragments_sends_none() {
    for initiator_accepts in [true, false] {
        let mut a = long();
        let mut b = mirror(&a);
        let accepting = if initiator_accepts { &mut a } else { &mut b };
        accepting.fragmentation = Fragmentation::Accept;
        let mut pair = Pair::new(a, b);
        pair.initiate();
        pair.run(Duration::from_secs(1));
        pair.assert_child();
        let whole = [&pair.a, &pair.b].map(|side| auths(side).len() == 1);
        assert_eq!(whole, [initiator_accepts, !initiator_accepts]);
    }
}

// RFC 7383, 2.6.
#[test]
fn fragments_are_authentic_each_and_repetitions_are_answered_once() {
    let mut pair = Pair::new(long(), mirror(&long()));
    pair.initiate();
    pair.net.lose = [0, 0];
    pair.run(Duration::from_millis(25));
    let fragments: Vec<Vec<u8>> = auths(&pair.a).into_iter().map(<[u8]>::to_vec).collect();
    let path = pair.b.sa().path;
    for at in 28..fragments[1].len() {
        let mut forged = fragments[1].clone();
        forged[at] ^= 1;
        assert!(matches!(pair.inject(false, &path, &forged), Received::Dropped(_)), "octet {at}");
    }
    // Fragments arrive in any order and more than once.
    for fragment in fragments.iter().rev().chain(&fragments[1..]).take(fragments.len() - 1) {
        assert_eq!(pair.inject(false, &path, fragment), Received::Accepted);
        assert_eq!(pair.inject(false, &path, fragment), Received::Accepted);
    }
    assert!(auths(&pair.b).is_empty(), "one is missing");
    assert_eq!(pair.inject(false, &path, &fragments[0]), Received::Accepted);
    let answered = auths(&pair.b).len();
    assert!(answered > 2);
    assert_eq!(pair.inject(false, &path, &fragments[1]), Received::Repeated);
    assert_eq!(auths(&pair.b).len(), answered, "2.6.1: only the first fragment brings it again");
    assert_eq!(pair.inject(false, &path, &fragments[0]), Received::Repeated);
    assert_eq!(auths(&pair.b).len(), 2 * answered);
    pair.run(Duration::from_secs(1));
    pair.assert_child();
}

#[test]
fn fragments_survive_loss_repetition_reordering_and_rekeys() {
    for seed in 0..20 {
        let mut a = long();
        a.transport = TransportChoice::Udp;
        a.retransmission.tries = 30;
        a.retransmission.base = 1.0;
        let mut pair = Pair::new(a.clone(), mirror(&a));
        pair.net.rng = Rng(seed);
        (pair.net.loss, pair.net.repeated, pair.net.reordered) = (15, 20, 30);
        pair.initiate();
        pair.run(Duration::from_secs(200));
        let ike = pair.a.sa().id;
        pair.a.endpoint.rekey_ike(pair.now, ike, &mut pair.a.host).unwrap();
        pair.run(Duration::from_secs(200));
        let id = pair.b.child().id;
        pair.b.endpoint.rekey_child(pair.now, id, &mut pair.b.host).unwrap();
        pair.run(Duration::from_secs(300));
        pair.assert_child();
        assert!(pair.b.sent.iter().any(|(_, _, m)| m[18] == 36 && m[16] == SKF), "seed {seed}");
    }
}

// RFC 7296, 2.21.4.
#[test]
fn unknown_ike_sas_are_named_to_their_senders_so_many_a_second() {
    let mut pair = Pair::up(config());
    let path = pair.b.sa().path;
    let mut stranger = pair.a.sent[1].2.clone();
    stranger[8] ^= 0xff;
    let before = pair.b.sent.len();
    for _ in 0..100 {
        let received = pair.inject(false, &path, &stranger);
        assert_eq!(received, Received::Dropped(DropReason::UnknownSpi));
    }
    assert_eq!(pair.b.sent.len(), before + 10, "limited");
    let answer = Message::decode(&pair.b.sent[before].2).unwrap();
    assert!(answer.notify(NotifyType::INVALID_IKE_SPI).is_some());
    assert_eq!((answer.header.response, answer.header.message_id), (true, 1));
    pair.run(Duration::from_secs(2));
    stranger[19] |= 0x20;
    pair.inject(false, &path, &stranger);
    assert_eq!(pair.b.sent.len(), before + 10, "never to a response");
    let tcp = culvert_ike::Path::tcp(path.local, path.remote, culvert_ike::ConnToken(7));
    stranger[19] &= !0x20;
    pair.inject(false, &tcp, &stranger);
    assert_eq!(pair.b.sent.len(), before + 10, "not over TCP");
}

// RFC 7383, 2.6: "If the receiver does not get all IKE fragments needed to reassemble the original
// message within a timeout interval, it MUST discard all IKE Fragment messages received so far".
#[test]
fn fragments_whose_rest_does_not_come_are_given_up() {
    let mut pair = Pair::up(long());
    let id = pair.a.child().id;
    pair.net.udp_blocked = true;
    let before = pair.a.sent.len();
    pair.a.endpoint.rekey_child(pair.now, id, &mut pair.a.host).unwrap();
    pair.run(Duration::from_millis(1));
    let asked: Vec<Vec<u8>> = pair.a.sent[before..].iter().map(|(_, _, m)| m.clone()).collect();
    let (path, answers) = (pair.b.sa().path, pair.b.sent.len());
    let (last, others) = asked.split_last().unwrap();
    assert!(!others.is_empty());
    let idle = pair.b.endpoint.poll_timeout();
    for fragment in others {
        assert_eq!(pair.inject(false, &path, fragment), Received::Accepted);
    }
    // As long as this side would wait for an answer: 165 s.
    pair.run(Duration::from_secs(160));
    assert_ne!(pair.b.endpoint.poll_timeout(), idle);
    pair.run(Duration::from_secs(10));
    assert_eq!(pair.b.endpoint.poll_timeout(), idle);
    assert_eq!(pair.inject(false, &path, last), Received::Accepted);
    assert_eq!(pair.b.sent.len(), answers, "the others are forgotten");
    for fragment in others {
        assert_eq!(pair.inject(false, &path, fragment), Received::Accepted);
    }
    assert!(pair.b.sent.len() > answers, "the request as such is welcome");
}
