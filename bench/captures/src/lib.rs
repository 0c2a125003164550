//! Sessions between real peers, with all keys, as known answers for tests.
//!
//! Beside this crate lie packet captures of strongSwan and libreswan speaking to each other over
//! TCP (RFC 9329) and over UDP, and for each the secrets of every SA in it (see `README.md`).
//! [`sessions`] loads them: the [`pcap`] reader yields IP packets, [`tcp`] puts the TCP streams
//! together (each octet once, in order, whatever was retransmitted), and [`keys`] reads the
//! secrets. [`Session::messages`] is the same traffic cut into IKE and ESP messages.
//!
//! The splitter here is written for whole streams and knows nothing of the code under test, so
//! that it can be the oracle for the framing decoder of the gateway.
#![forbid(unsafe_code)]

pub mod keys;
mod messages;
mod pcap;
mod tcp;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};

pub use keys::{EspKey, IkeKeys};
pub use messages::{Kind, Message};

/// One capture and the secrets that open it.
pub struct Session {
    /// The name of the capture's file without its ending.
    pub name: String,
    /// The pre-shared key with which both ends proved who they are.
    pub psk: &'static [u8],
    /// The TCP connections in the order of their SYNs; none in the UDP capture.
    pub connections: Vec<Connection>,
    /// The UDP datagrams from and to ports 500 and 4500; none in the TCP captures.
    pub datagrams: Vec<Datagram>,
    /// The secrets of each IKE SA, in the order in which the SAs were made.
    pub ike: Vec<IkeKeys>,
    /// The key of each ESP SA (one direction), in no order.
    pub esp: Vec<EspKey>,
}

/// One TCP connection, both of its streams in order and without gaps.
pub struct Connection {
    /// The end that sent the SYN and therefore the stream prefix (RFC 9329, 4).
    pub originator: SocketAddr,
    /// The end that listened.
    pub responder: SocketAddr,
    /// What the originator sent, the prefix included.
    pub from_originator: Stream,
    /// What the responder sent.
    pub from_responder: Stream,
}

/// One direction of a TCP connection.
#[derive(Default)]
pub struct Stream {
    /// Every octet of the stream, once and in order.
    pub octets: Vec<u8>,
    /// For each packet that brought new octets: its number in the capture, and how many octets
    /// the stream had after it. Ascending in both.
    pub arrivals: Vec<(usize, usize)>,
}

/// One UDP datagram.
pub struct Datagram {
    /// The number of its packet in the capture, from 0.
    pub packet: usize,
    /// Where it came from.
    pub source: SocketAddr,
    /// Where it went.
    pub destination: SocketAddr,
    /// Its payload, the non-ESP marker included where there is one.
    pub payload: Vec<u8>,
}

/// Loads every capture that lies beside this crate, sorted by name.
///
/// # Errors
/// A file is missing or is not what the README says; the chain of causes names it.
pub fn sessions() -> Result<Vec<Session>> {
    let mut names: Vec<String> = std::fs::read_dir(directory())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".pcap").map(str::to_owned))
        .collect();
    names.sort();
    names.iter().map(|name| session(name)).collect()
}

/// Loads the capture of this name, for example `udp_strongswan_aes128gcm-x25519`.
///
/// # Errors
/// A file is missing or is not what the README says; the chain of causes names it.
pub fn session(name: &str) -> Result<Session> {
    let capture = directory().join(format!("{name}.pcap"));
    let secrets = directory().join(format!("{name}.keys"));
    let octets = std::fs::read(&capture).with_context(|| format!("read {}", capture.display()))?;
    let packets = pcap::packets(&octets).with_context(|| format!("parse {}", capture.display()))?;
    let mut session = Session {
        name: name.to_owned(),
        psk: if name.starts_with("udp_") { b"scout-psk" } else { b"scout-psk-0123456789abcdef" },
        connections: tcp::connections(&packets).with_context(|| format!("reassemble {name}"))?,
        datagrams: pcap::datagrams(&packets),
        ike: Vec::new(),
        esp: keys::esp(&secrets).with_context(|| format!("ESP keys of {name}"))?,
    };
    session.ike = keys::ike(&secrets).with_context(|| format!("IKE keys of {name}"))?;
    let seen = messages::ike_spis(&session);
    keys::complete_spis(&mut session.ike, &seen);
    Ok(session)
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
