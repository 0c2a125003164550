//! Segment arrival (RFC 9293, 3.10.7), with the checks of RFC 5961 and RFC 7323.

use super::receiver::{Payload, Receiver};
use super::{CloseReason, Connection, Context, State};
use crate::engine::segment::{Flags, Segment};
use crate::time::{Duration, Instant};

/// A challenge or other answer to a segment out of place leaves at most this often for one
/// connection (RFC 5961, 7). Per connection, because a shared limit can be measured by others
/// (CVE-2016-5696).
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(200);

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// It was processed.
    Accepted,
    /// Outside the window; answered by an acknowledgment.
    OutOfWindow,
    /// An old timestamp (RFC 7323, 5).
    OldTimestamp,
    /// Timestamps were agreed on and it has none (RFC 7323, 3.2).
    NoTimestamp,
    /// It acknowledges what was never sent, or long ago (RFC 5961, 5).
    BadAcknowledgment,
    /// A RST in the window but not at its left edge (RFC 5961, 3).
    ChallengedReset,
    /// A SYN on an open connection (RFC 5961, 4).
    ChallengedSyn,
    /// Neither SYN nor an acknowledgment where one is needed.
    Unexpected,
    /// It acknowledges what was never sent: answer with a RST (RFC 9293, 3.10.7.3).
    Refuse,
    /// The peer has sent what nobody reads any more, and has all that we sent: answer with a RST
    /// (RFC 9293, 3.6.1).
    DataLost,
    /// No memory for its payload, or too many holes.
    NoRoom,
}

impl Connection {
    /// Takes a segment; octets in order go to `deliver`.
    pub(crate) fn handle(
        &mut self,
        context: &mut Context<'_>,
        segment: &Segment,
        payload: &mut [u8],
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Disposition {
        if segment.payload_len > 0 || segment.flags.fin {
            self.rx.hold_losses(context.pool);
        }
        match self.state {
            State::Closed => Disposition::Unexpected,
            State::SynSent => self.handle_in_syn_sent(context, segment, payload),
            State::SynReceived if self.is_about_our_syn(segment) => {
                self.forget_syn(context);
                self.handle_in_syn_sent(context, segment, payload)
            }
            _ => match self.check(segment, context.now) {
                Err(dropped) => dropped,
                Ok(start) => self.handle_checked(context, segment, start, payload, deliver),
            },
        }
    }

    /// RFC 9293, 3.10.7.3.
    fn handle_in_syn_sent(
        &mut self,
        context: &mut Context<'_>,
        segment: &Segment,
        payload: &mut [u8],
    ) -> Disposition {
        let acceptable = segment.ack.map(|ack| ack == self.tx.space.wire(1) && self.tx.nxt == 1);
        match (acceptable, segment.flags.rst, segment.flags.syn) {
            (Some(false), true, _) | (None, true, _) => Disposition::BadAcknowledgment,
            (Some(false), false, _) => Disposition::Refuse,
            (Some(true), true, _) => {
                self.end(CloseReason::Refused);
                Disposition::Accepted
            }
            (_, _, false) => Disposition::Unexpected,
            (Some(true), _, true) => {
                self.take_syn(context, segment, true);
                // The caller does not know yet that it is open: text waits to be read.
                self.take_text(context, segment, 0, payload, &mut |_| 0)
            }
            // Text beside the SYN comes again: nothing of it is acknowledged.
            (None, _, true) => {
                self.take_syn(context, segment, false);
                Disposition::Accepted
            }
        }
    }

    /// After a simultaneous open: whether a segment says of our SYN what it would in SYN-SENT. Only who
    /// has seen that can send it; the SYN that we have answered anybody can have sent.
    fn is_about_our_syn(&self, segment: &Segment) -> bool {
        let Flags { syn, rst, .. } = segment.flags;
        let is_same_syn = syn && self.rx.offset(segment.seq) == Some(0);
        segment.ack == Some(self.tx.space.wire(1)) && (rst || syn && !is_same_syn)
    }

    /// Forgets the SYN that we have answered.
    fn forget_syn(&mut self, context: &Context<'_>) {
        self.rx = Receiver::new(context.settings);
        self.prove();
        (self.timestamps, self.sack) = (true, true); // As we have offered them.
        self.state = State::SynSent;
    }

    fn take_syn(&mut self, context: &Context<'_>, segment: &Segment, acknowledged: bool) {
        let options = &segment.options;
        self.timestamps &= options.timestamps.is_some();
        self.sack &= options.sack_permitted;
        self.rx.synchronize(segment.seq);
        if let Some((value, _)) = options.timestamps {
            self.rx.note_timestamp(value, 0, context.now);
        }
        let mss = options.mss.unwrap_or_else(|| super::default_mss(&self.tuple));
        self.negotiate(mss, options.window_scale, context.settings);
        self.note_life(context.now);
        self.rx.ack_now = true;
        if acknowledged {
            self.take_acknowledgment(segment, 1, context.now);
            self.note_window(segment, 0, 1, context.now);
            self.state = State::Established;
        } else {
            // Simultaneous open (RFC 9293, 3.5): our SYN goes out again, with an acknowledgment.
            self.tx.board.mark_first_lost(|_| {});
            self.state = State::SynReceived;
        }
    }

    /// The checks of RFC 9293, 3.10.7.4 up to the acknowledgment. Gives the segment's offset.
    fn check(&mut self, segment: &Segment, now: Instant) -> Result<u64, Disposition> {
        self.check_timestamp(segment, now)?;
        let start = self.rx.offset(segment.seq);
        if segment.flags.syn && !segment.flags.rst {
            // The answer to our SYN in a simultaneous open: the peer's SYN again, with an
            // acknowledgment (RFC 9293, 3.5, figure 7). The caller may have closed meanwhile.
            if self.tx.una == 0 && start == Some(0) && segment.ack.is_some() {
                return Ok(0);
            }
            // RFC 5961, 4.2: whatever its number.
            self.challenge(now);
            return Err(Disposition::ChallengedSyn);
        }
        let Some(start) = start.filter(|at| self.rx.is_acceptable(*at, segment.sequence_len()))
        else {
            if !segment.flags.rst {
                self.answer_out_of_window(segment, start, now);
            }
            return Err(Disposition::OutOfWindow);
        };
        if segment.flags.rst {
            return Err(self.judge_reset(start, now));
        }
        Ok(start)
    }

    fn check_timestamp(&mut self, segment: &Segment, now: Instant) -> Result<(), Disposition> {
        // A SYN is challenged whatever its options are: it may be a peer that has started anew.
        if !self.timestamps || segment.flags.rst || segment.flags.syn {
            return Ok(());
        }
        let Some((value, _)) = segment.options.timestamps else {
            return Err(Disposition::NoTimestamp);
        };
        if self.rx.is_old_timestamp(value, now) {
            self.challenge(now);
            return Err(Disposition::OldTimestamp);
        }
        Ok(())
    }

    /// Data that came before is reported as a duplicate, if its acknowledgment could be the peer's:
    /// whoever knows only addresses and ports cannot have us answer each segment (RFC 5961, 7), nor
    /// report to the peer what it never sent twice. Anything else gets a rate-limited answer.
    /// So does a FIN that comes again because our last acknowledgment was lost: TIME-WAIT begins anew
    /// (RFC 9293, 3.10.7.4), if it is the peer's, or anybody could make it last for ever.
    fn answer_out_of_window(&mut self, segment: &Segment, start: Option<u64>, now: Instant) {
        let credible = segment.ack.is_some_and(|ack| self.acceptable_acknowledgment(ack).is_some());
        match start {
            Some(start) if credible && segment.payload_len > 0 && start < self.rx.nxt => {
                self.rx.note_duplicate(start..start + segment.payload_len as u64);
            }
            _ => self.challenge(now),
        }
        // Its keepalive, or its probe of a closed window (RFC 9293, 3.8.4).
        let is_probe = start.is_some_and(|start| start + 1 == self.rx.nxt);
        if credible && is_probe && segment.sequence_len() <= 1 {
            self.note_life(now);
        }
        let is_peers_fin = || {
            let end = start.map(|start| start + segment.sequence_len());
            segment.flags.fin && credible && end == Some(self.rx.nxt)
        };
        if self.state == State::TimeWait && is_peers_fin() {
            self.enter_time_wait(now);
        }
    }

    /// RFC 5961, 3.2: only a RST at exactly the next expected octet is believed; none as long as our SYN
    /// is not acknowledged, since that octet is known to whoever sent the other SYN.
    fn judge_reset(&mut self, start: u64, now: Instant) -> Disposition {
        if self.state == State::SynReceived {
            return Disposition::BadAcknowledgment;
        }
        if start == self.rx.nxt {
            self.end(CloseReason::PeerReset);
            return Disposition::Accepted;
        }
        self.challenge(now);
        Disposition::ChallengedReset
    }

    /// Answers with an acknowledgment of the true state, not too often.
    fn challenge(&mut self, now: Instant) {
        if now >= self.next_challenge {
            self.next_challenge = now + CHALLENGE_INTERVAL;
            self.rx.ack_now = true;
        }
    }

    fn handle_checked(
        &mut self,
        context: &mut Context<'_>,
        segment: &Segment,
        start: u64,
        payload: &mut [u8],
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Disposition {
        let Some(ack) = segment.ack else { return Disposition::Unexpected };
        let Some(ack) = self.acceptable_acknowledgment(ack) else {
            if self.state == State::SynReceived {
                return Disposition::Refuse;
            }
            self.challenge(context.now);
            return Disposition::BadAcknowledgment;
        };
        self.note_life(context.now);
        if let Some((value, _)) = segment.options.timestamps.filter(|_| self.timestamps) {
            self.rx.note_timestamp(value, start, context.now);
        }
        if self.state == State::SynReceived {
            self.state = State::Established;
            self.rx.ack_now |= segment.flags.syn;
        }
        self.take_acknowledgment(segment, ack, context.now);
        self.tx.buffer.acknowledged(context.pool, ack);
        self.note_window(segment, start, ack, context.now);
        self.advance_closing(context);
        self.take_text(context, segment, start, payload, deliver)
    }

    /// Something came that only the peer can have sent.
    fn note_life(&mut self, now: Instant) {
        self.last_heard = now;
        self.unreachable = false;
        self.keepalives_unanswered = 0;
    }

    /// RFC 5961, 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT. Below SND.UNA it is old; our SYN
    /// must be acknowledged in any case (RFC 9293, 3.10.7.4).
    fn acceptable_acknowledgment(&self, ack: u32) -> Option<u64> {
        let offset = self.tx.space.offset(self.tx.una, ack)?;
        let lowest = self.tx.una.saturating_sub(self.tx.window_max.max(u64::from(u16::MAX))).max(1);
        (lowest..=self.tx.nxt).contains(&offset).then_some(offset)
    }

    /// RFC 9293, 3.10.7.4, fifth check: the window as of the newest segment. That is also one that
    /// acknowledges more than any before, whatever its place in the stream (3.8.6): it may be a
    /// retransmission, and the one before it forged. The window of a SYN is not scaled (RFC 7323, 2.2).
    fn note_window(&mut self, segment: &Segment, start: u64, ack: u64, now: Instant) {
        let tx = &mut self.tx;
        let newer = start > tx.edge_seq || (start == tx.edge_seq && ack >= tx.edge_ack);
        if !(newer || ack > tx.edge_ack) || ack < tx.una {
            return;
        }
        let scale = if segment.flags.syn { 0 } else { tx.peer_scale };
        let window = u64::from(segment.window) << scale;
        let was_closed = tx.edge <= tx.una;
        (tx.edge_seq, tx.edge_ack) = (start, ack);
        tx.edge = ack + window;
        if was_closed && window > 0 {
            tx.reopened(now);
        }
        tx.window_max = tx.window_max.max(window);
        if window > 0 {
            tx.persist_backoff = 0;
        }
    }

    /// The acknowledgment of our FIN moves the closing states.
    fn advance_closing(&mut self, context: &Context<'_>) {
        if !self.tx.fin_acknowledged() {
            return;
        }
        match self.state {
            State::FinWait1 => self.state = State::FinWait2,
            State::Closing => self.enter_time_wait(context.now),
            State::LastAck => self.end(CloseReason::LocalClosed),
            _ => {}
        }
    }

    pub(super) fn enter_time_wait(&mut self, now: Instant) {
        self.state = State::TimeWait;
        self.timers.time_wait_since = now;
    }

    /// Seventh and eighth check: text and FIN.
    fn take_text(
        &mut self,
        context: &mut Context<'_>,
        segment: &Segment,
        start: u64,
        payload: &mut [u8],
        deliver: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Disposition {
        let start = start + u64::from(segment.flags.syn);
        let end = start + payload.len() as u64;
        let mut outcome = Payload::None;
        // Nobody reads after our close. What is new is not acknowledged: it was not taken.
        self.rx.data_lost |= self.is_closing() && !payload.is_empty() && end > self.rx.nxt;
        if self.rx.data_lost {
            return self.tell_loss();
        }
        if !payload.is_empty() && self.may_receive() {
            outcome = self.rx.take(context, start, payload, deliver);
        }
        if segment.flags.fin && self.may_receive() {
            self.rx.note_fin(end);
        }
        self.rx.schedule_ack(self.tx.mss, payload.len(), context.now);
        if self.rx.take_fin() {
            self.peer_finished(context.now);
        }
        if outcome == Payload::Refused { Disposition::NoRoom } else { Disposition::Accepted }
    }

    /// We have sent FIN, or are about to, and the peer has not.
    fn is_closing(&self) -> bool {
        matches!(self.state, State::FinWait1 | State::FinWait2)
    }

    /// RFC 9293, 3.6.1 (SHLD-3): a RST shows the peer that what it sent was lost. Not before it has
    /// all that we sent, which the RST could overtake or keep from being repeated: an IKE delete.
    fn tell_loss(&self) -> Disposition {
        if self.state == State::FinWait2 { Disposition::DataLost } else { Disposition::Accepted }
    }

    fn may_receive(&self) -> bool {
        matches!(self.state, State::Established | State::FinWait1 | State::FinWait2)
    }

    /// The peer's FIN has come, and all before it.
    fn peer_finished(&mut self, now: Instant) {
        match self.state {
            State::Established => self.state = State::CloseWait,
            State::FinWait1 if self.tx.fin_acknowledged() => self.enter_time_wait(now),
            State::FinWait1 => self.state = State::Closing,
            State::FinWait2 => self.enter_time_wait(now),
            _ => {}
        }
    }
}
