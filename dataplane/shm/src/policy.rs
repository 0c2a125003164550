//! Policy slots: which SA takes which inner packets.

use crate::slot::{Slot, SlotRef};
use crate::types::{Prefix, Selector};
use crate::words::{Record, WordReader, WordWriter};

/// An outbound policy: packets from the local selector to the remote prefix take this SA. Without
/// one it is a *trap*: the packets are dropped, and control is told to set an SA up.
///
/// Control cuts ranges of remote addresses into prefixes, so that a worker can look them up by
/// longest match; of several policies that match, the lowest priority number wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Destinations.
    pub remote: Prefix,
    /// Destination ports, first and last; 0 to 65,535: any.
    pub remote_ports: (u16, u16),
    /// Sources, with protocol and source ports.
    pub local: Selector,
    /// The SA; [`Policy::TRAP`] if there is none.
    pub sa: SlotRef,
    /// The worker that owns the SA. Of a trap it means nothing.
    pub owner: u16,
    /// The lowest wins.
    pub priority: u32,
}

impl Policy {
    /// Stands for the SA of a trap. No table has so many slots.
    pub const TRAP: SlotRef = SlotRef { index: u32::MAX, generation: 0 };

    /// Whether packets have to wait for an SA.
    #[inline]
    #[must_use]
    pub fn is_trap(&self) -> bool {
        self.sa.index == Self::TRAP.index
    }
}

impl Record for Policy {
    const WORDS: usize = Prefix::WORDS + 1 + Selector::WORDS + SlotRef::WORDS + 1;

    fn encode(&self, out: &mut WordWriter<'_>) {
        self.remote.encode(out);
        out.put_quad([self.remote_ports.0, self.remote_ports.1, self.owner, 0]);
        self.local.encode(out);
        self.sa.encode(out);
        out.put(u64::from(self.priority));
    }

    fn decode(words: &mut WordReader<'_>) -> Option<Policy> {
        let remote = Prefix::decode(words)?;
        let [first, last, owner, _] = words.take_quad()?;
        Some(Policy {
            remote,
            remote_ports: (first, last),
            local: Selector::decode(words)?,
            sa: SlotRef::decode(words)?,
            owner,
            priority: u32::try_from(words.take()?).ok()?,
        })
    }
}

/// A policy slot, all of it control's.
#[repr(C, align(64))]
pub(crate) struct PolicySlot {
    pub(crate) config: Slot<{ Policy::WORDS }>,
}
