//! TCP maximum segment size clamping on inner SYNs, so that inner connections never send what does
//! not fit into the tunnel, with or without path MTU discovery.

use super::checksum;
use super::ip::{Fragment, Header, V4_HEADER_LEN, V6_HEADER_LEN, protocol};

/// Octets of a TCP header without options (RFC 9293, 3.1).
const TCP_HEADER_LEN: usize = 20;
const FLAG_SYN: u8 = 0x02;

/// Option kinds of RFC 9293, 3.2.
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// The segment size that fills a packet of `mtu` octets (RFC 6691, 2: fixed headers only).
pub const fn for_mtu(mtu: u16, v4: bool) -> u16 {
    let headers = if v4 { V4_HEADER_LEN } else { V6_HEADER_LEN } + TCP_HEADER_LEN;
    mtu.saturating_sub(headers as u16)
}

/// Lowers the MSS option of a TCP SYN to at most `mss`, mends the checksum and returns what the
/// option said before; `None` when there was nothing to change.
///
/// A SYN without the option is left alone: its sender takes 536 or 1220 (RFC 9293, 3.7.1), which
/// every tunnel carries. One with broken options is left to its receiver to judge.
pub fn clamp(packet: &mut [u8], header: &Header, mss: u16) -> Option<u16> {
    if header.protocol != protocol::TCP || header.fragment == Fragment::Later {
        return None;
    }
    let segment = header.upper_mut(packet);
    let fixed = segment.first_chunk::<TCP_HEADER_LEN>()?;
    if fixed[13] & FLAG_SYN == 0 {
        return None;
    }
    let sum = u16::from_be_bytes([fixed[16], fixed[17]]);
    let header_len = usize::from(fixed[12] >> 4) * 4;
    let at = find_mss(segment.get(..header_len)?)?;
    let value = segment.get_mut(at..)?.first_chunk_mut::<2>()?;
    let old = u16::from_be_bytes(*value);
    if old <= mss {
        return None;
    }
    *value = mss.to_be_bytes();
    // At an odd offset the value's octets belong to two words of the sum, the halves swapped.
    let (from, to) =
        if at.is_multiple_of(2) { (old, mss) } else { (old.swap_bytes(), mss.swap_bytes()) };
    let sum = checksum::update(sum, from, to);
    segment.get_mut(16..18)?.copy_from_slice(&sum.to_be_bytes());
    Some(old)
}

/// Where the MSS value is in a TCP header; the walk ends with the header's 60 octets.
fn find_mss(header: &[u8]) -> Option<usize> {
    let mut at = TCP_HEADER_LEN;
    loop {
        match header.get(at..)? {
            [OPTION_NOP, ..] => at += 1,
            [OPTION_MSS, 4, _, _, ..] => return Some(at + 2),
            [OPTION_END | OPTION_MSS, ..] => return None,
            [_, len, ..] if *len >= 2 => at += usize::from(*len),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::encap::{Outer, ip_header_len};
    use super::super::ip;
    use super::*;
    use proptest::prelude::*;
    use std::net::IpAddr;

    /// A packet with a TCP segment of the given flags and options, its checksum right.
    fn packet(v4: bool, flags: u8, options: &[u8]) -> Vec<u8> {
        let texts = if v4 { ["10.1.0.7", "10.2.0.1"] } else { ["fd00:1::7", "fd00:2::1"] };
        let [source, destination]: [IpAddr; 2] = texts.map(|text| text.parse().unwrap());
        let words = (TCP_HEADER_LEN + options.len()).div_ceil(4);
        let mut packet = vec![0; ip_header_len(v4) + words * 4];
        Outer {
            source,
            destination,
            traffic_class: 0,
            hop_limit: 64,
            dont_fragment: true,
            identification: 0,
            flow_label: 0,
        }
        .write_ip(&mut packet, protocol::TCP)
        .unwrap();
        let header = ip::parse(&packet).unwrap();
        let segment = header.upper_mut(&mut packet);
        segment[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        segment[12] = (words as u8) << 4;
        segment[13] = flags;
        segment[20..20 + options.len()].copy_from_slice(options);
        checksum::fill(header.pseudo(), segment, 16, false);
        packet
    }

    fn clamped(packet: &mut [u8], mss: u16) -> Option<u16> {
        let header = ip::parse(packet).unwrap();
        let changed = clamp(packet, &header, mss);
        assert!(checksum::verify(header.pseudo(), header.upper(packet)), "checksum");
        changed
    }

    #[test]
    fn segment_sizes() {
        assert_eq!((for_mtu(1500, true), for_mtu(1500, false), for_mtu(20, true)), (1460, 1440, 0));
    }

    #[test]
    fn syn_and_syn_ack_are_clamped() {
        for v4 in [true, false] {
            for flags in [0x02, 0x12, 0xc2] {
                let mut octets = packet(v4, flags, &[2, 4, 0x05, 0xb4, 1, 3, 3, 7]);
                assert_eq!(clamped(&mut octets, 1360), Some(1460));
                let at = ip_header_len(v4) + 20;
                assert_eq!(octets[at..at + 8], [2, 4, 0x05, 0x50, 1, 3, 3, 7]);
                assert_eq!(clamped(&mut octets, 1360), None, "already small");
            }
        }
    }

    #[test]
    fn the_rest_is_left_alone() {
        for (flags, options) in [
            (0x10, &[2, 4, 0x05, 0xb4][..]),
            (0x02, &[]),
            (0x02, &[0, 2, 4, 0x05, 0xb4]),
            (0x02, &[2, 3, 0x05, 0xb4]),
            (0x02, &[8, 0, 2, 4, 0x05, 0xb4]),
            (0x02, &[8, 200, 2, 4, 0x05, 0xb4]),
            (0x02, &[1, 1, 1, 2]),
            (0x02, &[1, 2, 4, 5]),
        ] {
            let octets = packet(true, flags, options);
            let mut copy = octets.clone();
            assert_eq!(clamped(&mut copy, 500), None, "{options:?}");
            assert_eq!(copy, octets);
        }
    }

    proptest! {
        #[test]
        fn checksum_stays_right_at_any_offset(
            nops in 0usize..30, old in any::<u16>(), mss in any::<u16>(), v4 in any::<bool>(),
        ) {
            let mut options = vec![1; nops];
            options.extend([2, 4]);
            options.extend(old.to_be_bytes());
            let mut octets = packet(v4, 0x02, &options);
            prop_assert_eq!(clamped(&mut octets, mss), (old > mss).then_some(old));
            let at = ip_header_len(v4) + 20 + nops + 2;
            prop_assert_eq!(u16::from_be_bytes([octets[at], octets[at + 1]]), old.min(mss));
        }

        #[test]
        fn any_segment_is_survived(
            segment in proptest::collection::vec(any::<u8>(), 0..80), mss in any::<u16>(),
        ) {
            let mut octets = packet(true, 0x02, &[]);
            octets.truncate(20);
            octets.extend(&segment);
            let mut header = ip::parse(&packet(true, 0x02, &[])).unwrap();
            header.total_len = octets.len();
            let before = octets.clone();
            if clamp(&mut octets, &header, mss).is_none() {
                prop_assert_eq!(octets, before);
            }
        }
    }
}
