//! The file as it stands: types are right, keys are known, values unchecked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use culvert_dataplane_config as dataplane;
use serde::{Deserialize, Deserializer, de::IgnoredAny};
use serde_spanned::Spanned;
use zeroize::Zeroizing;

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

/// `[control]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ControlSection {
    pub(super) runtime_dir: Option<Spanned<PathBuf>>,
    pub(super) socket_mode: Option<Spanned<String>>,
    pub(super) socket_group: Option<Spanned<String>>,
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
    pub(super) transport: Option<TransportSection>,
    pub(super) fallback_after: Option<Spanned<u64>>,
    pub(super) encap: Option<bool>,
    pub(super) proposals: Option<Spanned<Vec<Spanned<String>>>>,
    pub(super) local: EndSection,
    pub(super) remote: EndSection,
    pub(super) retransmit_timeout_ms: Option<Spanned<u64>>,
    pub(super) retransmit_tries: Option<Spanned<u64>>,
    pub(super) dpd_delay_s: Option<Spanned<u64>>,
    pub(super) udp_probe_s: Option<Spanned<u64>>,
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

/// `unique`, of which two of swanctl's values are known.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UniqueSection {
    Replace,
    Never,
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
    pub(super) start_action: Option<Spanned<StartSection>>,
    pub(super) life_time_s: Option<Spanned<u64>>,
}

/// `mode`, of which two of swanctl's values are known.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeSection {
    Tunnel,
    Transport,
}

/// `start_action`.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StartSection {
    None,
    Start,
}

/// `[secrets.<name>]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretSection {
    #[serde(default)]
    pub(super) id: Vec<Spanned<String>>,
    pub(super) secret: Option<Spanned<SecretText>>,
    pub(super) secret_file: Option<Spanned<PathBuf>>,
}

/// A secret's text, overwritten when dropped.
pub(super) struct SecretText(pub(super) Zeroizing<String>);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}
