//! INFORMATIONAL exchanges: Delete, liveness, errors (RFC 7296, 1.4).

use super::exchange::Asked;
use super::{Cx, Phase, Session};
use crate::event::{ChildId, DownReason};
use crate::message::{ExchangeType, Message, NotifyType, Payload, Protocol};
use crate::path::Path;

impl Session {
    pub(super) fn handle_informational(&mut self, cx: &mut Cx<'_>, path: &Path, message: &Message) {
        let mut answer = self.answer_mobike(cx, path, message);
        self.heed_auth_lifetime(cx, message);
        let mut gone = None;
        for payload in &message.payloads {
            match payload {
                Payload::Delete(Protocol::IKE, _) => gone = Some(DownReason::DeletedByPeer),
                Payload::Delete(Protocol::ESP, spis) => {
                    let deleted = self.delete_by_peer(cx, spis);
                    if !deleted.is_empty() {
                        answer.push(Payload::Delete(Protocol::ESP, deleted));
                    }
                }
                // RFC 7296, 2.21.2: an initiator that could not authenticate this side says so here.
                Payload::Notify(n)
                    if matches!(
                        n.kind,
                        NotifyType::AUTHENTICATION_FAILED | NotifyType::INVALID_SYNTAX
                    ) =>
                {
                    gone = Some(DownReason::PeerRefused(n.kind));
                }
                _ => {}
            }
        }
        // RFC 7296, 1.4.1: the answer to a Delete of the IKE SA is empty.
        self.respond(cx, path, ExchangeType::INFORMATIONAL, answer);
        match gone {
            // RFC 7296, 2.8.2: the peer, which began the other of two rekeys, deletes what it has
            // replaced.
            Some(DownReason::DeletedByPeer) if self.take_rival(cx) => {}
            Some(reason) => self.close(cx, reason),
            None => {}
        }
        self.pump(cx);
    }

    /// Removes the CHILD SAs whose outbound SPIs the peer names; gives the inbound ones for the
    /// answer.
    pub(super) fn delete_by_peer(&mut self, cx: &mut Cx<'_>, spis: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut answer = Vec::new();
        for spi in spis {
            let found = self.children.iter().find(|c| c.spi_out.to_be_bytes() == spi[..]);
            let Some((id, spi_in)) = found.map(|c| (c.id, c.spi_in)) else { continue };
            // RFC 7296, 1.4.1: both delete at once; then this direction is named in the own Delete.
            let deleting = matches!(&self.outstanding,
                Some(o) if matches!(o.asked, Asked::DeleteChild(child) if child == id));
            if !deleting {
                answer.push(spi_in.to_be_bytes().to_vec());
            }
            self.remove_child(cx, id, Some(DownReason::DeletedByPeer));
        }
        answer
    }

    pub(super) fn send_delete_ike(&mut self, cx: &mut Cx<'_>) {
        let delete = Payload::Delete(Protocol::IKE, Vec::new());
        self.request(cx, ExchangeType::INFORMATIONAL, vec![delete], Asked::DeleteIke);
    }

    pub(super) fn send_delete_child(&mut self, cx: &mut Cx<'_>, id: ChildId, reason: DownReason) {
        // The peer may have deleted it while this waited.
        let Some(child) = self.children.iter_mut().find(|c| c.id == id) else { return };
        child.leaving = Some(reason);
        let spi = child.spi_in.to_be_bytes().to_vec();
        let delete = Payload::Delete(Protocol::ESP, vec![spi]);
        self.request(cx, ExchangeType::INFORMATIONAL, vec![delete], Asked::DeleteChild(id));
    }

    /// The peer answered the Delete of the IKE SA.
    pub(super) fn finish_delete(&mut self, cx: &mut Cx<'_>) {
        if let Phase::Deleting(reason) = self.phase {
            self.close(cx, reason);
        }
        // This side began the last exchange: there is nothing to be repeated, and an Originator
        // closes its connection (RFC 9329, 6.1).
        if self.initiator {
            self.close_connection(cx);
        }
    }
}
