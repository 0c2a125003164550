//! tshark, which is neither of the two, reads what they say to each other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_lab::capture::{Capture, streams};
use culvert_lab::tshark::{self, Keys};

use super::{CHILD, Peers, TCP_GATEWAY_INITIATES, UDP_GATEWAY_INITIATES, meet};
use crate::PING_TIMEOUT;

/// Datagrams each way: their flow sends two hundred a second.
const DATAGRAMS: usize = 200;

/// The life of a tunnel: IKE_SA_INIT, IKE_AUTH, a liveness check, traffic, Delete. Returns the
/// capture of it, and what decrypts it.
fn record(peers: &Peers<'_>) -> Result<(PathBuf, PathBuf, Keys)> {
    let lab = peers.lab;
    let capture = Capture::start(&lab.firewall.namespace, "a0", &lab.directory)?;
    peers.initiate()?;
    let flow = peers.flow(CHILD)?;
    flow.wait_answer(PING_TIMEOUT)?;
    let (ike, child) = peers.gateway.only_sa()?;
    std::thread::sleep(Duration::from_secs(1));
    let tally = flow.stop()?;
    tally.check_whole()?;
    ensure!(tally.sent >= DATAGRAMS, "{tally}");
    peers.gateway.terminate()?;
    let mut keys = Keys::default();
    let log = peers.charon.log();
    keys.add_ike(&log, &ike.spi_initiator, &ike.spi_responder)?;
    keys.add_child(&log, &child.spi_out, &child.spi_in)?;
    let wire = capture.file().to_owned();
    let packets = capture.stop()?;
    let mut content = wire.clone();
    if peers.way.tcp {
        content = lab.directory.path().join("frames.pcap");
        tshark::write_datagrams(&streams(&packets)?, &content)?;
    }
    Ok((wire, content, keys))
}

/// Every IKE message after the first exchange is decrypted, with the exchanges,
/// roles and Message IDs in the order of RFC 7296, 1.2 and 1.4.
fn ike_is_read(file: &Path, keys: &Keys) -> Result<()> {
    let fields = ["isakmp.exchangetype", "isakmp.flag_i", "isakmp.flag_r", "isakmp.messageid"];
    let mut messages = tshark::read(file, keys, "isakmp", &fields)?;
    messages.sort();
    let expected = [
        "34\t0\t1\t0x00000000",
        "34\t1\t0\t0x00000000",
        "35\t0\t1\t0x00000001",
        "35\t1\t0\t0x00000001",
        "37\t0\t1\t0x00000002",
        "37\t1\t0\t0x00000002",
    ];
    ensure!(messages == expected, "{messages:#?}");
    let decrypted = tshark::read(file, keys, "isakmp.enc.decrypted", &["isakmp.enc.icd"])?;
    ensure!(decrypted.len() == 4, "{decrypted:#?}");
    Ok(())
}

/// Every ESP packet is decrypted, its ICV right, and holds what the hosts have sent.
fn esp_is_read(file: &Path, keys: &Keys) -> Result<()> {
    let all = tshark::read(file, keys, "esp", &["esp.spi", "esp.sequence"])?;
    ensure!(all.len() >= 2 * DATAGRAMS, "{} ESP packets", all.len());
    let whole = tshark::read(file, keys, "esp.icv_good == 1 && udp.port == 7001", &["esp.spi"])?;
    ensure!(whole.len() == all.len(), "{} of {} are as they should be", whole.len(), all.len());
    let mut numbers = all.clone();
    numbers.sort();
    numbers.dedup();
    ensure!(numbers.len() == all.len(), "no sequence number comes twice");
    Ok(())
}

/// Nothing malformed, no wrong checksum or ICV; over TCP nothing out of order or missing, and
/// hardly anything sent twice.
fn nothing_is_odd(file: &Path, keys: &Keys) -> Result<()> {
    let odd = "_ws.malformed || _ws.expert.severity == error || _ws.expert.group == Checksum \
               || ip.checksum.status == Bad || tcp.checksum.status == Bad \
               || udp.checksum.status == Bad || tcp.analysis.out_of_order \
               || tcp.analysis.lost_segment || tcp.analysis.ack_lost_segment \
               || tcp.analysis.zero_window || tcp.analysis.window_full";
    let found = tshark::read(file, keys, odd, &["frame.number", "_ws.expert.message"])?;
    ensure!(found.is_empty(), "{found:#?}");
    // A busy machine may keep an end waiting for an acknowledgment until it probes.
    let again = "tcp.analysis.retransmission || tcp.analysis.duplicate_ack";
    let again = tshark::read(file, keys, again, &["frame.number", "_ws.expert.message"])?;
    let segments = tshark::read(file, keys, "tcp", &["frame.number"])?;
    ensure!(again.len() * 50 <= segments.len(), "of {}: {again:#?}", segments.len());
    Ok(())
}

#[test]
fn tshark_reads_every_message_and_finds_nothing_odd() -> Result<()> {
    for way in [UDP_GATEWAY_INITIATES, TCP_GATEWAY_INITIATES] {
        let log_keys = |charon: &mut Vec<String>| charon.push(tshark::LOG_KEYS.into());
        meet(
            way,
            |_, connection| log_keys(&mut connection.charon),
            |peers| {
                let (wire, content, keys) = record(peers)?;
                ike_is_read(&content, &keys)?;
                esp_is_read(&content, &keys)?;
                nothing_is_odd(&content, &keys)?;
                nothing_is_odd(&wire, &keys)
            },
        )?;
    }
    Ok(())
}
