//! Children that are to stand always: `start_action = "start"`.
//!
//! Each is tried, and after a failure tried again, ever more slowly, for ever. A little randomness
//! keeps many gateways that lost the same peer from calling it in step.

use std::time::Duration;

use culvert_ike::{IkeSaId, Instant};

use crate::config::Connection;

/// Wait after the first failure.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A child that stood so long begins with the shortest wait again.
const STABLE: Duration = Duration::from_secs(60);

/// How far a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be tried then.
    Waiting(Instant),
    /// Being tried.
    Trying(IkeSaId),
    /// It stands, since then.
    Up(IkeSaId, Instant),
    /// Somebody terminated it; it stays so until somebody initiates it.
    Held,
}

/// A child that is to stand.
struct Start {
    connection: String,
    child: String,
    state: State,
    failures: u32,
}

/// All children that are to stand.
pub struct Starts {
    list: Vec<Start>,
}

impl Starts {
    /// The children of these connections that are to stand, all due at `now`.
    #[must_use]
    pub fn new(connections: &[Connection], now: Instant) -> Self {
        let mut list = Vec::new();
        for connection in connections {
            let children = connection.ike.children.iter().zip(&connection.children);
            for (child, _) in children.filter(|(_, child)| child.start) {
                list.push(Start {
                    connection: connection.ike.name.clone(),
                    child: child.name.clone(),
                    state: State::Waiting(now),
                    failures: 0,
                });
            }
        }
        Self { list }
    }

    /// When the next one is due.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        let due = self.list.iter().filter_map(|start| match start.state {
            State::Waiting(due) => Some(due),
            _ => None,
        });
        due.min()
    }

    /// One child that is due: connection and child. Tell what became of it with [`Self::trying`] or
    /// [`Self::failed`]. While a child of a connection is being tried the others wait for its IKE
    /// SA.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<(String, String)> {
        let trying = |connection: &str| {
            let of_connection = self.list.iter().filter(|start| start.connection == connection);
            of_connection.into_iter().any(|start| matches!(start.state, State::Trying(_)))
        };
        let mut due = self.list.iter().filter(|start| match start.state {
            State::Waiting(due) => due <= now && !trying(&start.connection),
            _ => false,
        });
        due.next().map(|start| (start.connection.clone(), start.child.clone()))
    }

    fn find(&mut self, connection: &str, child: &str) -> Option<&mut Start> {
        let same = |start: &&mut Start| start.connection == connection && start.child == child;
        self.list.iter_mut().find(same)
    }

    /// A child is being tried with this IKE SA.
    pub fn trying(&mut self, connection: &str, child: &str, ike: IkeSaId) {
        if let Some(start) = self.find(connection, child) {
            start.state = State::Trying(ike);
        }
    }

    /// A child stands, whoever set it up.
    pub fn up(&mut self, connection: &str, child: &str, ike: IkeSaId, now: Instant) {
        if let Some(start) = self.find(connection, child) {
            start.state = State::Up(ike, now);
        }
    }

    /// A child could not be tried, or has failed. The wait until it is due again, in case it is.
    pub fn failed(
        &mut self,
        connection: &str,
        child: &str,
        now: Instant,
        random: u8,
    ) -> Option<Duration> {
        self.find(connection, child)?.retry(now, random)
    }

    /// A child of this IKE SA failed or went: it is due again after a wait, which is returned.
    pub fn down(
        &mut self,
        ike: IkeSaId,
        child: &str,
        now: Instant,
        random: u8,
    ) -> Option<Duration> {
        let mut of_child = self.list.iter_mut().filter(|start| start.child == child);
        of_child.find(|start| start.is_with(ike))?.retry(now, random)
    }

    /// An IKE SA failed or went, with all its children. The shortest wait of them.
    pub fn ike_down(&mut self, ike: IkeSaId, now: Instant, random: u8) -> Option<Duration> {
        let of_ike = self.list.iter_mut().filter(|start| start.is_with(ike));
        of_ike.filter_map(|start| start.retry(now, random)).min()
    }

    /// Somebody terminated the connection, or a child of it: it is left alone.
    pub fn hold(&mut self, connection: &str, child: Option<&str>) {
        let concerned = |start: &&mut Start| {
            start.connection == connection && child.is_none_or(|child| child == start.child)
        };
        self.list.iter_mut().filter(concerned).for_each(|start| start.state = State::Held);
    }

    /// Everything is left alone: the gateway stops.
    pub fn hold_all(&mut self) {
        self.list.iter_mut().for_each(|start| start.state = State::Held);
    }
}

impl Start {
    fn is_with(&self, ike: IkeSaId) -> bool {
        matches!(self.state, State::Trying(other) | State::Up(other, _) if other == ike)
    }

    fn retry(&mut self, now: Instant, random: u8) -> Option<Duration> {
        match self.state {
            State::Held => return None,
            State::Up(_, since) if now.since(since) >= STABLE => self.failures = 0,
            _ => {}
        }
        let doubled = RETRY_MIN.saturating_mul(1 << self.failures.min(16)).min(RETRY_MAX);
        // Up to a quarter more.
        let wait = doubled + doubled.saturating_mul(random.into()) / 1024;
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting(now + wait);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use culvert_ike::{ChildConfig, ConnectionConfig, IdentityPattern};

    use super::*;
    use crate::config::Child;

    fn starts() -> Starts {
        let id = "gw.example".parse().expect("an identity");
        let mut ike = ConnectionConfig::new("branch", id, IdentityPattern::Any);
        let mut children = Vec::new();
        for (name, start) in [("one", true), ("two", true), ("asked", false)] {
            let ts = vec!["10.0.0.0/8".parse().expect("a selector")];
            ike.children.push(Arc::new(ChildConfig::new(name, ts.clone(), ts)));
            children.push(Child { start, life_time: Duration::from_secs(60) });
        }
        Starts::new(&[Connection { ike: Arc::new(ike), children }], at(0))
    }

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    const IKE: IkeSaId = IkeSaId(1);

    #[test]
    fn children_of_one_connection_are_tried_one_after_the_other() {
        let mut starts = starts();
        assert_eq!(starts.due(at(0)), Some(("branch".into(), "one".into())));
        starts.trying("branch", "one", IKE);
        assert_eq!(starts.due(at(0)), None, "the second waits for the first one's IKE SA");
        starts.up("branch", "one", IKE, at(1));
        assert_eq!(starts.due(at(1)), Some(("branch".into(), "two".into())));
        starts.up("branch", "two", IKE, at(1));
        assert_eq!(starts.next(), None);
    }

    #[test]
    fn waits_double_up_to_a_minute_and_begin_anew_after_a_stable_time() {
        let mut starts = starts();
        starts.hold("branch", None);
        starts.up("branch", "one", IKE, at(0));
        let waits: Vec<u64> = (0..9)
            .filter_map(|_| starts.failed("branch", "one", at(0), 0))
            .map(|wait| wait.as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        starts.up("branch", "one", IKE, at(100));
        assert_eq!(starts.ike_down(IKE, at(110), 0), Some(RETRY_MAX), "it stood too shortly");
        starts.up("branch", "one", IKE, at(200));
        assert_eq!(starts.down(IKE, "one", at(260), 0), Some(RETRY_MIN));
        assert_eq!(starts.next(), Some(at(261)));
    }

    #[test]
    fn what_somebody_terminated_stays_down() {
        let mut starts = starts();
        starts.trying("branch", "one", IKE);
        starts.hold("branch", None);
        assert_eq!(starts.ike_down(IKE, at(1), 0), None);
        assert_eq!((starts.due(at(1000)), starts.next()), (None, None));
    }

    #[test]
    fn the_down_of_another_ike_sa_changes_nothing() {
        let mut starts = starts();
        starts.up("branch", "one", IkeSaId(2), at(5));
        assert_eq!(starts.down(IKE, "one", at(6), 0), None);
        assert_eq!(starts.ike_down(IKE, at(6), 0), None);
    }
}
