//! One peer relation: an IKE SA through its whole life, with its CHILD SAs.
//!
//! A [`Session`] outlives the keys and SPIs of its IKE SA ([`IkeSa`]), which a rekey replaces. Its
//! [`Phase`] says how far the initial exchanges are; what is only needed in one phase is in that
//! phase and goes with it. Requests and responses pass through [`exchange`]; what they say is in
//! modules of their own: [`init`], [`auth`], [`create`] (CREATE_CHILD_SA), [`inform`]. CHILD SAs are
//! negotiated in [`child`], and paths and TCP connections kept in [`link`].

mod auth;
mod child;
mod create;
mod end;
mod exchange;
mod failover;
mod hint;
mod inform;
mod init;
mod keyed;
mod lifetime;
mod link;
mod mobike;
mod reauth;
mod rekey;
mod retired;
mod row;
mod saved;
mod timers;

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ChildConfig, ConnectionConfig};
use crate::endpoint::{EndpointConfig, Rate};
use crate::event::{ChildId, DownReason, Event, IkeSaId, RekeyCause, Transmit};
use crate::host::Host;
use crate::id::{IdKind, Identity};
use crate::nat::Nat;
use crate::path::{ConnToken, ConnectRequest, Path, Transport};
use crate::time::Instant;

use child::{Child, ChildWish};
use exchange::{Outstanding, Task};
pub(crate) use keyed::{IkeSa, Wire};
use lifetime::Clock;
use link::Link;
pub(crate) use reauth::Succession;
use retired::Retired;
pub use saved::RestoreError;

pub(crate) use init::{Answer, reply_in_clear};
pub use mobike::PathChoice;

/// How long the last response is kept after an IKE SA is gone, to answer a repeated request; then
/// its TCP connection is closed (RFC 9329, 6.1: "a few seconds").
const LINGER: Duration = Duration::from_secs(5);
/// Octets of the nonces of this side: half the key of the longest PRF, as RFC 7296, 2.10 asks.
const NONCE_LEN: usize = 32;
/// How long a peer may take to delete an IKE SA beside which it has set up another.
const SUCCESSION: Duration = Duration::from_secs(60);
/// Within which time IKE SAs that both ends began are taken to be begun at once.
const AT_ONCE: Duration = Duration::from_secs(60);
/// Exchanges that may wait for the window of an IKE SA.
const TASKS_MAX: usize = 128;

/// What every handler is lent.
pub(crate) struct Cx<'a> {
    pub(crate) now: Instant,
    pub(crate) host: &'a mut dyn Host,
    pub(crate) transmits: &'a mut VecDeque<Transmit>,
    pub(crate) events: &'a mut VecDeque<Event>,
    pub(crate) config: &'a EndpointConfig,
    /// The next [`ChildId`] and [`ConnectRequest`].
    pub(crate) next_id: &'a mut u64,
}

impl Cx<'_> {
    fn id(&mut self) -> u64 {
        *self.next_id += 1;
        *self.next_id
    }

    /// A random SPI. Never zero; that two of 2^64 are alike is not to be expected.
    pub(crate) fn spi(&mut self) -> u64 {
        let mut octets = [0; 8];
        self.host.random(&mut octets);
        u64::from_be_bytes(octets).max(1)
    }

    fn nonce(&mut self) -> Vec<u8> {
        let mut nonce = vec![0; NONCE_LEN];
        self.host.random(&mut nonce);
        nonce
    }

    /// Sends a sealed message; in fragments over UDP only, where it is too long (RFC 7383; over TCP
    /// there is no use in them).
    pub(crate) fn send_wire(&mut self, path: &Path, wire: &Wire) {
        self.send_wire_in_order(path, wire, false);
    }

    /// The same; `behind` the ESP packets that wait, or before them.
    pub(crate) fn send_wire_in_order(&mut self, path: &Path, wire: &Wire, behind: bool) {
        if path.transport == Transport::Udp && !wire.fragments.is_empty() {
            wire.fragments.iter().for_each(|octets| self.send(path, octets.clone()));
        } else {
            let (path, octets) = (*path, wire.whole.clone());
            self.transmits.push_back(Transmit::Message { path, octets, behind });
        }
    }

    pub(crate) fn send(&mut self, path: &Path, octets: Vec<u8>) {
        self.transmits.push_back(Transmit::Message { path: *path, octets, behind: false });
    }
}

/// How far an IKE SA is.
pub(crate) enum Phase {
    /// Initiator: waiting for a TCP connection.
    Opening(init::Opening),
    /// Initiator: IKE_SA_INIT is sent.
    Init(Box<init::Attempt>),
    /// Initiator: IKE_AUTH is sent.
    Auth(Box<auth::Authenticating>),
    /// Responder: IKE_SA_INIT is answered.
    HalfOpen(Box<init::Answered>),
    /// The peer is authenticated.
    Established,
    /// A Delete of the IKE SA is to be sent, or sent, for this reason.
    Deleting(DownReason),
    /// Gone, but repeated requests are still answered until then.
    Closed(Instant),
    /// Nothing is left.
    Dead,
}

/// One peer relation. See the module's documentation.
#[derive(Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) id: IkeSaId,
    /// Whether this side began; over TCP it is the Originator for ever (RFC 9329, 1.2).
    pub(crate) initiator: bool,
    #[serde(with = "saved::connection")]
    pub(crate) connection: Option<Arc<ConnectionConfig>>,
    pub(crate) path: Path,
    pub(crate) link: Link,
    pub(crate) nat: Nat,
    /// Both sides take part in MOBIKE.
    mobike: bool,
    /// When the way was taken, or UDP last tried from TCP.
    probed: Instant,
    /// Where the peer says that it can be reached besides.
    peer_addresses: Vec<IpAddr>,
    /// How many other pairs of addresses were tried since the peer was last heard.
    #[serde(skip)]
    tried: usize,
    /// Answers to UPDATE_SA_ADDRESSES in a row that came another way than the request went.
    #[serde(skip)]
    stray_answers: u8,
    #[serde(with = "saved::phase")]
    pub(crate) phase: Phase,
    sa: Option<IkeSa>,
    /// IKE SAs that a rekey has put out of use; the newest last.
    retired: Vec<Retired>,
    children: Vec<Child>,
    pub(crate) local_id: Option<Identity>,
    pub(crate) remote_id: Option<Identity>,
    outstanding: Option<Outstanding>,
    tasks: VecDeque<Task>,
    /// What the peer refused for now, and when it is asked again.
    later: Vec<(Instant, Task)>,
    /// When to authenticate again, and whether a new IKE SA for that is wanted now.
    reauth_at: Option<Instant>,
    wants_successor: bool,
    /// How often that was tried.
    reauth_tries: u32,
    /// What this one takes over from another.
    succession: Option<Succession>,
    /// When the IKE SA is rekeyed and ends.
    clock: Clock,
    since: Instant,
    last_heard: Instant,
    /// Whether this is the only IKE SA of its connection, as far as is known (INITIAL_CONTACT).
    first_contact: bool,
    /// Restored, and its connection is not configured any more.
    #[serde(skip)]
    unconfigured: bool,
    /// Set when the peer was authenticated just now: others of the same peer are to go.
    #[serde(skip)]
    replaces: Option<Replaces>,
    /// The peer has another IKE SA, and when this one goes if it does not delete it before.
    superseded: Option<Instant>,
    /// Set when that has come.
    #[serde(skip)]
    outlived: bool,
    /// When an answer without protection last had this side ask whether the peer lives.
    #[serde(skip)]
    hinted: Option<Instant>,
    /// When a NAT before this side last saw a packet, as far as is known.
    kept_alive: Instant,
    /// The peer's CREATE_CHILD_SA requests.
    #[serde(skip, default = "create::paced")]
    creates: Rate,
}

/// How older IKE SAs of the same peer are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaces {
    /// The peer knows nothing of them any more (INITIAL_CONTACT): silently.
    Silently,
    /// By configuration (`unique`): with a Delete.
    WithDelete,
    /// Likewise, but the peer may be authenticating anew and delete them itself as soon as its
    /// CHILD SAs stand (RFC 7296, 2.8.3): only after [`SUCCESSION`].
    Later,
}

impl Session {
    fn new(id: IkeSaId, initiator: bool, path: Path, phase: Phase, now: Instant) -> Self {
        Self {
            id,
            initiator,
            connection: None,
            path,
            link: Link::default(),
            nat: Nat::default(),
            mobike: false,
            probed: now,
            peer_addresses: Vec::new(),
            tried: 0,
            stray_answers: 0,
            phase,
            sa: None,
            retired: Vec::new(),
            children: Vec::new(),
            local_id: None,
            remote_id: None,
            outstanding: None,
            tasks: VecDeque::new(),
            later: Vec::new(),
            reauth_at: None,
            wants_successor: false,
            reauth_tries: 0,
            succession: None,
            clock: Clock::default(),
            since: now,
            last_heard: now,
            first_contact: false,
            unconfigured: false,
            replaces: None,
            superseded: None,
            outlived: false,
            hinted: None,
            kept_alive: now,
            creates: create::paced(),
        }
    }

    fn connection_name(&self) -> String {
        self.connection.as_ref().map(|c| c.name.clone()).unwrap_or_default()
    }

    /// The local SPIs by which messages find this session.
    pub(crate) fn spis(&self) -> Vec<u64> {
        let mut spis: Vec<u64> = self.sa.iter().map(|sa| sa.spi_local).collect();
        spis.extend(self.retired.iter().map(|r| r.sa.spi_local));
        spis.extend(self.rival_spi());
        match &self.phase {
            Phase::Init(attempt) => spis.push(attempt.spi_i),
            Phase::HalfOpen(answered) if self.sa.is_none() => spis.push(answered.spis.1),
            _ => {}
        }
        spis
    }

    /// Forgets the request under way, as a peer with a fault may.
    #[cfg(test)]
    pub(crate) fn forget_request(&mut self) {
        self.outstanding = None;
    }

    /// The initiator's SPI, while this is a half-open SA that a peer began, or one whose peer was not
    /// authenticated and that is not forgotten yet: either is what a flood of strangers leaves behind
    /// (RFC 8019, 4.2).
    pub(crate) fn half_open_spi(&self) -> Option<u64> {
        match &self.phase {
            Phase::HalfOpen(answered) => Some(answered.spis.0),
            Phase::Closed(_) if self.remote_id.is_none() => {
                self.sa.as_ref().map(|sa| sa.spi_remote)
            }
            _ => None,
        }
    }

    /// Whether it is about to tell the peer that it is the only IKE SA of its connection.
    pub(crate) const fn claims_first_contact(&self) -> bool {
        self.first_contact && matches!(self.phase, Phase::Init(_))
    }

    /// There is another one.
    pub(crate) const fn deny_first_contact(&mut self) {
        self.first_contact = false;
    }

    /// Whether the peer is authenticated and not gone.
    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Established | Phase::Deleting(_))
    }

    /// Makes this one the successor of another IKE SA of the same peer.
    pub(crate) fn succeed_to(&mut self, succession: Succession) {
        self.succession = Some(succession);
    }

    /// The CHILD SAs take up what a changed configuration says of them when they are rekeyed.
    fn reconfigure_children(&mut self, connection: &ConnectionConfig) {
        for child in &mut self.children {
            let same = connection.children.iter().find(|new| new.name == child.config.name);
            if let Some(new) = same {
                child.config = Arc::clone(new);
            }
        }
    }

    /// Whether CHILD SAs may be asked for: at once, or as soon as the peer is authenticated.
    pub(crate) const fn takes_wishes(&self) -> bool {
        match self.phase {
            Phase::Opening(_) | Phase::Init(_) | Phase::Auth(_) | Phase::Established => true,
            Phase::HalfOpen(_) | Phase::Deleting(_) | Phase::Closed(_) | Phase::Dead => false,
        }
    }

    /// Whether exchanges may be begun.
    pub(crate) const fn is_established(&self) -> bool {
        matches!(self.phase, Phase::Established)
    }

    pub(crate) const fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Dead)
    }

    /// Octets that are equal exactly for the same authenticated pair of identities.
    pub(crate) fn peer_key(&self) -> Option<Vec<u8>> {
        let (local, remote) = (self.local_id.as_ref()?, self.remote_id.as_ref()?);
        let mut key = Vec::new();
        for id in [local, remote] {
            key.push(id.kind().number());
            key.extend_from_slice(&u32::try_from(id.data().len()).ok()?.to_be_bytes());
            match id.kind() {
                IdKind::Fqdn | IdKind::Rfc822 => key.extend(id.data().to_ascii_lowercase()),
                _ => key.extend_from_slice(id.data()),
            }
        }
        self.is_up().then_some(key)
    }

    pub(crate) const fn take_replaces(&mut self) -> Option<Replaces> {
        self.replaces.take()
    }

    pub(crate) fn child_ids(&self) -> impl Iterator<Item = ChildId> {
        self.children.iter().map(|c| c.id)
    }

    pub(crate) fn ask_child(&mut self, cx: &mut Cx<'_>, config: Arc<ChildConfig>) {
        self.push_task(cx, Task::Child(ChildWish::new(config)));
    }

    pub(crate) fn rekey_child(&mut self, cx: &mut Cx<'_>, child: ChildId, cause: RekeyCause) {
        let Some(child) = self.children.iter_mut().find(|c| c.id == child) else { return };
        child.clock.rekey_at = None;
        (child.octets.rekey, child.packets.rekey) = (None, None);
        let id = child.id;
        cx.events.push_back(Event::Rekeying { ike: self.id, child: Some(id), cause });
        self.push_task(cx, Task::RekeyChild(id));
    }

    pub(crate) fn rekey_ike(&mut self, cx: &mut Cx<'_>, cause: RekeyCause) {
        self.clock.rekey_at = None;
        cx.events.push_back(Event::Rekeying { ike: self.id, child: None, cause });
        self.push_task(cx, Task::RekeyIke(None));
    }

    /// Every IKE SA whose keys it has: the present one and those that a rekey has put out of use.
    pub(crate) fn keyed(&self) -> impl Iterator<Item = &IkeSa> {
        self.sa.iter().chain(self.retired.iter().map(|r| &r.sa))
    }

    /// The IKE SA's windows and keys, to play its peer by hand.
    #[cfg(test)]
    pub(crate) const fn sa_mut(&mut self) -> &mut Option<IkeSa> {
        &mut self.sa
    }

    pub(crate) fn terminate_child(&mut self, cx: &mut Cx<'_>, child: ChildId) {
        let reason = DownReason::TerminatedLocally;
        // From now on nobody is to rekey it, even if the Delete has to wait (RFC 7296, 2.25.1).
        if let Some(child) = self.children.iter_mut().find(|c| c.id == child) {
            child.leaving = Some(reason);
        }
        self.push_task(cx, Task::DeleteChild(child, reason));
    }

    /// The TCP connection in use, and the request for one.
    pub(crate) fn connections(&self) -> (Option<ConnToken>, Option<ConnectRequest>) {
        (self.path.conn, self.link.request())
    }
}
