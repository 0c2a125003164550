//! A peer that has the keys and says whatever comes to its mind: every request gets one answer, nothing
//! is left behind, and no host is told anything that cannot be.

use std::time::Duration;

use super::Received;
use crate::config::ConnectionConfig;
use crate::crypto::Private;
use crate::event::{ChildId, Event};
use crate::message::{ExchangeType, Header, Message, Notify, NotifyType, Payload, Protocol};
use crate::negotiate;
use crate::pair::{Pair, Rng, Side, config};
use crate::proposal::KeyExchange;
use crate::sa::IkeSa;

/// The peer's side of the IKE SA that the victim has now.
fn peer_of(victim: &mut Side) -> Option<IkeSa> {
    let id = victim.endpoint.sas().next()?.id;
    victim.endpoint.table.get_mut(id)?.sa_mut().as_ref()?.of_the_peer()
}

/// A random entry.
fn one<T: Clone>(rng: &mut Rng, of: &[T]) -> Option<T> {
    let index = rng.next() as usize;
    of.get(index.checked_rem(of.len())?).cloned()
}

/// An SPI by which the peer may name a pair: mostly one that there is.
fn spi(rng: &mut Rng, victim: &Side) -> Vec<u8> {
    let known: Vec<u32> = victim.host.installed.values().map(|sa| sa.spi_out).collect();
    let any = rng.next() as u32;
    one(rng, &known).filter(|_| !any.is_multiple_of(8)).unwrap_or(any).to_be_bytes().to_vec()
}

fn nonce(rng: &mut Rng) -> Payload {
    Payload::Nonce((0..16 + rng.next() % 32).map(|_| rng.next() as u8).collect())
}

/// What asks for a pair, or grants one: now and then of another selector.
fn child(rng: &mut Rng, answer: bool) -> Vec<Payload> {
    let net = &config().children[0];
    let spi = rng.next() as u32 | 0x1000;
    let mut proposals = negotiate::esp_offer(&net.proposals, spi, true);
    if answer {
        // One ESN transform: the first that was offered.
        proposals[0].transforms.truncate(2);
    }
    let narrow = rng.percent(20);
    let ts = if narrow { &net.remote_ts } else { &net.local_ts };
    vec![
        Payload::Sa(proposals),
        nonce(rng),
        Payload::selectors(true, ts),
        Payload::selectors(false, &net.remote_ts),
    ]
}

/// What asks for new keys of the IKE SA, or grants them.
fn ike(rng: &mut Rng) -> Vec<Payload> {
    let private = Private::generate(KeyExchange::X25519, &mut |out| {
        out.fill_with(|| rng.next() as u8);
    });
    let public = private.unwrap().public().to_vec();
    let spi = (rng.next() | 1).to_be_bytes();
    let group = if rng.percent(10) { 19 } else { 31 };
    let proposals = negotiate::ike_offer(&config().proposals, &spi);
    vec![Payload::Sa(proposals), nonce(rng), Payload::Ke(group, public)]
}

fn notify(rng: &mut Rng) -> Payload {
    let kinds = [
        NotifyType::UPDATE_SA_ADDRESSES,
        NotifyType::NO_ADDITIONAL_ADDRESSES,
        NotifyType::COOKIE2,
        NotifyType::AUTH_LIFETIME,
        NotifyType::ADDITIONAL_IP4_ADDRESS,
        NotifyType::NO_NATS_ALLOWED,
        NotifyType::USE_TRANSPORT_MODE,
        NotifyType::TEMPORARY_FAILURE,
        NotifyType::CHILD_SA_NOT_FOUND,
        NotifyType::NO_ADDITIONAL_SAS,
        NotifyType::INVALID_KE_PAYLOAD,
        NotifyType::SINGLE_PAIR_REQUIRED,
        NotifyType::INVALID_SELECTORS,
        NotifyType::INVALID_MESSAGE_ID,
        NotifyType(8192),
        NotifyType(40_960),
    ];
    let kind = one(rng, &kinds).unwrap();
    let data: Vec<u8> = (0..rng.next() % 20).map(|_| rng.next() as u8).collect();
    Payload::notify(kind, if kind == NotifyType::AUTH_LIFETIME { vec![0, 1, 0, 0] } else { data })
}

/// A request of the peer.
fn request(rng: &mut Rng, victim: &Side) -> (ExchangeType, Vec<Payload>) {
    let rekeyed = |rng: &mut Rng| {
        let spi = spi(rng, victim);
        let rekey =
            Notify { protocol: Protocol::ESP, spi, kind: NotifyType::REKEY_SA, data: vec![] };
        [vec![Payload::Notify(rekey)], child(rng, false)].concat()
    };
    let delete = |rng: &mut Rng| {
        let spis = (0..1 + rng.next() % 4).map(|_| spi(rng, victim)).collect();
        vec![Payload::Delete(Protocol::ESP, spis)]
    };
    match rng.next() % 8 {
        0 | 1 => (ExchangeType::CREATE_CHILD_SA, child(rng, false)),
        2 | 3 => (ExchangeType::CREATE_CHILD_SA, rekeyed(rng)),
        4 => (ExchangeType::CREATE_CHILD_SA, ike(rng)),
        5 | 6 => (ExchangeType::INFORMATIONAL, delete(rng)),
        _ => {
            let notifies = (0..rng.next() % 4).map(|_| notify(rng)).collect();
            (ExchangeType::INFORMATIONAL, notifies)
        }
    }
}

/// What the peer answers: mostly what was asked for.
fn answer(rng: &mut Rng, asked: &Message) -> Vec<Payload> {
    let keys = asked.payloads.iter().find_map(|payload| match payload {
        Payload::Sa(proposals) => Some(proposals[0].protocol == Protocol::IKE),
        _ => None,
    });
    match (rng.next() % 12, keys) {
        (0, _) => child(rng, true),
        (1, _) => vec![],
        (2..5, _) => vec![notify(rng)],
        (_, Some(true)) => ike(rng),
        (_, Some(false)) => child(rng, true),
        (_, None) => vec![],
    }
}

/// The victim wants something itself.
fn wish(rng: &mut Rng, victim: &mut Side, now: crate::Instant) {
    let pairs: Vec<ChildId> = victim.host.installed.values().map(|sa| sa.id).collect();
    let (ike, pair) = (victim.sa().id, one(rng, &pairs));
    let Side { endpoint, host, .. } = victim;
    let _ = match (rng.next() % 4, pair) {
        (0, Some(pair)) => endpoint.rekey_child(now, pair, host).map_err(drop),
        (1, Some(pair)) => endpoint.terminate_child(now, pair, host).map_err(drop),
        (2, _) => endpoint.rekey_ike(now, ike, host).map_err(drop),
        _ => endpoint.initiate_child(now, ike, "net", host).map_err(drop),
    };
}

/// The last thing that the victim asked.
fn asked(victim: &Side) -> Option<Vec<u8>> {
    let is_request = |m: &Vec<u8>| !Header::decode(m).unwrap().0.response;
    victim.sent.iter().rev().map(|(_, _, m)| m).find(|m| is_request(m)).cloned()
}

/// Whether the victim has answered this request in what it has sent since `from`.
fn has_answered(victim: &Side, from: usize, asked: &[u8]) -> bool {
    let (asked, _) = Header::decode(asked).unwrap();
    let mut sent = victim.sent[from..].iter().map(|(_, _, m)| Header::decode(m).unwrap().0);
    sent.any(|sent| sent.response && sent.message_id == asked.message_id)
}

/// One thing that the peer says, or that the victim wants; false once the IKE SA is gone.
fn step(rng: &mut Rng, pair: &mut Pair, to_a: bool) -> bool {
    let now = pair.now;
    let victim = if to_a { &mut pair.a } else { &mut pair.b };
    let Some(mut peer) = peer_of(victim) else { return false };
    let (path, from) = (victim.sa().path, victim.sent.len());
    match rng.next() % 3 {
        0 => wish(rng, victim, now),
        1 => {
            let (exchange, payloads) = request(rng, victim);
            let (_, wire) = peer.request(exchange, payloads).unwrap();
            assert_eq!(pair.inject(to_a, &path, &wire.whole), Received::Accepted);
            let victim = if to_a { &pair.a } else { &pair.b };
            assert!(has_answered(victim, from, &wire.whole), "RFC 7296, 2.21.3");
        }
        _ => {
            // What went by an IKE SA that was rekeyed meanwhile, these keys do not open.
            let asked = asked(victim).map(|octets| peer.open(&octets));
            let Some(Ok(Some(asked))) = asked else { return true };
            let wire = peer.response(asked.header.exchange, answer(rng, &asked)).unwrap();
            pair.inject(to_a, &path, &wire.whole);
        }
    }
    true
}

// What is held for a pair that is not there, and what is told to a host of a pair that it does not have,
// the harness does not let pass.
#[test]
fn whatever_a_peer_says_it_is_answered_and_leaves_nothing_behind() {
    let mut lived = 0;
    for seed in 0..200 {
        let to_a = seed % 2 == 0;
        let a = ConnectionConfig { mobike: seed % 4 < 2, ..config() };
        let mut pair = Pair::up(a);
        pair.net.udp_blocked = true;
        let mut rng = Rng(seed);
        for _ in 0..80 {
            if !step(&mut rng, &mut pair, to_a) {
                break;
            }
            lived += 1;
            let wait = if rng.percent(5) { 20_000 } else { rng.next() % 500 };
            pair.run(Duration::from_millis(wait));
        }
        pair.run(Duration::from_secs(400));
        let victim = if to_a { &pair.a } else { &pair.b };
        let ups = victim.events.iter().filter(|e| matches!(e, Event::ChildUp { .. })).count();
        let downs = victim.events.iter().filter(|e| matches!(e, Event::ChildDown { .. })).count();
        assert_eq!(ups, downs + victim.host.installed.len(), "{seed}");
        let (now, ike) = (pair.now, victim.endpoint.sas().next().map(|sa| sa.id));
        let victim = if to_a { &mut pair.a } else { &mut pair.b };
        if let Some(ike) = ike {
            victim.endpoint.terminate(now, ike, &mut victim.host).unwrap();
        }
        pair.run(Duration::from_secs(400));
        let victim = if to_a { &pair.a } else { &pair.b };
        victim.assert_empty();
    }
    assert!(lived > 4000, "{lived}");
}
