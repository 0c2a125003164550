//! What outlives the process: snapshots of sessions, given out as they change, and taken back.

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hasher};

use super::Endpoint;
use crate::event::IkeSaId;
use crate::host::Host;
use crate::sa::{Cx, RestoreError, Session};
use crate::time::Instant;

/// A change that the process after this one has to know of.
#[derive(Debug, PartialEq, Eq)]
pub enum Snapshot<'a> {
    /// The IKE SA is in this state; it replaces what was saved of it before. Holds keys.
    Of(IkeSaId, &'a [u8]),
    /// The IKE SA has changed, and its snapshot does not fit: what was saved of it is past.
    TooLong(IkeSaId),
    /// The IKE SA is gone.
    Gone(IkeSaId),
}

/// Which sessions have changed since they were given out, and what was given out.
#[derive(Default)]
pub(super) struct Snapshots {
    changed: BTreeSet<IkeSaId>,
    /// A hash of the last snapshot of each, so that one that has not changed is not written again.
    given: HashMap<IkeSaId, u64>,
    /// Restored, and not resumed yet.
    restored: Vec<IkeSaId>,
}

impl Snapshots {
    pub(super) fn changed(&mut self, ike: IkeSaId) {
        self.changed.insert(ike);
    }
}

impl Endpoint {
    /// The next IKE SA to be saved, written into `buffer`.
    ///
    /// Drain this *before* [`Self::poll_transmit`], and hand nothing to the network until what it
    /// gives is saved: a peer that has seen a message must not meet a process that has forgotten it.
    /// Then no Message ID is used for two requests, no response is made twice, and no IV of an IKE SA
    /// repeats, whenever the process ends. Save [`Self::last_name`] too.
    pub fn poll_snapshot<'b>(&mut self, buffer: &'b mut [u8]) -> Option<Snapshot<'b>> {
        while let Some(ike) = self.snapshots.changed.pop_first() {
            let Some(session) = self.table.get(ike) else {
                if self.snapshots.given.remove(&ike).is_some() {
                    return Some(Snapshot::Gone(ike));
                }
                continue;
            };
            if !session.is_saved() {
                continue;
            }
            let Some(len) = session.save(buffer).map(<[u8]>::len) else {
                self.snapshots.given.insert(ike, 0);
                return Some(Snapshot::TooLong(ike));
            };
            let octets = buffer.get(..len)?;
            let mut hasher = DefaultHasher::new();
            hasher.write(octets);
            let hash = hasher.finish();
            if self.snapshots.given.insert(ike, hash) != Some(hash) {
                return buffer.get(..len).map(|octets| Snapshot::Of(ike, octets));
            }
        }
        None
    }

    /// The last name that was given to an IKE SA, a CHILD SA or a request for a connection.
    pub const fn last_name(&self) -> u64 {
        self.next_id
    }

    /// Gives no name up to `last` any more: an earlier process has given it.
    pub const fn skip_names(&mut self, last: u64) {
        if self.next_id < last {
            self.next_id = last;
        }
    }

    /// Takes up an IKE SA that an earlier process saved. The host is asked to claim its CHILD SAs,
    /// and can look at it in [`Self::sas`] from now on; call [`Self::resume`] when messages can be
    /// sent again.
    ///
    /// # Errors
    /// The octets are no snapshot of this version, or the IKE SA is there already.
    pub fn restore(&mut self, octets: &[u8], host: &mut dyn Host) -> Result<IkeSaId, RestoreError> {
        let mut session = Session::restore(octets)?;
        let ike = session.id;
        let known = session.spis().into_iter().any(|spi| self.table.by_spi(spi).is_some());
        if known || self.table.get(ike).is_some() {
            return Err(RestoreError::Twice(ike));
        }
        session.take_up(host);
        self.skip_names(session.last_name());
        self.table.insert(session);
        // Of which snapshot is not known; but there is one.
        self.snapshots.given.insert(ike, 0);
        self.snapshots.changed(ike);
        self.snapshots.restored.push(ike);
        Ok(ike)
    }

    /// Goes on with what was restored: requests that wait for an answer are sent once more, TCP
    /// connections that were asked for are asked for again, and what is configured no more is
    /// deleted.
    pub fn resume(&mut self, now: Instant, host: &mut dyn Host) {
        for ike in std::mem::take(&mut self.snapshots.restored) {
            self.with(now, ike, host, |session: &mut Session, cx: &mut Cx<'_>| session.resume(cx));
        }
    }
}
