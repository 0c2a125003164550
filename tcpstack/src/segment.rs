//! The headers of a received packet, checked, and the two segments without data that a stack sends
//! on its own: the RST for a packet of no connection and the challenge ACK.

use std::net::{IpAddr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber,
};

use crate::api::DropReason;
use crate::config::{RxChecksum, TxChecksum};
use crate::table::FourTuple;

/// The longest answer without data: an IPv6 header and the longest TCP header.
pub(crate) const REPLY_BYTES_MAX: usize = 40 + 60;

/// Hop limit of every packet sent (RFC 1700).
pub(crate) const HOP_LIMIT: u8 = 64;

/// What the stack itself looks at in a segment; the rest is for the engine behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) tuple: FourTuple,
    pub(crate) seq: u32,
    /// The acknowledgement number, if the ACK flag is set.
    pub(crate) ack: Option<u32>,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    /// Octets of data.
    pub(crate) data_bytes: u32,
    /// The window as the header has it.
    pub(crate) window: u16,
}

impl Segment {
    /// Checks the headers of an IP packet that carries TCP. Octets behind the IP packet, such as
    /// the padding of a short Ethernet frame, do not matter.
    pub(crate) fn parse(packet: &[u8], checksum: RxChecksum) -> Result<Self, DropReason> {
        match packet.first().map(|octet| octet >> 4) {
            Some(4) => Self::parse_v4(packet, checksum),
            Some(6) => Self::parse_v6(packet, checksum),
            _ => Err(DropReason::Malformed),
        }
    }

    fn parse_v4(packet: &[u8], checksum: RxChecksum) -> Result<Self, DropReason> {
        let ip = Ipv4Packet::new_checked(packet).map_err(|_| DropReason::Malformed)?;
        if checksum == RxChecksum::Unknown && !ip.verify_checksum() {
            return Err(DropReason::BadChecksum);
        }
        if ip.more_frags() || ip.frag_offset() != 0 {
            return Err(DropReason::Fragment);
        }
        let (source, destination) = (ip.src_addr(), ip.dst_addr());
        let unicast = |ip: std::net::Ipv4Addr| {
            !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast()
        };
        if !unicast(source) || !unicast(destination) {
            return Err(DropReason::Malformed);
        }
        let ends = (source.into(), destination.into());
        Self::parse_tcp(ip.next_header(), ip.payload(), ends, checksum)
    }

    fn parse_v6(packet: &[u8], checksum: RxChecksum) -> Result<Self, DropReason> {
        let ip = Ipv6Packet::new_checked(packet).map_err(|_| DropReason::Malformed)?;
        if ip.next_header() == IpProtocol::Ipv6Frag {
            return Err(DropReason::Fragment);
        }
        let (source, destination) = (ip.src_addr(), ip.dst_addr());
        let unicast = |ip: std::net::Ipv6Addr| !ip.is_unspecified() && !ip.is_multicast();
        if !unicast(source) || !unicast(destination) {
            return Err(DropReason::Malformed);
        }
        let ends = (source.into(), destination.into());
        Self::parse_tcp(ip.next_header(), ip.payload(), ends, checksum)
    }

    fn parse_tcp(
        protocol: IpProtocol,
        payload: &[u8],
        (source, destination): (IpAddr, IpAddr),
        checksum: RxChecksum,
    ) -> Result<Self, DropReason> {
        if protocol != IpProtocol::Tcp {
            return Err(DropReason::NotTcp);
        }
        let tcp = TcpPacket::new_checked(payload).map_err(|_| DropReason::Malformed)?;
        if tcp.src_port() == 0 || tcp.dst_port() == 0 {
            return Err(DropReason::Malformed);
        }
        if checksum == RxChecksum::Unknown
            && !tcp.verify_checksum(&source.into(), &destination.into())
        {
            return Err(DropReason::BadChecksum);
        }
        Ok(Self {
            tuple: FourTuple {
                local: SocketAddr::new(destination, tcp.dst_port()),
                remote: SocketAddr::new(source, tcp.src_port()),
            },
            seq: number(tcp.seq_number()),
            ack: tcp.ack().then(|| number(tcp.ack_number())),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            data_bytes: tcp.payload().len() as u32,
            window: tcp.window_len(),
        })
    }

    /// Whether it asks for a connection: SYN alone (RFC 9293, 3.10.7.2).
    pub(crate) fn opens(&self) -> bool {
        self.syn && self.ack.is_none() && !self.rst && !self.fin
    }

    /// The RST for a segment of no connection (RFC 9293, 3.10.7.1).
    pub(crate) fn reset(&self) -> Answer {
        let (seq, ack) = match self.ack {
            Some(ack) => (ack, None),
            None => {
                let length = self.data_bytes + u32::from(self.syn) + u32::from(self.fin);
                (0, Some(self.seq.wrapping_add(length)))
            }
        };
        Answer { tuple: self.tuple, rst: true, seq, ack, window: 0 }
    }
}

/// A segment without data and options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) tuple: FourTuple,
    pub(crate) rst: bool,
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    /// As it goes into the header, scaled already.
    pub(crate) window: u16,
}

impl Answer {
    /// Writes the IP packet to the front of `out` and gives its length.
    pub(crate) fn emit(&self, checksum: TxChecksum, out: &mut [u8; REPLY_BYTES_MAX]) -> usize {
        let capabilities = checksums(checksum);
        let tcp = TcpRepr {
            src_port: self.tuple.local.port(),
            dst_port: self.tuple.remote.port(),
            control: if self.rst { TcpControl::Rst } else { TcpControl::None },
            seq_number: TcpSeqNumber(self.seq.cast_signed()),
            ack_number: self.ack.map(|ack| TcpSeqNumber(ack.cast_signed())),
            window_len: self.window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let source: IpAddress = self.tuple.local.ip().into();
        let destination: IpAddress = self.tuple.remote.ip().into();
        let bytes = tcp.buffer_len();
        let ip = IpRepr::new(source, destination, IpProtocol::Tcp, bytes, HOP_LIMIT);
        ip.emit(&mut out[..], &capabilities);
        let mut segment = TcpPacket::new_unchecked(&mut out[ip.header_len()..][..bytes]);
        tcp.emit(&mut segment, &source, &destination, &capabilities);
        ip.header_len() + bytes
    }
}

/// What the engine fills in, and that it verifies nothing: [`Segment::parse`] did.
pub(crate) fn checksums(tx: TxChecksum) -> ChecksumCapabilities {
    use smoltcp::phy::Checksum;
    let mut capabilities = ChecksumCapabilities::ignored();
    if tx == TxChecksum::Software {
        capabilities.ipv4 = Checksum::Tx;
        capabilities.tcp = Checksum::Tx;
    }
    capabilities
}

/// A sequence number as the header has it.
pub(crate) fn number(seq: TcpSeqNumber) -> u32 {
    seq.0.cast_unsigned()
}
