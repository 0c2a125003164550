//! CREATE_CHILD_SA (RFC 7296, 1.3): further CHILD SAs and new ones for old, from either side.
//!
//! Where both sides begin something at once, RFC 7296, 2.25 says who gives way; where both have
//! rekeyed the same pair, the one made with the lowest of the four nonces goes again (2.8.1).

use super::child::{Child, ChildRequest, ChildWish, RivalChild, traits_of};
use super::exchange::{Asked, Task};
use super::lifetime::retry_wait;
use super::{Cx, Phase, Session, TASKS_MAX};
use crate::crypto::Private;
use crate::endpoint::Rate;
use crate::event::{ChildFailure, ChildId, DownReason, Event};
use crate::message::{ExchangeType, Message, Notify, NotifyType, Payload, Proposal, Protocol};
use crate::negotiate::{self, ChildKe};
use crate::path::Path;
use crate::proposal::KeyExchange;
use std::time::Duration;

/// How often a new CHILD SA may be put off: by the peer with TEMPORARY_FAILURE, or because a
/// reauthentication needs it.
const PUT_OFF_MAX: u32 = 5;

/// How many CREATE_CHILD_SA requests of the peer are granted in each [`CREATES_PERIOD`]: all CHILD SAs
/// that it may have at once, or some rekeys a second for ever. Each may cost two exponentiations, and
/// a rekey of the IKE SA leaves nothing behind that would limit it.
const CREATES_MAX: u32 = 100;
const CREATES_PERIOD: Duration = Duration::from_secs(10);

/// The pace at which a peer may ask.
pub(super) const fn paced() -> Rate {
    Rate::new(CREATES_MAX, CREATES_PERIOD)
}

/// The lower of the two nonces of an exchange, octet by octet (RFC 7296, 2.8.1).
pub(super) fn lowest(nonce_i: &[u8], nonce_r: &[u8]) -> Vec<u8> {
    nonce_i.min(nonce_r).to_vec()
}

/// The group that an INVALID_KE_PAYLOAD notification names.
pub(super) fn wanted_group(message: &Message) -> Option<KeyExchange> {
    let notify = message.notify(NotifyType::INVALID_KE_PAYLOAD)?;
    let group = <[u8; 2]>::try_from(&notify.data[..]).map(u16::from_be_bytes).ok()?;
    KeyExchange::from_transform_id(group)
}

// As initiator.
impl Session {
    /// Asks for one more CHILD SA, or for one that replaces another (RFC 7296, 1.3.3).
    pub(super) fn send_child_request(&mut self, cx: &mut Cx<'_>, wish: ChildWish) {
        // The pair may have gone while this waited, which would not replace it then but bring it back.
        if wish.replaces.is_some_and(|old| !self.is_replaceable(old)) {
            return;
        }
        let Some(ike_group) = self.sa.as_ref().map(|sa| sa.suite.key_exchange) else { return };
        let (local_ts, remote_ts) = wish.selectors(&self.path);
        if local_ts.is_empty() || remote_ts.is_empty() {
            self.child_request_failed(cx, wish, ChildFailure::Elsewhere);
            return;
        }
        let proposals = &wish.config.proposals;
        let first = proposals.first().and_then(|p| p.key_exchange.first()).copied();
        let private = wish.group.or(first);
        let private = private.map(|g| Private::generate(g, &mut |out| cx.host.random(out)));
        let spi_in = cx.host.allocate_child(self.id);
        let (Some(spi_in), Ok(private)) = (spi_in, private.transpose()) else {
            self.child_request_failed(cx, wish, ChildFailure::TableFull);
            return;
        };
        let nonce_i = cx.nonce();
        let old = self.children.iter().find(|c| Some(c.id) == wish.replaces);
        let mut payloads: Vec<Payload> = old.map(|old| rekey_sa(old.spi_in)).into_iter().collect();
        payloads.push(Payload::Sa(negotiate::esp_offer(proposals, spi_in, true)));
        payloads.push(Payload::Nonce(nonce_i.clone()));
        if let Some(private) = &private {
            let group = private.group().transform_id();
            payloads.push(Payload::Ke(group, private.public().to_vec()));
        }
        payloads.push(Payload::selectors(true, &local_ts));
        payloads.push(Payload::selectors(false, &remote_ts));
        payloads.extend(traits_of(wish.config.mode));
        let ke = ChildKe::Configured(ike_group);
        let request =
            ChildRequest { wish, spi_in, ke, private, nonce_i, local_ts, remote_ts, rival: None };
        let asked = Asked::Child(Box::new(request));
        self.request(cx, ExchangeType::CREATE_CHILD_SA, payloads, asked);
    }

    /// Asks for a pair that replaces this one.
    pub(super) fn send_child_rekey(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        let old = self.children.iter().find(|c| c.id == id);
        if let Some(config) = old.map(|c| c.config.clone()) {
            let wish = ChildWish { replaces: Some(id), ..ChildWish::new(config) };
            self.send_child_request(cx, wish);
        }
    }

    /// Whether another pair may take the place of this one: it is not gone, going or replaced since that
    /// was asked for.
    fn is_replaceable(&self, id: ChildId) -> bool {
        let stays = self.children.iter().any(|c| c.id == id && c.leaving.is_none());
        stays && !self.is_succeeded(id)
    }

    pub(super) fn handle_child_response(
        &mut self,
        cx: &mut Cx<'_>,
        mut request: ChildRequest,
        message: &Message,
    ) {
        if self.brings_unchecked_way(message) {
            self.ask_again_checked(cx, request);
            return;
        }
        let rival = request.rival.take();
        let unwanted = request.wish.replaces.is_some_and(|old| self.is_terminated(old));
        let nonce_r = message.nonce().filter(|_| message.error().is_none());
        let kept = if let (Some(rival), Some(nonce_r)) = (&rival, nonce_r)
            && lowest(&request.nonce_i, nonce_r) < rival.lowest
        {
            // RFC 7296, 2.8.1: this side's pair is the one too many. Nobody has used it yet, and its
            // maker deletes it; the peer deletes the old one.
            self.push_task(cx, Task::DeleteStray(request.spi_in));
            rival.id
        } else {
            if let Err(failure) = self.finish_child(cx, &request, message, None) {
                self.child_refused(cx, request.wish, message, failure);
                return;
            }
            let Some(made) = self.children.last().map(|c| c.id) else { return };
            if let Some(rival) = &rival {
                self.make_redundant(cx, rival.id);
            }
            if let Some(old) = request.wish.replaces {
                self.replaced(cx, old);
            }
            made
        };
        self.end_unconfigured(cx, kept);
        if unwanted {
            let others = rival.map(|rival| rival.id).filter(|id| *id != kept);
            others.into_iter().chain([kept]).for_each(|id| self.terminate_child(cx, id));
        }
    }

    /// Whether the answer makes the first pair of an IKE SA, which takes ESP to where the peer says that
    /// it is, and that is not checked yet (RFC 4555, 3.7).
    fn brings_unchecked_way(&self, message: &Message) -> bool {
        self.children.is_empty() && self.is_unchecked() && message.error().is_none()
    }

    /// The peer has a pair that cannot be used now. Another one is asked for behind the cookie.
    fn ask_again_checked(&mut self, cx: &mut Cx<'_>, request: ChildRequest) {
        let wish = ChildWish { replaces: None, ..request.wish };
        self.push_task(cx, Task::DeleteStray(request.spi_in));
        self.push_task(cx, Task::Child(wish));
    }

    /// Whether somebody has asked for the end of this pair, which a rekey that was under way then is
    /// not to bring back.
    fn is_terminated(&self, id: ChildId) -> bool {
        let terminated = |c: &Child| c.leaving == Some(DownReason::TerminatedLocally);
        self.children.iter().any(|c| c.id == id && terminated(c))
    }

    /// Deletes a pair that was made for a child which has been taken out of the configuration meanwhile.
    pub(super) fn end_unconfigured(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        let Some(connection) = &self.connection else { return };
        let unknown = |c: &&mut Child| connection.children.iter().all(|k| k.name != c.config.name);
        let made = self.children.iter_mut().find(|c| c.id == id && c.leaving.is_none());
        if let Some(child) = made.filter(unknown) {
            child.leaving = Some(DownReason::Unconfigured);
            self.push_task(cx, Task::DeleteChild(id, DownReason::Unconfigured));
        }
    }

    /// RFC 7296, 2.8: whoever began the rekey deletes the old pair.
    fn replaced(&mut self, cx: &mut Cx<'_>, old: ChildId) {
        if let Some(child) = self.children.iter_mut().find(|c| c.id == old) {
            child.leaving = Some(DownReason::Rekeyed);
            self.push_task(cx, Task::DeleteChild(old, DownReason::Rekeyed));
        }
    }

    /// The peer did not make the pair. What it asks to be done differently is done.
    fn child_refused(
        &mut self,
        cx: &mut Cx<'_>,
        mut wish: ChildWish,
        message: &Message,
        failure: ChildFailure,
    ) {
        let offered = |group: &KeyExchange| {
            wish.config.proposals.iter().any(|p| p.key_exchange.contains(group))
        };
        let group = wanted_group(message).filter(offered);
        let kind = message.error().map(|error| error.kind);
        if group.is_some() && wish.group.is_none() {
            // RFC 7296, 1.3.
            wish.group = group;
            self.push_task(cx, Task::Child(wish));
        } else if kind == Some(NotifyType::SINGLE_PAIR_REQUIRED) && !wish.single {
            // RFC 7296, 2.9: a pair for one selector of each side.
            wish.single = true;
            self.push_task(cx, Task::Child(wish));
        } else if let (Some(old), Some(NotifyType::CHILD_SA_NOT_FOUND)) = (wish.replaces, kind) {
            // RFC 7296, 2.25.1: the peer has not got the pair. Without another one in its place,
            // this one goes and a new one is asked for, unless it was to go anyway: instead of the one
            // before, where the peer had asked for this pair and then did not make it.
            let replaceable = self.is_replaceable(old);
            let lost = self.children.iter().find(|c| c.id == old).filter(|_| replaceable);
            let before = lost.and_then(|lost| {
                let stands = |c: &&Child| lost.replaces == Some(c.id) && c.leaving.is_none();
                self.children.iter().find(stands).map(|c| c.id)
            });
            let again = lost.map(|_| ChildWish { replaces: before, ..ChildWish::new(wish.config) });
            self.remove_child(cx, old, Some(DownReason::DeletedByPeer));
            if let Some(again) = again {
                self.push_task(cx, Task::Child(again));
            }
        } else {
            self.child_request_failed(cx, wish, failure);
        }
    }

    /// No pair was made: a rekey is tried again soon, as is a new pair for which the peer has no time
    /// now, and one that is to take over from another IKE SA, which stays as long; else this is the end
    /// of it.
    pub(super) fn child_request_failed(
        &mut self,
        cx: &mut Cx<'_>,
        mut wish: ChildWish,
        failure: ChildFailure,
    ) {
        if let Some(old) = wish.replaces {
            if self.children.iter().any(|c| c.id == old) && !self.is_succeeded(old) {
                let event = Event::RekeyFailed { ike: self.id, child: Some(old), reason: failure };
                cx.events.push_back(event);
                self.retry_child(cx, old);
            }
            return;
        }
        let busy = failure == ChildFailure::PeerRefused(NotifyType::TEMPORARY_FAILURE);
        let again = busy || self.succession.is_some();
        if again && wish.put_off < PUT_OFF_MAX && self.later.len() < TASKS_MAX {
            wish.put_off = wish.put_off.saturating_add(1);
            self.later.push((cx.now + retry_wait(cx), Task::Child(wish)));
            return;
        }
        self.child_failed(cx, Some(wish.config.name.clone()), failure);
    }
}

// As responder.
impl Session {
    /// Answers a CREATE_CHILD_SA request.
    pub(super) fn handle_create(&mut self, cx: &mut Cx<'_>, path: &Path, message: &Message) {
        match self.answer_create(cx, message) {
            Ok(Created::Child(payloads)) => {
                let malformed = payloads.contains(&Payload::notify(NotifyType::INVALID_SYNTAX, []));
                self.respond(cx, path, ExchangeType::CREATE_CHILD_SA, payloads);
                if malformed {
                    self.close_malformed(cx);
                }
            }
            Ok(Created::Ike(payloads, made)) => {
                self.respond(cx, path, ExchangeType::CREATE_CHILD_SA, payloads);
                self.rekeyed_by_peer(cx, *made);
            }
            Err(notify) => {
                let malformed = notify.kind == NotifyType::INVALID_SYNTAX;
                let refusal = vec![Payload::Notify(notify)];
                self.respond(cx, path, ExchangeType::CREATE_CHILD_SA, refusal);
                if malformed {
                    self.close_malformed(cx);
                }
            }
        }
    }

    /// RFC 7296, 2.21.3: INVALID_SYNTAX is fatal in both peers.
    fn close_malformed(&mut self, cx: &mut Cx<'_>) {
        self.close(cx, DownReason::ProtocolError("a CREATE_CHILD_SA request was malformed"));
    }

    fn answer_create(&mut self, cx: &mut Cx<'_>, message: &Message) -> Result<Created, Notify> {
        // RFC 7296, 2.25.2. RFC 8019, 5: an abusive amount of requests is slowed down.
        let paced = self.creates.take(cx.now);
        if !paced || !matches!(self.phase, Phase::Established) {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        }
        let (Some(proposals), Some(nonce_i)) = (proposals(message), message.nonce()) else {
            return Err(plain(NotifyType::INVALID_SYNTAX));
        };
        if proposals.iter().any(|p| p.protocol == Protocol::IKE) {
            let (payloads, made) = self.answer_ike_rekey(cx, message, proposals, nonce_i)?;
            return Ok(Created::Ike(payloads, Box::new(made)));
        }
        self.answer_child_request(cx, message, nonce_i).map(Created::Child)
    }

    fn answer_child_request(
        &mut self,
        cx: &mut Cx<'_>,
        message: &Message,
        nonce_i: &[u8],
    ) -> Result<Vec<Payload>, Notify> {
        // RFC 7296, 2.25.2: not while this side rekeys the IKE SA.
        if matches!(&self.outstanding, Some(o) if matches!(o.asked, Asked::Ike(_))) {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        }
        // The first pair would take ESP to where the peer says that it is (RFC 4555, 3.7).
        if self.children.is_empty() && self.is_unchecked() {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        }
        let replaces = self.rekeyed_child(message)?;
        let Some(ike_group) = self.sa.as_ref().map(|sa| sa.suite.key_exchange) else {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        };
        let nonce_r = cx.nonce();
        let ke = ChildKe::Configured(ike_group);
        let before = self.children.last().map(|c| c.id);
        let answer = self.answer_child(cx, message, ke, (nonce_i, &nonce_r), replaces);
        let made = self.children.last().map(|c| c.id).filter(|made| Some(*made) != before);
        if let (Some(made), Some(old)) = (made, replaces) {
            self.note_rival(old, made, lowest(nonce_i, &nonce_r));
        }
        Ok(answer)
    }

    /// The peer has replaced a pair. If this side is about to do the same, the nonces will decide
    /// (RFC 7296, 2.25.1).
    fn note_rival(&mut self, old: ChildId, made: ChildId, lowest: Vec<u8>) {
        if let Some(child) = self.children.iter_mut().find(|c| c.id == old) {
            child.clock.rekey_at = None;
        }
        if let Some(outstanding) = &mut self.outstanding
            && let Asked::Child(own) = &mut outstanding.asked
            && own.wish.replaces == Some(old)
        {
            own.rival = Some(RivalChild { id: made, lowest });
        }
    }

    /// The pair that REKEY_SA names by the SPI of packets to the peer.
    fn rekeyed_child(&self, message: &Message) -> Result<Option<ChildId>, Notify> {
        let Some(rekey) = message.notify(NotifyType::REKEY_SA) else { return Ok(None) };
        let found = self.children.iter().find(|c| c.spi_out.to_be_bytes() == rekey.spi[..]);
        match found {
            // RFC 7296, 2.25.1: it is being closed, or soon will be.
            Some(child) if child.leaving.is_some() || self.is_succeeded(child.id) => {
                Err(plain(NotifyType::TEMPORARY_FAILURE))
            }
            Some(child) => Ok(Some(child.id)),
            // RFC 7296, 2.25.1: with the SPI, so that the peer can remove it.
            None => Err(Notify {
                protocol: rekey.protocol,
                spi: rekey.spi.clone(),
                ..plain(NotifyType::CHILD_SA_NOT_FOUND)
            }),
        }
    }
}

fn rekey_sa(spi_in: u32) -> Payload {
    Payload::Notify(Notify {
        protocol: Protocol::ESP,
        spi: spi_in.to_be_bytes().to_vec(),
        ..plain(NotifyType::REKEY_SA)
    })
}

/// What a CREATE_CHILD_SA request made.
enum Created {
    /// The answer says what became of a CHILD SA.
    Child(Vec<Payload>),
    /// The answer, and the IKE SA that follows this one.
    Ike(Vec<Payload>, Box<super::rekey::MadeIke>),
}

pub(super) const fn plain(kind: NotifyType) -> Notify {
    Notify { protocol: Protocol::NONE, spi: Vec::new(), kind, data: Vec::new() }
}

/// The first proposal list of a message.
pub(super) fn proposals(message: &Message) -> Option<&[Proposal]> {
    message.payloads.iter().find_map(|payload| match payload {
        Payload::Sa(proposals) => Some(&proposals[..]),
        _ => None,
    })
}

/// Group and public value of a message.
pub(super) fn public_value(message: &Message) -> Option<(u16, &[u8])> {
    message.payloads.iter().find_map(|payload| match payload {
        Payload::Ke(group, data) => Some((*group, &data[..])),
        _ => None,
    })
}
