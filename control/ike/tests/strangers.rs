//! What anybody may send: replayed, forged, half-open, of another version (RFC 7296, 2.1 to 2.6).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::time::Duration;

use culvert_ike::{
    DownReason, DropReason, EndpointConfig, Event, Path, Received, Secret,
    message::{Message, NotifyType, Payload},
};
use pair::{A, B, Pair, config, mirror};

const INIT: u8 = 34;
const INFORMATIONAL: u8 = 37;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn started(a: culvert_ike::ConnectionConfig, b: culvert_ike::ConnectionConfig) -> Pair {
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair
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

// RFC 7296, 2.4: only a fresh message shows that the peer lives. What it sent last, sent again by
// anybody, is answered and no more.
#[test]
fn a_replayed_request_does_not_keep_a_dead_peer_alive() {
    let a = culvert_ike::ConnectionConfig { dpd_delay: Some(seconds(5)), ..config() };
    let mut pair = Pair::up(a);
    let path = pair.b.sa().path;
    let auth = pair.a.sent[1].2.clone();
    pair.net.udp_blocked = true;
    for _ in 0..100 {
        pair.run(seconds(4));
        pair.inject(false, &path, &auth);
    }
    let dead = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::PeerDead, .. });
    assert!(pair.b.events.iter().any(dead));
    assert!(pair.b.host.installed.is_empty());
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
    let answer = Message::decode(&pair.b.sent[0].2).unwrap();
    assert!(answer.notify(NotifyType::INVALID_MAJOR_VERSION).is_some());
    assert_eq!((answer.header.major, answer.header.response), (2, true));
    octets[17] = 0x10;
    assert_eq!(pair.inject(false, &path, &octets), dropped);
    assert_eq!(pair.b.sent.len(), 1, "IKEv1 gets no answer");
    // RFC 7296, 2.21.4: and what comes in a flood gets few.
    octets[17] = 0x30;
    for _ in 0..1000 {
        pair.inject(false, &path, &octets);
    }
    assert_eq!(pair.b.sent.len(), 10);
    pair.run(seconds(1));
    pair.inject(false, &path, &octets);
    assert_eq!(pair.b.sent.len(), 11);
}

// RFC 7296, 2.21.4: refusals are rare, however many ask, and so are the lines that tell of them.
#[test]
fn a_flood_of_first_requests_that_fit_nothing_gets_few_answers() {
    let mut b = mirror(&config());
    b.proposals = vec!["aes256gcm16-prfsha512-x25519".parse().unwrap()];
    let mut pair = started(config(), b);
    pair.run(Duration::from_millis(1));
    let init = pair.a.sent[0].2.clone();
    let local = format!("{B}:500").parse().unwrap();
    let knock = |pair: &mut Pair, n: u16| {
        let mut octets = init.clone();
        octets[..2].copy_from_slice(&n.to_be_bytes());
        let remote = std::net::SocketAddr::new([198, 51, 100, n as u8].into(), 500);
        pair.inject(false, &Path::udp(local, remote), &octets)
    };
    let received: Vec<_> = (1..1000).map(|n| knock(&mut pair, n)).collect();
    assert!(received[..10].iter().all(|r| *r == Received::Accepted));
    let limit = Received::Dropped(DropReason::RefusalLimit);
    assert!(received[10..].iter().all(|r| *r == limit));
    assert_eq!(pair.b.sent.len(), 10);
    let refused = |e: &&Event| matches!(e, Event::Refused { .. });
    assert_eq!(pair.b.events.iter().filter(refused).count(), 10);
    pair.run(seconds(1));
    assert_eq!(knock(&mut pair, 1000), Received::Accepted, "and again the next second");
    assert!(pair.b.endpoint.is_empty());
}

// RFC 7296, 2.21.4: INVALID_IKE_SPI is a hint. B dies before A's Delete of the IKE SA that was
// rekeyed, and what follows it does not know A: A asks, on the IKE SA that stands, and nobody is there.
#[test]
fn a_peer_that_has_forgotten_everything_is_noticed_without_a_timer() {
    let mut pair = Pair::up(culvert_ike::ConnectionConfig { dpd_delay: None, ..config() });
    let (now, ike) = (pair.now, pair.a.sa().id);
    pair.a.endpoint.rekey_ike(now, ike, &mut pair.a.host).unwrap();
    pair.run(Duration::from_millis(25));
    let before = pair.a.requests().len();
    assert_eq!(pair.a.requests().last(), Some(&INFORMATIONAL), "the Delete is on its way");
    pair.b.endpoint = culvert_ike::Endpoint::new(EndpointConfig::default());
    pair.run(seconds(1));
    assert_eq!(pair.a.requests()[before..], [INFORMATIONAL], "are you there?");
    assert_eq!(pair.a.host.installed.len(), 1, "what anybody may have said ends nothing");
    pair.run(seconds(200));
    let dead = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::PeerDead, .. });
    assert!(pair.a.events.iter().any(dead));
    assert!(pair.a.host.installed.is_empty());
}

// The same from somebody who only has seen the SPIs, again and again.
#[test]
fn forged_hints_cause_few_liveness_checks_and_end_nothing() {
    let mut pair = Pair::up(culvert_ike::ConnectionConfig { dpd_delay: None, ..config() });
    let (sa, path) = (pair.a.sa(), pair.a.sa().path);
    let forged = |spi_i: u64, spi_r: u64| {
        let header = [41, 0x20, INFORMATIONAL, 0x20, 0, 0, 0, 0, 0, 0, 0, 36];
        let notify = [0, 0, 0, 8, 0, 0, 0, 4];
        [&spi_i.to_be_bytes()[..], &spi_r.to_be_bytes(), &header, &notify].concat()
    };
    let before = pair.a.requests().len();
    pair.inject(true, &path, &forged(sa.spi_i, sa.spi_r ^ 1));
    assert_eq!(pair.a.requests().len(), before, "both SPIs must be known");
    for _ in 0..600 {
        pair.inject(true, &path, &forged(sa.spi_i, sa.spi_r));
        pair.run(Duration::from_millis(100));
    }
    let asked = pair.a.requests().len() - before;
    assert_eq!(asked, 2, "in a minute");
    assert_eq!(pair.b.requests().len(), 0, "B gets no hint");
    pair.assert_child();
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

// RFC 8019, 4.2: "it is also worthwhile to measure the number of failed IKE_AUTH exchanges". Who cannot
// authenticate itself does not get round the limits by ending each half-open SA with one.
#[test]
fn failed_authentications_count_as_half_open_until_they_are_forgotten() {
    let limits = EndpointConfig { half_open_per_source_max: 3, ..EndpointConfig::default() };
    let mut pair = Pair::with_limits(config(), mirror(&config()), limits);
    let right = std::mem::replace(&mut pair.a.host.psk[0].1, Secret::new(b"wrong".to_vec()));
    for _ in 0..3 {
        pair.initiate();
        pair.run(Duration::from_millis(100));
    }
    let refused = |pair: &Pair| {
        let refused = pair.b.events.iter().filter(|e| matches!(e, Event::Refused { .. }));
        refused.count()
    };
    assert_eq!(refused(&pair), 3);
    pair.a.host.psk[0].1 = right;
    pair.initiate();
    pair.run(Duration::from_millis(100));
    assert_eq!(pair.b.received.last(), Some(&Received::Dropped(DropReason::HalfOpenLimit)));
    // A repetition of it comes when the others are forgotten.
    pair.run(seconds(15));
    pair.assert_child();
    assert_eq!(refused(&pair), 3);
}

// What is kept of a stranger who was refused, to repeat the refusal, does not outlive the process: a
// flood of them would take up the room of those who are to outlive it.
#[test]
fn a_refused_stranger_is_not_saved() {
    let mut pair = Pair::new(config(), mirror(&config()));
    pair.a.host.psk[0].1 = Secret::new(b"wrong".to_vec());
    pair.initiate();
    pair.run(Duration::from_millis(100));
    assert!(pair.b.events.iter().any(|e| matches!(e, Event::Refused { .. })));
    assert_eq!((pair.b.endpoint.len(), pair.b.kept.snapshots.len()), (1, 0));
}

// RFC 8019, 4.2: what can never come up leaves nothing behind, least of all as much as its sender likes.
#[test]
fn a_public_value_of_a_wrong_length_makes_no_half_open_sa() {
    let mut pair = started(config(), mirror(&config()));
    pair.net.lose = [1, 0];
    pair.run(Duration::from_millis(1));
    let (_, path, octets) = pair.a.sent[0].clone();
    let seen = Path::udp(path.remote, path.local);
    for len in [1, 31, 33, 30_000] {
        let mut message = Message::decode(&octets).unwrap();
        for payload in &mut message.payloads {
            if let Payload::Ke(_, public) = payload {
                public.resize(len, 7);
            }
        }
        let received = pair.inject(false, &seen, &message.encode().unwrap());
        assert_eq!(received, Received::Dropped(DropReason::BadPayload), "{len}");
        assert!(pair.b.endpoint.is_empty());
    }
    pair.run(seconds(10));
    pair.assert_child();
}
