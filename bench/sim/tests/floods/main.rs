//! Peers that mean harm: a flood of SYNs, blind injection at every offset of the window, and hosts
//! that read nothing, send one octet a second, leave holes or acknowledge what was never sent.
//! Memory and work are counted, not timed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, outside of their functions"
)]

mod blind;
mod greedy;
mod hoard;
mod raw;
mod syn;
