//! UDP (RFC 768) as the carrier of ESP and IKE (RFC 3948).

use super::DropReason;
use super::checksum;
use super::ip;
use std::net::IpAddr;

/// Octets of the header.
pub const HEADER_LEN: usize = 8;
/// Where the checksum is in the header; a NIC that computes it wants to know.
pub const CHECKSUM_AT: usize = 6;

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Port of the sender.
    pub source: u16,
    /// Port of the receiver.
    pub destination: u16,
    /// Octets behind the header.
    pub payload_len: usize,
    /// The checksum field; zero means none was computed.
    pub checksum: u16,
}

/// Reads the header of a whole datagram's upper-layer data ([`ip::Header::upper`]). The payload
/// is the `payload_len` octets behind [`HEADER_LEN`].
///
/// # Errors
/// [`DropReason::TransportTruncated`], or [`DropReason::UdpBadLength`] when the length is shorter
/// than the header or reaches beyond the IP packet.
#[inline]
pub fn parse(upper: &[u8]) -> Result<Header, DropReason> {
    let &[s0, s1, d0, d1, l0, l1, c0, c1] =
        upper.first_chunk::<HEADER_LEN>().ok_or(DropReason::TransportTruncated)?;
    let len = usize::from(u16::from_be_bytes([l0, l1]));
    if len < HEADER_LEN || len > upper.len() {
        return Err(DropReason::UdpBadLength);
    }
    Ok(Header {
        source: u16::from_be_bytes([s0, s1]),
        destination: u16::from_be_bytes([d0, d1]),
        payload_len: len - HEADER_LEN,
        checksum: u16::from_be_bytes([c0, c1]),
    })
}

/// What a zero checksum over IPv6 means to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroChecksum {
    /// Refused, as RFC 8200, 8.1 asks: IKE and keepalives.
    Refuse,
    /// Accepted: ESP, whose ICV protects more than the checksum would. RFC 6935 and RFC 6936, 5
    /// allow it for a tunnel's configured port.
    Accept,
}

/// Verifies the checksum of a datagram for which the NIC has not done so.
///
/// # Errors
/// [`DropReason::UdpBadChecksum`] or [`DropReason::UdpZeroChecksum`].
pub fn verify(
    ip: &ip::Header,
    upper: &[u8],
    udp: &Header,
    zero: ZeroChecksum,
) -> Result<(), DropReason> {
    if udp.checksum == 0 {
        return match zero {
            ZeroChecksum::Refuse if !ip.is_v4() => Err(DropReason::UdpZeroChecksum),
            _ => Ok(()),
        };
    }
    let len = HEADER_LEN + udp.payload_len;
    let datagram = upper.get(..len).ok_or(DropReason::UdpBadLength)?;
    let pseudo = checksum::pseudo(ip.source, ip.destination, ip::protocol::UDP, len);
    if checksum::verify(pseudo, datagram) { Ok(()) } else { Err(DropReason::UdpBadChecksum) }
}

/// Who computes the checksum of a datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nobody: zero. Only for IPv4 (RFC 3948, 2.1); over IPv6 it is computed all the same.
    Zero,
    /// This code.
    Software,
    /// The NIC, which wants the pseudo header's sum in the field.
    Nic,
}

/// Writes the header before a payload that is in place: `datagram` is header and payload.
///
/// # Errors
/// [`DropReason::NoRoom`] when it is shorter than the header or longer than 65,535 octets.
pub fn write(
    datagram: &mut [u8],
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    fill: Fill,
) -> Result<(), DropReason> {
    let len = datagram.len();
    let wire_len = u16::try_from(len).map_err(|_| DropReason::NoRoom)?;
    let head = datagram.first_chunk_mut::<HEADER_LEN>().ok_or(DropReason::NoRoom)?;
    head[..2].copy_from_slice(&source.1.to_be_bytes());
    head[2..4].copy_from_slice(&destination.1.to_be_bytes());
    head[4..6].copy_from_slice(&wire_len.to_be_bytes());
    head[6..].copy_from_slice(&[0, 0]);
    let pseudo = checksum::pseudo(source.0, destination.0, ip::protocol::UDP, len);
    match fill {
        Fill::Zero if source.0.is_ipv4() => {}
        Fill::Nic => head[6..].copy_from_slice(&pseudo.folded().to_be_bytes()),
        Fill::Zero | Fill::Software => checksum::fill(pseudo, datagram, CHECKSUM_AT, true),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(v4: bool) -> (IpAddr, IpAddr) {
        let texts = if v4 { ["192.0.2.1", "198.51.100.7"] } else { ["2001:db8::1", "2001:db8::2"] };
        (texts[0].parse().unwrap(), texts[1].parse().unwrap())
    }

    fn ip_header(v4: bool, upper_len: usize) -> ip::Header {
        let (source, destination) = addresses(v4);
        let header_len = if v4 { ip::V4_HEADER_LEN } else { ip::V6_HEADER_LEN };
        ip::Header {
            source,
            destination,
            header_len,
            total_len: header_len + upper_len,
            protocol: ip::protocol::UDP,
            hop_limit: 64,
            traffic_class: 0,
            fragment: ip::Fragment::Whole,
            dont_fragment: true,
        }
    }

    fn built(v4: bool, payload: &[u8], fill: Fill) -> Vec<u8> {
        let (source, destination) = addresses(v4);
        let mut datagram = vec![0xee; HEADER_LEN];
        datagram.extend(payload);
        write(&mut datagram, (source, 500), (destination, 4500), fill).unwrap();
        datagram
    }

    #[test]
    fn lengths_are_checked() {
        let mut datagram = built(true, b"abcd", Fill::Software);
        assert_eq!(parse(&datagram[..7]), Err(DropReason::TransportTruncated));
        assert_eq!(parse(&datagram[..11]), Err(DropReason::UdpBadLength));
        datagram[5] = 7;
        assert_eq!(parse(&datagram), Err(DropReason::UdpBadLength));
        // Shorter than the IP payload: the rest is not the datagram's.
        datagram[5] = 10;
        assert_eq!(parse(&datagram).unwrap().payload_len, 2);
    }

    /// RFC 3948, 2.1: zero over IPv4 must be accepted; RFC 8200, 8.1: not over IPv6.
    #[test]
    fn zero_checksum() {
        let datagram = built(true, b"abcd", Fill::Zero);
        let udp = parse(&datagram).unwrap();
        assert_eq!(udp.checksum, 0);
        assert_eq!(verify(&ip_header(true, 12), &datagram, &udp, ZeroChecksum::Refuse), Ok(()));
        let v6 = ip_header(false, 12);
        let refused = verify(&v6, &datagram, &udp, ZeroChecksum::Refuse);
        assert_eq!(refused, Err(DropReason::UdpZeroChecksum));
        assert_eq!(verify(&v6, &datagram, &udp, ZeroChecksum::Accept), Ok(()));
        assert_ne!(parse(&built(false, b"abcd", Fill::Zero)).unwrap().checksum, 0);
    }

    #[test]
    fn nic_gets_the_pseudo_header_sum() {
        let mut datagram = built(false, b"abcd", Fill::Nic);
        // What the NIC does: sum over the datagram with the field as it is.
        let sum = checksum::Sum::new().with(&datagram).checksum();
        datagram[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(datagram, built(false, b"abcd", Fill::Software));
    }

    proptest! {
        #[test]
        fn built_parses_back_and_any_flipped_bit_is_noticed(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            v4 in any::<bool>(),
            flip in any::<proptest::sample::Index>(),
        ) {
            let mut datagram = built(v4, &payload, Fill::Software);
            let ip = ip_header(v4, datagram.len());
            let udp = parse(&datagram).unwrap();
            prop_assert_eq!((udp.source, udp.destination), (500, 4500));
            prop_assert_eq!(udp.payload_len, payload.len());
            prop_assert_eq!(verify(&ip, &datagram, &udp, ZeroChecksum::Refuse), Ok(()));
            let bit = flip.index(datagram.len() * 8);
            datagram[bit / 8] ^= 1 << (bit % 8);
            let noticed = parse(&datagram).and_then(|udp| {
                if udp.checksum == 0 { return Err(DropReason::UdpZeroChecksum) }
                verify(&ip, &datagram, &udp, ZeroChecksum::Refuse)
            });
            prop_assert!(noticed.is_err());
        }

        #[test]
        fn any_octets_parse_or_are_named(octets in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(udp) = parse(&octets) {
                prop_assert!(HEADER_LEN + udp.payload_len <= octets.len());
                let ip = ip_header(true, octets.len());
                let _ = verify(&ip, &octets, &udp, ZeroChecksum::Refuse);
            }
        }
    }
}
