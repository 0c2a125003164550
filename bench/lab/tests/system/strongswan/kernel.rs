//! strongSwan with Linux's ESP, on a kernel of its own: what its ESP in userspace cannot do, which is
//! transport mode, native ESP and extended sequence numbers. A boot takes a while, so that each test
//! has both roles, one after the other.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use culvert_api::{Mode, Target, Transport};
use culvert_lab::command::wait_until;
use culvert_lab::firewall::Policy;
use culvert_lab::flow::Flow;
use culvert_lab::gateway::{CHILD, CONNECTION, Gateway, Settings};
use culvert_lab::relay::Relay;
use culvert_lab::strongswan::{Connection, Standing, Strongswan};
use culvert_lab::topology::{Family, Lab, Owner, SIDE_A, SIDE_B};
use culvert_lab::traffic;

use super::{settings, strongswan};
use crate::{PING_TIMEOUT, PINGS, becomes_the_end, exchange, in_transport_mode};

/// Octets that go to the guest and come back.
const ECHO: u64 = 500_000;
/// With ESN before all (RFC 4303, 2.2.1), and a key exchange in each rekey (RFC 7296, 2.17).
const ESN: &str = "aes128gcm16-x25519-esn";

/// A gateway at side a, and strongSwan on Linux at side b.
struct Ends<'lab> {
    lab: &'lab Lab,
    gateway: Gateway<'lab>,
    charon: Strongswan,
}

/// Runs `scenario` with both ends up and no SA between them, and one child with [`ESN`]. Over TCP
/// there are two relays on the firewall, for either role: each end takes it for its peer.
fn meet(
    tcp: bool,
    adjust: impl FnOnce(&mut Settings, &mut Connection),
    scenario: impl FnOnce(&Ends<'_>) -> Result<()>,
) -> Result<()> {
    let (mut ours, theirs) = settings(if tcp { "tcp" } else { "udp" });
    let mut connection = Connection { encap: false, ..strongswan(&theirs) };
    ours.sections.clear();
    connection.children.truncate(1);
    ours.esp_proposals = vec![ESN.into()];
    connection.children[0].esp_proposal = ESN.into();
    // Side a may be behind a NAT, and is called without one.
    connection.options.push(format!("remote_addrs = {}, %any", SIDE_A.outer.v4));
    adjust(&mut ours, &mut connection);
    Lab::run(Owner::Dpdk, Owner::Guest, |lab| {
        let gateway = Gateway::start(lab, &lab.a, "gateway", &ours)?;
        let relays = if tcp { Some(relays(lab, &gateway)?) } else { None };
        if let Some([_, originator]) = &relays {
            connection.options.clear();
            connection.remote = Some(originator.address.ip());
            connection.remote_port = Some(originator.address.port());
        }
        let charon = Strongswan::boot(&lab.b, &lab.directory, &connection)?;
        let mut ends = Ends { lab, gateway, charon };
        let outcome = scenario(&ends);
        outcome.map_err(|error| error.context(ends.gateway.describe()))?;
        ends.gateway.check_alive()
    })
}

fn relays(lab: &Lab, gateway: &Gateway<'_>) -> Result<[Relay; 2]> {
    lab.firewall.apply(Policy { intercept_tcp: true, ..Policy::TCP_ONLY })?;
    let firewall = &lab.firewall.namespace;
    let listen = SocketAddr::new(SIDE_A.router.v4.into(), 4500);
    let responder = Relay::respond(firewall, listen, SIDE_B.outer.v4)?;
    let remote = gateway.outer(Family::V4, 4500);
    Ok([responder, Relay::originate(firewall, SIDE_B.router.v4, remote)?])
}

impl Ends<'_> {
    /// Either end sets a tunnel up, which `look` examines, and the other takes it down.
    fn in_both_roles(&self, look: impl Fn() -> Result<()>) -> Result<()> {
        self.gateway.initiate()?;
        look()?;
        self.charon.terminate()?;
        self.wait_nothing()?;
        self.charon.initiate(CHILD)?;
        look()?;
        self.gateway.terminate()?;
        self.wait_nothing()
    }

    fn wait_nothing(&self) -> Result<()> {
        wait_until("no SA is left", PING_TIMEOUT, || {
            let nothing = self.charon.standing()? == Standing { ike: 0, children: 0 };
            Ok(nothing && self.gateway.sas()?.is_empty())
        })
    }

    /// Either end rekeys the CHILD SA, and then the IKE SA.
    fn rekey(&self) -> Result<()> {
        let spi_in = || Ok::<_, anyhow::Error>(self.gateway.only_sa()?.1.spi_in);
        for by_gateway in [true, false] {
            let old = spi_in()?;
            if by_gateway {
                self.gateway.rekey(Target::Child(old.clone()))?;
            } else {
                self.charon.rekey_child(CHILD)?;
            }
            self.wait_settled(|| Ok(spi_in()? != old))?;
        }
        for by_gateway in [true, false] {
            let old = self.gateway.only_sa()?.0.spi_initiator;
            if by_gateway {
                self.gateway.rekey(Target::Connection(CONNECTION.into()))?;
            } else {
                self.charon.rekey_ike()?;
            }
            self.wait_settled(|| Ok(self.gateway.only_sa()?.0.spi_initiator != old))?;
        }
        Ok(())
    }

    fn wait_settled(&self, renewed: impl Fn() -> Result<bool>) -> Result<()> {
        wait_until("one new pair stands", PING_TIMEOUT, || {
            Ok(self.charon.standing()? == Standing { ike: 1, children: 1 } && renewed()?)
        })
    }

    /// The host behind the gateway and Linux itself reach each other.
    fn carries_between_hosts(&self, transport: Transport) -> Result<()> {
        let inside = &self.lab.a.inside;
        let linux = SIDE_B.outer.v4.into();
        let (sa, child) = self.gateway.only_sa()?;
        ensure!(sa.transport == transport && child.mode == Mode::Transport, "{sa:#?}");
        traffic::ping_until_answered(inside, linux, PING_TIMEOUT)?;
        let answered = traffic::ping(inside, linux, PINGS, 1200)?;
        ensure!(answered + 1 >= PINGS, "{answered} of {PINGS} pings were answered");
        // TCP's checksum covers the addresses: where they were changed, it arrives only mended.
        traffic::echo(inside, linux, ECHO)?;
        let child = self.gateway.only_sa()?.1;
        ensure!(child.octets_in > ECHO && child.octets_out > ECHO, "{child:#?}");
        Ok(())
    }
}

/// The child in transport mode, between the host behind the gateway and Linux itself.
fn transport_mode(ours: &mut Settings, theirs: &mut Connection) {
    in_transport_mode(ours);
    let child = &mut theirs.children[0];
    child.local_ts = vec!["dynamic".into()];
    child.remote_ts = vec!["dynamic".into()];
    child.options.push("mode = transport".into());
}

/// RFC 7296, 1.3.1; with a NAT 2.23.1.
#[test]
fn transport_mode_natively_and_through_a_nat() -> Result<()> {
    meet(false, transport_mode, |ends| {
        becomes_the_end(&ends.lab.a.inside, &SIDE_A)?;
        ends.in_both_roles(|| {
            ends.carries_between_hosts(Transport::Native)?;
            ends.rekey()?;
            ends.carries_between_hosts(Transport::Native)
        })?;
        let nat = Policy { masquerade_a: true, drop_esp: true, ..Policy::default() };
        ends.lab.firewall.apply(nat)?;
        ends.gateway.initiate()?;
        ends.carries_between_hosts(Transport::Udp)?;
        ends.rekey()?;
        ends.carries_between_hosts(Transport::Udp)
    })
}

/// RFC 9329, 6.5: a relay is a NAT for both ends, and TCP's checksum is to be mended.
#[test]
fn transport_mode_over_tcp() -> Result<()> {
    meet(true, transport_mode, |ends| {
        becomes_the_end(&ends.lab.a.inside, &SIDE_A)?;
        ends.in_both_roles(|| {
            ends.carries_between_hosts(Transport::Tcp)?;
            ends.rekey()?;
            ends.carries_between_hosts(Transport::Tcp)
        })
    })
}

/// RFC 4303: ESP without UDP, with extended sequence numbers, for the networks behind; nothing is lost
/// when keys change.
#[test]
fn tunnel_mode_in_native_esp() -> Result<()> {
    meet(
        false,
        |_, _| {},
        |ends| {
            ends.in_both_roles(|| {
                exchange(ends.lab, Family::V4)?;
                let (sa, child) = ends.gateway.only_sa()?;
                ensure!(
                    sa.transport == Transport::Native && child.proposal.contains("-esn"),
                    "{sa:#?}"
                );
                let host = SIDE_B.host.v4.into();
                let flow = Flow::start(&ends.lab.a.inside, &ends.lab.b.inside, host)?;
                flow.wait_answer(PING_TIMEOUT)?;
                ends.rekey()?;
                flow.stop()?.check_whole()
            })
        },
    )
}
