//! All IKE SAs of a gateway: the table by SPI, the limits, and the way in and out.

mod guard;
mod limits;
mod outcome;
mod rate;
mod table;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::config::{AddressMatch, ChildConfig, ConnectionConfig};
use crate::event::{ChildId, DownReason, Event, IkeSaId, IkeSnapshot, Transmit};
use crate::host::Host;
use crate::message::{ExchangeType, HEADER_LEN, Header, Message, NotifyType, Payload};
use crate::path::{ChildPath, ConnToken, ConnectRequest, Path, Transport};
use crate::sa::{Answer, Cx, PathChoice, Replaces, Session, Succession, reply_in_clear};
use crate::time::Instant;
use guard::{Demand, Guard, Verdict};
pub use limits::EndpointConfig;
pub use outcome::{DropReason, InitiateError, Received, UnknownSa};
use rate::Rate;
use table::Table;

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
    guard: Guard,
    /// TCP connections on which a corrected first request is awaited, and until when.
    unused: VecDeque<(Instant, ConnToken)>,
}

/// How long a peer may take over a corrected first request, a puzzle included (RFC 9329, 6.3.1).
const UNUSED_TIMEOUT: Duration = Duration::from_secs(15);
/// Most connections on which one is awaited.
const UNUSED_MAX: usize = 4096;

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

/// The address that an initiator asks, and its own of the same family.
fn addresses(
    connection: &ConnectionConfig,
    host: &mut dyn Host,
) -> Result<(IpAddr, IpAddr), InitiateError> {
    let remote = connection
        .remote_addrs
        .iter()
        .find_map(AddressMatch::address)
        .ok_or_else(|| InitiateError::NoRemoteAddress(connection.name.clone()))?;
    let own = connection.local_addrs.iter().filter_map(AddressMatch::address);
    let local = own
        .into_iter()
        .find(|a| a.is_ipv4() == remote.is_ipv4())
        .or_else(|| host.source_address(remote))
        .ok_or(InitiateError::NoRoute(remote))?;
    Ok((local, remote))
}

fn child_config(
    connection: &ConnectionConfig,
    child: Option<&str>,
) -> Result<Arc<ChildConfig>, InitiateError> {
    let found = match child {
        Some(name) => connection.children.iter().find(|c| c.name == name),
        None => connection.children.first(),
    };
    found.cloned().ok_or_else(|| InitiateError::NoSuchChild {
        connection: connection.name.clone(),
        child: child.unwrap_or_default().to_owned(),
    })
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
            strangers: Rate::default(),
            guard: Guard::default(),
            unused: VecDeque::new(),
        }
    }

    fn new_ike_id(&mut self) -> IkeSaId {
        self.next_id += 1;
        IkeSaId(self.next_id)
    }

    /// Begins an IKE SA with the first CHILD SA `child` (a name in `connection`; `None`: the first
    /// one configured). All further children are asked for with [`Self::initiate_child`] once it is
    /// up.
    ///
    /// Success and failure come as [`Event::IkeUp`], [`Event::ChildUp`],
    /// [`Event::InitiationFailed`] or [`Event::ChildFailed`].
    ///
    /// # Errors
    /// When there is nobody to ask, no such child, or no room.
    pub fn initiate(
        &mut self,
        now: Instant,
        connection: &Arc<ConnectionConfig>,
        child: Option<&str>,
        host: &mut dyn Host,
    ) -> Result<IkeSaId, InitiateError> {
        let addresses = addresses(connection, host)?;
        let child = child_config(connection, child)?;
        if self.table.len() >= self.config.ike_sas_max {
            return Err(InitiateError::TooManyIkeSas(self.config.ike_sas_max));
        }
        let id = self.new_ike_id();
        let first = !self
            .table
            .sessions()
            .any(|s| s.is_up() && s.connection.as_ref().is_some_and(|c| c.name == connection.name));
        let cx = cx!(self, now, host);
        let session = Session::initiate(cx, id, connection, child, addresses, first);
        self.table.insert(session);
        Ok(id)
    }

    /// Asks for one more CHILD SA in an established IKE SA (CREATE_CHILD_SA; RFC 7296, 1.3.1). It
    /// waits its turn behind other exchanges.
    ///
    /// # Errors
    /// When the IKE SA or the child does not exist, or there is no room.
    pub fn initiate_child(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        child: &str,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let session = self.table.get(ike).ok_or(UnknownSa::Ike(ike))?;
        let Some(connection) = session.connection.clone().filter(|_| session.is_up()) else {
            return Err(InitiateError::NotEstablished(ike));
        };
        let config = child_config(&connection, Some(child))?;
        self.with(now, ike, host, |session, cx| session.ask_child(cx, config));
        Ok(())
    }

    /// Deletes an IKE SA with its CHILD SAs: sends a Delete payload where the peer is authenticated,
    /// and ends with [`Event::IkeDown`] once the peer has answered or is given up. An SA that is not
    /// up yet ends at once, with [`Event::InitiationFailed`] if this side began it.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn terminate(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        self.with(now, ike, host, |s, cx| s.terminate(cx, DownReason::TerminatedLocally))
            .ok_or(UnknownSa::Ike(ike))
    }

    /// Deletes one pair of CHILD SAs; the IKE SA stays.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn terminate_child(
        &mut self,
        now: Instant,
        child: ChildId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        self.with_child(now, child, host, Session::terminate_child)
    }

    /// Replaces one pair of CHILD SAs by a new one with fresh keys, which goes by the same name (RFC
    /// 7296, 1.3.3 and 2.8). Ends with [`Event::ChildUp`] and, for the old pair,
    /// [`Event::ChildDown`] with [`DownReason::Rekeyed`]; or with [`Event::ChildFailed`].
    ///
    /// # Errors
    /// When it does not exist.
    pub fn rekey_child(
        &mut self,
        now: Instant,
        child: ChildId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        self.with_child(now, child, host, Session::rekey_child)
    }

    /// Gives an IKE SA new keys and SPIs (RFC 7296, 1.3.2 and 2.18); its CHILD SAs go over to it. Ends
    /// with [`Event::IkeRekeyed`] or [`Event::RekeyFailed`].
    ///
    /// # Errors
    /// When it does not exist or is not established.
    pub fn rekey_ike(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let session = self.table.get(ike).ok_or(UnknownSa::Ike(ike))?;
        if !session.is_established() {
            return Err(InitiateError::NotEstablished(ike));
        }
        self.with(now, ike, host, Session::rekey_ike);
        Ok(())
    }

    /// Authenticates anew: sets up an IKE SA with the same CHILD SAs beside this one, which is deleted
    /// then (RFC 7296, 2.8.3). Begins with [`Event::Reauthenticating`]; for the old one ends with
    /// [`Event::IkeDown`] and [`DownReason::Reauthenticated`].
    ///
    /// # Errors
    /// When it does not exist or is not established.
    pub fn reauthenticate(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let session = self.table.get(ike).ok_or(UnknownSa::Ike(ike))?;
        if !session.is_established() {
            return Err(InitiateError::NotEstablished(ike));
        }
        self.with(now, ike, host, |s, cx| s.reauthenticate(cx));
        Ok(())
    }

    /// Moves an established IKE SA with its CHILD SAs to other addresses or another transport (RFC
    /// 4555; RFC 9329, 7.1), when the gateway's addresses changed or to find out whether UDP works
    /// again. ESP goes the new way once the peer has agreed ([`Event::PathMoved`]); over UDP without
    /// an answer the IKE SA stays on, or falls back to, TCP.
    ///
    /// # Errors
    /// When it does not exist, or when this gateway may not move it: it is not established, the peer
    /// does not take part in MOBIKE, or the peer began it (RFC 4555, 3.5).
    pub fn move_to(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        to: PathChoice,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let session = self.table.get(ike).ok_or(UnknownSa::Ike(ike))?;
        if !session.may_move() {
            return Err(InitiateError::Immovable(ike));
        }
        self.with(now, ike, host, |s, cx| s.move_to(cx, to));
        Ok(())
    }

    /// Tells how many octets and packets a pair has carried so far, in the direction with more of
    /// them; it is rekeyed or deleted where [`ChildConfig::octets`] or [`ChildConfig::packets`] says
    /// so. The host calls this now and then.
    pub fn child_used(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        child: ChildId,
        (octets, packets): (u64, u64),
        host: &mut dyn Host,
    ) {
        self.with(now, ike, host, |s, cx| s.child_used(cx, child, octets, packets));
    }

    /// Lets the session that has `child` act on it.
    fn with_child(
        &mut self,
        now: Instant,
        child: ChildId,
        host: &mut dyn Host,
        act: impl FnOnce(&mut Session, &mut Cx<'_>, ChildId),
    ) -> Result<(), UnknownSa> {
        let ike = self.table.sessions().find(|s| s.has_child(child)).map(|s| s.id);
        ike.and_then(|ike| self.with(now, ike, host, |session, cx| act(session, cx, child)))
            .ok_or(UnknownSa::Child(child))
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
        let session = self.table.get_mut(ike)?;
        let result = act(session, cx!(self, now, host));
        let replaces = session.take_replaces();
        let succession = session.take_succession();
        let predecessor = session.take_predecessor();
        self.table.sync(ike);
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
        Some(result)
    }

    fn end_predecessor(&mut self, now: Instant, ike: IkeSaId, host: &mut dyn Host) {
        self.with(now, ike, host, |s, cx| s.terminate(cx, DownReason::Reauthenticated));
    }

    /// Begins the IKE SA that is to take the place of another. What it cannot be begun for now is
    /// tried again by the old one.
    fn begin_successor(&mut self, now: Instant, mut succession: Succession, host: &mut dyn Host) {
        let connection = self.table.get(succession.old).and_then(|s| s.connection.clone());
        let Some(connection) = connection else { return };
        let child = match succession.children.is_empty() {
            true => None,
            false => Some(succession.children.remove(0).name.clone()),
        };
        if let Ok(id) = self.initiate(now, &connection, child.as_deref(), host) {
            let old = succession.old;
            if let Some(session) = self.table.get_mut(id) {
                session.succeed_to(succession);
            }
            self.events.push_back(Event::Reauthenticating { ike: old, successor: id });
        }
    }

    /// The peer of this IKE SA was authenticated: its older ones go.
    fn replace_others(&mut self, now: Instant, ike: IkeSaId, how: Replaces, host: &mut dyn Host) {
        for other in self.table.same_peer(ike) {
            self.with(now, other, host, |session, cx| match how {
                Replaces::Silently => session.close(cx, DownReason::Replaced),
                Replaces::WithDelete => session.terminate(cx, DownReason::Replaced),
            });
        }
    }

    /// Takes an IKE message, without marker and TCP length, that came on `path`.
    pub fn handle_message(
        &mut self,
        now: Instant,
        path: &Path,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Received {
        if octets.len() > self.config.message_octets_max {
            return Received::Dropped(DropReason::TooLong);
        }
        // RFC 7296, 2.5: of another major version only the header can be understood.
        if let Some(version) = octets.get(17).filter(|_| octets.len() >= HEADER_LEN)
            && version >> 4 != 2
        {
            return self.other_version(now, path, octets, host);
        }
        let Ok((header, _)) = Header::decode(octets) else {
            return Received::Dropped(DropReason::BadHeader);
        };
        let first = header.exchange == ExchangeType::IKE_SA_INIT
            && header.from_initiator
            && !header.response;
        if first {
            return self.handle_init(now, path, &header, octets, host);
        }
        let local = if header.from_initiator { header.spi_r } else { header.spi_i };
        let Some(ike) = self.table.by_spi(local) else {
            return self.unknown_spi(now, path, &header, host);
        };
        self.with(now, ike, host, |s, cx| s.handle(cx, path, &header, octets))
            .unwrap_or(Received::Dropped(DropReason::UnknownSpi))
    }

    /// Says that there is no such IKE SA (RFC 7296, 2.21.4): to requests only, in the clear, so many a
    /// second and only over UDP, where the peer may have missed a Delete.
    fn unknown_spi(
        &mut self,
        now: Instant,
        path: &Path,
        header: &Header,
        host: &mut dyn Host,
    ) -> Received {
        let told = !header.response
            && path.transport == Transport::Udp
            && header.exchange != ExchangeType::IKE_SA_INIT
            && self.strangers.take(now);
        if told {
            let notify = Payload::notify(NotifyType::INVALID_IKE_SPI, []);
            reply_in_clear(cx!(self, now, host), path, header, vec![notify]);
        }
        Received::Dropped(DropReason::UnknownSpi)
    }

    /// Says that only version 2 is spoken here (RFC 7296, 2.5), to a request of a higher one.
    fn other_version(
        &mut self,
        now: Instant,
        path: &Path,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Received {
        if let Ok((header, _)) = Header::decode(octets)
            && header.major > 2
            && !header.response
        {
            let notify = Payload::notify(NotifyType::INVALID_MAJOR_VERSION, []);
            reply_in_clear(cx!(self, now, host), path, &header, vec![notify]);
        }
        Received::Dropped(DropReason::BadVersion)
    }

    /// A request that begins an IKE SA, or its repetition.
    fn handle_init(
        &mut self,
        now: Instant,
        path: &Path,
        header: &Header,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Received {
        if header.spi_r != 0 || header.spi_i == 0 || header.message_id != 0 {
            return Received::Dropped(DropReason::BadHeader);
        }
        if let Some(session) = self.table.by_init(header.spi_i, path) {
            let cx = cx!(self, now, host);
            return match session.repeat_init(cx, path, octets) {
                true => Received::Repeated,
                false => Received::Dropped(DropReason::MessageId),
            };
        }
        if let Some(reason) = self.no_room(path) {
            return Received::Dropped(reason);
        }
        if let Some(received) = self.keep_out(now, path, octets, host) {
            return received;
        }
        let id = self.new_ike_id();
        match Session::respond_to_init(cx!(self, now, host), id, path, octets) {
            Answer::Session(session) => {
                self.table.insert(*session);
                Received::Accepted
            }
            Answer::Refused => {
                self.await_correction(now, path);
                Received::Accepted
            }
            Answer::Dropped(reason) => Received::Dropped(reason),
        }
    }

    /// Under load, has peers return a cookie or solve a puzzle first; what became of the request if it
    /// is not let in. No state is kept for it.
    fn keep_out(
        &mut self,
        now: Instant,
        path: &Path,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Option<Received> {
        let (all, _) = self.table.half_open(path.remote.ip());
        let demand = if all >= self.config.puzzle_threshold {
            Demand::Puzzle(self.config.puzzle_bits.max(1))
        } else if all >= self.config.cookie_threshold {
            Demand::Cookie
        } else {
            return None;
        };
        let Ok(message) = Message::decode(octets) else {
            return Some(Received::Dropped(DropReason::BadPayload));
        };
        match self.guard.judge(now, host, path, &message, demand) {
            Verdict::Pass => None,
            Verdict::Drop => Some(Received::Dropped(DropReason::BadPayload)),
            Verdict::Return(payloads) => {
                reply_in_clear(cx!(self, now, host), path, &message.header, payloads);
                self.await_correction(now, path);
                Some(Received::Accepted)
            }
        }
    }

    /// A request over TCP is to come again, corrected. Its connection, which carries no IKE SA, is
    /// closed if none does (RFC 9329, 6.3 and 6.4).
    fn await_correction(&mut self, now: Instant, path: &Path) {
        let Some(conn) = path.conn else { return };
        if self.unused.len() >= UNUSED_MAX
            && let Some((_, oldest)) = self.unused.pop_front()
        {
            self.close_unused(oldest);
        }
        self.unused.push_back((now + UNUSED_TIMEOUT, conn));
    }

    fn close_unused(&mut self, conn: ConnToken) {
        if self.table.by_conn(conn).is_empty() {
            self.transmits.push_back(Transmit::Close { conn });
        }
    }

    /// Why a peer may not begin one more IKE SA on this path.
    fn no_room(&self, path: &Path) -> Option<DropReason> {
        let config = &self.config;
        if self.table.len() >= config.ike_sas_max {
            return Some(DropReason::SaLimit);
        }
        let (all, of_source) = self.table.half_open(path.remote.ip());
        if all >= config.half_open_max || of_source >= config.half_open_per_source_max {
            return Some(DropReason::HalfOpenLimit);
        }
        // RFC 9329, 6.1: one IKE SA, and what it is rekeyed to, for each connection.
        let taken = path.conn.is_some_and(|conn| {
            self.table
                .by_conn(conn)
                .iter()
                .any(|id| self.table.get(*id).is_some_and(Session::is_up))
        });
        taken.then_some(DropReason::ConnectionInUse)
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
            // Nobody waits for it any more.
            None => self.transmits.push_back(Transmit::Close { conn }),
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
mod tests;
