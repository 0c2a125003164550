//! The engine at both ends.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use culvert_tcpstack::{
    CongestionControl, ConnId, EphemeralPorts, Event, Instant, RxChecksum, Stack, StackConfig,
    TcpSecret, TxChecksum,
};

use super::{BATCH, MTU, PAYLOAD, PER_ADDRESS, PORT, Packets, Pair};

const LISTENER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 255, 0, 1));

/// Two stacks with connections from the first to the second.
pub struct EnginePair {
    pub(super) stacks: [Stack; 2],
    pub(super) connections: Vec<ConnId>,
    received: u64,
}

pub(super) fn config(connections: usize, control: CongestionControl) -> StackConfig {
    let most = connections as u32;
    StackConfig {
        // None of them vouched for, so that some places are kept free.
        connections_max: most + 64,
        prefix_connections_max: most,
        unproven_max: most,
        buffers_bytes: 4 << 30,
        mtu: MTU,
        tx_checksum: TxChecksum::Device,
        congestion_control: control,
        ephemeral_ports: EphemeralPorts { first: 10_000, last: 65_535, stride: 1, offset: 0 },
        secret: TcpSecret::new([9; 32], Instant::ZERO),
        ..StackConfig::default()
    }
}

/// The local address of a connection: a port range is not enough for all.
pub(super) fn address(connection: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, (connection / PER_ADDRESS) as u8, 1))
}

impl EnginePair {
    /// Opens so many connections.
    ///
    /// # Errors
    /// One of them does not open.
    pub fn new(connections: usize, control: CongestionControl, now: Instant) -> Result<Self> {
        let config = config(connections, control);
        let mut stacks = [Stack::new(config.clone(), [1; 32])?, Stack::new(config, [2; 32])?];
        stacks[1].listen(PORT);
        let mut pair = Self { stacks, connections: Vec::with_capacity(connections), received: 0 };
        while pair.connections.len() < connections {
            let some = BATCH.min(connections - pair.connections.len());
            pair.open(some, now)?;
        }
        Ok(pair)
    }

    /// Opens some more, with the three segments of each handshake.
    pub(super) fn open(&mut self, some: usize, now: Instant) -> Result<()> {
        for _ in 0..some {
            let local = address(self.connections.len());
            let id = self.stacks[0].connect(now, local, SocketAddr::new(LISTENER, PORT))?;
            self.connections.push(id);
        }
        let mut packets = Packets::default();
        for end in [0, 1, 0] {
            packets.clear();
            self.transmit(end, now, &mut packets);
            self.receive(1 - end, now, &mut packets);
        }
        // The acknowledgment of a cookie opens the connection at the other end.
        let mut opened = 0;
        while let Some(event) = self.stacks[1].poll_event() {
            opened += usize::from(matches!(event, Event::Opened { .. }));
        }
        ensure!(opened == some, "{opened} of {some} connections open");
        while self.stacks[0].poll_event().is_some() {}
        Ok(())
    }
}

impl EnginePair {
    /// The end of the data writes a frame that may overtake, and sends what may be sent.
    pub fn send_urgent(&mut self, now: Instant, connection: usize, out: &mut Packets) {
        // A refused write shows in what is received.
        let _ = self.stacks[0].send_urgent(self.connections[connection], 300, |room| room.fill(7));
        self.transmit(0, now, out);
    }
}

impl Pair for EnginePair {
    fn send(&mut self, now: Instant, connections: &[usize], each: usize, out: &mut Packets) {
        let stack = &mut self.stacks[0];
        for connection in connections {
            let id = self.connections[*connection];
            for _ in 0..each {
                // A refused write shows in what is received.
                let _ = stack.send_with(id, PAYLOAD, |room| {
                    room.copy_from_slice(&[0x5a; PAYLOAD]);
                    PAYLOAD
                });
            }
        }
        self.transmit(0, now, out);
    }

    fn receive(&mut self, end: usize, now: Instant, packets: &mut Packets) {
        let (stack, received) = (&mut self.stacks[end], &mut self.received);
        let mut deliver = |_: ConnId, octets: &mut [u8]| {
            *received += octets.len() as u64;
            octets.len()
        };
        for packet in packets.iter_mut() {
            stack.handle_segment(now, packet, RxChecksum::Verified, &mut deliver);
        }
    }

    fn transmit(&mut self, end: usize, now: Instant, out: &mut Packets) {
        let stack = &mut self.stacks[end];
        if stack.poll_timeout().is_some_and(|at| at <= now) {
            stack.handle_timeout(now);
        }
        stack.poll_transmit(now, out);
    }

    fn received(&self) -> u64 {
        self.received
    }
}
