//! A flow of datagrams that runs while something else happens, with every single one accounted for:
//! the host on one side asks, the host on the other answers, and at the end it is known which
//! requests got no answer and which got more than one.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::command;
use crate::namespace::Namespace;

/// The UDP port of the answering host.
const PORT: u16 = 7001;
/// From one request to the next.
const INTERVAL: Duration = Duration::from_millis(5);
/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the answering host looks whether it is over.
const TICK: Duration = Duration::from_millis(50);
/// Octets of a request: an ordinary size that fits every tunnel.
const LEN: usize = 256;
/// Losses that a report names.
const NAMED_MAX: usize = 12;

/// A running flow. Dropping it ends it.
#[derive(Debug)]
pub struct Flow {
    shared: Arc<Shared>,
    asking: Option<JoinHandle<Result<Tally>>>,
    answering: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// No further requests.
    enough: AtomicBool,
    /// No further answers.
    over: AtomicBool,
    sent: AtomicU64,
    /// One more than the highest sequence number that was answered.
    answered: AtomicU64,
}

/// What became of a flow.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests sent.
    pub sent: usize,
    /// Requests without an answer: when each was sent, counted from the start.
    pub lost: Vec<Duration>,
    /// Answers beyond the first to a request.
    pub repeated: usize,
    /// The longest time between two answers.
    pub silence: Duration,
}

impl Flow {
    /// Starts to ask `to`, an address of the host `answerer`, two hundred times a second.
    pub fn start(asker: &Namespace, answerer: &Namespace, to: IpAddr) -> Result<Self> {
        let to = SocketAddr::new(to, PORT);
        let theirs = answerer.enter(|| UdpSocket::bind(to).context("the answering host's port"))?;
        theirs.set_read_timeout(Some(TICK))?;
        let ours = asker.enter(|| {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            Ok(socket.connect(to).map(|()| socket)?)
        })?;
        let shared = Arc::new(Shared::default());
        let [asker, answerer] = [(); 2].map(|()| Arc::clone(&shared));
        let asking = thread::spawn(move || {
            let tally = ask(&asker, &ours);
            asker.over.store(true, Ordering::Relaxed);
            tally
        });
        let answering = thread::spawn(move || answer(&answerer, &theirs));
        Ok(Self { shared, asking: Some(asking), answering: Some(answering) })
    }

    /// Waits until a request is answered that is sent from now on.
    pub fn wait_answer(&self, timeout: Duration) -> Result<()> {
        let from = self.shared.sent.load(Ordering::Relaxed);
        command::wait_until("the flow is answered", timeout, || {
            Ok(self.shared.answered.load(Ordering::Relaxed) > from)
        })
    }

    /// Ends it, once the last answers had time to come.
    pub fn stop(mut self) -> Result<Tally> {
        self.end()
    }

    fn end(&mut self) -> Result<Tally> {
        self.shared.enough.store(true, Ordering::Relaxed);
        let tally = self.asking.take().context("the flow has ended")?.join();
        let answered = self.answering.take().context("the flow has ended")?.join();
        answered.map_err(|_| anyhow!("the answering host panicked"))??;
        tally.map_err(|_| anyhow!("the asking host panicked"))?
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if self.asking.is_some() {
            // Whoever drops it does not care how it went.
            let _ = self.end();
        }
    }
}

impl Tally {
    /// Fails unless every request got exactly one answer.
    pub fn check_whole(&self) -> Result<()> {
        ensure!(self.lost.is_empty() && self.repeated == 0, "{self}");
        ensure!(self.sent > 0, "nothing was sent");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, lost, repeated, silence } = self;
        let named = &lost[..lost.len().min(NAMED_MAX)];
        write!(
            f,
            "{} of {sent} requests got no answer, {repeated} answers came again, the longest \
             silence was {silence:?}; the first losses were sent at {named:?}",
            lost.len()
        )
    }
}

/// One request.
struct Request {
    at: Duration,
    answers: usize,
}

fn ask(shared: &Shared, socket: &UdpSocket) -> Result<Tally> {
    let start = Instant::now();
    let mut requests: Vec<Request> = Vec::new();
    let (mut heard, mut silence) = (start, Duration::ZERO);
    let mut octets = [0; LEN];
    let mut end = None;
    loop {
        let enough = shared.enough.load(Ordering::Relaxed);
        let due = start + INTERVAL * u32::try_from(requests.len())?;
        if enough {
            let end = *end.get_or_insert_with(|| Instant::now() + PATIENCE);
            if Instant::now() >= end || requests.iter().all(|request| request.answers > 0) {
                break;
            }
        } else if Instant::now() >= due {
            send(socket, requests.len())?;
            requests.push(Request { at: start.elapsed(), answers: 0 });
            shared.sent.store(requests.len() as u64, Ordering::Relaxed);
        }
        let wait = due.saturating_duration_since(Instant::now()).clamp(INTERVAL / 50, INTERVAL);
        socket.set_read_timeout(Some(wait))?;
        let Some(sequence) = receive(socket, &mut octets)? else { continue };
        let request = requests.get_mut(sequence).context("an answer to what was not asked")?;
        request.answers += 1;
        silence = silence.max(heard.elapsed());
        heard = Instant::now();
        shared.answered.fetch_max(sequence as u64 + 1, Ordering::Relaxed);
    }
    let lost = requests.iter().filter(|request| request.answers == 0).map(|request| request.at);
    Ok(Tally {
        sent: requests.len(),
        lost: lost.collect(),
        repeated: requests.iter().map(|request| request.answers.saturating_sub(1)).sum(),
        silence,
    })
}

fn send(socket: &UdpSocket, sequence: usize) -> Result<()> {
    let mut octets = [0x5a; LEN];
    octets[..8].copy_from_slice(&(sequence as u64).to_be_bytes());
    match socket.send(&octets) {
        Ok(_) => Ok(()),
        // What a gateway says about an earlier request: that one is lost, this one is not sent
        // either, and both are counted.
        Err(error) if is_reported(&error) => Ok(()),
        Err(error) => Err(error).context("the asking host sends"),
    }
}

/// Takes one answer, which has to be as the request was.
fn receive(socket: &UdpSocket, octets: &mut [u8; LEN]) -> Result<Option<usize>> {
    match socket.recv(octets) {
        Ok(length) => {
            ensure!(length == LEN && octets[8..].iter().all(|o| *o == 0x5a), "a changed answer");
            let (sequence, _) = octets.split_first_chunk().context("a short answer")?;
            Ok(Some(usize::try_from(u64::from_be_bytes(*sequence))?))
        }
        Err(error) if is_silence(&error) || is_reported(&error) => Ok(None),
        Err(error) => Err(error).context("the asking host receives"),
    }
}

fn answer(shared: &Shared, socket: &UdpSocket) -> Result<()> {
    let mut octets = [0; LEN];
    while !shared.over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut octets) {
            // Where the answer has no way, it is missed by who waits for it.
            Ok((length, from)) => drop(socket.send_to(&octets[..length], from)),
            Err(error) if is_silence(&error) || is_reported(&error) => {}
            Err(error) => return Err(error).context("the answering host receives"),
        }
    }
    Ok(())
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Whether it tells of an ICMP message.
fn is_reported(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::PermissionDenied
    )
}
