//! The control socket of the real process, and a dataplane that comes and goes.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use culvert_api::{Client, ClientError, Code, Command, REQUEST_OCTETS_MAX, Target};
use culvert_shm::{Path, Transport, Up};
use support::{Dataplane, Gateway, dataplane_section, eventually};

/// A gateway that knows one peer.
fn config() -> String {
    let connections = r#"
[connections.branch]
remote_addrs = ["192.0.2.2"]
local = { auth = "psk", id = "a.example" }
remote = { auth = "psk", id = "b.example" }
[connections.branch.children.net]
local_ts = ["10.1.0.0/24"]
remote_ts = ["10.2.0.0/24"]
[secrets.ike]
secret = "a secret of both"
"#;
    dataplane_section("192.0.2.1/24", "10.1.0.1/24") + connections
}

fn refused(client: &mut Client, command: Command) -> (Code, String) {
    match client.rows(command) {
        Err(ClientError::Refused(refusal)) => (refusal.code, refusal.message),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_gateway_says_no_in_words_that_help() {
    let gateway = Gateway::start(&config());
    let mut client = gateway.client();
    let initiate = |connection: &str, child: Option<&str>| Command::Initiate {
        connection: connection.into(),
        child: child.map(Into::into),
        wait_s: 1,
    };
    let (code, message) = refused(&mut client, initiate("brunch", None));
    assert_eq!(code, Code::NotFound);
    assert_eq!(message, "no connection is called \"brunch\"; `culvert connections` lists them");
    let sas = |connection: &str| Command::Sas { connection: Some(connection.into()) };
    let (code, message) = refused(&mut client, sas("brunch"));
    assert_eq!(code, Code::NotFound);
    assert_eq!(message, "no connection is called \"brunch\"; `culvert connections` lists them");
    assert_eq!(client.rows(sas("branch")).expect("a list"), [], "it is there, without SAs");
    let (code, message) = refused(&mut client, initiate("branch", Some("nut")));
    assert_eq!(code, Code::NotFound);
    assert_eq!(message, "connection branch has no child called \"nut\", but net");
    let (code, message) = refused(&mut client, initiate("branch", None));
    assert_eq!(code, Code::NoDataplane);
    assert!(message.contains("start culvert-dataplane"), "{message}");
    for target in [
        Target::Ike(7),
        Target::Child("c0de0001".into()),
        Target::Child("not an SPI".into()),
        Target::Connection("branch".into()),
    ] {
        let (code, message) =
            refused(&mut client, Command::Terminate { target: target.clone(), wait_s: 0 });
        assert_eq!(code, Code::NotFound, "{target:?}: {message}");
    }
    assert_eq!(client.rows(Command::Connections).expect("connections").len(), 1);
    assert_eq!(client.rows(Command::Sas { connection: None }).expect("none"), []);
}

/// The protocol as the documentation of `culvert_api` has it, without its client.
#[test]
fn the_protocol_is_lines_as_documented() {
    let gateway = Gateway::start(&config());
    let mode = std::fs::metadata(gateway.socket()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let mut stream = UnixStream::connect(gateway.socket()).expect("connected");
    stream.set_read_timeout(Some(support::PATIENCE)).expect("set");
    let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
    let mut next = || lines.next().expect("a line").expect("read");
    assert_eq!(next(), format!("{{\"culvert\":\"{}\",\"api\":1}}", env!("CARGO_PKG_VERSION")));
    stream.write_all(b"{\"id\":5,\"command\":\"tcp\"}\n").expect("written");
    assert_eq!(next(), "{\"id\":5,\"end\":{\"rows\":0}}");
    // In pieces, and two in one.
    stream.write_all(b"{\"id\":6,\"comm").expect("written");
    stream.write_all(b"and\":\"tcp\"}\nnonsense\n").expect("written");
    let (first, second) = (next(), next());
    // Answers come when they are ready, each under its number.
    let (answer, error) =
        if first.contains("\"id\":6") { (first, second) } else { (second, first) };
    assert_eq!(answer, "{\"id\":6,\"end\":{\"rows\":0}}");
    assert!(error.starts_with("{\"id\":0,\"error\":{\"code\":\"bad_request\""), "{error}");
}

#[test]
fn a_line_without_end_is_cut_off() {
    let gateway = Gateway::start(&config());
    let mut stream = UnixStream::connect(gateway.socket()).expect("connected");
    stream.set_read_timeout(Some(support::PATIENCE)).expect("set");
    // The gateway hangs up while this is being written, at the latest when it is.
    let _ = stream.write_all(&vec![b'x'; REQUEST_OCTETS_MAX + 1]);
    let lines: Vec<String> = BufReader::new(stream).lines().map_while(Result::ok).collect();
    let last = lines.last().expect("an answer");
    assert!(last.contains("a line is longer than 65536 octets"), "{last}");
    assert_eq!(gateway.status().connections, 1, "others are served on");
}

/// A file that is too long to be loaded at once is no sign that the gateway has gone.
#[test]
fn a_request_that_the_gateway_would_not_take_is_not_sent() {
    let gateway = Gateway::start(&config());
    let mut client = gateway.client();
    let text = culvert_api::Confidential::new("#".repeat(8 * REQUEST_OCTETS_MAX));
    let load = Command::Load { name: "big.toml".into(), text };
    let refused = client.rows(load).expect_err("too long");
    assert!(
        matches!(refused, ClientError::RequestTooLong(octets) if octets > 8 * REQUEST_OCTETS_MAX)
    );
    assert_eq!(client.rows(Command::Connections).expect("it goes on").len(), 1);
}

#[test]
fn the_dataplane_comes_and_goes() {
    let gateway = Gateway::start(&config());
    assert!(!gateway.status().dataplane.up);
    let mut first = Dataplane::connect(&gateway);
    eventually("the dataplane is seen", || {
        first.serve();
        gateway.status().dataplane.up.then_some(())
    });
    let second = culvert_shm::rendezvous::connect(
        &gateway.dir.path().join("shm.sock"),
        None,
        &support::LAYOUT,
    );
    assert!(second.is_err(), "there is one already");
    let identity = first.bundle.region.identity();
    drop(first);
    eventually("its end is seen", || (!gateway.status().dataplane.up).then_some(()));
    let mut again = Dataplane::connect(&gateway);
    assert_eq!(again.bundle.region.identity(), identity, "it gets the memory back");
    let status = eventually("it is seen again", || {
        again.serve();
        Some(gateway.status()).filter(|status| status.dataplane.up)
    });
    assert_eq!(status.dataplane.starts, 2);
    let events = gateway.events();
    let expected = ["dataplane up", "dataplane down, packets do not pass", "dataplane up"];
    assert_eq!(events, expected);
}

#[test]
fn garbage_from_the_network_is_counted() {
    let gateway = Gateway::start(&config());
    let mut dataplane = Dataplane::connect(&gateway);
    let local = "192.0.2.1:500".parse().expect("an address");
    let remote = "203.0.113.9:500".parse().expect("an address");
    let path = Path { transport: Transport::Udp, local, remote, conn: None, pinned: false };
    for payload in [&b""[..], b"garbage", &[0; 28], &[0xff; 2000]] {
        dataplane.send(&Up::IkeMessage { path, payload });
    }
    eventually("it is dropped", || {
        dataplane.serve();
        let drops = ["ike_bad_header", "ike_bad_version", "ike_unknown_spi", "ike_bad_payload"];
        let total: u64 = drops.iter().map(|name| gateway.counter(name)).sum();
        (total == 4).then_some(())
    });
    assert_eq!(gateway.sas(), []);
}

// RFC 9329, 6.1: too many messages in a row that are nobody's mean that the stream is corrupt.
#[test]
fn a_connection_that_carries_only_garbage_is_closed() {
    let gateway = Gateway::start(&config());
    let mut dataplane = Dataplane::connect(&gateway);
    let local = "192.0.2.1:4500".parse().expect("an address");
    let remote = "203.0.113.9:50000".parse().expect("an address");
    let conn = dataplane.open(local, remote, None);
    let opened = std::time::Instant::now();
    let path = Path { transport: Transport::Tcp, local, remote, conn: Some(conn), pinned: false };
    let payloads = [&b"garbage"[..], &[0; 28], &[0xff; 2000]];
    for payload in payloads.into_iter().cycle().take(8) {
        dataplane.send(&Up::IkeMessage { path, payload });
    }
    eventually("it is closed", || {
        dataplane.serve();
        dataplane.closed.contains(&conn).then_some(())
    });
    assert!(opened.elapsed() < Duration::from_secs(4), "not for want of an IKE SA");
}

// RFC 9329, 6.1: a connection that carries no SA is nobody's.
#[test]
fn a_connection_without_ike_sa_is_closed() {
    let gateway = Gateway::start(&config());
    let mut dataplane = Dataplane::connect(&gateway);
    let local = "192.0.2.1:4500".parse().expect("an address");
    let remote = "203.0.113.9:50000".parse().expect("an address");
    let conn = dataplane.open(local, remote, None);
    eventually("it is known", || {
        dataplane.serve();
        (gateway.status().tcp_connections == 1).then_some(())
    });
    let opened = std::time::Instant::now();
    eventually("it is closed", || {
        dataplane.serve();
        dataplane.closed.contains(&conn).then_some(())
    });
    assert!(opened.elapsed() > Duration::from_secs(4), "five seconds, less what it took to see");
    eventually("it is forgotten", || (gateway.status().tcp_connections == 0).then_some(()));
}

/// A client that has gone counts no more, though nothing happens that it could be told of: whoever
/// follows events on a quiet night and ends the command would fill the places of all others.
#[test]
fn whoever_waits_and_goes_leaves_its_place_to_others() {
    let gateway = Gateway::start(&config());
    let mut followers = Vec::new();
    for _ in 0..64 {
        let mut stream = UnixStream::connect(gateway.socket()).expect("connected");
        stream.set_read_timeout(Some(support::PATIENCE)).expect("set");
        stream.write_all(b"{\"id\":1,\"command\":\"events\",\"follow\":true}\n").expect("written");
        let mut hello = String::new();
        BufReader::new(&stream).read_line(&mut hello).expect("a hello");
        followers.push(stream);
    }
    let ask = || {
        let mut client = Client::connect(&gateway.socket()).ok()?;
        client.rows(Command::Status).ok()
    };
    assert_eq!(ask(), None, "every place is taken");
    // One has only said all that it wants to say, and listens on.
    let listener = followers.pop().expect("one of them");
    listener.shutdown(std::net::Shutdown::Write).expect("shut down");
    drop(followers);
    eventually("others are served", ask);
    std::thread::sleep(Duration::from_millis(1500));
    listener.set_nonblocking(true).expect("set");
    let read = std::io::Read::read(&mut &listener, &mut [0]).expect_err("nothing to read");
    assert_eq!(read.kind(), std::io::ErrorKind::WouldBlock, "it is not hung up on");
}
