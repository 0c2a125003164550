//! What the network says of a segment or an ESP packet of ours that did not arrive: that it was too
//! big (RFC 1191, 4; RFC 4443, 3.2; RFC 4301, 8.2), or of a segment, that its destination cannot be
//! reached (RFC 9293, 3.9.2.2).
//!
//! Such a message comes from any router and so from anybody. What is told here is only what it
//! quotes; whether it is believed, the sequence number decides (RFC 5927, 4.1): the TCP stack looks at
//! that of a segment, the owner of the SA at that of an ESP packet.

use super::DropReason;
use super::checksum::{self, Sum};
use super::icmp;
use super::ip::{self, Fragment, protocol};
use super::udp;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V4_HEADER_MIN: usize = 20;
const V6_HEADER_LEN: usize = 40;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// The segment did not fit into the next hop's MTU, in octets; 0 from routers older than
    /// RFC 1191.
    TooBig(u16),
    /// The destination cannot be reached by this segment: no route, or its hop limit was used up,
    /// or a header was not understood. Another one may arrive.
    Unreachable,
    /// Nobody takes it: no such protocol or port, or a filter. Another one will fare no better.
    Refused,
}

/// An ICMP error about a segment of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Our end of the quoted segment.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Its sequence number.
    pub sequence: u32,
    /// What is said of it.
    pub complaint: Complaint,
}

/// An ESP packet of ours, native or in UDP, did not fit into the next hop's MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspTooBig {
    /// Our address in the quoted packet.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// Its SPI.
    pub spi: u32,
    /// The low half of its sequence number.
    pub sequence: u32,
    /// The next hop's MTU, in octets.
    pub mtu: u16,
}

/// What an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// A TCP segment.
    Segment(IcmpError),
    /// An ESP packet.
    Esp(EspTooBig),
}

/// The error that a message of ICMP is, and the 32 bits behind its checksum for a part of it.
/// RFC 9293, 3.9.2.2 says which are soft; hard beside those that it names are those of RFC 1812,
/// 5.2.7.1 and RFC 4443, 3.1 by which a filter says so. Source Quench is none (MUST-55).
fn complaint_v4(kind: u8, code: u8, rest: [u8; 4]) -> Option<Complaint> {
    match (kind, code) {
        (3, 4) => Some(Complaint::TooBig(u16::from_be_bytes([rest[2], rest[3]]))),
        (3, 2 | 3 | 9 | 10 | 13) => Some(Complaint::Refused),
        (3 | 11 | 12, _) => Some(Complaint::Unreachable),
        _ => None,
    }
}

/// The same of ICMPv6.
fn complaint_v6(kind: u8, code: u8, rest: [u8; 4]) -> Option<Complaint> {
    match (kind, code) {
        (1, 1 | 4 | 5 | 6) => Some(Complaint::Refused),
        (2, _) => {
            let mtu = u16::try_from(u32::from_be_bytes(rest)).unwrap_or(u16::MAX);
            Some(Complaint::TooBig(mtu))
        }
        (1 | 3 | 4, _) => Some(Complaint::Unreachable),
        _ => None,
    }
}

/// Reads an error about a TCP segment or an ESP packet; `None` if the message is another one.
///
/// # Errors
/// [`DropReason::IcmpTruncated`] and [`DropReason::IcmpBadChecksum`].
pub fn parse(packet: &[u8], header: &ip::Header) -> Result<Option<Told>, DropReason> {
    let message = header.upper(packet);
    let (&[kind, code, _, _, r0, r1, r2, r3], quoted) =
        message.split_first_chunk::<{ icmp::HEADER_LEN }>().ok_or(DropReason::IcmpTruncated)?;
    let read = if header.protocol == protocol::ICMP { complaint_v4 } else { complaint_v6 };
    let Some(complaint) =
        read(kind, code, [r0, r1, r2, r3]).filter(|_| header.fragment == Fragment::Whole)
    else {
        return Ok(None);
    };
    let pseudo = if header.is_v4() { Sum::new() } else { header.pseudo() };
    if !checksum::verify(pseudo, message) {
        return Err(DropReason::IcmpBadChecksum);
    }
    let quote = if header.is_v4() { quoted_v4(quoted) } else { quoted_v6(quoted) };
    Ok(told(complaint, &quote.ok_or(DropReason::IcmpTruncated)?))
}

/// A quoted packet.
struct Quote<'a> {
    local: IpAddr,
    remote: IpAddr,
    protocol: u8,
    upper: &'a [u8],
}

/// RFC 1812, 4.3.2.3: more than the eight octets of old is quoted, or nothing can be said of ESP in UDP.
fn told(complaint: Complaint, quote: &Quote<'_>) -> Option<Told> {
    let Quote { local, remote, protocol, upper } = *quote;
    let esp = match protocol {
        protocol::TCP => {
            let &[s0, s1, d0, d1, q0, q1, q2, q3] = upper.first_chunk::<8>()?;
            return Some(Told::Segment(IcmpError {
                local: SocketAddr::new(local, u16::from_be_bytes([s0, s1])),
                remote: SocketAddr::new(remote, u16::from_be_bytes([d0, d1])),
                sequence: u32::from_be_bytes([q0, q1, q2, q3]),
                complaint,
            }));
        }
        protocol::UDP => upper.get(udp::HEADER_LEN..)?,
        protocol::ESP => upper,
        _ => return None,
    };
    let (&[p0, p1, p2, p3, q0, q1, q2, q3], Complaint::TooBig(mtu)) =
        (esp.first_chunk::<8>()?, complaint)
    else {
        return None;
    };
    let (spi, sequence) =
        (u32::from_be_bytes([p0, p1, p2, p3]), u32::from_be_bytes([q0, q1, q2, q3]));
    // Zero is IKE's marker (RFC 3948, 2.2).
    (spi > 0).then_some(Told::Esp(EspTooBig { local, remote, spi, sequence, mtu }))
}

fn quoted_v4(quoted: &[u8]) -> Option<Quote<'_>> {
    let fixed = quoted.first_chunk::<V4_HEADER_MIN>()?;
    let header_len = usize::from(fixed[0] & 0x0f) * 4;
    let address =
        |at: usize| fixed.get(at..at + 4).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
    let (local, remote) =
        (Ipv4Addr::from(address(12)?).into(), Ipv4Addr::from(address(16)?).into());
    // A header of an impossible length is followed by nothing that could be meant.
    let behind = quoted.get(header_len..).filter(|_| header_len >= V4_HEADER_MIN);
    Some(Quote { local, remote, protocol: fixed[9], upper: behind.unwrap_or(&[]) })
}

fn quoted_v6(quoted: &[u8]) -> Option<Quote<'_>> {
    let (fixed, upper) = quoted.split_first_chunk::<V6_HEADER_LEN>()?;
    let address =
        |at: usize| fixed.get(at..at + 16).and_then(|octets| <[u8; 16]>::try_from(octets).ok());
    let (local, remote) = (Ipv6Addr::from(address(8)?).into(), Ipv6Addr::from(address(24)?).into());
    // Our own packets carry no extension headers.
    Some(Quote { local, remote, protocol: fixed[6], upper })
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
    fn error(router: IpAddr, packet: &[u8], problem: Problem) -> Vec<u8> {
        let header = ip::parse(packet).unwrap();
        let mut out = vec![0; 1500];
        let len = write_error(problem, router, &header, packet, &mut out).unwrap();
        out.truncate(len);
        out
    }

    fn read(message: &[u8]) -> Result<Option<Told>, DropReason> {
        parse(message, &ip::parse(message).unwrap())
    }

    #[test]
    fn rfc1191_4_and_rfc4443_say_what_did_not_arrive_and_why() {
        for (local, remote, router) in [
            (OURS, PEERS, "203.0.113.1"),
            ("[2001:db8::1]:4500", "[2001:db8:f::7]:40000", "2001:db8:e::1"),
        ] {
            let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
            let packet = segment(local, remote, protocol::TCP);
            for (problem, complaint) in [
                (Problem::TooBig { mtu: 1300 }, Complaint::TooBig(1300)),
                (Problem::NoRoute, Complaint::Unreachable),
                (Problem::HostUnreachable, Complaint::Unreachable),
                (Problem::HopLimit, Complaint::Unreachable),
                (Problem::Prohibited, Complaint::Refused),
            ] {
                let message = error(router.parse().unwrap(), &packet, problem);
                let told = IcmpError { local, remote, sequence: SEQUENCE, complaint };
                assert_eq!(read(&message), Ok(Some(Told::Segment(told))));
            }
        }
    }

    /// RFC 4301, 8.2.1: to which SA a packet-too-big belongs, natively and in UDP.
    #[test]
    fn of_an_esp_packet_its_spi_number_and_the_mtu_are_told() {
        let (local, remote) = ("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap());
        let esp = [&0x1234_5678u32.to_be_bytes()[..], &SEQUENCE.to_be_bytes(), &[0; 1400]].concat();
        let in_udp = [&[0x11, 0x94, 0x11, 0x94, 0, 0, 0, 0][..], &esp].concat();
        for (upper, body) in [(protocol::ESP, &esp), (protocol::UDP, &in_udp)] {
            let packet = packet(local, remote, upper, body);
            let message =
                error("203.0.113.1".parse().unwrap(), &packet, Problem::TooBig { mtu: 1300 });
            let told = EspTooBig { local, remote, spi: 0x1234_5678, sequence: SEQUENCE, mtu: 1300 };
            assert_eq!(read(&message), Ok(Some(Told::Esp(told))));
            let message = error("203.0.113.1".parse().unwrap(), &packet, Problem::NoRoute);
            assert_eq!(read(&message), Ok(None), "of reachability IKE finds out");
        }
        let ike = packet(local, remote, protocol::UDP, &[0; 1400]);
        let message = error("203.0.113.1".parse().unwrap(), &ike, Problem::TooBig { mtu: 1300 });
        assert_eq!(read(&message), Ok(None), "IKE is not ESP");
        let ping = packet(local, remote, protocol::ICMP, &[8; 100]);
        let message = error("203.0.113.1".parse().unwrap(), &ping, Problem::TooBig { mtu: 1300 });
        assert_eq!(read(&message), Ok(None));
    }

    /// RFC 9293, 3.9.2.2: which errors are soft and which are hard; MUST-55 for Source Quench.
    #[test]
    fn rfc9293_3_9_2_2_soft_and_hard_errors() {
        let soft_v4 = [(3, 0), (3, 1), (3, 5), (11, 0), (11, 1), (12, 0)];
        let soft_v6 = [(1, 0), (1, 3), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2)];
        for (kind, code) in soft_v4 {
            assert_eq!(complaint_v4(kind, code, [0; 4]), Some(Complaint::Unreachable));
        }
        for (kind, code) in soft_v6 {
            assert_eq!(complaint_v6(kind, code, [0; 4]), Some(Complaint::Unreachable));
        }
        for code in [2, 3] {
            assert_eq!(complaint_v4(3, code, [0; 4]), Some(Complaint::Refused));
        }
        assert_eq!(complaint_v6(1, 4, [0; 4]), Some(Complaint::Refused));
        assert_eq!(complaint_v4(4, 0, [0; 4]), None, "Source Quench");
        assert_eq!(complaint_v4(8, 0, [0; 4]), None, "an echo request");
        assert_eq!(complaint_v6(128, 0, [0; 4]), None, "an echo request");
    }

    #[test]
    fn a_damaged_message_says_nothing() {
        let packet = segment(OURS.parse().unwrap(), PEERS.parse().unwrap(), protocol::TCP);
        let problem = Problem::TooBig { mtu: 1300 };
        let mut message = error("203.0.113.1".parse().unwrap(), &packet, problem);
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
