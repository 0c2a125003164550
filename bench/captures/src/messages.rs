//! The traffic of a session cut into IKE and ESP messages, in the order of the capture.

use std::net::SocketAddr;

use crate::{Datagram, Session, Stream};

/// What a message is (RFC 9329, 3; RFC 3948, 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An IKE message, from its header on: the non-ESP marker is taken off.
    Ike,
    /// An ESP packet, from its SPI on.
    Esp,
    /// Shorter than a marker or an SPI, for example a keepalive.
    Short,
}

/// One message as it went over the wire.
#[derive(Clone)]
pub struct Message {
    /// The packet of the capture that brought its last octet.
    pub packet: usize,
    /// Index into [`Session::connections`], or `None` over UDP.
    pub connection: Option<usize>,
    /// Who sent it.
    pub source: SocketAddr,
    /// Who it was for.
    pub destination: SocketAddr,
    /// Whether the TCP originator (over UDP: who sent the first datagram) sent it.
    pub from_originator: bool,
    /// What it is.
    pub kind: Kind,
    /// The message, without length and marker.
    pub octets: Vec<u8>,
}

impl Session {
    /// Every message of the session in the order in which the capture has them, over all
    /// connections and datagrams.
    ///
    /// # Panics
    /// If a stream does not follow RFC 9329; the crate's own tests show that each does.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        for (index, connection) in self.connections.iter().enumerate() {
            let ends = (connection.originator, connection.responder);
            let head = connection.from_originator.octets.strip_prefix(b"IKETCP");
            assert!(head.is_some(), "{}: no stream prefix", self.name);
            split(&connection.from_originator, 6, index, true, ends, &mut messages);
            split(&connection.from_responder, 0, index, false, (ends.1, ends.0), &mut messages);
        }
        let first = self.datagrams.first().map(|datagram| datagram.source.ip());
        messages.extend(self.datagrams.iter().map(|datagram| {
            let (kind, octets) = datagram_kind(datagram);
            Message {
                packet: datagram.packet,
                connection: None,
                source: datagram.source,
                destination: datagram.destination,
                from_originator: Some(datagram.source.ip()) == first,
                kind,
                octets: octets.to_vec(),
            }
        }));
        messages.sort_by_key(|message| message.packet);
        messages
    }
}

/// Cuts a whole stream from `at` on (RFC 9329, 3: the length counts itself).
fn split(
    stream: &Stream,
    mut at: usize,
    connection: usize,
    from_originator: bool,
    (source, destination): (SocketAddr, SocketAddr),
    messages: &mut Vec<Message>,
) {
    while at < stream.octets.len() {
        let length = usize::from(u16::from_be_bytes([stream.octets[at], stream.octets[at + 1]]));
        let end = at + length;
        let (kind, octets) = kind(&stream.octets[at + 2..end]);
        let arrival = stream.arrivals.partition_point(|(_, octets)| *octets < end);
        messages.push(Message {
            packet: stream.arrivals[arrival].0,
            connection: Some(connection),
            source,
            destination,
            from_originator,
            kind,
            octets: octets.to_vec(),
        });
        at = end;
    }
}

fn kind(message: &[u8]) -> (Kind, &[u8]) {
    match message.split_first_chunk::<4>() {
        Some(([0, 0, 0, 0], ike)) => (Kind::Ike, ike),
        Some(_) => (Kind::Esp, message),
        None => (Kind::Short, message),
    }
}

/// On port 500 IKE has no marker (RFC 7296, 2.23).
fn datagram_kind(datagram: &Datagram) -> (Kind, &[u8]) {
    if datagram.source.port() == 500 || datagram.destination.port() == 500 {
        (Kind::Ike, &datagram.payload)
    } else {
        kind(&datagram.payload)
    }
}

/// The pairs of IKE SPIs in the order in which they first appear with both ends filled in.
pub(crate) fn ike_spis(session: &Session) -> Vec<([u8; 8], [u8; 8])> {
    let mut seen = Vec::new();
    for message in session.messages().iter().filter(|message| message.kind == Kind::Ike) {
        let Some((spi_i, rest)) = message.octets.split_first_chunk::<8>() else { continue };
        let Some((spi_r, _)) = rest.split_first_chunk::<8>() else { continue };
        if *spi_r != [0; 8] && !seen.contains(&(*spi_i, *spi_r)) {
            seen.push((*spi_i, *spi_r));
        }
    }
    seen
}
