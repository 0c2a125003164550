//! A process that dies at any step of any exchange, and the one that goes on in its place: both ends
//! agree afterwards, under the same names, and nothing is used twice.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildId, DownReason, Endpoint, EndpointConfig, Event, IkeSaId, IkeState, Lifetime, PathChoice,
    RestoreError, TransportChoice,
};
use pair::crash::DEATHS;
use pair::{Pair, Side, child, config, mirror};
use proptest::prelude::*;

/// Long enough for repetitions over UDP.
const WHILE: Duration = Duration::from_secs(40);

fn up(transport: TransportChoice) -> Pair {
    let mut a = config();
    a.transport = transport;
    a.mobike = true;
    a.udp_probe = None;
    a.lifetime = Lifetime::UNLIMITED;
    let mut net = child(&["10.1.0.0/24"], &["10.2.0.0/24"], "aes128gcm16-x25519-esn");
    net.lifetime = Lifetime::UNLIMITED;
    let mut more = child(&["10.3.0.0/24"], &["10.4.0.0/24"], "aes128gcm16-esn");
    more.name = "more".into();
    more.lifetime = Lifetime::UNLIMITED;
    a.children = vec![Arc::new(net), Arc::new(more)];
    Pair::up(a)
}

fn side(pair: &mut Pair, a: bool) -> &mut Side {
    if a { &mut pair.a } else { &mut pair.b }
}

fn first_child(side: &Side) -> ChildId {
    side.sa().children[0].id
}

fn rekey_child(pair: &mut Pair, of_a: bool) {
    let now = pair.now;
    let side = side(pair, of_a);
    let child = first_child(side);
    side.endpoint.rekey_child(now, child, &mut side.host).unwrap();
}

fn rekey_ike(pair: &mut Pair, of_a: bool) {
    let now = pair.now;
    let side = side(pair, of_a);
    let ike = side.sa().id;
    side.endpoint.rekey_ike(now, ike, &mut side.host).unwrap();
}

fn one_more_child(pair: &mut Pair) {
    let (now, ike) = (pair.now, pair.a.sa().id);
    pair.a.endpoint.initiate_child(now, ike, "more", &mut pair.a.host).unwrap();
}

fn delete_child(pair: &mut Pair) {
    let (now, child) = (pair.now, first_child(&pair.b));
    pair.b.endpoint.terminate_child(now, child, &mut pair.b.host).unwrap();
}

fn move_to_tcp(pair: &mut Pair) {
    let (now, ike) = (pair.now, pair.a.sa().id);
    let to = PathChoice::Tcp { local: None, remote: None };
    pair.a.endpoint.move_to(now, ike, to, &mut pair.a.host).unwrap();
}

/// What is begun, and the pairs of CHILD SAs that must be there in the end.
type Scenario = (&'static str, fn(&mut Pair), usize);

const SCENARIOS: [Scenario; 10] = [
    ("A rekeys the CHILD SA", |pair| rekey_child(pair, true), 1),
    ("B rekeys the CHILD SA", |pair| rekey_child(pair, false), 1),
    (
        "both rekey the CHILD SA",
        |pair| [true, false].into_iter().for_each(|a| rekey_child(pair, a)),
        1,
    ),
    ("A rekeys the IKE SA", |pair| rekey_ike(pair, true), 1),
    ("B rekeys the IKE SA", |pair| rekey_ike(pair, false), 1),
    ("both rekey the IKE SA", |pair| [true, false].into_iter().for_each(|a| rekey_ike(pair, a)), 1),
    ("A asks for one more CHILD SA", one_more_child, 2),
    ("B deletes the CHILD SA", delete_child, 0),
    ("A moves to TCP", move_to_tcp, 1),
    ("everything at once", everything, 1),
];

fn everything(pair: &mut Pair) {
    for a in [true, false] {
        rekey_ike(pair, a);
        rekey_child(pair, !a);
    }
}

/// Both ends have the IKE SA that they had, with these pairs of CHILD SAs, and can go on.
fn assert_agreed(pair: &mut Pair, names: [IkeSaId; 2], children: usize, what: &str) {
    let (a, b) = (pair.a.sa(), pair.b.sa());
    assert_eq!([a.id, b.id], names, "{what}");
    assert_eq!((a.spi_i, a.spi_r), (b.spi_i, b.spi_r), "{what}");
    assert_eq!((a.children.len(), b.children.len()), (children, children), "{what}");
    for side in [&pair.a, &pair.b] {
        assert_eq!(side.host.installed.len(), children, "{what}: an SA without an owner");
        assert!(side.host.reserved.is_empty(), "{what}: an SPI without an owner");
    }
    for own in &a.children {
        let own = &pair.a.host.installed[&own.spi_in];
        let other = &pair.b.host.installed[&own.spi_out];
        assert_eq!(own.spi_in, other.spi_out, "{what}");
        assert!(own.keymat_in == other.keymat_out && own.keymat_out == other.keymat_in, "{what}");
        assert!(pair.a.host.outbound.contains(&own.id), "{what}");
        assert!(pair.b.host.outbound.contains(&other.id), "{what}");
    }
    // The windows fit together: each side's next requests are answered.
    for of_a in [true, false] {
        let before = pair.a.sa().spi_i;
        rekey_ike(pair, of_a);
        pair.run(WHILE);
        let (a, b) = (pair.a.sa(), pair.b.sa());
        assert_eq!((a.spi_i, a.spi_r), (b.spi_i, b.spi_r), "{what}");
        assert_ne!(a.spi_i, before, "{what}: a rekey works");
    }
}

/// Lets each side die at each step, in each way; how often that was.
fn die_everywhere(transport: TransportChoice) -> u32 {
    let mut deaths = 0;
    for (name, begin, children) in SCENARIOS {
        for of_a in [true, false] {
            let mut pair = up(transport);
            begin(&mut pair);
            let steps = pair.count_steps(of_a, WHILE);
            assert!(steps > 0, "{name}");
            for (step, death) in (1..=steps).flat_map(|step| DEATHS.map(|death| (step, death))) {
                let what = format!("{name}, {transport:?}, step {step} of A {of_a}: {death:?}");
                let mut pair = up(transport);
                let names = [pair.a.sa().id, pair.b.sa().id];
                begin(&mut pair);
                pair.net.crash.once = Some((of_a, step, death));
                pair.run(WHILE * 3);
                assert_eq!(pair.net.crash.deaths, 1, "{what}");
                assert_agreed(&mut pair, names, children, &what);
                deaths += 1;
            }
        }
    }
    deaths
}

#[test]
fn a_process_may_die_at_any_step_of_any_exchange_over_udp() {
    let deaths = die_everywhere(TransportChoice::Udp);
    assert!(deaths > 150, "{deaths}");
}

// RFC 9329, 6.2: over TCP nobody repeats anything, so nothing may be forgotten.
#[test]
fn a_process_may_die_at_any_step_of_any_exchange_over_tcp() {
    let deaths = die_everywhere(TransportChoice::Tcp);
    assert!(deaths > 150, "{deaths}");
}

/// A pair of which A gives B up, because no answer comes, in this time.
fn silent() -> (Pair, Duration) {
    let mut pair = up(TransportChoice::Udp);
    let (now, ike) = (pair.now, pair.a.sa().id);
    pair.net.udp_blocked = true;
    pair.a.endpoint.rekey_ike(now, ike, &mut pair.a.host).unwrap();
    (pair, Duration::from_secs(300))
}

// RFC 7296, 2.4: a process that takes the place of one that died asks once more before it gives its peer
// up. What the other had taken down with the IKE SA, and not saved, does not come back.
#[test]
fn a_process_may_die_as_it_gives_its_peer_up() {
    let (mut pair, patience) = silent();
    let steps = pair.count_steps(true, patience);
    pair.a.assert_empty();
    let second = Duration::from_secs(1);
    let mut lost = 0;
    for (step, death) in (1..=steps).flat_map(|step| DEATHS.map(|death| (step, death))) {
        let doomed = || {
            let (mut pair, _) = silent();
            pair.net.crash.once = Some((true, step, death));
            pair
        };
        let (mut pair, mut alive) = (doomed(), 0);
        pair.run(second);
        while pair.net.crash.deaths == 0 {
            pair.run(second);
            alive += 1;
        }
        pair.run(patience);
        pair.a.assert_empty();
        // B can be reached again when A dies.
        let mut pair = doomed();
        let names = [pair.a.sa().id, pair.b.sa().id];
        pair.run(second * alive);
        pair.net.udp_blocked = false;
        pair.run(patience);
        if pair.a.endpoint.is_empty() {
            continue;
        }
        let children = pair.a.sa().children.len();
        lost += 1 - children;
        assert_agreed(&mut pair, names, children, &format!("step {step}: {death:?}"));
    }
    assert_eq!(lost, 1, "the data plane had given the pair up: it is deleted at both ends");
}

// RFC 7296, 2.8.3: the responder may send on the new CHILD SA as soon as it has answered IKE_AUTH. An
// initiator that dies over the answer takes it all the same, and no packet is lost.
#[test]
fn a_process_may_die_at_any_step_of_a_reauthentication() {
    for (transport, of_a) in [TransportChoice::Udp, TransportChoice::Tcp]
        .into_iter()
        .flat_map(|t| [(t, true), (t, false)])
    {
        let begun = || {
            let mut pair = up(transport);
            let (now, old) = (pair.now, pair.a.sa().id);
            pair.a.endpoint.reauthenticate(now, old, &mut pair.a.host).unwrap();
            pair.traffic = true;
            (pair, old)
        };
        let steps = begun().0.count_steps(of_a, WHILE);
        for (step, death) in (1..=steps).flat_map(|step| DEATHS.map(|death| (step, death))) {
            let what = format!("{transport:?}, step {step} of A {of_a}: {death:?}");
            let (mut pair, old) = begun();
            pair.net.crash.once = Some((of_a, step, death));
            // What is forgotten before IKE_AUTH is begun anew.
            pair.run(WHILE * 15);
            assert_eq!(pair.net.crash.deaths, 1, "{what}");
            assert_ne!(pair.a.sa().id, old, "{what}");
            let kept = pair.a.events.iter().all(|e| !matches!(e, Event::InitiationFailed { .. }));
            assert!(kept || !of_a || step == 1, "{what}");
            pair.assert_child();
        }
    }
}

/// The private key of a rekey under way goes on with the next process, whatever its group.
#[test]
fn a_rekey_under_way_is_finished_in_every_group() {
    for group in ["x25519", "ecp256", "ecp384", "modp2048"] {
        let mut connection = config();
        connection.proposals = vec![format!("aes256gcm16-prfsha384-{group}").parse().unwrap()];
        let mut pair = Pair::up(connection);
        rekey_ike(&mut pair, true);
        pair.run(Duration::from_millis(1));
        pair.restart(true);
        pair.run(Duration::from_secs(1));
        assert!(pair.a.events.iter().any(|e| matches!(e, Event::IkeRekeyed { .. })), "{group}");
    }
}

/// What a process said of itself the next one says too: names, ages, identities, paths.
#[test]
fn tables_show_the_same_after_a_restart() {
    let mut pair = up(TransportChoice::Tcp);
    pair.run(Duration::from_secs(100));
    let before = format!("{:?}", pair.a.sa());
    pair.restart(true);
    assert_eq!(format!("{:?}", pair.a.sa()), before);
    let last = pair.a.endpoint.last_name();
    let connection = pair.a.host.connections[0].clone();
    let ike = pair.a.endpoint.initiate(pair.now, &connection, None, &mut pair.a.host).unwrap();
    assert!(ike.0 > last, "no name is given twice");
}

/// A connection that is configured no more is deleted at the peer, and so is a child.
/// RFC 7296, 2.4: peers whose liveness fell due while no process was there are asked, but thousands of
/// them not all at once.
#[test]
fn what_fell_due_meanwhile_is_spread_over_one_interval() {
    const DELAY: Duration = Duration::from_secs(30);
    let asked_after = |seed| {
        let mut a = config();
        let mut b = mirror(&a);
        (a.dpd_delay, b.dpd_delay) = (Some(DELAY), None);
        let mut pair = Pair::new(a, b);
        pair.initiate();
        pair.run(Duration::from_secs(1));
        pair.a.host.reseed(seed);
        pair.now = pair.now + 10 * DELAY;
        pair.restart(true);
        let restarted = pair.now;
        let before = pair.a.sent.len();
        pair.run(DELAY);
        pair.a.sent[before].0.since(restarted)
    };
    let mut waits: Vec<Duration> = (1..=20).map(asked_after).collect();
    waits.sort();
    let gaps = waits.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(gaps.max() < Some(DELAY / 2), "{waits:?}");
    assert!(waits[19] - waits[0] > DELAY / 2, "{waits:?}");
}

#[test]
fn what_is_configured_no_more_is_deleted_properly() {
    let mut pair = up(TransportChoice::Udp);
    Arc::make_mut(&mut pair.a.host.connections[0]).children.remove(0);
    pair.restart(true);
    pair.run(Duration::from_secs(1));
    let gone = |side: &Side, wanted: DownReason| {
        let mut down = side.events.iter().filter_map(|event| match event {
            Event::ChildDown { reason, .. } | Event::IkeDown { reason, .. } => Some(*reason),
            _ => None,
        });
        down.any(|reason| reason == wanted)
    };
    assert!(gone(&pair.a, DownReason::Unconfigured) && gone(&pair.b, DownReason::DeletedByPeer));
    assert_eq!(pair.a.sa().state, IkeState::Established, "the IKE SA stays");
    pair.a.host.connections.clear();
    pair.a.events.clear();
    pair.restart(true);
    pair.run(Duration::from_secs(10));
    assert!(gone(&pair.a, DownReason::Unconfigured));
    pair.a.assert_empty();
    pair.b.assert_empty();
    assert!(pair.a.kept.snapshots.is_empty(), "nothing of it is kept");
}

/// The data plane has lost a pair: the peer is told that it is of no use.
#[test]
fn a_pair_that_the_data_plane_has_lost_is_deleted() {
    let mut pair = up(TransportChoice::Udp);
    pair.a.host.installed.clear();
    pair.a.host.outbound.clear();
    pair.a.begin_anew();
    let (now, side) = (pair.now, &mut pair.a);
    side.endpoint.resume(now, &mut side.host);
    pair.run(Duration::from_secs(1));
    assert!(pair.b.host.installed.is_empty());
    assert!(pair.a.sa().children.is_empty());
}

/// A repetition of the peer's last request before the restart gets the very same response.
#[test]
fn responses_are_kept() {
    let mut pair = up(TransportChoice::Udp);
    rekey_child(&mut pair, true);
    pair.net.lose = [0, 1];
    pair.run(Duration::from_secs(1));
    let lost = pair.b.sent.last().unwrap().2.clone();
    pair.restart(false);
    pair.run(Duration::from_secs(10));
    let answers: Vec<_> = pair.b.sent.iter().filter(|(_, _, octets)| *octets == lost).collect();
    assert!(answers.len() >= 2, "it is sent again as it was");
    assert_eq!(pair.a.sa().children.len(), 1);
}

fn snapshot() -> Vec<u8> {
    let mut pair = up(TransportChoice::Udp);
    // With something in every table of it.
    everything(&mut pair);
    one_more_child(&mut pair);
    pair.run(Duration::from_millis(25));
    let snapshot = pair.a.kept.snapshots.values().next().unwrap().clone();
    assert!(snapshot.len() > 600, "{}", snapshot.len());
    snapshot
}

#[test]
fn a_snapshot_of_another_form_is_refused_and_one_that_is_there_too() {
    let mut pair = up(TransportChoice::Udp);
    let mut octets = snapshot();
    let side = &mut pair.a;
    let ike = side.sa().id;
    assert_eq!(side.endpoint.restore(&octets, &mut side.host), Err(RestoreError::Twice(ike)));
    octets[0] = 99;
    assert_eq!(side.endpoint.restore(&octets, &mut side.host), Err(RestoreError::Form(99)));
    assert_eq!(side.endpoint.restore(&[], &mut side.host), Err(RestoreError::Damaged));
}

/// Who went on with such numbers would count past the end, and use a name or an IV twice.
#[test]
fn a_snapshot_whose_names_or_ivs_are_used_up_is_refused() {
    let kept: [&[u8]; 2] = [
        include_bytes!("../../../bench/fuzz/corpus/ike_snapshot/last-name"),
        include_bytes!("../../../bench/fuzz/corpus/ike_snapshot/last-iv"),
    ];
    for octets in kept {
        let mut pair = Pair::new(config(), mirror(&config()));
        let answer = pair.a.endpoint.restore(octets, &mut pair.a.host);
        assert_eq!(answer, Err(RestoreError::Damaged));
    }
}

/// Snapshots of the present form, made long ago. If they cannot be read any more, what a session
/// consists of has changed: raise the form in `sa/saved.rs`, and make new ones.
#[test]
fn the_form_of_snapshots_is_what_it_says() {
    let kept: [(&[u8], IkeState, usize); 3] = [
        (include_bytes!("../../../bench/fuzz/corpus/ike_snapshot/idle"), IkeState::Established, 1),
        (include_bytes!("../../../bench/fuzz/corpus/ike_snapshot/busy"), IkeState::Established, 1),
        (
            include_bytes!("../../../bench/fuzz/corpus/ike_snapshot/authenticating"),
            IkeState::HalfOpen,
            0,
        ),
    ];
    for (octets, state, children) in kept {
        let mut pair = Pair::new(config(), mirror(&config()));
        pair.a.host.expect_leftovers();
        let ike = pair.a.endpoint.restore(octets, &mut pair.a.host).unwrap();
        let sa = pair.a.sa();
        assert_eq!((sa.id, sa.state, sa.children.len()), (ike, state, children));
        let authenticated = (state == IkeState::Established).then(|| "b.test".parse().unwrap());
        assert_eq!(sa.remote_id, authenticated);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a snapshot says, reading it ends in an IKE SA or an error, and the IKE SA can be
    /// driven.
    #[test]
    fn damaged_snapshots_do_no_harm(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut octets = snapshot();
        for (at, octet) in damage {
            *at.get_mut(&mut octets) = octet;
        }
        if let Some(cut) = cut {
            octets.truncate(cut.index(octets.len()));
        }
        let mut pair = Pair::new(config(), mirror(&config()));
        let (now, side) = (pair.now, &mut pair.a);
        side.endpoint = Endpoint::new(EndpointConfig::default());
        side.host.expect_leftovers();
        if side.endpoint.restore(&octets, &mut side.host).is_ok() {
            prop_assert_eq!(side.endpoint.len(), 1);
            side.endpoint.resume(now, &mut side.host);
            let _ = side.endpoint.sas().map(|sa| format!("{sa:?}")).collect::<Vec<_>>();
            while side.endpoint.poll_transmit().is_some() {}
        }
    }
}

/// A pair whose child is configured no more, and that was being made as the process was ended.
#[test]
fn what_is_made_of_a_child_that_is_configured_no_more_is_deleted() {
    let rekeyed: fn(&mut Pair) = |pair| rekey_child(pair, true);
    for (begin, gone) in [(rekeyed, "net"), (one_more_child, "more")] {
        let mut pair = up(TransportChoice::Udp);
        begin(&mut pair);
        pair.run(Duration::from_millis(5));
        Arc::make_mut(&mut pair.a.host.connections[0]).children.retain(|c| c.name != gone);
        pair.restart(true);
        pair.run(Duration::from_secs(100));
        for side in [&pair.a, &pair.b] {
            assert!(side.host.installed.values().all(|sa| sa.name != gone), "{gone}");
            assert_eq!(side.sa().state, IkeState::Established);
        }
    }
}
