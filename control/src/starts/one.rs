//! One child: how far it is, and what is done about it when it ends.

use std::time::Duration;

use culvert_ike::{DownReason, IkeSaId, Instant};
use serde::{Deserialize, Serialize};

use crate::config::{Action, Child};

/// Wait after the first failure.
pub(super) const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(60);
/// A child that stood so long begins with the shortest wait again.
const STABLE: Duration = Duration::from_secs(60);

/// How far a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is to be done about it, but what [`Start::rest`] says.
    Resting,
    /// To be tried then.
    Waiting(Instant),
    /// Being tried.
    Trying(IkeSaId),
    /// It stands, since then.
    Up(IkeSaId, Instant),
    /// Somebody terminated it; it stays so until somebody initiates it.
    Held,
}

/// A child that something may have to be done about.
pub(super) struct Start {
    pub(super) child: String,
    pub(super) actions: Child,
    pub(super) tries: Option<u32>,
    /// What is done about it while it does not stand.
    pub(super) rest: Action,
    pub(super) state: State,
    /// How often in a row it failed or stood too shortly: what it waits for grows with that.
    pub(super) failures: u32,
    /// Attempts in vain since it stood or somebody terminated it, for `keyingtries`.
    pub(super) attempts: u32,
    /// Under which time it is in the queue.
    pub(super) queued: Option<Instant>,
}

/// What is done about a child while it does not stand, where that is something else than its
/// `start_action` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rest {
    /// Somebody terminated it: nothing, until somebody initiates it.
    Held,
    /// It was tried in vain as often as `keyingtries` says.
    GivenUp,
    /// What its `close_action` or `dpd_action` says, because of how it ended last.
    Action(Action),
}

/// How a child is that does not stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is done about it: it waits for the peer or for somebody who initiates it.
    Down,
    /// It is being tried.
    Trying,
    /// It is tried then.
    Waiting(Instant),
    /// Traffic sets it up.
    Trapped,
    /// Somebody terminated it.
    Held,
    /// It was tried in vain as often as `keyingtries` says.
    GivenUp,
}

/// What comes after a failure or an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, or nothing before there is traffic.
    Nothing,
    /// It is tried again after this time.
    In(Duration),
    /// It was tried so often in vain that it is left alone.
    GivenUp(u32),
}

impl Start {
    pub(super) fn new(
        child: &str,
        actions: Child,
        tries: Option<u32>,
        known: Option<Self>,
        now: Instant,
    ) -> Self {
        let fresh = Self {
            child: child.to_owned(),
            actions,
            tries,
            rest: actions.start,
            state: if actions.start == Action::Start {
                State::Waiting(now)
            } else {
                State::Resting
            },
            failures: 0,
            attempts: 0,
            queued: None,
        };
        match known {
            // What was at rest, and is to stand or be trapped from now on, begins as if it were new.
            Some(known) if known.actions.start != actions.start => match known.state {
                State::Resting | State::Waiting(_) => fresh,
                _ => Self { actions, tries, rest: actions.start, queued: None, ..known },
            },
            Some(known) => Self { actions, tries, queued: None, ..known },
            None => fresh,
        }
    }

    pub(super) fn is_with(&self, ike: IkeSaId) -> bool {
        matches!(self.state, State::Trying(other) | State::Up(other, _) if other == ike)
    }

    pub(super) fn is_trapped(&self) -> bool {
        self.rest == Action::Trap && self.state != State::Held
    }

    pub(super) fn standing(&self) -> Standing {
        match self.state {
            State::Held => Standing::Held,
            State::Trying(_) => Standing::Trying,
            State::Waiting(due) => Standing::Waiting(due),
            _ if self.is_trapped() => Standing::Trapped,
            State::Resting if self.rest == Action::Start => Standing::GivenUp,
            State::Resting | State::Up(..) => Standing::Down,
        }
    }

    /// What is done about it while it does not stand, if that is not what its configuration says.
    pub(super) fn rest(&self) -> Option<Rest> {
        match self.state {
            State::Held => Some(Rest::Held),
            State::Resting if self.rest == Action::Start => Some(Rest::GivenUp),
            _ => (self.rest != self.actions.start).then_some(Rest::Action(self.rest)),
        }
    }

    pub(super) fn restore(&mut self, rest: Rest, now: Instant) {
        let stands = matches!(self.state, State::Up(..));
        match rest {
            // What stands is being deleted.
            Rest::Held => self.state = State::Held,
            Rest::GivenUp if stands => {}
            Rest::GivenUp => (self.state, self.rest) = (State::Resting, Action::Start),
            Rest::Action(action) => {
                self.rest = action;
                if !stands {
                    let starts = action == Action::Start;
                    self.state = if starts { State::Waiting(now) } else { State::Resting };
                }
            }
        }
    }

    /// What let it fail may be mended.
    pub(super) fn renew(&mut self, now: Instant) {
        if matches!(self.standing(), Standing::Waiting(_) | Standing::GivenUp) {
            (self.state, self.failures, self.attempts) = (State::Waiting(now), 0, 0);
        }
    }

    /// Somebody terminated it.
    pub(super) fn hold(&mut self) {
        (self.state, self.attempts) = (State::Held, 0);
    }

    /// It failed, or does not stand any more.
    pub(super) fn ended(&mut self, reason: Option<DownReason>, now: Instant, random: u8) -> Next {
        self.rest = match reason {
            None => self.rest,
            Some(DownReason::DeletedByPeer) => self.actions.close,
            Some(DownReason::PeerDead) => self.actions.dpd,
            Some(_) => self.actions.start,
        };
        self.retry(now, random)
    }

    pub(super) fn retry(&mut self, now: Instant, random: u8) -> Next {
        match self.state {
            State::Held => return Next::Nothing,
            State::Up(_, since) if now.since(since) >= STABLE => self.failures = 0,
            _ => {}
        }
        if self.rest != Action::Start {
            self.state = State::Resting;
            return Next::Nothing;
        }
        let stood = matches!(self.state, State::Up(..));
        self.attempts = if stood { 0 } else { self.attempts.saturating_add(1) };
        if let Some(tries) = self.tries.filter(|tries| self.attempts >= *tries) {
            (self.state, self.failures, self.attempts) = (State::Resting, 0, 0);
            return Next::GivenUp(tries);
        }
        let doubled = RETRY_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        // Up to a quarter more.
        let wait = doubled + doubled.saturating_mul(random.into()) / 1024;
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(now + wait);
        Next::In(wait)
    }
}
