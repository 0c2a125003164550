//! MOBIKE (RFC 4555) and moves between UDP and TCP (RFC 9329, 7.1).
//!
//! The initiator moves: over UDP it *tries* the new way with UPDATE_SA_ADDRESSES, and takes it when
//! an answer comes on it; without one the same request, with the same Message ID, goes over TCP, and
//! a second exchange with fresh NAT digests follows. The responder takes the way that a new authentic
//! UPDATE_SA_ADDRESSES came on; over UDP it sends ESP there only once a cookie came back (return
//! routability, RFC 4555, 3.7; a TCP connection has shown that). What happens when the present way
//! gives no answer is in [`super::failover`].

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::exchange::{Asked, Task};
use super::{Cx, Phase, Session};
use crate::config::{ConnectionConfig, TransportChoice};
use crate::event::{DownReason, Event, MoveFailure};
use crate::host::Mode;
use crate::message::{ExchangeType, Message, NotifyType, Payload};
use crate::nat::{self, Nat};
use crate::path::{NAT_T_PORT, Path, Transport};
use crate::time::Instant;

/// Octets of a COOKIE2 of this side.
const COOKIE2_LEN: usize = 16;
/// Octets of one that is given back (RFC 4555, 4.2.5). What is longer would stay in the cached response,
/// and in every snapshot.
const COOKIE2_LENS: std::ops::RangeInclusive<usize> = 8..=64;
/// Most further addresses of a peer that are kept.
pub(super) const ADDRESSES_MAX: usize = 16;
/// Transmissions over UDP before a move falls back to TCP.
pub(super) const MOVE_TRIES: u32 = 3;
/// Answers to UPDATE_SA_ADDRESSES in a row that may come another way than the request went.
const STRAY_ANSWERS_MAX: u8 = 3;

/// Where an IKE SA is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathChoice {
    /// UDP, tried first; TCP if there is no answer and [`TransportChoice::Auto`] is configured.
    Udp {
        /// This gateway's address; `None`: as now.
        local: Option<IpAddr>,
        /// The peer's address; `None`: as now.
        remote: Option<IpAddr>,
    },
    /// A new TCP connection.
    Tcp {
        /// This gateway's address; `None`: the route's.
        local: Option<IpAddr>,
        /// The peer's address; `None`: as now.
        remote: Option<IpAddr>,
    },
}

/// The notifications by which both sides say in IKE_AUTH that they take part, and from where they can
/// be reached besides.
pub(super) fn announce(connection: &ConnectionConfig, path: &Path) -> Vec<Payload> {
    if !connection.mobike {
        return Vec::new();
    }
    let supported = Payload::notify(NotifyType::MOBIKE_SUPPORTED, []);
    std::iter::once(supported).chain(further(connection, path)).collect()
}

/// This gateway's addresses besides that of `path` (RFC 4555, 3.4).
fn further(connection: &ConnectionConfig, path: &Path) -> impl Iterator<Item = Payload> {
    let own = path.local.ip();
    let others = connection.additional_addrs.iter().filter(move |a| **a != own);
    others.take(ADDRESSES_MAX).map(|a| match a {
        IpAddr::V4(a) => Payload::notify(NotifyType::ADDITIONAL_IP4_ADDRESS, a.octets()),
        IpAddr::V6(a) => Payload::notify(NotifyType::ADDITIONAL_IP6_ADDRESS, a.octets()),
    })
}

/// The further addresses that a message lists; `None` where it says nothing about them.
fn addresses(message: &Message) -> Option<Vec<IpAddr>> {
    let listed: Vec<IpAddr> = message
        .notifies()
        .filter_map(|n| match n.kind {
            NotifyType::ADDITIONAL_IP4_ADDRESS => {
                <[u8; 4]>::try_from(&n.data[..]).map(IpAddr::from).ok()
            }
            NotifyType::ADDITIONAL_IP6_ADDRESS => {
                <[u8; 16]>::try_from(&n.data[..]).map(IpAddr::from).ok()
            }
            _ => None,
        })
        .take(ADDRESSES_MAX)
        .collect();
    let none = message.notify(NotifyType::NO_ADDITIONAL_ADDRESSES).is_some();
    (none || !listed.is_empty()).then_some(listed)
}

impl Session {
    /// What the peer said about MOBIKE in IKE_AUTH.
    pub(super) fn note_mobike(&mut self, message: &Message) {
        let wanted = self.connection.as_ref().is_some_and(|c| c.mobike);
        self.mobike = wanted && message.notify(NotifyType::MOBIKE_SUPPORTED).is_some();
        self.peer_addresses = addresses(message).unwrap_or_default();
    }

    /// Takes over what a changed configuration says of this connection. What was negotiated stays; the
    /// peer is told of changed addresses.
    pub(crate) fn reconfigure(&mut self, cx: &mut Cx<'_>, connection: &Arc<ConnectionConfig>) {
        let addresses = |c: &ConnectionConfig| c.additional_addrs.clone();
        self.reconfigure_children(connection);
        let before = self.connection.replace(connection.clone());
        let changed = before.is_none_or(|before| addresses(&before) != addresses(connection));
        if changed && self.mobike && matches!(self.phase, Phase::Established) {
            self.push_task(cx, Task::Addresses);
        }
    }

    /// Tells the peer all addresses of this gateway anew (RFC 4555, 3.6).
    pub(super) fn send_addresses(&mut self, cx: &mut Cx<'_>) {
        let Some(connection) = &self.connection else { return };
        let mut payloads: Vec<Payload> = further(connection, &self.path).collect();
        if payloads.is_empty() {
            payloads.push(Payload::notify(NotifyType::NO_ADDITIONAL_ADDRESSES, []));
        }
        self.request(cx, ExchangeType::INFORMATIONAL, payloads, Asked::Addresses);
    }

    /// Whether this side may move the IKE SA (RFC 4555, 3.5: the initiator decides).
    pub(crate) fn may_move(&self) -> bool {
        self.mobike && self.initiator && matches!(self.phase, Phase::Established)
    }

    /// Whether this side may move it to there.
    pub(crate) fn may_move_to(&self, to: PathChoice) -> bool {
        let (PathChoice::Udp { local, remote } | PathChoice::Tcp { local, remote }) = to;
        let local = local.unwrap_or(self.path.local.ip());
        let remote = remote.unwrap_or(self.path.remote.ip());
        self.may_move() && self.lets_go(local, remote)
    }

    /// Whether the CHILD SAs can be at these addresses: those in transport mode stay at theirs, which
    /// are their traffic selectors (RFC 4555, 1.2: it is for tunnel mode).
    pub(super) fn lets_go(&self, local: IpAddr, remote: IpAddr) -> bool {
        let stays = (self.path.local.ip(), self.path.remote.ip()) == (local, remote);
        stays || self.children.iter().all(|child| child.mode == Mode::Tunnel)
    }

    /// Moves the IKE SA and its CHILD SAs.
    pub(crate) fn move_to(&mut self, cx: &mut Cx<'_>, to: PathChoice) {
        match to {
            PathChoice::Udp { local, remote } => {
                let local = local.unwrap_or(self.path.local.ip());
                let remote = remote.unwrap_or(self.path.remote.ip());
                self.tried = 0;
                self.try_path(cx, self.udp_path(local, remote));
            }
            PathChoice::Tcp { local, remote } => {
                let remote = remote.unwrap_or(self.path.remote.ip());
                self.connect_to(cx, local, remote);
            }
        }
    }

    /// The way over UDP between these addresses.
    pub(super) fn udp_path(&self, local: IpAddr, remote: IpAddr) -> Path {
        let port = match self.path.transport {
            Transport::Udp if self.path.has_non_esp_marker() => self.path.remote.port(),
            _ => NAT_T_PORT,
        };
        Path::udp(SocketAddr::new(local, NAT_T_PORT), SocketAddr::new(remote, port))
    }

    /// Asks the peer by this way to take it.
    pub(super) fn try_path(&mut self, cx: &mut Cx<'_>, path: Path) {
        self.replace_update(Some(path));
        // RFC 4555, 3.5: what waits for an answer goes the new way at once.
        if let Some(outstanding) = &mut self.outstanding {
            (outstanding.via, outstanding.sent) = (Some(path), 0);
            self.transmit(cx);
        }
        self.pump(cx);
    }

    /// The next thing to be asked is UPDATE_SA_ADDRESSES, this one only.
    pub(super) fn replace_update(&mut self, via: Option<Path>) {
        self.forget_updates();
        self.tasks.push_front(Task::Update(via));
    }

    /// UPDATE_SA_ADDRESSES is not asked any more.
    pub(super) fn forget_updates(&mut self) {
        self.tasks.retain(|task| !matches!(task, Task::Update(_)));
    }

    /// When UDP is tried again from TCP.
    pub(super) fn probe_due(&self) -> Option<Instant> {
        let config = self.connection.as_ref()?;
        let on_tcp = self.path.conn.is_some() && config.transport == TransportChoice::Auto;
        let idle = on_tcp && self.may_move() && self.outstanding.is_none();
        config.udp_probe.filter(|_| idle).map(|wait| self.probed + wait)
    }

    /// Tries UDP again. ESP stays on TCP until the peer has answered over UDP.
    pub(super) fn probe(&mut self, cx: &mut Cx<'_>) {
        if self.probe_due().is_some_and(|due| due <= cx.now) {
            self.probed = cx.now;
            self.move_to(cx, PathChoice::Udp { local: None, remote: None });
        }
    }

    /// Opens a TCP connection to move to.
    fn connect_to(&mut self, cx: &mut Cx<'_>, local: Option<IpAddr>, remote: IpAddr) {
        let Some(connection) = &self.connection else { return };
        let port = connection.tcp_remote_port;
        self.connect(cx, local, SocketAddr::new(remote, port));
    }

    /// Sends UPDATE_SA_ADDRESSES: `via` a way that is tried, or on the present path.
    pub(super) fn send_update(&mut self, cx: &mut Cx<'_>, via: Option<Path>) {
        let path = via.unwrap_or(self.path);
        let Some((spi_i, spi_r)) = self.sa.as_ref().map(super::IkeSa::spis) else { return };
        let encap = self.connection.as_ref().is_some_and(|c| c.encap);
        let mut payloads = vec![Payload::notify(NotifyType::UPDATE_SA_ADDRESSES, [])];
        payloads.extend(nat::notifies(spi_i, spi_r, &path, encap));
        self.request_via(cx, ExchangeType::INFORMATIONAL, payloads, Asked::Update(path), via);
    }

    /// A request on a way that is tried has got no answer. Whether something else is done about it.
    pub(super) fn give_up_trial(&mut self, cx: &mut Cx<'_>) -> bool {
        let auto = self.connection.as_ref().is_some_and(|c| c.transport == TransportChoice::Auto);
        let timeout = self.tcp_response_timeout();
        let Some(outstanding) = &mut self.outstanding else { return false };
        let Some(via) = outstanding.via.filter(|_| outstanding.sent >= MOVE_TRIES) else {
            return false;
        };
        // RFC 9329, 7.1: the same request with the same Message ID, no new exchange. Without TCP to fall
        // back to, the present path may be as good as before.
        let on_tcp = self.path.transport == Transport::Tcp && self.path.conn.is_some();
        if on_tcp || !auto {
            (outstanding.via, outstanding.sent) = (None, 0);
            self.transmit(cx);
            self.move_failed(cx, MoveFailure::NoAnswer);
            return true;
        }
        (outstanding.via, outstanding.due) = (None, cx.now + timeout);
        self.connect_to(cx, Some(via.local.ip()), via.remote.ip());
        self.link.fallback = true;
        true
    }

    /// The peer answered UPDATE_SA_ADDRESSES, whose digests were those of `digested`; the answer came
    /// on `path`.
    pub(super) fn handle_update_response(
        &mut self,
        cx: &mut Cx<'_>,
        digested: &Path,
        path: &Path,
        message: &Message,
    ) {
        if let Some(error) = message.error() {
            // UNACCEPTABLE_ADDRESSES or UNEXPECTED_NAT_DETECTED: everything stays as it was.
            self.move_failed(cx, MoveFailure::PeerRefused(error.kind));
            return;
        }
        let same = |a: &Path, b: &Path| {
            (a.transport, a.local, a.remote, a.conn) == (b.transport, b.local, b.remote, b.conn)
        };
        if !same(digested, path) {
            // RFC 9329, 7.1: it went another way than its digests say.
            self.stray_answers += 1;
            if self.stray_answers > STRAY_ANSWERS_MAX {
                self.stray_answers = 0;
                self.move_failed(cx, MoveFailure::AnsweredFromElsewhere);
            } else {
                let tried = path.transport == Transport::Udp && !same(&self.path, path);
                self.replace_update(tried.then_some(*path));
            }
            return;
        }
        self.stray_answers = 0;
        let old = self.path;
        self.take_path(cx, path, nat::detect(message, path));
        // RFC 4555, 3.4: what the peer lists leaves out the address that it is at.
        let (left, taken) = (old.remote.ip(), path.remote.ip());
        if let Some(listed) = self.peer_addresses.iter_mut().find(|listed| **listed == taken) {
            *listed = left;
        }
        if let Some(conn) = old.conn.filter(|conn| Some(*conn) != path.conn) {
            self.leave(cx, conn);
        }
    }

    pub(super) fn move_failed(&self, cx: &mut Cx<'_>, reason: MoveFailure) {
        cx.events.push_back(Event::MoveFailed { ike: self.id, reason });
    }

    /// From now on IKE and ESP go this way.
    fn take_path(&mut self, cx: &mut Cx<'_>, path: &Path, nat: Nat) {
        self.probed = cx.now;
        self.nat = nat;
        if path.transport == Transport::Udp {
            self.stop_reconnecting();
        }
        self.move_path(cx, path);
        self.set_child_path(cx);
    }

    /// Tells the host where ESP goes now: where the peer has shown that it is.
    pub(super) fn set_child_path(&mut self, cx: &mut Cx<'_>) {
        if !self.children.is_empty() && !self.is_unchecked() {
            let path = self.child_path();
            cx.host.set_path(self.id, &path);
        }
    }

    /// The MOBIKE notifications of an INFORMATIONAL request; gives those of the answer.
    pub(super) fn answer_mobike(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        message: &Message,
    ) -> Vec<Payload> {
        let mut answer = Vec::new();
        // RFC 4555, 3.7: given back whether this side moves or not.
        let cookie = message.notify(NotifyType::COOKIE2);
        if let Some(cookie) = cookie.filter(|n| COOKIE2_LENS.contains(&n.data.len())) {
            answer.push(Payload::notify(NotifyType::COOKIE2, cookie.data.clone()));
        }
        if !self.mobike {
            return answer;
        }
        // RFC 4555, 3.5, 3.6 and 3.9: before anything is believed.
        if nat_forbidden(message, path) {
            answer.push(Payload::notify(NotifyType::UNEXPECTED_NAT_DETECTED, []));
            return answer;
        }
        if let Some(addresses) = addresses(message) {
            self.peer_addresses = addresses;
        }
        let moves = message.notify(NotifyType::UPDATE_SA_ADDRESSES).is_some() && !self.initiator;
        let (own, other) = (path.local.ip(), path.remote.ip());
        let covered = self.connection.as_ref().is_some_and(|c| c.covers(own, other));
        if moves && !(covered && self.lets_go(own, other)) {
            answer.push(Payload::notify(NotifyType::UNACCEPTABLE_ADDRESSES, []));
            return answer;
        }
        // RFC 4555, 3.8: whoever sends digests gets some, whatever else the request is for.
        if moves || message.notify(NotifyType::NAT_DETECTION_SOURCE_IP).is_some() {
            let (spi_i, spi_r) = (message.header.spi_i, message.header.spi_r);
            let encap = self.connection.as_ref().is_some_and(|c| c.encap);
            answer.extend(nat::notifies(spi_i, spi_r, path, encap));
        }
        if moves {
            self.follow(cx, path, nat::detect(message, path));
        }
        answer
    }

    /// The peer has moved there.
    fn follow(&mut self, cx: &mut Cx<'_>, path: &Path, found: Nat) {
        if !matches!(self.phase, Phase::Established) {
            self.follow_to_the_end(cx, path);
            return;
        }
        // Another port of an address that is not checked yet says nothing about the address.
        let elsewhere = self.path.remote.ip() != path.remote.ip() || self.is_unchecked();
        let repeat = path.transport == Transport::Udp && self.path != *path;
        if path.transport == Transport::Udp && elsewhere {
            // IKE answers there; ESP follows when the cookie has come back.
            self.nat = found;
            self.move_path(cx, path);
            self.tasks.retain(|task| !matches!(task, Task::ReturnCheck));
            self.tasks.push_front(Task::ReturnCheck);
        } else {
            self.take_path(cx, path, found);
        }
        if repeat {
            self.repeat_elsewhere(cx);
        }
    }

    /// The same while the IKE SA is being deleted. The Delete goes there at once, too, but gets no more
    /// time, nor does a cookie go before it: a peer that moves again and again would never be rid of.
    fn follow_to_the_end(&mut self, cx: &mut Cx<'_>, path: &Path) {
        let elsewhere = path.transport == Transport::Udp && self.path != *path;
        self.move_path(cx, path);
        if let Some(outstanding) = self.outstanding.as_ref().filter(|_| elsewhere) {
            cx.send_wire(path, &outstanding.wire);
        }
    }

    /// RFC 4555, 3.5 with RFC 9329, 7.1: "all outstanding requests in this SA are immediately
    /// retransmitted using this address". The waits for an answer from the old one were long by now, and
    /// ESP waits too: the question for the cookie comes behind.
    fn repeat_elsewhere(&mut self, cx: &mut Cx<'_>) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.sent = 0;
            self.repeat_requests(cx);
        }
    }

    /// Whether a cookie is still to come back from where the peer says that it is.
    pub(super) fn is_unchecked(&self) -> bool {
        let asked = self.outstanding.as_ref().map(|o| &o.asked);
        let to_ask = self.tasks.iter().any(|task| matches!(task, Task::ReturnCheck));
        self.path.transport == Transport::Udp
            && (to_ask || matches!(asked, Some(Asked::ReturnCheck(..))))
    }

    /// Asks for a cookie from the peer's new address.
    pub(super) fn send_return_check(&mut self, cx: &mut Cx<'_>) {
        let mut cookie = vec![0; COOKIE2_LEN];
        cx.host.random(&mut cookie);
        let payloads = vec![Payload::notify(NotifyType::COOKIE2, cookie.clone())];
        let asked = Asked::ReturnCheck(cookie, self.path);
        self.request(cx, ExchangeType::INFORMATIONAL, payloads, asked);
    }

    /// Whether the cookie came back; then ESP goes to the new address.
    pub(super) fn handle_return_check(
        &mut self,
        cx: &mut Cx<'_>,
        cookie: &[u8],
        message: &Message,
    ) {
        if message.notify(NotifyType::COOKIE2).is_none_or(|n| n.data != cookie) {
            // RFC 4555, 3.7: "the IKE_SA MUST be closed".
            self.terminate(cx, DownReason::ProtocolError("COOKIE2 did not come back as it was"));
        } else {
            // It may have moved meanwhile, to where a TCP connection has shown it. Where nothing has, the
            // next cookie is asked for.
            self.set_child_path(cx);
        }
    }
}

/// Whether NO_NATS_ALLOWED lists other addresses and ports than those of the packet (RFC 4555, 4.2.6).
/// Over TCP it means nothing (RFC 9329, 7.1). This side never sends it: NAT traversal is always
/// allowed here (RFC 4555, 3.9).
pub(super) fn nat_forbidden(message: &Message, path: &Path) -> bool {
    if path.transport == Transport::Tcp {
        return false;
    }
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    message.notify(NotifyType::NO_NATS_ALLOWED).is_some_and(|n| {
        let ports = [path.remote.port().to_be_bytes(), path.local.port().to_be_bytes()].concat();
        n.data != [octets(path.remote.ip()), octets(path.local.ip()), ports].concat()
    })
}
