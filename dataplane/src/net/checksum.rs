//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over native-endian words of 64 bits and folded at the end: the one's complement
//! sum does not depend on the byte order (RFC 1071, 2.B), only the result has to be swapped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A running one's complement sum over pieces.
///
/// Every piece but the last has to have an even length; [`Sum::with`] pads an odd one with a zero
/// octet, as RFC 1071 does at the end of the data.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a piece of data.
    ///
    /// The accumulator takes 2^32 words of 32 bits before it could overflow, far beyond any packet.
    #[inline]
    pub fn with(mut self, data: &[u8]) -> Self {
        let (words, rest) = data.as_chunks::<8>();
        for word in words {
            let word = u64::from_ne_bytes(*word);
            self.0 += (word & 0xffff_ffff) + (word >> 32);
        }
        let (halves, last) = rest.as_chunks::<2>();
        for half in halves {
            self.0 += u64::from(u16::from_ne_bytes(*half));
        }
        if let [octet] = last {
            self.0 += u64::from(u16::from_ne_bytes([*octet, 0]));
        }
        self
    }

    /// Adds one 16-bit word given in host order.
    #[inline]
    pub fn with_word(mut self, word: u16) -> Self {
        self.0 += u64::from(word.to_be());
        self
    }

    /// The sum folded to 16 bits, not complemented, in host order: what a NIC that completes
    /// checksums wants in the field.
    #[inline]
    pub fn folded(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum: the complement of the folded sum, in host order.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Sum of the pseudo header of TCP and UDP over IPv4 (RFC 9293, 3.1; RFC 768).
pub fn pseudo_v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> Sum {
    Sum::new()
        .with(&source.octets())
        .with(&destination.octets())
        .with_word(u16::from(protocol))
        .with_word(length)
}

/// Sum of the pseudo header over IPv6 (RFC 8200, 8.1), for ICMPv6 too.
pub fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u32) -> Sum {
    Sum::new()
        .with(&source.octets())
        .with(&destination.octets())
        .with(&length.to_be_bytes())
        .with_word(u16::from(protocol))
}

/// The pseudo header's sum for either family. Addresses of different families, which no parsed
/// packet has, give a sum that verifies nothing.
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            pseudo_v4(source, destination, protocol, length as u16)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            pseudo_v6(source, destination, protocol, length as u32)
        }
        _ => Sum::new(),
    }
}

/// Whether data that contains its checksum sums to zero over the given pseudo header
/// ([`Sum::new`] for IPv4 headers and ICMP).
#[inline]
pub fn verify(pseudo: Sum, data: &[u8]) -> bool {
    pseudo.with(data).folded() == 0xffff
}

/// Writes the checksum of `data` over `pseudo` into the field at `at`; nothing when the field is
/// outside of `data`.
///
/// With `zero_is_none` (UDP, RFC 768) a computed zero is sent as 0xffff.
#[inline]
pub fn fill(pseudo: Sum, data: &mut [u8], at: usize, zero_is_none: bool) {
    let Some(field) = data.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) else { return };
    *field = [0, 0];
    let sum = match pseudo.with(data).checksum() {
        0 if zero_is_none => 0xffff,
        sum => sum,
    };
    if let Some(field) = data.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>) {
        *field = sum.to_be_bytes();
    }
}

/// The checksum after one 16-bit word changed: RFC 1624, equation 3, HC' = ~(~HC + ~m + m').
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The sum as RFC 1071 spells it, one 16-bit word after the other.
    fn plain(data: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in data.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn example_of_rfc_1071_3() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::new().with(&data).folded(), 0xddf2);
        assert_eq!(Sum::new().with(&data).checksum(), 0x220d);
    }

    #[test]
    fn example_of_rfc_1624_4() {
        // A header field changes from 0x5555 to 0x3285, the checksum was 0xdd2f: it becomes
        // 0x0000, where RFC 1141's method gave 0xffff.
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn computed_zero_is_sent_as_ones_in_udp() {
        let mut data = [0xff, 0xff, 0, 0];
        fill(Sum::new(), &mut data, 2, true);
        assert_eq!(data, [0xff, 0xff, 0xff, 0xff]);
        fill(Sum::new(), &mut data, 2, false);
        assert_eq!(data, [0xff, 0xff, 0, 0]);
    }

    #[test]
    fn pseudo_headers_hold_what_the_rfcs_list() {
        let (a4, b4) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7));
        let listed = [192, 0, 2, 1, 198, 51, 100, 7, 0, 17, 0, 8];
        assert_eq!(pseudo_v4(a4, b4, 17, 8).checksum(), plain(&listed));
        let (a6, b6) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let mut listed = Vec::new();
        listed.extend(Ipv6Addr::octets(&a6));
        listed.extend(Ipv6Addr::octets(&b6));
        listed.extend([0, 1, 0, 2, 0, 0, 0, 58]);
        assert_eq!(pseudo_v6(a6, b6, 58, 0x1_0002).checksum(), plain(&listed));
    }

    proptest! {
        #[test]
        fn wide_sum_is_the_plain_sum(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(Sum::new().with(&data).checksum(), plain(&data));
        }

        #[test]
        fn filled_data_verifies_and_a_flipped_bit_does_not(
            mut data in proptest::collection::vec(any::<u8>(), 2..200),
            at in any::<proptest::sample::Index>(),
            flip in any::<proptest::sample::Index>(),
        ) {
            let at = at.index(data.len() / 2) * 2;
            fill(Sum::new(), &mut data, at, false);
            prop_assert!(verify(Sum::new(), &data));
            let bit = flip.index(data.len() * 8);
            data[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!verify(Sum::new(), &data));
        }

        #[test]
        fn incremental_update_is_the_full_sum(
            mut data in proptest::collection::vec(any::<u8>(), 20..=20),
            word in 1usize..10,
            new in any::<u16>(),
        ) {
            // A header whose other words are all zero is the one case that RFC 1624 excludes; the
            // version octet of an IPv4 header is never zero.
            data[0] |= 0x40;
            fill(Sum::new(), &mut data, 0, false);
            prop_assume!(word != 0);
            let sum = u16::from_be_bytes([data[0], data[1]]);
            let old = u16::from_be_bytes([data[2 * word], data[2 * word + 1]]);
            data[2 * word..2 * word + 2].copy_from_slice(&new.to_be_bytes());
            let updated = update(sum, old, new);
            data[..2].copy_from_slice(&updated.to_be_bytes());
            prop_assert!(verify(Sum::new(), &data));
        }
    }
}
