//! One end of a simulated path: a TCP and its clock. The engine and smoltcp's sockets look the same
//! to the simulator.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_tcpstack::{
    ConnId, Event, Instant, Packet, RxChecksum, SegmentOutcome, Stack, StackConfig, Transmit,
};

use crate::packet;
use crate::random::Random;

/// Octets of a buffer of the device: a packet longer than that is filled in pieces.
const PIECE: usize = 2048;

/// Packets that a host has sent.
#[derive(Debug, Default)]
pub struct Outbox {
    /// In order.
    pub packets: Vec<Vec<u8>>,
    /// How many it takes.
    pub room: usize,
}

impl Outbox {
    /// Takes any number.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { packets: Vec::new(), room: usize::MAX }
    }
}

impl Transmit for Outbox {
    fn has_room(&mut self) -> bool {
        self.packets.len() < self.room
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        let mut octets = vec![0xa5; packet.bytes];
        octets.chunks_mut(PIECE).for_each(&mut fill);
        self.packets.extend(packet::leave_device(octets, packet.segment_bytes));
    }
}

/// Takes octets in order and says how many it has consumed.
pub type Deliver<'a> = &'a mut dyn FnMut(ConnId, &mut [u8]) -> usize;

/// What the simulator asks of a TCP. The meaning is that of [`Stack`]'s methods.
pub trait Host {
    /// Begins a connection.
    fn connect(&mut self, now: Instant, remote: SocketAddr) -> Option<ConnId>;
    /// A packet came.
    fn receive(&mut self, now: Instant, packet: &mut [u8], deliver: Deliver<'_>);
    /// What is due is sent.
    fn transmit(&mut self, now: Instant, out: &mut Outbox);
    /// When time matters next.
    fn deadline(&mut self) -> Option<Instant>;
    /// Time has passed.
    fn timeout(&mut self, now: Instant);
    /// What happened.
    fn event(&mut self) -> Option<Event>;
    /// Reads what waits.
    fn read(&mut self, id: ConnId, read: &mut dyn FnMut(&mut [u8]) -> usize) -> usize;
    /// Writes a frame, or refuses it.
    fn write(&mut self, id: ConnId, frame: &[u8]) -> bool;
    /// Writes a frame before others.
    fn write_urgent(&mut self, id: ConnId, frame: &[u8]) -> bool;
    /// The peer has proven itself.
    fn vouch(&mut self, id: ConnId);
    /// Ends in order.
    fn close(&mut self, id: ConnId);
    /// Ends at once.
    fn abort(&mut self, id: ConnId);
    /// The longest time that octets have waited behind a hole; zero from a host that does not tell.
    fn stood_still(&self) -> Duration {
        Duration::ZERO
    }
    /// Holds the host against its limits.
    ///
    /// # Errors
    /// One of them is exceeded; the error says which.
    fn check(&self, connections: &[ConnId]) -> Result<()>;
    /// Nothing is left of any connection.
    ///
    /// # Errors
    /// Something is.
    fn check_empty(&mut self) -> Result<()>;
}

/// Octets beyond the send buffer that a connection may hold: the last frame may begin in the last octet
/// of room, and urgent frames need no room, but are no more than two of the longest that the engine
/// takes (RFC 9329, 3: the stream prefix, and a length of 16 bits).
const SLACK: usize = 2 * (6 + 65_535);

/// The engine.
pub struct EngineHost {
    /// The stack itself.
    pub stack: Stack,
    config: StackConfig,
    local: IpAddr,
}

impl EngineHost {
    /// A stack at `local` that listens on 4500.
    ///
    /// # Errors
    /// The configuration is refused.
    pub fn new(config: StackConfig, local: IpAddr, random: &mut Random) -> Result<Self> {
        let mut stack = Stack::new(config.clone(), random.octets())?;
        stack.listen(4500);
        Ok(Self { stack, config, local })
    }
}

impl Host for EngineHost {
    fn connect(&mut self, now: Instant, remote: SocketAddr) -> Option<ConnId> {
        self.stack.connect(now, self.local, remote).ok()
    }

    fn receive(&mut self, now: Instant, packet: &mut [u8], deliver: Deliver<'_>) {
        let _: SegmentOutcome =
            self.stack.handle_segment(now, packet, RxChecksum::Unknown, deliver);
    }

    fn transmit(&mut self, now: Instant, out: &mut Outbox) {
        self.stack.poll_transmit(now, out);
    }

    fn deadline(&mut self) -> Option<Instant> {
        self.stack.poll_timeout()
    }

    fn timeout(&mut self, now: Instant) {
        self.stack.handle_timeout(now);
    }

    fn event(&mut self) -> Option<Event> {
        self.stack.poll_event()
    }

    fn read(&mut self, id: ConnId, read: &mut dyn FnMut(&mut [u8]) -> usize) -> usize {
        self.stack.recv(id, read).unwrap_or(0)
    }

    fn write(&mut self, id: ConnId, frame: &[u8]) -> bool {
        let written = self.stack.send_with(id, frame.len(), |room| {
            room.copy_from_slice(frame);
            frame.len()
        });
        written == Ok(frame.len())
    }

    fn write_urgent(&mut self, id: ConnId, frame: &[u8]) -> bool {
        self.stack.send_urgent(id, frame.len(), |out| out.copy_from_slice(frame)).is_ok()
    }

    fn vouch(&mut self, id: ConnId) {
        self.stack.vouch(id);
    }

    fn close(&mut self, id: ConnId) {
        self.stack.close(id);
    }

    fn abort(&mut self, id: ConnId) {
        self.stack.abort(id);
    }

    fn stood_still(&self) -> Duration {
        Duration::from_micros(self.stack.head_of_line_delay().max())
    }

    fn check(&self, connections: &[ConnId]) -> Result<()> {
        let used = self.stack.stats().buffer_bytes;
        let limit = self.config.buffers_bytes as u64;
        ensure!(used <= limit, "{used} octets of buffers, {limit} allowed");
        for info in connections.iter().filter_map(|id| self.stack.info(*id)) {
            let (unread, most) = (info.unread_bytes, self.config.rx_buffer_bytes);
            ensure!(unread <= most, "{unread} octets wait to be read, {most} allowed");
            let unacknowledged = info.unsent_bytes + info.in_flight_bytes;
            let most = self.config.tx_buffer_bytes + SLACK;
            ensure!(unacknowledged <= most, "{unacknowledged} octets to send, {most} allowed");
        }
        Ok(())
    }

    fn check_empty(&mut self) -> Result<()> {
        let used = self.stack.stats().buffer_bytes;
        ensure!(used == 0, "{used} octets of buffers are left without a connection");
        let timer = self.stack.poll_timeout();
        ensure!(timer.is_none(), "a timer is left for {timer:?}");
        Ok(())
    }
}
