//! What was told of SAs that stand, so that a change can be told as one: from what, to what, by whom.

use std::collections::HashMap;

use culvert_api::Side;
use culvert_ike::{ChildId, ChildSnapshot, IkeSaId, IkeSnapshot};

use crate::convert::{self, Way};

/// A CHILD SA that stands.
pub(super) struct KnownChild {
    pub(super) ike: IkeSaId,
    pub(super) connection: String,
    pub(super) name: String,
    pub(super) spi_in: u32,
    /// Whether it may carry only so much.
    pub(super) metered: bool,
    /// Whether it is on its way out: somebody terminated it, or another one has its place.
    pub(super) leaving: bool,
    /// Why this side is rekeying it.
    pub(super) rekeying: Option<String>,
}

/// An IKE SA that stands.
pub(super) struct KnownIke {
    /// The initiator's and the responder's SPI.
    pub(super) spis: [String; 2],
    pub(super) remote_id: String,
    pub(super) way: Way,
    /// Why it could not be moved, as was told last; nothing since it went this way or was asked to move.
    pub(super) not_moved: Option<String>,
    /// Why this side is rekeying it.
    pub(super) rekeying: Option<String>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Known {
    pub(super) ikes: HashMap<IkeSaId, KnownIke>,
    pub(super) children: HashMap<ChildId, KnownChild>,
    /// Why something of a configured connection failed or ended last, since when nothing of it came up.
    pub(super) ends: HashMap<String, String>,
    /// IKE SAs that are being set up to take the place of others, and of which.
    pub(super) successors: HashMap<IkeSaId, IkeSaId>,
}

impl Known {
    /// An IKE SA stands.
    pub(super) fn ike_up(&mut self, sa: &IkeSnapshot) {
        let remote_id = sa.remote_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let known = KnownIke {
            spis: spis(sa),
            remote_id,
            way: convert::way(sa),
            not_moved: None,
            rekeying: None,
        };
        self.ikes.insert(sa.id, known);
    }

    /// A CHILD SA stands.
    pub(super) fn child_up(&mut self, sa: &IkeSnapshot, pair: &ChildSnapshot, metered: bool) {
        let known = KnownChild {
            ike: sa.id,
            connection: sa.connection.clone(),
            name: pair.name.clone(),
            spi_in: pair.spi_in,
            metered,
            leaving: false,
            rekeying: None,
        };
        self.children.insert(pair.id, known);
    }

    /// An IKE SA has new SPIs: the old ones, and who began why.
    pub(super) fn ike_rekeyed(
        &mut self,
        sa: &IkeSnapshot,
    ) -> ([String; 2], [String; 2], Side, Option<String>) {
        let new = spis(sa);
        let Some(known) = self.ikes.get_mut(&sa.id) else {
            return (Default::default(), new, Side::Peer, None);
        };
        let reason = known.rekeying.take();
        let by = if reason.is_some() { Side::Here } else { Side::Peer };
        (std::mem::replace(&mut known.spis, new.clone()), new, by, reason)
    }

    /// An IKE SA goes this way: the way it went, if it is another one.
    pub(super) fn moved(&mut self, ike: IkeSaId, way: Way) -> Option<Way> {
        let known = self.ikes.get_mut(&ike)?;
        known.not_moved = None;
        let old = std::mem::replace(&mut known.way, way);
        (!old.is_same(&way)).then_some(old)
    }

    /// An IKE SA could not be moved; whether that is news. UDP is tried again from TCP every few
    /// minutes, for months, and where it fails as it did before there is nothing to tell.
    pub(super) fn not_moved(&mut self, ike: IkeSaId, reason: &str) -> bool {
        let Some(known) = self.ikes.get_mut(&ike) else { return true };
        known.not_moved.replace(reason.to_owned()).as_deref() != Some(reason)
    }

    /// Somebody asks an IKE SA to move: what comes of it is news in any case.
    pub(super) fn asked_to_move(&mut self, ike: IkeSaId) {
        if let Some(known) = self.ikes.get_mut(&ike) {
            known.not_moved = None;
        }
    }

    /// An IKE SA is gone, and its CHILD SAs.
    pub(super) fn ike_gone(&mut self, ike: IkeSaId) {
        self.ikes.remove(&ike);
        self.children.retain(|_, child| child.ike != ike);
    }

    /// An IKE SA for which `counts` holds, with a pair of this child, if one stands.
    pub(super) fn standing(
        &self,
        connection: &str,
        child: &str,
        counts: impl Fn(IkeSaId) -> bool,
    ) -> Option<IkeSaId> {
        let mut pairs = self.children.values();
        let found = pairs
            .find(|pair| pair.connection == connection && pair.name == child && counts(pair.ike));
        found.map(|pair| pair.ike)
    }

    /// Another pair has the place of this one.
    pub(super) fn replaced(&mut self, child: ChildId) {
        if let Some(known) = self.children.get_mut(&child) {
            known.leaving = true;
        }
    }

    /// Somebody terminates a pair: the name of its child, if with it the last pair of that goes.
    pub(super) fn left_without(&mut self, child: ChildId) -> Option<String> {
        self.replaced(child);
        let gone = self.children.get(&child)?;
        let same = |pair: &KnownChild| {
            pair.connection == gone.connection && pair.name == gone.name && !pair.leaving
        };
        (!self.children.values().any(same)).then(|| gone.name.clone())
    }

    /// The IKE SA that is being set up in place of this one.
    pub(super) fn successor(&self, old: IkeSaId) -> Option<IkeSaId> {
        self.successors.iter().find(|(_, other)| **other == old).map(|(new, _)| *new)
    }
}

fn spis(sa: &IkeSnapshot) -> [String; 2] {
    [format!("{:016x}", sa.spi_i), format!("{:016x}", sa.spi_r)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const IKE: IkeSaId = IkeSaId(1);

    fn way(transport: culvert_api::Transport) -> Way {
        let address = "192.0.2.1:4500".parse().expect("an address");
        Way { transport, local: address, remote: address }
    }

    /// A night on TCP where UDP is blocked: one line, and one more when something changes.
    #[test]
    fn a_probe_that_fails_as_before_is_no_news() {
        let mut known = Known::default();
        let tcp = way(culvert_api::Transport::Tcp);
        let (spis, remote_id) = Default::default();
        let ike = KnownIke { spis, remote_id, way: tcp, not_moved: None, rekeying: None };
        known.ikes.insert(IKE, ike);
        let night: Vec<bool> = (0..48).map(|_| known.not_moved(IKE, "no answer")).collect();
        assert_eq!(night.iter().filter(|news| **news).count(), 1);
        assert!(night[0]);
        assert!(known.not_moved(IKE, "the peer says UNACCEPTABLE_ADDRESSES"), "another outcome");
        assert!(known.not_moved(IKE, "no answer"));
        known.asked_to_move(IKE);
        assert!(known.not_moved(IKE, "no answer"), "somebody wants to know");
        known.moved(IKE, way(culvert_api::Transport::Udp));
        known.moved(IKE, tcp);
        assert!(known.not_moved(IKE, "no answer"), "it was on UDP in between");
    }
}
