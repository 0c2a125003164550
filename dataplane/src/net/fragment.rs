//! IPv4 fragmentation of inner packets before they are sealed (RFC 791, 3.2): a packet that is
//! longer than the tunnel takes and may be fragmented goes through it in pieces, which the
//! destination puts together. IPv6 packets and those with DF get a packet-too-big instead.
//!
//! IPv6 packets are cut only by their source (RFC 8200, 4.5), so those of the gateway itself.

use super::DropReason;
use super::checksum::{self, Sum};
use super::hash::bits_of;
use super::ip::{Header, V4_HEADER_LEN, V6_HEADER_LEN, next_v4_option, protocol};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::net::IpAddr;

/// Smallest MTU to cut for: every link takes it (RFC 791, 3.2), and a piece behind a header of 60
/// octets still carries eight. It bounds the number of pieces by 8,191.
pub const MTU_MIN: usize = 68;

/// Octets of an IPv4 header with all the options that it can have (RFC 791, 3.1).
const HEADER_MAX: usize = 60;
/// The flag of options that every fragment carries (RFC 791, 3.1).
const OPTION_COPIED: u8 = 0x80;
const MORE_FRAGMENTS: u16 = 0x2000;
/// Octets of IPv6's fragment header (RFC 8200, 4.5).
const V6_FRAGMENT_LEN: usize = 8;

/// The pieces of one packet, written out one after the other.
#[derive(Debug)]
pub struct Fragments<'a> {
    /// Header of the next piece: with all options the first, with those to be copied the others.
    header: [u8; HEADER_MAX],
    header_len: usize,
    /// The upper-layer data that is left.
    rest: &'a [u8],
    /// Offset of `rest` in the datagram, in units of eight octets.
    offset: u16,
    /// More fragments follow the packet itself, which then is one.
    more: bool,
    mtu: usize,
}

/// Begins to cut a packet that [`super::ip::parse`] accepted and that is longer than `mtu` into
/// pieces of at most `mtu` octets. A fragment is cut further, its offsets kept.
///
/// # Errors
/// [`DropReason::IpTooBig`] when the packet must not be fragmented or `mtu` is below [`MTU_MIN`]:
/// the caller may send a packet-too-big.
pub fn fragments<'a>(
    packet: &'a [u8],
    header: &Header,
    mtu: usize,
) -> Result<Fragments<'a>, DropReason> {
    if !header.is_v4() || header.dont_fragment || mtu < MTU_MIN {
        return Err(DropReason::IpTooBig);
    }
    let octets = packet.get(..header.header_len).ok_or(DropReason::IpTruncated)?;
    let mut own = [0; HEADER_MAX];
    own.get_mut(..octets.len()).ok_or(DropReason::IpBadLength)?.copy_from_slice(octets);
    let flags = u16::from_be_bytes([own[6], own[7]]);
    Ok(Fragments {
        header: own,
        header_len: octets.len(),
        rest: header.upper(packet),
        offset: flags & 0x1fff,
        more: flags & MORE_FRAGMENTS != 0,
        mtu,
    })
}

/// Identifications of IPv6 packets that a worker fragments: none comes again within 2³² of them, and who
/// sees those to one address cannot tell those to another (RFC 7739, 5.3).
pub struct Identifications {
    hasher: SipHasher13,
    used: u32,
}

impl Identifications {
    /// The seed is random and the worker's own.
    pub fn new(seed: [u8; 16]) -> Self {
        Self { hasher: SipHasher13::new_with_key(&seed), used: 0 }
    }

    /// The next one for a packet to this address.
    pub fn next(&mut self, destination: IpAddr) -> u32 {
        self.used = self.used.wrapping_add(1);
        let mut hasher = self.hasher;
        hasher.write_u128(bits_of(destination));
        self.used.wrapping_add(hasher.finish() as u32)
    }
}

/// Begins to cut an IPv6 packet that this gateway has made, without extension headers, into pieces of
/// at most `mtu` octets, under an identification that its source has not used lately.
///
/// # Errors
/// [`DropReason::IpTooBig`] for another packet, or when `mtu` is below [`MTU_MIN`].
pub fn source_fragments<'a>(
    packet: &'a [u8],
    header: &Header,
    mtu: usize,
    identification: u32,
) -> Result<Fragments<'a>, DropReason> {
    if header.is_v4() || header.header_len != V6_HEADER_LEN || mtu < MTU_MIN {
        return Err(DropReason::IpTooBig);
    }
    let fixed = packet.first_chunk::<V6_HEADER_LEN>().ok_or(DropReason::IpTruncated)?;
    let mut own = [0; HEADER_MAX];
    own[..V6_HEADER_LEN].copy_from_slice(fixed);
    own[6] = protocol::FRAGMENT;
    own[V6_HEADER_LEN] = header.protocol;
    own[V6_HEADER_LEN + 4..][..4].copy_from_slice(&identification.to_be_bytes());
    let header_len = V6_HEADER_LEN + V6_FRAGMENT_LEN;
    let rest = header.upper(packet);
    Ok(Fragments { header: own, header_len, rest, offset: 0, more: false, mtu })
}

impl Fragments<'_> {
    /// Writes the next piece to `out` and returns its length; `None` behind the last.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when `out` is shorter than the piece (the MTU is always enough). The
    /// rest of the packet is then given up: half a datagram is of no use.
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<Result<usize, DropReason>> {
        if self.rest.is_empty() {
            return None;
        }
        let written = self.write(out);
        if written.is_err() {
            self.rest = &[];
        }
        Some(written)
    }

    fn write(&mut self, out: &mut [u8]) -> Result<usize, DropReason> {
        let (header_len, left) = (self.header_len, self.rest.len());
        // All pieces but the last carry a multiple of eight octets.
        let fits = header_len + left <= self.mtu;
        let cut = if fits { left } else { (self.mtu - header_len) & !7 };
        let (data, rest) = self.rest.split_at(cut);
        let out = out.get_mut(..header_len + cut).ok_or(DropReason::NoRoom)?;
        let (head, body) = out.split_at_mut(header_len);
        body.copy_from_slice(data);
        head.copy_from_slice(&self.header[..header_len]);
        let more = self.more || !rest.is_empty();
        if self.is_v4() {
            let field = self.offset | if more { MORE_FRAGMENTS } else { 0 };
            head[2..4].copy_from_slice(&((header_len + cut) as u16).to_be_bytes());
            head[6..8].copy_from_slice(&field.to_be_bytes());
            checksum::fill(Sum::new(), head, 10, false);
            self.keep_copied_options();
        } else {
            let field = self.offset << 3 | u16::from(more);
            head[4..6].copy_from_slice(&((V6_FRAGMENT_LEN + cut) as u16).to_be_bytes());
            head[V6_HEADER_LEN + 2..][..2].copy_from_slice(&field.to_be_bytes());
        }
        self.rest = rest;
        self.offset += (cut / 8) as u16;
        Ok(header_len + cut)
    }

    fn is_v4(&self) -> bool {
        self.header[0] >> 4 == 4
    }

    /// Leaves only the options in the header that every fragment carries, padded with the end of
    /// the list to a multiple of four octets. Doing so again changes nothing.
    fn keep_copied_options(&mut self) {
        let before = self.header;
        let mut options = before.get(V4_HEADER_LEN..self.header_len).unwrap_or(&[]);
        let mut len = V4_HEADER_LEN;
        while let Ok((option @ [kind, ..], rest)) = next_v4_option(options) {
            if kind & OPTION_COPIED != 0
                && let Some(place) = self.header.get_mut(len..len + option.len())
            {
                place.copy_from_slice(option);
                len += option.len();
            }
            options = rest;
        }
        self.header[len..].fill(0);
        self.header_len = len.next_multiple_of(4);
        self.header[0] = 0x40 | (self.header_len / 4) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::super::ip::{self, Fragment};
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 packet with the given flags and offset field, options and data.
    fn packet(field: u16, options: &[u8], data: &[u8]) -> Vec<u8> {
        let header_len = V4_HEADER_LEN + options.len();
        let mut packet = vec![0x40 | (header_len / 4) as u8, 0x28];
        packet.extend(((header_len + data.len()) as u16).to_be_bytes());
        packet.extend([0xbe, 0xef]);
        packet.extend(field.to_be_bytes());
        packet.extend([64, 17, 0, 0, 10, 1, 0, 7, 10, 2, 0, 1]);
        packet.extend(options);
        checksum::fill(Sum::new(), &mut packet, 10, false);
        packet.extend(data);
        packet
    }

    fn cut(packet: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, DropReason> {
        let mut fragments = fragments(packet, &ip::parse(packet)?, mtu)?;
        let mut pieces = Vec::new();
        let mut out = vec![0; mtu];
        while let Some(len) = fragments.write_next(&mut out) {
            pieces.push(out[..len?].to_vec());
        }
        Ok(pieces)
    }

    fn field(piece: &[u8]) -> (bool, usize) {
        let field = u16::from_be_bytes([piece[6], piece[7]]);
        (field & MORE_FRAGMENTS != 0, usize::from(field & 0x1fff) * 8)
    }

    /// What a receiver puts together (RFC 791, 3.2), from offset `base` on.
    fn reassembled(pieces: &[Vec<u8>], base: usize) -> Vec<u8> {
        let mut data = Vec::new();
        for piece in pieces {
            let header = ip::parse(piece).unwrap();
            assert_eq!(field(piece).1, base + data.len());
            data.extend(header.upper(piece));
        }
        data
    }

    #[test]
    fn packet_in_three_pieces() {
        let data: Vec<u8> = (0..1000u32).map(|octet| octet as u8).collect();
        let pieces = cut(&packet(0, &[], &data), 500).unwrap();
        // 480 octets behind a header of 20, a multiple of eight.
        let fields: Vec<_> = pieces.iter().map(|piece| field(piece)).collect();
        assert_eq!(fields, [(true, 0), (true, 480), (false, 960)]);
        assert_eq!(reassembled(&pieces, 0), data);
        assert!(pieces.iter().all(|piece| piece[4..6] == [0xbe, 0xef] && piece[1] == 0x28));
        assert_eq!(ip::parse(&pieces[0]).unwrap().fragment, Fragment::First);
    }

    #[test]
    fn fragment_of_a_fragment_stays_in_its_place() {
        let data = [7; 400];
        let middle = cut(&packet(MORE_FRAGMENTS | 100, &[], &data), 220).unwrap();
        let fields: Vec<_> = middle.iter().map(|piece| field(piece)).collect();
        assert_eq!(fields, [(true, 800), (true, 1000)]);
        assert_eq!(reassembled(&middle, 800), data);
    }

    /// RFC 791, 3.1: the copied flag. Timestamp (68) stays in the first, router alert (148) goes
    /// into every piece.
    #[test]
    fn options_are_copied_by_their_flag() {
        let options = [1, 68, 4, 5, 0, 148, 4, 0, 0, 1, 130, 3, 9, 0, 0, 0];
        let pieces = cut(&packet(0, &options, &[1; 600]), 300).unwrap();
        assert_eq!(pieces[0][20..36], options);
        for piece in &pieces[1..] {
            assert_eq!(ip::parse(piece).unwrap().header_len, 28);
            assert_eq!(piece[20..28], [148, 4, 0, 0, 130, 3, 9, 0]);
        }
        assert_eq!(reassembled(&pieces, 0), [1; 600]);
    }

    #[test]
    fn what_must_not_be_fragmented_is_too_big() {
        let too_big = Err(DropReason::IpTooBig);
        assert_eq!(cut(&packet(0x4000, &[], &[0; 600]), 300), too_big);
        assert_eq!(cut(&packet(0, &[], &[0; 600]), MTU_MIN - 1), too_big);
        let mut v6 = vec![0x60, 0, 0, 8, 59, 59, 64, 64];
        v6[4..7].copy_from_slice(&[0, 8, 59]);
        v6.extend([1; 40]);
        assert_eq!(cut(&v6, 300), too_big);
    }

    /// RFC 8200, 4.5: the header of each piece names what follows the whole, all have one
    /// identification, and each but the last carries a multiple of eight octets.
    #[test]
    fn own_ipv6_packet_in_pieces() {
        let data: Vec<u8> = (0..1301u32).map(|octet| octet as u8).collect();
        let mut packet = vec![0x60, 0, 0, 0, (data.len() >> 8) as u8, data.len() as u8, 50, 64];
        packet.extend([0x20; 32]);
        packet.extend(&data);
        let header = ip::parse(&packet).unwrap();
        let mut cut = source_fragments(&packet, &header, 1280, 0x0102_0304).unwrap();
        let (mut out, mut whole) = ([0; 1280], Vec::new());
        for (place, field) in [(Fragment::First, 1), (Fragment::Later, 1232)] {
            let len = cut.write_next(&mut out).unwrap().unwrap();
            let piece = ip::parse(&out[..len]).unwrap();
            assert_eq!((piece.fragment, piece.protocol, piece.total_len), (place, 50, len));
            assert_eq!(out[42..44], u16::to_be_bytes(field));
            assert_eq!((out[6], &out[44..48]), (44, &[1, 2, 3, 4][..]));
            whole.extend_from_slice(piece.upper(&out));
        }
        assert!(cut.write_next(&mut out).is_none());
        assert_eq!(whole, data);
        assert!(source_fragments(&packet, &header, MTU_MIN - 1, 0).is_err());
        assert!(
            source_fragments(&[0x45; 40], &Header { header_len: 48, ..header }, 1280, 0).is_err()
        );
    }

    #[test]
    fn no_room_ends_the_packet() {
        let octets = packet(0, &[], &[0; 600]);
        let mut pieces = fragments(&octets, &ip::parse(&octets).unwrap(), 300).unwrap();
        assert_eq!(pieces.write_next(&mut [0; 299]), Some(Err(DropReason::NoRoom)));
        assert_eq!(pieces.write_next(&mut [0; 300]), None);
    }

    proptest! {
        #[test]
        fn pieces_fit_and_give_the_packet(
            data in proptest::collection::vec(any::<u8>(), 1..3000),
            words in 0usize..=10,
            mtu in MTU_MIN..1500,
        ) {
            let pieces = cut(&packet(0, &[148, 4, 0, 0].repeat(words), &data), mtu).unwrap();
            prop_assert!(pieces.iter().all(|piece| piece.len() <= mtu));
            prop_assert_eq!(reassembled(&pieces, 0), data);
            let last = pieces.len() - 1;
            prop_assert!(pieces.iter().enumerate().all(|(at, piece)| field(piece).0 == (at < last)));
        }

        #[test]
        fn any_packet_that_parses_can_be_cut(
            octets in proptest::collection::vec(any::<u8>(), 20..200), mtu in 0usize..200,
        ) {
            let mut octets = octets;
            let len = 20 + usize::from(octets[0] & 15) * 4 % 44;
            let len = len.min(octets.len()) & !3;
            octets[0] = 0x40 | (len / 4) as u8;
            let total = octets.len() as u16;
            octets[2..4].copy_from_slice(&total.to_be_bytes());
            checksum::fill(Sum::new(), &mut octets[..len], 10, false);
            if let Ok(pieces) = cut(&octets, mtu) {
                prop_assert!(pieces.iter().all(|piece| ip::parse(piece).is_ok()));
            }
        }
    }
}
