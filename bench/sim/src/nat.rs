//! A NAT in front of one end, which forgets its mappings now and then and makes others.

use std::net::{IpAddr, SocketAddr};

use crate::packet::{self, Segment};

/// Ports of the inside that it can map: the first of them and how many.
pub const PORTS: (u16, u16) = (50_000, 1_000);

/// Maps each inside port to one of an outside range, which moves with each rebinding.
#[derive(Debug)]
pub struct Nat {
    inside: IpAddr,
    outside: [IpAddr; 2],
    rebindings: u16,
}

impl Nat {
    /// A NAT for the host at `inside` with two outside addresses.
    #[must_use]
    pub fn new(inside: IpAddr, outside: [IpAddr; 2]) -> Self {
        Self { inside, outside, rebindings: 0 }
    }

    /// Another port, and every other time another address.
    pub fn rebind(&mut self) {
        self.rebindings = (self.rebindings + 1) % 8;
    }

    fn address(&self) -> IpAddr {
        self.outside[usize::from(self.rebindings / 2 % 2)]
    }

    fn shift(&self) -> u16 {
        self.rebindings * PORTS.1
    }

    /// A packet on its way out; `false` if it has to be dropped.
    pub fn outbound(&self, packet: &mut [u8]) -> bool {
        let Some(segment) = Self::read(packet) else { return false };
        let port = segment.source.port();
        if !(PORTS.0..PORTS.0 + PORTS.1).contains(&port) {
            return false;
        }
        packet::translate(packet, true, SocketAddr::new(self.address(), port + self.shift()));
        true
    }

    /// The segment of a packet, unless it is damaged: new checksums must not hide that.
    fn read(packet: &[u8]) -> Option<Segment> {
        packet::is_intact(packet).then(|| Segment::read(packet)).flatten()
    }

    /// A packet on its way in; `false` if no mapping is for it.
    pub fn inbound(&self, packet: &mut [u8]) -> bool {
        let Some(segment) = Self::read(packet) else { return false };
        let (first, to) = (PORTS.0 + self.shift(), segment.destination);
        if to.ip() != self.address() || !(first..first + PORTS.1).contains(&to.port()) {
            return false;
        }
        packet::translate(packet, false, SocketAddr::new(self.inside, to.port() - self.shift()));
        true
    }
}
