//! The control socket: what the gateway and its commands say to each other.
//!
//! The socket is `<runtime_dir>/control.sock`, a Unix stream. Both sides write lines of JSON, each
//! ended by one line feed, UTF-8 throughout.
//!
//! 1. The gateway speaks first: [`Hello`], `{"culvert":"0.1.0","api":1}`. A client that does not
//!    know this `api` says so and goes.
//! 2. The client writes a [`Request`]: `{"id":7,"command":"sas"}`. The `id` is the client's own,
//!    and it may have several requests open.
//! 3. The gateway answers with any number of lines that carry this `id`: rows
//!    (`{"id":7,"row":{"kind":"ike_sa",...}}`) and events (`{"id":7,"event":{...}}`), then exactly
//!    one that ends it: `{"id":7,"end":{"rows":2}}` or `{"id":7,"error":{"code":"not_found",...}}`.
//!    Rows stream, so no number of tunnels makes a line long.
//! 4. Either side may close at any time. The gateway closes on a client that does not read what
//!    it asked for, and on a line longer than [`REQUEST_OCTETS_MAX`].
//!
//! Within one `api` version, fields and kinds are only ever added: unknown ones are to be ignored
//! by clients.
#![forbid(unsafe_code)]

mod client;
mod commands;
mod events;
mod line;
mod rows;

pub use client::{Client, ClientError, Item};
pub use commands::{Command, Confidential, Target, Unloaded};
pub use events::{Event, Happening, Side};
pub use line::{LineBuffer, LineTooLong};
pub use rows::{
    Child, ChildSa, ChildState, Connection, Counter, DataplaneStatus, IkeSa, IkeState, LogLevel,
    Mode, Outcome, Role, Row, Standing, Status, TcpConnection, Transport,
};

use serde::{Deserialize, Serialize};

/// Version of the protocol that this crate speaks.
pub const API_VERSION: u32 = 1;
/// Longest line from a client, in octets, its line feed included.
pub const REQUEST_OCTETS_MAX: usize = 64 << 10;
/// Longest line from the gateway, in octets, its line feed included. An IKE SA's row holds its
/// CHILD SAs.
pub const REPLY_OCTETS_MAX: usize = 4 << 20;
/// Name of the socket below the runtime directory.
pub const SOCKET_NAME: &str = "control.sock";
/// The configuration when nothing else is said.
pub const CONFIG_PATH_DEFAULT: &str = "/etc/culvert/culvert.toml";
/// The socket when nothing else is said.
pub const SOCKET_PATH_DEFAULT: &str = "/run/culvert/control.sock";

/// The gateway's first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the gateway.
    pub culvert: String,
    /// Version of the protocol, [`API_VERSION`].
    pub api: u32,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The client's own number for it, carried by every line of the answer.
    pub id: u64,
    /// What is to be done.
    #[serde(flatten)]
    pub command: Command,
}

/// A line of the gateway's after the hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's number; 0 when the request could not be read.
    pub id: u64,
    /// What the line carries.
    #[serde(flatten)]
    pub body: Body,
}

/// What a line carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// One row of the answer.
    Row(Box<Row>),
    /// One event.
    Event(Box<Event>),
    /// The answer is complete.
    End(End),
    /// The answer ends here, and why.
    Error(Refusal),
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Number of rows and events that it had.
    pub rows: u64,
}

/// Why the gateway does not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people: what is wrong and what to do.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The line was no request, or it was too long.
    BadRequest,
    /// What was named does not exist.
    NotFound,
    /// It was tried and did not work.
    Failed,
    /// It did not end within the time allowed; it may still do so.
    Timeout,
    /// It needs the dataplane, which is not running.
    NoDataplane,
    /// Too many clients or requests at once.
    Busy,
    /// One of a later version.
    #[serde(other)]
    Unknown,
}

impl Refusal {
    /// A refusal of this kind.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl Request {
    /// Reads a request from a line, with or without its line feed.
    ///
    /// # Errors
    /// The reply to give: it carries the request's number where that could be read.
    pub fn parse(line: &[u8]) -> Result<Self, Reply> {
        serde_json::from_slice(line).map_err(|error| {
            #[derive(Deserialize)]
            struct Numbered {
                id: u64,
            }
            let id = serde_json::from_slice(line).map_or(0, |Numbered { id }| id);
            let message = format!("this is not a request of API {API_VERSION}: {error}");
            Reply { id, body: Body::Error(Refusal::new(Code::BadRequest, message)) }
        })
    }
}

/// Writes a value as a line with its line feed.
///
/// # Errors
/// None for the types of this crate, whose keys are all strings; serde cannot know that.
pub fn to_line(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests;
