//! The way of a packet out, and time.

use super::slots::{Connection, Phase};
use super::{CLOSING_TIMEOUT, HANDSHAKE_TIMEOUT, Stack};
use crate::api::{CloseReason, Transmit};
use crate::sockets::{Due, Progress};
use crate::time::Instant;

/// Packets that one connection may send before the next has its turn.
const SEGMENTS_PER_TURN: u64 = 32;

impl Stack {
    /// Sends everything that may be sent now, as far as `to` takes it: call it at the end of each
    /// batch. Connections take turns.
    pub fn poll_transmit(&mut self, now: Instant, to: &mut impl Transmit) {
        self.now = now;
        self.stats.segments_out += self.replies.drain(to);
        while let Some(index) = self.due.pop() {
            let Some(connection) = self.slots.get_mut(index) else { continue };
            let before = connection.socket.sent.segments;
            let socket = &mut connection.socket;
            let progress = self.engine.transmit(now, socket, SEGMENTS_PER_TURN, to);
            self.stats.connections_polled += 1;
            self.stats.segments_out += socket.sent.segments - before;
            match progress {
                Progress::Done => {
                    self.schedule(now, index);
                    self.notice(now, index);
                }
                Progress::Turn => self.due.push(index),
                Progress::NoRoom => {
                    // The others in the queue come first next time.
                    self.due.push(index);
                    return;
                }
            }
        }
    }

    /// When to call [`Stack::handle_timeout`] and [`Stack::poll_transmit`] next if no packet
    /// comes; `None` if never. May be early, is never late. It is in the past if something waits
    /// for room in the device.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.due.is_empty() && self.replies.is_empty() {
            self.wheel.next_expiry()
        } else {
            Some(Instant::ZERO)
        }
    }

    /// Lets time pass: call it at least when [`Stack::poll_timeout`] is reached, and
    /// [`Stack::poll_transmit`] after it.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some(index) = self.wheel.expire(now) {
            self.check_deadline(now, index);
            if self.slots.get(index).is_some() {
                // Looks at its next deadline when it has sent what is due.
                self.due.push(index);
            }
        }
    }

    /// Ends what has taken too long.
    fn check_deadline(&mut self, now: Instant, index: u32) {
        let Some(connection) = self.slots.get_mut(index) else { return };
        if deadline(connection, &self.config).is_none_or(|deadline| now < deadline) {
            return;
        }
        match connection.phase {
            Phase::HalfOpen => {
                self.stats.half_open_timeouts += 1;
                self.release(index);
            }
            Phase::Connecting => {
                connection.socket.abort();
                self.end(index, CloseReason::ConnectTimeout);
            }
            Phase::Open => {
                connection.socket.abort();
                self.end(index, CloseReason::Timeout);
            }
            // Ends by itself when the RST has left.
            Phase::Closing => connection.socket.abort(),
        }
    }

    /// Sets the timer to what comes first: the engine's next wish or the end of patience.
    fn schedule(&mut self, now: Instant, index: u32) {
        let Some(connection) = self.slots.get(index) else { return };
        let wish = match self.engine.due(now, &connection.socket) {
            Due::Never => None,
            // Everything that could be sent has been: whatever it is can wait for a tick.
            Due::Now => Some(now),
            Due::At(at) => Some(at),
        };
        let deadline = deadline(connection, &self.config);
        if let Some(at) = wish.into_iter().chain(deadline).min() {
            self.wheel.set_no_later(index, at.max(now + TICK));
        }
    }
}

/// The least time after which a connection is looked at again by itself.
const TICK: std::time::Duration = std::time::Duration::from_millis(1);

/// When the patience with a connection ends.
fn deadline(connection: &Connection, config: &crate::StackConfig) -> Option<Instant> {
    match connection.phase {
        Phase::HalfOpen => Some(connection.since + HANDSHAKE_TIMEOUT),
        Phase::Connecting => Some(connection.since + config.connect_timeout),
        Phase::Closing => Some(connection.since + CLOSING_TIMEOUT),
        // RFC 9293, 3.8.3; a peer that keeps its window shut but answers is alive
        // (RFC 9293, 3.8.6.1).
        Phase::Open if connection.socket.unacknowledged() > 0 => {
            Some(connection.progress_at.max(connection.heard_at) + config.user_timeout)
        }
        Phase::Open => None,
    }
}
