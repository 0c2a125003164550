//! Exchanges that this side does not begin itself: the test plays the peer with A's keys.

use std::time::Duration;

use crate::crypto::Private;
use crate::event::Event;
use crate::keys::{IkeKeys, Inputs, skeyseed_rekeyed};
use crate::message::{ExchangeType, Message, NotifyType, Payload, Protocol};
use crate::negotiate;
use crate::pair::{Pair, config};
use crate::proposal::KeyExchange;
use crate::sa::IkeSa;

/// Sends a request of A by hand; gives B's answer.
fn ask(pair: &mut Pair, sa: &mut IkeSa, exchange: ExchangeType, payloads: Vec<Payload>) -> Message {
    let (_, wire) = sa.request(exchange, payloads).unwrap();
    let path = pair.b.sa().path;
    pair.inject(false, &path, &wire.whole);
    sa.open(&pair.b.sent.last().unwrap().2).unwrap().unwrap()
}

/// A's side of the IKE SA.
fn take_sa(pair: &mut Pair) -> IkeSa {
    let id = pair.a.sa().id;
    pair.a.endpoint.table.get_mut(id).unwrap().sa_mut().take().unwrap()
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
