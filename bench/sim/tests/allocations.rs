//! Memory as the allocator sees it: what connections cost, and that carrying data costs no call.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

use std::alloc::System;

use culvert_sim::cost::{EnginePair, Packets, Pair, octets};
use culvert_tcpstack::{CongestionControl, Instant};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// An idle established connection costs at most a kibibyte, a half-open one nothing.
fn connections_cost_little() {
    let allocated = || {
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
    };
    let octets = octets(10_000, &allocated).unwrap();
    assert!(octets.idle <= 1024.0, "{octets:?}");
    // A few octets of the test harness in all.
    assert!(octets.half_open < 0.1, "{octets:?}");
}

/// Opening a connection calls the allocator once at each end: what the handshake needs beside it goes
/// from one to the next.
fn opening_allocates_once(control: CongestionControl) {
    let allocations = |connections| {
        let region = Region::new(ALLOCATOR);
        EnginePair::new(connections, control, Instant(1_000_000)).unwrap();
        region.change().allocations
    };
    let thousand = allocations(2_000) - allocations(1_000);
    // The batches of packets are the test's.
    assert!((2_000..2_100).contains(&thousand), "{control:?}: {thousand} for a thousand");
}

/// They have their turns one after the other.
const CONNECTIONS: usize = 500;

/// Carries data on every connection in turn; urgent frames among it, and losses that are repaired.
fn carry(pair: &mut EnginePair, [data, acks]: &mut [Packets; 2], turns: std::ops::Range<u64>) {
    for turn in turns {
        let now = Instant(2_000_000 + turn * 1_000);
        let connection = turn as usize % CONNECTIONS;
        data.clear();
        acks.clear();
        pair.send(now, &[connection], 8, data);
        pair.send_urgent(now, connection, data);
        if turn % 7 == 0 {
            data.lose(2);
        }
        for _ in 0..2 {
            pair.receive(1, now, data);
            acks.clear();
            pair.transmit(1, now, acks);
            pair.receive(0, now, acks);
            data.clear();
            pair.transmit(0, now, data); // What was lost.
        }
    }
}

/// Nothing on a worker's loop allocates once it has carried as much before: each connection that
/// falls idle passes what it held on to the next.
fn carrying_data_allocates_nothing(control: CongestionControl) {
    let mut pair = EnginePair::new(CONNECTIONS, control, Instant(1_000_000)).unwrap();
    let mut packets = [Packets::default(), Packets::default()];
    carry(&mut pair, &mut packets, 0..80_000);
    let before = pair.received();
    let region = Region::new(ALLOCATOR);
    carry(&mut pair, &mut packets, 80_100..84_000);
    let used = region.change();
    assert!(pair.received() - before > 8 * 3_900 * 1_000, "{} octets", pair.received() - before);
    assert_eq!(used.allocations, 0, "{control:?}: {used:?}");
    // Of some hundred losses one may make a list longer than it ever was.
    assert!(used.reallocations <= 2, "{control:?}: {used:?}");
}

/// One after the other: the allocator counts for the whole process.
#[test]
fn memory() {
    connections_cost_little();
    opening_allocates_once(CongestionControl::Cubic);
    opening_allocates_once(CongestionControl::Bbr);
    carrying_data_allocates_nothing(CongestionControl::Cubic);
    carrying_data_allocates_nothing(CongestionControl::Bbr);
}
