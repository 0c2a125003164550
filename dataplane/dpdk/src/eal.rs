//! The environment abstraction layer: DPDK's start, once in a process.

use crate::{
    error::{EalError, Errno},
    lcore::Lcore,
};
use std::{
    ffi::CString,
    fs, io, iter,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// Most workers in a process: DPDK's lcores, of which the main thread is one.
pub const MAX_WORKERS: usize = dpdk_sys::RTE_MAX_LCORE as usize - 1;

static TRIED: AtomicBool = AtomicBool::new(false);
static STATE: OnceLock<State> = OnceLock::new();

#[derive(Debug)]
struct State {
    workers: Vec<Lcore>,
}

/// A running EAL. A copy is a proof that DPDK was started; it is never stopped.
#[derive(Debug, Clone, Copy)]
pub struct Eal(&'static State);

impl Eal {
    /// Settings to start with.
    #[must_use]
    pub fn builder() -> EalBuilder {
        EalBuilder::default()
    }

    /// The worker lcores, in the order in which [`EalBuilder::workers`] listed their CPUs.
    #[must_use]
    pub fn workers(self) -> &'static [Lcore] {
        &self.0.workers
    }
}

/// Where DPDK takes its memory from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Ordinary pages, all taken at the start. Works everywhere; TLB misses cost some speed, and a
    /// physical NIC needs an IOMMU.
    Small {
        /// Mebibytes.
        mib: u32,
    },
    /// Hugepages, without files (no hugetlbfs mount is needed), grown on demand.
    Huge {
        /// Mebibytes to take at the start; the rest follows when a pool needs it.
        mib: u32,
    },
}

/// From which severity on DPDK writes messages to standard error and syslog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Errors.
    Error = 4,
    /// Warnings and worse.
    #[default]
    Warning = 5,
    /// Progress, too.
    Info = 7,
    /// Everything.
    Debug = 8,
}

/// Settings of [`Eal::builder`].
#[derive(Debug, Clone)]
pub struct EalBuilder {
    workers: Vec<u32>,
    memory: Memory,
    devices: Vec<String>,
    log_level: LogLevel,
    file_prefix: String,
}

impl Default for EalBuilder {
    fn default() -> Self {
        Self {
            workers: Vec::new(),
            memory: Memory::Small { mib: 256 },
            devices: Vec::new(),
            log_level: LogLevel::default(),
            file_prefix: "culvert".to_owned(),
        }
    }
}

impl EalBuilder {
    /// The CPUs of the workers: one lcore is pinned to each. None by default. The calling thread
    /// keeps the CPUs it has.
    #[must_use]
    pub fn workers(mut self, cpus: impl IntoIterator<Item = u32>) -> Self {
        self.workers = cpus.into_iter().collect();
        self
    }

    /// Where memory comes from; by default 256 MiB of ordinary pages.
    #[must_use]
    pub fn memory(mut self, memory: Memory) -> Self {
        self.memory = memory;
        self
    }

    /// A device that [`crate::Device::open`] will be asked for, by the same string. Only PCI
    /// addresses need to be known this early (the EAL touches no PCI device that is not listed);
    /// virtual devices may be, and are made when opened.
    #[must_use]
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.devices.push(device.into());
        self
    }

    /// How much DPDK says; warnings and errors by default.
    #[must_use]
    pub fn log_level(mut self, level: LogLevel) -> Self {
        self.log_level = level;
        self
    }

    /// Name of DPDK's directory below `/run/dpdk`, `culvert` by default. Nothing is shared through
    /// it, so that several processes may have the same.
    #[must_use]
    pub fn file_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.file_prefix = prefix.into();
        self
    }

    /// Starts DPDK (about 0.3 s). The calling thread becomes the main lcore.
    ///
    /// # Errors
    /// What [`EalError`] lists. After a failure in `rte_eal_init` itself the process cannot try
    /// again.
    pub fn init(self) -> Result<Eal, EalError> {
        let arguments = self.checked_arguments()?;
        let strings = arguments
            .iter()
            .map(|argument| CString::new(argument.as_str()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| EalError::BadArgument { argument: arguments.join(" ") })?;
        if TRIED.swap(true, Ordering::SeqCst) {
            return Err(EalError::AlreadyStarted);
        }
        // The EAL keeps and reorders the pointers it is given: they live for ever.
        let pointers: Vec<*mut libc::c_char> = strings
            .into_iter()
            .map(CString::into_raw)
            .chain(iter::once(std::ptr::null_mut()))
            .collect();
        let count = arguments.len() as libc::c_int;
        // SAFETY: `count` NUL-terminated strings and a null pointer, all leaked and writable; no
        // other call can be in here because TRIED was false.
        let parsed = unsafe { dpdk_sys::rte_eal_init(count, pointers.leak().as_mut_ptr()) };
        if parsed < 0 {
            return Err(EalError::Init { errno: Errno::last(), arguments: arguments.join(" ") });
        }
        let workers = (1..).zip(self.workers).map(|(id, cpu)| Lcore { id, cpu }).collect();
        Ok(Eal(STATE.get_or_init(|| State { workers })))
    }

    /// The EAL's command line, after the checks whose failures it would report less clearly.
    fn checked_arguments(&self) -> Result<Vec<String>, EalError> {
        let available = available_cpus().map_err(EalError::Affinity)?;
        if self.workers.len() > MAX_WORKERS {
            return Err(EalError::TooManyWorkers { wanted: self.workers.len() });
        }
        for (index, &cpu) in self.workers.iter().enumerate() {
            if !available.contains(&cpu) {
                return Err(EalError::CpuUnavailable { cpu, available });
            }
            if self.workers[..index].contains(&cpu) {
                return Err(EalError::CpuRepeated { cpu });
            }
        }
        if matches!(self.memory, Memory::Huge { .. }) && !hugepages_free() {
            return Err(EalError::NoHugepages);
        }
        Ok(self.arguments(&available))
    }

    fn arguments(&self, available: &[u32]) -> Vec<String> {
        let mut arguments = vec![
            "culvert".to_owned(),
            format!("--lcores={}", lcore_map(available, &self.workers)),
            "--main-lcore=0".to_owned(),
            // Virtual addresses are what an IOMMU wants and all that ordinary pages have.
            "--iova-mode=va".to_owned(),
            "--no-telemetry".to_owned(),
            format!("--log-level={}", self.log_level as u8),
            format!("--file-prefix={}", self.file_prefix),
        ];
        match self.memory {
            // `--in-memory` is refused together with `--no-huge`; this is the part of it that
            // keeps processes apart.
            Memory::Small { mib } => arguments.extend([
                "--no-huge".to_owned(),
                "--no-shconf".to_owned(),
                format!("-m{mib}"),
            ]),
            Memory::Huge { mib } => {
                arguments.extend(["--in-memory".to_owned(), format!("-m{mib}")]);
            }
        }
        let pci: Vec<&String> = self.devices.iter().filter(|device| is_pci(device)).collect();
        if pci.is_empty() {
            arguments.push("--no-pci".to_owned());
        }
        arguments.extend(pci.into_iter().map(|device| format!("--allow={device}")));
        arguments
    }
}

/// Lcore 0 is the main thread, free to run where it could before (the EAL would pin it, and every
/// thread that it starts later, to one CPU); lcore n is the n-th worker, on its CPU alone.
fn lcore_map(available: &[u32], workers: &[u32]) -> String {
    let anywhere = available.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let workers = (1..).zip(workers).map(|(id, cpu)| format!(",{id}@{cpu}"));
    iter::once(format!("0@({anywhere})")).chain(workers).collect()
}

/// Whether a device string begins with a PCI address, `[domain:]bus:device.function`.
pub(crate) fn is_pci(device: &str) -> bool {
    let address = device.split(',').next().unwrap_or_default();
    let address = address.strip_prefix("pci:").unwrap_or(address);
    let Some((bus_device, function)) = address.rsplit_once('.') else { return false };
    let hex = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_hexdigit());
    let parts: Vec<&str> = bus_device.split(':').collect();
    hex(function) && (2..=3).contains(&parts.len()) && parts.into_iter().all(hex)
}

/// Whether the kernel has a free hugepage of any size.
fn hugepages_free() -> bool {
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else { return false };
    sizes.flatten().any(|size| {
        fs::read_to_string(size.path().join("free_hugepages"))
            .is_ok_and(|count| count.trim().parse::<u64>().is_ok_and(|count| count > 0))
    })
}

/// The CPUs that the calling thread may run on, lowest first.
///
/// # Errors
/// What `sched_getaffinity` says.
pub fn available_cpus() -> io::Result<Vec<u32>> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given into `set`.
    let status = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    let limit = libc::CPU_SETSIZE as u32;
    // SAFETY: `cpu` is below CPU_SETSIZE, so that the bit lies within `set`.
    Ok((0..limit).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu as usize, &set) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_pinned_and_the_main_lcore_is_not() {
        assert_eq!(lcore_map(&[0, 1, 2, 3], &[3, 1]), "0@(0,1,2,3),1@3,2@1");
    }

    #[test]
    fn pci_addresses_are_told_from_virtual_devices() {
        for device in ["0000:03:00.0", "03:00.1", "0000:03:00.0,rx_vec=1", "pci:0000:af:1f.7"] {
            assert!(is_pci(device), "{device}");
        }
        for device in ["net_null0", "net_af_packet0,iface=eth0.4", "", "net_pcap0,x=0:1.0", "a.b"] {
            assert!(!is_pci(device), "{device}");
        }
    }

    #[test]
    fn only_listed_pci_devices_are_touched() {
        let arguments = Eal::builder().device("net_null0").arguments(&[0]);
        assert!(arguments.contains(&"--no-pci".to_owned()));
        let arguments = Eal::builder().device("0000:03:00.0").arguments(&[0]);
        assert!(arguments.contains(&"--allow=0000:03:00.0".to_owned()));
        assert!(!arguments.contains(&"--no-pci".to_owned()));
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let refused = Eal::builder().workers([1023]).checked_arguments();
        assert!(matches!(refused, Err(EalError::CpuUnavailable { cpu: 1023, .. })));
        let cpu = available_cpus().unwrap()[0];
        let refused = Eal::builder().workers([cpu, cpu]).checked_arguments();
        assert!(matches!(refused, Err(EalError::CpuRepeated { .. })));
    }
}
