//! Running closures on the EAL's worker threads.
//!
//! A worker must run on an lcore to use the pools' per-lcore caches: on another thread every
//! allocation and every free goes to the pool's shared ring.

use crate::{Eal, Errno, LaunchError};
use std::{
    ffi::{c_int, c_void},
    panic::{self, AssertUnwindSafe},
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

/// A worker's lcore: an EAL thread pinned to one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lcore {
    pub(crate) id: u32,
    pub(crate) cpu: u32,
}

impl Lcore {
    /// DPDK's number of the lcore: 1 for the first worker.
    #[must_use]
    pub fn id(self) -> u32 {
        self.id
    }

    /// The CPU it is pinned to.
    #[must_use]
    pub fn cpu(self) -> u32 {
        self.cpu
    }

    /// The NUMA socket of its CPU, for [`crate::PoolConfig::socket`].
    #[must_use]
    pub fn socket(self) -> u32 {
        // SAFETY: reads the EAL's table; an Lcore only comes from a running EAL.
        unsafe { dpdk_sys::rte_lcore_to_socket_id(self.id) }
    }
}

/// `rte_eal_remote_launch` is meant for one thread at a time.
static LAUNCH: Mutex<()> = Mutex::new(());

struct Job<F, T> {
    work: F,
    done: mpsc::SyncSender<thread::Result<T>>,
}

impl Eal {
    /// Runs `work` on a worker's lcore, which must be idle.
    ///
    /// # Errors
    /// [`LaunchError::Busy`] when it runs something already.
    pub fn launch<T, F>(self, lcore: Lcore, work: F) -> Result<LcoreHandle<T>, LaunchError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done, result) = mpsc::sync_channel(1);
        let job = Box::into_raw(Box::new(Job { work, done }));
        let _one_at_a_time = LAUNCH.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `run` gets the job it is made for, exactly once; the lcore's id is a worker's.
        let status =
            unsafe { dpdk_sys::rte_eal_remote_launch(Some(run::<F, T>), job.cast(), lcore.id) };
        if status == 0 {
            return Ok(LcoreHandle { lcore, result });
        }
        // SAFETY: the launch was refused, so that nobody else has the job.
        drop(unsafe { Box::from_raw(job) });
        match Errno::of(status) {
            errno if errno.number() == libc::EBUSY => Err(LaunchError::Busy { lcore: lcore.id }),
            errno => Err(LaunchError::Refused { lcore: lcore.id, errno }),
        }
    }
}

/// What the EAL's thread calls. A panic must not unwind into C: it travels to whoever joins.
unsafe extern "C" fn run<F: FnOnce() -> T, T>(job: *mut c_void) -> c_int {
    // SAFETY: `launch` made the job with Box::into_raw and handed it over once.
    let job = unsafe { Box::from_raw(job.cast::<Job<F, T>>()) };
    let outcome = panic::catch_unwind(AssertUnwindSafe(job.work));
    // The handle may have been dropped: then nobody wants to know.
    let _ = job.done.send(outcome);
    0
}

/// What runs on an lcore. Dropping it leaves the worker running.
#[derive(Debug)]
pub struct LcoreHandle<T> {
    lcore: Lcore,
    result: mpsc::Receiver<thread::Result<T>>,
}

impl<T> LcoreHandle<T> {
    /// Where it runs.
    #[must_use]
    pub fn lcore(&self) -> Lcore {
        self.lcore
    }

    /// Waits, asleep, until the worker returns, and gives what it returned; after that the lcore
    /// can be launched on again. Make the worker stop first.
    ///
    /// # Panics
    /// With the worker's own panic, if it panicked.
    pub fn join(self) -> T {
        let outcome = self.result.recv();
        // SAFETY: a worker's id. The worker is past its closure, so this spins for microseconds.
        unsafe { dpdk_sys::rte_eal_wait_lcore(self.lcore.id) };
        match outcome {
            Ok(Ok(value)) => value,
            Ok(Err(payload)) => panic::resume_unwind(payload),
            // `run` always sends, and before it gives its sender up.
            Err(mpsc::RecvError) => unreachable!("an lcore ended without a result"),
        }
    }
}
