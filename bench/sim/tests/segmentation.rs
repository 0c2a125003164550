//! Segmentation by real devices: several segments leave the engine as one packet and the device cuts
//! it. The kernel's TCP is the judge of what net_tap makes of them; over a virtio link they arrive
//! as they left, so that the engine at the other end takes them as a device with LRO gives them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time;

use culvert_dpdk::{Device, Eal, Offloads, Pool, PortConfig, devargs};
use culvert_lab::namespace::Namespace;
use culvert_sim::linux::{Leg, start_dpdk};
use culvert_tcpstack::{
    ConnId, Event, Instant, SEGMENTATION_BYTES_MAX, Stack, StackConfig, TxChecksum,
};

/// Octets carried each way.
const OCTETS: usize = 30_000_000;
/// Octets written at a time, as a frame.
const FRAME: usize = 1_450;
const PORT: u16 = 4500;

/// The octet at this place of a stream.
fn octet(at: usize) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 11) as u8
}

/// An engine on a port, its connection, and how far both streams have come.
struct End {
    stack: Stack,
    leg: Leg,
    started: time::Instant,
    id: Option<ConnId>,
    sent: usize,
    read: usize,
    finished: bool,
}

impl End {
    fn new(leg: Leg, seed: u8, mtu: u16) -> Self {
        let segmentation_bytes = SEGMENTATION_BYTES_MAX.min(leg.packet_bytes_max());
        let device = segmentation_bytes > 0;
        let config = StackConfig {
            tx_checksum: if device { TxChecksum::Device } else { TxChecksum::Software },
            segmentation_bytes,
            mtu,
            ..StackConfig::default()
        };
        let mut stack = Stack::new(config, [seed; 32]).unwrap();
        stack.listen(PORT);
        let started = time::Instant::now();
        Self { stack, leg, started, id: None, sent: 0, read: 0, finished: false }
    }

    /// One turn of a worker.
    fn turn(&mut self) {
        let now = Instant(1_000_000 + self.started.elapsed().as_micros() as u64);
        let (stack, read) = (&mut self.stack, &mut self.read);
        self.leg.receive(|packet, checksum| {
            stack.handle_segment(now, packet, checksum, &mut |_, octets| take(read, octets));
        });
        if stack.poll_timeout().is_some_and(|at| at <= now) {
            stack.handle_timeout(now);
        }
        while let Some(event) = stack.poll_event() {
            match event {
                Event::Opened { id, .. } => self.id = Some(id),
                Event::Readable(id) => {
                    while stack.recv(id, |octets| take(read, octets)).is_ok_and(|read| read > 0) {}
                }
                Event::Closed { .. } => self.finished = true,
                Event::Writable(_) => {}
            }
        }
        while self.sent < OCTETS
            && let Some(id) = self.id
        {
            let (sent, len) = (self.sent, FRAME.min(OCTETS - self.sent));
            let fill = |room: &mut [u8]| {
                for (at, octet_at) in room.iter_mut().enumerate() {
                    *octet_at = octet(sent + at);
                }
                room.len()
            };
            if stack.send_with(id, len, fill).is_err() {
                break;
            }
            self.sent += len;
        }
        stack.poll_transmit(now, &mut self.leg);
        self.leg.flush();
    }
}

/// Holds octets against the stream.
fn take(read: &mut usize, octets: &[u8]) -> usize {
    for (at, found) in octets.iter().enumerate() {
        assert_eq!(*found, octet(*read + at), "octet {}", *read + at);
    }
    *read += octets.len();
    octets.len()
}

/// A Linux host that takes one connection, reads what it is sent and sends as much.
fn host(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        let octets: Vec<u8> = (0..OCTETS).map(octet).collect();
        writer.write_all(&octets).unwrap();
    });
    let (mut read, mut room) = (0, vec![0; 1 << 16]);
    while read < OCTETS {
        let count = stream.read(&mut room).unwrap();
        assert!(count > 0, "the end of the stream after {read} octets");
        take(&mut read, &room[..count]);
    }
    sending.join().unwrap();
}

/// IPv4 only: that is what DPDK's software segmentation, which net_tap uses, can.
fn the_kernel_takes_what_net_tap_cuts(eal: Eal, pool: Pool) {
    let namespace = Namespace::create(78, "tap").unwrap();
    let leg = namespace.enter(|| {
        let device = Device::open(eal, &devargs::tap(0, "t0"))?;
        Leg::start(device, &PortConfig::default(), pool, [2, 0, 0, 0, 0, 1])
    });
    let leg = leg.unwrap();
    namespace.run("ip link set t0 address 02:00:00:00:00:01 up").unwrap();
    namespace.run("ip addr add 10.78.0.1/24 dev t0").unwrap();
    namespace.run("ip neigh add 10.78.0.2 lladdr 02:00:00:00:00:77 dev t0").unwrap();
    let address: SocketAddr = ([10, 78, 0, 1], PORT).into();
    let listener = namespace.enter(|| Ok(TcpListener::bind(address)?)).unwrap();
    let host = thread::spawn(move || host(&listener));
    // net_tap counts the Ethernet header against the MTU.
    let mut end = End::new(leg, 1, 1500 - 14);
    end.stack.connect(Instant(1_000_000), [10, 78, 0, 2].into(), address).unwrap();
    // The host is done when it has written everything, not when that has arrived.
    while !host.is_finished() || end.read < OCTETS {
        end.turn();
        assert!(!end.finished || end.read == OCTETS, "closed after {} octets", end.read);
    }
    host.join().unwrap();
    assert!(end.leg.cut > 0, "the device has cut nothing");
    let snmp = namespace.run("cat /proc/net/snmp").unwrap();
    let mut tcp = snmp.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let wrong = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "InCsumErrors");
    assert_eq!(wrong.unwrap().1, "0", "checksums that the kernel found wrong");
}

/// Both families, TSO one way and the other, and what arrives is as long as what left.
fn an_engine_takes_whole_what_virtio_carries(eal: Eal, pool: Pool) {
    let directory = std::env::temp_dir().join(format!("culvert-sim-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let socket = directory.join("virtio");
    let config = PortConfig { offloads: Offloads::ALL, ..PortConfig::default() };
    let any = [2, 0, 0, 0, 0, 2];
    let there = Device::open(eal, &devargs::vhost(0, &socket)).unwrap();
    let there = Leg::start(there, &config, pool, any).unwrap();
    let here = Device::open(eal, &devargs::virtio_user(0, &socket)).unwrap();
    let here = Leg::start(here, &config, pool, any).unwrap();
    let mut ends = [End::new(here, 1, 1500), End::new(there, 2, 1500)];
    let _ = std::fs::remove_dir_all(&directory);
    for [from, to] in [["192.0.2.1", "192.0.2.2"], ["2001:db8::1", "2001:db8::2"]] {
        for end in &mut ends {
            (end.id, end.sent, end.read, end.finished) = (None, 0, 0, false);
        }
        let now = Instant(1_000_000 + ends[0].started.elapsed().as_micros() as u64);
        let remote = SocketAddr::new(to.parse().unwrap(), PORT);
        let id = ends[0].stack.connect(now, from.parse().unwrap(), remote).unwrap();
        while ends.iter().any(|end| end.read < OCTETS) {
            ends.iter_mut().for_each(End::turn);
            assert!(!ends.iter().any(|end| end.finished), "closed");
        }
        ends[0].stack.close(id);
        while !ends[1].finished {
            ends.iter_mut().for_each(End::turn);
        }
    }
    let [here, there] = &ends;
    let (segments, packets) = (here.stack.stats().segments_out, here.leg.port().stats().tx_packets);
    assert!(segments > 10 * packets, "{segments} segments in {packets} packets");
    // A repeat of the tail may still be on the way when the last octet has been read.
    let (coalesced, cut) = (there.leg.coalesced, here.leg.cut);
    assert!(coalesced <= cut && coalesced > cut / 10 * 9, "{coalesced} of {cut}");
}

#[test]
fn devices_cut_and_coalesce() {
    let (eal, pool) = start_dpdk().unwrap();
    an_engine_takes_whole_what_virtio_carries(eal, pool);
    the_kernel_takes_what_net_tap_cuts(eal, pool);
}
