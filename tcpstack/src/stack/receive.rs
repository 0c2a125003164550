//! The way of a packet in: headers checked, connection found, engine asked, caller told.

use std::time::Duration;

use super::slots::{Connection, Phase};
use super::{HANDSHAKE_TIMEOUT, Stack};
use crate::api::{CloseReason, DropReason, SegmentOutcome};
use crate::config::RxChecksum;
use crate::segment::{Answer, Segment};
use crate::sockets::State;
use crate::time::Instant;

/// RSTs for packets of no connection, in a second and at once (RFC 9293, 3.10.7.1 asks for one
/// each; a flood is not answered by a flood).
const RESETS_PER_SECOND_MAX: u32 = 200;

/// A connection answers a forged RST or SYN, or a probe, at most so often (RFC 5961, 7).
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(500);

/// How many RSTs may still be sent.
#[derive(Default)]
pub(super) struct ResetBudget {
    second: u64,
    spent: u32,
}

impl ResetBudget {
    fn take(&mut self, now: Instant) -> bool {
        let second = now.0 / 1_000_000;
        if second != self.second {
            *self = Self { second, spent: 0 };
        }
        self.spent += 1;
        self.spent <= RESETS_PER_SECOND_MAX
    }
}

impl Stack {
    /// Takes one IP packet that is for one of our addresses and carries TCP. Octets behind it are
    /// ignored. What there is to answer waits for [`Stack::poll_transmit`].
    pub fn handle_segment(
        &mut self,
        now: Instant,
        ip_packet: &[u8],
        checksum: RxChecksum,
    ) -> SegmentOutcome {
        self.now = now;
        self.stats.segments_in += 1;
        let outcome = Segment::parse(ip_packet, checksum).and_then(|segment| {
            match self.find(&segment.tuple) {
                Some(index) => self.receive(now, index, &segment, ip_packet),
                None => self.receive_unknown(now, &segment, ip_packet),
            }
        });
        match outcome {
            Ok(()) => SegmentOutcome::Accepted,
            Err(reason) => SegmentOutcome::Dropped(reason),
        }
    }

    /// A segment of a connection that is known.
    fn receive(
        &mut self,
        now: Instant,
        index: u32,
        segment: &Segment,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let Some(connection) = self.slots.get_mut(index) else {
            return Err(DropReason::NoConnection);
        };
        if replaces(connection, segment) {
            self.release(index);
            return self.receive_unknown(now, segment, packet);
        }
        if is_suspect(connection, segment) {
            self.challenge(now, index);
            return Err(DropReason::Challenged);
        }
        if is_beyond_window(connection, segment) {
            connection.heard_at = now;
            self.challenge(now, index);
            return Err(DropReason::BeyondWindow);
        }
        connection.heard_at = now;
        connection.segments_in += 1;
        if connection.phase == Phase::Connecting && segment.syn {
            connection.peer_first = segment.seq.wrapping_add(1);
        }
        connection.socket.sent.peer_window_shut = segment.window == 0;
        let unacknowledged = connection.socket.unacknowledged();
        self.engine.receive(now, &mut connection.socket, packet, &mut self.replies);
        if connection.socket.unacknowledged() < unacknowledged {
            connection.progress_at = now;
        }
        self.due.push(index);
        self.notice(now, index);
        Ok(())
    }

    /// A segment of no connection: the first of one, or nobody's.
    fn receive_unknown(
        &mut self,
        now: Instant,
        segment: &Segment,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let port = segment.tuple.local.port();
        let listening = self.listening[usize::from(port >> 6)] & 1 << (port & 63) != 0;
        if !segment.opens() || !listening {
            self.refuse(now, segment);
            let syn = segment.opens();
            return Err(if syn { DropReason::PortClosed } else { DropReason::NoConnection });
        }
        self.make_room()?;
        let (tuple, isn) = (segment.tuple, self.secret.draw());
        let socket = self
            .engine
            .accept(now, tuple.local, packet, isn, &mut self.replies)
            .filter(|socket| socket.state() == State::Handshake)
            .ok_or(DropReason::Malformed)?;
        let peer_first = segment.seq.wrapping_add(1);
        let connection = Connection::new(now, socket, tuple, Phase::HalfOpen, peer_first);
        let id = self.slots.add(connection).ok_or(DropReason::ConnectionsMax)?;
        self.table.insert(&self.secret, &tuple, id.index);
        self.wheel.grow(self.slots.used());
        self.wheel.set(id.index, now + HANDSHAKE_TIMEOUT);
        self.half_open.push_back(id);
        self.half_open_count += 1;
        self.due.push(id.index);
        Ok(())
    }

    /// Makes room for one half-open connection, by the oldest of them if need be.
    fn make_room(&mut self) -> Result<(), DropReason> {
        while self.half_open_count >= self.config.half_open_max || self.slots.is_full() {
            let Some(id) = self.half_open.pop_front() else {
                return Err(DropReason::ConnectionsMax);
            };
            if self.is_half_open(id) {
                self.stats.half_open_evicted += 1;
                self.release(id.index);
            }
        }
        // Those that are half-open no more are forgotten before the queue doubles.
        if self.half_open.len() >= 2 * self.config.half_open_max as usize {
            let mut queue = std::mem::take(&mut self.half_open);
            queue.retain(|id| self.is_half_open(*id));
            self.half_open = queue;
        }
        Ok(())
    }

    fn is_half_open(&self, id: crate::api::ConnId) -> bool {
        self.slots.named(id).is_some_and(|connection| connection.phase == Phase::HalfOpen)
    }

    /// Tells the caller what the engine has made of a segment.
    pub(super) fn notice(&mut self, now: Instant, index: u32) {
        let Some(connection) = self.slots.get_mut(index) else { return };
        let state = connection.socket.state();
        match (connection.phase, state) {
            (Phase::HalfOpen, State::Listen | State::Closed | State::Aborted) => {
                return self.release(index);
            }
            (Phase::HalfOpen | Phase::Connecting, State::Open | State::PeerClosed) => {
                if connection.phase == Phase::HalfOpen {
                    self.half_open_count -= 1;
                }
                connection.enter(now, Phase::Open);
                connection.opened_at = now;
                connection.news.opened = true;
                self.eventful.push(index);
            }
            (Phase::Connecting, State::Closed) => self.end(index, CloseReason::Refused),
            (Phase::Open, State::Closed) => self.end(index, CloseReason::PeerReset),
            _ => {}
        }
        self.notice_data(index);
        self.notice_peer_close(index);
    }

    fn notice_data(&mut self, index: u32) {
        let Some(connection) = self.slots.get_mut(index) else { return };
        if connection.phase == Phase::Closing && connection.news.closed.is_none() {
            // Nobody reads any more; a full buffer would keep the peer from its FIN.
            while connection.socket.unread() > 0 {
                connection.octets_in += connection.socket.recv(|octets| octets.len()) as u64;
            }
            return self.release_if_over(index);
        }
        let news = &mut connection.news;
        if connection.phase == Phase::Open && connection.socket.unread() > 0 {
            news.readable = true;
        }
        if connection.wanted > 0 && connection.socket.free() >= connection.wanted {
            connection.wanted = 0;
            news.writable = true;
        }
        if news.readable || news.writable {
            self.eventful.push(index);
        }
    }

    /// RFC 9293, 3.10.7.1: a segment of no connection is answered by RST, unless it is one.
    fn refuse(&mut self, now: Instant, segment: &Segment) {
        if segment.rst {
            return;
        }
        if self.resets.take(now) {
            self.stats.resets_sent += 1;
            self.replies.push(&segment.reset(), self.config.tx_checksum);
        } else {
            self.stats.resets_suppressed += 1;
        }
    }

    /// An ACK that says what is expected. Who sees the connection answers with a RST that is
    /// exactly right, who does not learns nothing (RFC 5961, 3.2 and 4.2).
    fn challenge(&mut self, now: Instant, index: u32) {
        let Some(connection) = self.slots.get_mut(index) else { return };
        if connection.challenged_at.is_some_and(|at| now < at + CHALLENGE_INTERVAL) {
            return;
        }
        connection.challenged_at = Some(now);
        let answer = Answer {
            tuple: connection.tuple,
            rst: false,
            seq: connection.socket.sent.next,
            ack: Some(connection.receive_next()),
            window: if connection.socket.room() == 0 { 0 } else { connection.socket.sent.window },
        };
        self.stats.challenge_acks_sent += 1;
        self.replies.push(&answer, self.config.tx_checksum);
    }
}

/// Whether a segment is the SYN of a new connection in the place of one that is as good as over:
/// in TIME-WAIT (RFC 9293, 3.6.1), or half-open since another SYN. The caller does not know of
/// either.
fn replaces(connection: &Connection, segment: &Segment) -> bool {
    segment.opens()
        && match connection.phase {
            Phase::HalfOpen => segment.seq.wrapping_add(1) != connection.peer_first,
            Phase::Closing => connection.news.done && connection.socket.state() == State::TimeWait,
            Phase::Connecting | Phase::Open => false,
        }
}

/// Whether a segment could end the connection though its sender need not see it.
fn is_suspect(connection: &Connection, segment: &Segment) -> bool {
    if connection.phase == Phase::Connecting {
        // A RST must acknowledge our SYN; the engine checks it (RFC 9293, 3.10.7.3).
        return false;
    }
    if segment.rst {
        // RFC 5961, 3.2: only the next octet's number will do, or that after the peer's FIN.
        return segment.seq.wrapping_sub(connection.receive_next()) > 1;
    }
    // RFC 5961, 4.2: whatever its number.
    segment.syn && connection.phase != Phase::HalfOpen
}

/// Whether a segment has data that does not fit in the receive buffer. smoltcp itself takes the
/// window of its SYN-ACK, which is not scaled, for a scaled one, and would accept what it cannot
/// store.
fn is_beyond_window(connection: &Connection, segment: &Segment) -> bool {
    if segment.data_bytes == 0 || connection.phase == Phase::Connecting {
        return false;
    }
    let first = segment.seq.wrapping_add(u32::from(segment.syn));
    let end = first.wrapping_add(segment.data_bytes).wrapping_sub(connection.receive_next());
    usize::try_from(end.cast_signed()).is_ok_and(|end| end > connection.socket.room())
}
