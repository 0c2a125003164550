//! Many TCP connections over one stream of IP packets, without I/O.
//!
//! # The order of calls
//! For each batch: [`Stack::handle_timeout`] if [`Stack::poll_timeout`] is reached;
//! [`Stack::handle_segment`] for each packet; [`Stack::poll_event`] until it gives `None`, with
//! [`Stack::recv`] for what is readable and [`Stack::send_with`] for what is to be sent; and
//! [`Stack::poll_transmit`] once. Nothing is sent in between, so that one ACK and full segments
//! answer a whole batch.
//!
//! # The life of a connection
//! A SYN takes a slot, half-open and unknown to the caller, until the handshake is done
//! ([`Event::Opened`]). [`Stack::connect`] takes one that the caller knows at once. When the peer
//! closes, the caller gets what is left to read, then [`Event::Closed`]; there is no half-closed
//! connection for the caller, because RFC 9329 has no use for one. From then on the name is dead,
//! while the slot stays in use until the peer has been told (LAST-ACK, TIME-WAIT).

mod receive;
mod replies;
mod slots;
mod transmit;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use self::replies::Replies;
use self::slots::{Connection, Phase, Queue, Slots};
use crate::api::{CloseReason, ConnError, ConnId, ConnInfo, ConnectError, Event, Stats};
use crate::config::{ConfigError, StackConfig};
use crate::secret::Secret;
use crate::sockets::{Engine, State};
use crate::table::{FourTuple, Table};
use crate::time::Instant;
use crate::wheel::Wheel;

/// How long an incoming handshake may take: a SYN-ACK that is lost twice still finds its way.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a closing connection may wait for the peer's acknowledgement and FIN before it ends
/// with a RST. Longer than TIME-WAIT.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(20);

/// The TCP connections of one worker. See the [crate] for where it stands in the gateway.
pub struct Stack {
    config: StackConfig,
    secret: Secret,
    engine: Engine,
    /// One bit for each port that is listened on.
    listening: Box<[u64; 1 << 10]>,
    slots: Slots,
    table: Table,
    wheel: Wheel,
    /// Half-open connections in the order of their SYNs, with some that are half-open no more.
    half_open: std::collections::VecDeque<ConnId>,
    half_open_count: u32,
    /// Connections that may have something to send.
    due: Queue,
    /// Connections of which the caller has not been told everything.
    eventful: Queue,
    replies: Replies,
    resets: receive::ResetBudget,
    /// The time of the last call that gave one.
    now: Instant,
    stats: Stats,
}

impl Stack {
    /// A stack without connections. `seed` must come from a good random source: sequence numbers,
    /// ports and the order of the connection table follow from it.
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn new(config: StackConfig, seed: [u8; 32]) -> Result<Self, ConfigError> {
        config.check()?;
        let limit = config.connections_max;
        Ok(Self {
            secret: Secret::new(seed),
            engine: Engine::new(&config),
            listening: Box::new([0; 1 << 10]),
            slots: Slots::new(limit),
            table: Table::new(limit),
            wheel: Wheel::new(Instant::ZERO),
            half_open: std::collections::VecDeque::new(),
            half_open_count: 0,
            due: Queue::new(limit),
            eventful: Queue::new(limit),
            replies: Replies::new(),
            resets: receive::ResetBudget::default(),
            now: Instant::ZERO,
            stats: Stats::default(),
            config,
        })
    }

    /// Accepts connections to this port of every local address: which addresses are local the
    /// caller has decided when it gives a packet to [`Stack::handle_segment`]
    /// (RFC 9329, 5: a responder listens on the configured ports).
    pub fn listen(&mut self, port: u16) {
        self.listening[usize::from(port >> 6)] |= 1 << (port & 63);
    }

    /// Begins a connection from a local port of the configured range to `remote`.
    ///
    /// # Errors
    /// Nothing has been begun; the error says why.
    pub fn connect(
        &mut self,
        now: Instant,
        local: IpAddr,
        remote: SocketAddr,
    ) -> Result<ConnId, ConnectError> {
        self.now = now;
        let endpoint = |ip: IpAddr| !ip.is_unspecified() && !ip.is_multicast();
        if !endpoint(local)
            || !endpoint(remote.ip())
            || remote.port() == 0
            || local.is_ipv4() != remote.is_ipv4()
        {
            return Err(ConnectError::Address);
        }
        if self.slots.is_full() {
            return Err(ConnectError::ConnectionsMax);
        }
        // Scope and flow label of an IPv6 socket address are not part of the 4-tuple.
        let remote = SocketAddr::new(remote.ip(), remote.port());
        let tuple = self.free_tuple(local, remote).ok_or(ConnectError::NoPort)?;
        let isn = self.secret.draw();
        let socket = self.engine.connect(tuple.local, remote, isn).ok_or(ConnectError::Address)?;
        let connection = Connection::new(now, socket, tuple, Phase::Connecting, 0);
        let id = self.slots.add(connection).ok_or(ConnectError::ConnectionsMax)?;
        self.table.insert(&self.secret, &tuple, id.index);
        self.wheel.grow(self.slots.used());
        self.due.push(id.index);
        Ok(id)
    }

    /// A 4-tuple that is not in use, from a local port that begins anywhere in the range, so that
    /// nobody can foresee it (RFC 6056, 3.3.1).
    fn free_tuple(&mut self, local: IpAddr, remote: SocketAddr) -> Option<FourTuple> {
        let ports = self.config.ephemeral_ports;
        let count = ports.count();
        let start = (self.secret.draw() % u64::from(count)) as u16;
        (0..count).find_map(|step| {
            let index = (u32::from(start) + u32::from(step)) % u32::from(count);
            let local = SocketAddr::new(local, ports.port(index as u16));
            let tuple = FourTuple { local, remote };
            self.find(&tuple).is_none().then_some(tuple)
        })
    }

    fn find(&self, tuple: &FourTuple) -> Option<u32> {
        self.table.find(&self.secret, tuple, |index| self.slots.tuple(index))
    }

    /// The next thing that the caller should know. Each connection has at most four of them
    /// waiting, so the queue is bounded by the connections.
    pub fn poll_event(&mut self) -> Option<Event> {
        while let Some(index) = self.eventful.front() {
            let id = self.slots.id(index);
            let event = self.slots.get_mut(index).and_then(|connection| {
                let news = &mut connection.news;
                if std::mem::take(&mut news.opened) {
                    let FourTuple { local, remote } = connection.tuple;
                    let originator = connection.originator;
                    Some(Event::Opened { id, local, remote, originator })
                } else if std::mem::take(&mut news.readable) {
                    Some(Event::Readable(id))
                } else if std::mem::take(&mut news.writable) {
                    Some(Event::Writable(id))
                } else {
                    let reason = news.closed.take()?;
                    news.done = true;
                    Some(Event::Closed { id, reason })
                }
            });
            if event.is_some() {
                if matches!(event, Some(Event::Closed { .. })) {
                    self.release_if_over(index);
                }
                return event;
            }
            self.eventful.pop();
        }
        None
    }

    /// Lends received octets, in order, writable so that a frame can be decrypted where it lies.
    /// `read` says how many of them it has consumed; the rest is lent again. It is not called if
    /// there are none. The octets lent may end where the buffer wraps: call again until this
    /// gives 0.
    ///
    /// # Errors
    /// [`ConnError::Gone`]; [`ConnError::NotOpen`] before [`Event::Opened`].
    pub fn recv(
        &mut self,
        id: ConnId,
        read: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, ConnError> {
        let connection = self.slots.named_mut(id).ok_or(ConnError::Gone)?;
        match connection.phase {
            Phase::Connecting | Phase::HalfOpen => return Err(ConnError::NotOpen),
            // What a reset left behind is still readable; what comes after our own close is not.
            Phase::Closing if connection.socket.unread() == 0 => return Ok(0),
            Phase::Open | Phase::Closing => {}
        }
        let consumed = connection.socket.recv(read);
        connection.octets_in += consumed as u64;
        if consumed > 0 {
            self.due.push(id.index);
            self.notice_peer_close(id.index);
        }
        Ok(consumed)
    }

    /// Octets that one [`Stack::send_with`] could take now, 0 if the connection cannot send.
    #[must_use]
    pub fn send_capacity(&self, id: ConnId) -> usize {
        self.slots.named(id).filter(|c| c.phase == Phase::Open).map_or(0, |c| c.socket.free())
    }

    /// Lends `len` octets of the send buffer to `write`, which says how many of them it has
    /// written, from the first on; so many are sent, and this gives their number. All or nothing:
    /// if there is no room for `len` octets, `write` is not called, so that a frame is never torn.
    ///
    /// # Errors
    /// [`ConnError::Full`], and an [`Event::Writable`] follows; [`ConnError::Gone`];
    /// [`ConnError::NotOpen`] before [`Event::Opened`].
    pub fn send_with(
        &mut self,
        id: ConnId,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, ConnError> {
        let connection = self.slots.named_mut(id).ok_or(ConnError::Gone)?;
        match connection.phase {
            Phase::Connecting | Phase::HalfOpen => return Err(ConnError::NotOpen),
            Phase::Closing => return Err(ConnError::Gone),
            Phase::Open => {}
        }
        let was_empty = connection.socket.unacknowledged() == 0;
        let Some(written) = self.engine.send_with(&mut connection.socket, len, write) else {
            connection.wanted = len;
            return Err(ConnError::Full);
        };
        if was_empty {
            connection.progress_at = self.now;
        }
        connection.octets_out += written as u64;
        self.due.push(id.index);
        Ok(written)
    }

    /// Closes a connection: what is in the send buffer is sent, then FIN. [`Event::Closed`]
    /// follows at once; what the peer still sends is discarded. Nothing happens if it is gone.
    pub fn close(&mut self, id: ConnId) {
        if self.slots.named(id).is_some_and(|connection| connection.phase != Phase::Closing) {
            self.end(id.index, CloseReason::LocalClosed);
        }
    }

    /// Aborts a connection: the peer gets a RST, and what is in the send buffer is dropped.
    /// [`Event::Closed`] follows at once. Nothing happens if it is gone.
    pub fn abort(&mut self, id: ConnId) {
        if let Some(connection) = self.slots.named_mut(id) {
            connection.socket.abort();
            self.end(id.index, CloseReason::LocalAborted);
        }
    }

    /// What is known of a connection; `None` once it is gone.
    #[must_use]
    pub fn info(&self, id: ConnId) -> Option<ConnInfo> {
        self.slots.named(id).map(Connection::info)
    }

    /// What the stack has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { replies_lost: self.replies.lost, ..self.stats }
    }

    /// The connection is over for the caller, for this reason unless it has one already. What has
    /// to be said to the peer is said in the background.
    fn end(&mut self, index: u32, reason: CloseReason) {
        let Some(connection) = self.slots.get_mut(index) else { return };
        if connection.phase != Phase::Closing {
            connection.socket.close();
            connection.enter(self.now, Phase::Closing);
            connection.news.closed = Some(reason);
            connection.news.writable = false;
            if matches!(reason, CloseReason::LocalClosed | CloseReason::LocalAborted) {
                connection.news.readable = false;
            }
            self.eventful.push(index);
        }
        self.wheel.set_no_later(index, self.now + CLOSING_TIMEOUT);
        self.due.push(index);
    }

    /// Ends an open connection whose peer has sent FIN, once everything before it has been read.
    fn notice_peer_close(&mut self, index: u32) {
        let closed = self.slots.get(index).is_some_and(|connection| {
            connection.phase == Phase::Open
                && connection.socket.state() == State::PeerClosed
                && connection.socket.unread() == 0
        });
        if closed {
            self.end(index, CloseReason::PeerClosed);
        }
    }

    /// Gives the slot free if neither the peer nor the caller has to be told anything.
    fn release_if_over(&mut self, index: u32) {
        let over = self.slots.get(index).is_some_and(|connection| {
            connection.news.done && connection.socket.state() == State::Closed
        });
        if over {
            self.release(index);
        }
    }

    /// Forgets a connection without a word to the peer.
    fn release(&mut self, index: u32) {
        let Some(tuple) = self.slots.tuple(index) else { return };
        self.table.remove(&self.secret, &tuple, index);
        self.wheel.cancel(index);
        if let Some(connection) = self.slots.remove(index) {
            if connection.phase == Phase::HalfOpen {
                self.half_open_count -= 1;
            }
            self.engine.give_back(connection.socket);
        }
    }
}
