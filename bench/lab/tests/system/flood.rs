//! A gateway that strangers flood with first requests, from thousands of addresses that are not
//! theirs: it keeps no more for them than its limits say, and who is real gets in all the while.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use culvert_api::{Target, Transport};
use culvert_lab::capture::{Capture, Packet, Payload, streams};
use culvert_lab::command::wait_until;
use culvert_lab::flood::{Flood, PER_SECOND};
use culvert_lab::gateway::{CONNECTION, Gateway, Settings};
use culvert_lab::namespace::Namespace;
use culvert_lab::topology::{Family, Lab, SIDE_A, SIDE_B};
use culvert_lab::traffic;

use crate::{PING_TIMEOUT, exchange, with_gateways};

/// What the gateway allows by itself before it demands cookies.
pub(crate) const COOKIE_THRESHOLD: u64 = 256;
/// First requests that were answered with a demand.
pub(crate) const COOKIES: &str = "ike_cookie_demanded";
const PUZZLES: &str = "ike_puzzle_demanded";
/// How long a half-open IKE SA may last in these tests.
const HALF_OPEN_SECONDS: u64 = 2;
/// From one look at a flooded gateway to the next.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 20;

/// Payload types: Notify (RFC 7296, 3.2) and Puzzle Solution (RFC 8019, 8.2).
const NOTIFY: u8 = 41;
const PUZZLE_SOLUTION: u8 = 54;
/// The exchange type of IKE_SA_INIT.
const IKE_SA_INIT: u8 = 34;
const IKE_HEADER_LEN: usize = 28;

/// A counter of the gateway; 0 before it has counted anything.
pub(crate) fn counter(gateway: &Gateway<'_>, name: &str) -> Result<u64> {
    Ok(gateway.counters()?.get(name).copied().unwrap_or_default())
}

/// Floods `gateway` from the router between the sites until it demands `what`.
pub(crate) fn flood_until_it_demands(
    router: &Namespace,
    gateway: &Gateway<'_>,
    what: &str,
) -> Result<Flood> {
    let IpAddr::V4(to) = gateway.outer(Family::V4, 500).ip() else {
        bail!("{} is not IPv4", gateway.outer(Family::V4, 500));
    };
    let flood = Flood::start(router, to)?;
    wait_until(&format!("{what} counts"), PING_TIMEOUT, || {
        Ok(counter(gateway, what)? >= u64::from(PER_SECOND) / 2)
    })?;
    Ok(flood)
}

/// For a while no look at the gateway shows more half-open IKE SAs than `most`.
pub(crate) fn stays_within(gateway: &Gateway<'_>, flood: &Flood, most: u64) -> Result<()> {
    let before = flood.sent();
    for _ in 0..LOOKS {
        let half_open = gateway.status()?.ike_sas_half_open;
        ensure!(half_open <= most, "{half_open} half-open IKE SAs");
        std::thread::sleep(LOOK);
    }
    ensure!(flood.sent() > before, "the flood went on");
    let said = gateway.culvert("status")?.stdout;
    ensure!(said.contains(" being set up"), "{said}");
    Ok(())
}

/// The flood ends, and what it left goes.
pub(crate) fn subsides(gateway: &Gateway<'_>, flood: Flood) -> Result<()> {
    flood.stop()?;
    let timeout = Duration::from_secs(2 * HALF_OPEN_SECONDS) + PING_TIMEOUT;
    wait_until("no half-open IKE SA is left", timeout, || {
        Ok(gateway.status()?.ike_sas_half_open == 0)
    })
}

/// A gateway that forgets half-open IKE SAs soon, with further settings of the control process.
pub(crate) fn forgetful(settings: &mut Settings, options: &[&str]) {
    let timeout = format!("half_open_timeout = \"{HALF_OPEN_SECONDS}s\"");
    settings.control_options.push(timeout);
    settings.control_options.extend(options.iter().map(|option| (*option).to_owned()));
}

/// The tunnel carries. How much of it a flooded port of the lab takes is not judged here.
fn carries(lab: &Lab) -> Result<()> {
    traffic::ping_until_answered(&lab.a.inside, SIDE_B.host.v4.into(), PING_TIMEOUT)
}

/// The IKE_SA_INIT requests that gateway a sent, over UDP or TCP.
fn first_requests(packets: &[Packet]) -> Result<Vec<Vec<u8>>> {
    let from_a = |packet: &&Packet| packet.source == SIDE_A.outer.v4;
    let mut messages: Vec<Vec<u8>> = packets
        .iter()
        .filter(from_a)
        .filter_map(|packet| match &packet.payload {
            Payload::Udp { to: 500, data, .. } => Some(data.clone()),
            Payload::Udp { to: 4500, data, .. } => Some(data.strip_prefix(&[0; 4])?.to_vec()),
            _ => None,
        })
        .collect();
    for stream in streams(packets)?.iter().filter(|stream| stream.from.ip() == SIDE_A.outer.v4) {
        let ike = stream.frames()?.into_iter().filter_map(|frame| frame.strip_prefix(&[0; 4]));
        messages.extend(ike.map(<[u8]>::to_vec));
    }
    messages.retain(|message| message.get(18) == Some(&IKE_SA_INIT));
    Ok(messages)
}

/// The types of the first two payloads of a message.
fn first_payloads(message: &[u8]) -> Result<[u8; 2]> {
    let first = *message.get(16).context("a cut header")?;
    Ok([first, *message.get(IKE_HEADER_LEN).context("no payload")?])
}

/// Gateway b is flooded until it demands what counts as `demand`; a sets up a tunnel with it over
/// `transport`, and b keeps no more than `most` for strangers. What follows is up to `then`. Returns
/// a's first requests of that tunnel.
fn gets_in(
    transport: &str,
    options: &[&str],
    (demand, most): (&str, u64),
    then: impl FnOnce(&Lab, &Gateway<'_>, &Gateway<'_>, Flood) -> Result<()>,
) -> Result<Vec<Vec<u8>>> {
    let (a, mut b) = Settings::between(transport, Family::V4);
    // It answers strangers over UDP, too.
    b.transport = "auto".into();
    forgetful(&mut b, options);
    let mut sent = Vec::new();
    with_gateways((a, b), |lab, a, b| {
        let flood = flood_until_it_demands(&lab.firewall.namespace, b, demand)?;
        let capture = Capture::start(&lab.firewall.namespace, "a0", &lab.directory)?;
        a.initiate()?;
        sent = first_requests(&capture.stop()?)?;
        carries(lab)?;
        ensure!((transport == "tcp") == (a.only_sa()?.0.transport == Transport::Tcp));
        // One that is real may be half-open besides.
        stays_within(b, &flood, most + 1)?;
        then(lab, a, b, flood)
    })?;
    Ok(sent)
}

/// The life of a tunnel that was set up through a flood: IKE of an SA that stands passes as well, and
/// when it is over, nothing is left of it and the next tunnel is set up as ever.
fn lives_through(lab: &Lab, a: &Gateway<'_>, b: &Gateway<'_>, flood: Flood) -> Result<()> {
    a.rekey(Target::Connection(CONNECTION.into()))?;
    carries(lab)?;
    subsides(b, flood)?;
    let demanded = counter(b, COOKIES)?;
    a.terminate()?;
    wait_until("the SAs are gone at both ends", PING_TIMEOUT, || {
        Ok(a.sas()?.is_empty() && b.sas()?.is_empty())
    })?;
    a.initiate()?;
    exchange(lab, Family::V4)?;
    ensure!(counter(b, COOKIES)? == demanded, "no cookie is demanded any more");
    Ok(())
}

/// RFC 7296, 2.6: with nothing configured.
#[test]
fn through_a_flood_a_gateway_gets_in_with_a_cookie() -> Result<()> {
    let sent = gets_in("udp", &[], (COOKIES, COOKIE_THRESHOLD), lives_through)?;
    ensure!(sent.len() >= 2, "once without it and once with it: {sent:02x?}");
    let last = sent.last().context("no request")?;
    ensure!(first_payloads(last)?[0] == NOTIFY, "the cookie comes first: {last:02x?}");
    Ok(())
}

/// RFC 9329, 6.3: the connection has shown the address, and no cookie alone is asked for.
#[test]
fn through_a_flood_a_gateway_gets_in_over_tcp_without_a_cookie() -> Result<()> {
    let sent = gets_in("tcp", &[], (COOKIES, COOKIE_THRESHOLD), |_, _, _, _| Ok(()))?;
    ensure!(sent.len() == 1 && first_payloads(&sent[0])?[0] != NOTIFY, "{sent:02x?}");
    Ok(())
}

/// RFC 8019, 7.1.2 and RFC 9329, 6.3: the solution goes behind the cookie, over TCP too.
#[test]
fn through_a_flood_a_gateway_gets_in_with_a_solved_puzzle() -> Result<()> {
    for transport in ["udp", "tcp"] {
        let low = ["puzzle_threshold = 16", "puzzle_bits = 10"];
        let sent = gets_in(transport, &low, (PUZZLES, 16), |_, _, _, _| Ok(()))?;
        let last = sent.last().context("no request")?;
        ensure!(first_payloads(last)? == [NOTIFY, PUZZLE_SOLUTION], "{transport}: {last:02x?}");
    }
    Ok(())
}
