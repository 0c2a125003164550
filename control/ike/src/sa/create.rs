//! CREATE_CHILD_SA (RFC 7296, 1.3): further CHILD SAs from either side, and rekeys of CHILD and IKE
//! SAs that the peer begins.

use std::sync::Arc;

use super::child::ChildRequest;
use super::exchange::{Asked, Task};
use super::keyed::{IkeSa, Window};
use super::{Cx, LINGER, Phase, RETIRED_TIMEOUT, Retired, Session};
use crate::config::ChildConfig;
use crate::crypto::Private;
use crate::endpoint::{DropReason, Received};
use crate::event::{ChildFailure, ChildId, DownReason, Event};
use crate::keys::{IkeKeys, Inputs, skeyseed_rekeyed};
use crate::message::{
    CodecError, ExchangeType, Header, Message, Notify, NotifyType, Payload, Proposal, Protocol,
};
use crate::negotiate::{self, ChildKe};
use crate::path::Path;
use crate::proposal::KeyExchange;

impl Session {
    /// Asks for one more CHILD SA, or for one that replaces another (RFC 7296, 1.3.3).
    pub(super) fn send_child_request(
        &mut self,
        cx: &mut Cx<'_>,
        config: Arc<ChildConfig>,
        replaces: Option<ChildId>,
    ) {
        let Some(ike_group) = self.sa.as_ref().map(|sa| sa.suite.key_exchange) else { return };
        let group = config.proposals.first().and_then(|p| p.key_exchange.first()).copied();
        let private = group.map(|g| Private::generate(g, &mut |out| cx.host.random(out)));
        let spi_in = cx.host.allocate_child(self.id);
        let (Some(spi_in), Ok(private)) = (spi_in, private.transpose()) else {
            self.child_failed(cx, Some(config.name.clone()), ChildFailure::TableFull);
            return;
        };
        let nonce_i = cx.nonce();
        let old = self.children.iter().find(|c| Some(c.id) == replaces);
        let mut payloads: Vec<Payload> = old.map(|old| rekey_sa(old.spi_in)).into_iter().collect();
        payloads.push(Payload::Sa(negotiate::esp_offer(&config.proposals, spi_in, true)));
        payloads.push(Payload::Nonce(nonce_i.clone()));
        if let Some(private) = &private {
            let group = private.group().transform_id();
            payloads.push(Payload::Ke(group, private.public().to_vec()));
        }
        payloads.push(Payload::selectors(true, &config.local_ts));
        payloads.push(Payload::selectors(false, &config.remote_ts));
        let ke = ChildKe::Configured(ike_group);
        let request = ChildRequest { config, spi_in, ke, private, nonce_i, replaces };
        let asked = Asked::Child(Box::new(request));
        self.request(cx, ExchangeType::CREATE_CHILD_SA, payloads, asked);
    }

    /// Asks for a pair that replaces this one.
    pub(super) fn send_child_rekey(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        // It may be gone, or going, since this was asked for.
        let old = self.children.iter().find(|c| c.id == id && c.leaving.is_none());
        if let Some(config) = old.map(|c| c.config.clone()) {
            self.send_child_request(cx, config, Some(id));
        }
    }

    pub(super) fn handle_child_response(
        &mut self,
        cx: &mut Cx<'_>,
        request: ChildRequest,
        message: &Message,
    ) {
        let old = request.replaces;
        // RFC 7296, 2.25.1: the peer has not got the pair that was to be replaced.
        let unknown = message.notify(NotifyType::CHILD_SA_NOT_FOUND).is_some();
        let made = self.finish_child(cx, request, message, None);
        match old {
            Some(old) if unknown => self.remove_child(cx, old, Some(DownReason::DeletedByPeer)),
            // RFC 7296, 2.8: whoever began the rekey deletes the old pair.
            Some(old) if made => self.push_task(cx, Task::DeleteChild(old, DownReason::Rekeyed)),
            _ => {}
        }
    }

    /// Answers a CREATE_CHILD_SA request.
    pub(super) fn handle_create(&mut self, cx: &mut Cx<'_>, path: &Path, message: &Message) {
        let answer = self.answer_create(cx, message);
        let (payloads, successor) = match answer {
            Ok(Created::Child(payloads)) => (payloads, None),
            Ok(Created::Ike(payloads, sa)) => (payloads, Some(sa)),
            Err(notify) => (vec![Payload::Notify(notify)], None),
        };
        self.respond(cx, path, ExchangeType::CREATE_CHILD_SA, payloads);
        if let (Some(successor), true) = (successor, self.is_up()) {
            let until = cx.now + RETIRED_TIMEOUT;
            self.retired = self.sa.replace(*successor).map(|sa| Retired { sa, until });
            cx.events.push_back(Event::IkeRekeyed { ike: self.id });
        }
    }

    fn answer_create(&mut self, cx: &mut Cx<'_>, message: &Message) -> Result<Created, Notify> {
        // RFC 7296, 2.25.
        if !matches!(self.phase, Phase::Established) {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        }
        let mut proposals = None;
        let mut nonce_i = None;
        for payload in &message.payloads {
            match payload {
                Payload::Sa(p) => proposals = Some(&p[..]),
                Payload::Nonce(n) => nonce_i = Some(&n[..]),
                _ => {}
            }
        }
        let (Some(proposals), Some(nonce_i)) = (proposals, nonce_i) else {
            return Err(plain(NotifyType::INVALID_SYNTAX));
        };
        if proposals.iter().any(|p| p.protocol == Protocol::IKE) {
            return self.answer_ike_rekey(cx, message, proposals, nonce_i);
        }
        let replaces = self.rekeyed_child(message)?;
        let Some(ike_group) = self.sa.as_ref().map(|sa| sa.suite.key_exchange) else {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        };
        let nonce_r = cx.nonce();
        let ke = ChildKe::Configured(ike_group);
        Ok(Created::Child(self.answer_child(cx, message, ke, (nonce_i, &nonce_r), replaces)))
    }

    /// The pair that REKEY_SA names by the SPI of packets to the peer.
    fn rekeyed_child(&self, message: &Message) -> Result<Option<ChildId>, Notify> {
        let Some(rekey) = message.notify(NotifyType::REKEY_SA) else { return Ok(None) };
        let found = self.children.iter().find(|c| c.spi_out.to_be_bytes() == rekey.spi[..]);
        // RFC 7296, 2.25.1. Where both rekey the same pair at once, both are put off.
        let rekeying = |id| {
            matches!(&self.outstanding, Some(o)
                if matches!(&o.asked, Asked::Child(own) if own.replaces == Some(id)))
        };
        match found {
            Some(child) if child.leaving.is_some() || rekeying(child.id) => {
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

    /// RFC 7296, 1.3.2 and 2.18.
    fn answer_ike_rekey(
        &mut self,
        cx: &mut Cx<'_>,
        message: &Message,
        proposals: &[Proposal],
        nonce_i: &[u8],
    ) -> Result<Created, Notify> {
        // RFC 7296, 2.25.2: not while another exchange of this side is under way; its answer would
        // come on the old SA.
        if self.outstanding.is_some() || self.retired.is_some() {
            return Err(plain(NotifyType::TEMPORARY_FAILURE));
        }
        let none = || plain(NotifyType::NO_PROPOSAL_CHOSEN);
        let ke = message.payloads.iter().find_map(|p| match p {
            Payload::Ke(group, data) => Some((*group, &data[..])),
            _ => None,
        });
        let (group, public) = ke.ok_or_else(|| plain(NotifyType::INVALID_SYNTAX))?;
        let (Some(connection), Some(old)) = (&self.connection, &self.sa) else {
            return Err(none());
        };
        let sent = KeyExchange::from_transform_id(group);
        let (proposal, suite) =
            negotiate::select_ike(proposals, &connection.proposals, sent).ok_or_else(none)?;
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
        let spi = spi_local.to_be_bytes();
        let payloads = vec![
            Payload::Sa(vec![negotiate::ike_answer(proposal, &suite, &spi)]),
            Payload::Nonce(nonce_r),
            Payload::Ke(wanted, private.public().to_vec()),
        ];
        Ok(Created::Ike(payloads, Box::new(sa)))
    }

    /// A message for an IKE SA that was rekeyed: its Delete, or a repetition.
    pub(super) fn handle_retired(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        header: &Header,
        octets: &[u8],
    ) -> Received {
        let Some(retired) = &mut self.retired else {
            return Received::Dropped(DropReason::UnknownSpi);
        };
        if header.response || header.from_initiator == retired.sa.initiator {
            return Received::Dropped(DropReason::UnexpectedExchange);
        }
        let window = retired.sa.window(header.message_id);
        if window == Window::Outside {
            return Received::Dropped(DropReason::MessageId);
        }
        let message = match retired.sa.open(octets) {
            Ok(message) => message,
            Err(CodecError::Icv) => return Received::Dropped(DropReason::BadIcv),
            Err(_) => return Received::Dropped(DropReason::BadPayload),
        };
        if window == Window::Repeated {
            if let Some(cached) = retired.sa.cached() {
                cx.send(path, cached.to_vec());
            }
            return Received::Repeated;
        }
        let deleted = message.payloads.contains(&Payload::Delete(Protocol::IKE, Vec::new()));
        let payloads = match header.exchange {
            ExchangeType::INFORMATIONAL => Vec::new(),
            _ => vec![Payload::Notify(plain(NotifyType::TEMPORARY_FAILURE))],
        };
        if let Ok(octets) = retired.sa.response(header.exchange, payloads) {
            cx.send(path, octets);
        }
        if deleted {
            retired.until = cx.now + LINGER;
        }
        self.last_heard = cx.now;
        self.heard(cx, path);
        Received::Accepted
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
    Ike(Vec<Payload>, Box<IkeSa>),
}

const fn plain(kind: NotifyType) -> Notify {
    Notify { protocol: Protocol::NONE, spi: Vec::new(), kind, data: Vec::new() }
}
