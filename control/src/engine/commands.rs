//! What people ask for: setting up, taking down, new keys, other ways.
//!
//! Each of these begins at once and is done later; [`super::happenings`] tells those who wait.

use std::collections::HashSet;
use std::net::IpAddr;

use culvert_api::{Code, Command, Outcome, Refusal, Target, Transport};
use culvert_ike::{
    ChildId, IkeSaId, IkeSnapshot, IkeState, InitiateError, Instant, PathChoice, TransportChoice,
};
use culvert_shm::{Name, SlotRef};
use tokio::sync::oneshot;

use super::Engine;
use super::happenings::of_ike;
use super::waiters::{Awaited, Decided};
use crate::{clock, convert};

/// What became of a command so far, for one SA.
pub struct Begun {
    /// That it has begun, or is done already.
    pub outcome: Outcome,
    /// Says how it ended; absent when it is done already, or too many clients wait.
    pub end: Option<oneshot::Receiver<Decided>>,
}

impl Begun {
    fn done(outcome: Outcome) -> Self {
        Self { outcome, end: None }
    }
}

/// Of several: what has begun, and what could not.
pub type Beginnings = Vec<Result<Begun, Refusal>>;

impl Engine {
    /// Begins what a command asks for, one beginning for each SA that it is about; never none.
    ///
    /// # Errors
    /// Nothing of it can be begun.
    pub fn act(&mut self, command: &Command) -> Result<Beginnings, Refusal> {
        let begun = match command {
            Command::Initiate { connection, child, .. } => {
                vec![Ok(self.initiate(connection, child.as_deref())?)]
            }
            Command::Terminate { target, .. } => self.terminate(target)?,
            Command::Rekey { target, .. } => self.rekey(target)?,
            Command::Reauthenticate { target, .. } => self.reauthenticate(target)?,
            Command::Move { target, to, local, remote, .. } => {
                let sas = self.established_of(target)?;
                sas.iter().map(|sa| self.move_one(sa, *to, (*local, *remote))).collect()
            }
            _ => return Err(Refusal::new(Code::BadRequest, "this command begins nothing")),
        };
        self.flush();
        Ok(begun)
    }

    /// Begins to set a child of a connection up; the first child if none is named.
    fn initiate(&mut self, connection: &str, child: Option<&str>) -> Result<Begun, Refusal> {
        let configured = self.services.config.connection(connection).ok_or_else(|| {
            let reason =
                format!("no connection is called {connection:?}; `culvert connections` lists them");
            Refusal::new(Code::NotFound, reason)
        })?;
        let first = configured.ike.children.first().map(|child| child.name.clone());
        let child = child.map(ToOwned::to_owned).or(first).unwrap_or_default();
        if configured.ike.children.iter().all(|other| other.name != child) {
            let names = configured.ike.children.iter().map(|child| child.name.as_str());
            let reason = format!(
                "connection {connection} has no child called {child:?}, but {}",
                names.collect::<Vec<_>>().join(", ")
            );
            return Err(Refusal::new(Code::NotFound, reason));
        }
        if !self.is_dataplane_up() {
            let reason = "the dataplane is not running: start culvert-dataplane with the same \
                          configuration";
            return Err(Refusal::new(Code::NoDataplane, reason));
        }
        if let Some(outcome) = self.standing(connection, &child) {
            return Ok(Begun::done(outcome));
        }
        if let Some(ike) = self.starts.tried(connection, &child) {
            let message = format!("{connection} is being set up already, as IKE SA {ike}");
            return Ok(
                self.wait_for(Awaited::ChildUp(ike, child), of_ike(ike, connection, message))
            );
        }
        let now = clock::now();
        let ike = self
            .begin(now, connection, &child)
            .map_err(|error| Refusal::new(Code::Failed, error.to_string()))?;
        self.starts.trying(connection, &child, ike);
        let message = format!("{connection} is being set up as IKE SA {ike}");
        Ok(self.wait_for(Awaited::ChildUp(ike, child), of_ike(ike, connection, message)))
    }

    fn wait_for(&mut self, awaited: Awaited, outcome: Outcome) -> Begun {
        Begun { outcome, end: self.waiters.add(awaited) }
    }

    /// Begins a child: within the connection's IKE SA if that stands or is being set up, else with a
    /// new one.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        connection: &str,
        child: &str,
    ) -> Result<IkeSaId, InitiateError> {
        if let Some(ike) = self.usable(connection) {
            self.endpoint.initiate_child(now, ike, child, &mut self.services)?;
            return Ok(ike);
        }
        let configured = self.services.config.connection(connection);
        let configured = configured.map(|found| std::sync::Arc::clone(&found.ike));
        let configured = configured.ok_or_else(|| InitiateError::NoSuchChild {
            connection: connection.to_owned(),
            child: child.to_owned(),
        })?;
        self.endpoint.initiate(now, &configured, Some(child), &mut self.services)
    }

    /// The child, if it stands.
    fn standing(&self, connection: &str, child: &str) -> Option<Outcome> {
        let stands = |sa: &IkeSnapshot| sa.state == IkeState::Established;
        let (ike, spi_in) = self.endpoint.sas_of(connection).filter(stands).find_map(|sa| {
            let pair = sa.children.iter().find(|pair| pair.name == child)?;
            Some((sa.id.0, format!("{:08x}", pair.spi_in)))
        })?;
        Some(Outcome {
            message: format!("{connection} is up already: IKE SA {ike}, CHILD SA {child} {spi_in}"),
            connection: connection.to_owned(),
            ike: Some(ike),
            child: Some(spi_in),
            failed: false,
        })
    }

    // Taking down.

    fn terminate(&mut self, target: &Target) -> Result<Beginnings, Refusal> {
        if let Target::Child(spi_in) = target {
            return Ok(vec![Ok(self.terminate_child(spi_in)?)]);
        }
        let mut ended = self.end_orphans(target);
        if let Target::Connection(name) = target
            // Also while there is no SA, only the next attempt.
            && self.starts.hold(name, None)
        {
            let message = format!("{name} is not tried any more until somebody initiates it");
            let held = Outcome { message, connection: name.clone(), ..Outcome::default() };
            ended.get_or_insert(held);
        }
        match self.targeted(target) {
            Ok(sas) => {
                let going: HashSet<IkeSaId> = sas.iter().map(|sa| sa.id).collect();
                let others = self
                    .endpoint
                    .sas()
                    .filter(|sa| sa.state == IkeState::Established && !going.contains(&sa.id));
                let staying: HashSet<String> = others.map(|sa| sa.connection).collect();
                let begun = sas.iter().map(|sa| {
                    self.leave_alone(sa, staying.contains(&sa.connection), &going);
                    self.terminate_ike(sa)
                });
                Ok(begun.chain(ended.map(|outcome| Ok(Begun::done(outcome)))).collect())
            }
            Err(refusal) => match ended {
                Some(outcome) => Ok(vec![Ok(Begun::done(outcome))]),
                None => Err(refusal),
            },
        }
    }

    /// What an IKE SA carries, one of those that are `going`, is not begun anew when its end is told;
    /// and if it is the last of its connection, nothing of that is. What another one carries, if one
    /// `stays`, is not meant.
    fn leave_alone(&mut self, sa: &IkeSnapshot, stays: bool, going: &HashSet<IkeSaId>) {
        let connection = &sa.connection;
        if !stays {
            self.starts.hold(connection, None);
            return;
        }
        for child in self.starts.with(connection, sa.id) {
            let other = self.known.standing(connection, &child, |ike| !going.contains(&ike));
            if let Some(other) = other {
                self.starts.hand_over(connection, &child, (sa.id, other), clock::now());
            }
        }
        self.starts.hold_with(connection, sa.id);
    }

    fn terminate_ike(&mut self, sa: &IkeSnapshot) -> Result<Begun, Refusal> {
        self.endpoint
            .terminate(clock::now(), sa.id, &mut self.services)
            .map_err(|error| Refusal::new(Code::NotFound, error.to_string()))?;
        let outcome = about(sa, None, format!("{} is being deleted", named(sa)));
        Ok(self.wait_for(Awaited::IkeGone(sa.id), outcome))
    }

    fn terminate_child(&mut self, spi_in: &str) -> Result<Begun, Refusal> {
        let spi = u32::from_str_radix(spi_in, 16).ok();
        if self.services.forwarding.end_orphans(|orphan| Some(orphan.spi_in) == spi) > 0 {
            return Ok(Begun::done(Outcome {
                message: format!("orphaned CHILD SA {spi_in} is gone"),
                connection: String::new(),
                ike: None,
                child: Some(spi_in.to_owned()),
                failed: false,
            }));
        }
        let found = self.named_child(spi_in)?;
        let sa = self.endpoint.sa(found.ike);
        let sa = sa.ok_or_else(|| self.nothing_fits(&Target::Child(spi_in.to_owned())))?;
        // What another pair carries is not meant.
        if let Some(child) = self.known.left_without(found.child) {
            self.starts.hold(&sa.connection, Some(&child));
        }
        self.endpoint
            .terminate_child(clock::now(), found.child, &mut self.services)
            .map_err(|error| Refusal::new(Code::NotFound, error.to_string()))?;
        let message =
            format!("CHILD SA {:08x} of {} is being deleted", found.spi_in, sa.connection);
        let outcome = about(&sa, Some(found.spi_in), message);
        Ok(self.wait_for(Awaited::ChildGone(sa.id, found.child), outcome))
    }

    /// Ends SAs of an earlier control process that a command is about.
    fn end_orphans(&mut self, target: &Target) -> Option<Outcome> {
        let forwarding = &self.services.forwarding;
        let meant = forwarding.orphans().filter(|orphan| match target {
            Target::Connection(name) => orphan.connection == *name,
            Target::Peer(peer) => {
                let address = peer.parse::<IpAddr>().ok();
                // Names in the shared memory may have been cut.
                orphan.remote_id == Name::new(peer).as_str()
                    || (address.is_some() && address == forwarding.address_of(orphan))
            }
            Target::All {} => true,
            Target::Ike(_) | Target::Child(_) => false,
        });
        let meant: HashSet<SlotRef> = meant.map(|orphan| orphan.slot).collect();
        let ended = self.services.forwarding.end_orphans(|orphan| meant.contains(&orphan.slot));
        let connection = match target {
            Target::Connection(name) => name.clone(),
            _ => String::new(),
        };
        (ended > 0).then(|| Outcome {
            message: format!("{ended} orphaned CHILD SAs are gone"),
            connection,
            ike: None,
            child: None,
            failed: false,
        })
    }

    // New keys.

    fn rekey(&mut self, target: &Target) -> Result<Beginnings, Refusal> {
        if let Target::Child(spi_in) = target {
            let named = self.named_child(spi_in)?;
            let sas = self.established_of(target)?;
            return Ok(sas
                .iter()
                .map(|sa| self.rekey_child(sa, named.child, named.spi_in))
                .collect());
        }
        let mut begun = Vec::new();
        for sa in self.established_of(target)? {
            begun.push(self.rekey_ike(&sa));
            if !matches!(target, Target::Ike(_)) {
                let children = sa.children.iter();
                begun.extend(children.map(|pair| self.rekey_child(&sa, pair.id, pair.spi_in)));
            }
        }
        Ok(begun)
    }

    fn rekey_child(
        &mut self,
        sa: &IkeSnapshot,
        child: ChildId,
        spi_in: u32,
    ) -> Result<Begun, Refusal> {
        self.endpoint
            .rekey_child(clock::now(), child, &mut self.services)
            .map_err(|error| Refusal::new(Code::NotFound, error.to_string()))?;
        let message = format!("CHILD SA {spi_in:08x} of {} is being rekeyed", sa.connection);
        let outcome = about(sa, Some(spi_in), message);
        Ok(self.wait_for(Awaited::ChildRekeyed(sa.id, child), outcome))
    }

    fn rekey_ike(&mut self, sa: &IkeSnapshot) -> Result<Begun, Refusal> {
        self.endpoint
            .rekey_ike(clock::now(), sa.id, &mut self.services)
            .map_err(|error| Refusal::new(Code::Failed, error.to_string()))?;
        let outcome = about(sa, None, format!("{} is being rekeyed", named(sa)));
        Ok(self.wait_for(Awaited::IkeRekeyed(sa.id), outcome))
    }

    fn reauthenticate(&mut self, target: &Target) -> Result<Beginnings, Refusal> {
        let sas = self.established_of(target)?;
        Ok(sas.iter().map(|sa| self.reauthenticate_one(sa)).collect())
    }

    fn reauthenticate_one(&mut self, sa: &IkeSnapshot) -> Result<Begun, Refusal> {
        let configured = self.services.config.connection(&sa.connection);
        let addresses = configured.map(|found| &found.ike.remote_addrs);
        let callable = addresses.is_some_and(|list| list.iter().any(|a| a.address().is_some()));
        if !callable {
            // RFC 4478, 3: only the initiator can.
            let reason = format!(
                "{} cannot be authenticated anew from here: the connection names no address of the \
                 peer, which has to begin",
                named(sa)
            );
            return Err(Refusal::new(Code::Failed, reason));
        }
        self.endpoint
            .reauthenticate(clock::now(), sa.id, &mut self.services)
            .map_err(|error| Refusal::new(Code::Failed, error.to_string()))?;
        let outcome = about(sa, None, format!("{} is being authenticated anew", named(sa)));
        Ok(self.wait_for(Awaited::Reauthenticated(sa.id), outcome))
    }

    // Other ways.

    fn move_one(
        &mut self,
        sa: &IkeSnapshot,
        to: Transport,
        (local, remote): (Option<IpAddr>, Option<IpAddr>),
    ) -> Result<Begun, Refusal> {
        self.movable(sa, to, (local, remote))?;
        let way = convert::way(sa);
        let same = |end: Option<IpAddr>, present: IpAddr| end.is_none_or(|end| end == present);
        if way.transport == to
            && same(local, sa.path.local.ip())
            && same(remote, sa.path.remote.ip())
        {
            let message = format!("{} goes to {} over {to} already", named(sa), way.remote);
            return Ok(Begun::done(about(sa, None, message)));
        }
        let choice = match to {
            Transport::Tcp => PathChoice::Tcp { local, remote },
            // Native where there is no NAT (RFC 7296, 2.23).
            Transport::Udp | Transport::Native => PathChoice::Udp { local, remote },
        };
        self.known.asked_to_move(sa.id);
        self.endpoint
            .move_to(clock::now(), sa.id, choice, &mut self.services)
            .map_err(|error| Refusal::new(Code::Failed, error.to_string()))?;
        let outcome = about(sa, None, format!("{} is being moved to {to}", named(sa)));
        Ok(self.wait_for(Awaited::Moved(sa.id, to), outcome))
    }

    /// What can be said against a move before it is tried.
    fn movable(
        &self,
        sa: &IkeSnapshot,
        to: Transport,
        (local, remote): (Option<IpAddr>, Option<IpAddr>),
    ) -> Result<(), Refusal> {
        let refuse = |reason: String| Err(Refusal::new(Code::Failed, reason));
        let outer = &self.services.config.dataplane.outer;
        if let Some(local) = local
            && outer.addresses.iter().all(|own| own.address() != local)
        {
            let own = outer.addresses.iter().map(|own| own.address().to_string());
            let own = own.collect::<Vec<_>>().join(", ");
            return refuse(format!(
                "{local} is not one of the addresses in [dataplane.outer]: {own}"
            ));
        }
        let from = local.unwrap_or(sa.path.local.ip());
        let onto = remote.unwrap_or(sa.path.remote.ip());
        if from.is_ipv4() != onto.is_ipv4() {
            return refuse(format!("{from} and {onto} are of different address families"));
        }
        let Some(configured) = self.services.config.connection(&sa.connection) else {
            return Ok(());
        };
        let name = &sa.connection;
        match (to, configured.ike.transport) {
            (Transport::Tcp, TransportChoice::Udp) => refuse(format!("{name} allows UDP only")),
            (Transport::Udp | Transport::Native, TransportChoice::Tcp) => {
                refuse(format!("{name} allows TCP only"))
            }
            (Transport::Native, _) if configured.ike.encap => {
                refuse(format!("{name} has encap = true, so that its ESP is never native"))
            }
            _ => Ok(()),
        }
    }
}

/// An IKE SA in a message.
pub(super) fn named(sa: &IkeSnapshot) -> String {
    format!(
        "IKE SA {} of {}",
        sa.id,
        if sa.connection.is_empty() { "a peer" } else { &sa.connection }
    )
}

/// An outcome about an IKE SA or one of its CHILD SAs.
pub(super) fn about(sa: &IkeSnapshot, spi_in: Option<u32>, message: String) -> Outcome {
    Outcome {
        message,
        connection: sa.connection.clone(),
        ike: Some(sa.id.0),
        child: spi_in.map(|spi| format!("{spi:08x}")),
        failed: false,
    }
}
