//! The segments of a script: those that are expected and those that arrive.

use std::time::Duration;

use culvert_tcpstack::{RxChecksum, SegmentOutcome};

use super::{PEER_ISN, PEER_PORT, Play};
use crate::text::{parse_segment, pattern, peer_clock};
use crate::wire::Segment;

impl Play {
    pub(super) fn show(&self, segment: &Segment) -> String {
        let seq = segment.seq.wrapping_sub(self.our_isn.unwrap_or(0)).cast_signed();
        let ack = segment.ack.wrapping_sub(PEER_ISN).cast_signed();
        let sack: Vec<_> = segment
            .sack
            .iter()
            .map(|(l, r)| format!("{}-{}", l.wrapping_sub(PEER_ISN), r.wrapping_sub(PEER_ISN)))
            .collect();
        format!(
            "flags {:#04x} {seq}({}) ack {ack} win {} mss {:?} ws {:?} sackok {} ts {:?} sack {sack:?}",
            segment.flags,
            segment.data.len(),
            segment.window,
            segment.mss,
            segment.scale,
            segment.sack_permitted,
            segment.timestamps,
        )
    }

    pub(super) fn expect(&mut self, (earliest, latest): (Duration, Duration), words: &str) {
        let until = self.mark + latest;
        while self.sent.is_empty() && self.stack.poll_timeout().is_some_and(|at| at <= until) {
            let at = self.stack.poll_timeout().unwrap();
            self.run_until(at.max(self.now));
        }
        let Some((at, segment)) = self.sent.pop_front() else { self.fail("nothing was sent") };
        let shown = self.show(&segment);
        if at.since(self.mark) < earliest || at > until {
            self.fail(&format!("{shown} left at {:?}", at.since(self.mark)));
        }
        let mut expected = self.segment(words, Segment::default());
        // What the script leaves open is as it is.
        let words: Vec<&str> = words.split_whitespace().collect();
        if !words.contains(&"win") {
            expected.window = segment.window;
        }
        if !words[0].contains('P') {
            expected.flags |= segment.flags & 8;
        }
        match words.iter().find(|word| word.starts_with("ts")) {
            Some(&"ts") => expected.timestamps = segment.timestamps,
            Some(word) if word.starts_with("ts=0:") => {}
            Some(_) => {
                expected.timestamps = segment
                    .timestamps
                    .map(|(value, _)| (value, expected.timestamps.map_or(0, |(_, echo)| echo)));
            }
            None => {}
        }
        (expected.source_port, expected.destination_port) = (self.our_port, PEER_PORT);
        if !expected.data.is_empty() {
            let start = segment.seq.wrapping_sub(self.our_isn.unwrap()) - 1;
            expected.data.iter_mut().zip(u64::from(start)..).for_each(|(o, at)| *o = pattern(at));
        }
        if expected != segment {
            self.fail(&format!("sent was\n{shown}, expected\n{}", self.show(&expected)));
        }
        self.mark = at;
    }

    pub(super) fn arrive(&mut self, words: &str) {
        let (words, reason) = words.split_once("=>").unwrap_or((words, ""));
        let arriving = Segment {
            source_port: PEER_PORT,
            destination_port: self.our_port,
            window: 0xffff,
            ..Segment::default()
        };
        let mut segment = self.segment_of_peer(words, arriving);
        let is_syn = segment.flags & 2 != 0;
        let first = segment.seq.wrapping_add(u32::from(is_syn));
        let start = first.wrapping_sub(PEER_ISN).wrapping_sub(1).cast_signed();
        for (octet, offset) in segment.data.iter_mut().zip(i64::from(start)..) {
            *octet = pattern(offset as u64);
        }
        let (eager, read) = (self.eager, &mut self.read);
        let deliver = &mut |_, octets: &mut [u8]| {
            if !eager {
                return 0;
            }
            for octet in octets.iter() {
                assert_eq!(*octet, pattern(*read), "received octet {read}");
                *read += 1;
            }
            octets.len()
        };
        let outcome = self.stack.handle_segment(
            self.now,
            &mut segment.packet(self.family),
            RxChecksum::Unknown,
            deliver,
        );
        let got = match outcome {
            SegmentOutcome::Accepted => "accepted",
            SegmentOutcome::Dropped(reason) => reason.name(),
        };
        if !reason.is_empty() && reason.trim() != got {
            self.fail(&format!("the segment was {got}"));
        }
    }

    /// A segment of the stack: its numbers count from our ISN, what it acknowledges from the peer's.
    fn segment(&self, words: &str, base: Segment) -> Segment {
        parse_segment(words, base, self.our_isn.unwrap_or(0), PEER_ISN, |ts| {
            let echo = ts.split_once(':').map_or(0, |(_, echo)| peer_clock(echo));
            (0, echo)
        })
    }

    fn segment_of_peer(&self, words: &str, base: Segment) -> Segment {
        let ours = self.our_isn.unwrap_or(0);
        parse_segment(words, base, PEER_ISN, ours, |ts| match ts.split_once(':') {
            Some((value, echo)) => {
                let echo = echo.parse::<u32>().unwrap();
                (peer_clock(value), self.our_clock.unwrap_or(0).wrapping_add(echo))
            }
            None => (peer_clock(ts), self.last_value),
        })
    }
}
