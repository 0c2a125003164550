//! Traffic between the protected hosts: ping, and bulk transfers whose every octet is checked.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::command::{self, Output};
use crate::guest::ECHO_PORT;
use crate::namespace::Namespace;

/// The TCP port of bulk transfers.
const BULK_PORT: u16 = 7000;
/// A transfer that moves nothing for this long has failed.
const STALL: Duration = Duration::from_secs(20);
/// Octets of one write and one read.
const CHUNK: usize = 64 * 1024;

/// Sends `count` echo requests of `size` octets of data from `from` to `to`, five a second, and
/// returns how many were answered.
pub fn ping(from: &Namespace, to: IpAddr, count: u32, size: u16) -> Result<u32> {
    let line = format!("-n -i 0.2 -W 2 -c {count} -s {size} {to}");
    let output = ping_raw(from, &line)?;
    let received = output
        .stdout
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"))
        .and_then(|number| number.parse().ok());
    received.with_context(|| format!("ping {line}:\n{}{}", output.stdout, output.stderr))
}

/// Runs `ping` with any options, such as `-M do` for packets that must not be fragmented.
pub fn ping_raw(from: &Namespace, line: &str) -> Result<Output> {
    let mut command = from.command("ping");
    command.args(line.split_whitespace());
    command::output(command, "", command::TIMEOUT)
}

/// Pings until one is answered, at most for `timeout`: the first may be lost to address resolution.
pub fn ping_until_answered(from: &Namespace, to: IpAddr, timeout: Duration) -> Result<()> {
    command::wait_until(&format!("{to} answers {}", from.name()), timeout, || {
        Ok(ping_raw(from, &format!("-n -c 1 -W 1 {to}"))?.status.success())
    })
}

/// What a bulk transfer reached, seen by its receiver.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// Octets that arrived, every one as sent.
    pub octets: u64,
    /// From the first octet to the last.
    pub elapsed: Duration,
}

impl Transfer {
    /// Mbit/s of payload.
    pub fn megabits_per_second(self) -> f64 {
        self.octets as f64 * 8.0 / self.elapsed.as_secs_f64().max(1e-9) / 1e6
    }
}

/// Sends `octets` octets over TCP from a host to `to`, the address of another, and compares each
/// one on arrival. Fails at the first that differs, is missing or too many.
pub fn bulk(from: &Namespace, receiver: &Namespace, to: IpAddr, octets: u64) -> Result<Transfer> {
    let address = SocketAddr::new(to, BULK_PORT);
    let seed = octets ^ 0x5eed;
    let listener = receiver.enter(|| TcpListener::bind(address).context("bulk receiver"))?;
    listener.set_nonblocking(true)?;
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&listener, seed, octets));
        let sent = from.enter(|| send(address, seed, octets));
        let received = receiving.join().map_err(|_| anyhow!("the receiver panicked"))?;
        // The receiver's view is the more telling one: a wrong octet before a broken pipe.
        let received = received.with_context(|| match &sent {
            Ok(()) => "bulk receiver".to_owned(),
            Err(error) => format!("bulk receiver (the sender: {error:#})"),
        });
        received.and_then(|transfer| sent.map(|()| transfer))
    })
}

/// Sends `octets` octets over TCP from a host to the echo service of a guest at `to`, and compares each
/// one that comes back. Fails at the first that differs or is missing.
pub fn echo(from: &Namespace, to: IpAddr, octets: u64) -> Result<()> {
    let address = SocketAddr::new(to, ECHO_PORT);
    let stream = from.enter(|| {
        TcpStream::connect_timeout(&address, STALL).context("echo: the guest takes no connection")
    })?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let seed = octets ^ 0xec40;
    thread::scope(|scope| {
        let sending = scope.spawn(|| write_pattern(&stream, seed, octets));
        let received = compare(&stream, seed, octets).context("echo");
        let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))?;
        received.and(sent)
    })
}

fn send(address: SocketAddr, seed: u64, octets: u64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, STALL).context("bulk sender connects")?;
    stream.set_write_timeout(Some(STALL))?;
    write_pattern(&stream, seed, octets)?;
    // The receiver closes when it has compared everything.
    stream.set_read_timeout(Some(STALL))?;
    let mut end = [0];
    stream.read(&mut end).map(drop).context("bulk sender waits for the receiver's end")
}

/// Sends the octets that belong to `seed`, and after them the end of the stream.
fn write_pattern(mut stream: &TcpStream, seed: u64, octets: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut chunk = vec![0; CHUNK];
    let mut left = octets;
    while left > 0 {
        let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        pattern.fill(&mut chunk);
        stream
            .write_all(&chunk[..length])
            .with_context(|| format!("bulk sender stalled with {left} of {octets} octets left"))?;
        left -= length as u64;
    }
    Ok(stream.shutdown(std::net::Shutdown::Write)?)
}

fn receive(listener: &TcpListener, seed: u64, octets: u64) -> Result<Transfer> {
    let stream = accept(listener)?;
    stream.set_read_timeout(Some(STALL))?;
    let start = Instant::now();
    compare(&stream, seed, octets).context("bulk receiver")?;
    Ok(Transfer { octets, elapsed: start.elapsed() })
}

/// Reads to the end of the stream and compares with the octets that belong to `seed`.
fn compare(stream: &TcpStream, seed: u64, octets: u64) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut total = 0;
    loop {
        let length = read_chunk(stream, &mut chunk)
            .with_context(|| format!("stalled after {total} of {octets} octets"))?;
        pattern.fill(&mut expected);
        if chunk[..length] != expected[..length] {
            bail!("octets {total} to {} arrived changed", total + length as u64);
        }
        total += length as u64;
        if length < CHUNK {
            break;
        }
    }
    if total != octets {
        bail!("{total} octets arrived of {octets}");
    }
    Ok(())
}

/// Reads until `chunk` is full or the stream ends.
fn read_chunk(mut stream: &TcpStream, chunk: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match stream.read(&mut chunk[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let deadline = Instant::now() + STALL;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("bulk receiver accepts"),
        }
        if Instant::now() >= deadline {
            bail!("no connection within {STALL:?}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Octets that both ends can make from a seed and that repeat nowhere (SplitMix64).
struct Pattern {
    state: u64,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for piece in chunk.chunks_mut(8) {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
        }
    }
}
