//! Known answers: sessions between strongSwan and libreswan, with all keys.

use culvert_captures::{IkeKeys as Known, Kind, Message as Captured, Session, sessions};

use crate::auth::{self, Signed};
use crate::crypto::{IV_LEN, SkKey};
use crate::host::Secret;
use crate::keys::{IkeKeys, Inputs, skeyseed, skeyseed_rekeyed};
use crate::message::{ExchangeType, HEADER_LEN, Message, Payload};
use crate::negotiate::{self, ChildKe};
use crate::proposal::{Encryption, IkeProposal, IkeSuite, KeyExchange};

/// Where the IV of an SK payload that is the only one begins.
const IV_AT: usize = HEADER_LEN + 4;

fn encryption(keymat: &[u8]) -> Encryption {
    if keymat.len() == 20 { Encryption::Aes128Gcm16 } else { Encryption::Aes256Gcm16 }
}

/// The key of the message's sender.
fn sender_key(known: &[Known], octets: &[u8]) -> Option<SkKey> {
    let from_initiator = octets[19] & 0x08 != 0;
    let keys = known
        .iter()
        .find(|k| k.spis.is_some_and(|(i, r)| octets[..8] == i && octets[8..16] == r))?;
    let keymat = if from_initiator { &keys.sk_ei } else { &keys.sk_er };
    SkKey::new(encryption(keymat), keymat)
}

/// Every IKE message in order, with what is inside.
fn opened(session: &Session) -> Vec<(Captured, Message)> {
    let mut all = Vec::new();
    for captured in session.messages() {
        if captured.kind != Kind::Ike {
            continue;
        }
        let message = Message::decode(&captured.octets).unwrap();
        let message = if message.is_sealed() {
            let key =
                sender_key(&session.ike, &captured.octets).expect("every IKE SA has its keys");
            message.open(&mut captured.octets.clone(), &key).unwrap()
        } else {
            message
        };
        all.push((captured, message));
    }
    all
}

#[test]
fn every_message_decodes_and_encodes_to_the_same_octets() {
    let mut count = 0;
    for session in sessions().unwrap() {
        for (captured, message) in opened(&session) {
            let clear = Message::decode(&captured.octets).unwrap();
            if clear.is_sealed() {
                let iv: [u8; IV_LEN] = captured.octets[IV_AT..IV_AT + IV_LEN].try_into().unwrap();
                let key = sender_key(&session.ike, &captured.octets).unwrap();
                let sealed = message.seal(&key, iv).unwrap();
                assert_eq!(sealed, captured.octets, "{} packet {}", session.name, captured.packet);
            } else {
                assert_eq!(message.encode().unwrap(), captured.octets, "{}", session.name);
            }
            count += 1;
        }
    }
    assert!(count >= 90, "{count} IKE messages");
}

fn nonce(message: &Message) -> &[u8] {
    message
        .payloads
        .iter()
        .find_map(|p| match p {
            Payload::Nonce(n) => Some(&n[..]),
            _ => None,
        })
        .unwrap()
}

fn any_proposal() -> IkeProposal {
    IkeProposal {
        key_exchange: vec![
            KeyExchange::X25519,
            KeyExchange::Ecp256,
            KeyExchange::Ecp384,
            KeyExchange::Modp2048,
        ],
        ..IkeProposal::default()
    }
}

fn suite(message: &Message) -> Option<(IkeSuite, Vec<u8>)> {
    let proposals = message.payloads.iter().find_map(|p| match p {
        Payload::Sa(proposals) => Some(proposals),
        _ => None,
    })?;
    let proposal = negotiate::single(proposals)?;
    negotiate::select_ike(std::slice::from_ref(proposal), &[any_proposal()], None)
        .map(|(p, suite)| (suite, p.spi.clone()))
}

/// Request and response, both with their octets.
type Exchange<'a> = (&'a (Captured, Message), &'a (Captured, Message));

/// The exchange that made an IKE SA.
fn exchange_of<'a>(all: &'a [(Captured, Message)], known: &Known) -> Option<Exchange<'a>> {
    let (spi_i, spi_r) = known.spis?;
    let response = all.iter().find(|(c, m)| {
        m.header.response
            && match m.header.exchange {
                ExchangeType::IKE_SA_INIT => {
                    c.octets[..8] == spi_i && c.octets[8..16] == spi_r && m.error().is_none()
                }
                ExchangeType::CREATE_CHILD_SA => suite(m).is_some_and(|(_, spi)| spi == spi_r),
                _ => false,
            }
    })?;
    let header = response.1.header;
    let request = all.iter().rfind(|(c, m)| {
        !m.header.response
            && m.header.exchange == header.exchange
            && m.header.message_id == header.message_id
            && m.header.spi_i == header.spi_i
            && c.packet <= response.0.packet
    })?;
    Some((request, response))
}

/// The keys of one IKE SA, derived from what is on the wire and the shared secret.
fn derive(
    session: &Session,
    all: &[(Captured, Message)],
    known: &Known,
) -> Option<(IkeKeys, IkeSuite)> {
    let shared = known.dh_secret.as_ref()?;
    let (spi_i, spi_r) = known.spis?;
    let (request, response) = exchange_of(all, known)?;
    let (suite, _) = suite(&response.1)?;
    let inputs = Inputs {
        nonce_i: nonce(&request.1),
        nonce_r: nonce(&response.1),
        spi_i: u64::from_be_bytes(spi_i),
        spi_r: u64::from_be_bytes(spi_r),
    };
    let seed = if request.1.header.exchange == ExchangeType::IKE_SA_INIT {
        skeyseed(suite.prf, &inputs, shared)
    } else {
        let old = session.ike.iter().find(|k| {
            k.spis.is_some_and(|(i, _)| u64::from_be_bytes(i) == request.1.header.spi_i)
        })?;
        skeyseed_rekeyed(&derive(session, all, old)?.0, &inputs, shared)
    };
    assert_eq!(Some(&seed[..]), known.skeyseed.as_deref(), "{} SKEYSEED", session.name);
    Some((IkeKeys::derive(&suite, &seed, &inputs)?, suite))
}

#[test]
fn the_key_schedule_gives_the_keys_that_strongswan_logged() {
    let (mut initial, mut rekeyed) = (0, 0);
    for session in sessions().unwrap() {
        let all = opened(&session);
        for known in &session.ike {
            let Some((keys, _)) = derive(&session, &all, known) else { continue };
            assert_eq!(Some(&keys.sk_d[..]), known.sk_d.as_deref(), "{} SK_d", session.name);
            assert_eq!(Some(&keys.sk_pi[..]), known.sk_pi.as_deref());
            assert_eq!(Some(&keys.sk_pr[..]), known.sk_pr.as_deref());
            // SK_e* cannot be read out of the library; that they seal to the same octets shows them.
            let same = |own: &SkKey, keymat: &[u8]| {
                let theirs = SkKey::new(encryption(keymat), keymat).unwrap();
                let seal = |key: &SkKey| {
                    let mut text = b"text".to_vec();
                    key.seal(b"aad", &[0; IV_LEN], &mut text).map(|()| text)
                };
                assert_eq!(seal(own), seal(&theirs), "{} SK_e", session.name);
            };
            same(&keys.sk_ei, &known.sk_ei);
            same(&keys.sk_er, &known.sk_er);
            match exchange_of(&all, known).unwrap().0.1.header.exchange {
                ExchangeType::IKE_SA_INIT => initial += 1,
                _ => rekeyed += 1,
            }
        }
    }
    assert!(initial >= 5 && rekeyed >= 2, "{initial} initial and {rekeyed} rekeyed IKE SAs");
}

#[test]
fn auth_payloads_verify_with_the_pre_shared_key_and_with_no_other() {
    let mut count = 0;
    for session in sessions().unwrap() {
        let all = opened(&session);
        for known in &session.ike {
            let Some((keys, _)) = derive(&session, &all, known) else { continue };
            let (request, response) = exchange_of(&all, known).unwrap();
            for (_, message) in all.iter().filter(|(_, m)| {
                m.header.exchange == ExchangeType::IKE_AUTH
                    && Some(m.header.spi_i.to_be_bytes()) == known.spis.map(|s| s.0)
            }) {
                let initiator = message.header.from_initiator;
                let find = |wanted: u8| {
                    message.payloads.iter().find_map(|p| match p {
                        Payload::IdI(k, d) if wanted == 0 => Some((*k, d)),
                        Payload::IdR(k, d) if wanted == 1 => Some((*k, d)),
                        Payload::Auth(k, d) if wanted == 2 => Some((*k, d)),
                        _ => None,
                    })
                };
                let (own, other) =
                    if initiator { (request, response) } else { (response, request) };
                let (id_kind, id_data) = find(u8::from(!initiator)).unwrap();
                let (method, auth) = find(2).unwrap();
                let message = &own.0.octets;
                let nonce = nonce(&other.1);
                let signed = Signed { message, nonce, id_kind, id_data, initiator };
                assert_eq!(method, auth::METHOD_SHARED_KEY);
                let psk = Secret::new(session.psk.to_vec());
                assert!(auth::verify(&keys, &psk, &signed, auth), "{}", session.name);
                let wrong = Secret::new(b"another".to_vec());
                assert!(!auth::verify(&keys, &wrong, &signed, auth));
                count += 1;
            }
        }
    }
    assert!(count >= 10, "{count} AUTH payloads");
}

#[test]
fn keymat_of_the_first_child_sas_is_what_esp_used() {
    let mut count = 0;
    for session in sessions().unwrap() {
        let all = opened(&session);
        for known in &session.ike {
            let Some((keys, _)) = derive(&session, &all, known) else { continue };
            let (request, response) = exchange_of(&all, known).unwrap();
            let auth = all.iter().find(|(_, m)| {
                m.header.exchange == ExchangeType::IKE_AUTH
                    && m.header.response
                    && Some(m.header.spi_i.to_be_bytes()) == known.spis.map(|s| s.0)
            });
            let Some((_, auth)) = auth else { continue };
            let proposals = auth.payloads.iter().find_map(|p| match p {
                Payload::Sa(proposals) => Some(proposals),
                _ => None,
            });
            let own = ["aes128gcm16-aes256gcm16-esn-noesn".parse().unwrap()];
            let (proposal, suite) =
                negotiate::select_esp(proposals.unwrap(), &own, ChildKe::Never).unwrap();
            let (_, from_r) =
                keys.keymat(&suite, None, nonce(&request.1), nonce(&response.1)).unwrap();
            // The responder's SPI marks packets to it, keyed by the initiator's half; the other
            // direction is found by its keys.
            let spi = negotiate::esp_spi(proposal).unwrap();
            let (from_i, _) =
                keys.keymat(&suite, None, nonce(&request.1), nonce(&response.1)).unwrap();
            let to_r = session.esp.iter().find(|k| k.spi == spi).unwrap();
            assert_eq!(to_r.keymat, from_i.expose(), "{}", session.name);
            assert!(session.esp.iter().any(|k| k.keymat == from_r.expose()));
            assert_eq!(to_r.esn, suite.esn);
            count += 1;
        }
    }
    assert!(count >= 5, "{count} CHILD SAs");
}
