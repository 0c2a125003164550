//! RFC 9329 framing: IKE and ESP messages in a TCP stream.
//!
//! A stream is, from the originator only, the six octets `IKETCP`, and then frames: a 16-bit
//! length that counts itself, and a message. A message that begins with four zero octets is IKE,
//! a longer one is ESP.
//!
//! Inbound, [`Decoder::next_frame`] takes the in-order octets that
//! [`Stack::recv`](crate::Stack::recv) lends, cut wherever TCP cut them. A frame that lies wholly
//! in them is handed out where it lies, writable, so that ESP is opened in place. A frame that is
//! split is gathered, at most one frame at a time, in a buffer that the decoder borrows from the
//! worker's [`Gathering`] for as long: between frames a connection holds none.
//!
//! Outbound, [`esp_header`] and [`ike_header`] give the octets that precede a message.

#[cfg(test)]
mod tests;

use thiserror::Error;

/// What the originator sends once, before its first frame (RFC 9329, 4).
pub const PREFIX: [u8; 6] = *b"IKETCP";

/// Octets of the length field before each message (RFC 9329, 3).
pub const LENGTH_BYTES: usize = 2;

/// The four zero octets that tell IKE from ESP, whose SPI is never zero (RFC 9329, 3.1).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// The longest message that a frame can carry, the marker of an IKE message included
/// (RFC 9329, 3: the 16-bit length counts itself).
pub const MESSAGE_BYTES_MAX: usize = u16::MAX as usize - LENGTH_BYTES;

/// Octets that a frame adds to an ESP packet.
pub const ESP_OVERHEAD_BYTES: usize = LENGTH_BYTES;

/// Octets that a frame adds to an IKE message.
pub const IKE_OVERHEAD_BYTES: usize = LENGTH_BYTES + NON_ESP_MARKER.len();

/// Octets of a buffer in which split frames are gathered: the frames of a peer that heeds the path
/// MTU fit. A longer one, which needs no path but only a peer (RFC 9329, 3), takes memory of its own.
const GATHERING_BYTES: usize = 4096;

/// Buffers that are kept for split frames.
const GATHERING_KEPT: usize = 1024;

/// The message of a NAT keepalive (RFC 9329, 6.6; RFC 3948, 2.3).
const KEEPALIVE: [u8; 1] = [0xff];

/// One frame of the stream, without its length field.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An IKE message, without the non-ESP marker. May be empty: whether it is an IKE message is
    /// for IKE to say.
    Ike(&'a mut [u8]),
    /// An ESP packet from its SPI on; at least 4 octets, the SPI not zero.
    Esp(&'a mut [u8]),
    /// A NAT keepalive: nothing to do (RFC 9329, 6.6).
    Keepalive,
    /// A frame without a message, length 2: ignored in silence (RFC 9329, 3).
    Empty,
    /// A message shorter than a marker or an SPI that is no keepalive. The RFC does not say what
    /// to do; Linux skips it and keeps the connection, and so should the caller, counting it.
    Short,
}

/// What the peer did so wrong that the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FramingError {
    /// The originator's stream does not begin with `IKETCP` (RFC 9329, 4): it speaks something
    /// else. Close without a word.
    #[error("the peer's stream does not begin with IKETCP: it does not speak RFC 9329")]
    BadPrefix,
    /// A length of 0 or 1, which cannot count itself (RFC 9329, 3.1 and 3.2).
    #[error("the peer sent the frame length {0}, which cannot count itself: the stream is corrupt")]
    BadLength(u16),
}

/// A message of our own that no frame can carry (RFC 9329, 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a message of {0} octets is longer than a frame of RFC 9329 can carry")]
pub struct TooLong(pub usize);

/// The octets before an ESP packet of `packet_bytes` octets (RFC 9329, 3.2).
///
/// # Errors
/// [`TooLong`] for more than [`MESSAGE_BYTES_MAX`] octets.
pub fn esp_header(packet_bytes: usize) -> Result<[u8; ESP_OVERHEAD_BYTES], TooLong> {
    // RFC 9329, 3.2: the length counts itself, so it is never 0 or 1.
    let length = u16::try_from(packet_bytes + LENGTH_BYTES).map_err(|_| TooLong(packet_bytes))?;
    Ok(length.to_be_bytes())
}

/// The octets before an IKE message of `message_bytes` octets: length and non-ESP marker
/// (RFC 9329, 3.1).
///
/// # Errors
/// [`TooLong`] for more than [`MESSAGE_BYTES_MAX`] octets with the marker.
pub fn ike_header(message_bytes: usize) -> Result<[u8; IKE_OVERHEAD_BYTES], TooLong> {
    let [high, low] =
        esp_header(message_bytes + NON_ESP_MARKER.len()).map_err(|_| TooLong(message_bytes))?;
    let [a, b, c, d] = NON_ESP_MARKER;
    Ok([high, low, a, b, c, d])
}

/// Buffers for frames that are split over segments, for all decoders of a worker.
#[derive(Debug, Default)]
pub struct Gathering(Vec<Vec<u8>>);

impl Gathering {
    /// None so far: they are made as they are needed, one for each connection in the middle of a
    /// frame, and then used again.
    #[must_use]
    pub fn new() -> Self {
        Self(Vec::with_capacity(GATHERING_KEPT))
    }

    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| Vec::with_capacity(GATHERING_BYTES))
    }

    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() == GATHERING_BYTES && self.0.len() < GATHERING_KEPT {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

/// Takes one peer's stream apart. One for each connection; it ends with the connection, and with
/// it a half-received frame (RFC 9329, 6.1).
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// A split frame, its length field included: what came of it.
    gathered: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many octets of the prefix came and were right.
    Prefix(usize),
    /// Between frames, or inside the one that is gathered.
    Frames,
    /// The frame in `gathered` was handed out; it is cleared when the next one is asked for.
    HandedOut,
    /// Nothing that follows can be trusted.
    Failed(FramingError),
}

impl Decoder {
    /// For what the originator sends: its prefix, then frames (RFC 9329, 4).
    #[must_use]
    pub fn for_responder() -> Self {
        Self { state: State::Prefix(0), gathered: Vec::new() }
    }

    /// For what the responder sends: frames at once, because only the originator sends the
    /// prefix (RFC 9329, 4).
    #[must_use]
    pub fn for_originator() -> Self {
        Self { state: State::Frames, gathered: Vec::new() }
    }

    /// Whether the prefix has come whole, where one is due. Until then a silent peer may be a
    /// stray one, to be closed after a few seconds.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        !matches!(self.state, State::Prefix(_) | State::Failed(FramingError::BadPrefix))
    }

    /// Octets of a frame that has not come whole.
    #[must_use]
    pub fn partial_bytes(&self) -> usize {
        if self.state == State::Frames { self.gathered.len() } else { 0 }
    }

    /// Takes the next whole frame off the front of `input`; `None` when there is none in it, and
    /// then `input` is empty because what is left of it has been gathered.
    ///
    /// ```
    /// # use culvert_tcpstack::framing::{Decoder, Frame, Gathering};
    /// let (mut decoder, mut gathering) = (Decoder::for_originator(), Gathering::new());
    /// let mut octets = [0, 3, 0xff, 0, 6, 0, 0, 1, 0, 0];
    /// let mut rest = &mut octets[..];
    /// assert_eq!(decoder.next_frame(&mut gathering, &mut rest), Ok(Some(Frame::Keepalive)));
    /// assert_eq!(decoder.next_frame(&mut gathering, &mut rest), Ok(Some(Frame::Esp(&mut [0, 0, 1, 0]))));
    /// assert_eq!(decoder.next_frame(&mut gathering, &mut rest), Ok(None));
    /// assert_eq!(decoder.partial_bytes(), 1);
    /// ```
    ///
    /// # Errors
    /// The peer broke the stream: close the connection. Every later call says the same.
    pub fn next_frame<'frame, 'input: 'frame>(
        &'frame mut self,
        gathering: &mut Gathering,
        input: &mut &'input mut [u8],
    ) -> Result<Option<Frame<'frame>>, FramingError> {
        match self.state {
            State::Failed(error) => return Err(error),
            State::Prefix(matched) => {
                if !self.take_prefix(matched, input)? {
                    return Ok(None);
                }
            }
            State::HandedOut => self.forget_gathered(gathering),
            State::Frames => {}
        }
        if !self.gathered.is_empty() {
            return self.gather(input);
        }
        match input.first_chunk() {
            Some(&length) => {
                let length = self.frame_bytes(length)?;
                if input.len() >= length {
                    return Ok(Some(classify(&mut take(input, length)[LENGTH_BYTES..])));
                }
            }
            None if input.is_empty() => return Ok(None),
            None => {}
        }
        let rest = input.len();
        self.gathered = gathering.take();
        self.gathered.extend_from_slice(take(input, rest));
        Ok(None)
    }

    /// RFC 9329, 6.1: nothing is parsed before the prefix has come whole. True when it has.
    fn take_prefix(&mut self, matched: usize, input: &mut &mut [u8]) -> Result<bool, FramingError> {
        let due = &PREFIX[matched..];
        let length = due.len().min(input.len());
        if take(input, length) != &due[..length] {
            return Err(self.fail(FramingError::BadPrefix));
        }
        let whole = length == due.len();
        self.state = if whole { State::Frames } else { State::Prefix(matched + length) };
        Ok(whole)
    }

    /// Adds to the gathered frame no more than it lacks, and hands it out when it is whole.
    fn gather(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame<'_>>, FramingError> {
        if self.gathered.len() < LENGTH_BYTES {
            self.gather_up_to(LENGTH_BYTES, input);
        }
        let Some(&length) = self.gathered.first_chunk() else { return Ok(None) };
        let length = self.frame_bytes(length)?;
        self.gather_up_to(length, input);
        if self.gathered.len() < length {
            return Ok(None);
        }
        self.state = State::HandedOut;
        Ok(Some(classify(&mut self.gathered[LENGTH_BYTES..])))
    }

    fn gather_up_to(&mut self, length: usize, input: &mut &mut [u8]) {
        let missing = length.saturating_sub(self.gathered.len()).min(input.len());
        // At once as much as comes, no more than has come: a peer cannot claim memory by a length.
        self.gathered.extend_from_slice(take(input, missing));
    }

    fn forget_gathered(&mut self, gathering: &mut Gathering) {
        self.state = State::Frames;
        gathering.give_back(std::mem::take(&mut self.gathered));
    }

    /// RFC 9329, 3.1 and 3.2: the length counts itself; 0 and 1 are fatal.
    fn frame_bytes(&mut self, length: [u8; LENGTH_BYTES]) -> Result<usize, FramingError> {
        match u16::from_be_bytes(length) {
            length @ (0 | 1) => Err(self.fail(FramingError::BadLength(length))),
            length => Ok(usize::from(length)),
        }
    }

    fn fail(&mut self, error: FramingError) -> FramingError {
        self.state = State::Failed(error);
        self.gathered = Vec::new();
        error
    }
}

/// RFC 9329, 3: what a message is, by its first 32 bits and its length.
fn classify(message: &mut [u8]) -> Frame<'_> {
    if message.starts_with(&NON_ESP_MARKER) {
        return Frame::Ike(&mut message[NON_ESP_MARKER.len()..]);
    }
    match message.len() {
        0 => Frame::Empty,
        1 if *message == KEEPALIVE => Frame::Keepalive,
        1..4 => Frame::Short,
        _ => Frame::Esp(message),
    }
}

/// Splits the first `length` octets off `input`, which has at least so many.
fn take<'input>(input: &mut &'input mut [u8], length: usize) -> &'input mut [u8] {
    let (head, tail) = std::mem::take(input).split_at_mut(length);
    *input = tail;
    head
}
