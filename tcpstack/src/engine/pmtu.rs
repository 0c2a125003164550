//! The path's segment size: by ICMP where it comes, by probing where it does not (RFC 4821).
//!
//! A connection starts with what the interface and the peer allow. Two timeouts in a row of a large
//! segment mean a black hole, and so do three losses of the first one while nothing as large
//! arrives: small frames that do arrive beside it keep the timer from firing. The size falls to one
//! that every path carries, and a search by halves for the true one begins, each step a segment of
//! ordinary data that is larger than the others.
//!
//! Anybody can send an ICMP message. One that denies that segments pass which have passed is a claim
//! that waits for a sign of its truth, and is forgotten when the segment of which it speaks arrives
//! (RFC 5927, 7.2).

use crate::time::{Duration, Instant};
use std::ops::Range;

/// What is taken to pass everywhere, in octets of payload (RFC 4821, 7.2).
const BASE_MSS: u16 = 1024;
/// Timeouts in a row of segments larger than that, which mean a black hole (RFC 4821, 7.7).
const TIMEOUTS_MAX: u8 = 2;
/// Losses of such a segment, found by what arrives behind it, which mean the same.
const LOSSES_MAX: u8 = 3;
/// A search ends when this little could be won.
const PRECISION: u16 = 32;
/// The path may have become wider after this time (RFC 4821, 7.3: the RFC's ten minutes).
const SEARCH_AGAIN: Duration = Duration::from_secs(600);
/// Pause between the steps of a search, at the least.
const STEP: Duration = Duration::from_secs(1);
/// A probe that is lost together with other segments shows nothing (RFC 4821, 7.6.4), but so many in
/// a row do (RFC 8899, 5.1.2: `MAX_PROBES`), or a path that loses much would be asked for ever.
const INCONCLUSIVE_MAX: u8 = 3;
/// A probe that only the retransmission timer finds lost was dear: the next one comes later by this
/// factor (RFC 4821, 7.6.3).
const TIMEOUT_FACTOR: u32 = 5;

/// Losses of the first segment, found by what arrives behind it, that confirm a claim.
const CLAIM_LOSSES: u8 = 2;
/// The time of a step that does not come.
const NEVER: Instant = Instant::from_micros(u64::MAX);

/// How a probe was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeLoss {
    /// Nothing else was: its size is why.
    Alone,
    /// Other segments were lost too, or are being repaired.
    AmongOthers,
    /// The retransmission timer fired: what else was lost is not known.
    TimedOut,
}

/// What becomes of a router's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is nothing new.
    Ignored,
    /// It waits for a sign that it is true.
    Noted,
    /// Segments have this size from now on.
    Believed(u16),
}

/// The state of the search.
#[derive(Clone, Debug)]
pub(crate) struct PathMtu {
    /// What the interface and the peer allow.
    ceiling: u16,
    /// The smallest size not believed to pass, less one.
    high: u16,
    timeouts: u8,
    losses: u8,
    inconclusive: u8,
    /// The largest segment that has arrived.
    arrived: u16,
    /// The size that a router claims to let pass of a segment no larger than that; 0 if none does.
    claimed: u16,
    /// The low bits of that segment's offset.
    claimed_of: u32,
    /// The payload of the probe in flight; 0 if there is none.
    probe_len: u16,
    probe_start: u64,
    next_step: Instant,
}

impl PathMtu {
    pub(crate) fn new(ceiling: u16) -> Self {
        Self {
            ceiling,
            high: ceiling,
            timeouts: 0,
            losses: 0,
            inconclusive: 0,
            arrived: 0,
            claimed: 0,
            claimed_of: 0,
            probe_len: 0,
            probe_start: 0,
            next_step: NEVER,
        }
    }

    /// The first segment timed out; gives the size to fall back to when that means a black hole, or
    /// that a router is right.
    pub(crate) fn timed_out(
        &mut self,
        segment: &Range<u64>,
        mss: u16,
        now: Instant,
    ) -> Option<u16> {
        if self.is_claimed(segment) {
            return Some(self.believe(self.claimed, now));
        }
        let head = segment.end - segment.start;
        if !Self::is_suspect(head, mss) {
            return None;
        }
        self.timeouts += 1;
        (self.timeouts >= TIMEOUTS_MAX).then(|| self.fall_back(head, now))
    }

    /// The first segment was lost though others arrived; the same.
    pub(crate) fn lost(&mut self, segment: &Range<u64>, mss: u16, now: Instant) -> Option<u16> {
        self.losses = self.losses.saturating_add(1);
        if self.is_claimed(segment) && self.losses >= CLAIM_LOSSES {
            return Some(self.believe(self.claimed, now));
        }
        let head = segment.end - segment.start;
        if !Self::is_suspect(head, mss) {
            return None;
        }
        (self.losses >= LOSSES_MAX).then(|| self.fall_back(head, now))
    }

    /// Whether its size may be why it does not arrive.
    fn is_suspect(head: u64, mss: u16) -> bool {
        head > u64::from(BASE_MSS) && mss > BASE_MSS
    }

    fn fall_back(&mut self, head: u64, now: Instant) -> u16 {
        let below = u16::try_from(head - 1).map_or(self.high, |below| below.min(self.high));
        self.believe(BASE_MSS, now);
        self.high = below;
        BASE_MSS
    }

    /// A segment of `octets` arrived: losses of one that is no larger have other causes.
    pub(crate) fn delivered(&mut self, octets: u64, mss: u16) {
        self.arrived = self.arrived.max(u16::try_from(octets).unwrap_or(u16::MAX));
        if octets >= u64::from(mss) {
            self.losses = 0;
        }
    }

    /// All up to `una` was acknowledged, a later octet than before.
    pub(crate) fn progressed(&mut self, una: u64) {
        (self.timeouts, self.losses) = (0, 0);
        if low_bits(una).wrapping_sub(self.claimed_of).cast_signed() > 0 {
            self.claimed = 0;
        }
    }

    /// A router said of the segment at `offset` that no more than `mss` passes.
    pub(crate) fn too_big(&mut self, offset: u64, mss: u16, current: u16, now: Instant) -> Verdict {
        if mss >= current {
            Verdict::Ignored
        } else if mss < self.arrived {
            (self.claimed, self.claimed_of) = (mss, low_bits(offset));
            Verdict::Noted
        } else {
            Verdict::Believed(self.believe(mss, now))
        }
    }

    /// Whether a router claims that this segment is too big.
    fn is_claimed(&self, segment: &Range<u64>) -> bool {
        let within = self.claimed_of.wrapping_sub(low_bits(segment.start));
        self.claimed > 0 && u64::from(within) < segment.end - segment.start
    }

    /// No more than `mss` passes, as far as is known.
    fn believe(&mut self, mss: u16, now: Instant) -> u16 {
        (self.timeouts, self.losses, self.claimed) = (0, 0, 0);
        self.arrived = self.arrived.min(mss);
        self.high = mss;
        self.probe_len = 0;
        self.next_step = now + STEP;
        mss
    }

    /// The size of the next step, if one is due.
    pub(crate) fn step(&mut self, mss: u16, now: Instant) -> Option<u16> {
        if self.probe_len > 0 || self.next_step > now {
            return None;
        }
        if self.high.saturating_sub(mss) < PRECISION {
            // The end of a search: the next one looks at all sizes again.
            let wider = self.high < self.ceiling;
            self.high = self.ceiling;
            self.next_step = if wider { now + SEARCH_AGAIN } else { NEVER };
            return None;
        }
        Some(mss + (self.high - mss).div_ceil(2))
    }

    /// A segment of the size of a step left.
    pub(crate) fn probing(&mut self, range: &Range<u64>) {
        self.probe_len = u16::try_from(range.end - range.start).unwrap_or(u16::MAX);
        self.probe_start = range.start;
    }

    /// Where the probe in flight begins.
    pub(crate) fn probe_start(&self) -> Option<u64> {
        (self.probe_len > 0).then_some(self.probe_start)
    }

    fn take_probe(&mut self) -> Option<u16> {
        Some(std::mem::take(&mut self.probe_len)).filter(|len| *len > 0)
    }

    /// The probe arrived: its size is the new one.
    pub(crate) fn passed(&mut self, now: Instant) -> Option<u16> {
        let len = self.take_probe()?;
        self.inconclusive = 0;
        self.next_step = now + STEP;
        Some(len)
    }

    /// The probe was lost. No congestion control answers to that if it was alone, and the next one
    /// must not come before a loss would have been expected: `headway`, a round trip for each segment of
    /// the window (RFC 4821, 4 and 7.6.2).
    pub(crate) fn failed(&mut self, loss: ProbeLoss, headway: Duration, now: Instant) {
        let Some(len) = self.take_probe() else { return };
        if loss == ProbeLoss::AmongOthers {
            self.inconclusive += 1;
            if self.inconclusive < INCONCLUSIVE_MAX {
                self.next_step = now + STEP;
                return;
            }
        }
        self.inconclusive = 0;
        self.high = len - 1;
        let factor = if loss == ProbeLoss::TimedOut { TIMEOUT_FACTOR } else { 1 };
        self.next_step = now + (headway.max(STEP) * factor).min(SEARCH_AGAIN);
    }
}

#[allow(clippy::cast_possible_truncation)] // Modulo 2^32: no window is nearly as large.
fn low_bits(offset: u64) -> u32 {
    offset as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a path that carries up to `truth` octets.
    fn search(truth: u16) -> u16 {
        let mut now = Instant::from_micros(1);
        let mut path = PathMtu::new(1448);
        let mut mss = 1448;
        assert_eq!(path.timed_out(&(0..1448), mss, now), None, "one timeout is no black hole");
        mss = path.timed_out(&(0..1448), mss, now).expect("two are");
        for _ in 0..20 {
            now = now + STEP;
            let Some(size) = path.step(mss, now) else { break };
            path.probing(&(0..u64::from(size)));
            if size <= truth {
                mss = path.passed(now).unwrap();
            } else {
                path.failed(ProbeLoss::Alone, Duration::ZERO, now);
            }
        }
        mss
    }

    #[test]
    fn rfc4821_the_search_finds_the_path() {
        for truth in [1024u16, 1100, 1300, 1411, 1440, 1447] {
            let found = search(truth);
            assert!(found <= truth && truth - found < 2 * PRECISION, "{truth}: {found}");
        }
    }

    /// A path that has been found narrow, and a probe on it.
    fn probed() -> (PathMtu, Instant) {
        let mut path = PathMtu::new(1448);
        let now = Instant::from_micros(1);
        path.timed_out(&(0..1448), 1448, now);
        path.timed_out(&(0..1448), 1448, now);
        let now = now + STEP;
        assert_eq!(path.step(1024, now), Some(1236));
        path.probing(&(0..1236));
        (path, now)
    }

    #[test]
    fn rfc4821_7_6_2_no_probe_follows_sooner_than_a_loss_would() {
        let headway = Duration::from_secs(20);
        for (loss, wait) in [(ProbeLoss::Alone, 20), (ProbeLoss::TimedOut, 100)] {
            let (mut path, now) = probed();
            path.failed(loss, headway, now);
            assert_eq!(path.step(1024, now + Duration::from_secs(wait - 1)), None);
            assert_eq!(path.step(1024, now + Duration::from_secs(wait)), Some(1130), "{loss:?}");
        }
    }

    #[test]
    fn rfc4821_7_6_4_a_probe_lost_among_others_is_sent_again_but_not_for_ever() {
        let (mut path, mut now) = probed();
        for next in [1236, 1236, 1130] {
            path.failed(ProbeLoss::AmongOthers, STEP, now);
            now = now + STEP;
            assert_eq!(path.step(1024, now), Some(next));
            path.probing(&(0..u64::from(next)));
        }
    }

    #[test]
    fn an_icmp_message_only_narrows() {
        let mut path = PathMtu::new(1448);
        let now = Instant::from_micros(1);
        assert_eq!(path.too_big(1, 1500, 1448, now), Verdict::Ignored);
        assert_eq!(path.too_big(1, 1300, 1448, now), Verdict::Believed(1300));
    }

    #[test]
    fn rfc5927_7_2_a_claim_is_of_one_segment_and_ends_with_it() {
        let mut path = PathMtu::new(1448);
        let now = Instant::from_micros(1);
        let start = (1 << 32) - 700; // It wraps within the segment.
        path.delivered(1448, 1448);
        assert_eq!(path.too_big(start, 500, 1448, now), Verdict::Noted);
        assert_eq!(path.timed_out(&(start - 1000..start), 1448, now), None, "another one");
        path.progressed(start);
        assert_eq!(path.timed_out(&(start..start + 1000), 1448, now), Some(500));
        path.delivered(500, 500);
        assert_eq!(path.too_big(start, 300, 500, now), Verdict::Noted);
        path.progressed(start + 1);
        assert_eq!(path.timed_out(&(start..start + 500), 500, now), None, "it has arrived");
    }
}
