//! What the process gives up before it touches a packet.
//!
//! It holds the keys of every tunnel, so nobody may read its memory: no core dump, no ptrace by
//! the same user, no swap. It opens devices as root, so it keeps only what opening them needs, and
//! gives that up too, thread by thread, once the ports run: capabilities belong to threads. Only
//! DPDK's interrupt thread keeps what opening the ports needed, because drivers do such work there.

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs,
};

/// What probing and starting a port may need: raw sockets and interface settings (net_af_packet,
/// net_af_xdp), locked memory, and device registers or DMA mappings (VFIO, UIO).
const FOR_PORTS: CapabilitySet = CapabilitySet::NET_RAW
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_ADMIN);

/// What stays: memory that is mapped later (the shared memory, the workers' tables) is locked, too.
const FOR_GOOD: CapabilitySet = CapabilitySet::IPC_LOCK;

/// The kernel refused one step of giving up rights.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}; the process does not start with more rights than it needs")]
pub struct HardeningError {
    step: &'static str,
    source: Errno,
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> HardeningError {
    move |source| HardeningError { step, source }
}

/// First thing of the process, before any thread is started: forbids core dumps and ptrace, new
/// rights by exec, and every capability that opening a port does not need.
///
/// # Errors
/// Names the step that the kernel refused.
pub fn before_ports() -> Result<(), HardeningError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("forbid core dumps"))?;
    set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    // Without the privilege the ambient set is empty anyhow.
    let _ = clear_ambient_capability_set();
    keep(FOR_PORTS)
}

/// Locks all memory, now and later: expanded keys and the packet buffers with their plain text
/// never reach swap.
///
/// # Errors
/// `EPERM` or `ENOMEM` where the process may not lock so much; the caller warns and goes on,
/// because a laboratory without the right is still useful.
pub fn lock_memory() -> Result<(), HardeningError> {
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(step("lock memory"))
}

/// Gives up the calling thread's capabilities but that to lock memory: each worker before its first
/// packet, and the main thread once the ports run.
///
/// # Errors
/// When the kernel refuses, which it does not for a smaller set.
pub fn after_ports() -> Result<(), HardeningError> {
    keep(FOR_GOOD)
}

fn keep(wanted: CapabilitySet) -> Result<(), HardeningError> {
    let held = capabilities(None).map_err(step("read the capabilities"))?;
    let kept = held.permitted & wanted;
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(step("drop capabilities"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_its_capabilities_up_for_good() {
        std::thread::spawn(|| {
            after_ports().unwrap();
            let held = capabilities(None).unwrap();
            assert_eq!(held.permitted - FOR_GOOD, CapabilitySet::empty());
            assert_eq!(held.effective - FOR_GOOD, CapabilitySet::empty());
            let sets = CapabilitySets {
                effective: CapabilitySet::NET_RAW,
                permitted: CapabilitySet::NET_RAW,
                inheritable: CapabilitySet::empty(),
            };
            assert_eq!(set_capabilities(None, sets), Err(Errno::PERM));
        })
        .join()
        .unwrap();
    }
}
