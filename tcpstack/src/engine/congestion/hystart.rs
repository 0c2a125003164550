//! HyStart++ (RFC 9406): leaving slow start when the round-trip time rises, before a loss.

use super::AckSample;
use crate::time::Duration;

const MIN_RTT_THRESHOLD: Duration = Duration::from_millis(4);
const MAX_RTT_THRESHOLD: Duration = Duration::from_millis(16);
const MIN_RTT_DIVISOR: u32 = 8;
const RTT_SAMPLES: u32 = 8;
/// Growth in conservative slow start is slower by this factor.
const CSS_GROWTH_DIVISOR: u64 = 4;
const CSS_ROUNDS: u32 = 5;

/// The state of RFC 9406, 4.2; kept until slow start ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HyStart {
    round_end: u64,
    last_round_min: Option<Duration>,
    round_min: Option<Duration>,
    samples: u32,
    /// Conservative slow start: the minimum at its start, and rounds spent in it.
    conservative: Option<(Duration, u32)>,
}

impl HyStart {
    pub(crate) const fn new() -> Self {
        Self { round_end: 0, last_round_min: None, round_min: None, samples: 0, conservative: None }
    }

    /// By how much slow start's growth is divided now.
    pub(crate) fn growth_divisor(&self) -> u64 {
        if self.conservative.is_some() { CSS_GROWTH_DIVISOR } else { 1 }
    }

    /// Takes an acknowledgment; `true` when slow start should end.
    pub(crate) fn on_ack(&mut self, sample: &AckSample) -> bool {
        if sample.una >= self.round_end && self.next_round(sample.nxt) {
            return true;
        }
        if let Some(rtt) = sample.rtt {
            self.round_min = Some(self.round_min.map_or(rtt, |min| min.min(rtt)));
            self.samples += 1;
        }
        self.judge();
        false
    }

    /// A round trip is over; `true` after the last one of conservative slow start.
    fn next_round(&mut self, nxt: u64) -> bool {
        self.round_end = nxt;
        self.last_round_min = self.round_min.take();
        self.samples = 0;
        match &mut self.conservative {
            Some((_, rounds)) => {
                *rounds += 1;
                *rounds >= CSS_ROUNDS
            }
            None => false,
        }
    }

    fn judge(&mut self) {
        if self.samples < RTT_SAMPLES {
            return;
        }
        let (Some(current), Some(last)) = (self.round_min, self.last_round_min) else { return };
        match self.conservative {
            Some((baseline, _)) if current < baseline => self.conservative = None,
            Some(_) => {}
            None => {
                let threshold =
                    (last / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESHOLD, MAX_RTT_THRESHOLD);
                if current >= last + threshold {
                    self.conservative = Some((current, 0));
                }
            }
        }
    }
}
