//! Turns the section into checked settings. Every value has bounds, and every mistake is reported,
//! not only the first: a `None` of a helper means that it has already noted one.

use std::{
    net::IpAddr,
    ops::{Range, RangeInclusive},
    str::FromStr,
};

use serde_spanned::Spanned;

use crate::{
    ADDRESSES_MAX, Aead, Congestion, Dataplane, IKE_NATT_PORT, InterfaceAddress, MTU_MAX, Network,
    Poll, Problems, REPLAY_WINDOW_MAX, ROUTES_MAX, Route, SAS_MAX, Section, Side, SideSection,
    Source, TCP_CONNECTIONS_MAX, TCP_PORTS_MAX, WORKERS_MAX, section::RouteSection,
};

/// Packet memory, in MiB: enough for the descriptors of one queue, up to 1 TiB.
const MEMORY_MIB: RangeInclusive<u32> = 64..=1 << 20;
const MEMORY_MIB_DEFAULT: u32 = 256;
/// DPDK as Debian builds it numbers its cores below this (`RTE_MAX_LCORE`).
const LCORE_MAX: u16 = 127;
const TCP_CONNECTIONS_DEFAULT: u32 = 10_240;
const TCP_MEMORY_MIB_DEFAULT: u32 = 1024;
const REPLAY_WINDOW_DEFAULT: u32 = 1024;
const SAS: RangeInclusive<u32> = 16..=SAS_MAX;
const SAS_DEFAULT: u32 = 16_384;
const POLICIES: RangeInclusive<u32> = 16..=1 << 20;
/// Policies for each SA pair when the file does not say: a few selectors of a few prefixes.
const POLICIES_OF_SA: u32 = 4;
/// A ring must hold the largest IKE message (65,535 octets) more than once.
const RING_KIB: RangeInclusive<u32> = 256..=65_536;
const RING_KIB_DEFAULT: u32 = 1024;
const MTU_DEFAULT: u16 = 1500;
/// Every IPv4 link takes this (RFC 791, 3.1).
const MTU_MIN_V4: u16 = 576;
/// Every IPv6 link takes this (RFC 8200, 5).
const MTU_MIN_V6: u16 = 1280;

/// Where problems go while a section is checked.
struct Checker<'a> {
    source: &'a Source,
    problems: &'a mut Problems,
}

/// Policies for a table of so many SA pairs, where the file does not say.
pub(crate) fn policies_default(sas: u32) -> u32 {
    (sas * POLICIES_OF_SA).min(*POLICIES.end())
}

impl Section {
    /// Checks every value and notes each mistake; `None` when there was one.
    pub fn check(&self, source: &Source, problems: &mut Problems) -> Option<Dataplane> {
        let mut checker = Checker { source, problems };
        let before = checker.problems.clone();
        let checked = checker.dataplane(self);
        checked.filter(|_| *checker.problems == before)
    }
}

impl Checker<'_> {
    fn dataplane(&mut self, section: &Section) -> Option<Dataplane> {
        let sas = self.power_of_two("sas", section.sas.as_ref(), SAS, SAS_DEFAULT);
        let policies = policies_default(sas.unwrap_or(SAS_DEFAULT));
        let policies = self.number("policies", section.policies.as_ref(), POLICIES, policies);
        let peers = section.peers.as_ref();
        let peers = self.number("peers", peers, SAS, sas.unwrap_or(SAS_DEFAULT));
        let connections = section.tcp_connections.as_ref();
        let connections = self.number(
            "tcp_connections",
            connections,
            1..=TCP_CONNECTIONS_MAX,
            TCP_CONNECTIONS_DEFAULT,
        );
        let memory = section.memory_mib.as_ref();
        let memory = self.number("memory_mib", memory, MEMORY_MIB, MEMORY_MIB_DEFAULT);
        let tcp_memory = section.tcp_memory_mib.as_ref();
        let tcp_memory =
            self.number("tcp_memory_mib", tcp_memory, MEMORY_MIB, TCP_MEMORY_MIB_DEFAULT);
        let ring =
            self.power_of_two("ring_kib", section.ring_kib.as_ref(), RING_KIB, RING_KIB_DEFAULT);
        let window = self.replay_window(section.replay_window.as_ref());
        let lcores = self.lcores(section.lcores.as_deref().unwrap_or_default());
        let tcp_ports = self.tcp_ports(section.tcp_ports.as_ref());
        let outer_device = self.outer_device(&section.outer);
        let inner_device = self.inner_device(section.inner.get_ref(), outer_device.as_deref());
        let outer = self.side("outer", section.outer.get_ref());
        let inner = self.side("inner", section.inner.get_ref());
        self.apart(section);
        Some(Dataplane {
            lcores: lcores?,
            hugepages: section.hugepages.unwrap_or(false),
            memory_mib: memory?,
            poll: section.poll.unwrap_or(Poll::Busy),
            aead: section.aead.unwrap_or(Aead::Auto),
            tcp_ports: tcp_ports?,
            tcp_connections: connections?,
            tcp_congestion: section.tcp_congestion.unwrap_or(Congestion::Bbr),
            tcp_memory_mib: tcp_memory?,
            replay_window: window?,
            sas: sas?,
            policies: policies?,
            peers: peers?,
            ring_kib: ring?,
            outer_device: outer_device?,
            inner_device,
            outer: outer?,
            inner: inner?,
        })
    }

    fn problem(&mut self, span: &Range<usize>, reason: impl Into<String>) {
        self.problems.add(self.source, span, reason);
    }

    fn number(
        &mut self,
        key: &str,
        value: Option<&Spanned<u64>>,
        allowed: RangeInclusive<u32>,
        default: u32,
    ) -> Option<u32> {
        let Some(value) = value else { return Some(default) };
        let number = u32::try_from(*value.get_ref()).ok().filter(|number| allowed.contains(number));
        if number.is_none() {
            let (low, high) = allowed.into_inner();
            self.problem(&value.span(), format!("{key} must be between {low} and {high}"));
        }
        number
    }

    fn power_of_two(
        &mut self,
        key: &str,
        value: Option<&Spanned<u64>>,
        allowed: RangeInclusive<u32>,
        default: u32,
    ) -> Option<u32> {
        let number = self.number(key, value, allowed, default)?;
        if let Some(value) = value.filter(|_| !number.is_power_of_two()) {
            let next = number.next_power_of_two();
            let reason = format!("{key} must be a power of two: {} or {next}", next / 2);
            self.problem(&value.span(), reason);
        }
        Some(number)
    }

    fn replay_window(&mut self, value: Option<&Spanned<u64>>) -> Option<u32> {
        let allowed = 64..=REPLAY_WINDOW_MAX;
        let window = self.number("replay_window", value, allowed, REPLAY_WINDOW_DEFAULT)?;
        if let Some(value) = value.filter(|_| window % 64 != 0) {
            self.problem(&value.span(), "replay_window must be a multiple of 64");
        }
        Some(window)
    }

    fn lcores(&mut self, values: &[Spanned<u64>]) -> Option<Vec<u16>> {
        let mut lcores = Vec::new();
        for value in values {
            match u16::try_from(*value.get_ref()) {
                Ok(lcore) if lcores.contains(&lcore) => {
                    self.problem(&value.span(), format!("lcore {lcore} is named twice"));
                }
                Ok(lcore) if lcore <= LCORE_MAX => lcores.push(lcore),
                _ => self.problem(&value.span(), format!("an lcore is at most {LCORE_MAX}")),
            }
        }
        if let Some(value) = values.get(WORKERS_MAX) {
            self.problem(&value.span(), format!("more than {WORKERS_MAX} lcores"));
            return None;
        }
        Some(lcores)
    }

    fn tcp_ports(&mut self, values: Option<&Spanned<Vec<Spanned<u64>>>>) -> Option<Vec<u16>> {
        let mut ports = vec![];
        let listed = values.map(|values| values.get_ref().as_slice()).unwrap_or_default();
        for value in listed {
            match u16::try_from(*value.get_ref()) {
                Ok(port) if ports.contains(&port) => {
                    self.problem(&value.span(), format!("TCP port {port} is named twice"));
                }
                Ok(port) if port != 0 => ports.push(port),
                _ => self.problem(&value.span(), "a TCP port is between 1 and 65535"),
            }
        }
        if !ports.contains(&IKE_NATT_PORT) {
            ports.push(IKE_NATT_PORT);
        }
        if let Some(values) = values.filter(|_| ports.len() > TCP_PORTS_MAX) {
            let reason = format!("more than {TCP_PORTS_MAX} TCP ports, 4500 included");
            self.problem(&values.span(), reason);
        }
        ports.sort_unstable();
        Some(ports)
    }

    fn outer_device(&mut self, outer: &Spanned<SideSection>) -> Option<String> {
        match &outer.get_ref().device {
            Some(device) => self.device(device),
            None => {
                let reason = "the outer side needs a device, as in \
                              device = \"net_af_packet0,iface=eth0\" or \"0000:03:00.0\"";
                self.problem(&outer.span(), reason);
                None
            }
        }
    }

    /// The inner device, unless it is the outer one.
    fn inner_device(&mut self, inner: &SideSection, outer: Option<&str>) -> Option<String> {
        self.device(inner.device.as_ref()?).filter(|device| Some(device.as_str()) != outer)
    }

    fn device(&mut self, device: &Spanned<String>) -> Option<String> {
        let name = device.get_ref();
        // EAL takes devargs as one word of its command line.
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            self.problem(&device.span(), "a device is one word of DPDK devargs");
            return None;
        }
        Some(name.clone())
    }

    fn side(&mut self, name: &str, section: &SideSection) -> Option<Side> {
        let addresses = self.addresses(name, section);
        let mut side = Side {
            mtu: self.mtu(section.mtu.as_ref(), &addresses).unwrap_or(MTU_DEFAULT),
            addresses,
            gateways: Vec::new(),
            routes: Vec::new(),
        };
        for gateway in section.gateways.iter().flatten() {
            let Some(address) = self.next_hop(name, gateway, &side) else { continue };
            if side.gateways.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                let reason = "more than one gateway of the same address family";
                self.problem(&gateway.span(), reason);
            }
            side.gateways.push(address);
        }
        if let Some(routes) = &section.routes {
            if routes.get_ref().len() > ROUTES_MAX {
                self.problem(&routes.span(), format!("more than {ROUTES_MAX} routes"));
                return None;
            }
            for route in routes.get_ref() {
                self.route(name, route, &mut side);
            }
        }
        Some(side)
    }

    fn addresses(&mut self, name: &str, section: &SideSection) -> Vec<InterfaceAddress> {
        let mut addresses: Vec<InterfaceAddress> = Vec::new();
        let listed = section.addresses.get_ref();
        if listed.is_empty() || listed.len() > ADDRESSES_MAX {
            let reason = format!("the {name} side needs 1 to {ADDRESSES_MAX} addresses");
            self.problem(&section.addresses.span(), reason);
            return addresses;
        }
        for value in listed {
            let Some(address) = self.parse::<InterfaceAddress>(value) else { continue };
            let ip = address.address();
            if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
                let reason = format!("{ip} is not an address of a host");
                self.problem(&value.span(), reason);
            } else if addresses.iter().any(|other| other.address() == ip) {
                self.problem(&value.span(), format!("{ip} is named twice"));
            } else {
                addresses.push(address);
            }
        }
        addresses
    }

    fn mtu(&mut self, value: Option<&Spanned<u64>>, addresses: &[InterfaceAddress]) -> Option<u16> {
        let has_v6 = addresses.iter().any(|address| address.address().is_ipv6());
        let min = if has_v6 { MTU_MIN_V6 } else { MTU_MIN_V4 };
        let allowed = u32::from(min)..=u32::from(MTU_MAX);
        let mtu = self.number("mtu", value, allowed, MTU_DEFAULT.into())?;
        u16::try_from(mtu).ok()
    }

    fn route(&mut self, name: &str, section: &RouteSection, side: &mut Side) {
        let to = self.parse::<Network>(&section.to);
        let via = self.next_hop(name, &section.via, side);
        let (Some(to), Some(via)) = (to, via) else { return };
        if to.address().is_ipv4() != via.is_ipv4() {
            let reason = format!("{to} and {via} are not of the same address family");
            self.problem(&section.via.span(), reason);
        } else if side.routes.iter().any(|other| other.to == to) {
            self.problem(&section.to.span(), format!("there are two routes to {to}"));
        } else {
            side.routes.push(Route { to, via });
        }
    }

    /// A router: on-link on this side and not the gateway itself.
    fn next_hop(&mut self, name: &str, value: &Spanned<String>, side: &Side) -> Option<IpAddr> {
        let Ok(hop) = value.get_ref().parse::<IpAddr>() else {
            let reason = format!("{:?} is not an IPv4 or IPv6 address", value.get_ref());
            self.problem(&value.span(), reason);
            return None;
        };
        if side.addresses.iter().any(|own| own.address() == hop) {
            self.problem(&value.span(), format!("{hop} is this gateway's own address"));
            return None;
        }
        if side.on_link(hop).is_none() {
            let reason = format!("{hop} is in no network of the {name} side's addresses");
            self.problem(&value.span(), reason);
            return None;
        }
        Some(hop)
    }

    /// No address may belong to both sides: which port would answer for it?
    fn apart(&mut self, section: &Section) {
        let own = |side: &Spanned<SideSection>| {
            let listed = side.get_ref().addresses.get_ref().clone();
            listed.into_iter().filter_map(|value| {
                let address = value.get_ref().parse::<InterfaceAddress>().ok()?;
                Some((address.address(), value.span()))
            })
        };
        let outer: Vec<IpAddr> = own(&section.outer).map(|(address, _)| address).collect();
        for (address, span) in own(&section.inner) {
            if outer.contains(&address) {
                self.problem(&span, format!("{address} is also an address of the outer side"));
            }
        }
    }

    fn parse<T: FromStr<Err = crate::AddressError>>(
        &mut self,
        value: &Spanned<String>,
    ) -> Option<T> {
        match value.get_ref().parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.problem(&value.span(), format!("{:?} {error}", value.get_ref()));
                None
            }
        }
    }
}
