//! The file as it stands: types are right, keys are known, values unchecked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::secret::{SecretText, conceal};
use super::values::{Amount, Time};
use culvert_dataplane_config as dataplane;
use serde::de::value::MapAccessDeserializer;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_spanned::Spanned;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSection {
    pub(super) dataplane: dataplane::Section,
    #[serde(default)]
    pub(super) control: ControlSection,
    #[serde(default)]
    pub(super) connections: BTreeMap<String, Spanned<ConnectionSection>>,
    #[serde(default)]
    pub(super) secrets: BTreeMap<String, Spanned<SecretSection>>,
    pub(super) pools: Option<Spanned<BTreeMap<String, IgnoredAny>>>,
}

/// What is added while the gateway runs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FragmentSection {
    #[serde(default)]
    pub(super) connections: BTreeMap<String, Spanned<ConnectionSection>>,
    #[serde(default)]
    pub(super) secrets: BTreeMap<String, Spanned<SecretSection>>,
}

/// The connections of a text as they are written, whatever else is in it.
#[derive(Deserialize)]
pub(super) struct Connections {
    #[serde(default)]
    connections: toml::Table,
}

impl Connections {
    /// Each one's section with its header.
    pub(super) fn texts(self) -> BTreeMap<String, String> {
        let text = |(name, section): (String, toml::Value)| {
            let named = toml::Table::from_iter([(name.clone(), section)]);
            let all = toml::Table::from_iter([("connections".to_owned(), named.into())]);
            (name, all.to_string())
        };
        self.connections.into_iter().map(text).collect()
    }
}

/// `[control]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControlSection {
    pub(super) runtime_dir: Option<Spanned<PathBuf>>,
    pub(super) socket_mode: Option<Spanned<String>>,
    pub(super) socket_group: Option<Spanned<String>>,
    pub(super) half_open_max: Option<Spanned<u64>>,
    pub(super) half_open_per_source_max: Option<Spanned<u64>>,
    pub(super) half_open_timeout: Option<Spanned<Time>>,
    pub(super) cookie_threshold: Option<Spanned<u64>>,
    pub(super) puzzle_threshold: Option<Spanned<u64>>,
    pub(super) puzzle_bits: Option<Spanned<u64>>,
}

/// `[connections.<name>]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectionSection {
    pub(super) local_addrs: Option<Vec<Spanned<String>>>,
    pub(super) remote_addrs: Option<Vec<Spanned<String>>>,
    pub(super) local_port: Option<Spanned<u64>>,
    pub(super) remote_port: Option<Spanned<u64>>,
    pub(super) tcp_remote_port: Option<Spanned<u64>>,
    pub(super) tcp_congestion: Option<dataplane::Congestion>,
    pub(super) dscp: Option<Spanned<String>>,
    pub(super) transport: Option<TransportSection>,
    pub(super) fallback_after: Option<Spanned<u64>>,
    pub(super) encap: Option<bool>,
    pub(super) proposals: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) local: EndSection,
    pub(super) remote: EndSection,
    pub(super) retransmit_timeout_ms: Option<Spanned<u64>>,
    pub(super) retransmit_tries: Option<Spanned<u64>>,
    pub(super) tcp_response_timeout: Option<Spanned<Time>>,
    pub(super) rekey_time: Option<Spanned<Time>>,
    pub(super) over_time: Option<Spanned<Time>>,
    pub(super) rand_time: Option<Spanned<Time>>,
    pub(super) reauth_time: Option<Spanned<Time>>,
    pub(super) dpd_delay: Option<Spanned<Time>>,
    pub(super) mobike: Option<bool>,
    pub(super) additional_addrs: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) udp_probe: Option<Spanned<Time>>,
    pub(super) fragmentation: Option<FragmentationSection>,
    pub(super) fragment_size: Option<Spanned<u64>>,
    pub(super) keyingtries: Option<Spanned<u64>>,
    pub(super) unique: Option<UniqueSection>,
    #[serde(default)]
    pub(super) children: BTreeMap<String, Spanned<ChildSection>>,
}

/// `transport`.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TransportSection {
    Udp,
    Tcp,
    Auto,
}

/// `unique`, of which three of swanctl's values are known.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UniqueSection {
    Never,
    No,
    Replace,
}

/// `fragmentation`; swanctl's `force` is `yes` in IKEv2.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FragmentationSection {
    #[serde(alias = "force")]
    Yes,
    Accept,
    No,
}

/// `local` or `remote` of a connection.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndSection {
    /// Pre-shared keys are the only method so far, so there is nothing to look at.
    #[serde(rename = "auth")]
    _auth: AuthSection,
    pub(super) id: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AuthSection {
    Psk,
}

/// `[connections.<name>.children.<name>]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChildSection {
    pub(super) mode: Option<ModeSection>,
    pub(super) local_ts: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) remote_ts: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) esp_proposals: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) start_action: Option<Spanned<ActionSection>>,
    pub(super) close_action: Option<Spanned<ActionSection>>,
    pub(super) dpd_action: Option<Spanned<ActionSection>>,
    pub(super) rekey_time: Option<Spanned<Time>>,
    pub(super) life_time: Option<Spanned<Time>>,
    pub(super) rand_time: Option<Spanned<Time>>,
    pub(super) rekey_bytes: Option<Spanned<Amount>>,
    pub(super) life_bytes: Option<Spanned<Amount>>,
    pub(super) rekey_packets: Option<Spanned<Amount>>,
    pub(super) life_packets: Option<Spanned<Amount>>,
}

/// `mode`, of which two of swanctl's values are known.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeSection {
    Tunnel,
    Transport,
}

/// `start_action`, `close_action` and `dpd_action`, with the older names of the last.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ActionSection {
    #[serde(alias = "clear")]
    None,
    Trap,
    #[serde(alias = "restart")]
    Start,
}

/// `[secrets.<name>]`.
#[derive(Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub(super) struct SecretSection {
    #[serde(default)]
    pub(super) id: Vec<Spanned<String>>,
    pub(super) secret: Option<Spanned<SecretText>>,
    pub(super) secret_file: Option<Spanned<PathBuf>>,
}

impl<'de> Deserialize<'de> for SecretSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SecretVisitor)
    }
}

/// A section, and nothing in its place, which could be the secret itself.
struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = SecretSection;

    conceal!(visit_str(&str), visit_i64(i64), visit_u64(u64), visit_f64(f64));
    conceal!(visit_i128(i128), visit_u128(u128));

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a section [secrets.<name>]")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SecretSection, A::Error> {
        SecretSection::deserialize(MapAccessDeserializer::new(map))
    }
}
