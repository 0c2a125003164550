//! Lines out of a stream that cuts them anywhere.

use zeroize::Zeroizing;

/// Collects octets until a line is whole. It holds less than one line of the longest length
/// allowed, plus what was fed after it. Lines may hold secrets: it is overwritten when dropped.
#[derive(Debug)]
pub struct LineBuffer {
    octets: Zeroizing<Vec<u8>>,
    /// Start of what has not been handed out.
    start: usize,
    /// From here on no line feed was looked for yet.
    unseen: usize,
    line_octets_max: usize,
}

/// A line is longer than allowed. The stream cannot be read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {0} octets")]
pub struct LineTooLong(pub usize);

impl LineBuffer {
    /// Accepts lines of up to this many octets, line feed included.
    #[must_use]
    pub fn new(line_octets_max: usize) -> Self {
        Self { octets: Zeroizing::default(), start: 0, unseen: 0, line_octets_max }
    }

    /// Takes octets from the stream. Call [`Self::next_line`] until it has no more before feeding
    /// again: that is what keeps the buffer small.
    pub fn feed(&mut self, octets: &[u8]) {
        self.octets.drain(..self.start);
        self.unseen -= self.start;
        self.start = 0;
        self.octets.extend_from_slice(octets);
    }

    /// The next whole line, without its line feed.
    ///
    /// # Errors
    /// The line is too long, whether its end has come or not.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let rest = self.octets.get(self.unseen..).unwrap_or_default();
        let end = rest.iter().position(|octet| *octet == b'\n').map(|at| self.unseen + at);
        let length = end.map_or(self.octets.len(), |end| end + 1) - self.start;
        if length > self.line_octets_max {
            return Err(LineTooLong(self.line_octets_max));
        }
        let Some(end) = end else {
            self.unseen = self.octets.len();
            return Ok(None);
        };
        let line = self.start..end;
        self.start = end + 1;
        self.unseen = self.start;
        Ok(self.octets.get(line))
    }
}
