//! UDP datagrams written octet by octet, for a file or from addresses that are not the sender's.

use std::net::SocketAddrV4;

use anyhow::Result;

const IP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const HOP_LIMIT: u8 = 64;
const UDP: u8 = 17;

/// An IPv4 packet with a UDP datagram, which has no checksum (RFC 768).
pub(crate) fn datagram(from: SocketAddrV4, to: SocketAddrV4, content: &[u8]) -> Result<Vec<u8>> {
    let udp_len = u16::try_from(UDP_LEN + content.len())?;
    let total = u16::try_from(IP_LEN + UDP_LEN + content.len())?;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 0, 0, 0, HOP_LIMIT, UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) & 0xffff;
    packet[10..12].copy_from_slice(&u16::try_from(checksum)?.to_be_bytes());
    for field in [from.port(), to.port(), udp_len, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend_from_slice(content);
    Ok(packet)
}
