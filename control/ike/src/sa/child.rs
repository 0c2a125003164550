//! CHILD SAs: negotiated in IKE_AUTH and CREATE_CHILD_SA alike, installed, removed.

use std::sync::Arc;

use super::exchange::{Asked, Task};
use super::lifetime::{Clock, Limit};
use super::{Cx, Session};
use crate::config::ChildConfig;
use crate::crypto::{Private, SecretOctets};
use crate::event::{ChildFailure, ChildId, DownReason, Event};
use crate::host::{ChildSa, Mode};
use crate::message::{
    ExchangeType, Message, NotifyType, Payload, Proposal, Protocol, SelectorItem,
};
use crate::negotiate::{self, ChildKe};
use crate::proposal::{EspSuite, KeyExchange};
use crate::time::Instant;
use crate::ts::{self, TrafficSelector};

/// A pair of CHILD SAs that is installed.
pub(super) struct Child {
    pub(super) id: ChildId,
    pub(super) config: Arc<ChildConfig>,
    pub(super) spi_in: u32,
    pub(super) spi_out: u32,
    pub(super) suite: EspSuite,
    pub(super) local_ts: Vec<TrafficSelector>,
    pub(super) remote_ts: Vec<TrafficSelector>,
    pub(super) since: Instant,
    /// Why a Delete for it is on its way.
    pub(super) leaving: Option<DownReason>,
    /// The pair whose end lets outbound packets use this one (RFC 7296, 2.8).
    waits_for: Option<ChildId>,
    /// The pair that this one took over from.
    pub(super) replaces: Option<ChildId>,
    pub(super) clock: Clock,
    pub(super) octets: Limit,
    pub(super) packets: Limit,
}

/// A pair to be asked for.
pub(crate) struct ChildWish {
    pub(super) config: Arc<ChildConfig>,
    /// The pair that it is to replace.
    pub(super) replaces: Option<ChildId>,
    /// The group that the peer wants in place of the first one.
    pub(super) group: Option<KeyExchange>,
    /// Only the first selector of each side: the peer wants single pairs (RFC 7296, 2.9).
    pub(super) single: bool,
    /// How often the peer has put it off.
    pub(super) put_off: u32,
}

impl ChildWish {
    pub(super) const fn new(config: Arc<ChildConfig>) -> Self {
        Self { config, replaces: None, group: None, single: false, put_off: 0 }
    }

    /// Local and remote selectors to ask for.
    pub(super) fn selectors(&self) -> (&[TrafficSelector], &[TrafficSelector]) {
        let most = if self.single { 1 } else { usize::MAX };
        let first = |list: &Vec<TrafficSelector>| list.len().min(most);
        let config = &self.config;
        (&config.local_ts[..first(&config.local_ts)], &config.remote_ts[..first(&config.remote_ts)])
    }
}

/// A pair that the peer made in place of the same one as a request of this side (RFC 7296, 2.8.1).
pub(super) struct RivalChild {
    pub(super) id: ChildId,
    /// The lower nonce of its exchange.
    pub(super) lowest: Vec<u8>,
}

/// A pair that this side asked for.
pub(crate) struct ChildRequest {
    pub(super) wish: ChildWish,
    pub(super) spi_in: u32,
    pub(super) ke: ChildKe,
    pub(super) private: Option<Private>,
    pub(super) nonce_i: Vec<u8>,
    pub(super) rival: Option<RivalChild>,
}

/// What a negotiation came to.
struct Agreed {
    config: Arc<ChildConfig>,
    spi_in: u32,
    spi_out: u32,
    suite: EspSuite,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
    replaces: Option<ChildId>,
}

/// What the payloads of either message say.
struct Parts<'a> {
    proposals: &'a [Proposal],
    ke: Option<(u16, &'a [u8])>,
    ts_i: Vec<TrafficSelector>,
    ts_r: Vec<TrafficSelector>,
}

/// A child of the configuration, and what both sides want of its local and remote selectors.
type Chosen = (Arc<ChildConfig>, Vec<TrafficSelector>, Vec<TrafficSelector>);

/// Selector types that are not known cannot be agreed to and are narrowed away.
fn ranges(items: &[SelectorItem]) -> Vec<TrafficSelector> {
    let known = items.iter().filter_map(|item| match item {
        SelectorItem::Range(ts) => Some(*ts),
        SelectorItem::Other { .. } => None,
    });
    known.collect()
}

fn parts(message: &Message) -> Option<Parts<'_>> {
    let (mut sa, mut ke, mut ts_i, mut ts_r) = (None, None, None, None);
    for payload in &message.payloads {
        match payload {
            Payload::Sa(proposals) => sa = Some(&proposals[..]),
            Payload::Ke(group, data) => ke = Some((*group, &data[..])),
            Payload::TsI(items) => ts_i = Some(ranges(items)),
            Payload::TsR(items) => ts_r = Some(ranges(items)),
            _ => {}
        }
    }
    Some(Parts { proposals: sa?, ke, ts_i: ts_i?, ts_r: ts_r? })
}

/// Why a responder does not make a CHILD SA: what it tells the peer, and what the log here.
struct Refusal(Payload, ChildFailure);

impl Refusal {
    fn new(kind: NotifyType, failure: ChildFailure) -> Self {
        Self(Payload::notify(kind, []), failure)
    }
}

// As responder.
impl Session {
    /// Makes the CHILD SA that a request asks for; gives the payloads of the answer: the agreed pair,
    /// or an error notification.
    pub(super) fn answer_child(
        &mut self,
        cx: &mut Cx<'_>,
        message: &Message,
        ke: ChildKe,
        nonces: (&[u8], &[u8]),
        replaces: Option<ChildId>,
    ) -> Vec<Payload> {
        match self.try_answer_child(cx, message, ke, nonces, replaces) {
            Ok(payloads) => payloads,
            Err(Refusal(payload, reason)) => {
                self.child_failed(cx, None, reason);
                vec![payload]
            }
        }
    }

    fn try_answer_child(
        &mut self,
        cx: &mut Cx<'_>,
        message: &Message,
        ke: ChildKe,
        nonces: (&[u8], &[u8]),
        replaces: Option<ChildId>,
    ) -> Result<Vec<Payload>, Refusal> {
        let Some(parts) = parts(message) else {
            let failure = ChildFailure::PeerMisbehaved("a payload is missing");
            return Err(Refusal::new(NotifyType::INVALID_SYNTAX, failure));
        };
        let (config, local_ts, remote_ts) = self.choose_child(&parts, replaces)?;
        let no_proposal =
            || Refusal::new(NotifyType::NO_PROPOSAL_CHOSEN, ChildFailure::NoProposalChosen);
        let (proposal, suite) = negotiate::select_esp(parts.proposals, &config.proposals, ke)
            .ok_or_else(no_proposal)?;
        let spi_out = negotiate::esp_spi(proposal).ok_or_else(no_proposal)?;
        let (shared, public) = match suite.key_exchange {
            None => (None, None),
            Some(group) => {
                let (shared, public) = exchange_keys(cx, group, parts.ke)?;
                (Some(shared), Some(Payload::Ke(group.transform_id(), public)))
            }
        };
        let full = || Refusal::new(NotifyType::NO_ADDITIONAL_SAS, ChildFailure::TableFull);
        if self.children.len() >= cx.config.children_per_ike_max {
            return Err(full());
        }
        let spi_in = cx.host.allocate_child(self.id).ok_or_else(full)?;
        let mut payloads = vec![Payload::Sa(vec![negotiate::esp_answer(proposal, &suite, spi_in)])];
        if matches!(ke, ChildKe::Configured(_)) {
            payloads.push(Payload::Nonce(nonces.1.to_vec()));
        }
        payloads.extend(public);
        payloads.push(Payload::selectors(true, &remote_ts));
        payloads.push(Payload::selectors(false, &local_ts));
        let agreed = Agreed { config, spi_in, spi_out, suite, local_ts, remote_ts, replaces };
        self.install(cx, agreed, false, shared.as_ref(), nonces)
            .map_err(|failure| Refusal::new(NotifyType::NO_ADDITIONAL_SAS, failure))?;
        Ok(payloads)
    }

    /// The child whose selectors have something in common with the peer's, and what (RFC 7296, 2.9).
    /// A rekey keeps the child.
    fn choose_child(
        &self,
        parts: &Parts<'_>,
        replaces: Option<ChildId>,
    ) -> Result<Chosen, Refusal> {
        let old = self.children.iter().find(|c| Some(c.id) == replaces).map(|c| &c.config);
        let configured = self.connection.iter().flat_map(|c| &c.children);
        old.into_iter()
            .chain(configured)
            .map(|config| {
                let local = ts::narrow(&parts.ts_r, &config.local_ts);
                let remote = ts::narrow(&parts.ts_i, &config.remote_ts);
                (config.clone(), local, remote)
            })
            .find(|(_, local, remote)| !local.is_empty() && !remote.is_empty())
            .ok_or_else(|| Refusal::new(NotifyType::TS_UNACCEPTABLE, ChildFailure::TsUnacceptable))
    }
}

/// The responder's side of a key exchange in CREATE_CHILD_SA.
fn exchange_keys(
    cx: &mut Cx<'_>,
    group: KeyExchange,
    ke: Option<(u16, &[u8])>,
) -> Result<(SecretOctets, Vec<u8>), Refusal> {
    let failed = ChildFailure::PeerMisbehaved("its public value is of another group");
    let wanted = group.transform_id();
    let public = match ke {
        Some((sent, public)) if sent == wanted => public,
        _ => {
            let notify = Payload::notify(NotifyType::INVALID_KE_PAYLOAD, wanted.to_be_bytes());
            return Err(Refusal(notify, failed));
        }
    };
    let bad = |_| Refusal::new(NotifyType::INVALID_SYNTAX, failed.clone());
    let private = Private::generate(group, &mut |out| cx.host.random(out)).map_err(bad)?;
    Ok((private.agree(public).map_err(bad)?, private.public().to_vec()))
}

// As initiator.
impl Session {
    /// Takes the answer to a request for a CHILD SA. `nonce_r` is given in IKE_AUTH; in
    /// CREATE_CHILD_SA it is in the message.
    pub(super) fn finish_child(
        &mut self,
        cx: &mut Cx<'_>,
        request: &ChildRequest,
        message: &Message,
        nonce_r: Option<&[u8]>,
    ) -> Result<(), ChildFailure> {
        let spi_in = request.spi_in;
        if let Some(error) = message.error() {
            cx.host.release_child(spi_in);
            return Err(ChildFailure::PeerRefused(error.kind));
        }
        let made = self.try_finish_child(cx, request, message, nonce_r);
        if made.is_err() {
            // The peer has a pair that is of no use.
            self.push_task(cx, Task::DeleteStray(spi_in));
        }
        made
    }

    fn try_finish_child(
        &mut self,
        cx: &mut Cx<'_>,
        request: &ChildRequest,
        message: &Message,
        nonce_r: Option<&[u8]>,
    ) -> Result<(), ChildFailure> {
        let missing = ChildFailure::PeerMisbehaved("a payload is missing in its answer");
        let parts = parts(message).ok_or(missing.clone())?;
        let nonce_r = nonce_r.or_else(|| message.nonce()).ok_or(missing)?;
        let config = request.wish.config.clone();
        let (local_ts, remote_ts) = request.wish.selectors();
        let other = ChildFailure::PeerMisbehaved("it chose what was not offered");
        let answer = negotiate::single(parts.proposals).ok_or(other.clone())?;
        let (proposal, suite) =
            negotiate::select_esp(std::slice::from_ref(answer), &config.proposals, request.ke)
                .ok_or(other.clone())?;
        let spi_out = negotiate::esp_spi(proposal).ok_or(other.clone())?;
        // RFC 7296, 2.9: the answer lies within the request.
        let within = ts::is_subset(&parts.ts_i, local_ts)
            && ts::is_subset(&parts.ts_r, remote_ts)
            && !parts.ts_i.is_empty()
            && !parts.ts_r.is_empty();
        if !within {
            return Err(ChildFailure::PeerMisbehaved(
                "its traffic selectors go beyond the request",
            ));
        }
        let shared = match (suite.key_exchange, &request.private, parts.ke) {
            (None, _, _) => None,
            (Some(group), Some(private), Some((sent, public)))
                if private.group() == group && sent == group.transform_id() =>
            {
                Some(private.agree(public).map_err(|_| other)?)
            }
            _ => return Err(other),
        };
        let agreed = Agreed {
            spi_in: request.spi_in,
            spi_out,
            suite,
            local_ts: parts.ts_i,
            remote_ts: parts.ts_r,
            replaces: request.wish.replaces,
            config,
        };
        self.install(cx, agreed, true, shared.as_ref(), (&request.nonce_i, nonce_r))
    }

    /// Tells the peer that a pair is of no use here.
    pub(super) fn send_delete_stray(&mut self, cx: &mut Cx<'_>, spi_in: u32) {
        let delete = Payload::Delete(Protocol::ESP, vec![spi_in.to_be_bytes().to_vec()]);
        self.request(cx, ExchangeType::INFORMATIONAL, vec![delete], Asked::DeleteStray(spi_in));
    }
}

impl Session {
    /// Derives the keys and installs both directions.
    fn install(
        &mut self,
        cx: &mut Cx<'_>,
        agreed: Agreed,
        initiator: bool,
        shared: Option<&SecretOctets>,
        (nonce_i, nonce_r): (&[u8], &[u8]),
    ) -> Result<(), ChildFailure> {
        let release = |cx: &mut Cx<'_>, failure| {
            // As initiator the peer has the pair: the SPI is given back with the stray Delete.
            if !initiator {
                cx.host.release_child(agreed.spi_in);
            }
            Err(failure)
        };
        let keymat =
            self.sa.as_ref().and_then(|sa| sa.keys.keymat(&agreed.suite, shared, nonce_i, nonce_r));
        let Some((from_i, from_r)) = keymat else {
            return release(cx, ChildFailure::TableFull);
        };
        let (keymat_in, keymat_out) = if initiator { (from_r, from_i) } else { (from_i, from_r) };
        // RFC 7296, 2.8: whoever answers a rekey goes on sending on the old pair for a while.
        let outbound = initiator || agreed.replaces.is_none();
        let sa = ChildSa {
            id: ChildId(cx.id()),
            ike: self.id,
            connection: self.connection_name(),
            name: agreed.config.name.clone(),
            local_id: self.local_id.clone().unwrap_or(self.path.local.ip().into()),
            remote_id: self.remote_id.clone().unwrap_or(self.path.remote.ip().into()),
            spi_in: agreed.spi_in,
            spi_out: agreed.spi_out,
            suite: agreed.suite,
            keymat_in,
            keymat_out,
            mode: Mode::Tunnel,
            local_ts: agreed.local_ts.clone(),
            remote_ts: agreed.remote_ts.clone(),
            path: self.child_path(),
            replaces: agreed.replaces,
            outbound,
        };
        if let Err(error) = cx.host.install_child(&sa) {
            return release(cx, error.into());
        }
        cx.events.push_back(Event::ChildUp {
            ike: self.id,
            child: sa.id,
            name: sa.name,
            replaces: agreed.replaces,
        });
        let clock = Clock::start(cx, &agreed.config.lifetime);
        let octets = Limit::start(cx, &agreed.config.octets);
        let packets = Limit::start(cx, &agreed.config.packets);
        self.children.push(Child {
            id: sa.id,
            config: agreed.config,
            spi_in: agreed.spi_in,
            spi_out: agreed.spi_out,
            suite: agreed.suite,
            local_ts: agreed.local_ts,
            remote_ts: agreed.remote_ts,
            since: cx.now,
            leaving: None,
            waits_for: agreed.replaces.filter(|_| !outbound),
            replaces: agreed.replaces,
            clock,
            octets,
            packets,
        });
        Ok(())
    }

    /// Removes a pair; `reason` overrides the one that its Delete was sent for.
    pub(super) fn remove_child(
        &mut self,
        cx: &mut Cx<'_>,
        id: ChildId,
        reason: Option<DownReason>,
    ) {
        let Some(index) = self.children.iter().position(|c| c.id == id) else { return };
        let child = self.children.remove(index);
        let successor = self.children.iter_mut().find(|c| c.waits_for == Some(id));
        let replaced = successor.is_some();
        if let Some(successor) = successor {
            successor.waits_for = None;
            cx.host.enable_outbound(successor.id, successor.spi_in);
        }
        cx.host.remove_child(id, child.spi_in);
        let reason = match reason {
            Some(DownReason::DeletedByPeer) if replaced => DownReason::Rekeyed,
            reason => reason.or(child.leaving).unwrap_or(DownReason::TerminatedLocally),
        };
        let (ike, name) = (self.id, child.config.name.clone());
        cx.events.push_back(Event::ChildDown { ike, child: id, name, reason });
    }

    /// Whether another pair was made in place of this one.
    pub(super) fn is_succeeded(&self, id: ChildId) -> bool {
        self.children.iter().any(|c| c.replaces == Some(id))
    }

    /// Another pair has the place of this one, which its maker will delete (RFC 7296, 2.8.1).
    pub(super) fn make_redundant(&mut self, id: ChildId) {
        if let Some(child) = self.children.iter_mut().find(|c| c.id == id) {
            child.waits_for = None;
            child.clock.rekey_at = None;
            (child.octets.rekey, child.packets.rekey) = (None, None);
        }
    }

    pub(super) fn child_failed(
        &mut self,
        cx: &mut Cx<'_>,
        name: Option<String>,
        reason: ChildFailure,
    ) {
        cx.events.push_back(Event::ChildFailed { ike: self.id, name, reason });
    }
}
