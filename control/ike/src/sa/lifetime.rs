//! How long SAs live: when they are rekeyed, tried again, and ended.

use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::child::Child;
use super::exchange::Task;
use super::{Cx, Phase, Session};
use crate::config::{Lifetime, Volume};
use crate::event::{ChildId, DownReason, RekeyCause};
use crate::time::Instant;

/// Wait before a rekey that failed is tried again: this, and a random part of as much once more, so
/// that two ends that refused each other do not meet again (RFC 7296, 2.25).
const RETRY: Duration = Duration::from_secs(10);

/// A part of `whole` by 16 random bits: less than all of it.
pub(super) fn part(cx: &mut Cx<'_>, whole: Duration) -> Duration {
    let mut octets = [0; 2];
    cx.host.random(&mut octets);
    whole.mul_f64(f64::from(u16::from_be_bytes(octets)) / f64::from(1 << 16))
}

/// The wait before something that the peer refused for now is tried again.
pub(super) fn retry_wait(cx: &mut Cx<'_>) -> Duration {
    RETRY + part(cx, RETRY)
}

/// When an SA is rekeyed, and when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// `None` while a rekey is under way or not wanted.
    pub(super) rekey_at: Option<Instant>,
    pub(super) expires_at: Option<Instant>,
}

impl Clock {
    /// For keys made now.
    pub(super) fn start(cx: &mut Cx<'_>, lifetime: &Lifetime) -> Self {
        let Some(rekey_time) = lifetime.rekey_time else { return Self::default() };
        let early = part(cx, lifetime.rand_time.min(rekey_time));
        Self {
            rekey_at: Some(cx.now + rekey_time.saturating_sub(early)),
            expires_at: Some(cx.now + rekey_time + lifetime.over_time),
        }
    }

    /// A rekey failed: another one is due soon.
    pub(super) fn retry(&mut self, cx: &mut Cx<'_>) {
        self.rekey_at = Some(cx.now + retry_wait(cx));
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.rekey_at.into_iter().chain(self.expires_at).min()
    }
}

/// The counts at which a pair is rekeyed and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// `None` once that is under way.
    pub(super) rekey: Option<u64>,
    pub(super) life: Option<u64>,
}

impl Limit {
    pub(super) fn start(cx: &mut Cx<'_>, volume: &Volume) -> Self {
        let mut octets = [0; 2];
        cx.host.random(&mut octets);
        let share = u64::from(u16::from_be_bytes(octets));
        let early = |rekey: u64| {
            let part = (u128::from(rekey / 10) * u128::from(share)) >> 16;
            rekey - u64::try_from(part).unwrap_or_default()
        };
        Self { rekey: volume.rekey.map(early), life: volume.life }
    }
}

impl Session {
    /// When the first of the SAs is to be rekeyed or ends.
    pub(super) fn lifetimes(&self) -> Option<Instant> {
        if !matches!(self.phase, Phase::Established) {
            return None;
        }
        let children = self.children.iter().filter(|c| c.leaving.is_none());
        children.filter_map(|c| c.clock.next()).chain(self.clock.next()).min()
    }

    /// Rekeys what is old, and ends what is too old.
    pub(super) fn check_lifetimes(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if !matches!(self.phase, Phase::Established) {
            return;
        }
        if due(self.clock.expires_at) {
            self.terminate(cx, DownReason::Expired);
            return;
        }
        if due(self.clock.rekey_at) {
            self.rekey_ike(cx, RekeyCause::Age);
        }
        let ended = |c: &&Child| c.leaving.is_none() && due(c.clock.expires_at);
        let ended: Vec<ChildId> = self.children.iter().filter(ended).map(|c| c.id).collect();
        // RFC 7296, 2.8: "If an SA has expired or is about to expire and rekeying attempts [...] fail,
        // an implementation MUST close the IKE SA". Not for a pair whose rekey the peer has done.
        if ended.iter().any(|id| !self.is_succeeded(*id)) {
            self.terminate(cx, DownReason::Expired);
            return;
        }
        for id in ended {
            self.expire_child(cx, id);
        }
        let old = |c: &&Child| c.leaving.is_none() && due(c.clock.rekey_at);
        let old: Vec<ChildId> = self.children.iter().filter(old).map(|c| c.id).collect();
        for id in old {
            self.rekey_child(cx, id, RekeyCause::Age);
        }
    }

    /// Deletes a pair that must not be used any more, or that the peer should have deleted.
    fn expire_child(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        let succeeded = self.is_succeeded(id);
        let reason = if succeeded { DownReason::Rekeyed } else { DownReason::Expired };
        if let Some(child) = self.children.iter_mut().find(|c| c.id == id) {
            child.leaving = Some(reason);
            self.push_task(cx, Task::DeleteChild(id, reason));
        }
    }

    /// What a pair has carried so far.
    pub(crate) fn child_used(&mut self, cx: &mut Cx<'_>, id: ChildId, octets: u64, packets: u64) {
        let Some(child) = self.children.iter().find(|c| c.id == id && c.leaving.is_none()) else {
            return;
        };
        let beyond = |count: u64, limit: Option<u64>| limit.is_some_and(|limit| count >= limit);
        if beyond(octets, child.octets.life) || beyond(packets, child.packets.life) {
            // RFC 7296, 2.8, as above. One that has carried all that it may before a rekey was even
            // tried goes alone: nothing has failed.
            if child.rekey_failed() && !self.is_succeeded(id) {
                self.terminate(cx, DownReason::Expired);
            } else {
                self.expire_child(cx, id);
            }
        } else if beyond(octets, child.octets.rekey) || beyond(packets, child.packets.rekey) {
            self.rekey_child(cx, id, RekeyCause::Volume);
        }
    }

    /// A rekey of a pair came to nothing. The next follows, unless another pair has its place by now.
    pub(super) fn retry_child(&mut self, cx: &mut Cx<'_>, id: ChildId) {
        if self.is_succeeded(id) {
            return;
        }
        if let Some(child) = self.children.iter_mut().find(|c| c.id == id) {
            child.clock.retry(cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_within_another_ends_with_it() {
        let hour = Duration::from_secs(3600);
        let lifetime = Lifetime::within(hour);
        let rekey = lifetime.rekey_time.unwrap();
        assert!(rekey + lifetime.over_time <= hour);
        assert!(rekey + lifetime.over_time > hour - Duration::from_secs(1));
        assert_eq!(Lifetime::CHILD.over_time, Duration::from_secs(360));
    }
}
