//! What the two processes say to each other over the rings.
//!
//! The `*Changed` records of [`Down`] carry no value: they mean "look at this slot again", so
//! losing or repeating one is harmless once the next has come.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::ring::{FIELDS_MAX, RawRecord, Ring, RingCorrupt, RingFull};
use crate::slot::SlotRef;
use crate::types::{ConnRef, Path};
use crate::words::{Record, WordReader, WordWriter};

/// A record that could not be understood: the other process wrote nonsense, or the memory is
/// damaged. The record, or all that waited in a damaged ring, was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Two control processes died while they acted on this record: it is passed over.
    #[error("control died twice while acting on it; it is passed over")]
    Deadly,
    /// The ring's positions contradict each other; it was emptied.
    #[error("the ring's positions contradict each other, it was emptied")]
    Ring,
    /// The record is of no kind that this version knows, or its fields mean nothing.
    #[error("a record of kind {kind} has no meaning, it was dropped")]
    Record {
        /// The record's kind.
        kind: u8,
    },
}

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnectFailure {
    /// The peer answered with a reset.
    Refused = 1,
    /// No answer in time.
    TimedOut = 2,
    /// No route, or no neighbour answered.
    Unreachable = 3,
    /// The worker's connection table is full.
    TableFull = 4,
    /// No local port is free.
    NoPort = 5,
    /// The gateway has no such local address, or none of the peer's family.
    NoAddress = 6,
}

impl ConnectFailure {
    fn from_number(number: u16) -> Option<ConnectFailure> {
        [
            ConnectFailure::Refused,
            ConnectFailure::TimedOut,
            ConnectFailure::Unreachable,
            ConnectFailure::TableFull,
            ConnectFailure::NoPort,
            ConnectFailure::NoAddress,
        ]
        .into_iter()
        .find(|reason| *reason as u16 == number)
    }
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer closed it.
    Peer = 1,
    /// The peer reset it.
    Reset = 2,
    /// It was not answered any more.
    TimedOut = 3,
    /// This gateway closed it on control's word.
    Local = 4,
    /// The stream does not follow RFC 9329: no prefix, or a length that cannot be.
    Protocol = 5,
    /// The prefix did not come in time.
    Silent = 6,
    /// The dataplane was restarted; its connections are gone.
    Restarted = 7,
}

impl CloseReason {
    fn from_number(number: u16) -> Option<CloseReason> {
        [
            CloseReason::Peer,
            CloseReason::Reset,
            CloseReason::TimedOut,
            CloseReason::Local,
            CloseReason::Protocol,
            CloseReason::Silent,
            CloseReason::Restarted,
        ]
        .into_iter()
        .find(|reason| *reason as u16 == number)
    }
}

/// From a worker to control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Up<'a> {
    /// An IKE message arrived, without non-ESP marker and frame length.
    IkeMessage {
        /// The way it came.
        path: Path,
        /// The message.
        payload: &'a [u8],
    },
    /// A TCP connection is open and its prefix has been seen or sent.
    TcpOpened {
        /// The connection.
        conn: ConnRef,
        /// This gateway's end.
        local: SocketAddr,
        /// The peer's end.
        remote: SocketAddr,
        /// Whether this gateway opened it (RFC 9329's TCP Originator).
        originator: bool,
        /// The token of the [`Down::TcpConnect`] that asked for it; 0 when the peer opened it.
        token: u64,
    },
    /// A connection asked for could not be opened.
    TcpConnectFailed {
        /// The token of the [`Down::TcpConnect`].
        token: u64,
        /// Why.
        reason: ConnectFailure,
    },
    /// A connection that was reported open is gone.
    TcpClosed {
        /// The connection.
        conn: ConnRef,
        /// Why.
        reason: CloseReason,
    },
    /// An authentic packet of the peer came another way; its path has moved there.
    PathMoved {
        /// The peer.
        peer: SlotRef,
    },
    /// The outbound sequence numbers of an SA are nearly used up: time to rekey.
    SequenceNearlyExhausted {
        /// The SA.
        sa: SlotRef,
    },
    /// A packet met a policy without SA (see [`crate::Policy::TRAP`]). A worker says so at most once a
    /// second for each.
    Acquire {
        /// Index of the policy's slot.
        policy: u32,
    },
    /// Every record of this worker from before this one is from an earlier life of the dataplane:
    /// its connections are gone, the slots are being read again.
    Restarted {
        /// The dataplane's new epoch.
        epoch: u64,
    },
}

impl Up<'_> {
    pub(crate) fn push(&self, ring: Ring<'_>) -> Result<(), RingFull> {
        let mut fields = [0; FIELDS_MAX];
        let mut out = WordWriter::new(&mut fields);
        let (kind, payload): (u8, &[u8]) = match self {
            Up::IkeMessage { path, payload } => {
                path.encode(&mut out);
                (1, payload)
            }
            Up::TcpOpened { conn, local, remote, originator, token } => {
                conn.encode(&mut out);
                out.put_socket(*local);
                out.put_socket(*remote);
                out.put(u64::from(*originator));
                out.put(*token);
                (2, &[])
            }
            Up::TcpConnectFailed { token, reason } => {
                out.put(*token);
                out.put(*reason as u64);
                (3, &[])
            }
            Up::TcpClosed { conn, reason } => {
                conn.encode(&mut out);
                out.put(*reason as u64);
                (4, &[])
            }
            Up::PathMoved { peer } => {
                peer.encode(&mut out);
                (5, &[])
            }
            Up::SequenceNearlyExhausted { sa } => {
                sa.encode(&mut out);
                (6, &[])
            }
            Up::Restarted { epoch } => {
                out.put(*epoch);
                (7, &[])
            }
            Up::Acquire { policy } => {
                out.put(u64::from(*policy));
                (8, &[])
            }
        };
        let used = out.used();
        ring.push(kind, &fields[..used], payload)
    }
}

/// Reads a record that a worker wrote.
pub(crate) fn decode_up(record: Result<RawRecord<'_>, RingCorrupt>) -> Result<Up<'_>, Malformed> {
    let record = record.map_err(|RingCorrupt| Malformed::Ring)?;
    up_fields(&record).ok_or(Malformed::Record { kind: record.kind })
}

fn up_fields<'a>(record: &RawRecord<'a>) -> Option<Up<'a>> {
    let words = &mut WordReader::new(record.fields);
    Some(match record.kind {
        1 => Up::IkeMessage { path: Path::decode(words)?, payload: record.payload },
        2 => Up::TcpOpened {
            conn: ConnRef::decode(words)?,
            local: words.take_socket()?,
            remote: words.take_socket()?,
            originator: words.take()? == 1,
            token: words.take()?,
        },
        3 => Up::TcpConnectFailed {
            token: words.take()?,
            reason: ConnectFailure::from_number(u16::try_from(words.take()?).ok()?)?,
        },
        4 => Up::TcpClosed {
            conn: ConnRef::decode(words)?,
            reason: CloseReason::from_number(u16::try_from(words.take()?).ok()?)?,
        },
        5 => Up::PathMoved { peer: SlotRef::decode(words)? },
        6 => Up::SequenceNearlyExhausted { sa: SlotRef::decode(words)? },
        7 => Up::Restarted { epoch: words.take()? },
        8 => Up::Acquire { policy: u32::try_from(words.take()?).ok()? },
        _ => return None,
    })
}

/// The octet that a NAT keepalive consists of (RFC 3948, 2.3). No IKE message is so short.
pub const NAT_KEEPALIVE: u8 = 0xff;

/// From control to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down<'a> {
    /// Send an IKE message; the worker adds non-ESP marker and frame length where the path needs
    /// them. In UDP also a [`NAT_KEEPALIVE`] alone, as it is.
    IkeSend {
        /// The way to send it. Over TCP the connection must still be there, or the message is
        /// dropped and counted.
        path: Path,
        /// The message.
        payload: &'a [u8],
    },
    /// Open a TCP connection; [`Up::TcpOpened`] or [`Up::TcpConnectFailed`] answers.
    TcpConnect {
        /// Comes back in the answer; not 0.
        token: u64,
        /// Local address; `None`: the gateway's first of the peer's family.
        local: Option<IpAddr>,
        /// The peer.
        remote: SocketAddr,
    },
    /// Close a connection: in order, or with a reset.
    TcpClose {
        /// The connection.
        conn: ConnRef,
        /// Reset it instead of sending what waits.
        abort: bool,
    },
    /// An authenticated peer uses this connection: it no longer gives way to new ones.
    TcpProven {
        /// The connection.
        conn: ConnRef,
    },
    /// Look at this SA's slot again.
    SaChanged {
        /// Index of the slot.
        index: u32,
    },
    /// Look at this policy's slot again.
    PolicyChanged {
        /// Index of the slot.
        index: u32,
    },
    /// Look at this peer's slot again.
    PeerChanged {
        /// Index of the slot.
        index: u32,
    },
    /// Send this peer's packets this way from now on.
    PathSet {
        /// The peer.
        peer: SlotRef,
        /// The way.
        path: Path,
    },
}

impl Down<'_> {
    pub(crate) fn push(&self, ring: Ring<'_>) -> Result<(), RingFull> {
        let mut fields = [0; FIELDS_MAX];
        let mut out = WordWriter::new(&mut fields);
        let (kind, payload): (u8, &[u8]) = match self {
            Down::IkeSend { path, payload } => {
                path.encode(&mut out);
                (1, payload)
            }
            Down::TcpConnect { token, local, remote } => {
                out.put(*token);
                out.put(u64::from(local.is_some()));
                out.put_address(local.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
                out.put_socket(*remote);
                (2, &[])
            }
            Down::TcpClose { conn, abort } => {
                conn.encode(&mut out);
                out.put(u64::from(*abort));
                (3, &[])
            }
            Down::SaChanged { index } => {
                out.put(u64::from(*index));
                (4, &[])
            }
            Down::PolicyChanged { index } => {
                out.put(u64::from(*index));
                (5, &[])
            }
            Down::PeerChanged { index } => {
                out.put(u64::from(*index));
                (6, &[])
            }
            Down::PathSet { peer, path } => {
                peer.encode(&mut out);
                path.encode(&mut out);
                (7, &[])
            }
            Down::TcpProven { conn } => {
                conn.encode(&mut out);
                (8, &[])
            }
        };
        let used = out.used();
        ring.push(kind, &fields[..used], payload)
    }
}

/// Reads a record that control wrote.
pub(crate) fn decode_down(
    record: Result<RawRecord<'_>, RingCorrupt>,
) -> Result<Down<'_>, Malformed> {
    let record = record.map_err(|RingCorrupt| Malformed::Ring)?;
    down_fields(&record).ok_or(Malformed::Record { kind: record.kind })
}

fn down_fields<'a>(record: &RawRecord<'a>) -> Option<Down<'a>> {
    let words = &mut WordReader::new(record.fields);
    Some(match record.kind {
        1 => Down::IkeSend { path: Path::decode(words)?, payload: record.payload },
        2 => {
            let token = words.take()?;
            let has_local = words.take()? == 1;
            let local = words.take_address()?;
            let remote = words.take_socket()?;
            Down::TcpConnect { token, local: has_local.then_some(local), remote }
        }
        3 => Down::TcpClose { conn: ConnRef::decode(words)?, abort: words.take()? == 1 },
        4 => Down::SaChanged { index: u32::try_from(words.take()?).ok()? },
        5 => Down::PolicyChanged { index: u32::try_from(words.take()?).ok()? },
        6 => Down::PeerChanged { index: u32::try_from(words.take()?).ok()? },
        7 => Down::PathSet { peer: SlotRef::decode(words)?, path: Path::decode(words)? },
        8 => Down::TcpProven { conn: ConnRef::decode(words)? },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Transport;
    use proptest::prelude::*;

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
        (transport, socket(), socket(), proptest::option::of(conn()))
            .prop_map(|(transport, local, remote, conn)| Path { transport, local, remote, conn })
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
            |ring| message.push(ring),
            |record| assert_eq!(decode_up(record), Ok(message)),
        );
    }

    fn assert_down(message: Down<'_>) {
        through_ring(
            |ring| message.push(ring),
            |record| assert_eq!(decode_down(record), Ok(message)),
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn every_record_comes_out_as_it_went_in(
            path in path(), conn in conn(), local in socket(), remote in socket(),
            slot in slot(), token in any::<u64>(), flag in any::<bool>(),
            payload in proptest::collection::vec(any::<u8>(), 0..3000),
            reason in 1u16..=7,
        ) {
            assert_up(Up::IkeMessage { path, payload: &payload });
            assert_up(Up::TcpOpened { conn, local, remote, originator: flag, token });
            if let Some(reason) = ConnectFailure::from_number(reason) {
                assert_up(Up::TcpConnectFailed { token, reason });
            }
            let reason = CloseReason::from_number(reason).unwrap();
            assert_up(Up::TcpClosed { conn, reason });
            assert_up(Up::PathMoved { peer: slot });
            assert_up(Up::SequenceNearlyExhausted { sa: slot });
            assert_up(Up::Restarted { epoch: token });
            assert_up(Up::Acquire { policy: slot.index });

            assert_down(Down::IkeSend { path, payload: &payload });
            assert_down(Down::TcpConnect { token, local: flag.then(|| local.ip()), remote });
            assert_down(Down::TcpClose { conn, abort: flag });
            assert_down(Down::SaChanged { index: slot.index });
            assert_down(Down::PolicyChanged { index: slot.index });
            assert_down(Down::PeerChanged { index: slot.index });
            assert_down(Down::PathSet { peer: slot, path });
            assert_down(Down::TcpProven { conn });
        }

        #[test]
        fn any_record_decodes_or_is_malformed(
            kind in 0u8..12,
            fields in proptest::collection::vec(prop_oneof![0u64..9, any::<u64>()], 0..=FIELDS_MAX),
        ) {
            let record = || Ok(RawRecord { kind, fields: &fields, payload: b"payload" });
            if !(1..=8).contains(&kind) {
                prop_assert_eq!(decode_up(record()), Err(Malformed::Record { kind }));
                prop_assert_eq!(decode_down(record()), Err(Malformed::Record { kind }));
            }
            if fields.is_empty() {
                prop_assert!(decode_up(record()).is_err() && decode_down(record()).is_err());
            } else {
                let _ = (decode_up(record()), decode_down(record()));
            }
        }
    }
}
