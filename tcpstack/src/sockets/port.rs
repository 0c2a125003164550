//! What smoltcp takes for a network device: one received packet, and a [`Transmit`] for what it
//! sends. What is sent is looked at on its way out, because smoltcp tells nobody how far it is.

use smoltcp::phy::{Device, DeviceCapabilities, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber};

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

    fn sending(&mut self) -> Sending<'_, T> {
        let fills_checksum = self.capabilities.checksum.tcp.tx();
        Sending { sent: self.sent, to: self.to, fills_checksum }
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
        Some((received, self.sending()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Self::TxToken<'_>> {
        if !self.to.has_room() {
            self.refused = true;
            return None;
        }
        Some(self.sending())
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
    fills_checksum: bool,
}

impl<T: Transmit> TxToken for Sending<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let (sent, fills_checksum) = (self.sent, self.fills_checksum);
        self.to.packet(len, |packet| {
            let result = fill(packet);
            sent.note(packet, fills_checksum);
            result
        })
    }
}

impl Sent {
    /// Keeps what this packet says, and corrects it where smoltcp is wrong.
    fn note(&mut self, packet: &mut [u8], fills_checksum: bool) {
        let (source, destination, payload): (IpAddress, IpAddress, _) =
            match IpVersion::of_packet(packet) {
                Ok(IpVersion::Ipv4) => {
                    let ip = Ipv4Packet::new_unchecked(packet);
                    let ends = (ip.src_addr().into(), ip.dst_addr().into());
                    let header = usize::from(ip.header_len());
                    (ends.0, ends.1, &mut ip.into_inner()[header..])
                }
                Ok(IpVersion::Ipv6) => {
                    let ip = Ipv6Packet::new_unchecked(packet);
                    let ends = (ip.src_addr().into(), ip.dst_addr().into());
                    let header = ip.header_len();
                    (ends.0, ends.1, &mut ip.into_inner()[header..])
                }
                Err(_) => return,
            };
        let mut tcp = TcpPacket::new_unchecked(payload);
        self.segments += 1;
        if tcp.rst() {
            return;
        }
        self.window = tcp.window_len();
        let seq = number(tcp.seq_number());
        let length = tcp.segment_len() as u32;
        if tcp.syn() {
            self.first = seq.wrapping_add(1);
            self.next = self.first;
        } else if length == 0 && is_before(seq, self.next) {
            // RFC 9293, 3.10.7.4: an ACK has the sequence number SND.NXT. After a retransmission
            // timeout smoltcp's has that of the octet to be sent again, which the peer may have
            // received: then it drops the ACK as old, and if both ends do it, neither learns
            // what the other has received, and they repeat themselves for ever.
            tcp.set_seq_number(TcpSeqNumber(self.next.cast_signed()));
            if fills_checksum {
                tcp.fill_checksum(&source, &destination);
            }
        } else if is_before(self.next, seq.wrapping_add(length)) && !self.peer_window_shut {
            // Not so a zero window probe (RFC 9293, 3.8.6.1): its octet is beyond the window, and
            // an ACK with the number after it would be too.
            self.next = seq.wrapping_add(length);
        }
    }
}

/// Whether one sequence number comes before another (RFC 9293, 3.4).
fn is_before(this: u32, that: u32) -> bool {
    this.wrapping_sub(that).cast_signed() < 0
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
