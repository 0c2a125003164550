//! Levels of the log that are changed while the gateway runs.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use culvert_api::{ClientError, Code, Command, LogLevel, Row, Target};
use support::pair::{LEFT, ask, config, initiate, pair};
use support::{Dataplane, Gateway, eventually};

/// Sets a level, and gives all of them.
fn set(gateway: &Gateway, command: Command) -> Result<Vec<(String, String)>, (Code, String)> {
    match gateway.client().rows(command) {
        Ok(rows) => Ok(rows
            .into_iter()
            .map(|row| match row {
                Row::LogLevel(LogLevel { scope, name, level }) => (scope + &name, level),
                other => panic!("not a level: {other:?}"),
            })
            .collect()),
        Err(ClientError::Refused(refusal)) => Err((refusal.code, refusal.message)),
        Err(other) => panic!("no answer: {other}"),
    }
}

fn log(connection: Option<&str>, peer: Option<&str>, level: &str) -> Command {
    let text = |text: &str| text.to_owned();
    Command::Log {
        connection: connection.map(text),
        peer: peer.map(text),
        level: Some(level.into()),
    }
}

fn levels(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(scope, level)| ((*scope).to_owned(), (*level).to_owned())).collect()
}

/// Lines about messages and events since the last call.
fn new_lines(gateway: &Gateway, seen: &mut usize) -> String {
    let all = std::fs::read_to_string(gateway.dir.path().join("log")).expect("a log");
    let new = all.get(*seen..).expect("it only grows").to_owned();
    *seen = all.len();
    new
}

#[test]
fn the_level_of_one_connection_or_peer_is_changed_while_it_runs() {
    let pair = pair("udp", true, ["shared", "shared"]);
    let gateway = &pair.left;
    assert_eq!(set(gateway, log(None, None, "warn")), Ok(levels(&[("all", "warn")])));
    let mut seen = 0;
    new_lines(gateway, &mut seen);
    initiate(&mut gateway.client()).expect("up");
    assert_eq!(new_lines(gateway, &mut seen), "", "nothing of it is worth a warning");

    let set_own = set(gateway, log(Some("other"), None, "debug"));
    assert_eq!(set_own, Ok(levels(&[("all", "warn"), ("connectionother", "debug")])));
    let rekey = || {
        let number = gateway.sas()[0].id.expect("numbered");
        ask(gateway, Command::Rekey { target: Target::Ike(number), wait_s: 15 }).expect("rekeyed");
    };
    rekey();
    let lines = new_lines(gateway, &mut seen);
    for expected in [
        "DEBUG peer: sending CREATE_CHILD_SA request ",
        "DEBUG peer: received CREATE_CHILD_SA response ",
        "INFO peer: IKE SA rekeyed from ",
        "connection=\"other\" ike=1",
    ] {
        assert!(lines.contains(expected), "{expected} is not in\n{lines}");
    }

    // The peer's own level counts before its connection's; the deletion is told after the rekey.
    eventually("the old keys' Delete is through", || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        new_lines(gateway, &mut seen).is_empty().then_some(())
    });
    set(gateway, log(None, Some("b.example"), "off")).expect("set");
    rekey();
    assert_eq!(new_lines(gateway, &mut seen), "");
    set(gateway, log(None, Some("b.example"), "default")).expect("set");
    set(gateway, log(Some("other"), None, "default")).expect("set");
    assert_eq!(set(gateway, log(None, None, "error")), Ok(levels(&[("all", "error")])));
    assert_eq!(
        set(gateway, Command::Log { connection: None, peer: None, level: None }),
        Ok(levels(&[("all", "error")]))
    );
}

#[test]
fn what_is_no_level_and_who_is_not_there_is_refused() {
    let pair = pair("udp", true, ["shared", "shared"]);
    for (command, code, beginning) in [
        (log(Some("no"), None, "debug"), Code::NotFound, "no connection is called \"no\""),
        (log(None, None, "loud"), Code::BadRequest, "\"loud\" cannot be understood"),
        (log(None, None, "inf,culvert=debug"), Code::BadRequest, "\"inf,culvert=debug\" cannot"),
        (log(None, None, "default"), Code::BadRequest, "\"default\" cannot be understood"),
        (log(Some("other"), None, "loud"), Code::BadRequest, "\"loud\" is no level: "),
        (
            log(None, None, "culvert=loud"),
            Code::BadRequest,
            "\"culvert=loud\" cannot be understood",
        ),
    ] {
        let (found, message) = set(&pair.left, command).expect_err(beginning);
        assert_eq!(found, code);
        assert!(message.starts_with(beginning), "{message}");
    }
    let none = Command::Log { connection: None, peer: None, level: None };
    assert_eq!(set(&pair.left, none), Ok(levels(&[("all", "debug")])), "as it was started");
}

// Sixty gateways that nobody answers: what there is no room for in the log is counted there.
#[test]
fn what_befalls_many_peers_at_once_is_summed_up() {
    const PEERS: usize = 60;
    let text = config(&LEFT, "udp", "shared");
    let (start, end) = (text.find("[connections.").unwrap(), text.find("[secrets.").unwrap());
    let connection = text[start..end]
        .replace("retransmit_tries = 3", "retransmit_tries = 1\nkeyingtries = 1")
        + "start_action = \"start\"\n";
    let named = |n| connection.replace("connections.other", &format!("connections.peer{n}"));
    let all: String = (0..PEERS).map(named).collect();
    let gateway = Gateway::start(&(text[..start].to_owned() + &all + &text[end..]));
    let mut dataplane = Dataplane::connect(&gateway);
    let happened = || {
        let of_peers = |e: &String| e.starts_with("IKE SA failed") || e.starts_with("given up");
        gateway.events().iter().filter(|event| of_peers(event)).count()
    };
    eventually("every one is given up", || {
        dataplane.serve();
        (happened() == 2 * PEERS).then_some(())
    });
    eventually("every line is written or counted", || {
        let log = std::fs::read_to_string(gateway.dir.path().join("log")).expect("a log");
        let of_peers = |line: &&str| line.contains("IKE SA failed") || line.contains("given up");
        let written = log.lines().filter(of_peers).count();
        let left_out: usize = (log.lines())
            .filter_map(|line| line.split_once(" more lines about peers")?.0.split(' ').next_back())
            .map(|count| count.parse::<usize>().expect("a number"))
            .sum();
        (written + left_out == 2 * PEERS).then_some(())
    });
}

/// It would be listed for ever otherwise, through restarts too.
#[test]
fn the_level_of_a_connection_that_is_gone_can_be_taken_away() {
    let gateway = Gateway::start(&config(&LEFT, "udp", "shared"));
    set(&gateway, log(Some("other"), None, "trace")).expect("set");
    let what = culvert_api::Unloaded::Connection("other".into());
    ask(&gateway, Command::Unload { what }).expect("unloaded");
    let (code, _) = set(&gateway, log(Some("other"), None, "info")).expect_err("it is gone");
    assert_eq!(code, Code::NotFound);
    let default = || set(&gateway, log(Some("other"), None, "default"));
    assert_eq!(default(), Ok(levels(&[("all", "debug")])));
    assert_eq!(default().expect_err("it has none").0, Code::NotFound);
}
