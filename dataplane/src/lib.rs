//! The poll-mode process: DPDK ports, TCP, ESP.

pub mod net;
