//! What the process gives up and shuts away, for the keys in its memory.

use std::io;

use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// No core dump and no debugger of the same user; no page of it in a swap area.
///
/// What the system refuses is warned of: the gateway works without, but keys may reach the disk.
pub fn shut_away() {
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps stay possible, and keys may be in them");
    }
    // The shared memory is adopted only after capabilities are gone, so the limit goes first.
    let unlimited = Rlimit { current: None, maximum: None };
    let raised = rustix::process::setrlimit(Resource::Memlock, unlimited);
    // Under a limit, locking what is yet to come would make allocations fail. What is there
    // already holds the pre-shared keys.
    let flags = match raised {
        Ok(()) => MlockAllFlags::CURRENT | MlockAllFlags::FUTURE,
        Err(_) => MlockAllFlags::CURRENT,
    };
    if let Err(error) = rustix::mm::mlockall(flags).and(raised) {
        tracing::warn!(
            %error,
            "memory may be swapped out, and keys with it: set LimitMEMLOCK=infinity"
        );
    }
}

/// Gives up every capability, for good: the sockets are open, and nothing else needs one.
///
/// # Errors
/// The system refuses, so that the process would keep rights that it does not need.
pub fn give_up_rights() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    match rustix::thread::set_capabilities(None, sets) {
        // A kernel or container without capabilities has none to give up.
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
