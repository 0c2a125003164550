//! The TCP port as a stranger meets it: RFC 9329's prefix and frame lengths, against the real port.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_lab::gateway::{Gateway, Settings};
use culvert_lab::relay::PREFIX;
use culvert_lab::topology::{Family, Lab, Owner};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the 5 s that a silent connection is left open.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(12);
/// How long an answer is waited for before it counts as none.
const QUIET: Duration = Duration::from_secs(1);

/// The header of a request of IKE version 3, which any responder answers, if only to say that it
/// speaks version 2 (RFC 7296, 2.5 and 3.1).
const REQUEST: [u8; 28] = {
    let mut header = [0; 28];
    header[0] = 0x51; // the initiator's SPI must not be zero
    header[17] = 0x30; // version 3.0
    header[18] = 34; // IKE_SA_INIT
    header[19] = 0x08; // from the initiator
    header[27] = 28; // length
    header
};
/// Length, non-ESP marker and message (RFC 9329, 3.1).
const FRAME_HEADER: [u8; 6] = [0, 34, 0, 0, 0, 0];

/// Runs `client` in the firewall's place against a gateway that nobody talks to.
fn against_the_port(client: impl Fn(&mut TcpStream) -> Result<()> + Send + Sync) -> Result<()> {
    let (_, settings) = Settings::between("tcp", Family::V4);
    Lab::run(Owner::Kernel, Owner::Dpdk, |lab| {
        let gateway = Gateway::start(lab, &lab.b, "gateway-b", &settings)?;
        for family in [Family::V4, Family::V6] {
            let address = gateway.outer(family, 4500);
            lab.a.gateway.enter(|| {
                let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
                stream.set_nodelay(true)?;
                client(&mut stream).with_context(|| format!("client of {address}"))
            })?;
        }
        Ok(())
    })
}

/// Expects that the gateway closes, by FIN or RST, without an octet. Returns after how long.
fn closed_without_a_word(stream: &mut TcpStream) -> Result<Duration> {
    let start = Instant::now();
    stream.set_read_timeout(Some(CLOSE_TIMEOUT))?;
    let mut octets = [0; 64];
    match stream.read(&mut octets) {
        Ok(0) => Ok(start.elapsed()),
        Ok(length) => bail!("{length} octets came: {:02x?}", &octets[..length]),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(start.elapsed()),
        Err(error) => Err(error).context("the connection was not closed"),
    }
}

/// Expects that nothing comes and the connection stays.
fn open_and_quiet(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(QUIET))?;
    match stream.read(&mut [0; 64]) {
        Ok(length) => bail!("{length} octets came"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error).context("the connection was closed"),
    }
}

/// Sends an IKE message in a frame and expects an IKE answer to it: the stream is understood.
fn answered(stream: &mut TcpStream) -> Result<()> {
    let frame = [&FRAME_HEADER[..], &REQUEST].concat();
    stream.write_all(&frame)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    let mut head = [0; 6 + 28];
    stream.read_exact(&mut head).context("no answer")?;
    ensure!(head[2..6] == [0; 4], "the non-ESP marker (RFC 9329, 3): {head:02x?}");
    ensure!(head[6..14] == REQUEST[..8], "our SPI: {head:02x?}");
    ensure!(head[6 + 19] & 0x20 != 0, "a response: {head:02x?}");
    Ok(())
}

/// RFC 9329, 4: the prefix counts however it is cut.
#[test]
fn a_prefix_cut_anywhere_is_understood() -> Result<()> {
    against_the_port(|stream| {
        for octet in PREFIX {
            stream.write_all(&[*octet])?;
            std::thread::sleep(Duration::from_millis(30));
        }
        answered(stream)
    })
}

#[test]
fn a_prefix_together_with_the_first_message_is_understood() -> Result<()> {
    against_the_port(|stream| {
        stream.write_all(&[&PREFIX[..], &FRAME_HEADER, &REQUEST].concat())?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let mut head = [0; 6];
        stream.read_exact(&mut head).context("no answer")
    })
}

/// RFC 9329, 4: another stream is closed, and gets no octet to learn from.
#[test]
fn a_wrong_prefix_gets_no_octet() -> Result<()> {
    against_the_port(|stream| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")?;
        closed_without_a_word(stream).map(drop)
    })
}

#[test]
fn a_prefix_wrong_in_its_last_octet_gets_no_octet() -> Result<()> {
    against_the_port(|stream| {
        stream.write_all(b"IKETC")?;
        open_and_quiet(stream)?;
        stream.write_all(b"Q")?;
        closed_without_a_word(stream).map(drop)
    })
}

#[test]
fn silence_is_ended_after_five_seconds() -> Result<()> {
    against_the_port(|stream| {
        let silence = closed_without_a_word(stream)?;
        ensure!(silence > Duration::from_secs(4), "closed after {silence:?} already");
        ensure!(silence < Duration::from_secs(8), "closed after {silence:?} only");
        Ok(())
    })
}

/// RFC 9329, 3: a length of 0 or 1 cannot be; the connection ends.
#[test]
fn lengths_zero_and_one_end_the_connection() -> Result<()> {
    against_the_port(|stream| {
        stream.write_all(PREFIX)?;
        stream.write_all(&[0, 0])?;
        closed_without_a_word(stream).map(drop)
    })?;
    against_the_port(|stream| {
        stream.write_all(PREFIX)?;
        stream.write_all(&[0, 1])?;
        closed_without_a_word(stream).map(drop)
    })
}

/// RFC 9329, 3 and 6.6: an empty frame and a NAT keepalive are ignored.
#[test]
fn empty_frames_and_keepalives_are_ignored() -> Result<()> {
    against_the_port(|stream| {
        stream.write_all(PREFIX)?;
        stream.write_all(&[0, 2, 0, 3, 0xff, 0, 2])?;
        open_and_quiet(stream)?;
        answered(stream)
    })
}

/// ESP of no SA is dropped and counted; the stream goes on.
#[test]
fn esp_of_an_unknown_spi_is_ignored() -> Result<()> {
    against_the_port(|stream| {
        stream.write_all(PREFIX)?;
        let mut frame = vec![0, 66];
        frame.extend([0xab; 64]);
        stream.write_all(&frame)?;
        open_and_quiet(stream)?;
        answered(stream)
    })
}
