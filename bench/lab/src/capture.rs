//! What passed on a wire: tcpdump writes it, and this module reads it back as packets, streams and
//! ESP headers.
//!
//! The reader is small and of the lab's own, so that the product's parsers are not their own
//! witnesses. It is used on captures of the lab only and treats anything odd as an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::namespace::Namespace;
use crate::process::{Process, Program};
use crate::relay::{PORT, PREFIX};
use crate::topology::WorkDir;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const PCAP_HEADER_LEN: usize = 24;
const RECORD_HEADER_LEN: usize = 16;
const ETHERNET_LEN: usize = 14;
const TCP_SYN: u8 = 0x02;

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture everything on `interface`.
    pub fn start(namespace: &Namespace, interface: &str, directory: &WorkDir) -> Result<Self> {
        let name = format!("tcpdump-{}-{interface}", namespace.name());
        let file = directory.path().join(format!("{name}.pcap"));
        let arguments = format!(
            "-i {interface} -w {} -s 0 -B 65536 -U --immediate-mode -Z root",
            file.display()
        );
        let program = Program {
            name: &name,
            path: Path::new("tcpdump"),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            environment: Vec::new(),
            private_run: false,
        };
        let mut process = Process::spawn(namespace, &program, directory.path())?;
        process.wait_for_log("listening on", START_TIMEOUT)?;
        Ok(Self { process, file })
    }

    /// The pcap file that it writes.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends it and reads what it wrote. Fails if the kernel had to drop packets.
    pub fn stop(mut self) -> Result<Vec<Packet>> {
        // Frames still on their way through the socket are part of what happened.
        std::thread::sleep(Duration::from_millis(300));
        self.process.terminate(START_TIMEOUT)?;
        let log = self.process.log();
        ensure!(log.contains("\n0 packets dropped by kernel"), "the capture has holes:\n{log}");
        parse_pcap(&fs::read(&self.file)?)
    }
}

/// An IP packet from the wire. Fragments show as [`Payload::Other`].
#[derive(Debug, Clone)]
pub struct Packet {
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// What it carries.
    pub payload: Payload,
}

/// What an IP packet carries.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A UDP datagram.
    Udp {
        /// Source port.
        from: u16,
        /// Destination port.
        to: u16,
        /// Its data.
        data: Vec<u8>,
    },
    /// A TCP segment.
    Tcp {
        /// Source port.
        from: u16,
        /// Destination port.
        to: u16,
        /// Sequence number.
        sequence: u32,
        /// The flags octet.
        flags: u8,
        /// Its data.
        data: Vec<u8>,
    },
    /// Native ESP.
    Esp(Vec<u8>),
    /// Another protocol, by its number.
    Other(u8),
}

impl Packet {
    /// Whether it is UDP.
    pub fn is_udp(&self) -> bool {
        matches!(self.payload, Payload::Udp { .. })
    }

    /// Whether it is TCP.
    pub fn is_tcp(&self) -> bool {
        matches!(self.payload, Payload::Tcp { .. })
    }
}

/// The visible part of an ESP packet, and who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EspHeader {
    /// The sender.
    pub source: IpAddr,
    /// Its SPI.
    pub spi: u32,
    /// The low 32 bits of its sequence number. AES-GCM's nonce is made of the full number, which
    /// stays below 2^32 in any test.
    pub sequence: u32,
}

/// All ESP headers in `packets`: native, in UDP 4500, and in the frames of TCP streams, where a
/// segment that was sent again counts once.
pub fn esp_headers(packets: &[Packet]) -> Result<Vec<EspHeader>> {
    let mut headers = Vec::new();
    for packet in packets {
        match &packet.payload {
            Payload::Esp(octets) => headers.extend(esp_header(packet.source, octets)),
            Payload::Udp { from, to, data } if *from == PORT || *to == PORT => {
                headers.extend(esp_header(packet.source, data));
            }
            _ => {}
        }
    }
    for stream in streams(packets)? {
        for frame in stream.frames()? {
            headers.extend(esp_header(stream.from.ip(), frame));
        }
    }
    Ok(headers)
}

/// The header of an ESP packet; `None` for IKE, whose marker stands in the SPI's place, and for
/// keepalives.
fn esp_header(source: IpAddr, octets: &[u8]) -> Option<EspHeader> {
    let spi = u32::from_be_bytes(octets.get(..4)?.try_into().ok()?);
    let sequence = u32::from_be_bytes(octets.get(4..8)?.try_into().ok()?);
    (spi != 0).then_some(EspHeader { source, spi, sequence })
}

/// Fails at the first (SPI, sequence number) that one sender used twice: the same nonce under the
/// same key (RFC 4106, section 2).
pub fn check_nonces(headers: &[EspHeader]) -> Result<()> {
    let mut seen = BTreeSet::new();
    for header in headers {
        ensure!(seen.insert(header), "sent twice: {header:?}");
    }
    Ok(())
}

/// One direction of a TCP connection.
#[derive(Debug)]
pub struct Stream {
    /// Who sent it.
    pub from: SocketAddr,
    /// To whom.
    pub to: SocketAddr,
    /// Everything after the SYN, in order.
    pub octets: Vec<u8>,
}

impl Stream {
    /// The contents of its RFC 9329 frames, without the length. A last frame that is cut is left
    /// out.
    pub fn frames(&self) -> Result<Vec<&[u8]>> {
        let mut rest = self.octets.strip_prefix(PREFIX.as_slice()).unwrap_or(&self.octets);
        let mut frames = Vec::new();
        while let Some((length, _)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length));
            ensure!(length >= 2, "a frame of length {length} from {}", self.from);
            let Some(frame) = rest.get(2..length) else { break };
            frames.push(frame);
            rest = &rest[length..];
        }
        Ok(frames)
    }
}

/// A stream whose segments are still being gathered.
struct Gathering<'a> {
    stream: Stream,
    /// Sequence number of the first octet of data.
    first: u32,
    /// Segments by their offset in the stream; of several at one offset the longest.
    pieces: BTreeMap<u32, &'a [u8]>,
}

/// Puts the TCP streams of port 4500 in `packets` together. Fails where octets are missing.
pub fn streams(packets: &[Packet]) -> Result<Vec<Stream>> {
    let mut found: Vec<Gathering<'_>> = Vec::new();
    for packet in packets {
        let Payload::Tcp { from, to, sequence, flags, data } = &packet.payload else { continue };
        if *from != PORT && *to != PORT {
            continue;
        }
        let from = SocketAddr::new(packet.source, *from);
        let to = SocketAddr::new(packet.destination, *to);
        // The newest connection of these ports.
        let known = found.iter_mut().rev().find(|g| (g.stream.from, g.stream.to) == (from, to));
        if flags & TCP_SYN != 0 {
            let first = sequence.wrapping_add(1);
            if known.is_none_or(|known| known.first != first) {
                let stream = Stream { from, to, octets: Vec::new() };
                found.push(Gathering { stream, first, pieces: BTreeMap::new() });
            }
        } else if let Some(known) = known.filter(|_| !data.is_empty()) {
            let piece = known.pieces.entry(sequence.wrapping_sub(known.first)).or_default();
            if data.len() > piece.len() {
                *piece = data;
            }
        }
    }
    found.into_iter().map(Gathering::assemble).collect()
}

impl Gathering<'_> {
    fn assemble(self) -> Result<Stream> {
        let mut stream = self.stream;
        for (offset, data) in self.pieces {
            let have = stream.octets.len();
            let offset = offset as usize;
            // A keepalive probe may carry an octet from before the stream's start.
            if offset > u32::MAX as usize / 2 {
                continue;
            }
            ensure!(offset <= have, "octets {have} to {offset} of {} are missing", stream.from);
            stream.octets.extend_from_slice(data.get(have - offset..).unwrap_or_default());
        }
        Ok(stream)
    }
}

/// Reads a pcap file of an Ethernet interface (little endian, as tcpdump writes here).
fn parse_pcap(file: &[u8]) -> Result<Vec<Packet>> {
    ensure!(file.get(..4) == Some(&[0xd4, 0xc3, 0xb2, 0xa1]), "not a pcap file");
    let mut rest = file.get(PCAP_HEADER_LEN..).context("a cut pcap header")?;
    let mut packets = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(RECORD_HEADER_LEN) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        packets.extend(parse_frame(frame)?);
        rest = after;
    }
    Ok(packets)
}

/// An Ethernet frame; `None` for anything but IP.
fn parse_frame(frame: &[u8]) -> Result<Option<Packet>> {
    let Some((ethernet, ip)) = frame.split_at_checked(ETHERNET_LEN) else { return Ok(None) };
    match (ethernet[12], ethernet[13]) {
        (0x08, 0x00) => parse_v4(ip).map(Some),
        (0x86, 0xdd) => parse_v6(ip).map(Some),
        _ => Ok(None),
    }
}

fn parse_v4(ip: &[u8]) -> Result<Packet> {
    ensure!(ip.len() >= 20, "a cut IPv4 header");
    let header = usize::from(ip[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let content = ip.get(header..total).context("a cut IPv4 packet")?;
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    // More fragments, or an offset.
    let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0;
    let payload = if fragment { Payload::Other(ip[9]) } else { parse_payload(ip[9], content)? };
    Ok(Packet { source: address(12).into(), destination: address(16).into(), payload })
}

fn parse_v6(ip: &[u8]) -> Result<Packet> {
    ensure!(ip.len() >= 40, "a cut IPv6 header");
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let content = ip.get(40..40 + length).context("a cut IPv6 packet")?;
    let address = |at: usize| -> Result<Ipv6Addr> {
        let octets: [u8; 16] = ip[at..at + 16].try_into()?;
        Ok(octets.into())
    };
    let payload = parse_payload(ip[6], content)?;
    Ok(Packet { source: address(8)?.into(), destination: address(24)?.into(), payload })
}

fn parse_payload(protocol: u8, content: &[u8]) -> Result<Payload> {
    let port = |at: usize| u16::from_be_bytes([content[at], content[at + 1]]);
    Ok(match protocol {
        17 => {
            ensure!(content.len() >= 8, "a cut UDP header");
            Payload::Udp { from: port(0), to: port(2), data: content[8..].to_vec() }
        }
        6 => {
            ensure!(content.len() >= 20, "a cut TCP header");
            let offset = usize::from(content[12] >> 4) * 4;
            let Some(data) = content.get(offset..) else { bail!("a cut TCP header") };
            let sequence = u32::from_be_bytes([content[4], content[5], content[6], content[7]]);
            Payload::Tcp {
                from: port(0),
                to: port(2),
                sequence,
                flags: content[13],
                data: data.to_vec(),
            }
        }
        50 => Payload::Esp(content.to_vec()),
        other => Payload::Other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u32, flags: u8, data: &[u8]) -> Packet {
        let [source, destination] = [1, 2].map(|host| Ipv4Addr::new(192, 0, 2, host).into());
        let payload = Payload::Tcp { from: 40_000, to: PORT, sequence, flags, data: data.to_vec() };
        Packet { source, destination, payload }
    }

    #[test]
    fn a_stream_is_put_together_from_segments_in_any_order() {
        let mut octets = PREFIX.to_vec();
        octets.extend([0, 10, 0, 0, 0, 7, 0, 0, 0, 1, 0, 2, 0, 10, 0, 0, 0, 7, 0, 0, 0, 2]);
        let start = u32::MAX - 3;
        let piece = |from: usize, to: usize| {
            segment(start.wrapping_add(1 + u32::try_from(from).unwrap()), 0x10, &octets[from..to])
        };
        let packets =
            [segment(start, 0x02, b""), piece(8, 28), piece(0, 3), piece(3, 9), piece(0, 9)];
        let headers = esp_headers(&packets).unwrap();
        assert_eq!(
            headers.iter().map(|h| (h.spi, h.sequence)).collect::<Vec<_>>(),
            [(7, 1), (7, 2)]
        );
        check_nonces(&headers).unwrap();
    }

    #[test]
    fn missing_octets_are_an_error() {
        let packets = [segment(0, 0x02, b""), segment(5, 0x10, b"abc")];
        assert!(streams(&packets).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn a_repeated_sequence_number_is_found() {
        let source = Ipv4Addr::LOCALHOST.into();
        let header = EspHeader { source, spi: 9, sequence: 1 };
        check_nonces(&[header, EspHeader { sequence: 2, ..header }]).unwrap();
        assert!(check_nonces(&[header, header]).is_err());
    }
}
