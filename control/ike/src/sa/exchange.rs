//! Requests and responses of an IKE SA: the windows, what waits for its turn, and who handles what
//! (RFC 7296, 2.1 to 2.3).

use super::child::{ChildRequest, ChildWish};
use super::keyed::{Window, Wire};
use super::rekey::IkeRequest;
use super::{Cx, Phase, Session, TASKS_MAX};
use crate::endpoint::{DropReason, Received};
use crate::event::{ChildFailure, ChildId, DownReason, InitiationError};
use crate::message::{CodecError, ExchangeType, Header, Message, NotifyType, Payload, Protocol};
use crate::path::Path;
use crate::proposal::KeyExchange;
use crate::time::Instant;
use serde::{Deserialize, Serialize};

/// Message IDs never wrap (RFC 7296, 2.2).
const USED_UP: &str = "its Message IDs are used up";

/// What an outstanding request asked for.
#[derive(Serialize, Deserialize)]
pub(crate) enum Asked {
    /// IKE_AUTH; its state is in [`Phase::Auth`].
    Auth,
    /// Nothing but an answer: are you there?
    Liveness,
    /// Delete the IKE SA.
    DeleteIke,
    /// Delete a pair of CHILD SAs.
    DeleteChild(ChildId),
    /// Delete a pair that was never installed here.
    DeleteStray(u32),
    /// A new pair.
    Child(Box<ChildRequest>),
    /// New keys for the IKE SA.
    Ike(Box<IkeRequest>),
    /// To follow to another path, with the NAT digests of this one.
    Update(Path),
    /// A cookie back. The path, to which it was sent, is read by nobody: it goes with the next form of
    /// what is saved.
    ReturnCheck(Vec<u8>, Path),
    /// To note this gateway's further addresses.
    Addresses,
}

/// A request that waits for its response.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outstanding {
    pub(super) message_id: u32,
    pub(super) wire: Wire,
    pub(super) asked: Asked,
    /// A way that is tried for it, in place of the IKE SA's.
    pub(super) via: Option<Path>,
    /// Transmissions over UDP so far.
    pub(super) sent: u32,
    /// Whether it went over TCP last, where an answer has so much time in all.
    #[serde(skip)]
    pub(super) over_tcp: bool,
    /// When to send it again, or to give the peer up.
    pub(super) due: Instant,
}

/// Something to be asked when the window is free.
#[derive(Serialize, Deserialize)]
pub(crate) enum Task {
    Liveness,
    DeleteIke,
    DeleteChild(ChildId, DownReason),
    DeleteStray(u32),
    Child(ChildWish),
    RekeyChild(ChildId),
    /// With a value of this group, where the peer asked for another than the first.
    RekeyIke(Option<KeyExchange>),
    /// UPDATE_SA_ADDRESSES, by a way that is tried or on the present one.
    Update(Option<Path>),
    /// The list of this gateway's further addresses.
    Addresses,
    /// A COOKIE2 to the peer's new address.
    ReturnCheck,
}

impl Session {
    /// Takes a message whose SPI is this session's.
    pub(crate) fn handle(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        if let Phase::Init(_) = self.phase {
            return self.handle_init_response(cx, path, header, octets);
        }
        if let Some(received) = self.heed_hint(cx, header, octets) {
            return received;
        }
        let local = if header.from_initiator { header.spi_r } else { header.spi_i };
        if let Some(index) = self.retired.iter().position(|r| r.sa.spi_local == local) {
            return self.handle_retired(cx, index, path, header, octets);
        }
        if self.sa.is_none() && header.exchange == ExchangeType::IKE_AUTH {
            self.derive_half_open(cx);
        }
        let Some(sa) = &self.sa else { return Received::Dropped(DropReason::UnexpectedExchange) };
        let (spi_i, spi_r) = sa.spis();
        if (header.spi_i, header.spi_r) != (spi_i, spi_r) || header.from_initiator == sa.initiator {
            return Received::Dropped(DropReason::UnknownSpi);
        }
        if header.exchange == ExchangeType::IKE_SA_INIT {
            return Received::Dropped(DropReason::UnexpectedExchange);
        }
        if header.response {
            self.handle_response(cx, path, header, octets)
        } else {
            self.handle_request(cx, path, header, octets)
        }
    }

    pub(super) fn handle_request(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        let Some(sa) = &mut self.sa else { return Received::Dropped(DropReason::UnknownSpi) };
        let window = sa.window(header.message_id);
        if window == Window::Outside {
            return Received::Dropped(DropReason::MessageId);
        }
        if window == Window::Repeated {
            return self.repeat_response(cx, path, octets);
        }
        let message = match opened(sa.open(octets)) {
            Ok(message) => message,
            Err(received) => return self.not_whole(cx.now, received),
        };
        self.last_heard = cx.now;
        if let Phase::Closed(_) = self.phase {
            return Received::Dropped(DropReason::UnexpectedExchange);
        }
        self.heard(cx, path);
        match message {
            Ok(message) => self.dispatch_request(cx, path, &message),
            Err(error) => {
                self.answer_undecodable(cx, path, header, error);
                Received::Accepted
            }
        }
    }

    pub(super) fn dispatch_request(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        message: &Message,
    ) -> Received {
        match (message.header.exchange, &self.phase) {
            (ExchangeType::IKE_AUTH, Phase::HalfOpen(_)) => self.handle_auth(cx, path, message),
            (ExchangeType::INFORMATIONAL, Phase::Established | Phase::Deleting(_)) => {
                self.handle_informational(cx, path, message);
            }
            (ExchangeType::CREATE_CHILD_SA, Phase::Established | Phase::Deleting(_)) => {
                self.handle_create(cx, path, message);
            }
            // RFC 7296, 2.21.3: "all requests having errors MUST result in a response". Without one
            // the peer would repeat it, and ask nothing else, until it gives this side up.
            (_, Phase::Established | Phase::Deleting(_)) => {
                let error = CodecError::Syntax("exchange type");
                self.answer_undecodable(cx, path, &message.header, error);
            }
            _ => return Received::Dropped(DropReason::UnexpectedExchange),
        }
        Received::Accepted
    }

    /// An authentic request that cannot be decoded (RFC 7296, 2.5 and 2.21.2; RFC 9329, 6.1: the IKE
    /// SA goes, the TCP connection stays).
    pub(super) fn answer_undecodable(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        error: CodecError,
    ) {
        let notify = match error {
            CodecError::Critical(kind) => {
                Payload::notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, [kind])
            }
            _ => Payload::notify(NotifyType::INVALID_SYNTAX, []),
        };
        self.respond(cx, path, header.exchange, vec![notify]);
        match (error, &self.phase) {
            (CodecError::Critical(_), Phase::Established) => {}
            (_, Phase::HalfOpen(_)) => {
                self.refuse(cx, path, InitiationError::PeerMisbehaved("IKE_AUTH was malformed"));
            }
            _ => self.close(cx, DownReason::ProtocolError("a request was malformed")),
        }
    }

    /// Answers a repeated request from the cache (RFC 7296, 2.1). It does not move the path (RFC 9329,
    /// 6.1), but is answered where it came from. Nor does it show that the peer lives, which only a
    /// fresh message does (RFC 7296, 2.4): anybody may have kept it.
    fn repeat_response(&self, cx: &mut Cx<'_>, path: &Path, octets: &[u8]) -> Received {
        let Some(sa) = &self.sa else { return Received::Dropped(DropReason::UnknownSpi) };
        match (sa.repeats(octets), sa.cached()) {
            (Ok(true), Some(cached)) => cx.send_wire(path, cached),
            (Ok(_), _) => {}
            (Err(CodecError::Icv), _) => return Received::Dropped(DropReason::BadIcv),
            (Err(_), _) => return Received::Dropped(DropReason::BadPayload),
        }
        Received::Repeated
    }

    /// Sends the response to the request that is being handled.
    pub(super) fn respond(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
    ) {
        let Some(sa) = &mut self.sa else { return };
        // The pair was used until now: its packets come before the word that it is gone.
        let ends_child =
            payloads.iter().any(|payload| matches!(payload, Payload::Delete(Protocol::ESP, _)));
        if let Ok(wire) = sa.response(exchange, payloads) {
            cx.send_wire_in_order(path, &wire, ends_child);
        }
        if sa.is_exhausted() {
            self.close(cx, DownReason::ProtocolError(USED_UP));
        }
    }

    pub(super) fn handle_response(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        let due = self.outstanding.as_ref().is_some_and(|o| o.message_id == header.message_id);
        let Some(sa) = self.sa.as_mut().filter(|_| due) else {
            return Received::Dropped(DropReason::MessageId);
        };
        let message = match opened(sa.open(octets)) {
            Ok(message) => message,
            Err(received) => return self.not_whole(cx.now, received),
        };
        self.last_heard = cx.now;
        self.tried = 0;
        self.stop_fallback(path);
        self.heard(cx, path);
        let Some(outstanding) = self.outstanding.take() else {
            return Received::Dropped(DropReason::MessageId);
        };
        let message = match message {
            Ok(message) => message,
            // RFC 7296, 2.21.3: an error in a response ends the IKE SA without a word.
            Err(_) if matches!(outstanding.asked, Asked::Auth) => {
                self.fail(cx, InitiationError::PeerMisbehaved("its IKE_AUTH was malformed"));
                return Received::Accepted;
            }
            Err(_) => {
                self.abandon(cx, outstanding.asked);
                self.close(cx, DownReason::ProtocolError("a response was malformed"));
                return Received::Accepted;
            }
        };
        // RFC 7296, 2.21.3: fatal in both peers, without a Delete.
        let malformed = message.notify(NotifyType::INVALID_SYNTAX).is_some();
        if malformed && !matches!(outstanding.asked, Asked::Auth) {
            self.abandon(cx, outstanding.asked);
            self.close(cx, DownReason::PeerRefused(NotifyType::INVALID_SYNTAX));
            return Received::Accepted;
        }
        match outstanding.asked {
            Asked::Auth => self.handle_auth_response(cx, &message),
            Asked::Liveness | Asked::Addresses => {}
            Asked::DeleteIke => self.finish_delete(cx),
            Asked::DeleteChild(child) => self.remove_child(cx, child, None),
            Asked::DeleteStray(spi_in) => cx.host.release_child(spi_in),
            Asked::Child(request) => self.handle_child_response(cx, *request, &message),
            Asked::Ike(request) => self.handle_ike_response(cx, *request, &message),
            Asked::Update(digested) => self.handle_update_response(cx, &digested, path, &message),
            Asked::ReturnCheck(cookie, _) => self.handle_return_check(cx, &cookie, &message),
        }
        self.pump(cx);
        Received::Accepted
    }

    /// Sends a request now; the window must be free.
    pub(super) fn request(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
        asked: Asked,
    ) {
        self.request_via(cx, exchange, payloads, asked, None);
    }

    /// Sends a request now by a way that is tried.
    pub(super) fn request_via(
        &mut self,
        cx: &mut Cx<'_>,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
        asked: Asked,
        via: Option<Path>,
    ) {
        let Some(sa) = &mut self.sa else { return };
        if sa.is_exhausted() {
            self.abandon(cx, asked);
            self.close(cx, DownReason::ProtocolError(USED_UP));
            return;
        }
        let Ok((message_id, wire)) = sa.request(exchange, payloads) else { return };
        let due = cx.now;
        self.outstanding =
            Some(Outstanding { message_id, wire, asked, via, sent: 0, over_tcp: false, due });
        self.transmit(cx);
    }

    /// Asks what is to be asked next, if the window is free.
    pub(crate) fn pump(&mut self, cx: &mut Cx<'_>) {
        while self.outstanding.is_none() && self.is_up() {
            let Some(task) = self.tasks.pop_front() else { return };
            match task {
                Task::Liveness => {
                    self.request(cx, ExchangeType::INFORMATIONAL, Vec::new(), Asked::Liveness);
                }
                Task::DeleteIke => self.send_delete_ike(cx),
                Task::DeleteChild(child, reason) => self.send_delete_child(cx, child, reason),
                Task::DeleteStray(spi_in) => self.send_delete_stray(cx, spi_in),
                Task::Child(wish) => self.send_child_request(cx, wish),
                Task::RekeyChild(child) => self.send_child_rekey(cx, child),
                Task::RekeyIke(group) => self.send_ike_rekey(cx, group),
                Task::Update(via) => self.send_update(cx, via),
                Task::Addresses => self.send_addresses(cx),
                Task::ReturnCheck => self.send_return_check(cx),
            }
        }
    }

    /// Has something asked when its turn comes. What waits already does not wait twice, so that only
    /// wishes for new pairs can pile up: of those [`TASKS_MAX`] wait, and one too many has failed. All
    /// else is bounded by the pairs that there are; a stray takes the place of the wish that it came
    /// from.
    pub(super) fn push_task(&mut self, cx: &mut Cx<'_>, task: Task) {
        if let Some(waiting) = self.tasks.iter_mut().find(|waiting| waiting.covers(&task)) {
            if let (Task::RekeyIke(group), Task::RekeyIke(corrected @ Some(_))) = (waiting, task) {
                *group = corrected;
            }
        } else if let Task::Child(wish) = task {
            if self.tasks.len() < TASKS_MAX {
                self.tasks.push_back(Task::Child(wish));
            } else {
                self.child_request_failed(cx, wish, ChildFailure::TooManyWaiting);
            }
        } else {
            self.tasks.push_back(task);
        }
        self.pump(cx);
    }
}

impl Task {
    /// Whether it does what `other` is to do.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::RekeyIke(_), Self::RekeyIke(_)) | (Self::Addresses, Self::Addresses) => true,
            (Self::DeleteChild(id, _), Self::DeleteChild(other, _))
            | (Self::RekeyChild(id), Self::RekeyChild(other)) => id == other,
            _ => false,
        }
    }
}

/// The message, or the error for which its sender is to blame for certain; else what becomes of it:
/// one fragment of several, or nothing.
fn opened(
    result: Result<Option<Message>, CodecError>,
) -> Result<Result<Message, CodecError>, Received> {
    match result {
        Ok(Some(message)) => Ok(Ok(message)),
        Ok(None) => Err(Received::Accepted),
        Err(CodecError::Icv) => Err(Received::Dropped(DropReason::BadIcv)),
        Err(CodecError::Header | CodecError::TooLong) => {
            Err(Received::Dropped(DropReason::BadPayload))
        }
        Err(error) => Ok(Err(error)),
    }
}
