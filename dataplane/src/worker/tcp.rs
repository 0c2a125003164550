//! The TCP connections of a worker: what it knows of each beside the stack's own state.
//!
//! A connection passes through here as: opened by the peer ([`Tcp::opened`], watched until its
//! prefix has come) or by control ([`Tcp::connect`]); read by [`super::stream`]; written by
//! [`Tcp::write_frame`]; closed by either side, or broken off because its stream is no RFC 9329.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use culvert_shm::{
    CloseReason, Congestion, ConnInfo, ConnRef, ConnStats, ConnectFailure, Counter, Dscp, Path,
    Standing, Transport, Up, WorkerView,
};
use culvert_tcpstack::framing::{self, Decoder};
use culvert_tcpstack::{
    self as tcpstack, CongestionControl, ConnError, ConnId, ConnectError, Stack,
};

use super::age::{AgeDrop, OCTETS_FREE};
use super::prefix_watch::PrefixWatch;
use crate::net::{Nanos, SECOND};

/// How long a peer may take to send the stream prefix. RFC 9329 leaves it open; libreswan closes
/// after as long.
pub const PREFIX_TIMEOUT: Nanos = 5 * SECOND;

/// Octets that a full connection should have room for before other workers hear of it again.
const ROOM_WANTED: usize = 64 * 1024;

/// Connections that are shown in one go, ten times a second.
const SHOWN_PER_TICK: usize = 2048;

/// One connection.
pub(crate) struct Conn {
    pub(crate) id: ConnId,
    /// How packets on it arrive and how its peer is reached.
    pub(crate) path: Path,
    /// This gateway opened it: it is RFC 9329's TCP Originator.
    pub(crate) originator: bool,
    pub(crate) decoder: Decoder,
    /// Messages in a row that belong to nothing that is known.
    pub(crate) strangers: u8,
    /// SPIs of SAs whose packets came last.
    pub(crate) known: KnownSpis,
    /// Control has been told of it.
    pub(crate) reported: bool,
    /// What it may ask of control's ring.
    pub(crate) standing: Standing,
    /// The prefix is still to be written, before the first frame.
    prefix_due: bool,
    /// When to drop packets because those before them wait.
    age: AgeDrop,
    /// Control's name for its wish to connect, 0 when the peer opened the connection.
    token: u64,
    open: bool,
    /// It is among [`Tcp::shared`].
    shared: bool,
    /// Why this side ends it.
    verdict: Option<CloseReason>,
}

/// The SPIs of the last few SAs whose packets came on a connection.
///
/// When an SA is gone, packets of it may still be under way: IKE's word of it overtakes them. They are
/// no sign of a stream that has lost its frames (RFC 9329, 6.1).
#[derive(Clone, Copy, Default)]
pub(crate) struct KnownSpis([u32; 4]);

impl KnownSpis {
    /// A packet of an SA came.
    #[inline]
    pub(crate) fn note(&mut self, spi: u32) {
        let [newest, ..] = self.0;
        if newest != spi {
            let at = self.0.iter().position(|known| *known == spi).unwrap_or(self.0.len() - 1);
            self.0[..=at].rotate_right(1);
            self.0[0] = spi;
        }
    }

    /// Whether packets of this SPI have come.
    pub(crate) fn contains(&self, spi: u32) -> bool {
        self.0.contains(&spi)
    }
}

/// All connections of a worker.
pub(crate) struct Tcp {
    pub(crate) stack: Stack,
    conns: Box<[Option<Conn>]>,
    watch: PrefixWatch,
    worker: u16,
    /// Connections for which other workers have sealed and of which they are still to be told, each
    /// once, with some that are gone.
    shared: VecDeque<ConnId>,
    /// Index of the connection that was shown last.
    shown: usize,
    /// What of the stack's own counts has been added to the worker's.
    counted: tcpstack::Stats,
}

impl Tcp {
    pub(crate) fn new(worker: u16, stack: Stack, connections: u32) -> Self {
        let conns = (0..connections).map(|_| None).collect();
        Self {
            stack,
            conns,
            watch: PrefixWatch::new(connections),
            worker,
            shared: VecDeque::with_capacity(connections as usize),
            shown: 0,
            counted: tcpstack::Stats::default(),
        }
    }

    /// The stack and one connection, to be used together.
    pub(crate) fn parts(&mut self, id: ConnId) -> Option<(&mut Stack, &mut Conn)> {
        let conn = self.conns.get_mut(id.index as usize)?.as_mut().filter(|conn| conn.id == id)?;
        Some((&mut self.stack, conn))
    }

    /// The stack and all open connections, to be used together.
    pub(crate) fn stack_and_conns(&mut self) -> (&mut Stack, OpenConns<'_>) {
        (&mut self.stack, OpenConns(&mut self.conns))
    }

    fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.parts(id).map(|(_, conn)| conn)
    }

    pub(crate) fn conn_ref(&self, id: ConnId) -> ConnRef {
        ConnRef { worker: self.worker, index: id.index, generation: id.generation }
    }

    /// Opens a connection on control's word.
    pub(crate) fn connect(
        &mut self,
        now: tcpstack::Instant,
        token: u64,
        (local, remote): (IpAddr, SocketAddr),
        (congestion, flow_label, dscp): (Congestion, u32, Dscp),
    ) -> Result<(), ConnectFailure> {
        let id = self.stack.connect(now, local, remote).map_err(|error| match error {
            ConnectError::Address => ConnectFailure::NoAddress,
            ConnectError::ConnectionsMax => ConnectFailure::TableFull,
            ConnectError::NoPort => ConnectFailure::NoPort,
        })?;
        self.stack.set_congestion_control(id, control_of(congestion));
        self.stack.set_flow_label(id, flow_label);
        self.stack.set_dscp(id, dscp.bits());
        let decoder = Decoder::for_originator();
        let path = self.path(id, SocketAddr::new(local, 0), remote);
        self.insert(Conn { token, prefix_due: true, ..Conn::new(id, path, true, decoder) });
        Ok(())
    }

    fn path(&self, id: ConnId, local: SocketAddr, remote: SocketAddr) -> Path {
        Path {
            transport: Transport::Tcp,
            local,
            remote,
            conn: Some(self.conn_ref(id)),
            pinned: false,
        }
    }

    fn insert(&mut self, conn: Conn) {
        if let Some(entry) = self.conns.get_mut(conn.id.index as usize) {
            *entry = Some(conn);
        }
    }

    /// The handshake of a connection is done. What the peer opened is reported once its prefix has
    /// come; what this side opened is reported at once, and returned.
    pub(crate) fn opened(
        &mut self,
        view: &WorkerView,
        now_ns: Nanos,
        id: ConnId,
        ends: (SocketAddr, SocketAddr),
    ) -> Option<Up<'static>> {
        let (local, remote) = ends;
        let path = self.path(id, local, remote);
        if self.conn(id).is_none() {
            self.insert(Conn::new(id, path, false, Decoder::for_responder()));
            self.watch.arm(id.index, now_ns + PREFIX_TIMEOUT);
        }
        let conn = self.conn(id)?;
        (conn.path, conn.open, conn.reported) = (path, true, conn.originator);
        let (originator, token) = (conn.originator, conn.token);
        let conn = path.conn?;
        if let Some(slot) = view.conn(id.index) {
            slot.open(conn, &ConnInfo { local, remote, originator, opened_ns: now_ns });
        }
        self.show(view, id);
        view.count(Counter::TcpOpened, 1);
        originator.then_some(Up::TcpOpened { conn, local, remote, originator, token })
    }

    /// The peer's prefix has come: it is no stray one. Anybody can send a prefix, so that the
    /// connection still gives way to new ones until the peer is authenticated.
    pub(crate) fn begun(&mut self, id: ConnId) {
        self.watch.disarm(id.index);
    }

    /// An authenticated peer uses the connection, and this is to govern it. Whose it was could not be
    /// known before, nor which service level its packets are to have.
    pub(crate) fn proven(
        &mut self,
        view: &WorkerView,
        id: ConnId,
        (congestion, dscp): (Congestion, Dscp),
    ) {
        self.stack.vouch(id);
        if let Some(conn) = self.conn(id) {
            conn.standing = Standing::Peer;
        }
        self.stack.set_congestion_control(id, control_of(congestion));
        self.stack.set_dscp(id, dscp.bits());
        self.show(view, id);
    }

    /// A connection is gone. Returns what control has to be told.
    pub(crate) fn closed(
        &mut self,
        view: &WorkerView,
        id: ConnId,
        reason: tcpstack::CloseReason,
    ) -> Option<Up<'static>> {
        self.watch.disarm(id.index);
        let entry = self.conns.get_mut(id.index as usize)?;
        let conn = entry.take_if(|conn| conn.id == id)?;
        if let Some(slot) = view.conn(id.index) {
            slot.close();
        }
        if !conn.open {
            let reason = connect_failure(reason);
            return Some(Up::TcpConnectFailed { token: conn.token, reason });
        }
        if conn.decoder.partial_bytes() > 0 {
            // RFC 9329, 6.1: a message that was received in part ends with its connection.
            view.count(Counter::FramingPartial, 1);
        }
        let reason = conn.verdict.unwrap_or_else(|| close_reason(reason));
        let orderly = matches!(reason, CloseReason::Peer | CloseReason::Local);
        view.count(if orderly { Counter::TcpClosed } else { Counter::TcpAborted }, 1);
        let conn_ref = conn.path.conn?;
        conn.reported.then_some(Up::TcpClosed { conn: conn_ref, reason })
    }

    /// Ends a connection whose stream cannot be trusted, without an octet of answer: a reset frees
    /// the state at both ends at once.
    pub(crate) fn break_off(&mut self, id: ConnId, verdict: CloseReason) {
        if let Some(conn) = self.conn(id) {
            conn.verdict = Some(verdict);
            self.stack.abort(id);
        }
    }

    /// Closes a connection on control's word; false if there is no such connection.
    pub(crate) fn close(&mut self, view: &WorkerView, id: ConnId, abort: bool) -> bool {
        let Some(conn) = self.conn(id) else { return false };
        conn.verdict = Some(CloseReason::Local);
        if abort {
            self.stack.abort(id);
            return true;
        }
        if let Some(slot) = view.conn(id.index) {
            slot.closing();
        }
        self.stack.close(id);
        true
    }

    /// Ends one connection whose peer has not sent the prefix in time; false when there is none.
    pub(crate) fn break_off_silent(&mut self, view: &WorkerView, now_ns: Nanos) -> bool {
        let Some(index) = self.watch.pop_due(now_ns) else { return false };
        let conn = self.conns.get(index as usize).and_then(Option::as_ref);
        if let Some(id) = conn.map(|conn| conn.id) {
            view.count(Counter::FramingSilent, 1);
            self.break_off(id, CloseReason::Silent);
        }
        true
    }

    /// Writes one frame of exactly `len` octets, length field included, straight into the send
    /// buffer; `fill` gets its place and says how much of it holds the frame. The originator's
    /// prefix goes before the first one, in the same segment: some peers want it in one read.
    ///
    /// # Errors
    /// As [`Stack::send_with`]; then `fill` was not called.
    pub(crate) fn write_frame(
        &mut self,
        id: ConnId,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), ConnError> {
        let (stack, conn) = self.parts(id).ok_or(ConnError::Gone)?;
        // RFC 9329, 4 and 6.1: every stream begins with the prefix, also that of a new connection
        // for an old SA.
        let prefix: &[u8] = if conn.prefix_due { &framing::PREFIX } else { &[] };
        let lead = prefix.len();
        stack.send_with(id, lead + len, |room| {
            let (head, frame) = room.split_at_mut(lead);
            head.copy_from_slice(prefix);
            lead + fill(frame)
        })?;
        conn.prefix_due = false;
        Ok(())
    }

    /// Writes an IKE frame before all ESP frames that have not been started: liveness and rekeys
    /// must not wait behind bulk.
    ///
    /// # Errors
    /// As [`Stack::send_urgent`].
    pub(crate) fn write_urgent(
        &mut self,
        id: ConnId,
        header: &[u8],
        message: &[u8],
    ) -> Result<(), ConnError> {
        let (stack, conn) = self.parts(id).ok_or(ConnError::Gone)?;
        let prefix: &[u8] = if conn.prefix_due { &framing::PREFIX } else { &[] };
        let parts = [prefix, header, message];
        let len = parts.iter().map(|part| part.len()).sum();
        stack.send_urgent(id, len, |frame| {
            let mut rest = frame;
            for part in parts {
                let (place, behind) = std::mem::take(&mut rest).split_at_mut(part.len());
                place.copy_from_slice(part);
                rest = behind;
            }
        })?;
        conn.prefix_due = false;
        Ok(())
    }

    /// Writes an IKE frame behind all that waits.
    ///
    /// # Errors
    /// As [`Tcp::write_frame`].
    pub(crate) fn write_behind(
        &mut self,
        id: ConnId,
        header: &[u8],
        message: &[u8],
    ) -> Result<(), ConnError> {
        self.write_frame(id, header.len() + message.len(), |out| {
            let (head, body) = out.split_at_mut(header.len());
            head.copy_from_slice(header);
            body.copy_from_slice(message);
            out.len()
        })
    }

    /// As [`Tcp::room`], for other workers: when it is little, an [`Event::Writable`] follows as
    /// soon as there is [`ROOM_WANTED`] again. Acknowledgements make room without another event.
    ///
    /// [`Event::Writable`]: tcpstack::Event::Writable
    pub(crate) fn room_or_event(&mut self, id: ConnId) -> usize {
        self.stack.room_or_event(id, ROOM_WANTED).saturating_sub(framing::PREFIX.len())
    }

    /// Another worker has sealed for this connection.
    pub(crate) fn share(&mut self, id: ConnId) {
        if self.shared.len() < self.conns.len()
            && let Some(conn) = self.conn(id)
            && !std::mem::replace(&mut conn.shared, true)
        {
            self.shared.push_back(id);
        }
    }

    /// Connections of which other workers are to be told.
    pub(crate) fn shared_len(&self) -> usize {
        self.shared.len()
    }

    /// The next connection of which the workers that seal for it are to be told. It is in turn again
    /// as long as frames wait there.
    pub(crate) fn next_shared(&mut self) -> Option<ConnId> {
        while let Some(id) = self.shared.pop_front() {
            let waits = self.waiting_since(id).is_some();
            if let Some(conn) = self.conn(id) {
                conn.shared = waits;
                if waits {
                    self.shared.push_back(id);
                }
                return Some(id);
            }
        }
        None
    }

    /// Since when the oldest frame waits to be sent; `None` where what waits is no queue.
    pub(crate) fn waiting_since(&self, id: ConnId) -> Option<Nanos> {
        let (waiting, since) = self.stack.unsent(id);
        since.filter(|_| waiting > OCTETS_FREE).map(|since| since.0 * 1000)
    }

    /// Shows what some connections have carried; in turn, all of them.
    pub(crate) fn show_some(&mut self, view: &WorkerView) {
        for _ in 0..SHOWN_PER_TICK.min(self.conns.len()) {
            self.shown = (self.shown + 1) % self.conns.len();
            let Some(conn) = self.conns.get(self.shown).and_then(Option::as_ref) else { continue };
            self.show(view, conn.id);
        }
    }

    fn show(&self, view: &WorkerView, id: ConnId) {
        if let (Some(slot), Some(info)) = (view.conn(id.index), self.stack.info(id)) {
            slot.show(&ConnStats {
                congestion: Some(congestion_of(info.congestion_control)),
                octets_in: info.octets_in,
                octets_out: info.octets_out,
                segments_in: info.segments_in,
                segments_out: info.segments_out,
                last_frame_ns: 0,
            });
        }
    }

    /// Adds what the stack has counted since the last time to the worker's counters.
    pub(crate) fn count_stack(&mut self, view: &WorkerView) {
        let (old, new) = (self.counted, self.stack.stats());
        for (counter, since) in [
            (Counter::TcpCookiesSent, new.cookies_sent - old.cookies_sent),
            (Counter::TcpCookiesAccepted, new.cookies_accepted - old.cookies_accepted),
            (Counter::TcpCookiesFailed, new.cookies_failed - old.cookies_failed),
            (Counter::TcpEvicted, new.unproven_evicted - old.unproven_evicted),
            (Counter::TcpReneged, new.reneged - old.reneged),
            (Counter::TcpResetsSent, new.resets_sent - old.resets_sent),
        ] {
            view.count(counter, since);
        }
        self.counted = new;
    }

    /// Whether another packet may be sealed for a connection, by the age of those that wait there
    /// (RFC 9329, 9.1: what a stream delays it delays for all).
    pub(crate) fn admits(&mut self, id: ConnId, now_ns: Nanos) -> bool {
        let Some((stack, conn)) = self.parts(id) else { return false };
        let (waiting, since) = stack.unsent(id);
        let age = since.map_or(0, |since| now_ns.saturating_sub(since.0 * 1000));
        conn.age.admits(now_ns, age, waiting)
    }

    /// Octets of a frame that can be written now.
    pub(crate) fn room(&self, id: ConnId) -> usize {
        self.stack.send_capacity(id).saturating_sub(framing::PREFIX.len())
    }
}

/// The connections of a worker whose handshake is done.
pub(crate) struct OpenConns<'a>(&'a mut [Option<Conn>]);

impl OpenConns<'_> {
    pub(crate) fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        let conn = self.0.get_mut(id.index as usize)?.as_mut();
        conn.filter(|conn| conn.id == id && conn.open)
    }
}

impl Conn {
    fn new(id: ConnId, path: Path, originator: bool, decoder: Decoder) -> Self {
        Self {
            id,
            path,
            originator,
            decoder,
            strangers: 0,
            known: KnownSpis::default(),
            reported: false,
            standing: if originator { Standing::Peer } else { Standing::Stranger },
            prefix_due: false,
            age: AgeDrop::default(),
            token: 0,
            open: false,
            shared: false,
            verdict: None,
        }
    }
}

fn control_of(congestion: Congestion) -> CongestionControl {
    match congestion {
        Congestion::Bbr => CongestionControl::Bbr,
        Congestion::Cubic => CongestionControl::Cubic,
    }
}

fn congestion_of(control: CongestionControl) -> Congestion {
    match control {
        CongestionControl::Bbr => Congestion::Bbr,
        CongestionControl::Cubic => Congestion::Cubic,
    }
}

fn connect_failure(reason: tcpstack::CloseReason) -> ConnectFailure {
    match reason {
        tcpstack::CloseReason::Refused | tcpstack::CloseReason::PeerReset => {
            ConnectFailure::Refused
        }
        tcpstack::CloseReason::Unreachable => ConnectFailure::Unreachable,
        _ => ConnectFailure::TimedOut,
    }
}

fn close_reason(reason: tcpstack::CloseReason) -> CloseReason {
    use tcpstack::CloseReason as Stack;
    match reason {
        Stack::PeerClosed => CloseReason::Peer,
        Stack::PeerReset | Stack::Refused => CloseReason::Reset,
        Stack::ConnectTimeout | Stack::Timeout => CloseReason::TimedOut,
        Stack::Unreachable => CloseReason::Unreachable,
        Stack::LocalClosed | Stack::LocalAborted => CloseReason::Local,
        Stack::Evicted => CloseReason::Silent,
    }
}
