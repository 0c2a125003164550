//! Known answers: other implementations' packets and published vectors, through both providers.

use std::sync::atomic::AtomicU64;

use proptest::prelude::*;

use crate::aead::Key;
use crate::*;

/// A replay window's storage of its own.
struct Window {
    top: AtomicU64,
    bits: [AtomicU64; 16],
}

impl Window {
    fn new() -> Window {
        Window { top: AtomicU64::new(0), bits: [const { AtomicU64::new(0) }; 16] }
    }

    fn view(&self) -> ReplayWindow<'_> {
        ReplayWindow::new(&self.top, &self.bits, 1024).unwrap()
    }
}

fn algorithm_of(keymat: &[u8]) -> Algorithm {
    [Algorithm::Aes128Gcm16, Algorithm::Aes256Gcm16]
        .into_iter()
        .find(|algorithm| algorithm.keymat_len() == keymat.len())
        .unwrap()
}

/// Both halves of an SA with one provider.
fn pair(provider: Provider, spi: u32, keymat: &[u8], esn: bool) -> (OutboundSa, InboundSa) {
    let algorithm = algorithm_of(keymat);
    (
        OutboundSa::new(provider, algorithm, spi, keymat, esn).unwrap(),
        InboundSa::new(provider, algorithm, spi, keymat, esn).unwrap(),
    )
}

/// Every ESP packet between strongSwan and libreswan opens, and sealing what was inside with its
/// IV gives the same octets again.
fn replay_session(session: &culvert_captures::Session, provider: Provider) -> (usize, usize) {
    let (mut packets, mut extended) = (0, 0);
    for key in &session.esp {
        let (outbound, inbound) = pair(provider, key.spi, &key.keymat, key.esn);
        let window = Window::new();
        let messages = session.messages();
        let sealed = messages.iter().filter(|message| {
            message.kind == culvert_captures::Kind::Esp
                && message.octets[..4] == key.spi.to_be_bytes()
                && message.destination.ip() == key.destination
        });
        for message in sealed {
            let mut buffer = message.octets.clone();
            let opened = inbound.open(&mut buffer, &window.view()).unwrap_or_else(|error| {
                panic!("{} packet {}: {error}", session.name, message.packet)
            });
            assert_eq!(opened.next_header, NEXT_HEADER_IPV4);
            assert_eq!(buffer[opened.inner.start] >> 4, 4, "an IPv4 packet inside");
            assert!(opened.newest);

            let iv = message.octets[HEADER_LEN..FRONT_LEN].try_into().unwrap();
            let mut again = vec![0; OutboundSa::sealed_len(opened.inner.len())];
            again[opened.inner.clone()].copy_from_slice(&buffer[opened.inner.clone()]);
            let len = outbound
                .seal_with_iv(
                    opened.sequence,
                    iv,
                    opened.next_header,
                    &mut again,
                    opened.inner.len(),
                )
                .unwrap();
            assert_eq!(again[..len], message.octets, "{}", session.name);

            let mut repeated = message.octets.clone();
            let again = inbound.open(&mut repeated, &window.view());
            assert_eq!(again, Err(OpenError::Replayed));
            packets += 1;
            extended += usize::from(key.esn);
        }
    }
    (packets, extended)
}

#[test]
fn captured_packets_open_and_seal_to_the_same_octets() {
    let sessions = culvert_captures::sessions().unwrap();
    assert!(sessions.len() >= 7);
    for provider in Provider::ALL {
        let mut extended = 0;
        for session in &sessions {
            let esp =
                session.messages().iter().filter(|m| m.kind == culvert_captures::Kind::Esp).count();
            let (packets, with_esn) = replay_session(session, provider);
            assert!(packets > 0 && packets == esp, "{}: {packets} of {esp}", session.name);
            extended += with_esn;
        }
        assert!(extended > 0, "no capture with extended sequence numbers");
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A vector of the GCM specification (McGrew and Viega, Appendix B), whose key, IV, plaintext and
/// AAD are reused by NIST.
struct Vector {
    key: &'static str,
    iv: &'static str,
    aad: &'static str,
    text: &'static str,
    sealed: &'static str,
    icv: &'static str,
}

const TEXT: &str = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72
    1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39";
const AAD: &str = "feedfacedeadbeeffeedfacedeadbeefabaddad2";

const VECTORS: [Vector; 6] = [
    // Test case 1
    Vector {
        key: "00000000000000000000000000000000",
        iv: "000000000000000000000000",
        aad: "",
        text: "",
        sealed: "",
        icv: "58e2fccefa7e3061367f1d57a4e7455a",
    },
    // Test case 2
    Vector {
        key: "00000000000000000000000000000000",
        iv: "000000000000000000000000",
        aad: "",
        text: "00000000000000000000000000000000",
        sealed: "0388dace60b6a392f328c2b971b2fe78",
        icv: "ab6e47d42cec13bdf53a67b21257bddf",
    },
    // Test case 4
    Vector {
        key: "feffe9928665731c6d6a8f9467308308",
        iv: "cafebabefacedbaddecaf888",
        aad: AAD,
        text: TEXT,
        sealed: "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e
            21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091",
        icv: "5bc94fbc3221a5db94fae95ae7121a47",
    },
    // Test case 13
    Vector {
        key: "0000000000000000000000000000000000000000000000000000000000000000",
        iv: "000000000000000000000000",
        aad: "",
        text: "",
        sealed: "",
        icv: "530f8afbc74536b9a963b4f1c4cb738b",
    },
    // Test case 14
    Vector {
        key: "0000000000000000000000000000000000000000000000000000000000000000",
        iv: "000000000000000000000000",
        aad: "",
        text: "00000000000000000000000000000000",
        sealed: "cea7403d4d606b6e074ec5d3baf39d18",
        icv: "d0d1c8a799996bf0265b98b5d48ab919",
    },
    // Test case 16
    Vector {
        key: "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
        iv: "cafebabefacedbaddecaf888",
        aad: AAD,
        text: TEXT,
        sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa
            8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662",
        icv: "76fc6ece0f4e1768cddf8853bb2d551b",
    },
];

#[test]
fn published_vectors_of_gcm() {
    for vector in &VECTORS {
        let (iv, aad) = (hex(vector.iv), hex(vector.aad));
        let (salt, iv) = iv.split_at(SALT_LEN);
        let keymat = [hex(vector.key), salt.to_vec()].concat();
        for provider in Provider::ALL {
            let key = Key::new(provider, algorithm_of(&keymat), &keymat).unwrap();
            let mut text = hex(vector.text);
            let icv = key.seal(iv.try_into().unwrap(), &aad, &mut text).unwrap();
            assert_eq!(text, hex(vector.sealed), "{provider}");
            assert_eq!(icv.to_vec(), hex(vector.icv), "{provider}");
            assert!(key.open(iv.try_into().unwrap(), &aad, &mut text, icv).is_ok());
            assert_eq!(text, hex(vector.text), "{provider}");
        }
    }
}

const SPI: u32 = 0xc001_d00d;

fn keymats() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 20),
        proptest::collection::vec(any::<u8>(), 36),
    ]
}

/// Numbers that an SA may send, with extended numbers or without.
fn sequences() -> impl Strategy<Value = (bool, u64)> {
    prop_oneof![
        (1..=u64::from(u32::MAX)).prop_map(|sequence| (false, sequence)),
        (1..u64::from(u32::MAX)).prop_map(|sequence| (true, sequence)),
        ((1u64 << 32) - 3..(1 << 32) + 3).prop_map(|sequence| (true, sequence)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_one_provider_seals_the_other_opens(
        keymat in keymats(),
        (esn, sequence) in sequences(),
        inner in proptest::collection::vec(any::<u8>(), 0..1600),
        next_header in any::<u8>().prop_filter("no dummy", |&next| next != NEXT_HEADER_DUMMY),
    ) {
        let (ring, ring_in) = pair(Provider::Ring, SPI, &keymat, esn);
        let (soft, soft_in) = pair(Provider::AesGcm, SPI, &keymat, esn);
        let mut sealed = vec![0; OutboundSa::sealed_len(inner.len())];
        let len = ring.seal(sequence, next_header, &inner, &mut sealed).unwrap();
        prop_assert_eq!(len, sealed.len());
        // RFC 4303, 2.4: the ICV ends on a multiple of four octets, padding is minimal.
        prop_assert_eq!(len % 4, 0);
        prop_assert!(len - inner.len() <= FRONT_LEN + BACK_LEN_MAX);
        let mut same = vec![0xee; sealed.len()];
        soft.seal(sequence, next_header, &inner, &mut same).unwrap();
        prop_assert_eq!(&sealed, &same);

        for inbound in [ring_in, soft_in] {
            let window = Window::new();
            // The receiver has seen the numbers up to shortly before this one.
            window.top.store(sequence - 1, std::sync::atomic::Ordering::Relaxed);
            let mut packet = sealed.clone();
            let opened = inbound.open(&mut packet, &window.view()).unwrap();
            prop_assert_eq!(&packet[opened.inner.clone()], &inner[..]);
            prop_assert_eq!(opened.next_header, next_header);
            prop_assert_eq!(opened.sequence, sequence);
            prop_assert!(opened.newest);
        }
    }

    #[test]
    fn a_changed_bit_fails(
        keymat in keymats(),
        (esn, sequence) in sequences(),
        inner in proptest::collection::vec(any::<u8>(), 0..80),
        at in any::<proptest::sample::Index>(),
    ) {
        for provider in Provider::ALL {
            let (outbound, inbound) = pair(provider, SPI, &keymat, esn);
            let mut sealed = vec![0; OutboundSa::sealed_len(inner.len())];
            outbound.seal(sequence, NEXT_HEADER_IPV6, &inner, &mut sealed).unwrap();
            let bit = at.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            let window = Window::new();
            window.top.store(sequence.saturating_sub(1), std::sync::atomic::Ordering::Relaxed);
            let before = window.view().top();
            let error = inbound.open(&mut sealed, &window.view()).unwrap_err();
            match bit / 8 {
                0..4 => prop_assert_eq!(error, OpenError::WrongSpi),
                4..8 => prop_assert!(matches!(error, OpenError::IcvFailed | OpenError::Replayed | OpenError::TooOld)),
                _ => prop_assert_eq!(error, OpenError::IcvFailed),
            }
            // RFC 4303, 3.4.3: the window moves only after the ICV.
            prop_assert_eq!(window.view().top(), before);
        }
    }

    #[test]
    fn any_octets_open_to_an_error(
        mut octets in proptest::collection::vec(any::<u8>(), 0..200),
        esn in any::<bool>(),
        right_spi in any::<bool>(),
    ) {
        if right_spi && octets.len() >= 4 {
            octets[..4].copy_from_slice(&SPI.to_be_bytes());
        }
        for provider in Provider::ALL {
            let (_, inbound) = pair(provider, SPI, &[7; 20], esn);
            prop_assert!(inbound.open(&mut octets.clone(), &Window::new().view()).is_err());
        }
    }
}

/// Seals a text whose trailer the test wrote itself.
fn seal_text(outbound: &Key, sequence: u32, text: &[u8]) -> Vec<u8> {
    let front = [SPI.to_be_bytes(), sequence.to_be_bytes()].concat();
    let iv = u64::from(sequence).to_be_bytes();
    let mut text = text.to_vec();
    let icv = outbound.seal(iv, &front, &mut text).unwrap();
    [front, iv.to_vec(), text, icv.to_vec()].concat()
}

// RFC 4303, 2.4 and 2.6
#[test]
fn trailers_are_checked_after_the_icv_and_the_window_has_moved() {
    let keymat = [9; 20];
    let key = Key::new(Provider::Ring, Algorithm::Aes128Gcm16, &keymat).unwrap();
    let (_, inbound) = pair(Provider::Ring, SPI, &keymat, false);
    let window = Window::new();
    let cases: [(&[u8], Result<usize, OpenError>); 8] = [
        (&[0x45, 0, 0, 0, 1, 2, 2, 4], Ok(4)),
        (&[1, 2, 2, 4], Ok(0)),
        // More padding than needed is allowed.
        (&[0x45, 0, 1, 2, 3, 4, 4, 4], Ok(2)),
        (&[0x45, 0, 0, 0, 0, 0, 2, 4], Err(OpenError::BadPadding)),
        (&[0x45, 0, 0, 0, 2, 1, 2, 4], Err(OpenError::BadPadding)),
        (&[1, 2, 3, 4], Err(OpenError::BadPadding)),
        (&[9, 9, 255, 59], Err(OpenError::Dummy)),
        (&[0, 0, 255, 41], Err(OpenError::BadPadding)),
    ];
    for (sequence, (text, want)) in (1..).zip(cases) {
        let mut packet = seal_text(&key, sequence, text);
        let opened = inbound.open(&mut packet, &window.view());
        assert_eq!(opened.map(|opened| opened.inner.len()), want, "{text:?}");
        assert_eq!(window.view().top(), u64::from(sequence));
    }
}

#[test]
fn lengths_that_cannot_be_are_refused_before_anything_else() {
    let (_, inbound) = pair(Provider::Ring, SPI, &[9; 20], false);
    for len in 0..80 {
        let error = inbound.open(&mut vec![0; len], &Window::new().view()).unwrap_err();
        let want = match len {
            0..36 => OpenError::TooShort,
            _ if len % 4 != 0 => OpenError::Misaligned,
            _ => OpenError::WrongSpi,
        };
        assert_eq!(error, want, "{len}");
    }
}

// RFC 4303, 3.3.3
#[test]
fn numbers_that_an_sa_cannot_send_are_refused() {
    let mut out = [0; 100];
    let (short, _) = pair(Provider::Ring, SPI, &[9; 20], false);
    let (extended, _) = pair(Provider::Ring, SPI, &[9; 20], true);
    for sa in [&short, &extended] {
        assert_eq!(sa.seal(0, 4, &[], &mut out), Err(SealError::SequenceNumber(0)));
    }
    assert_eq!(short.seal(1 << 32, 4, &[], &mut out), Err(SealError::SequenceNumber(1 << 32)));
    assert!(short.seal((1 << 32) - 1, 4, &[], &mut out).is_ok());
    assert!(extended.seal(1 << 32, 4, &[], &mut out).is_ok());
}

#[test]
fn a_buffer_that_is_too_short_is_refused() {
    let (outbound, _) = pair(Provider::Ring, SPI, &[9; 20], false);
    let needed = OutboundSa::sealed_len(10);
    assert_eq!(needed, 8 + 8 + 12 + 16);
    let given = needed - 1;
    let want = Err(SealError::BufferTooShort { needed, given });
    assert_eq!(outbound.seal(1, 4, &[0; 10], &mut vec![0; given]), want);
    assert_eq!(outbound.seal_in_place(1, 4, &mut vec![0; given], 10), want);
}

// RFC 4303, 2.2.1 and Appendix A: the receiver must use all 64 bits in the ICV.
#[test]
fn extended_numbers_go_over_two_to_the_32_between_two_ends() {
    for provider in Provider::ALL {
        let (outbound, inbound) = pair(provider, SPI, &[3; 36], true);
        let window = Window::new();
        let start = (1u64 << 32) - 600;
        window.top.store(start - 1, std::sync::atomic::Ordering::Relaxed);
        let seal = |sequence| {
            let mut packet = vec![0; OutboundSa::sealed_len(4)];
            outbound.seal(sequence, 4, &[0x45, 0, 0, 0], &mut packet).unwrap();
            packet
        };
        // Every third packet comes late, some of them from the other side of the boundary.
        let (late, on_time): (Vec<u64>, Vec<u64>) = (start..start + 900).partition(|n| n % 3 == 0);
        for &sequence in on_time.iter().chain(&late) {
            let opened = inbound.open(&mut seal(sequence), &window.view()).unwrap();
            assert_eq!(opened.sequence, sequence);
        }
        assert_eq!(inbound.open(&mut seal(start + 899), &window.view()), Err(OpenError::Replayed));
        assert_eq!(window.view().top(), start + 899);
    }
}

#[test]
fn key_material_of_another_length_is_refused() {
    for provider in Provider::ALL {
        let made = InboundSa::new(provider, Algorithm::Aes256Gcm16, SPI, &[0; 20], false);
        let error = made.err().unwrap();
        assert_eq!(error.to_string(), "20 octets of key material, Aes256Gcm16 needs 36");
    }
}

#[test]
fn providers_are_known_by_their_names() {
    for provider in Provider::ALL {
        assert_eq!(provider.to_string().parse(), Ok(provider));
    }
    assert!("openssl".parse::<Provider>().is_err());
    assert!(Provider::ALL.contains(&Provider::fastest()));
}
