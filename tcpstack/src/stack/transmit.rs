//! The way of a packet out, and time.

use std::time::Duration;

use super::Stack;
use crate::api::Transmit;
use crate::engine::connection::Progress;
use crate::time::Instant;

/// Segments of data that one connection may send before the next has its turn.
const SEGMENTS_PER_TURN: u64 = 32;

/// The least time after which a connection is looked at again by itself.
const TICK: Duration = Duration::from_millis(1);

/// A connection that has nothing to do for longer than this gives back what it need not hold.
const IDLE: Duration = Duration::from_secs(1);

impl Stack {
    /// Sends everything that may be sent now, as far as `to` takes it: call it at the end of each
    /// batch. Connections take turns.
    pub fn poll_transmit(&mut self, now: Instant, to: &mut impl Transmit) {
        self.now = now;
        self.stats.segments_out += self.replies.drain(to);
        while let Some(index) = self.due.pop() {
            let Some(entry) = self.slots.get_mut(index) else { continue };
            let before = entry.connection.segments_out;
            let context = self.context.borrow(now);
            let progress = entry.connection.transmit(&context, SEGMENTS_PER_TURN, to);
            self.stats.connections_polled += 1;
            self.stats.segments_out += entry.connection.segments_out - before;
            match progress {
                Progress::Done => {
                    self.schedule(index);
                    self.notice_end(index);
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
            let context = self.context.borrow(now);
            let Some(entry) = self.slots.get_mut(index) else { continue };
            entry.connection.handle_timeout(&context);
            // Looks at its next deadline when it has sent what is due.
            self.due.push(index);
            self.notice_end(index);
        }
    }

    /// Sets the timer to the connection's next deadline.
    fn schedule(&mut self, index: u32) {
        let context = self.context.borrow(self.now);
        let Some(entry) = self.slots.get_mut(index) else { return };
        let deadline = entry.connection.deadline(&context);
        if deadline.is_none_or(|at| at.since(self.now) > IDLE) {
            entry.connection.shrink(context.pool);
        }
        self.wheel.set(index, deadline.map(|at| at.max(self.now + TICK)));
    }
}
