//! Paths, transmission, liveness and TCP connections of a session.
//!
//! Over UDP a request is repeated with growing waits (RFC 7296, 2.1). Over TCP it is sent once and
//! again only on a new connection (RFC 9329, 6.2). When a TCP connection is lost, the Originator
//! asks for a new one, at once and then with growing waits; the responder waits for it. The path
//! moves only on an authentic new message (RFC 9329, 6.1 and 10).

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::exchange::{Asked, Task};
use super::lifetime::part;
use super::{Cx, LINGER, Phase, Session};
use crate::config::{ConnectionConfig, Retransmission};
use crate::event::{DownReason, Event, InitiationError, MoveFailure, Transmit};
use crate::message::ExchangeType;
use crate::path::{ChildPath, ConnToken, ConnectRequest, Path, Transport};
use crate::time::Instant;

/// Waits between attempts to open a lost TCP connection again: the first, doubled up to the last. Each
/// is up to a quarter longer at random, so that not all who have lost one gateway call it in step.
const RECONNECT_FIRST: Duration = Duration::from_secs(1);
const RECONNECT_MAX: Duration = Duration::from_secs(60);
/// Most connections that were left and are not closed yet.
const LEFT_MAX: usize = 4;
/// Longest silence towards a NAT before this side (RFC 3948, 4).
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What an Originator has going to get a TCP connection.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Link {
    state: LinkState,
    /// Connections in a row that could not be opened, or by which nothing authentic came.
    failures: u32,
    /// A connection was lost, and nothing authentic has come since.
    #[serde(skip)]
    lost: bool,
    /// No check of liveness before: see [`Session::spread_liveness`].
    #[serde(skip)]
    quiet_until: Instant,
    /// One is wanted only because UDP gives no answer.
    #[serde(skip)]
    pub(super) fallback: bool,
    /// From where and where to the last connection was asked for.
    target: Option<(Option<IpAddr>, SocketAddr)>,
    /// Connections that the SAs have left, and when they are closed: what the peer sent before it
    /// learnt of that may still be on its way.
    left: Vec<(Instant, ConnToken)>,
}

#[derive(Default, Clone, Copy, Serialize, Deserialize)]
enum LinkState {
    /// Nothing is wanted.
    #[default]
    Idle,
    /// The host is opening one.
    Asked(ConnectRequest),
    /// The next attempt is due then.
    Waiting(Instant),
}

impl Link {
    pub(super) const fn request(&self) -> Option<ConnectRequest> {
        match self.state {
            LinkState::Asked(request) => Some(request),
            LinkState::Idle | LinkState::Waiting(_) => None,
        }
    }

    pub(super) const fn retry_at(&self) -> Option<Instant> {
        match self.state {
            LinkState::Waiting(at) => Some(at),
            LinkState::Idle | LinkState::Asked(_) => None,
        }
    }

    /// When the first connection that was left is to be closed.
    pub(super) fn close_at(&self) -> Option<Instant> {
        self.left.iter().map(|(at, _)| *at).min()
    }
}

impl Session {
    pub(super) fn retransmission(&self) -> Retransmission {
        self.connection.as_ref().map(|c| c.retransmission).unwrap_or_default()
    }

    pub(super) fn tcp_response_timeout(&self) -> Duration {
        let config = self.connection.as_deref();
        config.map_or(Duration::from_secs(60), |c: &ConnectionConfig| c.tcp_response_timeout)
    }

    pub(super) fn is_detached(&self) -> bool {
        self.path.transport == Transport::Tcp && self.path.conn.is_none()
    }

    /// Sends the outstanding request once more and says when it is due again.
    pub(super) fn transmit(&mut self, cx: &mut Cx<'_>) {
        let own = self.path;
        let path = self.outstanding.as_ref().and_then(|o| o.via).unwrap_or(own);
        let tcp = path.transport == Transport::Tcp;
        let detached = tcp && path.conn.is_none();
        let (retransmission, timeout) = (self.retransmission(), self.tcp_response_timeout());
        let Some(outstanding) = &mut self.outstanding else { return };
        outstanding.sent = outstanding.sent.saturating_add(1);
        let wait = if tcp { timeout } else { retransmission.wait(outstanding.sent) };
        // What goes again because its connection was lost has no more time than it had.
        let again = tcp && std::mem::replace(&mut outstanding.over_tcp, tcp);
        if !again {
            outstanding.due = cx.now + wait;
        }
        outstanding.over_tcp = tcp;
        if !detached {
            let ends_child = matches!(outstanding.asked, Asked::DeleteChild(_));
            cx.send_wire_in_order(&path, &outstanding.wire, ends_child);
        }
    }

    /// The outstanding request got no answer in time.
    pub(super) fn outstanding_due(&mut self, cx: &mut Cx<'_>) {
        if self.try_elsewhere(cx) || self.give_up_trial(cx) {
            return;
        }
        let Some(outstanding) = &self.outstanding else { return };
        // RFC 9329, 6.2: no repetition over TCP.
        let again = outstanding.via.unwrap_or(self.path).transport == Transport::Udp
            && outstanding.sent <= self.retransmission().tries;
        if again {
            let path = outstanding.via.unwrap_or(self.path);
            self.transmit(cx);
            if self.initiator {
                self.ask_retired(cx, &path);
                self.check_retired(cx);
            }
            return;
        }
        match self.phase {
            Phase::Auth(_) => {
                let (transport, remote) = (self.path.transport, self.path.remote);
                self.fail(cx, InitiationError::NoAnswer { transport, remote });
            }
            Phase::Deleting(reason) => self.close(cx, reason),
            _ => self.close(cx, DownReason::PeerDead),
        }
    }

    /// An authentic new message came on `path`: the peer lives, and may have moved.
    pub(super) fn heard(&mut self, cx: &mut Cx<'_>, path: &Path) {
        (self.link.failures, self.link.lost) = (0, false);
        // A way that is tried is taken when the peer has agreed to it.
        if *path == self.path || self.outstanding.as_ref().is_some_and(|o| o.via.is_some()) {
            return;
        }
        let moves = match path.transport {
            // Only the Originator chooses its connections (RFC 9329, 6.1). With MOBIKE it names the one
            // in use by UPDATE_SA_ADDRESSES; what comes on another may be older than that (RFC 4555,
            // 3.8), but is better than none.
            Transport::Tcp => !self.initiator && (!self.mobike || self.is_detached()),
            // A peer may change from port 500 to 4500, and behind a NAT may be seen elsewhere
            // (RFC 7296, 2.23). One that was on TCP stays there (RFC 9329, 5). With MOBIKE only
            // UPDATE_SA_ADDRESSES says where it is (RFC 4555, 3.8).
            _ => {
                self.path.transport == Transport::Udp
                    && (self.nat_may_move() && !self.mobike
                        || matches!(self.phase, Phase::HalfOpen(_)))
            }
        };
        if moves {
            self.move_path(cx, path);
            self.set_child_path(cx);
        }
    }

    /// What this side sends goes this way from now on, and what waits for an answer again.
    pub(super) fn move_path(&mut self, cx: &mut Cx<'_>, path: &Path) {
        if self.path == *path {
            return;
        }
        let reconnected = path.conn.is_some() && path.conn != self.path.conn;
        self.path = *path;
        if self.is_up() {
            cx.events.push_back(Event::PathMoved { ike: self.id, path: *path });
        }
        if reconnected {
            self.repeat_requests(cx);
        }
    }

    /// What waits for an answer is sent again: on a new connection (RFC 9329, 6.2), or to where the peer
    /// has moved.
    pub(super) fn repeat_requests(&mut self, cx: &mut Cx<'_>) {
        self.transmit(cx);
        self.repeat_deletes(cx);
    }

    /// The data plane moved the path on an authentic new ESP packet.
    pub(crate) fn path_moved(&mut self, cx: &mut Cx<'_>, path: &ChildPath) {
        let own = Path {
            transport: path.transport,
            local: path.local,
            remote: path.remote,
            conn: path.conn,
        };
        let follows = match path.transport {
            Transport::Native => false,
            Transport::Tcp => !self.initiator,
            Transport::Udp => self.path.transport == Transport::Udp,
        };
        if follows && self.is_up() {
            self.move_path(cx, &own);
        }
    }

    /// The way of ESP: with IKE over TCP; over UDP encapsulated where a NAT is or configuration
    /// wants it (RFC 7296, 2.23), else native.
    pub(super) fn child_path(&self) -> ChildPath {
        let encap = self.connection.as_ref().is_some_and(|c| c.encap);
        let transport = match self.path.transport {
            Transport::Udp if !(self.nat.local || self.nat.remote || encap) => Transport::Native,
            transport => transport,
        };
        let Path { local, remote, conn, .. } = self.path;
        ChildPath { transport, local, remote, conn, pinned: !self.nat_may_move() }
    }

    /// Whether the peer may be seen at another address without a word: a NAT before it may forget it.
    ///
    /// RFC 7296, 2.23: who is behind a NAT should not follow, because somebody on the way could take
    /// the SA elsewhere with a single packet. A responder behind one is reached by a mapping that does
    /// not change, so that its peers' NATs are what does, and follows them.
    fn nat_may_move(&self) -> bool {
        self.nat.remote && !(self.nat.local && self.initiator)
    }

    /// When a liveness check is due (RFC 7296, 2.4; RFC 9329, 6.7: by IKE, never by TCP).
    pub(super) fn liveness_due(&self) -> Option<Instant> {
        let delay = self.connection.as_ref()?.dpd_delay?;
        let idle = matches!(self.phase, Phase::Established) && self.outstanding.is_none();
        idle.then(|| (self.last_heard + delay).max(self.link.quiet_until))
    }

    /// While no process was there nobody heard the peer. Checks that fell due meanwhile are spread over
    /// one interval: a gateway's thousands of idle peers would all be asked at once, and in step from
    /// then on.
    pub(super) fn spread_liveness(&mut self, cx: &mut Cx<'_>) {
        let delay = self.connection.as_ref().and_then(|c| c.dpd_delay);
        let overdue = self.liveness_due().is_some_and(|due| due <= cx.now);
        if let Some(delay) = delay.filter(|_| overdue) {
            self.link.quiet_until = cx.now + part(cx, delay);
        }
    }

    pub(super) fn check_liveness(&mut self, cx: &mut Cx<'_>) {
        if let Some(seen) = cx.host.last_inbound(self.id) {
            self.last_heard = self.last_heard.max(seen);
        }
        if self.liveness_due().is_none_or(|due| due > cx.now) {
            return;
        }
        // RFC 4555, 3.8: after a silence the NAT before this side may show another address, and who
        // suspects that sends UPDATE_SA_ADDRESSES at once.
        if self.nat.local && self.may_move() && self.path.transport == Transport::Udp {
            self.send_update(cx, None);
        } else {
            self.request(cx, ExchangeType::INFORMATIONAL, Vec::new(), Asked::Liveness);
        }
    }

    /// When a NAT before this side may be about to forget its mapping (RFC 3948, 4). Over TCP it is
    /// not for this side to care (RFC 9329, 6.6).
    pub(super) fn keepalive_due(&self) -> Option<Instant> {
        let needed = self.nat.local && self.path.transport == Transport::Udp && self.is_up();
        needed.then(|| self.kept_alive + KEEPALIVE)
    }

    /// Sends a keepalive if nothing else was sent for a while.
    pub(super) fn keep_alive(&mut self, cx: &mut Cx<'_>) {
        if self.keepalive_due().is_none_or(|due| due > cx.now) {
            return;
        }
        let sent = cx.host.last_outbound(self.id).filter(|at| *at <= cx.now);
        self.kept_alive = self.kept_alive.max(sent.unwrap_or_default());
        if self.keepalive_due().is_some_and(|due| due <= cx.now) {
            self.kept_alive = cx.now;
            cx.transmits.push_back(Transmit::Keepalive { path: self.path });
        }
    }

    /// Asks the host for a TCP connection.
    pub(super) fn connect(&mut self, cx: &mut Cx<'_>, local: Option<IpAddr>, remote: SocketAddr) {
        let request = ConnectRequest(cx.id());
        self.link.state = LinkState::Asked(request);
        self.link.fallback &= self.link.target == Some((local, remote));
        self.link.target = Some((local, remote));
        let connection = self.connection_name();
        cx.transmits.push_back(Transmit::Connect { request, connection, local, remote });
    }

    /// Asks for one to where the last one went.
    pub(super) fn reconnect(&mut self, cx: &mut Cx<'_>) {
        let own = Some(self.path.local.ip()).filter(|local| !local.is_unspecified());
        let (local, remote) = self.link.target.unwrap_or((own, self.path.remote));
        self.connect(cx, local, remote);
    }

    pub(super) fn retry_connection(&mut self, cx: &mut Cx<'_>) {
        if self.link.retry_at().is_some_and(|at| at <= cx.now) {
            self.reconnect(cx);
        }
    }

    /// The connection that was asked for is open.
    pub(crate) fn tcp_opened(&mut self, cx: &mut Cx<'_>, path: &Path) {
        (self.link.state, self.link.fallback) = (LinkState::Idle, false);
        match self.phase {
            Phase::Opening(_) => {
                self.path = *path;
                self.opened(cx);
            }
            Phase::Init(_) if self.is_detached() => self.opened_again(cx, path),
            Phase::Established | Phase::Deleting(_) => {
                let waiting = self.outstanding.is_some();
                let left = self.path.conn;
                self.ask_retired(cx, path);
                // What is tried meanwhile may give no answer, and the peer is to hear of this at once.
                if let Some(outstanding) = &mut self.outstanding {
                    outstanding.via = None;
                }
                self.move_path(cx, path);
                self.set_child_path(cx);
                if let Some(conn) = left {
                    self.leave(cx, conn);
                }
                if self.may_move() {
                    // RFC 9329, 6.1 and 7.1: with MOBIKE the peer is told in so many words.
                    self.replace_update(None);
                    self.pump(cx);
                    return;
                }
                // RFC 9329, 6.1: a new message lets the peer move its path here. The repeated
                // request, which goes first, may not be new to it.
                self.tasks.retain(|task| !matches!(task, Task::Liveness));
                if waiting {
                    self.tasks.push_front(Task::Liveness);
                } else {
                    self.request(cx, ExchangeType::INFORMATIONAL, Vec::new(), Asked::Liveness);
                }
            }
            _ => {
                self.path = *path;
                self.close_connection(cx);
            }
        }
    }

    /// The connection that was asked for could not be opened.
    pub(crate) fn tcp_failed(&mut self, cx: &mut Cx<'_>, reason: &str) {
        if let Phase::Opening(_) | Phase::Init(_) = self.phase {
            let (remote, reason) = (self.path.remote, reason.to_owned());
            self.fail(cx, InitiationError::TcpFailed { remote, reason });
            return;
        }
        if !self.is_detached() && self.outstanding.is_none() {
            // A move that is not to be; the present path is as good as before.
            self.link.state = LinkState::Idle;
            self.move_failed(cx, MoveFailure::TcpFailed(reason.to_owned()));
            return;
        }
        self.reconnect_later(cx);
    }

    /// UDP carries what has lost its connection: another would take it back (RFC 9329, 7.1).
    pub(super) fn stop_reconnecting(&mut self) {
        if self.is_detached() {
            self.link.state = LinkState::Idle;
        }
    }

    /// UDP has given an answer after all, and is better than the connection that was to take its place
    /// (RFC 9329, 7.1).
    pub(super) fn stop_fallback(&mut self, answered: &Path) {
        let on_udp = self.path.transport == Transport::Udp && answered.transport == Transport::Udp;
        if on_udp && std::mem::take(&mut self.link.fallback) {
            self.link.state = LinkState::Idle;
        }
    }

    fn reconnect_later(&mut self, cx: &mut Cx<'_>) {
        let doubled = RECONNECT_FIRST.saturating_mul(1 << self.link.failures.min(6));
        let wait = doubled.min(RECONNECT_MAX);
        self.link.failures = self.link.failures.saturating_add(1);
        self.link.state = LinkState::Waiting(cx.now + wait + part(cx, wait / 4));
    }

    /// The connection in use is gone. The SAs stay (RFC 9329, 6.1).
    pub(crate) fn tcp_closed(&mut self, cx: &mut Cx<'_>) {
        self.path.conn = None;
        match self.phase {
            Phase::Established | Phase::Deleting(_) => {
                let reconnecting = self.initiator;
                cx.events.push_back(Event::TcpLost { ike: self.id, reconnecting });
                // At once, but not again and again where nobody answers: whoever takes connections
                // need not be the peer, nor know the IKE SA.
                match (reconnecting, self.link.lost) {
                    (true, false) => {
                        self.link.lost = true;
                        self.reconnect(cx);
                    }
                    (true, true) => self.reconnect_later(cx),
                    (false, _) => {}
                }
            }
            Phase::Init(_) if self.goes_on_elsewhere() => {}
            Phase::Init(_) | Phase::Auth(_) => {
                let remote = self.path.remote;
                self.fail(cx, InitiationError::TcpClosed { remote });
            }
            Phase::Opening(_) | Phase::HalfOpen(_) | Phase::Closed(_) | Phase::Dead => {}
        }
    }

    /// The Originator closes the connection that it has left (RFC 9329, 7.1), but not at once.
    pub(super) fn leave(&mut self, cx: &mut Cx<'_>, conn: ConnToken) {
        if self.link.left.len() >= LEFT_MAX {
            let (_, conn) = self.link.left.remove(0);
            cx.transmits.push_back(Transmit::Close { conn });
        }
        self.link.left.push((cx.now + LINGER, conn));
    }

    pub(super) fn close_left(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        for (_, conn) in self.link.left.extract_if(.., |(at, _)| *at <= now) {
            cx.transmits.push_back(Transmit::Close { conn });
        }
    }

    /// Has the connection closed, which carries no IKE SA any more (RFC 9329, 6.1).
    pub(super) fn close_connection(&mut self, cx: &mut Cx<'_>) {
        let left = std::mem::take(&mut self.link.left).into_iter().map(|(_, conn)| conn);
        for conn in self.path.conn.take().into_iter().chain(left) {
            cx.transmits.push_back(Transmit::Close { conn });
        }
    }
}
