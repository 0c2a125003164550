//! What smoltcp takes for a network device: one received packet, and a [`Transmit`] for what it
//! sends. What is sent is looked at on its way out, because smoltcp tells nobody how far it is.

use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::Sent;
use crate::api::Transmit;
use crate::segment::number;

/// The device for one call into smoltcp.
pub(super) struct Port<'a, T> {
    capabilities: &'a DeviceCapabilities,
    received: Option<&'a [u8]>,
    sent: &'a mut Sent,
    to: &'a mut T,
    refused: bool,
}

impl<'a, T: Transmit> Port<'a, T> {
    pub(super) fn new(
        capabilities: &'a DeviceCapabilities,
        sent: &'a mut Sent,
        to: &'a mut T,
    ) -> Self {
        Self { capabilities, received: None, sent, to, refused: false }
    }

    /// The same with a packet to be received.
    pub(super) fn with(self, packet: &'a [u8]) -> Self {
        Self { received: Some(packet), ..self }
    }

    /// Whether something could not be sent for want of room.
    pub(super) fn refused(&self) -> bool {
        self.refused
    }
}

impl<T: Transmit> Device for Port<'_, T> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b, T>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        let received = Received(self.received.take()?);
        Some((received, Sending { sent: self.sent, to: self.to }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        if !self.to.has_room() {
            self.refused = true;
            return None;
        }
        Some(Sending { sent: self.sent, to: self.to })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// The received packet.
pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// A packet to be sent.
pub(super) struct Sending<'a, T> {
    sent: &'a mut Sent,
    to: &'a mut T,
}

impl<T: Transmit> TxToken for Sending<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let sent = self.sent;
        self.to.packet(len, |packet| {
            let result = fill(packet);
            sent.note(packet);
            result
        })
    }
}

impl Sent {
    /// Keeps what this packet says.
    fn note(&mut self, packet: &[u8]) {
        let tcp = match IpVersion::of_packet(packet) {
            Ok(IpVersion::Ipv4) => {
                TcpPacket::new_unchecked(Ipv4Packet::new_unchecked(packet).payload())
            }
            Ok(IpVersion::Ipv6) => {
                TcpPacket::new_unchecked(Ipv6Packet::new_unchecked(packet).payload())
            }
            Err(_) => return,
        };
        self.segments += 1;
        if tcp.rst() {
            return;
        }
        let seq = number(tcp.seq_number());
        if tcp.syn() {
            self.first = seq.wrapping_add(1);
            self.next = self.first;
        }
        let length = tcp.segment_len() as u32;
        let next = seq.wrapping_add(length);
        // A retransmission or a probe does not go back.
        if next.wrapping_sub(self.next).cast_signed() > 0 {
            self.next = next;
        }
        self.window = tcp.window_len();
    }
}

/// The device of an interface before its first packet.
pub(super) struct Idle<'a>(pub(super) &'a DeviceCapabilities);

impl Device for Idle<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Nowhere
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.0.clone()
    }
}

/// A packet of [`Idle`]: there is none.
pub(super) enum Nowhere {}

impl TxToken for Nowhere {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}
