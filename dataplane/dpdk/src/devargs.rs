//! Device strings for the virtual devices that culvert uses, so that their spelling is in one
//! place.
//!
//! Each takes a number that makes the device's name unique in the process.

use std::path::Path;

/// A kernel interface through AF_PACKET sockets, with as many queue pairs (the kernel spreads flows
/// over them by hash).
#[must_use]
pub fn af_packet(number: u16, interface: &str, queues: u16) -> String {
    format!("net_af_packet{number},iface={interface},qpairs={queues}")
}

/// A loop: what is sent on queue n is received on queue n.
#[must_use]
pub fn ring(number: u16) -> String {
    format!("net_ring{number}")
}

/// A source of empty frames of `size` octets without end, and a sink.
#[must_use]
pub fn null(number: u16, size: u16) -> String {
    format!("net_null{number},size={size}")
}

/// A sink only: it receives nothing.
#[must_use]
pub fn sink(number: u16) -> String {
    format!("net_null{number},no-rx=1")
}

/// A source of the packets of a capture file again and again, from memory; what is sent is dropped.
/// The file must have packets, and all of them are loaded into mbufs of the port's pool.
#[must_use]
pub fn replay(number: u16, capture: &Path) -> String {
    format!("net_pcap{number},rx_pcap={},infinite_rx=1", capture.display())
}

/// Receives the packets of one capture file once and writes what is sent into another.
#[must_use]
pub fn capture(number: u16, from: &Path, into: &Path) -> String {
    format!("net_pcap{number},rx_pcap={},tx_pcap={}", from.display(), into.display())
}

/// A kernel interface of this name, made for the purpose (TUN/TAP): what is sent arrives there.
#[must_use]
pub fn tap(number: u16, interface: &str) -> String {
    format!("net_tap{number},iface={interface}")
}

/// One end of a link within the machine: the driver's side (virtio), to be opened after the host's side
/// ([`vhost`]) with the same socket.
#[must_use]
pub fn virtio_user(number: u16, socket: &Path) -> String {
    format!("net_virtio_user{number},path={},queue_size=1024", socket.display())
}

/// The host's side of such a link. It takes and gives packets that are longer than the MTU (TSO).
#[must_use]
pub fn vhost(number: u16, socket: &Path) -> String {
    format!("net_vhost{number},iface={},tso=1", socket.display())
}
