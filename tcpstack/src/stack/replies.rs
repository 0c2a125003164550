//! Answers without data that arise while a packet is received and leave with the next
//! [`Stack::poll_transmit`](crate::Stack::poll_transmit): ACKs for what came out of order, RSTs
//! for what belongs to nobody.

use std::collections::VecDeque;

use crate::api::Transmit;
use crate::config::TxChecksum;
use crate::segment::{Answer, REPLY_BYTES_MAX};

/// Answers that may wait: some for each packet of a burst.
const REPLIES_MAX: usize = 256;

struct Reply {
    bytes: usize,
    octets: [u8; REPLY_BYTES_MAX],
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

    /// Adds an answer of our own.
    pub(super) fn push(&mut self, answer: &Answer, checksum: TxChecksum) {
        let mut octets = [0; REPLY_BYTES_MAX];
        let bytes = answer.emit(checksum, &mut octets);
        self.add(Reply { bytes, octets });
    }

    /// Gives the answers out as long as there is room, and how many.
    pub(super) fn drain(&mut self, to: &mut impl Transmit) -> u64 {
        let mut sent = 0;
        while to.has_room() {
            let Some(Reply { bytes, octets }) = self.waiting.pop_front() else { break };
            to.packet(bytes, |packet| packet.copy_from_slice(&octets[..bytes]));
            sent += 1;
        }
        sent
    }

    /// Every answer can be lost on the way, so losing one here does no harm that TCP does not
    /// know. The newest is kept: it acknowledges most.
    fn add(&mut self, reply: Reply) {
        if self.waiting.len() == REPLIES_MAX {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(reply);
    }
}

impl Transmit for Replies {
    fn has_room(&mut self) -> bool {
        true
    }

    fn packet<R>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut octets = [0; REPLY_BYTES_MAX];
        // Headers alone always fit: a TCP header has at most 60 octets.
        let bytes = len.min(REPLY_BYTES_MAX);
        let result = fill(&mut octets[..bytes]);
        self.add(Reply { bytes, octets });
        result
    }
}
