//! The TCP stack: frames of any content from a stranger who can see the wire, between those of a
//! real connection. No panic, no growth beyond the configured limits.
#![no_main]

use culvert_tcpstack::{Instant, RxChecksum, Stack, StackConfig, Transmit};
use libfuzzer_sys::fuzz_target;

const CONNECTIONS_MAX: u32 = 8;

#[derive(Default)]
struct Wire(Vec<Vec<u8>>);

impl Transmit for Wire {
    fn has_room(&mut self) -> bool {
        true
    }

    fn packet<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

fn stack(seed: u8) -> Stack {
    let config = StackConfig {
        connections_max: CONNECTIONS_MAX,
        unproven_max: 4,
        rx_buffer_bytes: 1 << 16,
        tx_buffer_bytes: 1 << 16,
        ..StackConfig::default()
    };
    let mut stack = Stack::new(config, [seed; 32]).expect("a valid configuration");
    stack.listen(4500);
    stack
}

/// Sends what `from` has to send, each packet first changed by `change`.
fn pass(now: Instant, from: &mut Stack, to: &mut Stack, mut change: impl FnMut(&mut Vec<u8>)) {
    let mut wire = Wire::default();
    from.poll_transmit(now, &mut wire);
    for mut packet in wire.0 {
        change(&mut packet);
        to.handle_segment(now, &mut packet, RxChecksum::Verified, &mut |_, octets| octets.len());
    }
}

/// Takes one piece of the input: a length octet and so many octets.
fn take<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&length, rest) = data.split_first()?;
    let (piece, rest) = rest.split_at(usize::from(length).min(rest.len()));
    *data = rest;
    Some(piece)
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let (mut client, mut server) = (stack(1), stack(2));
    let mut now = Instant(1);
    let local = "192.0.2.1".parse().expect("an address");
    let remote = "192.0.2.2:4500".parse().expect("an address");
    client.connect(now, local, remote).expect("a free connection");
    while let Some(piece) = take(&mut data) {
        now = Instant(now.0 + 1 + 10_000 * piece.len() as u64);
        // Each (offset, octet) pair changes the packets of the real connection; whatever is left
        // over is a packet of its own.
        let (changes, own) = piece.split_at(piece.len() / 4);
        pass(now, &mut client, &mut server, |packet| {
            for change in changes.chunks_exact(2) {
                let offset = usize::from(change[0]);
                if let Some(octet) = packet.get_mut(offset) {
                    *octet ^= change[1];
                }
            }
        });
        server.handle_segment(now, &mut own.to_vec(), RxChecksum::Verified, &mut |_, _| 0);
        while let Some(event) = server.poll_event() {
            if let culvert_tcpstack::Event::Readable(id) = event {
                let _ = server.recv(id, |octets| octets.len());
            }
        }
        server.handle_timeout(now);
        client.handle_timeout(now);
        pass(now, &mut server, &mut client, |_| {});
        while client.poll_event().is_some() {}
    }
});
