//! What workers hand up.

use std::collections::HashMap;

use culvert_api::Happening;
use culvert_ike::{ConnToken, IkeState, Instant, Received};
use culvert_shm::{CloseReason, ConnRef, ConnectFailure, Down, Path, SlotRef, Up};

use super::{Engine, RECORDS_A_TURN_MAX};
use crate::convert::Way;
use crate::tcp::Service;
use crate::{clock, convert};

/// A record that was taken out of the shared memory.
enum Record {
    Message { path: Path, octets: Vec<u8> },
    Other(Up<'static>),
}

impl Record {
    /// Takes a copy: what it came in is used again for the next.
    fn of(up: Up<'_>) -> Self {
        Self::Other(match up {
            Up::IkeMessage { path, payload } => {
                return Self::Message { path, octets: payload.to_vec() };
            }
            Up::TcpOpened { conn, local, remote, originator, token } => {
                Up::TcpOpened { conn, local, remote, originator, token }
            }
            Up::TcpConnectFailed { token, reason } => Up::TcpConnectFailed { token, reason },
            Up::TcpClosed { conn, reason } => Up::TcpClosed { conn, reason },
            Up::PathMoved { peer } => Up::PathMoved { peer },
            Up::SequenceNearlyExhausted { sa } => Up::SequenceNearlyExhausted { sa },
            Up::Restarted { epoch } => Up::Restarted { epoch },
            Up::Acquire { policy } => Up::Acquire { policy },
        })
    }
}

impl Engine {
    /// Takes what the workers handed up, within limits; how many records.
    pub(super) fn take_records(&mut self) -> usize {
        for taken in 0..RECORDS_A_TURN_MAX {
            let Some(view) = self.services.forwarding.view_mut() else { return taken };
            let Some((worker, record)) = view.receive() else { return taken };
            match record.map(Record::of) {
                Ok(record) => self.record(worker, record),
                Err(error) => {
                    self.malformed += 1;
                    tracing::error!(worker, %error, "a worker's record");
                }
            }
            self.flush();
        }
        RECORDS_A_TURN_MAX
    }

    fn record(&mut self, worker: u16, record: Record) {
        let now = clock::now();
        match record {
            Record::Message { path, octets } => self.message(now, &path, &octets),
            Record::Other(Up::TcpOpened { conn, local, remote, originator, token }) => {
                self.tcp_opened(now, conn, (local, remote), originator.then_some(token));
            }
            Record::Other(Up::TcpConnectFailed { token, reason }) => {
                if let Some(request) = self.tcp.answered(token) {
                    let reason = connect_failure(reason);
                    self.endpoint.tcp_failed(now, request, reason, &mut self.services);
                }
            }
            Record::Other(Up::TcpClosed { conn, reason }) => {
                self.tcp_closed(now, conn, close_reason(reason));
            }
            Record::Other(Up::PathMoved { peer }) => self.path_moved(now, peer),
            Record::Other(Up::SequenceNearlyExhausted { sa }) => {
                self.sequence_low(sa);
            }
            Record::Other(Up::Acquire { policy }) => self.acquire(now, policy),
            Record::Other(Up::Restarted { epoch }) => self.worker_restarted(now, worker, epoch),
            // `Record::of` has made a message of it.
            Record::Other(Up::IkeMessage { .. }) => {}
        }
    }

    fn message(&mut self, now: Instant, path: &Path, octets: &[u8]) {
        let Some(path) = convert::ike_path(path) else {
            self.malformed += 1;
            return;
        };
        self.trace_message("received", false, &path, octets);
        let received = self.endpoint.handle_message(now, &path, octets, &mut self.services);
        if let Some(token) = path.conn
            && self.tcp.is_corrupt(token, &received)
        {
            let conn = convert::conn(token);
            tracing::info!(%path, conn = convert::conn_name(conn), "closing a corrupt stream");
            self.send(conn.worker, &Down::TcpClose { conn, abort: true });
        }
        match received {
            Received::Accepted | Received::Repeated => {}
            Received::CookieDemanded => self.cookies_demanded += 1,
            Received::PuzzleDemanded => self.puzzles_demanded += 1,
            Received::Dropped(reason) => {
                *self.drops.entry(reason.name()).or_default() += 1;
                tracing::debug!(%path, reason = reason.name(), "IKE message dropped");
            }
        }
    }

    fn tcp_opened(
        &mut self,
        now: Instant,
        conn: ConnRef,
        (local, remote): (std::net::SocketAddr, std::net::SocketAddr),
        asked: Option<u64>,
    ) {
        self.tcp.opened(now, conn, remote, asked.is_some());
        let originator = asked.is_some();
        let happening = Happening::TcpOpened { remote: remote.to_string(), originator };
        self.note_connection(happening);
        let Some(token) = asked else { return };
        match self.tcp.answered(token) {
            Some(request) => {
                let conn = convert::token(conn);
                let services = &mut self.services;
                self.endpoint.tcp_opened(now, request, conn, local, remote, services);
            }
            // An earlier control process asked for it; it will be closed as unused.
            None => tracing::info!(%remote, "a connection opened that nobody here asked for"),
        }
    }

    fn tcp_closed(&mut self, now: Instant, conn: ConnRef, reason: &str) {
        let Some(closed) = self.tcp.closed(conn) else { return };
        let (remote, reason) = (closed.remote.to_string(), reason.to_owned());
        self.note_connection(Happening::TcpClosed { remote, reason });
        self.endpoint.tcp_closed(now, convert::token(conn), &mut self.services);
    }

    /// A worker has moved a peer, because an authentic packet came another way (RFC 9329, 6.1).
    /// IKE goes with it.
    fn path_moved(&mut self, now: Instant, peer: SlotRef) {
        let Some((ike, path)) = self.services.forwarding.moved(peer) else { return };
        let moved = convert::child_path(&path);
        self.endpoint.path_moved(now, ike, &moved, &mut self.services);
        let transport = convert::transport(moved.transport);
        self.way_of(ike, Way { transport, local: moved.local, remote: moved.remote });
    }

    /// A worker began anew: all connections that it had are gone.
    fn worker_restarted(&mut self, now: Instant, worker: u16, epoch: u64) {
        let (lost, unanswered) = self.tcp.restarted(worker, epoch);
        let (connections, requests) = (lost.len(), unanswered.len());
        tracing::info!(worker, epoch, connections, requests, "a worker began anew");
        for conn in lost {
            self.endpoint.tcp_closed(now, convert::token(conn.conn), &mut self.services);
        }
        for request in unanswered {
            let reason = "the dataplane was restarted";
            self.endpoint.tcp_failed(now, request, reason, &mut self.services);
        }
    }

    /// Connections that the dataplane has since before this process.
    pub(super) fn find_connections(&mut self) {
        let now = clock::now();
        let Some(view) = self.services.forwarding.view() else { return };
        let layout = *view.region().layout();
        for worker in 0..layout.workers {
            let conns = (0..layout.conn_slots).filter_map(|index| view.conn(worker, index));
            for (conn, _, info, _) in conns {
                self.tcp.opened(now, conn, info.remote, info.originator);
            }
        }
    }

    /// Closes connections that no SA uses (RFC 9329, 6.1), and tells the workers which ones
    /// authenticated peers use.
    pub(super) fn visit_connections(&mut self, now: Instant) {
        if !self.tcp.is_visit_due(now) {
            return;
        }
        let config = &self.services.config;
        let sas = self.endpoint.sas().filter_map(|sa| {
            let authenticated = sa.state == IkeState::Established;
            let service = authenticated.then(|| config.tcp_service(&sa.connection));
            Some((sa.path.conn?, service))
        });
        let mut used: HashMap<ConnToken, Option<Service>> = sas.collect();
        if let Some(view) = self.services.forwarding.view() {
            // Orphaned SAs still send their packets over theirs.
            used.extend(self.services.forwarding.orphans().filter_map(|orphan| {
                let conn = view.peer_state(orphan.peer)?.path.conn?;
                Some((convert::token(conn), Some(config.tcp_service(&orphan.connection))))
            }));
        }
        let visit = self.tcp.visit(now, &used);
        for (conn, Service { congestion, dscp }) in visit.proven {
            if self.send(conn.worker, &Down::TcpProven { conn, congestion, dscp }) {
                self.tcp.proven(conn);
            }
        }
        for conn in visit.unused {
            tracing::debug!(conn = convert::conn_name(conn), "closing an unused connection");
            self.send(conn.worker, &Down::TcpClose { conn, abort: false });
        }
    }
}

/// Why a connection did not open, for people.
fn connect_failure(reason: ConnectFailure) -> &'static str {
    match reason {
        ConnectFailure::Refused => "refused",
        ConnectFailure::TimedOut => "no answer",
        ConnectFailure::Unreachable => "the network says that it cannot be reached",
        ConnectFailure::TableFull => "the worker's table of TCP connections is full",
        ConnectFailure::NoPort => "no local port is free",
        ConnectFailure::NoAddress => "no local address of that family",
    }
}

/// Why a connection closed, for people.
fn close_reason(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Peer => "closed by the peer",
        CloseReason::Reset => "reset by the peer",
        CloseReason::TimedOut => "the peer does not answer",
        CloseReason::Local => "closed here",
        CloseReason::Protocol => "the peer's stream is not RFC 9329's",
        CloseReason::Silent => "the peer sent no prefix in time",
        CloseReason::Unreachable => "the network says that the peer cannot be reached",
        CloseReason::Restarted => "the dataplane was restarted",
    }
}
