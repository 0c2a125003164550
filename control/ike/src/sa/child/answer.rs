//! The responder of a negotiation of CHILD SAs.

use std::sync::Arc;

use super::selectors::{self, Seen};
use super::{Agreed, Parts, offered_mode, parts, traits_of};
use crate::config::{ChildConfig, ChildMode};
use crate::crypto::{Private, SecretOctets};
use crate::event::{ChildFailure, ChildId};
use crate::host::Mode;
use crate::message::{Message, NotifyType, Payload};
use crate::negotiate::{self, ChildKe};
use crate::proposal::KeyExchange;
use crate::sa::{Cx, Session};
use crate::ts::{self, TrafficSelector};

/// Why a responder does not make a CHILD SA: what it tells the peer, and what the log here.
struct Refusal(Payload, ChildFailure);

impl Refusal {
    fn new(kind: NotifyType, failure: ChildFailure) -> Self {
        Self(Payload::notify(kind, []), failure)
    }
}

/// A child of the configuration, its mode, and what both sides want of its local and remote
/// selectors.
struct Chosen {
    config: Arc<ChildConfig>,
    mode: Mode,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
}

impl Session {
    /// Makes the CHILD SA that a request asks for; gives the payloads of the answer: the agreed pair,
    /// or an error notification.
    pub(in crate::sa) fn answer_child(
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
        let Chosen { config, mode, local_ts, remote_ts } =
            self.choose_child(&parts, offered_mode(message), replaces)?;
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
        // While they are rekeyed, pairs have their successors beside them.
        let each = if replaces.is_some() { 2 } else { 1 };
        if self.children.len() >= cx.config.children_per_ike_max.saturating_mul(each) {
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
        payloads.extend(traits_of(mode.choice()));
        let agreed = Agreed { config, spi_in, spi_out, suite, mode, local_ts, remote_ts, replaces };
        self.install(cx, agreed, false, shared.as_ref(), nonces)
            .map_err(|failure| Refusal::new(NotifyType::NO_ADDITIONAL_SAS, failure))?;
        Ok(payloads)
    }

    /// The child whose selectors have something in common with the peer's, and what (RFC 7296, 2.9).
    /// A rekey keeps the child, or is refused: another child's pair would take the place of this one's.
    /// A request for transport mode that no child grants is answered with
    /// a tunnel (RFC 7296, 1.3.1 and 2.23.1).
    fn choose_child(
        &self,
        parts: &Parts<'_>,
        asked: ChildMode,
        replaces: Option<ChildId>,
    ) -> Result<Chosen, Refusal> {
        let old = self.children.iter().find(|c| Some(c.id) == replaces).map(|c| &c.config);
        let candidates: Vec<_> = match old {
            Some(old) => vec![old],
            None => self.connection.iter().flat_map(|c| &c.children).collect(),
        };
        let of_mode = |mode| candidates.iter().filter(move |c| c.mode == mode);
        let transport = of_mode(ChildMode::Transport)
            .filter(|_| asked == ChildMode::Transport)
            .find_map(|config| self.in_transport_mode(parts, config));
        transport
            .or_else(|| of_mode(ChildMode::Tunnel).find_map(|config| in_tunnel_mode(parts, config)))
            .ok_or_else(|| Refusal::new(NotifyType::TS_UNACCEPTABLE, ChildFailure::TsUnacceptable))
    }

    fn in_transport_mode(&self, parts: &Parts<'_>, config: &Arc<ChildConfig>) -> Option<Chosen> {
        let path = &self.path;
        let seen = Seen::new(&parts.ts_r, &parts.ts_i, path, self.nat)?;
        let local_ts = selectors::at(&config.local_ts, path.local.ip());
        let remote_ts = selectors::at(&config.remote_ts, path.remote.ip());
        Chosen {
            config: config.clone(),
            mode: Mode::Transport(seen.ends),
            local_ts: ts::narrow(&seen.local_ts, &local_ts),
            remote_ts: ts::narrow(&seen.remote_ts, &remote_ts),
        }
        .if_any()
    }
}

fn in_tunnel_mode(parts: &Parts<'_>, config: &Arc<ChildConfig>) -> Option<Chosen> {
    Chosen {
        config: config.clone(),
        mode: Mode::Tunnel,
        local_ts: ts::narrow(&parts.ts_r, &config.local_ts),
        remote_ts: ts::narrow(&parts.ts_i, &config.remote_ts),
    }
    .if_any()
}

impl Chosen {
    /// Itself, if both sides have anything in common.
    fn if_any(self) -> Option<Self> {
        (!self.local_ts.is_empty() && !self.remote_ts.is_empty()).then_some(self)
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
    let busy = |_| Refusal::new(NotifyType::TEMPORARY_FAILURE, ChildFailure::TableFull);
    let bad = |_| Refusal::new(NotifyType::INVALID_SYNTAX, failed.clone());
    let private = Private::generate(group, &mut |out| cx.host.random(out)).map_err(busy)?;
    Ok((private.agree(public).map_err(bad)?, private.public().to_vec()))
}
