//! The TCP engine behind the seam: smoltcp's sockets. Nothing of smoltcp's sockets and interface
//! is named outside this module.
//!
//! smoltcp's `Interface` scans every socket of a set for each packet. So each connection has a set
//! of its own with one socket in it, and one interface serves them all: a received packet is given
//! to the interface together with the set of its connection, which [`crate::table`] has found.
//! The interface itself keeps nothing of a connection.
//!
//! Sockets are recycled with their buffers, because the buffers cannot be taken out of one and a
//! worker's loop should not allocate. What smoltcp does not reset (the last acknowledgement seen,
//! a fast retransmit that was pending) is harmless to the next connection, whose sequence numbers
//! differ.

mod port;

use std::net::SocketAddr;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpListenEndpoint};

use self::port::Port;
use crate::api::Transmit;
use crate::config::StackConfig;
use crate::segment::{HOP_LIMIT, checksums};
use crate::time::Instant;

/// Sockets kept for new connections, with their buffers.
const SPARE_SOCKETS_MAX: usize = 256;

/// A socket and its buffers.
pub(crate) struct Socket {
    set: SocketSet<'static>,
    handle: SocketHandle,
    /// What went over the wire, as the engine itself does not tell.
    pub(crate) sent: Sent,
}

/// What the packets that a socket sent said last.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    /// Sequence number of our first octet: that of our SYN plus one.
    pub(crate) first: u32,
    /// Sequence number after the highest octet sent, FIN included.
    pub(crate) next: u32,
    /// Packets.
    pub(crate) segments: u64,
    /// The window of the last of them, as its header had it.
    pub(crate) window: u16,
    /// Whether the peer's last segment announced no window: what is sent now is a probe.
    pub(crate) peer_window_shut: bool,
}

/// How far a socket is, in the words of RFC 9293, 3.3.2 as far as they matter to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// LISTEN, after a handshake that a RST ended.
    Listen,
    /// SYN-SENT or SYN-RECEIVED.
    Handshake,
    /// ESTABLISHED.
    Open,
    /// CLOSE-WAIT: the peer's FIN came, ours is due.
    PeerClosed,
    /// FIN-WAIT-1, FIN-WAIT-2, CLOSING or LAST-ACK.
    Closing,
    /// TIME-WAIT.
    TimeWait,
    /// CLOSED, but a RST is still to be sent.
    Aborted,
    /// CLOSED, and nothing to be sent.
    Closed,
}

/// When a socket wants to be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Now,
    At(Instant),
    Never,
}

/// How [`Engine::transmit`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Everything that may be sent now has been.
    Done,
    /// The turn is over, and there may be more.
    Turn,
    /// The device takes no more.
    NoRoom,
}

/// What all sockets share.
pub(crate) struct Engine {
    interface: Interface,
    capabilities: DeviceCapabilities,
    spare: Vec<Socket>,
    /// For a frame that would wrap in the send buffer.
    scratch: Vec<u8>,
    rx_buffer_bytes: usize,
    tx_buffer_bytes: usize,
}

impl Engine {
    pub(crate) fn new(config: &StackConfig) -> Self {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(config.mtu);
        capabilities.checksum = checksums(config.tx_checksum);
        Self {
            interface: interface(&capabilities, 0),
            capabilities,
            spare: Vec::new(),
            scratch: Vec::new(),
            rx_buffer_bytes: config.rx_buffer_bytes,
            tx_buffer_bytes: config.tx_buffer_bytes,
        }
    }

    /// A socket in CLOSED.
    fn take_socket(&mut self) -> Socket {
        let mut socket = self.spare.pop().unwrap_or_else(|| {
            let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
            let socket =
                tcp::Socket::new(buffer(self.rx_buffer_bytes), buffer(self.tx_buffer_bytes));
            let mut set = SocketSet::new(Vec::with_capacity(1));
            let handle = set.add(socket);
            Socket { set, handle, sent: Sent::default() }
        });
        socket.sent = Sent::default();
        let tcp = socket.tcp_mut();
        // What waits in the send buffer are whole frames of other people's packets: waiting for
        // more of them (RFC 9293, 3.7.4) would only delay them.
        tcp.set_nagle_enabled(false);
        tcp.set_hop_limit(Some(HOP_LIMIT));
        tcp.set_congestion_control(tcp::CongestionControl::Cubic);
        socket
    }

    /// Takes a socket back, whatever its state. It sends nothing any more.
    pub(crate) fn give_back(&mut self, mut socket: Socket) {
        if self.spare.len() < SPARE_SOCKETS_MAX {
            socket.tcp_mut().abort();
            self.spare.push(socket);
        }
    }

    /// A socket that has received the SYN in `packet`, which is for `local`. `isn` must be a
    /// number that nobody can guess.
    pub(crate) fn accept(
        &mut self,
        now: Instant,
        local: SocketAddr,
        packet: &[u8],
        isn: u64,
        replies: &mut impl Transmit,
    ) -> Option<Socket> {
        let mut socket = self.take_socket();
        let endpoint = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
        if socket.tcp_mut().listen(endpoint).is_err() {
            return None;
        }
        // The initial sequence number comes from the interface's generator, which is weak and
        // shared by all connections. An interface that lives for this one packet and whose
        // generator starts from an unguessable number gives an unguessable one (RFC 6528, 3).
        let mut interface = interface(&self.capabilities, isn);
        let mut port = Port::new(&self.capabilities, &mut socket.sent, replies).with(packet);
        let _ = interface.poll_ingress_single(smol(now), &mut port, &mut socket.set);
        Some(socket)
    }

    /// A socket that will send a SYN from `local` to `remote`, two addresses of one family.
    pub(crate) fn connect(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        isn: u64,
    ) -> Option<Socket> {
        let mut socket = self.take_socket();
        let mut interface = interface(&self.capabilities, isn);
        let local = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
        let connected = socket.tcp_mut().connect(interface.context(), remote, local);
        connected.is_ok().then_some(socket)
    }

    /// Gives a packet to the socket that it is for. At most one answer goes to `replies`.
    pub(crate) fn receive(
        &mut self,
        now: Instant,
        socket: &mut Socket,
        packet: &[u8],
        replies: &mut impl Transmit,
    ) {
        let mut port = Port::new(&self.capabilities, &mut socket.sent, replies).with(packet);
        let _ = self.interface.poll_ingress_single(smol(now), &mut port, &mut socket.set);
    }

    /// Sends what the socket may send now, at most `segments_max` packets.
    pub(crate) fn transmit(
        &mut self,
        now: Instant,
        socket: &mut Socket,
        segments_max: u64,
        to: &mut impl Transmit,
    ) -> Progress {
        let until = socket.sent.segments + segments_max;
        loop {
            let before = socket.sent.segments;
            let mut port = Port::new(&self.capabilities, &mut socket.sent, to);
            self.interface.poll_egress(smol(now), &mut port, &mut socket.set);
            let refused = port.refused();
            if refused {
                return Progress::NoRoom;
            } else if socket.sent.segments == before {
                return Progress::Done;
            } else if socket.sent.segments >= until {
                return Progress::Turn;
            }
        }
    }

    /// When the socket wants to send something, if nothing comes in.
    pub(crate) fn due(&mut self, now: Instant, socket: &Socket) -> Due {
        match self.interface.poll_at(smol(now), &socket.set) {
            None => Due::Never,
            Some(at) => match u64::try_from(at.total_micros()) {
                Ok(at) if at > now.0 => Due::At(Instant(at)),
                _ => Due::Now,
            },
        }
    }

    /// Writes `len` octets at most into the send buffer, at once or not at all.
    /// `None` if there is no room for `len`.
    pub(crate) fn send_with(
        &mut self,
        socket: &mut Socket,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> Option<usize> {
        if socket.free() < len {
            return None;
        }
        let tcp = socket.tcp_mut();
        // smoltcp lends the part of its ring up to where it wraps.
        let direct = tcp.send(|window| match window.get_mut(..len) {
            Some(room) => {
                let written = write(room).min(len);
                (written, Ok(written))
            }
            None => (0, Err(write)),
        });
        match direct {
            Ok(Ok(written)) => Some(written),
            Ok(Err(write)) => {
                if self.scratch.len() < len {
                    self.scratch.resize(len, 0);
                }
                let written = write(&mut self.scratch[..len]).min(len);
                tcp.send_slice(&self.scratch[..written]).ok()
            }
            Err(_) => None,
        }
    }
}

impl Socket {
    pub(crate) fn state(&self) -> State {
        let tcp = self.tcp();
        match tcp.state() {
            tcp::State::Listen => State::Listen,
            tcp::State::SynSent | tcp::State::SynReceived => State::Handshake,
            tcp::State::Established => State::Open,
            tcp::State::CloseWait => State::PeerClosed,
            tcp::State::FinWait1
            | tcp::State::FinWait2
            | tcp::State::Closing
            | tcp::State::LastAck => State::Closing,
            tcp::State::TimeWait => State::TimeWait,
            tcp::State::Closed if tcp.remote_endpoint().is_some() => State::Aborted,
            tcp::State::Closed => State::Closed,
        }
    }

    /// Lends the octets that are in order, up to where the ring wraps; `read` says how many of
    /// them it consumed.
    pub(crate) fn recv(&mut self, read: impl FnOnce(&mut [u8]) -> usize) -> usize {
        let lent = self.tcp_mut().recv(|octets| {
            let consumed = if octets.is_empty() { 0 } else { read(octets).min(octets.len()) };
            (consumed, consumed)
        });
        lent.unwrap_or(0)
    }

    /// Octets that are in order and not consumed.
    pub(crate) fn unread(&self) -> usize {
        self.tcp().recv_queue()
    }

    /// Octets that may still arrive before some are consumed.
    pub(crate) fn room(&self) -> usize {
        self.tcp().recv_capacity() - self.tcp().recv_queue()
    }

    /// Octets that the peer has not acknowledged, sent or not.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.tcp().send_queue()
    }

    /// Octets that [`Engine::send_with`] would take.
    pub(crate) fn free(&self) -> usize {
        let tcp = self.tcp();
        if tcp.may_send() { tcp.send_capacity() - tcp.send_queue() } else { 0 }
    }

    /// Sends what is in the send buffer and then FIN.
    pub(crate) fn close(&mut self) {
        self.tcp_mut().close();
    }

    /// Sends a RST and forgets the rest.
    pub(crate) fn abort(&mut self) {
        self.tcp_mut().abort();
    }

    fn tcp(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    fn tcp_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }
}

/// An interface that takes packets to any address: whose they are has been decided before.
fn interface(capabilities: &DeviceCapabilities, random_seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = random_seed;
    let mut interface = Interface::new(config, &mut port::Idle(capabilities), SmolInstant::ZERO);
    interface.set_any_ip(true);
    interface
}

fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(i64::try_from(now.0).unwrap_or(i64::MAX))
}
