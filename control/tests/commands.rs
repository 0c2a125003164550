//! What people ask of a gateway whose SAs stand: new keys, another way, their end.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use culvert_api::{Code, Command, IkeSa, Request, Target, Transport, to_line};
use support::pair::{LEFT, Pair, RIGHT, ask, config, initiate, pair, pair_of, told};
use support::{Gateway, eventually};

const WAIT_S: u32 = 15;

/// Two gateways with `other` up.
fn up(transport: &str) -> Pair {
    let pair = pair(transport, true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    eventually("the responder shows it", || (pair.right.status().child_sas == 1).then_some(()));
    pair
}

fn one(gateway: &Gateway) -> IkeSa {
    let mut sas = gateway.sas();
    assert_eq!(sas.len(), 1, "{sas:#?}");
    sas.remove(0)
}

fn other() -> Target {
    Target::Connection("other".into())
}

fn rekey(target: Target) -> Command {
    Command::Rekey { target, wait_s: WAIT_S }
}

fn move_to(to: Transport) -> Command {
    Command::Move { target: other(), to, local: None, remote: None, wait_s: WAIT_S }
}

// RFC 7296, 1.3.3 and 2.8.
#[test]
fn a_child_sa_is_rekeyed_make_before_break() {
    let pair = up("udp");
    let before = one(&pair.left).children.remove(0);
    let target = Target::Child(before.spi_in.clone());
    let outcome = ask(&pair.left, rekey(target)).expect("rekeyed");
    let after = eventually("the old one is deleted", || {
        let mut children = one(&pair.left).children;
        (children.len() == 1).then(|| children.remove(0))
    });
    assert_ne!(after.spi_in, before.spi_in);
    assert_eq!(outcome, [format!("CHILD SA net of other is rekeyed: {}", after.spi_in)]);
    let from_to = format!("CHILD SA net rekeyed from {} to {}", before.spi_in, after.spi_in);
    assert_eq!(told(&pair.left, &from_to), format!("{from_to} from here: asked for"));
    let from_to = format!("CHILD SA net rekeyed from {} to {}", before.spi_out, after.spi_out);
    assert_eq!(told(&pair.right, &from_to), format!("{from_to} by the peer"));
    eventually("workers have the new one only", || {
        pair.network.ends().iter().all(|end| end.sas.len() == 1).then_some(())
    });
    assert!(after.rekey_s.is_some_and(|seconds| seconds > 60), "{after:?}");
}

// RFC 7296, 1.3.2 and 2.18: its CHILD SAs go over to the new keys.
#[test]
fn an_ike_sa_is_rekeyed_and_keeps_its_number_and_children() {
    let pair = up("tcp");
    let before = one(&pair.left);
    let target = Target::Ike(before.id.expect("numbered"));
    let outcome = ask(&pair.left, rekey(target)).expect("rekeyed");
    let after = one(&pair.left);
    assert_ne!(
        (&after.spi_initiator, &after.spi_responder),
        (&before.spi_initiator, &before.spi_responder)
    );
    assert_eq!((after.id, &after.children[0].spi_in), (before.id, &before.children[0].spi_in));
    let spis = format!("{} {}", after.spi_initiator, after.spi_responder);
    let number = before.id.expect("numbered");
    assert_eq!(outcome, [format!("IKE SA {number} of other is rekeyed: SPIs {spis}")]);
    let old = format!("{} {}", before.spi_initiator, before.spi_responder);
    let event = format!("IKE SA rekeyed from {old} to {spis}");
    assert_eq!(told(&pair.left, &event), format!("{event} from here: asked for"));
    assert_eq!(told(&pair.right, &event), format!("{event} by the peer"));
}

#[test]
fn everything_of_a_connection_is_rekeyed_from_either_end() {
    let pair = up("udp");
    let (ike, child) = (one(&pair.left).spi_initiator, one(&pair.left).children.remove(0).spi_in);
    let target = Target::Peer("a.example".into());
    let outcome = ask(&pair.right, rekey(target)).expect("rekeyed");
    assert_eq!(outcome.len(), 2, "the IKE SA and its CHILD SA: {outcome:?}");
    told(&pair.left, "IKE SA rekeyed from");
    told(&pair.left, "CHILD SA net rekeyed from");
    eventually("the old ones are gone", || {
        let sa = one(&pair.left);
        let children: Vec<&String> = sa.children.iter().map(|child| &child.spi_in).collect();
        (sa.spi_initiator != ike && children.len() == 1 && *children[0] != child).then_some(())
    });
}

// RFC 7296, 2.8.3: a new IKE SA first, then the old one goes.
#[test]
fn an_ike_sa_is_authenticated_anew() {
    let pair = up("udp");
    let before = one(&pair.left);
    let command = Command::Reauthenticate { target: other(), wait_s: WAIT_S };
    let outcome = ask(&pair.left, command).expect("authenticated");
    let after = one(&pair.left);
    let (old, new) = (before.id.expect("numbered"), after.id.expect("numbered"));
    assert_ne!(old, new);
    let expected =
        format!("IKE SA {old} of other is authenticated anew: IKE SA {new} has its place");
    assert_eq!(outcome, [expected]);
    assert_eq!(after.children.len(), 1);
    assert_ne!(after.children[0].spi_in, before.children[0].spi_in);
    told(&pair.left, &format!("authenticated anew: IKE SA {new} has its place"));
    eventually("the responder has the new one only", || {
        let sas = pair.right.sas();
        (sas.len() == 1 && sas[0].spi_initiator == after.spi_initiator).then_some(())
    });
}

#[test]
fn a_reauthentication_that_fails_leaves_the_old_sa() {
    let pair = up("udp");
    let before = one(&pair.left);
    pair.network.pass_udp(false);
    let command = Command::Reauthenticate { target: other(), wait_s: WAIT_S };
    let (code, message) = ask(&pair.left, command).expect_err("no answer");
    assert_eq!(code, Code::Failed);
    assert!(message.contains("stays, and it is tried again"), "{message}");
    assert!(message.contains("did not answer over udp"), "{message}");
    assert_eq!(one(&pair.left).id, before.id);
    told(&pair.left, "not authenticated anew, it is tried again: ");
}

// RFC 4555; RFC 9329, 7.1: UDP to TCP to UDP on one IKE SA.
#[test]
fn an_ike_sa_is_moved_between_transports() {
    let pair = up("auto");
    let before = one(&pair.left);
    assert!(before.mobike);
    assert_eq!(before.transport, Transport::Native, "no NAT lies between");
    let outcome = ask(&pair.left, move_to(Transport::Tcp)).expect("moved");
    let number = before.id.expect("numbered");
    assert_eq!(outcome, [format!("IKE SA {number} of other moved to 192.0.2.2:4500 over tcp")]);
    for gateway in [&pair.left, &pair.right] {
        eventually("it is on TCP", || (one(gateway).transport == Transport::Tcp).then_some(()));
    }
    told(&pair.left, "peer moved to 192.0.2.2:4500 over tcp, from 192.0.2.2:4500 over native");
    let again = ask(&pair.left, move_to(Transport::Tcp)).expect("there already");
    assert_eq!(
        again,
        [format!("IKE SA {number} of other goes to 192.0.2.2:4500 over tcp already")]
    );
    ask(&pair.left, move_to(Transport::Native)).expect("moved back");
    for gateway in [&pair.left, &pair.right] {
        eventually("it is native", || (one(gateway).transport == Transport::Native).then_some(()));
    }
    let after = one(&pair.left);
    assert_eq!((after.id, &after.children[0].spi_in), (before.id, &before.children[0].spi_in));
}

#[test]
fn a_move_to_udp_that_gets_no_answer_says_so_and_stays_on_tcp() {
    let pair = up("auto");
    ask(&pair.left, move_to(Transport::Tcp)).expect("moved");
    eventually("it is on TCP", || (one(&pair.right).transport == Transport::Tcp).then_some(()));
    pair.network.pass_udp(false);
    let (code, message) = ask(&pair.left, move_to(Transport::Udp)).expect_err("no answer");
    assert_eq!(code, Code::Failed);
    assert!(message.starts_with("not moved: no answer over UDP"), "{message}");
    assert_eq!(one(&pair.left).transport, Transport::Tcp);
    told(&pair.left, "not moved: no answer over UDP");
}

#[test]
fn moves_that_cannot_be_are_refused_at_once() {
    let pair = up("tcp");
    let refused = |gateway: &Gateway, command| ask(gateway, command).expect_err("refused");
    let (code, message) = refused(&pair.left, move_to(Transport::Udp));
    assert_eq!((code, message.as_str()), (Code::Failed, "other allows TCP only"));
    let (_, message) = refused(&pair.right, move_to(Transport::Udp));
    assert!(message.contains("begun by this gateway"), "the responder: {message}");
    let strange = |local: Option<&str>, remote: Option<&str>| Command::Move {
        target: other(),
        to: Transport::Tcp,
        local: local.map(|text| text.parse().expect("an address")),
        remote: remote.map(|text| text.parse().expect("an address")),
        wait_s: WAIT_S,
    };
    let (_, message) = refused(&pair.left, strange(Some("192.0.2.9"), None));
    assert_eq!(message, "192.0.2.9 is not one of the addresses in [dataplane.outer]: 192.0.2.1");
    let (_, message) = refused(&pair.left, strange(None, Some("2001:db8::1")));
    assert_eq!(message, "192.0.2.1 and 2001:db8::1 are of different address families");
}

#[test]
fn a_child_sa_is_deleted_and_its_ike_sa_stays() {
    let pair = up("udp");
    let spi_in = one(&pair.left).children.remove(0).spi_in;
    let target = Target::Child(spi_in.clone());
    let command = Command::Terminate { target, wait_s: WAIT_S };
    let outcome = ask(&pair.left, command).expect("deleted");
    assert_eq!(outcome, [format!("CHILD SA net {spi_in} of other is gone: terminated here")]);
    assert_eq!(one(&pair.left).children, []);
    eventually("the peer has none", || one(&pair.right).children.is_empty().then_some(()));
    let again = initiate(&mut pair.left.client()).expect("up again");
    assert!(again.starts_with("other is up: IKE SA "), "{again}");
}

#[test]
fn sas_are_deleted_by_number_by_peer_and_altogether() {
    let pair = up("udp");
    type Targets = [fn(&IkeSa) -> Target; 4];
    let targets: Targets = [
        |sa| Target::Ike(sa.id.expect("numbered")),
        |_| Target::Peer("b.example".into()),
        |_| Target::Peer("192.0.2.2".into()),
        |_| Target::All {},
    ];
    for target in targets {
        initiate(&mut pair.left.client()).expect("up");
        let sa = one(&pair.left);
        let command = Command::Terminate { target: target(&sa), wait_s: WAIT_S };
        let outcome = ask(&pair.left, command).expect("deleted");
        let number = sa.id.expect("numbered");
        assert_eq!(outcome, [format!("IKE SA {number} of other is gone: terminated here")]);
        assert_eq!(pair.left.sas(), []);
        eventually("the peer has none", || pair.right.sas().is_empty().then_some(()));
    }
}

#[test]
fn what_is_only_being_set_up_is_taken_down_too() {
    let pair = pair("udp", false, ["shared", "shared"]);
    let command = Command::Initiate { connection: "other".into(), child: None, wait_s: 0 };
    ask(&pair.left, command).expect("begun");
    let command = Command::Terminate { target: other(), wait_s: WAIT_S };
    let outcome = ask(&pair.left, command).expect("gone");
    assert_eq!(outcome, ["IKE SA 1 of other is gone: terminated here"]);
    assert_eq!(pair.left.sas(), []);
}

#[test]
fn what_does_not_come_in_time_says_that_it_goes_on() {
    let pair = up("udp");
    pair.network.pass_udp(false);
    let command = Command::Rekey { target: other(), wait_s: 1 };
    let mut client = pair.left.client();
    let mut rows = Vec::new();
    let error = client.ask(command, |item| rows.push(item)).expect_err("no answer");
    assert_eq!(error.to_string(), "2 of 2 did not work");
    assert_eq!(rows.len(), 2, "each is told by itself: {rows:?}");
    let rows = format!("{rows:?}");
    assert!(rows.contains("is being rekeyed: no outcome within 1 s; it goes on"), "{rows}");
}

/// RFC 7296, 2.8: the peer has made a new pair, and its Delete of the old one is lost. Who asks for
/// a rekey of the old one now has what was wanted.
#[test]
fn what_the_peer_has_rekeyed_meanwhile_is_rekeyed() {
    let patient = |config: String| config.replace("retransmit_tries = 3", "retransmit_tries = 9");
    let left = patient(config(&LEFT, "udp", "shared"));
    let pair = pair_of(&left, &patient(config(&RIGHT, "auto", "shared")), true);
    initiate(&mut pair.left.client()).expect("up");
    let spi_in = |gateway: &Gateway| one(gateway).children.remove(0).spi_in;
    let old = spi_in(&pair.left);
    pair.network.pass_datagrams(2);
    ask(&pair.right, rekey(Target::Child(spi_in(&pair.right)))).expect("rekeyed");
    assert_eq!(one(&pair.left).children.len(), 2, "the old one as well");

    let mut stream = UnixStream::connect(pair.left.socket()).expect("connected");
    stream.set_read_timeout(Some(support::PATIENCE)).expect("set");
    let mut lines = BufReader::new(stream.try_clone().expect("a copy")).lines();
    let mut next = || lines.next().expect("a line").expect("read");
    next();
    for (id, command) in [(1, rekey(Target::Child(old.clone()))), (2, Command::Tcp)] {
        let line = to_line(&Request { id, command }).expect("a line");
        stream.write_all(&line).expect("written");
    }
    // What was asked for later is answered: the rekey is waited for.
    assert_eq!(next(), "{\"id\":2,\"end\":{\"rows\":0}}");
    pair.network.pass_udp(true);
    let row = next();
    assert!(row.contains(&format!("CHILD SA net {old} of other is gone: rekeyed")), "{row}");
    assert_eq!(next(), "{\"id\":1,\"end\":{\"rows\":1}}");
}

#[test]
fn what_does_not_exist_is_not_found() {
    let pair = up("udp");
    type Make = fn(Target) -> Command;
    let commands: [Make; 4] = [
        |target| Command::Rekey { target, wait_s: 1 },
        |target| Command::Reauthenticate { target, wait_s: 1 },
        |target| Command::Terminate { target, wait_s: 1 },
        |target| Command::Move { target, to: Transport::Tcp, local: None, remote: None, wait_s: 1 },
    ];
    for command in commands {
        for (target, expected) in [
            (Target::Ike(77), "there is no IKE SA 77; `culvert sas` lists them"),
            (Target::Child("c0de".into()), "no CHILD SA has the inbound SPI \"c0de\""),
            (Target::Child("net".into()), "no CHILD SA has the inbound SPI \"net\""),
            (Target::Connection("no".into()), "no connection is called \"no\""),
            (Target::Peer("c.example".into()), "no IKE SA is with \"c.example\""),
        ] {
            let (code, message) = ask(&pair.left, command(target)).expect_err("not found");
            assert_eq!(code, Code::NotFound);
            assert!(message.starts_with(expected), "{message}");
        }
    }
    assert_eq!(pair.left.sas().len(), 1, "nothing happened to what is there");
}

/// What a command that does not wait says.
fn begin(child: &str, wait_s: u32) -> Command {
    Command::Initiate { connection: "other".into(), child: Some(child.into()), wait_s }
}

// An operator who asks again because UDP gets no answer.
#[test]
fn whoever_asks_again_for_what_is_being_set_up_waits_for_the_same_ike_sa() {
    let more = "[connections.other.children.more]\nlocal_ts = [\"10.1.9.0/24\"]\n\
                remote_ts = [\"10.2.9.0/24\"]\n[secrets.ike]";
    let left = config(&LEFT, "auto", "shared").replace("[secrets.ike]", more);
    let right = config(&RIGHT, "auto", "shared").replace(
        "[secrets.ike]",
        &more.replace("10.1.", "10.0.").replace("10.2.", "10.1.").replace("10.0.", "10.2."),
    );
    let pair = pair_of(&left, &right, false);
    let begun = ask(&pair.left, begin("net", 0)).expect("begun").remove(0);
    assert!(begun.starts_with("other is being set up as IKE SA "), "{begun}");
    let again = ask(&pair.left, begin("net", 0)).expect("begun").remove(0);
    assert!(again.starts_with("other is being set up already, as IKE SA "), "{again}");
    let another = ask(&pair.left, begin("more", WAIT_S)).expect("up").remove(0);
    assert!(another.contains("CHILD SA more"), "{another}");
    let sa = one(&pair.left);
    assert_eq!(sa.children.len(), 2, "{sa:#?}");
    assert_eq!(pair.left.events().iter().filter(|e| e.starts_with("IKE SA up")).count(), 1);
}

#[test]
fn what_is_being_deleted_is_not_up() {
    let mut pair = up("tcp");
    let before = one(&pair.left);
    pair.right.kill();
    let target = Target::Ike(before.id.expect("numbered"));
    ask(&pair.left, Command::Terminate { target, wait_s: 0 }).expect("begun");
    let begun = ask(&pair.left, begin("net", 0)).expect("begun").remove(0);
    assert!(begun.starts_with("other is being set up as IKE SA "), "{begun}");
}
