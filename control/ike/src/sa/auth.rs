//! IKE_AUTH with pre-shared keys (RFC 7296, 1.2 and 2.15).

use serde::{Deserialize, Serialize};
use std::sync::Arc;

use super::child::{ChildRequest, ChildWish, traits_of};
use super::exchange::{Asked, Task};
use super::{Cx, Phase, Replaces, Session};
use super::{mobike, saved};
use crate::auth::{self, METHOD_SHARED_KEY, Signed};
use crate::config::{ChildConfig, ConnectionConfig, Uniqueness};
use crate::event::{ChildFailure, Event, InitiationError};
use crate::host::Secret;
use crate::id::{IdKind, Identity};
use crate::message::{ExchangeType, Message, NotifyType, Payload};
use crate::negotiate::{self, ChildKe};
use crate::path::Path;

/// What an initiator needs to check the answer to IKE_AUTH.
#[derive(Serialize, Deserialize)]
pub(crate) struct Authenticating {
    #[serde(with = "saved::child")]
    pub(super) child: Arc<ChildConfig>,
    /// The SPI reserved for the CHILD SA.
    pub(super) spi_in: Option<u32>,
    pub(super) nonce_i: Vec<u8>,
    pub(super) nonce_r: Vec<u8>,
    /// The responder's IKE_SA_INIT message.
    pub(super) response: Vec<u8>,
}

impl Authenticating {
    /// Gives the reserved SPI back.
    pub(super) fn release(&self, cx: &mut Cx<'_>) {
        if let Some(spi_in) = self.spi_in {
            cx.host.release_child(spi_in);
        }
    }
}

/// Identity and AUTH payload of the peer, and the identity that it expects here.
struct Claims {
    kind: u8,
    data: Vec<u8>,
    id: Identity,
    expected: Option<Identity>,
    auth: Vec<u8>,
}

fn identity(kind: u8, data: &[u8]) -> Option<Identity> {
    Identity::from_wire(IdKind::from_number(kind)?, data)
}

/// What the peer claims; `from_initiator` says which ID payload is its own.
fn claims(message: &Message, from_initiator: bool) -> Result<Claims, InitiationError> {
    let (mut own, mut expected, mut auth) = (None, None, None);
    for payload in &message.payloads {
        match payload {
            Payload::IdI(kind, data) if from_initiator => own = Some((*kind, data)),
            Payload::IdR(kind, data) if !from_initiator => own = Some((*kind, data)),
            Payload::IdR(kind, data) => expected = identity(*kind, data),
            Payload::Auth(method, data) => auth = Some((*method, data)),
            _ => {}
        }
    }
    let Some((kind, data)) = own else {
        return Err(InitiationError::PeerMisbehaved("IKE_AUTH without an identity"));
    };
    let Some(id) = identity(kind, data) else {
        return Err(InitiationError::PeerMisbehaved("an identity is malformed"));
    };
    let Some((method, auth)) = auth else {
        return Err(InitiationError::EapWanted);
    };
    if method != METHOD_SHARED_KEY {
        return Err(InitiationError::AuthMethod(method));
    }
    Ok(Claims { kind, data: data.clone(), id, expected, auth: auth.clone() })
}

// The initiator's half.
impl Session {
    /// Sends IKE_AUTH. `request` is this side's IKE_SA_INIT.
    pub(super) fn send_auth(&mut self, cx: &mut Cx<'_>, mut state: Authenticating, request: &[u8]) {
        let Some(connection) = self.connection.clone() else { return };
        let expected = connection.remote_id.exact().cloned();
        // Without an exact identity the key is found by this side's own.
        let looked_up = expected.clone().unwrap_or_else(|| self.path.remote.ip().into());
        let Some(secret) = cx.host.psk(&connection.local_id, &looked_up) else {
            self.fail(cx, InitiationError::NoSecret { remote: looked_up });
            return;
        };
        let Some(auth) = self.own_auth(&connection, &secret, request, &state.nonce_r, true) else {
            return;
        };
        let (local_ts, remote_ts) = ChildWish::new(state.child.clone()).selectors(&self.path);
        if !local_ts.is_empty() && !remote_ts.is_empty() {
            state.spi_in = cx.host.allocate_child(self.id);
        }
        let id = &connection.local_id;
        let mut payloads = vec![Payload::IdI(id.kind().number(), id.data().to_vec())];
        if let Some(id) = &expected {
            payloads.push(Payload::IdR(id.kind().number(), id.data().to_vec()));
        }
        payloads.push(auth);
        if self.first_contact && connection.unique != Uniqueness::Never {
            payloads.push(Payload::notify(NotifyType::INITIAL_CONTACT, []));
        }
        if let Some(spi_in) = state.spi_in {
            let offer = negotiate::esp_offer(&state.child.proposals, spi_in, false);
            payloads.push(Payload::Sa(offer));
            payloads.push(Payload::selectors(true, &local_ts));
            payloads.push(Payload::selectors(false, &remote_ts));
            payloads.extend(traits_of(state.child.mode));
        }
        payloads.extend(mobike::announce(&connection, &self.path));
        self.phase = Phase::Auth(Box::new(state));
        self.request(cx, ExchangeType::IKE_AUTH, payloads, Asked::Auth);
    }

    /// This side's AUTH payload. `message` is its own IKE_SA_INIT, `nonce` the peer's.
    fn own_auth(
        &self,
        connection: &ConnectionConfig,
        secret: &Secret,
        message: &[u8],
        nonce: &[u8],
        initiator: bool,
    ) -> Option<Payload> {
        let id = &connection.local_id;
        let signed =
            Signed { message, nonce, id_kind: id.kind().number(), id_data: id.data(), initiator };
        let keys = &self.sa.as_ref()?.keys;
        let auth = auth::shared_key(keys, secret, &signed);
        Some(Payload::Auth(METHOD_SHARED_KEY, auth.to_vec()))
    }

    pub(super) fn handle_auth_response(&mut self, cx: &mut Cx<'_>, message: &Message) {
        let Phase::Auth(state) = std::mem::replace(&mut self.phase, Phase::Dead) else { return };
        let has_auth = message.payloads.iter().any(|p| matches!(p, Payload::Auth(..)));
        if let Some(error) = message.error().filter(|_| !has_auth) {
            state.release(cx);
            self.fail(cx, InitiationError::PeerRefused(error.kind));
            return;
        }
        let remote = match self.check_responder(cx, &state, message) {
            Ok(remote) => remote,
            Err(error) => {
                state.release(cx);
                // RFC 7296, 2.21.2: the responder believes that all is well and must be told.
                self.tell_failure(cx);
                self.fail(cx, error);
                return;
            }
        };
        self.remote_id = Some(remote);
        self.note_mobike(message);
        self.established(cx);
        self.note_auth_lifetime(cx, message);
        self.first_child(cx, *state, message);
        self.ask_inherited(cx);
    }

    fn check_responder(
        &mut self,
        cx: &mut Cx<'_>,
        state: &Authenticating,
        message: &Message,
    ) -> Result<Identity, InitiationError> {
        let claims = claims(message, false)?;
        let misbehaved = InitiationError::PeerMisbehaved("IKE_AUTH out of order");
        let (Some(connection), Some(sa)) = (&self.connection, &self.sa) else {
            return Err(misbehaved);
        };
        if !connection.remote_id.matches(&claims.id) {
            return Err(InitiationError::WrongIdentity { got: claims.id });
        }
        let Some(secret) = cx.host.psk(&connection.local_id, &claims.id) else {
            return Err(InitiationError::NoSecret { remote: claims.id });
        };
        let signed = Signed {
            message: &state.response,
            nonce: &state.nonce_i,
            id_kind: claims.kind,
            id_data: &claims.data,
            initiator: false,
        };
        if !auth::verify(&sa.keys, &secret, &signed, &claims.auth) {
            return Err(InitiationError::AuthenticationFailed { remote: claims.id });
        }
        Ok(claims.id)
    }

    /// Tells a responder that it could not be authenticated. Sent once: this side keeps no state.
    fn tell_failure(&mut self, cx: &mut Cx<'_>) {
        let Some(sa) = &mut self.sa else { return };
        let notify = Payload::notify(NotifyType::AUTHENTICATION_FAILED, []);
        if let Ok((_, wire)) = sa.request(ExchangeType::INFORMATIONAL, vec![notify]) {
            cx.send_wire(&self.path, &wire);
        }
    }

    /// The CHILD SA that IKE_AUTH was to bring along.
    fn first_child(&mut self, cx: &mut Cx<'_>, state: Authenticating, message: &Message) {
        let wish = ChildWish::new(state.child);
        let (local_ts, remote_ts) = wish.selectors(&self.path);
        let Some(spi_in) = state.spi_in else {
            let apart = local_ts.is_empty() || remote_ts.is_empty();
            let failure = if apart { ChildFailure::Elsewhere } else { ChildFailure::TableFull };
            self.child_request_failed(cx, wish, failure);
            return;
        };
        let wanted = ChildRequest {
            wish,
            spi_in,
            ke: ChildKe::Never,
            private: None,
            nonce_i: state.nonce_i,
            local_ts,
            remote_ts,
            rival: None,
        };
        if let Err(failure) = self.finish_child(cx, &wanted, message, Some(&state.nonce_r)) {
            let mut wish = wanted.wish;
            wish.single = failure == ChildFailure::PeerRefused(NotifyType::SINGLE_PAIR_REQUIRED);
            if wish.single {
                self.push_task(cx, Task::Child(wish));
            } else {
                self.child_request_failed(cx, wish, failure);
            }
        } else if let Some(made) = self.children.last().map(|c| c.id) {
            self.end_unconfigured(cx, made);
        }
    }

    fn uniqueness(&self) -> Uniqueness {
        self.connection.as_ref().map(|c| c.unique).unwrap_or_default()
    }

    /// The peer is authenticated.
    fn established(&mut self, cx: &mut Cx<'_>) {
        self.phase = Phase::Established;
        self.since = cx.now;
        self.restart_clock(cx);
        let connection = self.connection_name();
        // Its predecessor goes when all CHILD SAs have come over.
        if self.succession.is_none() && self.uniqueness() == Uniqueness::Replace {
            let how = if self.initiator { Replaces::WithDelete } else { Replaces::Later };
            self.replaces = Some(how);
        }
        cx.events.push_back(Event::IkeUp { ike: self.id, connection });
    }
}

// The responder's half.
impl Session {
    pub(super) fn handle_auth(&mut self, cx: &mut Cx<'_>, path: &Path, message: &Message) {
        match self.check_initiator(cx, message) {
            Ok((connection, ..)) if connection.mobike && mobike::nat_forbidden(message, path) => {
                // RFC 4555, 3.9: the peer begins anew, in case somebody changed this one packet.
                let notify = Payload::notify(NotifyType::UNEXPECTED_NAT_DETECTED, []);
                self.respond(cx, path, ExchangeType::IKE_AUTH, vec![notify]);
                self.refuse(cx, path, InitiationError::NatForbidden);
            }
            Ok((connection, secret, remote)) => {
                self.accept_peer(cx, path, message, connection, &secret, remote);
            }
            Err(error) => {
                // RFC 7296, 2.21.2: which of the many reasons is for the log here, not for the peer.
                let notify = Payload::notify(NotifyType::AUTHENTICATION_FAILED, []);
                self.respond(cx, path, ExchangeType::IKE_AUTH, vec![notify]);
                self.refuse(cx, path, error);
            }
        }
    }

    /// Finds the connection that the peer belongs to, and checks its AUTH payload.
    fn check_initiator(
        &self,
        cx: &mut Cx<'_>,
        message: &Message,
    ) -> Result<(Arc<ConnectionConfig>, Secret, Identity), InitiationError> {
        let claims = claims(message, true)?;
        let (Phase::HalfOpen(answered), Some(sa)) = (&self.phase, &self.sa) else {
            return Err(InitiationError::PeerMisbehaved("IKE_AUTH out of order"));
        };
        let fits = |c: &&Arc<ConnectionConfig>| {
            c.remote_id.matches(&claims.id)
                && claims.expected.as_ref().is_none_or(|id| id.same_as(&c.local_id))
        };
        // The narrowest; of equals the first.
        let best =
            answered.candidates.iter().filter(fits).reduce(|best, c| {
                if c.remote_id.rank() > best.remote_id.rank() { c } else { best }
            });
        // As it is configured now: it may have been changed, or taken out, since IKE_SA_INIT.
        let current = best.and_then(|best| cx.host.connection(&best.name));
        let Some(connection) = current.filter(|c| fits(&c)) else {
            return Err(InitiationError::IdentityNotAccepted { remote: claims.id });
        };
        let Some(secret) = cx.host.psk(&connection.local_id, &claims.id) else {
            return Err(InitiationError::NoSecret { remote: claims.id });
        };
        let signed = Signed {
            message: &answered.request,
            nonce: &answered.nonce_r,
            id_kind: claims.kind,
            id_data: &claims.data,
            initiator: true,
        };
        if !auth::verify(&sa.keys, &secret, &signed, &claims.auth) {
            return Err(InitiationError::AuthenticationFailed { remote: claims.id });
        }
        Ok((connection, secret, claims.id))
    }

    fn accept_peer(
        &mut self,
        cx: &mut Cx<'_>,
        path: &Path,
        message: &Message,
        connection: Arc<ConnectionConfig>,
        secret: &Secret,
        remote: Identity,
    ) {
        let Phase::HalfOpen(answered) = std::mem::replace(&mut self.phase, Phase::Dead) else {
            return;
        };
        let auth = self.own_auth(&connection, secret, &answered.response, &answered.nonce_i, false);
        let Some(auth) = auth else { return };
        let id = &connection.local_id;
        let mut payloads = vec![Payload::IdR(id.kind().number(), id.data().to_vec()), auth];
        self.local_id = Some(connection.local_id.clone());
        self.remote_id = Some(remote);
        let announced = mobike::announce(&connection, path);
        self.connection = Some(connection);
        self.note_mobike(message);
        if self.mobike {
            payloads.extend(announced);
        }
        payloads.extend(self.auth_lifetime());
        self.established(cx);
        self.note_auth_lifetime(cx, message);
        let alone = message.notify(NotifyType::INITIAL_CONTACT).is_some();
        if alone && self.uniqueness() != Uniqueness::Never {
            self.replaces = Some(Replaces::Silently);
        }
        let nonces = (&answered.nonce_i[..], &answered.nonce_r[..]);
        // RFC 7296, 1.2: without a CHILD SA the IKE SA lives all the same.
        if message.payloads.iter().any(|p| matches!(p, Payload::Sa(_))) {
            payloads.extend(self.answer_child(cx, message, ChildKe::Never, nonces, None));
        }
        self.respond(cx, path, ExchangeType::IKE_AUTH, payloads);
    }
}
