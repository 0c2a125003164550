//! smoltcp's sockets as the other end: a foreign TCP that the engine must get on with.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use culvert_tcpstack::{CloseReason, ConnId, Event, Instant};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant as SmolInstant};
use smoltcp::wire::{HardwareAddress, IpListenEndpoint};

use crate::host::{Deliver, Host, Outbox};
use culvert_tcpstack::Packet;

/// Sockets that listen; connections beyond them are refused.
const LISTENERS: usize = 8;
/// Silence after which a socket gives up.
const TIMEOUT: Duration = Duration::from_secs(100);
/// Silence after which a socket asks.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Packets in and out of an interface.
pub struct Wire<'a, T> {
    /// The packet to be received.
    pub received: Option<&'a [u8]>,
    /// Takes what is sent.
    pub sent: &'a mut T,
    /// MTU and checksums.
    pub capabilities: &'a DeviceCapabilities,
}

/// What an IP device of 1500 octets can do.
#[must_use]
pub fn capabilities(checksum: ChecksumCapabilities) -> DeviceCapabilities {
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = 1500;
    capabilities.checksum = checksum;
    capabilities
}

/// A received packet.
pub struct Received<'a>(&'a [u8]);
/// Room for one to send.
pub struct Sending<'a, T>(&'a mut T);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl<T: culvert_tcpstack::Transmit> TxToken for Sending<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let (mut fill, mut result) = (Some(fill), None);
        self.0.packet(Packet { bytes: len, segment_bytes: None }, |room| {
            result = fill.take().map(|fill| fill(room));
        });
        // A device without memory: the packet is lost.
        result
            .or_else(|| fill.map(|fill| fill(&mut vec![0; len])))
            .unwrap_or_else(|| unreachable!("filled once"))
    }
}

impl<T: culvert_tcpstack::Transmit> Device for Wire<'_, T> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b, T>
    where
        Self: 'b;

    fn receive(&mut self, _: SmolInstant) -> Option<(Self::RxToken<'_>, Self::TxToken<'_>)> {
        Some((Received(self.received.take()?), Sending(self.sent)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Self::TxToken<'_>> {
        self.sent.has_room().then_some(Sending(self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// An interface that takes packets to any address.
#[must_use]
pub fn interface(capabilities: &DeviceCapabilities, seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut none = Outbox::default();
    let mut wire = Wire { received: None, sent: &mut none, capabilities };
    let mut interface = Interface::new(config, &mut wire, SmolInstant::ZERO);
    interface.set_any_ip(true);
    interface
}

/// The clock in smoltcp's terms.
#[must_use]
pub fn smol(now: Instant) -> SmolInstant {
    SmolInstant::from_micros(now.0.cast_signed())
}

struct Conn {
    handle: SocketHandle,
    originator: bool,
    opened: bool,
    closed: bool,
}

/// smoltcp's sockets behind one interface.
pub struct SmolHost {
    interface: Interface,
    capabilities: DeviceCapabilities,
    sockets: SocketSet<'static>,
    conns: Vec<Conn>,
    events: VecDeque<Event>,
    local: IpAddr,
    next_port: u16,
    now: Instant,
    outbox: Outbox,
}

impl SmolHost {
    /// Sockets at `local` that listen on 4500, with buffers of so many octets.
    #[must_use]
    pub fn new(local: IpAddr, buffer_bytes: usize, seed: u64) -> Self {
        let capabilities = capabilities(ChecksumCapabilities::default());
        let mut host = Self {
            interface: interface(&capabilities, seed),
            capabilities,
            sockets: SocketSet::new(Vec::new()),
            conns: Vec::new(),
            events: VecDeque::new(),
            local,
            next_port: 50_000 + (seed % 10_000) as u16,
            now: Instant::ZERO,
            outbox: Outbox::unlimited(),
        };
        for _ in 0..LISTENERS {
            let mut socket = socket(buffer_bytes);
            let any = IpListenEndpoint { addr: None, port: 4500 };
            if socket.listen(any).is_ok() {
                host.add(socket, false);
            }
        }
        host
    }

    fn add(&mut self, socket: tcp::Socket<'static>, originator: bool) -> ConnId {
        let handle = self.sockets.add(socket);
        self.conns.push(Conn { handle, originator, opened: false, closed: false });
        ConnId { index: self.conns.len() as u32 - 1, generation: 0 }
    }

    fn socket(&mut self, id: ConnId) -> Option<&mut tcp::Socket<'static>> {
        let conn = self.conns.get(id.index as usize).filter(|conn| !conn.closed)?;
        Some(self.sockets.get_mut(conn.handle))
    }

    /// Tells what the sockets have come to.
    fn notice(&mut self) {
        for (index, conn) in self.conns.iter_mut().enumerate() {
            let id = ConnId { index: index as u32, generation: 0 };
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(conn.handle);
            let open = matches!(socket.state(), tcp::State::Established | tcp::State::CloseWait);
            if open && !conn.opened {
                conn.opened = true;
                if let (Some(local), Some(remote)) =
                    (socket.local_endpoint(), socket.remote_endpoint())
                {
                    let originator = conn.originator;
                    let address =
                        |at: smoltcp::wire::IpEndpoint| SocketAddr::new(at.addr.into(), at.port);
                    let (local, remote) = (address(local), address(remote));
                    self.events.push_back(Event::Opened { id, local, remote, originator });
                }
            }
            if conn.closed || !(conn.opened || conn.originator) {
                continue;
            }
            if socket.can_recv() {
                self.events.push_back(Event::Readable(id));
            }
            let reason = match socket.state() {
                tcp::State::Closed | tcp::State::Listen if conn.opened => CloseReason::PeerReset,
                tcp::State::Closed => CloseReason::Refused,
                tcp::State::CloseWait if !socket.can_recv() => CloseReason::PeerClosed,
                _ => continue,
            };
            socket.close();
            conn.closed = true;
            self.events.push_back(Event::Closed { id, reason });
        }
    }

    fn poll(&mut self, now: Instant, packet: Option<&[u8]>) {
        self.now = now;
        let mut wire =
            Wire { received: packet, sent: &mut self.outbox, capabilities: &self.capabilities };
        self.interface.poll(smol(now), &mut wire, &mut self.sockets);
        // After a close nobody reads, and a full buffer would keep the peer from its FIN.
        for conn in self.conns.iter().filter(|conn| conn.closed) {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(conn.handle);
            while socket.recv(|octets| (octets.len(), octets.len())).is_ok_and(|read| read > 0) {}
        }
        self.notice();
    }
}

fn socket(buffer_bytes: usize) -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; buffer_bytes]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_timeout(Some(TIMEOUT));
    socket.set_keep_alive(Some(KEEPALIVE));
    socket.set_congestion_control(tcp::CongestionControl::Cubic);
    socket
}

impl Host for SmolHost {
    fn connect(&mut self, now: Instant, remote: SocketAddr) -> Option<ConnId> {
        self.now = now;
        let mut socket = socket(1 << 17);
        let local = IpListenEndpoint { addr: Some(self.local.into()), port: self.next_port };
        self.next_port += 1;
        socket.connect(self.interface.context(), remote, local).ok()?;
        Some(self.add(socket, true))
    }

    fn receive(&mut self, now: Instant, packet: &mut [u8], _: Deliver<'_>) {
        self.poll(now, Some(packet));
    }

    fn transmit(&mut self, now: Instant, out: &mut Outbox) {
        self.poll(now, None);
        out.packets.append(&mut self.outbox.packets);
    }

    fn deadline(&mut self) -> Option<Instant> {
        let at = self.interface.poll_at(smol(self.now), &self.sockets)?;
        Some(Instant(u64::try_from(at.total_micros()).unwrap_or(0)))
    }

    fn timeout(&mut self, now: Instant) {
        self.poll(now, None);
    }

    fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn read(&mut self, id: ConnId, read: &mut dyn FnMut(&mut [u8]) -> usize) -> usize {
        let Some(socket) = self.socket(id) else { return 0 };
        let lent = socket.recv(|octets| {
            let consumed = if octets.is_empty() { 0 } else { read(octets) };
            (consumed, consumed)
        });
        let consumed = lent.unwrap_or(0);
        self.notice();
        consumed
    }

    fn write(&mut self, id: ConnId, frame: &[u8]) -> bool {
        let Some(socket) = self.socket(id) else { return false };
        let room = socket.send_capacity() - socket.send_queue();
        room >= frame.len() && socket.send_slice(frame).is_ok_and(|sent| sent == frame.len())
    }

    fn write_urgent(&mut self, _: ConnId, _: &[u8]) -> bool {
        false
    }

    fn vouch(&mut self, _: ConnId) {}

    fn close(&mut self, id: ConnId) {
        self.end(id, CloseReason::LocalClosed, tcp::Socket::close);
    }

    fn abort(&mut self, id: ConnId) {
        self.end(id, CloseReason::LocalAborted, tcp::Socket::abort);
    }

    fn check(&self, _: &[ConnId]) -> Result<()> {
        Ok(())
    }

    fn check_empty(&mut self) -> Result<()> {
        Ok(())
    }
}

impl SmolHost {
    fn end(&mut self, id: ConnId, reason: CloseReason, how: fn(&mut tcp::Socket<'static>)) {
        if let Some(socket) = self.socket(id) {
            how(socket);
            self.conns[id.index as usize].closed = true;
            self.events.push_back(Event::Closed { id, reason });
        }
    }
}
