//! What two endpoints say to each other when both want something at once (RFC 7296, 2.25), or when
//! one of them has lost what the other asks about: read with the keys of both.

use std::sync::Arc;
use std::time::Duration;

use crate::config::ConnectionConfig;
use crate::event::{Event, IkeState};
use crate::message::{ExchangeType, Header, Message, Payload, Protocol};
use crate::pair::{Pair, Side, child, config};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What a message says of SAs: proposals, notifications, Deletes.
fn contents(message: &Message) -> String {
    let named = message.payloads.iter().filter_map(|payload| match payload {
        Payload::Sa(proposals) if proposals[0].protocol == Protocol::IKE => Some("SA(IKE)".into()),
        Payload::Sa(_) => Some("SA(ESP)".into()),
        Payload::Delete(Protocol::IKE, _) => Some("D(IKE)".into()),
        Payload::Delete(_, spis) => Some(format!("D({} ESP)", spis.len())),
        Payload::Notify(n)
            if n.kind == crate::message::NotifyType::ESP_TFC_PADDING_NOT_SUPPORTED =>
        {
            None
        }
        Payload::Notify(n) => Some(format!("N({})", n.kind)),
        _ => None,
    });
    named.collect::<Vec<_>>().join(" ")
}

/// A message of a side, as `A asks CREATE SA(ESP)` for a CREATE_CHILD_SA request.
fn line(pair: &Pair, name: &str, octets: &[u8]) -> String {
    let (header, _) = Header::decode(octets).unwrap();
    let verb = if header.response { "answers" } else { "asks" };
    let exchange = match header.exchange {
        ExchangeType::CREATE_CHILD_SA => "CREATE",
        ExchangeType::INFORMATIONAL => "INFO",
        _ => return format!("{name} {verb} else"),
    };
    let sealed = Message::decode(octets).unwrap();
    let sessions = pair.a.endpoint.table.sessions().chain(pair.b.endpoint.table.sessions());
    let sa = sessions
        .flat_map(crate::sa::Session::keyed)
        .find(|sa| sa.spis() == (header.spi_i, header.spi_r))
        .expect("its keys are still there");
    let key = if header.from_initiator { &sa.keys.sk_ei } else { &sa.keys.sk_er };
    let message = sealed.open(&mut octets.to_vec(), key).unwrap();
    format!("{name} {verb} {exchange} {}", contents(&message)).trim_end().to_owned()
}

/// All that both have sent since `from`, in order of time, A first.
fn said(pair: &Pair, from: crate::Instant) -> Vec<String> {
    let of = |side: &Side, name| {
        let sent = side.sent.iter().filter(move |(at, ..)| *at >= from);
        sent.map(move |(at, _, octets)| (*at, name, octets.clone())).collect::<Vec<_>>()
    };
    let mut all = [of(&pair.a, "A"), of(&pair.b, "B")].concat();
    all.sort_by_key(|(at, name, _)| (*at, *name));
    all.iter().map(|(_, name, octets)| line(pair, name, octets)).collect()
}

fn with_more() -> ConnectionConfig {
    let mut a = config();
    let mut more = child(&["10.1.9.0/24"], &["10.2.9.0/24"], "aes128gcm16");
    more.name = "more".into();
    a.children.push(Arc::new(more));
    a
}

fn rekey_child(side: &mut Side, now: crate::Instant) {
    let id = side.child().id;
    side.endpoint.rekey_child(now, id, &mut side.host).unwrap();
}

fn delete_child(side: &mut Side, now: crate::Instant) {
    let id = side.child().id;
    side.endpoint.terminate_child(now, id, &mut side.host).unwrap();
}

fn rekey_ike(side: &mut Side, now: crate::Instant) {
    let id = side.sa().id;
    side.endpoint.rekey_ike(now, id, &mut side.host).unwrap();
}

fn delete_ike(side: &mut Side, now: crate::Instant) {
    let id = side.sa().id;
    side.endpoint.terminate(now, id, &mut side.host).unwrap();
}

/// Lets a side lose its pair without a word.
fn lose_child(side: &mut Side, now: crate::Instant) {
    let (ike, id) = (side.sa().id, side.child().id);
    side.endpoint.with(now, ike, &mut side.host, |s, cx| s.remove_child(cx, id, None)).unwrap();
}

// RFC 7296, 1.4.1 and 2.25.1: what both close is named in the requests only.
#[test]
fn crossing_deletes_of_a_pair_are_answered_without_a_delete_payload() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    delete_child(&mut pair.a, now);
    delete_child(&mut pair.b, now);
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        ["A asks INFO D(1 ESP)", "B asks INFO D(1 ESP)", "A answers INFO", "B answers INFO"]
    );
    assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());
}

// RFC 7296, 2.25.1: "If a peer receives a request to close a Child SA that does not exist, it SHOULD
// reply without a Delete payload."
#[test]
fn the_delete_of_a_pair_that_is_not_there_is_answered_without_a_delete_payload() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    lose_child(&mut pair.b, now);
    delete_child(&mut pair.a, now);
    pair.run(seconds(1));
    assert_eq!(said(&pair, now), ["A asks INFO D(1 ESP)", "B answers INFO"]);
    assert!(pair.a.host.installed.is_empty());
}

// RFC 7296, 2.25: CHILD_SA_NOT_FOUND. "A peer that receives [it] SHOULD silently delete the Child SA
// (if it still exists) and send a request to create a new Child SA from scratch".
#[test]
fn a_pair_that_the_peer_has_lost_is_made_anew() {
    let mut pair = Pair::up(config());
    let (now, old) = (pair.now, pair.a.child().id);
    lose_child(&mut pair.b, now);
    rekey_child(&mut pair.a, now);
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        [
            "A asks CREATE N(REKEY_SA) SA(ESP)",
            "B answers CREATE N(CHILD_SA_NOT_FOUND)",
            "A asks CREATE SA(ESP)",
            "B answers CREATE SA(ESP)",
        ]
    );
    pair.assert_child();
    assert!(pair.a.child().id != old && pair.a.child().replaces.is_none());
}

/// Lets a side forget what it has asked for.
fn forget_request(side: &mut Side, now: crate::Instant) {
    let ike = side.sa().id;
    side.endpoint.with(now, ike, &mut side.host, |s, _| s.forget_request()).unwrap();
}

/// The pair that was made last.
fn newest(side: &Side) -> crate::event::ChildId {
    side.host.installed.values().map(|child| child.id).max().unwrap()
}

// The same after a rekey that the peer had asked for and whose answer it never took, as strongSwan
// 5.9.8 does: the pair before is the one that both have.
#[test]
fn a_pair_that_the_peer_never_made_leaves_its_place_to_the_one_before() {
    let mut pair = Pair::up(config());
    let old = pair.a.child().id;
    let begun = pair.now;
    rekey_child(&mut pair.b, begun);
    pair.run(Duration::from_millis(12));
    assert_eq!((pair.a.host.installed.len(), pair.b.host.installed.len()), (2, 1));
    forget_request(&mut pair.b, begun);
    pair.run(seconds(1));
    let now = pair.now;
    let never_made = newest(&pair.a);
    pair.a.endpoint.rekey_child(now, never_made, &mut pair.a.host).unwrap();
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        [
            "A asks CREATE N(REKEY_SA) SA(ESP)",
            "B answers CREATE N(CHILD_SA_NOT_FOUND)",
            "A asks CREATE N(REKEY_SA) SA(ESP)",
            "B answers CREATE SA(ESP)",
            "A asks INFO D(1 ESP)",
            "B answers INFO D(1 ESP)",
        ]
    );
    pair.assert_child();
    assert_eq!(pair.a.child().replaces, Some(old));
}

// RFC 7296, 2.8.1: after a simultaneous rekey each side deletes the pair too many that it made. One
// that has forgotten what it asked for deletes nothing; whoever wins, one pair is left, and the IKE SA
// stays.
#[test]
fn a_simultaneous_rekey_that_one_side_forgets_leaves_one_pair() {
    for seed in 0..12 {
        let mut pair = Pair::up(with_lifetime(seconds(1000)));
        let (begun, ike) = (pair.now, pair.a.sa().id);
        pair.a.host.reseed(2 * seed);
        pair.b.host.reseed(2 * seed + 1);
        rekey_child(&mut pair.a, begun);
        rekey_child(&mut pair.b, begun);
        pair.run(Duration::from_millis(12));
        forget_request(&mut pair.b, begun);
        pair.run(seconds(1200));
        assert_eq!(pair.a.sa().id, ike, "{seed}: {:?}", pair.a.events);
        pair.assert_child();
        assert_eq!(pair.a.sa().children.len(), 1, "{seed}");
    }
}

fn with_lifetime(rekey_time: Duration) -> ConnectionConfig {
    let mut a = config();
    let mut net = (*a.children[0]).clone();
    net.lifetime.rekey_time = Some(rekey_time);
    net.lifetime.over_time = seconds(100);
    a.children = vec![Arc::new(net)];
    a
}

// RFC 7296, 2.8: whoever began a rekey deletes the old pair. If it does not, that one ends with its
// lifetime, and alone, however often its successor was rekeyed by then.
#[test]
fn an_old_pair_that_the_peer_does_not_delete_ends_alone() {
    let mut pair = Pair::up(with_lifetime(seconds(1000)));
    let (begun, ike) = (pair.now, pair.a.sa().id);
    rekey_child(&mut pair.b, begun);
    pair.run(Duration::from_millis(12));
    // B has nothing left to delete when the answer comes.
    lose_child(&mut pair.b, begun);
    pair.run(seconds(1));
    assert_eq!((pair.a.host.installed.len(), pair.b.host.installed.len()), (2, 1));
    let now = pair.now;
    let successor = newest(&pair.a);
    pair.a.endpoint.rekey_child(now, successor, &mut pair.a.host).unwrap();
    pair.run(seconds(1200));
    assert_eq!(pair.a.sa().id, ike, "{:?}", pair.a.events);
    pair.assert_child();
}

// RFC 7296, 2.25.1: a rekey of what is being closed; the close of what is being rekeyed.
#[test]
fn a_rekey_of_a_pair_that_the_peer_deletes_is_refused_for_now_and_the_delete_answered_as_usual() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    rekey_child(&mut pair.a, now);
    delete_child(&mut pair.b, now);
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        [
            "A asks CREATE N(REKEY_SA) SA(ESP)",
            "B asks INFO D(1 ESP)",
            "A answers INFO D(1 ESP)",
            "B answers CREATE N(TEMPORARY_FAILURE)",
        ]
    );
    pair.run(seconds(60));
    for side in [&pair.a, &pair.b] {
        assert!(side.host.installed.is_empty() && side.host.reserved.is_empty());
        assert_eq!(side.sa().state, IkeState::Established);
    }
}

// RFC 7296, 2.8.1, the second sequence: A's request is lost at first, and comes again when B has
// rekeyed and closed the pair.
#[test]
fn a_rekey_that_arrives_when_the_pair_is_gone_finds_no_pair() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    pair.net.lose = [1, 0];
    rekey_child(&mut pair.a, now);
    rekey_child(&mut pair.b, now);
    pair.run(seconds(5));
    assert_eq!(
        said(&pair, now),
        [
            "A asks CREATE N(REKEY_SA) SA(ESP)",
            "B asks CREATE N(REKEY_SA) SA(ESP)",
            "A answers CREATE SA(ESP)",
            "B asks INFO D(1 ESP)",
            "A answers INFO D(1 ESP)",
            "A asks CREATE N(REKEY_SA) SA(ESP)",
            "B answers CREATE N(CHILD_SA_NOT_FOUND)",
        ]
    );
    pair.assert_child();
}

// RFC 7296, 2.8.2: the same with the IKE SA. B's Delete, after which A would forget its own request,
// is lost too.
#[test]
fn a_rekey_of_the_ike_sa_that_comes_late_is_refused_for_now() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    pair.net.lose = [1, 0];
    rekey_ike(&mut pair.a, now);
    rekey_ike(&mut pair.b, now);
    pair.run(Duration::from_millis(15));
    pair.net.lose = [0, 1];
    pair.run(seconds(4));
    assert_eq!(
        said(&pair, now),
        [
            "A asks CREATE SA(IKE)",
            "B asks CREATE SA(IKE)",
            "A answers CREATE SA(IKE)",
            "B asks INFO D(IKE)",
            "A asks CREATE SA(IKE)",
            "B answers CREATE N(TEMPORARY_FAILURE)",
        ]
    );
    pair.run(seconds(10));
    pair.assert_child();
    assert_eq!((pair.a.sa().spi_i, pair.a.sa().spi_r), (pair.b.sa().spi_i, pair.b.sa().spi_r));
}

// RFC 7296, 2.25.1 and 2.25.2: the IKE SA is rekeyed by A while B makes, rekeys or closes a pair.
#[test]
fn a_rekey_of_the_ike_sa_and_a_change_of_a_pair_refuse_each_other_for_now() {
    for (what, asked, answered) in [
        ("make", "B asks CREATE SA(ESP)", "A answers CREATE N(TEMPORARY_FAILURE)"),
        ("rekey", "B asks CREATE N(REKEY_SA) SA(ESP)", "A answers CREATE N(TEMPORARY_FAILURE)"),
        ("delete", "B asks INFO D(1 ESP)", "A answers INFO D(1 ESP)"),
    ] {
        let mut pair = Pair::up(with_more());
        let now = pair.now;
        rekey_ike(&mut pair.a, now);
        match what {
            "make" => {
                let ike = pair.b.sa().id;
                pair.b.endpoint.initiate_child(now, ike, "more", &mut pair.b.host).unwrap();
            }
            "rekey" => rekey_child(&mut pair.b, now),
            _ => delete_child(&mut pair.b, now),
        }
        pair.run(seconds(1));
        let refused = "B answers CREATE N(TEMPORARY_FAILURE)";
        assert_eq!(said(&pair, now), ["A asks CREATE SA(IKE)", asked, answered, refused]);
    }
}

// RFC 7296, 2.25.2: a rekey of an IKE SA that is being closed; the close of one that is being rekeyed.
#[test]
fn a_rekey_of_an_ike_sa_that_the_peer_closes_is_refused_for_now() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    rekey_ike(&mut pair.a, now);
    delete_ike(&mut pair.b, now);
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        [
            "A asks CREATE SA(IKE)",
            "B asks INFO D(IKE)",
            "A answers INFO",
            "B answers CREATE N(TEMPORARY_FAILURE)",
        ]
    );
    pair.run(seconds(10));
    pair.a.assert_empty();
    pair.b.assert_empty();
}

// RFC 7296, 2.25.2: "it SHOULD reply as usual, and forget about its own close request".
#[test]
fn crossing_deletes_of_the_ike_sa_are_answered_as_usual() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    delete_ike(&mut pair.a, now);
    delete_ike(&mut pair.b, now);
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        ["A asks INFO D(IKE)", "B asks INFO D(IKE)", "A answers INFO", "B answers INFO"]
    );
    for side in [&pair.a, &pair.b] {
        let down = side.events.iter().filter(|e| matches!(e, Event::IkeDown { .. })).count();
        assert_eq!(down, 1);
    }
}

// The end that somebody asks for while a pair is rekeyed is that of the pair which takes its place,
// too; and while the Delete has to wait, the peer does not rekey it any more (RFC 7296, 2.25.1).
#[test]
fn a_pair_that_is_terminated_during_its_rekey_does_not_come_back() {
    let mut pair = Pair::up(config());
    let now = pair.now;
    rekey_child(&mut pair.a, now);
    delete_child(&mut pair.a, now);
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        [
            "A asks CREATE N(REKEY_SA) SA(ESP)",
            "B answers CREATE SA(ESP)",
            "A asks INFO D(1 ESP)",
            "B answers INFO D(1 ESP)",
            "A asks INFO D(1 ESP)",
            "B answers INFO D(1 ESP)",
        ]
    );
    assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());

    let mut pair = Pair::up(with_more());
    let (now, ike) = (pair.now, pair.a.sa().id);
    pair.a.endpoint.rekey_ike(now, ike, &mut pair.a.host).unwrap();
    delete_child(&mut pair.a, now);
    rekey_child(&mut pair.b, now);
    pair.run(seconds(60));
    assert!(pair.a.host.installed.is_empty() && pair.b.host.installed.is_empty());
}

// The same where both rekey the pair at once: whichever of the two new ones stays, it goes.
#[test]
fn a_pair_that_is_terminated_while_both_rekey_it_does_not_come_back() {
    for seed in 0..8 {
        let mut pair = Pair::up(config());
        let now = pair.now;
        pair.a.host.reseed(2 * seed);
        pair.b.host.reseed(2 * seed + 1);
        let old = pair.a.child().id;
        rekey_child(&mut pair.a, now);
        rekey_child(&mut pair.b, now);
        pair.run(Duration::from_millis(12));
        assert_eq!(pair.a.host.installed.len(), 2, "B's new one beside the old one");
        pair.a.endpoint.terminate_child(pair.now, old, &mut pair.a.host).unwrap();
        pair.run(seconds(60));
        for side in [&pair.a, &pair.b] {
            assert!(side.host.installed.is_empty() && side.host.reserved.is_empty(), "{seed}");
            assert_eq!(side.sa().state, IkeState::Established);
        }
    }
}

// What waits for its turn behind a question whether the peer lives is not done when the peer has done
// it meanwhile: one rekey of the IKE SA, and not two in a row.
#[test]
fn a_rekey_of_the_ike_sa_that_waits_is_forgotten_when_the_peer_does_it() {
    let a = ConnectionConfig { dpd_delay: Some(seconds(30)), ..config() };
    let b = ConnectionConfig { dpd_delay: None, ..crate::pair::mirror(&a) };
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    let now = pair.now;
    pair.net.lose = [1, 0];
    pair.run(seconds(30));
    rekey_ike(&mut pair.a, now);
    let now = pair.now;
    rekey_ike(&mut pair.b, now);
    pair.run(seconds(1));
    assert_eq!(
        said(&pair, now),
        [
            "B asks CREATE SA(IKE)",
            "A answers CREATE SA(IKE)",
            "B asks INFO D(IKE)",
            "A answers INFO",
        ]
    );
}
