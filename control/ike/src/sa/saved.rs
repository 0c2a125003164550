//! A session as octets, for the control process that follows this one, and back.
//!
//! What is saved is the session as it stands, windows, keys and exchanges under way included. Not
//! saved are sessions whose peer is not authenticated yet, which the initiator begins anew, and
//! fragments of a message, which come again. But one that is to take the place of another is saved
//! from IKE_AUTH on: once the peer has answered that, it may send on the new CHILD SA (RFC 7296,
//! 2.8.3). Configuration is saved by its names: the process that follows looks them up in its own.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::exchange::{Asked, Task};
use super::{Cx, Phase, Session};
use crate::config::{ChildConfig, ConnectionConfig, Lifetime};
use crate::event::{DownReason, IkeSaId};
use crate::host::{ChildClaim, Host};
use crate::id::IdentityPattern;

/// The form of what is saved. Raise it with every change of what a session consists of: a snapshot of
/// another form is refused, since numbers read wrongly could be used twice.
const FORM: u32 = 3;

/// Added to the counter of IVs when a session is restored: should its last snapshot be older than it
/// can be, no IV is used twice all the same (RFC 5282, 3.1).
const IV_STEP: u64 = 1 << 32;

/// No process comes to so many names, and no IKE SA to so many IVs: a snapshot that says so is damaged,
/// and who goes on with it would count past the end.
const COUNT_MAX: u64 = 1 << 63;

/// Why a snapshot is not restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It was made by another version.
    #[error("it has form {0}, this version reads {FORM}; the programs were replaced meanwhile")]
    Form(u32),
    /// It is no snapshot.
    #[error("it cannot be read")]
    Damaged,
    /// An IKE SA of this name or SPI is there already.
    #[error("IKE SA {0} is there already")]
    Twice(IkeSaId),
}

impl Session {
    /// Whether it is to be saved: its peer is authenticated, or was a moment ago, or is about to be
    /// once more.
    pub(crate) const fn is_saved(&self) -> bool {
        match self.phase {
            Phase::Established | Phase::Deleting(_) => true,
            // Not that of a stranger who was refused: a flood of them would take up all the room.
            Phase::Closed(_) => self.remote_id.is_some(),
            Phase::Auth(_) => self.succession.is_some(),
            Phase::Opening(_) | Phase::Init(_) | Phase::HalfOpen(_) | Phase::Dead => false,
        }
    }

    /// Whether what was read can be gone on with.
    fn is_whole(&self) -> bool {
        match self.phase {
            Phase::Established | Phase::Deleting(_) => self.sa.is_some(),
            // It ends when the answer comes, or does not.
            Phase::Auth(_) => {
                let asked = self.outstanding.as_ref().map(|o| &o.asked);
                self.is_saved() && self.sa.is_some() && matches!(asked, Some(Asked::Auth))
            }
            _ => self.is_saved(),
        }
    }

    /// Writes a snapshot into `buffer` and gives it; `None` when it does not fit.
    pub(crate) fn save<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        postcard::to_slice(&(FORM, self), buffer).ok().map(|octets| &*octets)
    }

    /// The session of a snapshot, not yet fit for use: see [`Session::take_up`].
    pub(crate) fn restore(octets: &[u8]) -> Result<Self, RestoreError> {
        let (form, octets) =
            postcard::take_from_bytes::<u32>(octets).map_err(|_| RestoreError::Damaged)?;
        if form != FORM {
            return Err(RestoreError::Form(form));
        }
        let (mut session, rest) =
            postcard::take_from_bytes::<Self>(octets).map_err(|_| RestoreError::Damaged)?;
        if !rest.is_empty() || !session.is_whole() {
            return Err(RestoreError::Damaged);
        }
        if !session.skip_ivs() || session.last_name() >= COUNT_MAX {
            return Err(RestoreError::Damaged);
        }
        Ok(session)
    }

    /// Leaves IVs of all its keys out; `false` if one has none left.
    fn skip_ivs(&mut self) -> bool {
        let rival = match self.outstanding.as_mut().map(|o| &mut o.asked) {
            Some(Asked::Ike(request)) => request.rival_sa(),
            _ => None,
        };
        let retired = self.retired.iter_mut().map(|retired| &mut retired.sa);
        let mut all = self.sa.iter_mut().chain(retired).chain(rival);
        all.all(|sa| sa.skip_ivs(IV_STEP, COUNT_MAX))
    }

    /// The highest name that it knows of anything.
    pub(crate) fn last_name(&self) -> u64 {
        self.children.iter().map(|child| child.id.0).fold(self.id.0, u64::max)
    }

    /// Finds its configuration and its SAs in the data plane again. What is configured no more, or
    /// lost, is deleted at the peer once [`Session::resume`] is called.
    pub(crate) fn take_up(&mut self, host: &mut dyn Host) {
        let named = self.connection.as_ref().map(|c| c.name.clone()).unwrap_or_default();
        let connection = host.connection(&named).filter(|c| self.is_of(c));
        match connection {
            Some(connection) => {
                self.relink(&connection);
                self.connection = Some(connection);
            }
            None => self.unconfigured = !matches!(self.phase, Phase::Closed(_)),
        }
        for spi_in in self.reserved() {
            host.claim_spi(self.id, spi_in);
        }
        let mut lost = Vec::new();
        for child in &self.children {
            let claim = ChildClaim {
                id: child.id,
                ike: self.id,
                spi_in: child.spi_in,
                spi_out: child.spi_out,
                local_ts: &child.local_ts,
                remote_ts: &child.remote_ts,
                outbound: child.waits_for.is_none(),
            };
            if !host.claim_child(&claim) && child.leaving.is_none() {
                lost.push((child.id, DownReason::LostByDataplane));
            } else if child.config.local_ts.is_empty() && child.leaving.is_none() {
                lost.push((child.id, DownReason::Unconfigured));
            }
        }
        let deletes = lost.into_iter().map(|(id, reason)| Task::DeleteChild(id, reason));
        self.tasks.extend(deletes);
    }

    /// Goes on where the process before was ended. What waits for an answer is sent once more, over
    /// TCP too: nobody knows whether it had gone out, and to the peer it is a repetition.
    pub(crate) fn resume(&mut self, cx: &mut Cx<'_>) {
        self.transmit(cx);
        self.repeat_deletes(cx);
        self.set_child_path(cx);
        self.spread_liveness(cx);
        if self.link.request().is_some() {
            // Whatever opens for the request of the process before, nobody knows any more.
            self.reconnect(cx);
        }
        if std::mem::take(&mut self.unconfigured) {
            self.terminate(cx, DownReason::Unconfigured);
        }
        self.pump(cx);
    }

    /// Whether the connection is still one for these two.
    fn is_of(&self, connection: &ConnectionConfig) -> bool {
        let local = self.local_id.as_ref().is_none_or(|id| id.same_as(&connection.local_id));
        local && self.remote_id.as_ref().is_none_or(|id| connection.remote_id.matches(id))
    }

    /// Puts the configuration's children in the place of their names.
    fn relink(&mut self, connection: &ConnectionConfig) {
        let find = |config: &mut Arc<ChildConfig>| {
            let found = connection.children.iter().find(|known| known.name == config.name);
            if let Some(found) = found {
                *config = Arc::clone(found);
            }
            found.is_some()
        };
        for child in &mut self.children {
            find(&mut child.config);
        }
        if let Phase::Auth(auth) = &mut self.phase {
            find(&mut auth.child);
        }
        if let Some(Asked::Child(request)) = self.outstanding.as_mut().map(|o| &mut o.asked) {
            find(&mut request.wish.config);
        }
        let mut is_known = |task: &mut Task| match task {
            Task::Child(wish) => find(&mut wish.config),
            _ => true,
        };
        self.tasks.retain_mut(&mut is_known);
        self.later.retain_mut(|(_, task)| is_known(task));
        if let Some(succession) = &mut self.succession {
            succession.children.retain_mut(find);
        }
    }

    /// Inbound SPIs that exchanges under way have reserved.
    fn reserved(&self) -> Vec<u32> {
        let asked = match (self.outstanding.as_ref().map(|o| &o.asked), &self.phase) {
            (Some(Asked::Child(request)), _) => Some(request.spi_in),
            (Some(Asked::DeleteStray(spi_in)), _) => Some(*spi_in),
            (_, Phase::Auth(auth)) => auth.spi_in,
            _ => None,
        };
        let tasks = self.tasks.iter().filter_map(|task| match task {
            Task::DeleteStray(spi_in) => Some(*spi_in),
            _ => None,
        });
        asked.into_iter().chain(tasks).collect()
    }
}

/// A connection of which only the name is known.
fn unknown_connection(name: &str) -> Arc<ConnectionConfig> {
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED).into();
    let mut connection = ConnectionConfig::new(name, nobody, IdentityPattern::Any);
    connection.lifetime = Lifetime::UNLIMITED;
    Arc::new(connection)
}

/// A child of which only the name is known.
fn unknown_child(name: &str) -> Arc<ChildConfig> {
    Arc::new(ChildConfig::new(name, Vec::new(), Vec::new()))
}

/// A phase in which a session is saved.
pub(super) mod phase {
    use serde::ser::Error;
    use serde::{Deserializer, Serializer};

    use super::{Deserialize, DownReason, Phase, Serialize};
    use crate::sa::auth::Authenticating;
    use crate::time::Instant;

    #[derive(Serialize, Deserialize)]
    enum Saved<A> {
        Established,
        Deleting(DownReason),
        Closed(Instant),
        Auth(A),
    }

    pub(in super::super) fn serialize<S: Serializer>(
        phase: &Phase,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let saved: Saved<&Authenticating> = match phase {
            Phase::Established => Saved::Established,
            Phase::Deleting(reason) => Saved::Deleting(*reason),
            Phase::Closed(until) => Saved::Closed(*until),
            Phase::Auth(auth) => Saved::Auth(auth),
            Phase::Opening(_) | Phase::Init(_) | Phase::HalfOpen(_) | Phase::Dead => {
                return Err(S::Error::custom("nobody goes on with this"));
            }
        };
        saved.serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Phase, D::Error> {
        Ok(match Saved::deserialize(deserializer)? {
            Saved::Established => Phase::Established,
            Saved::Deleting(reason) => Phase::Deleting(reason),
            Saved::Closed(until) => Phase::Closed(until),
            Saved::Auth(auth) => Phase::Auth(Box::new(auth)),
        })
    }
}

/// A connection, saved by its name.
pub(super) mod connection {
    use serde::{Deserializer, Serializer};

    use super::{Arc, ConnectionConfig, Deserialize, Serialize, unknown_connection};

    pub(in super::super) fn serialize<S: Serializer>(
        connection: &Option<Arc<ConnectionConfig>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        connection.as_ref().map(|connection| &connection.name).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<ConnectionConfig>>, D::Error> {
        let name = <Option<&str>>::deserialize(deserializer)?;
        Ok(name.map(unknown_connection))
    }
}

/// A child, saved by its name.
pub(super) mod child {
    use serde::{Deserializer, Serializer};

    use super::{Arc, ChildConfig, Deserialize, unknown_child};

    pub(in super::super) fn serialize<S: Serializer>(
        child: &Arc<ChildConfig>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&child.name)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<ChildConfig>, D::Error> {
        <&str>::deserialize(deserializer).map(unknown_child)
    }
}

/// Children, saved by their names.
pub(super) mod children {
    use serde::{Deserializer, Serializer};

    use super::{Arc, ChildConfig, Deserialize, unknown_child};

    pub(in super::super) fn serialize<S: Serializer>(
        children: &[Arc<ChildConfig>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(children.iter().map(|child| &child.name))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Arc<ChildConfig>>, D::Error> {
        let names = <Vec<&str>>::deserialize(deserializer)?;
        Ok(names.into_iter().map(unknown_child).collect())
    }
}
