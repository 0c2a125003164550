//! What the loader finds in the captures, against what tshark 4.0.17 finds in the same files:
//! connections by `-z conv,tcp`, messages by its IKE and ESP dissectors.

use culvert_captures::Kind;

/// Capture, TCP connections, IKE messages each way, ESP packets each way, octets of each stream.
type Row = (&'static str, usize, usize, usize, &'static [[usize; 2]]);

const EXPECTED: [Row; 7] = [
    ("tcp_libreswan-init_libreswan-resp_aes128gcm-x25519-noesn", 1, 7, 5, &[[1692, 1652]]),
    ("tcp_libreswan-init_libreswan-resp_aes256gcm-ecp256-esn", 1, 7, 5, &[[1820, 1780]]),
    ("tcp_libreswan-init_strongswan-resp_aes128gcm-x25519", 2, 5, 3, &[[864, 868], [435, 431]]),
    ("tcp_libreswan-init_strongswan-resp_aes256gcm-ecp256", 2, 5, 3, &[[928, 932], [499, 495]]),
    ("tcp_strongswan-init_libreswan-resp_aes128gcm-x25519", 1, 7, 5, &[[1740, 1652]]),
    ("tcp_strongswan-init_libreswan-resp_aes256gcm-ecp256", 1, 7, 5, &[[1868, 1780]]),
    ("udp_strongswan_aes128gcm-x25519", 0, 7, 5, &[]),
];

#[test]
fn every_capture_holds_what_tshark_sees() {
    let sessions = culvert_captures::sessions().unwrap();
    let names: Vec<&str> = sessions.iter().map(|session| session.name.as_str()).collect();
    assert_eq!(names, EXPECTED.map(|(name, ..)| name));
    for (session, (name, connections, ike, esp, octets)) in sessions.iter().zip(EXPECTED) {
        assert_eq!(session.connections.len(), connections, "{name}");
        for (connection, [originator, responder]) in session.connections.iter().zip(octets) {
            assert_eq!(connection.responder.port(), 4500, "{name}");
            assert_eq!(connection.from_originator.octets.len(), *originator, "{name}");
            assert_eq!(connection.from_responder.octets.len(), *responder, "{name}");
        }
        let messages = session.messages();
        let count = |kind, from_originator| {
            messages
                .iter()
                .filter(|m| (m.kind, m.from_originator) == (kind, from_originator))
                .count()
        };
        for from_originator in [true, false] {
            assert_eq!(count(Kind::Ike, from_originator), ike, "{name}");
            assert_eq!(count(Kind::Esp, from_originator), esp, "{name}");
            assert_eq!(count(Kind::Short, from_originator), 0, "{name}");
        }
    }
}

#[test]
fn messages_come_in_the_order_of_the_wire() {
    for session in culvert_captures::sessions().unwrap() {
        let messages = session.messages();
        assert!(messages.is_sorted_by_key(|message| message.packet), "{}", session.name);
        // An IKE exchange is a request and then its response (RFC 7296, 2.1): the first two
        // messages are IKE_SA_INIT (exchange type 34) with message ID 0, one from each end.
        let first: Vec<_> = messages.iter().take(2).collect();
        assert!(first.iter().all(|message| message.octets[18] == 34), "{}", session.name);
        assert!(first[0].from_originator && !first[1].from_originator, "{}", session.name);
    }
}

#[test]
fn every_message_has_its_key() {
    for session in culvert_captures::sessions().unwrap() {
        assert_eq!(session.ike.len(), 2, "{}", session.name);
        assert_eq!(session.esp.len(), 4, "{}", session.name);
        for keys in &session.ike {
            assert!(keys.spis.is_some(), "{}: an IKE SA without SPIs", session.name);
            assert_eq!(keys.sk_ei.len(), keys.sk_er.len());
        }
        for message in session.messages() {
            let name = &session.name;
            match message.kind {
                Kind::Ike if message.octets[8..16] == [0; 8] => {}
                Kind::Ike => assert!(
                    session.ike.iter().filter_map(|keys| keys.spis).any(|(spi_i, spi_r)| {
                        message.octets[..8] == spi_i && message.octets[8..16] == spi_r
                    }),
                    "{name}: unknown IKE SPIs"
                ),
                Kind::Esp => {
                    let key = session
                        .esp
                        .iter()
                        .find(|key| key.spi.to_be_bytes() == message.octets[..4])
                        .unwrap_or_else(|| panic!("{name}: unknown ESP SPI"));
                    assert_eq!(key.source, message.source.ip(), "{name}");
                    assert_eq!(key.destination, message.destination.ip(), "{name}");
                    assert_eq!(key.esn, name.ends_with("-esn"), "{name}");
                    assert_eq!(key.keymat.len(), if name.contains("aes256") { 36 } else { 20 });
                }
                Kind::Short => panic!("{name}: a message without SPI"),
            }
        }
    }
}
