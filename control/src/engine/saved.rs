//! How IKE SAs outlive the process: they are saved into the shared memory before anything that came
//! of a change is sent, and restored by the process that follows.

use std::collections::HashMap;

use culvert_api::Happening;
use culvert_ike::{IkeSaId, IkeState, Snapshot};
use culvert_shm::saved::SAVED_OCTETS_MAX;
use culvert_shm::{ControlView, Saved, Shelf};
use zeroize::Zeroizing;

use super::Engine;
use crate::{clock, convert};

/// Where they are saved.
const SHELF: Shelf = Shelf::IkeSas;

/// Where the snapshot of each IKE SA lies.
pub(super) struct Saver {
    slots: HashMap<IkeSaId, u32>,
    /// Slots of IKE SAs that could not be restored; kept while their SAs go on as orphans.
    lost: Vec<u32>,
    last_name: u64,
    buffer: Zeroizing<Vec<u8>>,
}

impl Default for Saver {
    fn default() -> Self {
        let buffer = Zeroizing::new(vec![0; SAVED_OCTETS_MAX]);
        Self { slots: HashMap::new(), lost: Vec::new(), last_name: 0, buffer }
    }
}

impl Saver {
    /// Saves one IKE SA; `None` marks what is saved of it as past.
    fn save(&mut self, view: &mut ControlView, ike: IkeSaId, len: Option<usize>) {
        let slot = match self.slots.get(&ike) {
            Some(slot) => *slot,
            None => match view.take_saved_slot(SHELF) {
                Ok(slot) => *self.slots.entry(ike).or_insert(slot),
                Err(error) => {
                    tracing::error!(%ike, %error, "an IKE SA will not outlive this process");
                    return;
                }
            },
        };
        let Some(octets) = len.and_then(|len| self.buffer.get(..len)) else {
            tracing::error!(%ike, "an IKE SA will not outlive this process: it is too large");
            view.lose_saved(SHELF, slot);
            return;
        };
        if let Err(error) = view.save(SHELF, slot, octets) {
            tracing::error!(%ike, %error, "an IKE SA will not outlive this process");
        }
    }
}

impl Engine {
    /// Saves every IKE SA that has changed. Called before anything is sent.
    pub(super) fn save(&mut self) {
        let Some(view) = self.services.forwarding.view_mut() else { return };
        let last_name = self.endpoint.last_name();
        if self.saver.last_name != last_name {
            self.saver.last_name = last_name;
            view.note_last_name(last_name);
        }
        loop {
            let (ike, len) = match self.endpoint.poll_snapshot(&mut self.saver.buffer) {
                None => return,
                Some(Snapshot::Of(ike, octets)) => (ike, Some(octets.len())),
                Some(Snapshot::TooLong(ike)) => (ike, None),
                Some(Snapshot::Gone(ike)) => {
                    if let Some(slot) = self.saver.slots.remove(&ike) {
                        view.free_saved_slot(SHELF, slot);
                    }
                    continue;
                }
            };
            self.saver.save(view, ike, len);
        }
    }

    /// Restores what an earlier control process saved.
    pub(super) fn restore(&mut self) {
        let Some(view) = self.services.forwarding.view() else { return };
        self.endpoint.skip_names(view.last_name());
        // First the connections and keys that the IKE SAs may belong to.
        let rests = self.restore_said();
        let Some(view) = self.services.forwarding.view() else { return };
        let saved: Vec<(u32, Saved)> = view.saved(SHELF).collect();
        let mut restored = Vec::new();
        for (slot, saved) in saved {
            let octets = match saved {
                Saved::Octets(octets) => octets,
                Saved::Lost => {
                    tracing::error!("the snapshot of an IKE SA is lost; its SAs are orphans");
                    self.saver.lost.push(slot);
                    continue;
                }
            };
            match self.endpoint.restore(&octets, &mut self.services) {
                Ok(ike) => {
                    self.saver.slots.insert(ike, slot);
                    restored.push(ike);
                }
                Err(error) => {
                    tracing::error!(%error, "an IKE SA cannot be restored; its SAs are orphans");
                    self.saver.lost.push(slot);
                }
            }
        }
        self.services.forwarding.end_unclaimed(!self.saver.lost.is_empty());
        self.know_restored();
        self.restore_rests(rests);
        self.restored = restored;
    }

    /// Tells of what was restored, and lets it stand.
    fn know_restored(&mut self) {
        let (mut ike_sas, mut child_sas) = (0, 0);
        // Of one whose peer is about to be authenticated, events will tell.
        let sas = self.endpoint.sas().filter(|sa| sa.state != IkeState::HalfOpen);
        for sa in sas.collect::<Vec<_>>() {
            ike_sas += 1;
            self.known.ike_up(&sa);
            for child in &sa.children {
                child_sas += 1;
                self.starts.up(&sa.connection, &child.name, sa.id, child.since);
                let metered = self.is_metered(&sa.connection, &child.name);
                self.known.child_up(&sa, child, metered);
            }
        }
        let orphans = self.services.forwarding.orphans().len() as u64;
        if ike_sas + orphans > 0 {
            self.note(None, None, Happening::Restored { ike_sas, child_sas, orphans });
        }
    }

    /// Goes on with what was restored, now that messages can be sent. Meanwhile workers may have moved
    /// peers, and connections may have gone.
    pub(super) fn resume(&mut self) {
        let now = clock::now();
        let restored = std::mem::take(&mut self.restored);
        for ike in &restored {
            let Some(peer) = self.services.forwarding.peer_of(*ike) else { continue };
            let Some((_, path)) = self.services.forwarding.moved(peer) else { continue };
            if path.conn.is_none_or(|conn| self.tcp.is_open(conn)) {
                let path = convert::child_path(&path);
                self.endpoint.path_moved(now, *ike, &path, &mut self.services);
            }
        }
        self.endpoint.resume(now, &mut self.services);
        self.end_restored_without_key(now, &restored);
        let conns = self.endpoint.sas().filter(|sa| restored.contains(&sa.id));
        let conns: Vec<_> = conns.filter_map(|sa| sa.path.conn).collect();
        for conn in conns.into_iter().filter(|conn| !self.tcp.is_open(convert::conn(*conn))) {
            self.endpoint.tcp_closed(now, conn, &mut self.services);
        }
    }

    /// Frees the slots of IKE SAs that were lost, once none of their SAs is left.
    pub(super) fn tend_saved(&mut self) {
        if self.services.forwarding.orphans().len() == 0
            && let Some(view) = self.services.forwarding.view_mut()
        {
            self.saver.lost.drain(..).for_each(|slot| view.free_saved_slot(SHELF, slot));
        }
    }

    /// Forgets all that is saved.
    pub(super) fn forget_saved(&mut self) {
        self.tend_saved();
        let Some(view) = self.services.forwarding.view_mut() else { return };
        self.saver.slots.drain().for_each(|(_, slot)| view.free_saved_slot(SHELF, slot));
    }
}
