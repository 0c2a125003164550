//! The TCP engine under bad links, foreign peers, floods and the clock.
//!
//! [`scenario`] makes a run of a seed: [`host`]s (the engine, or [`smol`]tcp's sockets) and their
//! [`caller`]s in a [`world`] of virtual time, with a [`link`] each way and perhaps a [`nat`]
//! between; [`stream`] is the oracle. A packet's way: a host gives it to [`world`], through the NAT
//! into the link, out of it at its time, into the other host, whose caller gives the octets to the
//! oracle.
//!
//! [`forged`] lets arbitrary octets drive two engines with a stranger's segments between, under the
//! same oracle; in [`wild`] they are one engine's peer, under an oracle of what it may then say.
//!
//! [`bulk`] measures goodput and fairness over the same links in virtual time, [`linux`] over the
//! same links in real time with Linux's TCP at one end or both and DPDK ports between, and [`cost`]
//! counts cycles and octets for each connection. [`flood`] counts what hostile segments cost.
#![forbid(unsafe_code)]

pub mod bulk;
pub mod caller;
pub mod cost;
pub mod flood;
pub mod forged;
pub mod host;
pub mod link;
pub mod linux;
pub mod nat;
pub mod packet;
pub mod random;
pub mod scenario;
pub mod smol;
pub mod stream;
pub mod tables;
pub mod wild;
pub mod world;
