//! The tunnels of the simulation: what its hub and its spokes are configured with.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    AddressMatch, ChildConfig, ChildMode, ConnectionConfig, EndpointConfig, IdentityPattern,
    Lifetime, Retransmission, TransportChoice,
};

use crate::world::HUB_ADDRESS;

/// What both ends of all tunnels have in common.
fn common(name: &str, local: &str, remote: IdentityPattern) -> ConnectionConfig {
    let mut config = ConnectionConfig::new(name, local.parse().unwrap(), remote);
    config.proposals = vec!["aes128gcm16-prfsha256-x25519".parse().unwrap()];
    config.retransmission =
        Retransmission { timeout: Duration::from_secs(1), tries: 4, ..Retransmission::default() };
    config.tcp_response_timeout = Duration::from_secs(30);
    config.dpd_delay = Some(Duration::from_secs(60));
    config.udp_probe = Some(Duration::from_secs(900));
    config.lifetime = Lifetime::IKE;
    config
}

fn net(local: &str, remote: &str, mode: ChildMode, proposal: &str) -> ChildConfig {
    let list = |text: &str| vec![text.parse().unwrap()];
    let mut child = ChildConfig::new("net", list(local), list(remote));
    child.mode = mode;
    child.proposals = proposal.split(' ').map(|p| p.parse().unwrap()).collect();
    child.lifetime = Lifetime::tenths(Duration::from_secs(3600));
    child
}

pub(crate) fn spoke_name(n: usize) -> String {
    format!("s{n}.spoke.test")
}

pub(crate) fn spoke_address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(0xac20_0000 + n as u32)
}

/// Some tunnels are begun by both ends. Their spokes stay where they are.
pub(crate) const fn both_begin(n: usize) -> bool {
    n % 23 == 7
}

/// The configuration of spoke `n`: transports, modes, lifetimes and options differ.
pub(crate) fn spoke(n: usize) -> ConnectionConfig {
    let mut config = common("hub", &spoke_name(n), "hub.test".parse().unwrap());
    config.remote_addrs = vec![AddressMatch::Address(HUB_ADDRESS)];
    config.transport =
        [TransportChoice::Auto, TransportChoice::Udp, TransportChoice::Tcp][n / 2 % 3];
    config.mobike = !n.is_multiple_of(5);
    config.reauth_time = (n % 16 == 5).then(|| Duration::from_secs(20_000));
    let proposal = if n.is_multiple_of(4) { "aes128gcm16-x25519-esn" } else { "aes128gcm16-esn" };
    let local = format!("10.{}.{}.0/24", n / 256, n % 256);
    let mut child = match n % 16 == 9 && config.transport != TransportChoice::Tcp {
        true => net("0.0.0.0/0", "0.0.0.0/0", ChildMode::Transport, proposal),
        false => net(&local, "192.168.0.0/16", ChildMode::Tunnel, proposal),
    };
    child.lifetime = Lifetime::tenths(Duration::from_secs(1800 + 600 * (n as u64 % 8)));
    config.children = vec![Arc::new(child)];
    config
}

pub(crate) fn hub_connections(spokes: usize) -> Vec<Arc<ConnectionConfig>> {
    let offered = "aes128gcm16-esn aes128gcm16-x25519-esn";
    let tunnel = net("192.168.0.0/16", "10.0.0.0/8", ChildMode::Tunnel, offered);
    let mut host = net("0.0.0.0/0", "0.0.0.0/0", ChildMode::Transport, offered);
    host.name = "host".into();
    let children = vec![Arc::new(tunnel), Arc::new(host)];
    let mut all = common("spokes", "hub.test", "*.spoke.test".parse().unwrap());
    all.children = children.clone();
    let own = (1..=spokes).filter(|n| both_begin(*n)).take(16).map(|n| {
        let name = spoke_name(n);
        let mut own = common(&name, "hub.test", name.parse().unwrap());
        own.remote_addrs = vec![AddressMatch::Address(spoke_address(n).into()), AddressMatch::Any];
        own.children.clone_from(&children);
        own
    });
    own.chain([all]).map(Arc::new).collect()
}

pub(crate) fn limits(spokes: usize) -> EndpointConfig {
    // Under load a hub wants cookies; some runs see that, too.
    EndpointConfig { cookie_threshold: spokes / 8 + 2, ..EndpointConfig::default() }
}
