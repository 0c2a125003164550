//! One connection: RFC 9293 with SACK, RACK-TLP, pacing and the protections of RFC 5961.
//!
//! A segment comes in through [`input`], where the state machine judges it; its acknowledgment goes
//! to the [`Sender`] ([`ack`]), its payload to the [`Receiver`]. What the connection wants to say
//! leaves at the end of the worker's batch through [`output`]. Time passes through [`timers`].

mod ack;
mod acknowledge;
mod forward;
mod govern;
mod input;
mod output;
mod plan;
mod receiver;
mod recovery;
mod runs;
mod sender;
mod timers;
mod undo;
mod waiting;

pub(crate) use input::Disposition;
pub(crate) use output::Progress;

use super::buffer::{ChunkPool, Full};
use super::congestion::CongestionControl;
use super::cookie::Recalled;
use super::lazy::Spares;
use super::segment::{FourTuple, Marks, SACK_BLOCKS_MAX, Segment, TIMESTAMP_OPTION, ip_header_len};
use crate::api::CloseReason;
use crate::config::{MTU_MIN, TxChecksum};
use crate::time::{Duration, Instant};
use receiver::Receiver;
use sender::Sender;
use timers::Timers;

/// Octets of a TCP header without options.
const TCP_HEADER: usize = 20;
/// The segment size of a peer that names none (RFC 9293, 3.7.1).
const MSS_DEFAULT_V4: u16 = 536;
const MSS_DEFAULT_V6: u16 = 1220;
/// What a router means that names no MTU (RFC 1191, 5: a plateau that nearly every path carries).
const MTU_OF_SILENT_ROUTERS: u16 = 1006;
/// No segment is made smaller than this, whatever a peer or a router asks for: smaller ones cost
/// us more than they bring (CVE-2019-11479).
pub(crate) const MSS_MIN: u16 = 216;

/// What all connections of a stack share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The interface's MTU in octets.
    pub(crate) mtu: u16,
    pub(crate) receive_max: usize,
    pub(crate) send_max: usize,
    pub(crate) window_scale: u8,
    pub(crate) congestion_control: CongestionControl,
    /// How long unacknowledged data may make no progress (RFC 9293, 3.8.3).
    pub(crate) user_timeout: Duration,
    /// How long a SYN may stay unanswered.
    pub(crate) connect_timeout: Duration,
    /// Silence before a keepalive, if any is sent (RFC 9293, 3.8.4).
    pub(crate) keepalive: Option<Duration>,
    /// How long TIME-WAIT lasts: 2 MSL.
    pub(crate) time_wait: Duration,
    pub(crate) tx_checksum: TxChecksum,
    /// The longest packet that the device cuts, in octets.
    pub(crate) segmentation_bytes: usize,
}

/// The states of RFC 9293, 3.3.2; LISTEN needs no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) tuple: FourTuple,
    pub(crate) state: State,
    pub(crate) originator: bool,
    marks: Marks,
    timestamp_offset: u32,
    timestamps: bool,
    sack: bool,
    tx: Sender,
    rx: Receiver,
    timers: Timers,
    /// No challenge leaves before.
    next_challenge: Instant,
    pub(crate) last_heard: Instant,
    /// Segments sent, retransmissions included.
    pub(crate) segments_out: u64,
    probe_peer: bool,
    /// The network has said since the peer was heard that it cannot be reached.
    unreachable: bool,
    keepalives_unanswered: u8,
    close_reason: Option<CloseReason>,
}

/// What a RST says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reset {
    pub(crate) seq: u32,
    pub(crate) ack: Option<u32>,
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// Spare states of what is known of losses, in either direction.
#[derive(Debug)]
pub(crate) struct LossSpares {
    holes: Spares<receiver::Holes>,
    recoveries: Spares<recovery::Recovery>,
}

impl LossSpares {
    pub(crate) fn new() -> Self {
        Self { holes: Spares::new(), recoveries: Spares::new() }
    }
}

/// What a connection borrows from its stack while it works.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) settings: &'a Settings,
    pub(crate) pool: &'a mut ChunkPool,
    pub(crate) head_of_line: &'a mut hdrhistogram::Histogram<u64>,
}

impl Connection {
    /// An active open: the SYN leaves with the next transmission.
    pub(crate) fn open(
        tuple: FourTuple,
        isn: u32,
        timestamp_offset: u32,
        settings: &Settings,
        now: Instant,
    ) -> Self {
        let mut connection =
            Self::new(tuple, State::SynSent, isn, timestamp_offset, true, settings, now);
        connection.timestamps = true;
        connection.sack = true;
        connection.prove(); // It is whom we asked for.
        connection
    }

    /// A passive open, once the acknowledgment of a SYN cookie has come: the SYN and ours are
    /// both history.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn accept(
        tuple: FourTuple,
        cookie: u32,
        peer_isn: u32,
        recalled: Recalled,
        timestamp_offset: u32,
        settings: &Settings,
        now: Instant,
    ) -> Self {
        let mut connection =
            Self::new(tuple, State::Established, cookie, timestamp_offset, false, settings, now);
        connection.timestamps = recalled.timestamps;
        connection.sack = recalled.sack_permitted;
        connection.rx.synchronize(peer_isn);
        connection.negotiate(recalled.mss, recalled.window_scale, settings);
        connection.tx.handshake_done();
        connection
    }

    fn new(
        tuple: FourTuple,
        state: State,
        isn: u32,
        timestamp_offset: u32,
        originator: bool,
        settings: &Settings,
        now: Instant,
    ) -> Self {
        let mss = offered_mss(&tuple, settings);
        Self {
            tuple,
            state,
            originator,
            marks: Marks::default(),
            timestamp_offset,
            timestamps: false,
            sack: false,
            tx: Sender::new(isn, mss, settings.congestion_control, now),
            rx: Receiver::new(settings),
            timers: Timers::default(),
            next_challenge: Instant::ZERO,
            last_heard: now,
            segments_out: 0,
            probe_peer: false,
            unreachable: false,
            keepalives_unanswered: 0,
            close_reason: None,
        }
    }

    /// Sets what the options of the peer's SYN decide.
    fn negotiate(&mut self, peer_mss: u16, peer_scale: Option<u8>, settings: &Settings) {
        let mss = peer_mss.min(offered_mss(&self.tuple, settings)).max(MSS_MIN);
        let options = if self.timestamps { TIMESTAMP_OPTION as u16 } else { 0 };
        self.tx.limit_mss(mss - options);
        self.tx.sack = self.sack;
        self.rx.blocks_max = match (self.sack, self.timestamps) {
            (false, _) => 0,
            (true, false) => SACK_BLOCKS_MAX as u8,
            (true, true) => SACK_BLOCKS_MAX as u8 - 1,
        };
        self.tx.peer_scale = peer_scale.unwrap_or(0);
        self.rx.scale = if peer_scale.is_some() { settings.window_scale } else { 0 };
        self.rx.limit_to_scale();
    }

    /// A router reports that a packet with sequence number `wire` exceeded `mtu` octets. `false`
    /// if that is not credible or nothing new.
    pub(crate) fn packet_too_big(&mut self, wire: u32, mtu: u16, now: Instant) -> bool {
        let Some(offset) = self.tx.space.offset(self.tx.una, wire) else { return false };
        let options = if self.timestamps { TIMESTAMP_OPTION } else { 0 };
        #[allow(clippy::cast_possible_truncation)] // 72 at most.
        let headers = (ip_header_len(self.tuple.local.ip()) + TCP_HEADER + options) as u16;
        let least = if self.tuple.local.is_ipv4() { MTU_OF_SILENT_ROUTERS } else { MTU_MIN };
        let mtu = if mtu == 0 || !self.tuple.local.is_ipv4() { mtu.max(least) } else { mtu };
        self.tx.packet_too_big(offset, mtu.saturating_sub(headers), now)
    }

    /// A router, or the peer's host, reports that a packet with sequence number `wire` was not
    /// delivered, `hard` if another try is no better. `false` if that is not credible: it must be
    /// in flight (RFC 5927, 4.1), which of a SYN is a guess of 32 bits.
    ///
    /// RFC 9293, 3.9.2.2: a soft error ends nothing (MUST-56) and is the reason that is told if the
    /// peer stays silent (SHLD-25). A hard one ends what has not begun (SHLD-26); in a synchronized
    /// state it counts for no more than a soft one (RFC 5927, 5.2).
    pub(crate) fn unreachable(&mut self, wire: u32, hard: bool) -> bool {
        let in_flight = self
            .tx
            .space
            .offset(self.tx.una, wire)
            .is_some_and(|offset| (self.tx.una..self.tx.nxt).contains(&offset));
        if in_flight {
            self.unreachable = true;
            if hard && self.state == State::SynSent {
                self.end(CloseReason::Unreachable);
            }
        }
        in_flight
    }

    /// Sets the DSCP and flow label of its packets.
    pub(crate) fn set_marks(&mut self, marks: Marks) {
        self.marks = marks;
    }

    /// The DSCP and flow label of its packets.
    pub(crate) fn marks(&self) -> Marks {
        self.marks
    }

    /// Sets the DSCP of its packets.
    pub(crate) fn set_dscp(&mut self, dscp: u8) {
        self.marks.dscp = dscp;
    }

    /// Sets the flow label of its packets.
    pub(crate) fn set_flow_label(&mut self, flow_label: u32) {
        self.marks.flow_label = flow_label;
    }

    /// Whether data may be written.
    pub(crate) fn may_send(&self) -> bool {
        !self.tx.fin_queued()
            && matches!(
                self.state,
                State::SynSent | State::SynReceived | State::Established | State::CloseWait
            )
    }

    /// Whether the handshake is done and the end has not come.
    pub(crate) fn is_synchronized(&self) -> bool {
        !matches!(self.state, State::SynSent | State::SynReceived | State::Closed)
    }

    /// The peer has proven itself: its window may grow.
    pub(crate) fn prove(&mut self) {
        self.rx.proven = true;
    }

    /// Chunks of memory that it holds while there are octets behind holes.
    pub(crate) fn chunks_behind_holes(&self) -> usize {
        self.rx.buffer.chunks_behind_holes()
    }

    /// Forgets the octets behind holes (RFC 2018, 8).
    pub(crate) fn renege(&mut self, pool: &mut ChunkPool) {
        self.rx.renege(pool);
    }

    /// Why it ended, once it has.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.close_reason
    }

    /// Octets that may be written now.
    pub(crate) fn send_capacity(&self, settings: &Settings) -> usize {
        if self.may_send() { self.tx.capacity(settings.send_max) } else { 0 }
    }

    /// Octets that arrived in order and were not taken.
    pub(crate) fn unread(&self) -> u64 {
        self.rx.unread()
    }

    /// Whether the peer has sent its FIN, and all before it has come.
    pub(crate) fn is_finished_by_peer(&self) -> bool {
        use State::{CloseWait, Closed, Closing, LastAck, TimeWait};
        matches!(self.state, CloseWait | LastAck | Closing | TimeWait | Closed)
    }

    /// Octets sent and not acknowledged.
    pub(crate) fn in_flight(&self) -> u64 {
        self.tx.nxt - self.tx.una
    }

    /// Lends what was not taken before; the window opens by what `take` takes.
    pub(crate) fn lend(
        &mut self,
        context: &mut Context<'_>,
        take: &mut dyn FnMut(&mut [u8]) -> usize,
    ) {
        self.rx.lend(context, take);
        self.rx.schedule_ack(self.tx.mss, 0, context.now);
    }

    /// RFC 6191, 2: whether a SYN may take the place of this connection, which only waits for old
    /// segments to die.
    ///
    /// RFC 9293, 3.6.1 (MAY-2) wants an initial sequence number above all that the old connection
    /// used, and a SYN cookie cannot promise that. With timestamps it is not needed: ours go on from
    /// one connection of two ends to the next, and where the old one had none its segments have none,
    /// so that the peer takes no segment of ours that is left of it (RFC 7323, 5.3 and 3.2). Without
    /// them a SYN never takes the place, other than RFC 6191 would have it: it is challenged, and
    /// a peer that means it answers with a RST and repeats its SYN.
    pub(crate) fn gives_way_to(&self, syn: &Segment, now: Instant) -> bool {
        let newer_sequence = || self.rx.offset(syn.seq).is_some_and(|start| start >= self.rx.nxt);
        self.state == State::TimeWait
            && match syn.options.timestamps {
                Some(_) if !self.timestamps => true,
                Some((value, _)) if value == self.rx.timestamp_echo() => newer_sequence(),
                Some((value, _)) => self.rx.is_new_timestamp(value, now),
                None => false,
            }
    }

    /// Octets that wait to be sent for the first time, and since when the oldest does.
    pub(crate) fn unsent(&self) -> (u64, Option<Instant>) {
        self.tx.unsent()
    }

    /// Lets `fill` write a frame of up to `len` octets in one piece.
    pub(crate) fn write_with(
        &mut self,
        context: &mut Context<'_>,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, Full> {
        if len > self.send_capacity(context.settings) {
            return Err(Full);
        }
        self.tx.write_with(context, len, fill)
    }

    /// Writes a frame in front of those that have not been started.
    pub(crate) fn write_urgent(
        &mut self,
        context: &mut Context<'_>,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Full> {
        if !self.may_send() {
            return Err(Full);
        }
        self.tx.write_urgent(context, len, fill)
    }

    /// CLOSE of RFC 9293, 3.10.4: the FIN follows what was written.
    pub(crate) fn close(&mut self, now: Instant) {
        self.timers.closed_at = now;
        match self.state {
            State::SynSent => self.end(CloseReason::LocalAborted),
            State::SynReceived | State::Established => {
                self.tx.queue_fin(now);
                self.state = State::FinWait1;
            }
            State::CloseWait => {
                self.tx.queue_fin(now);
                self.state = State::LastAck;
            }
            _ => {}
        }
    }

    /// Ends it at once; the stack sends the RST that [`Self::reset`] asks for.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.state = State::Closed;
        self.timers = Timers::default();
        self.close_reason.get_or_insert(reason);
    }

    /// A RST that the peer accepts (RFC 5961, 3.2), if it is to have one.
    pub(crate) fn reset(&self, now: Instant) -> Option<Reset> {
        // RFC 9293, 3.10.5: not before the peer has spoken, and not after both have said FIN.
        let silent = matches!(
            self.state,
            State::SynSent | State::Closing | State::LastAck | State::TimeWait | State::Closed
        );
        (!silent).then(|| Reset {
            seq: self.tx.next_wire(),
            ack: Some(self.rx.next_wire()),
            // RFC 7323, 5.2: on a user abort too.
            timestamps: self.timestamps.then(|| self.timestamps(now)),
        })
    }

    /// Takes the memory that its SYN needs while it is in flight.
    pub(crate) fn hold(&mut self, pool: &mut ChunkPool) {
        self.tx.hold(pool);
    }

    /// Returns all chunks to the pool.
    pub(crate) fn release(&mut self, pool: &mut ChunkPool) {
        self.tx.release(pool);
        self.rx.release(pool);
    }

    /// Gives back what an idle connection need not hold.
    pub(crate) fn shrink(&mut self, pool: &mut ChunkPool) {
        self.tx.shrink(pool);
        self.rx.shrink(pool);
    }
}

/// The segment size offered to the peer (RFC 9293, 3.7.1; RFC 9329, 9.4): the interface's MTU less
/// the headers without options.
pub(crate) fn offered_mss(tuple: &FourTuple, settings: &Settings) -> u16 {
    #[allow(clippy::cast_possible_truncation)] // 60 at most.
    let headers = (ip_header_len(tuple.local.ip()) + TCP_HEADER) as u16;
    settings.mtu.saturating_sub(headers).max(MSS_MIN)
}

/// The segment size of a peer that offers none.
pub(crate) fn default_mss(tuple: &FourTuple) -> u16 {
    if tuple.local.is_ipv4() { MSS_DEFAULT_V4 } else { MSS_DEFAULT_V6 }
}
