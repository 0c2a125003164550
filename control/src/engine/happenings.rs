//! What the protocol tells: to the log and to clients, to those who wait, to what is to stand.

use culvert_api::{Code, Happening, Outcome, Refusal, Side, Transport};
use culvert_ike::{ChildId, DownReason, Event, IkeSaId, IkeSnapshot, RekeyCause};

use super::commands::{about, named};
use super::waiters::{Awaited, Decided};
use super::{Engine, random_octet};
use crate::convert::Way;
use crate::{clock, convert};

impl Engine {
    /// Takes an event of the protocol.
    pub(super) fn happened(&mut self, event: Event) {
        match event {
            Event::IkeUp { ike, connection } => self.ike_up(ike, &connection),
            Event::IkeDown { ike, connection, reason } => self.ike_down(ike, &connection, reason),
            Event::Rekeying { ike, child, cause } => self.rekeying(ike, child, cause),
            Event::IkeRekeyed { ike } => self.ike_rekeyed(ike),
            Event::RekeyFailed { ike, child, reason } => {
                self.rekey_failed(ike, child, reason.to_string());
            }
            Event::Reauthenticating { ike, successor } => {
                self.known.successors.insert(successor, ike);
                self.note_of(ike, Happening::Reauthenticating { successor: successor.0 });
            }
            Event::ChildUp { ike, child, name, replaces } => {
                self.child_up(ike, child, &name, replaces);
            }
            Event::ChildDown { ike, child, name, reason } => {
                self.child_down(ike, child, name, reason);
            }
            Event::ChildFailed { ike, name, reason } => {
                self.child_failed(ike, name.unwrap_or_default(), reason.to_string());
            }
            Event::InitiationFailed { ike, connection, error } => {
                let reason = error.to_string();
                let happening = Happening::IkeFailed { reason: reason.clone() };
                self.note(Some(&connection), Some(ike), happening);
                self.ended(&connection, &reason);
                self.ike_gone(ike, &connection, None, &reason);
            }
            Event::Refused { path, error } => {
                self.note_refused(format!("{path}: {error}"));
            }
            Event::FallbackToTcp { ike, .. } => self.fallback(ike),
            Event::TcpLost { ike, reconnecting } => {
                self.note_of(ike, Happening::TcpLost { reconnecting });
            }
            Event::PathMoved { ike, .. } => self.path_taken(ike),
            Event::MoveFailed { ike, reason } => self.move_failed(ike, reason.to_string()),
        }
    }

    /// Something of a connection failed or ended, for this reason.
    pub(super) fn ended(&mut self, connection: &str, reason: &str) {
        if self.services.config.connection(connection).is_some() {
            self.known.ends.insert(connection.to_owned(), reason.to_owned());
        }
    }

    /// The connection of an IKE SA.
    pub(super) fn connection_of(&self, ike: IkeSaId) -> Option<String> {
        self.endpoint.sa(ike).map(|sa| sa.connection)
    }

    /// Notes what happened to an IKE SA.
    pub(super) fn note_of(&mut self, ike: IkeSaId, happening: Happening) {
        let connection = self.connection_of(ike);
        self.note(connection.as_deref(), Some(ike), happening);
    }

    // IKE SAs.

    fn ike_up(&mut self, ike: IkeSaId, connection: &str) {
        let Some(sa) = self.endpoint.sa(ike) else { return };
        self.known.ike_up(&sa);
        self.note(
            Some(connection),
            Some(ike),
            Happening::IkeUp {
                remote: sa.path.remote.to_string(),
                remote_id: sa.remote_id.map(|id| id.to_string()).unwrap_or_default(),
                transport: convert::transport(sa.path.transport),
            },
        );
    }

    fn ike_down(&mut self, ike: IkeSaId, connection: &str, reason: DownReason) {
        // The peer may have been the first to delete it.
        if let Some(successor) = self.known.successor(ike)
            && self.known.ikes.contains_key(&successor)
        {
            self.known.successors.remove(&successor);
            let happening = Happening::Reauthenticated { successor: successor.0 };
            self.note(Some(connection), Some(ike), happening);
            let message = format!(
                "IKE SA {ike} of {connection} is authenticated anew: IKE SA {successor} has its place"
            );
            let outcome = of_ike(successor, connection, message);
            self.waiters.tell(|awaited| *awaited == Awaited::Reauthenticated(ike), &Ok(outcome));
        }
        let text = reason.to_string();
        let happening = Happening::IkeDown { reason: text.clone() };
        self.note(Some(connection), Some(ike), happening);
        self.ended(connection, &text);
        self.ike_gone(ike, connection, Some(reason), &text);
    }

    /// An IKE SA is gone, or (without a reason) did not come about: nothing of it may be left.
    fn ike_gone(&mut self, ike: IkeSaId, connection: &str, reason: Option<DownReason>, text: &str) {
        self.services.forwarding.forget_peer(ike);
        self.known.ike_gone(ike);
        self.known.successors.retain(|_, old| *old != ike);
        let when = (clock::now(), random_octet());
        for child in self.starts.with(connection, ike) {
            if let Some(other) = self.known.standing(connection, &child, |_| true) {
                self.starts.hand_over(connection, &child, (ike, other), when.0);
            }
        }
        let next = self.starts.ike_down(connection, ike, reason, when);
        self.note_next(connection, next);
        if let Some(old) = self.known.successors.remove(&ike) {
            self.not_reauthenticated(old, text);
        }
        let message = format!("IKE SA {ike} of {connection} is gone: {text}");
        let gone = Ok(of_ike(ike, connection, message));
        self.waiters.tell(|awaited| *awaited == Awaited::IkeGone(ike), &gone);
        let refusal = Err(Refusal::new(Code::Failed, text));
        self.waiters.tell(|awaited| awaited.ike() == ike, &refusal);
    }

    /// What was to take the place of this IKE SA did not come about.
    fn not_reauthenticated(&mut self, old: IkeSaId, reason: &str) {
        let happening = Happening::ReauthenticationFailed { reason: reason.to_owned() };
        self.note_of(old, happening);
        let text = format!("IKE SA {old} stays, and it is tried again: {reason}");
        let refusal = Err(Refusal::new(Code::Failed, text));
        self.waiters.tell(|awaited| *awaited == Awaited::Reauthenticated(old), &refusal);
    }

    // New keys.

    fn rekeying(&mut self, ike: IkeSaId, child: Option<ChildId>, cause: RekeyCause) {
        let rekeying = match child {
            Some(child) => self.known.children.get_mut(&child).map(|known| &mut known.rekeying),
            None => self.known.ikes.get_mut(&ike).map(|known| &mut known.rekeying),
        };
        if let Some(rekeying) = rekeying {
            *rekeying = Some(cause.to_string());
        }
    }

    fn ike_rekeyed(&mut self, ike: IkeSaId) {
        let Some(sa) = self.endpoint.sa(ike) else { return };
        let (old_spis, spis, by, reason) = self.known.ike_rekeyed(&sa);
        let message = format!("{} is rekeyed: SPIs {} {}", named(&sa), spis[0], spis[1]);
        let happening = Happening::IkeRekeyed { old_spis, spis, by, reason };
        self.note(Some(&sa.connection), Some(ike), happening);
        let outcome = Ok(about(&sa, None, message));
        self.waiters.tell(|awaited| *awaited == Awaited::IkeRekeyed(ike), &outcome);
    }

    /// The SA stays, and the protocol tries again.
    fn rekey_failed(&mut self, ike: IkeSaId, child: Option<ChildId>, reason: String) {
        let known = child.and_then(|child| self.known.children.get(&child));
        let name = known.map(|known| known.name.clone());
        let spi_in = known.map(|known| format!("{:08x}", known.spi_in));
        let awaited = match child {
            Some(child) => Awaited::ChildRekeyed(ike, child),
            None => Awaited::IkeRekeyed(ike),
        };
        let text = format!("not rekeyed, and it is tried again: {reason}");
        self.waiters.tell(|other| *other == awaited, &Err(Refusal::new(Code::Failed, text)));
        self.note_of(ike, Happening::RekeyFailed { child: name, spi_in, reason });
    }

    // CHILD SAs.

    fn child_up(&mut self, ike: IkeSaId, child: ChildId, name: &str, replaces: Option<ChildId>) {
        let Some(sa) = self.endpoint.sa(ike) else { return };
        let Some(pair) = sa.children.iter().find(|other| other.id == child) else { return };
        let spi_in = format!("{:08x}", pair.spi_in);
        let happening = self.child_news(pair, replaces);
        self.note(Some(&sa.connection), Some(ike), happening);
        self.known.ends.remove(&sa.connection);
        let metered = self.is_metered(&sa.connection, name);
        self.known.child_up(&sa, pair, metered);
        // With the first child it is known how ESP travels.
        self.known.moved(ike, convert::way(&sa));
        self.starts.up(&sa.connection, name, ike, clock::now());
        if let Some(old) = replaces {
            self.known.replaced(old);
            let message = format!("CHILD SA {name} of {} is rekeyed: {spi_in}", sa.connection);
            let outcome = Ok(about(&sa, Some(pair.spi_in), message));
            self.waiters.tell(|awaited| *awaited == Awaited::ChildRekeyed(ike, old), &outcome);
            return;
        }
        let transport = convert::transport(pair.transport);
        let message = format!(
            "{} is up: IKE SA {ike} with {} over {transport}, CHILD SA {name} {spi_in}",
            sa.connection, sa.path.remote
        );
        let outcome = Ok(about(&sa, Some(pair.spi_in), message));
        let awaited = Awaited::ChildUp(ike, name.to_owned());
        self.waiters.tell(|other| *other == awaited, &outcome);
    }

    /// How a new pair is told: as one more, or in place of another.
    fn child_news(
        &self,
        pair: &culvert_ike::ChildSnapshot,
        replaces: Option<ChildId>,
    ) -> Happening {
        let (child, spi_in) = (pair.name.clone(), format!("{:08x}", pair.spi_in));
        if let Some(old) = replaces.and_then(|old| self.known.children.get(&old)) {
            let by = if old.rekeying.is_some() { Side::Here } else { Side::Peer };
            let reason = old.rekeying.clone();
            let old_spi_in = format!("{:08x}", old.spi_in);
            return Happening::ChildRekeyed { child, old_spi_in, spi_in, by, reason };
        }
        let text = |list: &[culvert_ike::TrafficSelector]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (local_ts, remote_ts) = (text(&pair.local_ts), text(&pair.remote_ts));
        Happening::ChildUp { child, spi_in, local_ts, remote_ts }
    }

    fn child_down(&mut self, ike: IkeSaId, child: ChildId, name: String, reason: DownReason) {
        // The IKE SA may be gone already.
        let (connection, spi_in) = match self.known.children.remove(&child) {
            Some(stood) => (stood.connection, format!("{:08x}", stood.spi_in)),
            None => (self.connection_of(ike).unwrap_or_default(), String::new()),
        };
        let text = reason.to_string();
        let message = format!("CHILD SA {name} {spi_in} of {connection} is gone: {text}");
        let gone = Outcome { child: Some(spi_in.clone()), ..of_ike(ike, &connection, message) };
        // The peer had rekeyed it before it was asked for here.
        let rekeyed = match reason {
            DownReason::Rekeyed => Ok(gone.clone()),
            _ => Err(Refusal::new(Code::Failed, gone.message.clone())),
        };
        self.waiters.tell(|awaited| *awaited == Awaited::ChildGone(ike, child), &Ok(gone));
        self.waiters.tell(|awaited| *awaited == Awaited::ChildRekeyed(ike, child), &rekeyed);
        self.note(
            Some(&connection),
            Some(ike),
            Happening::ChildDown { child: name.clone(), spi_in, reason: text },
        );
        // What ends with its IKE SA is begun anew with it.
        if reason == DownReason::IkeGone {
            return;
        }
        if reason != DownReason::Rekeyed {
            self.ended(&connection, &reason.to_string());
        }
        self.child_ended(&connection, ike, &name, Some(reason));
    }

    /// A pair of this child failed (without a reason) or has ended. What follows, unless another one
    /// stands, be it the successor after a rekey.
    fn child_ended(
        &mut self,
        connection: &str,
        ike: IkeSaId,
        name: &str,
        reason: Option<DownReason>,
    ) {
        let now = clock::now();
        if let Some(other) = self.known.standing(connection, name, |_| true) {
            self.starts.hand_over(connection, name, (ike, other), now);
            return;
        }
        let next = self.starts.down(connection, ike, name, reason, (now, random_octet()));
        self.note_next(connection, next);
    }

    fn child_failed(&mut self, ike: IkeSaId, name: String, reason: String) {
        let connection = self.connection_of(ike).unwrap_or_default();
        let refusal = Err(Refusal::new(Code::Failed, format!("CHILD SA {name}: {reason}")));
        self.ended(&connection, &reason);
        self.note(
            Some(&connection),
            Some(ike),
            Happening::ChildFailed { child: name.clone(), reason },
        );
        self.child_ended(&connection, ike, &name, None);
        let awaited = Awaited::ChildUp(ike, name);
        self.waiters.tell(|other| *other == awaited, &refusal);
    }

    // Ways.

    /// The protocol takes another way.
    fn path_taken(&mut self, ike: IkeSaId) {
        let Some(sa) = self.endpoint.sa(ike) else { return };
        let way = convert::way(&sa);
        self.way_of(ike, way);
        for to in [Transport::Native, Transport::Udp, Transport::Tcp] {
            let decided = moved(&sa, to, &way);
            self.waiters.tell(|awaited| *awaited == Awaited::Moved(ike, to), &decided);
        }
    }

    /// Packets of an IKE SA go this way now.
    pub(super) fn way_of(&mut self, ike: IkeSaId, way: Way) {
        let Some(old) = self.known.moved(ike, way) else { return };
        let happening = Happening::PathMoved {
            remote: way.remote.to_string(),
            transport: way.transport,
            old_remote: Some(old.remote.to_string()),
            old_transport: Some(old.transport),
        };
        self.note_of(ike, happening);
    }

    fn move_failed(&mut self, ike: IkeSaId, reason: String) {
        let refusal = Err(Refusal::new(Code::Failed, format!("not moved: {reason}")));
        let concerned = |awaited: &Awaited| matches!(awaited, Awaited::Moved(of, _) if *of == ike);
        self.waiters.tell(concerned, &refusal);
        if self.known.not_moved(ike, &reason) {
            self.note_of(ike, Happening::MoveFailed { reason });
        } else {
            tracing::debug!(ike = ike.0, reason, "not moved, as before");
        }
    }

    fn fallback(&mut self, ike: IkeSaId) {
        let Some(sa) = self.endpoint.sa(ike) else { return };
        let port = self.services.config.connection(&sa.connection);
        let port = port.map_or(sa.path.remote.port(), |found| found.ike.tcp_remote_port);
        let remote = std::net::SocketAddr::new(sa.path.remote.ip(), port).to_string();
        self.note(Some(&sa.connection), Some(ike), Happening::Fallback { remote });
    }
}

/// An outcome about an IKE SA that may be gone.
pub(super) fn of_ike(ike: IkeSaId, connection: &str, message: String) -> Outcome {
    Outcome {
        message,
        connection: connection.to_owned(),
        ike: Some(ike.0),
        child: None,
        failed: false,
    }
}

/// Whether an IKE SA that goes this way now is where somebody wanted it.
fn moved(sa: &IkeSnapshot, to: Transport, way: &Way) -> Decided {
    let message = format!("{} moved to {} over {}", named(sa), way.remote, way.transport);
    match (to, way.transport) {
        (Transport::Native, Transport::Udp) => {
            let reason = format!("{message}: a NAT lies between, so that ESP cannot be native");
            Err(Refusal::new(Code::Failed, reason))
        }
        (Transport::Native | Transport::Udp, Transport::Tcp) => {
            let reason = format!("{message}: there was no answer over UDP");
            Err(Refusal::new(Code::Failed, reason))
        }
        (Transport::Udp, Transport::Native) => {
            let message = format!("{message}: without a NAT, ESP needs no UDP");
            Ok(about(sa, None, message))
        }
        _ => Ok(about(sa, None, message)),
    }
}
