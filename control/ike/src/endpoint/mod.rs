//! All IKE SAs of a gateway: the table by SPI, the limits, and the way in and out.
//!
//! [`commands`] is what the host asks for, [`inbound`] the way of a message in, [`replacing`] how one
//! IKE SA takes the place of another. Every one of them ends in [`Endpoint::with`]: one session acts,
//! and the table of ways to find it is brought up to date.

/// What handlers are lent, out of the endpoint's fields so that the table stays free.
macro_rules! cx {
    ($self:ident, $now:expr, $host:expr) => {
        &mut Cx {
            now: $now,
            host: $host,
            transmits: &mut $self.transmits,
            events: &mut $self.events,
            config: &$self.config,
            next_id: &mut $self.next_id,
        }
    };
}

mod commands;
mod guard;
mod inbound;
mod limits;
mod outcome;
mod rate;
mod replacing;
mod saved;
mod table;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use crate::event::{Event, IkeSaId, IkeSnapshot, Transmit};
use crate::host::Host;
use crate::path::{ChildPath, ConnToken, ConnectRequest, Path};
use crate::sa::{Cx, Session};
use crate::time::Instant;
use guard::Guard;
pub use limits::EndpointConfig;
pub use outcome::{DropReason, InitiateError, Received, UnknownSa};
pub(crate) use rate::Rate;
pub use saved::Snapshot;
use saved::Snapshots;
use table::Table;

/// How much is said to strangers: so many answers of a kind in each second (RFC 7296, 2.21.4).
const TO_STRANGERS: Rate = Rate::new(10, Duration::from_secs(1));

/// Every IKE SA of a gateway. See the crate's documentation for the order of calls.
pub struct Endpoint {
    config: EndpointConfig,
    table: Table,
    /// The last name given to an IKE SA, a CHILD SA or a request for a connection.
    next_id: u64,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    /// Answers to messages of unknown IKE SAs.
    strangers: Rate,
    /// First requests that were refused.
    refusals: Rate,
    guard: Guard,
    /// TCP connections on which a corrected first request is awaited, and until when.
    unused: VecDeque<(Instant, ConnToken)>,
    snapshots: Snapshots,
}

impl Endpoint {
    /// An endpoint without SAs.
    pub fn new(config: EndpointConfig) -> Self {
        Self {
            config,
            table: Table::default(),
            next_id: 0,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            strangers: TO_STRANGERS,
            refusals: TO_STRANGERS,
            guard: Guard::default(),
            unused: VecDeque::new(),
            snapshots: Snapshots::default(),
        }
    }

    fn new_ike_id(&mut self) -> IkeSaId {
        self.next_id += 1;
        IkeSaId(self.next_id)
    }

    /// Lets one session act, then brings the table up to date.
    fn with<R>(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
        act: impl FnOnce(&mut Session, &mut Cx<'_>) -> R,
    ) -> Option<R> {
        let before = self.transmits.len();
        let another = self.has_another_by_now(ike);
        let session = self.table.get_mut(ike)?;
        if another {
            session.deny_first_contact();
        }
        let result = act(session, cx!(self, now, host));
        let replaces = session.take_replaces();
        let succession = session.take_succession();
        let predecessor = session.take_predecessor();
        let outlived = session.take_outlived();
        self.table.sync(ike);
        self.snapshots.changed(ike);
        // A connection may be used for another session after one was deleted (RFC 9329, 6.1).
        let used = |t: &Transmit| matches!(t, Transmit::Close { conn } if !self.table.by_conn(*conn).is_empty());
        let sent = self.transmits.split_off(before);
        self.transmits.extend(sent.into_iter().filter(|t| !used(t)));
        if let Some(replaces) = replaces {
            self.replace_others(now, ike, replaces, host);
        }
        if let Some(succession) = succession {
            self.begin_successor(now, succession, host);
        }
        if let Some(predecessor) = predecessor {
            self.end_predecessor(now, predecessor, host);
        }
        if outlived {
            self.end_outlived(now, ike, host);
        }
        Some(result)
    }

    /// Whether one that was begun as the only IKE SA of its connection is it no more (RFC 7296, 2.4): the
    /// peer may have been quicker.
    fn has_another_by_now(&self, ike: IkeSaId) -> bool {
        let session = self.table.get(ike).filter(|session| session.claims_first_contact());
        let connection = session.and_then(|session| session.connection.as_ref());
        connection.is_some_and(|c| self.table.by_connection(&c.name).any(Session::is_up))
    }

    /// The host opened the TCP connection of a [`Transmit::Connect`] and sent the prefix on it.
    pub fn tcp_opened(
        &mut self,
        now: Instant,
        request: ConnectRequest,
        conn: ConnToken,
        local: SocketAddr,
        remote: SocketAddr,
        host: &mut dyn Host,
    ) {
        match self.table.by_request(request) {
            Some(ike) => {
                let path = Path::tcp(local, remote, conn);
                self.with(now, ike, host, |s, cx| s.tcp_opened(cx, &path));
            }
            // Nobody waits for it any more; or it is in use, and the process before died as it was told.
            None => self.close_unused(conn),
        }
    }

    /// The host could not open the TCP connection of a [`Transmit::Connect`].
    pub fn tcp_failed(
        &mut self,
        now: Instant,
        request: ConnectRequest,
        reason: &str,
        host: &mut dyn Host,
    ) {
        if let Some(ike) = self.table.by_request(request) {
            self.with(now, ike, host, |s, cx| s.tcp_failed(cx, reason));
        }
    }

    /// A TCP connection is gone, whoever opened or closed it. Its SAs stay (RFC 9329, 6.1).
    pub fn tcp_closed(&mut self, now: Instant, conn: ConnToken, host: &mut dyn Host) {
        self.unused.retain(|(_, unused)| *unused != conn);
        for ike in self.table.by_conn(conn) {
            self.with(now, ike, host, Session::tcp_closed);
        }
    }

    /// The data plane moved this peer's path, because an authentic new ESP packet came on it
    /// (RFC 9329, 6.1). IKE follows.
    pub fn path_moved(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        path: &ChildPath,
        host: &mut dyn Host,
    ) {
        self.with(now, ike, host, |s, cx| s.path_moved(cx, path));
    }

    /// Does what is due: repetitions, liveness checks, new TCP connections, half-open SAs to drop.
    pub fn handle_timeout(&mut self, now: Instant, host: &mut dyn Host) {
        for ike in self.table.due(now) {
            self.with(now, ike, host, Session::handle_timeout);
        }
        while let Some((_, conn)) = self.unused.pop_front_if(|(until, _)| *until <= now) {
            self.close_unused(conn);
        }
    }

    /// When [`Self::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let unused = self.unused.front().map(|(until, _)| *until);
        self.table.next_timeout().into_iter().chain(unused).min()
    }

    /// The next thing for the host to do on the network.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A row for each IKE SA, in the order in which they were begun.
    pub fn sas(&self) -> impl Iterator<Item = IkeSnapshot> + '_ {
        self.table.sessions().filter_map(Session::snapshot)
    }

    /// The rows of [`Self::sas`] that are of one connection.
    pub fn sas_of(&self, connection: &str) -> impl Iterator<Item = IkeSnapshot> + use<'_> {
        self.table.by_connection(connection).filter_map(Session::snapshot)
    }

    /// The IKE SA to which messages with this SPI of this gateway belong.
    pub fn by_spi(&self, spi: u64) -> Option<IkeSaId> {
        self.table.by_spi(spi)
    }

    /// The name of the connection that the IKE SA of an SPI of this gateway is of, once that is known.
    pub fn connection_by_spi(&self, spi: u64) -> Option<&str> {
        let session = self.table.get(self.table.by_spi(spi)?)?;
        session.connection.as_ref().map(|connection| connection.name.as_str())
    }

    /// The row of one IKE SA.
    pub fn sa(&self, ike: IkeSaId) -> Option<IkeSnapshot> {
        self.table.get(ike).and_then(Session::snapshot)
    }

    /// Number of IKE SAs, half-open ones included, and those that are gone for a few seconds only.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no IKE SA.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod collisions;
#[cfg(test)]
mod fuzzed;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unruly;
