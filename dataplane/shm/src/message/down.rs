//! From control to a worker.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Malformed;
use crate::conn::Congestion;
use crate::dscp::Dscp;
use crate::ring::{FIELDS_MAX, RawRecord, Ring, RingCorrupt, RingFull};
use crate::slot::SlotRef;
use crate::types::{ConnRef, Path};
use crate::words::{Record, WordReader, WordWriter};

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
        /// Service level of its datagrams; over TCP the connection's counts.
        dscp: Dscp,
        /// The message.
        payload: &'a [u8],
    },
    /// Send an IKE message over TCP behind all ESP packets that wait to be sent: a Delete must not
    /// overtake those of its SA.
    IkeSendBehind {
        /// The connection's.
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
        /// What governs it.
        congestion: Congestion,
        /// IPv6 flow label of its packets, of 20 bits.
        flow_label: u32,
        /// Service level of its packets.
        dscp: Dscp,
    },
    /// Close a connection: in order, or with a reset.
    TcpClose {
        /// The connection.
        conn: ConnRef,
        /// Reset it instead of sending what waits.
        abort: bool,
    },
    /// An authenticated peer uses this connection: it no longer gives way to new ones, and it is known
    /// which of the configured connections it is of.
    TcpProven {
        /// The connection.
        conn: ConnRef,
        /// What governs it from now on.
        congestion: Congestion,
        /// Service level of its packets from now on.
        dscp: Dscp,
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
            Down::IkeSend { path, dscp, payload } => {
                path.encode(&mut out);
                out.put(dscp.bits().into());
                (1, payload)
            }
            Down::IkeSendBehind { path, payload } => {
                path.encode(&mut out);
                (9, payload)
            }
            Down::TcpConnect { token, local, remote, congestion, flow_label, dscp } => {
                out.put(*token);
                out.put(u64::from(local.is_some()));
                out.put_address(local.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)));
                out.put_socket(*remote);
                out.put(*congestion as u64);
                out.put(u64::from(*flow_label));
                out.put(dscp.bits().into());
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
            Down::TcpProven { conn, congestion, dscp } => {
                conn.encode(&mut out);
                out.put(*congestion as u64);
                out.put(dscp.bits().into());
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
        1 => {
            let (path, dscp) = (Path::decode(words)?, words.take_number()?);
            Down::IkeSend { path, dscp, payload: record.payload }
        }
        2 => {
            let token = words.take()?;
            let has_local = words.take()? == 1;
            let local = words.take_address()?;
            let remote = words.take_socket()?;
            let congestion = words.take_number()?;
            let flow_label = u32::try_from(words.take()?).ok()?;
            let local = has_local.then_some(local);
            let dscp = words.take_number()?;
            Down::TcpConnect { token, local, remote, congestion, flow_label, dscp }
        }
        3 => Down::TcpClose { conn: ConnRef::decode(words)?, abort: words.take()? == 1 },
        4 => Down::SaChanged { index: u32::try_from(words.take()?).ok()? },
        5 => Down::PolicyChanged { index: u32::try_from(words.take()?).ok()? },
        6 => Down::PeerChanged { index: u32::try_from(words.take()?).ok()? },
        7 => Down::PathSet { peer: SlotRef::decode(words)?, path: Path::decode(words)? },
        8 => {
            let (conn, congestion) = (ConnRef::decode(words)?, words.take_number()?);
            Down::TcpProven { conn, congestion, dscp: words.take_number()? }
        }
        9 => Down::IkeSendBehind { path: Path::decode(words)?, payload: record.payload },
        _ => return None,
    })
}
