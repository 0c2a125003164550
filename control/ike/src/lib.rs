//! IKEv2 (RFC 7296) over UDP and TCP (RFC 9329), without I/O.
//!
//! An [`Endpoint`] holds every IKE SA of a gateway. It has no clock, socket, thread or random
//! source: its owner, the *host*, calls it and lends it what it needs through [`Host`].
//!
//! The way of a message: the host hands the octets (without non-ESP marker or TCP length) and the
//! [`Path`] they came on to [`Endpoint::handle_message`]. The [`message`] codec checks the header
//! and finds the SA by its local SPI; the message window ([`Endpoint`], RFC 7296, 2.2 and 2.3)
//! decides whether this is new, a repetition to be answered from the cache, or to be dropped; the
//! SK payload is opened, the payload chain decoded, and the exchange handled. New keys and CHILD
//! SAs reach the host through [`Host::install_child`] *before* the message that makes them known
//! to the peer is handed out by [`Endpoint::poll_transmit`].
//!
//! The order of calls is that of quinn-proto: after any `handle_*`, `initiate*`, `terminate*` or
//! `tcp_*` call, drain [`Endpoint::poll_transmit`] and [`Endpoint::poll_event`], then arm a timer
//! for [`Endpoint::poll_timeout`] and call [`Endpoint::handle_timeout`] when it fires.
//!
//! A host that wants its IKE SAs to outlive its process saves what [`Endpoint::poll_snapshot`] gives
//! before it sends what [`Endpoint::poll_transmit`] gives, and hands it to [`Endpoint::restore`] in
//! the next one.
//!
//! The host strips and adds the framing: on TCP the length and the non-ESP marker, on UDP the
//! marker where [`Path::has_non_esp_marker`] says so.
#![forbid(unsafe_code)]

pub mod config;
pub mod id;
pub mod message;
pub mod proposal;
pub mod ts;

mod auth;
mod crypto;
mod endpoint;
mod event;
mod host;
mod keys;
mod nat;
mod negotiate;
mod path;
mod puzzle;
mod sa;
mod time;

#[cfg(test)]
mod captures;
#[cfg(test)]
extern crate self as culvert_ike;
#[cfg(test)]
#[allow(dead_code, reason = "the tests in tests/ use the rest of the harness")]
#[path = "../tests/pair/mod.rs"]
mod pair;

pub use config::{
    AddressMatch, ChildConfig, ChildMode, ConnectionConfig, Fragmentation, Lifetime,
    Retransmission, TransportChoice, Uniqueness, Volume,
};
pub use endpoint::{
    DropReason, Endpoint, EndpointConfig, InitiateError, Received, Snapshot, UnknownSa,
};
pub use event::{
    ChildFailure, ChildId, ChildSnapshot, DownReason, Event, IkeSaId, IkeSnapshot, IkeState,
    InitiationError, MoveFailure, RekeyCause, Transmit,
};
pub use host::{ChildClaim, ChildSa, Host, InstallError, KeyMaterial, Mode, Secret, TransportEnds};
pub use id::{Identity, IdentityPattern};
pub use path::{ChildPath, ConnToken, ConnectRequest, IKE_PORT, NAT_T_PORT, Path, Transport};
pub use proposal::{Encryption, EspProposal, EspSuite, IkeProposal, IkeSuite, KeyExchange, Prf};
pub use sa::{PathChoice, RestoreError};
pub use time::Instant;
pub use ts::TrafficSelector;
