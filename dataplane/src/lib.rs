//! The poll-mode process: DPDK ports, TCP, ESP.
//!
//! It is the only process that links DPDK, and it knows nothing of IKE: tunnels come from the
//! control process through shared memory, and go on when that process dies.
//!
//! - [`net`]: the packet formats around the tunnel, on octet slices.
//! - [`worker`]: what one core does with each packet; start reading at [`worker::Worker::poll`].
//! - [`process`]: what the main thread does around the workers.
#![forbid(unsafe_code)]

pub mod net;
pub mod process;
pub mod worker;
