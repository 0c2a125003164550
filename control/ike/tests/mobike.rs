//! MOBIKE (RFC 4555) and moves between UDP and TCP (RFC 9329, 7.1).

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::net::IpAddr;
use std::time::Duration;

use culvert_ike::{
    ChildConfig, ChildMode, ConnectionConfig, DownReason, Event, InitiateError, MoveFailure,
    PathChoice, Transport, TransportChoice,
    message::{Message, NotifyType},
};
use pair::{B, NAT, Pair, Side, config, mirror};

const INFORMATIONAL: u8 = 37;
const ELSEWHERE: &str = "192.0.2.200";

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn mobile() -> ConnectionConfig {
    let mut a = config();
    a.mobike = true;
    a
}

fn move_a(pair: &mut Pair, to: PathChoice) {
    let ike = pair.a.sa().id;
    pair.a.endpoint.move_to(pair.now, ike, to, &mut pair.a.host).unwrap();
}

const UDP: PathChoice = PathChoice::Udp { local: None, remote: None };
const TCP: PathChoice = PathChoice::Tcp { local: None, remote: None };

fn elsewhere() -> PathChoice {
    PathChoice::Udp { local: Some(ELSEWHERE.parse().unwrap()), remote: None }
}

/// INFORMATIONAL requests: transport and Message ID.
fn asked(side: &Side) -> Vec<(Transport, u32)> {
    side.sent
        .iter()
        .filter(|(_, _, m)| m[18] == INFORMATIONAL && m[19] & 0x20 == 0)
        .map(|(_, p, m)| (p.transport, u32::from_be_bytes(m[20..24].try_into().unwrap())))
        .collect()
}

/// Both ends of ESP go the same way.
fn assert_way(pair: &Pair, transport: Transport) {
    pair.assert_child();
    for side in [&pair.a, &pair.b] {
        let path = side.host.paths.values().next().unwrap();
        assert_eq!(path.transport, transport);
        let sa = side.sa();
        assert_eq!(
            (path.local, path.remote, path.conn),
            (sa.path.local, sa.path.remote, sa.path.conn)
        );
    }
    assert_eq!(pair.a.sa().path.local, pair.b.sa().path.remote);
}

// RFC 4555, 3.1, 3.3 and 3.4.
#[test]
fn both_sides_offer_it_and_tell_their_further_addresses() {
    let mut a = mobile();
    a.additional_addrs = vec!["2001:db8::7".parse().unwrap(), "192.0.2.77".parse().unwrap()];
    let mut b = mirror(&a);
    b.additional_addrs.truncate(1);
    let mut pair = Pair::new(a.clone(), b);
    pair.initiate();
    pair.run(seconds(1));
    assert!(pair.a.sa().mobike && pair.b.sa().mobike);
    assert_eq!(pair.a.sa().peer_addresses, a.additional_addrs[..1]);
    assert_eq!(pair.b.sa().peer_addresses, a.additional_addrs);
    assert_eq!(pair.a.sa().path.local.port(), 4500, "RFC 4555, 3.3");
    assert_way_native(&pair);
    let mut still = mirror(&a);
    still.mobike = false;
    let mut pair = Pair::new(a, still);
    pair.initiate();
    pair.run(seconds(1));
    assert!(!pair.a.sa().mobike && !pair.b.sa().mobike);
    let ike = pair.a.sa().id;
    let refused = pair.a.endpoint.move_to(pair.now, ike, TCP, &mut pair.a.host);
    assert_eq!(refused, Err(InitiateError::Immovable(ike)));
}

fn assert_way_native(pair: &Pair) {
    assert_eq!(pair.a.child().path.transport, Transport::Native, "without a NAT");
}

// RFC 4555, 3.5 and 3.7.
#[test]
fn a_new_address_is_taken_and_checked_over_udp() {
    let mut pair = Pair::up(mobile());
    pair.traffic = true;
    move_a(&mut pair, elsewhere());
    pair.run(Duration::from_millis(15));
    let old: IpAddr = pair::A.parse().unwrap();
    assert_eq!(pair.b.sa().path.remote.ip().to_string(), ELSEWHERE, "IKE answers there");
    let esp = pair.b.host.paths.values().next().unwrap();
    assert_eq!(esp.remote.ip(), old, "ESP not before the address is proven");
    pair.run(seconds(1));
    assert_way(&pair, Transport::Native);
    assert_eq!(pair.a.sa().path.local.ip().to_string(), ELSEWHERE);
    assert_eq!((asked(&pair.a).len(), asked(&pair.b).len()), (1, 1), "COOKIE2 by B");
    assert!(pair.a.events.iter().any(|e| matches!(e, Event::PathMoved { .. })));
}

// RFC 4555, 3.5: only the initiator moves.
#[test]
fn the_responder_does_not_move() {
    let mut pair = Pair::up(mobile());
    let ike = pair.b.sa().id;
    let refused = pair.b.endpoint.move_to(pair.now, ike, UDP, &mut pair.b.host);
    assert_eq!(refused, Err(InitiateError::Immovable(ike)));
}

// RFC 9329, 7.1: from UDP to TCP, and no return routability check there.
#[test]
fn udp_to_tcp_to_udp_on_one_ike_sa() {
    let mut pair = Pair::up(mobile());
    pair.traffic = true;
    let spi = pair.a.sa().spi_i;
    move_a(&mut pair, TCP);
    pair.run(seconds(1));
    assert_way(&pair, Transport::Tcp);
    assert!(asked(&pair.b).is_empty(), "no COOKIE2 over TCP");
    assert_eq!(asked(&pair.a), [(Transport::Tcp, 2)]);
    assert!(!pair.b.sa().nat_remote, "digests of the TCP ports");
    let conn = pair.a.sa().path.conn.unwrap();
    move_a(&mut pair, UDP);
    pair.run(seconds(1));
    assert_way(&pair, Transport::Native);
    assert!(pair.a.closes.is_empty(), "ESP of B may be on its way there");
    assert_eq!(asked(&pair.a)[1..], [(Transport::Udp, 3)]);
    assert_eq!(pair.a.sa().spi_i, spi);
    move_a(&mut pair, TCP);
    pair.run(seconds(10));
    assert_eq!(pair.a.closes, [conn], "the Originator closes what it has left");
    move_a(&mut pair, TCP);
    pair.run(seconds(10));
    assert_way(&pair, Transport::Tcp);
    assert_eq!(pair.tcp.len(), 1);
}

// RFC 9329, 7.1: without an answer over UDP the same request with the same Message ID goes over TCP,
// then a second exchange follows with fresh digests.
#[test]
fn a_move_without_an_answer_over_udp_ends_on_tcp() {
    let mut pair = Pair::up(mobile());
    pair.net.udp_blocked = true;
    move_a(&mut pair, elsewhere());
    pair.run(seconds(100));
    let asked = asked(&pair.a);
    let udp = (Transport::Udp, 2);
    assert_eq!(asked, [udp, udp, udp, (Transport::Tcp, 2), (Transport::Tcp, 3)]);
    assert_way(&pair, Transport::Tcp);
    assert!(!pair.a.sa().nat_local && !pair.b.sa().nat_remote, "the second exchange");
}

#[test]
fn probing_udp_from_tcp_leaves_it_on_tcp_while_udp_is_blocked() {
    let mut pair = Pair::up(mobile());
    pair.traffic = true;
    move_a(&mut pair, TCP);
    pair.run(seconds(1));
    let conn = pair.a.sa().path.conn;
    pair.net.udp_blocked = true;
    move_a(&mut pair, UDP);
    pair.run(seconds(60));
    assert_way(&pair, Transport::Tcp);
    assert_eq!(pair.a.sa().path.conn, conn, "the same connection");
    assert!(pair.a.closes.is_empty());
    pair.net.udp_blocked = false;
    move_a(&mut pair, UDP);
    pair.run(seconds(5));
    assert_way(&pair, Transport::Native);
}

// RFC 9329, 7.1: fallback is not for ever.
#[test]
fn udp_is_tried_again_now_and_then() {
    let mut a = mobile();
    a.udp_probe = Some(seconds(300));
    let mut pair = Pair::new(a.clone(), mirror(&a));
    pair.net.udp_blocked = true;
    pair.initiate();
    pair.run(seconds(700));
    assert_way(&pair, Transport::Tcp);
    let udp = asked(&pair.a).iter().filter(|(transport, _)| *transport == Transport::Udp).count();
    assert_eq!(udp, 6, "two probes of three transmissions");
    pair.net.udp_blocked = false;
    pair.run(seconds(300));
    assert_way(&pair, Transport::Native);
    assert!(pair.tcp.is_empty());
}

// RFC 4555, 3.5: what waits for an answer goes the new way too.
#[test]
fn a_request_under_way_goes_the_new_way() {
    let mut pair = Pair::up(mobile());
    pair.net.lose = [1, 0];
    let id = pair.a.child().id;
    pair.a.endpoint.rekey_child(pair.now, id, &mut pair.a.host).unwrap();
    pair.run(Duration::from_millis(100));
    let request = pair.a.sent.last().unwrap().2.clone();
    move_a(&mut pair, elsewhere());
    pair.run(seconds(1));
    let again = pair
        .a
        .sent
        .iter()
        .filter(|(_, p, m)| *m == request && p.local.ip().to_string() == ELSEWHERE);
    assert_eq!(again.count(), 1);
    assert_way(&pair, Transport::Native);
    assert!(pair.a.child().replaces.is_some());
}

// After a lost TCP connection the peer is told by UPDATE_SA_ADDRESSES (RFC 9329, 6.1).
#[test]
fn a_new_connection_begins_with_an_update() {
    let mut a = mobile();
    a.transport = TransportChoice::Tcp;
    let mut pair = Pair::up(a);
    pair.cut();
    pair.run(seconds(1));
    assert_way(&pair, Transport::Tcp);
    assert_eq!(asked(&pair.a).len(), 1);
    assert_eq!(pair.b.sent.last().unwrap().2.len(), 28 + 4 + 8 + 2 * 28 + 1 + 16, "with digests");
}

// RFC 9329, 7.1: UDP is favoured. Who has moved there while it waited for TCP to come back wants no
// connection any more.
#[test]
fn who_moves_to_udp_meanwhile_opens_no_connection() {
    let mut pair = Pair::up(mobile());
    move_a(&mut pair, TCP);
    pair.run(seconds(1));
    pair.net.tcp_refused = true;
    pair.cut();
    pair.run(seconds(20));
    move_a(&mut pair, UDP);
    pair.run(seconds(2));
    assert_way(&pair, Transport::Native);
    pair.net.tcp_refused = false;
    pair.run(seconds(600));
    assert_way(&pair, Transport::Native);
    assert!(pair.tcp.is_empty());
}

// RFC 7296, 2.23 with MOBIKE: a NAT found on the new way encapsulates ESP there.
#[test]
fn behind_a_nat_at_the_new_place_esp_is_encapsulated() {
    let mut pair = Pair::up(mobile());
    pair.net.nat = true;
    move_a(&mut pair, UDP);
    pair.run(seconds(2));
    assert!(pair.a.sa().nat_local && pair.b.sa().nat_remote);
    for side in [&pair.a, &pair.b] {
        assert_eq!(side.host.paths.values().next().unwrap().transport, Transport::Udp);
    }
    assert_eq!(pair.b.sa().path.remote.ip().to_string(), NAT);
}

// RFC 4555, 3.6: the whole list anew, from either side.
#[test]
fn changed_addresses_are_told() {
    let mut pair = Pair::up(mobile());
    for from_a in [true, false] {
        for list in [vec!["192.0.2.77", "2001:db8::7"], vec![]] {
            let list: Vec<IpAddr> = list.iter().map(|text| text.parse().unwrap()).collect();
            let now = pair.now;
            let (own, other) = match from_a {
                true => (&mut pair.a, &mut pair.b),
                false => (&mut pair.b, &mut pair.a),
            };
            assert_ne!(other.sa().peer_addresses, list);
            let changed = ConnectionConfig {
                additional_addrs: list.clone(),
                ..(*own.host.connections[0]).clone()
            };
            let changed = std::sync::Arc::new(changed);
            own.endpoint.reconfigure(now, &changed, &mut own.host);
            own.endpoint.reconfigure(now, &changed, &mut own.host);
            pair.run(seconds(1));
            let (own, other) = match from_a {
                true => (&pair.a, &pair.b),
                false => (&pair.b, &pair.a),
            };
            assert_eq!(other.sa().peer_addresses, list);
            let told = if list.is_empty() { 2 } else { 1 };
            assert_eq!(asked(own).len(), told, "once for each change");
        }
    }
    assert_way(&pair, Transport::Native);
}

// RFC 4555, 3.5: "Checks that the (source IP address, destination IP address) pair in the IP header
// is acceptable according to local policy."
#[test]
fn a_move_beyond_the_configuration_is_refused() {
    let a = mobile();
    let mut b = mirror(&a);
    b.remote_addrs = vec![culvert_ike::AddressMatch::Address(pair::A.parse().unwrap())];
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    move_a(&mut pair, elsewhere());
    pair.run(seconds(5));
    for path in [pair.b.sa().path.remote, pair.a.sa().path.local] {
        assert_eq!(path.ip().to_string(), pair::A, "everything stays as it was");
    }
    assert_way(&pair, Transport::Native);
}

// RFC 4555, 3.4 and the codec: what is announced is on the wire.
#[test]
fn nothing_of_it_is_in_the_clear() {
    let pair = Pair::up(mobile());
    for (_, _, octets) in &pair.a.sent[1..] {
        let message = Message::decode(octets).unwrap();
        assert!(message.is_sealed() && message.notify(NotifyType::MOBIKE_SUPPORTED).is_none());
    }
}

/// A move to where no answer comes from must not cost the tunnel that works.
#[test]
fn a_move_without_an_answer_and_without_tcp_stays_where_it_was() {
    let mut a = mobile();
    a.transport = TransportChoice::Udp;
    let mut pair = Pair::up(a);
    let before = pair.a.sa().path;
    pair.net.udp_blocked = true;
    move_a(&mut pair, elsewhere());
    pair.run(seconds(30));
    pair.net.udp_blocked = false;
    pair.run(seconds(60));
    let failed = Event::MoveFailed { ike: pair.a.sa().id, reason: MoveFailure::NoAnswer };
    assert!(pair.a.events.contains(&failed), "{:?}", pair.a.events);
    assert_eq!(pair.a.sa().path, before);
    assert_way(&pair, Transport::Native);
}

// RFC 4555, 3.5: with MOBIKE the initiator says where the IKE SA goes. What else it had sent by the old
// way, an answer say, may arrive behind its UPDATE_SA_ADDRESSES, and takes the responder back nowhere.
#[test]
fn an_answer_that_is_overtaken_by_a_move_takes_nobody_back() {
    for moved_ms in 0..25 {
        for (first, second) in [(TCP, UDP), (TCP, TCP), (UDP, TCP)] {
            let mut pair = Pair::up(mobile());
            move_a(&mut pair, first);
            pair.run(seconds(1));
            let child = pair.b.child().id;
            pair.b.endpoint.rekey_child(pair.now, child, &mut pair.b.host).unwrap();
            pair.run(Duration::from_millis(moved_ms));
            move_a(&mut pair, second);
            pair.run(seconds(4));
            let (a, b) = (pair.a.sa().path, pair.b.sa().path);
            assert_eq!(
                (a.transport, a.conn, a.local, a.remote),
                (b.transport, b.conn, b.remote, b.local),
                "{first:?} to {second:?} after {moved_ms} ms"
            );
        }
    }
}

// RFC 4555, 3.8: an exchange without UPDATE_SA_ADDRESSES changes nothing, and whoever is behind a NAT
// sends one after a silence.
#[test]
fn an_update_follows_a_nat_that_has_forgotten_and_nothing_else_does() {
    let mut a = mobile();
    a.dpd_delay = Some(seconds(10));
    let mut b = mirror(&a);
    b.dpd_delay = None;
    let mut pair = Pair::new(a, b);
    pair.net.nat = true;
    pair.initiate();
    pair.run(seconds(1));
    let before = pair.b.sa().path.remote;
    pair.net.nat_shift = 7;
    let (now, child) = (pair.now, pair.a.child().id);
    pair.a.endpoint.rekey_child(now, child, &mut pair.a.host).unwrap();
    pair.run(seconds(1));
    pair.assert_child();
    assert_ne!(pair.a.child().id, child, "answered where it came from");
    assert_eq!(pair.b.sa().path.remote, before, "not followed");
    pair.run(seconds(12));
    let moved = format!("{NAT}:24507");
    assert_eq!(pair.b.sa().path.remote.to_string(), moved);
    assert_eq!(pair.b.host.paths.values().next().unwrap().remote.to_string(), moved);
}

// RFC 4555, 3.4, 3.5 and 3.11: the initiator looks for a pair of addresses that works.
#[test]
fn the_peers_further_address_is_taken_when_the_first_does_not_answer() {
    let further: IpAddr = "203.0.113.77".parse().unwrap();
    let mut a = mobile();
    a.transport = TransportChoice::Udp;
    a.dpd_delay = Some(seconds(10));
    let mut b = mirror(&a);
    b.additional_addrs = vec!["2001:db8::77".parse().unwrap(), further];
    let mut pair = Pair::new(a, b);
    pair.initiate();
    pair.run(seconds(1));
    pair.net.cut_off = Some(B.parse().unwrap());
    pair.run(seconds(60));
    assert_eq!(pair.a.sa().path.remote.ip(), further);
    assert_eq!(pair.b.sa().path.local.ip(), further);
    assert_way(&pair, Transport::Native);
    // And back when that one fails.
    pair.net.cut_off = Some(further);
    pair.run(seconds(120));
    assert_eq!(pair.a.sa().path.remote.to_string(), format!("{B}:4500"));
    assert_way(&pair, Transport::Native);
}

/// A gateway with a further address, which looks after its peer every 10 s.
fn of_two_addresses() -> ConnectionConfig {
    ConnectionConfig {
        transport: TransportChoice::Udp,
        dpd_delay: Some(seconds(10)),
        additional_addrs: vec![ELSEWHERE.parse().unwrap()],
        ..mobile()
    }
}

// RFC 4555, 3.5: this gateway's own further addresses, too.
#[test]
fn an_own_further_address_is_taken_when_the_first_is_cut_off() {
    let a = of_two_addresses();
    let mut pair = Pair::up(a);
    pair.net.cut_off = Some(pair::A.parse().unwrap());
    pair.run(seconds(60));
    assert_eq!(pair.a.sa().path.local.ip().to_string(), ELSEWHERE);
    assert_way(&pair, Transport::Native);
}

/// Where no pair of addresses works, the peer is given up as ever; a short cut costs nothing.
#[test]
fn a_peer_that_answers_nowhere_is_given_up_and_one_that_comes_back_is_not() {
    for back in [true, false] {
        let a = of_two_addresses();
        let mut b = mirror(&a);
        b.dpd_delay = None;
        let mut pair = Pair::new(a, b);
        pair.initiate();
        pair.run(seconds(1));
        let before = pair.a.sa().path;
        pair.net.udp_blocked = true;
        pair.run(seconds(100));
        pair.net.udp_blocked = !back;
        pair.run(seconds(300));
        let dead = |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::PeerDead, .. });
        assert_eq!(pair.a.events.iter().any(dead), !back);
        if back {
            assert_eq!(pair.a.sa().path, before);
            assert_way(&pair, Transport::Native);
        }
    }
}

// RFC 4555, 1.2: CHILD SAs in transport mode do not move; to TCP between the same addresses they do.
#[test]
fn transport_mode_stays_at_its_addresses() {
    let mut a = mobile();
    let any = ["0.0.0.0/0".parse().unwrap()];
    let mut child = ChildConfig::new("host", any.to_vec(), any.to_vec());
    child.mode = ChildMode::Transport;
    a.children = vec![std::sync::Arc::new(child)];
    let mut pair = Pair::up(a);
    let ike = pair.a.sa().id;
    let refused = pair.a.endpoint.move_to(pair.now, ike, elsewhere(), &mut pair.a.host);
    assert_eq!(refused, Err(InitiateError::Immovable(ike)));
    move_a(&mut pair, TCP);
    pair.run(seconds(1));
    assert_way(&pair, Transport::Tcp);
}

// RFC 4555, 3.5; RFC 9329, 7.1: what the responder has asked goes to the peer's new address at once, and
// not when its next repetition is due. The cookie that lets ESP go there is asked for behind it.
#[test]
fn a_request_of_the_responder_follows_the_peer_at_once() {
    let mut pair = Pair::up(mobile());
    pair.net.cut_off = Some(pair::A.parse().unwrap());
    let id = pair.b.child().id;
    pair.b.endpoint.rekey_child(pair.now, id, &mut pair.b.host).unwrap();
    // The next repetition is 42 s away.
    pair.run(seconds(48));
    assert_eq!(pair.b.requests().len(), 5);
    move_a(&mut pair, elsewhere());
    pair.run(seconds(1));
    pair.assert_child();
    assert_way(&pair, Transport::Native);
    assert!(pair.b.child().replaces.is_some());
}

// RFC 9329, 7.1: UDP has answered while the TCP connection to fall back to was still being tried.
#[test]
fn who_is_answered_over_udp_does_not_fall_back_to_tcp() {
    let mut pair = Pair::up(mobile());
    pair.net.udp_blocked = true;
    pair.net.tcp_refused = true;
    move_a(&mut pair, UDP);
    pair.run(seconds(40));
    assert!(!pair.a.connects.is_empty(), "TCP is tried");
    pair.net.udp_blocked = false;
    pair.run(seconds(50));
    pair.net.tcp_refused = false;
    pair.run(seconds(100));
    assert_way(&pair, Transport::Native);
}

// RFC 9329, 6.1 and 7.1: a lost connection is there again while UDP is tried, and carries both directions
// at once.
#[test]
fn a_connection_that_opens_while_udp_is_tried_is_told_of_at_once() {
    let mut pair = Pair::up(mobile());
    move_a(&mut pair, TCP);
    pair.run(seconds(10));
    assert_way(&pair, Transport::Tcp);
    pair.net.udp_blocked = true;
    pair.net.tcp_refused = true;
    pair.cut();
    pair.run(Duration::from_millis(100));
    move_a(&mut pair, UDP);
    pair.net.tcp_refused = false;
    pair.run(seconds(3));
    assert!(pair.a.sa().path.conn.is_some(), "it is open");
    assert_way(&pair, Transport::Tcp);
}

// RFC 4555, 3.5: all pairs of addresses are tried anew when the peer has been heard between, if only by
// what it asked itself: a rekey of the IKE SA, which takes back what waited for an answer.
#[test]
fn the_other_pairs_are_tried_again_after_a_rekey_by_the_peer() {
    let a = of_two_addresses();
    // All were tried by then; or another one is being tried.
    for rekeyed_at in [70, 42] {
        let b = ConnectionConfig { dpd_delay: None, ..mirror(&a) };
        let mut pair = Pair::new(a.clone(), b);
        pair.initiate();
        pair.run(seconds(1));
        let own = pair.a.sa().path;
        pair.net.udp_blocked = true;
        pair.run(seconds(rekeyed_at));
        let elsewhere = |(_, path, _): &&(culvert_ike::Instant, culvert_ike::Path, Vec<u8>)| {
            path.local.ip().to_string() == ELSEWHERE
        };
        assert!(pair.a.sent.iter().any(|sent| elsewhere(&sent)), "{rekeyed_at} s");
        pair.net.udp_blocked = false;
        pair.net.cut_off = Some(ELSEWHERE.parse().unwrap());
        let (now, ike) = (pair.now, pair.b.sa().id);
        pair.b.endpoint.rekey_ike(now, ike, &mut pair.b.host).unwrap();
        pair.run(seconds(1));
        let tried = pair.a.sent.iter().filter(elsewhere).count();
        pair.run(seconds(8));
        assert_eq!(pair.a.sent.iter().filter(elsewhere).count(), tried, "the present way is good");
        assert_eq!(pair.a.sa().path, own);
        pair.net.cut_off = Some(pair::A.parse().unwrap());
        pair.run(seconds(60));
        assert_eq!(pair.a.sa().path.local.ip().to_string(), ELSEWHERE, "{rekeyed_at} s");
        assert_way(&pair, Transport::Native);
    }
}

// RFC 4555, 3.5: the responder has asked for new keys, and the initiator moved before it got the answer.
// It does not know the new IKE SA, and must hear on the old one where the initiator is.
#[test]
fn a_rekey_whose_answer_was_lost_with_its_address_is_finished_at_the_next() {
    let further: IpAddr = ELSEWHERE.parse().unwrap();
    for (transport, asked_for) in
        [(TransportChoice::Udp, true), (TransportChoice::Udp, false), (TransportChoice::Auto, true)]
    {
        let a = ConnectionConfig { transport, ..of_two_addresses() };
        let b = ConnectionConfig { dpd_delay: None, ..mirror(&a) };
        let mut pair = Pair::new(a, b);
        pair.initiate();
        pair.run(seconds(1));
        pair.net.tcp_refused = true;
        let (now, ike) = (pair.now, pair.b.sa().id);
        pair.b.endpoint.rekey_ike(now, ike, &mut pair.b.host).unwrap();
        pair.run(Duration::from_millis(5));
        pair.net.lose = [1, 0];
        pair.run(Duration::from_millis(10));
        pair.net.cut_off = Some(pair::A.parse().unwrap());
        if asked_for {
            move_a(&mut pair, elsewhere());
        }
        pair.run(seconds(100));
        let rekeyed =
            |side: &Side| side.events.iter().any(|e| matches!(e, Event::IkeRekeyed { .. }));
        assert!(rekeyed(&pair.a) && rekeyed(&pair.b), "{transport:?} {asked_for}");
        assert_eq!(pair.a.sa().spi_i, pair.b.sa().spi_i);
        assert_eq!(pair.a.sa().path.local.ip(), further);
        assert_way(&pair, Transport::Native);
    }
}
