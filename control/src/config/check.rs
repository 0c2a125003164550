//! Turns the file into what the engine uses. Every mistake is noted, not only the first; a `None`
//! of a helper means that it has already noted one.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use culvert_dataplane_config::{Dataplane, Problems, RUNTIME_DIR_DEFAULT, Source};
use culvert_ike::{
    AddressMatch, ConnectionConfig, Identity, IdentityPattern, IkeProposal, Retransmission,
    TransportChoice,
};
use culvert_shm::Name;
use serde_spanned::Spanned;

use super::secret::{self, Secrets};
use super::section::{
    ConnectionSection, ControlSection, FileSection, SecretSection, TransportSection, UniqueSection,
};
use super::{CONNECTIONS_MAX, Config, Connection};

/// Permissions of the control socket: its owner and group may use it.
const SOCKET_MODE_DEFAULT: u32 = 0o660;
/// Most addresses, proposals and owners in one list.
pub(super) const LIST_MAX: usize = 32;
/// How long a connection that fell back stays on TCP before UDP is tried again.
const UDP_PROBE_DEFAULT_S: u64 = 600;

/// Checks the whole file.
pub(super) fn file(
    section: &FileSection,
    source: &Source,
    problems: &mut Problems,
) -> Option<Config> {
    let dataplane = section.dataplane.check(source, problems);
    let mut checker =
        Checker { source, problems, dataplane: dataplane.as_ref(), warnings: Vec::new() };
    let secrets = checker.secrets(section);
    let connections = checker.connections(section, &secrets);
    if let Some(pools) = section.pools.as_ref().filter(|pools| !pools.get_ref().is_empty()) {
        let reason = "pools of virtual addresses are not supported yet: give the peer's network \
                      as remote_ts, and remove this section";
        checker.problem(&pools.span(), reason);
    }
    let (runtime_dir, socket_mode) = checker.control(&section.control);
    checker.secrecy(section);
    let warnings = checker.warnings;
    let socket_group = section.control.socket_group.as_ref();
    Some(Config {
        path: source.path().to_owned(),
        dataplane: dataplane?,
        runtime_dir,
        socket_mode,
        socket_group: socket_group.map(|group| group.get_ref().clone()),
        connections,
        secrets: Arc::new(secrets),
        warnings,
    })
}

pub(super) struct Checker<'a> {
    source: &'a Source,
    problems: &'a mut Problems,
    dataplane: Option<&'a Dataplane>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    pub(super) fn problem(&mut self, span: &Range<usize>, reason: impl Into<String>) {
        self.problems.add(self.source, span, reason);
    }

    /// Notes the error of a parser.
    fn parsed<T, E: Display>(&mut self, span: &Range<usize>, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.problem(span, error.to_string())).ok()
    }

    /// Parses each entry of a list of 1 to `max`.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        values: &Spanned<Vec<Spanned<String>>>,
        max: usize,
    ) -> Vec<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let entries = values.get_ref();
        if entries.is_empty() || entries.len() > max {
            self.problem(&values.span(), format!("{key} needs 1 to {max} entries"));
            return Vec::new();
        }
        let parse =
            |entry: &Spanned<String>| self.parsed(&entry.span(), entry.get_ref().parse::<T>());
        entries.iter().filter_map(parse).collect()
    }

    pub(super) fn number(
        &mut self,
        key: &str,
        value: Option<&Spanned<u64>>,
        allowed: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let Some(value) = value else { return default };
        if !allowed.contains(value.get_ref()) {
            let (low, high) = allowed.into_inner();
            self.problem(&value.span(), format!("{key} must be between {low} and {high}"));
            return default;
        }
        *value.get_ref()
    }

    fn port(&mut self, key: &str, value: Option<&Spanned<u64>>, default: u16) -> u16 {
        let port = self.number(key, value, 1..=u64::from(u16::MAX), default.into());
        u16::try_from(port).unwrap_or(default)
    }

    /// Names stand in tables and in the shared memory, which holds [`Name::MAX`] octets of each.
    pub(super) fn name(&mut self, kind: &str, name: &str, span: &Range<usize>) {
        if name.is_empty() || name.len() > Name::MAX || name.chars().any(char::is_control) {
            let reason = format!("the name of a {kind} has 1 to {} octets", Name::MAX);
            self.problem(span, reason);
        }
    }

    fn control(&mut self, section: &ControlSection) -> (PathBuf, u32) {
        let runtime_dir = section.runtime_dir.as_ref();
        if let Some(dir) = runtime_dir.filter(|dir| !dir.get_ref().is_absolute()) {
            self.problem(&dir.span(), "runtime_dir must be an absolute path");
        }
        let runtime_dir = runtime_dir.map(|dir| dir.get_ref().clone());
        let mode = section.socket_mode.as_ref().and_then(|mode| {
            let octal = u32::from_str_radix(mode.get_ref(), 8).ok().filter(|mode| *mode <= 0o777);
            if octal.is_none() {
                let reason = "socket_mode is written in octal, as in \"0660\"";
                self.problem(&mode.span(), reason);
            }
            octal
        });
        (
            runtime_dir.unwrap_or_else(|| RUNTIME_DIR_DEFAULT.into()),
            mode.unwrap_or(SOCKET_MODE_DEFAULT),
        )
    }

    fn secrets(&mut self, section: &FileSection) -> Secrets {
        let mut secrets = Secrets::default();
        for (name, section) in &section.secrets {
            self.name("secret", name, &section.span());
            if let Some((owners, secret)) = self.secret(section) {
                secrets.add(owners, secret);
            }
        }
        secrets
    }

    fn secret(
        &mut self,
        section: &Spanned<SecretSection>,
    ) -> Option<(Vec<IdentityPattern>, culvert_ike::Secret)> {
        let place = section.span();
        let section = section.get_ref();
        let parse = |id: &Spanned<String>| self.parsed(&id.span(), id.get_ref().parse());
        let owners: Vec<IdentityPattern> = section.id.iter().filter_map(parse).collect();
        let secret = match (&section.secret, &section.secret_file) {
            (Some(text), None) => self.parsed(&text.span(), secret::parse(&text.get_ref().0))?,
            (None, Some(file)) => {
                self.readable(file.get_ref());
                self.parsed(&file.span(), secret::read(file.get_ref()))?
            }
            _ => {
                self.problem(&place, "a secret needs either secret or secret_file");
                return None;
            }
        };
        Some((owners, secret))
    }

    /// Warns of a file with a secret in it that others can read.
    fn readable(&mut self, path: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let Ok(metadata) = std::fs::metadata(path) else { return };
        if metadata.permissions().mode() & 0o007 != 0 {
            let path = path.display();
            self.warnings.push(format!(
                "{path} holds secrets, but every user can reach it: run chmod o= {path}"
            ));
        }
    }

    /// Warns of secrets in a configuration that others can read.
    fn secrecy(&mut self, section: &FileSection) {
        if section.secrets.values().any(|secret| secret.get_ref().secret.is_some()) {
            let path = self.source.path().to_owned();
            self.readable(&path);
        }
    }

    fn connections(&mut self, section: &FileSection, secrets: &Secrets) -> Vec<Connection> {
        let sections = &section.connections;
        if sections.len() > CONNECTIONS_MAX {
            self.problem(&(0..0), format!("more than {CONNECTIONS_MAX} connections"));
            return Vec::new();
        }
        let check = |(name, section): (&String, &Spanned<ConnectionSection>)| {
            self.name("connection", name, &section.span());
            self.connection(name, section, secrets)
        };
        sections.iter().filter_map(check).collect()
    }

    fn connection(
        &mut self,
        name: &str,
        place: &Spanned<ConnectionSection>,
        secrets: &Secrets,
    ) -> Option<Connection> {
        let section = place.get_ref();
        let (local_id, remote_id) = self.identities(section, secrets)?;
        let mut ike = ConnectionConfig::new(name, local_id, remote_id);
        ike.local_addrs = self.addresses(section.local_addrs.as_deref(), true);
        ike.remote_addrs = self.addresses(section.remote_addrs.as_deref(), false);
        ike.local_port = self.port("local_port", section.local_port.as_ref(), ike.local_port);
        ike.remote_port = self.port("remote_port", section.remote_port.as_ref(), ike.remote_port);
        let tcp_port = section.tcp_remote_port.as_ref();
        ike.tcp_remote_port = self.port("tcp_remote_port", tcp_port, ike.tcp_remote_port);
        ike.transport = match section.transport.unwrap_or(TransportSection::Auto) {
            TransportSection::Udp => TransportChoice::Udp,
            TransportSection::Tcp => TransportChoice::Tcp,
            TransportSection::Auto => TransportChoice::Auto,
        };
        let fallback = section.fallback_after.as_ref();
        // RFC 9329, 5.1: at least two, because UDP may lose one.
        let fallback = self.number("fallback_after", fallback, 2..=20, ike.fallback_after.into());
        ike.fallback_after = u32::try_from(fallback).unwrap_or(ike.fallback_after);
        ike.encap = section.encap.unwrap_or(ike.encap);
        if let Some(proposals) = &section.proposals {
            ike.proposals = self.list::<IkeProposal>("proposals", proposals, LIST_MAX);
        }
        ike.retransmission = self.retransmission(section);
        let dpd = section.dpd_delay_s.as_ref();
        let dpd = self.number("dpd_delay_s", dpd, 0..=86_400, 0);
        ike.dpd_delay = (dpd > 0).then(|| Duration::from_secs(dpd));
        let probe = section.udp_probe_s.as_ref();
        let probe = self.number("udp_probe_s", probe, 0..=86_400, UDP_PROBE_DEFAULT_S);
        ike.udp_probe = (probe > 0).then(|| Duration::from_secs(probe));
        ike.unique = section.unique != Some(UniqueSection::Never);
        let children = self.children(place, &mut ike);
        Some(Connection { ike: Arc::new(ike), children })
    }

    fn identities(
        &mut self,
        section: &ConnectionSection,
        secrets: &Secrets,
    ) -> Option<(Identity, IdentityPattern)> {
        let (local, remote) = (&section.local.id, &section.remote.id);
        let local_id = self.parsed(&local.span(), local.get_ref().parse::<Identity>());
        let remote_id = self.parsed(&remote.span(), remote.get_ref().parse::<IdentityPattern>());
        let (local_id, remote_id) = (local_id?, remote_id?);
        if !secrets.covers(&local_id, &remote_id) {
            let reason = format!(
                "no pre-shared key belongs to {remote_id} or {local_id}: add a section \
                 [secrets.<name>] with id = [\"{remote_id}\"] and a secret"
            );
            self.problem(&remote.span(), reason);
        }
        Some((local_id, remote_id))
    }

    fn addresses(&mut self, values: Option<&[Spanned<String>]>, own: bool) -> Vec<AddressMatch> {
        let Some(values) = values else { return vec![AddressMatch::Any] };
        if let Some(value) = values.get(LIST_MAX) {
            self.problem(&value.span(), format!("more than {LIST_MAX} addresses"));
        }
        let parse = |value: &Spanned<String>| {
            let text = value.get_ref();
            let Some(address) = address(text) else {
                let reason =
                    format!("{text:?} is not %any, an address or a network such as 192.0.2.0/24");
                self.problem(&value.span(), reason);
                return None;
            };
            self.owned(value, &address, own);
            Some(address)
        };
        let list: Vec<AddressMatch> = values.iter().filter_map(parse).collect();
        if list.is_empty() { vec![AddressMatch::Any] } else { list }
    }

    /// An own address must be one of the outer side's; a peer's must not be.
    fn owned(&mut self, value: &Spanned<String>, address: &AddressMatch, own: bool) {
        let (Some(dataplane), Some(address)) = (self.dataplane, address.address()) else { return };
        let is_own = dataplane.outer.addresses.iter().any(|other| other.address() == address);
        if own && !is_own {
            let reason = format!("{address} is not one of the addresses in [dataplane.outer]");
            self.problem(&value.span(), reason);
        } else if !own && is_own {
            self.problem(&value.span(), format!("{address} is this gateway's own address"));
        }
    }

    fn retransmission(&mut self, section: &ConnectionSection) -> Retransmission {
        let mut retransmission = Retransmission::default();
        let default_ms = u64::try_from(retransmission.timeout.as_millis()).unwrap_or(u64::MAX);
        let timeout = section.retransmit_timeout_ms.as_ref();
        let timeout = self.number("retransmit_timeout_ms", timeout, 100..=60_000, default_ms);
        retransmission.timeout = Duration::from_millis(timeout);
        let tries = section.retransmit_tries.as_ref();
        let tries = self.number("retransmit_tries", tries, 1..=20, retransmission.tries.into());
        retransmission.tries = u32::try_from(tries).unwrap_or(retransmission.tries);
        retransmission
    }
}

/// `%any`, an address, or a network.
fn address(text: &str) -> Option<AddressMatch> {
    if text == "%any" {
        return Some(AddressMatch::Any);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(AddressMatch::Address(address));
    }
    let network = text.parse::<culvert_dataplane_config::Network>().ok()?;
    Some(AddressMatch::Network(network.address(), network.prefix_len()))
}
