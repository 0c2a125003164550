//! Children that are to stand, or to be set up when there is traffic: `start_action`,
//! `close_action`, `dpd_action`.
//!
//! A child that is to stand is tried, and after a failure tried again, ever more slowly, for ever
//! or as often as `keyingtries` says. A little randomness keeps many gateways that lost the same
//! peer from calling it in step. A gateway with many connections does not call all of them in one
//! moment: they are begun one after the other, with a little time between, and only so many are
//! tried at once. That holds for a process that takes the place of another, too: it does not know
//! how often the one before has called a peer in vain, and begins with the shortest wait again.

mod one;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use culvert_ike::{DownReason, IkeSaId, Instant};

use crate::config::Connection;
pub use one::{Next, Rest, Standing};
use one::{RETRY_MIN, Start, State};

/// Connections that are tried at once; the others wait for their turn.
const TRYING_MAX: usize = 256;
/// Least time between two that are begun: some hundred a second, of which each costs this gateway a key
/// exchange.
const SPACING: Duration = Duration::from_millis(5);

/// All of them, by connection.
#[derive(Default)]
pub struct Starts {
    connections: HashMap<String, Vec<Start>>,
    /// When which child of a connection is due. Those of connections of which one is being tried
    /// are not here: they wait for its IKE SA.
    queue: BTreeSet<(Instant, String, String)>,
    /// Connections of which a child is being tried.
    trying: HashSet<String>,
    /// When another one may be begun.
    next_turn: Instant,
    /// Connections of which [`Self::changed_traps`] may have to tell something.
    retrapped: HashSet<String>,
    /// Connections of which [`Self::changed_rests`] told that a child has a [`Rest`].
    resting: HashSet<String>,
    /// Connections of which [`Self::changed_rests`] may have to tell something.
    rerested: HashSet<String>,
}

impl Starts {
    /// Takes a configuration: what is new in it is due at `now`, what is gone is forgotten, and what
    /// was there before goes on.
    pub fn configure<'a>(
        &mut self,
        connections: impl Iterator<Item = &'a Connection>,
        now: Instant,
    ) {
        let mut before = std::mem::take(&mut self.connections);
        self.queue.clear();
        self.trying.clear();
        let trapping = |starts: &Vec<Start>| starts.iter().any(|start| start.actions.may_trap());
        let trapping = before.iter().filter(|(_, starts)| trapping(starts));
        self.retrapped.extend(trapping.map(|(connection, _)| connection.clone()));
        self.rerested.extend(self.resting.iter().cloned());
        for connection in connections {
            let name = &connection.ike.name;
            let mut old = before.remove(name).unwrap_or_default();
            let children = connection.ike.children.iter().zip(&connection.children);
            let list = children.map(|(child, actions)| {
                let known = old.iter().position(|start| start.child == child.name);
                let known = known.map(|index| old.swap_remove(index));
                Start::new(&child.name, *actions, connection.keyingtries, known, now)
            });
            let list: Vec<Start> = list.collect();
            self.connections.insert(name.clone(), list);
            self.settle(name);
        }
    }

    /// A connection or its key has changed: what waits for its next attempt, or was given up, is tried
    /// at once, and as often as if it were new.
    pub fn renew(&mut self, connection: &str, now: Instant) {
        let starts = self.connections.get_mut(connection).map(Vec::as_mut_slice);
        starts.unwrap_or_default().iter_mut().for_each(|start| start.renew(now));
        self.settle(connection);
    }

    /// Whether a child of a connection was given up.
    #[must_use]
    pub fn has_given_up(&self, connection: &str) -> bool {
        let starts = self.connections.get(connection).map(Vec::as_slice).unwrap_or_default();
        starts.iter().any(|start| start.standing() == Standing::GivenUp)
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let free = self.trying.len() < TRYING_MAX;
        self.queue.first().filter(|_| free).map(|(due, ..)| self.next_turn.max(*due))
    }

    /// One child that is due, whose turn is taken with this call: connection and child. Tell what
    /// became of it with [`Self::trying`] or [`Self::failed`].
    #[must_use]
    pub fn due(&mut self, now: Instant) -> Option<(String, String)> {
        let (_, connection, child) =
            self.queue.first().filter(|_| self.next().is_some_and(|due| due <= now))?;
        self.next_turn = now + SPACING;
        Some((connection.clone(), child.clone()))
    }

    /// The children that traffic sets up, of each connection of which that may have changed.
    pub fn changed_traps(&mut self) -> Vec<(String, Vec<String>)> {
        let trapped = |connection: &String| {
            let starts = self.connections.get(connection).map(Vec::as_slice).unwrap_or_default();
            let trapped = starts.iter().filter(|start| start.is_trapped());
            trapped.map(|start| start.child.clone()).collect()
        };
        let changed = std::mem::take(&mut self.retrapped).into_iter();
        changed.map(|connection| (connection.clone(), trapped(&connection))).collect()
    }

    /// The children that rest otherwise than their configuration says, of each connection of which
    /// that may have changed.
    pub fn changed_rests(&mut self) -> Vec<(String, Vec<(String, Rest)>)> {
        let mut changed = Vec::new();
        for connection in std::mem::take(&mut self.rerested) {
            let starts = self.connections.get(&connection).map(Vec::as_slice).unwrap_or_default();
            let rests =
                starts.iter().filter_map(|start| Some((start.child.clone(), start.rest()?)));
            let rests: Vec<_> = rests.collect();
            if rests.is_empty() {
                self.resting.remove(&connection);
            } else {
                self.resting.insert(connection.clone());
            }
            changed.push((connection, rests));
        }
        changed
    }

    /// Lets a child rest as it did in a process before this one.
    pub fn restore(&mut self, connection: &str, child: &str, rest: Rest, now: Instant) {
        self.change(connection, child, |start| start.restore(rest, now));
    }

    /// There is traffic for a child that it sets up; whether that has to be done now.
    pub fn acquire(&mut self, connection: &str, child: &str, now: Instant) -> bool {
        let begins = self.change(connection, child, |start| {
            let begins = start.state == State::Resting && start.is_trapped();
            if begins {
                start.state = State::Waiting(now);
            }
            begins
        });
        begins.unwrap_or(false)
    }

    /// How a child is, unless it stands.
    #[must_use]
    pub fn standing(&self, connection: &str, child: &str) -> Standing {
        let starts = self.connections.get(connection).map(Vec::as_slice).unwrap_or_default();
        let found = starts.iter().find(|start| start.child == child);
        found.map_or(Standing::Down, Start::standing)
    }

    /// The IKE SA with which a child is being tried.
    #[must_use]
    pub fn tried(&self, connection: &str, child: &str) -> Option<IkeSaId> {
        let start = self.connections.get(connection)?.iter().find(|start| start.child == child)?;
        match start.state {
            State::Trying(ike) => Some(ike),
            _ => None,
        }
    }

    /// A child is being tried with this IKE SA.
    pub fn trying(&mut self, connection: &str, child: &str, ike: IkeSaId) {
        self.change(connection, child, |start| start.state = State::Trying(ike));
    }

    /// A child stands, whoever set it up.
    pub fn up(&mut self, connection: &str, child: &str, ike: IkeSaId, now: Instant) {
        self.change(connection, child, |start| {
            // A rekey is no new beginning.
            if !matches!(start.state, State::Up(other, _) if other == ike) {
                start.state = State::Up(ike, now);
            }
        });
    }

    /// The children that stand or are tried with this IKE SA.
    #[must_use]
    pub fn with(&self, connection: &str, ike: IkeSaId) -> Vec<String> {
        let starts = self.connections.get(connection).map(Vec::as_slice).unwrap_or_default();
        let found = starts.iter().filter(|start| start.is_with(ike));
        found.map(|start| start.child.clone()).collect()
    }

    /// A child stood or was tried with the first of these IKE SAs, and stands with the second.
    pub fn hand_over(
        &mut self,
        connection: &str,
        child: &str,
        (from, to): (IkeSaId, IkeSaId),
        now: Instant,
    ) {
        self.change(connection, child, |start| {
            start.state = match start.state {
                State::Up(ike, since) if ike == from => State::Up(to, since),
                State::Trying(ike) if ike == from => State::Up(to, now),
                other => other,
            };
        });
    }

    /// A child could not be tried. What comes next.
    pub fn failed(&mut self, connection: &str, child: &str, now: Instant, random: u8) -> Next {
        let next = self.change(connection, child, |start| start.retry(now, random));
        next.unwrap_or(Next::Nothing)
    }

    /// A child of this IKE SA failed (without a reason) or has ended. What comes next.
    pub fn down(
        &mut self,
        connection: &str,
        ike: IkeSaId,
        child: &str,
        reason: Option<DownReason>,
        (now, random): (Instant, u8),
    ) -> Next {
        let next = self.change(connection, child, |start| {
            if start.is_with(ike) { start.ended(reason, now, random) } else { Next::Nothing }
        });
        next.unwrap_or(Next::Nothing)
    }

    /// An IKE SA failed (without a reason) or has ended, with all its children. What comes first.
    pub fn ike_down(
        &mut self,
        connection: &str,
        ike: IkeSaId,
        reason: Option<DownReason>,
        (now, random): (Instant, u8),
    ) -> Next {
        let starts = self.connections.get_mut(connection).map(Vec::as_mut_slice);
        let of_ike = starts.unwrap_or_default().iter_mut().filter(|start| start.is_with(ike));
        let next =
            of_ike.map(|start| start.ended(reason, now, random)).min_by_key(|next| match next {
                Next::In(wait) => *wait,
                Next::GivenUp(_) => Duration::MAX.saturating_sub(RETRY_MIN),
                Next::Nothing => Duration::MAX,
            });
        self.settle(connection);
        next.unwrap_or(Next::Nothing)
    }

    /// Somebody terminated the connection, or a child of it: it is left alone. Whether any would have
    /// been tried, now or when there is traffic.
    pub fn hold(&mut self, connection: &str, child: Option<&str>) -> bool {
        let starts = self.connections.get_mut(connection).map(Vec::as_mut_slice);
        let mut would_be_tried = false;
        for start in starts.unwrap_or_default() {
            if child.is_none_or(|child| child == start.child) {
                let standing = start.standing();
                would_be_tried |= matches!(standing, Standing::Waiting(_) | Standing::Trapped);
                start.hold();
            }
        }
        self.settle(connection);
        would_be_tried
    }

    /// Somebody terminated this one of several IKE SAs of a connection: the children that stand or are
    /// tried with it are left alone.
    pub fn hold_with(&mut self, connection: &str, ike: IkeSaId) {
        let starts = self.connections.get_mut(connection).map(Vec::as_mut_slice);
        for start in starts.unwrap_or_default().iter_mut().filter(|start| start.is_with(ike)) {
            start.hold();
        }
        self.settle(connection);
    }

    /// Everything is left alone: the gateway stops.
    pub fn hold_all(&mut self) {
        let names: Vec<String> = self.connections.keys().cloned().collect();
        for name in names {
            self.hold(&name, None);
        }
    }

    fn change<T>(
        &mut self,
        connection: &str,
        child: &str,
        change: impl FnOnce(&mut Start) -> T,
    ) -> Option<T> {
        let starts = self.connections.get_mut(connection)?;
        let result = change(starts.iter_mut().find(|start| start.child == child)?);
        self.settle(connection);
        Some(result)
    }

    /// Brings the queue up to date with the children of a connection.
    fn settle(&mut self, connection: &str) {
        let starts = self.connections.get_mut(connection).map(Vec::as_mut_slice);
        let starts = starts.unwrap_or_default();
        for start in &mut *starts {
            if let Some(due) = start.queued.take() {
                self.queue.remove(&(due, connection.to_owned(), start.child.clone()));
            }
        }
        if starts.iter().any(|start| start.actions.may_trap()) {
            self.retrapped.insert(connection.to_owned());
        }
        if self.resting.contains(connection) || starts.iter().any(|start| start.rest().is_some()) {
            self.rerested.insert(connection.to_owned());
        }
        if starts.iter().any(|start| matches!(start.state, State::Trying(_))) {
            self.trying.insert(connection.to_owned());
            return;
        }
        self.trying.remove(connection);
        for start in starts {
            if let State::Waiting(due) = start.state {
                start.queued = Some(due);
                self.queue.insert((due, connection.to_owned(), start.child.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
