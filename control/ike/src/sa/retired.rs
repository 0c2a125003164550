//! IKE SAs that a rekey has put out of use, until they are deleted (RFC 7296, 2.8).
//!
//! The side that has to delete one sends the Delete and repeats it like any request; the other
//! answers it, and repetitions of it a little longer. Nothing new is made on them.

use serde::{Deserialize, Serialize};

use super::create::plain;
use super::keyed::{Window, Wire};
use super::{Cx, IkeSa, LINGER, Session};
use crate::endpoint::{DropReason, Received};
use crate::message::{CodecError, ExchangeType, Header, Message, NotifyType, Payload, Protocol};
use crate::nat;
use crate::path::{Path, Transport};
use crate::time::Instant;

/// Most at one time: an old one and one too many of two rekeys, and the next.
const RETIRED_MAX: usize = 4;

/// An IKE SA that is to go.
#[derive(Serialize, Deserialize)]
pub(super) struct Retired {
    pub(super) sa: IkeSa,
    /// When it is forgotten, deleted or not.
    pub(super) until: Instant,
    /// The Delete that this side sends, or what it asks to show the peer a new connection.
    pub(super) delete: Option<SentDelete>,
}

/// A Delete under way, or another request.
#[derive(Serialize, Deserialize)]
pub(super) struct SentDelete {
    pub(super) message_id: u32,
    pub(super) wire: Wire,
    /// Transmissions so far.
    pub(super) sent: u32,
    /// When it is sent again; `None`: no more.
    pub(super) due: Option<Instant>,
    /// It is no Delete: see [`Session::ask_retired`].
    #[serde(skip)]
    pub(super) asks: bool,
}

impl Session {
    /// Puts an IKE SA out of use; with `delete` this side deletes it.
    pub(super) fn retire(&mut self, cx: &mut Cx<'_>, mut sa: IkeSa, delete: bool) {
        let payload = vec![Payload::Delete(Protocol::IKE, Vec::new())];
        let request = delete.then(|| sa.request(ExchangeType::INFORMATIONAL, payload));
        let delete = request.and_then(Result::ok).map(|(message_id, wire)| SentDelete {
            message_id,
            wire,
            sent: 0,
            due: Some(cx.now),
            asks: false,
        });
        if self.retired.len() >= RETIRED_MAX {
            self.retired.remove(0);
        }
        // As long as this side repeats its Delete, and takes the peer to repeat its own.
        let until = cx.now + self.retransmission().patience();
        self.retired.push(Retired { sa, until, delete });
        self.check_retired(cx);
    }

    /// When something is due for one of them.
    pub(super) fn retired_due(&self) -> Option<Instant> {
        let due = |r: &Retired| r.delete.as_ref().and_then(|d| d.due).into_iter().chain([r.until]);
        self.retired.iter().flat_map(due).min()
    }

    /// Repeats Deletes over UDP, and forgets what is over.
    pub(super) fn check_retired(&mut self, cx: &mut Cx<'_>) {
        self.retired.retain(|r| r.until > cx.now);
        let (own, detached, tries) = (self.path, self.is_detached(), self.retransmission());
        let tried = self.outstanding.as_ref().and_then(|o| o.via);
        for delete in self.retired.iter_mut().filter_map(|r| r.delete.as_mut()) {
            if delete.due.is_none_or(|due| due > cx.now) {
                continue;
            }
            // What asks goes the way that is tried.
            let tried = tried.filter(|_| delete.asks);
            let (path, detached) = (tried.unwrap_or(own), detached && tried.is_none());
            delete.sent = delete.sent.saturating_add(1);
            // RFC 9329, 6.2: no repetition over TCP.
            let again = path.transport == Transport::Udp && delete.sent <= tries.tries;
            delete.due = again.then(|| cx.now + tries.wait(delete.sent));
            if !detached {
                cx.send_wire(&path, &delete.wire);
            }
        }
    }

    /// Sends the Deletes again on a new connection (RFC 9329, 6.2).
    pub(super) fn repeat_deletes(&mut self, cx: &mut Cx<'_>) {
        for delete in self.retired.iter_mut().filter_map(|r| r.delete.as_mut()) {
            delete.due = Some(cx.now);
        }
        self.check_retired(cx);
    }

    /// A TCP connection follows one that was lost, or this side has moved and gets no answer. The peer that
    /// has begun a rekey may not have got the answer, does not know the IKE SA that followed, and repeats
    /// its request only where it has heard of this side (RFC 9329, 6.1 and 6.2; RFC 4555, 3.5). So it is
    /// asked something on the old one too.
    pub(super) fn ask_retired(&mut self, cx: &Cx<'_>, path: &Path) {
        let may_move = self.may_move();
        let encap = self.connection.as_ref().is_some_and(|c| c.encap);
        // Those that are deleted are kept for a moment only.
        let soon = cx.now + LINGER;
        let open = |r: &&mut Retired| r.delete.is_none() && r.until > soon;
        for retired in self.retired.iter_mut().filter(open) {
            let (spi_i, spi_r) = retired.sa.spis();
            let mut payloads = Vec::new();
            if may_move {
                payloads.push(Payload::notify(NotifyType::UPDATE_SA_ADDRESSES, []));
                payloads.extend(nat::notifies(spi_i, spi_r, path, encap));
            }
            let request = retired.sa.request(ExchangeType::INFORMATIONAL, payloads).ok();
            retired.delete = request.map(|(message_id, wire)| SentDelete {
                message_id,
                wire,
                sent: 0,
                due: Some(cx.now),
                asks: true,
            });
        }
    }

    /// A message for one of them: its Delete, the answer to it, or a repetition.
    pub(super) fn handle_retired(
        &mut self,
        cx: &mut Cx<'_>,
        index: usize,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        let Some(retired) = self.retired.get_mut(index) else {
            return Received::Dropped(DropReason::UnknownSpi);
        };
        if header.from_initiator == retired.sa.initiator {
            return Received::Dropped(DropReason::UnexpectedExchange);
        }
        let window = retired.sa.window(header.message_id);
        let awaited = retired.delete.as_ref().is_some_and(|d| d.message_id == header.message_id);
        if if header.response { !awaited } else { window == Window::Outside } {
            return Received::Dropped(DropReason::MessageId);
        }
        if !header.response && window == Window::Repeated {
            if let (Ok(true), Some(cached)) = (retired.sa.repeats(octets), retired.sa.cached()) {
                cx.send_wire(path, cached);
            }
            return Received::Repeated;
        }
        let message = match retired.sa.open(octets) {
            Ok(Some(message)) => message,
            Ok(None) => {
                self.await_fragments(cx.now);
                return Received::Accepted;
            }
            Err(CodecError::Icv) => return Received::Dropped(DropReason::BadIcv),
            Err(_) => return Received::Dropped(DropReason::BadPayload),
        };
        if header.response {
            if retired.delete.take().is_some_and(|sent| sent.asks) {
                // The answer to the peer's rekey has gone before. What was asked on the IKE SA that it
                // did not know until then is asked once more.
                self.transmit(cx);
            } else {
                // Deleted; the peer's last request may still be repeated.
                retired.until = cx.now + LINGER;
            }
        } else {
            self.answer_retired(cx, index, path, &message);
        }
        self.last_heard = cx.now;
        self.heard(cx, path);
        Received::Accepted
    }

    fn answer_retired(&mut self, cx: &mut Cx<'_>, index: usize, path: &Path, message: &Message) {
        let exchange = message.header.exchange;
        let informational = exchange == ExchangeType::INFORMATIONAL;
        let mut answer = Vec::new();
        let mut deleted = false;
        // RFC 7296, 2.25: nothing new is made here, but a CHILD SA can be deleted from here, whose
        // Delete crossed the rekey.
        if !informational {
            answer.push(Payload::Notify(plain(NotifyType::TEMPORARY_FAILURE)));
        }
        for payload in message.payloads.iter().filter(|_| informational) {
            match payload {
                Payload::Delete(Protocol::IKE, _) => deleted = true,
                Payload::Delete(Protocol::ESP, spis) => {
                    let gone = self.delete_by_peer(cx, spis);
                    if !gone.is_empty() {
                        answer.push(Payload::Delete(Protocol::ESP, gone));
                    }
                }
                _ => {}
            }
        }
        let Some(retired) = self.retired.get_mut(index) else { return };
        if let Ok(wire) = retired.sa.response(exchange, answer) {
            cx.send_wire(path, &wire);
        }
        if deleted {
            // RFC 7296, 2.25.2: this side's own Delete is forgotten.
            retired.delete = None;
            retired.until = cx.now + LINGER;
        }
    }
}
