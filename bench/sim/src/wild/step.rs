//! What eight octets of input make a peer do.

use std::time::Duration;

use anyhow::Result;

use super::model::{STREAM_MAX, peer_octet};
use super::{Run, START, WILD_MAX};
use crate::packet::{Segment, flags};

/// The peer's clock never gets further ahead of its start: beyond half the circle the engine is
/// right to call everything old (RFC 7323, 5.2).
const CLOCK_MAX: u32 = 1 << 30;

/// Octets `from..to` of the peer's stream.
pub(super) fn text(from: usize, to: usize, version: u8) -> Vec<u8> {
    (from..to).map(|offset| peer_octet(offset, version)).collect()
}

/// Some place at, near or far from `base`.
fn place(base: usize, how: u8, by: u8) -> i64 {
    let (base, by) = (base as i64, i64::from(by));
    match how & 7 {
        0 | 1 => base,
        2 => base + by,
        3 => base - by,
        4 => base + by * 16,
        5 => base + by * 300,
        6 => base - by * 300,
        _ => base + (by << 23),
    }
}

impl Run {
    /// `[what, how, ...]`: the low bits of `what` say what happens, its highest that the engine
    /// does not act before the next step, `how` what the segment's clock says.
    pub(super) fn step(&mut self, octets: [u8; 8]) -> Result<()> {
        let [what, how, a, b, c, d, e, f] = octets;
        if self.model.acked > STREAM_MAX / 2 {
            return Ok(());
        }
        match what & 0xf {
            0..=3 => self.send_text(what, how, [a, b, c, d, e, f]),
            4 | 5 => self.acknowledge(how, [a, b, c, d]),
            6 | 7 => self.acknowledge_blocks(how, [a, b, c, d, e, f]),
            8 => self.finish(how, [a, b, c]),
            9 => self.disturb(how, [a, b, c, d]),
            10 => self.send_raw_options(octets),
            11 => self.send_raw_header([how, a, b, c, d, e, f]),
            12 => self.wait(u64::from(a) * u64::from(b) / 8)?,
            13 => self.write(usize::from(a) * usize::from(b) / 4 + 1),
            14 => {
                self.appetite = [0, 0, 1_000_000, 300_000][usize::from(a & 3)];
                if b & 3 == 0 {
                    self.read();
                }
            }
            _ => self.behave_for(how, [a, b])?,
        }
        if what & 0x80 == 0 {
            self.wait(u64::from(what >> 4 & 7))?;
        }
        self.error.take().map_or(Ok(()), Err)
    }

    /// Time passes, but not so much that a silent peer is given up.
    fn wait(&mut self, ms: u64) -> Result<()> {
        let time = Duration::from_millis(ms);
        if (self.now + time).since(START) <= WILD_MAX { self.pass(time) } else { self.turn() }
    }

    /// The timestamps that `how` says, in place of the right ones.
    fn timed(&mut self, how: u8, mut segment: Segment) -> Segment {
        let Some((clock, heard)) = self.clock else { return segment };
        let by = u32::from(how >> 3) + 1;
        let (value, echo) = match how & 7 {
            0 => (clock.wrapping_sub(by), heard),
            1 => (clock.wrapping_sub(by << 24), heard),
            2 => (clock.wrapping_add(by), heard),
            3 => (clock, heard.wrapping_sub(by)),
            4 => (clock, heard.wrapping_add(by)),
            5 if how >> 3 == 31 => (clock, 0),
            5 if how >> 3 == 30 => {
                segment.options.clear();
                return segment;
            }
            5 if how >> 3 == 29 && clock < CLOCK_MAX => (clock + (1 << 26), heard),
            _ => (clock, heard),
        };
        // Whatever it has said, a clock does not go back.
        if value.wrapping_sub(clock).cast_signed() > 0 {
            self.clock = Some((value, heard));
        }
        segment.options.truncate(4);
        segment.options.extend(value.to_be_bytes());
        segment.options.extend(echo.to_be_bytes());
        segment
    }

    /// Text at, before, behind or across what the engine expects, or behind everything sent so far.
    fn send_text(&mut self, what: u8, how: u8, [a, b, c, d, e, f]: [u8; 6]) {
        let base = if what & 1 == 0 { self.model.acked } else { self.model.top };
        let (seq, len) = (place(base, a, b), (usize::from(c) * 8 + usize::from(d)) % 1461);
        let ack = match e & 7 {
            0 => place(self.model.claimed, e >> 3, f),
            1 => place(self.model.engine_top, e >> 3, f),
            2 => self.model.engine_top as i64,
            _ => self.model.received as i64,
        };
        let version = u8::from(f > 0xf0);
        let from = usize::try_from(seq).unwrap_or(STREAM_MAX);
        let payload = text(from, from + len, version);
        let fin = if d > 0xfa { flags::FIN } else { 0 };
        let segment = self.segment(seq, ack);
        let segment = Segment { flags: segment.flags | fin | flags::PSH, payload, ..segment };
        let segment = self.timed(how, segment);
        self.send(&segment);
    }

    /// An acknowledgment of what was sent, of some of it, of long ago, or of what never was.
    fn acknowledge(&mut self, how: u8, [a, b, c, d]: [u8; 4]) {
        let base = [self.model.claimed, self.model.engine_top, self.model.received]
            [usize::from(a >> 6).min(2)];
        self.window = match c & 7 {
            0 => 0,
            1 => u16::from(d),
            2 => u16::from_be_bytes([d, c]),
            _ => u16::MAX,
        };
        let seq = place(self.model.acked, if c & 0x80 == 0 { 0 } else { c >> 3 }, d);
        let segment = self.segment(seq, place(base, a, b));
        let segment = self.timed(how, segment);
        self.send(&segment);
    }

    /// SACK blocks: of what is in flight, below, beyond, empty, backwards, one in another.
    fn acknowledge_blocks(&mut self, how: u8, [a, b, c, d, e, f]: [u8; 6]) {
        let ack = if a & 0x80 == 0 { self.model.claimed } else { self.model.received };
        let segment = self.segment(self.model.acked as i64, ack as i64);
        let mut segment = self.timed(how, segment);
        let room = (40 - segment.options.len() - 4) / 8;
        let count = (usize::from(a & 3) + 1).min(room);
        let picks = [[b, c, d], [c, d, e], [d, e, f], [e, f, b]];
        let mut option = vec![1, 1, 5, 2 + 8 * count as u8];
        for [how, by, len] in &picks[..count] {
            let left = if how & 0x80 == 0 {
                ack as i64 + i64::from(*by) * 100
            } else {
                place(self.model.engine_top, *how, *by)
            };
            let len = match how >> 5 & 3 {
                0 => 1460,
                1 => i64::from(*len),
                2 => i64::from(*len) * 100,
                _ => -i64::from(*len),
            };
            option.extend(self.model.wire(1, left).to_be_bytes());
            option.extend(self.model.wire(1, left + len).to_be_bytes());
        }
        segment.options.extend(option);
        self.send(&segment);
    }

    fn finish(&mut self, how: u8, [a, b, c]: [u8; 3]) {
        // Otherwise most runs would end here.
        if c & 3 != 0 {
            return;
        }
        let base = if c & 4 == 0 { self.model.top } else { self.model.acked };
        let segment = self.segment(place(base, a, b), self.model.received as i64);
        let segment = self.timed(how, Segment { flags: flags::FIN | flags::ACK, ..segment });
        self.send(&segment);
    }

    /// RST and SYN anywhere, a SYN from another port, and news of routers.
    fn disturb(&mut self, how: u8, [a, b, c, d]: [u8; 4]) {
        let mut segment = self.segment(place(self.model.acked, a, b), self.model.received as i64);
        let only = c & 0x10;
        match c & 3 {
            // Not every one that is exact: it ends the run.
            0 if a & 7 > 1 || d > 0xe0 => segment.flags = flags::RST | only,
            1 => segment.flags = flags::SYN | only,
            2 => {
                segment.source.set_port(1000 + u16::from(d));
                segment.flags = flags::SYN;
                segment.options = vec![a, b, c, d, a, d, c, b];
                self.give(&mut segment.packet());
                return;
            }
            _ => {
                let seq = self.model.wire(1, place(self.model.claimed, a, b));
                let mtu = u16::from_be_bytes([how & 7, d]);
                let [local, remote] = self.ends;
                self.stack.packet_too_big(self.now, local, remote, seq, mtu);
                self.stack.unreachable(self.now, local, remote, seq, d & 1 > 0);
                return;
            }
        }
        let segment = self.timed(how, segment);
        self.send(&segment);
    }

    /// Options of any octets on a segment that is right otherwise.
    fn send_raw_options(&mut self, octets: [u8; 8]) {
        self.raw = true;
        let segment = self.segment(self.model.acked as i64, self.model.received as i64);
        let mut options = segment.options.clone();
        let known = [2, 3, 4, 5, 8, 0, 1, octets[7]];
        options.extend([known[usize::from(octets[1] & 7)], octets[1] >> 3]);
        options.extend(&octets[2..]);
        if octets[7] & 1 == 0 {
            options.rotate_right(8);
        }
        let from = self.model.acked;
        self.send(&Segment { options, payload: text(from, from + 10, 0), ..segment });
    }

    /// A right packet in whose headers, or behind them, three octets are anything.
    fn send_raw_header(&mut self, [at, a, b, c, d, e, f]: [u8; 7]) {
        self.raw = true;
        let from = self.model.acked;
        let segment = self.segment(from as i64, self.model.received as i64);
        let mut packet = Segment { payload: text(from, from + 100, 0), ..segment }.packet();
        for (at, octet) in [(at, a), (b, c), (d, e)] {
            let at = usize::from(at) % 80.min(packet.len());
            packet[at] = octet;
        }
        packet.truncate(if f > 0xe0 { usize::from(f & 0x1f) * 4 } else { packet.len() });
        // What it has become is what the peer has sent.
        let ends = [self.ends[1], self.ends[0]];
        if let Some(segment) = Segment::read(&packet)
            && [segment.source, segment.destination] == ends
        {
            self.model.send(&segment);
            // The engine may believe in a clock that goes ahead.
            if let (Some((clock, _)), Some((value, _))) = (&mut self.clock, segment.timestamps())
                && value.wrapping_sub(*clock).cast_signed() > 0
            {
                *clock = value;
            }
        }
        self.give(&mut packet);
    }

    /// The peer behaves for some turns, so that windows and the engine's estimates grow.
    fn behave_for(&mut self, how: u8, [a, b]: [u8; 2]) -> Result<()> {
        for _ in 0..=how & 7 {
            if how & 8 == 0 {
                self.read();
            }
            self.write(usize::from(a) * 64);
            let top = self.model.top + usize::from(b) * 32;
            self.behave(top, 0);
            self.wait(20)?;
        }
        Ok(())
    }
}
