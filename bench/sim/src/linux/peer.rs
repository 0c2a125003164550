//! Linux's ends: sockets of threads inside a namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, Result, ensure};
use culvert_lab::namespace::Namespace;

/// Octets of one read or write.
const CHUNK: usize = 64 << 10;
/// A socket on which nothing moves for so long has failed.
const STALL: Duration = Duration::from_secs(20);

/// How often a thread that waits looks whether it should end.
const SLICE: Duration = Duration::from_millis(200);

/// The octet at a place of every stream.
#[must_use]
pub fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

/// Fills `room` with the pattern from `at` on.
fn fill(room: &mut [u8], at: u64) {
    for (octet, place) in room.iter_mut().zip(at..) {
        *octet = pattern(place);
    }
}

/// What is known of a transfer while it runs.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    octets: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Flow {
    /// Octets that the receiver has, all of the pattern.
    #[must_use]
    pub fn octets(&self) -> u64 {
        self.octets.load(Ordering::Relaxed)
    }

    /// Whether its thread has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// The same for the thread at the other end: told to stop together, counted apart.
    #[must_use]
    pub fn linked(other: &Self) -> Self {
        Self { stop: Arc::clone(&other.stop), ..Self::default() }
    }

    /// Tells its thread to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn run(self, work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let result = work(&self);
        self.ended.store(true, Ordering::Relaxed);
        result
    }
}

/// Accepts one connection and reads it to its end, or until told to stop, on the calling thread.
///
/// # Errors
/// Nothing comes, or something else than the pattern.
pub fn receive(listener: &TcpListener, flow: Flow) -> Result<()> {
    flow.run(|flow| {
        let (mut stream, _) = listener.accept().context("nobody connects")?;
        stream.set_read_timeout(Some(SLICE))?;
        let mut moved = Clock::now();
        let (mut octets, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut at = 0u64;
        while !flow.stop.load(Ordering::Relaxed) {
            let read = match stream.read(&mut octets) {
                Ok(0) => return Ok(()),
                Err(_) if flow.stop.load(Ordering::Relaxed) => return Ok(()),
                Err(error) if waits(&error) && moved.elapsed() < STALL => continue,
                read => read.with_context(|| format!("after {at} octets"))?,
            };
            fill(&mut right[..read], at);
            ensure!(octets[..read] == right[..read], "not what was sent, after octet {at}");
            at += read as u64;
            moved = Clock::now();
            flow.octets.store(at, Ordering::Relaxed);
        }
        Ok(())
    })
}

/// Listens inside a namespace.
///
/// # Errors
/// The address is in use.
pub fn listen(namespace: &Namespace, at: SocketAddr, control: &str) -> Result<TcpListener> {
    namespace.enter(|| {
        let listener = TcpListener::bind(at)?;
        rustix::net::sockopt::set_tcp_congestion(&listener, control)?;
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&listener, timeout, Some(STALL))?;
        Ok(listener)
    })
}

/// Connects with a congestion control and sends `octets` of the pattern and FIN, or stops earlier
/// if told to, on the calling thread, which moves into the namespace.
///
/// # Errors
/// The connection fails.
pub fn send(
    namespace: &Namespace,
    to: SocketAddr,
    control: &str,
    octets: u64,
    flow: Flow,
) -> Result<()> {
    namespace.move_thread()?;
    flow.run(|flow| {
        use rustix::net::{AddressFamily, SocketType, connect, socket};
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket(family, SocketType::STREAM, None)?;
        rustix::net::sockopt::set_tcp_congestion(&socket, control)?;
        connect(&socket, &to).context("cannot connect")?;
        let mut stream = TcpStream::from(socket);
        stream.set_write_timeout(Some(SLICE))?;
        let mut moved = Clock::now();
        // Every chunk begins with the pattern's first octet, or nearly: one period more than needed.
        let mut ready = vec![0; CHUNK + 251];
        fill(&mut ready, 0);
        let mut at = 0;
        while at < octets && !flow.stop.load(Ordering::Relaxed) {
            let start = (at % 251) as usize;
            let len = (CHUNK as u64).min(octets - at) as usize;
            match stream.write(&ready[start..start + len]) {
                Err(_) if flow.stop.load(Ordering::Relaxed) => break,
                Err(error) if waits(&error) && moved.elapsed() < STALL => continue,
                written => at += written.with_context(|| format!("after {at} octets"))? as u64,
            }
            moved = Clock::now();
        }
        Ok(())
    })
}

fn waits(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
