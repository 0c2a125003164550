//! What can go wrong before packets flow. Each error says what to do about it.

use std::{ffi::CStr, fmt};

/// An error number of DPDK's (`rte_errno` or a negated return value), shown as its text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// The calling thread's `rte_errno`.
    pub(crate) fn last() -> Self {
        // SAFETY: reads a thread-local integer.
        Self(unsafe { dpdk_sys::culvert_rte_errno() })
    }

    /// The error in a return value, positive or negated.
    pub(crate) fn of(returned: i32) -> Self {
        Self(returned.saturating_abs())
    }

    /// The number, as in `errno.h` or `rte_errno.h`.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: rte_strerror returns a NUL-terminated string that stays valid until this
        // thread's next call of it.
        let text = unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(self.0)) };
        f.write_str(&text.to_string_lossy())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.0)
    }
}

/// The EAL did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EalError {
    /// A second start, or one after a failure: DPDK can do neither.
    #[error(
        "the EAL starts once in a process, and this one has tried already: start a new process"
    )]
    AlreadyStarted,
    /// More workers than [`crate::MAX_WORKERS`].
    #[error("{wanted} workers are asked for, DPDK here takes {max}: list fewer lcores", max = crate::MAX_WORKERS)]
    TooManyWorkers {
        /// How many were asked for.
        wanted: usize,
    },
    /// A worker's CPU is offline, absent or outside this process's affinity.
    #[error(
        "worker core {cpu} is not available to this process (available: {available:?}): choose another in `lcores`"
    )]
    CpuUnavailable {
        /// The CPU that was asked for.
        cpu: u32,
        /// Those that the process may run on.
        available: Vec<u32>,
    },
    /// The same CPU was listed twice.
    #[error("worker core {cpu} is listed twice: a core runs one worker")]
    CpuRepeated {
        /// The CPU.
        cpu: u32,
    },
    /// Hugepages were asked for and the kernel has none free.
    #[error(
        "no hugepage is free: reserve some (`sysctl -w vm.nr_hugepages=256` gives 512 MiB where pages are 2 MiB), \
         or set `hugepages = false`"
    )]
    NoHugepages,
    /// An argument cannot be handed to C.
    #[error("{argument:?} contains a NUL octet")]
    BadArgument {
        /// The argument.
        argument: String,
    },
    /// The kernel did not say which CPUs this process may use.
    #[error("the CPUs of this process cannot be read: {0}")]
    Affinity(std::io::Error),
    /// `rte_eal_init` refused.
    #[error(
        "the EAL did not start: {errno} (arguments: {arguments}); its own messages on standard error say more"
    )]
    Init {
        /// Why.
        errno: Errno,
        /// What it was given.
        arguments: String,
    },
}

/// A pool was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The name is too long, empty or not plain.
    #[error("{name:?} is no name for a pool: 1 to {max} characters, no NUL", max = crate::pool::NAME_MAX)]
    BadName {
        /// The name.
        name: String,
    },
    /// The cache is larger than DPDK takes.
    #[error(
        "a cache of {cache} mbufs in a pool of {mbufs} is too large: at most {max}, and 1.5 times it must not exceed the pool",
        max = crate::pool::CACHE_MAX
    )]
    CacheTooLarge {
        /// Mbufs in the cache of each lcore.
        cache: u32,
        /// Mbufs in the pool.
        mbufs: u32,
    },
    /// The memory is used up.
    #[error(
        "no memory for {mbufs} mbufs of {data_room} octets: give DPDK more (`memory_mib`, or more hugepages) or ask for fewer"
    )]
    NoMemory {
        /// Mbufs asked for.
        mbufs: u32,
        /// Octets in each.
        data_room: u16,
    },
    /// Anything else.
    #[error("pool {name:?} was not made: {errno}")]
    Create {
        /// The pool's name.
        name: String,
        /// Why.
        errno: Errno,
    },
}

/// A device was not opened or not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The device string cannot be handed to C, or is empty.
    #[error(
        "{device:?} is no device: write a PCI address (0000:03:00.0) or a virtual device (net_af_packet0,iface=eth1)"
    )]
    BadDevice {
        /// The device string.
        device: String,
    },
    /// A PCI device is not there for DPDK.
    #[error(
        "PCI device {device} cannot be opened ({errno}): it must exist (`lspci -D`), be bound to vfio-pci \
         (`dpdk-devbind.py --bind=vfio-pci {device}`) unless it is of Mellanox make, and be listed with `EalBuilder::device`"
    )]
    PciNotFound {
        /// The device string.
        device: String,
        /// Why.
        errno: Errno,
    },
    /// A virtual device could not be made.
    #[error(
        "virtual device {device} cannot be opened ({errno}): check the driver's name, its arguments, \
         that the interface exists in this network namespace, and CAP_NET_RAW"
    )]
    VdevNotFound {
        /// The device string.
        device: String,
        /// Why.
        errno: Errno,
    },
    /// Another [`crate::Device`] or [`crate::Port`] holds it.
    #[error("{device} is open already: a device has one owner")]
    InUse {
        /// The device string.
        device: String,
    },
    /// More queues than the device has.
    #[error(
        "{device} has {max_rx} receive and {max_tx} transmit queues, {rx} and {tx} were asked for: use as many workers as \
         it has queues (net_af_packet takes `qpairs=N`)"
    )]
    Queues {
        /// The device string.
        device: String,
        /// Asked for.
        rx: u16,
        /// Asked for.
        tx: u16,
        /// What there is.
        max_rx: u16,
        /// What there is.
        max_tx: u16,
    },
    /// The MTU is out of the device's range.
    #[error("{device} takes an MTU of {min} to {max}, not {mtu}")]
    Mtu {
        /// The device string.
        device: String,
        /// Asked for.
        mtu: u16,
        /// Least.
        min: u16,
        /// Most.
        max: u16,
    },
    /// A frame does not fit into an mbuf and the device cannot spread it over several.
    #[error(
        "an MTU of {mtu} needs {frame} octets for a frame, the pool's mbufs hold {room} and {device} cannot scatter: \
         make the pool's data_room larger"
    )]
    MbufsTooSmall {
        /// The device string.
        device: String,
        /// Asked for.
        mtu: u16,
        /// Octets of the largest frame.
        frame: u32,
        /// Octets that an mbuf holds behind its headroom.
        room: u32,
    },
    /// No pool was given to receive into.
    #[error("a receiving port needs a pool")]
    NoPool,
    /// A step of setting the port up failed.
    #[error("{device}: {step} failed: {errno}")]
    Setup {
        /// The device string.
        device: String,
        /// Which step.
        step: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// A closure was not started on an lcore.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The lcore runs something else.
    #[error("lcore {lcore} runs another worker: join that first")]
    Busy {
        /// The lcore's id.
        lcore: u32,
    },
    /// The EAL refused.
    #[error("nothing started on lcore {lcore}: {errno}")]
    Refused {
        /// The lcore's id.
        lcore: u32,
        /// Why.
        errno: Errno,
    },
}
