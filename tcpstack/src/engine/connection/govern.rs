//! Which congestion control governs a connection, and how another one takes its place while the
//! connection lives: it begins with what the one before has found of the path, and a repair of
//! losses goes on under it.

use super::recovery::Recovery;
use super::sender::Sender;
use super::{Connection, Context};
use crate::engine::buffer::ChunkPool;
use crate::engine::congestion::CongestionControl;
use crate::engine::lazy::Idle;
use crate::time::Instant;

impl Connection {
    /// Which congestion control governs.
    pub(crate) fn congestion_control(&self) -> CongestionControl {
        self.tx.controller.kind()
    }

    /// Has this congestion control govern from now on.
    pub(crate) fn set_congestion_control(
        &mut self,
        context: &mut Context<'_>,
        control: CongestionControl,
    ) {
        self.tx.set_control(control, context.pool, context.now);
    }
}

impl Sender {
    /// Another controller governs from now on. A repair that is under way goes on; to the new
    /// controller it begins now.
    fn set_control(&mut self, control: CongestionControl, pool: &mut ChunkPool, now: Instant) {
        if self.controller.kind() == control {
            return;
        }
        let (mss, seed) = (u64::from(self.mss), self.space.wire(0));
        let successor = self.controller.successor(mss, seed, self.rtt.smoothed(), now);
        self.controller.shrink(&mut pool.spares.signals);
        self.controller = successor;
        if !self.board.is_empty() {
            self.controller.hold(&mut pool.spares.signals);
        }
        if self.recovery.is_idle() {
            return;
        }
        let flight = self.flight();
        match *self.recovery {
            Recovery::Open => {}
            Recovery::Fast { end, undo, .. } => {
                self.controller.on_loss(now, flight.outstanding);
                let window = self.recovery_window(flight);
                *self.recovery = Recovery::Fast { end, window, undo };
            }
            Recovery::Timeout { .. } => {
                self.controller.on_timeout(flight.outstanding, self.board.pipe());
            }
        }
    }
}
