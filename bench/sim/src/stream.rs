//! The model of the streams: what was written, and whether what is read is that.
//!
//! Every write is a frame that says which stream it belongs to and which number it has there; its
//! content follows from these. So a reader can check every octet, in order, without a copy of what
//! was sent, and frames that were sent urgently may overtake others that had not been started,
//! once and whole.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};

/// Length, kind, end, stream, number.
const HEADER: usize = 4 + 1 + 1 + 4 + 4;
/// The longest frame, header included.
pub const FRAME_MAX: usize = 65_535;
/// The shortest.
pub const FRAME_MIN: usize = HEADER;

/// How a frame was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// In turn.
    Plain,
    /// Before all that have not been started.
    Urgent,
}

/// Which stream: the end that writes it, and a number that this end gave it.
pub type Stream = (u8, u32);

/// What the writer of a stream has done.
#[derive(Debug, Clone, Default)]
struct Written {
    plain: u32,
    urgent: u32,
    /// Nothing more will be written.
    finished: bool,
    /// It was closed in order: everything must arrive.
    closed: bool,
    /// Frames that were read of it.
    read: u32,
}

/// All streams of a run, as their writers know them.
#[derive(Debug, Default)]
pub struct Ledger {
    streams: HashMap<Stream, Written>,
    /// Octets of frames read and found right.
    pub octets_checked: u64,
}

impl Ledger {
    /// Makes the next frame of a stream, of `len` octets.
    pub fn write(&mut self, stream: Stream, kind: Kind, len: usize) -> Vec<u8> {
        let written = self.streams.entry(stream).or_default();
        let count = match kind {
            Kind::Plain => &mut written.plain,
            Kind::Urgent => &mut written.urgent,
        };
        let frame = frame(stream, kind, *count, len.clamp(FRAME_MIN, FRAME_MAX));
        *count += 1;
        frame
    }

    /// Takes back the last frame: the stack refused it.
    pub fn refused(&mut self, stream: Stream, kind: Kind) {
        if let Some(written) = self.streams.get_mut(&stream) {
            match kind {
                Kind::Plain => written.plain -= 1,
                Kind::Urgent => written.urgent -= 1,
            }
        }
    }

    /// The writer of the stream has written its last frame.
    pub fn finish(&mut self, stream: Stream) {
        self.streams.entry(stream).or_default().finished = true;
    }

    /// Whether a reader has read everything that was written to a stream so far.
    #[must_use]
    pub fn is_drained(&self, stream: Stream, reader: &Reader) -> bool {
        let written = self.streams.get(&stream).map_or((0, 0), |had| (had.plain, had.urgent));
        (reader.plain, reader.urgent.len() as u32) == written
    }

    /// Whether a reader has read everything that its peer will ever write.
    #[must_use]
    pub fn is_read(&self, reader: &Reader) -> bool {
        let written = reader.stream.and_then(|stream| self.streams.get(&stream));
        written.is_some_and(|written| {
            let read = (reader.plain, reader.urgent.len() as u32);
            written.finished && read == (written.plain, written.urgent)
        })
    }

    /// Whether something that was written to a stream was not read.
    #[must_use]
    pub fn is_cut_short(&self, stream: Stream) -> bool {
        let written = self.streams.get(&stream);
        written.is_some_and(|written| written.read < written.plain + written.urgent)
    }

    /// The stream was closed in order by its writer.
    pub fn close(&mut self, stream: Stream) {
        self.streams.entry(stream).or_default().closed = true;
    }

    /// The reader was told that its peer has closed: then the peer has, and everything is here.
    ///
    /// # Errors
    /// It has not, or something is missing.
    pub fn check_end(&self, reader: &Reader, end: u8) -> Result<()> {
        ensure!(reader.partial.is_empty(), "the stream ends inside a frame");
        let Some(stream) = reader.stream else {
            let empty = |(key, written): (&Stream, &Written)| {
                key.0 != end && written.closed && written.plain + written.urgent == 0
            };
            ensure!(self.streams.iter().any(empty), "nobody closed an empty stream");
            return Ok(());
        };
        let written = self.streams.get(&stream).context("a stream that nobody wrote")?;
        ensure!(written.closed, "stream {stream:?} was not closed by its writer");
        let read = (reader.plain, reader.urgent.len() as u32);
        let sent = (written.plain, written.urgent);
        ensure!(read == sent, "stream {stream:?}: {read:?} frames of {sent:?} before its end");
        Ok(())
    }
}

/// What one end has read of one stream.
#[derive(Debug, Default)]
pub struct Reader {
    stream: Option<Stream>,
    partial: Vec<u8>,
    plain: u32,
    urgent: HashSet<u32>,
}

impl Reader {
    /// Checks octets as they come, cut anywhere, at the end `end`.
    ///
    /// # Errors
    /// They are not what was written.
    pub fn read(&mut self, ledger: &mut Ledger, end: u8, octets: &[u8]) -> Result<()> {
        self.partial.extend_from_slice(octets);
        let mut start = 0;
        while let Some(len) = self.partial.get(start..start + 4) {
            let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
            ensure!((FRAME_MIN..=FRAME_MAX).contains(&len), "a frame of {len} octets");
            let Some(frame) = self.partial.get(start..start + len) else { break };
            let (stream, kind, number) = identify(frame);
            ensure!(stream.0 != end, "the end's own octets come back");
            ensure!(*self.stream.get_or_insert(stream) == stream, "two streams are mixed");
            match kind {
                Kind::Plain => {
                    ensure!(number == self.plain, "frame {number} after {}", self.plain);
                    self.plain += 1;
                }
                Kind::Urgent => {
                    ensure!(self.urgent.insert(number), "urgent frame {number} twice");
                }
            }
            let written = ledger.streams.get(&stream).context("a stream that nobody wrote")?;
            ensure!(
                self.plain <= written.plain && self.urgent.len() as u32 <= written.urgent,
                "more than was written"
            );
            let right = self::frame(stream, kind, number, len);
            let wrong = frame.iter().zip(&right).position(|(is, should)| is != should);
            ensure!(
                wrong.is_none(),
                "{kind:?} frame {number} of {len} octets is damaged from {wrong:?} on: {:x?}",
                wrong.map(|at| frame.iter().skip(at).take(16).collect::<Vec<_>>())
            );
            ledger.octets_checked += len as u64;
            if let Some(written) = ledger.streams.get_mut(&stream) {
                written.read += 1;
            }
            start += len;
        }
        self.partial.drain(..start);
        Ok(())
    }
}

fn frame(stream: Stream, kind: Kind, number: u32, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend_from_slice(&(len as u32).to_le_bytes());
    frame.push(u8::from(kind == Kind::Urgent));
    frame.push(stream.0);
    frame.extend_from_slice(&stream.1.to_le_bytes());
    frame.extend_from_slice(&number.to_le_bytes());
    // A period that is prime to any segment size, and a start that differs for each frame.
    let start = number.wrapping_mul(31) ^ stream.1.wrapping_mul(131) ^ u32::from(stream.0) << 7;
    frame.extend((HEADER..len).map(|at| ((start.wrapping_add(at as u32)) % 251) as u8));
    frame
}

/// Which frame it says it is. `frame` has a whole header.
fn identify(frame: &[u8]) -> (Stream, Kind, u32) {
    let word =
        |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let kind = if frame[4] == 1 { Kind::Urgent } else { Kind::Plain };
    ((frame[5], word(6)), kind, word(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> (Ledger, Vec<u8>) {
        let mut ledger = Ledger::default();
        let frames = [
            ledger.write((0, 1), Kind::Plain, 100),
            ledger.write((0, 1), Kind::Urgent, 20),
            ledger.write((0, 1), Kind::Plain, 3000),
        ];
        ledger.close((0, 1));
        (ledger, frames.concat())
    }

    #[test]
    fn what_was_written_is_right_however_it_is_cut() {
        for cut in [1, 13, 14, 15, 999, 5000] {
            let (mut ledger, octets) = written();
            let mut reader = Reader::default();
            for part in octets.chunks(cut) {
                reader.read(&mut ledger, 1, part).unwrap();
            }
            ledger.check_end(&reader, 1).unwrap();
            assert_eq!(ledger.octets_checked, octets.len() as u64);
        }
    }

    /// The oracle must see what it is there for.
    #[test]
    fn loss_damage_repetition_and_exchange_are_seen() {
        let (_, octets) = written();
        let mut cases =
            vec![octets[100..].to_vec(), octets[..120].repeat(2), octets[..100].to_vec()];
        for at in [0, 4, 5, 6, 10, 14, 99, 3119] {
            let mut damaged = octets.clone();
            damaged[at] ^= 1;
            cases.push(damaged);
        }
        for case in cases {
            let (mut ledger, _) = written();
            let mut reader = Reader::default();
            let read = reader.read(&mut ledger, 1, &case);
            assert!(read.and_then(|()| ledger.check_end(&reader, 1)).is_err());
        }
    }
}
