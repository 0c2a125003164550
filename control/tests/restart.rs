//! `kill -9` of control processes, at any time: the next one goes on with the same SAs.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::time::Duration;

use culvert_api::{Command, IkeSa, IkeState, Target};
use support::pair::{LEFT, Pair, RIGHT, ask, config, initiate, pair, pair_of};
use support::{Gateway, eventually};

/// Two gateways that bear with a peer that is away for a while.
fn patient_pair(transport: &str) -> Pair {
    let patient = |config: String| config.replace("retransmit_tries = 3", "retransmit_tries = 9");
    let left = patient(config(&LEFT, transport, "shared"));
    let pair = pair_of(&left, &patient(config(&RIGHT, "auto", "shared")), true);
    initiate(&mut pair.left.client()).expect("up");
    eventually("the responder has it", || (pair.right.status().child_sas == 1).then_some(()));
    pair
}

fn only_sa(gateway: &Gateway) -> Option<IkeSa> {
    let mut sas = gateway.sas();
    let single = sas.len() == 1 && sas[0].children.len() == 1;
    single.then(|| sas.remove(0)).filter(|sa| sa.state == IkeState::Established)
}

/// Both ends have one IKE SA with one pair of CHILD SAs, the same ones, and their workers too.
fn agreed(pair: &Pair) -> Option<[IkeSa; 2]> {
    let sas = [only_sa(&pair.left)?, only_sa(&pair.right)?];
    let ends = pair.network.ends();
    let [left, right] = [ends[0].sas.values().next()?, ends[1].sas.values().next()?];
    let same = sas[0].spi_initiator == sas[1].spi_initiator
        && (left.spi_in, left.spi_out) == (right.spi_out, right.spi_in)
        && left.keymat_in.as_bytes() == right.keymat_out.as_bytes()
        && left.keymat_out.as_bytes() == right.keymat_in.as_bytes()
        && ends.iter().all(|end| end.sas.len() == 1 && end.policies.len() == 1);
    same.then_some(sas)
}

fn rekey(gateway: &Gateway, wait_s: u32) -> Result<Vec<String>, (culvert_api::Code, String)> {
    ask(gateway, Command::Rekey { target: Target::Connection("other".into()), wait_s })
}

fn is_up(gateway: &Gateway) {
    eventually("the dataplane is seen", || gateway.status().dataplane.up.then_some(()));
}

fn goes_on(transport: &str) {
    let mut pair = patient_pair(transport);
    let before = eventually("both agree", || agreed(&pair));
    pair.left.crash_and_restart();
    pair.right.crash_and_restart();
    is_up(&pair.left);
    is_up(&pair.right);
    let after = eventually("both agree", || agreed(&pair));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((after.id, after.role, &after.tcp), (before.id, before.role, &before.tcp));
        assert_eq!(after.spi_initiator, before.spi_initiator);
        assert_eq!(after.children[0].spi_in, before.children[0].spi_in);
        assert!(after.age_s >= before.age_s, "it is as old as it was");
    }
    for gateway in [&pair.left, &pair.right] {
        let restored = "restored 1 IKE SAs with 1 CHILD SAs".to_owned();
        assert!(gateway.events().contains(&restored), "{:#?}", gateway.events());
        assert_eq!(gateway.status().child_sas_orphaned, 0);
    }
    // The windows fit: either side's rekeys succeed.
    for gateway in [&pair.left, &pair.right] {
        rekey(gateway, 15).expect("rekeyed");
        eventually("both agree", || agreed(&pair));
    }
    let rekeyed = eventually("both agree", || agreed(&pair));
    assert_eq!(rekeyed[0].id, before[0].id, "the same IKE SA to people");
    assert_ne!(rekeyed[0].spi_initiator, before[0].spi_initiator);
}

#[test]
fn sas_go_on_with_the_next_control_process_over_udp() {
    goes_on("udp");
}

// RFC 9329, 6.1: on the connection that they had, which the dataplane holds.
#[test]
fn sas_go_on_with_the_next_control_process_over_tcp() {
    goes_on("tcp");
}

/// Rekeys of everything from either side, and processes killed in the middle of them.
fn die_while_rekeying(transport: &str, seed: u64) {
    let mut pair = patient_pair(transport);
    let before = eventually("both agree", || agreed(&pair));
    let mut random = seed;
    for _ in 0..6 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
        let (first, second) = (random >> 40 & 1 == 0, random >> 41 & 1 == 0);
        let asked = if first { &pair.left } else { &pair.right };
        rekey(asked, 0).expect("begun");
        std::thread::sleep(Duration::from_micros(random >> 42 & 0x1fff));
        if second { &mut pair.left } else { &mut pair.right }.crash_and_restart();
        is_up(&pair.left);
        is_up(&pair.right);
        eventually("both agree", || agreed(&pair));
    }
    // No rekey is under way any more when one that is waited for has succeeded. The other end may
    // refuse it for now: it may be busy with its own.
    eventually("it is rekeyed", || rekey(&pair.left, 15).ok());
    let after = eventually("both agree", || agreed(&pair));
    assert_eq!([after[0].id, after[1].id], [before[0].id, before[1].id], "nothing was lost");
}

#[test]
fn processes_die_in_the_middle_of_rekeys_over_udp() {
    die_while_rekeying("udp", 1);
}

#[test]
fn processes_die_in_the_middle_of_rekeys_over_tcp() {
    die_while_rekeying("tcp", 2);
}

/// What is to stand is seen to stand, and not begun once more.
#[test]
fn what_stands_is_not_begun_again() {
    let start = "esp_proposals = [\"aes256gcm16-esn\"]\nstart_action = \"start\"";
    let left =
        config(&LEFT, "tcp", "shared").replace("esp_proposals = [\"aes256gcm16-esn\"]", start);
    let mut pair = pair_of(&left, &config(&RIGHT, "auto", "shared"), true);
    let before = eventually("it is up", || agreed(&pair));
    pair.left.crash_and_restart();
    is_up(&pair.left);
    // The peer terminates it: it is begun anew, since it is known to stand.
    assert_eq!(eventually("it stands", || agreed(&pair))[0].id, before[0].id);
    let target = Target::Connection("other".into());
    ask(&pair.right, Command::Terminate { target, wait_s: 5 }).expect("terminated");
    let after = eventually("it is up again", || agreed(&pair));
    assert!(after[0].id > before[0].id, "a new one, under a name that was never given before");
}

#[test]
fn a_connection_that_is_configured_no_more_is_deleted_at_both_ends() {
    let mut pair = patient_pair("udp");
    let other = config(&LEFT, "udp", "shared").replace("connections.other", "connections.new");
    pair.left.configure(&other);
    pair.left.crash_and_restart();
    for gateway in [&pair.left, &pair.right] {
        eventually("no SA is left", || gateway.sas().is_empty().then_some(()));
    }
    let reason = "it is not configured any more";
    let told = pair.left.events().iter().any(|event| event.contains(reason));
    assert!(told, "{:#?}", pair.left.events());
    eventually("the workers have none", || {
        let ends = pair.network.ends();
        ends.iter().all(|end| end.sas.is_empty() && end.policies.is_empty()).then_some(())
    });
}

/// A gateway whose snapshot cannot be read: its SAs are orphans.
fn orphaned() -> (Pair, String) {
    let mut pair = pair("udp", true, ["shared", "shared"]);
    initiate(&mut pair.left.client()).expect("up");
    let spi_in = pair.left.sas()[0].children[0].spi_in.clone();
    pair.left.kill();
    // This side's identity is in no other part of the memory.
    assert!(pair.network.ends()[0].damage(LEFT.id.as_bytes()) > 0);
    pair.left.restart();
    let orphans =
        eventually("the orphan is shown", || Some(pair.left.sas()).filter(|sas| !sas.is_empty()));
    assert_eq!(orphans[0].state, IkeState::Orphaned);
    assert_eq!((orphans[0].connection.as_str(), orphans[0].id), ("other", None));
    assert_eq!(orphans[0].children[0].spi_in, spi_in);
    assert!(orphans[0].children[0].expires_s.is_some_and(|left| left > 3000), "an hour");
    assert_eq!(pair.network.ends()[0].sas.len(), 1, "the worker has it still");
    (pair, spi_in)
}

/// SAs of an IKE SA that cannot be restored forward on, until the same child comes up anew.
#[test]
fn an_orphan_gives_way_to_the_same_child() {
    let (pair, spi_in) = orphaned();
    is_up(&pair.left);
    initiate(&mut pair.left.client()).expect("up anew");
    let sas = pair.left.sas();
    assert_eq!(sas.len(), 1, "the orphan is replaced");
    assert_eq!(sas[0].state, IkeState::Established);
    assert_ne!(sas[0].children[0].spi_in, spi_in);
    eventually("the worker has only the new one", || {
        (pair.network.ends()[0].sas.len() == 1).then_some(())
    });
}

#[test]
fn an_orphan_can_be_terminated() {
    let (pair, spi_in) = orphaned();
    let target = Target::Child(spi_in);
    ask(&pair.left, Command::Terminate { target, wait_s: 0 }).expect("terminated");
    assert_eq!(pair.left.sas(), []);
    eventually("the worker has dropped it", || {
        let ends = pair.network.ends();
        (ends[0].sas.is_empty() && ends[0].policies.is_empty()).then_some(())
    });
}

#[test]
fn an_orphan_is_named_by_the_address_of_its_peer_as_well() {
    for peer in [RIGHT.id, LEFT.peer] {
        let (pair, _) = orphaned();
        let target = Target::Peer(peer.to_owned());
        let said = ask(&pair.left, Command::Terminate { target, wait_s: 0 }).expect("terminated");
        assert_eq!(said, ["1 orphaned CHILD SAs are gone"]);
        assert_eq!(pair.left.sas(), []);
    }
}

/// When the gateway has been stopped, nobody is left who could end them.
#[test]
fn an_orderly_stop_ends_orphans_too() {
    let (mut pair, _) = orphaned();
    is_up(&pair.left);
    assert!(pair.left.stop().success());
    eventually("the worker has none", || {
        let ends = pair.network.ends();
        (ends[0].sas.is_empty() && ends[0].policies.is_empty()).then_some(())
    });
    pair.left.restart();
    is_up(&pair.left);
    assert_eq!(pair.left.sas(), []);
    let log = std::fs::read_to_string(pair.left.dir.path().join("log")).expect("a log");
    let lost = log.lines().filter(|line| line.contains("its SAs are orphans")).count();
    assert_eq!(lost, 1, "the snapshot that could not be read is gone as well");
}

/// As with a reload: who has no key any more is not served on because the process is another one.
#[test]
fn what_has_no_key_any_more_is_deleted_at_both_ends() {
    let many = config(&LEFT, "udp", "shared").replace("id = \"b.example\"", "id = \"*.example\"");
    let owned =
        |id: &str| many.replace("[secrets.ike]", &format!("[secrets.ike]\nid = [\"{id}\"]"));
    let mut pair = pair_of(&owned(RIGHT.id), &config(&RIGHT, "auto", "shared"), true);
    initiate(&mut pair.right.client()).expect("up");
    pair.left.configure(&owned("c.example"));
    pair.left.crash_and_restart();
    for gateway in [&pair.left, &pair.right] {
        eventually("no SA is left", || gateway.sas().is_empty().then_some(()));
    }
}
