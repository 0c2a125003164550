//! What leaves: retransmissions, new data, FIN, and acknowledgments.

use super::plan::Plan;
use super::sender::len;
use super::{Connection, Context, State};
use crate::api::{HEADERS_BYTES_MAX, Packet, Transmit};
use crate::engine::segment::{Flags, Headers, Options, Outgoing, SackBlocks, timestamp};
use crate::time::Instant;
use std::ops::Range;

/// How far a transmission came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Everything that may leave now has left.
    Done,
    /// The connection has had its turn and has more.
    Turn,
    /// The device takes no more.
    NoRoom,
}

impl Connection {
    /// Sends what may leave now, at most `turn` segments of data.
    pub(crate) fn transmit(
        &mut self,
        context: &Context<'_>,
        turn: u64,
        sink: &mut impl Transmit,
    ) -> Progress {
        if self.state == State::Closed {
            return Progress::Done;
        }
        if !sink.has_room() {
            return Progress::NoRoom;
        }
        self.send_probe(context, sink);
        self.send_syn(context, sink);
        if self.state == State::SynSent {
            return Progress::Done;
        }
        let progress = self.send_data(context, turn, sink);
        while progress != Progress::NoRoom && self.rx.wants_ack(context.now) {
            if !sink.has_room() {
                return Progress::NoRoom;
            }
            self.send_empty(self.tx.nxt, context, sink);
        }
        progress
    }

    /// An empty segment one octet below what is expected makes the peer tell its state: it is not
    /// acceptable, and so answered (RFC 9293, 3.10.7.4).
    ///
    /// For a closed window RFC 9293, 3.8.6.1 (MUST-35) would have an octet of new data instead. That
    /// octet would be in flight: its timeouts would count as congestion though only the peer's reader
    /// is slow, and a segment of one octet would stay behind when the window opens. Linux
    /// asks like this, and who answers keepalives answers it.
    fn send_probe(&mut self, context: &Context<'_>, sink: &mut impl Transmit) {
        if std::mem::take(&mut self.probe_peer) {
            let below = self.tx.una.saturating_sub(1);
            self.send_empty(below, context, sink);
        }
    }

    /// The SYN, or after a simultaneous open the SYN with an acknowledgment.
    fn send_syn(&mut self, context: &Context<'_>, sink: &mut impl Transmit) {
        let first = self.tx.nxt == 0; // The peer's may have come before it left.
        let again = self.tx.una == 0 && self.tx.board.has_lost();
        if !first && !again {
            return;
        }
        let acknowledges = self.state != State::SynSent;
        let options = Options {
            mss: Some(super::offered_mss(&self.tuple, context.settings)),
            // RFC 7323, 2.2: answered only if it was offered.
            window_scale: (!acknowledges || self.rx.scale > 0)
                .then_some(context.settings.window_scale),
            sack_permitted: self.sack,
            timestamps: self.timestamps.then(|| self.timestamps(context.now)),
            sack: SackBlocks::default(),
        };
        let segment = Outgoing {
            seq: self.tx.space.wire(0),
            ack: acknowledges.then(|| self.rx.next_wire()),
            flags: Flags { syn: true, ..Flags::default() },
            window: u16::MAX,
            options,
        };
        self.emit(&self.headers(&segment, context), 0..0, 1, sink);
        if acknowledges {
            self.rx.acknowledged();
        }
        let stamp = timestamp(context.now, self.timestamp_offset);
        if first {
            self.tx.sent_new(0..1, 1, context.now);
        } else {
            self.tx.sent_again(&(0..1), stamp, context.now);
        }
    }

    pub(super) fn timestamps(&self, now: Instant) -> (u32, u32) {
        (timestamp(now, self.timestamp_offset), self.rx.timestamp_echo())
    }

    fn send_data(
        &mut self,
        context: &Context<'_>,
        turn: u64,
        sink: &mut impl Transmit,
    ) -> Progress {
        if self.tx.una == 0 {
            return Progress::Done;
        }
        let mut left = turn;
        while left > 0 {
            if !sink.has_room() {
                return Progress::NoRoom;
            }
            match self.tx.plan(context.now) {
                Plan::Nothing => return Progress::Done,
                Plan::New { range, alone } => {
                    let segment = len(&range).max(u64::from(self.tx.mss));
                    let most = left.saturating_mul(segment);
                    let range =
                        if alone { range } else { self.tx.lengthen(range, most, context.now) };
                    let end = self.send_run(&range, segment, context, sink);
                    left = left.saturating_sub((end - range.start).div_ceil(segment));
                    self.tx.sent_new(range.start..end, segment, context.now);
                }
                Plan::Retransmit(range) => {
                    left -= 1;
                    self.send_run(&range, len(&range), context, sink);
                    let stamp = timestamp(context.now, self.timestamp_offset);
                    self.tx.sent_again(&range, stamp, context.now);
                }
            }
        }
        Progress::Turn
    }

    /// Sends the octets of `range` in segments of `segment` octets, as far as the device takes them;
    /// one behind the data is the FIN. Gives the offset behind what was sent.
    fn send_run(
        &mut self,
        range: &Range<u64>,
        segment: u64,
        context: &Context<'_>,
        sink: &mut impl Transmit,
    ) -> u64 {
        // A device that cuts packets itself gets as many at once as it takes.
        let device = context.settings.segmentation_bytes.saturating_sub(HEADERS_BYTES_MAX) as u64;
        let step = (device / segment).max(1) * segment;
        let first = self.segment(range.start, Flags::default(), SackBlocks::default(), context);
        let mut headers = self.headers(&first, context);
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min(start + step);
            let data_end = self.tx.buffer.end();
            let data = start..end.min(data_end);
            let fin = self.tx.fin_queued() && end > data_end;
            let psh = data.start < data.end && data.end == data_end;
            headers.advance(self.tx.space.wire(start), Flags { fin, psh, ..Flags::default() });
            self.emit(&headers, data, segment, sink);
            start = end;
            if !sink.has_room() {
                break;
            }
        }
        if !self.rx.has_more_to_tell() {
            self.rx.acknowledged();
        }
        start
    }

    /// An acknowledgment, or a probe when `offset` lies below what was sent.
    pub(super) fn send_empty(
        &mut self,
        offset: u64,
        context: &Context<'_>,
        sink: &mut impl Transmit,
    ) {
        let sack = self.rx.sack_blocks();
        let segment = self.segment(offset, Flags::default(), sack, context);
        self.emit(&self.headers(&segment, context), 0..0, 1, sink);
        self.rx.acknowledged();
    }

    fn segment(
        &mut self,
        offset: u64,
        flags: Flags,
        sack: SackBlocks,
        context: &Context<'_>,
    ) -> Outgoing {
        Outgoing {
            seq: self.tx.space.wire(offset),
            ack: Some(self.rx.next_wire()),
            flags,
            window: self.rx.advertise(self.tx.mss),
            options: Options {
                timestamps: self.timestamps.then(|| self.timestamps(context.now)),
                sack,
                ..Options::default()
            },
        }
    }

    fn headers(&self, segment: &Outgoing, context: &Context<'_>) -> Headers {
        Headers::new(&self.tuple, self.marks, context.settings.tx_checksum, segment)
    }

    /// Sends `data` behind `headers`, for the device to cut if it is more than one segment.
    fn emit(
        &mut self,
        headers: &Headers,
        data: Range<u64>,
        segment: u64,
        sink: &mut impl Transmit,
    ) {
        let payload = data.end.saturating_sub(data.start);
        let several = payload > segment;
        self.segments_out += if several { payload.div_ceil(segment) } else { 1 };
        let bytes = headers.packet_len(usize::try_from(payload).unwrap_or(0));
        let segment_bytes = several.then(|| u16::try_from(segment).unwrap_or(u16::MAX));
        let (mut at, buffer) = (data.start, &self.tx.buffer);
        let mut read = |out: &mut [u8]| {
            buffer.read(at, out);
            at += out.len() as u64;
        };
        let mut begun = false;
        sink.packet(Packet { bytes, segment_bytes }, |out| {
            if std::mem::replace(&mut begun, true) {
                read(out);
            } else {
                headers.write(out, bytes, &mut read);
            }
        });
    }
}
