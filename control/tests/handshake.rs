//! Two real control processes, joined by dataplanes without packets, set SAs up with each other.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use culvert_api::{Code, Command, IkeState, Row, Target};
use culvert_shm::Transport;
use support::pair::{LEFT, Pair, RIGHT, ask, config, initiate, pair, pair_of, with};
use support::{Dataplane, Gateway, Network, eventually};

/// Each end has one SA, and what one seals with the other opens with.
fn assert_keys_agree(pair: &Pair) {
    eventually("both workers have taken the SA up", || {
        let ends = pair.network.ends();
        ends.iter().all(|end| !end.sas.is_empty() && !end.policies.is_empty()).then_some(())
    });
    let ends = pair.network.ends();
    let [left, right] = [&ends[0], &ends[1]].map(|end| {
        assert_eq!(end.sas.len(), 1, "one SA pair");
        assert_eq!(end.policies.len(), 1, "one policy");
        end.sas.values().next().expect("counted")
    });
    assert_eq!((left.spi_in, left.spi_out), (right.spi_out, right.spi_in));
    assert_eq!(left.keymat_in.as_bytes(), right.keymat_out.as_bytes());
    assert_eq!(left.keymat_out.as_bytes(), right.keymat_in.as_bytes());
    assert_ne!(left.keymat_in.as_bytes(), left.keymat_out.as_bytes());
    assert_eq!(left.keymat_in.as_bytes().len(), 36, "AES-256 and the salt");
    assert!(left.esn && right.esn);
    let policy = ends[0].policies.values().next().expect("counted");
    assert_eq!(policy.remote.to_string(), LEFT.remote_ts);
}

fn transports(pair: &Pair) -> Vec<Transport> {
    let ends = pair.network.ends();
    ends.iter().flat_map(|end| end.paths.values().map(|path| path.transport)).collect()
}

#[test]
fn over_udp() {
    let pair = pair("udp", true, ["shared", "shared"]);
    let message = initiate(&mut pair.left.client()).expect("up");
    assert!(message.starts_with("other is up: IKE SA "), "{message}");
    eventually("the responder shows it", || (pair.right.status().child_sas == 1).then_some(()));
    assert_keys_agree(&pair);
    let sas = pair.left.sas();
    assert_eq!(sas.len(), 1);
    assert_eq!(sas[0].state, IkeState::Established);
    assert_eq!(sas[0].remote_id, "b.example");
    assert_eq!(sas[0].proposal, "aes128gcm16-prfsha256-x25519");
    assert_eq!(sas[0].children[0].proposal, "aes256gcm16-esn");
    assert_eq!(sas[0].children[0].remote_ts, ["10.2.0.0/24"]);
    // What workers count is what the table shows.
    pair.network.ends()[0].count_traffic(1400);
    let sas = pair.left.sas();
    assert_eq!((sas[0].children[0].packets_in, sas[0].children[0].octets_out), (1, 1400));
    let again = initiate(&mut pair.left.client()).expect("up already");
    assert!(again.starts_with("other is up already"), "{again}");
}

#[test]
fn over_tcp() {
    let pair = pair("tcp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    eventually("the responder shows it", || (pair.right.status().child_sas == 1).then_some(()));
    assert_keys_agree(&pair);
    assert_eq!(transports(&pair), [Transport::Tcp, Transport::Tcp]);
    let sas = pair.left.sas();
    assert_eq!(sas[0].tcp.as_deref(), Some("0/0/1"));
    let rows = pair.left.client().rows(Command::Tcp).expect("rows");
    match rows.as_slice() {
        [Row::Tcp(tcp)] => {
            assert_eq!((tcp.originator, tcp.connection.as_deref()), (true, Some("other")));
        }
        other => panic!("not one connection: {other:?}"),
    }
    // The responder's worker may not give it up for a stranger's any more. The originator's knows.
    eventually("the responder's worker is told", || {
        let ends = pair.network.ends();
        assert_eq!(ends[0].proven, []);
        (ends[1].proven.len() == 1).then_some(())
    });
}

/// What governs the only TCP connection of a gateway, as it says itself.
fn congestion(gateway: &Gateway) -> Option<String> {
    match gateway.client().rows(Command::Tcp).expect("rows").as_slice() {
        [Row::Tcp(tcp)] => tcp.congestion.clone(),
        _ => None,
    }
}

// Each end says what governs what it sends: the originator with the connect, the responder as soon
// as it knows whose connection it is.
#[test]
fn congestion_control_is_a_connections_own_at_either_end() {
    let left = config(&LEFT, "tcp", "shared");
    let right = with(&config(&RIGHT, "auto", "shared"), "tcp_congestion = \"cubic\"", "");
    let pair = pair_of(&left, &right, true);
    let governed = |left: &str, right: &str| {
        eventually("both ends say what governs", || {
            let told = [congestion(&pair.left)?, congestion(&pair.right)?];
            (told == [left, right]).then_some(())
        });
    };
    initiate(&mut pair.left.client()).expect("up");
    governed("bbr", "cubic");

    // A changed file is about new connections.
    pair.left.configure(&with(&left, "tcp_congestion = \"cubic\"", ""));
    pair.right.configure(&right.replace("\"cubic\"", "\"bbr\""));
    for gateway in [&pair.left, &pair.right] {
        let said = ask(gateway, Command::Reload).expect("reloaded");
        let stays = "connection other changed; 1 IKE SAs stay and take it up when they are renewed";
        assert_eq!(said, [stays]);
    }
    governed("bbr", "cubic");
    let target = Target::Connection("other".into());
    pair.left.client().rows(Command::Terminate { target, wait_s: 15 }).expect("terminated");
    initiate(&mut pair.left.client()).expect("up");
    governed("cubic", "bbr");
}

// RFC 9329, 6.1: a new TCP connection has the flow label of the one before, also when a new control
// process asks for it.
#[test]
fn rfc9329_6_1_the_flow_label_is_the_configured_connections_own() {
    let mut pair = pair("tcp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    let target = Target::Connection("other".into());
    pair.left.client().rows(Command::Terminate { target, wait_s: 15 }).expect("terminated");
    pair.left.crash_and_restart();
    eventually("the dataplane is seen", || pair.left.status().dataplane.up.then_some(()));
    initiate(&mut pair.left.client()).expect("up again");
    let labels = pair.network.ends()[0].labels.clone();
    assert!((1..1 << 20).contains(&labels[0]), "{labels:x?}");
    assert_eq!(labels, [labels[0]; 2]);
}

// RFC 9329, 6.8 and 9.3: one connection, one service level, whatever carries it.
#[test]
fn rfc9329_9_3_a_connection_has_one_service_level() {
    for transport in ["udp", "tcp"] {
        let left = with(&config(&LEFT, transport, "shared"), "dscp = \"101110\"", "");
        let right = with(&config(&RIGHT, "auto", "shared"), "dscp = \"001010\"", "");
        let pair = pair_of(&left, &right, true);
        initiate(&mut pair.left.client()).expect("up");
        let levels =
            |end: usize| pair.network.ends()[end].dscps.iter().copied().collect::<Vec<_>>();
        let (left, right) = match transport {
            // Until it is known who the peer is, its messages are answered as anybody's.
            "udp" => (vec!["ESP", "IKE in UDP"], vec![("IKE in UDP", Some(0))]),
            _ => (vec!["ESP", "TCP opened"], vec![]),
        };
        let of_right = if transport == "udp" { "IKE in UDP" } else { "TCP accepted" };
        let left: Vec<_> = left.into_iter().map(|what| (what, Some(46))).collect();
        let right = [vec![("ESP", Some(10))], right, vec![(of_right, Some(10))]].concat();
        eventually("the workers know", || (levels(0) == left && levels(1) == right).then_some(()));
    }
    let pair = pair("udp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    eventually("packets bear the inner ones'", || {
        let levels = &pair.network.ends()[0].dscps;
        (*levels == [("ESP", None), ("IKE in UDP", Some(0))].into()).then_some(())
    });
}

// RFC 9329, 5.1: TCP when UDP got no answer, with a new IKE_SA_INIT.
#[test]
fn over_tcp_where_udp_is_blocked() {
    let pair = pair("auto", false, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    eventually("the responder shows it", || (pair.right.status().child_sas == 1).then_some(()));
    assert_keys_agree(&pair);
    assert_eq!(transports(&pair), [Transport::Tcp, Transport::Tcp]);
    let events = pair.left.events();
    let fallback = "no answer over UDP, trying TCP to 192.0.2.2:4500";
    assert!(events.iter().any(|event| event == fallback), "{events:#?}");
}

/// `start_action = "start"`: up by itself, and again after the peer has taken it down.
#[test]
fn a_child_that_is_to_stand_comes_up_by_itself() {
    let start = "esp_proposals = [\"aes256gcm16-esn\"]\nstart_action = \"start\"";
    let left =
        config(&LEFT, "tcp", "shared").replace("esp_proposals = [\"aes256gcm16-esn\"]", start);
    let left = Gateway::start(&left);
    let right = Gateway::start(&config(&RIGHT, "auto", "shared"));
    let ends = (Dataplane::connect(&left), Dataplane::connect(&right));
    let network = Network::join(ends.0, ends.1, true);
    let pair = Pair { left, right, network };
    eventually("it is up", || (pair.right.status().child_sas == 1).then_some(()));
    assert_keys_agree(&pair);
    let target = Target::Connection("other".into());
    pair.right.client().rows(Command::Terminate { target, wait_s: 0 }).expect("terminated");
    let retry = "next attempt in 1 s".to_owned();
    eventually("it waits", || pair.left.events().contains(&retry).then_some(()));
    eventually("it is up again", || (pair.left.status().child_sas == 1).then_some(()));
    let target = Target::Connection("other".into());
    let waits = pair.left.events().iter().filter(|event| **event == retry).count();
    pair.left.client().rows(Command::Terminate { target, wait_s: 0 }).expect("terminated");
    eventually("no SA is left", || pair.left.sas().is_empty().then_some(()));
    let events = pair.left.events();
    let waits_after = events.iter().filter(|event| event.starts_with("next attempt")).count();
    assert_eq!(waits_after, waits, "what somebody terminated stays down: {events:#?}");
}

// RFC 7296, 2.23: the peer is where its authentic packets come from. A worker has seen one.
#[test]
fn ike_follows_a_path_that_a_worker_moved() {
    let pair = pair("udp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    assert_keys_agree(&pair);
    let remote = "192.0.2.2:61000".parse().expect("an address");
    pair.network.ends()[0].move_peer(remote);
    let moved =
        "peer moved to 192.0.2.2:61000 over udp, from 192.0.2.2:4500 over native".to_owned();
    eventually("it is told", || pair.left.events().contains(&moved).then_some(()));
    assert_eq!(pair.left.sas()[0].remote, "192.0.2.2:61000");
}

#[test]
fn a_wrong_key_is_told_and_leaves_nothing() {
    let pair = pair("udp", true, ["shared", "different"]);
    let (code, message) = initiate(&mut pair.left.client()).expect_err("not up");
    assert_eq!(code, Code::Failed);
    assert!(message.contains("AUTHENTICATION_FAILED"), "{message}");
    for gateway in [&pair.left, &pair.right] {
        eventually("no SA is left", || gateway.sas().is_empty().then_some(()));
    }
    assert!(pair.network.ends().iter().all(|end| end.sas.is_empty() && end.policies.is_empty()));
}

#[test]
fn termination_takes_everything_down_on_both_ends() {
    let pair = pair("tcp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    let target = Target::Connection("other".into());
    let rows =
        pair.left.client().rows(Command::Terminate { target, wait_s: 0 }).expect("terminated");
    assert_eq!(rows.len(), 1);
    for gateway in [&pair.left, &pair.right] {
        eventually("no SA is left", || gateway.sas().is_empty().then_some(()));
    }
    eventually("the workers have dropped them", || {
        let ends = pair.network.ends();
        ends.iter().all(|end| end.sas.is_empty() && end.policies.is_empty()).then_some(())
    });
}

#[test]
fn a_stopped_gateway_deletes_its_sas_at_the_peer() {
    let mut pair = pair("udp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    assert!(pair.left.stop().success());
    eventually("the peer has none", || pair.right.sas().is_empty().then_some(()));
}
