//! What an endpoint needs of its host.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::config::{ChildMode, ConnectionConfig, TransportChoice};
use crate::event::{ChildId, IkeSaId};
use crate::id::Identity;
use crate::path::ChildPath;
use crate::proposal::EspSuite;
use crate::time::Instant;
use crate::ts::TrafficSelector;

/// A pre-shared key; zeroized when dropped, never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the octets of a key.
    pub fn new(octets: Vec<u8>) -> Self {
        Self(Zeroizing::new(octets))
    }

    /// The octets of the key.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Key and salt of one direction of a CHILD SA, in that order (RFC 4106, 8.1); zeroized when
/// dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyMaterial(Zeroizing<Vec<u8>>);

impl KeyMaterial {
    pub(crate) fn new(octets: &[u8]) -> Self {
        Self(Zeroizing::new(octets.to_vec()))
    }

    /// Key, then 4 octets of salt.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// Encapsulation mode of a CHILD SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Tunnel mode: whole IP packets.
    Tunnel,
    /// Transport mode: what packets between these two addresses carry.
    Transport(TransportEnds),
}

/// The addresses of a CHILD SA in transport mode. Where no NAT is in between, both views are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TransportEnds {
    /// Address of this end in the packets that this gateway takes and gives.
    pub local: IpAddr,
    /// Address of the peer in them.
    pub remote: IpAddr,
    /// This end as the peer sees it: the destination that the checksums of packets from the peer
    /// are computed with (RFC 3948, 3.1.2).
    pub local_at_peer: IpAddr,
    /// The peer's own address as it sees it: their source.
    pub remote_at_peer: IpAddr,
}

impl Mode {
    /// The mode without its addresses, as in the configuration.
    pub const fn choice(&self) -> ChildMode {
        match self {
            Self::Tunnel => ChildMode::Tunnel,
            Self::Transport(_) => ChildMode::Transport,
        }
    }
}

/// A pair of CHILD SAs, one for each direction, as the host installs it.
#[derive(Clone)]
pub struct ChildSa {
    /// Name of the pair in this endpoint.
    pub id: ChildId,
    /// The IKE SA, which stands for the peer: all its CHILD SAs share one path.
    pub ike: IkeSaId,
    /// Name of the connection.
    pub connection: String,
    /// Name of the child in the connection's configuration.
    pub name: String,
    /// This gateway's identity.
    pub local_id: Identity,
    /// The peer's authenticated identity.
    pub remote_id: Identity,
    /// SPI of packets to this gateway, from [`Host::allocate_child`].
    pub spi_in: u32,
    /// SPI of packets to the peer.
    pub spi_out: u32,
    /// Algorithm and extended sequence numbers.
    pub suite: EspSuite,
    /// Keys of packets to this gateway.
    pub keymat_in: KeyMaterial,
    /// Keys of packets to the peer.
    pub keymat_out: KeyMaterial,
    /// Encapsulation mode.
    pub mode: Mode,
    /// Selectors of this gateway's side, after narrowing.
    pub local_ts: Vec<TrafficSelector>,
    /// Selectors of the peer's side, after narrowing.
    pub remote_ts: Vec<TrafficSelector>,
    /// Where ESP goes first.
    pub path: ChildPath,
    /// The pair that this one replaces, when it comes from a rekey. Outbound traffic stays on the
    /// old pair until [`Host::remove_child`] where `outbound` is false (RFC 7296, 2.8: a responder
    /// waits until it sees the new pair used or the old one deleted).
    pub replaces: Option<ChildId>,
    /// Whether outbound packets may use this pair at once.
    pub outbound: bool,
    /// Whether this side asked for it, so that the peer has it already. Else it will have it when it
    /// has got the answer: packets that another pair can carry are better sent there until then.
    pub initiator: bool,
}

/// A pair of CHILD SAs that an earlier process installed, as the IKE SA that is restored knows it.
#[derive(Clone, Copy, Debug)]
pub struct ChildClaim<'a> {
    /// Name of the pair in this endpoint.
    pub id: ChildId,
    /// The IKE SA.
    pub ike: IkeSaId,
    /// SPI of packets to this gateway.
    pub spi_in: u32,
    /// SPI of packets to the peer.
    pub spi_out: u32,
    /// Selectors of this gateway's side.
    pub local_ts: &'a [TrafficSelector],
    /// Selectors of the peer's side.
    pub remote_ts: &'a [TrafficSelector],
    /// Whether outbound packets use it; else [`Host::enable_outbound`] may follow.
    pub outbound: bool,
}

/// A host could not install a CHILD SA; the exchange ends without it and the peer is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data plane did not take the CHILD SA: {0}")]
pub struct InstallError(pub String);

/// Services of the host, lent to the endpoint for the time of a call.
///
/// None of them may block: they are called while a message is being answered. Where IKE SAs are
/// restored, a release or removal may be asked for that the process before had done but not saved.
pub trait Host {
    /// Fills `out` with octets from a cryptographic random source.
    fn random(&mut self, out: &mut [u8]);

    /// The connections whose addresses cover these two (see [`ConnectionConfig::covers`]), best
    /// first. The endpoint itself sorts out transport, proposals and identities.
    fn connections(&mut self, local: IpAddr, remote: IpAddr) -> Vec<Arc<ConnectionConfig>>;

    /// The connection of this name, for an IKE SA that is restored or whose peer is authenticated.
    fn connection(&mut self, name: &str) -> Option<Arc<ConnectionConfig>>;

    /// The pre-shared key for two identities, the best match first (swanctl's `secrets`).
    fn psk(&mut self, local: &Identity, remote: &Identity) -> Option<Secret>;

    /// The address from which this gateway reaches `remote`; `None` without a route.
    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr>;

    /// Reserves an inbound ESP SPI (at least 256; RFC 4303, 2.1) for a CHILD SA of `ike`; `None`
    /// when the table is full.
    fn allocate_child(&mut self, ike: IkeSaId) -> Option<u32>;

    /// Gives back an SPI whose CHILD SA was never installed.
    fn release_child(&mut self, spi_in: u32);

    /// Takes up an SPI that [`Host::allocate_child`] gave to an earlier process, whose exchange is
    /// still under way. That process may even have installed the SA and died before it could save
    /// that; [`Host::install_child`] is then called again with the same keys, and must go on with
    /// the sequence numbers that were used.
    fn claim_spi(&mut self, ike: IkeSaId, spi_in: u32);

    /// Takes up a pair that an earlier process installed; whether it is still there.
    fn claim_child(&mut self, claim: &ChildClaim<'_>) -> bool;

    /// Installs both directions. Called before the message that lets the peer use them is sent.
    ///
    /// # Errors
    /// When the data plane has no room; the SPI is then released by the endpoint.
    fn install_child(&mut self, sa: &ChildSa) -> Result<(), InstallError>;

    /// Lets outbound packets use a pair that was installed with `outbound` false.
    fn enable_outbound(&mut self, id: ChildId, spi_in: u32);

    /// Removes both directions of an installed pair, and with it the SPI.
    fn remove_child(&mut self, id: ChildId, spi_in: u32);

    /// From now on ESP and IKE of this peer go this way (RFC 9329, 6.1). Called only after an
    /// authentic new message, and only while the IKE SA has CHILD SAs or may get some.
    fn set_path(&mut self, ike: IkeSaId, path: &ChildPath);

    /// When the last authentic ESP packet of this peer came, where the data plane knows. Saves
    /// liveness checks (RFC 7296, 2.4).
    fn last_inbound(&mut self, ike: IkeSaId) -> Option<Instant>;

    /// When the last ESP packet was sent to this peer, where the data plane knows. Saves NAT
    /// keepalives (RFC 3948, 4).
    fn last_outbound(&mut self, ike: IkeSaId) -> Option<Instant>;
}

impl TransportChoice {
    /// Whether a peer on this transport may use a connection with this choice.
    pub(crate) fn allows(self, tcp: bool) -> bool {
        match self {
            Self::Udp => !tcp,
            Self::Tcp => tcp,
            Self::Auto => true,
        }
    }
}
