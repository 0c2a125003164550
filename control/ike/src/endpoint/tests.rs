//! Exchanges that this side does not begin itself: the test plays the peer with A's keys.

use std::time::Duration;

use crate::config::{ConnectionConfig, TransportChoice};
use crate::crypto::Private;
use crate::event::{DownReason, Event};
use crate::keys::{IkeKeys, Inputs, skeyseed_rekeyed};
use crate::message::{ExchangeType, Message, NotifyType, Payload, Protocol};
use crate::nat;
use crate::negotiate;
use crate::pair::{Pair, config};
use crate::proposal::KeyExchange;
use crate::sa::IkeSa;

/// Sends a request of A by hand; gives B's answer.
pub(super) fn ask(
    pair: &mut Pair,
    sa: &mut IkeSa,
    exchange: ExchangeType,
    payloads: Vec<Payload>,
) -> Message {
    let (_, wire) = sa.request(exchange, payloads).unwrap();
    let path = pair.b.sa().path;
    pair.inject(false, &path, &wire.whole);
    sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap()
}

/// A's side of the IKE SA.
pub(super) fn take_sa(pair: &mut Pair) -> IkeSa {
    let id = pair.a.sa().id;
    pair.a.endpoint.table.get_mut(id).unwrap().sa_mut().take().unwrap()
}

/// B's side of the IKE SA.
fn take_sa_of_b(pair: &mut Pair) -> IkeSa {
    let id = pair.b.sa().id;
    pair.b.endpoint.table.get_mut(id).unwrap().sa_mut().take().unwrap()
}

/// The same message, whose first payload is an unknown one with the critical bit.
fn with_critical(sa: &IkeSa, octets: &[u8]) -> Vec<u8> {
    let key = if sa.initiator { &sa.keys.sk_ei } else { &sa.keys.sk_er };
    let (head, rest) = octets.split_at(32);
    let (iv, text) = rest.split_at(8);
    let iv: [u8; 8] = iv.try_into().unwrap();
    let mut head = head.to_vec();
    let mut text = key.open(&head, &iv, &mut text.to_vec()).unwrap().to_vec();
    head[28] = UNKNOWN;
    text[1] |= 0x80;
    key.seal(&head, &iv, &mut text).unwrap();
    [head, iv.to_vec(), text].concat()
}

const UNKNOWN: u8 = 200;

// RFC 7296, 2.5, in each exchange.
#[test]
fn an_unknown_critical_payload_is_named_in_every_exchange() {
    let named = |answer: &Message| {
        let [Payload::Notify(notify)] = &answer.payloads[..] else {
            panic!("{:?}", answer.payloads)
        };
        assert_eq!(notify.kind, NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD);
        assert_eq!(notify.data, [UNKNOWN]);
    };
    // IKE_SA_INIT, in the clear: nothing is kept.
    let mut pair = Pair::new(config(), crate::pair::mirror(&config()));
    pair.net.lose = [1, 0];
    pair.initiate();
    pair.run(Duration::from_millis(50));
    let (_, path, mut first) = pair.a.sent[0].clone();
    let path = crate::Path::udp(path.remote, path.local);
    first[16] = UNKNOWN;
    first[29] |= 0x80;
    pair.inject(false, &path, &first);
    named(&Message::decode(&pair.b.sent.last().unwrap().2).unwrap());
    assert!(pair.b.endpoint.is_empty());

    // IKE_AUTH: protected, and the attempt ends. A's own comes behind it, too late.
    pair.run(Duration::from_millis(3_955));
    pair.net.lose = [1, 0];
    pair.run(Duration::from_secs(1));
    let auth = pair.a.sent.last().unwrap().2.clone();
    assert_eq!(auth[18], 35);
    let mut sa = take_sa(&mut pair);
    pair.inject(false, &path, &with_critical(&sa, &auth));
    named(&sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap());
    assert_eq!(pair.b.endpoint.sas().count(), 0);
    assert!(pair.b.events.iter().any(|e| matches!(e, Event::Refused { .. })));

    // CREATE_CHILD_SA and INFORMATIONAL: the IKE SA stays.
    let mut pair = Pair::up(config());
    let mut sa = take_sa(&mut pair);
    for exchange in [ExchangeType::CREATE_CHILD_SA, ExchangeType::INFORMATIONAL] {
        let (_, wire) = sa.request(exchange, vec![Payload::Vendor(vec![1])]).unwrap();
        pair.inject(false, &path, &with_critical(&sa, &wire.whole));
        named(&sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap());
        assert_eq!(pair.b.sa().children.len(), 1);
    }
}

// RFC 9329, 6.1: connections of one peer side by side. The answer goes where the request came from;
// the path follows what is new, not what is repeated.
#[test]
fn several_connections_of_one_peer_live_side_by_side() {
    let mut pair = Pair::up(ConnectionConfig { transport: TransportChoice::Tcp, ..config() });
    let mut sa = take_sa(&mut pair);
    let first = pair.b.sa().path;
    let on = |token: u64| crate::Path { conn: Some(crate::ConnToken(token)), ..first };
    let (second, third) = (on(901), on(902));
    let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, vec![]).unwrap();
    pair.inject(false, &second, &wire.whole);
    assert_eq!(pair.b.sent.last().unwrap().1, second, "answered where it came from");
    assert_eq!(pair.b.sa().path, second, "new and authentic: the path follows");
    pair.inject(false, &third, &wire.whole);
    assert_eq!(pair.b.sent.last().unwrap().1, third);
    assert_eq!(pair.b.sa().path, second, "a repetition moves nothing");

    // The others may go; only the loss of the one in use is felt.
    let (now, b) = (pair.now, &mut pair.b);
    b.endpoint.tcp_closed(now, crate::ConnToken(902), &mut b.host);
    b.endpoint.tcp_closed(now, first.conn.unwrap(), &mut b.host);
    assert_eq!(pair.b.sa().path, second);
    let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, vec![]).unwrap();
    pair.inject(false, &on(903), &wire.whole);
    assert_eq!(pair.b.sa().path, on(903));
    assert!(!pair.b.events.iter().any(|e| matches!(e, Event::TcpLost { .. })));
}

// RFC 7296, 1.3.2, 2.8 and 2.18.
#[test]
fn a_peer_rekeys_the_ike_sa_and_deletes_the_old_one() {
    let mut pair = Pair::up(config());
    let mut old = take_sa(&mut pair);
    let before = pair.b.sa();
    let private = Private::generate(KeyExchange::X25519, &mut |out| out.fill(5)).unwrap();
    let (spi_i, nonce_i) = (0x7777_u64, vec![3; 32]);
    let request = vec![
        Payload::Sa(negotiate::ike_offer(&config().proposals, &spi_i.to_be_bytes())),
        Payload::Nonce(nonce_i.clone()),
        Payload::Ke(31, private.public().to_vec()),
    ];
    let answer = ask(&mut pair, &mut old, ExchangeType::CREATE_CHILD_SA, request);
    let [Payload::Sa(proposals), Payload::Nonce(nonce_r), Payload::Ke(31, public)] =
        &answer.payloads[..]
    else {
        panic!("{:?}", answer.payloads)
    };
    let spi_r = negotiate::ike_spi(&proposals[0]).unwrap();
    let inputs = Inputs { nonce_i: &nonce_i, nonce_r, spi_i, spi_r };
    let seed = skeyseed_rekeyed(&old.keys, &inputs, &private.agree(public).unwrap());
    let keys = IkeKeys::derive(&old.suite, &seed, &inputs).unwrap();
    let mut new = IkeSa::new((spi_i, spi_r), true, old.suite, keys, pair.now, (0, 0));
    assert!(pair.b.events.iter().any(|e| matches!(e, Event::IkeRekeyed { .. })));
    let after = pair.b.sa();
    assert_eq!((after.id, after.spi_i, after.spi_r), (before.id, spi_i, spi_r));
    assert_eq!(after.children.len(), 1, "the CHILD SAs go over");
    assert!(!after.initiator, "who began stays who began");

    let alive = ask(&mut pair, &mut new, ExchangeType::INFORMATIONAL, vec![]);
    assert_eq!((alive.payloads.len(), alive.header.message_id), (0, 0), "IDs begin at 0");
    let child = pair.b.child().spi_out.to_be_bytes().to_vec();
    let offer = negotiate::esp_offer(&config().children[0].proposals, 0x5555, true);
    let late = vec![Payload::Sa(offer), Payload::Nonce(vec![1; 16])];
    let late = ask(&mut pair, &mut old, ExchangeType::CREATE_CHILD_SA, late);
    assert!(late.error().is_some(), "the old IKE SA makes nothing new");
    let delete = vec![Payload::Delete(Protocol::IKE, vec![])];
    assert!(ask(&mut pair, &mut old, ExchangeType::INFORMATIONAL, delete).payloads.is_empty());
    pair.b.endpoint.handle_timeout(pair.now + Duration::from_secs(10), &mut pair.b.host);
    assert_eq!(pair.b.endpoint.table.by_spi(before.spi_r), None, "the old SPI is forgotten");

    let delete = vec![Payload::Delete(Protocol::ESP, vec![child])];
    let deleted = ask(&mut pair, &mut new, ExchangeType::INFORMATIONAL, delete);
    assert!(
        matches!(&deleted.payloads[..], [Payload::Delete(Protocol::ESP, spis)] if spis.len() == 1)
    );
    assert!(pair.b.host.installed.is_empty());
}

// RFC 7296, 2.5, 2.21.3 and 2.25.1; RFC 9329, 6.1.
#[test]
fn requests_that_cannot_be_granted_get_their_notification() {
    let mut pair = Pair::up(config());
    let mut sa = take_sa(&mut pair);
    let rekey = |kind| {
        Payload::Notify(crate::message::Notify {
            protocol: Protocol::ESP,
            spi: vec![1, 2, 3, 4],
            kind,
            data: vec![],
        })
    };
    let request = vec![
        rekey(NotifyType::REKEY_SA),
        Payload::Sa(negotiate::esp_offer(&config().children[0].proposals, 0x5555, true)),
        Payload::Nonce(vec![3; 32]),
        Payload::selectors(true, &config().children[0].local_ts),
        Payload::selectors(false, &config().children[0].remote_ts),
    ];
    let answer = ask(&mut pair, &mut sa, ExchangeType::CREATE_CHILD_SA, request);
    assert_eq!(answer.payloads, [rekey(NotifyType::CHILD_SA_NOT_FOUND)]);
    let critical = Payload::Unused(crate::message::PayloadType(200), vec![]);
    let mut skipped = ask(&mut pair, &mut sa, ExchangeType::INFORMATIONAL, vec![critical]);
    assert!(skipped.payloads.is_empty(), "unknown, but not critical");
    // Two octets too many in a TS payload.
    let bad = vec![Payload::Unused(crate::message::PayloadType::TS_I, vec![1, 0, 0, 0, 9, 9])];
    skipped = ask(&mut pair, &mut sa, ExchangeType::CREATE_CHILD_SA, bad);
    assert!(skipped.notify(NotifyType::INVALID_SYNTAX).is_some());
    assert_eq!(pair.b.endpoint.sas().count(), 0, "the IKE SA is torn down");
    assert!(pair.b.host.installed.is_empty());
}

#[test]
fn every_way_to_a_session_is_there_as_long_as_it_is() {
    let mut pair = Pair::up(config());
    let (old, first, now) = (pair.a.sa().id, pair.a.child().id, pair.now);
    assert_eq!(pair.a.endpoint.table.by_child(first), Some(old));
    pair.a.endpoint.reauthenticate(now, old, &mut pair.a.host).unwrap();
    let table = &pair.a.endpoint.table;
    let new = table.successor_of(old).unwrap();
    assert_eq!(table.by_connection("ab").map(|s| s.id).collect::<Vec<_>>(), [old, new]);
    pair.run(Duration::from_secs(10));
    let (second, table) = (pair.a.child().id, &pair.a.endpoint.table);
    assert_eq!((table.by_child(first), table.by_child(second)), (None, Some(new)));
    assert_eq!(table.successor_of(old), None);
    assert_eq!(table.by_connection("ab").count(), 1);
    pair.a.endpoint.rekey_child(pair.now, second, &mut pair.a.host).unwrap();
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.a.endpoint.table.by_child(pair.a.child().id), Some(new));
    pair.a.endpoint.terminate(pair.now, new, &mut pair.a.host).unwrap();
    pair.run(Duration::from_secs(10));
    for side in [&pair.a, &pair.b] {
        assert_eq!((side.endpoint.table.len(), side.endpoint.table.ways()), (0, 0));
    }
}

// RFC 7296, 2.21.3: INVALID_SYNTAX is fatal in both peers, without a Delete.
#[test]
fn a_request_that_lacks_a_payload_ends_the_ike_sa() {
    let offer = || Payload::Sa(negotiate::esp_offer(&config().children[0].proposals, 0x5555, true));
    let nonce = || Payload::Nonce(vec![3; 32]);
    let ike = || Payload::Sa(negotiate::ike_offer(&config().proposals, &[7; 8]));
    for (request, lacks) in [
        (vec![offer()], "a nonce"),
        (vec![offer(), nonce()], "selectors"),
        (vec![ike(), nonce()], "a public value"),
        (vec![ike(), nonce(), Payload::Ke(31, vec![0; 32])], "a public value that is one"),
    ] {
        let mut pair = Pair::up(config());
        let mut sa = take_sa(&mut pair);
        let answer = ask(&mut pair, &mut sa, ExchangeType::CREATE_CHILD_SA, request);
        assert_eq!(answer.payloads, [Payload::notify(NotifyType::INVALID_SYNTAX, [])], "{lacks}");
        let down =
            |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::ProtocolError(_), .. });
        assert!(pair.b.events.iter().any(down), "{lacks}");
        assert!(pair.b.host.installed.is_empty() && pair.b.host.reserved.is_empty(), "{lacks}");
        pair.run(Duration::from_secs(10));
        pair.b.assert_empty();
    }
}

// The same, told by the peer.
#[test]
fn the_answer_that_a_request_was_malformed_ends_the_ike_sa() {
    for child in [true, false] {
        let mut pair = Pair::up(config());
        let mut sa = take_sa_of_b(&mut pair);
        let (now, a) = (pair.now, &mut pair.a);
        let (ike, id) = (a.sa().id, a.child().id);
        if child {
            a.endpoint.rekey_child(now, id, &mut a.host).unwrap();
        } else {
            a.endpoint.rekey_ike(now, ike, &mut a.host).unwrap();
        }
        pair.net.udp_blocked = true;
        pair.run(Duration::from_millis(5));
        let (_, path, asked) = pair.a.sent.last().unwrap().clone();
        sa.open(&asked).unwrap().unwrap();
        let told = vec![Payload::notify(NotifyType::INVALID_SYNTAX, [])];
        let answer = sa.response(ExchangeType::CREATE_CHILD_SA, told).unwrap();
        pair.inject(true, &path, &answer.whole);
        let reason = DownReason::PeerRefused(NotifyType::INVALID_SYNTAX);
        let down = |e: &Event| matches!(e, Event::IkeDown { reason: r, .. } if *r == reason);
        assert!(pair.a.events.iter().any(down));
        assert!(pair.a.host.installed.is_empty() && pair.a.host.reserved.is_empty());
    }
}

// RFC 4478, 2: the responder says it at any time; zero is now.
#[test]
fn the_initiator_heeds_an_auth_lifetime_that_comes_later() {
    for (seconds, margin) in [(100_u32, 10), (0, 0)] {
        let mut pair = Pair::up(config());
        let mut sa = take_sa_of_b(&mut pair);
        let told = vec![Payload::notify(NotifyType::AUTH_LIFETIME, seconds.to_be_bytes())];
        let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, told).unwrap();
        let path = pair.a.sa().path;
        pair.inject(true, &path, &wire.whole);
        assert!(sa.open(&pair.a.sent.last().unwrap().2).unwrap().unwrap().payloads.is_empty());
        let begun =
            |pair: &Pair| pair.a.events.iter().any(|e| matches!(e, Event::Reauthenticating { .. }));
        let due = Duration::from_secs((seconds - margin).into());
        pair.run(due.saturating_sub(Duration::from_secs(1)));
        assert!(due.is_zero() || !begun(&pair));
        pair.run(Duration::from_secs(2));
        assert!(begun(&pair));
    }
}

fn mobile_pair() -> Pair {
    Pair::up(ConnectionConfig { mobike: true, ..config() })
}

fn update() -> Payload {
    Payload::notify(NotifyType::UPDATE_SA_ADDRESSES, [])
}

// RFC 4555, 3.8: "if the request includes them, the responder MUST also include them in the response".
#[test]
fn nat_digests_are_answered_with_digests() {
    let mut pair = mobile_pair();
    let mut sa = take_sa(&mut pair);
    let seen = crate::Path::udp(pair.b.sa().path.local, "198.51.100.9:777".parse().unwrap());
    let (spi_i, spi_r) = sa.spis();
    let (_, wire) = sa
        .request(ExchangeType::INFORMATIONAL, nat::notifies(spi_i, spi_r, &seen, false).into())
        .unwrap();
    let before = pair.b.sa().path;
    pair.inject(false, &seen, &wire.whole);
    let answer = sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap();
    assert_eq!(answer.payloads, nat::notifies(spi_i, spi_r, &seen, false));
    assert_eq!(pair.b.sa().path, before, "no other action is taken");
}

// RFC 4555, 3.7: a COOKIE2 that comes back changed, or not at all, ends the IKE SA.
#[test]
fn a_wrong_cookie2_closes_the_ike_sa() {
    for cookie in [None, Some(vec![1; 16])] {
        let mut pair = mobile_pair();
        let mut sa = take_sa(&mut pair);
        let elsewhere = crate::Path::udp(pair.b.sa().path.local, "192.0.2.9:4500".parse().unwrap());
        let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, vec![update()]).unwrap();
        pair.inject(false, &elsewhere, &wire.whole);
        let check = sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap();
        assert!(check.notify(NotifyType::COOKIE2).is_some() && !check.header.response);
        let back = cookie.map(|octets| Payload::notify(NotifyType::COOKIE2, octets));
        let wire = sa.response(ExchangeType::INFORMATIONAL, back.into_iter().collect()).unwrap();
        pair.inject(false, &elsewhere, &wire.whole);
        let delete = sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap();
        assert_eq!(delete.payloads, [Payload::Delete(Protocol::IKE, vec![])]);
        let wire = sa.response(ExchangeType::INFORMATIONAL, vec![]).unwrap();
        pair.inject(false, &elsewhere, &wire.whole);
        assert!(pair.b.host.installed.is_empty() && pair.b.endpoint.sas().count() == 0);
    }
}

/// A peer whose answers come from another address each time is not asked for ever.
#[test]
fn answers_from_elsewhere_end_a_move() {
    let mut pair = mobile_pair();
    let (now, ike) = (pair.now, pair.a.sa().id);
    pair.net.udp_blocked = true;
    let before = pair.a.sent.len();
    let to = crate::PathChoice::Udp { local: None, remote: None };
    pair.a.endpoint.move_to(now, ike, to, &mut pair.a.host).unwrap();
    pair.run(Duration::from_millis(1));
    let mut sa = take_sa_of_b(&mut pair);
    let mut asked = 0;
    let mut port = 1000;
    while let Some((_, _, octets)) = pair.a.sent.get(before + asked).cloned() {
        asked += 1;
        sa.open(&octets).unwrap();
        let wire = sa.response(ExchangeType::INFORMATIONAL, vec![]).unwrap();
        port += 1;
        let path = pair.a.sa().path;
        let remote = std::net::SocketAddr::new(path.remote.ip(), port);
        pair.inject(true, &crate::Path::udp(path.local, remote), &wire.whole);
    }
    assert_eq!(asked, 4);
    let reason = crate::MoveFailure::AnsweredFromElsewhere;
    assert!(pair.a.events.contains(&Event::MoveFailed { ike, reason }), "{:?}", pair.a.events);
}

// RFC 4555, 3.7: ESP goes to no address of which the peer has not shown that it is there.
#[test]
fn another_port_is_not_taken_for_an_address_that_was_checked() {
    let mut pair = mobile_pair();
    let mut sa = take_sa(&mut pair);
    let local = pair.b.sa().path.local;
    let before = *pair.b.host.paths.values().next().unwrap();
    let paths = |pair: &Pair| *pair.b.host.paths.values().next().unwrap();
    for port in [4500, 5000] {
        let victim =
            crate::Path::udp(local, std::net::SocketAddr::new([192, 0, 2, 9].into(), port));
        let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, vec![update()]).unwrap();
        pair.inject(false, &victim, &wire.whole);
        assert_eq!(paths(&pair), before, "{port}");
    }
    pair.restart(false);
    assert_eq!(paths(&pair), before, "nor after a restart");
}

// RFC 7296, 2.25.1: the peer has not got the pair any more, and nobody wants it.
#[test]
fn a_pair_that_the_peer_has_not_got_and_that_is_to_go_is_not_asked_for_again() {
    let mut pair = Pair::up(config());
    let (now, id) = (pair.now, pair.a.child().id);
    pair.net.udp_blocked = true;
    pair.a.endpoint.rekey_child(now, id, &mut pair.a.host).unwrap();
    pair.a.endpoint.terminate_child(now, id, &mut pair.a.host).unwrap();
    pair.run(Duration::from_millis(1));
    let mut sa = take_sa_of_b(&mut pair);
    let (_, path, asked) = pair.a.sent.last().unwrap().clone();
    sa.open(&asked).unwrap().unwrap();
    let told = vec![Payload::notify(NotifyType::CHILD_SA_NOT_FOUND, [])];
    let answer = sa.response(ExchangeType::CREATE_CHILD_SA, told).unwrap();
    pair.inject(true, &path, &answer.whole);
    let creates = pair.a.requests().iter().filter(|x| **x == 36).count();
    assert_eq!(creates, 1);
    assert!(pair.a.host.installed.is_empty() && pair.a.host.reserved.is_empty());
}

/// A mobile pair whose IKE SA has no CHILD SA, and the IKE SA of `a`, for a peer that may do anything.
fn childless_mobile_pair() -> (Pair, IkeSa) {
    let mut pair = mobile_pair();
    let (now, id) = (pair.now, pair.a.child().id);
    pair.a.endpoint.terminate_child(now, id, &mut pair.a.host).unwrap();
    pair.run(Duration::from_secs(1));
    let sa = take_sa(&mut pair);
    (pair, sa)
}

// The same for the first pair of an IKE SA that has none, which brings its way along.
#[test]
fn a_first_pair_waits_until_the_peers_address_is_checked() {
    let (mut pair, mut sa) = childless_mobile_pair();
    let path = pair.b.sa().path;
    let victim = crate::Path::udp(path.local, "192.0.2.9:4500".parse().unwrap());
    let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, vec![update()]).unwrap();
    pair.inject(false, &victim, &wire.whole);
    let net = &config().children[0];
    let request = vec![
        Payload::Sa(negotiate::esp_offer(&net.proposals, 0x5555, true)),
        Payload::Nonce(vec![3; 32]),
        Payload::selectors(true, &net.local_ts),
        Payload::selectors(false, &net.remote_ts),
    ];
    let answer = ask(&mut pair, &mut sa, ExchangeType::CREATE_CHILD_SA, request);
    assert_eq!(answer.payloads, [Payload::notify(NotifyType::TEMPORARY_FAILURE, [])]);
    assert!(pair.b.host.installed.is_empty());
}

/// An answer that grants the pair which a CREATE_CHILD_SA request asks for.
fn granted(asked: &Message, spi: u32) -> Vec<Payload> {
    let net = &config().children[0];
    let ke = negotiate::ChildKe::Configured(KeyExchange::X25519);
    let offered = asked.payloads.iter().find_map(|payload| match payload {
        Payload::Sa(proposals) => negotiate::select_esp(proposals, &net.proposals, ke),
        _ => None,
    });
    let (proposal, suite) = offered.unwrap();
    let selectors =
        asked.payloads.iter().filter(|p| matches!(p, Payload::TsI(_) | Payload::TsR(_)));
    let mut payloads = vec![Payload::Sa(vec![negotiate::esp_answer(proposal, &suite, spi)])];
    payloads.push(Payload::Nonce(vec![3; 32]));
    payloads.extend(selectors.cloned());
    payloads
}

// The same for one that this side has asked for before the peer moved. What it answers from there, the
// peer need not have received there.
#[test]
fn a_first_pair_that_is_granted_from_an_unchecked_address_waits_for_the_check() {
    let (mut pair, mut sa) = childless_mobile_pair();
    let (now, b) = (pair.now, &mut pair.b);
    let (ike, path) = (b.sa().id, b.sa().path);
    b.endpoint.initiate_child(now, ike, "net", &mut b.host).unwrap();
    pair.run(Duration::from_millis(1));
    let last = |pair: &Pair, sa: &mut IkeSa| {
        let (_, path, octets) = pair.b.sent.last().unwrap();
        (*path, sa.open(octets).unwrap().unwrap())
    };
    let (_, asked) = last(&pair, &mut sa);
    let victim = crate::Path::udp(path.local, "192.0.2.9:4500".parse().unwrap());
    let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, vec![update()]).unwrap();
    pair.inject(false, &victim, &wire.whole);
    let wire = sa.response(ExchangeType::CREATE_CHILD_SA, granted(&asked, 0x5555)).unwrap();
    pair.inject(false, &victim, &wire.whole);
    assert!(pair.b.host.installed.is_empty(), "ESP would go there");
    // The peer is there after all: the pair that was of no use goes, and another one comes.
    let (to, check) = last(&pair, &mut sa);
    let cookie = check.notify(NotifyType::COOKIE2).expect("a cookie goes first").clone();
    assert_eq!(to, victim);
    let back = vec![Payload::Notify(cookie)];
    let wire = sa.response(ExchangeType::INFORMATIONAL, back).unwrap();
    pair.inject(false, &victim, &wire.whole);
    let (_, stray) = last(&pair, &mut sa);
    assert!(matches!(stray.payloads[..], [Payload::Delete(Protocol::ESP, _)]), "{stray:?}");
    let wire = sa.response(ExchangeType::INFORMATIONAL, vec![]).unwrap();
    pair.inject(false, &victim, &wire.whole);
    let (_, asked) = last(&pair, &mut sa);
    let wire = sa.response(ExchangeType::CREATE_CHILD_SA, granted(&asked, 0x6666)).unwrap();
    pair.inject(false, &victim, &wire.whole);
    assert_eq!(pair.b.child().path.remote, victim.remote);
    assert_eq!(pair.b.host.reserved.len(), 0);
}

// A cookie that comes back from where the peer is no more leaves ESP where it is, not where it was.
#[test]
fn a_cookie_that_comes_late_lets_esp_go_to_where_tcp_has_shown_the_peer() {
    let mut pair = mobile_pair();
    let mut sa = take_sa(&mut pair);
    let local = pair.b.sa().path.local;
    let first = crate::Path::udp(local, "192.0.2.9:4500".parse().unwrap());
    let remote = "192.0.2.10:5000".parse().unwrap();
    let second = crate::Path::tcp(local, remote, crate::ConnToken(901));
    let third = crate::Path::udp(local, "192.0.2.10:4500".parse().unwrap());
    let mut check = None;
    for path in [first, second, third] {
        let (_, wire) = sa.request(ExchangeType::INFORMATIONAL, vec![update()]).unwrap();
        pair.inject(false, &path, &wire.whole);
        check.get_or_insert_with(|| sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap());
    }
    let cookie = check.unwrap().notify(NotifyType::COOKIE2).unwrap().clone();
    let back = vec![Payload::Notify(cookie)];
    let wire = sa.response(ExchangeType::INFORMATIONAL, back).unwrap();
    pair.inject(false, &third, &wire.whole);
    assert_eq!(pair.b.sa().path, third);
    let esp = pair.b.host.paths.values().next().unwrap();
    assert_eq!((esp.remote, esp.conn), (third.remote, None));
}
