//! Records to the workers and from them, and the bell.

use std::sync::atomic::{Ordering, fence};

use super::ControlView;
use crate::message::{Down, Malformed, Up, decode_up};
use crate::ring::RingFull;

/// Control processes that may die while they act on one record.
const TRIES_MAX: u64 = 2;

impl ControlView {
    /// Sends a record to a worker.
    ///
    /// # Errors
    /// [`RingFull`] when the worker's ring has no room, or there is no such worker.
    pub fn send(&mut self, worker: u16, message: &Down<'_>) -> Result<(), RingFull> {
        message.push(self.region.down(worker).ok_or(RingFull)?)
    }

    /// Tells all workers to look at a policy again; one whose ring is full, later.
    pub(super) fn announce_policy(&mut self, index: u32) {
        self.tell_of_policy_later(index);
        self.tell_policies();
    }

    /// The same with the next [`ControlView::collect`].
    pub(super) fn tell_of_policy_later(&mut self, index: u32) {
        let workers = 0..self.region.layout().workers;
        self.untold_policies.extend(workers.map(|worker| (worker, index)));
    }

    /// Tells workers of policies, as far as their rings have room.
    pub(super) fn tell_policies(&mut self) {
        let mut untold = std::mem::take(&mut self.untold_policies);
        untold
            .retain(|&(worker, index)| self.send(worker, &Down::PolicyChanged { index }).is_err());
        self.untold_policies = untold;
    }

    /// Tells the owners of claimed SAs, as far as their rings have room.
    pub(super) fn tell_sas(&mut self) {
        let mut untold = std::mem::take(&mut self.untold_sas);
        untold.retain(|&(owner, index)| self.send(owner, &Down::SaChanged { index }).is_err());
        self.untold_sas = untold;
    }

    /// The next record of any worker, with the worker; they take turns.
    ///
    /// The record before it is let go of only now: with this call its caller says that whatever
    /// came of that one is saved and sent. A record that a dead predecessor was acting on comes
    /// again, but no third time ([`Malformed::Deadly`]).
    pub fn receive(&mut self) -> Option<(u16, Result<Up<'_>, Malformed>)> {
        if let Some((worker, end)) = self.received.take()
            && let Some(ring) = self.region.up(worker)
        {
            ring.release(end);
        }
        let workers = self.region.layout().workers;
        let waiting =
            (0..workers).map(|step| (self.next_worker + step) % workers).find(|worker| {
                self.region.up(*worker).is_some_and(|ring| ring.head() != ring.tail())
            })?;
        self.next_worker = (waiting + 1) % workers;
        let ring = self.region.up(waiting)?;
        let tried = self.region.worker(waiting)?.acting.begin(ring.tail());
        let record = match ring.peek(&mut self.scratch)? {
            Ok((record, end)) => {
                self.received = Some((waiting, end));
                Ok(record)
            }
            Err(corrupt) => Err(corrupt),
        };
        if tried > TRIES_MAX {
            return Some((waiting, Err(Malformed::Deadly)));
        }
        Some((waiting, decode_up(record)))
    }

    /// Wants the bell to ring at the next record. Then look at the rings once more
    /// ([`ControlView::receive`]), and wait for the bell only if they are empty.
    pub fn arm_bell(&mut self) {
        let armed = &self.region.header().control.armed;
        armed.store(armed.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Notes that control is alive.
    pub fn heartbeat(&mut self, now_ns: u64) {
        self.region.header().control.heartbeat_ns.store(now_ns, Ordering::Relaxed);
    }
}
