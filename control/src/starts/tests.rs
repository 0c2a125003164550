//! What is done about children without SA.

use std::sync::Arc;

use culvert_ike::{ChildConfig, ConnectionConfig, IdentityPattern};

use super::one::RETRY_MAX;
use super::*;
use crate::config::{Action, Child};

const IKE: IkeSaId = IkeSaId(1);

fn at(seconds: u64) -> Instant {
    Instant::from_micros(seconds * 1_000_000)
}

fn actions(start: Action, close: Action, dpd: Action) -> Child {
    Child { start, close, dpd, life_time: None }
}

const STAND: [Action; 3] = [Action::Start; 3];

fn connection(name: &str, children: &[(&str, [Action; 3])], tries: Option<u32>) -> Connection {
    let id = "gw.example".parse().expect("an identity");
    let mut ike = ConnectionConfig::new(name, id, IdentityPattern::Any);
    let mut list = Vec::new();
    for (child, [start, close, dpd]) in children {
        let ts = vec!["10.0.0.0/8".parse().expect("a selector")];
        ike.children.push(Arc::new(ChildConfig::new(child, ts.clone(), ts)));
        list.push(actions(*start, *close, *dpd));
    }
    Connection {
        ike: Arc::new(ike),
        children: list,
        tcp_congestion: None,
        dscp: None,
        keyingtries: tries,
    }
}

fn starts_of(connections: &[Connection]) -> Starts {
    let mut starts = Starts::default();
    starts.configure(connections.iter(), at(0));
    starts
}

fn starts() -> Starts {
    let children = [("one", STAND), ("two", STAND), ("asked", [Action::None; 3])];
    starts_of(&[connection("branch", &children, None)])
}

fn names(connection: &str, child: &str) -> Option<(String, String)> {
    Some((connection.into(), child.into()))
}

#[test]
fn children_of_a_connection_are_tried_one_after_the_other() {
    let mut starts = starts();
    assert_eq!(starts.due(at(0)), names("branch", "one"));
    starts.trying("branch", "one", IKE);
    assert_eq!(starts.due(at(0)), None, "the second waits for the first one's IKE SA");
    assert_eq!(starts.next(), None, "and nobody is woken for it");
    starts.up("branch", "one", IKE, at(1));
    assert_eq!(starts.due(at(1)), names("branch", "two"));
    starts.up("branch", "two", IKE, at(1));
    assert_eq!(starts.next(), None);
}

#[test]
fn waits_double_up_to_a_minute_and_begin_anew_after_a_stable_time() {
    let mut starts = starts();
    starts.hold("branch", Some("two"));
    starts.trying("branch", "one", IKE);
    let waits: Vec<u64> = (0..9)
        .map(|_| match starts.failed("branch", "one", at(0), 0) {
            Next::In(wait) => wait.as_secs(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    starts.up("branch", "one", IKE, at(100));
    let ended = Some(DownReason::PeerDead);
    let next = starts.ike_down("branch", IKE, ended, (at(110), 0));
    assert_eq!(next, Next::In(RETRY_MAX), "it stood too shortly");
    starts.up("branch", "one", IKE, at(200));
    let next = starts.down("branch", IKE, "one", ended, (at(260), 0));
    assert_eq!(next, Next::In(RETRY_MIN));
    assert_eq!(starts.next(), Some(at(261)));
}

#[test]
fn what_somebody_terminated_stays_down() {
    let mut starts = starts();
    starts.trying("branch", "one", IKE);
    starts.hold("branch", None);
    let next = starts.ike_down("branch", IKE, Some(DownReason::TerminatedLocally), (at(1), 0));
    assert_eq!(next, Next::Nothing);
    assert_eq!((starts.due(at(1000)), starts.next()), (None, None));
}

#[test]
fn the_end_of_another_ike_sa_changes_nothing() {
    let mut starts = starts();
    starts.up("branch", "one", IkeSaId(2), at(5));
    let before = starts.next();
    let ended = Some(DownReason::PeerDead);
    assert_eq!(starts.down("branch", IKE, "one", ended, (at(6), 0)), Next::Nothing);
    assert_eq!(starts.ike_down("branch", IKE, ended, (at(6), 0)), Next::Nothing);
    assert_eq!(starts.next(), before);
}

#[test]
fn a_child_follows_its_sa_to_the_ike_sa_that_was_authenticated_anew() {
    let mut starts = starts_of(&[connection("branch", &[("one", STAND)], None)]);
    starts.up("branch", "one", IKE, at(1));
    starts.up("branch", "one", IkeSaId(2), at(100));
    let ended = Some(DownReason::Reauthenticated);
    assert_eq!(starts.ike_down("branch", IKE, ended, (at(100), 0)), Next::Nothing);
    let ended = Some(DownReason::PeerDead);
    let next = starts.ike_down("branch", IkeSaId(2), ended, (at(300), 0));
    assert_eq!(next, Next::In(RETRY_MIN));
}

#[test]
fn how_it_ended_says_what_is_done() {
    let children = [("one", [Action::None, Action::Start, Action::Trap])];
    let mut starts = starts_of(&[connection("branch", &children, None)]);
    assert_eq!(starts.next(), None, "nothing at the start");
    let mut end = |reason| {
        starts.up("branch", "one", IKE, at(100));
        let next = starts.ike_down("branch", IKE, Some(reason), (at(200), 0));
        let [(_, trapped)] = starts.changed_traps().try_into().expect("one may have changed");
        (next, trapped.len())
    };
    assert_eq!(end(DownReason::DeletedByPeer), (Next::In(RETRY_MIN), 0));
    assert_eq!(end(DownReason::PeerDead), (Next::Nothing, 1));
    assert_eq!(end(DownReason::Expired), (Next::Nothing, 0));
}

#[test]
fn traffic_sets_up_what_is_trapped_and_only_that() {
    let children = [("one", [Action::Trap; 3]), ("two", [Action::None; 3])];
    let mut starts = starts_of(&[connection("branch", &children, None)]);
    let branch = |children: &[&str]| {
        vec![("branch".to_owned(), children.iter().map(|child| (*child).to_owned()).collect())]
    };
    assert_eq!(starts.changed_traps(), branch(&["one"]));
    assert_eq!(starts.changed_traps(), [], "nothing changed");
    assert!(!starts.acquire("branch", "two", at(5)));
    assert!(starts.acquire("branch", "one", at(5)));
    assert!(!starts.acquire("branch", "one", at(5)), "it is under way");
    assert_eq!(starts.due(at(5)), names("branch", "one"));
    starts.trying("branch", "one", IKE);
    let next = starts.ike_down("branch", IKE, None, (at(6), 0));
    assert_eq!((next, starts.next()), (Next::Nothing, None), "until there is traffic again");
    assert!(starts.acquire("branch", "one", at(7)));
    starts.hold("branch", None);
    assert!(!starts.acquire("branch", "one", at(8)), "somebody terminated it");
    assert_eq!(starts.changed_traps(), branch(&[]));
}

#[test]
fn keyingtries_ends_the_attempts() {
    let mut starts = starts_of(&[connection("branch", &[("one", STAND)], Some(2))]);
    starts.trying("branch", "one", IKE);
    assert_eq!(starts.ike_down("branch", IKE, None, (at(0), 0)), Next::In(RETRY_MIN));
    starts.trying("branch", "one", IKE);
    assert_eq!(starts.ike_down("branch", IKE, None, (at(9), 0)), Next::GivenUp(2));
    assert_eq!(starts.next(), None);
}

/// What has stood, for long or for a moment, is tried as often as what never did.
#[test]
fn keyingtries_counts_attempts_and_not_ends() {
    let mut starts = starts_of(&[connection("branch", &[("one", STAND)], Some(2))]);
    let is_next = |next| matches!(next, Next::In(_));
    for (from, to) in [(0, 500), (600, 601)] {
        starts.up("branch", "one", IKE, at(from));
        let dead = Some(DownReason::PeerDead);
        assert!(is_next(starts.ike_down("branch", IKE, dead, (at(to), 0))));
        starts.trying("branch", "one", IKE);
        assert!(is_next(starts.ike_down("branch", IKE, None, (at(to + 9), 0))), "one of two");
        starts.trying("branch", "one", IKE);
        assert_eq!(starts.ike_down("branch", IKE, None, (at(to + 20), 0)), Next::GivenUp(2));
    }
    starts.trying("branch", "one", IKE);
    assert!(is_next(starts.ike_down("branch", IKE, None, (at(700), 0))));
    starts.hold("branch", None);
    starts.trying("branch", "one", IKE);
    let next = starts.ike_down("branch", IKE, None, (at(800), 0));
    assert!(is_next(next), "somebody has begun it anew");
}

#[test]
fn only_so_many_are_tried_at_once() {
    let all: Vec<Connection> = (0..TRYING_MAX + 1)
        .map(|number| connection(&format!("c{number}"), &[("one", STAND)], None))
        .collect();
    let mut starts = starts_of(&all);
    let mut begun = Vec::new();
    while let Some(turn) = starts.next() {
        let (connection, child) = starts.due(turn).expect("its turn has come");
        starts.trying(&connection, &child, IkeSaId(begun.len() as u64));
        begun.push(connection);
    }
    assert_eq!(begun.len(), TRYING_MAX);
    starts.up(&begun[0], "one", IkeSaId(0), at(10));
    assert!(starts.due(at(10)).is_some(), "one is free again");
}

/// A process that takes the place of another finds all whose peers are dead due at once.
#[test]
fn what_is_due_at_once_is_begun_one_after_the_other() {
    let all: Vec<Connection> = (0..TRYING_MAX)
        .map(|number| connection(&format!("c{number}"), &[("one", STAND)], None))
        .collect();
    let mut starts = starts_of(&all);
    let mut ike = 0;
    for second in 0..4 {
        let (mut turn, end) = (at(second), at(second + 1));
        let mut begun = 0;
        while let Some((connection, child)) = starts.due(turn) {
            ike += 1;
            starts.trying(&connection, &child, IkeSaId(ike));
            // None answers, and the next attempt is due when all others are.
            assert_ne!(starts.failed(&connection, &child, at(0), 0), Next::Nothing);
            begun += 1;
            assert_eq!(starts.due(turn), None, "no two in one moment");
            turn = starts.next().expect("all are to stand").max(turn);
            if turn >= end {
                break;
            }
        }
        assert!(begun <= 200, "{begun} in a second");
    }
    assert!(ike as usize >= TRYING_MAX, "all had their turn: {ike}");
}

#[test]
fn a_new_configuration_touches_only_what_is_new_in_it() {
    let old =
        [connection("stays", &[("one", STAND)], None), connection("goes", &[("one", STAND)], None)];
    let mut starts = starts_of(&old);
    for name in ["stays", "goes"] {
        starts.up(name, "one", IKE, at(1));
    }
    let children = [("one", STAND), ("two", STAND)];
    let new = [connection("stays", &children, None), connection("comes", &[("one", STAND)], None)];
    starts.configure(new.iter(), at(50));
    let mut due = Vec::new();
    while let Some((connection, child)) = starts.next().and_then(|turn| starts.due(turn)) {
        starts.up(&connection, &child, IKE, at(50));
        due.push(format!("{connection} {child}"));
    }
    assert_eq!(due, ["comes one", "stays two"]);
    let ended = Some(DownReason::PeerDead);
    assert_eq!(starts.ike_down("goes", IKE, ended, (at(60), 0)), Next::Nothing);
}
