//! The responder of IKE_SA_INIT.

use std::sync::Arc;
use std::time::Duration;

use super::{derive, init_header, init_payloads, reply_in_clear};
use crate::config::ConnectionConfig;
use crate::crypto::Private;
use crate::endpoint::DropReason;
use crate::event::{Event, IkeSaId, InitiationError};
use crate::message::{Message, NotifyType, Payload, Proposal};
use crate::nat;
use crate::negotiate;
use crate::path::{Path, Transport};
use crate::proposal::{IkeSuite, KeyExchange};
use crate::sa::{Cx, IkeSa, Phase, Session};
use crate::time::Instant;

/// An IKE_SA_INIT request that was answered.
pub(crate) struct Answered {
    pub(in crate::sa) deadline: Instant,
    /// Connections that the peer may turn out to belong to.
    pub(in crate::sa) candidates: Vec<Arc<ConnectionConfig>>,
    pub(in crate::sa) nonce_i: Vec<u8>,
    pub(in crate::sa) nonce_r: Vec<u8>,
    pub(in crate::sa) request: Vec<u8>,
    pub(in crate::sa) response: Vec<u8>,
}

/// What came of a peer's IKE_SA_INIT request.
pub(crate) enum Answer {
    /// A half-open IKE SA.
    Session(Box<Session>),
    /// Refused, and said so.
    Refused,
    /// Nothing to answer.
    Dropped(DropReason),
}

// The responder's half.
impl Session {
    /// Answers a first IKE_SA_INIT request.
    pub(crate) fn respond_to_init(
        cx: &mut Cx<'_>,
        id: IkeSaId,
        path: &Path,
        octets: &[u8],
    ) -> Answer {
        let Ok(message) = Message::decode(octets) else {
            // RFC 7296, 2.21.1: an error here may be answered, but need not be; it is not authentic.
            return Answer::Dropped(DropReason::BadPayload);
        };
        let Some((offered, (group, public), nonce_i)) = init_payloads(&message) else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        let tcp = path.transport == Transport::Tcp;
        let mut candidates = cx.host.connections(path.local.ip(), path.remote.ip());
        candidates.retain(|c| c.transport.allows(tcp));
        if candidates.is_empty() {
            return refuse_init(cx, path, &message, InitiationError::NoConnection);
        }
        let sent = KeyExchange::from_transform_id(group);
        let chosen =
            candidates.iter().find_map(|c| negotiate::select_ike(offered, &c.proposals, sent));
        let Some((proposal, suite)) = chosen else {
            return refuse_init(cx, path, &message, InitiationError::NoProposalChosen);
        };
        if suite.key_exchange.transform_id() != group {
            // RFC 7296, 1.2: no state is kept.
            let wanted = suite.key_exchange.transform_id().to_be_bytes();
            let notify = Payload::notify(NotifyType::INVALID_KE_PAYLOAD, wanted);
            reply_in_clear(cx, path, &message.header, vec![notify]);
            return Answer::Refused;
        }
        candidates.retain(|c| {
            let answer = negotiate::ike_answer(proposal, &suite, &[]);
            negotiate::select_ike(&[answer], &c.proposals, None).is_some()
        });
        let Some((session, payloads)) =
            Self::half_open(cx, id, path, &message, (proposal, suite), (public, nonce_i))
        else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        session.answer_init(cx, payloads, candidates, nonce_i, octets)
    }

    /// Derives the keys; gives the session and the payloads of the answer but the notifications.
    fn half_open(
        cx: &mut Cx<'_>,
        id: IkeSaId,
        path: &Path,
        message: &Message,
        (proposal, suite): (&Proposal, IkeSuite),
        (public, nonce_i): (&[u8], &[u8]),
    ) -> Option<(Self, Vec<Payload>)> {
        let group = suite.key_exchange;
        let private = Private::generate(group, &mut |out| cx.host.random(out)).ok()?;
        let shared = private.agree(public).ok()?;
        let nonce_r = cx.nonce();
        let (spi_i, spi_r) = (message.header.spi_i, cx.spi());
        let keys = derive(&suite, (spi_i, spi_r), (nonce_i, &nonce_r), &shared)?;
        let mut session = Self::new(id, false, *path, Phase::Dead, cx.now);
        session.nat = nat::detect(message, path);
        session.sa = Some(IkeSa::new((spi_r, spi_i), false, suite, keys, cx.now, (0, 1)));
        let payloads = vec![
            Payload::Sa(vec![negotiate::ike_answer(proposal, &suite, &[])]),
            Payload::Ke(group.transform_id(), private.public().to_vec()),
            Payload::Nonce(nonce_r),
        ];
        Some((session, payloads))
    }

    fn answer_init(
        mut self,
        cx: &mut Cx<'_>,
        mut payloads: Vec<Payload>,
        candidates: Vec<Arc<ConnectionConfig>>,
        nonce_i: &[u8],
        request: &[u8],
    ) -> Answer {
        let Some((spi_i, spi_r)) = self.sa.as_ref().map(IkeSa::spis) else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        let nonce_r = payloads.iter().find_map(|p| match p {
            Payload::Nonce(nonce) => Some(nonce.clone()),
            _ => None,
        });
        let encap = candidates.first().is_some_and(|c| c.encap);
        payloads.extend(nat::notifies(spi_i, spi_r, &self.path, encap));
        let Ok(response) = Message::new(init_header(spi_i, spi_r, true), payloads).encode() else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        cx.send(&self.path, response.clone());
        let half_open_timeout: Duration = cx.config.half_open_timeout;
        self.phase = Phase::HalfOpen(Box::new(Answered {
            deadline: cx.now + half_open_timeout,
            candidates,
            nonce_i: nonce_i.to_vec(),
            nonce_r: nonce_r.unwrap_or_default(),
            request: request.to_vec(),
            response,
        }));
        Answer::Session(Box::new(self))
    }

    /// Answers a repeated IKE_SA_INIT request, if it is the same as before (RFC 7296, 2.1).
    pub(crate) fn repeat_init(&self, cx: &mut Cx<'_>, path: &Path, octets: &[u8]) -> bool {
        match &self.phase {
            Phase::HalfOpen(answered) if answered.request == octets => {
                cx.send(path, answered.response.clone());
                true
            }
            _ => false,
        }
    }
}

fn refuse_init(cx: &mut Cx<'_>, path: &Path, message: &Message, error: InitiationError) -> Answer {
    let notify = Payload::notify(NotifyType::NO_PROPOSAL_CHOSEN, []);
    reply_in_clear(cx, path, &message.header, vec![notify]);
    cx.events.push_back(Event::Refused { path: *path, error });
    Answer::Refused
}
