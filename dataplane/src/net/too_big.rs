//! "Packet too big" about a segment of ours: ICMP's fragmentation needed (RFC 1191, 4) and
//! ICMPv6's type 2 (RFC 4443, 3.2).
//!
//! Such a message comes from any router and so from anybody. What is told here is only what it
//! quotes; whether it is believed, the TCP stack decides by the sequence number (RFC 5927, 7.2).

use super::DropReason;
use super::checksum::{self, Sum};
use super::icmp;
use super::ip::{self, Fragment, protocol};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
const V6_PACKET_TOO_BIG: u8 = 2;
const V4_HEADER_MIN: usize = 20;
const V6_HEADER_LEN: usize = 40;

/// What a router says did not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBig {
    /// Our end of the quoted segment.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
    /// The next hop's MTU in octets; 0 from routers older than RFC 1191.
    pub mtu: u16,
}

/// Reads a message about a TCP segment; `None` if it is another one.
///
/// # Errors
/// [`DropReason::IcmpTruncated`] and [`DropReason::IcmpBadChecksum`].
pub fn parse(packet: &[u8], header: &ip::Header) -> Result<Option<TooBig>, DropReason> {
    let message = header.upper(packet);
    let (&[kind, code, _, _, m0, m1, m2, m3], quoted) =
        message.split_first_chunk::<{ icmp::HEADER_LEN }>().ok_or(DropReason::IcmpTruncated)?;
    let too_big = match header.protocol {
        protocol::ICMP => (kind, code) == (UNREACHABLE, FRAGMENTATION_NEEDED),
        _ => kind == V6_PACKET_TOO_BIG,
    };
    if !too_big || header.fragment != Fragment::Whole {
        return Ok(None);
    }
    let pseudo = if header.is_v4() { Sum::new() } else { header.pseudo() };
    if !checksum::verify(pseudo, message) {
        return Err(DropReason::IcmpBadChecksum);
    }
    let mtu = if header.is_v4() {
        u16::from_be_bytes([m2, m3])
    } else {
        u16::try_from(u32::from_be_bytes([m0, m1, m2, m3])).unwrap_or(u16::MAX)
    };
    let quote = if header.is_v4() { quoted_v4(quoted) } else { quoted_v6(quoted) };
    let ((local, remote), tcp) = quote.ok_or(DropReason::IcmpTruncated)?;
    Ok(tcp.map(|[s0, s1, d0, d1, q0, q1, q2, q3]| TooBig {
        local: SocketAddr::new(local, u16::from_be_bytes([s0, s1])),
        remote: SocketAddr::new(remote, u16::from_be_bytes([d0, d1])),
        sequence: u32::from_be_bytes([q0, q1, q2, q3]),
        mtu,
    }))
}

/// Both addresses of a quoted packet and, if it carries TCP, ports and sequence number.
type Quote = ((IpAddr, IpAddr), Option<[u8; 8]>);

fn quoted_v4(quoted: &[u8]) -> Option<Quote> {
    let fixed = quoted.first_chunk::<V4_HEADER_MIN>()?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let address =
        |at: usize| fixed.get(at..at + 4).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
    let ends = (Ipv4Addr::from(address(12)?).into(), Ipv4Addr::from(address(16)?).into());
    let carries_tcp = fixed[9] == protocol::TCP && header_len >= V4_HEADER_MIN;
    let tcp = quoted.get(header_len..).and_then(|tcp| tcp.first_chunk::<8>());
    Some((ends, tcp.copied().filter(|_| carries_tcp)))
}

fn quoted_v6(quoted: &[u8]) -> Option<Quote> {
    let fixed = quoted.first_chunk::<V6_HEADER_LEN>()?;
    let address =
        |at: usize| fixed.get(at..at + 16).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
    let ends = (Ipv6Addr::from(address(8)?).into(), Ipv6Addr::from(address(24)?).into());
    // Our own segments carry no extension headers.
    let carries_tcp = fixed[6] == protocol::TCP;
    let tcp = quoted.get(V6_HEADER_LEN..).and_then(|tcp| tcp.first_chunk::<8>());
    Some((ends, tcp.copied().filter(|_| carries_tcp)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::encap::{Outer, ip_header_len};
    use crate::net::icmp::{Problem, write_error};
    use proptest::prelude::*;

    const OURS: &str = "192.0.2.1:4500";
    const PEERS: &str = "198.51.100.7:40000";
    const SEQUENCE: u32 = 0xdead_beef;

    fn packet(source: IpAddr, destination: IpAddr, upper: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; ip_header_len(source.is_ipv4())];
        packet.extend(body);
        Outer {
            source,
            destination,
            traffic_class: 0,
            hop_limit: 64,
            dont_fragment: true,
            identification: 0,
            flow_label: 0,
        }
        .write_ip(&mut packet, upper)
        .unwrap();
        packet
    }

    /// A segment of ours as it met the narrow link.
    fn segment(local: SocketAddr, remote: SocketAddr, upper: u8) -> Vec<u8> {
        let mut tcp = vec![0; 1400];
        tcp[..2].copy_from_slice(&local.port().to_be_bytes());
        tcp[2..4].copy_from_slice(&remote.port().to_be_bytes());
        tcp[4..8].copy_from_slice(&SEQUENCE.to_be_bytes());
        packet(local.ip(), remote.ip(), upper, &tcp)
    }

    /// What a router at `router` says about `packet`.
    fn complaint(router: IpAddr, packet: &[u8], mtu: u16) -> Vec<u8> {
        let header = ip::parse(packet).unwrap();
        let mut out = vec![0; 1500];
        let problem = Problem::TooBig { mtu };
        let len = write_error(problem, router, &header, packet, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn read(message: &[u8]) -> Result<Option<TooBig>, DropReason> {
        parse(message, &ip::parse(message).unwrap())
    }

    #[test]
    fn rfc1191_4_and_rfc4443_3_2_say_what_did_not_fit() {
        for (local, remote, router) in [
            (OURS, PEERS, "203.0.113.1"),
            ("[2001:db8::1]:4500", "[2001:db8:f::7]:40000", "2001:db8:e::1"),
        ] {
            let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
            let packet = segment(local, remote, protocol::TCP);
            let message = complaint(router.parse().unwrap(), &packet, 1300);
            let told = TooBig { local, remote, sequence: SEQUENCE, mtu: 1300 };
            assert_eq!(read(&message), Ok(Some(told)));
        }
    }

    #[test]
    fn only_segments_are_of_interest() {
        let packet = segment(OURS.parse().unwrap(), PEERS.parse().unwrap(), protocol::UDP);
        let message = complaint("203.0.113.1".parse().unwrap(), &packet, 1300);
        assert_eq!(read(&message), Ok(None));
    }

    #[test]
    fn a_damaged_message_says_nothing() {
        let packet = segment(OURS.parse().unwrap(), PEERS.parse().unwrap(), protocol::TCP);
        let mut message = complaint("203.0.113.1".parse().unwrap(), &packet, 1300);
        message[27] ^= 1;
        assert_eq!(read(&message), Err(DropReason::IcmpBadChecksum));
    }

    proptest! {
        #[test]
        fn any_octets_are_survived(body in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
            let (a, b, upper): (IpAddr, IpAddr, u8) = if v6 {
                ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap(), protocol::ICMPV6)
            } else {
                ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap(), protocol::ICMP)
            };
            let _ = read(&packet(a, b, upper, &body));
        }
    }
}
