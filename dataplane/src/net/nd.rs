//! Neighbour discovery for IPv6 (RFC 4861): solicitations and advertisements of neighbours.
//!
//! Router advertisements and redirects are never accepted: a gateway's routes come from its
//! configuration (RFC 4861, 6.2.7 and 8.1 are for hosts). Duplicate address detection is left to
//! the operator, who gave the addresses.
//!
//! [`parse`] validates a message as RFC 4861, 7.1 lists, [`receive`] says what to do with it.

use super::DropReason;
use super::checksum;
use super::ether::{self, EtherType, MacAddr};
use super::ip::{self, V6_HEADER_LEN, protocol};
use super::neighbour::Learnt;
use super::prefix::OwnAddresses;
use std::net::{IpAddr, Ipv6Addr};

/// Hop limit that proves that a message comes from the link (RFC 4861, 11.2).
pub const HOP_LIMIT: u8 = 255;
/// Options of one message that are walked; more are refused. RFC 4861 defines one for either
/// message, RFC 3971 adds four.
pub const OPTIONS_MAX: usize = 8;
/// Octets of the ICMPv6 message that is built: 24, and 8 of the link-layer address option.
const BUILT_LEN: usize = 32;
/// Octets of a frame that carries a built message.
pub const FRAME_LEN: usize = ether::HEADER_LEN + V6_HEADER_LEN + BUILT_LEN;

/// ICMPv6 types 133 to 137 are neighbour discovery.
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Option types of RFC 4861, 4.6.1.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// Flags of an advertisement (RFC 4861, 4.4).
const FLAG_ROUTER: u8 = 0x80;
const FLAG_SOLICITED: u8 = 0x40;
const FLAG_OVERRIDE: u8 = 0x20;

/// Whether an ICMPv6 type is for this module rather than for [`super::icmp`].
pub const fn is_nd(kind: u8) -> bool {
    kind >= ROUTER_SOLICITATION && kind <= REDIRECT
}

/// A validated message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for the link-layer address of `target`.
    Solicitation {
        /// Who asks; unspecified during duplicate address detection.
        source: Ipv6Addr,
        /// Whose address is asked for.
        target: Ipv6Addr,
        /// The asker's link-layer address, when it says it.
        source_mac: Option<MacAddr>,
    },
    /// Says the link-layer address of `target`.
    Advertisement {
        /// Whose address is said.
        target: Ipv6Addr,
        /// Its link-layer address, when it says it.
        target_mac: Option<MacAddr>,
        /// In answer to a solicitation.
        solicited: bool,
        /// Replaces what is known.
        overrides: bool,
    },
}

/// Validates the ICMPv6 message in a whole packet that [`ip::parse`] accepted and whose type
/// [`is_nd`] knows. The checksum is verified here.
///
/// # Errors
/// A `DropReason::Nd…` or `Icmp…`.
pub fn parse(header: &ip::Header, packet: &[u8]) -> Result<Message, DropReason> {
    let upper = header.upper(packet);
    if header.hop_limit != HOP_LIMIT {
        return Err(DropReason::NdHopLimit);
    }
    if header.fragment != ip::Fragment::Whole {
        // RFC 6980, 5: neighbour discovery is never fragmented.
        return Err(DropReason::IpFragmentForUs);
    }
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (header.source, header.destination) else {
        return Err(DropReason::NdMalformed);
    };
    if !matches!(upper.first(), Some(&(NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT))) {
        return Err(DropReason::NdNotServed);
    }
    if !checksum::verify(header.pseudo(), upper) {
        return Err(DropReason::IcmpBadChecksum);
    }
    let (fixed, options) = upper.split_first_chunk::<24>().ok_or(DropReason::NdMalformed)?;
    let &[kind, code, _, _, flags, _, _, _, target @ ..] = fixed;
    let target = Ipv6Addr::from(target);
    if code != 0 {
        return Err(DropReason::NdMalformed);
    }
    if target.is_multicast() || source.is_multicast() {
        return Err(DropReason::NdBadAddress);
    }
    if kind == NEIGHBOUR_SOLICITATION {
        let source_mac = link_layer_option(options, SOURCE_LINK_LAYER)?;
        check_solicitation(source, destination, target, source_mac)?;
        return Ok(Message::Solicitation { source, target, source_mac });
    }
    let solicited = flags & FLAG_SOLICITED != 0;
    // RFC 4861, 7.1.2: an advertisement to a group answers nobody.
    if source.is_unspecified() || (solicited && destination.is_multicast()) {
        return Err(DropReason::NdBadAddress);
    }
    let target_mac = link_layer_option(options, TARGET_LINK_LAYER)?;
    let overrides = flags & FLAG_OVERRIDE != 0;
    Ok(Message::Advertisement { target, target_mac, solicited, overrides })
}

/// RFC 4861, 7.1.1: a solicitation without a source goes to the solicited-node group and has no
/// source link-layer address.
fn check_solicitation(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    target: Ipv6Addr,
    source_mac: Option<MacAddr>,
) -> Result<(), DropReason> {
    let to_group = destination == solicited_node(target);
    if source.is_unspecified() && (!to_group || source_mac.is_some()) {
        return Err(DropReason::NdBadAddress);
    }
    if destination.is_multicast() && !to_group {
        return Err(DropReason::NdBadAddress);
    }
    Ok(())
}

/// Walks all options (a length of zero makes the whole message invalid) and returns the one asked
/// for, which has to hold one station's Ethernet address.
fn link_layer_option(mut options: &[u8], wanted: u8) -> Result<Option<MacAddr>, DropReason> {
    let mut found = None;
    for _ in 0..OPTIONS_MAX {
        let &[kind, units, ..] = options else { break };
        let len = usize::from(units) * 8;
        let (option, rest) = match options.split_at_checked(len) {
            Some(cut) if len > 0 => cut,
            _ => return Err(DropReason::NdMalformed),
        };
        if kind == wanted {
            let &[_, _, mac @ ..] = option.first_chunk::<8>().ok_or(DropReason::NdMalformed)?;
            if len != 8 || !MacAddr(mac).is_station() {
                return Err(DropReason::NdMalformed);
            }
            found = Some(MacAddr(mac));
        }
        options = rest;
    }
    if options.is_empty() { Ok(found) } else { Err(DropReason::NdMalformed) }
}

/// The group in which solicitations for `target` are sent (RFC 4291, 2.7.1).
pub const fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from_octets([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// What a message asks of its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Send this advertisement.
    pub answer: Option<Advertisement>,
    /// Offer this to the neighbour cache.
    pub learn: Option<Learnt>,
}

/// Decides by RFC 4861, 7.2.3 to 7.2.5. `frame_source` is the station that the message came from:
/// where to send an answer when the message does not say so.
///
/// # Errors
/// [`DropReason::NdNotOurs`] for solicitations for others, [`DropReason::NdOwnAddress`] when
/// another station advertises an own address.
pub fn receive(
    message: &Message,
    frame_source: MacAddr,
    own: &OwnAddresses,
) -> Result<Received, DropReason> {
    match *message {
        Message::Solicitation { source, target, source_mac } => {
            if !own.contains(target.into()) {
                return Err(DropReason::NdNotOurs);
            }
            if own.contains(source.into()) {
                return Err(DropReason::NdOwnAddress);
            }
            let answer = Some(Advertisement::answer(source, target, source_mac, frame_source));
            let learn = source_mac.map(|mac| Learnt {
                address: source.into(),
                mac: Some(mac),
                solicited: false,
                overrides: true,
                create: true,
            });
            Ok(Received { answer, learn })
        }
        Message::Advertisement { target, target_mac: mac, solicited, overrides } => {
            if own.contains(target.into()) {
                return Err(DropReason::NdOwnAddress);
            }
            let address = target.into();
            let learn = Some(Learnt { address, mac, solicited, overrides, create: false });
            Ok(Received { answer: None, learn })
        }
    }
}

/// An advertisement of an own address to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertisement {
    target: Ipv6Addr,
    destination: Ipv6Addr,
    destination_mac: MacAddr,
    solicited: bool,
}

/// All nodes on the link (RFC 4291, 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

impl Advertisement {
    /// RFC 4861, 7.2.4: to the asker, or to all nodes when it has no address yet.
    fn answer(
        source: Ipv6Addr,
        target: Ipv6Addr,
        source_mac: Option<MacAddr>,
        frame_source: MacAddr,
    ) -> Self {
        if source.is_unspecified() {
            let destination_mac = MacAddr::multicast_v6(ALL_NODES);
            return Self { target, destination: ALL_NODES, destination_mac, solicited: false };
        }
        let destination_mac = source_mac.unwrap_or(frame_source);
        Self { target, destination: source, destination_mac, solicited: true }
    }

    /// Writes the whole frame and returns its length. The gateway is a router and says so.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when `out` is shorter than [`FRAME_LEN`].
    pub fn write_frame(&self, own: MacAddr, out: &mut [u8]) -> Result<usize, DropReason> {
        let flags = FLAG_ROUTER | FLAG_OVERRIDE | if self.solicited { FLAG_SOLICITED } else { 0 };
        Built {
            kind: NEIGHBOUR_ADVERTISEMENT,
            flags,
            target: self.target,
            option: TARGET_LINK_LAYER,
            source: self.target,
            destination: self.destination,
        }
        .write(self.destination_mac, own, out)
    }
}

/// Writes a frame that asks for `target` and returns its length: to its solicited-node group, or
/// to the station `known` to probe whether it is still there (RFC 4861, 7.2.2 and 7.3.3).
///
/// # Errors
/// [`DropReason::NoRoom`] when `out` is shorter than [`FRAME_LEN`].
pub fn write_solicitation(
    own: MacAddr,
    own_ip: Ipv6Addr,
    target: Ipv6Addr,
    known: Option<MacAddr>,
    out: &mut [u8],
) -> Result<usize, DropReason> {
    let (destination, destination_mac) = match known {
        Some(mac) => (target, mac),
        None => {
            let group = solicited_node(target);
            (group, MacAddr::multicast_v6(group))
        }
    };
    Built {
        kind: NEIGHBOUR_SOLICITATION,
        flags: 0,
        target,
        option: SOURCE_LINK_LAYER,
        source: own_ip,
        destination,
    }
    .write(destination_mac, own, out)
}

/// The common shape of both messages, with one link-layer address option: the sender's.
struct Built {
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    option: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
}

impl Built {
    fn write(&self, to: MacAddr, own: MacAddr, out: &mut [u8]) -> Result<usize, DropReason> {
        let out = out.first_chunk_mut::<FRAME_LEN>().ok_or(DropReason::NoRoom)?;
        let ether_type = EtherType::Ipv6;
        ether::Header { destination: to, source: own, ether_type }.write(out)?;
        let packet = &mut out[ether::HEADER_LEN..];
        let (head, message) = packet.split_at_mut(V6_HEADER_LEN);
        head[..8].copy_from_slice(&[
            0x60,
            0,
            0,
            0,
            0,
            BUILT_LEN as u8,
            protocol::ICMPV6,
            HOP_LIMIT,
        ]);
        head[8..24].copy_from_slice(&self.source.octets());
        head[24..].copy_from_slice(&self.destination.octets());
        message[..8].copy_from_slice(&[self.kind, 0, 0, 0, self.flags, 0, 0, 0]);
        message[8..24].copy_from_slice(&self.target.octets());
        message[24..26].copy_from_slice(&[self.option, 1]);
        message[26..].copy_from_slice(&own.0);
        let len = BUILT_LEN as u32;
        let pseudo = checksum::pseudo_v6(self.source, self.destination, protocol::ICMPV6, len);
        checksum::fill(pseudo, message, 2, false);
        Ok(FRAME_LEN)
    }
}

#[cfg(test)]
#[path = "nd_tests.rs"]
mod tests;
