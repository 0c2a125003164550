//! The responder of IKE_SA_INIT.

use std::sync::Arc;

use super::{derive, fragment_limit, init_header, init_payloads, reply_in_clear, takes_fragments};
use crate::config::ConnectionConfig;
use crate::crypto::Private;
use crate::endpoint::DropReason;
use crate::event::{IkeSaId, InitiationError};
use crate::message::{CodecError, Header, Message, NotifyType, Payload, Proposal};
use crate::nat;
use crate::negotiate;
use crate::path::{Path, Transport};
use crate::proposal::{IkeSuite, KeyExchange};
use crate::sa::{Cx, IkeSa, Phase, Session};
use crate::time::Instant;

/// An IKE_SA_INIT request that was answered.
pub(crate) struct Answered {
    pub(in crate::sa) deadline: Instant,
    /// SPIs of initiator and responder.
    pub(in crate::sa) spis: (u64, u64),
    suite: IkeSuite,
    private: Private,
    /// The peer's public value.
    public: Vec<u8>,
    /// Beyond which length messages are cut.
    fragment: Option<usize>,
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
    /// To come again, corrected, and told so.
    Refused,
    /// To be refused for this reason, if there is time for it.
    Unwelcome(InitiationError),
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
        header: &Header,
        octets: &[u8],
    ) -> Answer {
        let message = match Message::decode(octets) {
            Ok(message) => message,
            Err(CodecError::Critical(kind)) => {
                // RFC 7296, 2.5: the only way for its sender to learn what to leave out.
                let notify = Payload::notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, [kind]);
                reply_in_clear(cx, path, header, vec![notify]);
                return Answer::Refused;
            }
            // RFC 7296, 3.10.1: INVALID_SYNTAX only for what is authentic.
            Err(_) => return Answer::Dropped(DropReason::BadPayload),
        };
        let Some((offered, (group, public), _)) = init_payloads(&message) else {
            return Answer::Dropped(DropReason::BadPayload);
        };
        let tcp = path.transport == Transport::Tcp;
        let mut candidates = cx.host.connections(path.local.ip(), path.remote.ip());
        candidates.retain(|c| c.transport.allows(tcp));
        if candidates.is_empty() {
            return Answer::Unwelcome(InitiationError::NoConnection);
        }
        let sent = KeyExchange::from_transform_id(group);
        let chosen =
            candidates.iter().find_map(|c| negotiate::select_ike(offered, &c.proposals, sent));
        let Some((proposal, suite)) = chosen else {
            return Answer::Unwelcome(InitiationError::NoProposalChosen);
        };
        if suite.key_exchange.transform_id() != group {
            // RFC 7296, 1.2: no state is kept.
            let wanted = suite.key_exchange.transform_id().to_be_bytes();
            let notify = Payload::notify(NotifyType::INVALID_KE_PAYLOAD, wanted);
            reply_in_clear(cx, path, &message.header, vec![notify]);
            return Answer::Refused;
        }
        // No keys will ever be made of it, and nothing is kept for it until then (RFC 8019, 4.2).
        if public.len() != suite.key_exchange.public_len() {
            return Answer::Dropped(DropReason::BadPayload);
        }
        candidates.retain(|c| {
            let answer = negotiate::ike_answer(proposal, &suite, &[]);
            negotiate::select_ike(&[answer], &c.proposals, None).is_some()
        });
        Self::half_open(cx, id, path, &message, (proposal, suite), candidates, octets)
            .map_or(Answer::Dropped(DropReason::BadPayload), |session| {
                Answer::Session(Box::new(session))
            })
    }

    /// Answers, and keeps what the keys will be made of. They are made when IKE_AUTH comes, and not
    /// for whoever never goes on (RFC 8019, 4.2).
    fn half_open(
        cx: &mut Cx<'_>,
        id: IkeSaId,
        path: &Path,
        message: &Message,
        (proposal, suite): (&Proposal, IkeSuite),
        candidates: Vec<Arc<ConnectionConfig>>,
        request: &[u8],
    ) -> Option<Self> {
        let (_, (group, public), nonce_i) = init_payloads(message)?;
        let (public, nonce_i) = (public.to_vec(), nonce_i.to_vec());
        let first = candidates.first()?.clone();
        let private = Private::generate(suite.key_exchange, &mut |out| cx.host.random(out)).ok()?;
        let nonce_r = cx.nonce();
        let spis = (message.header.spi_i, cx.spi());
        let fragment = fragment_limit(message, &first);
        let mut payloads = vec![
            Payload::Sa(vec![negotiate::ike_answer(proposal, &suite, &[])]),
            Payload::Ke(group, private.public().to_vec()),
            Payload::Nonce(nonce_r.clone()),
        ];
        payloads.extend(nat::notifies(spis.0, spis.1, path, first.encap));
        // RFC 7383, 2.3: the answer to an initiator that has said so, too.
        let told = message.notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED);
        payloads.extend(told.and_then(|_| takes_fragments(&first)));
        let response = Message::new(init_header(spis.0, spis.1, true), payloads).encode().ok()?;
        cx.send(path, response.clone());
        let phase = Phase::HalfOpen(Box::new(Answered {
            deadline: cx.now + cx.config.half_open_timeout,
            spis,
            suite,
            private,
            public,
            fragment,
            candidates,
            nonce_i,
            nonce_r,
            request: request.to_vec(),
            response,
        }));
        let mut session = Self::new(id, false, *path, phase, cx.now);
        session.nat = nat::detect(message, path);
        Some(session)
    }

    /// Makes the keys of a half-open SA, now that its IKE_AUTH has come.
    pub(in crate::sa) fn derive_half_open(&mut self, cx: &Cx<'_>) {
        let Phase::HalfOpen(answered) = &self.phase else { return };
        let (spis, suite) = (answered.spis, answered.suite);
        let Ok(shared) = answered.private.agree(&answered.public) else {
            // Its public value is none: the peer cannot have keys either.
            self.phase = Phase::Dead;
            return;
        };
        let nonces = (&answered.nonce_i[..], &answered.nonce_r[..]);
        if let Some(keys) = derive(&suite, spis, nonces, &shared) {
            let mut sa = IkeSa::new((spis.1, spis.0), false, suite, keys, cx.now, (0, 1));
            sa.fragment = answered.fragment;
            self.sa = Some(sa);
        }
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
