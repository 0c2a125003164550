//! Packets that wait for their next hop's Ethernet address.
//!
//! The first packet to a neighbour should not be lost to its resolution: of a TCP handshake it
//! would cost a second. A few wait, the rest is dropped.

use culvert_dpdk::Mbuf;

use crate::net::route::NextHop;

/// Packets that wait at once.
pub(crate) const WAITING_MAX: usize = 64;
/// Packets that wait for one neighbour at once.
const WAITING_PER_NEIGHBOUR_MAX: usize = 4;

/// The packets that wait; as many places as [`WAITING_MAX`].
pub(crate) struct Waiting {
    packets: Vec<(NextHop, Mbuf)>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self { packets: Vec::with_capacity(WAITING_MAX) }
    }
}

impl Waiting {
    /// Keeps a packet until its next hop is known.
    ///
    /// # Errors
    /// Gives the packet back when there is no place for it.
    pub(crate) fn keep(&mut self, hop: NextHop, packet: Mbuf) -> Result<(), Mbuf> {
        let same = self.packets.iter().filter(|(other, _)| *other == hop).count();
        if self.packets.len() >= WAITING_MAX || same >= WAITING_PER_NEIGHBOUR_MAX {
            return Err(packet);
        }
        self.packets.push((hop, packet));
        Ok(())
    }

    /// Takes the oldest packet; who keeps it again goes on with the next one, [`Waiting::len`]
    /// times at most.
    pub(crate) fn take(&mut self) -> Option<(NextHop, Mbuf)> {
        (!self.packets.is_empty()).then(|| self.packets.remove(0))
    }

    pub(crate) fn len(&self) -> usize {
        self.packets.len()
    }
}
