//! Pools of mbufs: all packet memory, taken before the first packet.

use crate::{
    BURST_SIZE, Burst, Eal, Mbuf,
    error::{Errno, PoolError},
};
use std::{ffi::CString, ptr::NonNull};

/// Longest name of a pool, in octets (`RTE_MEMPOOL_NAMESIZE` less the prefix of its memory zone).
pub(crate) const NAME_MAX: usize = 25;
/// Largest cache of an lcore, in mbufs.
pub(crate) const CACHE_MAX: u32 = dpdk_sys::RTE_MEMPOOL_CACHE_MAX_SIZE;
/// Octets that an mbuf keeps free in front of a received frame.
pub(crate) const HEADROOM: u16 = dpdk_sys::RTE_PKTMBUF_HEADROOM as u16;
/// `SOCKET_ID_ANY`.
const ANY_SOCKET: i32 = -1;

/// How a pool is made.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// Unique in the process, at most 25 octets.
    pub name: String,
    /// How many mbufs; a power of two less one wastes no memory. Enough for all descriptors of the
    /// queues that receive from it and transmit its mbufs, all bursts and rings, and
    /// [`PoolConfig::cache`] for each lcore: a device whose descriptors cannot be refilled drops.
    pub mbufs: u32,
    /// Mbufs that each lcore may keep to itself, taking and returning without touching the pool.
    pub cache: u32,
    /// Octets of each mbuf's buffer, its headroom of 128 included.
    pub data_room: u16,
    /// NUMA socket to take the memory from; any if `None`.
    pub socket: Option<u32>,
}

impl PoolConfig {
    /// 8,191 mbufs that take a frame of 2,048 octets, a cache of 256, memory of any socket.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            mbufs: 8_191,
            cache: 256,
            data_room: 2_048 + HEADROOM,
            socket: None,
        }
    }
}

/// A pool of mbufs, usable from every thread, cheapest from lcores. It lives as long as the
/// process: its mbufs may be in any ring or any device's descriptors.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    raw: NonNull<dpdk_sys::rte_mempool>,
    mbufs: u32,
    data_room: u16,
}

// SAFETY: a mempool may be used by all threads: lcores have caches of their own, and what is
// shared is DPDK's multi-producer, multi-consumer ring. It is never freed.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// Takes the memory and makes the mbufs.
    ///
    /// # Errors
    /// What [`PoolError`] lists.
    pub fn new(_eal: Eal, config: &PoolConfig) -> Result<Self, PoolError> {
        let bad_name = || PoolError::BadName { name: config.name.clone() };
        if config.name.is_empty() || config.name.len() > NAME_MAX {
            return Err(bad_name());
        }
        let name = CString::new(config.name.as_str()).map_err(|_| bad_name())?;
        if config.cache > CACHE_MAX || config.cache + config.cache / 2 > config.mbufs {
            return Err(PoolError::CacheTooLarge { cache: config.cache, mbufs: config.mbufs });
        }
        let socket = config.socket.and_then(|id| id.try_into().ok()).unwrap_or(ANY_SOCKET);
        // SAFETY: the EAL runs; the name is a C string that is copied.
        let raw = unsafe {
            dpdk_sys::rte_pktmbuf_pool_create(
                name.as_ptr(),
                config.mbufs,
                config.cache,
                0,
                config.data_room,
                socket,
            )
        };
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, mbufs: config.mbufs, data_room: config.data_room }),
            None => match Errno::last() {
                errno if errno.number() == libc::ENOMEM => {
                    Err(PoolError::NoMemory { mbufs: config.mbufs, data_room: config.data_room })
                }
                errno => Err(PoolError::Create { name: config.name.clone(), errno }),
            },
        }
    }

    /// An empty mbuf with its headroom in front, or `None` when all are in use.
    #[inline]
    #[must_use]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool lives.
        let raw = unsafe { dpdk_sys::culvert_rte_pktmbuf_alloc(self.raw.as_ptr()) };
        // SAFETY: a fresh mbuf, which nobody else has.
        NonNull::new(raw).map(|raw| unsafe { Mbuf::from_raw(raw) })
    }

    /// Adds `count` empty mbufs to a burst, all or none: `false` when the pool has not so many
    /// left or the burst no room for them. One call for all is half as dear as one for each.
    #[inline]
    #[must_use]
    pub fn alloc_bulk(&self, burst: &mut Burst, count: usize) -> bool {
        let free = burst.free_slots();
        if count > free.len() {
            return false;
        }
        // SAFETY: `free` has room for `count` pointers; the pool lives. DPDK writes all or none.
        let status = unsafe {
            dpdk_sys::culvert_rte_pktmbuf_alloc_bulk(
                self.raw.as_ptr(),
                free.as_mut_ptr().cast(),
                count as u32,
            )
        };
        if status == 0 {
            // SAFETY: the first `count` free slots now hold fresh mbufs.
            unsafe { burst.filled(count) };
        }
        status == 0
    }

    /// The longest packet that [`Pool::packet`] can make, in octets.
    #[must_use]
    pub fn packet_bytes_max(&self) -> usize {
        BURST_SIZE * self.room() as usize
    }

    /// A packet of `bytes` octets in as many mbufs as it needs, all but the last of them full. `fill`
    /// writes one piece after the other. `None`, without a call of `fill`, when the pool has not so
    /// many mbufs left or a packet cannot be that long.
    pub fn packet(&self, bytes: usize, mut fill: impl FnMut(&mut [u8])) -> Option<Mbuf> {
        let room = self.room() as usize;
        let mut mbufs = Burst::new();
        if bytes > self.packet_bytes_max()
            || !self.alloc_bulk(&mut mbufs, bytes.div_ceil(room).max(1))
        {
            return None;
        }
        let mut left = bytes;
        for mbuf in mbufs.iter_mut() {
            let piece = left.min(room);
            fill(mbuf.append(piece)?);
            left -= piece;
        }
        // From behind: what is put in front has one segment, so that no chain is walked along.
        let mut packet = mbufs.pop()?;
        while let Some(mut front) = mbufs.pop() {
            front.chain(packet).ok()?;
            packet = front;
        }
        Some(packet)
    }

    /// Mbufs that are free now, those in the lcores' caches included. It walks over all caches: not
    /// for every packet.
    #[must_use]
    pub fn available(&self) -> u32 {
        // SAFETY: the pool lives; the counters are read without a lock, so while others allocate
        // the figure is a snapshot.
        unsafe { dpdk_sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// Mbufs that the pool was made with.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.mbufs
    }

    /// Octets that fit behind the headroom of a fresh mbuf.
    #[must_use]
    pub fn room(&self) -> u32 {
        u32::from(self.data_room.saturating_sub(HEADROOM))
    }

    pub(crate) fn as_ptr(&self) -> *mut dpdk_sys::rte_mempool {
        self.raw.as_ptr()
    }
}
