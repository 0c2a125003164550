//! Transport mode (RFC 4301, 4.1; RFC 4303, 3.1.1): what ESP does not carry, and the mending of what
//! it does.
//!
//! The gateway stands in the wire before a host that has the gateway's outer address (RFC 4301, 3.3).
//! On the way out a packet loses its IP header, of which the outer header takes over what matters;
//! on the way in it gets a new one with the SA's own two addresses, whatever the outer ones were:
//! behind a NAT these differ, and over TCP there is no header to take them from. The sender has
//! computed the checksums of TCP and UDP with the addresses that it sees, so they are mended
//! (RFC 3948, 3.1.2; RFC 9329, 6.5).

use std::net::IpAddr;

use culvert_shm::TransportEnds;

use super::checksum::{self, Sum};
use super::encap::{Outer, ip_header_len};
use super::ip::{Fragment, Header, protocol};

/// What is needed to give packets of an SA their headers back.
#[derive(Clone, Copy, Debug)]
pub struct TransportMode {
    source: IpAddr,
    destination: IpAddr,
    /// Sums of the addresses that the peer computes checksums with, and of those above.
    sums: (u16, u16),
}

impl TransportMode {
    /// For an SA between these addresses; `None` if they are not of one family.
    pub fn new(ends: &TransportEnds) -> Option<Self> {
        let TransportEnds { local, remote, local_at_peer, remote_at_peer } = *ends;
        let v4 = local.is_ipv4();
        let one_family = [remote, local_at_peer, remote_at_peer].iter().all(|a| a.is_ipv4() == v4);
        let sum = |source, destination| with(with(Sum::new(), source), destination).folded();
        one_family.then(|| Self {
            source: remote,
            destination: local,
            sums: (sum(remote_at_peer, local_at_peer), sum(remote, local)),
        })
    }

    /// Whether its packets are IPv4.
    pub const fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Octets of the header that [`TransportMode::restore`] writes.
    pub const fn header_len(&self) -> usize {
        ip_header_len(self.is_v4())
    }

    /// Makes an IP packet of `packet`, which holds the peer's data of `protocol` behind room for the
    /// header: writes the header and mends the checksum. `traffic_class` and `hop_limit` are the
    /// outer packet's. False when it is longer than an IP packet can be.
    #[must_use]
    pub fn restore(
        &self,
        packet: &mut [u8],
        protocol: u8,
        traffic_class: u8,
        hop_limit: u8,
    ) -> bool {
        let header = Outer {
            source: self.source,
            destination: self.destination,
            traffic_class,
            hop_limit,
            // It has come whole and is as good as never fragmented.
            dont_fragment: true,
            identification: 0,
            flow_label: 0,
        };
        if header.write_ip(packet, protocol).is_err() {
            return false;
        }
        if self.sums.0 != self.sums.1
            && let Some(upper) = packet.get_mut(self.header_len()..)
        {
            self.mend(upper, protocol);
        }
        true
    }

    fn mend(&self, upper: &mut [u8], kind: u8) {
        let at = match kind {
            protocol::TCP => 16,
            protocol::UDP | protocol::UDP_LITE | protocol::DCCP => 6,
            protocol::ICMPV6 => 2,
            _ => return,
        };
        let Some(field) = upper.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) else {
            return;
        };
        let before = u16::from_be_bytes(*field);
        // RFC 768: no checksum at all.
        if kind == protocol::UDP && before == 0 {
            return;
        }
        let after = match checksum::update(before, self.sums.0, self.sums.1) {
            0 if matches!(kind, protocol::UDP | protocol::UDP_LITE) => 0xffff,
            after => after,
        };
        *field = after.to_be_bytes();
    }
}

fn with(sum: Sum, address: IpAddr) -> Sum {
    match address {
        IpAddr::V4(address) => sum.with(&address.octets()),
        IpAddr::V6(address) => sum.with(&address.octets()),
    }
}

/// Whether a packet may go through an SA in transport mode: whole (RFC 4303, 3.3.4), and without
/// options or extension headers, for which there is no place over TCP.
pub fn fits(header: &Header) -> bool {
    header.fragment == Fragment::Whole && header.header_len == ip_header_len(header.is_v4())
}

#[cfg(test)]
mod tests {
    use super::super::{ip, udp};
    use super::*;

    fn mode(local: &str, remote: &str, local_at_peer: &str, remote_at_peer: &str) -> TransportMode {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        TransportMode::new(&TransportEnds {
            local: address(local),
            remote: address(remote),
            local_at_peer: address(local_at_peer),
            remote_at_peer: address(remote_at_peer),
        })
        .unwrap()
    }

    /// A datagram as the peer computes its checksum.
    fn datagram(source: &str, destination: &str, data: &[u8]) -> Vec<u8> {
        let mut upper = vec![0; udp::HEADER_LEN];
        upper.extend(data);
        let end = |text: &str| (text.parse().unwrap(), 1701);
        udp::write(&mut upper, end(source), end(destination), udp::Fill::Software).unwrap();
        upper
    }

    fn restored(mode: &TransportMode, upper: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; mode.header_len()];
        packet.extend(upper);
        assert!(mode.restore(&mut packet, protocol::UDP, 0xb8, 9));
        packet
    }

    // RFC 3948, 3.1.2, with the addresses of RFC 7296, 2.23.1: IP1 behind NAT A, IP2 behind NAT B.
    #[test]
    fn checksums_fit_the_addresses_that_this_side_sees() {
        let nats = mode("10.0.0.2", "198.51.100.9", "203.0.113.7", "192.168.1.5");
        let v6 = mode("fd00::2", "2001:db8::9", "2001:db8::7", "fd00:1::5");
        for (mode, source, destination) in
            [(nats, "192.168.1.5", "203.0.113.7"), (v6, "fd00:1::5", "2001:db8::7")]
        {
            for length in 0..40u8 {
                let upper =
                    datagram(source, destination, &vec![length.wrapping_mul(37); length.into()]);
                let packet = restored(&mode, &upper);
                let header = ip::parse(&packet).unwrap();
                assert_eq!((header.source, header.destination), (mode.source, mode.destination));
                assert_eq!((header.traffic_class, header.hop_limit), (0xb8, 9));
                let upper = header.upper(&packet);
                let parsed = udp::parse(upper).unwrap();
                assert!(udp::verify(&header, upper, &parsed, udp::ZeroChecksum::Refuse).is_ok());
            }
        }
    }

    #[test]
    fn without_a_nat_nothing_changes_and_no_checksum_stays_none() {
        let direct = mode("192.0.2.1", "198.51.100.7", "192.0.2.1", "198.51.100.7");
        let upper = datagram("198.51.100.7", "192.0.2.1", b"as it was");
        assert_eq!(restored(&direct, &upper)[20..], upper);
        let nat = mode("192.0.2.1", "198.51.100.7", "192.0.2.1", "10.0.0.1");
        let mut without = upper;
        without[6..8].fill(0);
        assert_eq!(restored(&nat, &without)[20..], without);
    }

    #[test]
    fn two_families_are_no_transport_mode() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        let ends = TransportEnds { local: v4, remote: v6, local_at_peer: v4, remote_at_peer: v4 };
        assert!(TransportMode::new(&ends).is_none());
    }
}
