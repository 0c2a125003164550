//! The sections `[connections.<name>.children.<name>]`.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildConfig, ChildMode, ConnectionConfig, EspProposal, Lifetime, TrafficSelector,
};
use culvert_shm::SelectorList;
use serde_spanned::Spanned;

use super::check::{Checker, LIST_MAX};
use super::section::{ChildSection, ConnectionSection, ModeSection, StartSection};
use super::{CHILDREN_MAX, Child};
use crate::policies;

/// Lifetime of an SA when the file does not say: a day.
const LIFE_TIME_DEFAULT_S: u64 = 86_400;
/// Bounds of a lifetime: a minute to thirty days.
const LIFE_TIME_S: RangeInclusive<u64> = 60..=30 * 86_400;

impl Checker<'_> {
    pub(super) fn children(
        &mut self,
        place: &Spanned<ConnectionSection>,
        ike: &mut ConnectionConfig,
    ) -> Vec<Child> {
        let sections = &place.get_ref().children;
        if sections.is_empty() || sections.len() > CHILDREN_MAX {
            let reason = format!(
                "a connection needs 1 to {CHILDREN_MAX} children: add a section \
                 [connections.{}.children.<name>] with local_ts and remote_ts",
                ike.name
            );
            self.problem(&place.span(), reason);
        }
        let mut children = Vec::new();
        for (name, section) in sections {
            self.name("child", name, &section.span());
            let Some((config, child)) = self.child(name, section) else { continue };
            if let Some(start) = section.get_ref().start_action.as_ref().filter(|_| child.start) {
                self.startable(start, ike);
            }
            ike.children.push(Arc::new(config));
            children.push(child);
        }
        children
    }

    /// Who is to be called must have an address.
    fn startable(&mut self, start: &Spanned<StartSection>, ike: &ConnectionConfig) {
        if ike.remote_addrs.iter().all(|address| address.address().is_none()) {
            let reason = "start_action = \"start\" needs the peer's address in remote_addrs";
            self.problem(&start.span(), reason);
        }
    }

    /// The selectors of one side. In transport mode they only narrow what the two ends say to each
    /// other, and may be left out.
    fn selectors(
        &mut self,
        key: &str,
        values: Option<&Spanned<Vec<Spanned<String>>>>,
        mode: ChildMode,
        place: &Range<usize>,
    ) -> Vec<TrafficSelector> {
        let transport = mode == ChildMode::Transport;
        let Some(values) = values else {
            if !transport {
                self.problem(place, format!("{key} is missing: what lies behind this side"));
                return Vec::new();
            }
            return dynamic("dynamic").iter().filter_map(|all| all.parse().ok()).collect();
        };
        if !transport {
            return self.list(key, values, SelectorList::MAX);
        }
        let spellings = |entry: &Spanned<String>| match entry.get_ref() {
            text if text.starts_with("dynamic") => dynamic(text).to_vec(),
            text => vec![text.clone()],
        };
        let all: Vec<Spanned<String>> = (values.get_ref().iter())
            .flat_map(|entry| spellings(entry).into_iter().map(|s| Spanned::new(entry.span(), s)))
            .collect();
        self.list(key, &Spanned::new(values.span(), all), SelectorList::MAX)
    }

    fn child(&mut self, name: &str, place: &Spanned<ChildSection>) -> Option<(ChildConfig, Child)> {
        let section = place.get_ref();
        let mode = match section.mode {
            None | Some(ModeSection::Tunnel) => ChildMode::Tunnel,
            Some(ModeSection::Transport) => ChildMode::Transport,
        };
        let place = place.span();
        let local_ts = self.selectors("local_ts", section.local_ts.as_ref(), mode, &place);
        let remote_ts = self.selectors("remote_ts", section.remote_ts.as_ref(), mode, &place);
        let proposals = section.esp_proposals.as_ref();
        let proposals = proposals.map_or_else(
            || vec![EspProposal::default()],
            |proposals| self.list("esp_proposals", proposals, LIST_MAX),
        );
        let life_time = section.life_time_s.as_ref();
        let life_time = self.number("life_time_s", life_time, LIFE_TIME_S, LIFE_TIME_DEFAULT_S);
        let start = section.start_action.as_ref().map(|start| *start.get_ref());
        if local_ts.is_empty() || remote_ts.is_empty() {
            return None;
        }
        if let Err(error) = policies::check(&local_ts, &remote_ts) {
            let place = section.remote_ts.as_ref().map_or(place, Spanned::span);
            self.problem(&place, error.to_string());
        }
        let mut config = ChildConfig::new(name, local_ts, remote_ts);
        config.mode = mode;
        config.proposals = proposals;
        config.lifetime = Lifetime::within(Duration::from_secs(life_time));
        let child = Child {
            start: start == Some(StartSection::Start),
            life_time: Duration::from_secs(life_time),
        };
        Some((config, child))
    }
}

/// swanctl's `dynamic`, the address of an end itself, in both families: in transport mode no other
/// counts.
fn dynamic(text: &str) -> [String; 2] {
    ["0.0.0.0/0", "::/0"].map(|all| text.replacen("dynamic", all, 1))
}
