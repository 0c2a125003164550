//! CHILD SAs: negotiated in IKE_AUTH and CREATE_CHILD_SA alike ([`request`], [`answer`]), installed,
//! removed.

mod answer;
mod request;
mod selectors;

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::lifetime::{Clock, Limit, retry_wait};
use super::{Cx, Phase, Session, saved};
use crate::config::{ChildConfig, ChildMode, Volume};
use crate::crypto::{Private, SecretOctets};
use crate::event::{ChildFailure, ChildId, DownReason, Event};
use crate::host::{ChildSa, Mode};
use crate::message::{Message, NotifyType, Payload, Proposal};
use crate::negotiate::ChildKe;
use crate::proposal::{EspSuite, KeyExchange};
use crate::time::Instant;
use crate::ts::TrafficSelector;
pub(super) use request::traits_of;
use selectors::ranges;

/// A pair of CHILD SAs that is installed.
#[derive(Serialize, Deserialize)]
pub(super) struct Child {
    pub(super) id: ChildId,
    #[serde(with = "saved::child")]
    pub(super) config: Arc<ChildConfig>,
    pub(super) spi_in: u32,
    pub(super) spi_out: u32,
    pub(super) suite: EspSuite,
    pub(super) mode: Mode,
    pub(super) local_ts: Vec<TrafficSelector>,
    pub(super) remote_ts: Vec<TrafficSelector>,
    pub(super) since: Instant,
    /// Why a Delete for it is on its way.
    pub(super) leaving: Option<DownReason>,
    /// The pair whose end lets outbound packets use this one (RFC 7296, 2.8).
    pub(super) waits_for: Option<ChildId>,
    /// The pair that this one took over from.
    pub(super) replaces: Option<ChildId>,
    pub(super) clock: Clock,
    pub(super) octets: Limit,
    pub(super) packets: Limit,
}

/// A pair to be asked for.
#[derive(Serialize, Deserialize)]
pub(crate) struct ChildWish {
    #[serde(with = "saved::child")]
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

impl Child {
    /// Whether a rekey for what it has carried came to nothing, and waits for another attempt.
    pub(super) fn rekey_failed(&self) -> bool {
        let tried = |limit: Limit, volume: Volume| limit.rekey.is_none() && volume.rekey.is_some();
        let tried =
            tried(self.octets, self.config.octets) || tried(self.packets, self.config.packets);
        tried && self.clock.rekey_at.is_some()
    }
}

impl ChildWish {
    pub(super) const fn new(config: Arc<ChildConfig>) -> Self {
        Self { config, replaces: None, group: None, single: false, put_off: 0 }
    }
}

/// A pair that the peer made in place of the same one as a request of this side (RFC 7296, 2.8.1).
#[derive(Serialize, Deserialize)]
pub(super) struct RivalChild {
    pub(super) id: ChildId,
    /// The lower nonce of its exchange.
    pub(super) lowest: Vec<u8>,
}

/// A pair that this side asked for.
#[derive(Serialize, Deserialize)]
pub(crate) struct ChildRequest {
    pub(super) wish: ChildWish,
    pub(super) spi_in: u32,
    pub(super) ke: ChildKe,
    pub(super) private: Option<Private>,
    pub(super) nonce_i: Vec<u8>,
    pub(super) local_ts: Vec<TrafficSelector>,
    pub(super) remote_ts: Vec<TrafficSelector>,
    pub(super) rival: Option<RivalChild>,
}

/// What a negotiation came to.
struct Agreed {
    config: Arc<ChildConfig>,
    spi_in: u32,
    spi_out: u32,
    suite: EspSuite,
    mode: Mode,
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

/// The mode that a message asks for or grants (RFC 7296, 1.3.1).
fn offered_mode(message: &Message) -> ChildMode {
    match message.notify(NotifyType::USE_TRANSPORT_MODE) {
        Some(_) => ChildMode::Transport,
        None => ChildMode::Tunnel,
    }
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
            mode: agreed.mode,
            local_ts: agreed.local_ts.clone(),
            remote_ts: agreed.remote_ts.clone(),
            path: self.child_path(),
            replaces: agreed.replaces,
            outbound,
            initiator,
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
            mode: agreed.mode,
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
    pub(crate) fn remove_child(
        &mut self,
        cx: &mut Cx<'_>,
        id: ChildId,
        reason: Option<DownReason>,
    ) {
        let Some(index) = self.children.iter().position(|c| c.id == id) else { return };
        let child = self.children.remove(index);
        self.hand_back(cx, &child);
        let successor = self.children.iter_mut().find(|c| c.waits_for == Some(id));
        let replaced = successor.is_some();
        if let Some(successor) = successor {
            successor.waits_for = None;
            // Not with an IKE SA that is to go with all of its CHILD SAs: those of its own successor
            // carry the packets by now (RFC 7296, 2.8.3).
            if matches!(self.phase, Phase::Established) {
                cx.host.enable_outbound(successor.id, successor.spi_in);
            }
        }
        cx.host.remove_child(id, child.spi_in);
        let reason = match reason {
            Some(DownReason::DeletedByPeer) if replaced => DownReason::Rekeyed,
            reason => reason.or(child.leaving).unwrap_or(DownReason::TerminatedLocally),
        };
        let (ike, name) = (self.id, child.config.name.clone());
        cx.events.push_back(Event::ChildDown { ike, child: id, name, reason });
    }

    /// The pair that `gone` took over from may still be there: to delete it was up to the peer (RFC
    /// 7296, 2.8). Its place is then that of the successor of `gone`; without one it is in use again.
    fn hand_back(&mut self, cx: &mut Cx<'_>, gone: &Child) {
        let Some(before) = gone.replaces else { return };
        if let Some(next) = self.children.iter_mut().find(|c| c.replaces == Some(gone.id)) {
            next.replaces = Some(before);
        } else if !self.is_succeeded(before)
            && let Some(old) = self.children.iter_mut().find(|c| c.id == before)
            && old.clock.expires_at.is_some()
        {
            old.clock.retry(cx);
        }
    }

    /// Whether another pair was made in place of this one.
    pub(super) fn is_succeeded(&self, id: ChildId) -> bool {
        self.children.iter().any(|c| c.replaces == Some(id))
    }

    /// The pair made last has the place of this one, which its maker will delete (RFC 7296, 2.8.1).
    /// Nobody uses it: should its maker not delete it, or never have made it, this side soon does.
    pub(super) fn make_redundant(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        let Some(child) = self.children.iter_mut().find(|c| c.id == id) else { return };
        child.waits_for = None;
        (child.octets.rekey, child.packets.rekey) = (None, None);
        let until = cx.now + retry_wait(cx);
        child.clock = Clock { rekey_at: None, expires_at: Some(until) };
        if let Some(winner) = self.children.last_mut().filter(|c| c.id != id) {
            winner.replaces = Some(id);
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
