//! ESP in RFC 9329 frames in TCP, without a NIC: two stacks that hand each other their packets. One
//! case counts what the sender does (seal into the send buffer, segments, the receiver's
//! acknowledgements), the other what the receiver does (segments, frames, open, acknowledgements).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, ensure};
use culvert_dpdk::tsc;
use culvert_esp::{OutboundSa, Provider};
use culvert_tcpstack::framing::{
    Decoder, ESP_OVERHEAD_BYTES, Frame, Gathering, PREFIX, esp_header,
};
use culvert_tcpstack::{
    ConnId, Event, Instant, Packet, RxChecksum, Stack, StackConfig, Transmit, TxChecksum,
};

use crate::esp::Pair;
use crate::measure::{Case, SIZES};

/// Packets handled before the other end gets its turn, as in a worker's burst.
const BATCH: usize = 32;
/// Time between two batches, in microseconds.
const TICK: u64 = 20;

/// Packets under way, in buffers that are used again.
#[derive(Default)]
struct Wire {
    buffers: Vec<Vec<u8>>,
    used: usize,
}

impl Transmit for Wire {
    fn has_room(&mut self) -> bool {
        true
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        if self.used == self.buffers.len() {
            self.buffers.push(Vec::new());
        }
        let buffer = &mut self.buffers[self.used];
        self.used += 1;
        buffer.resize(packet.bytes, 0);
        fill(buffer);
    }
}

impl Wire {
    /// Gives every packet to `to`; octets in order go to `take` where they lie.
    fn deliver(
        &mut self,
        now: Instant,
        to: &mut Stack,
        take: &mut dyn FnMut(ConnId, &mut [u8]) -> usize,
    ) {
        for packet in &mut self.buffers[..self.used] {
            to.handle_segment(now, packet, RxChecksum::Verified, take);
        }
        self.used = 0;
    }
}

/// A tunnel: connection, SA and both ends.
struct Tunnel {
    sender: Stack,
    receiver: Stack,
    from: ConnId,
    decoder: Decoder,
    gathering: Gathering,
    pair: Pair,
    inner: Vec<u8>,
    there: Wire,
    back: Wire,
    now: Instant,
    opened: usize,
}

impl Tunnel {
    fn new(provider: Provider, size: usize) -> anyhow::Result<Self> {
        // Checksums are a NIC's work.
        let config = StackConfig { tx_checksum: TxChecksum::Device, ..StackConfig::default() };
        let mut sender = Stack::new(config.clone(), [1; 32])?;
        let mut receiver = Stack::new(config, [2; 32])?;
        receiver.listen(4500);
        let now = Instant(1);
        let local = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
        let remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 2), 4500));
        let from = sender.connect(now, local, remote)?;
        let (mut there, mut back) = (Wire::default(), Wire::default());
        for _ in 0..2 {
            sender.poll_transmit(now, &mut there);
            there.deliver(now, &mut receiver, &mut |_, _| 0);
            receiver.poll_transmit(now, &mut back);
            back.deliver(now, &mut sender, &mut |_, _| 0);
        }
        let opened = receiver.poll_event().context("the connection did not open")?;
        ensure!(matches!(opened, Event::Opened { .. }), "the connection did not open: {opened:?}");
        sender.send_with(from, PREFIX.len(), |octets| {
            octets.copy_from_slice(&PREFIX);
            PREFIX.len()
        })?;
        let (pair, decoder) = (Pair::new(provider)?, Decoder::for_responder());
        let inner = vec![3; size];
        let opened = 0;
        let gathering = Gathering::new();
        Ok(Self {
            sender,
            receiver,
            from,
            decoder,
            gathering,
            pair,
            inner,
            there,
            back,
            now,
            opened,
        })
    }

    /// Seals up to a batch into the send buffer and emits the segments. Returns how many packets
    /// found room.
    fn send(&mut self) -> usize {
        let packet_len = OutboundSa::sealed_len(self.inner.len());
        let header = esp_header(packet_len).unwrap_or_default();
        let mut sent = 0;
        for _ in 0..BATCH {
            let (pair, inner) = (&mut self.pair, &self.inner);
            let result = self.sender.send_with(self.from, ESP_OVERHEAD_BYTES + packet_len, |out| {
                let (front, packet) = out.split_at_mut(ESP_OVERHEAD_BYTES);
                front.copy_from_slice(&header);
                ESP_OVERHEAD_BYTES + pair.seal(inner, packet)
            });
            if result.is_err() {
                break;
            }
            sent += 1;
        }
        self.sender.poll_transmit(self.now, &mut self.there);
        sent
    }

    fn receive(&mut self) {
        let (decoder, pair, opened) = (&mut self.decoder, &self.pair, &mut self.opened);
        let gathering = &mut self.gathering;
        self.there.deliver(self.now, &mut self.receiver, &mut |_, octets| {
            let length = octets.len();
            let mut rest = octets;
            while let Ok(Some(frame)) = decoder.next_frame(gathering, &mut rest) {
                if let Frame::Esp(packet) = frame {
                    *opened += usize::from(pair.open(packet));
                }
            }
            length
        });
        while self.receiver.poll_event().is_some() {}
        self.receiver.poll_transmit(self.now, &mut self.back);
    }

    fn acknowledge(&mut self) {
        self.back.deliver(self.now, &mut self.sender, &mut |_, _| 0);
        while self.sender.poll_event().is_some() {}
    }

    /// Carries `packets` packets. Returns the cycles of the sender and of the receiver.
    fn carry(&mut self, packets: usize) -> (u64, u64) {
        let (mut out, mut within) = (0, 0);
        let (mut sent, before) = (0, self.opened);
        while self.opened - before < packets {
            self.now = Instant(self.now.0 + TICK);
            let start = tsc();
            if sent < packets {
                sent += self.send();
            } else {
                self.sender.handle_timeout(self.now);
                self.sender.poll_transmit(self.now, &mut self.there);
            }
            let middle = tsc();
            self.receive();
            let end = tsc();
            self.acknowledge();
            out += middle.wrapping_sub(start) + tsc().wrapping_sub(end);
            within += end.wrapping_sub(middle);
        }
        (out, within)
    }
}

struct Direction {
    provider: Provider,
    tunnel: Tunnel,
    inbound: bool,
}

impl Case for Direction {
    fn name(&self) -> String {
        let direction = if self.inbound { "in " } else { "out" };
        format!("ESP in TCP, {direction}, {}", self.provider)
    }

    fn size(&self) -> usize {
        self.tunnel.inner.len()
    }

    fn run(&mut self, packets: usize) -> u64 {
        let (out, within) = self.tunnel.carry(packets);
        if self.inbound { within } else { out }
    }
}

/// Both directions of the fastest provider, every size.
pub(crate) fn cases(provider: Provider) -> anyhow::Result<Vec<Box<dyn Case>>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for size in SIZES {
        for inbound in [false, true] {
            let tunnel = Tunnel::new(provider, size)?;
            cases.push(Box::new(Direction { provider, tunnel, inbound }));
        }
    }
    Ok(cases)
}
