//! Answers that belong to no connection and leave with the next
//! [`Stack::poll_transmit`](crate::Stack::poll_transmit): SYN cookies and resets.

use std::collections::VecDeque;

use crate::api::{HEADERS_BYTES_MAX, Packet, Transmit};
use crate::config::TxChecksum;
use crate::engine::segment::{Headers, Marks, Outgoing};
use crate::table::FourTuple;

/// Answers that may wait: some for each packet of a burst.
const REPLIES_MAX: usize = 256;

struct Reply {
    bytes: usize,
    octets: [u8; HEADERS_BYTES_MAX],
}

/// The answers that wait.
pub(super) struct Replies {
    waiting: VecDeque<Reply>,
    /// Answers that were forgotten for want of room.
    pub(super) lost: u64,
}

impl Replies {
    pub(super) fn new() -> Self {
        Self { waiting: VecDeque::with_capacity(REPLIES_MAX), lost: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Adds an answer. Each can be lost on the way, so losing the oldest here does no harm that
    /// TCP does not know.
    pub(super) fn push(
        &mut self,
        tuple: &FourTuple,
        marks: Marks,
        answer: &Outgoing,
        checksum: TxChecksum,
    ) {
        let mut octets = [0; HEADERS_BYTES_MAX];
        let headers = Headers::new(tuple, marks, checksum, answer);
        let bytes = headers.packet_len(0);
        headers.write(&mut octets[..bytes], bytes, |_| {});
        if self.waiting.len() == REPLIES_MAX {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(Reply { bytes, octets });
    }

    /// Gives the answers out as long as there is room, and how many.
    pub(super) fn drain(&mut self, to: &mut impl Transmit) -> u64 {
        let mut sent = 0;
        while to.has_room() {
            let Some(Reply { bytes, octets }) = self.waiting.pop_front() else { break };
            to.packet(Packet { bytes, segment_bytes: None }, |packet| {
                packet.copy_from_slice(&octets[..bytes]);
            });
            sent += 1;
        }
        sent
    }
}
