//! IP packets with TCP in them, looked at and made from outside of any stack.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber};

use crate::random::Random;

/// Control bits of the TCP header (RFC 9293, 3.1).
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// A connection begins.
    pub const SYN: u8 = 0x02;
    /// A connection is cut.
    pub const RST: u8 = 0x04;
    /// Data is to be handed up.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
}

/// Where the TCP segment of a packet lies, and its length; `None` if it is none.
fn tcp_range(packet: &[u8]) -> Option<std::ops::Range<usize>> {
    let range = match packet.first()? >> 4 {
        4 => {
            usize::from(packet[0] & 0xf) * 4
                ..usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]))
        }
        6 => 40..40 + usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?])),
        _ => return None,
    };
    (range.len() >= 20 && range.end <= packet.len()).then_some(range)
}

/// A segment as a value: what a test wants to forge, or what it has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Where it comes from.
    pub source: SocketAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number.
    pub ack: u32,
    /// Control bits.
    pub flags: u8,
    /// Window, as in the header.
    pub window: u16,
    /// Options, padded to four octets.
    pub options: Vec<u8>,
    /// Octets.
    pub payload: Vec<u8>,
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(flags::SYN, 'S'), (flags::FIN, 'F'), (flags::RST, 'R'), (flags::ACK, '.')];
        let set = names.into_iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, name)| name);
        let (ports, end) = (
            (self.source.port(), self.destination.port()),
            self.seq.wrapping_add(self.payload.len() as u32),
        );
        write!(f, "{}>{} {} ", ports.0, ports.1, set.collect::<String>())?;
        write!(f, "{}:{end}({}) ack {} ", self.seq, self.payload.len(), self.ack)?;
        write!(f, "win {} options {:02x?}", self.window, self.options)
    }
}

impl Segment {
    /// Reads a packet; `None` if it is no TCP.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        let range = tcp_range(packet)?;
        let (source, destination) = addresses(packet)?;
        let octets = &packet[range];
        let tcp = TcpPacket::new_checked(octets).ok()?;
        Some(Self {
            source: SocketAddr::new(source, tcp.src_port()),
            destination: SocketAddr::new(destination, tcp.dst_port()),
            seq: tcp.seq_number().0.cast_unsigned(),
            ack: tcp.ack_number().0.cast_unsigned(),
            flags: octets[13],
            window: tcp.window_len(),
            options: tcp.options().to_vec(),
            payload: tcp.payload().to_vec(),
        })
    }

    /// Octets of sequence space that it takes.
    #[must_use]
    pub fn sequence_len(&self) -> u32 {
        let bit = |flag| u32::from(self.flags & flag != 0);
        self.payload.len() as u32 + bit(flags::SYN) + bit(flags::FIN)
    }

    /// The timestamps option, if there is one: value and echo.
    #[must_use]
    pub fn timestamps(&self) -> Option<(u32, u32)> {
        let octets = self.option(8)?;
        let mut words = octets.chunks_exact(4).filter_map(|word| word.try_into().ok());
        Some((u32::from_be_bytes(words.next()?), u32::from_be_bytes(words.next()?)))
    }

    /// The shift of the window scale option, 0 without one.
    #[must_use]
    pub fn scale(&self) -> u8 {
        self.option(3).and_then(|octets| octets.first().copied()).unwrap_or(0)
    }

    /// The SACK blocks: left and right edges.
    #[must_use]
    pub fn sack_blocks(&self) -> Vec<(u32, u32)> {
        let words = self.option(5).unwrap_or_default().chunks_exact(4);
        let words: Vec<u32> =
            words.filter_map(|word| word.try_into().ok().map(u32::from_be_bytes)).collect();
        words.chunks_exact(2).map(|block| (block[0], block[1])).collect()
    }

    /// What stands in the first option of this kind.
    fn option(&self, wanted: u8) -> Option<&[u8]> {
        let mut options = &self.options[..];
        loop {
            match options {
                [] | [0, ..] => return None,
                [1, rest @ ..] => options = rest,
                [kind, len, ..] => {
                    let option = options.get(2..usize::from(*len))?;
                    if *kind == wanted {
                        return Some(option);
                    }
                    options = &options[usize::from(*len)..];
                }
                [_] => return None,
            }
        }
    }

    /// The packet, with right checksums.
    ///
    /// # Panics
    /// The two addresses are of two families, or the options are not padded.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        assert!(
            header.is_multiple_of(4) && header <= 60,
            "options of {} octets",
            self.options.len()
        );
        let tcp_len = header + self.payload.len();
        let ip_len = if self.source.is_ipv4() { 20 } else { 40 };
        let mut packet = vec![0; ip_len + tcp_len];
        write_ip(&mut packet, self.source.ip(), self.destination.ip(), tcp_len);
        let octets = &mut packet[ip_len..];
        octets[20..header].copy_from_slice(&self.options);
        octets[header..].copy_from_slice(&self.payload);
        let mut tcp = TcpPacket::new_unchecked(&mut octets[..]);
        tcp.set_src_port(self.source.port());
        tcp.set_dst_port(self.destination.port());
        tcp.set_seq_number(TcpSeqNumber(self.seq.cast_signed()));
        tcp.set_ack_number(TcpSeqNumber(self.ack.cast_signed()));
        tcp.set_header_len(header as u8);
        tcp.set_window_len(self.window);
        tcp.into_inner()[13] = self.flags;
        fill_checksum(octets, self.source.ip(), self.destination.ip());
        packet
    }
}

fn fill_checksum(segment: &mut [u8], source: IpAddr, destination: IpAddr) {
    TcpPacket::new_unchecked(segment)
        .fill_checksum(&IpAddress::from(source), &IpAddress::from(destination));
}

fn write_ip(packet: &mut [u8], source: IpAddr, destination: IpAddr, tcp_len: usize) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut ip = Ipv4Packet::new_unchecked(packet);
            ip.set_version(4);
            ip.set_header_len(20);
            ip.set_total_len(20 + tcp_len as u16);
            ip.set_dont_frag(true);
            ip.set_hop_limit(64);
            ip.set_next_header(IpProtocol::Tcp);
            ip.set_src_addr(source);
            ip.set_dst_addr(destination);
            ip.fill_checksum();
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut ip = Ipv6Packet::new_unchecked(packet);
            ip.set_version(6);
            ip.set_payload_len(tcp_len as u16);
            ip.set_next_header(IpProtocol::Tcp);
            ip.set_hop_limit(64);
            ip.set_src_addr(source);
            ip.set_dst_addr(destination);
        }
        _ => unreachable!("the caller's addresses are of two families"),
    }
}

/// Source and destination of a packet.
#[must_use]
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at| packet.get(at..at + 4).map(|a: &[u8]| IpAddr::from([a[0], a[1], a[2], a[3]]));
    let v6 = |at: usize| -> Option<IpAddr> {
        Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?))
    };
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

/// Whether there is a TCP segment in a packet.
#[must_use]
pub fn is_tcp(packet: &[u8]) -> bool {
    let protocol = if packet.first().is_some_and(|first| first >> 4 == 6) { 6 } else { 9 };
    packet.get(protocol) == Some(&u8::from(IpProtocol::Tcp))
}

/// Whether a packet only acknowledges: no data, no SYN, FIN or RST.
#[must_use]
pub fn is_pure_ack(packet: &[u8]) -> bool {
    tcp_range(packet).is_some_and(|range| {
        let tcp = &packet[range];
        tcp[13] & !flags::PSH == flags::ACK && tcp.len() == usize::from(tcp[12] >> 4) * 4
    })
}

/// What a device makes of a packet that leaves: several, if it is to cut it, and checksums where the
/// stack has left them to it.
#[must_use]
pub fn leave_device(packet: Vec<u8>, segment_bytes: Option<u16>) -> Vec<Vec<u8>> {
    let unfinished = tcp_range(&packet).is_some_and(|tcp| packet[tcp][16..18] == [0, 0]);
    let Some(whole) = Segment::read(&packet).filter(|_| unfinished) else { return vec![packet] };
    let Some(bytes) = segment_bytes else { return vec![whole.packet()] };
    let pieces = whole.payload.chunks(usize::from(bytes)).enumerate();
    let last = whole.payload.len().div_ceil(usize::from(bytes)) - 1;
    let segment = |(number, payload): (usize, &[u8])| Segment {
        seq: whole.seq.wrapping_add((number * usize::from(bytes)) as u32),
        flags: if number == last { whole.flags } else { whole.flags & !(flags::FIN | flags::PSH) },
        payload: payload.to_vec(),
        ..whole.clone()
    };
    pieces.map(|piece| segment(piece).packet()).collect()
}

/// Whether the checksums of a packet are right.
#[must_use]
pub fn is_intact(packet: &[u8]) -> bool {
    let (Some(range), Some((source, destination))) = (tcp_range(packet), addresses(packet)) else {
        return false;
    };
    let tcp = TcpPacket::new_unchecked(&packet[range]);
    (source.is_ipv6() || Ipv4Packet::new_unchecked(packet).verify_checksum())
        && tcp.verify_checksum(&IpAddress::from(source), &IpAddress::from(destination))
}

/// Source and destination port; `None` if it is no TCP.
#[must_use]
pub fn ports(packet: &[u8]) -> Option<[u16; 2]> {
    let tcp = &packet[tcp_range(packet)?];
    Some([u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]])])
}

/// Gives a packet another source (`outbound`) or destination, as a NAT does. What is no TCP stays.
pub fn translate(packet: &mut [u8], outbound: bool, to: SocketAddr) {
    let Some(range) = tcp_range(packet) else { return };
    let Some((mut source, mut destination)) = addresses(packet) else { return };
    if source.is_ipv4() != to.is_ipv4() {
        return;
    }
    *(if outbound { &mut source } else { &mut destination }) = to.ip();
    let tcp_len = range.len();
    let port = range.start + if outbound { 0 } else { 2 };
    packet[port..port + 2].copy_from_slice(&to.port().to_be_bytes());
    write_ip(&mut packet[..range.end], source, destination, tcp_len);
    fill_checksum(&mut packet[range], source, destination);
}

/// Damages a packet in a way that its checksums or lengths always show: one bit, one octet or the
/// end. (A sum of 16-bit words misses some damage to two of them, which no TCP can notice.)
pub fn corrupt(packet: &mut Vec<u8>, random: &mut Random) {
    let Some(last) = packet.len().checked_sub(1) else { return };
    let mut at = random.within(0..=last as u64) as usize;
    // The payload length of IPv6 stands in no sum but as itself, so data cut off could outweigh it.
    if packet[0] >> 4 == 6 && (at == 4 || at == 5) {
        at = last;
    }
    match random.within(0..=2) {
        0 => packet[at] ^= 1 << random.within(0..=7),
        1 => packet[at] = packet[at].wrapping_add(random.within(1..=254) as u8),
        _ => packet.truncate(at),
    }
}

#[cfg(test)]
mod tests {
    use culvert_tcpstack::{DropReason, RxChecksum, SegmentOutcome, Stack, StackConfig};

    use super::*;

    fn segment(v6: bool) -> Segment {
        let (source, destination) = if v6 {
            ("[2001:db8::1]:5000", "[2001:db8::2]:4500")
        } else {
            ("192.0.2.1:5000", "192.0.2.2:4500")
        };
        Segment {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            seq: 0x8000_0001,
            ack: 7,
            flags: flags::ACK,
            window: 1000,
            options: vec![1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 6],
            payload: b"octets".to_vec(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for v6 in [false, true] {
            let segment = segment(v6);
            let packet = segment.packet();
            assert_eq!(Segment::read(&packet), Some(segment.clone()));
            assert_eq!(segment.timestamps(), Some((5, 6)));
            assert!(!is_pure_ack(&packet));
            assert!(is_pure_ack(&Segment { payload: Vec::new(), ..segment }.packet()));
        }
    }

    #[test]
    fn a_translated_packet_has_right_checksums() {
        for v6 in [false, true] {
            let mut packet = segment(v6).packet();
            let ip = if v6 { "2001:db8:9::9" } else { "203.0.113.9" };
            let to = SocketAddr::new(ip.parse().unwrap(), 4);
            translate(&mut packet, true, to);
            let read = Segment::read(&packet).unwrap();
            assert_eq!((read.source, &read.payload[..]), (to, &b"octets"[..]));
            let mut stack = Stack::new(StackConfig::default(), [1; 32]).unwrap();
            let outcome = stack.handle_segment(
                culvert_tcpstack::Instant(1),
                &mut packet,
                RxChecksum::Unknown,
                &mut |_, _| 0,
            );
            assert_eq!(outcome, SegmentOutcome::Dropped(DropReason::NoConnection));
        }
    }
}
