//! The initiator of IKE_SA_INIT: its request with repetitions and corrections, and the way from UDP
//! to TCP (RFC 9329, 5.1).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::{derive, fragment_limit, has_sa, init_header, init_payloads, takes_fragments};
use crate::config::{ChildConfig, ConnectionConfig, TransportChoice};
use crate::crypto::{DhError, Private};
use crate::endpoint::{DropReason, Received};
use crate::event::{Event, IkeSaId, InitiationError};
use crate::message::{ExchangeType, Header, Message, NotifyType, Payload};
use crate::nat;
use crate::negotiate;
use crate::path::{Path, Transport};
use crate::proposal::{IkeProposal, IkeSuite, KeyExchange};
use crate::puzzle::Solving;
use crate::sa::auth::Authenticating;
use crate::sa::{Cx, IkeSa, Phase, Session};
use crate::time::Instant;

/// Fewest transmissions over UDP before TCP is tried: one may be lost (RFC 9329, 5.1).
const FALLBACK_AFTER_MIN: u32 = 2;
/// How often a responder may have the request corrected (cookies, INVALID_KE_PAYLOAD).
const RESTARTS_MAX: u32 = 5;
/// Between two slices of work on a puzzle, for others to get their turn.
const SOLVING_PAUSE: Duration = Duration::from_millis(1);
/// Longest cookie (RFC 7296, 2.6).
const COOKIE_LEN_MAX: usize = 64;
/// How often the request may still be repeated after an unauthenticated refusal over UDP.
const SENT_AFTER_REFUSAL_MAX: u32 = 1;

/// Waiting for a TCP connection.
pub(crate) struct Opening {
    pub(in crate::sa) child: Arc<ChildConfig>,
    pub(in crate::sa) deadline: Instant,
}

/// An IKE_SA_INIT request under way.
pub(crate) struct Attempt {
    pub(in crate::sa) spi_i: u64,
    child: Arc<ChildConfig>,
    /// What the responder may choose from, whatever the configuration says when it answers.
    offered: Vec<IkeProposal>,
    private: Private,
    nonce: Vec<u8>,
    cookie: Option<Vec<u8>>,
    /// A puzzle that is being solved, and the solution of the last one.
    solving: Option<Solving>,
    solution: Option<Vec<u8>>,
    request: Vec<u8>,
    /// Transmissions so far.
    sent: u32,
    /// When to send again, to fall back or to give up.
    pub(in crate::sa) due: Instant,
    restarts: u32,
    /// An error notification that came over UDP, and the transmissions since. Anybody may have sent
    /// it, so another answer is waited for a little longer (RFC 7296, 2.21.1).
    refusal: Option<(NotifyType, u32)>,
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
        let own = Some(local.ip()).filter(|local| !local.is_unspecified());
        self.connect(cx, own, remote);
    }

    /// The TCP connection is open.
    pub(in crate::sa) fn opened(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Opening(opening) = &self.phase {
            let child = opening.child.clone();
            self.attempt(cx, child);
        }
    }

    /// Sends a first IKE_SA_INIT on the session's path: new SPI, nonce, key and NAT digests, as RFC
    /// 9329, 5.1 demands after a fallback.
    fn attempt(&mut self, cx: &mut Cx<'_>, child: Arc<ChildConfig>) {
        let offered = self.connection.as_ref().map(|c| c.proposals.clone()).unwrap_or_default();
        let group = offered.first().and_then(|p| p.key_exchange.first()).copied();
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
                offered,
                private,
                nonce,
                cookie: None,
                solving: None,
                solution: None,
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
        // RFC 8019, 7.1.2.
        payloads.extend(attempt.solution.clone().map(Payload::PuzzleSolution));
        let (group, public) = (attempt.private.group(), attempt.private.public().to_vec());
        payloads.push(Payload::Sa(negotiate::ike_offer(&attempt.offered, &[])));
        payloads.push(Payload::Ke(group.transform_id(), public));
        payloads.push(Payload::Nonce(attempt.nonce.clone()));
        payloads.extend(nat::notifies(attempt.spi_i, 0, &self.path, connection.encap));
        payloads.extend(takes_fragments(&connection));
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
    pub(in crate::sa) fn init_due(&mut self, cx: &mut Cx<'_>) {
        let Phase::Init(attempt) = &mut self.phase else { return };
        let Some(connection) = self.connection.clone() else { return };
        if attempt.solving.is_some() {
            self.solve(cx);
            return;
        }
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
    pub(in crate::sa) fn handle_init_response(
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
            return self.cookie_wanted(cx, &message, &cookie.data);
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

    /// The responder wants its cookie back (RFC 7296, 2.6), and maybe a puzzle solved.
    fn cookie_wanted(&mut self, cx: &mut Cx<'_>, message: &Message, cookie: &[u8]) -> Received {
        let Phase::Init(attempt) = &mut self.phase else {
            return Received::Dropped(DropReason::UnexpectedExchange);
        };
        if !(1..=COOKIE_LEN_MAX).contains(&cookie.len()) {
            return Received::Dropped(DropReason::BadPayload);
        }
        if attempt.cookie.as_deref() == Some(cookie) {
            return Received::Repeated;
        }
        let solving =
            message.notify(NotifyType::PUZZLE).and_then(|n| Solving::new(&n.data, cookie));
        if solving.is_none() {
            // Without a puzzle, or with one that is too hard: the cookie alone (RFC 8019, 7.1.1).
            return self.retry_with(cx, |attempt, _| {
                attempt.cookie = Some(cookie.to_vec());
                (attempt.solving, attempt.solution) = (None, None);
                true
            });
        }
        attempt.restarts += 1;
        if attempt.restarts > RESTARTS_MAX {
            return Received::Dropped(DropReason::BadPayload);
        }
        attempt.cookie = Some(cookie.to_vec());
        (attempt.solving, attempt.solution) = (solving, None);
        attempt.due = cx.now + SOLVING_PAUSE;
        Received::Accepted
    }

    /// Goes on solving the puzzle, and sends the request once that is done.
    fn solve(&mut self, cx: &mut Cx<'_>) {
        let (detached, timeout) = (self.is_detached(), self.tcp_response_timeout());
        let Phase::Init(attempt) = &mut self.phase else { return };
        let solution = attempt.solving.as_mut().and_then(|s| s.go_on().map(<[u8]>::to_vec));
        attempt.due = cx.now + SOLVING_PAUSE;
        if solution.is_none() {
            return;
        }
        (attempt.solving, attempt.solution) = (None, solution);
        if detached {
            attempt.due = cx.now + timeout;
            self.reconnect(cx);
        } else {
            self.send_corrected(cx);
        }
    }

    /// Sends the request with what was added to it.
    fn send_corrected(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Init(attempt) = std::mem::replace(&mut self.phase, Phase::Dead) {
            self.send_attempt(cx, *attempt);
        }
    }

    /// Whether the connection is lost that the request went by, and the request goes by another as soon
    /// as its puzzle is solved: a responder holds none for that long, to stay without state (RFC 9329, 6.3
    /// and 6.3.1).
    pub(in crate::sa) fn goes_on_elsewhere(&self) -> bool {
        matches!(&self.phase, Phase::Init(attempt) if attempt.solving.is_some())
    }

    /// The connection is open that a solved puzzle goes by.
    pub(in crate::sa) fn opened_again(&mut self, cx: &mut Cx<'_>, path: &Path) {
        self.path = *path;
        self.send_corrected(cx);
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
        self.retry_with(cx, |attempt, cx| {
            let group = group.and_then(KeyExchange::from_transform_id).filter(|group| {
                *group != attempt.private.group()
                    && attempt.offered.iter().any(|p| p.key_exchange.contains(group))
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
        let Some((suite, public, nonce_r)) = agreed(message, &attempt.offered) else {
            return dropped;
        };
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
        let mut sa = IkeSa::new(spis, true, suite, keys, cx.now, (1, 0));
        sa.fragment = fragment_limit(message, &connection);
        self.sa = Some(sa);
        self.nat = nat::detect(message, path);
        // RFC 4555, 3.3: whoever may move later uses the port that NATs let pass from the start.
        let mobile =
            connection.mobike && message.notify(NotifyType::NAT_DETECTION_DESTINATION_IP).is_some();
        if self.nat.local || self.nat.remote || connection.encap || mobile {
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

/// What a responder agreed to, if it is among what was offered.
fn agreed<'a>(
    message: &'a Message,
    offered: &[IkeProposal],
) -> Option<(IkeSuite, &'a [u8], &'a [u8])> {
    let (proposals, (group, public), nonce) = init_payloads(message)?;
    let answer = negotiate::single(proposals)?;
    let answer = std::slice::from_ref(answer);
    let (_, suite) = negotiate::select_ike(answer, offered, None)?;
    (suite.key_exchange.transform_id() == group).then_some((suite, public, nonce))
}
