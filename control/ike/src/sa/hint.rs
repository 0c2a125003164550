//! What comes without protection about an IKE SA that is up: anybody may have sent it (RFC 7296,
//! 2.21.4).

use std::time::Duration;

use super::exchange::Asked;
use super::{Cx, Phase, Session};
use crate::endpoint::{DropReason, Received};
use crate::message::{ExchangeType, Header, Message, NotifyType, PayloadType};

/// Least time between two liveness checks for this reason, so that nobody can have this side send
/// more than one request in that time.
const PAUSE: Duration = Duration::from_secs(30);

impl Session {
    /// Takes an answer in the clear, if `octets` are one, and gives what became of it. That the peer
    /// knows nothing of an IKE SA any more is a hint to ask whether it lives, and no more than that:
    /// only its silence ends anything.
    pub(super) fn heed_hint(
        &mut self,
        cx: &mut Cx<'_>,
        header: &Header,
        octets: &[u8],
    ) -> Option<Received> {
        let first = octets.get(16).copied();
        if !header.response || first != Some(PayloadType::NOTIFY.0) {
            return None;
        }
        let ours = self.keyed().any(|sa| sa.spis() == (header.spi_i, header.spi_r));
        let told = Message::decode(octets)
            .is_ok_and(|m| !m.is_sealed() && m.notify(NotifyType::INVALID_IKE_SPI).is_some());
        let rested = self.hinted.is_none_or(|at| cx.now.since(at) >= PAUSE);
        // What waits for an answer already shows by itself whether the peer lives.
        let idle = matches!(self.phase, Phase::Established) && self.outstanding.is_none();
        if !(ours && told && rested && idle) {
            return Some(Received::Dropped(DropReason::UnexpectedExchange));
        }
        self.hinted = Some(cx.now);
        self.request(cx, ExchangeType::INFORMATIONAL, Vec::new(), Asked::Liveness);
        Some(Received::Accepted)
    }
}
