//! tshark as an independent reader of what passed on the wire.
//!
//! It reads a capture with the keys that strongSwan, the gateway's peer, writes to its own log: so
//! IKE and ESP are decrypted and every ICV is checked by a program that knows neither end. It
//! does not know RFC 9329, whose frames have the content of UDP port 4500: [`write_datagrams`] makes
//! datagrams of them again.

use std::fs;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::capture::Stream;
use crate::command;
use crate::datagram::datagram;
use crate::relay::PORT;

/// Settings of charon that have it write its keys to its log.
pub const LOG_KEYS: &str = "filelog {\nstderr {\nike = 4\nchd = 4\n}\n}";

/// Checksums are verified, and ESP is decrypted where its key is known.
const PREFERENCES: [&str; 5] = [
    "ip.check_checksum:TRUE",
    "tcp.check_checksum:TRUE",
    "udp.check_checksum:TRUE",
    "esp.enable_encryption_decode:TRUE",
    "esp.enable_authentication_check:TRUE",
];
/// A pcap file's header: little endian, version 2.4, whole packets, raw IP.
const PCAP_HEADER: [u32; 6] = [0xa1b2_c3d4, 2 | 4 << 16, 0, 0, 0xffff, 101];

/// What tshark needs to decrypt, as values of its preferences.
#[derive(Debug, Default)]
pub struct Keys {
    tables: Vec<String>,
}

impl Keys {
    /// Adds an IKE SA's from the first ones in charon's log; SPIs as 16 hexadecimal digits.
    pub fn add_ike(&mut self, log: &str, spi_i: &str, spi_r: &str) -> Result<()> {
        let [from_i, from_r] = [dump(log, "Sk_ei secret")?, dump(log, "Sk_er secret")?];
        self.tables.push(format!(
            "uat:ikev2_decryption_table:{spi_i},{spi_r},{from_i},{from_r},\
             \"AES-GCM-128 with 16 octet ICV [RFC5282]\",,,\"NONE [RFC4306]\""
        ));
        Ok(())
    }

    /// Adds a CHILD SA's from the first ones in charon's log; the SPIs of packets from the initiator
    /// and from the responder as 8 hexadecimal digits.
    pub fn add_child(&mut self, log: &str, from_i: &str, from_r: &str) -> Result<()> {
        for (spi, name) in
            [(from_i, "encryption initiator key"), (from_r, "encryption responder key")]
        {
            let key = dump(log, name)?;
            self.tables.push(format!(
                "uat:esp_sa:\"IPv4\",\"*\",\"*\",\"0x{spi}\",\
                 \"AES-GCM with 16 octet ICV [RFC4106]\",\"0x{key}\",\"NULL\",\"\""
            ));
        }
        Ok(())
    }
}

/// The octets, in hexadecimal digits, that charon's log shows under `name`:
/// `[IKE] Sk_ei secret => 20 bytes @ 0x7f…`, then lines of up to sixteen, `[IKE]    0: DC F4 …`.
fn dump(log: &str, name: &str) -> Result<String> {
    let mut lines = log.lines().skip_while(|line| !line.contains(name));
    let head = lines.next().with_context(|| format!("no {name} in charon's log"))?;
    let length = head.split_once("=> ").and_then(|(_, rest)| rest.split(' ').next());
    let length: usize = length.context("no length")?.parse()?;
    let mut octets = String::new();
    while octets.len() < length * 2 {
        let line = lines.next().context("a cut dump")?;
        let (_, row) = line.split_once(": ").context("not a row of a dump")?;
        let left = (length - octets.len() / 2).min(16);
        octets.extend(row.split(' ').take(left));
    }
    ensure!(octets.len() == length * 2, "{name}: {octets}");
    Ok(octets.to_lowercase())
}

/// Has tshark read a capture and returns the `fields` of each packet that `filter`, in Wireshark's
/// language, lets through.
pub fn read(file: &Path, keys: &Keys, filter: &str, fields: &[&str]) -> Result<Vec<String>> {
    let mut tshark = std::process::Command::new("tshark");
    tshark.arg("-n").arg("-r").arg(file).args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        tshark.args(["-e", field]);
    }
    let preferences = PREFERENCES.into_iter().map(str::to_owned).chain(keys.tables.clone());
    for preference in preferences {
        tshark.args(["-o", &preference]);
    }
    let text = command::succeed(tshark, "")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Writes the frames of TCP streams as datagrams between UDP ports 4500, which is what their content
/// was made for (RFC 9329, 3).
pub fn write_datagrams(streams: &[Stream], file: &Path) -> Result<()> {
    let mut octets: Vec<u8> = PCAP_HEADER.iter().flat_map(|word| word.to_le_bytes()).collect();
    for stream in streams {
        for frame in stream.frames()? {
            let packet = datagram(known(stream.from)?, known(stream.to)?, frame)?;
            let length = u32::try_from(packet.len())?;
            // At no particular time.
            for word in [0, 0, length, length] {
                octets.extend(word.to_le_bytes());
            }
            octets.extend(packet);
        }
    }
    Ok(fs::write(file, octets)?)
}

/// An end of a stream, with the port by which tshark knows what it reads.
fn known(end: SocketAddr) -> Result<SocketAddrV4> {
    match end {
        SocketAddr::V4(end) => Ok(SocketAddrV4::new(*end.ip(), PORT)),
        SocketAddr::V6(_) => bail!("{end} is not IPv4"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_charons_log() {
        let log = "\
11[IKE] Sk_ei secret => 20 bytes @ 0x7f00
11[IKE]    0: DC F4 3C 2A B3 5D 11 83 34 66 9B B3 9C 33 E7 B7  ..<*.]..4f...3..
11[IKE]   16: 65 6A 46 FF                                      ejF.
11[IKE] Sk_er secret => 2 bytes @ 0x7f00
11[IKE]    0: 26 AE                                            &.
";
        assert_eq!(dump(log, "Sk_er secret").unwrap(), "26ae");
        let key = "dcf43c2ab35d118334669bb39c33e7b7656a46ff";
        assert_eq!(dump(log, "Sk_ei secret").unwrap(), key);
        assert!(dump(log, "Sk_d secret").is_err());
    }
}
