//! The sending direction: what is in flight, what may leave next, and how losses are repaired.

use super::Context;
use super::recovery::{Asked, Flight, Recovery};
use crate::engine::buffer::{CHUNK, ChunkPool, Full, SendBuffer, URGENT_MAX};
use crate::engine::congestion::{CongestionControl, Controller, initial_window};
use crate::engine::lazy::{Idle, Lazy};
use crate::engine::offset::SequenceSpace;
use crate::engine::pacing::Pacer;
use crate::engine::pmtu::{PathMtu, ProbeLoss, Verdict};
use crate::engine::rack::{Rack, TailLossProbe};
use crate::engine::rtt::RttEstimator;
use crate::engine::scoreboard::{Scoreboard, Stamp};
use crate::time::{Duration, Instant};
use std::ops::Range;

/// Room in the send buffer at the least, in octets: the longest frame of RFC 9329 and more. Else
/// the room follows twice the congestion window.
const SEND_INITIAL: u64 = 128 * 1024;

/// A window too small for a segment is used after this time at the latest (RFC 9293, 3.8.6.2.1).
const OVERRIDE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Sender {
    pub(super) space: SequenceSpace,
    pub(super) una: u64,
    pub(super) nxt: u64,
    /// The right edge of the peer's window, and what it was last learned from.
    pub(super) edge: u64,
    pub(super) edge_seq: u64,
    pub(super) edge_ack: u64,
    pub(super) window_max: u64,
    pub(super) peer_scale: u8,
    pub(super) mss: u16,
    /// Whether the peer sends SACK.
    pub(super) sack: bool,
    /// By how much the window is larger because acknowledgments were repeated (RFC 6582), where
    /// there is no SACK.
    pub(super) inflation: u64,
    pub(super) buffer: SendBuffer,
    pub(super) fin: bool,
    pub(super) board: Lazy<Scoreboard>,
    pub(super) rtt: RttEstimator,
    pub(super) rack: Rack,
    pub(super) probe: TailLossProbe,
    pub(super) controller: Controller,
    pub(super) pacer: Pacer,
    pub(super) recovery: Lazy<Recovery>,
    pub(super) delivered: u64,
    /// The low bits of how many octets were marked lost.
    pub(super) lost: u32,
    pub(super) delivered_at: Instant,
    pub(super) flight_started: Instant,
    /// The sample is limited by the application until this much was delivered.
    pub(super) app_limited_until: u64,
    pub(super) window_limited: bool,
    pub(super) last_sent: Instant,
    /// When the retransmission timer last fired.
    pub(super) timed_out_at: Instant,
    /// When the peer last acknowledged something new, or something began to wait for that.
    pub(super) last_progress: Instant,
    pub(super) asked: Asked,
    pub(super) reorder_at: Option<Instant>,
    pub(super) pace_until: Option<Instant>,
    pub(super) persist_backoff: u8,
    /// Since when the peer's window has kept everything back.
    pub(super) blocked_since: Option<Instant>,
    /// A small window has stayed small for so long that it is used (RFC 9293, 3.8.6.2.1).
    pub(super) override_silly: bool,
    pub(super) path: PathMtu,
}

impl Sender {
    pub(super) fn new(isn: u32, mss: u16, control: CongestionControl, now: Instant) -> Self {
        Self {
            space: SequenceSpace::new(isn),
            una: 0,
            nxt: 0,
            edge: 1,
            edge_seq: 0,
            edge_ack: 0,
            window_max: 0,
            peer_scale: 0,
            mss,
            sack: false,
            inflation: 0,
            buffer: SendBuffer::new(),
            fin: false,
            board: Lazy::new(),
            rtt: RttEstimator::new(),
            rack: Rack::new(),
            probe: TailLossProbe::default(),
            controller: Controller::new(control, u64::from(mss), isn, now),
            pacer: Pacer::new(),
            recovery: Lazy::new(),
            delivered: 0,
            lost: 0,
            delivered_at: now,
            flight_started: now,
            app_limited_until: 0,
            window_limited: false,
            last_sent: now,
            timed_out_at: Instant::ZERO,
            last_progress: now,
            asked: Asked::Nothing,
            reorder_at: None,
            pace_until: None,
            persist_backoff: 0,
            blocked_since: None,
            override_silly: false,
            path: PathMtu::new(mss),
        }
    }

    /// The SYN was sent and acknowledged before this connection was made.
    pub(super) fn handshake_done(&mut self) {
        self.una = 1;
        self.nxt = 1;
        self.edge = 1;
    }

    /// The handshake settled how large a segment may be at most, and with it the first window: one
    /// segment if the SYN was lost (RFC 5681, 3.1).
    pub(super) fn limit_mss(&mut self, mss: u16) {
        self.path = PathMtu::new(mss);
        self.set_mss(mss);
        let mss = u64::from(mss);
        let window = if self.rtt.handshake_done() { mss } else { initial_window(mss) };
        self.controller.set_initial_window(window);
    }

    /// Sets the payload of a full segment.
    pub(super) fn set_mss(&mut self, mss: u16) {
        self.mss = mss;
        self.controller.set_mss(u64::from(mss));
    }

    pub(super) fn next_wire(&self) -> u32 {
        self.space.wire(self.nxt)
    }

    pub(super) fn fin_queued(&self) -> bool {
        self.fin
    }

    pub(super) fn queue_fin(&mut self, now: Instant) {
        if self.is_at_rest() {
            self.last_progress = now;
        }
        self.fin = true;
    }

    /// Whether nothing is in flight and nothing waits.
    fn is_at_rest(&self) -> bool {
        self.board.is_empty() && self.nxt == self.end()
    }

    /// The offset behind all there is to send, the FIN included.
    pub(super) fn end(&self) -> u64 {
        self.buffer.end() + u64::from(self.fin)
    }

    /// Whether the FIN was sent and acknowledged.
    pub(super) fn fin_acknowledged(&self) -> bool {
        self.fin && self.una == self.end()
    }

    /// Octets that may be written: as much waits as twice the window. What the peer holds above a hole
    /// does not count, or a retransmission that is lost too would stop the stream.
    pub(super) fn capacity(&self, send_max: usize) -> usize {
        let held = self.buffer.end() - self.una.max(1);
        let waiting = held.saturating_sub(self.board.sacked_octets());
        let most = (2 * self.controller.window()).max(SEND_INITIAL);
        let room = most.saturating_sub(waiting).min((send_max as u64).saturating_sub(held));
        usize::try_from(room).unwrap_or(0)
    }

    pub(super) fn unsent(&self) -> (u64, Option<Instant>) {
        (self.buffer.end().saturating_sub(self.nxt.max(1)), self.buffer.waiting_since())
    }

    pub(super) fn write_with(
        &mut self,
        context: &mut Context<'_>,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<usize, Full> {
        self.hold(context.pool);
        self.note_restart(context.now);
        self.buffer.write_with(context.pool, context.now, len, fill)
    }

    pub(super) fn write_urgent(
        &mut self,
        context: &mut Context<'_>,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Full> {
        self.hold(context.pool);
        self.note_restart(context.now);
        let send_max = context.settings.send_max;
        // Those in flight count too, or who has its window filled with them gets that much besides.
        let held = self.buffer.end() - self.una.max(1);
        if held + len as u64 > (send_max + URGENT_MAX) as u64 {
            return Err(Full);
        }
        let chunks_max = urgent_chunks_max(send_max);
        let at = (context.now, self.nxt.max(1));
        self.buffer.write_urgent(context.pool, at, (len, chunks_max), fill)
    }

    /// Takes the memory that sending needs.
    pub(super) fn hold(&mut self, pool: &mut ChunkPool) {
        self.board.hold(&mut pool.spares.boards);
        self.recovery.hold(&mut pool.spares.losses.recoveries);
        self.controller.hold(&mut pool.spares.signals);
    }

    /// Sending begins again after silence (RFC 5681, 4.1).
    fn note_restart(&mut self, now: Instant) {
        if self.is_at_rest() && self.nxt > 0 {
            self.controller.on_restart(now.since(self.last_sent), self.rtt.rto(), now);
            self.last_progress = now; // The user timeout counts from here.
        }
    }

    /// What is known as a segment of `octets` leaves.
    fn stamp(&mut self, octets: u64, now: Instant) -> Stamp {
        if self.board.is_empty() {
            self.flight_started = now;
            self.delivered_at = now;
        }
        Stamp {
            sent_at: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            flight_started: self.flight_started,
            in_flight: self.board.pipe_with(octets),
            lost_before: self.lost,
            app_limited: self.app_limited_until > self.delivered,
        }
    }

    /// `range` leaves at `now` for the first time, in segments of `segment` octets.
    pub(super) fn sent_new(&mut self, range: Range<u64>, segment: u64, now: Instant) {
        let mut stamp = self.stamp(0, now);
        if self.board.is_empty() {
            self.last_progress = now; // The window may have been closed for long.
        }
        self.nxt = range.end;
        self.override_silly = false;
        self.blocked_since = None;
        self.forward_sent();
        if segment > u64::from(self.mss) {
            self.path.probing(&range);
        }
        self.buffer.sent(self.nxt);
        self.account(&range, now);
        let board = &mut *self.board;
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + segment);
            stamp.in_flight = board.pipe_with(end - start);
            board.push(start..end, stamp);
            start = end;
        }
    }

    /// `range` leaves at `now` again, with `timestamp` in its option.
    pub(super) fn sent_again(&mut self, range: &Range<u64>, timestamp: u32, now: Instant) {
        let stamp = self.stamp(len(range), now);
        self.account(range, now);
        self.board.retransmitted(range.start, stamp);
        // Otherwise it is a probe, or a SYN.
        if !self.recovery.is_idle()
            && let Recovery::Fast { undo, .. } | Recovery::Timeout { undo, .. } =
                &mut *self.recovery
        {
            undo.repeated(range, timestamp);
            self.board.repaired(range.end);
        }
    }

    fn account(&mut self, range: &Range<u64>, now: Instant) {
        self.last_sent = now;
        if !self.recovery.is_idle()
            && let Recovery::Fast { window: Some((prr, _)), .. } = &mut *self.recovery
        {
            prr.sent(len(range));
        }
        if let Some(rate) = self.controller.pacing_rate(self.rtt.smoothed()) {
            self.pacer.sent(now, len(range), rate);
        }
    }

    /// Something new was acknowledged: the path carries segments.
    pub(super) fn progressed(&mut self, ack: u64, now: Instant) {
        self.una = ack;
        self.last_progress = now;
        self.persist_backoff = 0;
        self.path.progressed(ack);
    }

    /// Where the flight of the newest delivered segment began: the start of the next sample.
    pub(super) fn set_flight_start(&mut self, at: Instant) {
        self.flight_started = at;
    }

    /// What is in flight now.
    pub(super) fn flight(&self) -> Flight {
        let outstanding = self.nxt - self.una;
        Flight { outstanding, unsacked: outstanding - self.board.sacked_octets() }
    }

    /// Whether so little is in flight that the peer may wait for more before it acknowledges: less
    /// than two full segments (RFC 9293, 3.8.6.3), in however many it was sent.
    pub(super) fn may_be_acknowledged_late(&self) -> bool {
        self.nxt - self.una < 2 * u64::from(self.mss)
    }

    /// Whether something is in flight of which only a probe or the timer can tell (RFC 8985, 7.2).
    pub(super) fn may_be_probed(&self) -> bool {
        matches!(*self.recovery, Recovery::Open)
            && !self.board.is_empty()
            && !self.board.has_sacked()
    }

    /// A router says that packets of `offset` were too big: credible only if that is in flight and
    /// was larger than what the router would pass (RFC 5927, 7.2). If that is believed what is in flight
    /// leaves again in smaller pieces.
    pub(super) fn packet_too_big(&mut self, offset: u64, mss: u16, now: Instant) -> bool {
        if !(self.una..self.nxt).contains(&offset) || !self.board.exceeds(offset, u64::from(mss)) {
            return false;
        }
        match self.path.too_big(offset, mss.max(super::MSS_MIN), self.mss, now) {
            Verdict::Ignored => return false,
            Verdict::Noted => {}
            Verdict::Believed(mss) => self.narrow(mss),
        }
        true
    }

    pub(super) fn narrow(&mut self, mss: u16) {
        self.set_mss(mss);
        self.board.mark_all_lost();
        self.board.resegment(u64::from(mss));
    }

    /// Takes what was learned of a probe of the path, if it was lost by this loss.
    pub(super) fn judge_path(&mut self, loss: ProbeLoss, now: Instant) {
        let Some(probe) = self.path.probe_start() else { return };
        if self.board.is_lost(probe) {
            let segments = self.controller.window() / u64::from(self.mss);
            let segments = u32::try_from(segments).unwrap_or(u32::MAX);
            let headway = self.rtt.smoothed().unwrap_or_default().saturating_mul(segments);
            self.path.failed(loss, headway, now);
            self.board.resegment(u64::from(self.mss));
            return;
        }
        if self.board.is_delivered(probe, self.una)
            && let Some(mss) = self.path.passed(now)
        {
            self.set_mss(mss);
        }
    }

    /// How a probe of the path was lost that an acknowledgment or the time has just shown to be, along
    /// with `others` octets.
    pub(super) fn probe_loss(&self, others: u64) -> ProbeLoss {
        let is_alone = others == 0 && self.recovery.is_idle();
        if is_alone { ProbeLoss::Alone } else { ProbeLoss::AmongOthers }
    }

    /// How long until the peer is asked about its closed window (RFC 9293, 3.8.6.1), or a small
    /// one is used (3.8.6.2.1).
    pub(super) fn persist_interval(&self) -> Duration {
        let most = if self.edge > self.nxt { OVERRIDE_MAX } else { crate::engine::rtt::RTO_MAX };
        let factor = 1 << self.persist_backoff.min(10);
        (self.rtt.rto() * factor).min(most)
    }

    /// Whether the peer's window keeps everything back.
    pub(super) fn is_blocked_by_peer(&self) -> bool {
        self.board.is_empty() && self.nxt < self.end() && self.next_new().is_none()
    }

    pub(super) fn release(&mut self, pool: &mut ChunkPool) {
        self.buffer.release(pool);
    }

    pub(super) fn shrink(&mut self, pool: &mut ChunkPool) {
        if self.board.is_empty() {
            self.controller.shrink(&mut pool.spares.signals);
        }
        self.board.release(&mut pool.spares.boards);
        self.recovery.release(&mut pool.spares.losses.recoveries);
        self.buffer.shrink(pool);
    }
}

/// Chunks of a send buffer of so many octets with urgent frames. Each of these may leave a chunk half
/// empty that was full before.
fn urgent_chunks_max(send_max: usize) -> usize {
    2 * (send_max + URGENT_MAX).div_ceil(CHUNK)
}

pub(super) fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}
