//! ARP for IPv4 over Ethernet (RFC 826).
//!
//! [`parse`] checks a message, [`receive`] says what to do with it: answer, learn, both.

use super::DropReason;
use super::ether::{self, EtherType, MacAddr};
use super::neighbour::Learnt;
use super::prefix::OwnAddresses;
use std::net::Ipv4Addr;

/// Octets of a message behind the Ethernet header.
pub const MESSAGE_LEN: usize = 28;
/// Octets of a frame that carries a message; Ethernet pads it to 60, which is the port's matter.
pub const FRAME_LEN: usize = ether::HEADER_LEN + MESSAGE_LEN;

/// Hardware type Ethernet, protocol type IPv4, their address lengths.
const FORMAT: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];

/// What a message does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Asks who has the target address.
    Request,
    /// Says who has the sender's address.
    Reply,
}

/// A checked message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it does.
    pub operation: Operation,
    /// Hardware address of the sender.
    pub sender_mac: MacAddr,
    /// Protocol address of the sender; unspecified in probes (RFC 5227, 1.1).
    pub sender_ip: Ipv4Addr,
    /// Hardware address of the target; of no meaning in requests.
    pub target_mac: MacAddr,
    /// Protocol address of the target.
    pub target_ip: Ipv4Addr,
}

/// Reads a frame's payload; `frame` is its Ethernet header.
///
/// # Errors
/// [`DropReason::ArpMalformed`]; [`DropReason::ArpBadSender`] when the sender is no station, or
/// another than the frame's: nobody speaks for somebody else here.
pub fn parse(frame: &ether::Header, payload: &[u8]) -> Result<Message, DropReason> {
    let message = payload.first_chunk::<MESSAGE_LEN>().ok_or(DropReason::ArpMalformed)?;
    let &[f0, f1, f2, f3, f4, f5, o0, o1, addresses @ ..] = message;
    if [f0, f1, f2, f3, f4, f5] != FORMAT {
        return Err(DropReason::ArpMalformed);
    }
    let operation = match [o0, o1] {
        [0, 1] => Operation::Request,
        [0, 2] => Operation::Reply,
        _ => return Err(DropReason::ArpMalformed),
    };
    let [s0, s1, s2, s3, s4, s5, a0, a1, a2, a3, t0, t1, t2, t3, t4, t5, b0, b1, b2, b3] =
        addresses;
    let message = Message {
        operation,
        sender_mac: MacAddr([s0, s1, s2, s3, s4, s5]),
        sender_ip: Ipv4Addr::new(a0, a1, a2, a3),
        target_mac: MacAddr([t0, t1, t2, t3, t4, t5]),
        target_ip: Ipv4Addr::new(b0, b1, b2, b3),
    };
    let probe = operation == Operation::Request && message.sender_ip.is_unspecified();
    let unicast = super::ip::check_source(message.sender_ip.into()).is_ok();
    if message.sender_mac != frame.source || !(probe || unicast) {
        return Err(DropReason::ArpBadSender);
    }
    Ok(message)
}

/// What a message asks of its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Send [`Message::reply`].
    pub answer: bool,
    /// Offer this to the neighbour cache.
    pub learn: Option<Learnt>,
}

/// RFC 826, "Packet Reception": who is meant, and what can be learnt.
///
/// # Errors
/// [`DropReason::ArpOwnAddress`] when the sender claims an own address (RFC 5227, 2.4: counted,
/// never believed); [`DropReason::ArpNotOurs`] for what concerns others.
pub fn receive(message: &Message, own: &OwnAddresses) -> Result<Received, DropReason> {
    if own.contains(message.sender_ip.into()) {
        return Err(DropReason::ArpOwnAddress);
    }
    let for_us = own.contains(message.target_ip.into());
    let announcement = message.sender_ip == message.target_ip;
    let probe = message.sender_ip.is_unspecified();
    let learn = |solicited, create| {
        let (address, mac) = (message.sender_ip.into(), Some(message.sender_mac));
        Some(Learnt { address, mac, solicited, overrides: true, create })
    };
    match message.operation {
        Operation::Request if for_us && probe => Ok(Received { answer: true, learn: None }),
        Operation::Request if for_us => Ok(Received { answer: true, learn: learn(false, true) }),
        Operation::Reply if for_us => Ok(Received { answer: false, learn: learn(true, false) }),
        // A station says that it moved: what is known of it is renewed, nothing is added.
        _ if announcement && !probe => Ok(Received { answer: false, learn: learn(false, false) }),
        _ => Err(DropReason::ArpNotOurs),
    }
}

impl Message {
    /// The answer to a request for an own address.
    pub fn reply(&self, own: MacAddr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: own,
            sender_ip: self.target_ip,
            target_mac: self.sender_mac,
            target_ip: self.sender_ip,
        }
    }

    /// The question who has `target`.
    pub fn request(own: MacAddr, own_ip: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender_mac: own,
            sender_ip: own_ip,
            target_mac: MacAddr::ZERO,
            target_ip: target,
        }
    }

    /// Writes the whole frame to `destination`: broadcast for a first request, the known station
    /// for a probe of it (RFC 1122, 2.3.2.1) or a reply. Returns its length.
    ///
    /// # Errors
    /// [`DropReason::NoRoom`] when `out` is shorter than [`FRAME_LEN`].
    pub fn write_frame(&self, destination: MacAddr, out: &mut [u8]) -> Result<usize, DropReason> {
        let out = out.first_chunk_mut::<FRAME_LEN>().ok_or(DropReason::NoRoom)?;
        let source = self.sender_mac;
        ether::Header { destination, source, ether_type: EtherType::Arp }.write(out)?;
        let message = &mut out[ether::HEADER_LEN..];
        message[..6].copy_from_slice(&FORMAT);
        message[6..8].copy_from_slice(match self.operation {
            Operation::Request => &[0, 1],
            Operation::Reply => &[0, 2],
        });
        message[8..14].copy_from_slice(&self.sender_mac.0);
        message[14..18].copy_from_slice(&self.sender_ip.octets());
        message[18..24].copy_from_slice(&self.target_mac.0);
        message[24..28].copy_from_slice(&self.target_ip.octets());
        Ok(FRAME_LEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const PEER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const OWN_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const PEER_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn own() -> OwnAddresses {
        OwnAddresses::new(&[(OWN_IP.into(), 24)]).unwrap()
    }

    fn learnt(solicited: bool, create: bool) -> Option<Learnt> {
        let (address, mac) = (PEER_IP.into(), Some(PEER));
        Some(Learnt { address, mac, solicited, overrides: true, create })
    }

    fn through_the_wire(message: &Message, destination: MacAddr) -> Result<Message, DropReason> {
        let mut frame = [0; 60];
        assert_eq!(message.write_frame(destination, &mut frame), Ok(FRAME_LEN));
        let (header, _) = ether::parse(&frame, destination)?;
        assert_eq!(header.ether_type, EtherType::Arp);
        parse(&header, &frame[ether::HEADER_LEN..])
    }

    #[test]
    fn request_is_answered_and_its_sender_learnt() {
        let request = Message::request(PEER, PEER_IP, OWN_IP);
        let received = through_the_wire(&request, MacAddr::BROADCAST).unwrap();
        assert_eq!(received, request);
        let what = receive(&received, &own()).unwrap();
        assert_eq!(what, Received { answer: true, learn: learnt(false, true) });
        let reply = through_the_wire(&received.reply(OWN), PEER).unwrap();
        assert_eq!((reply.sender_mac, reply.sender_ip), (OWN, OWN_IP));
        assert_eq!((reply.target_mac, reply.target_ip), (PEER, PEER_IP));
    }

    #[test]
    fn what_is_learnt_and_what_is_refused() {
        let message = |operation, sender_ip, target_ip| Message {
            operation,
            sender_mac: PEER,
            sender_ip,
            target_mac: OWN,
            target_ip,
        };
        let other = Ipv4Addr::new(192, 0, 2, 3);
        let none = Ipv4Addr::UNSPECIFIED;
        use Operation::{Reply, Request};
        for (message, expected) in [
            (
                message(Reply, PEER_IP, OWN_IP),
                Ok(Received { answer: false, learn: learnt(true, false) }),
            ),
            // Announcements (RFC 5227, 3), as request and as reply.
            (
                message(Request, PEER_IP, PEER_IP),
                Ok(Received { answer: false, learn: learnt(false, false) }),
            ),
            (
                message(Reply, PEER_IP, PEER_IP),
                Ok(Received { answer: false, learn: learnt(false, false) }),
            ),
            // A probe for our address is answered, its sender has no address yet.
            (message(Request, none, OWN_IP), Ok(Received { answer: true, learn: None })),
            (message(Request, none, none), Err(DropReason::ArpNotOurs)),
            (message(Request, PEER_IP, other), Err(DropReason::ArpNotOurs)),
            (message(Reply, PEER_IP, other), Err(DropReason::ArpNotOurs)),
            (message(Reply, OWN_IP, PEER_IP), Err(DropReason::ArpOwnAddress)),
            (message(Request, OWN_IP, OWN_IP), Err(DropReason::ArpOwnAddress)),
        ] {
            assert_eq!(receive(&message, &own()), expected, "{message:?}");
        }
    }

    #[test]
    fn nobody_speaks_for_another_station() {
        let frame = ether::Header { destination: OWN, source: PEER, ether_type: EtherType::Arp };
        let mut octets = [0; FRAME_LEN];
        let reply = |mac, ip| Message {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: ip,
            target_mac: OWN,
            target_ip: OWN_IP,
        };
        for message in [
            reply(OWN, PEER_IP),
            reply(PEER, Ipv4Addr::UNSPECIFIED),
            reply(PEER, Ipv4Addr::BROADCAST),
            reply(PEER, Ipv4Addr::new(224, 0, 0, 1)),
        ] {
            message.write_frame(OWN, &mut octets).unwrap();
            let parsed = parse(&frame, &octets[ether::HEADER_LEN..]);
            assert_eq!(parsed, Err(DropReason::ArpBadSender));
        }
    }

    proptest! {
        #[test]
        fn changed_or_cut_messages_parse_or_are_named(
            at in 0usize..MESSAGE_LEN, octet in any::<u8>(), keep in 0usize..=MESSAGE_LEN,
        ) {
            let frame = ether::Header { destination: OWN, source: PEER, ether_type: EtherType::Arp };
            let mut octets = [0; FRAME_LEN];
            Message::request(PEER, PEER_IP, OWN_IP).write_frame(OWN, &mut octets).unwrap();
            let message = &mut octets[ether::HEADER_LEN..];
            message[at] = octet;
            let parsed = parse(&frame, &message[..keep]);
            prop_assert!(keep == MESSAGE_LEN || parsed == Err(DropReason::ArpMalformed));
            if let Ok(message) = parsed {
                let _ = receive(&message, &own());
            }
        }
    }
}
