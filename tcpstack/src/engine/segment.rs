//! Segments as values: taken from an IP packet and put into one, by `smoltcp::wire`.

use crate::api::{DropReason, HEADERS_BYTES_MAX};
use crate::config::{RxChecksum, TxChecksum};
use crate::table::End;
pub(crate) use crate::table::FourTuple;
use crate::time::Instant;
use smoltcp::wire::{
    IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpOption, TcpPacket, TcpSeqNumber,
};
use std::net::IpAddr;

/// Most SACK blocks in one segment (RFC 2018, 3: four without, three with timestamps).
pub(crate) const SACK_BLOCKS_MAX: usize = 4;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// Octets of the timestamps option with its padding (RFC 7323, Appendix A).
pub(crate) const TIMESTAMP_OPTION: usize = 12;
/// The longest TCP header.
const TCP_HEADER_MAX: usize = 60;
const HOP_LIMIT: u8 = 64;

/// SACK blocks as sequence numbers on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SackBlocks {
    blocks: [(u32, u32); SACK_BLOCKS_MAX],
    len: u8,
}

impl SackBlocks {
    /// Adds a block; one too many is left out.
    pub(crate) fn push(&mut self, left: u32, right: u32) {
        if let Some(block) = self.blocks.get_mut(usize::from(self.len)) {
            *block = (left, right);
            self.len += 1;
        }
    }

    /// Adds the blocks of the option that `octets` begin with, which was found whole:
    /// `smoltcp::wire` gives three of them, and without timestamps there are four (RFC 2018, 3).
    fn read(&mut self, octets: &[u8]) {
        let length = octets.get(1).copied().map_or(0, usize::from);
        for block in octets.get(2..length).unwrap_or_default().chunks_exact(8) {
            let [a, b, c, d, e, f, g, h] = *block else { return };
            self.push(u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.blocks[..usize::from(self.len)].iter().copied()
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }
}

/// The options that the engine knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    /// Value and echo (RFC 7323, 3.2).
    pub(crate) timestamps: Option<(u32, u32)>,
    pub(crate) sack: SackBlocks,
}

/// Control bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    pub(crate) rst: bool,
    pub(crate) psh: bool,
}

/// A received segment without its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    pub(crate) options: Options,
    pub(crate) payload_len: usize,
}

impl Segment {
    /// Octets of sequence space that it takes (RFC 9293, 3.4).
    pub(crate) fn sequence_len(&self) -> u64 {
        self.payload_len as u64 + u64::from(self.flags.syn) + u64::from(self.flags.fin)
    }
}

/// A segment, its connection, and where its payload lies in the packet.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) tuple: FourTuple,
    pub(crate) segment: Segment,
    pub(crate) payload: std::ops::Range<usize>,
}

/// Takes an IP packet apart. Octets behind it, such as the padding of a short frame, do not matter.
pub(crate) fn parse(packet: &[u8], checksum: RxChecksum) -> Result<Arrived, DropReason> {
    let verified = checksum == RxChecksum::Verified;
    let (source, destination, tcp_range) = match packet.first().map(|octet| octet >> 4) {
        Some(4) => parse_ipv4(packet, verified)?,
        Some(6) => parse_ipv6(packet)?,
        _ => return Err(DropReason::Malformed),
    };
    if !is_host(source) || !is_host(destination) {
        return Err(DropReason::Malformed);
    }
    let tcp =
        TcpPacket::new_checked(&packet[tcp_range.clone()]).map_err(|_| DropReason::Malformed)?;
    if tcp.src_port() == 0 || tcp.dst_port() == 0 {
        return Err(DropReason::Malformed);
    }
    if !verified && !tcp.verify_checksum(&IpAddress::from(source), &IpAddress::from(destination)) {
        return Err(DropReason::BadChecksum);
    }
    let payload = tcp_range.start + usize::from(tcp.header_len())..tcp_range.end;
    Ok(Arrived {
        tuple: FourTuple {
            local: End::new(destination, tcp.dst_port()),
            remote: End::new(source, tcp.src_port()),
        },
        segment: read_segment(&tcp, payload.len()),
        payload,
    })
}

type IpParts = (IpAddr, IpAddr, std::ops::Range<usize>);

fn parse_ipv4(packet: &[u8], verified: bool) -> Result<IpParts, DropReason> {
    let ip = Ipv4Packet::new_checked(packet).map_err(|_| DropReason::Malformed)?;
    if ip.more_frags() || ip.frag_offset() != 0 {
        return Err(DropReason::Fragment);
    }
    if ip.next_header() != IpProtocol::Tcp {
        return Err(DropReason::NotTcp);
    }
    if !verified && !ip.verify_checksum() {
        return Err(DropReason::BadChecksum);
    }
    let header = usize::from(ip.header_len());
    let total = usize::from(ip.total_len());
    if header < IPV4_HEADER || header > total {
        return Err(DropReason::Malformed);
    }
    Ok((ip.src_addr().into(), ip.dst_addr().into(), header..total))
}

fn parse_ipv6(packet: &[u8]) -> Result<IpParts, DropReason> {
    let ip = Ipv6Packet::new_checked(packet).map_err(|_| DropReason::Malformed)?;
    match ip.next_header() {
        IpProtocol::Tcp => {}
        IpProtocol::Ipv6Frag => return Err(DropReason::Fragment),
        _ => return Err(DropReason::NotTcp),
    }
    let range = IPV6_HEADER..IPV6_HEADER + usize::from(ip.payload_len());
    Ok((ip.src_addr().into(), ip.dst_addr().into(), range))
}

/// Whether an address may be that of an end (RFC 9293, 3.9.1.1, MUST-46, and 3.9.2.3, MUST-57).
pub(crate) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
    }
}

fn read_segment(tcp: &TcpPacket<&[u8]>, payload_len: usize) -> Segment {
    Segment {
        seq: tcp.seq_number().0.cast_unsigned(),
        ack: tcp.ack().then(|| tcp.ack_number().0.cast_unsigned()),
        flags: Flags { syn: tcp.syn(), fin: tcp.fin(), rst: tcp.rst(), psh: tcp.psh() },
        window: tcp.window_len(),
        options: read_options(tcp.options()),
        payload_len,
    }
}

/// Reads options up to the first that is malformed; what precedes it counts, as everywhere.
fn read_options(mut octets: &[u8]) -> Options {
    let mut options = Options::default();
    // Nearly every segment of a connection has these and no others (RFC 7323, Appendix A).
    if let &[1, 1, 8, 10, a, b, c, d, e, f, g, h] = octets {
        let value = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        options.timestamps = Some(value);
        return options;
    }
    while let Ok((rest, option)) = TcpOption::parse(octets) {
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(mss) => options.mss = Some(mss),
            // RFC 7323, 2.3: a shift above 14 is taken as 14.
            TcpOption::WindowScale(shift) => options.window_scale = Some(shift.min(14)),
            TcpOption::SackPermitted => options.sack_permitted = true,
            TcpOption::SackRange(_) => options.sack.read(octets),
            TcpOption::TimeStamp { tsval, tsecr } => options.timestamps = Some((tsval, tsecr)),
            _ => {}
        }
        if rest.is_empty() {
            break;
        }
        octets = rest;
    }
    options
}

/// What the IP headers of a stack's packets carry beyond addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marking {
    /// Differentiated services code point, the same for every packet of the connection
    /// (RFC 9329, 9.3). The ECN bits are always Not-ECT (RFC 9329, 9.5).
    pub dscp: u8,
    /// From a good random source: what the IPv6 flow labels of a pair of hosts follow from, so that
    /// nobody else can tell them (RFC 6437, 3). As long as it stays they outlive the connection
    /// (RFC 9329, 6.1).
    pub label_key: [u64; 2],
}

/// The marks of one connection's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) dscp: u8,
    pub(crate) flow_label: u32,
}

/// A segment to be sent, without its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    pub(crate) options: Options,
}

impl Options {
    /// The length of the options on the wire, padded.
    pub(crate) fn wire_len(&self) -> usize {
        let mut len = 0;
        if self.mss.is_some() {
            len += 4;
        }
        if self.window_scale.is_some() {
            len += 4; // With a NOP before it.
        }
        if self.sack_permitted {
            len += 4; // With two NOPs before it.
        }
        if self.timestamps.is_some() {
            len += TIMESTAMP_OPTION;
        }
        if self.sack.len() > 0 {
            len += 4 + 8 * self.sack.len();
        }
        len
    }

    fn write(&self, out: &mut [u8]) {
        let mut at = 0;
        let mut put = |octets: &[u8]| {
            out[at..at + octets.len()].copy_from_slice(octets);
            at += octets.len();
        };
        if let Some(mss) = self.mss {
            put(&[2, 4]);
            put(&mss.to_be_bytes());
        }
        if let Some(shift) = self.window_scale {
            put(&[1, 3, 3, shift]);
        }
        if self.sack_permitted {
            put(&[1, 1, 4, 2]);
        }
        if let Some((value, echo)) = self.timestamps {
            put(&[1, 1, 8, 10]);
            put(&value.to_be_bytes());
            put(&echo.to_be_bytes());
        }
        if self.sack.len() > 0 {
            #[allow(clippy::cast_possible_truncation)] // At most four blocks.
            put(&[1, 1, 5, 2 + 8 * self.sack.len() as u8]);
            for (left, right) in self.sack.iter() {
                put(&left.to_be_bytes());
                put(&right.to_be_bytes());
            }
        }
    }
}

const _: () = assert!(HEADERS_BYTES_MAX == IPV6_HEADER + TCP_HEADER_MAX);

/// Octets of the IP header for `address`.
pub(crate) fn ip_header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER }
}

/// The headers of a run of segments, which differ in length, sequence number and flags only.
pub(crate) struct Headers {
    octets: [u8; HEADERS_BYTES_MAX],
    len: usize,
    ip_len: usize,
    checksum: TxChecksum,
}

impl Headers {
    /// The headers of `segment` and of those behind it.
    pub(crate) fn new(
        tuple: &FourTuple,
        marks: Marks,
        checksum: TxChecksum,
        segment: &Outgoing,
    ) -> Self {
        let mut octets = [0; HEADERS_BYTES_MAX];
        let ip_len = ip_header_len(tuple.local.ip());
        let tcp_len = TCP_HEADER + segment.options.wire_len();
        write_ip(&mut octets, tuple, marks);
        segment.options.write(&mut octets[ip_len + TCP_HEADER..]);
        let mut tcp = TcpPacket::new_unchecked(&mut octets[ip_len..]);
        tcp.set_src_port(tuple.local.port());
        tcp.set_dst_port(tuple.remote.port());
        tcp.set_seq_number(TcpSeqNumber(segment.seq.cast_signed()));
        tcp.set_header_len(tcp_len as u8); // At most 60.
        tcp.set_ack(segment.ack.is_some());
        tcp.set_ack_number(TcpSeqNumber(segment.ack.unwrap_or(0).cast_signed()));
        tcp.set_syn(segment.flags.syn);
        tcp.set_rst(segment.flags.rst);
        tcp.set_window_len(segment.window);
        set_flags(&mut tcp, segment.flags);
        Self { octets, len: ip_len + tcp_len, ip_len, checksum }
    }

    /// The length of a packet with these headers.
    pub(crate) fn packet_len(&self, payload_len: usize) -> usize {
        self.len + payload_len
    }

    /// The next segment of the run.
    pub(crate) fn advance(&mut self, seq: u32, flags: Flags) {
        let mut tcp = TcpPacket::new_unchecked(&mut self.octets[self.ip_len..]);
        tcp.set_seq_number(TcpSeqNumber(seq.cast_signed()));
        set_flags(&mut tcp, flags);
    }

    /// Fills `out` with an IP packet of `packet_len` octets, or with its beginning, which has all
    /// headers; the payload comes from `fill`. Checksums in software need the whole packet.
    #[allow(clippy::cast_possible_truncation)] // No packet exceeds `SEGMENTATION_BYTES_MAX`.
    pub(crate) fn write(&self, out: &mut [u8], packet_len: usize, fill: impl FnOnce(&mut [u8])) {
        let (headers, payload) = out.split_at_mut(self.len);
        headers.copy_from_slice(&self.octets[..self.len]);
        fill(payload);
        let (ip, tcp) = out.split_at_mut(self.ip_len);
        if self.ip_len == IPV4_HEADER {
            let mut ip = Ipv4Packet::new_unchecked(ip);
            ip.set_total_len(packet_len as u16);
            ip.fill_checksum();
            if self.checksum == TxChecksum::Software {
                let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                TcpPacket::new_unchecked(tcp).fill_checksum(&from, &to);
            }
        } else {
            let mut ip = Ipv6Packet::new_unchecked(ip);
            ip.set_payload_len((packet_len - IPV6_HEADER) as u16);
            if self.checksum == TxChecksum::Software {
                let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                TcpPacket::new_unchecked(tcp).fill_checksum(&from, &to);
            }
        }
    }
}

fn set_flags(tcp: &mut TcpPacket<&mut [u8]>, flags: Flags) {
    tcp.set_fin(flags.fin);
    tcp.set_psh(flags.psh);
}

/// Everything but the length and what follows from it.
fn write_ip(packet: &mut [u8], tuple: &FourTuple, marks: Marks) {
    match (tuple.local.ip(), tuple.remote.ip()) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => {
            let mut ip = Ipv4Packet::new_unchecked(packet);
            ip.set_version(4);
            ip.set_header_len(IPV4_HEADER as u8);
            ip.set_dscp(marks.dscp);
            ip.set_ecn(0);
            ip.set_ident(0); // Atomic datagrams need none (RFC 6864, 4.1).
            ip.clear_flags();
            ip.set_dont_frag(true); // RFC 9329, 6.8
            ip.set_frag_offset(0);
            ip.set_hop_limit(HOP_LIMIT);
            ip.set_next_header(IpProtocol::Tcp);
            ip.set_src_addr(local);
            ip.set_dst_addr(remote);
        }
        (IpAddr::V6(local), IpAddr::V6(remote)) => {
            let mut ip = Ipv6Packet::new_unchecked(packet);
            ip.set_version(6);
            ip.set_traffic_class(marks.dscp << 2);
            ip.set_flow_label(marks.flow_label & 0xf_ffff);
            ip.set_next_header(IpProtocol::Tcp);
            ip.set_hop_limit(HOP_LIMIT);
            ip.set_src_addr(local);
            ip.set_dst_addr(remote);
        }
        _ => {} // A connection's ends are of one family; `connect` refuses anything else.
    }
}

/// The clock of the timestamps option: milliseconds (RFC 7323, 5.4), from an offset that differs
/// for each pair of ends, so that it tells nothing of the uptime.
#[allow(clippy::cast_possible_truncation)] // Modulo 2^32 is the meaning.
pub(crate) fn timestamp(now: Instant, offset: u32) -> u32 {
    ((now.micros() / 1000) as u32).wrapping_add(offset)
}
