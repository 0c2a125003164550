//! The ways between two gateways: which one is taken, and that each carries everything.

use anyhow::{Result, ensure};
use culvert_api::{Happening, Transport};
use culvert_lab::capture::{Capture, Packet, Payload, check_nonces, esp_headers};
use culvert_lab::firewall::Policy;
use culvert_lab::gateway::Settings;
use culvert_lab::topology::Family;

use crate::{exchange, with_gateways};

/// The main job. RFC 9329, 5.1: UDP is tried first; 6.1: the new attempt has a new SPI; and what
/// went to TCP stays there.
#[test]
fn where_udp_is_dropped_the_tunnel_falls_back_to_tcp_and_stays_there() -> Result<()> {
    with_gateways(Settings::between("auto", Family::V4), |lab, a, b| {
        lab.firewall.apply(Policy::TCP_ONLY)?;
        a.initiate()?;
        ensure!(lab.firewall.count("udp_dropped")? >= 3, "UDP was tried first");
        let fell_back =
            |event: &culvert_api::Event| matches!(event.happening, Happening::Fallback { .. });
        ensure!(a.events()?.iter().any(fell_back), "the fallback is told: {:?}", a.events()?);

        let capture = Capture::start(&lab.firewall.namespace, "a0", &lab.directory)?;
        exchange(lab, Family::V4)?;
        exchange(lab, Family::V6)?;
        let packets = capture.stop()?;
        ensure!(packets.iter().any(Packet::is_tcp), "the tunnel passes the firewall");
        ensure!(!packets.iter().any(Packet::is_udp), "no UDP after the fallback");
        check_nonces(&esp_headers(&packets)?)?;

        for gateway in [a, b] {
            let (sa, child) = gateway.only_sa()?;
            ensure!(sa.transport == Transport::Tcp && sa.tcp.is_some(), "over TCP: {sa:#?}");
            ensure!(child.octets_in > 8_000_000 && child.octets_out > 8_000_000, "{child:#?}");
            ensure!(gateway.tcp()?.len() == 1, "one connection: {:#?}", gateway.tcp()?);
        }
        Ok(())
    })
}

#[test]
fn auto_takes_udp_where_udp_passes() -> Result<()> {
    with_gateways(Settings::between("auto", Family::V4), |lab, a, b| {
        a.initiate()?;
        exchange(lab, Family::V4)?;
        for gateway in [a, b] {
            ensure!(gateway.only_sa()?.0.transport != Transport::Tcp, "UDP passes");
            ensure!(gateway.tcp()?.is_empty(), "no TCP connection");
        }
        Ok(())
    })
}

/// RFC 7296, 2.23: without a NAT, ESP needs no UDP around it.
#[test]
fn without_a_nat_esp_is_native() -> Result<()> {
    with_gateways(Settings::between("udp", Family::V4), |lab, a, _| {
        a.initiate()?;
        let capture = Capture::start(&lab.firewall.namespace, "a0", &lab.directory)?;
        exchange(lab, Family::V4)?;
        exchange(lab, Family::V6)?;
        let packets = capture.stop()?;
        let esp = packets.iter().filter(|packet| matches!(packet.payload, Payload::Esp(_))).count();
        ensure!(esp > 1000, "{esp} native ESP packets");
        check_nonces(&esp_headers(&packets)?)?;
        ensure!(a.only_sa()?.0.transport == Transport::Native, "{:#?}", a.sas()?);
        Ok(())
    })
}

/// RFC 7296, 2.23 and RFC 3948: behind a NAT, ESP goes in UDP 4500 and the responder sends to where
/// packets came from.
#[test]
fn behind_a_nat_esp_goes_in_udp() -> Result<()> {
    with_gateways(Settings::between("udp", Family::V4), |lab, a, b| {
        lab.firewall.apply(Policy { masquerade_a: true, drop_esp: true, ..Policy::default() })?;
        a.initiate()?;
        exchange(lab, Family::V4)?;
        for gateway in [a, &mut *b] {
            ensure!(gateway.only_sa()?.0.transport == Transport::Udp, "{:#?}", gateway.sas()?);
        }
        let remote = b.only_sa()?.0.remote;
        ensure!(remote.starts_with("198.51.100.254:"), "b sees the NAT's address, not {remote}");
        Ok(())
    })
}

#[test]
fn tcp_passes_a_nat() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V4), |lab, a, _| {
        lab.firewall.apply(Policy { masquerade_a: true, ..Policy::TCP_ONLY })?;
        a.initiate()?;
        exchange(lab, Family::V4)
    })
}

#[test]
fn tcp_can_be_demanded_and_any_configured_port_be_used() -> Result<()> {
    let (mut a, mut b) = Settings::between("tcp", Family::V4);
    b.tcp_ports = vec![4500, 443];
    a.tcp_remote_port = 443;
    with_gateways((a, b), |lab, a, b| {
        a.initiate()?;
        ensure!(a.only_sa()?.0.remote.ends_with(":443"), "{:#?}", a.sas()?);
        exchange(lab, Family::V4)?;
        let (sa, _) = b.only_sa()?;
        ensure!(sa.local.ends_with(":443") && sa.transport == Transport::Tcp, "{sa:#?}");
        Ok(())
    })
}

/// IPv6 outside, both families inside, over TCP.
#[test]
fn tcp_over_ipv6_carries_both_families() -> Result<()> {
    with_gateways(Settings::between("tcp", Family::V6), |lab, a, _| {
        a.initiate()?;
        exchange(lab, Family::V6)?;
        exchange(lab, Family::V4)
    })
}

/// IPv6 outside, both families inside, over native ESP.
#[test]
fn native_esp_over_ipv6_carries_both_families() -> Result<()> {
    with_gateways(Settings::between("udp", Family::V6), |lab, a, _| {
        a.initiate()?;
        exchange(lab, Family::V6)?;
        exchange(lab, Family::V4)
    })
}

#[test]
fn strong_algorithms_and_no_extended_sequence_numbers() -> Result<()> {
    let (mut a, mut b) = Settings::between("tcp", Family::V4);
    for settings in [&mut a, &mut b] {
        settings.proposals = vec!["aes256gcm16-prfsha512-ecp384".into()];
        settings.esp_proposals = vec!["aes256gcm16".into()];
    }
    with_gateways((a, b), |lab, a, _| {
        a.initiate()?;
        let (sa, child) = a.only_sa()?;
        ensure!(sa.proposal.contains("ecp384"), "{sa:#?}");
        ensure!(child.proposal == "aes256gcm16-noesn", "{child:#?}");
        exchange(lab, Family::V4)
    })
}

/// RFC 7296, 1.2: the responder wants another key exchange method and says which.
#[test]
fn an_initiator_that_guessed_the_wrong_group_tries_again() -> Result<()> {
    let (mut a, mut b) = Settings::between("tcp", Family::V4);
    a.proposals = vec!["aes128gcm16-prfsha256-x25519-ecp256".into()];
    b.proposals = vec!["aes128gcm16-prfsha256-ecp256".into()];
    with_gateways((a, b), |lab, a, _| {
        a.initiate()?;
        ensure!(a.only_sa()?.0.proposal.contains("ecp256"), "{:#?}", a.sas()?);
        exchange(lab, Family::V4)
    })
}

/// RFC 7296, 2.21.2: a wrong key ends with AUTHENTICATION_FAILED, told at both ends.
#[test]
fn a_wrong_key_is_told_at_both_ends() -> Result<()> {
    let (mut a, b) = Settings::between("tcp", Family::V4);
    a.secret = "another secret".into();
    with_gateways((a, b), |_, a, b| {
        let error = format!("{:#}", a.initiate().expect_err("the keys differ"));
        ensure!(error.contains("AUTHENTICATION_FAILED"), "the notify is named: {error}");
        for gateway in [a, b] {
            ensure!(gateway.sas()?.is_empty(), "no SA stands: {:#?}", gateway.sas()?);
            let failed =
                |event: &culvert_api::Event| matches!(event.happening, Happening::IkeFailed { .. });
            ensure!(gateway.events()?.iter().any(failed), "{:#?}", gateway.events()?);
        }
        Ok(())
    })
}
