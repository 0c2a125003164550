//! Where frames come from and go to: the seam between a worker and its ports.
//!
//! A worker is generic in it, so that the same code runs on a NIC's queues, on DPDK's virtual
//! devices and on queues in memory, where tests and benchmarks put frames in by hand.

use culvert_dpdk::{Burst, RxQueue, TxQueue};

/// One port's queues of one worker.
pub trait Link {
    /// Adds the frames that have arrived, as many as fit, behind those in `burst`. Never waits.
    fn receive(&mut self, burst: &mut Burst) -> usize;

    /// Sends frames from the front of `burst` and leaves those for which there is no room now.
    /// Never waits.
    fn transmit(&mut self, burst: &mut Burst) -> usize;
}

/// A queue pair of a DPDK port.
#[derive(Debug)]
pub struct QueuePair {
    /// Frames from the wire.
    pub rx: RxQueue,
    /// Frames to the wire.
    pub tx: TxQueue,
}

impl Link for QueuePair {
    #[inline]
    fn receive(&mut self, burst: &mut Burst) -> usize {
        self.rx.burst(burst)
    }

    #[inline]
    fn transmit(&mut self, burst: &mut Burst) -> usize {
        self.tx.burst(burst)
    }
}
