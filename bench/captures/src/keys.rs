//! The secrets beside a capture: `keys.json` (what the daemons logged), its `uat` lines (the same
//! as Wireshark wants it, and complete for ESP) and the kernel's SA table where there is one.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The secrets of one IKE SA (RFC 7296, 2.14; AES-GCM, so there is no SK_a).
///
/// The daemons of the responder-only logs (libreswan at both ends) tell only SK_e*.
#[derive(Clone)]
pub struct IkeKeys {
    /// SPIs of the initiator and of the responder of this IKE SA. `None` for an SA that was made
    /// but never used on the wire.
    pub spis: Option<([u8; 8], [u8; 8])>,
    /// The shared Diffie-Hellman secret `g^ir`.
    pub dh_secret: Option<Vec<u8>>,
    /// `SKEYSEED`.
    pub skeyseed: Option<Vec<u8>>,
    /// `SK_d`.
    pub sk_d: Option<Vec<u8>>,
    /// `SK_ei`, key and then the 4-octet salt (RFC 5282).
    pub sk_ei: Vec<u8>,
    /// `SK_er`, key and then salt.
    pub sk_er: Vec<u8>,
    /// `SK_pi`.
    pub sk_pi: Option<Vec<u8>>,
    /// `SK_pr`.
    pub sk_pr: Option<Vec<u8>>,
}

/// One ESP SA: one direction of a CHILD SA.
#[derive(Clone)]
pub struct EspKey {
    /// The SPI that its packets carry.
    pub spi: u32,
    /// Key and then the 4-octet salt (RFC 4106, 8.1): 20 octets for AES-128, 36 for AES-256.
    pub keymat: Vec<u8>,
    /// Whether the SA uses extended sequence numbers (RFC 4303, 2.2.1).
    pub esn: bool,
    /// Who sends on it.
    pub source: IpAddr,
    /// Who receives on it.
    pub destination: IpAddr,
}

#[derive(Deserialize)]
struct File {
    ike: Vec<Entry>,
    uat: Vec<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "shared Diffie Hellman secret")]
    dh_secret: Option<String>,
    #[serde(rename = "SKEYSEED")]
    skeyseed: Option<String>,
    #[serde(rename = "Sk_d")]
    sk_d: Option<String>,
    #[serde(rename = "Sk_ei", alias = "SK_ei")]
    sk_ei: String,
    #[serde(rename = "Sk_er", alias = "SK_er")]
    sk_er: String,
    #[serde(rename = "Sk_pi")]
    sk_pi: Option<String>,
    #[serde(rename = "Sk_pr")]
    sk_pr: Option<String>,
    spi_i: Option<String>,
    spi_r: Option<String>,
}

fn load(directory: &Path) -> Result<File> {
    let path = directory.join("keys.json");
    let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// The secrets of each IKE SA, with the SPIs where the files have them.
pub(crate) fn ike(directory: &Path) -> Result<Vec<IkeKeys>> {
    let file = load(directory)?;
    let optional = |text: &Option<String>| text.as_deref().map(unhex).transpose();
    file.ike
        .iter()
        .map(|entry| {
            let logged = entry.spi_i.as_deref().zip(entry.spi_r.as_deref());
            let listed = file.uat.iter().find_map(|line| {
                let rest = line.strip_prefix("uat:ikev2_decryption_table:")?;
                let fields: Vec<&str> = rest.split(',').collect();
                (*fields.get(2)? == entry.sk_ei)
                    .then(|| Some((*fields.first()?, *fields.get(1)?)))?
            });
            let spis = match logged.or(listed) {
                Some((spi_i, spi_r)) => Some((spi(spi_i)?, spi(spi_r)?)),
                None => None,
            };
            Ok(IkeKeys {
                spis,
                dh_secret: optional(&entry.dh_secret)?,
                skeyseed: optional(&entry.skeyseed)?,
                sk_d: optional(&entry.sk_d)?,
                sk_ei: unhex(&entry.sk_ei)?,
                sk_er: unhex(&entry.sk_er)?,
                sk_pi: optional(&entry.sk_pi)?,
                sk_pr: optional(&entry.sk_pr)?,
            })
        })
        .collect()
}

/// Gives the SAs whose SPIs no file names the ones that the capture shows and nobody else has:
/// the daemons logged the SAs in the order in which they were made.
pub(crate) fn complete_spis(ike: &mut [IkeKeys], seen: &[([u8; 8], [u8; 8])]) {
    let known: Vec<_> = ike.iter().filter_map(|keys| keys.spis).collect();
    let mut left = seen.iter().filter(|spis| !known.contains(spis));
    for keys in ike.iter_mut().filter(|keys| keys.spis.is_none()) {
        keys.spis = left.next().copied();
    }
}

/// The ESP keys from the `uat:esp_sa` lines; `ip-xfrm-state.txt` tells which SAs use extended
/// sequence numbers (where it is missing a userspace ESP without them was the peer).
pub(crate) fn esp(directory: &Path) -> Result<Vec<EspKey>> {
    let states = std::fs::read_to_string(directory.join("ip-xfrm-state.txt")).unwrap_or_default();
    load(directory)?
        .uat
        .iter()
        .filter_map(|line| line.strip_prefix("uat:esp_sa:"))
        .map(|line| {
            let fields: Vec<&str> = line.split(',').map(|field| field.trim_matches('"')).collect();
            let field =
                |at: usize| fields.get(at).copied().with_context(|| format!("field {at}: {line}"));
            let hex = |at| Ok::<_, anyhow::Error>(field(at)?.trim_start_matches("0x"));
            let spi = u32::from_str_radix(hex(3)?, 16)?;
            Ok(EspKey {
                spi,
                keymat: unhex(hex(5)?)?,
                esn: uses_esn(&states, spi),
                source: field(1)?.parse()?,
                destination: field(2)?.parse()?,
            })
        })
        .collect()
}

/// In `ip xfrm state` the line after next of `proto esp spi` has the SA's flags.
fn uses_esn(states: &str, spi: u32) -> bool {
    let wanted = format!("spi 0x{spi:08x} ");
    states
        .lines()
        .skip_while(|line| !line.contains(&wanted))
        .nth(1)
        .is_some_and(|flags| flags.ends_with(" esn"))
}

fn spi(text: &str) -> Result<[u8; 8]> {
    unhex(text)?.try_into().ok().context("an IKE SPI has 8 octets")
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    anyhow::ensure!(text.len().is_multiple_of(2), "odd number of digits");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2).unwrap_or_default(), 16))
        .collect::<Result<_, _>>()
        .context("not hexadecimal")
}
