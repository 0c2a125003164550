//! `[connections.<name>]`, checked.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    AddressMatch, ConnectionConfig, Fragmentation, Identity, IdentityPattern, IkeProposal,
    Lifetime, Retransmission, TransportChoice, Uniqueness,
};
use culvert_shm::Dscp;
use serde_spanned::Spanned;

use super::check::{Checker, LIST_MAX};
use super::secret::Secrets;
use super::section::{ConnectionSection, FragmentationSection, TransportSection, UniqueSection};
use super::values::{self, Time};
use super::{CONNECTIONS_MAX, Connection};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// Bounds of the time after which keys are renewed or a peer is authenticated anew.
pub(super) const REKEY_TIME: RangeInclusive<Duration> = SECOND..=DAY.saturating_mul(365);
/// Bounds of what may be added to it or taken off.
pub(super) const MARGIN: RangeInclusive<Duration> = Duration::ZERO..=DAY.saturating_mul(365);
/// Bounds of the time after which a silent peer is asked whether it lives.
const DPD_DELAY: RangeInclusive<Duration> = SECOND..=DAY;
/// That time when the file does not say.
const DPD_DELAY_DEFAULT: Duration = Duration::from_secs(30);
/// Bounds of the time after which UDP is tried again from TCP.
const UDP_PROBE: RangeInclusive<Duration> = Duration::from_secs(10)..=DAY;
/// Bounds of the time that an answer over TCP may take.
const TCP_RESPONSE: RangeInclusive<Duration> = SECOND..=Duration::from_secs(600);
/// Bounds of the IP datagrams that fragments of IKE messages go in (RFC 7383, 2.5.1).
const FRAGMENT_SIZE: RangeInclusive<u64> = 576..=9000;
/// Most further addresses that a peer is told (RFC 4555, 3.4).
const ADDITIONAL_ADDRS_MAX: usize = 16;
/// Most attempts in a row that can be asked for.
const KEYINGTRIES_MAX: u64 = 1_000_000;

impl Checker<'_> {
    pub(super) fn connections(
        &mut self,
        sections: &BTreeMap<String, Spanned<ConnectionSection>>,
        secrets: &Secrets,
    ) -> BTreeMap<String, Connection> {
        if sections.len() > CONNECTIONS_MAX {
            self.problem(&(0..0), format!("more than {CONNECTIONS_MAX} connections"));
            return BTreeMap::new();
        }
        let check = |(name, section): (&String, &Spanned<ConnectionSection>)| {
            self.name("connection", name, &section.span());
            Some((name.clone(), self.connection(name, section, secrets)?))
        };
        sections.iter().filter_map(check).collect()
    }

    fn connection(
        &mut self,
        name: &str,
        place: &Spanned<ConnectionSection>,
        secrets: &Secrets,
    ) -> Option<Connection> {
        let section = place.get_ref();
        let (local_id, remote_id) = self.identities(section, secrets)?;
        let mut ike = ConnectionConfig::new(name, local_id, remote_id);
        ike.local_addrs = self.addresses(section.local_addrs.as_deref(), true);
        ike.remote_addrs = self.addresses(section.remote_addrs.as_deref(), false);
        ike.retransmission = self.retransmission(section);
        self.ways(section, &mut ike);
        if let Some(proposals) = &section.proposals {
            ike.proposals = self.list::<IkeProposal>("proposals", proposals, LIST_MAX);
        }
        let response = section.tcp_response_timeout.as_ref();
        ike.tcp_response_timeout =
            self.time("tcp_response_timeout", response, TCP_RESPONSE, ike.tcp_response_timeout);
        self.lifetimes(section, &mut ike);
        ike.unique = match section.unique {
            None | Some(UniqueSection::Replace) => Uniqueness::Replace,
            Some(UniqueSection::No) => Uniqueness::No,
            Some(UniqueSection::Never) => Uniqueness::Never,
        };
        let keyingtries = section.keyingtries.as_ref();
        let keyingtries = self.number("keyingtries", keyingtries, 0..=KEYINGTRIES_MAX, 0);
        let children = self.children(place, &mut ike);
        let keyingtries = u32::try_from(keyingtries).ok().filter(|tries| *tries > 0);
        let (tcp_congestion, dscp) = (section.tcp_congestion, self.dscp(section));
        Some(Connection { ike: Arc::new(ike), children, tcp_congestion, dscp, keyingtries })
    }

    /// The one service level of all its packets (RFC 9329, 6.8 and 9.3).
    fn dscp(&mut self, section: &ConnectionSection) -> Option<Dscp> {
        let text = section.dscp.as_ref()?;
        let dscp = values::dscp(text.get_ref());
        if dscp.is_none() {
            let reason = "dscp is written in six binary digits, as in \"101110\"";
            self.problem(&text.span(), reason);
        }
        dscp
    }

    /// Ports, transports, and what changes between them.
    fn ways(&mut self, section: &ConnectionSection, ike: &mut ConnectionConfig) {
        ike.local_port = self.port("local_port", section.local_port.as_ref(), ike.local_port);
        ike.remote_port = self.port("remote_port", section.remote_port.as_ref(), ike.remote_port);
        let tcp_port = section.tcp_remote_port.as_ref();
        ike.tcp_remote_port = self.port("tcp_remote_port", tcp_port, ike.tcp_remote_port);
        ike.transport = match section.transport.unwrap_or(TransportSection::Auto) {
            TransportSection::Udp => TransportChoice::Udp,
            TransportSection::Tcp => TransportChoice::Tcp,
            TransportSection::Auto => TransportChoice::Auto,
        };
        ike.fallback_after = self.fallback_after(section, ike);
        ike.encap = section.encap.unwrap_or(ike.encap);
        ike.mobike = section.mobike.unwrap_or(ike.mobike);
        ike.additional_addrs = self.additional_addresses(section);
        let probe = section.udp_probe.as_ref();
        ike.udp_probe = self.time_or_never("udp_probe", probe, UDP_PROBE, ike.udp_probe);
        ike.fragmentation = match section.fragmentation {
            None | Some(FragmentationSection::Yes) => Fragmentation::Yes,
            Some(FragmentationSection::Accept) => Fragmentation::Accept,
            Some(FragmentationSection::No) => Fragmentation::No,
        };
        let size = section.fragment_size.as_ref();
        let size = self.number("fragment_size", size, FRAGMENT_SIZE, ike.fragment_size.into());
        ike.fragment_size = u16::try_from(size).unwrap_or(ike.fragment_size);
    }

    /// After how many transmissions over UDP it goes on over TCP, before the attempt ends.
    fn fallback_after(&mut self, section: &ConnectionSection, ike: &ConnectionConfig) -> u32 {
        let transmissions = ike.retransmission.tries.saturating_add(1);
        let default = ike.fallback_after.min(transmissions);
        let value = section.fallback_after.as_ref();
        // RFC 9329, 5.1: at least two, because UDP may lose one.
        let fallback = self.number("fallback_after", value, 2..=20, default.into());
        let fallback = u32::try_from(fallback).unwrap_or(default);
        if let Some(value) = value.filter(|_| fallback > transmissions)
            && ike.transport == TransportChoice::Auto
        {
            let reason = "fallback_after must be at most retransmit_tries + 1: the attempt would end \
                          before TCP is tried";
            self.problem(&value.span(), reason);
        }
        fallback
    }

    /// When keys and authentication are renewed, and when the peer is asked whether it lives.
    fn lifetimes(&mut self, section: &ConnectionSection, ike: &mut ConnectionConfig) {
        let rekey_time = section.rekey_time.as_ref();
        let default = ike.lifetime.rekey_time;
        let rekey_time = self.time_or_never("rekey_time", rekey_time, REKEY_TIME, default);
        let reauth_time = section.reauth_time.as_ref();
        ike.reauth_time = self.time_or_never("reauth_time", reauth_time, REKEY_TIME, None);
        // As in swanctl: a tenth of what comes later, and as much for the random part.
        let later = rekey_time.max(ike.reauth_time).unwrap_or_default();
        let over_time = self.time("over_time", section.over_time.as_ref(), MARGIN, later / 10);
        if let Some(place) = section.over_time.as_ref().filter(|_| over_time.is_zero())
            && rekey_time.is_some()
        {
            let reason = "over_time must not be 0: the IKE SA would end when it is to be rekeyed";
            self.problem(&place.span(), reason);
        }
        let rand_time = self.time("rand_time", section.rand_time.as_ref(), MARGIN, over_time);
        self.random_part(section.rand_time.as_ref(), rekey_time);
        ike.lifetime = Lifetime { rekey_time, over_time, rand_time };
        let dpd = section.dpd_delay.as_ref();
        ike.dpd_delay = self.time_or_never("dpd_delay", dpd, DPD_DELAY, Some(DPD_DELAY_DEFAULT));
    }

    /// `rand_time` is taken off `rekey_time`, so it cannot be more.
    pub(super) fn random_part(
        &mut self,
        rand_time: Option<&Spanned<Time>>,
        rekey_time: Option<Duration>,
    ) {
        let Some(rand_time) = rand_time else { return };
        if rekey_time.is_some_and(|rekey_time| rand_time.get_ref().0 > rekey_time) {
            self.problem(&rand_time.span(), "rand_time must not be longer than rekey_time");
        }
    }

    fn identities(
        &mut self,
        section: &ConnectionSection,
        secrets: &Secrets,
    ) -> Option<(Identity, IdentityPattern)> {
        let (local, remote) = (&section.local.id, &section.remote.id);
        let local_id = self.parsed(&local.span(), local.get_ref().parse::<Identity>());
        let remote_id = self.parsed(&remote.span(), remote.get_ref().parse::<IdentityPattern>());
        let (local_id, remote_id) = (local_id?, remote_id?);
        if !secrets.covers(&local_id, &remote_id) {
            let reason = format!(
                "no pre-shared key belongs to {remote_id} or {local_id}: add a section \
                 [secrets.<name>] with id = [\"{remote_id}\"] and a secret"
            );
            self.problem(&remote.span(), reason);
        }
        Some((local_id, remote_id))
    }

    fn addresses(&mut self, values: Option<&[Spanned<String>]>, own: bool) -> Vec<AddressMatch> {
        let Some(values) = values else { return vec![AddressMatch::Any] };
        if let Some(value) = values.get(LIST_MAX) {
            self.problem(&value.span(), format!("more than {LIST_MAX} addresses"));
        }
        let parse = |value: &Spanned<String>| {
            let text = value.get_ref();
            let Some(address) = address(text) else {
                let reason =
                    format!("{text:?} is not %any, an address or a network such as 192.0.2.0/24");
                self.problem(&value.span(), reason);
                return None;
            };
            self.owned(value, &address, own);
            Some(address)
        };
        let list: Vec<AddressMatch> = values.iter().filter_map(parse).collect();
        if list.is_empty() { vec![AddressMatch::Any] } else { list }
    }

    /// What a MOBIKE peer is told besides (RFC 4555, 3.4): own addresses.
    fn additional_addresses(&mut self, section: &ConnectionSection) -> Vec<IpAddr> {
        let Some(values) = &section.additional_addrs else { return Vec::new() };
        if values.get_ref().is_empty() {
            return Vec::new();
        }
        let list = self.list::<IpAddr>("additional_addrs", values, ADDITIONAL_ADDRS_MAX);
        for (value, address) in values.get_ref().iter().zip(&list) {
            self.owned(value, &AddressMatch::Address(*address), true);
        }
        list
    }

    /// An own address must be one of the outer side's; a peer's must not be.
    fn owned(&mut self, value: &Spanned<String>, address: &AddressMatch, own: bool) {
        let Some(dataplane) = self.dataplane else { return };
        let is_own = dataplane.outer.addresses.iter().any(|other| address.matches(other.address()));
        let text = value.get_ref();
        let reason = match address {
            AddressMatch::Network(..) if own && !is_own => {
                format!("no address in [dataplane.outer] is in {text}")
            }
            AddressMatch::Address(address) if own && !is_own => {
                format!("{address} is not one of the addresses in [dataplane.outer]")
            }
            AddressMatch::Address(address) if !own && is_own => {
                format!("{address} is this gateway's own address")
            }
            AddressMatch::Address(address) if !own && !is_host(*address) => {
                format!("{address} is not an address of a host")
            }
            _ => return,
        };
        self.problem(&value.span(), reason);
    }

    fn retransmission(&mut self, section: &ConnectionSection) -> Retransmission {
        let mut retransmission = Retransmission::default();
        let default_ms = u64::try_from(retransmission.timeout.as_millis()).unwrap_or(u64::MAX);
        let timeout = section.retransmit_timeout_ms.as_ref();
        let timeout = self.number("retransmit_timeout_ms", timeout, 100..=60_000, default_ms);
        retransmission.timeout = Duration::from_millis(timeout);
        let tries = section.retransmit_tries.as_ref();
        let tries = self.number("retransmit_tries", tries, 1..=20, retransmission.tries.into());
        retransmission.tries = u32::try_from(tries).unwrap_or(retransmission.tries);
        retransmission
    }
}

/// Whether a peer can have this address.
fn is_host(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || is_broadcast)
}

/// `%any`, an address, or a network.
fn address(text: &str) -> Option<AddressMatch> {
    if text == "%any" {
        return Some(AddressMatch::Any);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(AddressMatch::Address(address));
    }
    let network = text.parse::<culvert_dataplane_config::Network>().ok()?;
    Some(AddressMatch::Network(network.address(), network.prefix_len()))
}
