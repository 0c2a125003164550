//! IKE_SA_INIT (RFC 7296, 1.2), as initiator and as responder.

mod initiator;
mod responder;

use super::Cx;
use crate::config::{ConnectionConfig, Fragmentation};
use crate::crypto::SecretOctets;
use crate::keys::{IkeKeys, Inputs, skeyseed};
use crate::message::{ExchangeType, Header, Message, NotifyType, Payload, Proposal};
use crate::path::Path;
use crate::proposal::IkeSuite;

pub(crate) use initiator::{Attempt, Opening};
pub(crate) use responder::{Answer, Answered};

const fn init_header(spi_i: u64, spi_r: u64, response: bool) -> Header {
    Header {
        spi_i,
        spi_r,
        major: 2,
        minor: 0,
        exchange: ExchangeType::IKE_SA_INIT,
        from_initiator: !response,
        response,
        higher_version: false,
        message_id: 0,
    }
}

/// Beyond which length messages are cut, where both sides want it (RFC 7383, 2.3).
fn fragment_limit(message: &Message, connection: &ConnectionConfig) -> Option<usize> {
    message.notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED)?;
    (connection.fragmentation == Fragmentation::Yes).then(|| connection.fragment_limit())
}

/// Tells the peer that it may send fragments (RFC 7383, 2.3).
fn takes_fragments(connection: &ConnectionConfig) -> Option<Payload> {
    let takes = connection.fragmentation != Fragmentation::No;
    takes.then(|| Payload::notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, []))
}

fn has_sa(message: &Message) -> bool {
    message.payloads.iter().any(|p| matches!(p, Payload::Sa(_)))
}

/// The payloads that both messages of the exchange have: proposals, group and public value, nonce.
type InitPayloads<'a> = (&'a [Proposal], (u16, &'a [u8]), &'a [u8]);

fn init_payloads(message: &Message) -> Option<InitPayloads<'_>> {
    let (mut sa, mut ke, mut nonce) = (None, None, None);
    for payload in &message.payloads {
        match payload {
            Payload::Sa(proposals) => sa = Some(&proposals[..]),
            Payload::Ke(group, data) => ke = Some((*group, &data[..])),
            Payload::Nonce(data) => nonce = Some(&data[..]),
            _ => {}
        }
    }
    Some((sa?, ke?, nonce?))
}

/// The keys of an IKE SA by IKE_SA_INIT.
fn derive(
    suite: &IkeSuite,
    (spi_i, spi_r): (u64, u64),
    (nonce_i, nonce_r): (&[u8], &[u8]),
    shared: &SecretOctets,
) -> Option<IkeKeys> {
    let inputs = Inputs { nonce_i, nonce_r, spi_i, spi_r };
    IkeKeys::derive(suite, &skeyseed(suite.prf, &inputs, shared), &inputs)
}

/// Answers a request without protection and without state.
pub(crate) fn reply_in_clear(
    cx: &mut Cx<'_>,
    path: &Path,
    request: &Header,
    payloads: Vec<Payload>,
) {
    let header = Header {
        major: 2,
        minor: 0,
        from_initiator: !request.from_initiator,
        response: true,
        higher_version: false,
        ..*request
    };
    if let Ok(octets) = Message::new(header, payloads).encode() {
        cx.send(path, octets);
    }
}
