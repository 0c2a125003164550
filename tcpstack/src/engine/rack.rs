//! Loss detection by time: RACK (RFC 8985, 6), and the tail loss probe's state (RFC 8985, 7).

use super::rtt::RttEstimator;
use super::scoreboard::{Scoreboard, Sent};
use crate::time::{Duration, Instant};
use std::ops::Range;

/// Recoveries for which a widened reordering window is kept (RFC 8985, 6.2, step 4).
const REO_WND_PERSIST: u8 = 16;
/// Multiples of a quarter of the minimum RTT that the window may grow to.
const REO_WND_MULT_MAX: u8 = 8;
/// So many SACKed segments prove a loss where no reordering was seen (RFC 8985, 6.2, step 4).
const DUP_THRESHOLD: usize = 3;

/// RACK's state for one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rack {
    /// The most recently sent segment among those delivered: when it was sent, and its end.
    newest: (Instant, u64),
    /// Its round-trip time in microseconds.
    rtt_us: u32,
    /// The highest offset delivered.
    forward_ack: u64,
    reordering_seen: bool,
    reo_wnd_mult: u8,
    reo_wnd_persist: u8,
    /// A D-SACK widens the window once for each round, which ends at this offset.
    dsack_round: u64,
}

impl Rack {
    pub(crate) const fn new() -> Self {
        Self {
            newest: (Instant::from_micros(0), 0),
            rtt_us: 0,
            forward_ack: 0,
            reordering_seen: false,
            reo_wnd_mult: 1,
            reo_wnd_persist: REO_WND_PERSIST,
            dsack_round: 0,
        }
    }

    /// Takes a segment newly delivered at `now` (RFC 8985, 6.2, steps 2 and 3). `echo_is_older`
    /// says that the peer's timestamp echo names a transmission before the last one.
    pub(crate) fn delivered(
        &mut self,
        segment: &Sent,
        now: Instant,
        echo_is_older: bool,
        min_rtt: Option<Duration>,
    ) {
        let end = segment.range.end;
        if end > self.forward_ack {
            self.forward_ack = end;
        } else if end < self.forward_ack && !segment.retransmitted {
            self.reordering_seen = true;
        }
        let rtt = now.since(segment.sent_at);
        // A retransmission that is acknowledged faster than the path allows was not the one that
        // arrived (step 2).
        if segment.retransmitted && (echo_is_older || min_rtt.is_some_and(|min| rtt < min)) {
            return;
        }
        if (segment.sent_at, end) > self.newest {
            self.newest = (segment.sent_at, end);
            self.rtt_us = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        }
    }

    /// The peer reported a duplicate (RFC 2883): widen the window, once a round. Any will do
    /// (RFC 8985, 6.2, step 4): most are of repairs that a recovery now over has forgotten, and one that
    /// the network has made costs no more than time.
    pub(crate) fn dsack(&mut self, una: u64, nxt: u64) {
        if una >= self.dsack_round {
            self.dsack_round = nxt;
            self.reo_wnd_mult = (self.reo_wnd_mult + 1).min(REO_WND_MULT_MAX);
            self.reo_wnd_persist = REO_WND_PERSIST;
        }
    }

    /// A recovery ended: a window widened long ago narrows again.
    pub(crate) fn recovery_ended(&mut self) {
        self.reo_wnd_persist = self.reo_wnd_persist.saturating_sub(1);
        if self.reo_wnd_persist == 0 {
            self.reo_wnd_mult = 1;
            self.reo_wnd_persist = REO_WND_PERSIST;
        }
    }

    /// How much later than its successors a segment may arrive (RFC 8985, 6.2, step 4).
    fn reordering_window(
        &self,
        rtt: &RttEstimator,
        board: &Scoreboard,
        recovering: bool,
    ) -> Duration {
        let enough_sacked = board.sacked_segments() >= DUP_THRESHOLD;
        if !self.reordering_seen && (recovering || enough_sacked) {
            return Duration::ZERO;
        }
        let quarter = rtt.minimum().unwrap_or_default() / 4;
        (quarter * u32::from(self.reo_wnd_mult)).min(rtt.smoothed().unwrap_or(quarter))
    }

    /// Marks what is lost by now (RFC 8985, 6.2, step 5); each segment goes to `lost`. Returns when
    /// to ask again.
    pub(crate) fn detect(
        &self,
        board: &mut Scoreboard,
        rtt: &RttEstimator,
        recovering: bool,
        now: Instant,
        lost: impl FnMut(&Sent),
    ) -> Option<Instant> {
        let allowance = self.allowance(rtt, board, recovering);
        board.detect_lost(self.newest, allowance, now, lost)
    }

    /// The retransmission timer fired: the first segment is lost, and of the others what should have
    /// been acknowledged by now (RFC 8985, 6.3). Gives the time of which that is true.
    pub(crate) fn timed_out(
        &self,
        board: &mut Scoreboard,
        rtt: &RttEstimator,
        recovering: bool,
        now: Instant,
    ) -> Instant {
        let allowance = self.allowance(rtt, board, recovering);
        board.detect_lost((now, u64::MAX), allowance, now, |_| {});
        board.mark_first_lost(|_| {});
        let allowance = u64::try_from(allowance.as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(now.micros().saturating_sub(allowance))
    }

    /// How long after its transmission a segment's acknowledgment is overdue.
    fn allowance(&self, rtt: &RttEstimator, board: &Scoreboard, recovering: bool) -> Duration {
        let window = self.reordering_window(rtt, board, recovering);
        Duration::from_micros(self.rtt_us.into()) + window
    }
}

/// The tail loss probe (RFC 8985, 7): one probe in flight at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TailLossProbe {
    probe: Option<Probe>,
    /// No round trip was measured since the last one left.
    unmeasured: bool,
}

/// What a probe carried, and whether that was a retransmission.
#[derive(Clone, Copy, Debug)]
struct Probe {
    start: u64,
    end: u64,
    again: bool,
}

/// Longest delay of an acknowledgment that a probe allows for (RFC 8985, 7.2).
const MAX_ACK_DELAY: Duration = Duration::from_millis(25);
/// What the clocks of both ends' timers may add to it.
const TICKS: Duration = Duration::from_millis(2);

impl TailLossProbe {
    /// How long after the last transmission a probe is due (RFC 8985, 7.2). `delayed` says that the
    /// peer may wait with its acknowledgment for more to come.
    pub(crate) fn timeout(rtt: &RttEstimator, delayed: bool) -> Duration {
        let delay = if delayed { MAX_ACK_DELAY } else { Duration::ZERO };
        let pto = rtt.smoothed().map_or(super::rtt::RTO_INITIAL, |srtt| srtt * 2 + delay + TICKS);
        pto.min(rtt.rto())
    }

    /// Whether a probe is out.
    pub(crate) fn is_out(&self) -> bool {
        self.probe.is_some()
    }

    /// Whether one may leave (RFC 8985, 7.3): no other is out, and a round trip was measured since.
    pub(crate) fn may_leave(&self) -> bool {
        !self.is_out() && !self.unmeasured
    }

    /// A round trip was measured.
    pub(crate) fn measured(&mut self) {
        self.unmeasured = false;
    }

    /// A probe of `range` was sent; `again` says that it is a retransmission.
    pub(crate) fn sent(&mut self, range: &Range<u64>, again: bool) {
        self.probe = Some(Probe { start: range.start, end: range.end, again });
        self.unmeasured = true;
    }

    /// Takes an acknowledgment; `true` if it shows that the probe repaired a loss, to which
    /// congestion control must answer (RFC 8985, 7.4.2). `duplicate` is what a D-SACK names; `repeats`
    /// says that it is a duplicate acknowledgment without any block.
    pub(crate) fn acknowledged(
        &mut self,
        una: u64,
        duplicate: Option<&Range<u64>>,
        repeats: bool,
    ) -> bool {
        let Some(probe) = self.probe.filter(|probe| una >= probe.end) else { return false };
        // Its peer may count no FIN; the duplicate of another segment is the network's.
        let of_probe =
            duplicate.is_some_and(|range| probe.start <= range.start && range.end <= probe.end);
        let both_arrived = of_probe || (una == probe.end && repeats);
        if !probe.again || both_arrived || una > probe.end {
            self.probe = None;
        }
        probe.again && !both_arrived && una > probe.end
    }

    /// A retransmission timeout or recovery takes over.
    pub(crate) fn cancel(&mut self) {
        self.probe = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::scoreboard::Stamp;

    const MSS: u64 = 1000;
    const RTT: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant::from_micros(1_000_000 + ms * 1000)
    }

    /// Ten segments, one each millisecond, and a round-trip time of 100 ms.
    fn flight() -> (Rack, Scoreboard, RttEstimator) {
        let mut board = Scoreboard::new();
        for n in 0..10 {
            let stamp = Stamp { sent_at: at(n), delivered_at: at(n), ..Stamp::default() };
            board.push(n * MSS..(n + 1) * MSS, stamp);
        }
        let mut rtt = RttEstimator::new();
        rtt.sample(RTT, at(0));
        (Rack::new(), board, rtt)
    }

    fn sack(rack: &mut Rack, board: &mut Scoreboard, block: Range<u64>, now: Instant) {
        board.sack(block, |sent| rack.delivered(sent, now, false, Some(RTT)));
    }

    /// Outside of a recovery: the octets newly lost, and when to ask again.
    fn detect(
        rack: &Rack,
        board: &mut Scoreboard,
        rtt: &RttEstimator,
        now: Instant,
    ) -> (u64, Option<Instant>) {
        let mut lost = 0;
        let again =
            rack.detect(board, rtt, false, now, |sent| lost += sent.range.end - sent.range.start);
        (lost, again)
    }

    #[test]
    fn rfc8985_6_2_fewer_than_three_wait_a_quarter_of_the_round_trip() {
        let (mut rack, mut board, rtt) = flight();
        sack(&mut rack, &mut board, MSS..2 * MSS, at(101));
        let (lost, again) = detect(&rack, &mut board, &rtt, at(101));
        assert_eq!((lost, again), (0, Some(at(125))));
        assert_eq!(detect(&rack, &mut board, &rtt, at(125)), (MSS, None));
    }

    #[test]
    fn rfc8985_6_2_three_do_not_wait_unless_reordering_was_seen() {
        let (mut rack, mut board, rtt) = flight();
        sack(&mut rack, &mut board, MSS..4 * MSS, at(103));
        assert_eq!(detect(&rack, &mut board, &rtt, at(103)), (MSS, None));

        // Segments count, however small they are.
        let (mut rack, mut board, rtt) = flight();
        let end = 10 * MSS;
        for n in 0..3 {
            let stamp = Stamp { sent_at: at(10 + n), ..Stamp::default() };
            board.push(end + n..end + n + 1, stamp);
        }
        sack(&mut rack, &mut board, end..end + 3, at(112));
        assert_eq!(detect(&rack, &mut board, &rtt, at(112)), (10 * MSS, None));

        let (mut rack, mut board, rtt) = flight();
        sack(&mut rack, &mut board, 5 * MSS..6 * MSS, at(105));
        sack(&mut rack, &mut board, MSS..4 * MSS, at(105));
        let (lost, again) = detect(&rack, &mut board, &rtt, at(105));
        assert_eq!((lost, again), (0, Some(at(125))), "segments 2 to 4 came after the sixth");
    }

    #[test]
    fn rfc8985_6_2_a_duplicate_widens_the_window_once_a_round_and_for_sixteen_recoveries() {
        let (mut rack, mut board, rtt) = flight();
        rack.dsack(0, 10 * MSS);
        rack.dsack(5 * MSS, 10 * MSS);
        sack(&mut rack, &mut board, MSS..2 * MSS, at(101));
        assert_eq!(detect(&rack, &mut board, &rtt, at(101)).1, Some(at(150)), "two quarters");
        (0..REO_WND_PERSIST).for_each(|_| rack.recovery_ended());
        assert_eq!(detect(&rack, &mut board, &rtt, at(101)).1, Some(at(125)));
        for round in 1..100 {
            rack.dsack(round * 10 * MSS, (round + 1) * 10 * MSS);
        }
        let longest = detect(&rack, &mut board, &rtt, at(101)).1;
        assert_eq!(longest, Some(at(200)), "no more than the smoothed round-trip time");
    }

    /// Step 2: an acknowledgment of a retransmission that comes too soon was for the original.
    #[test]
    fn rfc8985_6_2_an_ambiguous_acknowledgment_proves_nothing() {
        let (mut rack, mut board, rtt) = flight();
        let again = Stamp { sent_at: at(200), ..Stamp::default() };
        board.retransmitted(0, again);
        sack(&mut rack, &mut board, 0..MSS, at(210));
        assert_eq!(detect(&rack, &mut board, &rtt, at(210)), (0, None));
    }

    #[test]
    fn rfc8985_7_2_the_probe_timeout() {
        let mut rtt = RttEstimator::new();
        rtt.sample(Duration::from_millis(50), at(0));
        assert_eq!(TailLossProbe::timeout(&rtt, false), Duration::from_millis(102));
        assert_eq!(TailLossProbe::timeout(&rtt, true), Duration::from_millis(127));
    }

    /// RFC 8985, 6.3: the first segment and what is older than a round trip and the reordering window.
    #[test]
    fn rfc8985_6_3_a_timeout_leaves_what_is_young() {
        let (mut rack, mut board, rtt) = flight();
        board.acknowledge(MSS, |sent| rack.delivered(sent, at(100), false, Some(RTT)));
        rack.timed_out(&mut board, &rtt, false, at(128));
        assert_eq!(board.next_lost(), Some(MSS..2 * MSS));
        assert_eq!(board.pipe(), 6 * MSS, "what left after the fourth is in the network");
        rack.timed_out(&mut board, &rtt, false, at(134));
        assert_eq!(board.pipe(), 0);
        let (rack, mut board, rtt) = flight();
        rack.timed_out(&mut board, &rtt, false, at(1));
        assert_eq!(board.pipe(), 9 * MSS, "the first, however young");
    }

    #[test]
    fn rfc8985_7_4_2_what_the_acknowledgment_of_a_probe_means() {
        let sent = |again| {
            let mut probe = TailLossProbe::default();
            probe.sent(&(0..1000), again);
            probe
        };
        assert!(!sent(false).acknowledged(1000, None, false), "new data repairs nothing");
        let mut both = sent(true);
        assert!(!both.acknowledged(1000, Some(&(0..1000)), false), "both arrived");
        assert!(!both.is_out());
        let mut both = sent(true);
        assert!(!both.acknowledged(1000, None, false), "one of them, so far");
        assert!(!both.acknowledged(1000, None, true), "both arrived, without SACK");
        assert!(!both.is_out());
        assert!(sent(true).acknowledged(2000, None, false), "only one did: there was a loss");
        assert!(sent(true).acknowledged(2000, Some(&(1000..2000)), false), "of another segment");
        assert!(!sent(true).acknowledged(999, None, false));
    }
}
