//! What an operator said to a gateway outlives `kill -9` of its control process, and ends with an
//! orderly stop.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use culvert_api::{Code, Command, Confidential, Row, Target, Unloaded};
use support::pair::{LEFT, Pair, RIGHT, ask, config, initiate, pair, pair_of, told, with};
use support::{Gateway, eventually};

/// Kills the left control process, and waits until the next one is at work.
fn crash(pair: &mut Pair) {
    pair.left.crash_and_restart();
    is_at_work(&pair.left);
}

/// What is due when a gateway begins work has begun when this returns.
fn is_at_work(gateway: &Gateway) {
    eventually("the dataplane is seen", || gateway.status().dataplane.up.then_some(()));
}

fn terminate(pair: &Pair, target: Target) {
    ask(&pair.left, Command::Terminate { target, wait_s: 15 }).expect("terminated");
    eventually("it is gone at both ends", || {
        (pair.left.status().child_sas + pair.right.status().child_sas == 0).then_some(())
    });
}

fn load(gateway: &Gateway, text: &str) -> Result<Vec<String>, (Code, String)> {
    let text = Confidential::new(text.to_owned());
    ask(gateway, Command::Load { name: "more.toml".into(), text })
}

fn connection(name: &str, remote_id: &str) -> String {
    format!(
        "[connections.{name}]\nlocal = {{ auth = \"psk\", id = \"a.example\" }}\n\
         remote = {{ auth = \"psk\", id = \"{remote_id}\" }}\n\
         [connections.{name}.children.net]\nlocal_ts = [\"10.1.0.0/24\"]\n\
         remote_ts = [\"10.9.0.0/24\"]\n"
    )
}

fn unload(gateway: &Gateway, what: Unloaded) {
    ask(gateway, Command::Unload { what }).expect("unloaded");
}

fn names(gateway: &Gateway) -> Vec<String> {
    let rows = gateway.client().rows(Command::Connections).expect("connections");
    let name = |row| match row {
        Row::Connection(connection) => connection.name,
        other => panic!("not a connection: {other:?}"),
    };
    rows.into_iter().map(name).collect()
}

fn standing() -> Pair {
    let left = with(&config(&LEFT, "udp", "shared"), "", "start_action = \"start\"");
    let pair = pair_of(&left, &config(&RIGHT, "auto", "shared"), true);
    came_up(&pair);
    pair
}

/// Whoever answered may have it before the other.
fn came_up(pair: &Pair) {
    eventually("it came up by itself", || {
        let stands = |gateway: &Gateway| gateway.status().child_sas == 1;
        (stands(&pair.left) && stands(&pair.right)).then_some(())
    });
}

#[test]
fn what_was_terminated_stays_down() {
    let mut pair = standing();
    terminate(&pair, Target::Connection("other".into()));
    for _ in 0..2 {
        crash(&mut pair);
        assert_eq!(pair.left.sas(), [], "nobody has asked for it");
    }
    initiate(&mut pair.left.client()).expect("up");
    // Now it is to stand again, whatever dies.
    let target = Target::Connection("other".into());
    ask(&pair.right, Command::Terminate { target, wait_s: 5 }).expect("terminated");
    eventually("it comes back", || (pair.right.status().child_sas == 1).then_some(()));
}

/// The process dies before the peer has answered to the deletion.
#[test]
fn what_is_being_terminated_stays_down() {
    let mut pair = standing();
    pair.network.pass_udp(false);
    let target = Target::Connection("other".into());
    ask(&pair.left, Command::Terminate { target, wait_s: 0 }).expect("begun");
    crash(&mut pair);
    pair.network.pass_udp(true);
    told(&pair.left, "IKE SA down: ");
    assert_eq!(pair.left.sas(), []);
    let events = pair.left.events();
    assert!(!events.iter().any(|event| event.starts_with("next attempt")), "{events:#?}");
}

#[test]
fn what_the_peer_has_closed_rests_as_its_close_action_says() {
    let actions = "start_action = \"start\"\nclose_action = \"none\"";
    let left = with(&config(&LEFT, "udp", "shared"), "", actions);
    let mut pair = pair_of(&left, &config(&RIGHT, "auto", "shared"), true);
    eventually("it came up by itself", || (pair.right.status().child_sas == 1).then_some(()));
    let target = Target::Connection("other".into());
    ask(&pair.right, Command::Terminate { target, wait_s: 5 }).expect("terminated");
    told(&pair.left, "IKE SA down: deleted by the peer");
    crash(&mut pair);
    assert_eq!(pair.left.sas(), []);
}

/// The key of the file is wrong, the one that was loaded is right, and it is needed again.
#[test]
fn loaded_secrets_are_there_when_they_are_needed() {
    let mut pair = pair("udp", true, ["wrong", "s\u{e4}cret \\\"quoted\\\""]);
    let key =
        "[secrets.more]\nid = [\"b.example\", \"keyid:x\"]\nsecret = 's\u{e4}cret \"quoted\"'\n";
    assert_eq!(load(&pair.left, key).expect("loaded"), ["secret more added"]);
    initiate(&mut pair.left.client()).expect("up");
    let before = pair.left.sas().remove(0);
    crash(&mut pair);
    assert_eq!(pair.left.sas()[0].spi_initiator, before.spi_initiator);
    let command = Command::Reauthenticate { target: Target::All {}, wait_s: 15 };
    ask(&pair.left, command).expect("authenticated anew");
    unload(&pair.left, Unloaded::Secret("more".into()));
    terminate(&pair, Target::All {});
    crash(&mut pair);
    let (_, message) = initiate(&mut pair.left.client()).expect_err("the file's key is wrong");
    assert!(message.contains("AUTHENTICATION_FAILED"), "{message}");
}

#[test]
fn loaded_connections_stand_and_unloaded_ones_are_gone() {
    let usual = config(&LEFT, "udp", "shared");
    let mut pair = pair("udp", true, ["shared", "shared"]);
    let begin = usual.find("[connections.other]").expect("there");
    let end = usual.find("[secrets.ike]").expect("there");
    let renamed = usual[begin..end].replace("connections.other", "connections.\"the same\"");
    let loaded = with(&renamed, "", "start_action = \"start\"");
    assert_eq!(load(&pair.left, &loaded).expect("loaded"), ["connection the same added"]);
    unload(&pair.left, Unloaded::Connection("other".into()));
    came_up(&pair);
    let before = pair.left.sas().remove(0);
    for _ in 0..2 {
        crash(&mut pair);
        assert_eq!(names(&pair.left), ["the same"]);
        let after = pair.left.sas().remove(0);
        assert_eq!((after.id, &after.spi_initiator), (before.id, &before.spi_initiator));
    }
    let said = ask(&pair.left, Command::Reload).expect("reloaded");
    let gone = "connection the same removed; 1 IKE SAs of it are being deleted";
    assert_eq!(said, [gone, "connection other added"], "as the file says");
    crash(&mut pair);
    assert_eq!(names(&pair.left), ["other"], "the reload took back what was said");
}

/// What was loaded needs a key that the file has no more.
#[test]
fn what_fits_no_more_is_told_and_left_out() {
    let mut pair = pair("udp", true, ["shared", "shared"]);
    let branch = connection("branch", "c.example");
    load(&pair.left, &branch).expect("loaded");
    load(&pair.left, &connection("depot", "b.example")).expect("loaded");
    let owned = "[secrets.ike]\nid = [\"b.example\"]";
    pair.left.configure(&config(&LEFT, "udp", "shared").replace("[secrets.ike]", owned));
    crash(&mut pair);
    let refused = told(&pair.left, "configuration refused: ");
    assert!(refused.contains("no pre-shared key belongs to c.example"), "{refused}");
    assert_eq!(names(&pair.left), ["depot", "other"]);
}

/// The levels after a command about them.
fn levels(gateway: &Gateway, command: Command) -> Vec<(String, String, String)> {
    let rows = gateway.client().rows(command).expect("levels");
    let level = |row| match row {
        Row::LogLevel(level) => (level.scope, level.name, level.level),
        other => panic!("not a level: {other:?}"),
    };
    rows.into_iter().map(level).collect()
}

#[test]
fn levels_of_the_log_stay() {
    let mut pair = pair("udp", true, ["shared", "shared"]);
    let set = |connection: Option<&str>, peer: Option<&str>, level: &str| {
        let [connection, peer] = [connection, peer].map(|text| text.map(ToOwned::to_owned));
        levels(&pair.left, Command::Log { connection, peer, level: Some(level.to_owned()) })
    };
    set(None, None, "warn,culvert_ike=debug");
    set(None, Some("192.0.2.2"), "trace");
    set(Some("other"), None, "debug");
    let before = set(None, Some("192.0.2.2"), "default");
    assert_eq!(before.len(), 2);
    crash(&mut pair);
    let ask = Command::Log { connection: None, peer: None, level: None };
    assert_eq!(levels(&pair.left, ask), before);
}

/// Whoever stops the gateway and starts it again wants what the file says.
#[test]
fn an_orderly_stop_ends_what_was_said() {
    let mut pair = standing();
    let branch = connection("branch", "c.example");
    load(&pair.left, &branch).expect("loaded");
    terminate(&pair, Target::All {});
    assert!(pair.left.stop().success());
    pair.left.restart();
    is_at_work(&pair.left);
    assert_eq!(names(&pair.left), ["other"]);
    eventually("it comes up by itself", || (pair.right.status().child_sas == 1).then_some(()));
}

/// Said before a dataplane has brought the memory that it is kept in.
#[test]
fn what_is_said_before_there_is_a_dataplane_is_kept_when_it_comes() {
    let mut gateway = Gateway::start(&config(&LEFT, "udp", "shared"));
    unload(&gateway, Unloaded::Connection("other".into()));
    let mut dataplane = support::Dataplane::connect(&gateway);
    eventually("the dataplane is seen", || {
        dataplane.serve();
        gateway.status().dataplane.up.then_some(())
    });
    gateway.crash_and_restart();
    eventually("the dataplane is seen", || {
        dataplane.serve();
        gateway.status().dataplane.up.then_some(())
    });
    assert_eq!(names(&gateway), Vec::<String>::new());
}
