//! How a control process follows another: what is saved for it, and claims to the slots that
//! snapshots of IKE SAs name.

use std::sync::atomic::Ordering;

use super::{ControlView, Table, TableFull};
use crate::saved::{self, SaveError, Saved, Shelf};
use crate::slot::{Slot, SlotRef, SlotState};

/// The slots that are reserved.
pub(super) fn reserved<'a, const N: usize>(slots: impl Iterator<Item = &'a Slot<N>>) -> Vec<u32> {
    let reserved = (0u32..).zip(slots);
    let reserved = reserved.filter(|(_, slot)| slot.state().1 == Some(SlotState::Reserved));
    reserved.map(|(index, _)| index).collect()
}

impl ControlView {
    // Snapshots.

    /// Takes a slot for the snapshots of one thing.
    ///
    /// # Errors
    /// [`TableFull`] when the shelf has no other.
    pub fn take_saved_slot(&mut self, shelf: Shelf) -> Result<u32, TableFull> {
        let full = TableFull { table: "snapshots", slots: self.region.saved_slots(shelf).len() };
        self.stores[shelf as usize].take_slot().ok_or(full)
    }

    /// Puts a snapshot in the place of the one that the slot holds. Should this process die in the
    /// middle, its successor finds the old one or the new one.
    ///
    /// # Errors
    /// [`SaveError`] when there is no room; the slot then holds [`Saved::Lost`], and certainly no
    /// old snapshot.
    pub fn save(&mut self, shelf: Shelf, slot: u32, octets: &[u8]) -> Result<(), SaveError> {
        self.stores[shelf as usize].write(&self.region, slot, octets)
    }

    /// Overwrites a slot's snapshot, which is past, and leaves [`Saved::Lost`] in its place.
    pub fn lose_saved(&mut self, shelf: Shelf, slot: u32) {
        self.stores[shelf as usize].lose(&self.region, slot);
    }

    /// Overwrites a slot's snapshot and gives the slot free.
    pub fn free_saved_slot(&mut self, shelf: Shelf, slot: u32) {
        self.stores[shelf as usize].free_slot(&self.region, slot);
    }

    /// What each slot of a shelf that is in use holds.
    pub fn saved(&self, shelf: Shelf) -> impl Iterator<Item = (u32, Saved)> + '_ {
        let slots = 0..self.region.layout().saved(shelf).0;
        slots.filter_map(move |slot| Some((slot, saved::read(&self.region, shelf, slot)?)))
    }

    /// The highest name that was given to anything, as this or an earlier control process said.
    pub fn last_name(&self) -> u64 {
        self.region.header().control.last_name.load(Ordering::Relaxed)
    }

    /// Notes the highest name that was given to anything; before anybody learns it.
    pub fn note_last_name(&mut self, name: u64) {
        self.region.header().control.last_name.store(name, Ordering::Release);
    }

    // Claims.

    /// Takes an orphan into use again, for a control process that knows it. [`ControlView::collect`]
    /// tells its owner: nobody knows whether the predecessor has come to that.
    pub fn claim_sa(&mut self, sa: SlotRef) {
        if self.claim(Table::Sa, sa)
            && let Some((_, _, config)) = self.sa(sa.index)
        {
            self.untold_sas.insert((config.owner, sa.index));
        }
    }

    /// Takes the slot of this inbound SPI over as reserved, if a predecessor had only reserved it.
    pub fn claim_reserved(&mut self, spi: u32) -> Option<SlotRef> {
        let index = spi & (self.region.sas().len() as u32).wrapping_sub(1);
        let at = self.left_reserved.iter().position(|&left| left == index)?;
        self.left_reserved.swap_remove(at);
        let (generation, _) = self.state(Table::Sa, index);
        Some(SlotRef { index, generation })
    }

    /// Frees the SA slots that a predecessor had reserved and that were not claimed.
    pub fn release_unclaimed(&mut self) {
        for index in std::mem::take(&mut self.left_reserved) {
            let (generation, _) = self.state(Table::Sa, index);
            self.free(Table::Sa, SlotRef { index, generation });
        }
    }

    /// Whether the slot was an orphan.
    fn claim(&mut self, table: Table, slot: SlotRef) -> bool {
        let orphan = self.state(table, slot.index) == (slot.generation, Some(SlotState::Orphan));
        if orphan {
            self.set_state(table, slot, SlotState::Live);
        }
        orphan
    }

    /// As [`ControlView::claim_sa`], a peer; it is looked at with its SAs.
    pub fn claim_peer(&mut self, peer: SlotRef) {
        self.claim(Table::Peer, peer);
    }

    /// As [`ControlView::claim_sa`], a policy, of which all workers are told.
    pub fn claim_policy(&mut self, policy: SlotRef) {
        if self.claim(Table::Policy, policy) {
            self.tell_of_policy_later(policy.index);
        }
    }
}
