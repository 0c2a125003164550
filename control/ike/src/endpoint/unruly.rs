//! What a peer gets that is authenticated, and breaks the rules or asks for too much.

use std::time::Duration;

use super::tests::{ask, take_sa};
use crate::config::ConnectionConfig;
use crate::event::{DownReason, Event};
use crate::message::{ExchangeType, Message, NotifyType, Payload, SelectorItem};
use crate::negotiate;
use crate::pair::{Pair, child, config};
use crate::sa::IkeSa;

fn offer() -> Vec<Payload> {
    let net = &config().children[0];
    vec![
        Payload::Sa(negotiate::esp_offer(&net.proposals, 0x5555, true)),
        Payload::Nonce(vec![3; 32]),
        Payload::selectors(true, &net.local_ts),
        Payload::selectors(false, &net.remote_ts),
    ]
}

// RFC 7296, 2.21.3: "all requests having errors MUST result in a response notifying the other end of the
// error", and INVALID_SYNTAX is fatal in both peers. IKE_AUTH is over, 43 was not agreed on.
#[test]
fn a_request_of_an_exchange_that_is_not_expected_is_answered_and_ends_the_ike_sa() {
    for exchange in [ExchangeType::IKE_AUTH, ExchangeType(43)] {
        let mut pair = Pair::up(config());
        let mut sa = take_sa(&mut pair);
        let answer = ask(&mut pair, &mut sa, exchange, vec![]);
        assert_eq!((answer.header.exchange, answer.header.response), (exchange, true));
        assert_eq!(answer.payloads, [Payload::notify(NotifyType::INVALID_SYNTAX, [])]);
        let down =
            |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::ProtocolError(_), .. });
        assert!(pair.b.events.iter().any(down));
        pair.run(Duration::from_secs(10));
        pair.b.assert_empty();
    }
}

/// Whether a rekey of the IKE SA, or a new pair, is refused for now.
fn put_off(pair: &mut Pair, sa: &mut IkeSa) -> bool {
    let answer = ask(pair, sa, ExchangeType::CREATE_CHILD_SA, offer());
    answer.payloads == [Payload::notify(NotifyType::TEMPORARY_FAILURE, [])]
}

// RFC 8019, 5: "If a peer initiates an abusive amount of CREATE_CHILD_SA exchanges to rekey IKE SAs or
// Child SAs, the Responder SHOULD reply with TEMPORARY_FAILURE notifications".
#[test]
fn a_peer_that_asks_for_keys_without_end_is_slowed_down() {
    let mut pair = Pair::up(config());
    let mut sa = take_sa(&mut pair);
    let granted = (0..1000).filter(|_| !put_off(&mut pair, &mut sa)).count();
    assert_eq!(granted, 100, "more than all the pairs that it may have at once");
    let alive = ask(&mut pair, &mut sa, ExchangeType::INFORMATIONAL, vec![]);
    assert!(alive.payloads.is_empty(), "all else is answered as ever");
    pair.run(Duration::from_secs(10));
    assert!(!put_off(&mut pair, &mut sa));
}

// RFC 7296, 2.2: Message IDs never wrap. The last ones are not used.
#[test]
fn an_ike_sa_whose_message_ids_are_used_up_ends() {
    let used_up = |events: &[Event]| {
        let reason = DownReason::ProtocolError("its Message IDs are used up");
        events.iter().any(|e| matches!(e, Event::IkeDown { reason: r, .. } if *r == reason))
    };
    for asked_by_a in [true, false] {
        let mut pair = Pair::up(config());
        for (side, is_a) in [(&mut pair.a, true), (&mut pair.b, false)] {
            let id = side.sa().id;
            let ids = if is_a == asked_by_a { (u32::MAX - 1, 0) } else { (0, u32::MAX - 1) };
            let sa = side.endpoint.table.get_mut(id).unwrap().sa_mut();
            sa.as_mut().unwrap().use_up(ids.0, ids.1);
        }
        let now = pair.now;
        for _ in 0..2 {
            let side = if asked_by_a { &mut pair.a } else { &mut pair.b };
            let Some(id) = side.host.installed.values().next().map(|sa| sa.id) else { continue };
            side.endpoint.rekey_child(now, id, &mut side.host).unwrap();
        }
        pair.run(Duration::from_secs(400));
        let (own, other) = match asked_by_a {
            true => (&pair.a, &pair.b),
            false => (&pair.b, &pair.a),
        };
        assert!(used_up(&other.events), "the peer's are");
        assert!(used_up(&own.events), "its own are");
        assert!(own.host.installed.is_empty() && own.host.reserved.is_empty());
        let last = |m: &Vec<u8>| m[20..24] == [0xff; 4];
        assert!(!own.sent.iter().any(|(_, _, m)| last(m)));
    }
}

// RFC 7296, 3.13: a TS payload may list 255 selectors. More than are kept are narrowed away, and nothing
// is wrong with them.
#[test]
fn many_selectors_are_narrowed_to_the_first_ones() {
    let mut pair = Pair::up(config());
    let mut sa = take_sa(&mut pair);
    let item = |n: u8| {
        let net = child(&[&format!("10.1.0.{n}")], &["10.2.0.0/24"], "aes128gcm16");
        SelectorItem::Range(net.local_ts[0])
    };
    let mut request = offer();
    request[2] = Payload::TsI((0..255).map(item).collect());
    let answer: Message = ask(&mut pair, &mut sa, ExchangeType::CREATE_CHILD_SA, request);
    let Some(Payload::TsI(narrowed)) =
        answer.payloads.iter().find(|p| matches!(p, Payload::TsI(_)))
    else {
        panic!("{:?}", answer.payloads)
    };
    assert_eq!(*narrowed, (0..16).map(item).collect::<Vec<_>>());
    assert_eq!(pair.b.sa().children.len(), 2);
}

// RFC 4555, 4.2.5: a COOKIE2 has 8 to 64 octets, and is given back as it is.
#[test]
fn a_cookie2_that_is_none_is_not_given_back() {
    let mut pair = Pair::up(config());
    let mut sa = take_sa(&mut pair);
    for (len, given_back) in [(7, false), (8, true), (64, true), (65, false), (20_000, false)] {
        let cookie = vec![Payload::notify(NotifyType::COOKIE2, vec![9; len])];
        let answer = ask(&mut pair, &mut sa, ExchangeType::INFORMATIONAL, cookie.clone());
        assert_eq!(answer.payloads, if given_back { cookie } else { vec![] }, "{len}");
    }
}

/// Lets the peer say that it is somewhere else, and gives the cookie that it is asked for, if it is one.
fn move_peer(pair: &mut Pair, sa: &mut IkeSa, host: u8) -> Option<Payload> {
    let remote = std::net::SocketAddr::from(([198, 51, 100, host], 4500));
    let path = crate::Path::udp(pair.b.sa().path.local, remote);
    let update = vec![Payload::notify(NotifyType::UPDATE_SA_ADDRESSES, [])];
    let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, update).unwrap();
    pair.inject(false, &path, &wire.whole);
    let message = sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap();
    let asked = message.notifies().find(|n| n.kind == NotifyType::COOKIE2);
    asked.filter(|_| !message.header.response).cloned().map(Payload::Notify)
}

// RFC 7296, 2.1: a Delete that gets no answer ends in time, however often its peer moves meanwhile.
#[test]
fn a_peer_that_moves_without_end_does_not_outlive_its_delete() {
    let mut pair = Pair::up(ConnectionConfig { mobike: true, ..config() });
    let mut sa = take_sa(&mut pair);
    let (now, ike) = (pair.now, pair.b.sa().id);
    pair.b.endpoint.terminate(now, ike, &mut pair.b.host).unwrap();
    for host in 0..200 {
        if pair.b.endpoint.sas().count() == 0 {
            return;
        }
        move_peer(&mut pair, &mut sa, host);
        pair.run(Duration::from_secs(3));
    }
    panic!("it is still there after ten minutes");
}

// Nor does a cookie go before the Delete each time (RFC 4555, 3.7).
#[test]
fn a_peer_that_moves_without_end_is_told_that_it_is_deleted() {
    let mut pair = Pair::up(ConnectionConfig { mobike: true, ..config() });
    let mut sa = take_sa(&mut pair);
    let (now, ike) = (pair.now, pair.b.sa().id);
    let mut cookie = move_peer(&mut pair, &mut sa, 1);
    pair.b.endpoint.terminate(now, ike, &mut pair.b.host).unwrap();
    let mut asked = 0;
    while let Some(back) = cookie.filter(|_| asked < 20) {
        asked += 1;
        move_peer(&mut pair, &mut sa, 1 + asked);
        let path = pair.b.sa().path;
        let answer = sa.response(ExchangeType::INFORMATIONAL, vec![back]).unwrap();
        pair.inject(false, &path, &answer.whole);
        let next = sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap();
        assert!(!next.header.response);
        cookie = next.notify(NotifyType::COOKIE2).cloned().map(Payload::Notify);
    }
    assert_eq!(asked, 1, "the one that was asked for before");
}

// RFC 4555, 3.5: who moves while it is being told of the end hears of it there, at once.
#[test]
fn a_delete_follows_a_peer_that_moves() {
    let mut pair = Pair::up(ConnectionConfig { mobike: true, ..config() });
    let mut sa = take_sa(&mut pair);
    let (now, path, ike) = (pair.now, pair.b.sa().path, pair.b.sa().id);
    pair.net.udp_blocked = true;
    pair.b.endpoint.terminate(now, ike, &mut pair.b.host).unwrap();
    pair.run(Duration::from_millis(1));
    let elsewhere = crate::Path::udp(path.local, "192.0.2.9:4500".parse().unwrap());
    let update = vec![Payload::notify(NotifyType::UPDATE_SA_ADDRESSES, [])];
    let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, update).unwrap();
    pair.inject(false, &elsewhere, &wire.whole);
    let deletes = pair.b.sent.iter().filter(|(_, path, octets)| {
        let message = sa.open(octets).ok().flatten();
        *path == elsewhere
            && message.is_some_and(|m| matches!(m.payloads[..], [Payload::Delete(..)]))
    });
    assert_eq!(deletes.count(), 1);
}
