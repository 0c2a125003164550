//! DPDK without hugepages, as in CI and in laboratories: every scenario, and what mbufs do.

#![allow(clippy::unwrap_used)] // helpers of tests, outside of their functions

use culvert_dpdk::{Eal, EalError, Memory, available_cpus};
use std::sync::OnceLock;

mod scenarios;

/// The process's EAL, started by whichever test comes first. Its lcore is used by one test only.
fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    *EAL.get_or_init(|| {
        let cpu = *available_cpus().unwrap().last().unwrap();
        Eal::builder()
            .workers([cpu])
            .memory(Memory::Small { mib: 128 })
            .file_prefix("culvert-test")
            .init()
            .unwrap()
    })
}

#[test]
fn dpdk_starts_once_and_leaves_the_main_threads_cpus_alone() {
    let before = available_cpus().unwrap();
    let eal = eal();
    assert_eq!(available_cpus().unwrap(), before);
    assert_eq!(eal.workers().len(), 1);
    assert!(matches!(Eal::builder().init(), Err(EalError::AlreadyStarted)));
    assert!(culvert_dpdk::tsc_hz(eal) > 100_000_000);
}

#[test]
fn ring_returns_what_was_sent() {
    scenarios::ring_returns_what_was_sent(eal());
}

#[test]
fn unsent_mbufs_stay_in_the_burst() {
    scenarios::unsent_mbufs_stay_in_the_burst(eal());
}

#[test]
fn an_lcore_runs_one_worker_at_a_time() {
    // One test for both: there is one worker lcore.
    scenarios::a_worker_forwards_on_its_lcore(eal());
    scenarios::an_lcore_runs_one_worker_at_a_time(eal());
}

#[test]
fn an_exhausted_pool_says_so() {
    scenarios::an_exhausted_pool_says_so(eal());
}

#[test]
fn af_packet_crosses_a_veth() {
    scenarios::af_packet_crosses_a_veth(eal());
}

#[test]
fn impossible_ports_are_refused() {
    scenarios::impossible_ports_are_refused(eal());
}

#[test]
fn captures_are_replayed_and_written() {
    scenarios::captures_are_replayed_and_written(eal());
}

#[test]
fn several_queues_get_rss() {
    scenarios::several_queues_get_rss(eal());
}
