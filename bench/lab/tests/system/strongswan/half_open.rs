//! Cookies (RFC 7296, 2.6): when strangers hold half-open IKE SAs, an initiator has to show that it
//! receives at its address before the responder keeps anything for it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_lab::namespace::Namespace;

use super::{
    CHILD, TCP_GATEWAY_INITIATES, TCP_STRONGSWAN_INITIATES, UDP_GATEWAY_INITIATES,
    UDP_STRONGSWAN_INITIATES, meet,
};
use crate::PING_TIMEOUT;

/// An IKE_SA_INIT request after its initiator's SPI: header, then aes128gcm16-prfsha256-x25519 as the
/// only proposal, a public value and a nonce (RFC 7296, 3.1 to 3.9).
const INIT_HEADER: [u8; 20] =
    [0, 0, 0, 0, 0, 0, 0, 0, 33, 0x20, 34, 0x08, 0, 0, 0, 0, 0, 0, 0, 144];
const PROPOSAL: [u8; 40] = [
    34, 0, 0, 40, 0, 0, 0, 36, 1, 1, 0, 3, // SA payload; proposal 1 for IKE, three transforms
    3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 0, 128, // ENCR_AES_GCM_16 with 128 bits
    3, 0, 0, 8, 2, 0, 0, 5, // PRF_HMAC_SHA2_256
    0, 0, 0, 8, 4, 0, 0, 31, // Curve25519
];
const KEY_EXCHANGE: [u8; 8] = [40, 0, 0, 40, 0, 31, 0, 0];
const NONCE: [u8; 4] = [0, 0, 0, 36];

fn init_request(spi: u8) -> Vec<u8> {
    let (public, nonce) = ([9; 32], [spi; 32]);
    let spi = [spi; 8];
    [&spi[..], &INIT_HEADER, &PROPOSAL, &KEY_EXCHANGE, &public, &NONCE, &nonce].concat()
}

/// Has a stranger in `from` begin `count` IKE SAs with `to` and leave each half-open: the answer is
/// taken, and nothing follows.
fn leave_half_open(from: &Namespace, to: SocketAddr, count: u8) -> Result<()> {
    from.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        for spi in 1..=count {
            socket.send(&init_request(spi))?;
            let mut answer = [0; 1500];
            let length = socket.recv(&mut answer).context("no answer to IKE_SA_INIT")?;
            let keys = answer.get(16) == Some(&33);
            ensure!(keys, "an SA payload expected: {:02x?}", &answer[..length]);
        }
        Ok(())
    })
}

/// strongSwan asks the gateway for a cookie, over UDP and, not knowing that there is one, over TCP.
#[test]
fn strongswan_demands_a_cookie() -> Result<()> {
    for way in [UDP_GATEWAY_INITIATES, TCP_GATEWAY_INITIATES] {
        let threshold = |charon: &mut Vec<String>| charon.push("cookie_threshold = 2".into());
        meet(
            way,
            |_, connection| threshold(&mut connection.charon),
            |peers| {
                let charon = SocketAddr::new(peers.lab.b.addresses.outer.v4.into(), 500);
                leave_half_open(&peers.lab.b.gateway, charon, 2)?;
                peers.initiate()?;
                let log = peers.charon.log();
                ensure!(log.contains("generating IKE_SA_INIT response 0 [ N(COOKIE) ]"), "{log}");
                ensure!(log.contains("parsed IKE_SA_INIT request 0 [ N(COOKIE) SA"), "{log}");
                peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)
            },
        )?;
    }
    Ok(())
}

/// The gateway asks strongSwan for a cookie over UDP. Over TCP the connection has shown the address,
/// and a cookie alone is not asked for (RFC 9329, 6.3).
#[test]
fn the_gateway_demands_a_cookie_over_udp_alone() -> Result<()> {
    for way in [UDP_STRONGSWAN_INITIATES, TCP_STRONGSWAN_INITIATES] {
        let threshold = |options: &mut Vec<String>| options.push("cookie_threshold = 0".into());
        meet(
            way,
            |settings, _| threshold(&mut settings.control_options),
            |peers| {
                peers.initiate()?;
                let log = peers.charon.log();
                let asked = log.contains("parsed IKE_SA_INIT response 0 [ N(COOKIE) ]");
                ensure!(asked != way.tcp, "{log}");
                peers.flow(CHILD)?.wait_answer(PING_TIMEOUT)
            },
        )?;
    }
    Ok(())
}
