use proptest::prelude::*;

use super::*;
use crate::proposal::Encryption;
use crate::ts::TrafficSelector;

fn header() -> Header {
    Header {
        spi_i: 0x0102_0304_0506_0708,
        spi_r: 0x1112_1314_1516_1718,
        major: 2,
        minor: 0,
        exchange: ExchangeType::IKE_AUTH,
        from_initiator: true,
        response: false,
        higher_version: false,
        message_id: 1,
    }
}

fn key() -> SkKey {
    SkKey::new(Encryption::Aes128Gcm16, &[7; 20]).unwrap()
}

/// A message with this chain of payloads in the clear.
fn raw(first: u8, chain: &[u8]) -> Vec<u8> {
    let mut out = Message::new(header(), vec![]).encode().unwrap();
    out[16] = first;
    out.extend_from_slice(chain);
    finish(out).unwrap()
}

#[test]
fn a_header_must_tell_its_length() {
    let good = Message::new(header(), vec![]).encode().unwrap();
    assert_eq!(good.len(), HEADER_LEN);
    assert!(Message::decode(&good).is_ok());
    for len in 0..HEADER_LEN {
        assert_eq!(Message::decode(&good[..len]), Err(CodecError::Header));
    }
    assert_eq!(Message::decode(&[&good[..], &[0]].concat()), Err(CodecError::Header));
}

// RFC 7296, 2.5 and 3.2.
#[test]
fn unknown_payloads_are_skipped_unless_critical() {
    let nonce = [0, 0, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let skipped = raw(200, &[&[40, 0, 0, 5, 9], &nonce[..]].concat());
    let message = Message::decode(&skipped).unwrap();
    assert_eq!(message.payloads, [Payload::Nonce((1..=16).collect())]);
    let critical = raw(200, &[&[40, 0x80, 0, 5, 9], &nonce[..]].concat());
    assert_eq!(Message::decode(&critical), Err(CodecError::Critical(200)));
    let mut defined = nonce;
    defined[1] = 0x80;
    assert!(
        Message::decode(&raw(40, &defined)).is_ok(),
        "critical means nothing on known payloads"
    );
}

#[test]
fn lengths_that_lie_are_syntax_errors() {
    for chain in [
        &[0, 0, 0][..],
        &[0, 0, 0, 3],
        &[0, 0, 0, 5],
        &[0, 0, 0, 4, 0],
        &[43, 0, 0, 4],
        &[43, 0, 0xff, 0xff, 1],
    ] {
        let result = Message::decode(&raw(43, chain));
        assert!(matches!(result, Err(CodecError::Syntax(_))), "{chain:?} {result:?}");
    }
    let many: Vec<u8> = [43, 0, 0, 4].repeat(PAYLOADS_MAX + 1);
    assert_eq!(
        Message::decode(&raw(43, &many)),
        Err(CodecError::Syntax("message with too many payloads"))
    );
}

#[test]
fn a_sealed_message_opens_and_a_touched_one_does_not() {
    let message = Message::new(header(), vec![Payload::notify(NotifyType::COOKIE, [1, 2, 3])]);
    let sealed = message.seal(&key(), [1; IV_LEN]).unwrap();
    let open = |octets: &[u8], key: &SkKey| {
        let mut octets = octets.to_vec();
        Message::decode(&octets).and_then(|m| m.open(&mut octets, key))
    };
    assert_eq!(open(&sealed, &key()), Ok(message));
    let other = SkKey::new(Encryption::Aes128Gcm16, &[8; 20]).unwrap();
    assert_eq!(open(&sealed, &other), Err(CodecError::Icv));
    for at in (0..sealed.len()).filter(|at| !(24..28).contains(at)) {
        let mut touched = sealed.clone();
        touched[at] ^= 0x40;
        assert!(open(&touched, &key()).is_err(), "octet {at} is protected");
    }
}

// RFC 7296, 3.14: empty INFORMATIONAL messages have an SK payload with nothing in it.
#[test]
fn an_empty_sealed_message_opens() {
    let message = Message::new(header(), vec![]);
    let mut sealed = message.seal(&key(), [9; IV_LEN]).unwrap();
    assert_eq!(Message::decode(&sealed).unwrap().open(&mut sealed, &key()), Ok(message));
}

fn octets(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), len)
}

fn attribute() -> impl Strategy<Value = Attribute> {
    prop_oneof![
        (0..0x8000u16, any::<u16>()).prop_map(|(k, v)| Attribute::Short(k, v)),
        (0..0x8000u16, octets(0..5)).prop_map(|(k, v)| Attribute::Long(k, v)),
    ]
}

fn proposal() -> impl Strategy<Value = Proposal> {
    let transform = (any::<u8>(), any::<u16>(), proptest::collection::vec(attribute(), 0..3))
        .prop_map(|(kind, id, attributes)| Transform { kind: TransformType(kind), id, attributes });
    (any::<u8>(), any::<u8>(), octets(0..9), proptest::collection::vec(transform, 0..4)).prop_map(
        |(number, protocol, spi, transforms)| Proposal {
            number,
            protocol: Protocol(protocol),
            spi,
            transforms,
        },
    )
}

fn selector() -> impl Strategy<Value = SelectorItem> {
    let range = (any::<u8>(), any::<[u16; 2]>(), any::<[u32; 2]>(), any::<bool>()).prop_map(
        |(protocol, ports, ends, v6)| {
            let (low, high) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
            let address = |bits: u32| -> std::net::IpAddr {
                if v6 {
                    std::net::Ipv6Addr::from(u128::from(bits) << 64).into()
                } else {
                    std::net::Ipv4Addr::from(bits).into()
                }
            };
            SelectorItem::Range(TrafficSelector {
                protocol,
                port_start: ports[0].min(ports[1]),
                port_end: ports[0].max(ports[1]),
                start: address(low),
                end: address(high),
            })
        },
    );
    let other = (9..=255u8, any::<u8>(), octets(0..6))
        .prop_map(|(kind, protocol, data)| SelectorItem::Other { kind, protocol, data });
    prop_oneof![3 => range, 1 => other]
}

fn payload() -> impl Strategy<Value = Payload> {
    let selectors = || proptest::collection::vec(selector(), 1..4);
    prop_oneof![
        proptest::collection::vec(proposal(), 1..4).prop_map(Payload::Sa),
        (any::<u16>(), octets(1..40)).prop_map(|(g, d)| Payload::Ke(g, d)),
        (any::<u8>(), octets(0..20)).prop_map(|(k, d)| Payload::IdI(k, d)),
        (any::<u8>(), octets(0..20)).prop_map(|(k, d)| Payload::IdR(k, d)),
        (any::<u8>(), octets(0..40)).prop_map(|(m, d)| Payload::Auth(m, d)),
        octets(16..=64).prop_map(Payload::Nonce),
        (any::<u8>(), octets(0..9), any::<u16>(), octets(0..20)).prop_map(|(p, spi, k, data)| {
            Payload::Notify(Notify { protocol: Protocol(p), spi, kind: NotifyType(k), data })
        }),
        Just(Payload::Delete(Protocol::IKE, vec![])),
        proptest::collection::vec(octets(4), 1..5).prop_map(|s| Payload::Delete(Protocol::ESP, s)),
        octets(0..20).prop_map(Payload::Vendor),
        selectors().prop_map(Payload::TsI),
        selectors().prop_map(Payload::TsR),
        (37u8..=38, octets(0..20)).prop_map(|(k, d)| Payload::Unused(PayloadType(k), d)),
    ]
}

fn payloads() -> impl Strategy<Value = Vec<Payload>> {
    proptest::collection::vec(payload(), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_encoded_is_decoded(payloads in payloads(), response: bool, message_id: u32) {
        let message = Message::new(Header { response, message_id, ..header() }, payloads);
        let octets = message.encode().unwrap();
        prop_assert_eq!(Message::decode(&octets).unwrap(), message.clone());
        let mut sealed = message.seal(&key(), [3; IV_LEN]).unwrap();
        let opened = Message::decode(&sealed).unwrap().open(&mut sealed, &key()).unwrap();
        prop_assert_eq!(opened, message);
    }

    // What decodes encodes to something that decodes to the same: nothing depends on ignored bits.
    #[test]
    fn mutated_messages_never_panic(
        payloads in payloads(),
        touches in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut octets = Message::new(header(), payloads).encode().unwrap();
        for (at, value) in touches {
            let at = at.index(octets.len());
            if !(24..28).contains(&at) {
                octets[at] = value;
            }
        }
        if let Ok(message) = Message::decode(&octets)
            && !message.is_sealed()
        {
            prop_assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
        }
    }

    #[test]
    fn random_octets_never_panic(first: u8, chain in octets(0..200)) {
        let mut octets = raw(first, &chain);
        if let Ok(message) = Message::decode(&octets) {
            let _ = message.open(&mut octets, &key());
        }
        let _ = Message::decode(&chain);
    }
}
