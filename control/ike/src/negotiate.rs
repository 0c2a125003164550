//! Which proposal is chosen (RFC 7296, 2.7 and 3.3.6).
//!
//! A responder goes by its own order of preference. A proposal with a transform type that is not
//! understood is not chosen; a transform with an attribute that is not understood neither.

use crate::message::{Proposal, Protocol, Transform, TransformType};
use crate::proposal::{Encryption, EspProposal, EspSuite, IkeProposal, IkeSuite, KeyExchange, Prf};
use serde::{Deserialize, Serialize};

/// "No integrity algorithm", which peers may list beside an AEAD, and "no key exchange".
const NONE: u16 = 0;

/// Numbers proposals from 1. More than 255 cannot be sent, and configuration allows fewer.
fn number(index: usize) -> u8 {
    u8::try_from(index + 1).unwrap_or(u8::MAX)
}

fn encryption(e: Encryption) -> Transform {
    Transform::with_key_bits(TransformType::ENCR, Encryption::TRANSFORM_ID, e.key_bits())
}

/// Proposals for an IKE SA as they are sent; `spi` is empty in IKE_SA_INIT.
pub(crate) fn ike_offer(own: &[IkeProposal], spi: &[u8]) -> Vec<Proposal> {
    own.iter()
        .enumerate()
        .map(|(index, p)| {
            let mut transforms: Vec<_> = p.encryption.iter().copied().map(encryption).collect();
            let prfs = p.prf.iter().map(|f| f.transform_id());
            transforms.extend(prfs.map(|id| Transform::new(TransformType::PRF, id)));
            let groups = p.key_exchange.iter().map(|k| k.transform_id());
            transforms.extend(groups.map(|id| Transform::new(TransformType::KE, id)));
            Proposal {
                number: number(index),
                protocol: Protocol::IKE,
                spi: spi.to_vec(),
                transforms,
            }
        })
        .collect()
}

/// Proposals for a CHILD SA as they are sent. IKE_AUTH has no key exchange (RFC 7296, 1.2).
pub(crate) fn esp_offer(own: &[EspProposal], spi: u32, with_ke: bool) -> Vec<Proposal> {
    own.iter()
        .enumerate()
        .map(|(index, p)| {
            let mut transforms: Vec<_> = p.encryption.iter().copied().map(encryption).collect();
            let groups = p.key_exchange.iter().filter(|_| with_ke).map(|k| k.transform_id());
            transforms.extend(groups.map(|id| Transform::new(TransformType::KE, id)));
            let esn = p.esn.iter().map(|esn| u16::from(*esn));
            transforms.extend(esn.map(|id| Transform::new(TransformType::ESN, id)));
            let spi = spi.to_be_bytes().to_vec();
            Proposal { number: number(index), protocol: Protocol::ESP, spi, transforms }
        })
        .collect()
}

/// The answer that names one IKE suite.
pub(crate) fn ike_answer(offered: &Proposal, suite: &IkeSuite, spi: &[u8]) -> Proposal {
    let transforms = vec![
        encryption(suite.encryption),
        Transform::new(TransformType::PRF, suite.prf.transform_id()),
        Transform::new(TransformType::KE, suite.key_exchange.transform_id()),
    ];
    Proposal { number: offered.number, protocol: Protocol::IKE, spi: spi.to_vec(), transforms }
}

/// The answer that names one ESP suite.
pub(crate) fn esp_answer(offered: &Proposal, suite: &EspSuite, spi: u32) -> Proposal {
    let mut transforms = vec![encryption(suite.encryption)];
    if let Some(group) = suite.key_exchange {
        transforms.push(Transform::new(TransformType::KE, group.transform_id()));
    }
    transforms.push(Transform::new(TransformType::ESN, u16::from(suite.esn)));
    let spi = spi.to_be_bytes().to_vec();
    Proposal { number: offered.number, protocol: Protocol::ESP, spi, transforms }
}

fn only_types(p: &Proposal, known: &[TransformType]) -> bool {
    p.transforms.iter().all(|t| known.contains(&t.kind) || t.kind == TransformType::INTEG)
        && (p.of_type(TransformType::INTEG).next().is_none()
            || p.of_type(TransformType::INTEG).any(|t| t.id == NONE))
}

fn find_encryption(p: &Proposal, own: &[Encryption]) -> Option<Encryption> {
    own.iter().copied().find(|e| {
        p.of_type(TransformType::ENCR).any(|t| {
            t.id == Encryption::TRANSFORM_ID
                && t.key_bits().flatten().and_then(Encryption::from_key_bits) == Some(*e)
        })
    })
}

fn offers(p: &Proposal, kind: TransformType, id: u16) -> bool {
    p.of_type(kind).any(|t| t.id == id && t.key_bits() == Some(None))
}

fn ike_suite(p: &Proposal, own: &IkeProposal, preferred: Option<KeyExchange>) -> Option<IkeSuite> {
    let known = [TransformType::ENCR, TransformType::PRF, TransformType::KE];
    if p.protocol != Protocol::IKE || !only_types(p, &known) {
        return None;
    }
    let group = |k: &KeyExchange| {
        own.key_exchange.contains(k) && offers(p, TransformType::KE, k.transform_id())
    };
    Some(IkeSuite {
        encryption: find_encryption(p, &own.encryption)?,
        prf: own
            .prf
            .iter()
            .copied()
            .find(|f: &Prf| offers(p, TransformType::PRF, f.transform_id()))?,
        key_exchange: preferred
            .filter(group)
            .or_else(|| own.key_exchange.iter().copied().find(group))?,
    })
}

/// The best of the peer's proposals for an IKE SA. Among the groups that both allow, the one that
/// the peer already sent a public value of is `preferred`, which saves a round trip.
pub(crate) fn select_ike<'a>(
    offered: &'a [Proposal],
    own: &[IkeProposal],
    preferred: Option<KeyExchange>,
) -> Option<(&'a Proposal, IkeSuite)> {
    own.iter().find_map(|own| {
        offered.iter().find_map(|p| ike_suite(p, own, preferred).map(|suite| (p, suite)))
    })
}

/// Which key exchange a CHILD SA may have.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) enum ChildKe {
    /// None: IKE_AUTH. Groups that a peer offers all the same mean nothing there.
    Never,
    /// As configured. Where no group is, a peer that insists gets the IKE SA's group: that only
    /// makes the keys better.
    Configured(KeyExchange),
}

fn esp_suite(p: &Proposal, own: &EspProposal, ke: ChildKe) -> Option<EspSuite> {
    let known = [TransformType::ENCR, TransformType::KE, TransformType::ESN];
    if p.protocol != Protocol::ESP || p.spi.len() != 4 || !only_types(p, &known) {
        return None;
    }
    let without =
        p.of_type(TransformType::KE).next().is_none() || offers(p, TransformType::KE, NONE);
    let offered = |k: &KeyExchange| offers(p, TransformType::KE, k.transform_id());
    let key_exchange = match ke {
        ChildKe::Never => None,
        ChildKe::Configured(_) if own.key_exchange.is_empty() && without => None,
        ChildKe::Configured(ike) if own.key_exchange.is_empty() => Some(Some(ike).filter(offered)?),
        ChildKe::Configured(_) => Some(own.key_exchange.iter().copied().find(offered)?),
    };
    Some(EspSuite {
        encryption: find_encryption(p, &own.encryption)?,
        key_exchange,
        esn: own.esn.iter().copied().find(|e| offers(p, TransformType::ESN, u16::from(*e)))?,
    })
}

/// The best of the peer's proposals for a CHILD SA.
pub(crate) fn select_esp<'a>(
    offered: &'a [Proposal],
    own: &[EspProposal],
    ke: ChildKe,
) -> Option<(&'a Proposal, EspSuite)> {
    own.iter().find_map(|own| offered.iter().find_map(|p| esp_suite(p, own, ke).map(|s| (p, s))))
}

/// Whether an answer is one proposal with one transform of each type (RFC 7296, 3.3).
pub(crate) fn single(answer: &[Proposal]) -> Option<&Proposal> {
    let [p] = answer else { return None };
    let once = p.transforms.iter().all(|t| p.of_type(t.kind).count() == 1);
    once.then_some(p)
}

/// The SPI of a proposal for a CHILD SA; values below 256 are reserved (RFC 4303, 2.1).
pub(crate) fn esp_spi(p: &Proposal) -> Option<u32> {
    p.spi.as_slice().try_into().ok().map(u32::from_be_bytes).filter(|spi| *spi > 255)
}

/// The SPI of a proposal for an IKE SA in CREATE_CHILD_SA; never zero.
pub(crate) fn ike_spi(p: &Proposal) -> Option<u64> {
    p.spi.as_slice().try_into().ok().map(u64::from_be_bytes).filter(|spi| *spi != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ike(texts: &[&str]) -> Vec<IkeProposal> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn esp(texts: &[&str]) -> Vec<EspProposal> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    #[test]
    fn the_responders_order_decides() {
        let offer = ike_offer(
            &ike(&["aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha512-ecp384-ecp256"]),
            &[],
        );
        let own = ike(&["aes256gcm16-prfsha512-ecp256-ecp384", "aes128gcm16-prfsha256-x25519"]);
        let (p, suite) = select_ike(&offer, &own, None).unwrap();
        assert_eq!((p.number, suite.to_string().as_str()), (2, "aes256gcm16-prfsha512-ecp256"));
        let (_, suite) = select_ike(&offer, &own, Some(KeyExchange::Ecp384)).unwrap();
        assert_eq!(suite.key_exchange, KeyExchange::Ecp384, "the one already sent");
        assert!(select_ike(&offer, &ike(&["aes128gcm16-prfsha512-x25519"]), None).is_none());
    }

    // RFC 7296, 3.3.6.
    #[test]
    fn what_is_not_understood_is_not_chosen() {
        let own = ike(&["aes128gcm16-prfsha256-x25519"]);
        let good = ike_offer(&own, &[]);
        let mut strange = good.clone();
        strange[0].transforms.push(Transform::new(TransformType(6), 35));
        assert!(select_ike(&strange, &own, None).is_none(), "an additional key exchange");
        let mut integrity = good.clone();
        integrity[0].transforms.push(Transform::new(TransformType::INTEG, 12));
        assert!(select_ike(&integrity, &own, None).is_none(), "not with an AEAD");
        integrity[0].transforms.push(Transform::new(TransformType::INTEG, NONE));
        assert!(select_ike(&integrity, &own, None).is_some(), "NONE is another word for nothing");
        let mut keyless = good;
        keyless[0].transforms[0].attributes.clear();
        assert!(select_ike(&keyless, &own, None).is_none(), "AES needs its key length");
    }

    #[test]
    fn esn_and_key_exchange_of_child_sas() {
        let offer = esp_offer(&esp(&["aes128gcm16-x25519-esn-noesn"]), 0x1000, true);
        let rule = ChildKe::Configured(KeyExchange::X25519);
        let chosen = |own: &str, rule| {
            select_esp(&offer, &esp(&[own]), rule).map(|(_, suite)| suite.to_string())
        };
        assert_eq!(chosen("aes128gcm16-x25519-esn", rule).unwrap(), "aes128gcm16-x25519-esn");
        assert_eq!(
            chosen("aes128gcm16", rule).unwrap(),
            "aes128gcm16-x25519-noesn",
            "peer insists"
        );
        assert_eq!(chosen("aes128gcm16-ecp256", rule), None);
        assert_eq!(chosen("aes128gcm16-ecp256", ChildKe::Never).unwrap(), "aes128gcm16-noesn");
        let auth = esp_offer(&esp(&["aes128gcm16-x25519"]), 0x1000, false);
        assert_eq!(auth[0].of_type(TransformType::KE).count(), 0, "RFC 7296, 1.2");
        assert!(select_esp(&auth, &esp(&["aes128gcm16-x25519"]), rule).is_none());
    }

    #[test]
    fn an_answer_names_one_of_each() {
        let own = esp(&["aes128gcm16-esn-noesn"]);
        let offer = esp_offer(&own, 0x1000, false);
        assert!(single(&offer).is_none());
        let suite = EspSuite { encryption: Encryption::Aes128Gcm16, key_exchange: None, esn: true };
        assert!(single(&[esp_answer(&offer[0], &suite, 0x2000)]).is_some());
        assert_eq!(esp_spi(&esp_offer(&own, 255, false)[0]), None, "reserved");
    }
}
