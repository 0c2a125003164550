//! The section as it stands in the file: types are right, keys are known, values unchecked.

use serde::Deserialize;
use serde_spanned::Spanned;

use crate::{Aead, Congestion, Poll};

/// `[dataplane]` before its check.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    pub(crate) lcores: Option<Vec<Spanned<u64>>>,
    pub(crate) hugepages: Option<bool>,
    pub(crate) memory_mib: Option<Spanned<u64>>,
    pub(crate) poll: Option<Poll>,
    pub(crate) aead: Option<Aead>,
    pub(crate) tcp_ports: Option<Spanned<Vec<Spanned<u64>>>>,
    pub(crate) tcp_connections: Option<Spanned<u64>>,
    pub(crate) tcp_congestion: Option<Congestion>,
    pub(crate) tcp_memory_mib: Option<Spanned<u64>>,
    pub(crate) replay_window: Option<Spanned<u64>>,
    pub(crate) sas: Option<Spanned<u64>>,
    pub(crate) policies: Option<Spanned<u64>>,
    pub(crate) peers: Option<Spanned<u64>>,
    pub(crate) ring_kib: Option<Spanned<u64>>,
    pub(crate) outer: Spanned<SideSection>,
    pub(crate) inner: Spanned<SideSection>,
}

/// `[dataplane.outer]` or `[dataplane.inner]` before its check.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SideSection {
    pub(crate) device: Option<Spanned<String>>,
    pub(crate) addresses: Spanned<Vec<Spanned<String>>>,
    pub(crate) gateways: Option<Vec<Spanned<String>>>,
    pub(crate) routes: Option<Spanned<Vec<RouteSection>>>,
    pub(crate) mtu: Option<Spanned<u64>>,
}

/// One entry of `routes` before its check.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteSection {
    pub(crate) to: Spanned<String>,
    pub(crate) via: Spanned<String>,
}
