//! The sections `[connections.<name>.children.<name>]`.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildConfig, ChildMode, ConnectionConfig, EspProposal, Lifetime, TrafficSelector, Volume,
};
use culvert_shm::SelectorList;
use serde_spanned::Spanned;

use super::check::{Checker, LIST_MAX};
use super::connection::{MARGIN, REKEY_TIME};
use super::section::{ActionSection, ChildSection, ConnectionSection, ModeSection};
use super::values::Amount;
use super::{Action, CHILDREN_MAX, Child};
use crate::policies;

const SECOND: Duration = Duration::from_secs(1);
/// Bounds of an SA's life: long enough that its rekey can be tried again.
const LIFE_TIME: RangeInclusive<Duration> =
    Duration::from_secs(2)..=Duration::from_secs(2 * 365 * 86_400);

/// What the section's word means.
fn action(section: ActionSection) -> Action {
    match section {
        ActionSection::None => Action::None,
        ActionSection::Trap => Action::Trap,
        ActionSection::Start => Action::Start,
    }
}

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
            let section = section.get_ref();
            self.callable("start_action", section.start_action.as_ref(), ike);
            self.callable("close_action", section.close_action.as_ref(), ike);
            self.callable("dpd_action", section.dpd_action.as_ref(), ike);
            ike.children.push(Arc::new(config));
            children.push(child);
        }
        children
    }

    /// Who is to be called must have an address.
    fn callable(
        &mut self,
        key: &str,
        section: Option<&Spanned<ActionSection>>,
        ike: &ConnectionConfig,
    ) {
        let Some(section) = section else { return };
        let action = action(*section.get_ref());
        if action != Action::None && ike.remote_addrs.iter().all(|a| a.address().is_none()) {
            let reason =
                format!("{key} = {:?} needs the peer's address in remote_addrs", action.name());
            self.problem(&section.span(), reason);
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
        let (lifetime, life_time) = self.child_lifetime(section);
        let octets =
            self.volume("bytes", section.rekey_bytes.as_ref(), section.life_bytes.as_ref());
        let packets =
            self.volume("packets", section.rekey_packets.as_ref(), section.life_packets.as_ref());
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
        config.lifetime = lifetime;
        (config.octets, config.packets) = (octets, packets);
        let chosen =
            |section: Option<&Spanned<ActionSection>>| section.map(|s| action(*s.get_ref()));
        let start = chosen(section.start_action.as_ref()).unwrap_or_default();
        if mode == ChildMode::Transport {
            // Their selectors are known only when the peer's address is.
            let actions = [&section.start_action, &section.close_action, &section.dpd_action];
            let trap = |s: &&Spanned<ActionSection>| action(*s.get_ref()) == Action::Trap;
            if let Some(place) = actions.into_iter().flatten().find(trap) {
                let reason = "traffic cannot set up a child in transport mode: use \"start\"";
                self.problem(&place.span(), reason);
            }
        }
        let child = Child {
            start,
            close: chosen(section.close_action.as_ref()).unwrap_or(start),
            dpd: chosen(section.dpd_action.as_ref()).unwrap_or(start),
            life_time,
        };
        Some((config, child))
    }

    /// When a pair is rekeyed, and when it ends. As in swanctl each follows from the other: it ends a
    /// tenth later than it is rekeyed.
    fn child_lifetime(&mut self, section: &ChildSection) -> (Lifetime, Option<Duration>) {
        let life = section.life_time.as_ref();
        let life_time = life.map(|life| self.time("life_time", Some(life), LIFE_TIME, SECOND));
        let default = match life_time {
            Some(life_time) => Lifetime::within(life_time),
            None => Lifetime::CHILD,
        };
        let rekey = section.rekey_time.as_ref();
        let rekey_time = self.time_or_never("rekey_time", rekey, REKEY_TIME, default.rekey_time);
        let Some(rekey_time) = rekey_time else {
            return (Lifetime::UNLIMITED, life_time);
        };
        let over_time = match life_time {
            Some(life_time) => life_time.saturating_sub(rekey_time),
            None => rekey_time / 10,
        };
        if let Some(life) = life.filter(|_| over_time.is_zero()) {
            self.problem(&life.span(), "life_time must be longer than rekey_time");
        }
        let random = section.rand_time.as_ref();
        let rand_time = self.time("rand_time", random, MARGIN, over_time.min(rekey_time));
        self.random_part(random, Some(rekey_time));
        let lifetime = Lifetime { rekey_time: Some(rekey_time), over_time, rand_time };
        (lifetime, Some(rekey_time + over_time))
    }

    /// What a pair may carry; 0 is no limit. It ends a tenth after it is rekeyed, as in swanctl.
    fn volume(
        &mut self,
        what: &str,
        rekey: Option<&Spanned<Amount>>,
        life: Option<&Spanned<Amount>>,
    ) -> Volume {
        let amount = |value: Option<&Spanned<Amount>>| {
            value.map(|value| value.get_ref().0).filter(|amount| *amount > 0)
        };
        let (rekey_at, end) = (amount(rekey), amount(life));
        if let (Some(rekey_at), Some(end), Some(life)) = (rekey_at, end, life)
            && end <= rekey_at
        {
            let reason = format!("life_{what} must be more than rekey_{what}");
            self.problem(&life.span(), reason);
        }
        let tenth_more = |rekey_at: u64| rekey_at.saturating_add((rekey_at / 10).max(1));
        Volume { rekey: rekey_at, life: end.or_else(|| rekey_at.map(tenth_more)) }
    }
}

/// swanctl's `dynamic`, the address of an end itself, in both families: in transport mode no other
/// counts.
fn dynamic(text: &str) -> [String; 2] {
    ["0.0.0.0/0", "::/0"].map(|all| text.replacen("dynamic", all, 1))
}
