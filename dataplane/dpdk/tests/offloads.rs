//! Checksum offloads in both directions, against the kernel: net_tap fills checksums in and checks
//! them, the kernel's UDP sockets are the judge and the other side.

#![allow(clippy::unwrap_used)] // helpers of tests, outside of their functions

use culvert_dpdk::{
    Burst, ChecksumStatus, Device, Eal, IpVersion, L4, Mbuf, Memory, Pool, PoolConfig, PortConfig,
    Started, TxOffload, devargs,
};
use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

const KERNEL: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PORT: u16 = 4500;
const HEADERS: usize = 14 + 20 + 8;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// An Ethernet, IPv4 and UDP packet to the kernel whose checksum fields hold nonsense.
fn datagram(pool: &Pool, kernel_mac: [u8; 6], payload: &[u8]) -> Mbuf {
    let udp_len = 8 + payload.len() as u16;
    let mut packet = Vec::new();
    packet.extend([kernel_mac, OUR_MAC].concat());
    packet.extend([0x08, 0x00, 0x45, 0]);
    packet.extend((20 + udp_len).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0xba, 0xad]);
    packet.extend([OURS.octets(), KERNEL.octets()].concat());
    packet.extend([PORT, PORT, udp_len, 0xbaad].into_iter().flat_map(u16::to_be_bytes));
    packet.extend(payload);
    let mut mbuf = pool.alloc().unwrap();
    assert!(mbuf.extend_from_slice(&packet));
    mbuf
}

const REQUEST: TxOffload = TxOffload {
    l2_len: 14,
    l3_len: 20,
    l4_len: 8,
    ip: IpVersion::V4,
    ip_checksum: true,
    l4_checksum: Some(L4::Udp),
    tso_segment: None,
};

/// Sends one packet that asks for its checksums and one that does not: only the first is right.
fn the_kernel_takes_what_was_filled_in(port: &mut Started, pool: &Pool, socket: &UdpSocket) {
    let mac = port.port.mac();
    let mut burst = Burst::new();
    burst.push(datagram(pool, mac, b"nonsense")).unwrap();
    let mut asked = datagram(pool, mac, b"filled in");
    asked.request(&REQUEST);
    burst.push(asked).unwrap();
    assert_eq!(port.tx_queues[0].burst(&mut burst), 2);
    let mut payload = [0; 64];
    let len = socket.recv(&mut payload).unwrap();
    assert_eq!(&payload[..len], b"filled in");
    let nothing = socket.recv(&mut payload).unwrap_err();
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock, "the other packet must not arrive");
}

/// What the kernel sends arrives with a verdict on both checksums.
fn received_packets_come_with_a_verdict(port: &mut Started, socket: &UdpSocket) {
    socket.send_to(b"from the kernel", (OURS, PORT)).unwrap();
    let mut burst = Burst::new();
    let packet = (0..1000).find_map(|_| {
        port.rx_queues[0].burst(&mut burst);
        thread::sleep(Duration::from_millis(1));
        burst.drain().find(|mbuf| mbuf.data().get(HEADERS..) == Some(b"from the kernel"))
    });
    let packet = packet.unwrap();
    assert_eq!(packet.ip_checksum(), ChecksumStatus::Good);
    assert_eq!(packet.l4_checksum(), ChecksumStatus::Good);
}

#[test]
fn checksums_are_filled_in_and_checked() {
    // The main lcore first: the EAL's threads stay in the machine's network namespace.
    let eal = Eal::builder().memory(Memory::Small { mib: 64 }).init().unwrap();
    // SAFETY: changes the network namespace of this thread alone; it ends with its last user.
    let status = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(status, 0, "needs root: {}", io::Error::last_os_error());
    let pool = Pool::new(eal, &PoolConfig { mbufs: 4_095, ..PoolConfig::named("tap") }).unwrap();
    let device = Device::open(eal, &devargs::tap(0, "cvtap")).unwrap();
    let mut port = device.start(&PortConfig::default(), &[pool]).unwrap();
    let offloads = port.port.offloads();
    assert!(offloads.tx_ip_checksum && offloads.tx_udp_checksum && offloads.rx_l4_checksum);
    ip("link set cvtap up");
    ip("addr add 10.9.0.1/24 dev cvtap");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev cvtap nud permanent");
    let socket = UdpSocket::bind((KERNEL, PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    the_kernel_takes_what_was_filled_in(&mut port, &pool, &socket);
    received_packets_come_with_a_verdict(&mut port, &socket);
    assert_eq!(port.tx_queues[0].refused(), 0);
}
