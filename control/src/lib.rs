//! The control process: IKE, SA installation, the control socket. It never sees DPDK.
//!
//! The way of an IKE message: a worker of the dataplane finds it behind the non-ESP marker and
//! pushes it into its ring; the bell wakes [`run`]; [`engine`] takes it out and gives it to
//! `culvert_ike`, which asks for what it needs through [`host`]. New keys go through
//! [`forwarding`] into the shared memory before the reply goes into the worker's other ring, so
//! the peer's first packet finds its SA.
//!
//! One thread does all of it. People talk to it over the control socket ([`server`]).
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod convert;
pub mod engine;
pub mod forwarding;
pub mod history;
pub mod host;
pub mod log;
pub mod pace;
pub mod policies;
pub mod process;
pub mod run;
pub mod said;
pub mod server;
pub mod starts;
pub mod tcp;
pub mod traps;
