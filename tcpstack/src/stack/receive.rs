//! The way of a packet in: headers checked, connection found, engine asked, caller told.

use super::Stack;
use super::slots::Entry;
use crate::api::{CloseReason, ConnId, DropReason, SegmentOutcome};
use crate::config::RxChecksum;
use crate::engine::connection::{Connection, Disposition, default_mss, offered_mss};
use crate::engine::segment::{Arrived, Flags, Options, Outgoing, Segment, parse};
use crate::table::FourTuple;
use crate::time::Instant;

impl Stack {
    /// Takes one IP packet that is for one of our addresses and carries TCP. Octets behind it are
    /// ignored. What there is to answer waits for [`Stack::poll_transmit`].
    ///
    /// Octets that arrive in order go to `deliver`, where they lie in the packet, with the name of
    /// their connection; it says how many it has consumed. The rest is kept for [`Stack::recv`].
    pub fn handle_segment(
        &mut self,
        now: Instant,
        ip_packet: &mut [u8],
        checksum: RxChecksum,
        deliver: &mut dyn FnMut(ConnId, &mut [u8]) -> usize,
    ) -> SegmentOutcome {
        self.now = now;
        self.stats.segments_in += 1;
        let outcome = parse(ip_packet, checksum).and_then(|arrived| {
            let payload = &mut ip_packet[arrived.payload.clone()];
            match self.find(&arrived.tuple) {
                Some(index) => self.receive(index, &arrived, payload, deliver),
                None => self.receive_unknown(&arrived, payload, deliver),
            }
        });
        match outcome {
            Ok(()) => SegmentOutcome::Accepted,
            Err(reason) => SegmentOutcome::Dropped(reason),
        }
    }

    /// A segment of a connection that is known.
    fn receive(
        &mut self,
        index: u32,
        arrived: &Arrived,
        payload: &mut [u8],
        deliver: &mut dyn FnMut(ConnId, &mut [u8]) -> usize,
    ) -> Result<(), DropReason> {
        let (now, id) = (self.now, self.slots.id(index));
        let Some(entry) = self.slots.get_mut(index) else { return Err(DropReason::NoConnection) };
        let segment = &arrived.segment;
        // Not before the caller has heard of the end of the old one.
        if entry.news.done && opens(segment) && entry.connection.gives_way_to(segment, now) {
            self.release(index);
            return self.receive_unknown(arrived, payload, deliver);
        }
        if segment.payload_len > 0 && self.context.pool().is_pressed() {
            self.relieve(index);
        }
        let Some(entry) = self.slots.get_mut(index) else { return Err(DropReason::NoConnection) };
        entry.segments_in += 1;
        let unheard = entry.news.ending;
        let mut octets_in = 0;
        let mut take = |octets: &mut [u8]| {
            // Nobody reads any more when the connection ends for another reason than our close.
            let taken = if unheard { octets.len() } else { deliver(id, octets) };
            octets_in += taken as u64;
            taken
        };
        let mut context = self.context.borrow(now);
        let disposition = entry.connection.handle(&mut context, segment, payload, &mut take);
        entry.octets_in += octets_in;
        self.due.push(index);
        self.note_holding(index);
        if disposition == Disposition::DataLost {
            self.break_off(index, CloseReason::LocalClosed);
        }
        self.notice(index);
        self.conclude(disposition, arrived)
    }

    fn conclude(&mut self, disposition: Disposition, arrived: &Arrived) -> Result<(), DropReason> {
        match disposition {
            Disposition::Accepted | Disposition::DataLost => Ok(()),
            Disposition::Refuse => {
                self.refuse(&arrived.tuple, &arrived.segment);
                Err(DropReason::BadAcknowledgment)
            }
            Disposition::OutOfWindow => Err(DropReason::OutOfWindow),
            Disposition::OldTimestamp | Disposition::NoTimestamp => Err(DropReason::OldTimestamp),
            Disposition::BadAcknowledgment => Err(DropReason::BadAcknowledgment),
            Disposition::ChallengedReset | Disposition::ChallengedSyn => {
                Err(DropReason::Challenged)
            }
            Disposition::Unexpected => Err(DropReason::Malformed),
            Disposition::NoRoom => Err(DropReason::NoMemory),
        }
    }

    /// A segment of no connection: a SYN, the acknowledgment of a cookie, or nobody's.
    fn receive_unknown(
        &mut self,
        arrived: &Arrived,
        payload: &mut [u8],
        deliver: &mut dyn FnMut(ConnId, &mut [u8]) -> usize,
    ) -> Result<(), DropReason> {
        let (tuple, segment) = (&arrived.tuple, &arrived.segment);
        let port = tuple.local.port();
        let listening = self.listening[usize::from(port >> 6)] & 1 << (port & 63) != 0;
        if segment.flags.rst {
            return Err(DropReason::NoConnection);
        }
        if listening && opens(segment) {
            return self.answer_syn(tuple, segment);
        }
        let cookie = segment.ack.map(|ack| ack.wrapping_sub(1)).filter(|_| listening);
        if cookie.is_some_and(|cookie| self.cookies.is_spent(tuple, cookie)) {
            self.stats.cookies_replayed += 1;
        } else if listening && !segment.flags.syn {
            if let Some(connection) = self.recall(tuple, segment) {
                return self.accept(connection, arrived, payload, deliver);
            }
            let (seq, echo, now) = (segment.seq, segment.options.timestamps, self.now);
            if cookie.is_some_and(|cookie| self.cookies.is_of(tuple, cookie, seq, echo, now)) {
                return Err(DropReason::HandshakeUnfinished);
            }
        }
        self.stats.cookies_failed += u64::from(cookie.is_some());
        self.refuse(tuple, segment);
        Err(if opens(segment) { DropReason::PortClosed } else { DropReason::NoConnection })
    }

    /// Answers a SYN by a cookie, keeping nothing (RFC 4987, 3.6; RFC 9329, 10).
    fn answer_syn(&mut self, tuple: &FourTuple, segment: &Segment) -> Result<(), DropReason> {
        self.admit(tuple)?;
        let (offer, now) = (&segment.options, self.now);
        let settings = self.context.settings();
        let mss = offer.mss.unwrap_or_else(|| default_mss(tuple));
        let timestamps = offer
            .timestamps
            .map(|(value, _)| (self.cookies.cookie_timestamp(tuple, offer, now), value));
        let answer = Outgoing {
            seq: self.cookies.cookie(tuple, segment.seq, mss, now),
            ack: Some(segment.seq.wrapping_add(1)),
            flags: Flags { syn: true, ..Flags::default() },
            window: u16::MAX,
            options: Options {
                mss: Some(offered_mss(tuple, settings)),
                // What the timestamp cannot carry back is not offered.
                window_scale: offer
                    .window_scale
                    .filter(|_| timestamps.is_some())
                    .map(|_| settings.window_scale),
                sack_permitted: offer.sack_permitted && timestamps.is_some(),
                timestamps,
                ..Options::default()
            },
        };
        self.stats.cookies_sent += 1;
        let checksum = self.config.tx_checksum;
        let marks = self.marks(tuple);
        self.replies.push(tuple, marks, &answer, checksum);
        Ok(())
    }

    /// Whether the limits allow another connection of this peer.
    fn admit(&self, tuple: &FourTuple) -> Result<(), DropReason> {
        if !self.sources.admits(tuple.remote.ip()) {
            return Err(DropReason::PrefixMax);
        }
        if self.slots.is_full() && self.sources.strangers() == 0 && self.ended.is_empty() {
            return Err(DropReason::ConnectionsMax);
        }
        Ok(())
    }

    /// The connection whose cookie this segment acknowledges, if there is one.
    fn recall(&mut self, tuple: &FourTuple, segment: &Segment) -> Option<Connection> {
        let cookie = segment.ack?.wrapping_sub(1);
        let peer_isn = segment.seq.wrapping_sub(1);
        let timestamps = segment.options.timestamps;
        let recalled = self.cookies.recall(tuple, peer_isn, cookie, timestamps, self.now)?;
        self.stats.cookies_accepted += 1;
        let offset = self.cookies.timestamp_offset(tuple);
        let (settings, now) = (self.context.settings(), self.now);
        let mut connection =
            Connection::accept(*tuple, cookie, peer_isn, recalled, offset, settings, now);
        connection.set_marks(self.marks(tuple));
        Some(connection)
    }

    /// The handshake is done: the connection begins to cost something.
    fn accept(
        &mut self,
        connection: Connection,
        arrived: &Arrived,
        payload: &mut [u8],
        deliver: &mut dyn FnMut(ConnId, &mut [u8]) -> usize,
    ) -> Result<(), DropReason> {
        self.admit(&arrived.tuple)?;
        self.make_room();
        let id =
            self.slots.add(Entry::new(connection, self.now)).ok_or(DropReason::ConnectionsMax)?;
        self.adopt(id, &arrived.tuple);
        if let Some(ack) = arrived.segment.ack {
            self.cookies.spend(&arrived.tuple, ack.wrapping_sub(1));
        }
        self.receive(id.index, arrived, payload, deliver)
    }

    /// Makes room for one more connection whose peer has proven nothing. One that finds no place
    /// nevertheless comes again.
    fn make_room(&mut self) {
        if self.sources.strangers() >= self.config.unproven_max {
            self.evict_unproven();
        }
        self.make_place();
    }

    /// Tells the caller what the engine has made of a segment.
    pub(super) fn notice(&mut self, index: u32) {
        let now = self.now;
        let Some(entry) = self.slots.get_mut(index) else { return };
        if entry.connection.is_synchronized() && !entry.news.was_opened && !entry.news.ending {
            entry.opened_at = now;
            entry.news.was_opened = true;
            entry.news.opened = true;
            self.eventful.push(index);
        }
        self.notice_data(index);
        self.notice_end(index);
    }

    fn notice_data(&mut self, index: u32) {
        let Some(entry) = self.slots.get_mut(index).filter(|entry| entry.is_open()) else { return };
        entry.news.readable |= entry.connection.unread() > 0;
        if entry.news.readable {
            self.eventful.push(index);
        }
        self.notice_room(index);
    }

    /// Ends a connection that the engine closed, or whose peer has sent FIN once everything before
    /// it has been read.
    pub(super) fn notice_end(&mut self, index: u32) {
        let Some(entry) = self.slots.get(index) else { return };
        if entry.news.ending {
            return self.release_if_over(index);
        }
        if entry.is_over() {
            let reason = entry.connection.close_reason().unwrap_or(CloseReason::PeerReset);
            self.end(index, reason);
        } else if entry.connection.is_finished_by_peer() && entry.connection.unread() == 0 {
            self.end(index, CloseReason::PeerClosed);
        }
    }
}

/// Whether a segment asks for a new connection.
fn opens(segment: &Segment) -> bool {
    segment.flags.syn && segment.ack.is_none() && !segment.flags.rst && !segment.flags.fin
}
