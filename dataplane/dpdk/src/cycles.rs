//! The processor's time stamp counter, the clock of a worker.

/// Reads the time stamp counter, in cycles of [`tsc_hz`]. Not serialising: good for measuring
/// batches and for timers, not for single instructions.
#[inline]
#[must_use]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: rdtsc has no preconditions on x86-64.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: reads a counter register, no preconditions.
    unsafe {
        dpdk_sys::culvert_rte_rdtsc()
    }
}

/// Cycles of [`tsc`] in a second, as the EAL measured them when it started.
#[must_use]
pub fn tsc_hz(_eal: crate::Eal) -> u64 {
    // SAFETY: the EAL runs, so its timer is calibrated.
    unsafe { dpdk_sys::rte_get_tsc_hz() }
}
