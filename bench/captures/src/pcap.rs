//! The classic pcap file format, Ethernet link type, and the IPv4 packets in it.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use smoltcp::wire::{IpProtocol, Ipv4Packet, UdpPacket};

use crate::Datagram;

const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const LINKTYPE_ETHERNET: u32 = 1;
/// Microsecond time stamps, little-endian: what the captures were taken with.
const MAGIC: u32 = 0xa1b2_c3d4;

/// An IPv4 packet and its number in the capture, from 0. Frames of other kinds count too.
pub(crate) struct Packet<'a> {
    pub(crate) number: usize,
    pub(crate) ip: Ipv4Packet<&'a [u8]>,
}

/// The IPv4 packets of a capture in its order.
pub(crate) fn packets(file: &[u8]) -> Result<Vec<Packet<'_>>> {
    ensure!(file.len() >= FILE_HEADER, "shorter than a file header");
    ensure!(u32_at(file, 0) == MAGIC, "not a little-endian pcap file");
    ensure!(u32_at(file, 20) == LINKTYPE_ETHERNET, "link type is not Ethernet");
    let mut packets = Vec::new();
    let mut rest = &file[FILE_HEADER..];
    let mut number = 0;
    while !rest.is_empty() {
        ensure!(rest.len() >= RECORD_HEADER, "cut inside record {number}");
        let captured = u32_at(rest, 8) as usize;
        if captured != u32_at(rest, 12) as usize || rest.len() < RECORD_HEADER + captured {
            bail!("record {number} is not whole");
        }
        let frame = &rest[RECORD_HEADER..RECORD_HEADER + captured];
        if frame.len() > ETHERNET_HEADER && frame[12..14] == ETHERTYPE_IPV4 {
            let ip = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER..])?;
            packets.push(Packet { number, ip });
        }
        rest = &rest[RECORD_HEADER + captured..];
        number += 1;
    }
    Ok(packets)
}

/// The UDP datagrams of IKE and of ESP in UDP.
pub(crate) fn datagrams(packets: &[Packet<'_>]) -> Vec<Datagram> {
    let ours = |port: u16| port == 500 || port == 4500;
    packets
        .iter()
        .filter(|packet| packet.ip.next_header() == IpProtocol::Udp)
        .filter_map(|packet| {
            let udp = UdpPacket::new_checked(packet.ip.payload()).ok()?;
            (ours(udp.src_port()) || ours(udp.dst_port())).then(|| Datagram {
                packet: packet.number,
                source: SocketAddr::from((packet.ip.src_addr(), udp.src_port())),
                destination: SocketAddr::from((packet.ip.dst_addr(), udp.dst_port())),
                payload: udp.payload().to_vec(),
            })
        })
        .collect()
}

fn u32_at(octets: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}
