//! One peer relation: an IKE SA through its whole life, with its CHILD SAs.
//!
//! A [`Session`] outlives the keys and SPIs of its IKE SA ([`IkeSa`]), which a rekey replaces. Its
//! [`Phase`] says how far the initial exchanges are; what is only needed in one phase is in that
//! phase and goes with it. The exchanges are in modules of their own: [`init`], [`auth`],
//! [`create`] (CREATE_CHILD_SA), [`inform`]; CHILD SAs are negotiated in [`child`], and paths and
//! TCP connections kept in [`link`].

mod auth;
mod child;
mod create;
mod inform;
mod init;
mod keyed;
mod link;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ChildConfig, ConnectionConfig};
use crate::endpoint::{DropReason, EndpointConfig, Received};
use crate::event::{
    ChildId, ChildSnapshot, DownReason, Event, IkeSaId, IkeSnapshot, IkeState, InitiationError,
    Transmit,
};
use crate::host::Host;
use crate::id::{IdKind, Identity};
use crate::message::{CodecError, ExchangeType, Header, Message, NotifyType, Payload};
use crate::nat::Nat;
use crate::path::{ConnToken, ConnectRequest, Path, Transport};
use crate::time::Instant;

use child::{Child, ChildRequest};
pub(crate) use keyed::IkeSa;
use keyed::Window;
use link::Link;

pub(crate) use init::{Answer, reply_in_clear};

/// How long the last response is kept after an IKE SA is gone, to answer a repeated request; then
/// its TCP connection is closed (RFC 9329, 6.1: "a few seconds").
const LINGER: Duration = Duration::from_secs(5);
/// How long a peer that rekeyed its IKE SA may take to delete the old one.
const RETIRED_TIMEOUT: Duration = Duration::from_secs(60);
/// Octets of the nonces of this side: half the key of the longest PRF, as RFC 7296, 2.10 asks.
const NONCE_LEN: usize = 32;
/// Exchanges that may wait for the window of an IKE SA.
const TASKS_MAX: usize = 128;

/// What every handler is lent.
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    pub(crate) host: &'a mut dyn Host,
    pub(crate) transmits: &'a mut VecDeque<Transmit>,
    pub(crate) events: &'a mut VecDeque<Event>,
    pub(crate) config: &'a EndpointConfig,
    /// The next [`ChildId`] and [`ConnectRequest`].
    pub(crate) next_id: &'a mut u64,
}

impl Cx<'_> {
    fn id(&mut self) -> u64 {
        *self.next_id += 1;
        *self.next_id
    }

    /// A random SPI. Never zero; that two of 2^64 are alike is not to be expected.
    pub(crate) fn spi(&mut self) -> u64 {
        let mut octets = [0; 8];
        self.host.random(&mut octets);
        u64::from_be_bytes(octets).max(1)
    }

    fn nonce(&mut self) -> Vec<u8> {
        let mut nonce = vec![0; NONCE_LEN];
        self.host.random(&mut nonce);
        nonce
    }

    pub(crate) fn send(&mut self, path: &Path, octets: Vec<u8>) {
        self.transmits.push_back(Transmit::Message { path: *path, octets });
    }
}

/// How far an IKE SA is.
pub(crate) enum Phase {
    /// Initiator: waiting for a TCP connection.
    Opening(init::Opening),
    /// Initiator: IKE_SA_INIT is sent.
    Init(Box<init::Attempt>),
    /// Initiator: IKE_AUTH is sent.
    Auth(Box<auth::Authenticating>),
    /// Responder: IKE_SA_INIT is answered.
    HalfOpen(Box<init::Answered>),
    /// The peer is authenticated.
    Established,
    /// A Delete of the IKE SA is to be sent, or sent, for this reason.
    Deleting(DownReason),
    /// Gone, but repeated requests are still answered until then.
    Closed(Instant),
    /// Nothing is left.
    Dead,
}

/// What an outstanding request asked for.
pub(crate) enum Asked {
    /// IKE_AUTH; its state is in [`Phase::Auth`].
    Auth,
    /// Are you there?
    Liveness,
    /// Delete the IKE SA.
    DeleteIke,
    /// Delete a pair of CHILD SAs.
    DeleteChild(ChildId),
    /// Delete a pair that was never installed here.
    DeleteStray(u32),
    /// A new pair.
    Child(Box<ChildRequest>),
}

/// A request that waits for its response.
pub(crate) struct Outstanding {
    message_id: u32,
    octets: Vec<u8>,
    asked: Asked,
    /// Transmissions over UDP so far.
    sent: u32,
    /// When to send it again, or to give the peer up.
    due: Instant,
}

/// Something to be asked when the window is free.
pub(crate) enum Task {
    Liveness,
    DeleteIke,
    DeleteChild(ChildId, DownReason),
    DeleteStray(u32),
    Child(Arc<ChildConfig>),
    RekeyChild(ChildId),
}

/// An IKE SA that the peer has rekeyed and not deleted yet.
struct Retired {
    sa: IkeSa,
    until: Instant,
}

/// One peer relation. See the module's documentation.
pub(crate) struct Session {
    pub(crate) id: IkeSaId,
    /// Whether this side began; over TCP it is the Originator for ever (RFC 9329, 1.2).
    pub(crate) initiator: bool,
    pub(crate) connection: Option<Arc<ConnectionConfig>>,
    pub(crate) path: Path,
    pub(crate) link: Link,
    pub(crate) nat: Nat,
    pub(crate) phase: Phase,
    sa: Option<IkeSa>,
    retired: Option<Retired>,
    children: Vec<Child>,
    pub(crate) local_id: Option<Identity>,
    pub(crate) remote_id: Option<Identity>,
    outstanding: Option<Outstanding>,
    tasks: VecDeque<Task>,
    since: Instant,
    last_heard: Instant,
    /// Whether this is the only IKE SA of its connection, as far as is known (INITIAL_CONTACT).
    first_contact: bool,
    /// Set when the peer was authenticated just now: others of the same peer are to go.
    replaces: Option<Replaces>,
}

/// How older IKE SAs of the same peer are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaces {
    /// The peer knows nothing of them any more (INITIAL_CONTACT): silently.
    Silently,
    /// By configuration (`unique`): with a Delete.
    WithDelete,
}

impl Session {
    fn new(id: IkeSaId, initiator: bool, path: Path, phase: Phase, now: Instant) -> Self {
        Self {
            id,
            initiator,
            connection: None,
            path,
            link: Link::default(),
            nat: Nat::default(),
            phase,
            sa: None,
            retired: None,
            children: Vec::new(),
            local_id: None,
            remote_id: None,
            outstanding: None,
            tasks: VecDeque::new(),
            since: now,
            last_heard: now,
            first_contact: false,
            replaces: None,
        }
    }

    fn connection_name(&self) -> String {
        self.connection.as_ref().map(|c| c.name.clone()).unwrap_or_default()
    }

    /// The local SPIs by which messages find this session.
    pub(crate) fn spis(&self) -> Vec<u64> {
        let mut spis: Vec<u64> = self.sa.iter().map(|sa| sa.spi_local).collect();
        spis.extend(self.retired.iter().map(|r| r.sa.spi_local));
        if let Phase::Init(attempt) = &self.phase {
            spis.push(attempt.spi_i);
        }
        spis
    }

    /// The initiator's SPI, while this is a half-open SA that a peer began.
    pub(crate) fn half_open_spi(&self) -> Option<u64> {
        match (&self.phase, &self.sa) {
            (Phase::HalfOpen(_), Some(sa)) => Some(sa.spi_remote),
            _ => None,
        }
    }

    /// Whether the peer is authenticated and not gone.
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Established | Phase::Deleting(_))
    }

    pub(crate) const fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead)
    }

    /// Octets that are equal exactly for the same authenticated pair of identities.
    pub(crate) fn peer_key(&self) -> Option<Vec<u8>> {
        let (local, remote) = (self.local_id.as_ref()?, self.remote_id.as_ref()?);
        let mut key = Vec::new();
        for id in [local, remote] {
            key.push(id.kind().number());
            key.extend_from_slice(&u32::try_from(id.data().len()).ok()?.to_be_bytes());
            match id.kind() {
                IdKind::Fqdn | IdKind::Rfc822 => key.extend(id.data().to_ascii_lowercase()),
                _ => key.extend_from_slice(id.data()),
            }
        }
        self.is_up().then_some(key)
    }

    pub(crate) const fn take_replaces(&mut self) -> Option<Replaces> {
        self.replaces.take()
    }

    pub(crate) fn has_child(&self, id: ChildId) -> bool {
        self.children.iter().any(|c| c.id == id)
    }

    /// Takes a message whose SPI is this session's.
    pub(crate) fn handle(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        if let Phase::Init(_) = self.phase {
            return self.handle_init_response(cx, path, header, octets);
        }
        let local = if header.from_initiator { header.spi_r } else { header.spi_i };
        if self.retired.as_ref().is_some_and(|r| r.sa.spi_local == local) {
            return self.handle_retired(cx, path, header, octets);
        }
        let Some(sa) = &self.sa else { return Received::Dropped(DropReason::UnexpectedExchange) };
        let (spi_i, spi_r) = sa.spis();
        if (header.spi_i, header.spi_r) != (spi_i, spi_r) || header.from_initiator == sa.initiator {
            return Received::Dropped(DropReason::UnknownSpi);
        }
        if header.exchange == ExchangeType::IKE_SA_INIT {
            return Received::Dropped(DropReason::UnexpectedExchange);
        }
        if header.response {
            self.handle_response(cx, path, header, octets)
        } else {
            self.handle_request(cx, path, header, octets)
        }
    }

    fn handle_request(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        let Some(sa) = &mut self.sa else { return Received::Dropped(DropReason::UnknownSpi) };
        let window = sa.window(header.message_id);
        if window == Window::Outside {
            return Received::Dropped(DropReason::MessageId);
        }
        let message = match sa.open(octets) {
            Err(CodecError::Icv) => return Received::Dropped(DropReason::BadIcv),
            Err(CodecError::Header | CodecError::TooLong) => {
                return Received::Dropped(DropReason::BadPayload);
            }
            result => result,
        };
        self.last_heard = cx.now;
        if window == Window::Repeated {
            // RFC 7296, 2.1. A repetition does not move the path (RFC 9329, 6.1), but is answered
            // where it came from.
            if let Some(cached) = sa.cached() {
                cx.send(path, cached.to_vec());
            }
            return Received::Repeated;
        }
        if let Phase::Closed(_) = self.phase {
            return Received::Dropped(DropReason::UnexpectedExchange);
        }
        self.heard(cx, path);
        match message {
            Ok(message) => self.dispatch_request(cx, path, &message),
            Err(error) => {
                self.answer_undecodable(cx, path, header, error);
                Received::Accepted
            }
        }
    }

    fn dispatch_request(&mut self, cx: &mut Cx<'_>, path: &Path, message: &Message) -> Received {
        match (message.header.exchange, &self.phase) {
            (ExchangeType::IKE_AUTH, Phase::HalfOpen(_)) => self.handle_auth(cx, path, message),
            (ExchangeType::INFORMATIONAL, Phase::Established | Phase::Deleting(_)) => {
                self.handle_informational(cx, path, message);
            }
            (ExchangeType::CREATE_CHILD_SA, Phase::Established | Phase::Deleting(_)) => {
                self.handle_create(cx, path, message);
            }
            _ => return Received::Dropped(DropReason::UnexpectedExchange),
        }
        Received::Accepted
    }

    /// An authentic request that cannot be decoded (RFC 7296, 2.5 and 2.21.2; RFC 9329, 6.1: the IKE
    /// SA goes, the TCP connection stays).
    fn answer_undecodable(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        error: CodecError,
    ) {
        let notify = match error {
            CodecError::Critical(kind) => {
                Payload::notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, [kind])
            }
            _ => Payload::notify(NotifyType::INVALID_SYNTAX, []),
        };
        self.respond(cx, path, header.exchange, vec![notify]);
        match (error, &self.phase) {
            (CodecError::Critical(_), Phase::Established) => {}
            (_, Phase::HalfOpen(_)) => {
                self.refuse(cx, path, InitiationError::PeerMisbehaved("IKE_AUTH was malformed"));
            }
            _ => self.close(cx, DownReason::ProtocolError("a request was malformed")),
        }
    }

    /// Sends the response to the request that is being handled.
    fn respond(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
    ) {
        let Some(sa) = &mut self.sa else { return };
        if let Ok(octets) = sa.response(exchange, payloads) {
            cx.send(path, octets);
        }
        if sa.is_exhausted() {
            self.close(cx, DownReason::ProtocolError("its Message IDs are used up"));
        }
    }

    fn handle_response(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        let due = self.outstanding.as_ref().is_some_and(|o| o.message_id == header.message_id);
        let Some(sa) = self.sa.as_ref().filter(|_| due) else {
            return Received::Dropped(DropReason::MessageId);
        };
        let message = match sa.open(octets) {
            Err(CodecError::Icv) => return Received::Dropped(DropReason::BadIcv),
            Err(CodecError::Header | CodecError::TooLong) => {
                return Received::Dropped(DropReason::BadPayload);
            }
            result => result,
        };
        self.last_heard = cx.now;
        self.heard(cx, path);
        let Some(outstanding) = self.outstanding.take() else {
            return Received::Dropped(DropReason::MessageId);
        };
        let message = match message {
            Ok(message) => message,
            // RFC 7296, 2.21.3: an error in a response ends the IKE SA without a word.
            Err(_) if matches!(outstanding.asked, Asked::Auth) => {
                self.fail(cx, InitiationError::PeerMisbehaved("its IKE_AUTH was malformed"));
                return Received::Accepted;
            }
            Err(_) => {
                self.abandon(cx, outstanding.asked);
                self.close(cx, DownReason::ProtocolError("a response was malformed"));
                return Received::Accepted;
            }
        };
        match outstanding.asked {
            Asked::Auth => self.handle_auth_response(cx, &message),
            Asked::Liveness => {}
            Asked::DeleteIke => self.finish_delete(cx),
            Asked::DeleteChild(child) => self.remove_child(cx, child, None),
            Asked::DeleteStray(spi_in) => cx.host.release_child(spi_in),
            Asked::Child(request) => self.handle_child_response(cx, *request, &message),
        }
        self.pump(cx);
        Received::Accepted
    }

    /// Sends a request now; the window must be free.
    fn request(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
        asked: Asked,
    ) {
        let Some(sa) = &mut self.sa else { return };
        let Ok((message_id, octets)) = sa.request(exchange, payloads) else { return };
        let due = cx.now;
        self.outstanding = Some(Outstanding { message_id, octets, asked, sent: 0, due });
        self.transmit(cx);
    }

    /// Asks what is to be asked next, if the window is free.
    pub(crate) fn pump(&mut self, cx: &mut Cx<'_>) {
        while self.outstanding.is_none() && self.is_up() {
            let Some(task) = self.tasks.pop_front() else { return };
            match task {
                Task::Liveness => {
                    self.request(cx, ExchangeType::INFORMATIONAL, Vec::new(), Asked::Liveness);
                }
                Task::DeleteIke => self.send_delete_ike(cx),
                Task::DeleteChild(child, reason) => self.send_delete_child(cx, child, reason),
                Task::DeleteStray(spi_in) => self.send_delete_stray(cx, spi_in),
                Task::Child(config) => self.send_child_request(cx, config, None),
                Task::RekeyChild(child) => self.send_child_rekey(cx, child),
            }
        }
    }

    fn push_task(&mut self, cx: &mut Cx<'_>, task: Task) {
        if self.tasks.len() < TASKS_MAX {
            self.tasks.push_back(task);
        }
        self.pump(cx);
    }

    /// Ends an IKE SA that was up, at once and without a message; its CHILD SAs go too. Repetitions
    /// of the peer's last request are answered a little longer.
    pub(crate) fn close(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        if !self.is_up() {
            return;
        }
        if let Some(outstanding) = self.outstanding.take() {
            self.abandon(cx, outstanding.asked);
        }
        while let Some(child) = self.children.first().map(|c| c.id) {
            self.remove_child(cx, child, Some(DownReason::IkeGone));
        }
        for task in std::mem::take(&mut self.tasks) {
            if let Task::DeleteStray(spi_in) = task {
                cx.host.release_child(spi_in);
            }
        }
        self.retired = None;
        self.phase = Phase::Closed(cx.now + LINGER);
        let connection = self.connection_name();
        cx.events.push_back(Event::IkeDown { ike: self.id, connection, reason });
    }

    /// Gives back what an unanswered request holds.
    fn abandon(&mut self, cx: &mut Cx<'_>, asked: Asked) {
        match asked {
            Asked::Child(request) => cx.host.release_child(request.spi_in),
            Asked::DeleteStray(spi_in) => cx.host.release_child(spi_in),
            Asked::Auth | Asked::Liveness | Asked::DeleteIke | Asked::DeleteChild(_) => {}
        }
    }

    /// Ends an initiation that came to nothing.
    fn fail(&mut self, cx: &mut Cx<'_>, error: InitiationError) {
        if let Phase::Auth(auth) = std::mem::replace(&mut self.phase, Phase::Dead) {
            auth.release(cx);
        }
        self.outstanding = None;
        self.close_connection(cx);
        let connection = self.connection_name();
        cx.events.push_back(Event::InitiationFailed { ike: self.id, connection, error });
    }

    /// Turns a peer's attempt down; the refusal was sent as a response.
    fn refuse(&mut self, cx: &mut Cx<'_>, path: &Path, error: InitiationError) {
        self.phase = Phase::Closed(cx.now + LINGER);
        cx.events.push_back(Event::Refused { path: *path, error });
    }

    /// Deletes the IKE SA at the wish of this side.
    pub(crate) fn terminate(&mut self, cx: &mut Cx<'_>, reason: DownReason) {
        match self.phase {
            Phase::Established => {
                self.phase = Phase::Deleting(reason);
                // What else is waiting has lost its sense.
                self.tasks.retain(|task| matches!(task, Task::DeleteStray(_)));
                self.tasks.push_back(Task::DeleteIke);
                self.pump(cx);
            }
            Phase::Opening(_) | Phase::Init(_) | Phase::Auth(_) => {
                self.fail(cx, InitiationError::Terminated);
            }
            Phase::HalfOpen(_) => self.phase = Phase::Dead,
            Phase::Deleting(_) | Phase::Closed(_) | Phase::Dead => {}
        }
    }

    pub(crate) fn ask_child(&mut self, cx: &mut Cx<'_>, config: Arc<ChildConfig>) {
        self.push_task(cx, Task::Child(config));
    }

    pub(crate) fn rekey_child(&mut self, cx: &mut Cx<'_>, child: ChildId) {
        self.push_task(cx, Task::RekeyChild(child));
    }

    /// The IKE SA's windows and keys, to play its peer by hand.
    #[cfg(test)]
    pub(crate) const fn sa_mut(&mut self) -> &mut Option<IkeSa> {
        &mut self.sa
    }

    pub(crate) fn terminate_child(&mut self, cx: &mut Cx<'_>, child: ChildId) {
        self.push_task(cx, Task::DeleteChild(child, DownReason::TerminatedLocally));
    }

    /// When something is due next.
    pub(crate) fn timeout(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Opening(opening) => Some(opening.deadline),
            Phase::Init(attempt) => Some(attempt.due),
            Phase::HalfOpen(answered) => Some(answered.deadline),
            Phase::Closed(until) => Some(*until),
            Phase::Auth(_) | Phase::Established | Phase::Deleting(_) | Phase::Dead => None,
        };
        [
            phase,
            self.outstanding.as_ref().map(|o| o.due),
            self.liveness_due(),
            self.link.retry_at(),
            self.retired.as_ref().map(|r| r.until),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        match &self.phase {
            Phase::Opening(opening) if opening.deadline <= now => {
                let remote = self.path.remote;
                self.fail(cx, InitiationError::NoAnswer { transport: Transport::Tcp, remote });
            }
            Phase::Init(attempt) if attempt.due <= now => self.init_due(cx),
            Phase::HalfOpen(answered) if answered.deadline <= now => {
                self.phase = Phase::Dead;
                self.close_connection(cx);
            }
            Phase::Closed(until) if *until <= now => {
                self.phase = Phase::Dead;
                self.close_connection(cx);
            }
            _ => {}
        }
        if self.retired.as_ref().is_some_and(|r| r.until <= now) {
            self.retired = None;
        }
        if self.outstanding.as_ref().is_some_and(|o| o.due <= now) {
            self.outstanding_due(cx);
        }
        self.retry_connection(cx);
        if self.liveness_due().is_some_and(|due| due <= now) {
            self.check_liveness(cx);
        }
    }

    /// A row for tables; `None` once it is gone.
    pub(crate) fn snapshot(&self) -> Option<IkeSnapshot> {
        let state = match &self.phase {
            Phase::Opening(_) | Phase::Init(_) => IkeState::Connecting,
            Phase::Auth(_) | Phase::HalfOpen(_) => IkeState::HalfOpen,
            Phase::Established => IkeState::Established,
            Phase::Deleting(_) => IkeState::Deleting,
            Phase::Closed(_) | Phase::Dead => return None,
        };
        let (spi_i, spi_r) = match (&self.sa, &self.phase) {
            (Some(sa), _) => sa.spis(),
            (None, Phase::Init(attempt)) => (attempt.spi_i, 0),
            _ => (0, 0),
        };
        Some(IkeSnapshot {
            id: self.id,
            connection: self.connection_name(),
            state,
            initiator: self.initiator,
            spi_i,
            spi_r,
            local_id: self.local_id.clone(),
            remote_id: self.remote_id.clone(),
            suite: self.sa.as_ref().map(|sa| sa.suite),
            path: self.path,
            nat_local: self.nat.local,
            nat_remote: self.nat.remote,
            since: self.since,
            keyed: self.sa.as_ref().map_or(self.since, |sa| sa.keyed),
            last_heard: self.last_heard,
            children: self.children.iter().map(|c| self.child_snapshot(c)).collect(),
        })
    }

    fn child_snapshot(&self, child: &Child) -> ChildSnapshot {
        ChildSnapshot {
            id: child.id,
            name: child.config.name.clone(),
            spi_in: child.spi_in,
            spi_out: child.spi_out,
            suite: child.suite,
            transport: self.child_path().transport,
            local_ts: child.local_ts.clone(),
            remote_ts: child.remote_ts.clone(),
            since: child.since,
        }
    }

    /// The TCP connection in use, and the request for one.
    pub(crate) fn connections(&self) -> (Option<ConnToken>, Option<ConnectRequest>) {
        (self.path.conn, self.link.request())
    }
}
