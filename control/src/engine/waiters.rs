//! Clients that wait for what they asked for.

use culvert_api::{Outcome, Refusal, Transport};
use culvert_ike::{ChildId, IkeSaId};
use tokio::sync::oneshot;

/// Clients that may wait at once. Whoever comes later is told that it has begun, and no more.
const WAITERS_MAX: usize = 1024;

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Awaited {
    /// A child of this IKE SA, by name, stands.
    ChildUp(IkeSaId, String),
    /// Another pair stands in place of this one.
    ChildRekeyed(IkeSaId, ChildId),
    /// This pair is gone.
    ChildGone(IkeSaId, ChildId),
    /// The IKE SA has new keys.
    IkeRekeyed(IkeSaId),
    /// Another IKE SA has the place of this one.
    Reauthenticated(IkeSaId),
    /// The IKE SA goes another way, which should be this one.
    Moved(IkeSaId, Transport),
    /// The IKE SA is gone.
    IkeGone(IkeSaId),
}

impl Awaited {
    /// The IKE SA that it is about: with its end everything is decided.
    pub(super) fn ike(&self) -> IkeSaId {
        match self {
            Self::ChildUp(ike, _)
            | Self::ChildRekeyed(ike, _)
            | Self::ChildGone(ike, _)
            | Self::IkeRekeyed(ike)
            | Self::Reauthenticated(ike)
            | Self::Moved(ike, _)
            | Self::IkeGone(ike) => *ike,
        }
    }
}

/// What became of it.
pub(super) type Decided = Result<Outcome, Refusal>;

/// All who wait.
#[derive(Default)]
pub(super) struct Waiters {
    list: Vec<(Awaited, oneshot::Sender<Decided>)>,
}

impl Waiters {
    /// One more; `None` if too many wait already.
    pub(super) fn add(&mut self, awaited: Awaited) -> Option<oneshot::Receiver<Decided>> {
        if self.list.len() >= WAITERS_MAX {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.list.push((awaited, sender));
        Some(receiver)
    }

    /// Tells those who wait for something of which `concerned` holds.
    pub(super) fn tell(&mut self, concerned: impl Fn(&Awaited) -> bool, decided: &Decided) {
        for (_, sender) in self.list.extract_if(.., |(awaited, _)| concerned(awaited)) {
            // Who asked may be gone.
            let _ = sender.send(decided.clone());
        }
    }

    /// Forgets those who have gone.
    pub(super) fn tidy(&mut self) {
        self.list.retain(|(_, sender)| !sender.is_closed());
    }
}
