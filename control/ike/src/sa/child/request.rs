//! The initiator of a negotiation of CHILD SAs.

use std::sync::Arc;

use super::selectors::Seen;
use super::{Agreed, ChildRequest, Parts, offered_mode, parts};
use crate::config::{ChildConfig, ChildMode};
use crate::event::ChildFailure;
use crate::host::Mode;
use crate::message::{ExchangeType, Message, NotifyType, Payload, Proposal, Protocol};
use crate::negotiate;
use crate::proposal::EspSuite;
use crate::sa::exchange::{Asked, Task};
use crate::sa::{Cx, Session};
use crate::ts::{self, TrafficSelector};

/// Mode and selectors of a pair: local, then remote.
type Narrowed = (Mode, Vec<TrafficSelector>, Vec<TrafficSelector>);

impl Session {
    /// Takes the answer to a request for a CHILD SA. `nonce_r` is given in IKE_AUTH; in
    /// CREATE_CHILD_SA it is in the message.
    pub(in crate::sa) fn finish_child(
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
        let other = ChildFailure::PeerMisbehaved("it chose what was not offered");
        let (suite, spi_out) = chosen(&parts, request, &config).ok_or(other.clone())?;
        let (mode, local_ts, remote_ts) = self.narrowed(request, &parts, message)?;
        let shared = match (suite.key_exchange, &request.private, parts.ke) {
            (None, _, _) => None,
            (Some(group), Some(private), Some((sent, public)))
                if private.group() == group && sent == group.transform_id() =>
            {
                Some(private.agree(public).map_err(|_| other)?)
            }
            _ => return Err(other),
        };
        let (spi_in, replaces) = (request.spi_in, request.wish.replaces);
        let agreed = Agreed { config, spi_in, spi_out, suite, mode, local_ts, remote_ts, replaces };
        self.install(cx, agreed, true, shared.as_ref(), (&request.nonce_i, nonce_r))
    }

    /// What the peer made of the mode and the selectors that were asked for.
    fn narrowed(
        &self,
        request: &ChildRequest,
        parts: &Parts<'_>,
        message: &Message,
    ) -> Result<Narrowed, ChildFailure> {
        let (mode, local_ts, remote_ts) = match (request.wish.config.mode, offered_mode(message)) {
            (ChildMode::Tunnel, ChildMode::Tunnel) => {
                (Mode::Tunnel, parts.ts_i.clone(), parts.ts_r.clone())
            }
            // RFC 7296, 1.3.1: what is no use as a tunnel is deleted.
            (ChildMode::Transport, ChildMode::Tunnel) => return Err(ChildFailure::TunnelOnly),
            (ChildMode::Tunnel, ChildMode::Transport) => {
                return Err(ChildFailure::PeerMisbehaved("it chose a mode that was not offered"));
            }
            (ChildMode::Transport, ChildMode::Transport) => {
                let seen = Seen::new(&parts.ts_i, &parts.ts_r, &self.path, self.nat);
                let wrong = ChildFailure::PeerMisbehaved("its selectors are not of transport mode");
                let seen = seen.ok_or(wrong)?;
                (Mode::Transport(seen.ends), seen.local_ts, seen.remote_ts)
            }
        };
        // RFC 7296, 2.9: the answer lies within the request.
        let within = ts::is_subset(&local_ts, &request.local_ts)
            && ts::is_subset(&remote_ts, &request.remote_ts)
            && !local_ts.is_empty()
            && !remote_ts.is_empty();
        let beyond = ChildFailure::PeerMisbehaved("its traffic selectors go beyond the request");
        if within { Ok((mode, local_ts, remote_ts)) } else { Err(beyond) }
    }

    /// Tells the peer that a pair is of no use here.
    pub(in crate::sa) fn send_delete_stray(&mut self, cx: &mut Cx<'_>, spi_in: u32) {
        let delete = Payload::Delete(Protocol::ESP, vec![spi_in.to_be_bytes().to_vec()]);
        self.request(cx, ExchangeType::INFORMATIONAL, vec![delete], Asked::DeleteStray(spi_in));
    }
}

/// The suite and the SPI of an answer, if they are among what was offered.
fn chosen(
    parts: &Parts<'_>,
    request: &ChildRequest,
    config: &Arc<ChildConfig>,
) -> Option<(EspSuite, u32)> {
    let answer: &Proposal = negotiate::single(parts.proposals)?;
    let (proposal, suite) =
        negotiate::select_esp(std::slice::from_ref(answer), &config.proposals, request.ke)?;
    Some((suite, negotiate::esp_spi(proposal)?))
}

/// What is said of a pair besides proposals and selectors: its mode (RFC 7296, 1.3.1), and that
/// padding against traffic analysis is not wanted. None is sent here, so that the peer's word on
/// that changes nothing.
pub(in crate::sa) fn traits_of(mode: ChildMode) -> impl Iterator<Item = Payload> {
    let transport =
        (mode == ChildMode::Transport).then(|| Payload::notify(NotifyType::USE_TRANSPORT_MODE, []));
    let padding = Payload::notify(NotifyType::ESP_TFC_PADDING_NOT_SUPPORTED, []);
    transport.into_iter().chain([padding])
}
