//! How long SAs live by their settings, and what is done when they end.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use culvert_api::{Command, Row, Standing, Target};
use culvert_shm::Up;
use support::eventually;
use support::pair::{LEFT, Pair, RIGHT, ask, config, initiate, pair_of, told, with};

/// Two gateways of which the left one has these settings besides.
fn pair(connection: &str, child: &str) -> Pair {
    pair_over(connection, child, true)
}

/// [`pair`], with UDP lost from the first datagram on if it does not pass.
fn pair_over(connection: &str, child: &str, passes_udp: bool) -> Pair {
    let left = with(&config(&LEFT, "udp", "shared"), connection, child);
    pair_of(&left, &config(&RIGHT, "auto", "shared"), passes_udp)
}

fn up(connection: &str, child: &str) -> Pair {
    let pair = pair(connection, child);
    initiate(&mut pair.left.client()).expect("up");
    eventually("the responder shows it", || (pair.right.status().child_sas == 1).then_some(()));
    eventually("the worker has it", || (!pair.network.ends()[0].sas.is_empty()).then_some(()));
    pair
}

fn assert_rekeyed(pair: &Pair, why: &str) {
    let event = told(&pair.left, "CHILD SA net rekeyed from ");
    assert!(event.ends_with(&format!(" from here: {why}")), "{event}");
    eventually("one pair is left", || {
        let sas = pair.left.sas();
        (sas.len() == 1 && sas[0].children.len() == 1).then_some(())
    });
}

#[test]
fn a_child_sa_is_rekeyed_by_its_age() {
    let pair = up("", "rekey_time = 2\nlife_time = 60\nrand_time = 0");
    assert_rekeyed(&pair, "its time had come");
}

#[test]
fn an_ike_sa_is_rekeyed_by_its_age() {
    let pair = up("rekey_time = 2\nover_time = 60\nrand_time = 0", "");
    let event = told(&pair.left, "IKE SA rekeyed from ");
    assert!(event.ends_with(" from here: its time had come"), "{event}");
}

#[test]
fn an_ike_sa_is_authenticated_anew_by_its_age() {
    let pair = up("reauth_time = 2", "");
    told(&pair.left, "authenticated anew: IKE SA ");
}

#[test]
fn a_child_sa_is_rekeyed_by_what_it_has_carried() {
    let pair = up("", "rekey_packets = 2\nlife_packets = 1000");
    pair.network.ends()[0].count_traffic(100);
    pair.network.ends()[0].count_traffic(100);
    assert_rekeyed(&pair, "it had carried enough");
}

#[test]
fn a_child_sa_ends_when_it_has_carried_all_that_it_may() {
    let pair = up("", "life_bytes = 5000");
    pair.network.ends()[0].count_traffic(5000);
    told(&pair.left, "CHILD SA net ");
    eventually("it has ended", || {
        let events = pair.left.events();
        events.iter().any(|event| event.contains("down: its lifetime is over")).then_some(())
    });
}

// RFC 4303, 3.3.3: a sequence number is never used twice, so an SA without new keys would end.
#[test]
fn a_child_sa_is_rekeyed_before_its_sequence_numbers_are_used_up() {
    let pair = up("", "");
    pair.network.ends()[0].exhaust();
    assert_rekeyed(&pair, "its sequence numbers are nearly used up");
}

#[test]
fn a_peer_that_does_not_answer_is_called_again_where_dpd_action_says_so() {
    let pair = up("dpd_delay = 1", "dpd_action = \"restart\"");
    pair.network.pass_udp(false);
    let down = told(&pair.left, "IKE SA down: ");
    assert!(down.contains("does not answer any more"), "{down}");
    told(&pair.left, "next attempt in 1 s");
    pair.network.pass_udp(true);
    eventually("it is up again", || (pair.left.status().child_sas == 1).then_some(()));
}

#[test]
fn what_the_peer_deletes_comes_back_only_where_close_action_says_so() {
    let pair = pair("", "start_action = \"start\"\nclose_action = \"none\"");
    let delete = || {
        let target = Target::Connection("other".into());
        let command = Command::Terminate { target, wait_s: 15 };
        pair.right.client().rows(command).expect("deleted");
    };
    eventually("it came up by itself", || (pair.right.status().child_sas == 1).then_some(()));
    delete();
    told(&pair.left, "IKE SA down: deleted by the peer");
    let events = pair.left.events();
    assert!(!events.iter().any(|event| event.starts_with("next attempt")), "{events:#?}");
    assert_eq!(now(&pair.left), (Standing::Down, Some("deleted by the peer".to_owned())));
    assert_eq!(pair.left.sas(), []);
}

/// One of two pairs of a child goes, as when both ends have begun it: nothing is to be begun for it
/// as long as the other stands.
#[test]
fn a_child_that_another_pair_still_stands_for_is_not_begun_again() {
    let left = with(&config(&LEFT, "udp", "shared"), "", "start_action = \"start\"");
    let right = config(&RIGHT, "auto", "shared");
    let twin = right.replace("[secrets.ike]", "[connections.other.children.twin]\nlocal_ts = [\"10.2.0.0/24\"]\nremote_ts = [\"10.1.0.0/24\"]\n[secrets.ike]");
    let pair = pair_of(&left, &twin, true);
    eventually("it came up by itself", || (pair.right.status().child_sas == 1).then_some(()));
    let child = Some("twin".to_owned());
    let command = Command::Initiate { connection: "other".into(), child, wait_s: 15 };
    ask(&pair.right, command).expect("up");
    eventually("both stand", || (pair.left.status().child_sas == 2).then_some(()));
    let first =
        pair.right.sas()[0].children.iter().find(|c| c.name == "net").expect("it").spi_in.clone();
    let command = Command::Terminate { target: Target::Child(first), wait_s: 15 };
    ask(&pair.right, command).expect("deleted");
    told(&pair.left, "CHILD SA net ");
    eventually("one is gone", || {
        let events = pair.left.events();
        events.iter().any(|event| event.contains("down: deleted by the peer")).then_some(())
    });
    assert_eq!(now(&pair.left), (Standing::Up, None));
    let events = pair.left.events();
    assert!(!events.iter().any(|event| event.starts_with("next attempt")), "{events:#?}");
    // What is left is what stands: with its end the child is begun anew.
    let command = Command::Terminate { target: Target::Connection("other".into()), wait_s: 15 };
    ask(&pair.right, command).expect("deleted");
    told(&pair.left, "next attempt");
}

/// Whoever deletes one of two IKE SAs of a connection, as when both ends have begun one, does not mean
/// the other one: when that ends, it is begun again.
#[test]
fn one_of_two_ike_sas_is_terminated_and_the_other_one_is_still_to_stand() {
    let never = "unique = \"never\"";
    let left = with(&config(&LEFT, "udp", "shared"), never, "start_action = \"start\"");
    let right = with(&config(&RIGHT, "auto", "shared"), never, "");
    let (head, other) = right.split_once("[connections.other]").expect("it has one");
    let (other, secrets) = other.split_once("[secrets.ike]").expect("it has one");
    let twin = other.replace("connections.other", "connections.twin");
    let right =
        format!("{head}[connections.other]{other}[connections.twin]{twin}[secrets.ike]{secrets}");
    let pair = pair_of(&left, &right, true);
    eventually("it came up by itself", || (pair.left.status().child_sas == 1).then_some(()));
    let first = pair.left.sas()[0].id.expect("numbered");
    let command = Command::Initiate { connection: "twin".into(), child: None, wait_s: 15 };
    ask(&pair.right, command).expect("up");
    let second = eventually("both stand", || {
        let sas = pair.left.sas();
        sas.iter().filter_map(|sa| sa.id).find(|id| *id != first).filter(|_| sas.len() == 2)
    });
    ask(&pair.left, Command::Terminate { target: Target::Ike(second), wait_s: 15 }).expect("gone");
    assert_eq!(now(&pair.left), (Standing::Up, None));
    let command = Command::Terminate { target: Target::All {}, wait_s: 15 };
    ask(&pair.right, command).expect("deleted");
    told(&pair.left, "next attempt");
    // The last one is meant with all that the connection has.
    let last = eventually("it is up again", || pair.left.sas().first().and_then(|sa| sa.id));
    eventually("it stands", || (pair.left.status().child_sas == 1).then_some(()));
    ask(&pair.left, Command::Terminate { target: Target::Ike(last), wait_s: 15 }).expect("gone");
    assert_eq!(now(&pair.left).0, Standing::Held);
}

/// Likewise with one of two pairs of a child.
#[test]
fn one_of_two_pairs_is_terminated_and_the_child_is_still_to_stand() {
    let left = with(&config(&LEFT, "udp", "shared"), "", "start_action = \"start\"");
    let right = config(&RIGHT, "auto", "shared");
    let (_, net) = right.split_once("[connections.other.children.net]").expect("it has one");
    let (net, _) = net.split_once("[secrets.ike]").expect("it has one");
    let twin = format!("[connections.other.children.twin]{net}[secrets.ike]");
    let pair = pair_of(&left, &right.replace("[secrets.ike]", &twin), true);
    eventually("it came up by itself", || (pair.right.status().child_sas == 1).then_some(()));
    let child = Some("twin".to_owned());
    let command = Command::Initiate { connection: "other".into(), child, wait_s: 15 };
    ask(&pair.right, command).expect("up");
    let spis = |count: usize| {
        eventually("they stand", || {
            let children = pair.left.sas().into_iter().flat_map(|sa| sa.children);
            let spis: Vec<String> = children.map(|child| child.spi_in).collect();
            (spis.len() == count).then_some(spis)
        })
    };
    let terminate = |spi_in: &str| {
        let target = Target::Child(spi_in.to_owned());
        ask(&pair.left, Command::Terminate { target, wait_s: 15 }).expect("gone");
    };
    terminate(&spis(2)[0]);
    assert_eq!(now(&pair.left), (Standing::Up, None));
    let command = Command::Terminate { target: Target::Connection("other".into()), wait_s: 15 };
    ask(&pair.right, command).expect("deleted");
    told(&pair.left, "next attempt");
    // The last one is meant with the child.
    terminate(&spis(1)[0]);
    assert_eq!(now(&pair.left).0, Standing::Held);
}

#[test]
fn attempts_end_where_keyingtries_says_so() {
    let pair = pair("keyingtries = 2", "start_action = \"start\"");
    let failed = |gateway: &support::Gateway| {
        let events = gateway.events();
        events.iter().filter(|event| event.starts_with("IKE SA failed")).count()
    };
    eventually("it came up by itself", || (pair.left.status().child_sas == 1).then_some(()));
    assert_eq!(now(&pair.left), (Standing::Up, None));
    pair.network.pass_udp(false);
    let target = Target::Connection("other".into());
    pair.right.client().rows(Command::Terminate { target, wait_s: 0 }).expect("deleted");
    // The right end's Delete is lost as well; the left one finds out by itself.
    let target = Target::Ike(pair.left.sas()[0].id.expect("numbered"));
    pair.left.client().rows(Command::Terminate { target, wait_s: 15 }).expect("deleted");
    let command = Command::Initiate { connection: "other".into(), child: None, wait_s: 0 };
    pair.left.client().rows(command).expect("begun");
    assert_eq!(now(&pair.left).0, Standing::Trying);
    eventually("it is tried again", || (now(&pair.left).0 == Standing::Waiting).then_some(()));
    assert_eq!(told(&pair.left, "given up"), "given up after 2 attempts, as keyingtries says");
    assert_eq!(failed(&pair.left), 2);
    let (standing, why) = now(&pair.left);
    assert_eq!(standing, Standing::GivenUp);
    assert!(why.as_ref().is_some_and(|why| why.contains("did not answer over udp")), "{why:?}");
}

/// Whoever mends what was wrong need not know that the gateway had given up.
#[test]
fn what_was_given_up_is_tried_again_when_its_connection_or_key_changes() {
    let tries = "keyingtries = 1";
    let left = with(&config(&LEFT, "udp", "wrong"), tries, "start_action = \"start\"");
    let nobody = left
        .replace(&format!("remote_addrs = [\"{}\"]", LEFT.peer), "remote_addrs = [\"192.0.2.9\"]");
    let pair = pair_of(&nobody, &config(&RIGHT, "auto", "shared"), false);
    let is_given_up = || {
        eventually("it is given up", || (now(&pair.left).0 == Standing::GivenUp).then_some(()));
    };
    is_given_up();
    pair.network.pass_udp(true);
    // Nothing of it changed.
    pair.left.configure(&(nobody + "[secrets.more]\nid = [\"c.example\"]\nsecret = \"x\"\n"));
    ask(&pair.left, Command::Reload).expect("reloaded");
    assert_eq!(now(&pair.left).0, Standing::GivenUp);
    pair.left.configure(&left);
    ask(&pair.left, Command::Reload).expect("reloaded");
    told(&pair.left, "IKE SA failed: the peer refused with AUTHENTICATION_FAILED");
    is_given_up();
    pair.left.configure(&left.replace("\"wrong\"", "\"shared\""));
    ask(&pair.left, Command::Reload).expect("reloaded");
    eventually("it is up", || (pair.right.status().child_sas == 1).then_some(()));
}

/// The peer has rekeyed a pair, and its Delete of the old one is lost: that is not what is to stand.
#[test]
fn the_old_pair_of_a_rekey_is_terminated_and_the_child_is_still_to_stand() {
    let (pair, old, _) = rekeyed_in_part();
    let target = Target::Child(old);
    ask(&pair.left, Command::Terminate { target, wait_s: 0 }).expect("begun");
    pair.network.pass_udp(true);
    eventually("it is gone", || (spis(&pair.left).len() == 1).then_some(()));
    let command = Command::Terminate { target: Target::Connection("other".into()), wait_s: 15 };
    ask(&pair.right, command).expect("deleted");
    told(&pair.left, "next attempt");
}

/// Who terminates the new one does not want the old one back.
#[test]
fn the_new_pair_of_a_rekey_is_terminated_and_the_child_with_it() {
    let (pair, _, new) = rekeyed_in_part();
    let target = Target::Child(new);
    ask(&pair.left, Command::Terminate { target, wait_s: 0 }).expect("begun");
    pair.network.pass_udp(true);
    eventually("both are gone", || spis(&pair.left).is_empty().then_some(()));
    assert_eq!(now(&pair.left).0, Standing::Held);
}

fn spis(gateway: &support::Gateway) -> Vec<String> {
    let sas = gateway.sas().into_iter();
    sas.flat_map(|sa| sa.children).map(|child| child.spi_in).collect()
}

/// Two gateways of which the right one has rekeyed the child, and cannot delete the old pair yet; the
/// inbound SPIs of the left one, the old and the new.
fn rekeyed_in_part() -> (Pair, String, String) {
    let patient = |config: String| config.replace("retransmit_tries = 3", "retransmit_tries = 9");
    let left = with(&config(&LEFT, "udp", "shared"), "", "start_action = \"start\"");
    let pair = pair_of(&patient(left), &patient(config(&RIGHT, "auto", "shared")), true);
    let is_up = |gateway: &support::Gateway| gateway.status().child_sas == 1;
    eventually("it came up by itself", || (is_up(&pair.left) && is_up(&pair.right)).then_some(()));
    let [old] = spis(&pair.left).try_into().expect("one pair");
    pair.network.pass_datagrams(2);
    let target = Target::Child(spis(&pair.right).remove(0));
    ask(&pair.right, Command::Rekey { target, wait_s: 15 }).expect("rekeyed");
    let both = spis(&pair.left);
    assert_eq!(both.len(), 2, "the old one as well");
    let new = both.into_iter().find(|spi_in| *spi_in != old).expect("another one");
    (pair, old, new)
}

/// How the only child is now, and why.
fn now(gateway: &support::Gateway) -> (Standing, Option<String>) {
    let rows = gateway.client().rows(Command::Connections).expect("connections");
    let [Row::Connection(connection)] = rows.as_slice() else { panic!("not one: {rows:?}") };
    let [child] = connection.children.as_slice() else { panic!("not one: {connection:?}") };
    assert_eq!(child.retry_s.is_some(), child.now == Standing::Waiting, "{child:?}");
    (child.now, child.reason.clone())
}

/// The slot of the only trap that the left worker has.
fn trap(pair: &Pair) -> Option<u32> {
    let ends = pair.network.ends();
    let mut traps = ends[0].policies.iter().filter(|(_, policy)| policy.is_trap());
    let first = traps.next().map(|(index, _)| *index);
    assert_eq!(traps.next(), None, "one trap at most");
    first
}

#[test]
fn traffic_sets_up_what_is_trapped() {
    let mut pair = pair("", "start_action = \"trap\"");
    let slot = eventually("the worker has the trap", || trap(&pair));
    assert_eq!(pair.network.ends()[0].policies[&slot].remote.to_string(), LEFT.remote_ts);
    assert_eq!(pair.left.sas(), []);
    assert_eq!(now(&pair.left), (Standing::Trapped, None));
    pair.network.ends()[0].send(&Up::Acquire { policy: slot });
    told(&pair.left, "traffic for CHILD SA net, setting it up");
    eventually("it is up", || (pair.right.status().child_sas == 1).then_some(()));
    eventually("the SA's own policy comes before the trap", || {
        let ends = pair.network.ends();
        let priority = |trap| {
            let mut found = ends[0].policies.values().filter(|policy| policy.is_trap() == trap);
            found.next().map(|policy| policy.priority)
        };
        (priority(false)? < priority(true)?).then_some(())
    });
    // A repeated call changes nothing.
    pair.network.ends()[0].send(&Up::Acquire { policy: slot });
    pair.left.crash_and_restart();
    eventually("the new process has set its own", || trap(&pair).filter(|new| *new != slot));
    let target = Target::Connection("other".into());
    let command = Command::Terminate { target, wait_s: 15 };
    pair.left.client().rows(command).expect("terminated");
    eventually("what somebody terminated stays down", || trap(&pair).is_none().then_some(()));
    assert_eq!(now(&pair.left), (Standing::Held, Some("terminated here".to_owned())));
}

/// Nothing stands yet, but it would be tried: that it is not, is what the command is for.
#[test]
fn what_waits_for_traffic_or_its_next_attempt_is_terminated_too() {
    for action in ["trap", "start"] {
        let pair = pair_over("", &format!("start_action = \"{action}\""), false);
        let waits = [Standing::Trapped, Standing::Waiting];
        eventually("it waits", || waits.contains(&now(&pair.left).0).then_some(()));
        let terminate = || {
            let target = Target::Connection("other".into());
            ask(&pair.left, Command::Terminate { target, wait_s: 15 })
        };
        let told = terminate().expect("done");
        assert_eq!(told, ["other is not tried any more until somebody initiates it"]);
        assert_eq!(now(&pair.left).0, Standing::Held);
        let (_, again) = terminate().expect_err("there is nothing left to terminate");
        assert_eq!(again, "connection other has no SA; `culvert connections` says why");
    }
}
