//! Receive and transmit queues: what a worker polls.

use crate::{Burst, device::OpenPort};
use std::{cell::Cell, marker::PhantomData, sync::Arc};

/// A receive queue. One owner, on any one thread: `Send`, not `Sync`, not `Clone`.
#[derive(Debug)]
pub struct RxQueue {
    port: Arc<OpenPort>,
    queue: u16,
    one_thread: PhantomData<Cell<()>>,
}

impl RxQueue {
    pub(crate) fn new(port: Arc<OpenPort>, queue: u16) -> Self {
        Self { port, queue, one_thread: PhantomData }
    }

    /// Receives packets behind those already in `burst`, as many as there are and as fit, and
    /// returns how many came. Never waits.
    ///
    /// Best with an empty burst: the vector paths of some drivers receive in fours and would give
    /// nothing for the last three places.
    #[inline]
    pub fn burst(&mut self, burst: &mut Burst) -> usize {
        let free = burst.free_slots();
        if free.is_empty() {
            return 0;
        }
        // SAFETY: the port runs as long as this queue exists, the queue was set up and has no
        // other user; `free` takes as many pointers as it is long.
        let count = unsafe {
            dpdk_sys::culvert_rte_eth_rx_burst(
                self.port.id(),
                self.queue,
                free.as_mut_ptr().cast(),
                free.len() as u16,
            )
        } as usize;
        // SAFETY: the driver wrote `count` mbufs, which are ours now.
        unsafe { burst.filled(count) };
        count
    }

    /// The port's number, as in [`crate::Mbuf::port`].
    #[must_use]
    pub fn port_id(&self) -> u16 {
        self.port.id()
    }

    /// The queue's number within its port, from 0.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.queue
    }
}

/// A transmit queue. One owner, on any one thread: `Send`, not `Sync`, not `Clone`.
#[derive(Debug)]
pub struct TxQueue {
    port: Arc<OpenPort>,
    queue: u16,
    prepare: bool,
    refused: u64,
    one_thread: PhantomData<Cell<()>>,
}

impl TxQueue {
    pub(crate) fn new(port: Arc<OpenPort>, queue: u16, prepare: bool) -> Self {
        Self { port, queue, prepare, refused: 0, one_thread: PhantomData }
    }

    /// Sends packets from the front of `burst` and returns how many the device took. Those it has
    /// no descriptors for stay in the burst: try again, or [`Burst::clear`] it. Never waits.
    ///
    /// Where the port has transmit offloads, each packet's request is checked first; one that the
    /// device cannot fulfil is freed and counted by [`TxQueue::refused`].
    #[inline]
    pub fn burst(&mut self, burst: &mut Burst) -> usize {
        if !self.prepare {
            return self.send(burst, burst.len());
        }
        let mut sent = 0;
        // Each turn sends or drops a packet, or ends.
        while !burst.is_empty() {
            let ready = self.prepare(burst);
            let accepted = self.send(burst, ready);
            sent += accepted;
            if accepted < ready {
                break;
            }
        }
        sent
    }

    /// Sends of the first `ready` mbufs what the device takes.
    #[inline]
    fn send(&mut self, burst: &mut Burst, ready: usize) -> usize {
        debug_assert!(ready <= burst.len());
        if ready == 0 {
            return 0;
        }
        // SAFETY: the port runs as long as this queue exists, the queue was set up and has no
        // other user; the first `ready` mbufs of the burst are ours to give.
        let sent = unsafe {
            dpdk_sys::culvert_rte_eth_tx_burst(
                self.port.id(),
                self.queue,
                burst.as_mut_ptr().cast(),
                ready as u16,
            )
        } as usize;
        burst.forget_first(sent);
        sent
    }

    /// Has the driver check requests and write pseudo-header checksums. Returns how many packets
    /// at the front are ready; frees the one behind them that is not, if any, so that it cannot
    /// block the burst for ever.
    fn prepare(&mut self, burst: &mut Burst) -> usize {
        // SAFETY: as in `send`; preparing only changes packets in place.
        let ready = unsafe {
            dpdk_sys::culvert_rte_eth_tx_prepare(
                self.port.id(),
                self.queue,
                burst.as_mut_ptr().cast(),
                burst.len() as u16,
            )
        } as usize;
        if ready < burst.len() {
            drop(burst.remove(ready));
            self.refused += 1;
        }
        ready
    }

    /// Packets freed since the start because their offload request was impossible.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// The port's number, as in [`crate::Mbuf::port`].
    #[must_use]
    pub fn port_id(&self) -> u16 {
        self.port.id()
    }

    /// The queue's number within its port, from 0.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.queue
    }
}
