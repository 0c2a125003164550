//! A gateway and strongSwan, both ways round, over UDP and over TCP.

mod fragments;
mod half_open;
mod kernel;
mod liveness;
mod moves;
mod reader;
mod reauth;
mod rekey;
mod restart;
mod tunnel;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use culvert_api::{ChildSa, IkeSa};
use culvert_lab::command::wait_until;
use culvert_lab::firewall::Policy;
use culvert_lab::flow::Flow;
use culvert_lab::gateway::{CHILD, CONNECTION, Gateway, Settings};
use culvert_lab::relay::Relay;
use culvert_lab::strongswan::{Child, Connection, Standing, Strongswan};
use culvert_lab::topology::{Family, Lab, Owner, SIDE_A, SIDE_B, Side};

use crate::PING_TIMEOUT;

/// The child besides [`CHILD`] that both ends know: to one more network behind gateway b, with a key
/// exchange in each CREATE_CHILD_SA (RFC 7296, 1.3.1 and 2.12).
const PFS: &str = "pfs";
const PFS_NETWORK: &str = "10.3.0.0/24";
const PFS_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);
const PFS_HOST: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 2);

/// A transport, and who initiates. The initiator is always side a.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    tcp: bool,
    gateway_initiates: bool,
}

const UDP_GATEWAY_INITIATES: Way = Way { tcp: false, gateway_initiates: true };
const UDP_STRONGSWAN_INITIATES: Way = Way { tcp: false, gateway_initiates: false };
const TCP_GATEWAY_INITIATES: Way = Way { tcp: true, gateway_initiates: true };
const TCP_STRONGSWAN_INITIATES: Way = Way { tcp: true, gateway_initiates: false };
const EVERY_WAY: [Way; 4] = [
    UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES,
    TCP_GATEWAY_INITIATES,
    TCP_STRONGSWAN_INITIATES,
];

/// A gateway and strongSwan that may begin to talk.
struct Peers<'lab> {
    lab: &'lab Lab,
    way: Way,
    gateway: Gateway<'lab>,
    charon: Strongswan,
    /// Between strongSwan and the gateway over TCP.
    relay: Option<Relay>,
}

/// Runs `scenario` with both ends up and no SA between them. `adjust` may change their
/// configurations before.
fn meet(
    way: Way,
    adjust: impl FnOnce(&mut Settings, &mut Connection),
    scenario: impl FnOnce(&mut Peers<'_>) -> Result<()>,
) -> Result<()> {
    let (a, b) = settings(if way.tcp { "tcp" } else { "udp" });
    let (owners, (mut ours, theirs)) = if way.gateway_initiates {
        ((Owner::Dpdk, Owner::Kernel), (a, b))
    } else {
        ((Owner::Kernel, Owner::Dpdk), (b, a))
    };
    let mut connection = strongswan(&theirs);
    adjust(&mut ours, &mut connection);
    Lab::run(owners.0, owners.1, |lab| {
        let mut peers = Peers::start(lab, way, &ours, connection)?;
        let outcome = scenario(&mut peers);
        let outcome = outcome.map_err(|error| error.context(peers.gateway.describe()));
        outcome.and_then(|()| peers.gateway.check_alive()).with_context(|| format!("{way:?}"))
    })
}

/// [`meet`] over UDP and TCP in both roles, with nothing adjusted.
fn meet_every_way(scenario: impl Fn(&mut Peers<'_>) -> Result<()>) -> Result<()> {
    EVERY_WAY.into_iter().try_for_each(|way| meet(way, |_, _| {}, &scenario))
}

/// Waits until the pair of the child `name` whose inbound SPI was `old` is replaced, and nothing is
/// left but one IKE SA with so many children.
fn wait_child_rekeyed(peers: &Peers<'_>, name: &str, children: usize, old: &str) -> Result<()> {
    wait_until(&format!("{name} is rekeyed"), PING_TIMEOUT, || {
        let settled = peers.charon.standing()? == Standing { ike: 1, children };
        Ok(settled && peers.child(name)?.spi_in != old)
    })
}

/// A pair that fits, with the children [`CHILD`] and [`PFS`]. IPv4 only: kernel-libipsec's TUN device
/// takes its routes by family.
fn settings(transport: &str) -> (Settings, Settings) {
    let (mut a, mut b) = Settings::between(transport, Family::V4);
    for settings in [&mut a, &mut b] {
        settings.local_ts.truncate(1);
        settings.remote_ts.truncate(1);
        let [local_ts, remote_ts] = [&settings.local_ts, &settings.remote_ts].map(|ts| pfs(ts));
        settings.sections = format!(
            "[connections.{CONNECTION}.children.{PFS}]
local_ts = {local_ts:?}
remote_ts = {remote_ts:?}
esp_proposals = [\"aes128gcm16-x25519\"]
"
        );
    }
    b.inner_addresses = vec![format!("{PFS_GATEWAY}/24")];
    (a, b)
}

/// The selectors of [`PFS`] for those of [`CHILD`].
fn pfs(ts: &[String]) -> Vec<String> {
    let behind_a = *ts == [SIDE_A.network(Family::V4)];
    if behind_a { ts.to_vec() } else { vec![PFS_NETWORK.to_owned()] }
}

/// strongSwan's side of [`settings`], in place of `settings`.
fn strongswan(settings: &Settings) -> Connection {
    // kernel-libipsec has no extended sequence numbers.
    let net = Child {
        name: CHILD.into(),
        esp_proposal: "aes128gcm16".into(),
        local_ts: settings.local_ts.clone(),
        remote_ts: settings.remote_ts.clone(),
        options: Vec::new(),
    };
    let second = Child {
        name: PFS.into(),
        esp_proposal: "aes128gcm16-x25519".into(),
        local_ts: pfs(&settings.local_ts),
        remote_ts: pfs(&settings.remote_ts),
        options: Vec::new(),
    };
    Connection {
        local: None,
        remote: settings.remote,
        remote_port: None,
        local_id: settings.local_id.clone(),
        remote_id: settings.remote_id.clone(),
        secret: settings.secret.clone(),
        proposal: settings.proposals[0].clone(),
        encap: true,
        options: Vec::new(),
        children: vec![net, second],
        charon: Vec::new(),
    }
}

impl<'lab> Peers<'lab> {
    fn start(
        lab: &'lab Lab,
        way: Way,
        settings: &Settings,
        mut connection: Connection,
    ) -> Result<Self> {
        lab.b.inside.add_address("eth0", PFS_HOST.into(), 24)?;
        if lab.b.owner == Owner::Kernel {
            lab.b.gateway.add_address("inner0", PFS_GATEWAY.into(), 24)?;
        }
        if way.tcp {
            lab.firewall.apply(Policy::TCP_ONLY)?;
        }
        let (ours, theirs) =
            if way.gateway_initiates { (&lab.a, &lab.b) } else { (&lab.b, &lab.a) };
        let gateway = Gateway::start(lab, ours, "gateway", settings)?;
        let relay = way.tcp.then(|| relay(way, theirs, &gateway)).transpose()?;
        if let Some(relay) = relay.as_ref().filter(|_| !way.gateway_initiates) {
            connection.remote = Some(relay.address.ip());
            connection.remote_port = Some(relay.address.port());
        }
        let charon = Strongswan::start(&theirs.gateway, &lab.directory, "charon", &connection)?;
        Ok(Self { lab, way, gateway, charon, relay })
    }

    /// The initiator sets up the IKE SA and [`CHILD`].
    fn initiate(&self) -> Result<()> {
        self.initiate_child(CHILD)
    }

    fn initiate_child(&self, child: &str) -> Result<()> {
        if self.way.gateway_initiates {
            self.gateway.initiate_child(child).map(drop)
        } else {
            self.charon.initiate(child)
        }
    }

    /// A flow from host a through the given child.
    fn flow(&self, child: &str) -> Result<Flow> {
        let to = if child == PFS { IpAddr::from(PFS_HOST) } else { SIDE_B.host.v4.into() };
        Flow::start(&self.lab.a.inside, &self.lab.b.inside, to)
    }

    /// The gateway's only IKE SA.
    fn ike(&self) -> Result<IkeSa> {
        let mut sas = self.gateway.sas()?;
        anyhow::ensure!(sas.len() == 1, "one IKE SA expected: {sas:#?}");
        Ok(sas.remove(0))
    }

    /// The only CHILD SA of this name, as the gateway lists it.
    fn child(&self, name: &str) -> Result<ChildSa> {
        let mut found = self.ike()?.children;
        found.retain(|child| child.name == name);
        anyhow::ensure!(found.len() == 1, "one CHILD SA {name} expected: {found:#?}");
        Ok(found.remove(0))
    }
}

/// Makes a TCP peer of the strongSwan on `side`.
fn relay(way: Way, side: &Side, gateway: &Gateway<'_>) -> Result<Relay> {
    if way.gateway_initiates {
        let listen = SocketAddr::new(side.addresses.outer.v4.into(), 4500);
        Relay::respond(&side.gateway, listen, Ipv4Addr::LOCALHOST)
    } else {
        Relay::originate(&side.gateway, Ipv4Addr::LOCALHOST, gateway.outer(Family::V4, 4500))
    }
}
