//! The gateway as a neighbour on its wires: addresses, ICMP, MTU, and the kinds of ports.

use std::fs;

use anyhow::{Result, ensure};
use culvert_lab::gateway::{Gateway, Settings};
use culvert_lab::namespace::Namespace;
use culvert_lab::topology::{Family, Lab, Owner, SIDE_A, SIDE_B};
use culvert_lab::traffic;

use crate::{exchange, with_gateways};

/// ARP (RFC 826), neighbour discovery (RFC 4861) and echo (RFC 792, RFC 4443) on every address.
#[test]
fn every_own_address_is_resolved_and_answers_pings() -> Result<()> {
    let (settings, _) = Settings::between("udp", Family::V4);
    Lab::run(Owner::Dpdk, Owner::Kernel, |lab| {
        let _gateway = Gateway::start(lab, &lab.a, "gateway-a", &settings)?;
        for family in [Family::V4, Family::V6] {
            // From the wire itself, and from behind a router.
            answers(&lab.a.inside, SIDE_A.inner.of(family))?;
            answers(&lab.firewall.namespace, SIDE_A.outer.of(family))?;
            answers(&lab.b.gateway, SIDE_A.outer.of(family))?;
        }
        Ok(())
    })
}

fn answers(from: &Namespace, to: std::net::IpAddr) -> Result<()> {
    ensure!(traffic::ping(from, to, 3, 56)? == 3, "{to} does not answer {}", from.name());
    ensure!(traffic::ping(from, to, 2, 1400)? == 2, "{to} does not answer large pings");
    Ok(())
}

/// RFC 1191 and RFC 8201: what does not fit the tunnel is answered by packet-too-big with an MTU
/// that then fits.
#[test]
fn packets_too_big_for_the_tunnel_are_answered() -> Result<()> {
    with_gateways(Settings::between("udp", Family::V4), |lab, a, _| {
        a.initiate()?;
        exchange(lab, Family::V4)?;
        for (family, overhead) in [(Family::V4, 28), (Family::V6, 48)] {
            let to = SIDE_B.host.of(family);
            traffic::ping_until_answered(&lab.a.inside, to, crate::PING_TIMEOUT)?;
            let line = format!("-n -c 3 -i 0.2 -W 1 -M do -s {} {to}", 1500 - overhead);
            let refused = traffic::ping_raw(&lab.a.inside, &line)?;
            let text = refused.stdout + &refused.stderr;
            let mtu = text.split("mtu").nth(1).map(|rest| rest.trim_start_matches([' ', '=', ':']));
            let mtu = mtu.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
            let mtu: usize = mtu.and_then(|mtu| mtu.parse().ok()).unwrap_or(0);
            ensure!((1280..1500).contains(&mtu), "packet-too-big names an MTU: {text}");
            let line = format!("-n -c 3 -i 0.2 -W 2 -M do -s {} {to}", mtu - overhead);
            let fits = traffic::ping_raw(&lab.a.inside, &line)?;
            ensure!(fits.status.success(), "{mtu} octets do not pass:\n{}", fits.stdout);
        }
        Ok(())
    })
}

/// Fragments from the protected network come out whole on the other side. On AF_XDP ports: before
/// net_af_packet the kernel puts IPv4 fragments together itself.
#[test]
fn fragments_from_the_inside_arrive() -> Result<()> {
    let (mut a, mut b) = Settings::between("tcp", Family::V4);
    for settings in [&mut a, &mut b] {
        settings.inner_device = "net_af_xdp1,iface=inner0".into();
    }
    with_gateways((a, b), |lab, a, _| {
        a.initiate()?;
        for family in [Family::V4, Family::V6] {
            let to = SIDE_B.host.of(family);
            traffic::ping_until_answered(&lab.a.inside, to, crate::PING_TIMEOUT)?;
            // IPv6 hosts fragment for themselves, once they were told what fits.
            traffic::ping(&lab.a.inside, to, 2, 4000)?;
            ensure!(traffic::ping(&lab.a.inside, to, 3, 4000)? == 3, "fragmented pings to {to}");
        }
        Ok(())
    })
}

/// RFC 792 and RFC 4443: each gateway is a hop that says so when a packet's time is over.
#[test]
fn traceroute_shows_both_gateways() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, _| {
        a.initiate()?;
        for family in [Family::V4, Family::V6] {
            let to = SIDE_B.host.of(family);
            traffic::ping_until_answered(&lab.a.inside, to, crate::PING_TIMEOUT)?;
            for (hops, gateway) in [(1, SIDE_A.inner.of(family)), (2, SIDE_B.inner.of(family))] {
                let line = format!("-n -c 1 -W 2 -t {hops} {to}");
                let answer = traffic::ping_raw(&lab.a.inside, &line)?.stdout;
                ensure!(
                    answer.contains(&format!("From {gateway}")) && answer.contains("xceeded"),
                    "hop {hops} is {gateway}:\n{answer}"
                );
            }
        }
        Ok(())
    })
}

/// One port for both sides.
#[test]
fn a_one_armed_gateway_carries_everything() -> Result<()> {
    let (mut a, b) = Settings::between("tcp", Family::V4);
    a.one_armed = true;
    with_gateways((a, b), |lab, a, _| {
        a.initiate()?;
        exchange(lab, Family::V4)?;
        exchange(lab, Family::V6)
    })
}

/// Two workers, each with a queue pair of its own: packets arrive on either, and are handed to the
/// worker that owns the connection or the SA.
#[test]
fn two_workers_with_two_queues_carry_everything() -> Result<()> {
    for transport in ["tcp", "udp"] {
        let (mut a, b) = Settings::between(transport, Family::V4);
        a.lcores = vec![0, 1];
        a.outer_device += ",qpairs=2";
        a.inner_device += ",qpairs=2";
        with_gateways((a, b), |lab, a, _| {
            a.initiate()?;
            ensure!(a.status()?.dataplane.workers == 2, "{:#?}", a.status()?);
            exchange(lab, Family::V4)?;
            exchange(lab, Family::V6)
        })?;
    }
    Ok(())
}

/// With hugepages, where the machine grants some.
#[test]
fn packet_memory_may_be_in_hugepages() -> Result<()> {
    const PAGES: &str = "/proc/sys/vm/nr_hugepages";
    let before = fs::read_to_string(PAGES)?;
    fs::write(PAGES, "192")?;
    let granted: u32 = fs::read_to_string(PAGES)?.trim().parse()?;
    let result = if granted >= 192 {
        let (mut a, b) = Settings::between("tcp", Family::V4);
        a.hugepages = true;
        with_gateways((a, b), |lab, a, _| {
            a.initiate()?;
            exchange(lab, Family::V4)
        })
    } else {
        eprintln!("skipped: the machine grants {granted} hugepages of 192");
        Ok(())
    };
    fs::write(PAGES, before)?;
    result
}
