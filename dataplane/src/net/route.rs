//! Next hops: longest-prefix match over connected prefixes and routes.
//!
//! Prefixes nest or are disjoint, so a table of `n` of them cuts a family's addresses into at most
//! `2n + 1` intervals with one answer each. They are computed once; a lookup is a binary search:
//! ten steps for a few hundred routes, no pointer to chase. A table is never changed, only
//! replaced.

use super::prefix::Prefix;
use std::net::IpAddr;

/// Routes of one table.
pub const ROUTES_MAX: usize = 1024;

/// How a route reaches its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// They are on the link.
    Connected,
    /// Through a router that is on the link.
    Gateway(IpAddr),
}

/// One route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destinations.
    pub to: Prefix,
    /// How to reach them.
    pub via: Via,
    /// The caller's number of the port (side) that it leaves by.
    pub port: u8,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The neighbour to resolve: the gateway, or the destination itself.
    pub neighbour: IpAddr,
    /// The port it leaves by.
    pub port: u8,
}

/// Why a table cannot be built: the configuration is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Too many routes.
    #[error("{0} routes: at most {ROUTES_MAX} are possible")]
    TooMany(usize),
    /// A gateway that cannot be reached.
    #[error(
        "gateway {gateway} of route {to} is in no connected prefix of its port: \
             give an address that is on the link"
    )]
    GatewayNotConnected {
        /// The route's destinations.
        to: Prefix,
        /// Its gateway.
        gateway: IpAddr,
    },
    /// Two routes to the same destinations that differ.
    #[error("two different routes to {0}: remove one")]
    Ambiguous(Prefix),
}

/// Intervals of one family: each start has the answer up to the next start.
type Intervals<A> = Box<[(A, Option<u16>)]>;

/// An immutable routing table of both families.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Box<[Route]>,
    v4: Intervals<u32>,
    v6: Intervals<u128>,
}

impl RouteTable {
    /// Builds a table. Repeated connected prefixes (two own addresses on one link) are one.
    ///
    /// # Errors
    /// [`RouteError`].
    pub fn build(routes: &[Route]) -> Result<Self, RouteError> {
        if routes.len() > ROUTES_MAX {
            return Err(RouteError::TooMany(routes.len()));
        }
        for (position, route) in routes.iter().enumerate() {
            check_gateway(route, routes)?;
            let earlier = &routes[..position];
            if earlier.iter().any(|other| other.to == route.to && other != route) {
                return Err(RouteError::Ambiguous(route.to));
            }
        }
        Ok(Self {
            routes: routes.into(),
            v4: intervals(routes, |address| match address {
                IpAddr::V4(v4) => Some(v4.to_bits()),
                IpAddr::V6(_) => None,
            }),
            v6: intervals(routes, |address| match address {
                IpAddr::V4(_) => None,
                IpAddr::V6(v6) => Some(v6.to_bits()),
            }),
        })
    }

    /// The next hop of the longest prefix that `destination` is in.
    #[inline]
    pub fn lookup(&self, destination: IpAddr) -> Option<NextHop> {
        let index = match destination {
            IpAddr::V4(v4) => find(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => find(&self.v6, v6.to_bits()),
        }?;
        let route = self.routes.get(usize::from(index))?;
        let neighbour = match route.via {
            Via::Connected => destination,
            Via::Gateway(gateway) => gateway,
        };
        Some(NextHop { neighbour, port: route.port })
    }

    /// The gateways, each once for every route: neighbours to be pinned in the cache.
    pub fn gateways(&self) -> impl Iterator<Item = NextHop> + '_ {
        self.routes.iter().filter_map(|route| match route.via {
            Via::Gateway(neighbour) => Some(NextHop { neighbour, port: route.port }),
            Via::Connected => None,
        })
    }
}

fn check_gateway(route: &Route, routes: &[Route]) -> Result<(), RouteError> {
    let Via::Gateway(gateway) = route.via else { return Ok(()) };
    let connected = |other: &Route| {
        other.via == Via::Connected && other.port == route.port && other.to.contains(gateway)
    };
    // An IPv6 router is known by its link-local address (RFC 4861, 4.2), on every link.
    let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let same_family = gateway.is_ipv4() == route.to.address().is_ipv4();
    if same_family && (link_local || routes.iter().any(connected)) {
        Ok(())
    } else {
        Err(RouteError::GatewayNotConnected { to: route.to, gateway })
    }
}

fn find<A: Ord + Copy>(intervals: &[(A, Option<u16>)], address: A) -> Option<u16> {
    let behind = intervals.partition_point(|&(start, _)| start <= address);
    intervals.get(behind.checked_sub(1)?)?.1
}

/// Address arithmetic that both families share.
trait Bits: Ord + Copy {
    /// The address behind this one, none behind the last.
    fn next(self) -> Option<Self>;
}

impl Bits for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Bits for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// Cuts one family at every prefix's start and behind its end, and answers each piece by the
/// longest prefix that contains the cut.
fn intervals<A: Bits>(routes: &[Route], bits: impl Fn(IpAddr) -> Option<A>) -> Intervals<A> {
    let mut spans = Vec::new();
    for (index, route) in routes.iter().enumerate() {
        if let (Some(first), Some(last)) = (bits(route.to.address()), bits(route.to.last())) {
            spans.push((first, last, route.to.len(), index as u16));
        }
    }
    let ends = spans.iter().filter_map(|&(_, last, ..)| last.next());
    let mut cuts: Vec<A> = spans.iter().map(|&(first, ..)| first).chain(ends).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let answer = |cut: A| {
        let containing = spans.iter().filter(|&&(first, last, ..)| first <= cut && cut <= last);
        containing.max_by_key(|&&(_, _, len, _)| len).map(|&(_, _, _, index)| index)
    };
    cuts.into_iter().map(|cut| (cut, answer(cut))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(to: &str, len: u8, via: Option<&str>, port: u8) -> Route {
        let via = via.map_or(Via::Connected, |gateway| Via::Gateway(ip(gateway)));
        Route { to: Prefix::new(ip(to), len).unwrap(), via, port }
    }

    #[test]
    fn longest_prefix_wins_in_both_families() {
        let table = RouteTable::build(&[
            route("192.0.2.0", 24, None, 0),
            route("0.0.0.0", 0, Some("192.0.2.254"), 0),
            route("10.1.0.0", 24, None, 1),
            route("10.0.0.0", 8, Some("10.1.0.254"), 1),
            route("10.9.0.0", 16, Some("10.1.0.253"), 1),
            route("2001:db8::", 64, None, 0),
            route("::", 0, Some("fe80::1"), 0),
        ])
        .unwrap();
        for (destination, neighbour, port) in [
            ("192.0.2.9", "192.0.2.9", 0),
            ("198.51.100.7", "192.0.2.254", 0),
            ("255.255.255.255", "192.0.2.254", 0),
            ("10.1.0.7", "10.1.0.7", 1),
            ("10.1.1.0", "10.1.0.254", 1),
            ("10.8.255.255", "10.1.0.254", 1),
            ("10.9.0.0", "10.1.0.253", 1),
            ("10.9.255.255", "10.1.0.253", 1),
            ("10.10.0.0", "10.1.0.254", 1),
            ("11.0.0.0", "192.0.2.254", 0),
            ("2001:db8::9", "2001:db8::9", 0),
            ("ffff::", "fe80::1", 0),
        ] {
            let expected = NextHop { neighbour: ip(neighbour), port };
            assert_eq!(table.lookup(ip(destination)), Some(expected), "{destination}");
        }
        assert_eq!(table.gateways().count(), 4);
    }

    #[test]
    fn nothing_matches_outside() {
        let table = RouteTable::build(&[route("10.1.0.0", 24, None, 1)]).unwrap();
        for outside in ["10.0.255.255", "10.1.1.0", "::10.1.0.1"] {
            assert_eq!(table.lookup(ip(outside)), None);
        }
        assert_eq!(RouteTable::default().lookup(ip("10.1.0.1")), None);
    }

    #[test]
    fn impossible_tables_say_who_is_at_fault() {
        let strayed = route("0.0.0.0", 0, Some("198.51.100.1"), 0);
        let table = RouteTable::build(&[route("192.0.2.0", 24, None, 0), strayed]);
        let message = table.unwrap_err().to_string();
        assert!(message.contains("gateway 198.51.100.1 of route 0.0.0.0/0"), "{message}");
        let two = [route("10.0.0.0", 8, None, 0), route("10.0.0.0", 8, None, 1)];
        assert!(matches!(RouteTable::build(&two), Err(RouteError::Ambiguous(_))));
        let repeated = vec![two[0]; ROUTES_MAX + 1];
        assert!(RouteTable::build(&repeated[1..]).is_ok());
        assert!(matches!(RouteTable::build(&repeated), Err(RouteError::TooMany(_))));
    }

    proptest! {
        /// Against the definition: of all prefixes that contain the address, the longest.
        #[test]
        fn lookup_is_longest_prefix_match(
            prefixes in proptest::collection::vec((0u32..64, 24u8..=32, any::<bool>()), 0..40),
            probe in 0u32..80,
        ) {
            let address = |low: u32, v4: bool| -> IpAddr {
                if v4 {
                    std::net::Ipv4Addr::from_bits(0xffff_ffc0 | low).into()
                } else {
                    std::net::Ipv6Addr::from_bits(u128::from(low)).into()
                }
            };
            let mut routes: Vec<Route> = Vec::new();
            for (port, &(low, len, v4)) in prefixes.iter().enumerate() {
                let len = if v4 { len } else { len + 96 };
                let to = Prefix::new(address(low, v4), len).unwrap();
                if routes.iter().all(|other| other.to != to) {
                    routes.push(Route { to, via: Via::Connected, port: port as u8 });
                }
            }
            let table = RouteTable::build(&routes).unwrap();
            for v4 in [true, false] {
                let probe = address(probe & 63, v4);
                let longest = routes.iter().filter(|route| route.to.contains(probe))
                    .max_by_key(|route| route.to.len());
                let expected = longest.map(|route| NextHop { neighbour: probe, port: route.port });
                prop_assert_eq!(table.lookup(probe), expected);
            }
        }
    }
}
