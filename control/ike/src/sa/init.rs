//! IKE_SA_INIT (RFC 7296, 1.2), as initiator with its retries and the way from UDP to TCP, and as
//! responder.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::auth::Authenticating;
use super::keyed::IkeSa;
use super::{Cx, Phase, Session};
use crate::config::{ChildConfig, ConnectionConfig, TransportChoice};
use crate::crypto::{DhError, Private, SecretOctets};
use crate::endpoint::{DropReason, Received};
use crate::event::{Event, IkeSaId, InitiationError};
use crate::keys::{IkeKeys, Inputs, skeyseed};
use crate::message::{ExchangeType, Header, Message, NotifyType, Payload, Proposal};
use crate::nat;
use crate::negotiate;
use crate::path::{Path, Transport};
use crate::proposal::{IkeSuite, KeyExchange};
use crate::time::Instant;

/// Fewest transmissions over UDP before TCP is tried: one may be lost (RFC 9329, 5.1).
const FALLBACK_AFTER_MIN: u32 = 2;
/// How often a responder may have the request corrected (cookies, INVALID_KE_PAYLOAD).
const RESTARTS_MAX: u32 = 5;
/// Longest cookie (RFC 7296, 2.6).
const COOKIE_LEN_MAX: usize = 64;
/// How often the request may still be repeated after an unauthenticated refusal over UDP.
const SENT_AFTER_REFUSAL_MAX: u32 = 1;

/// Waiting for a TCP connection.
pub(crate) struct Opening {
    pub(super) child: Arc<ChildConfig>,
    pub(super) deadline: Instant,
}

/// An IKE_SA_INIT request under way.
pub(crate) struct Attempt {
    pub(super) spi_i: u64,
    child: Arc<ChildConfig>,
    private: Private,
    nonce: Vec<u8>,
    cookie: Option<Vec<u8>>,
    request: Vec<u8>,
    /// Transmissions so far.
    sent: u32,
    /// When to send again, to fall back or to give up.
    pub(super) due: Instant,
    restarts: u32,
    /// An error notification that came over UDP, and the transmissions since. Anybody may have sent
    /// it, so another answer is waited for a little longer (RFC 7296, 2.21.1).
    refusal: Option<(NotifyType, u32)>,
}

/// An IKE_SA_INIT request that was answered.
pub(crate) struct Answered {
    pub(super) deadline: Instant,
    /// Connections that the peer may turn out to belong to.
    pub(super) candidates: Vec<Arc<ConnectionConfig>>,
    pub(super) nonce_i: Vec<u8>,
    pub(super) nonce_r: Vec<u8>,
    pub(super) request: Vec<u8>,
    pub(super) response: Vec<u8>,
}

const fn init_header(spi_i: u64, spi_r: u64, response: bool) -> Header {
    Header {
        spi_i,
        spi_r,
        major: 2,
        minor: 0,
        exchange: ExchangeType::IKE_SA_INIT,
        from_initiator: !response,
        response,
        higher_version: false,
        message_id: 0,
    }
}

// The initiator's half.
impl Session {
    /// Begins an IKE SA of `connection` between these addresses.
    pub(crate) fn initiate(
        cx: &mut Cx<'_>,
        id: IkeSaId,
        connection: &Arc<ConnectionConfig>,
        child: Arc<ChildConfig>,
        (local, remote): (std::net::IpAddr, std::net::IpAddr),
        first_contact: bool,
    ) -> Self {
        let path = Path::udp(
            SocketAddr::new(local, connection.local_port),
            SocketAddr::new(remote, connection.remote_port),
        );
        let opening = Opening { child: child.clone(), deadline: cx.now };
        let mut session = Self::new(id, true, path, Phase::Opening(opening), cx.now);
        session.connection = Some(connection.clone());
        session.local_id = Some(connection.local_id.clone());
        session.first_contact = first_contact;
        match connection.transport {
            TransportChoice::Tcp => session.open_tcp(cx, connection, child),
            TransportChoice::Udp | TransportChoice::Auto => session.attempt(cx, child),
        }
        session
    }

    /// Asks for the TCP connection over which IKE_SA_INIT is to go.
    fn open_tcp(
        &mut self,
        cx: &mut Cx<'_>,
        connection: &ConnectionConfig,
        child: Arc<ChildConfig>,
    ) {
        let local = SocketAddr::new(self.path.local.ip(), 0);
        let remote = SocketAddr::new(self.path.remote.ip(), connection.tcp_remote_port);
        self.path = Path { transport: Transport::Tcp, local, remote, conn: None };
        let deadline = cx.now + connection.tcp_response_timeout;
        self.phase = Phase::Opening(Opening { child, deadline });
        self.connect(cx);
    }

    /// The TCP connection is open.
    pub(super) fn opened(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Opening(opening) = &self.phase {
            let child = opening.child.clone();
            self.attempt(cx, child);
        }
    }

    /// Sends a first IKE_SA_INIT on the session's path: new SPI, nonce, key and NAT digests, as RFC
    /// 9329, 5.1 demands after a fallback.
    fn attempt(&mut self, cx: &mut Cx<'_>, child: Arc<ChildConfig>) {
        let group = self
            .connection
            .as_ref()
            .and_then(|c| c.proposals.first().and_then(|p| p.key_exchange.first()).copied());
        let private = group
            .ok_or(DhError::NoPrivate)
            .and_then(|group| Private::generate(group, &mut |out| cx.host.random(out)));
        let Ok(private) = private else {
            self.fail(cx, InitiationError::NoProposalChosen);
            return;
        };
        let (spi_i, nonce) = (cx.spi(), cx.nonce());
        self.send_attempt(
            cx,
            Attempt {
                spi_i,
                child,
                private,
                nonce,
                cookie: None,
                request: Vec::new(),
                sent: 0,
                due: cx.now,
                restarts: 0,
                refusal: None,
            },
        );
    }

    /// Builds the request of an attempt and sends it for the first time.
    fn send_attempt(&mut self, cx: &mut Cx<'_>, mut attempt: Attempt) {
        let Some(connection) = self.connection.clone() else { return };
        let mut payloads = Vec::new();
        if let Some(cookie) = &attempt.cookie {
            // RFC 7296, 2.6: first of all.
            payloads.push(Payload::notify(NotifyType::COOKIE, cookie.clone()));
        }
        let (group, public) = (attempt.private.group(), attempt.private.public().to_vec());
        payloads.push(Payload::Sa(negotiate::ike_offer(&connection.proposals, &[])));
        payloads.push(Payload::Ke(group.transform_id(), public));
        payloads.push(Payload::Nonce(attempt.nonce.clone()));
        payloads.extend(nat::notifies(attempt.spi_i, 0, &self.path, connection.encap));
        let header = init_header(attempt.spi_i, 0, false);
        match Message::new(header, payloads).encode() {
            Ok(octets) => attempt.request = octets,
            Err(_) => {
                self.fail(cx, InitiationError::NoProposalChosen);
                return;
            }
        }
        attempt.sent = 0;
        self.phase = Phase::Init(Box::new(attempt));
        self.transmit_attempt(cx);
    }

    fn transmit_attempt(&mut self, cx: &mut Cx<'_>) {
        let Phase::Init(attempt) = &mut self.phase else { return };
        let Some(connection) = &self.connection else { return };
        attempt.sent += 1;
        attempt.due = cx.now
            + match self.path.transport {
                Transport::Tcp => connection.tcp_response_timeout,
                _ => connection.retransmission.wait(attempt.sent),
            };
        let octets = attempt.request.clone();
        cx.send(&self.path, octets);
    }

    /// IKE_SA_INIT got no answer in time, or only a refusal that nobody vouches for.
    pub(super) fn init_due(&mut self, cx: &mut Cx<'_>) {
        let Phase::Init(attempt) = &mut self.phase else { return };
        let Some(connection) = self.connection.clone() else { return };
        if let Some((kind, sent)) = &mut attempt.refusal {
            *sent += 1;
            if *sent > SENT_AFTER_REFUSAL_MAX {
                let kind = *kind;
                self.fail(cx, InitiationError::PeerRefused(kind));
                return;
            }
        }
        let (sent, child) = (attempt.sent, attempt.child.clone());
        let (transport, remote) = (self.path.transport, self.path.remote);
        let silent = attempt.refusal.is_none() && transport == Transport::Udp;
        let fallback = connection.fallback_after.max(FALLBACK_AFTER_MIN);
        if silent && connection.transport == TransportChoice::Auto && sent >= fallback {
            // RFC 9329, 5.1. The old SPI is forgotten, so that a late answer finds nobody.
            cx.events.push_back(Event::FallbackToTcp { ike: self.id, transmissions: sent });
            self.open_tcp(cx, &connection, child);
        } else if transport == Transport::Udp && sent <= connection.retransmission.tries {
            self.transmit_attempt(cx);
        } else {
            self.fail(cx, InitiationError::NoAnswer { transport, remote });
        }
    }

    /// Takes an answer to IKE_SA_INIT. Nothing in it is authentic yet.
    pub(super) fn handle_init_response(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        let Phase::Init(attempt) = &mut self.phase else {
            return Received::Dropped(DropReason::UnexpectedExchange);
        };
        let fits = header.exchange == ExchangeType::IKE_SA_INIT
            && header.response
            && !header.from_initiator
            && header.message_id == 0
            && header.spi_i == attempt.spi_i
            && path.transport == self.path.transport
            && path.conn == self.path.conn;
        if !fits {
            return Received::Dropped(DropReason::UnexpectedExchange);
        }
        let Ok(message) = Message::decode(octets) else {
            return Received::Dropped(DropReason::BadPayload);
        };
        if let Some(cookie) = message.notify(NotifyType::COOKIE).filter(|_| !has_sa(&message)) {
            return self.retry_with(cx, |attempt, _| {
                attempt.cookie =
                    (1..=COOKIE_LEN_MAX).contains(&cookie.data.len()).then(|| cookie.data.clone());
                attempt.cookie.is_some()
            });
        }
        if let Some(error) = message.error() {
            if error.kind == NotifyType::INVALID_KE_PAYLOAD {
                let group = <[u8; 2]>::try_from(&error.data[..]).map(u16::from_be_bytes).ok();
                return self.retry_with_group(cx, group);
            }
            return self.refused(cx, error.kind);
        }
        self.init_agreed(cx, path, &message, octets)
    }

    /// Sends the request again with a correction, a limited number of times.
    fn retry_with(
        &mut self,
        cx: &mut Cx<'_>,
        correct: impl FnOnce(&mut Attempt, &mut Cx<'_>) -> bool,
    ) -> Received {
        let Phase::Init(mut attempt) = std::mem::replace(&mut self.phase, Phase::Dead) else {
            return Received::Dropped(DropReason::UnexpectedExchange);
        };
        attempt.restarts += 1;
        if attempt.restarts > RESTARTS_MAX || !correct(&mut attempt, cx) {
            // Whoever sends such answers is not who was asked, or is broken: wait for another.
            self.phase = Phase::Init(attempt);
            return Received::Dropped(DropReason::BadPayload);
        }
        self.send_attempt(cx, *attempt);
        Received::Accepted
    }

    /// RFC 7296, 1.2 and 2.7: the same proposals with a public value of the group that the responder
    /// wants, if it is one that was offered.
    fn retry_with_group(&mut self, cx: &mut Cx<'_>, group: Option<u16>) -> Received {
        let Some(connection) = self.connection.clone() else {
            return Received::Dropped(DropReason::BadPayload);
        };
        self.retry_with(cx, |attempt, cx| {
            let group = group.and_then(KeyExchange::from_transform_id).filter(|group| {
                *group != attempt.private.group()
                    && connection.proposals.iter().any(|p| p.key_exchange.contains(group))
            });
            let private =
                group.map(|group| Private::generate(group, &mut |out| cx.host.random(out)));
            match private {
                Some(Ok(private)) => {
                    attempt.private = private;
                    true
                }
                _ => false,
            }
        })
    }

    fn refused(&mut self, cx: &mut Cx<'_>, kind: NotifyType) -> Received {
        match (self.path.transport, &mut self.phase) {
            (Transport::Udp, Phase::Init(attempt)) => {
                attempt.refusal.get_or_insert((kind, 0));
            }
            // RFC 9329, 6.4: over TCP there is nothing to wait for.
            _ => self.fail(cx, InitiationError::PeerRefused(kind)),
        }
        Received::Accepted
    }

    /// The responder agreed: derive the keys and go on to IKE_AUTH.
    fn init_agreed(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        message: &Message,
        octets: &[u8],
    ) -> Received {
        let dropped = Received::Dropped(DropReason::BadPayload);
        let Phase::Init(attempt) = &self.phase else { return dropped };
        let Some(connection) = self.connection.clone() else { return dropped };
        let Some((suite, public, nonce_r)) = agreed(message, &connection) else { return dropped };
        if suite.key_exchange != attempt.private.group() || message.header.spi_r == 0 {
            return dropped;
        }
        let Ok(shared) = attempt.private.agree(public) else { return dropped };
        let spis = (attempt.spi_i, message.header.spi_r);
        let Some(keys) = derive(&suite, spis, (&attempt.nonce, nonce_r), &shared) else {
            return dropped;
        };
        let Phase::Init(attempt) = std::mem::replace(&mut self.phase, Phase::Dead) else {
            return dropped;
        };
        let attempt = *attempt;
        self.sa = Some(IkeSa::new(spis, true, suite, keys, cx.now, (1, 0)));
        self.nat = nat::detect(message, path);
        if self.nat.local || self.nat.remote || connection.encap {
            self.path = nat::float(&self.path);
        }
        self.last_heard = cx.now;
        let authenticating = Authenticating {
            child: attempt.child,
            spi_in: None,
            nonce_i: attempt.nonce,
            nonce_r: nonce_r.to_vec(),
            response: octets.to_vec(),
        };
        self.send_auth(cx, authenticating, &attempt.request);
        Received::Accepted
    }
}

fn has_sa(message: &Message) -> bool {
    message.payloads.iter().any(|p| matches!(p, Payload::Sa(_)))
}

/// The payloads that both messages of the exchange have: proposals, group and public value, nonce.
type InitPayloads<'a> = (&'a [Proposal], (u16, &'a [u8]), &'a [u8]);

fn init_payloads(message: &Message) -> Option<InitPayloads<'_>> {
    let (mut sa, mut ke, mut nonce) = (None, None, None);
    for payload in &message.payloads {
        match payload {
            Payload::Sa(proposals) => sa = Some(&proposals[..]),
            Payload::Ke(group, data) => ke = Some((*group, &data[..])),
            Payload::Nonce(data) => nonce = Some(&data[..]),
            _ => {}
        }
    }
    Some((sa?, ke?, nonce?))
}

/// What a responder agreed to, if it is among what was offered.
fn agreed<'a>(
    message: &'a Message,
    connection: &ConnectionConfig,
) -> Option<(IkeSuite, &'a [u8], &'a [u8])> {
    let (proposals, (group, public), nonce) = init_payloads(message)?;
    let answer = negotiate::single(proposals)?;
    let answer = std::slice::from_ref(answer);
    let (_, suite) = negotiate::select_ike(answer, &connection.proposals, None)?;
    (suite.key_exchange.transform_id() == group).then_some((suite, public, nonce))
}

/// The keys of an IKE SA by IKE_SA_INIT.
fn derive(
    suite: &IkeSuite,
    (spi_i, spi_r): (u64, u64),
    (nonce_i, nonce_r): (&[u8], &[u8]),
    shared: &SecretOctets,
) -> Option<IkeKeys> {
    let inputs = Inputs { nonce_i, nonce_r, spi_i, spi_r };
    IkeKeys::derive(suite, &skeyseed(suite.prf, &inputs, shared), &inputs)
}

/// What came of a peer's IKE_SA_INIT request.
pub(crate) enum Answer {
    /// A half-open IKE SA.
    Session(Box<Session>),
    /// Refused, and said so.
    Refused,
    /// Nothing to answer.
    Dropped(DropReason),
}

// The responder's half.
impl Session {
    /// Answers a first IKE_SA_INIT request.
    pub(crate) fn respond_to_init(
        cx: &mut Cx<'_>,
        id: IkeSaId,
        path: &Path,
        octets: &[u8],
    ) -> Answer {
        let Ok(message) = Message::decode(octets) else {
            // RFC 7296, 2.21.1: an error here may be answered, but need not be; it is not authentic.
            return Answer::Dropped(DropReason::BadPayload);
        };
        let Some((offered, (group, public), nonce_i)) = init_payloads(&message) else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        let tcp = path.transport == Transport::Tcp;
        let mut candidates = cx.host.connections(path.local.ip(), path.remote.ip());
        candidates.retain(|c| c.transport.allows(tcp));
        if candidates.is_empty() {
            return refuse_init(cx, path, &message, InitiationError::NoConnection);
        }
        let sent = KeyExchange::from_transform_id(group);
        let chosen =
            candidates.iter().find_map(|c| negotiate::select_ike(offered, &c.proposals, sent));
        let Some((proposal, suite)) = chosen else {
            return refuse_init(cx, path, &message, InitiationError::NoProposalChosen);
        };
        if suite.key_exchange.transform_id() != group {
            // RFC 7296, 1.2: no state is kept.
            let wanted = suite.key_exchange.transform_id().to_be_bytes();
            let notify = Payload::notify(NotifyType::INVALID_KE_PAYLOAD, wanted);
            reply_in_clear(cx, path, &message.header, vec![notify]);
            return Answer::Refused;
        }
        candidates.retain(|c| {
            let answer = negotiate::ike_answer(proposal, &suite, &[]);
            negotiate::select_ike(&[answer], &c.proposals, None).is_some()
        });
        let Some((session, payloads)) =
            Self::half_open(cx, id, path, &message, (proposal, suite), (public, nonce_i))
        else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        session.answer_init(cx, payloads, candidates, nonce_i, octets)
    }

    /// Derives the keys; gives the session and the payloads of the answer but the notifications.
    fn half_open(
        cx: &mut Cx<'_>,
        id: IkeSaId,
        path: &Path,
        message: &Message,
        (proposal, suite): (&Proposal, IkeSuite),
        (public, nonce_i): (&[u8], &[u8]),
    ) -> Option<(Self, Vec<Payload>)> {
        let group = suite.key_exchange;
        let private = Private::generate(group, &mut |out| cx.host.random(out)).ok()?;
        let shared = private.agree(public).ok()?;
        let nonce_r = cx.nonce();
        let (spi_i, spi_r) = (message.header.spi_i, cx.spi());
        let keys = derive(&suite, (spi_i, spi_r), (nonce_i, &nonce_r), &shared)?;
        let mut session = Self::new(id, false, *path, Phase::Dead, cx.now);
        session.nat = nat::detect(message, path);
        session.sa = Some(IkeSa::new((spi_r, spi_i), false, suite, keys, cx.now, (0, 1)));
        let payloads = vec![
            Payload::Sa(vec![negotiate::ike_answer(proposal, &suite, &[])]),
            Payload::Ke(group.transform_id(), private.public().to_vec()),
            Payload::Nonce(nonce_r),
        ];
        Some((session, payloads))
    }

    fn answer_init(
        mut self,
        cx: &mut Cx<'_>,
        mut payloads: Vec<Payload>,
        candidates: Vec<Arc<ConnectionConfig>>,
        nonce_i: &[u8],
        request: &[u8],
    ) -> Answer {
        let Some((spi_i, spi_r)) = self.sa.as_ref().map(IkeSa::spis) else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        let nonce_r = payloads.iter().find_map(|p| match p {
            Payload::Nonce(nonce) => Some(nonce.clone()),
            _ => None,
        });
        let encap = candidates.first().is_some_and(|c| c.encap);
        payloads.extend(nat::notifies(spi_i, spi_r, &self.path, encap));
        let Ok(response) = Message::new(init_header(spi_i, spi_r, true), payloads).encode() else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        cx.send(&self.path, response.clone());
        let half_open_timeout: Duration = cx.config.half_open_timeout;
        self.phase = Phase::HalfOpen(Box::new(Answered {
            deadline: cx.now + half_open_timeout,
            candidates,
            nonce_i: nonce_i.to_vec(),
            nonce_r: nonce_r.unwrap_or_default(),
            request: request.to_vec(),
            response,
        }));
        Answer::Session(Box::new(self))
    }

    /// Answers a repeated IKE_SA_INIT request, if it is the same as before (RFC 7296, 2.1).
    pub(crate) fn repeat_init(&self, cx: &mut Cx<'_>, path: &Path, octets: &[u8]) -> bool {
        match &self.phase {
            Phase::HalfOpen(answered) if answered.request == octets => {
                cx.send(path, answered.response.clone());
                true
            }
            _ => false,
        }
    }
}

fn refuse_init(cx: &mut Cx<'_>, path: &Path, message: &Message, error: InitiationError) -> Answer {
    let notify = Payload::notify(NotifyType::NO_PROPOSAL_CHOSEN, []);
    reply_in_clear(cx, path, &message.header, vec![notify]);
    cx.events.push_back(Event::Refused { path: *path, error });
    Answer::Refused
}

/// Answers a request without protection and without state.
pub(crate) fn reply_in_clear(
    cx: &mut Cx<'_>,
    path: &Path,
    request: &Header,
    payloads: Vec<Payload>,
) {
    let header = Header {
        major: 2,
        minor: 0,
        from_initiator: !request.from_initiator,
        response: true,
        higher_version: false,
        ..*request
    };
    if let Ok(octets) = Message::new(header, payloads).encode() {
        cx.send(path, octets);
    }
}
