//! What fits through the path to a peer without TCP, as its routers say (RFC 1191; RFC 8201;
//! RFC 4301, 8.2).
//!
//! ESP packets have DF set, so that one that is too big for a link on the way is lost, and with it
//! every other of its length: the inner hosts have to hear of it. Over TCP the stack finds the size of
//! its segments itself.

use culvert_shm::{Counter, Path, Transport};

use super::core::Core;
use super::link::Link;
use crate::net::icmp_error::EspTooBig;
use crate::net::ip;
use crate::net::{Nanos, SECOND};

/// How long a router is believed (RFC 1191, 6.3; RFC 8201, 4).
pub(crate) const AGE_MAX: Nanos = 600 * SECOND;
/// Less is not believed (RFC 4301, 6.1.1: a threshold): over IPv4 what every host takes in one piece
/// or more (RFC 1122, 3.3.2), over IPv6 what every link carries (RFC 8200, 5).
const MIN_V4: u16 = 576;
const MIN_V6: u16 = ip::V6_MTU_MIN as u16;
/// A router speaks of a packet that left not long ago: so many numbers behind the last one are still
/// those of packets that may be under way.
const UNDER_WAY_MAX: u32 = 1 << 16;

/// What has been heard of one path.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PathMtu {
    octets: u16,
    until: Nanos,
}

impl PathMtu {
    /// A router on the way says that no more than `octets` fit.
    fn lower(&mut self, now: Nanos, octets: u16) {
        *self = Self { octets, until: now + AGE_MAX };
    }

    /// Octets of the longest packet for this path, where the link takes `link`.
    pub(crate) fn get(&self, now: Nanos, link: usize) -> usize {
        if now < self.until { link.min(usize::from(self.octets)) } else { link }
    }
}

impl<L: Link> Core<L> {
    /// A router says that an ESP packet was too big for it. Anybody can say so: it is believed of a
    /// packet that was sent on this path just now, whose SPI and number only who saw it knows
    /// (RFC 5927, 4.1).
    pub(crate) fn take_esp_too_big(&mut self, told: &EspTooBig) {
        let EspTooBig { local, remote, spi, sequence, mtu } = *told;
        let on_path = |path: &Path| {
            path.transport != Transport::Tcp
                && (path.local.ip(), path.remote.ip()) == (local, remote)
        };
        let sent = |slot: u32| {
            let given = self.view.sa(slot).map_or(0, |writer| writer.sequence().given());
            let behind = (given as u32).wrapping_sub(sequence);
            u64::from(behind) < given && behind < UNDER_WAY_MAX
        };
        let known = self.sas.by_outbound_spi(spi).find(|sa| {
            self.peers.get(sa.peer).is_some_and(|peer| on_path(&peer.path)) && sent(sa.slot.index)
        });
        let Some(peer) = known.map(|sa| sa.peer) else { return };
        let least = if remote.is_ipv4() { MIN_V4 } else { MIN_V6 };
        let (now, link) = (self.now_ns, self.net.outer.mtu);
        // What does not narrow the path is a lie; 0, of a router older than RFC 1191, stands for the least.
        if let Some(known) = self.peers.path_mtu(peer)
            && usize::from(mtu) < known.get(now, link)
        {
            known.lower(now, mtu.max(least));
            self.count(Counter::IcmpTooBig);
        }
    }
}
