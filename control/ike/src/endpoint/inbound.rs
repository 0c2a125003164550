//! The way of a message in: to its IKE SA, or to whoever answers strangers.

use std::time::Duration;

use super::guard::{Demand, Verdict};
use super::{DropReason, Endpoint, Received};
use crate::event::{Event, InitiationError, Transmit};
use crate::host::Host;
use crate::message::{ExchangeType, HEADER_LEN, Header, Message, NotifyType, Payload};
use crate::path::{ConnToken, Path, Transport};
use crate::sa::{Answer, Cx, Session, reply_in_clear};
use crate::time::Instant;

/// How long a peer may take over a corrected first request, a puzzle included (RFC 9329, 6.3.1).
const UNUSED_TIMEOUT: Duration = Duration::from_secs(15);
/// Most connections on which one is awaited.
const UNUSED_MAX: usize = 4096;

impl Endpoint {
    /// Takes an IKE message, without marker and TCP length, that came on `path`.
    pub fn handle_message(
        &mut self,
        now: Instant,
        path: &Path,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Received {
        if octets.len() > self.config.message_octets_max {
            return Received::Dropped(DropReason::TooLong);
        }
        // RFC 7296, 2.5: of another major version only the header can be understood.
        if let Some(version) = octets.get(17).filter(|_| octets.len() >= HEADER_LEN)
            && version >> 4 != 2
        {
            return self.other_version(now, path, octets, host);
        }
        let Ok((header, _)) = Header::decode(octets) else {
            return Received::Dropped(DropReason::BadHeader);
        };
        let first = header.exchange == ExchangeType::IKE_SA_INIT
            && header.from_initiator
            && !header.response;
        if first {
            return self.handle_init(now, path, &header, octets, host);
        }
        let local = if header.from_initiator { header.spi_r } else { header.spi_i };
        let Some(ike) = self.table.by_spi(local) else {
            return self.unknown_spi(now, path, &header, host);
        };
        self.with(now, ike, host, |s, cx| s.handle(cx, path, &header, octets))
            .unwrap_or(Received::Dropped(DropReason::UnknownSpi))
    }

    /// Says that there is no such IKE SA (RFC 7296, 2.21.4): to requests only, in the clear, so many a
    /// second and only over UDP, where the peer may have missed a Delete.
    fn unknown_spi(
        &mut self,
        now: Instant,
        path: &Path,
        header: &Header,
        host: &mut dyn Host,
    ) -> Received {
        let told = !header.response
            && path.transport == Transport::Udp
            && header.exchange != ExchangeType::IKE_SA_INIT
            && self.strangers.take(now);
        if told {
            let notify = Payload::notify(NotifyType::INVALID_IKE_SPI, []);
            reply_in_clear(cx!(self, now, host), path, header, vec![notify]);
        }
        Received::Dropped(DropReason::UnknownSpi)
    }

    /// Says that only version 2 is spoken here (RFC 7296, 2.5), to a request of a higher one, so many
    /// a second (2.21.4).
    fn other_version(
        &mut self,
        now: Instant,
        path: &Path,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Received {
        if let Ok((header, _)) = Header::decode(octets)
            && header.major > 2
            && !header.response
            && self.strangers.take(now)
        {
            let notify = Payload::notify(NotifyType::INVALID_MAJOR_VERSION, []);
            reply_in_clear(cx!(self, now, host), path, &header, vec![notify]);
        }
        Received::Dropped(DropReason::BadVersion)
    }

    /// A request that begins an IKE SA, or its repetition.
    fn handle_init(
        &mut self,
        now: Instant,
        path: &Path,
        header: &Header,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Received {
        if header.spi_r != 0 || header.spi_i == 0 || header.message_id != 0 {
            return Received::Dropped(DropReason::BadHeader);
        }
        if let Some(session) = self.table.by_init(header.spi_i, path) {
            let cx = cx!(self, now, host);
            return match session.repeat_init(cx, path, octets) {
                true => Received::Repeated,
                false => Received::Dropped(DropReason::MessageId),
            };
        }
        if let Some(reason) = self.no_room(path) {
            return Received::Dropped(reason);
        }
        if let Some(received) = self.keep_out(now, path, octets, host) {
            return received;
        }
        let id = self.new_ike_id();
        match Session::respond_to_init(cx!(self, now, host), id, path, header, octets) {
            Answer::Session(session) => {
                self.table.insert(*session);
                Received::Accepted
            }
            Answer::Refused => {
                self.await_correction(now, path);
                Received::Accepted
            }
            Answer::Unwelcome(error) => {
                self.await_correction(now, path);
                self.turn_away(now, path, header, error, host)
            }
            Answer::Dropped(reason) => Received::Dropped(reason),
        }
    }

    /// Refuses a first request, and tells of it here: so many a second, since anybody can send any
    /// number of them (RFC 7296, 2.21.4).
    fn turn_away(
        &mut self,
        now: Instant,
        path: &Path,
        header: &Header,
        error: InitiationError,
        host: &mut dyn Host,
    ) -> Received {
        if !self.refusals.take(now) {
            return Received::Dropped(DropReason::RefusalLimit);
        }
        let notify = Payload::notify(NotifyType::NO_PROPOSAL_CHOSEN, []);
        reply_in_clear(cx!(self, now, host), path, header, vec![notify]);
        self.events.push_back(Event::Refused { path: *path, error });
        Received::Accepted
    }

    /// Under load, has peers return a cookie or solve a puzzle first; what became of the request if it
    /// is not let in. No state is kept for it.
    fn keep_out(
        &mut self,
        now: Instant,
        path: &Path,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Option<Received> {
        let (all, _) = self.table.half_open(path.remote.ip());
        let demand = if all >= self.config.puzzle_threshold {
            Demand::Puzzle(self.config.puzzle_bits.max(1))
        } else if all >= self.config.cookie_threshold {
            Demand::Cookie
        } else {
            return None;
        };
        let Ok(message) = Message::decode(octets) else {
            return Some(Received::Dropped(DropReason::BadPayload));
        };
        match self.guard.judge(now, host, path, &message, demand) {
            Verdict::Pass => None,
            Verdict::Drop(reason) => Some(Received::Dropped(reason)),
            Verdict::Return(payloads) => {
                reply_in_clear(cx!(self, now, host), path, &message.header, payloads);
                self.await_correction(now, path);
                Some(demand.received())
            }
        }
    }

    /// A request over TCP is to come again, corrected. Its connection, which carries no IKE SA, is
    /// closed if none does (RFC 9329, 6.3 and 6.4).
    fn await_correction(&mut self, now: Instant, path: &Path) {
        let Some(conn) = path.conn else { return };
        if self.unused.len() >= UNUSED_MAX
            && let Some((_, oldest)) = self.unused.pop_front()
        {
            self.close_unused(oldest);
        }
        self.unused.push_back((now + UNUSED_TIMEOUT, conn));
    }

    pub(super) fn close_unused(&mut self, conn: ConnToken) {
        if self.table.by_conn(conn).is_empty() {
            self.transmits.push_back(Transmit::Close { conn });
        }
    }

    /// Why a peer may not begin one more IKE SA on this path.
    fn no_room(&self, path: &Path) -> Option<DropReason> {
        let config = &self.config;
        if self.table.len() >= config.ike_sas_max {
            return Some(DropReason::SaLimit);
        }
        let (all, of_source) = self.table.half_open(path.remote.ip());
        if all >= config.half_open_max || of_source >= config.half_open_per_source_max {
            return Some(DropReason::HalfOpenLimit);
        }
        // RFC 9329, 6.1: one IKE SA, and what it is rekeyed to, for each connection.
        let taken = path.conn.is_some_and(|conn| {
            self.table
                .by_conn(conn)
                .iter()
                .any(|id| self.table.get(*id).is_some_and(Session::is_up))
        });
        taken.then_some(DropReason::ConnectionInUse)
    }
}
