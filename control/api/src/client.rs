//! A small client that waits: for commands, tests and scripts.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::{
    API_VERSION, Body, Command, Event, Hello, LineBuffer, LineTooLong, REPLY_OCTETS_MAX,
    REQUEST_OCTETS_MAX, Refusal, Reply, Request, Row, to_line,
};

/// Octets read at once.
const CHUNK_OCTETS: usize = 16 << 10;
/// How long the gateway may take for a line, unless [`Client::patience`] says otherwise.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(10);

/// A connection to the control socket. It has one request open at a time.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: LineBuffer,
    hello: Hello,
    next_id: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket, or it may not be used.
    #[error("cannot reach the gateway at {}: {cause}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The gateway speaks another version.
    #[error("the gateway {} speaks API {}, this client {API_VERSION}", .0.culvert, .0.api)]
    Version(Hello),
    /// The gateway went away.
    #[error("the gateway went away: {0}")]
    Lost(#[from] io::Error),
    /// The gateway took too long.
    #[error("the gateway has not answered for {} s", .0.as_secs())]
    Silent(Duration),
    /// The gateway said something that is not of this protocol.
    #[error("the gateway's answer cannot be read: {0}")]
    Garbled(#[from] serde_json::Error),
    /// The gateway sent a line that is longer than the protocol allows.
    #[error("the gateway's answer cannot be read: {0}")]
    TooLong(#[from] LineTooLong),
    /// The request is longer than the gateway takes.
    #[error(
        "this would be a request of {0} octets, and the gateway takes {REQUEST_OCTETS_MAX}: divide it"
    )]
    RequestTooLong(usize),
    /// The gateway said no.
    #[error("{0}")]
    Refused(#[from] Refusal),
}

/// A row or an event, as they come.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A row.
    Row(Box<Row>),
    /// An event.
    Event(Box<Event>),
}

impl Client {
    /// Connects and reads the hello.
    ///
    /// # Errors
    /// The socket cannot be reached, or who listens there speaks something else.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let unreachable = |cause| ClientError::Unreachable { path: path.to_owned(), cause };
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        stream.set_read_timeout(Some(PATIENCE_DEFAULT)).map_err(unreachable)?;
        stream.set_write_timeout(Some(PATIENCE_DEFAULT)).map_err(unreachable)?;
        let lines = LineBuffer::new(REPLY_OCTETS_MAX);
        let hello = Hello { culvert: String::new(), api: 0 };
        let mut client = Self { stream, lines, hello, next_id: 1 };
        client.hello = client.read()?;
        if client.hello.api != API_VERSION {
            return Err(ClientError::Version(client.hello));
        }
        Ok(client)
    }

    /// What the gateway said about itself.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// How long each further line may take; `None` waits for ever.
    ///
    /// # Errors
    /// The system refuses the time, such as zero.
    pub fn patience(&mut self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(patience)
    }

    /// Asks, and hands each row and event to `each` as it comes, until the answer is complete.
    ///
    /// # Errors
    /// The request is too long, or the gateway said no, went away or cannot be understood.
    pub fn ask(&mut self, command: Command, mut each: impl FnMut(Item)) -> Result<(), ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        // It may hold secrets.
        let line = Zeroizing::new(to_line(&Request { id, command })?);
        if line.len() > REQUEST_OCTETS_MAX {
            return Err(ClientError::RequestTooLong(line.len()));
        }
        let patience = self.stream.write_timeout();
        self.stream.write_all(&line).map_err(|error| lost(error, patience))?;
        loop {
            let reply: Reply = self.read()?;
            // 0 answers a request that the gateway could not read: there is only this one.
            if reply.id != id && reply.id != 0 {
                continue;
            }
            match reply.body {
                Body::Row(row) => each(Item::Row(row)),
                Body::Event(event) => each(Item::Event(event)),
                Body::End(_) => return Ok(()),
                Body::Error(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Asks and collects the rows.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn rows(&mut self, command: Command) -> Result<Vec<Row>, ClientError> {
        let mut rows = Vec::new();
        self.ask(command, |item| {
            if let Item::Row(row) = item {
                rows.push(*row);
            }
        })?;
        Ok(rows)
    }

    fn read<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let mut chunk = vec![0; CHUNK_OCTETS];
        loop {
            if let Some(line) = self.lines.next_line()? {
                return Ok(serde_json::from_slice(line)?);
            }
            let length = match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(|error| lost(error, self.stream.read_timeout()))?,
            };
            self.lines.feed(chunk.get(..length).unwrap_or_default());
        }
    }
}

/// Why nothing can be read or written: the patience may be over.
fn lost(error: io::Error, patience: io::Result<Option<Duration>>) -> ClientError {
    let is_over = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
    match patience {
        Ok(Some(patience)) if is_over => ClientError::Silent(patience),
        _ => ClientError::Lost(error),
    }
}
