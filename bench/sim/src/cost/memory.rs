//! Octets for a connection, as a counting allocator sees them.

use anyhow::{Result, ensure};
use culvert_tcpstack::{CongestionControl, Instant, RxChecksum, Stack};

use super::engine::{EnginePair, config};
use super::{PAYLOAD, PORT, Packets, Pair};
use crate::packet::{Segment, flags};

/// What one connection takes at one end, its share of all tables included.
#[derive(Debug, Clone, Copy)]
pub struct Octets {
    /// Established, nothing under way.
    pub idle: f64,
    /// Established, ten segments sent and not acknowledged.
    pub busy: f64,
    /// A SYN received and answered.
    pub half_open: f64,
}

/// Counts with so many connections. `allocated` gives the octets that are allocated at present.
///
/// # Errors
/// A connection does not open.
pub fn octets(connections: usize, allocated: &dyn Fn() -> usize) -> Result<Octets> {
    let share = |octets: usize| octets as f64 / connections as f64;
    let mut now = Instant(1_000_000);
    let before = allocated();
    let mut pair = EnginePair::new(connections, CongestionControl::Bbr, now)?;
    // What belongs to the bench and not to a stack.
    let names = pair.connections.capacity() * size_of_val(&pair.connections[0]);
    let idle = (allocated() - before - names) / 2;
    let quiet = allocated();
    let all: Vec<usize> = (0..connections).collect();
    let list = all.capacity() * size_of::<usize>();
    let mut out = Packets::default();
    for some in all.chunks(10) {
        now = Instant(now.0 + 1_000);
        out.clear();
        pair.send(now, some, 10, &mut out);
    }
    drop(out);
    let in_flight = allocated() - quiet - list;
    let written = PAYLOAD * 10;
    ensure!(in_flight > connections * written / 2, "too little is in flight to be called busy");
    Ok(Octets {
        idle: share(idle),
        busy: share(idle + in_flight),
        half_open: share(half_open(connections, allocated)?),
    })
}

fn half_open(connections: usize, allocated: &dyn Fn() -> usize) -> Result<usize> {
    let mut stack = Stack::new(config(connections, CongestionControl::Bbr), [2; 32])?;
    stack.listen(PORT);
    let mut out = Packets::default();
    let before = allocated();
    for number in 0..connections {
        let [_, b, c, d] = (number as u32).to_be_bytes();
        let mut syn = Segment {
            source: ([100, b, c, d], 7).into(),
            destination: ([10, 255, 0, 1], PORT).into(),
            seq: number as u32,
            ack: 0,
            flags: flags::SYN,
            window: 1000,
            options: vec![2, 4, 5, 180],
            payload: Vec::new(),
        }
        .packet();
        let now = Instant(1_000_000 + number as u64);
        stack.handle_segment(now, &mut syn, RxChecksum::Verified, &mut |_, _| 0);
        out.clear();
        stack.poll_transmit(now, &mut out);
        ensure!(out.len() == 1, "SYN {number} is not answered");
    }
    Ok(allocated() - before)
}
