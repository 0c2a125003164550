//! smoltcp's sockets at both ends, used as well as they can be: one interface for each end, a set
//! of its own for each socket so that no packet scans the others, and a hash table in front.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use culvert_tcpstack::Instant;
use siphasher::sip::SipHasher13;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, DeviceCapabilities};
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpListenEndpoint};

use super::{MTU, PAYLOAD, PER_ADDRESS, PORT, Packets, Pair};
use crate::smol::{Wire, capabilities, interface, smol};

/// Source address and port, destination address and port, as in the packet.
type Key = [u8; 12];

#[derive(Clone, Default)]
struct Hashing;

impl std::hash::BuildHasher for Hashing {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(3, 5)
    }
}

struct Socket {
    set: SocketSet<'static>,
    handle: SocketHandle,
}

struct End {
    interface: Interface,
    capabilities: DeviceCapabilities,
    sockets: Vec<Socket>,
    table: HashMap<Key, usize, Hashing>,
    /// Sockets that got a packet and may have to answer.
    due: Vec<usize>,
}

/// Two ends with connections from the first to the second.
pub struct SocketPair {
    ends: [End; 2],
    received: u64,
}

fn key(packet: &[u8]) -> Key {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&packet[12..20]);
    key[8..].copy_from_slice(&packet[20..24]);
    key
}

/// A clock for timestamps that costs next to nothing. Round trips of the run are not measured by it.
fn clock() -> u32 {
    static TICKS: AtomicU32 = AtomicU32::new(1);
    TICKS.fetch_add(1, Ordering::Relaxed)
}

/// Buffers as small as the pattern allows, or 100,000 of them would not fit the memory.
fn socket(receive: usize, send: usize) -> tcp::Socket<'static> {
    let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
    let mut socket = tcp::Socket::new(buffer(receive), buffer(send));
    socket.set_nagle_enabled(false);
    socket.set_congestion_control(tcp::CongestionControl::Cubic);
    // As the engine's: without it a segment would be twelve octets shorter and its ACK cheaper.
    socket.set_tsval_generator(Some(clock));
    socket
}

impl End {
    fn new(seed: u64) -> Self {
        let mut capabilities = capabilities(ChecksumCapabilities::ignored());
        capabilities.max_transmission_unit = MTU.into();
        let interface = interface(&capabilities, seed);
        let table = HashMap::with_hasher(Hashing);
        Self { interface, capabilities, sockets: Vec::new(), table, due: Vec::new() }
    }

    fn add(&mut self, socket: tcp::Socket<'static>, key: Key) -> usize {
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        self.sockets.push(Socket { set, handle });
        self.table.insert(key, self.sockets.len() - 1);
        self.sockets.len() - 1
    }

    fn tcp(&mut self, index: usize) -> &mut tcp::Socket<'static> {
        let Socket { set, handle } = &mut self.sockets[index];
        set.get_mut(*handle)
    }

    fn transmit(&mut self, index: usize, now: Instant, out: &mut Packets) {
        let mut wire = Wire { received: None, sent: out, capabilities: &self.capabilities };
        let set = &mut self.sockets[index].set;
        // Each call sends one segment of a socket.
        loop {
            let before = wire.sent.len();
            self.interface.poll_egress(smol(now), &mut wire, set);
            if wire.sent.len() == before {
                return;
            }
        }
    }
}

impl SocketPair {
    /// Opens so many connections.
    ///
    /// # Errors
    /// One of them does not open.
    pub fn new(connections: usize, now: Instant) -> Result<Self> {
        let room = if connections <= 1000 { 1 << 16 } else { 3 * PAYLOAD };
        let mut pair = Self { ends: [End::new(1), End::new(2)], received: 0 };
        for connection in 0..connections {
            pair.open(connection, room, now).with_context(|| format!("connection {connection}"))?;
        }
        Ok(pair)
    }

    fn open(&mut self, connection: usize, room: usize, now: Instant) -> Result<()> {
        let local = Ipv4Addr::new(10, 0, (connection / PER_ADDRESS) as u8, 1);
        let remote = Ipv4Addr::new(10, 255, 0, 1);
        let port = 10_000 + (connection % PER_ADDRESS) as u16;
        let ports = [port.to_be_bytes(), PORT.to_be_bytes()];
        let key = |from: Ipv4Addr, to: Ipv4Addr, ports: [[u8; 2]; 2]| -> Key {
            let mut key = [0; 12];
            key[..4].copy_from_slice(&from.octets());
            key[4..8].copy_from_slice(&to.octets());
            key[8..10].copy_from_slice(&ports[0]);
            key[10..].copy_from_slice(&ports[1]);
            key
        };
        let mut from = socket(64, room);
        let endpoint = IpListenEndpoint { addr: Some(IpAddress::from(local)), port };
        let context = self.ends[0].interface.context();
        from.connect(context, (IpAddress::from(remote), PORT), endpoint)?;
        let index = self.ends[0].add(from, key(remote, local, [ports[1], ports[0]]));
        let mut to = socket(room, 64);
        to.listen(PORT)?;
        self.ends[1].add(to, key(local, remote, ports));
        let mut packets = Packets::default();
        for end in [0, 1, 0] {
            packets.clear();
            self.ends[end].transmit(index, now, &mut packets);
            self.receive(1 - end, now, &mut packets);
        }
        ensure!(self.ends[1].tcp(index).state() == tcp::State::Established, "it does not open");
        self.ends.iter_mut().for_each(|end| end.due.clear());
        Ok(())
    }
}

impl Pair for SocketPair {
    fn send(&mut self, now: Instant, connections: &[usize], each: usize, out: &mut Packets) {
        for connection in connections {
            let tcp = self.ends[0].tcp(*connection);
            for _ in 0..each {
                // A refused write shows in what is received.
                let _ = tcp.send_slice(&[0x5a; PAYLOAD]);
            }
            self.ends[0].transmit(*connection, now, out);
        }
    }

    fn receive(&mut self, end: usize, now: Instant, packets: &mut Packets) {
        let End { interface, capabilities, sockets, table, due } = &mut self.ends[end];
        let mut answers = Packets { octets: Vec::new(), lens: Vec::new() };
        for packet in packets.iter_mut() {
            let Some(index) = table.get(&key(packet)).copied() else { continue };
            let Socket { set, handle } = &mut sockets[index];
            let mut wire = Wire { received: Some(packet), sent: &mut answers, capabilities };
            let _ = interface.poll_ingress_single(smol(now), &mut wire, set);
            let tcp = set.get_mut::<tcp::Socket<'_>>(*handle);
            while let Ok(read @ 1..) = tcp.recv(|octets| (octets.len(), octets.len())) {
                self.received += read as u64;
            }
            if due.last() != Some(&index) {
                due.push(index);
            }
        }
    }

    fn transmit(&mut self, end: usize, now: Instant, out: &mut Packets) {
        for index in std::mem::take(&mut self.ends[end].due) {
            self.ends[end].transmit(index, now, out);
        }
    }

    fn received(&self) -> u64 {
        self.received
    }
}
