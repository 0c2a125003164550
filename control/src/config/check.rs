//! Turns the file into what the engine uses. Every mistake is noted, not only the first; a `None`
//! of a helper means that it has already noted one.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use culvert_dataplane_config::{Dataplane, Problems, RUNTIME_DIR_DEFAULT, Source};
use culvert_ike::{EndpointConfig, IdentityPattern};
use culvert_shm::Name;
use serde_spanned::Spanned;

use super::secret::{self, Secrets};
use super::section::{ControlSection, FileSection, FragmentSection, SecretSection};
use super::values::{Time, time_text};
use super::{CONNECTIONS_MAX, Config, Fragment};

/// Permissions of the control socket: its owner and group may use it.
const SOCKET_MODE_DEFAULT: u32 = 0o660;
/// Most addresses, proposals and owners in one list.
pub(super) const LIST_MAX: usize = 32;
/// Most half-open IKE SAs that can be allowed; the protocol's own limit for all IKE SAs is less.
const HALF_OPEN_MAX: u64 = 1 << 20;
/// Most zero bits of a puzzle: an hour of one core.
const PUZZLE_BITS: RangeInclusive<u64> = 1..=32;

/// Checks the whole file.
pub(super) fn file(
    section: &FileSection,
    source: &Source,
    problems: &mut Problems,
) -> Option<Config> {
    let dataplane = section.dataplane.check(source, problems);
    let mut checker =
        Checker { source, problems, dataplane: dataplane.as_ref(), warnings: Vec::new() };
    let secrets = checker.secrets(&section.secrets);
    let connections = checker.connections(&section.connections, &secrets);
    if let Some(pools) = section.pools.as_ref().filter(|pools| !pools.get_ref().is_empty()) {
        let reason = "pools of virtual addresses are not supported yet: give the peer's network \
                      as remote_ts, and remove this section";
        checker.problem(&pools.span(), reason);
    }
    let (runtime_dir, socket_mode) = checker.control(&section.control);
    let limits = checker.limits(&section.control);
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
        limits,
        warnings,
    })
}

/// Checks connections and secrets that are added to `present`.
pub(super) fn fragment(
    section: &FragmentSection,
    sections: BTreeMap<String, String>,
    present: &Config,
    source: &Source,
    problems: &mut Problems,
) -> Fragment {
    let dataplane = Some(&present.dataplane);
    let mut checker = Checker { source, problems, dataplane, warnings: Vec::new() };
    let secrets = checker.secrets(&section.secrets);
    let all = present.secrets.with(&secrets);
    let connections = checker.connections(&section.connections, &all);
    let new = connections.keys().filter(|name| !present.connections.contains_key(*name));
    if new.count() + present.connections.len() > CONNECTIONS_MAX {
        checker.problem(&(0..0), format!("more than {CONNECTIONS_MAX} connections in all"));
    }
    let texts = |ids: &[Spanned<String>]| ids.iter().map(|id| id.get_ref().clone()).collect();
    let owners = section.secrets.iter();
    let owners = owners.map(|(name, secret)| (name.clone(), texts(&secret.get_ref().id))).collect();
    Fragment { connections, sections, secrets, owners, warnings: checker.warnings }
}

pub(super) struct Checker<'a> {
    source: &'a Source,
    problems: &'a mut Problems,
    pub(super) dataplane: Option<&'a Dataplane>,
    warnings: Vec<String>,
}

impl Checker<'_> {
    pub(super) fn problem(&mut self, span: &Range<usize>, reason: impl Into<String>) {
        self.problems.add(self.source, span, reason);
    }

    /// Notes the error of a parser.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        span: &Range<usize>,
        result: Result<T, E>,
    ) -> Option<T> {
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

    pub(super) fn port(&mut self, key: &str, value: Option<&Spanned<u64>>, default: u16) -> u16 {
        let port = self.number(key, value, 1..=u64::from(u16::MAX), default.into());
        u16::try_from(port).unwrap_or(default)
    }

    /// A count, in the type that the protocol wants.
    fn count(
        &mut self,
        key: &str,
        value: Option<&Spanned<u64>>,
        allowed: RangeInclusive<u64>,
        default: usize,
    ) -> usize {
        let number = self.number(key, value, allowed, u64::try_from(default).unwrap_or(u64::MAX));
        usize::try_from(number).unwrap_or(default)
    }

    /// A time within bounds.
    pub(super) fn time(
        &mut self,
        key: &str,
        value: Option<&Spanned<Time>>,
        allowed: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(value) = value else { return default };
        let Time(time) = *value.get_ref();
        if !allowed.contains(&time) {
            let [low, high] = [allowed.start(), allowed.end()].map(|end| time_text(*end));
            self.problem(&value.span(), format!("{key} must be between {low} and {high}"));
            return default;
        }
        time
    }

    /// A time within bounds, or 0 for never.
    pub(super) fn time_or_never(
        &mut self,
        key: &str,
        value: Option<&Spanned<Time>>,
        allowed: RangeInclusive<Duration>,
        default: Option<Duration>,
    ) -> Option<Duration> {
        match value {
            None => default,
            Some(value) if value.get_ref().0.is_zero() => None,
            Some(_) => Some(self.time(key, value, allowed, Duration::ZERO)),
        }
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

    /// What peers that are not authenticated yet may ask of the gateway (RFC 7296, 2.6; RFC 8019).
    fn limits(&mut self, section: &ControlSection) -> EndpointConfig {
        let defaults = EndpointConfig::default();
        let peers = self.dataplane.and_then(|dataplane| usize::try_from(dataplane.peers).ok());
        let all = 1..=HALF_OPEN_MAX;
        let half_open = section.half_open_max.as_ref();
        let half_open_max =
            self.count("half_open_max", half_open, all.clone(), defaults.half_open_max);
        let most = u64::try_from(half_open_max).unwrap_or(HALF_OPEN_MAX);
        let of_source = section.half_open_per_source_max.as_ref();
        let of_source_default = defaults.half_open_per_source_max.min(half_open_max);
        let of_source =
            self.count("half_open_per_source_max", of_source, 1..=most, of_source_default);
        let cookies = section.cookie_threshold.as_ref();
        let cookies =
            self.count("cookie_threshold", cookies, 0..=HALF_OPEN_MAX, defaults.cookie_threshold);
        let puzzles = section.puzzle_threshold.as_ref();
        let puzzles =
            self.count("puzzle_threshold", puzzles, 0..=HALF_OPEN_MAX, defaults.puzzle_threshold);
        let bits = section.puzzle_bits.as_ref();
        let bits = self.number("puzzle_bits", bits, PUZZLE_BITS, defaults.puzzle_bits.into());
        let timeout = section.half_open_timeout.as_ref();
        let bounds = Duration::from_secs(1)..=Duration::from_secs(600);
        EndpointConfig {
            ike_sas_max: peers.unwrap_or(defaults.ike_sas_max),
            half_open_max,
            half_open_per_source_max: of_source,
            cookie_threshold: cookies,
            puzzle_threshold: puzzles,
            puzzle_bits: u8::try_from(bits).unwrap_or(defaults.puzzle_bits),
            half_open_timeout: self.time(
                "half_open_timeout",
                timeout,
                bounds,
                defaults.half_open_timeout,
            ),
            ..defaults
        }
    }

    fn secrets(&mut self, sections: &BTreeMap<String, Spanned<SecretSection>>) -> Secrets {
        let mut secrets = Secrets::default();
        for (name, section) in sections {
            self.name("secret", name, &section.span());
            if let Some((owners, secret)) = self.secret(section) {
                secrets.add(name, owners, secret);
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
            (Some(text), None) => {
                self.parsed(&text.span(), secret::parse(text.get_ref().expose()))?
            }
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
}
