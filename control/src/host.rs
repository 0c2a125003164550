//! What the protocol asks of this process: randomness, connections, keys, addresses, SAs.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_dataplane_config::Side;
use culvert_ike::{
    ChildClaim, ChildId, ChildPath, ChildSa, ConnectionConfig, Host, Identity, IkeSaId,
    InstallError, Instant, Secret,
};

use crate::config::{Config, Connection};
use crate::forwarding::Forwarding;

/// The services lent to the protocol for the time of a call.
pub struct Services {
    /// The shared memory.
    pub forwarding: Forwarding,
    /// The configuration.
    pub config: Config,
}

impl Services {
    /// When an SA of this child ends at the latest.
    fn deadline_ns(&self, sa: &ChildSa) -> u64 {
        let connection = self.config.connection(&sa.connection);
        let life_time = connection.and_then(|Connection { ike, children, .. }| {
            let index = ike.children.iter().position(|child| child.name == sa.name)?;
            children.get(index)?.life_time
        });
        let nanoseconds = life_time.and_then(|life_time| u64::try_from(life_time.as_nanos()).ok());
        culvert_shm::monotonic_ns().saturating_add(nanoseconds.unwrap_or(u64::MAX))
    }
}

impl Host for Services {
    fn random(&mut self, out: &mut [u8]) {
        random(out);
    }

    fn connections(&mut self, local: IpAddr, remote: IpAddr) -> Vec<Arc<ConnectionConfig>> {
        let fitting = self.config.connections.values().map(|connection| &connection.ike);
        let mut fitting: Vec<_> =
            fitting.filter(|ike| ike.covers(local, remote)).map(Arc::clone).collect();
        // One that names the peer's address is meant for it more than one for anybody.
        fitting.sort_by_key(|ike| {
            let names = |other: &culvert_ike::AddressMatch| other.address() == Some(remote);
            (!ike.remote_addrs.iter().any(names), -i16::from(ike.remote_id.rank()))
        });
        fitting
    }

    fn connection(&mut self, name: &str) -> Option<Arc<ConnectionConfig>> {
        self.config.connection(name).map(|connection| Arc::clone(&connection.ike))
    }

    fn psk(&mut self, local: &Identity, remote: &Identity) -> Option<Secret> {
        self.config.secrets.find(local, remote)
    }

    fn source_address(&mut self, remote: IpAddr) -> Option<IpAddr> {
        source_address(&self.config.dataplane.outer, remote)
    }

    fn allocate_child(&mut self, _ike: IkeSaId) -> Option<u32> {
        let mut octets = [0; 4];
        random(&mut octets);
        self.forwarding.reserve(u32::from_ne_bytes(octets))
    }

    fn release_child(&mut self, spi_in: u32) {
        self.forwarding.release(spi_in);
    }

    fn claim_spi(&mut self, ike: IkeSaId, spi_in: u32) {
        self.forwarding.claim_spi(ike, spi_in);
    }

    fn claim_child(&mut self, claim: &ChildClaim<'_>) -> bool {
        self.forwarding.claim(claim)
    }

    fn install_child(&mut self, sa: &ChildSa) -> Result<(), InstallError> {
        let deadline_ns = self.deadline_ns(sa);
        let dscp = self.config.dscp(&sa.connection);
        self.forwarding.install(sa, self.config.dataplane.replay_window, deadline_ns, dscp)
    }

    fn enable_outbound(&mut self, _id: ChildId, spi_in: u32) {
        if let Err(error) = self.forwarding.enable_outbound(spi_in) {
            tracing::error!(%error, spi_in = format_args!("{spi_in:08x}"), "SA cannot send");
        }
    }

    fn remove_child(&mut self, _id: ChildId, spi_in: u32) {
        self.forwarding.remove(spi_in);
    }

    fn set_path(&mut self, ike: IkeSaId, path: &ChildPath) {
        self.forwarding.set_path(ike, path);
    }

    fn last_inbound(&mut self, ike: IkeSaId) -> Option<Instant> {
        self.forwarding.last_inbound(ike)
    }

    fn last_outbound(&mut self, ike: IkeSaId) -> Option<Instant> {
        self.forwarding.last_outbound(ike)
    }
}

/// Fills `out` from the kernel.
///
/// # Panics
/// The kernel has no random numbers. Nothing that this process does would be safe then.
pub fn random(out: &mut [u8]) {
    #[expect(clippy::expect_used, reason = "keys without randomness would be worse than none")]
    getrandom::fill(out).expect("the kernel gives random octets");
}

/// The outer address that reaches `remote`: the one on its link, on the route's, on the gateway's.
fn source_address(outer: &Side, remote: IpAddr) -> Option<IpAddr> {
    let route = outer.routes.iter().filter(|route| route.to.contains(remote));
    let route = route.max_by_key(|route| route.to.prefix_len()).map(|route| route.via);
    let same_family = |hop: &&IpAddr| hop.is_ipv4() == remote.is_ipv4();
    let gateway = outer.gateways.iter().find(same_family).copied();
    let own = outer.on_link(remote).or_else(|| outer.on_link(route.or(gateway)?))?;
    Some(own.address())
}

#[cfg(test)]
mod tests {
    use culvert_dataplane_config::Route;

    use super::*;

    #[test]
    fn the_source_address_is_on_the_link_of_the_next_hop() {
        let outer = Side {
            addresses: ["192.0.2.1/24", "198.51.100.1/24", "2001:db8::1/64"]
                .map(|address| address.parse().expect(address))
                .to_vec(),
            gateways: vec!["192.0.2.254".parse().expect("an address")],
            routes: vec![Route {
                to: "10.0.0.0/8".parse().expect("a network"),
                via: "198.51.100.9".parse().expect("an address"),
            }],
            mtu: 1500,
        };
        let source = |remote: &str| source_address(&outer, remote.parse().expect(remote));
        let address = |text: &str| text.parse().ok();
        assert_eq!(source("198.51.100.77"), address("198.51.100.1"), "on-link");
        assert_eq!(source("10.1.2.3"), address("198.51.100.1"), "by the route");
        assert_eq!(source("203.0.113.5"), address("192.0.2.1"), "by the gateway");
        assert_eq!(source("2001:db8::7"), address("2001:db8::1"), "on-link");
        assert_eq!(source("2001:db9::7"), None, "no gateway of that family");
    }
}
