//! What SAs have carried: counted by workers in the shared memory, told to the protocol, which rekeys
//! and ends them by it.

use culvert_ike::ChildId;
use culvert_shm::SlotRef;

use super::Engine;
use crate::clock;

impl Engine {
    /// Whether a child may carry only so much.
    pub(super) fn is_metered(&self, connection: &str, child: &str) -> bool {
        let children = self.services.config.connection(connection).map(|found| &found.ike.children);
        let config = children.and_then(|list| list.iter().find(|config| config.name == child));
        config.is_some_and(|config| {
            [config.octets, config.packets]
                .iter()
                .any(|volume| volume.rekey.is_some() || volume.life.is_some())
        })
    }

    /// Tells the protocol how much was carried, where that matters.
    pub(super) fn tell_usage(&mut self) {
        let now = clock::now();
        let metered = self.known.children.iter().filter(|(_, known)| known.metered);
        let used: Vec<_> =
            metered.map(|(child, known)| (known.ike, *child, self.counts(known.spi_in))).collect();
        for (ike, child, counts) in used {
            let octets = counts.octets_in.max(counts.octets_out);
            let packets = counts.packets_in.max(counts.packets_out);
            self.endpoint.child_used(now, ike, child, (octets, packets), &mut self.services);
        }
    }

    /// An SA has nearly used up its sequence numbers: without rekey it would end there (RFC 4303,
    /// 3.3.3).
    pub(super) fn sequence_low(&mut self, slot: SlotRef) {
        let Some(child) = self.services.forwarding.child_of(slot) else { return };
        self.rekey_for(child, "its sequence numbers are nearly used up");
    }

    fn rekey_for(&mut self, child: ChildId, reason: &str) {
        // It may be on its way out already.
        if self.endpoint.rekey_child(clock::now(), child, &mut self.services).is_err() {
            return;
        }
        self.flush();
        if let Some(known) = self.known.children.get_mut(&child) {
            known.rekeying = Some(reason.to_owned());
        }
    }
}
