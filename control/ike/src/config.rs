//! What a host configures, in the terms of the protocol.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{Identity, IdentityPattern};
use crate::path::{IKE_PORT, NAT_T_PORT};
use crate::proposal::{EspProposal, IkeProposal};
use crate::ts::TrafficSelector;

/// Which transport an initiator uses. A responder answers on whatever it is asked on, but a
/// connection with [`TransportChoice::Udp`] is not offered to peers on TCP, nor the reverse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TransportChoice {
    /// UDP only.
    Udp,
    /// TCP only.
    Tcp,
    /// UDP first, TCP where UDP gets no answer (RFC 9329, 5.1).
    #[default]
    Auto,
}

/// Addresses that an end of a connection may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressMatch {
    /// `%any`.
    Any,
    /// One address.
    Address(IpAddr),
    /// All addresses of a network; the length is at most 32 for IPv4 and 128 for IPv6.
    Network(IpAddr, u8),
}

impl AddressMatch {
    /// Whether `address` is one of these.
    pub fn matches(&self, address: IpAddr) -> bool {
        match *self {
            Self::Any => true,
            Self::Address(own) => own == address,
            Self::Network(IpAddr::V4(net), len) => match address {
                IpAddr::V4(a) => {
                    let shift = 32 - u32::from(len.min(32));
                    u64::from(u32::from(net)) >> shift == u64::from(u32::from(a)) >> shift
                }
                IpAddr::V6(_) => false,
            },
            Self::Network(IpAddr::V6(net), len) => match address {
                IpAddr::V6(a) => {
                    let shift = 128 - u32::from(len.min(128));
                    shift == 128 || u128::from(net) >> shift == u128::from(a) >> shift
                }
                IpAddr::V4(_) => false,
            },
        }
    }

    /// The address, where this is exactly one.
    pub const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Any | Self::Network(..) => None,
        }
    }
}

/// When and how often a request is repeated over UDP (RFC 7296, 2.1).
///
/// The n-th repetition follows its predecessor after `timeout * base^n`; after `tries` repetitions
/// and one more wait the peer is given up. The defaults are strongSwan's: 4 s, 1.8, 5; in all
/// 165 s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retransmission {
    /// Wait before the first repetition.
    pub timeout: Duration,
    /// Factor of each next wait; values below 1 count as 1.
    pub base: f64,
    /// Number of repetitions, not counting the first transmission.
    pub tries: u32,
    /// Longest single wait.
    pub limit: Duration,
}

impl Default for Retransmission {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(4),
            base: 1.8,
            tries: 5,
            limit: Duration::from_secs(120),
        }
    }
}

impl Retransmission {
    /// The wait after transmission number `sent` (1 = the first).
    pub fn wait(&self, sent: u32) -> Duration {
        let exponent = i32::try_from(sent.saturating_sub(1)).unwrap_or(i32::MAX);
        let factor = self.base.max(1.0).powi(exponent);
        let seconds = (self.timeout.as_secs_f64() * factor).min(self.limit.as_secs_f64());
        Duration::try_from_secs_f64(seconds).unwrap_or(self.limit)
    }

    /// How long a peer has from the first transmission until it is given up.
    pub(crate) fn patience(&self) -> Duration {
        (1..=self.tries.saturating_add(1))
            .fold(Duration::ZERO, |sum, sent| sum.saturating_add(self.wait(sent)))
    }
}

/// How long an SA lives (swanctl's `rekey_time`, `over_time` and `rand_time`).
///
/// It is rekeyed `rekey_time` after its keys were made, less a random part of `rand_time`, so that
/// neither both ends nor many tunnels do so at once. If no rekey succeeds, the IKE SA is deleted
/// `over_time` after `rekey_time`, with all its CHILD SAs, whichever of them it was (RFC 7296, 2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// `None`: never; then it does not end by its age either.
    pub rekey_time: Option<Duration>,
    /// What is left for further attempts.
    pub over_time: Duration,
    /// Most by which a rekey may come early; all of `rekey_time` at most.
    pub rand_time: Duration,
}

impl Lifetime {
    /// strongSwan's for IKE SAs: four hours, and a tenth more.
    pub const IKE: Self = Self::tenths(Duration::from_secs(4 * 60 * 60));
    /// strongSwan's for CHILD SAs: one hour, and a tenth more.
    pub const CHILD: Self = Self::tenths(Duration::from_secs(60 * 60));
    /// No end.
    pub const UNLIMITED: Self =
        Self { rekey_time: None, over_time: Duration::ZERO, rand_time: Duration::ZERO };

    /// `rekey_time` with a tenth of it for `over_time` and `rand_time`, as swanctl defaults to.
    pub const fn tenths(rekey_time: Duration) -> Self {
        let Some(tenth) = rekey_time.checked_div(10) else { return Self::UNLIMITED };
        Self { rekey_time: Some(rekey_time), over_time: tenth, rand_time: tenth }
    }

    /// A lifetime that ends `life_time` after the keys were made and leaves an eleventh of it for
    /// attempts to rekey.
    pub const fn within(life_time: Duration) -> Self {
        let Some(part) = life_time.checked_div(11) else { return Self::UNLIMITED };
        Self::tenths(part.saturating_mul(10))
    }
}

/// How much an SA may carry; `None`: as much as its sequence numbers allow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Rekeyed after so much, less a random part of up to a tenth.
    pub rekey: Option<u64>,
    /// Deleted after so much.
    pub life: Option<u64>,
}

/// What becomes of the older IKE SAs of a peer when it is authenticated with a new one. swanctl's
/// `unique`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uniqueness {
    /// They stay, whatever the peer says: several gateways use the same identity. None of them says
    /// INITIAL_CONTACT, since it cannot know.
    Never,
    /// They stay, unless the peer says INITIAL_CONTACT (RFC 7296, 2.4).
    No,
    /// They go.
    #[default]
    Replace,
}

/// Whether long IKE messages go in fragments (RFC 7383). swanctl's `fragmentation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragmentation {
    /// Neither sent nor asked for.
    No,
    /// The peer is told that it may send some; this side sends none.
    Accept,
    /// In both directions, where the peer can put them together.
    #[default]
    Yes,
}

/// One connection: who talks to whom, and how. swanctl's `connections.<name>`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectionConfig {
    /// Name in tables and events.
    pub name: String,
    /// Addresses of this gateway. An initiator takes the first single one of the peer's family,
    /// else [`crate::Host::source_address`].
    pub local_addrs: Vec<AddressMatch>,
    /// Addresses of the peer. An initiator takes the first single one.
    pub remote_addrs: Vec<AddressMatch>,
    /// UDP port that an initiator sends from: 500, or 4500 to use the marker from the start.
    pub local_port: u16,
    /// UDP port that an initiator sends to: 500 or 4500, as above.
    pub remote_port: u16,
    /// TCP port that an initiator connects to.
    pub tcp_remote_port: u16,
    /// Transport of an initiator, and transports that a responder accepts.
    pub transport: TransportChoice,
    /// With [`TransportChoice::Auto`], how many transmissions of IKE_SA_INIT over UDP may stay
    /// without an answer before TCP is tried. At least 2 are made in any case, because UDP may lose
    /// one (RFC 9329, 5.1).
    pub fallback_after: u32,
    /// Encapsulate ESP in UDP even where no NAT is found.
    pub encap: bool,
    /// IKE proposals, best first. Never empty.
    pub proposals: Vec<IkeProposal>,
    /// This gateway's identity.
    pub local_id: Identity,
    /// Identities that the peer may have.
    pub remote_id: IdentityPattern,
    /// The CHILD SAs that may exist. An initiator sets up those it is asked for.
    pub children: Vec<Arc<ChildConfig>>,
    /// Repetitions over UDP.
    pub retransmission: Retransmission,
    /// How long an answer may take over TCP, where nothing is repeated (RFC 9329, 6.2), and how
    /// long a lost connection may stay lost while an answer is due.
    pub tcp_response_timeout: Duration,
    /// Check the peer's liveness when nothing authentic came from it for so long; `None`: never.
    pub dpd_delay: Option<Duration>,
    /// Offer to move the IKE SA to other addresses and transports (MOBIKE, RFC 4555).
    pub mobike: bool,
    /// With [`TransportChoice::Auto`] and MOBIKE, how long this gateway as initiator stays on TCP
    /// before it tries UDP again; `None`: it stays (RFC 9329, 7.1).
    pub udp_probe: Option<Duration>,
    /// All addresses of this gateway that a MOBIKE peer is told besides the one in use; at most 16 are.
    pub additional_addrs: Vec<IpAddr>,
    /// Whether long messages go in fragments (RFC 7383); only over UDP.
    pub fragmentation: Fragmentation,
    /// Longest IP datagram of a fragment, in octets, at least 256.
    pub fragment_size: u16,
    /// How long after authentication it is done anew, by a new IKE SA beside the old one. As responder
    /// this gateway tells it to the peer, and ends the IKE SA a minute after that (RFC 4478). `None`:
    /// never.
    pub reauth_time: Option<Duration>,
    /// When the IKE SA gets new keys, and when it ends without.
    pub lifetime: Lifetime,
    /// What becomes of other IKE SAs with the same two identities when a new one is authenticated.
    pub unique: Uniqueness,
}

impl ConnectionConfig {
    /// A connection with every default: both addresses `%any`, ports 500, transport `auto` with
    /// fallback after three transmissions, no children.
    pub fn new(name: &str, local_id: Identity, remote_id: IdentityPattern) -> Self {
        Self {
            name: name.to_owned(),
            local_addrs: vec![AddressMatch::Any],
            remote_addrs: vec![AddressMatch::Any],
            local_port: IKE_PORT,
            remote_port: IKE_PORT,
            tcp_remote_port: NAT_T_PORT,
            transport: TransportChoice::Auto,
            fallback_after: 3,
            encap: false,
            proposals: vec![IkeProposal::default()],
            local_id,
            remote_id,
            children: Vec::new(),
            retransmission: Retransmission::default(),
            tcp_response_timeout: Duration::from_secs(60),
            dpd_delay: None,
            mobike: true,
            udp_probe: Some(Duration::from_secs(600)),
            additional_addrs: Vec::new(),
            fragmentation: Fragmentation::Yes,
            fragment_size: 1280,
            reauth_time: None,
            lifetime: Lifetime::IKE,
            unique: Uniqueness::Replace,
        }
    }

    /// Longest IKE message that is not cut where the peer takes fragments: a datagram without the
    /// headers of IPv6 and UDP and the non-ESP marker.
    pub(crate) fn fragment_limit(&self) -> usize {
        usize::from(self.fragment_size.max(256)) - 40 - 8 - 4
    }

    /// Whether this connection may have these two addresses as its ends.
    pub fn covers(&self, local: IpAddr, remote: IpAddr) -> bool {
        self.local_addrs.iter().any(|a| a.matches(local))
            && self.remote_addrs.iter().any(|a| a.matches(remote))
    }
}

/// What the ESP packets of a CHILD SA hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ChildMode {
    /// Whole IP packets of the networks behind both gateways.
    #[default]
    Tunnel,
    /// What packets between the two ends of the IKE SA carry (RFC 4301, 4.1). Of
    /// [`ChildConfig::local_ts`] and [`ChildConfig::remote_ts`] that part counts which is at these
    /// two addresses.
    Transport,
}

/// One kind of CHILD SA. swanctl's `connections.<name>.children.<name>`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChildConfig {
    /// Name in tables and events.
    pub name: String,
    /// What its packets hold.
    pub mode: ChildMode,
    /// What lies behind this gateway. Never empty.
    pub local_ts: Vec<TrafficSelector>,
    /// What lies behind the peer. Never empty.
    pub remote_ts: Vec<TrafficSelector>,
    /// ESP proposals, best first. Never empty.
    pub proposals: Vec<EspProposal>,
    /// When a pair is rekeyed, and when it ends without.
    pub lifetime: Lifetime,
    /// Octets in either direction after which a pair is rekeyed or ended; see
    /// [`crate::Endpoint::child_used`].
    pub octets: Volume,
    /// Packets in either direction, likewise.
    pub packets: Volume,
}

impl ChildConfig {
    /// A child with every default: a tunnel, its own proposals, rekeyed every hour.
    pub fn new(
        name: &str,
        local_ts: Vec<TrafficSelector>,
        remote_ts: Vec<TrafficSelector>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            mode: ChildMode::Tunnel,
            local_ts,
            remote_ts,
            proposals: vec![EspProposal::default()],
            lifetime: Lifetime::CHILD,
            octets: Volume::default(),
            packets: Volume::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_match_their_addresses_and_no_others() {
        let net = AddressMatch::Network("10.1.0.0".parse().unwrap(), 16);
        assert!(net.matches("10.1.255.9".parse().unwrap()));
        assert!(!net.matches("10.2.0.1".parse().unwrap()));
        assert!(!net.matches("::1".parse().unwrap()));
        let all4 = AddressMatch::Network("0.0.0.0".parse().unwrap(), 0);
        assert!(all4.matches("203.0.113.1".parse().unwrap()));
        let all6 = AddressMatch::Network("::".parse().unwrap(), 0);
        assert!(all6.matches("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn waits_grow_as_swanctl_documents() {
        // strongSwan's table for 4.0, 1.8, 5: 4, 7, 13, 23, 42, 76 s.
        let waits: Vec<u64> = (1..=6)
            .map(|n| Retransmission::default().wait(n).as_secs_f64().round() as u64)
            .collect();
        assert_eq!(waits, [4, 7, 13, 23, 42, 76]);
        let eager = Retransmission { base: 1e300, ..Retransmission::default() };
        assert_eq!(eager.wait(40), eager.limit, "an absurd base ends at the limit");
    }
}
