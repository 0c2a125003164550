//! The path's MTU: ICMP (RFC 1191, RFC 8201, RFC 5927) and probing (RFC 4821).

use culvert_tcpstack::{CongestionControl, StackConfig};

use crate::play::{Play, config, play, play_over, play_with};
use crate::wire::Family;

/// RFC 1191, 3, and RFC 5927, 7.2: believed for a sequence number in flight; what was too large
/// leaves again in smaller pieces.
#[test]
fn rfc5927_7_2_a_packet_too_big_in_flight() {
    play_over(
        Family::V4,
        "open 65535
         write 2000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         too-big 1001 540 yes
         > . 1(500) ack 1
         > . 501(500) ack 1
         > . 1001(500) ack 1
         > . 1501(500) ack 1
         < . 1(0) ack 2001
         write 1000
         > . 2001(500) ack 1
         > . 2501(500) ack 1",
    );
}

/// RFC 5927, 7.2: not in flight, not smaller, or not larger than what was sent: not believed.
#[test]
fn rfc5927_7_2_an_incredible_packet_too_big() {
    play(
        "open 65535
         write 1100
         > . 1(1000) ack 1
         > . 1001(100) ack 1
         too-big 0 540 no                  # acknowledged
         too-big 1101 540 no               # not sent yet
         too-big 50000 540 no
         too-big 1 1040 no                 # it would have passed
         too-big 1 1500 no
         too-big 1001 540 no               # a small segment
         < . 1(0) ack 1101
         too-big 1 540 no",
    );
}

/// RFC 5927, 7.2: what denies that segments pass which have passed is not believed as long as the
/// connection makes progress, or whoever guesses a number in flight could make all segments tiny.
#[test]
fn rfc5927_7_2_a_claim_that_progress_refutes() {
    play_over(
        Family::V4,
        "open bare 65535
         write 2000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         < . 1(0) ack 2001
         write 2000
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1
         too-big 3001 540 yes
         +0.001 > nothing
         < . 1(0) ack 4001
         write 1000
         > . 4001(1000) ack 1
         +0.12~0.13 > . 4001(1000) ack 1   # of this one nobody has said anything
         < . 1(0) ack 5001
         write 1000
         > . 5001(1000) ack 1
         too-big 5001 940 yes              # smaller than what passes, too
         < . 1(0) ack 6001
         write 1000
         > . 6001(1000) ack 1",
    );
}

/// The same where the path has become narrower indeed: the timer of the segment shows it, or that
/// it is lost twice though others arrive.
#[test]
fn rfc5927_7_2_a_claim_that_a_timeout_confirms() {
    let open = "open 65535
         write 1000
         > . 1(1000) ack 1
         < . 1(0) ack 1001
         write 1000
         > . 1001(1000) ack 1
         too-big 1001 540 yes";
    play_over(
        Family::V4,
        &format!(
            "{open}
             +0.02~0.03 > . 1001(1000) ack 1
             +0.12 > . 1001(500) ack 1
             < . 1(0) ack 1501
             > . 1501(500) ack 1
             < . 1(0) ack 2001
             write 1000
             > . 2001(500) ack 1
             > . 2501(500) ack 1"
        ),
    );
    let config = StackConfig { congestion_control: CongestionControl::Bbr, ..config() };
    let play = Play::new(Family::V4, config);
    play.play(&format!(
        "{open}
             +0.001 write 100
             > . 2001(100) ack 1
             +0.001 < . 1(0) ack 1001 sack 2001-2101
             > . 1001(1000) ack 1
             +0.001 write 100
             > . 2101(100) ack 1
             +0.001 < . 1(0) ack 1001 sack 2001-2201
             > . 1001(500) ack 1
             > . 1501(500) ack 1"
    ))
    .end();
}

/// RFC 8201, 4: over IPv6 no router asks for less than 1280 octets: what does is taken for that, and
/// where segments are no larger it is not believed.
#[test]
fn rfc8201_4_a_packet_too_big_over_ipv6() {
    let open = "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1440 sackok
         > . 1(0) ack 1
         event opened
         write 2880
         > . 1(1440) ack 1
         > . 1441(1440) ack 1";
    for mtu in [0, 68, 1279, 1280] {
        play_over(
            Family::V6,
            &format!(
                "{open}
                 too-big 1441 {mtu} yes
                 > . 1(1220) ack 1
                 > . 1221(220) ack 1
                 > . 1441(1220) ack 1
                 > . 2661(220) ack 1
                 too-big 1441 {mtu} no             # it would have passed
                 < . 1(0) ack 2881"
            ),
        );
    }
    play_over(Family::V6, &format!("{open}\ntoo-big 1441 1500 no\n< . 1(0) ack 2881"));
}

/// A router that names no MTU (RFC 1191, 5), and one that names a tiny one.
#[test]
fn rfc1191_5_a_router_without_a_next_hop_mtu() {
    play_over(
        Family::V4,
        "open 65535
         write 1000
         > . 1(1000) ack 1
         too-big 1 0 yes
         > . 1(966) ack 1
         > . 967(34) ack 1
         too-big 1 68 yes
         > . 1(216) ack 1
         > . 217(216) ack 1
         > . 433(216) ack 1
         > . 649(216) ack 1
         > . 865(102) ack 1
         > . 967(34) ack 1",
    );
}

/// RFC 4821, 7.7: two timeouts of a full segment mean a black hole. Smaller segments pass, and a
/// search by halves finds the true size; a lost probe is no congestion (7.5).
#[test]
fn rfc4821_7_7_a_black_hole_and_the_search() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1460 sackok
         > . 1(0) ack 1
         event opened
         write 1460
         > . 1(1460) ack 1
         +0.02~0.03 > . 1(1460) ack 1      # the tail loss probe
         +0.12 > . 1(1460) ack 1
         +0.24 > . 1(1024) ack 1
         < . 1(0) ack 1025
         > . 1025(436) ack 1
         < . 1(0) ack 1461
         +2 write 1460
         > . 1461(1242) ack 1              # a probe, half way
         +0~0.05 > . 2703(218) ack 1
         < . 1(0) ack 2921
         +2 write 1460
         > . 2921(1351) ack 1              # the next half
         +0~0.05 > . 4272(109) ack 1
         < . 1(0) ack 4381",
    );
}

/// RFC 4821, 7.7: small frames that pass keep the timer from firing, and show all the same that
/// the large segment in front of them is lost, and lost again.
#[test]
fn rfc4821_7_7_a_black_hole_beside_small_frames() {
    play_with(
        |config| config.congestion_control = CongestionControl::Bbr,
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1460 sackok
         > . 1(0) ack 1
         event opened
         write 1460
         > . 1(1460) ack 1
         +0.001 write 100
         > . 1461(100) ack 1
         +0.001 < . 1(0) ack 1 sack 1461-1561
         > . 1(1460) ack 1
         +0.001 write 100
         > . 1561(100) ack 1
         +0.001 < . 1(0) ack 1 sack 1461-1661
         > . 1(1460) ack 1
         +0.001 write 100
         > . 1661(100) ack 1
         +0.001 < . 1(0) ack 1 sack 1461-1761
         > . 1(1024) ack 1                 # the third loss
         > . 1025(436) ack 1
         < . 1(0) ack 1761
         write 1460
         > . 1761(1024) ack 1
         > . 2785(436) ack 1",
    );
}

/// The opposite: another segment as large arrives meanwhile; the path only loses.
#[test]
fn rfc4821_7_7_no_black_hole_if_as_large_a_segment_passes() {
    play_with(
        |config| config.congestion_control = CongestionControl::Bbr,
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1460 sackok
         > . 1(0) ack 1
         event opened
         write 1460
         > . 1(1460) ack 1
         +0.001 write 100
         > . 1461(100) ack 1
         +0.001 < . 1(0) ack 1 sack 1461-1561
         > . 1(1460) ack 1
         +0.001 write 1460
         > . 1561(1460) ack 1
         +0.001 < . 1(0) ack 1 sack 1461-3021
         > . 1(1460) ack 1
         +0.001 write 100
         > . 3021(100) ack 1
         +0.001 < . 1(0) ack 1 sack 1461-3121
         > . 1(1460) ack 1                 # the third loss
         < . 1(0) ack 3121",
    );
}

/// RFC 4821, 7.5 and 7.6.2: a lost probe that nothing is SACKed behind is found by the timer:
/// what it carried leaves in pieces that pass.
#[test]
fn rfc4821_7_6_2_a_lost_probe_found_by_the_timer() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1460 sackok
         > . 1(0) ack 1
         event opened
         write 1460
         > . 1(1460) ack 1
         +0.02~0.03 > . 1(1460) ack 1      # the tail loss probe
         +0.12 > . 1(1460) ack 1
         +0.24 > . 1(1024) ack 1
         < . 1(0) ack 1025
         > . 1025(436) ack 1
         < . 1(0) ack 1461
         +2 write 1300
         > . 1461(1242) ack 1              # the probe of the path
         +0~0.05 > . 2703(58) ack 1
         +0.4~0.55 > . 1461(1024) ack 1    # nothing was measured since the timer last fired
         < . 1(0) ack 2485
         > . 2485(218) ack 1
         > . 2703(58) ack 1
         < . 1(0) ack 2761",
    );
}

/// RFC 4821, 7.3: ten minutes after a search has ended all sizes are tried again.
#[test]
fn rfc4821_7_3_the_search_begins_again_after_ten_minutes() {
    play_over(
        Family::V4,
        "open 65535
         write 1000
         > . 1(1000) ack 1
         too-big 1 540 yes
         > . 1(500) ack 1
         > . 501(500) ack 1
         < . 1(0) ack 1001
         +2 write 1000                     # the router has named the size: no search
         > . 1001(500) ack 1
         > . 1501(500) ack 1
         < . 1(0) ack 2001
         +590 write 1000
         > . 2001(500) ack 1
         > . 2501(500) ack 1
         < . 1(0) ack 3001
         +20 write 1000
         > . 3001(750) ack 1               # half way to what the interface allows
         > . 3751(250) ack 1
         < . 1(0) ack 4001
         write 750
         > . 4001(750) ack 1
         < . 1(0) ack 4751",
    );
}

/// RFC 8899, 5.2, and RFC 4821, 7.3, over IPv6: from the 1280 octets that every path carries the search
/// goes upward as far as the interface allows.
#[test]
fn rfc4821_7_3_the_search_upward_over_ipv6() {
    play_over(
        Family::V6,
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1440 sackok
         > . 1(0) ack 1
         event opened
         write 1440
         > . 1(1440) ack 1
         too-big 1 1280 yes
         > . 1(1220) ack 1
         > . 1221(220) ack 1
         < . 1(0) ack 1441
         +2 write 1440                     # the router has named the size: no search
         > . 1441(1220) ack 1
         > . 2661(220) ack 1
         < . 1(0) ack 2881
         +601 write 1440
         > . 2881(1330) ack 1              # half way
         > . 4211(110) ack 1
         < . 1(0) ack 4321
         +2 write 1440
         > . 4321(1385) ack 1
         > . 5706(55) ack 1
         < . 1(0) ack 5761
         +2 write 1440
         > . 5761(1413) ack 1
         > . 7174(27) ack 1
         < . 1(0) ack 7201
         +2 write 1440                     # there is nothing more to win
         > . 7201(1413) ack 1
         > . 8614(27) ack 1
         < . 1(0) ack 8641",
    );
}

/// The same where the probe is lost: the size stays, and what it carried leaves in pieces.
#[test]
fn rfc4821_7_5_a_lost_probe() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1460 sackok
         > . 1(0) ack 1
         event opened
         write 1460
         > . 1(1460) ack 1
         +0.02~0.03 > . 1(1460) ack 1      # the tail loss probe
         +0.12 > . 1(1460) ack 1
         +0.24 > . 1(1024) ack 1
         < . 1(0) ack 1025
         > . 1025(436) ack 1
         < . 1(0) ack 1461
         +2 write 2000
         > . 1461(1242) ack 1
         +0~0.3 > . 2703(758) ack 1
         +0.001 < . 1(0) ack 1461 sack 2703-3461
         +0~0.3 > . 1461(1024) ack 1
         > . 2485(218) ack 1
         < . 1(0) ack 3461
         +2 write 2000
         > . 3461(1133) ack 1              # half of what is left
         +0~0.3 > . 4594(867) ack 1",
    );
}

/// A router names a small size, and after ten minutes a larger one is tried.
const SEARCH: &str = "write 1000
    > . 1(1000) ack 1
    too-big 1 540 yes
    > . 1(500) ack 1
    > . 501(500) ack 1
    < . 1(0) ack 1001
    +2 write 500                      # there is nothing to search
    > . 1001(500) ack 1
    < . 1(0) ack 1501
    +601 write 20000";

/// RFC 4821, 7.5 and 7.6.2: the loss of a probe alone is no sign of congestion: slow start
/// goes on, with two segments for each that arrived.
#[test]
fn rfc4821_7_6_2_a_lost_probe_is_no_congestion() {
    play_over(
        Family::V4,
        &format!(
            "open 65535
             {SEARCH}
             > . 1501(750) ack 1               # the probe
             > . 2251(500) ack 1
             > . 2751(500) ack 1
             > . 3251(500) ack 1
             > . 3751(500) ack 1
             > . 4251(500) ack 1
             > . 4751(500) ack 1
             > . 5251(500) ack 1
             > . 5751(500) ack 1
             < . 1(0) ack 1501 sack 2251-6251
             > . 1501(500) ack 1
             > . 2001(250) ack 1
             > . 6251(500) ack 1
             > . 6751(500) ack 1
             > . 7251(500) ack 1
             > . 7751(500) ack 1
             > . 8251(500) ack 1
             > . 8751(500) ack 1
             > . 9251(500) ack 1
             > . 9751(500) ack 1
             > . 10251(500) ack 1
             > . 10751(500) ack 1
             > . 11251(500) ack 1
             > . 11751(500) ack 1
             > . 12251(500) ack 1
             > . 12751(500) ack 1
             > . 13251(500) ack 1
             > . 13751(500) ack 1
             > nothing"
        ),
    );
}

/// RFC 4821, 7.4: a probe leaves only if its loss can be told without a timer: a segment must follow, or
/// three of them where the peer does not send SACK.
#[test]
fn rfc4821_7_4_a_probe_does_not_leave_last() {
    for (open, behind) in [("open 65535", 1), ("open bare 65535", 1001)] {
        let search = |more: u64| SEARCH.replace("20000", &(750 + more).to_string());
        let (without, with) = (search(behind - 1), search(behind));
        let first = |size: u64, more: u64| {
            let mut at = 1501;
            let mut lines = format!("> . {at}({size}) ack 1\n");
            at += size;
            while at < 1501 + 750 + more {
                let len = 500.min(1501 + 750 + more - at);
                lines += &format!("> . {at}({len}) ack 1\n");
                at += len;
            }
            lines
        };
        play_over(Family::V4, &format!("{open}\n{without}\n{}", first(500, behind - 1)));
        play_over(Family::V4, &format!("{open}\n{with}\n{}", first(750, behind)));
    }
}

/// RFC 4821, 7.6.4: a probe that is lost together with another segment shows nothing of the path's MTU:
/// the same size is tried again. The window falls once, for the other one.
#[test]
fn rfc4821_7_6_4_a_probe_lost_among_others_is_tried_again() {
    let search = SEARCH.replace("20000", "1750");
    play_over(
        Family::V4,
        &format!(
            "open 65535
             {search}
             > . 1501(750) ack 1               # the probe
             > . 2251(500) ack 1
             > . 2751(500) ack 1
             < . 1(0) ack 1501 sack 2751-3251
             > . 1501(500) ack 1
             < . 1(0) ack 2001 sack 2751-3251
             > . 2001(250) ack 1
             > . 2251(500) ack 1
             < . 1(0) ack 3251
             +2 write 800
             > . 3251(750) ack 1
             > . 4001(50) ack 1"
        ),
    );
}
