//! What is written can be read, and what cannot be read is answered.

use proptest::prelude::*;

use super::*;

fn round_trip<T>(value: &T, text: &str)
where
    T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let line = to_line(value).expect("keys are strings");
    assert_eq!(std::str::from_utf8(&line).unwrap(), format!("{text}\n"));
    assert_eq!(&serde_json::from_slice::<T>(&line).expect("own line"), value);
}

#[test]
fn hello_is_the_first_line_as_documented() {
    let hello = Hello { culvert: "0.1.0".into(), api: 1 };
    round_trip(&hello, r#"{"culvert":"0.1.0","api":1}"#);
}

#[test]
fn requests_read_as_documented() {
    let request = |id, command| Request { id, command };
    let sas = Command::Sas { connection: None };
    round_trip(&request(7, sas), r#"{"id":7,"command":"sas"}"#);
    let target = Target::Child("c0de0001".into());
    let text = r#"{"id":1,"command":"terminate","child":"c0de0001","wait_s":0}"#;
    round_trip(&request(1, Command::Terminate { target, wait_s: 0 }), text);
    let target = Target::Ike(3);
    let text = r#"{"id":1,"command":"terminate","ike":3,"wait_s":0}"#;
    round_trip(&request(1, Command::Terminate { target, wait_s: 0 }), text);
    // Without a time it does not wait, as before there was one.
    let target = Target::All {};
    assert_eq!(
        Request::parse(br#"{"id":1,"command":"terminate","all":{}}"#),
        Ok(request(1, Command::Terminate { target, wait_s: 0 }))
    );
    let target = Target::Peer("branch.example".into());
    let text = r#"{"id":1,"command":"rekey","peer":"branch.example","wait_s":9}"#;
    round_trip(&request(1, Command::Rekey { target, wait_s: 9 }), text);
    let command = Command::Move {
        target: Target::Connection("branch".into()),
        to: Transport::Tcp,
        local: "192.0.2.1".parse().ok(),
        remote: None,
        wait_s: 1,
    };
    let text = r#"{"id":1,"command":"move","connection":"branch","to":"tcp","local":"192.0.2.1","wait_s":1}"#;
    round_trip(&request(1, command), text);
    let initiate = Command::Initiate { connection: "branch".into(), child: None, wait_s: 5 };
    let text = r#"{"id":2,"command":"initiate","connection":"branch","wait_s":5}"#;
    round_trip(&request(2, initiate), text);
    let events = Command::Events { follow: false };
    assert_eq!(Request::parse(br#"{"id":2,"command":"events"}"#), Ok(request(2, events)));
}

#[test]
fn replies_read_as_documented() {
    let end = Reply { id: 7, body: Body::End(End { rows: 2 }) };
    round_trip(&end, r#"{"id":7,"end":{"rows":2}}"#);
    let refusal = Refusal::new(Code::NotFound, "no connection is called x");
    let text = r#"{"id":7,"error":{"code":"not_found","message":"no connection is called x"}}"#;
    round_trip(&Reply { id: 7, body: Body::Error(refusal) }, text);
    let counter =
        Counter { name: "esp_replayed".into(), help: "h".into(), total: 3, workers: vec![1, 2] };
    let text = r#"{"id":1,"row":{"kind":"counter","name":"esp_replayed","help":"h","total":3,"workers":[1,2]}}"#;
    round_trip(&Reply { id: 1, body: Body::Row(Box::new(Row::Counter(counter))) }, text);
    let event = Event {
        time_ms: 5,
        connection: Some("branch".into()),
        ike: Some(3),
        peer: Some("b.example".into()),
        happening: Happening::TcpLost { reconnecting: true },
    };
    let text = r#"{"id":1,"event":{"time_ms":5,"connection":"branch","ike":3,"peer":"b.example","event":"tcp_lost","reconnecting":true}}"#;
    round_trip(&Reply { id: 1, body: Body::Event(Box::new(event)) }, text);
}

/// "Fields and kinds are only ever added": a client of today reads a gateway of tomorrow.
#[test]
fn kinds_and_fields_of_later_versions_are_read_as_unknown() {
    let row: Reply = serde_json::from_str(r#"{"id":1,"row":{"kind":"weather","rain":true}}"#)
        .expect("an unknown row");
    assert_eq!(row.body, Body::Row(Box::new(Row::Unknown)));
    let event: Event = serde_json::from_str(r#"{"time_ms":1,"event":"eclipse","moon":true}"#)
        .expect("an unknown event");
    assert_eq!(event.happening, Happening::Unknown);
    let refusal: Refusal = serde_json::from_str(r#"{"code":"too_late","message":"it is over"}"#)
        .expect("an unknown code");
    assert_eq!(refusal, Refusal::new(Code::Unknown, "it is over"));
}

/// A gateway that is there and says nothing has not gone away.
#[test]
fn a_gateway_that_does_not_answer_in_time_is_told_from_one_that_is_gone() {
    use std::{io::Write, os::unix::net::UnixListener, time::Duration};
    let path = std::env::temp_dir().join(format!("culvert-api-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).expect("bound");
    let gateway = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let hello = Hello { culvert: "0.1.0".into(), api: API_VERSION };
        stream.write_all(&to_line(&hello).expect("a line")).expect("written");
        stream
    });
    let mut client = Client::connect(&path).expect("a hello");
    std::fs::remove_file(&path).expect("removed");
    client.patience(Some(Duration::from_millis(1100))).expect("set");
    let silent = client.rows(Command::Status).expect_err("nothing is said").to_string();
    assert_eq!(silent, "the gateway has not answered for 1 s");
    drop(gateway.join().expect("no panic"));
    let gone = client.rows(Command::Status).expect_err("it is gone").to_string();
    assert!(gone.starts_with("the gateway went away: "), "{gone}");
}

#[test]
fn a_bad_request_is_answered_under_its_number_where_it_has_one() {
    for (line, id, expected) in [
        ("{\"id\":9,\"command\":\"dance\"}", 9, "unknown variant `dance`"),
        ("{\"id\":9}", 9, "missing field `command`"),
        ("{\"id\":9,\"command\":\"initiate\"}", 9, "missing field `connection`"),
        ("{\"id\":-1,\"command\":\"status\"}", 0, "invalid value"),
        ("status", 0, "expected value"),
        ("", 0, "EOF"),
    ] {
        let reply = Request::parse(line.as_bytes()).expect_err(line);
        assert_eq!(reply.id, id, "{line}");
        let Body::Error(refusal) = reply.body else { panic!("{line}: no refusal") };
        assert_eq!(refusal.code, Code::BadRequest);
        assert!(refusal.message.contains(expected), "{line}: {}", refusal.message);
    }
}

#[test]
fn a_line_may_have_exactly_the_longest_length() {
    let mut lines = LineBuffer::new(4);
    lines.feed(b"abc\nabcd");
    assert_eq!(lines.next_line(), Ok(Some(&b"abc"[..])));
    assert_eq!(lines.next_line(), Ok(None), "four octets may still be followed by nothing");
    lines.feed(b"\n");
    assert_eq!(lines.next_line(), Err(LineTooLong(4)));
}

proptest! {
    /// However the stream is cut, the lines are the same, and the buffer holds no more than one
    /// line and one piece.
    #[test]
    fn lines_do_not_depend_on_the_cuts(
        text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
        cuts in proptest::collection::vec(1usize..40, 1..40),
    ) {
        let mut lines = LineBuffer::new(64);
        let mut found: Vec<Vec<u8>> = Vec::new();
        let mut rest = text.as_slice();
        let mut failed = false;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() || failed {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            rest = after;
            lines.feed(piece);
            loop {
                match lines.next_line() {
                    Ok(Some(line)) => found.push(line.to_vec()),
                    Ok(None) => break,
                    Err(_) => { failed = true; break; }
                }
            }
        }
        let expected: Vec<&[u8]> = text.split(|octet| *octet == b'\n').collect();
        let whole = expected.split_last().map_or(&[][..], |(_, whole)| whole);
        let fit = whole.iter().take_while(|line| line.len() < 64).count();
        prop_assert_eq!(found.len(), fit);
        for (found, expected) in found.iter().zip(whole) {
            prop_assert_eq!(found.as_slice(), *expected);
        }
        let all_fit = expected.iter().all(|line| line.len() < 64);
        prop_assert!(failed || all_fit || expected.last().is_some_and(|last| last.len() == 64));
    }

    /// Garbage ends in a reply to give, never in a panic.
    #[test]
    fn garbage_is_refused_with_a_reply(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(reply) = Request::parse(&line) {
            prop_assert!(matches!(reply.body, Body::Error(_)));
            prop_assert!(to_line(&reply).expect("keys are strings").len() < REPLY_OCTETS_MAX);
        }
    }

    /// Near misses: requests with a piece replaced.
    #[test]
    fn damaged_requests_do_not_panic(at in 0usize..60, put in ".{0,8}") {
        let good = r#"{"id":1,"command":"terminate","connection":"branch","x":[1]}"#;
        let line = format!("{}{put}{}", &good[..at], &good[(at + 1).min(good.len())..]);
        let _ = Request::parse(line.as_bytes());
    }

    /// A refusal may quote the line: it must not make a line feed of its own.
    #[test]
    fn a_line_has_one_line_feed(message in any::<String>()) {
        let reply = Reply { id: 1, body: Body::Error(Refusal::new(Code::Failed, message)) };
        let line = to_line(&reply).expect("keys are strings");
        prop_assert_eq!(line.iter().filter(|octet| **octet == b'\n').count(), 1);
    }
}
