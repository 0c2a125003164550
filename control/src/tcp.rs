//! Which TCP connections there are, and which of them nobody needs.
//!
//! The dataplane opens and closes them and says so. A connection that no IKE SA uses for five
//! seconds is closed: RFC 9329, 6.1 leaves connections that carry no SA to whoever holds them, and
//! this gateway does not hold them for strangers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_ike::{ConnToken, ConnectRequest, DropReason, Instant, Received};
use culvert_shm::{Congestion, ConnRef, Dscp};

use crate::convert;

/// How long a connection may be without an IKE SA.
pub const UNUSED_MAX: Duration = Duration::from_secs(5);
/// Messages in a row that are nobody's, after which a connection is closed (RFC 9329, 6.1): as many as
/// the dataplane bears of ESP.
pub const STRANGE_MAX: u8 = 8;
/// How often connections that were in use are looked at again.
const REVISIT: Duration = Duration::from_secs(10);

/// A connection.
pub struct Conn {
    /// The dataplane's name for it.
    pub conn: ConnRef,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Whether this gateway opened it.
    pub originator: bool,
    /// Since when it is not known to be in use.
    unused_since: Instant,
    /// Nothing has to be looked at soon.
    in_use: bool,
    /// Its worker knows that an authenticated peer uses it.
    proven: bool,
    /// Messages in a row that belong to no IKE SA and begin none.
    strange: u8,
}

/// How a connection carries its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// What governs it.
    pub congestion: Congestion,
    /// The service level of all its packets (RFC 9329, 9.3).
    pub dscp: Dscp,
}

/// What a look at the connections shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Visit {
    /// Nobody used these for [`UNUSED_MAX`].
    pub unused: Vec<ConnRef>,
    /// An authenticated peer uses these, and their workers have not been told
    /// ([`Tcp::proven`]); each with how it is to carry its packets.
    pub proven: Vec<(ConnRef, Service)>,
}

/// A connection that was asked for.
struct Request {
    request: ConnectRequest,
    worker: u16,
    /// The dataplane's life in which it was asked.
    epoch: u64,
}

/// All connections.
#[derive(Default)]
pub struct Tcp {
    conns: HashMap<ConnToken, Conn>,
    requests: HashMap<u64, Request>,
    next_token: u64,
    visited: Instant,
}

impl Tcp {
    /// No connections. Tokens begin at `first_token`, so that an answer to an earlier control
    /// process is not taken for one to this.
    #[must_use]
    pub fn new(first_token: u64) -> Self {
        Self { next_token: first_token.max(1), ..Self::default() }
    }

    /// Number of connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.conns.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty()
    }

    /// The token under which a worker is asked for a connection; never 0.
    pub fn ask(&mut self, request: ConnectRequest, worker: u16, epoch: u64) -> u64 {
        let token = self.next_token;
        self.next_token = self.next_token.checked_add(1).unwrap_or(1);
        self.requests.insert(token, Request { request, worker, epoch });
        token
    }

    /// The request of a token, which is answered now. `None` for one of an earlier process.
    pub fn answered(&mut self, token: u64) -> Option<ConnectRequest> {
        self.requests.remove(&token).map(|asked| asked.request)
    }

    /// A connection is open.
    pub fn opened(&mut self, now: Instant, conn: ConnRef, remote: SocketAddr, originator: bool) {
        let entry = Conn {
            conn,
            remote,
            originator,
            unused_since: now,
            in_use: false,
            proven: false,
            strange: 0,
        };
        self.conns.insert(convert::token(conn), entry);
    }

    /// Whether a connection is open.
    #[must_use]
    pub fn is_open(&self, conn: ConnRef) -> bool {
        self.conns.contains_key(&convert::token(conn))
    }

    /// A connection is gone.
    pub fn closed(&mut self, conn: ConnRef) -> Option<Conn> {
        self.conns.remove(&convert::token(conn))
    }

    /// A message came on a connection, and this was made of it. Whether its stream is corrupt, so that
    /// it is to be closed: its SAs stay, and their peer opens another one.
    ///
    /// RFC 9329, 6.1: too many messages in a row that are no IKE messages, or one that fails the check
    /// of the IKE SA that it names. What is only refused proves nothing.
    pub fn is_corrupt(&mut self, conn: ConnToken, received: &Received) -> bool {
        let Some(conn) = self.conns.get_mut(&conn) else { return false };
        match received {
            Received::Dropped(DropReason::BadIcv) => conn.strange = STRANGE_MAX,
            Received::Dropped(
                DropReason::TooLong
                | DropReason::BadHeader
                | DropReason::BadVersion
                | DropReason::BadPayload
                | DropReason::UnknownSpi,
            ) => conn.strange = conn.strange.saturating_add(1),
            Received::Dropped(_) => {}
            _ => conn.strange = 0,
        }
        conn.strange >= STRANGE_MAX
    }

    /// A worker began anew, in this life of the dataplane: what it had is gone. Its connections,
    /// and requests of earlier lives, which it will not answer.
    pub fn restarted(&mut self, worker: u16, epoch: u64) -> (Vec<Conn>, Vec<ConnectRequest>) {
        let lost = self.conns.extract_if(|_, conn| conn.conn.worker == worker);
        let lost = lost.map(|(_, conn)| conn).collect();
        let unanswered =
            self.requests.extract_if(|_, asked| asked.worker == worker && asked.epoch < epoch);
        (lost, unanswered.map(|(_, asked)| asked.request).collect())
    }

    /// Whether it is time to look which connections are in use: some is not known to be, or its
    /// worker does not know that its peer is authenticated, or none was looked at for long.
    #[must_use]
    pub fn is_visit_due(&self, now: Instant) -> bool {
        let unused = self.conns.values().any(|conn| !conn.in_use);
        unused || (!self.is_empty() && now.since(self.visited) >= REVISIT)
    }

    /// Looks at all connections. `used` holds those that an IKE SA uses, and once its peer is
    /// authenticated, how the peer's connections are to carry their packets. One that is unused is
    /// named again after [`UNUSED_MAX`], should it still be there.
    pub fn visit(&mut self, now: Instant, used: &HashMap<ConnToken, Option<Service>>) -> Visit {
        self.visited = now;
        let mut visit = Visit::default();
        for (token, conn) in &mut self.conns {
            let user = used.get(token);
            conn.in_use = user.is_some() && (conn.proven || conn.originator);
            if let Some(Some(service)) = user
                && !conn.proven
                && !conn.originator
            {
                visit.proven.push((conn.conn, *service));
            }
            if user.is_some() {
                conn.unused_since = now;
            } else if now.since(conn.unused_since) >= UNUSED_MAX {
                conn.unused_since = now;
                visit.unused.push(conn.conn);
            }
        }
        visit
    }

    /// The worker of a connection has been told that an authenticated peer uses it.
    pub fn proven(&mut self, conn: ConnRef) {
        if let Some(conn) = self.conns.get_mut(&convert::token(conn)) {
            (conn.proven, conn.in_use) = (true, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn(worker: u16, index: u32) -> ConnRef {
        ConnRef { worker, index, generation: 1 }
    }

    fn service(congestion: Congestion) -> Service {
        Service { congestion, dscp: Dscp::DEFAULT }
    }

    fn remote() -> SocketAddr {
        "198.51.100.7:4500".parse().expect("an address")
    }

    // RFC 9329, 6.1.
    #[test]
    fn a_connection_without_an_ike_sa_is_closed_after_five_seconds() {
        let mut tcp = Tcp::new(1);
        let start = Instant::from_micros(1);
        tcp.opened(start, conn(0, 1), remote(), false);
        tcp.opened(start, conn(0, 2), remote(), false);
        let used = HashMap::from([(convert::token(conn(0, 2)), Some(service(Congestion::Bbr)))]);
        assert!(tcp.is_visit_due(start));
        let just_before = start + UNUSED_MAX.saturating_sub(Duration::from_millis(1));
        assert_eq!(tcp.visit(just_before, &used).unused, []);
        tcp.proven(conn(0, 2));
        assert_eq!(tcp.visit(start + UNUSED_MAX, &used).unused, [conn(0, 1)]);
        assert!(tcp.closed(conn(0, 1)).is_some());
        assert!(!tcp.is_visit_due(start + UNUSED_MAX), "the other one is known to be in use");
        let later = start + UNUSED_MAX + REVISIT;
        assert!(tcp.is_visit_due(later));
        assert_eq!(tcp.visit(later, &HashMap::new()).unused, [conn(0, 2)], "in use no longer");
    }

    // Until then it gives way to new connections: anybody can send a prefix.
    #[test]
    fn a_worker_is_told_once_of_a_connection_whose_peer_is_authenticated() {
        let mut tcp = Tcp::new(1);
        let now = Instant::from_micros(1);
        tcp.opened(now, conn(0, 1), remote(), false);
        tcp.opened(now, conn(0, 2), remote(), true);
        let used =
            |service| HashMap::from([1, 2].map(|index| (convert::token(conn(0, index)), service)));
        assert_eq!(tcp.visit(now, &used(None)), Visit::default(), "half-open");
        assert!(tcp.is_visit_due(now));
        let cubic = service(Congestion::Cubic);
        let authenticated = used(Some(cubic));
        let own_needs_no_proof = [(conn(0, 1), cubic)];
        assert_eq!(tcp.visit(now, &authenticated).proven, own_needs_no_proof);
        assert_eq!(tcp.visit(now, &authenticated).proven, own_needs_no_proof, "not told yet");
        tcp.proven(conn(0, 1));
        assert_eq!(tcp.visit(now, &authenticated), Visit::default());
        assert!(!tcp.is_visit_due(now));
    }

    // RFC 9329, 6.1: a few must not close it, SAs come and go.
    #[test]
    fn too_many_strange_messages_in_a_row_or_one_forged_make_a_stream_corrupt() {
        let mut tcp = Tcp::new(1);
        tcp.opened(Instant::from_micros(1), conn(0, 1), remote(), false);
        let token = convert::token(conn(0, 1));
        let strange = Received::Dropped(DropReason::UnknownSpi);
        for good in [Received::Accepted, Received::Repeated, Received::CookieDemanded] {
            assert!((1..STRANGE_MAX).all(|_| !tcp.is_corrupt(token, &strange)));
            let refused = Received::Dropped(DropReason::HalfOpenLimit);
            assert!((0..100).all(|_| !tcp.is_corrupt(token, &refused)));
            assert!(!tcp.is_corrupt(token, &good));
        }
        assert!((1..STRANGE_MAX).all(|_| !tcp.is_corrupt(token, &strange)));
        assert!(tcp.is_corrupt(token, &strange));
        assert!(!tcp.is_corrupt(token, &Received::Accepted));
        assert!(tcp.is_corrupt(token, &Received::Dropped(DropReason::BadIcv)));
        tcp.closed(conn(0, 1));
        assert!(!tcp.is_corrupt(token, &Received::Dropped(DropReason::BadIcv)), "it is gone");
    }

    #[test]
    fn a_restarted_worker_has_neither_connections_nor_requests() {
        let mut tcp = Tcp::new(7);
        let now = Instant::from_micros(1);
        tcp.opened(now, conn(0, 1), remote(), false);
        tcp.opened(now, conn(1, 1), remote(), true);
        let (first, second) = (tcp.ask(ConnectRequest(5), 1, 1), tcp.ask(ConnectRequest(6), 0, 1));
        assert_eq!((first, second), (7, 8));
        let third = tcp.ask(ConnectRequest(7), 1, 2);
        let (lost, unanswered) = tcp.restarted(1, 2);
        assert_eq!(lost.iter().map(|lost| lost.conn).collect::<Vec<_>>(), [conn(1, 1)]);
        assert_eq!(unanswered, [ConnectRequest(5)]);
        assert_eq!(tcp.answered(first), None);
        assert_eq!(tcp.answered(second), Some(ConnectRequest(6)));
        assert_eq!(tcp.answered(third), Some(ConnectRequest(7)), "asked of the new one");
        assert_eq!(tcp.len(), 1);
    }
}
