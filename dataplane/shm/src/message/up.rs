//! From a worker to control.

use std::net::SocketAddr;

use super::{CloseReason, ConnectFailure, Malformed};
use crate::ring::{FIELDS_MAX, RawRecord, Ring, RingCorrupt, RingFull};
use crate::slot::SlotRef;
use crate::types::{ConnRef, Path};
use crate::words::{Record, WordReader, WordWriter};

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

/// Who is behind a record to control, and so how much of the ring may be in use after it. Anybody
/// can send as many IKE messages as the wire takes: they must crowd out neither those of known peers
/// nor what control has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nobody knows: half of the ring.
    Stranger,
    /// A peer on a TCP connection that is its own, where messages do not come again (RFC 9329, 6.2):
    /// three quarters.
    Peer,
    /// The worker: all of it.
    Worker,
}

impl Standing {
    fn of(self, words: u64) -> u64 {
        match self {
            Self::Stranger => words / 2,
            Self::Peer => words / 4 * 3,
            Self::Worker => words,
        }
    }
}

impl Up<'_> {
    pub(crate) fn push(&self, ring: Ring<'_>, standing: Standing) -> Result<(), RingFull> {
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
        ring.push_within(standing.of(ring.words()), kind, &fields[..used], payload)
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
        3 => Up::TcpConnectFailed { token: words.take()?, reason: words.take_number()? },
        4 => Up::TcpClosed { conn: ConnRef::decode(words)?, reason: words.take_number()? },
        5 => Up::PathMoved { peer: SlotRef::decode(words)? },
        6 => Up::SequenceNearlyExhausted { sa: SlotRef::decode(words)? },
        7 => Up::Restarted { epoch: words.take()? },
        8 => Up::Acquire { policy: u32::try_from(words.take()?).ok()? },
        _ => return None,
    })
}
