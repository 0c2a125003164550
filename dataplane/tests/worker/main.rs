//! A worker as its neighbours see it: frames in, frames out, and the control process beside it.
//! No port, no kernel, no real time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod fixture;
mod packets;
mod peer;

mod bad_input;
mod esp;
mod forwarding;
mod handoff;
mod ike;
mod latency;
mod link;
mod marks;
mod offload;
mod paths;
mod sequence;
mod shortage;
mod streams;
mod transport_mode;
