//! The control socket's server.
//!
//! Each client has a task that reads its requests, one that writes what is for it, and one for each
//! request that is open. Answers go through a short queue: an answer is made no faster than its
//! client reads, and a client that does not read at all is hung up on. So no client holds up the
//! gateway or another client, and none makes it grow.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_api::{
    API_VERSION, Body, Code, Command, End, Event, Hello, LineBuffer, Outcome, REQUEST_OCTETS_MAX,
    Refusal, Reply, Request, Row, to_line,
};
use culvert_dataplane_config::Source;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::config::Config;
use crate::engine::{Begun, Engine};
use crate::log::Scope;

/// Most clients at once.
const CLIENTS_MAX: usize = 64;
/// Most requests of one client at once.
const REQUESTS_MAX: usize = 8;
/// Lines that wait for a client at most.
const QUEUE_LINES_MAX: usize = 64;
/// How long a client may take to read what fills its socket.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// Octets read at once.
const CHUNK_OCTETS: usize = 4096;
/// How often a client that has ended its requests is looked at: whether it still waits for answers.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The engine, and the way to tell its loop that there is something to do.
#[derive(Clone)]
pub struct Shared {
    /// The engine. Never held across an await.
    pub engine: Rc<RefCell<Engine>>,
    /// Wakes the loop.
    pub wake: Rc<Notify>,
    /// Which reading of the configuration was begun last, and which one was applied last.
    pub readings: Rc<Cell<Readings>>,
}

/// Readings of the configuration, in the order in which they were begun.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readings {
    begun: u64,
    done: u64,
}

/// Serves clients for ever. Must run within a `LocalSet`.
pub async fn serve(listener: UnixListener, shared: Shared) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Such as too many open files: trying again at once would spin.
                tracing::warn!(%error, "the control socket cannot accept a client");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, clients) = (shared.clone(), Arc::clone(&clients));
        let count = clients.fetch_add(1, Ordering::Relaxed);
        tokio::task::spawn_local(async move {
            if let Err(error) = client(stream, shared, count >= CLIENTS_MAX).await {
                tracing::debug!(%error, "a client of the control socket is gone");
            }
            clients.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One client, until it or the gateway hangs up.
async fn client(stream: UnixStream, shared: Shared, is_crowded: bool) -> io::Result<()> {
    let (reader, writer) = stream.into_split();
    let (lines, queue) = mpsc::channel(QUEUE_LINES_MAX);
    let writing = write(writer, queue);
    let reading = async move {
        let hello = Hello { culvert: env!("CARGO_PKG_VERSION").to_owned(), api: API_VERSION };
        send(&lines, &hello).await?;
        if is_crowded {
            let reason = format!("{CLIENTS_MAX} clients are connected already: try again later");
            return refuse(&lines, 0, Refusal::new(Code::Busy, reason)).await;
        }
        read(reader, lines, shared).await
    };
    // A writer that ends first has found the client gone, or too slow: the reader is dropped with
    // all its requests.
    tokio::pin!(writing);
    tokio::select! {
        written = &mut writing => return written,
        read = reading => read?,
    }
    writing.await
}

/// Writes lines until there will be no more.
async fn write(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(line) = queue.recv().await {
        let written = tokio::time::timeout(WRITE_PATIENCE, writer.write_all(&line)).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    Ok(())
}

/// Reads requests until the client ends them, then waits for the answers that are still open.
async fn read(
    mut reader: OwnedReadHalf,
    lines: mpsc::Sender<Vec<u8>>,
    shared: Shared,
) -> io::Result<()> {
    let mut buffer = LineBuffer::new(REQUEST_OCTETS_MAX);
    let mut requests = JoinSet::new();
    // It may hold secrets.
    let mut chunk = Zeroizing::new([0; CHUNK_OCTETS]);
    loop {
        let length = reader.read(&mut chunk[..]).await?;
        if length == 0 {
            break;
        }
        buffer.feed(chunk.get(..length).unwrap_or_default());
        loop {
            let line = match buffer.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => {
                    return refuse(&lines, 0, Refusal::new(Code::BadRequest, error.to_string()))
                        .await;
                }
            };
            while requests.try_join_next().is_some() {}
            match Request::parse(line) {
                Err(reply) => send(&lines, &reply).await?,
                Ok(request) if requests.len() >= REQUESTS_MAX => {
                    let reason = format!("{REQUESTS_MAX} requests are open already");
                    refuse(&lines, request.id, Refusal::new(Code::Busy, reason)).await?;
                }
                Ok(request) => {
                    requests.spawn_local(answer(request, lines.clone(), shared.clone()));
                }
            }
        }
    }
    tokio::select! {
        () = async { while requests.join_next().await.is_some() {} } => Ok(()),
        // What it has asked for may take hours, or never come.
        gone = hung_up(&reader) => gone,
    }
}

/// Waits until a client that has ended its requests has closed altogether.
async fn hung_up(reader: &OwnedReadHalf) -> io::Result<()> {
    let stream: &UnixStream = reader.as_ref();
    while !stream.ready(Interest::WRITABLE).await?.is_write_closed() {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// Answers one request. Who asked may be gone meanwhile, which is no error.
async fn answer(request: Request, lines: mpsc::Sender<Vec<u8>>, shared: Shared) {
    let Request { id, command } = request;
    let result = match command {
        Command::Events { follow } => events(id, follow, &lines, &shared).await,
        Command::Initiate { .. }
        | Command::Terminate { .. }
        | Command::Rekey { .. }
        | Command::Reauthenticate { .. }
        | Command::Move { .. } => act(id, &command, &lines, &shared).await,
        Command::Log { connection, peer, level } => {
            let scope = connection.map(Scope::Connection).or(peer.map(Scope::Peer));
            let set = match level {
                Some(level) => shared.engine.borrow_mut().set_log(scope, &level),
                None => Ok(shared.engine.borrow().log_levels()),
            };
            match set {
                Ok(levels) => rows(id, levels, &lines).await,
                Err(refusal) => refuse(&lines, id, refusal).await,
            }
        }
        Command::Reload => configured(id, reload(&shared).await, &lines).await,
        Command::Load { name, text } => {
            let done = shared.engine.borrow_mut().load(&name, text.into_text());
            configured(id, done, &lines).await
        }
        Command::Unload { what } => {
            let done = shared.engine.borrow_mut().unload(&what);
            configured(id, done, &lines).await
        }
        Command::Status
        | Command::Connections
        | Command::Sas { .. }
        | Command::Tcp
        | Command::Counters { .. } => {
            let found = shared.engine.borrow().rows(&command);
            match found {
                Ok(found) => rows(id, found, &lines).await,
                Err(refusal) => refuse(&lines, id, refusal).await,
            }
        }
    };
    shared.wake.notify_one();
    if let Err(error) = result {
        tracing::debug!(%error, id, "a request was not answered to its end");
    }
}

async fn rows(id: u64, rows: Vec<Row>, lines: &mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let count = rows.len() as u64;
    for row in rows {
        send(lines, &Reply { id, body: Body::Row(Box::new(row)) }).await?;
    }
    send(lines, &Reply { id, body: Body::End(End { rows: count }) }).await
}

async fn events(
    id: u64,
    follow: bool,
    lines: &mpsc::Sender<Vec<u8>>,
    shared: &Shared,
) -> io::Result<()> {
    let (latest, mut new) = shared.engine.borrow().follow();
    let mut count = 0;
    let reply = |event: Event| Reply { id, body: Body::Event(Box::new(event)) };
    for event in latest {
        send(lines, &reply(event)).await?;
        count += 1;
    }
    if !follow {
        return send(lines, &Reply { id, body: Body::End(End { rows: count }) }).await;
    }
    loop {
        match new.recv().await {
            Ok(event) => send(lines, &reply(event)).await?,
            Err(RecvError::Closed) => break,
            Err(RecvError::Lagged(missed)) => {
                let reason = format!("{missed} events were missed: read them faster");
                return refuse(lines, id, Refusal::new(Code::Busy, reason)).await;
            }
        }
        count += 1;
    }
    send(lines, &Reply { id, body: Body::End(End { rows: count }) }).await
}

/// Reads the configuration again and applies it. Reading may take its time: it is done beside, and
/// what another reading, begun later, has overtaken is not applied any more.
///
/// # Errors
/// The file is wrong, or needs the processes to be started anew.
pub async fn reload(shared: &Shared) -> Result<Vec<Outcome>, Refusal> {
    let Readings { begun, done } = shared.readings.get();
    let reading = begun + 1;
    shared.readings.set(Readings { begun: reading, done });
    let path = shared.engine.borrow().config_path();
    let read = tokio::task::spawn_blocking(move || {
        let source = Source::read(&path)?;
        let config = Config::from_source(&source)?;
        Ok((source, config))
    });
    let read = read.await;
    let read = read.map_err(|_| Refusal::new(Code::Failed, "the configuration was not read"))?;
    let Readings { begun, done } = shared.readings.get();
    if reading < done {
        let reason = "another reload has read the file meanwhile: what came of it counts";
        return Err(Refusal::new(Code::Busy, reason));
    }
    shared.readings.set(Readings { begun, done: reading });
    let done = shared.engine.borrow_mut().reload(read);
    shared.wake.notify_one();
    done
}

/// Answers with what a change of the configuration did.
async fn configured(
    id: u64,
    done: Result<Vec<Outcome>, Refusal>,
    lines: &mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    match done {
        Ok(outcomes) => rows(id, outcomes.into_iter().map(Row::Outcome).collect(), lines).await,
        Err(refusal) => refuse(lines, id, refusal).await,
    }
}

/// Begins, and waits for each outcome if that is wanted. What did not work of several is a row too,
/// and the answer then ends with a refusal that counts them.
async fn act(
    id: u64,
    command: &Command,
    lines: &mpsc::Sender<Vec<u8>>,
    shared: &Shared,
) -> io::Result<()> {
    let begun = shared.engine.borrow_mut().act(command);
    shared.wake.notify_one();
    let begun = match begun {
        Ok(begun) => begun,
        Err(refusal) => return refuse(lines, id, refusal).await,
    };
    let wait_s = command.wait_s();
    let until = tokio::time::Instant::now() + Duration::from_secs(wait_s.into());
    let (count, mut refusals) = (begun.len(), Vec::new());
    for beginning in begun {
        let decided = match beginning {
            Ok(Begun { outcome, end: Some(end) }) if wait_s > 0 => {
                wait(end, until, wait_s, &outcome).await
            }
            Ok(Begun { outcome, .. }) => Ok(outcome),
            Err(refusal) => Err(refusal),
        };
        let row = match decided {
            Ok(outcome) => outcome,
            Err(refusal) if count == 1 => return refuse(lines, id, refusal).await,
            Err(refusal) => {
                let message = refusal.message.clone();
                refusals.push(refusal);
                Outcome { message, failed: true, ..Outcome::default() }
            }
        };
        send(lines, &Reply { id, body: Body::Row(Box::new(Row::Outcome(row))) }).await?;
    }
    if let Some(Refusal { code, .. }) = refusals.first() {
        let reason = format!("{} of {count} did not work", refusals.len());
        return refuse(lines, id, Refusal::new(*code, reason)).await;
    }
    send(lines, &Reply { id, body: Body::End(End { rows: count as u64 }) }).await
}

/// Waits for the end of what has begun with `started`.
async fn wait(
    end: oneshot::Receiver<Result<Outcome, Refusal>>,
    until: tokio::time::Instant,
    wait_s: u32,
    started: &Outcome,
) -> Result<Outcome, Refusal> {
    match tokio::time::timeout_at(until, end).await {
        Ok(Ok(decided)) => decided,
        Ok(Err(_)) => Err(Refusal::new(Code::Failed, "the gateway is stopping")),
        Err(_) => {
            let reason = format!(
                "{}: no outcome within {wait_s} s; it goes on, see `culvert sas` and `culvert events`",
                started.message
            );
            Err(Refusal::new(Code::Timeout, reason))
        }
    }
}

async fn refuse(lines: &mpsc::Sender<Vec<u8>>, id: u64, refusal: Refusal) -> io::Result<()> {
    send(lines, &Reply { id, body: Body::Error(refusal) }).await
}

async fn send(lines: &mpsc::Sender<Vec<u8>>, value: &impl serde::Serialize) -> io::Result<()> {
    let line = to_line(value)?;
    lines.send(line).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}
