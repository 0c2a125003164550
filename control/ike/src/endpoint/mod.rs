//! All IKE SAs of a gateway: the table by SPI, the limits, and the way in and out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::ConnectionConfig;
use crate::event::{ChildId, Event, IkeSaId, IkeSnapshot, Transmit};
use crate::host::Host;
use crate::path::{ChildPath, ConnToken, ConnectRequest, Path};
use crate::time::Instant;

/// Limits of an endpoint.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Most IKE SAs in all.
    pub ike_sas_max: usize,
    /// Most half-open IKE SAs that peers began, in all.
    pub half_open_max: usize,
    /// Most half-open IKE SAs that peers began from one IPv4 address or IPv6 /64. A large NAT must
    /// not trip over it.
    pub half_open_per_source_max: usize,
    /// How long an IKE SA that a peer began may stay unauthenticated.
    pub half_open_timeout: Duration,
    /// Longest IKE message that is accepted, in octets.
    pub message_octets_max: usize,
    /// Most CHILD SAs of one IKE SA.
    pub children_per_ike_max: usize,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            ike_sas_max: 16_384,
            half_open_max: 4_096,
            half_open_per_source_max: 512,
            half_open_timeout: Duration::from_secs(30),
            message_octets_max: 32_768,
            children_per_ike_max: 64,
        }
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A new, valid message, or one whose error was answered.
    Accepted,
    /// A repeated request; the cached response was sent again.
    Repeated,
    /// Nothing was done.
    Dropped(DropReason),
}

/// Why a message was dropped; each is a counter of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// Longer than [`EndpointConfig::message_octets_max`].
    TooLong,
    /// No IKE header, or its length is not the message's.
    BadHeader,
    /// A major version other than 2 (answered with INVALID_MAJOR_VERSION where that is due).
    BadVersion,
    /// No IKE SA has this SPI.
    UnknownSpi,
    /// An exchange type or a flag that does not fit the state of the SA.
    UnexpectedExchange,
    /// A Message ID outside the window, or a response that nobody waits for.
    MessageId,
    /// The payloads of an unprotected message cannot be decoded.
    BadPayload,
    /// The integrity check of the SK payload failed.
    BadIcv,
    /// Too many half-open IKE SAs in all, or of this source.
    HalfOpenLimit,
    /// Too many IKE SAs.
    SaLimit,
}

impl DropReason {
    /// A name for counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLong => "ike_too_long",
            Self::BadHeader => "ike_bad_header",
            Self::BadVersion => "ike_bad_version",
            Self::UnknownSpi => "ike_unknown_spi",
            Self::UnexpectedExchange => "ike_unexpected_exchange",
            Self::MessageId => "ike_message_id",
            Self::BadPayload => "ike_bad_payload",
            Self::BadIcv => "ike_bad_icv",
            Self::HalfOpenLimit => "ike_half_open_limit",
            Self::SaLimit => "ike_sa_limit",
        }
    }
}

/// Why nothing was initiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitiateError {
    /// No address to send to.
    #[error(
        "`{0}` names no single remote address; set `remote_addrs` to the peer's address to initiate it"
    )]
    NoRemoteAddress(String),
    /// No route.
    #[error("no route leads to {0}; check the gateway's addresses and routes")]
    NoRoute(std::net::IpAddr),
    /// No such child.
    #[error("`{connection}` has no child `{child}`")]
    NoSuchChild {
        /// Connection.
        connection: String,
        /// What was asked for.
        child: String,
    },
    /// The table is full.
    #[error("{0} IKE SAs exist, which is the limit")]
    TooManyIkeSas(usize),
    /// No SPI for the CHILD SA.
    #[error("the table of CHILD SAs is full; raise `dataplane.sas`")]
    TooManyChildren,
    /// The IKE SA is not in a state to do so.
    #[error("IKE SA {0} is not established")]
    NotEstablished(IkeSaId),
    /// Unknown SA.
    #[error(transparent)]
    UnknownSa(#[from] UnknownSa),
}

/// There is no such SA (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownSa {
    /// No such IKE SA.
    #[error("there is no IKE SA {0}; `culvert sas` lists them")]
    Ike(IkeSaId),
    /// No such CHILD SA.
    #[error("there is no CHILD SA {0}; `culvert sas` lists them")]
    Child(ChildId),
}

/// Every IKE SA of a gateway. See the crate's documentation for the order of calls.
pub struct Endpoint {
    config: EndpointConfig,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Endpoint {
    /// An endpoint without SAs.
    pub fn new(config: EndpointConfig) -> Self {
        Self { config, transmits: VecDeque::new(), events: VecDeque::new() }
    }

    /// Begins an IKE SA with the first CHILD SA `child` (a name in `connection`; `None`: the first
    /// one configured, or none if there is none). All further children are asked for with
    /// [`Self::initiate_child`] once it is up.
    ///
    /// Success and failure come as [`Event::IkeUp`], [`Event::ChildUp`],
    /// [`Event::InitiationFailed`] or [`Event::ChildFailed`].
    ///
    /// # Errors
    /// When there is nobody to ask, or no room.
    pub fn initiate(
        &mut self,
        now: Instant,
        connection: &Arc<ConnectionConfig>,
        child: Option<&str>,
        host: &mut dyn Host,
    ) -> Result<IkeSaId, InitiateError> {
        let _ = (now, child, host, &self.config);
        Err(InitiateError::NoRemoteAddress(connection.name.clone()))
    }

    /// Asks for one more CHILD SA in an established IKE SA (CREATE_CHILD_SA; RFC 7296, 1.3.1).
    ///
    /// # Errors
    /// When the IKE SA or the child does not exist, or there is no room.
    pub fn initiate_child(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        child: &str,
        host: &mut dyn Host,
    ) -> Result<(), InitiateError> {
        let _ = (now, child, host);
        Err(UnknownSa::Ike(ike).into())
    }

    /// Deletes an IKE SA with its CHILD SAs: sends a Delete payload where the peer is authenticated,
    /// and ends with [`Event::IkeDown`] once the peer has answered or is given up. An SA that is not
    /// up yet ends at once with [`Event::InitiationFailed`].
    ///
    /// # Errors
    /// When it does not exist.
    pub fn terminate(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        let _ = (now, host);
        Err(UnknownSa::Ike(ike))
    }

    /// Deletes one pair of CHILD SAs; the IKE SA stays.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn terminate_child(
        &mut self,
        now: Instant,
        child: ChildId,
        host: &mut dyn Host,
    ) -> Result<(), UnknownSa> {
        let _ = (now, host);
        Err(UnknownSa::Child(child))
    }

    /// Takes an IKE message, without marker and TCP length, that came on `path`.
    pub fn handle_message(
        &mut self,
        now: Instant,
        path: &Path,
        octets: &[u8],
        host: &mut dyn Host,
    ) -> Received {
        let _ = (now, path, octets, host);
        Received::Dropped(DropReason::UnknownSpi)
    }

    /// The host opened the TCP connection of a [`Transmit::Connect`] and sent the prefix on it.
    pub fn tcp_opened(
        &mut self,
        now: Instant,
        request: ConnectRequest,
        conn: ConnToken,
        local: SocketAddr,
        remote: SocketAddr,
        host: &mut dyn Host,
    ) {
        let _ = (now, request, conn, local, remote, host);
    }

    /// The host could not open the TCP connection of a [`Transmit::Connect`].
    pub fn tcp_failed(
        &mut self,
        now: Instant,
        request: ConnectRequest,
        reason: &str,
        host: &mut dyn Host,
    ) {
        let _ = (now, request, reason, host);
    }

    /// A TCP connection is gone, whoever opened or closed it. Its SAs stay (RFC 9329, 6.1).
    pub fn tcp_closed(&mut self, now: Instant, conn: ConnToken, host: &mut dyn Host) {
        let _ = (now, conn, host);
    }

    /// The data plane moved this peer's path, because an authentic new ESP packet came on it
    /// (RFC 9329, 6.1). IKE follows.
    pub fn path_moved(&mut self, now: Instant, ike: IkeSaId, path: &ChildPath) {
        let _ = (now, ike, path);
    }

    /// Does what is due: repetitions, liveness checks, new TCP connections, half-open SAs to drop.
    pub fn handle_timeout(&mut self, now: Instant, host: &mut dyn Host) {
        let _ = (now, host);
    }

    /// When [`Self::handle_timeout`] is due next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next thing for the host to do on the network.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// A row for each IKE SA, in the order in which they were begun.
    pub fn sas(&self) -> impl Iterator<Item = IkeSnapshot> + '_ {
        std::iter::empty()
    }

    /// Number of IKE SAs, half-open ones included.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether there is no IKE SA.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
