//! The packet formats around the tunnel: what a worker reads, checks and writes between the NIC
//! and ESP.
//!
//! Everything here works on octet slices and arguments: no DPDK type, no clock, no socket, no
//! allocation while packets pass. Tables ([`route`], [`neighbour`], [`policy`]) allocate once when
//! they are built.
//!
//! How a packet passes through:
//!
//! * **From the wire**: [`ether::parse`] → [`arp`] or [`ip::parse`] → on the outer side
//!   [`prefix::OwnAddresses::check_sender`] → for an own address [`nd`], [`icmp`], [`udp`], ESP or the
//!   TCP engine; for others, on the inner side, the outbound path.
//! * **Outbound** (inner side to tunnel): [`ip::parse`] → [`policy`] → [`ip::decrement_hop_limit`]
//!   → [`mss`], [`fragment`] or a packet-too-big of [`icmp`] → sealing → [`encap`].
//! * **Inbound** (tunnel to inner side): ESP opened → [`ip::parse`] → the inbound check of
//!   [`policy`] → [`encap::combine_ecn`] → [`ip::decrement_hop_limit`] → [`route`] →
//!   [`neighbour`] → [`ether::Header::write`].
//!
//! What is not accepted ends in a [`DropReason`]: one list for all modules, each with a name that
//! the worker counts under. Input from the wire is parsed, never asserted.
#![deny(unsafe_code)]

pub mod arp;
pub mod checksum;
pub mod encap;
pub mod ether;
pub mod fragment;
mod hash;
pub mod icmp;
pub mod icmp_error;
pub mod ip;
pub mod mss;
pub mod nd;
pub mod neighbour;
pub mod policy;
pub mod prefix;
mod reason;
pub mod route;
pub mod transport_mode;
pub mod udp;

pub use reason::DropReason;

/// Virtual or monotonic time in nanoseconds from any epoch; always an argument, never read here.
pub type Nanos = u64;

/// One second in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;
