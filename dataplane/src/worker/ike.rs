//! IKE messages between the wire and the control process.
//!
//! Up: from UDP 500 as they are, from UDP 4500 and TCP without the non-ESP marker. Down: the way
//! that control names. A worker does not look into them.

use std::net::SocketAddr;

use culvert_shm::{
    CloseReason, ConnRef, Counter, Dscp, NAT_KEEPALIVE, Path, Standing, Transport, Up,
};
use culvert_tcpstack::framing::{self, NON_ESP_MARKER};
use culvert_tcpstack::{ConnError, ConnId};

use super::Worker;
use super::core::Core;
use super::link::Link;
use crate::net::encap::{self, Outer};
use crate::net::fragment;
use crate::net::ip;
use crate::net::udp::Fill;

impl<L: Link> Core<L> {
    /// Hands a message to control, if there is room for one of such a sender.
    pub(crate) fn ike_up(&mut self, standing: Standing, path: &Path, message: &[u8]) {
        let message = Up::IkeMessage { path: *path, payload: message };
        if self.tell_for(standing, &message) {
            self.count(Counter::IkeUp);
        }
    }

    /// Control means a connection that is gone: it did not hear of that, because its ring was full, or
    /// has not heard yet. It is told (again), or it would wait for ever for what cannot come.
    pub(crate) fn tell_gone(&mut self, conn: ConnRef) {
        self.tell(&Up::TcpClosed { conn, reason: CloseReason::Local });
    }

    /// Sends a message in UDP, on any port but 500 behind the marker (RFC 3948, 2.2).
    ///
    /// A message longer than the MTU goes in IP fragments where the family lets this gateway make
    /// them as if it were a router, so over IPv4; over IPv6 it is dropped and counted.
    fn send_datagram(&mut self, path: &Path, dscp: Dscp, message: &[u8]) -> Result<(), Counter> {
        let bare = path.local.port() == super::IKE_PORT || *message == [NAT_KEEPALIVE];
        let marker: &[u8] = if bare { &[] } else { &NON_ESP_MARKER };
        let own = self.net.outer.own.contains(path.local.ip());
        if !own || path.local.is_ipv4() != path.remote.is_ipv4() {
            return Err(Counter::IkeDownNoPath);
        }
        let lead = encap::overhead(path.local.is_ipv4(), true);
        let len = lead + marker.len() + message.len();
        let mtu = self.net.outer.mtu;
        if len <= mtu {
            let mut packet = self.pool.alloc().ok_or(Counter::PoolEmpty)?;
            let out = packet.append(len).ok_or(Counter::IkeTooBig)?;
            self.write_datagram((path, dscp), marker, message, out)?;
            self.send_outer(packet, path.remote.ip());
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.big_datagram);
        let sent = self.send_in_fragments((path, dscp), [marker, message], &mut whole, len);
        self.big_datagram = whole;
        sent
    }

    fn send_in_fragments(
        &mut self,
        (path, dscp): (&Path, Dscp),
        [marker, message]: [&[u8]; 2],
        whole: &mut [u8],
        len: usize,
    ) -> Result<(), Counter> {
        let mtu = self.net.outer.mtu;
        let out = whole.get_mut(..len).ok_or(Counter::IkeTooBig)?;
        self.write_datagram((path, dscp), marker, message, out)?;
        let header = ip::parse(out).map_err(|_| Counter::IkeTooBig)?;
        let mut cut = fragment::fragments(out, &header, mtu).map_err(|_| Counter::IkeTooBig)?;
        self.send_pieces(&mut cut, mtu, path.remote.ip());
        Ok(())
    }

    fn write_datagram(
        &mut self,
        (path, dscp): (&Path, Dscp),
        marker: &[u8],
        message: &[u8],
        out: &mut [u8],
    ) -> Result<(), Counter> {
        let lead = encap::overhead(path.local.is_ipv4(), true);
        let payload = out.get_mut(lead..).ok_or(Counter::IkeTooBig)?;
        let (head, body) = payload.split_at_mut(marker.len());
        head.copy_from_slice(marker);
        body.copy_from_slice(message);
        self.identification = self.identification.wrapping_add(1);
        let outer = Outer {
            source: path.local.ip(),
            destination: path.remote.ip(),
            traffic_class: dscp.bits() << 2,
            hop_limit: ip::HOP_LIMIT,
            dont_fragment: false,
            identification: self.identification,
            flow_label: 0,
        };
        let (source, destination) = (path.local.port(), path.remote.port());
        encap::write_udp(out, &outer, source, destination, Fill::Software)
            .map_err(|_| Counter::IkeTooBig)
    }
}

/// Where a message has its place in a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Before all ESP frames that have not been started.
    First,
    /// Behind them.
    Behind,
}

impl<L: Link> Worker<L> {
    /// Sends a message for control.
    pub(crate) fn ike_down(&mut self, path: &Path, dscp: Dscp, message: &[u8]) {
        let sent = match path.transport {
            Transport::Native | Transport::Udp => self.core.send_datagram(path, dscp, message),
            Transport::Tcp => self.send_ike_frame(path, message, Order::First),
        };
        self.core.count(sent.err().unwrap_or(Counter::IkeDown));
    }

    /// Sends a message for control behind the ESP packets that wait on its connection.
    pub(crate) fn ike_down_behind(&mut self, path: &Path, message: &[u8]) {
        let sent = self.send_ike_frame(path, message, Order::Behind);
        self.core.count(sent.err().unwrap_or(Counter::IkeDown));
    }

    /// Sends a message in a frame of its connection's stream.
    fn send_ike_frame(&mut self, path: &Path, message: &[u8], order: Order) -> Result<(), Counter> {
        let conn = path.conn.filter(|conn| conn.worker == self.core.view.worker());
        let conn = conn.ok_or(Counter::IkeDownNoPath)?;
        // RFC 9329, 3: a frame that cannot be expressed is not sent, never cut.
        let header = framing::ike_header(message.len()).map_err(|_| Counter::IkeTooBig)?;
        let id = ConnId { index: conn.index, generation: conn.generation };
        // Where the queue is full the message goes before it: over TCP it does not come again.
        let behind = order == Order::Behind
            && self.tcp.room(id) >= header.len() + message.len()
            && self.tcp.write_behind(id, &header, message).is_ok();
        if behind {
            return Ok(());
        }
        self.tcp.write_urgent(id, &header, message).map_err(|error| match error {
            ConnError::Full => Counter::IkeDownFull,
            ConnError::NotOpen => Counter::IkeDownNoPath,
            ConnError::Gone => {
                self.core.tell_gone(conn);
                Counter::IkeDownNoPath
            }
        })
    }
}

/// The path of a message that came in UDP.
pub(crate) fn datagram_path(transport: Transport, local: SocketAddr, remote: SocketAddr) -> Path {
    Path { transport, local, remote, conn: None, pinned: false }
}

/// What a datagram to port 4500 holds (RFC 3948, 2).
pub(crate) enum Encapsulated<'a> {
    /// An IKE message, behind the marker.
    Ike(&'a [u8]),
    /// A NAT keepalive.
    Keepalive,
    /// An ESP packet.
    Esp,
}

/// Tells by the first octets what a datagram to port 4500 holds.
pub(crate) fn encapsulated(payload: &[u8]) -> Encapsulated<'_> {
    match payload {
        [NAT_KEEPALIVE] => Encapsulated::Keepalive,
        [0, 0, 0, 0, message @ ..] => Encapsulated::Ike(message),
        _ => Encapsulated::Esp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 3948, 2.2 and 2.3.
    #[test]
    fn a_datagram_to_4500_is_known_by_its_first_octets() {
        assert!(matches!(encapsulated(&[0xff]), Encapsulated::Keepalive));
        assert!(matches!(encapsulated(&[0, 0, 0, 0, 7]), Encapsulated::Ike([7])));
        assert!(matches!(encapsulated(&[0, 0, 0, 1, 7]), Encapsulated::Esp));
        assert!(matches!(encapsulated(&[0, 0, 0]), Encapsulated::Esp));
        assert!(matches!(encapsulated(&[]), Encapsulated::Esp));
        assert!(matches!(encapsulated(&[0xff, 0xff]), Encapsulated::Esp));
    }
}
