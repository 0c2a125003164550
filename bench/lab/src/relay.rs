//! A relay that makes a foreign TCP peer of an IKE daemon that only speaks UDP (RFC 9329).
//!
//! The daemon sends and receives datagrams in the format of UDP port 4500 (RFC 3948): ESP as it
//! is, IKE behind four zero octets. RFC 9329 keeps that content and puts a 16-bit length before it
//! that counts itself, so the relay translates without understanding: prefix once, length on, length
//! off.
//!
//! ```text
//! charon ── UDP 4500 ──▶ [relay: IKETCP, length] ── TCP 4500 ──▶ gateway
//! ```
//!
//! It is written apart from the product's own framing on purpose: both ends of a test must not
//! share a misunderstanding.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::namespace::Namespace;

/// What the originator of a TCP connection sends before anything else (RFC 9329, section 4).
pub const PREFIX: &[u8; 6] = b"IKETCP";
/// UDP and TCP port of encapsulated IKE and ESP.
pub const PORT: u16 = 4500;
/// Largest datagram that a frame can carry: its 16-bit length counts the length's own two octets.
const DATAGRAM_MAX: usize = u16::MAX as usize - 2;
/// How often a waiting thread looks whether the relay has ended.
const TICK: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most TCP connections that a responder takes at a time.
const CONNECTIONS_MAX: usize = 64;

/// A running relay. Dropping it closes its connections.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Where an originator's daemon sends its datagrams; a responder's TCP address.
    pub address: SocketAddr,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    connections: AtomicU64,
    to_tcp: AtomicU64,
    to_udp: AtomicU64,
}

/// What a relay has carried so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// TCP connections opened or accepted.
    pub connections: u64,
    /// Datagrams that became frames.
    pub to_tcp: u64,
    /// Frames that became datagrams.
    pub to_udp: u64,
}

impl Relay {
    /// Originator: takes the daemon's datagrams on a UDP port of `local`, an address in `namespace`,
    /// and carries them in a TCP connection to `remote`, which it opens with the first datagram and
    /// again when it was lost.
    pub fn originate(namespace: &Namespace, local: Ipv4Addr, remote: SocketAddr) -> Result<Self> {
        let socket = namespace.enter(|| Ok(UdpSocket::bind((local, 0))?))?;
        socket.set_read_timeout(Some(TICK))?;
        let address = socket.local_addr()?;
        Self::start(namespace, address, move |shared| originate(&shared, &socket, remote))
    }

    /// Responder: accepts TCP connections on `listen` in `namespace` and carries their frames to
    /// UDP port 4500 of `daemon`, each connection from a UDP port of its own.
    pub fn respond(namespace: &Namespace, listen: SocketAddr, daemon: Ipv4Addr) -> Result<Self> {
        let listener = namespace.enter(|| Ok(TcpListener::bind(listen)?))?;
        listener.set_nonblocking(true)?;
        Self::start(namespace, listen, move |shared| respond(&shared, &listener, daemon))
    }

    fn start(
        namespace: &Namespace,
        address: SocketAddr,
        work: impl FnOnce(Arc<Shared>) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        // Sockets that the thread makes later have to be in the namespace, too.
        let thread = namespace.enter(move || {
            Ok(thread::spawn(move || {
                if let Err(error) = work(theirs) {
                    eprintln!("relay: {error:#}");
                }
            }))
        })?;
        Ok(Self { shared, thread: Some(thread), address })
    }

    /// What it has carried so far.
    pub fn carried(&self) -> Carried {
        Carried {
            connections: self.shared.connections.load(Ordering::Relaxed),
            to_tcp: self.shared.to_tcp.load(Ordering::Relaxed),
            to_udp: self.shared.to_udp.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("relay: its thread panicked");
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// The originator's life: one connection at a time, opened when the daemon has something to say.
fn originate(shared: &Arc<Shared>, socket: &UdpSocket, remote: SocketAddr) -> Result<()> {
    let mut datagram = vec![0; DATAGRAM_MAX];
    let mut connection: Option<(TcpStream, JoinHandle<()>)> = None;
    while !shared.stopped() {
        let Some((length, daemon)) = receive(socket, &mut datagram)? else { continue };
        let datagram = &datagram[..length];
        if is_keepalive(datagram) {
            continue;
        }
        if connection.as_ref().is_some_and(|(_, thread)| thread.is_finished()) {
            connection = None;
        }
        let mut octets = Vec::with_capacity(PREFIX.len() + 2 + length);
        if connection.is_none() {
            let Some(stream) = open(shared, remote) else { continue };
            let thread = carry_down(shared, &stream, socket, daemon)?;
            connection = Some((stream, thread));
            // The prefix goes in one segment with the first message: some peers read it at once.
            octets.extend_from_slice(PREFIX);
        }
        append_frame(&mut octets, datagram)?;
        let Some((stream, _)) = connection.as_mut() else { continue };
        match stream.write_all(&octets) {
            Ok(()) => drop(shared.to_tcp.fetch_add(1, Ordering::Relaxed)),
            // The next datagram opens a new connection.
            Err(_) => connection = None,
        }
    }
    if let Some((stream, thread)) = connection {
        close(&stream, thread);
    }
    Ok(())
}

/// Opens the TCP connection; a refusal is the peer's right, the daemon will send again.
fn open(shared: &Shared, remote: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&remote, CONNECT_TIMEOUT).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(TICK)).ok()?;
    shared.connections.fetch_add(1, Ordering::Relaxed);
    Some(stream)
}

/// Starts the thread that turns `stream`'s frames into datagrams to `daemon`.
fn carry_down(
    shared: &Arc<Shared>,
    stream: &TcpStream,
    socket: &UdpSocket,
    daemon: SocketAddr,
) -> Result<JoinHandle<()>> {
    let (shared, mut stream, socket) =
        (Arc::clone(shared), stream.try_clone()?, socket.try_clone()?);
    Ok(thread::spawn(move || {
        let ended = frames_to_datagrams(&shared, &mut stream, &socket, daemon);
        // Whatever ended it, the other direction has to notice.
        let _ = stream.shutdown(Shutdown::Both);
        if let Err(error) = ended
            && !shared.stopped()
        {
            eprintln!("relay: connection ended: {error:#}");
        }
    }))
}

fn close(stream: &TcpStream, thread: JoinHandle<()>) {
    // It may be closed already.
    let _ = stream.shutdown(Shutdown::Both);
    let _ = thread.join();
}

/// The responder's life: accepts connections, two threads for each.
fn respond(shared: &Arc<Shared>, listener: &TcpListener, daemon: Ipv4Addr) -> Result<()> {
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stopped() {
        connections.retain(|thread| !thread.is_finished());
        match listener.accept() {
            Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                let shared = Arc::clone(shared);
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.push(thread::spawn(move || {
                    if let Err(error) = serve(&shared, stream, daemon)
                        && !shared.stopped()
                    {
                        eprintln!("relay: connection ended: {error:#}");
                    }
                }));
            }
            Ok((stream, _)) => drop(stream),
            Err(error) if is_timeout(&error) => thread::sleep(TICK / 10),
            Err(error) => return Err(error).context("accept"),
        }
    }
    for thread in connections {
        thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?;
    }
    Ok(())
}

/// One accepted connection: prefix first, then frames both ways until it closes.
fn serve(shared: &Arc<Shared>, mut stream: TcpStream, daemon: Ipv4Addr) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut prefix = [0; PREFIX.len()];
    read_exact(shared, &mut stream, &mut prefix)?;
    if &prefix != PREFIX {
        bail!("not the prefix: {prefix:02x?}");
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((daemon, PORT))?;
    socket.set_read_timeout(Some(TICK))?;
    let down = carry_down(shared, &stream, &socket, (daemon, PORT).into())?;
    let mut datagram = vec![0; DATAGRAM_MAX];
    while !shared.stopped() && !down.is_finished() {
        let Some((length, _)) = receive(&socket, &mut datagram)? else { continue };
        if is_keepalive(&datagram[..length]) {
            continue;
        }
        let mut octets = Vec::with_capacity(2 + length);
        append_frame(&mut octets, &datagram[..length])?;
        stream.write_all(&octets)?;
        shared.to_tcp.fetch_add(1, Ordering::Relaxed);
    }
    close(&stream, down);
    Ok(())
}

/// Reads frames until the connection ends, and sends the content of each to `daemon`.
fn frames_to_datagrams(
    shared: &Shared,
    stream: &mut TcpStream,
    socket: &UdpSocket,
    daemon: SocketAddr,
) -> Result<()> {
    let connected = socket.peer_addr().is_ok();
    let mut content = vec![0; DATAGRAM_MAX];
    loop {
        let mut length = [0; 2];
        read_exact(shared, stream, &mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        let Some(content_length) = length.checked_sub(2) else {
            bail!("a frame of length {length}");
        };
        let content = &mut content[..content_length];
        read_exact(shared, stream, content)?;
        // An empty frame and a keepalive mean nothing in a datagram (RFC 9329, sections 3 and 6.6).
        if content.is_empty() || is_keepalive(content) {
            continue;
        }
        let sent = if connected { socket.send(content) } else { socket.send_to(content, daemon) };
        if sent.is_ok() {
            shared.to_udp.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Appends `datagram` as a frame.
fn append_frame(octets: &mut Vec<u8>, datagram: &[u8]) -> Result<()> {
    let length = u16::try_from(datagram.len() + 2).context("a datagram too long for a frame")?;
    octets.extend_from_slice(&length.to_be_bytes());
    octets.extend_from_slice(datagram);
    Ok(())
}

/// The one-octet NAT keepalive of RFC 3948, 2.3, which has no place in a stream.
fn is_keepalive(datagram: &[u8]) -> bool {
    datagram == [0xff]
}

fn receive(socket: &UdpSocket, datagram: &mut [u8]) -> Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(datagram) {
        Ok(received) => Ok(Some(received)),
        // An ICMP "port unreachable" from a daemon that is not up yet shows as a refusal here.
        Err(error) if is_timeout(&error) || error.kind() == ErrorKind::ConnectionRefused => {
            Ok(None)
        }
        Err(error) => Err(error).context("UDP receive"),
    }
}

/// Fills `buffer`, waiting as long as the connection and the relay live.
fn read_exact(shared: &Shared, stream: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => bail!("the peer closed the connection"),
            Ok(read) => filled += read,
            Err(error) if is_timeout(&error) && !shared.stopped() => {}
            Err(error) => return Err(error).context("TCP receive"),
        }
    }
    Ok(())
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
