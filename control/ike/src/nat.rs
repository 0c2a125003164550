//! NAT detection (RFC 7296, 2.23; over TCP with its ports, RFC 9329, 6.5).

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

use crate::crypto::sha1;
use crate::message::{Message, NotifyType, Payload};
use crate::path::{NAT_T_PORT, Path, Transport};

/// Where NATs sit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Nat {
    /// Before this gateway.
    pub(crate) local: bool,
    /// Before the peer, or the peer says so to get encapsulation.
    pub(crate) remote: bool,
}

/// `SHA-1(SPIs | address | port)`.
fn digest(spi_i: u64, spi_r: u64, address: SocketAddr) -> [u8; 20] {
    let (spi_i, spi_r) = (spi_i.to_be_bytes(), spi_r.to_be_bytes());
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(a) => sha1(&[&spi_i, &spi_r, &a.octets(), &port]),
        IpAddr::V6(a) => sha1(&[&spi_i, &spi_r, &a.octets(), &port]),
    }
}

/// The two notifications of a message with these SPIs that goes out on `path`. With `encap` the
/// source is made to look translated, so that the peer encapsulates too.
pub(crate) fn notifies(spi_i: u64, spi_r: u64, path: &Path, encap: bool) -> [Payload; 2] {
    let mut source = digest(spi_i, spi_r, path.local);
    if encap {
        source[0] ^= 0xff;
    }
    let destination = digest(spi_i, spi_r, path.remote);
    [
        Payload::notify(NotifyType::NAT_DETECTION_SOURCE_IP, source),
        Payload::notify(NotifyType::NAT_DETECTION_DESTINATION_IP, destination),
    ]
}

/// What a message that came on `path` tells. A peer that sends no notifications does not do NAT
/// traversal.
pub(crate) fn detect(message: &Message, path: &Path) -> Nat {
    let (spi_i, spi_r) = (message.header.spi_i, message.header.spi_r);
    let differs = |kind, address| {
        let own = digest(spi_i, spi_r, address);
        let mut seen = message.notifies().filter(|n| n.kind == kind).peekable();
        seen.peek().is_some() && !seen.any(|n| n.data == own)
    };
    Nat {
        local: differs(NotifyType::NAT_DETECTION_DESTINATION_IP, path.local),
        remote: differs(NotifyType::NAT_DETECTION_SOURCE_IP, path.remote),
    }
}

/// The UDP path on port 4500 that an initiator takes once it found a NAT.
pub(crate) fn float(path: &Path) -> Path {
    let on = |address: SocketAddr| SocketAddr::new(address.ip(), NAT_T_PORT);
    match path.transport {
        Transport::Udp if !path.has_non_esp_marker() => Path::udp(on(path.local), on(path.remote)),
        _ => *path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ExchangeType, Header};

    fn message(payloads: Vec<Payload>) -> Message {
        let header = Header {
            spi_i: 1,
            spi_r: 2,
            major: 2,
            minor: 0,
            exchange: ExchangeType::IKE_SA_INIT,
            from_initiator: true,
            response: false,
            higher_version: false,
            message_id: 0,
        };
        Message::new(header, payloads)
    }

    fn path(local: &str, remote: &str) -> Path {
        Path::udp(local.parse().unwrap(), remote.parse().unwrap())
    }

    #[test]
    fn each_side_finds_the_nat_on_its_side() {
        let sent = path("10.0.0.2:500", "192.0.2.1:500");
        let direct = path("192.0.2.1:500", "10.0.0.2:500");
        let through = path("192.0.2.1:500", "198.51.100.7:1024");
        let m = message(notifies(1, 2, &sent, false).into());
        assert_eq!(detect(&m, &direct), Nat::default());
        assert_eq!(detect(&m, &through), Nat { local: false, remote: true });
        let behind = path("10.9.9.9:500", "10.0.0.2:500");
        assert_eq!(detect(&m, &behind), Nat { local: true, remote: false });
        assert_eq!(detect(&message(vec![]), &through), Nat::default(), "no NAT traversal");
        let forced = message(notifies(1, 2, &sent, true).into());
        assert_eq!(detect(&forced, &direct), Nat { local: false, remote: true });
    }

    // RFC 9329, 6.5: a NAT changes nothing over TCP.
    #[test]
    fn only_udp_on_port_500_floats() {
        assert_eq!(float(&path("10.0.0.2:500", "[::1]:500")), path("10.0.0.2:4500", "[::1]:4500"));
        let odd = path("10.0.0.2:4500", "192.0.2.1:10000");
        assert_eq!(float(&odd), odd);
        let tcp = Path::tcp(odd.local, odd.remote, crate::path::ConnToken(1));
        assert_eq!(float(&tcp), tcp);
    }
}
