//! Bindings to the distribution's libdpdk (22.11), with a shim for its static inline functions.
//!
//! Nothing is decided here: these are DPDK's own names, layouts and contracts, for the functions
//! listed in `build.rs`. Functions with the prefix `culvert_` stand for DPDK's static inlines,
//! constants with that prefix for its macros (`shim/shim.h`). The safe interface is the crate
//! `culvert-dpdk`, the only one that uses this.
#![no_std]

// The names are C's and documented in DPDK's API reference.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unused_qualifications,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;
