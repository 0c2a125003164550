//! Every record comes out of a ring as it went in, and whatever lies there is never trusted.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::conn::Congestion;
use crate::dscp::Dscp;
use crate::ring::{FIELDS_MAX, RawRecord, Ring, RingCorrupt, RingFull};
use crate::slot::SlotRef;
use crate::types::{ConnRef, Path, Transport};

fn socket() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        // Mapped addresses do not occur on the wire and are the form of IPv4 in the memory.
        (any::<[u8; 16]>(), any::<u16>())
            .prop_map(SocketAddr::from)
            .prop_filter("mapped", |socket| socket.ip().to_canonical() == socket.ip()),
    ]
}

fn conn() -> impl Strategy<Value = ConnRef> {
    (any::<u16>(), any::<u32>(), any::<u32>()).prop_map(|(worker, index, generation)| ConnRef {
        worker,
        index,
        generation,
    })
}

fn path() -> impl Strategy<Value = Path> {
    let transport =
        prop_oneof![Just(Transport::Native), Just(Transport::Udp), Just(Transport::Tcp)];
    (transport, socket(), socket(), proptest::option::of(conn())).prop_map(
        |(transport, local, remote, conn)| Path {
            transport,
            local,
            remote,
            conn,
            pinned: conn.is_none(),
        },
    )
}

fn slot() -> impl Strategy<Value = SlotRef> {
    (any::<u32>(), any::<u32>()).prop_map(|(index, generation)| SlotRef { index, generation })
}

/// Encodes into fields as `push` does, and hands them back as a record.
fn through_ring<T>(
    push: impl FnOnce(Ring<'_>) -> Result<(), RingFull>,
    check: impl FnOnce(Result<RawRecord<'_>, RingCorrupt>) -> T,
) -> T {
    let memory = crate::ring::tests_support::Memory::new(1 << 14);
    push(memory.ring()).unwrap();
    let mut scratch = crate::ring::Scratch::new();
    check(memory.ring().pop(&mut scratch).unwrap())
}

fn assert_up(message: Up<'_>) {
    through_ring(
        |ring| message.push(ring, Standing::Worker),
        |record| assert_eq!(decode_up(record), Ok(message)),
    );
}

fn assert_down(message: Down<'_>) {
    through_ring(|ring| message.push(ring), |record| assert_eq!(decode_down(record), Ok(message)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_record_comes_out_as_it_went_in(
        path in path(), conn in conn(), local in socket(), remote in socket(),
        slot in slot(), token in any::<u64>(), flag in any::<bool>(),
        payload in proptest::collection::vec(any::<u8>(), 0..3000),
        reason in 1u16..=7,
        congestion in prop_oneof![Just(Congestion::Bbr), Just(Congestion::Cubic)],
        dscp in (0u8..64).prop_map(|bits| Dscp::new(bits).unwrap()),
    ) {
        assert_up(Up::IkeMessage { path, payload: &payload });
        assert_up(Up::TcpOpened { conn, local, remote, originator: flag, token });
        if let Ok(reason) = ConnectFailure::try_from(reason) {
            assert_up(Up::TcpConnectFailed { token, reason });
        }
        let reason = CloseReason::try_from(reason).unwrap();
        assert_up(Up::TcpClosed { conn, reason });
        assert_up(Up::PathMoved { peer: slot });
        assert_up(Up::SequenceNearlyExhausted { sa: slot });
        assert_up(Up::Restarted { epoch: token });
        assert_up(Up::Acquire { policy: slot.index });

        assert_down(Down::IkeSend { path, dscp, payload: &payload });
        assert_down(Down::IkeSendBehind { path, payload: &payload });
        let local = flag.then(|| local.ip());
        let flow_label = slot.index;
        assert_down(Down::TcpConnect { token, local, remote, congestion, flow_label, dscp });
        assert_down(Down::TcpClose { conn, abort: flag });
        assert_down(Down::SaChanged { index: slot.index });
        assert_down(Down::PolicyChanged { index: slot.index });
        assert_down(Down::PeerChanged { index: slot.index });
        assert_down(Down::PathSet { peer: slot, path });
        assert_down(Down::TcpProven { conn, congestion, dscp });
    }

    #[test]
    fn any_record_decodes_or_is_malformed(
        kind in 0u8..12,
        fields in proptest::collection::vec(prop_oneof![0u64..9, any::<u64>()], 0..=FIELDS_MAX),
    ) {
        let record = || Ok(RawRecord { kind, fields: &fields, payload: b"payload" });
        if !(1..=8).contains(&kind) {
            prop_assert_eq!(decode_up(record()), Err(Malformed::Record { kind }));
        }
        if !(1..=9).contains(&kind) {
            prop_assert_eq!(decode_down(record()), Err(Malformed::Record { kind }));
        }
        if fields.is_empty() {
            prop_assert!(decode_up(record()).is_err() && decode_down(record()).is_err());
        } else {
            let _ = (decode_up(record()), decode_down(record()));
        }
    }
}
