//! TCP reassembly of a capture that is complete, as far as known answers need it: sequence
//! numbers decide the order, the first copy of an octet wins, and a stream that ends with a hole
//! is an error because it would be no known answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use smoltcp::wire::{IpProtocol, TcpPacket};

use crate::pcap::Packet;
use crate::{Connection, Stream};

/// A stream being put together.
#[derive(Default)]
struct Reassembly {
    /// Sequence number of the SYN plus one: that of the stream's first octet.
    first: Option<u32>,
    /// Segments that came before their turn, by their offset in the stream.
    early: BTreeMap<usize, Vec<u8>>,
    stream: Stream,
}

impl Reassembly {
    fn push(&mut self, number: usize, sequence: u32, octets: &[u8]) {
        let Some(first) = self.first else { return };
        // A negative distance is a keepalive probe below the first octet: nothing new in it.
        let Ok(offset) = usize::try_from(sequence.wrapping_sub(first).cast_signed()) else {
            return;
        };
        let segment = self.early.entry(offset).or_default();
        segment.extend(octets.iter().skip(segment.len()));
        let before = self.stream.octets.len();
        while let Some(entry) = self.early.first_entry() {
            let length = self.stream.octets.len();
            if *entry.key() > length {
                break;
            }
            let (offset, octets) = entry.remove_entry();
            self.stream.octets.extend(octets.iter().skip(length - offset));
        }
        if self.stream.octets.len() > before {
            self.stream.arrivals.push((number, self.stream.octets.len()));
        }
    }

    fn finish(self) -> Result<Stream> {
        ensure!(self.early.is_empty(), "the capture lacks a segment");
        Ok(self.stream)
    }
}

struct Half {
    originator: SocketAddr,
    responder: SocketAddr,
    from_originator: Reassembly,
    from_responder: Reassembly,
}

/// The connections of a capture in the order of their SYNs. A connection whose SYN is not in the
/// capture is left out.
pub(crate) fn connections(packets: &[Packet<'_>]) -> Result<Vec<Connection>> {
    let mut halves: Vec<Half> = Vec::new();
    for packet in packets.iter().filter(|packet| packet.ip.next_header() == IpProtocol::Tcp) {
        let tcp = TcpPacket::new_checked(packet.ip.payload())?;
        let source = SocketAddr::from((packet.ip.src_addr(), tcp.src_port()));
        let destination = SocketAddr::from((packet.ip.dst_addr(), tcp.dst_port()));
        let sequence = tcp.seq_number().0.cast_unsigned();
        let known = |half: &&mut Half| {
            (half.originator, half.responder) == (source, destination)
                || (half.originator, half.responder) == (destination, source)
        };
        let half = match halves.iter_mut().rev().find(known) {
            Some(half) => half,
            None if tcp.syn() && !tcp.ack() => halves.push_mut(Half {
                originator: source,
                responder: destination,
                from_originator: Reassembly::default(),
                from_responder: Reassembly::default(),
            }),
            None => continue,
        };
        let to_responder = half.originator == source;
        let direction =
            if to_responder { &mut half.from_originator } else { &mut half.from_responder };
        if tcp.syn() {
            direction.first.get_or_insert(sequence.wrapping_add(1));
        } else if !tcp.payload().is_empty() {
            direction.push(packet.number, sequence, tcp.payload());
        }
    }
    halves
        .into_iter()
        .map(|half| {
            Ok(Connection {
                originator: half.originator,
                responder: half.responder,
                from_originator: half.from_originator.finish()?,
                from_responder: half.from_responder.finish()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The captures hold no retransmission (tshark's analysis says so too), so the part of the
    /// reassembly that deals with them is shown here.
    #[test]
    fn each_octet_counts_once_and_in_order() {
        let mut reassembly = Reassembly { first: Some(u32::MAX - 1), ..Reassembly::default() };
        reassembly.push(1, u32::MAX - 1, b"abc");
        reassembly.push(2, 4, b"ghi");
        reassembly.push(2, 4, b"ghi");
        reassembly.push(3, u32::MAX - 2, b"?");
        reassembly.push(4, u32::MAX - 1, b"ABCd");
        reassembly.push(5, 0, b"cdef");
        let stream = reassembly.finish().unwrap();
        assert_eq!(stream.octets, b"abcdefghi");
        assert_eq!(stream.arrivals, [(1, 3), (4, 4), (5, 9)]);
    }

    #[test]
    fn a_hole_is_an_error() {
        let mut reassembly = Reassembly { first: Some(0), ..Reassembly::default() };
        reassembly.push(1, 1, b"b");
        assert!(reassembly.finish().is_err());
    }
}
