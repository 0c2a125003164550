//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo for own addresses, errors about packets that could
//! not be forwarded, and the rules of when to keep silent.
//!
//! An error is sent when [`may_answer`] allows it, a [`RateLimit`] has a token and
//! [`error_source`] knows an own address; [`write_error`] then builds the packet.

use super::checksum::{self, Sum};
use super::encap::{Outer, ip_header_len};
use super::ether::Cast;
use super::ip::{self, Fragment, protocol};
use super::prefix::OwnAddresses;
use super::{DropReason, Nanos, SECOND};
use std::net::IpAddr;

/// Octets of the header of errors and echoes alike.
pub const HEADER_LEN: usize = 8;
/// Longest error over IPv4: what every host takes unfragmented (RFC 1812, 4.3.2.3).
pub const ERROR_MAX_V4: usize = 576;
/// Longest error over IPv6: the minimum MTU (RFC 4443, 2.4(c)).
pub const ERROR_MAX_V6: usize = 1280;
/// Errors a second and worker in the long run (RFC 4443, 2.4(f)).
pub const ERRORS_PER_SECOND: u32 = 100;
/// Errors at once after a quiet time.
pub const ERRORS_BURST: u32 = 50;

const V4_ECHO_REPLY: u8 = 0;
const V4_ECHO_REQUEST: u8 = 8;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;
const V6_REDIRECT: u8 = 137;

/// Turns an echo request for an own address into its reply, in place, and returns the reply's
/// length. IPv4 options and IPv6 extension headers of the request are left out.
///
/// # Errors
/// [`DropReason::IpFragmentForUs`], [`DropReason::IcmpTruncated`],
/// [`DropReason::IcmpBadChecksum`], or [`DropReason::IcmpNotServed`] for every other message. The
/// packet is then unchanged. The caller has checked that the destination is its own and no group
/// (RFC 1122, 3.2.2.6).
pub fn echo_reply(packet: &mut [u8], header: &ip::Header) -> Result<usize, DropReason> {
    if header.fragment != Fragment::Whole {
        return Err(DropReason::IpFragmentForUs);
    }
    let v4 = header.is_v4();
    let upper = header.upper(packet);
    let &[kind, code, c0, c1, ..] =
        upper.first_chunk::<HEADER_LEN>().ok_or(DropReason::IcmpTruncated)?;
    let pseudo = if v4 { Sum::new() } else { header.pseudo() };
    if !checksum::verify(pseudo, upper) {
        return Err(DropReason::IcmpBadChecksum);
    }
    let reply = match (header.protocol, kind, code) {
        (protocol::ICMP, V4_ECHO_REQUEST, 0) if v4 => V4_ECHO_REPLY,
        (protocol::ICMPV6, V6_ECHO_REQUEST, 0) if !v4 => V6_ECHO_REPLY,
        _ => return Err(DropReason::IcmpNotServed),
    };
    // The pseudo header's sum stays what it is when its addresses change places.
    let [old, new] = [kind, reply].map(|kind| u16::from_be_bytes([kind, 0]));
    let sum = checksum::update(u16::from_be_bytes([c0, c1]), old, new);
    let identification = packet.get(4..6).map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));

    let (at, len) = (ip_header_len(v4), header.total_len - header.header_len);
    packet.copy_within(header.header_len..header.total_len, at);
    let packet = packet.get_mut(..at + len).ok_or(DropReason::IcmpTruncated)?;
    if let Some([kind, _, c0, c1]) = packet.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *kind = reply;
        [*c0, *c1] = sum.to_be_bytes();
    }
    Outer {
        source: header.destination,
        destination: header.source,
        traffic_class: header.traffic_class & 0xfc,
        hop_limit: ip::HOP_LIMIT,
        dont_fragment: header.dont_fragment,
        identification,
        flow_label: 0,
    }
    .write_ip(packet, header.protocol)?;
    Ok(packet.len())
}

/// What went wrong with a packet, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// TTL or hop limit used up on the way.
    HopLimit,
    /// No route, and no policy, leads to the destination.
    NoRoute,
    /// The next hop does not answer.
    HostUnreachable,
    /// Policy refuses the packet (RFC 4301, 6.2 allows to tell inner hosts).
    Prohibited,
    /// Longer than what the next link or the tunnel takes, in octets of the whole IP packet.
    TooBig {
        /// What fits.
        mtu: u16,
    },
}

impl Problem {
    /// Type, code and the 32 bits behind the checksum, for either family.
    fn wire(self, v4: bool) -> (u8, u8, u32) {
        match (self, v4) {
            (Self::HopLimit, true) => (11, 0, 0),
            (Self::HopLimit, false) => (3, 0, 0),
            (Self::NoRoute, true) => (3, 0, 0),
            (Self::NoRoute, false) => (1, 0, 0),
            (Self::HostUnreachable, true) => (3, 1, 0),
            (Self::HostUnreachable, false) => (1, 3, 0),
            (Self::Prohibited, true) => (3, 13, 0),
            (Self::Prohibited, false) => (1, 1, 0),
            // RFC 1191, 4: sixteen bits unused, then the MTU.
            (Self::TooBig { mtu }, true) => (3, 4, u32::from(mtu)),
            (Self::TooBig { mtu }, false) => (2, 0, u32::from(mtu)),
        }
    }
}

/// Whether an error about a packet may be sent: RFC 1122, 3.2.2 and RFC 4443, 2.4(e). Never about
/// an ICMP error or redirect, a group or broadcast destination on either layer, a later fragment,
/// or to a source that is not one host.
pub fn may_answer(header: &ip::Header, packet: &[u8], cast: Cast, own: &OwnAddresses) -> bool {
    cast == Cast::Unicast
        && header.fragment != Fragment::Later
        && ip::check_source(header.source).is_ok()
        && !own.is_broadcast(header.source)
        && !own.contains(header.source)
        && !is_group(header.destination, own)
        && !is_error(header, packet)
}

fn is_group(destination: IpAddr, own: &OwnAddresses) -> bool {
    match destination {
        // 255.255.255.255 and class E with the groups.
        IpAddr::V4(v4) => v4.octets()[0] >= 224 || own.is_broadcast(destination),
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}

/// Messages about which silence is kept; of an ICMP message without a type nothing is known, so
/// silence too.
fn is_error(header: &ip::Header, packet: &[u8]) -> bool {
    let kind = header.upper(packet).first().copied();
    match header.protocol {
        protocol::ICMP => matches!(kind, None | Some(3 | 4 | 5 | 11 | 12)),
        // RFC 4443, 2.1: errors have the high bit clear.
        protocol::ICMPV6 => kind.is_none_or(|kind| kind < 128 || kind == V6_REDIRECT),
        _ => false,
    }
}

/// The address to send an error from: the one the packet was sent to when it is ours, else the one
/// that faces the packet's source (RFC 4443, 2.2; RFC 1812, 4.3.2.4). `own` are the addresses of
/// the side that the packet came in by.
pub fn error_source(header: &ip::Header, own: &OwnAddresses) -> Option<IpAddr> {
    if own.contains(header.destination) {
        return Some(header.destination);
    }
    own.source_for(header.source)
}

/// Writes the packet that tells the sender of `packet` about `problem` and returns its length. As
/// much is quoted as fits into [`ERROR_MAX_V4`] or [`ERROR_MAX_V6`].
///
/// # Errors
/// [`DropReason::NoRoom`] when `out` is shorter than the error (576 and 1280 octets are always
/// enough); [`DropReason::IpBadVersion`] when `source` is of the other family.
pub fn write_error(
    problem: Problem,
    source: IpAddr,
    header: &ip::Header,
    packet: &[u8],
    out: &mut [u8],
) -> Result<usize, DropReason> {
    let v4 = header.is_v4();
    let at = ip_header_len(v4);
    let (max, upper_protocol) =
        if v4 { (ERROR_MAX_V4, protocol::ICMP) } else { (ERROR_MAX_V6, protocol::ICMPV6) };
    let packet = packet.get(..header.total_len).unwrap_or(packet);
    let quoted = packet.get(..max - at - HEADER_LEN).unwrap_or(packet);
    let out = out.get_mut(..at + HEADER_LEN + quoted.len()).ok_or(DropReason::NoRoom)?;

    let message = out.get_mut(at..).ok_or(DropReason::NoRoom)?;
    let (head, body) = message.split_first_chunk_mut().ok_or(DropReason::NoRoom)?;
    let (kind, code, word) = problem.wire(v4);
    let [w0, w1, w2, w3] = word.to_be_bytes();
    *head = [kind, code, 0, 0, w0, w1, w2, w3];
    body.copy_from_slice(quoted);
    let pseudo = if v4 {
        Sum::new()
    } else {
        checksum::pseudo(source, header.source, upper_protocol, message.len())
    };
    checksum::fill(pseudo, message, 2, false);
    Outer {
        source,
        destination: header.source,
        traffic_class: 0,
        hop_limit: ip::HOP_LIMIT,
        // Never fragmented, so that the identification may be any (RFC 6864, 4).
        dont_fragment: true,
        identification: 0,
        flow_label: 0,
    }
    .write_ip(out, upper_protocol)?;
    Ok(out.len())
}

/// A token bucket in virtual time: `burst` tokens at most, `per_second` new ones each second.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// Time between two tokens.
    interval: Nanos,
    /// How far the next token may lie in the past: the time in which the bucket fills up.
    depth: Nanos,
    /// When the next token falls due.
    next: Nanos,
}

impl RateLimit {
    /// A full bucket. Both numbers count at least as one, a million a second at most.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = SECOND / Nanos::from(per_second.clamp(1, 1_000_000));
        let depth = interval * (Nanos::from(burst.max(1)) - 1);
        Self { interval, depth, next: 0 }
    }

    /// Takes a token if there is one. Time that goes back neither adds nor takes tokens.
    pub fn allow(&mut self, now: Nanos) -> bool {
        let next = self.next.max(now.saturating_sub(self.depth));
        if next > now {
            return false;
        }
        self.next = next.saturating_add(self.interval);
        true
    }
}

/// Packets too big that hosts of one place are told of in a second, in the long run and at once.
pub const TOO_BIG_PER_SECOND: u32 = 50;
/// Places of hosts: who floods the gateway takes the answers of few others.
const TOO_BIG_PLACES: usize = 64;

/// The limit of packets-too-big, apart from that of other errors and for each host: who does not hear
/// what fits loses all that is longer (RFC 1191, 3; RFC 8201, 3).
#[derive(Clone, Debug)]
pub struct TooBigLimit([RateLimit; TOO_BIG_PLACES]);

impl TooBigLimit {
    /// Takes a token of `host`'s place if there is one.
    pub fn allow(&mut self, now: Nanos, host: IpAddr) -> bool {
        let last = match host {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(v6) => v6.octets()[15],
        };
        let place = self.0.get_mut(usize::from(last) % TOO_BIG_PLACES);
        place.is_some_and(|limit| limit.allow(now))
    }
}

impl Default for TooBigLimit {
    fn default() -> Self {
        Self([RateLimit::new(TOO_BIG_PER_SECOND, TOO_BIG_PER_SECOND); TOO_BIG_PLACES])
    }
}

impl Default for RateLimit {
    /// The limit of ICMP errors: [`ERRORS_PER_SECOND`], [`ERRORS_BURST`].
    fn default() -> Self {
        Self::new(ERRORS_PER_SECOND, ERRORS_BURST)
    }
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
