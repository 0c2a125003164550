//! The two sides of the gateway and the ports that they are on.
//!
//! The outer side faces the Internet, the inner one the protected network. Each has addresses,
//! routes and an MTU; both may be on the same port ("one-armed"). Numbers of ports are indices
//! into the worker's list of them, 0 being the outer side's.

use culvert_dataplane_config as config;
use culvert_dpdk::{Burst, Offloads};

use super::link::Link;
use super::waiting::Waiting;
use crate::net::ether::MacAddr;
use crate::net::neighbour::{NeighbourCache, TooManyGateways};
use crate::net::prefix::{OwnAddresses, OwnAddressesError, Prefix, PrefixError};
use crate::net::route::{Route, RouteError, RouteTable, Via};

/// The outer side's port.
pub(crate) const OUTER_PORT: usize = 0;

/// Neighbours that a worker remembers beside its gateways.
const NEIGHBOURS: usize = 4096;

/// A port of a worker: its queues and what is known of the device.
#[derive(Debug)]
pub struct PortParts<L> {
    /// The worker's queues.
    pub link: L,
    /// The port's Ethernet address.
    pub mac: [u8; 6],
    /// What the device computes.
    pub offloads: Offloads,
    /// Most mbufs of a packet that the device takes.
    pub tx_segments_max: u16,
}

/// A port in use.
pub(crate) struct Port<L> {
    pub(crate) link: L,
    pub(crate) mac: MacAddr,
    /// Frames to be sent at the end of the batch.
    pub(crate) out: Burst,
}

/// One side of the gateway.
pub(crate) struct Side {
    pub(crate) own: OwnAddresses,
    pub(crate) routes: RouteTable,
    /// Largest IP packet, octets.
    pub(crate) mtu: usize,
    /// Index of its port.
    pub(crate) port: usize,
}

/// The configuration gives a side that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An address.
    #[error(transparent)]
    Address(#[from] OwnAddressesError),
    /// A prefix.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// A route.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// Gateways.
    #[error(transparent)]
    Gateways(#[from] TooManyGateways),
}

/// Both sides, their ports, and the neighbours on their links.
pub(crate) struct Network<L> {
    /// One or two.
    pub(crate) ports: Vec<Port<L>>,
    pub(crate) outer: Side,
    pub(crate) inner: Side,
    pub(crate) neighbours: NeighbourCache,
    pub(crate) waiting: Waiting,
}

impl<L: Link> Network<L> {
    /// Without an `inner` port the inner side is on the outer one.
    pub(crate) fn new(
        dataplane: &config::Dataplane,
        outer: PortParts<L>,
        inner: Option<PortParts<L>>,
        seed: [u8; 16],
    ) -> Result<Self, NetworkError> {
        let inner_port = if inner.is_some() { OUTER_PORT + 1 } else { OUTER_PORT };
        let outer_side = Side::new(&dataplane.outer, OUTER_PORT)?;
        let inner_side = Side::new(&dataplane.inner, inner_port)?;
        let gateways = outer_side.routes.gateways().chain(inner_side.routes.gateways());
        let neighbours = NeighbourCache::new(NEIGHBOURS, gateways, seed)?;
        Ok(Self {
            ports: [Some(outer), inner].into_iter().flatten().map(Port::new).collect(),
            outer: outer_side,
            inner: inner_side,
            neighbours,
            waiting: Waiting::default(),
        })
    }

    /// The sides on a port.
    pub(crate) fn sides_on(&self, port: usize) -> impl Iterator<Item = &Side> {
        [&self.outer, &self.inner].into_iter().filter(move |side| side.port == port)
    }
}

impl<L> Port<L> {
    fn new(parts: PortParts<L>) -> Self {
        let PortParts { link, mac, .. } = parts;
        Self { link, mac: MacAddr(mac), out: Burst::new() }
    }
}

impl Side {
    fn new(side: &config::Side, port: usize) -> Result<Self, NetworkError> {
        let addresses: Vec<_> =
            side.addresses.iter().map(|own| (own.address(), own.prefix_len())).collect();
        let own = OwnAddresses::new(&addresses)?;
        let port_number = port as u8;
        let route = |to, via| Route { to, via, port: port_number };
        let mut routes: Vec<Route> =
            own.prefixes().map(|prefix| route(prefix, Via::Connected)).collect();
        for entry in &side.routes {
            let to = Prefix::new(entry.to.address(), entry.to.prefix_len())?;
            routes.push(route(to, Via::Gateway(entry.via)));
        }
        for &gateway in &side.gateways {
            let everything = match gateway {
                std::net::IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
                std::net::IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            routes.push(route(Prefix::new(everything, 0)?, Via::Gateway(gateway)));
        }
        let routes = RouteTable::build(&routes)?;
        Ok(Self { own, routes, mtu: usize::from(side.mtu), port })
    }
}
