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
    /// Why this side is rekeying it.
    pub(super) rekeying: Option<String>,
}

/// An IKE SA that stands.
pub(super) struct KnownIke {
    /// The initiator's and the responder's SPI.
    pub(super) spis: [String; 2],
    pub(super) remote_id: String,
    pub(super) way: Way,
    /// Why this side is rekeying it.
    pub(super) rekeying: Option<String>,
}

/// All of them.
#[derive(Default)]
pub(super) struct Known {
    pub(super) ikes: HashMap<IkeSaId, KnownIke>,
    pub(super) children: HashMap<ChildId, KnownChild>,
    /// IKE SAs that are being set up to take the place of others, and of which.
    pub(super) successors: HashMap<IkeSaId, IkeSaId>,
}

impl Known {
    /// An IKE SA stands.
    pub(super) fn ike_up(&mut self, sa: &IkeSnapshot) {
        let remote_id = sa.remote_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let known = KnownIke { spis: spis(sa), remote_id, way: convert::way(sa), rekeying: None };
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
        let old = std::mem::replace(&mut known.way, way);
        (!old.is_same(&way)).then_some(old)
    }

    /// An IKE SA is gone, and its CHILD SAs.
    pub(super) fn ike_gone(&mut self, ike: IkeSaId) {
        self.ikes.remove(&ike);
        self.children.retain(|_, child| child.ike != ike);
    }

    /// The IKE SA that is being set up in place of this one.
    pub(super) fn successor(&self, old: IkeSaId) -> Option<IkeSaId> {
        self.successors.iter().find(|(_, other)| **other == old).map(|(new, _)| *new)
    }
}

fn spis(sa: &IkeSnapshot) -> [String; 2] {
    [format!("{:016x}", sa.spi_i), format!("{:016x}", sa.spi_r)]
}
