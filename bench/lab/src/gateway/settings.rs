//! What a gateway of the lab is configured with, and the file made of it.

use std::net::IpAddr;
use std::path::Path;

use crate::topology::{Addresses, Family, SIDE_A, SIDE_B};

/// The one connection that the lab configures.
pub const CONNECTION: &str = "lab";
/// The child of [`CONNECTION`].
pub const CHILD: &str = "net";

/// What a gateway of the lab is configured with. [`Settings::between`] gives a pair that fits.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its addresses.
    pub side: Addresses,
    /// Worker cores.
    pub lcores: Vec<u32>,
    /// Whether packet memory is in hugepages.
    pub hugepages: bool,
    /// The DPDK device of the outer side, over the interface `outer0`.
    pub outer_device: String,
    /// The DPDK device of the inner side, over the interface `inner0`.
    pub inner_device: String,
    /// The same port for both sides.
    pub one_armed: bool,
    /// MTU of the outer side, in octets.
    pub mtu: u16,
    /// Further TCP ports to listen on.
    pub tcp_ports: Vec<u16>,
    /// The peer's address; `None` answers anybody.
    pub remote: Option<IpAddr>,
    /// `udp`, `tcp` or `auto`.
    pub transport: String,
    /// The peer's TCP port.
    pub tcp_remote_port: u16,
    /// Our identity.
    pub local_id: String,
    /// The peer's identity.
    pub remote_id: String,
    /// The pre-shared key.
    pub secret: String,
    /// IKE proposals.
    pub proposals: Vec<String>,
    /// ESP proposals.
    pub esp_proposals: Vec<String>,
    /// Life time of CHILD SAs in seconds; they are rekeyed before.
    pub life_time_s: u32,
    /// Our traffic selectors.
    pub local_ts: Vec<String>,
    /// The peer's traffic selectors.
    pub remote_ts: Vec<String>,
    /// Further addresses of the inner side, with their prefix lengths.
    pub inner_addresses: Vec<String>,
    /// Routes of the inner side: whole addresses, and the hosts that have them.
    pub inner_routes: Vec<(IpAddr, IpAddr)>,
    /// Further settings of the control process, such as `cookie_threshold = 0`.
    pub control_options: Vec<String>,
    /// Further settings of the connection, such as `dpd_delay = 1`.
    pub options: Vec<String>,
    /// Further settings of its child.
    pub child_options: Vec<String>,
    /// Further sections, such as another child.
    pub sections: String,
}

impl Settings {
    /// Gateway a, which initiates over `transport` and `outer`, and gateway b, which answers.
    /// Selectors cover both families inside.
    pub fn between(transport: &str, outer: Family) -> (Self, Self) {
        let networks = |side: Addresses| vec![side.network(Family::V4), side.network(Family::V6)];
        let one = |side: Addresses, peer: Addresses, ids: (&str, &str), lcore| Self {
            side,
            lcores: vec![lcore],
            hugepages: false,
            outer_device: "net_af_packet0,iface=outer0".to_owned(),
            inner_device: "net_af_packet1,iface=inner0".to_owned(),
            one_armed: false,
            mtu: 1500,
            tcp_ports: vec![4500],
            remote: None,
            transport: transport.to_owned(),
            tcp_remote_port: 4500,
            local_id: ids.0.to_owned(),
            remote_id: ids.1.to_owned(),
            secret: "lab secret".to_owned(),
            proposals: vec!["aes128gcm16-prfsha256-x25519".to_owned()],
            esp_proposals: vec!["aes128gcm16-esn".to_owned(), "aes128gcm16".to_owned()],
            life_time_s: 86_400,
            local_ts: networks(side),
            remote_ts: networks(peer),
            inner_addresses: Vec::new(),
            inner_routes: Vec::new(),
            control_options: Vec::new(),
            options: Vec::new(),
            child_options: Vec::new(),
            sections: String::new(),
        };
        let mut a = one(SIDE_A, SIDE_B, ("a.test", "b.test"), 0);
        a.remote = Some(SIDE_B.outer.of(outer));
        (a, one(SIDE_B, SIDE_A, ("b.test", "a.test"), 1))
    }

    pub(super) fn to_toml(&self, runtime_dir: &Path) -> String {
        let Self { lcores, hugepages, mtu, tcp_ports, side, .. } = self;
        let Addresses { inner, outer, router, .. } = side;
        let inner_device = if self.one_armed {
            String::new()
        } else {
            format!("device = {:?}", self.inner_device)
        };
        let mut inner_addresses = vec![format!("{}/24", inner.v4), format!("{}/64", inner.v6)];
        inner_addresses.extend_from_slice(&self.inner_addresses);
        let route = |(to, via): &(IpAddr, IpAddr)| {
            let bits = if to.is_ipv4() { 32 } else { 128 };
            format!("{{ to = \"{to}/{bits}\", via = \"{via}\" }}")
        };
        let inner_routes: Vec<String> = self.inner_routes.iter().map(route).collect();
        let remote = self.remote.map_or("%any".to_owned(), |remote| remote.to_string());
        let local = match self.remote {
            Some(IpAddr::V4(_)) => outer.v4.to_string(),
            Some(IpAddr::V6(_)) => outer.v6.to_string(),
            None => "%any".to_owned(),
        };
        format!(
            "[dataplane]
lcores = {lcores:?}
hugepages = {hugepages}
memory_mib = 256
poll = \"adaptive\"
tcp_ports = {tcp_ports:?}
tcp_connections = 1024
sas = 1024

[dataplane.outer]
device = {outer_device:?}
addresses = [\"{}/24\", \"{}/64\"]
gateways = [\"{}\", \"{}\"]
mtu = {mtu}

[dataplane.inner]
{inner_device}
addresses = {inner_addresses:?}
routes = [{}]

[control]
runtime_dir = {runtime_dir:?}
{control_options}

[connections.{CONNECTION}]
local_addrs = [\"{local}\"]
remote_addrs = [\"{remote}\"]
transport = \"{transport}\"
tcp_remote_port = {port}
# An eighth of the default: the lab's wires are short, and a test should not wait.
retransmit_timeout_ms = 500
proposals = {proposals:?}
{options}
local = {{ auth = \"psk\", id = \"{local_id}\" }}
remote = {{ auth = \"psk\", id = \"{remote_id}\" }}

[connections.{CONNECTION}.children.{CHILD}]
local_ts = {local_ts:?}
remote_ts = {remote_ts:?}
esp_proposals = {esp_proposals:?}
life_time = {life_time_s}
{child_options}

{sections}

[secrets.ike-lab]
id = [\"{remote_id}\"]
secret = \"{secret}\"
",
            outer.v4,
            outer.v6,
            router.v4,
            router.v6,
            inner_routes.join(", "),
            outer_device = self.outer_device,
            transport = self.transport,
            port = self.tcp_remote_port,
            proposals = self.proposals,
            local_id = self.local_id,
            remote_id = self.remote_id,
            local_ts = self.local_ts,
            remote_ts = self.remote_ts,
            esp_proposals = self.esp_proposals,
            life_time_s = self.life_time_s,
            secret = self.secret,
            control_options = self.control_options.join("\n"),
            options = self.options.join("\n"),
            child_options = self.child_options.join("\n"),
            sections = self.sections,
        )
    }
}
