//! Rekeys of the IKE SA from either side (RFC 7296, 1.3.2, 2.8 and 2.18).
//!
//! The new IKE SA takes over at once; the old one is [`super::retired`] and deleted by whoever began
//! the rekey. Where both begin one at once, each answers the other's as usual, and the new SA made
//! with the lowest of the four nonces is deleted by its maker (2.8.2). A rekey changes neither who
//! is the TCP Originator (RFC 9329, 1.2) nor the CHILD SAs.

use super::create::{lowest, plain, proposals, public_value, wanted_group};
use super::exchange::{Asked, Task};
use super::lifetime::Clock;
use super::{Cx, IkeSa, Phase, Session};
use crate::config::Lifetime;
use crate::crypto::Private;
use crate::event::{ChildFailure, DownReason, Event};
use crate::keys::{IkeKeys, Inputs, skeyseed_rekeyed};
use crate::message::{ExchangeType, Message, Notify, NotifyType, Payload, Proposal};
use crate::negotiate;
use crate::proposal::{IkeProposal, KeyExchange};
use serde::{Deserialize, Serialize};

/// New keys that this side asked for.
#[derive(Serialize, Deserialize)]
pub(crate) struct IkeRequest {
    spi_local: u64,
    private: Private,
    nonce_i: Vec<u8>,
    /// What the peer may choose from, whatever the configuration says when it answers. The process
    /// that follows does not know it, and goes by its configuration.
    #[serde(skip)]
    offered: Vec<IkeProposal>,
    /// Whether the group is already the one that the peer wanted.
    corrected: bool,
    /// What the peer made while this side waited.
    rival: Option<MadeIke>,
}

/// An IKE SA made by CREATE_CHILD_SA.
#[derive(Serialize, Deserialize)]
pub(crate) struct MadeIke {
    sa: IkeSa,
    /// The lower nonce of its exchange.
    lowest: Vec<u8>,
}

impl IkeRequest {
    /// What the peer made while this side waited.
    pub(super) const fn rival_sa(&mut self) -> Option<&mut IkeSa> {
        match &mut self.rival {
            Some(rival) => Some(&mut rival.sa),
            None => None,
        }
    }
}

// As initiator.
impl Session {
    /// Asks for new keys, with a public value of `group` or of the first group configured.
    pub(super) fn send_ike_rekey(&mut self, cx: &mut Cx<'_>, group: Option<KeyExchange>) {
        let Some(connection) = self.connection.clone() else { return };
        if !matches!(self.phase, Phase::Established) {
            return;
        }
        let first = || connection.proposals.first().and_then(|p| p.key_exchange.first()).copied();
        let private = group.or_else(first);
        let private = private.map(|g| Private::generate(g, &mut |out| cx.host.random(out)));
        let Some(Ok(private)) = private else { return };
        let (spi_local, nonce_i) = (cx.spi(), cx.nonce());
        let offer = negotiate::ike_offer(&connection.proposals, &spi_local.to_be_bytes());
        let payloads = vec![
            Payload::Sa(offer),
            Payload::Nonce(nonce_i.clone()),
            Payload::Ke(private.group().transform_id(), private.public().to_vec()),
        ];
        let corrected = group.is_some();
        let offered = connection.proposals.clone();
        let request = IkeRequest { spi_local, private, nonce_i, offered, corrected, rival: None };
        let asked = Asked::Ike(Box::new(request));
        self.request(cx, ExchangeType::CREATE_CHILD_SA, payloads, asked);
    }

    pub(super) fn handle_ike_response(
        &mut self,
        cx: &mut Cx<'_>,
        mut request: IkeRequest,
        message: &Message,
    ) {
        let rival = request.rival.take();
        match (self.agreed_ike(cx, &request, message), rival) {
            (Some(made), Some(rival)) if made.lowest < rival.lowest => {
                // RFC 7296, 2.8.2: this side's is the one too many; its maker deletes it, and the
                // peer deletes the old one.
                self.succeed(cx, rival.sa, false);
                self.retire(cx, made.sa, true);
            }
            (Some(made), rival) => {
                self.succeed(cx, made.sa, true);
                if let Some(rival) = rival {
                    self.retire(cx, rival.sa, false);
                }
            }
            (None, Some(rival)) => self.succeed(cx, rival.sa, false),
            (None, None) => self.ike_refused(cx, &request, message),
        }
    }

    /// No new IKE SA was made. RFC 7296, 2.25, would have one closed that the peer has put off with
    /// TEMPORARY_FAILURE for several minutes. Here it lives until its lifetime is over, which closes it
    /// (2.8): the peer answers, traffic flows, and a peer that is only busy must not end that.
    fn ike_refused(&mut self, cx: &mut Cx<'_>, request: &IkeRequest, message: &Message) {
        let Some(error) = message.error() else {
            // The peer goes on with an IKE SA that this side cannot follow it to.
            self.close(cx, DownReason::ProtocolError("its answer to a rekey was malformed"));
            return;
        };
        let offered = |group: &KeyExchange| {
            self.connection
                .iter()
                .flat_map(|c| &c.proposals)
                .any(|p| p.key_exchange.contains(group))
        };
        let group = wanted_group(message).filter(offered);
        if group.is_some() && !request.corrected {
            self.push_task(cx, Task::RekeyIke(group));
            return;
        }
        let reason = ChildFailure::PeerRefused(error.kind);
        cx.events.push_back(Event::RekeyFailed { ike: self.id, child: None, reason });
        self.clock.retry(cx);
    }

    /// The IKE SA that the peer agreed to.
    fn agreed_ike(&self, cx: &Cx<'_>, request: &IkeRequest, message: &Message) -> Option<MadeIke> {
        if message.error().is_some() {
            return None;
        }
        let (connection, old) = (self.connection.as_ref()?, self.sa.as_ref()?);
        let nonce_r = message.nonce()?;
        let (group, public) = public_value(message)?;
        let answer = std::slice::from_ref(negotiate::single(proposals(message)?)?);
        let offered = match &request.offered[..] {
            [] => &connection.proposals[..],
            offered => offered,
        };
        let (proposal, suite) = negotiate::select_ike(answer, offered, None)?;
        let own = request.private.group();
        if suite.key_exchange != own || own.transform_id() != group {
            return None;
        }
        let spis = (request.spi_local, negotiate::ike_spi(proposal)?);
        let shared = request.private.agree(public).ok()?;
        let inputs = Inputs { nonce_i: &request.nonce_i, nonce_r, spi_i: spis.0, spi_r: spis.1 };
        let seed = skeyseed_rekeyed(&old.keys, &inputs, &shared);
        let keys = IkeKeys::derive(&suite, &seed, &inputs)?;
        let sa = IkeSa::new(spis, true, suite, keys, cx.now, (0, 0));
        Some(MadeIke { sa, lowest: lowest(&request.nonce_i, nonce_r) })
    }

    /// Lets another IKE SA take over.
    fn succeed(&mut self, cx: &mut Cx<'_>, sa: IkeSa, delete_old: bool) {
        let mut sa = sa;
        // RFC 7383, 2.3: what IKE_SA_INIT agreed on holds for the SAs that follow.
        sa.fragment = self.sa.as_ref().and_then(|old| old.fragment);
        let old = self.sa.replace(sa);
        self.restart_clock(cx);
        // One that waits for its turn has got what it was to bring.
        self.tasks.retain(|task| !matches!(task, Task::RekeyIke(_)));
        if let Some(old) = old {
            self.retire(cx, old, delete_old);
        }
        cx.events.push_back(Event::IkeRekeyed { ike: self.id });
    }

    /// The IKE SA has new keys.
    pub(super) fn restart_clock(&mut self, cx: &mut Cx<'_>) {
        let lifetime = self.connection.as_ref().map_or(Lifetime::UNLIMITED, |c| c.lifetime);
        self.clock = Clock::start(cx, &lifetime);
    }
}

// As responder.
impl Session {
    pub(super) fn answer_ike_rekey(
        &mut self,
        cx: &mut Cx<'_>,
        message: &Message,
        offered: &[Proposal],
        nonce_i: &[u8],
    ) -> Result<(Vec<Payload>, MadeIke), Notify> {
        // RFC 7296, 2.25.1: not while this side makes, rekeys or closes a CHILD SA, whose answer
        // comes on the old IKE SA.
        let busy = match self.outstanding.as_ref().map(|o| &o.asked) {
            // What asks nothing but an answer may be forgotten: the peer is heard.
            None | Some(Asked::Liveness) => false,
            Some(Asked::Ike(request)) => request.rival.is_some(),
            Some(_) => true,
        };
        if busy {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        }
        let none = || plain(NotifyType::NO_PROPOSAL_CHOSEN);
        let (group, public) =
            public_value(message).ok_or_else(|| plain(NotifyType::INVALID_SYNTAX))?;
        let (Some(connection), Some(old)) = (&self.connection, &self.sa) else {
            return Err(none());
        };
        let sent = KeyExchange::from_transform_id(group);
        let (proposal, suite) =
            negotiate::select_ike(offered, &connection.proposals, sent).ok_or_else(none)?;
        let spi_remote = negotiate::ike_spi(proposal).ok_or_else(none)?;
        let wanted = suite.key_exchange.transform_id();
        if wanted != group {
            let data = wanted.to_be_bytes().to_vec();
            return Err(Notify { data, ..plain(NotifyType::INVALID_KE_PAYLOAD) });
        }
        let private = Private::generate(suite.key_exchange, &mut |out| cx.host.random(out));
        let private = private.map_err(|_| plain(NotifyType::TEMPORARY_FAILURE))?;
        let shared = private.agree(public).map_err(|_| plain(NotifyType::INVALID_SYNTAX))?;
        let (spi_local, nonce_r) = (cx.spi(), cx.nonce());
        let inputs = Inputs { nonce_i, nonce_r: &nonce_r, spi_i: spi_remote, spi_r: spi_local };
        let seed = skeyseed_rekeyed(&old.keys, &inputs, &shared);
        let keys = IkeKeys::derive(&suite, &seed, &inputs).ok_or_else(none)?;
        let sa = IkeSa::new((spi_local, spi_remote), false, suite, keys, cx.now, (0, 0));
        let made = MadeIke { sa, lowest: lowest(nonce_i, &nonce_r) };
        let spi = spi_local.to_be_bytes();
        let payloads = vec![
            Payload::Sa(vec![negotiate::ike_answer(proposal, &suite, &spi)]),
            Payload::Nonce(nonce_r),
            Payload::Ke(wanted, private.public().to_vec()),
        ];
        Ok((payloads, made))
    }

    /// The peer was told of a new IKE SA. It takes over, unless this side has asked for one too.
    pub(super) fn rekeyed_by_peer(&mut self, cx: &mut Cx<'_>, made: MadeIke) {
        if !self.is_up() {
            return;
        }
        if let Some(outstanding) = &mut self.outstanding
            && let Asked::Ike(own) = &mut outstanding.asked
        {
            own.rival = Some(made);
            return;
        }
        // At most a liveness check is under way; the peer has just proved that it lives.
        self.withdraw_request();
        self.succeed(cx, made.sa, false);
        self.pump(cx);
    }

    /// Takes what the peer made over, if it and this side rekey at once. The peer does not know it,
    /// and deletes the old IKE SA: this side's attempt is forgotten (RFC 7296, 2.8.2).
    pub(super) fn take_rival(&mut self, cx: &mut Cx<'_>) -> bool {
        let rival = match self.outstanding.as_mut().map(|o| &mut o.asked) {
            Some(Asked::Ike(own)) => own.rival.take(),
            _ => None,
        };
        let Some(rival) = rival else { return false };
        self.withdraw_request();
        self.succeed(cx, rival.sa, false);
        true
    }

    /// The SPI of what the peer made, while this side rekeys too.
    pub(super) fn rival_spi(&self) -> Option<u64> {
        match self.outstanding.as_ref().map(|o| &o.asked) {
            Some(Asked::Ike(own)) => own.rival.as_ref().map(|rival| rival.sa.spi_local),
            _ => None,
        }
    }
}
