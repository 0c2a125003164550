//! The engine on its DPDK port: the loop of a worker, reduced to TCP.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use culvert_tcpstack::{CloseReason, ConnId, Event, Instant, RxChecksum, Stack};

use super::leg::Leg;
use super::{ENGINE, pattern};

/// Octets of one write.
const WRITE: usize = 1402;

/// What a connection of the engine is for.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// Sends so many octets of the pattern and closes.
    Send(u64),
    /// Sends as long as it lasts.
    SendOn,
}

struct Sending {
    id: ConnId,
    left: u64,
    closes: bool,
    written: u64,
}

/// A stack on a port, and what its connections do.
pub struct Engine {
    /// The stack.
    pub stack: Stack,
    port: Leg,
    sending: Vec<Sending>,
    /// Octets that came on connections from the other side, all of the pattern.
    pub received: u64,
    /// Connections whose peer has closed them.
    pub finished: u32,
    wrong: Option<u64>,
}

impl Engine {
    /// A stack on a port.
    #[must_use]
    pub fn new(mut stack: Stack, port: Leg) -> Self {
        stack.listen(4500);
        Self { stack, port, sending: Vec::new(), received: 0, finished: 0, wrong: None }
    }

    /// The port, for another stack.
    #[must_use]
    pub fn into_port(self) -> Leg {
        self.port
    }

    /// Connects and sends.
    ///
    /// # Errors
    /// No port, or no room.
    pub fn connect(&mut self, now: Instant, remote: SocketAddr, task: Task) -> Result<()> {
        let id = self.stack.connect(now, ENGINE.like(remote.ip()), remote)?;
        let (left, closes) = match task {
            Task::Send(octets) => (octets, true),
            Task::SendOn => (u64::MAX, false),
        };
        self.sending.push(Sending { id, left, closes, written: 0 });
        Ok(())
    }

    /// Ends all connections at once.
    pub fn abort(&mut self) {
        for sending in self.sending.drain(..) {
            self.stack.abort(sending.id);
        }
    }

    /// One turn of the loop; whether there was anything to do.
    ///
    /// # Errors
    /// A connection broke, or what came is not what was sent.
    pub fn turn(&mut self, now: Instant) -> Result<bool> {
        let (stack, received, wrong) = (&mut self.stack, &mut self.received, &mut self.wrong);
        let mut deliver = |_: ConnId, octets: &mut [u8]| {
            for octet in octets.iter() {
                if *octet != pattern(*received) {
                    wrong.get_or_insert(*received);
                }
                *received += 1;
            }
            octets.len()
        };
        let busy = self.port.receive(|packet, _| {
            stack.handle_segment(now, packet, RxChecksum::Unknown, &mut deliver);
        });
        ensure!(self.wrong.is_none(), "octet {:?} is not what was sent", self.wrong);
        if self.stack.poll_timeout().is_some_and(|at| at <= now) {
            self.stack.handle_timeout(now);
        }
        self.write()?;
        while let Some(event) = self.stack.poll_event() {
            self.hear(event).with_context(|| format!("{event:?}"))?;
        }
        self.stack.poll_transmit(now, &mut self.port);
        self.port.flush();
        Ok(busy)
    }

    fn hear(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Opened { id, originator: false, .. } => self.stack.vouch(id),
            Event::Closed { reason: CloseReason::PeerClosed, .. } => self.finished += 1,
            Event::Closed { reason, .. } => ensure!(
                matches!(reason, CloseReason::LocalClosed | CloseReason::LocalAborted),
                "a connection broke"
            ),
            _ => {}
        }
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        for sending in &mut self.sending {
            while sending.left > 0 {
                let len = (WRITE as u64).min(sending.left) as usize;
                if self.stack.send_capacity(sending.id) < len {
                    break;
                }
                let from = sending.written;
                let written = self.stack.send_with(sending.id, len, |room| {
                    for (at, octet) in room.iter_mut().enumerate() {
                        *octet = pattern(from + at as u64);
                    }
                    room.len()
                })?;
                sending.written += written as u64;
                sending.left -= written as u64;
            }
            if sending.closes && sending.left == 0 {
                self.stack.close(sending.id);
            }
        }
        self.sending.retain(|sending| sending.left > 0);
        Ok(())
    }
}
