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
//! A SYN is answered by a cookie and forgotten; the acknowledgment that completes the handshake
//! takes a slot ([`Event::Opened`]). [`Stack::connect`] takes one that the caller knows at once. When the peer
//! closes, the caller gets what is left to read, then [`Event::Closed`]; there is no half-closed
//! connection for the caller, because RFC 9329 has no use for one. From then on the name is dead,
//! while the slot stays in use until the peer has been told (LAST-ACK, TIME-WAIT).

mod ending;
mod holders;
mod memory;
mod receive;
mod replies;
mod resets;
mod slots;
mod sources;
mod transmit;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use zeroize::Zeroize;

use self::holders::Holders;
use self::replies::Replies;
use self::slots::{Entry, Queue, Slots};
use self::sources::Sources;
use crate::api::{CloseReason, ConnError, ConnId, ConnInfo, ConnectError, Event, Stats};
use crate::config::{ConfigError, StackConfig};
use crate::engine::Shared;
use crate::engine::congestion::CongestionControl;
use crate::engine::connection::Connection;
use crate::engine::cookie::Cookies;
use crate::engine::label::{FLOW_LABEL_MASK, flow_label};
use crate::engine::segment::{Marking, Marks, is_host};
use crate::secret::Secret;
use crate::table::{FourTuple, Table};
use crate::time::Instant;
use crate::wheel::Wheel;

/// The bits of a DSCP.
const DSCP_MASK: u8 = 0x3f;

/// The TCP connections of one worker. See the [crate] for where it stands in the gateway.
pub struct Stack {
    config: StackConfig,
    secret: Secret,
    cookies: Cookies,
    /// What the connections share: settings, memory, the histogram.
    context: Shared,
    /// One bit for each port that is listened on.
    listening: Box<[u64; 1 << 10]>,
    slots: Slots,
    table: Table,
    /// The connection of the last segment.
    last_found: u32,
    wheel: Wheel,
    /// Connections that are over for the caller, oldest first, with some that are gone.
    ended: VecDeque<ConnId>,
    sources: Sources,
    /// Connections that may have something to send.
    due: Queue,
    /// Connections of which the caller has not been told everything.
    eventful: Queue,
    /// Connections whose caller waits for memory to write to.
    starved: Queue,
    holders: Holders,
    replies: Replies,
    resets: resets::Budgets,
    /// The time of the last call that gave one.
    now: Instant,
    stats: Stats,
}

impl Stack {
    /// A stack without connections. `seed` must come from a good random source and differ for each
    /// worker: ports and the order of the connection table follow from it. Sequence numbers follow
    /// from [`StackConfig::secret`].
    ///
    /// # Errors
    /// The configuration cannot work.
    pub fn new(mut config: StackConfig, seed: [u8; 32]) -> Result<Self, ConfigError> {
        config.check()?;
        let limit = config.connections_max;
        let mut secret = Secret::new(seed);
        let cookies = Cookies::new(&config.secret, limit);
        config.secret.zeroize();
        Ok(Self {
            cookies,
            context: Shared::new(&config),
            listening: Box::new([0; 1 << 10]),
            slots: Slots::new(limit),
            table: Table::new(limit),
            last_found: 0,
            wheel: Wheel::new(Instant::ZERO, limit),
            ended: VecDeque::new(),
            sources: Sources::new(
                limit,
                config.prefix_connections_max,
                (secret.draw(), secret.draw()),
            ),
            due: Queue::new(limit),
            eventful: Queue::new(limit),
            starved: Queue::new(limit),
            holders: Holders::new(limit),
            replies: Replies::new(),
            resets: resets::Budgets::default(),
            now: Instant::ZERO,
            stats: Stats::default(),
            secret,
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
        if !is_host(local)
            || !is_host(remote.ip())
            || remote.port() == 0
            || local.is_ipv4() != remote.is_ipv4()
        {
            return Err(ConnectError::Address);
        }
        self.make_place();
        if self.slots.is_full() {
            return Err(ConnectError::ConnectionsMax);
        }
        let tuple = self.free_tuple(local, remote).ok_or(ConnectError::NoPort)?;
        let isn = self.cookies.isn(&tuple, now);
        let offset = self.cookies.timestamp_offset(&tuple);
        let mut connection = Connection::open(tuple, isn, offset, self.context.settings(), now);
        connection.set_marks(self.marks(&tuple));
        connection.hold(self.context.pool());
        let id = self.slots.add(Entry::new(connection, now)).ok_or(ConnectError::ConnectionsMax)?;
        self.adopt(id, &tuple);
        self.due.push(id.index);
        Ok(id)
    }

    /// Makes a new connection known to the table and the timers.
    fn adopt(&mut self, id: ConnId, tuple: &FourTuple) {
        self.table.insert(&self.secret, tuple, id.index);
        let stranger = self.slots.get(id.index).is_some_and(|entry| entry.unproven);
        self.sources.add(id.index, tuple.remote.ip(), stranger);
        self.wheel.grow(self.slots.used());
    }

    /// The marks of every packet between these ends.
    fn marks(&self, tuple: &FourTuple) -> Marks {
        let Marking { dscp, label_key } = self.config.marking;
        Marks { dscp, flow_label: flow_label(label_key, tuple.local.ip(), tuple.remote.ip()) }
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
            let tuple = FourTuple::new(local, remote);
            self.find(&tuple).is_none().then_some(tuple)
        })
    }

    fn find(&mut self, tuple: &FourTuple) -> Option<u32> {
        // In a batch one segment of a connection follows another.
        if self.slots.tuple(self.last_found) == Some(*tuple) {
            return Some(self.last_found);
        }
        let found = self.table.find(&self.secret, tuple, |index| self.slots.tuple(index))?;
        self.last_found = found;
        Some(found)
    }

    /// The peer has proven itself, by the stream prefix or an IKE SA, whichever the caller asks
    /// for: from now on the connection does not give way to new ones, and its receive window may
    /// grow.
    pub fn vouch(&mut self, id: ConnId) {
        if let Some(entry) = self.slots.named_mut(id)
            && std::mem::take(&mut entry.unproven)
        {
            self.sources.prove(id.index);
            entry.connection.prove();
            self.note_holding(id.index);
        }
    }

    /// Gives all packets of a connection this IPv6 flow label, of 20 bits; to be called before the
    /// first one leaves. What is to keep its label over several connections, as an IKE SA
    /// (RFC 9329, 6.1), the caller knows. Nothing happens if the connection is gone.
    pub fn set_flow_label(&mut self, id: ConnId, label: u32) {
        if let Some(entry) = self.slots.named_mut(id) {
            entry.connection.set_flow_label(label & FLOW_LABEL_MASK);
        }
    }

    /// Gives all packets of a connection from now on this DSCP, of six bits, in place of
    /// [`Marking`]'s: it is to be one for all (RFC 9329, 9.3), so that this is called before the first
    /// one leaves or, of what a peer has opened, as soon as it is known whose it is. Nothing happens
    /// if the connection is gone.
    pub fn set_dscp(&mut self, id: ConnId, dscp: u8) {
        if let Some(entry) = self.slots.named_mut(id) {
            entry.connection.set_dscp(dscp & DSCP_MASK);
        }
    }

    /// Has another congestion control govern a connection from now on; it begins with what the one
    /// before has found of the path. Nothing happens if the connection is gone or has it already.
    pub fn set_congestion_control(&mut self, id: ConnId, control: CongestionControl) {
        let now = self.now;
        if let Some(entry) = self.slots.named_mut(id) {
            let mut context = self.context.borrow(now);
            entry.connection.set_congestion_control(&mut context, control);
            self.due.push(id.index);
        }
    }

    /// A router reports by ICMP that a packet of ours with these ends and this sequence number
    /// exceeded `mtu` octets. Credible only if the sequence number is in flight; `false` if not.
    /// If segments as large have arrived it has no effect before that one times out
    /// (RFC 5927, 7.2).
    pub fn packet_too_big(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        sequence: u32,
        mtu: u16,
    ) -> bool {
        self.told(now, local, remote, |connection| connection.packet_too_big(sequence, mtu, now))
    }

    /// A router, or the peer's host, reports by ICMP that a packet of ours with these ends and this
    /// sequence number was not delivered; `hard` if another try would fare no better. Believed only
    /// if the sequence number is in flight; `false` if not. RFC 9293, 3.9.2.2: a connection that is
    /// not open yet ends by a hard error; of any other it is told as the reason if the peer stays
    /// silent.
    pub fn unreachable(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        sequence: u32,
        hard: bool,
    ) -> bool {
        self.told(now, local, remote, |connection| connection.unreachable(sequence, hard))
    }

    /// Tells a connection, if there is one, what the network says of it. Whether it believes that.
    fn told(
        &mut self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        tell: impl FnOnce(&mut Connection) -> bool,
    ) -> bool {
        self.now = now;
        let Some(index) = self.find(&FourTuple::new(local, remote)) else { return false };
        let believed = self.slots.get_mut(index).is_some_and(|entry| tell(&mut entry.connection));
        if believed {
            self.due.push(index);
        }
        believed
    }

    /// The next thing that the caller should know. Each connection has at most four of them
    /// waiting, so the queue is bounded by the connections.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            while let Some(index) = self.eventful.front() {
                let id = self.slots.id(index);
                let event = self.slots.get_mut(index).and_then(|entry| next_event(id, entry));
                if event.is_some() {
                    if matches!(event, Some(Event::Closed { .. })) {
                        self.release_if_over(index);
                    }
                    return event;
                }
                self.eventful.pop();
            }
            if !self.wake_starved() {
                return None;
            }
        }
    }

    /// Lends received octets that were not consumed when they arrived, in order, writable so that
    /// a frame can be decrypted where it lies. `read` says how many of them it has consumed; the
    /// rest is lent again. It is not called if there are none. The octets lent may end where a
    /// chunk of the buffer ends: call again until this gives 0.
    ///
    /// # Errors
    /// [`ConnError::Gone`]; [`ConnError::NotOpen`] before [`Event::Opened`].
    pub fn recv(
        &mut self,
        id: ConnId,
        read: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, ConnError> {
        let now = self.now;
        let entry = self.slots.named_mut(id).ok_or(ConnError::Gone)?;
        if !entry.news.was_opened {
            return Err(ConnError::NotOpen);
        }
        let (mut read, mut consumed) = (Some(read), 0);
        let mut context = self.context.borrow(now);
        entry.connection.lend(&mut context, &mut |octets| {
            let taken = read.take().map_or(0, |read| read(octets));
            consumed += taken;
            taken
        });
        entry.octets_in += consumed as u64;
        if consumed > 0 {
            self.note_holding(id.index);
            self.due.push(id.index);
            self.notice_end(id.index);
        }
        Ok(consumed)
    }

    /// Octets that wait to be sent for the first time, and when the oldest frame among them was
    /// written; nothing if the connection is gone.
    #[must_use]
    pub fn unsent(&self, id: ConnId) -> (usize, Option<Instant>) {
        let (octets, since) =
            self.slots.named(id).map_or((0, None), |entry| entry.connection.unsent());
        (usize::try_from(octets).unwrap_or(usize::MAX), since)
    }

    /// Sends a frame of `len` octets, which `write` fills, before all frames of which no octet has
    /// been sent, and behind other such frames: IKE may overtake ESP, since neither promises an
    /// order. The send buffer may be full, but only so many octets wait urgently, or are not
    /// acknowledged besides it: two of the longest frames.
    ///
    /// # Errors
    /// [`ConnError::Full`], and no event follows: what is urgent is not worth sending later;
    /// [`ConnError::Gone`]; [`ConnError::NotOpen`] before [`Event::Opened`].
    pub fn send_urgent(
        &mut self,
        id: ConnId,
        len: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(), ConnError> {
        let now = self.now;
        let mut context = self.context.borrow(now);
        let entry = writable(&mut self.slots, id)?;
        entry.connection.write_urgent(&mut context, len, write).map_err(|_| ConnError::Full)?;
        entry.octets_out += len as u64;
        self.due.push(id.index);
        Ok(())
    }

    /// Closes a connection: what is in the send buffer is sent, then FIN. [`Event::Closed`]
    /// follows at once. Nothing happens if it is gone.
    ///
    /// RFC 9293, 3.6.1 (SHLD-3): what the peer has sent and nobody will read is not hidden from it.
    /// If some of that waits already it gets a RST instead; if some comes later, it gets a RST when
    /// it has acknowledged our FIN, and with it all that we sent.
    pub fn close(&mut self, id: ConnId) {
        let Some(entry) = self.slots.named(id).filter(|entry| !entry.news.ending) else { return };
        if entry.connection.unread() > 0 {
            self.abort_with(id, CloseReason::LocalClosed);
        } else {
            self.end(id.index, CloseReason::LocalClosed);
        }
    }

    /// Aborts a connection: the peer gets a RST, and what is in the send buffer is dropped.
    /// [`Event::Closed`] follows at once. Nothing happens if it is gone.
    pub fn abort(&mut self, id: ConnId) {
        self.abort_with(id, CloseReason::LocalAborted);
    }

    /// What is known of a connection; `None` once it is gone.
    #[must_use]
    pub fn info(&self, id: ConnId) -> Option<ConnInfo> {
        self.slots.named(id).map(Entry::info)
    }

    /// What the stack has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let buffer_bytes = self.context.buffer_bytes() as u64;
        Stats { replies_lost: self.replies.lost, buffer_bytes, ..self.stats }
    }

    /// How long each received segment waited behind missing ones, in microseconds: the price of one
    /// stream for all packets of a tunnel (RFC 9329, 9.1). Segments that did not wait do not count.
    #[must_use]
    pub fn head_of_line_delay(&self) -> &hdrhistogram::Histogram<u64> {
        self.context.head_of_line()
    }
}

fn next_event(id: ConnId, entry: &mut Entry) -> Option<Event> {
    let news = &mut entry.news;
    if std::mem::take(&mut news.opened) {
        let FourTuple { local, remote } = entry.connection.tuple;
        let originator = entry.connection.originator;
        Some(Event::Opened { id, local: local.into(), remote: remote.into(), originator })
    } else if std::mem::take(&mut news.readable) {
        Some(Event::Readable(id))
    } else if std::mem::take(&mut news.writable) {
        Some(Event::Writable(id))
    } else {
        let reason = news.closed.take()?;
        news.done = true;
        Some(Event::Closed { id, reason })
    }
}

/// The connection that the caller wants to write to.
fn writable(slots: &mut Slots, id: ConnId) -> Result<&mut Entry, ConnError> {
    let entry = slots.named_mut(id).ok_or(ConnError::Gone)?;
    match (entry.news.ending, entry.news.was_opened) {
        (true, _) => Err(ConnError::Gone),
        (_, false) => Err(ConnError::NotOpen),
        _ => Ok(entry),
    }
}
