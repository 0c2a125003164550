//! F-RTO (RFC 5682): was a retransmission timeout needed?
//!
//! After it only the first segment is sent again. The acknowledgment of that may have been under way
//! all the time, where no timestamp tells; so two new segments leave before anything else is
//! repeated. What comes back then decides: something that was sent only before the timeout shows
//! that the path was just slow ([`Sender::check_spurious`](super::ack)), a repetition that the rest is
//! lost.

use super::recovery::Recovery;
use super::sender::Sender;
use crate::engine::lazy::Idle;

/// New segments that leave (RFC 5682, 2.1, step 2b).
const NEW_SEGMENTS: u8 = 2;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    /// The first segment was sent again; its acknowledgment has not come.
    Repeated,
    /// So many new segments may leave yet; the next acknowledgment decides.
    Probing(u8),
    /// It is conventional recovery: everything is sent again.
    Over,
}

impl Forward {
    /// The timer fires again: that nothing came back for new data proves nothing.
    pub(super) fn timed_out(self) -> Self {
        if self == Self::Repeated { self } else { Self::Over }
    }
}

impl Sender {
    fn forward_mut(&mut self) -> Option<&mut Forward> {
        if self.recovery.is_idle() {
            return None;
        }
        match &mut *self.recovery {
            Recovery::Timeout { forward, .. } => Some(forward),
            _ => None,
        }
    }

    /// Takes an acknowledgment that did not end the recovery (RFC 5682, 2.1, steps 2 and 3; 3.1 for
    /// SACK, with which a repetition decides nothing in step 2). `advanced` says that it moved the cumulative point, `timestamps` that there are some:
    /// then they have decided already.
    pub(super) fn step_forward(&mut self, advanced: bool, timestamps: bool) {
        let has_new = self.next_new().is_some();
        let (segment, sack) = (u64::from(self.mss), self.sack);
        let Some(forward) = self.forward_mut() else { return };
        let failed = matches!(forward, Forward::Probing(_)) && !advanced;
        *forward = match *forward {
            Forward::Repeated if advanced && !timestamps && has_new => {
                Forward::Probing(NEW_SEGMENTS)
            }
            Forward::Repeated if !advanced && sack => Forward::Repeated,
            _ => Forward::Over,
        };
        if failed && !self.sack {
            // Step 3a: a window of three, for what the new segments take is not the lost one's.
            self.inflation = segment;
        }
    }

    /// Whether retransmissions wait for the answer to new data.
    pub(super) fn is_probing_forward(&self) -> bool {
        matches!(*self.recovery, Recovery::Timeout { forward: Forward::Probing(_), .. })
    }

    /// Whether one more new segment may leave for that.
    pub(super) fn may_probe_forward(&self) -> bool {
        matches!(*self.recovery, Recovery::Timeout { forward: Forward::Probing(1..), .. })
    }

    /// A new segment leaves.
    pub(super) fn forward_sent(&mut self) {
        if let Some(Forward::Probing(left)) = self.forward_mut() {
            *left = left.saturating_sub(1);
        }
    }
}
