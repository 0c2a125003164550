//! What the engine may say, given what its peer has sent: the oracle of [`super`].
//!
//! Offsets count from the first octet of data of each stream.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};

use crate::packet::{Segment, flags};

/// The peer sends nothing beyond this offset that the engine might take.
pub const STREAM_MAX: usize = 1 << 20;

/// An octet of the peer's stream. A peer that contradicts itself has more than one version.
#[must_use]
pub fn peer_octet(offset: usize, version: u8) -> u8 {
    let mixed = (offset as u32 ^ u32::from(version) << 24).wrapping_mul(0x9e37_79b1);
    (mixed >> 24) as u8
}

/// An octet of the engine's stream.
#[must_use]
pub fn engine_octet(offset: usize) -> u8 {
    ((offset as u32).wrapping_mul(0x85eb_ca6b) >> 23) as u8
}

/// How often the engine's segments showed that the code behind them was reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Segments.
    pub segments: u64,
    /// With blocks of what lies behind a hole (RFC 2018).
    pub sack: u64,
    /// With a block of what came twice (RFC 2883).
    pub duplicate: u64,
    /// With octets that were sent before.
    pub repeated: u64,
    /// With a closed window.
    pub shut: u64,
    /// Acknowledging over a hole that was filled: further than one segment reaches.
    pub jump: u64,
}

/// Both streams.
#[derive(Debug, Default)]
pub struct Model {
    /// Initial sequence numbers of the peer and of the engine.
    pub isn: [u32; 2],
    /// The shift of the peer's windows and of the engine's.
    pub scale: [u8; 2],
    sent: Vec<Option<u8>>,
    contradictions: HashMap<usize, Vec<u8>>,
    /// Without a hole from the beginning.
    contiguous: usize,
    fins: BTreeSet<usize>,
    resets: BTreeSet<usize>,
    /// The end of everything that the peer has sent.
    pub top: usize,
    /// What the engine's caller has read.
    pub delivered: usize,
    /// What the engine's caller has written.
    pub written: usize,
    /// What the engine has acknowledged, and the right edge of its window.
    pub acked: usize,
    edge: usize,
    /// The end of what the engine has sent.
    pub engine_top: usize,
    /// So much of it has come to the peer.
    pub received: usize,
    behind: Vec<(usize, usize)>,
    /// The engine's FIN has come.
    pub engine_fin: Option<usize>,
    /// The most that the peer has acknowledged, and the furthest right edge that it has told.
    pub claimed: usize,
    peer_edge: usize,
    /// What was seen.
    pub told: Told,
}

impl Model {
    /// Nothing was sent but the peer's SYN.
    #[must_use]
    pub fn new(peer_isn: u32) -> Self {
        Self { isn: [peer_isn, 0], ..Self::default() }
    }

    /// The offset of a sequence number in the stream of `of` (0 the peer, 1 the engine).
    #[must_use]
    pub fn offset(&self, of: usize, wire: u32) -> i64 {
        i64::from(wire.wrapping_sub(self.isn[of]).wrapping_sub(1).cast_signed())
    }

    /// The sequence number of an offset.
    #[must_use]
    pub fn wire(&self, of: usize, offset: i64) -> u32 {
        self.isn[of].wrapping_add(1).wrapping_add(offset as u32)
    }

    /// The peer is about to send a segment.
    pub fn send(&mut self, segment: &Segment) {
        let start = self.offset(0, segment.seq);
        let end = start + segment.payload.len() as i64;
        if segment.flags & flags::ACK != 0 {
            self.claim(self.offset(1, segment.ack), segment.window);
        }
        if !(-(STREAM_MAX as i64)..STREAM_MAX as i64).contains(&end) {
            return; // The engine cannot take any of it.
        }
        for (offset, octet) in (start..).zip(&segment.payload) {
            if let Ok(offset) = usize::try_from(offset) {
                self.send_octet(offset, *octet);
            }
        }
        while self.sent.get(self.contiguous).is_some_and(Option::is_some) {
            self.contiguous += 1;
        }
        let end = end.max(0) as usize;
        if segment.flags & flags::FIN != 0 {
            self.fins.insert(end);
        }
        if segment.flags & flags::RST != 0 {
            self.resets.insert(start.max(0) as usize);
        }
        // Nothing further than the window can be taken.
        if end <= self.edge + STREAM_MAX / 8 {
            self.top = self.top.max(end);
        }
    }

    fn send_octet(&mut self, offset: usize, octet: u8) {
        if self.sent.len() <= offset {
            self.sent.resize(offset + 1, None);
        }
        match &mut self.sent[offset] {
            Some(first) if *first != octet => {
                self.contradictions.entry(offset).or_default().push(octet);
            }
            place => *place = Some(octet),
        }
    }

    /// Whether an acknowledgment is of what was sent decides whether its window counts.
    fn claim(&mut self, ack: i64, window: u16) {
        let Ok(ack) = usize::try_from(ack) else { return };
        let fin = usize::from(self.engine_fin.is_some());
        if ack <= self.engine_top + fin {
            self.claimed = self.claimed.max(ack.min(self.engine_top));
            let edge = ack + (usize::from(window) << self.scale[0]);
            self.peer_edge = self.peer_edge.max(edge);
        }
    }

    /// The window of the handshake, which is never shifted (RFC 7323, 2.2).
    pub fn open(&mut self, peer_window: u16, engine_window: u16) {
        self.peer_edge = usize::from(peer_window);
        self.edge = usize::from(engine_window);
    }

    /// The engine's caller is handed octets.
    ///
    /// # Errors
    /// The peer has never sent them there.
    pub fn deliver(&mut self, octets: &[u8]) -> Result<()> {
        for (offset, octet) in (self.delivered..).zip(octets) {
            let first = self.sent.get(offset).copied().flatten();
            let other = || self.contradictions.get(&offset).is_some_and(|all| all.contains(octet));
            ensure!(
                first == Some(*octet) || other(),
                "octet {offset} is {octet:#x}, the peer sent {first:x?} there"
            );
        }
        self.delivered += octets.len();
        Ok(())
    }

    /// The engine has sent a segment.
    ///
    /// # Errors
    /// It says what cannot be.
    pub fn hear(&mut self, segment: &Segment) -> Result<()> {
        if segment.flags & flags::RST != 0 {
            return Ok(());
        }
        self.told.segments += 1;
        self.hear_acknowledgment(segment)?;
        self.hear_blocks(segment)?;
        self.hear_text(segment)
    }

    fn hear_acknowledgment(&mut self, segment: &Segment) -> Result<()> {
        let ack =
            usize::try_from(self.offset(0, segment.ack)).context("an ACK of the SYN at most")?;
        // RFC 9293, 3.4: only what has come is acknowledged; a FIN counts as one octet.
        let fin = usize::from(self.fins.contains(&self.contiguous));
        ensure!(ack <= self.contiguous + fin, "ACK {ack} of {} octets", self.contiguous);
        ensure!(ack >= self.acked, "ACK {ack} after {}", self.acked);
        ensure!(ack >= self.delivered, "ACK {ack}, but {} were delivered", self.delivered);
        self.told.jump += u64::from(ack > self.acked + 3000);
        self.acked = ack;
        // RFC 9293, 3.8.6.2.1 and RFC 7323, 2.4: the right edge never moves back by more than what
        // the shift rounds away.
        let edge = ack + (usize::from(segment.window) << self.scale[1]);
        let rounding = 1 << self.scale[1];
        ensure!(edge + rounding > self.edge, "the window's edge goes from {} to {edge}", self.edge);
        self.edge = self.edge.max(edge);
        self.told.shut += u64::from(segment.window == 0);
        Ok(())
    }

    /// RFC 2018, 3: blocks tell of what has come; RFC 2883, 4: the first perhaps of what came twice.
    fn hear_blocks(&mut self, segment: &Segment) -> Result<()> {
        let blocks = segment.sack_blocks();
        self.told.sack += u64::from(!blocks.is_empty());
        for (left, right) in blocks {
            let (left, right) = (self.offset(0, left), self.offset(0, right));
            ensure!(left < right, "an empty block {left}..{right}");
            let below = right <= self.acked as i64;
            self.told.duplicate += u64::from(below);
            let held = (left.max(0)..right).all(|at| {
                usize::try_from(at).is_ok_and(|at| self.sent.get(at).is_some_and(Option::is_some))
            });
            // A repeated FIN or a segment below the window is told as it came.
            ensure!(held || below, "SACK of {left}..{right}, which nobody sent");
        }
        Ok(())
    }

    fn hear_text(&mut self, segment: &Segment) -> Result<()> {
        let start = self.offset(1, segment.seq);
        if segment.payload.is_empty() && segment.flags & flags::FIN == 0 {
            return Ok(());
        }
        let start = usize::try_from(start).context("text before the first octet")?;
        let end = start + segment.payload.len();
        ensure!(end <= self.written, "octets up to {end}, {} were written", self.written);
        let wrong = (start..).zip(&segment.payload).find(|(at, is)| engine_octet(*at) != **is);
        ensure!(wrong.is_none(), "the engine's octets change: {wrong:x?}");
        // RFC 9293, 3.8.6.1: beyond the window only one octet as a probe.
        let probe = segment.payload.len() == 1;
        ensure!(
            end <= self.peer_edge || probe || segment.payload.is_empty(),
            "octets up to {end} in a window up to {}",
            self.peer_edge
        );
        self.told.repeated += u64::from(start < self.engine_top);
        self.engine_top = self.engine_top.max(end);
        if segment.flags & flags::FIN != 0 {
            ensure!(end == self.written, "a FIN at {end}, {} were written", self.written);
            self.engine_fin = Some(end);
        }
        self.behind.push((start, end));
        self.received = self.received.max(self.claimed);
        while let Some(at) = self.behind.iter().position(|(start, _)| *start <= self.received) {
            self.received = self.received.max(self.behind.swap_remove(at).1);
        }
        Ok(())
    }

    /// The engine says that its peer has closed.
    ///
    /// # Errors
    /// It has not, or not there.
    pub fn check_closed_by_peer(&self) -> Result<()> {
        let here = self.delivered;
        ensure!(self.fins.contains(&here), "the peer never closed at {here}: {:?}", self.fins);
        Ok(())
    }

    /// The engine says that its peer has reset the connection.
    ///
    /// # Errors
    /// RFC 5961, 3.2: it has not, exactly at the next octet.
    pub fn check_reset_by_peer(&self) -> Result<()> {
        let next = self.acked..=self.contiguous + 1;
        let right = self.resets.iter().any(|at| next.contains(at));
        ensure!(right, "no RST at {next:?}, but {:?}", self.resets);
        Ok(())
    }
}
