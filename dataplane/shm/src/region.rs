//! The mapping: made by one process, adopted by the other.
//!
//! All unsafe code of the crate is here, and all of it turns a checked offset into a reference to
//! atomics. Whatever the other process does to the memory, such a reference stays sound: every bit
//! pattern is a value, every access is atomic, and the seals keep the file from shrinking.

use std::fs::File;
use std::hash::Hasher;
use std::mem::{align_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::rand::GetRandomFlags;
use siphasher::sip::SipHasher13;

use crate::conn::ConnSlot;
use crate::layout::{self, Header, LAYOUT_WORDS, Layout, LayoutError, Offsets, WorkerBlock};
use crate::peer::PeerSlot;
use crate::policy::PolicySlot;
use crate::ring::Ring;
use crate::sa::SaSlot;
use crate::saved::{SavedBlock, SavedSlot, Shelf};

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The sizes asked for make no region.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The kernel refused a step.
    #[error("the shared memory could not be made ready: {step}: {errno}")]
    System {
        /// What was to be done.
        step: &'static str,
        /// Why not.
        errno: Errno,
    },
    /// The file can still be cut short, which would kill its readers.
    #[error("the file handed over is no sealed shared memory of Culvert")]
    NotSealed,
    /// The file does not begin with Culvert's mark.
    #[error("the file handed over is not Culvert's shared memory")]
    NotCulvert,
    /// The other process was built with another version of the shared memory.
    #[error(
        "the other process has another version of the shared memory ({found:#x}, here \
         {expected:#x}): install both programs from the same build and restart them"
    )]
    Version {
        /// What the memory says.
        found: u64,
        /// What this build needs.
        expected: u64,
    },
    /// Header and size of the file contradict each other.
    #[error("the shared memory is damaged: {octets} octets do not fit its header")]
    Damaged {
        /// Octets of the file.
        octets: u64,
    },
}

fn system(step: &'static str) -> impl FnOnce(Errno) -> RegionError {
    move |errno| RegionError::System { step, errno }
}

/// The shared memory, mapped. Dropping it unmaps it; the memory lives as long as anyone holds it.
pub struct Region {
    base: NonNull<u8>,
    fd: OwnedFd,
    layout: Layout,
    offsets: Offsets,
    warning: Option<Errno>,
    /// Whether this process may touch the store.
    has_store: bool,
    control_taken: AtomicBool,
    dataplane_taken: AtomicBool,
}

// SAFETY: the mapping is plain memory that stays until drop, and all access to it is through
// references to atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// A file that can neither shrink nor grow, nor lose these seals.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Region {
    /// Makes a new region, all tables empty.
    ///
    /// # Errors
    /// [`RegionError::Layout`] for sizes out of bounds, [`RegionError::System`] when the kernel
    /// has no memory or refuses.
    pub fn create(layout: &Layout) -> Result<Region, RegionError> {
        layout.validate()?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 know no NOEXEC_SEAL; there the file is executable but never executed.
        let fd = rustix::fs::memfd_create("culvert", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create("culvert", flags))
            .map_err(system("memfd_create"))?;
        let total = layout.region_bytes();
        rustix::fs::ftruncate(&fd, total).map_err(system("ftruncate"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(system("sealing"))?;
        let region = Region::map(fd, *layout)?;
        let header = region.header();
        for (shared, word) in header.layout.iter().zip(layout.to_words()) {
            shared.store(word, Ordering::Relaxed);
        }
        for word in &header.label_key {
            let mut random = [0; 8];
            rustix::rand::getrandom(&mut random, GetRandomFlags::empty())
                .map_err(system("getrandom"))?;
            word.store(u64::from_ne_bytes(random), Ordering::Relaxed);
        }
        header.total.store(total, Ordering::Relaxed);
        header.abi.store(layout::abi(), Ordering::Relaxed);
        header.magic.store(layout::MAGIC, Ordering::Release);
        Ok(region)
    }

    /// Maps a region that another process made, after checking that it is one.
    ///
    /// # Errors
    /// Any file that is not a sealed, whole region of this version gives an error that says so.
    pub fn adopt(fd: OwnedFd) -> Result<Region, RegionError> {
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| RegionError::NotSealed)?;
        if !seals.contains(SEALS) {
            return Err(RegionError::NotSealed);
        }
        let stat = rustix::fs::fstat(&fd).map_err(system("fstat"))?;
        let octets = u64::try_from(stat.st_size).unwrap_or(0);
        let layout = read_header(&fd, octets)?;
        Region::map(fd, layout)
    }

    /// Maps a file that is known to have the size of a valid layout.
    fn map(fd: OwnedFd, layout: Layout) -> Result<Region, RegionError> {
        let offsets = Offsets::of(&layout);
        let octets = usize::try_from(offsets.total)
            .map_err(|_| RegionError::Damaged { octets: offsets.total })?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), octets, protection, MapFlags::SHARED, &fd, 0)
        }
        .map_err(system("mmap"))?;
        let base = NonNull::new(base.cast()).ok_or(RegionError::NotCulvert)?;
        let mut region = Region {
            base,
            fd,
            layout,
            offsets,
            warning: None,
            has_store: true,
            control_taken: AtomicBool::new(false),
            dataplane_taken: AtomicBool::new(false),
        };
        region.warning = region.protect(octets).err();
        Ok(region)
    }

    /// Keeps keys off the disk: not in a swap area, not in a core dump.
    fn protect(&self, octets: usize) -> Result<(), Errno> {
        let base = self.base.as_ptr().cast();
        // SAFETY: the range is exactly the mapping; the advice changes no content.
        unsafe { rustix::mm::madvise(base, octets, Advice::LinuxDontDump) }?;
        // SAFETY: the range is exactly the mapping.
        unsafe { rustix::mm::mlock(base, octets) }
    }

    /// Closes the store to this process, which is not control: it holds the keys of IKE SAs and of
    /// peers. The memory stays mapped, so that it is kept and stays locked while there is no control
    /// process, but a stray read or write ends the process. No [`crate::ControlView`] is to be had.
    pub(crate) fn hide_store(&mut self) -> Result<(), RegionError> {
        let begin = self.offsets.store();
        let octets = (self.offsets.total - begin) as usize;
        // SAFETY: the range lies in the mapping and begins on a page. No reference into it exists:
        // `self` is not shared yet, and without `has_store` none is made.
        unsafe {
            let begin = self.base.as_ptr().add(begin as usize).cast();
            rustix::mm::mprotect(begin, octets, MprotectFlags::empty())
        }
        .map_err(system("mprotect"))?;
        self.has_store = false;
        Ok(())
    }

    /// Why the memory is not fully protected from swapping and core dumps, if it is not. Worth a
    /// warning: keys may reach the disk. `RLIMIT_MEMLOCK` or `LimitMEMLOCK=` is the usual cause.
    pub fn protection_warning(&self) -> Option<Errno> {
        self.warning
    }

    /// The sizes of its tables.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The key of the IPv6 flow labels of the gateway's TCP connections. It is as old as the region, so
    /// that labels stay when a process starts again and connections are made anew (RFC 9329, 6.1).
    pub fn label_key(&self) -> [u64; 2] {
        let [first, second] = &self.header().label_key;
        [first.load(Ordering::Relaxed), second.load(Ordering::Relaxed)]
    }

    /// The flow label of all TCP connections that this gateway opens to the peer of this name; of 20
    /// bits, never 0, and known to nobody else (RFC 6437, 3).
    pub fn flow_label(&self, peer: &str) -> u32 {
        let [first, second] = self.label_key();
        let mut hasher = SipHasher13::new_with_keys(first, second);
        hasher.write(peer.as_bytes());
        (hasher.finish() as u32 & 0xf_ffff).max(1)
    }

    /// The file, to hand it to the other process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A number by which two processes can tell that they hold the same memory.
    pub fn identity(&self) -> u64 {
        rustix::fs::fstat(&self.fd).map_or(0, |stat| stat.st_ino)
    }

    /// Takes the dataplane's lock; `None` while a dataplane has it. The kernel lets go of it when
    /// the process ends, however it ends. It is on a file description of its own, since the one
    /// that was handed over is shared with the other process.
    pub(crate) fn try_lock(&self) -> std::io::Result<Option<OwnedFd>> {
        let name = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let file = File::options().read(true).write(true).open(name)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file.into())),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether a dataplane holds the region, linked or not. In doubt it does.
    pub fn has_dataplane(&self) -> bool {
        !matches!(self.try_lock(), Ok(Some(_)))
    }

    /// What a worker has done; `None` when there is no such worker.
    pub fn worker_stats(&self, worker: u16) -> Option<WorkerStats> {
        let block = self.worker(worker)?;
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        Some(WorkerStats {
            cycles_busy: get(&block.cycles_busy),
            cycles_idle: get(&block.cycles_idle),
            bursts: get(&block.bursts),
            heartbeat_ns: get(&block.heartbeat_ns),
            epoch: get(&block.epoch),
        })
    }

    /// A worker's row of counters, in the order of [`crate::Counter::ALL`].
    pub fn counter(&self, worker: u16, counter: crate::Counter) -> u64 {
        self.worker(worker)
            .map_or(0, |block| block.counters[counter as usize].load(Ordering::Relaxed))
    }

    /// A counter, added up over the workers.
    pub fn counter_total(&self, counter: crate::Counter) -> u64 {
        (0..self.layout.workers)
            .map(|worker| self.counter(worker, counter))
            .fold(0, u64::wrapping_add)
    }

    /// Whether this is the first to ask for control's view, where it can be had.
    pub(crate) fn take_control(&self) -> bool {
        self.has_store && !self.control_taken.swap(true, Ordering::AcqRel)
    }

    /// Whether this is the first to ask for the dataplane's view.
    pub(crate) fn take_dataplane(&self) -> bool {
        !self.dataplane_taken.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn header(&self) -> &Header {
        &self.slice::<Header>(0, 1)[0]
    }

    pub(crate) fn sas(&self) -> &[SaSlot] {
        self.slice(self.offsets.sas, self.layout.sa_slots)
    }

    pub(crate) fn policies(&self) -> &[PolicySlot] {
        self.slice(self.offsets.policies, self.layout.policy_slots)
    }

    pub(crate) fn peers(&self) -> &[PeerSlot] {
        self.slice(self.offsets.peers, self.layout.peer_slots)
    }

    /// The slots of a shelf of the store; none where it is closed.
    pub(crate) fn saved_slots(&self, shelf: Shelf) -> &[SavedSlot] {
        let slots = if self.has_store { self.layout.saved(shelf).0 } else { 0 };
        self.slice(self.offsets.shelves[shelf as usize].0, slots)
    }

    /// The blocks of a shelf of the store; none where it is closed.
    pub(crate) fn saved_blocks(&self, shelf: Shelf) -> &[SavedBlock] {
        let blocks = if self.has_store { self.layout.saved(shelf).1 } else { 0 };
        self.slice(self.offsets.shelves[shelf as usize].1, blocks)
    }

    /// The block of a worker that exists; the views hold only such.
    #[inline]
    pub(crate) fn own_block(&self, worker: u16) -> &WorkerBlock {
        let offset = self.offsets.workers + u64::from(worker) * self.offsets.worker_stride;
        &self.slice::<WorkerBlock>(offset, 1)[0]
    }

    pub(crate) fn worker(&self, worker: u16) -> Option<&WorkerBlock> {
        self.slice(self.worker_offset(worker)?, 1).first()
    }

    pub(crate) fn conns(&self, worker: u16) -> &[ConnSlot] {
        self.worker_offset(worker)
            .map_or(&[], |offset| self.slice(offset + self.offsets.conns, self.layout.conn_slots))
    }

    /// The ring from a worker to control.
    pub(crate) fn up(&self, worker: u16) -> Option<Ring<'_>> {
        let offset = self.worker_offset(worker)? + self.offsets.up;
        Some(Ring::new(&self.worker(worker)?.up, self.ring_words(offset)))
    }

    /// The ring from control to a worker.
    pub(crate) fn down(&self, worker: u16) -> Option<Ring<'_>> {
        let offset = self.worker_offset(worker)? + self.offsets.down;
        Some(Ring::new(&self.worker(worker)?.down, self.ring_words(offset)))
    }

    fn ring_words(&self, offset: u64) -> &[AtomicU64] {
        self.slice(offset, self.layout.ring_bytes / 8)
    }

    fn worker_offset(&self, worker: u16) -> Option<u64> {
        (worker < self.layout.workers)
            .then(|| self.offsets.workers + u64::from(worker) * self.offsets.worker_stride)
    }

    /// A table of the region. `T` is made of atomics only.
    #[inline]
    fn slice<T>(&self, offset: u64, count: u32) -> &[T] {
        let octets = size_of::<T>() as u64 * u64::from(count);
        assert!(
            offset.is_multiple_of(align_of::<T>() as u64) && offset + octets <= self.offsets.total,
            "a table lies outside of its region"
        );
        // SAFETY: the range lies in the mapping, which is page-aligned and lives as long as
        // `self`; the offset keeps T's alignment; every T in this crate is repr(C) of AtomicU64
        // alone, for which any content is valid and which other processes may change at any time.
        unsafe {
            let first = self.base.as_ptr().add(offset as usize).cast::<T>();
            std::slice::from_raw_parts(first, count as usize)
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the mapping made in `map`, and no reference outlives self.
        // An error could only mean that it is no mapping, which nobody can repair here.
        let _ =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.offsets.total as usize) };
    }
}

/// Reads and checks a file's header without mapping it.
fn read_header(fd: &OwnedFd, octets: u64) -> Result<Layout, RegionError> {
    const WORDS: usize = 3 + LAYOUT_WORDS;
    let mut raw = [0; WORDS * 8];
    let read = rustix::io::pread(fd, &mut raw, 0).map_err(system("reading the header"))?;
    if read != raw.len() {
        return Err(RegionError::NotCulvert);
    }
    let mut words = [0; WORDS];
    for (word, chunk) in words.iter_mut().zip(raw.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*chunk);
    }
    let [magic, abi, total, layout @ ..] = words;
    if magic != layout::MAGIC {
        return Err(RegionError::NotCulvert);
    }
    if abi != layout::abi() {
        return Err(RegionError::Version { found: abi, expected: layout::abi() });
    }
    let damaged = RegionError::Damaged { octets };
    match Layout::from_words(layout) {
        Some(layout) if layout.region_bytes() == total && total == octets => Ok(layout),
        _ => Err(damaged),
    }
}

/// What a worker has done since the region was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Cycles of the time-stamp counter in batches that had work.
    pub cycles_busy: u64,
    /// Cycles in batches that had none.
    pub cycles_idle: u64,
    /// Batches that had work.
    pub bursts: u64,
    /// When the worker last passed a batch boundary, [`crate::monotonic_ns`] (as the worker
    /// refreshes it; not with every batch).
    pub heartbeat_ns: u64,
    /// The life of the dataplane in which it runs; 0: it has not begun.
    pub epoch: u64,
}
