//! DPDK on hugepages, where the machine has some; where it has none, the error that says so.

use culvert_dpdk::{Eal, EalError, Memory, available_cpus};

mod scenarios;

/// The scenarios' pools together.
const MIB: u32 = 64;

#[test]
fn the_scenarios_hold_on_hugepages_and_their_lack_is_named() {
    let cpu = *available_cpus().unwrap().last().unwrap();
    let started = Eal::builder()
        .workers([cpu])
        .memory(Memory::Huge { mib: MIB })
        .file_prefix("culvert-test")
        .init();
    let eal = match started {
        Ok(eal) => eal,
        Err(EalError::NoHugepages) => {
            eprintln!("no free hugepages: only their lack was tested (sysctl vm.nr_hugepages=64)");
            let advice = EalError::NoHugepages.to_string();
            assert!(advice.contains("vm.nr_hugepages") && advice.contains("hugepages = false"));
            return;
        }
        Err(error) => panic!("{error}"),
    };
    scenarios::ring_returns_what_was_sent(eal);
    scenarios::unsent_mbufs_stay_in_the_burst(eal);
    scenarios::a_worker_forwards_on_its_lcore(eal);
    scenarios::an_lcore_runs_one_worker_at_a_time(eal);
    scenarios::an_exhausted_pool_says_so(eal);
    scenarios::captures_are_replayed_and_written(eal);
    scenarios::several_queues_get_rss(eal);
    scenarios::af_packet_crosses_a_veth(eal);
    scenarios::impossible_ports_are_refused(eal);
}
