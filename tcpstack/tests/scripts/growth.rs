//! How large the window is at first (RFC 6928) and how it grows: slow start (RFC 5681, 3.1; RFC 9406), congestion avoidance (RFC 9438).

use crate::play::{play, play_with};

/// The segments from the one with number `from` on, up to the one before `to`, each of 1000 octets.
fn sent(from: u64, to: u64) -> String {
    (from..to).map(|n| format!("> . {}(1000) ack 1\n", n * 1000 + 1)).collect()
}

/// Acknowledges everything before segment `to`.
fn ack(to: u64) -> String {
    format!("< . 1(0) ack {}\n", to * 1000 + 1)
}

/// RFC 5681, 3.1, and RFC 9406, 4.3: slow start counts octets (RFC 3465): however many segments an
/// acknowledgment covers, twice as many leave, and no more.
#[test]
fn rfc5681_3_1_slow_start_with_an_acknowledgment_of_one_two_or_four() {
    for step in [1, 2, 4] {
        let mut script = format!("open 65535\nwrite 60000\n{}", sent(0, 10));
        for acked in (step..=8).step_by(step as usize) {
            script += &ack(acked);
            script += &sent(10 + 2 * (acked - step), 10 + 2 * acked);
        }
        play(&script);
    }
}

/// RFC 7661, 4.2: nine segments at a time do not fill a window of ten, which stays as it is.
#[test]
fn rfc7661_4_2_slow_start_limited_by_the_application() {
    let mut script = String::from("open 65535\n");
    for n in (0..45).step_by(9) {
        script += &format!("write 9000\n{}{}{}", sent(n, n + 9), ack(n + 4), ack(n + 9));
    }
    script += &format!("write 40000\n{}{}{}", sent(45, 55), ack(55), sent(55, 75));
    play(&script);
}

/// RFC 9438, 5.8: the same where the peer's window is the limit. When that opens, what it held back
/// leaves as the congestion window allows, and slow start goes on.
#[test]
fn rfc9438_5_8_slow_start_limited_by_the_peers_window() {
    play(&format!(
        "open 5000
         write 40000
         {}
         < . 1(0) ack 5001 win 5000
         {}
         < . 1(0) ack 10001 win 0
         < . 1(0) ack 10001 win 60000      # an update of the window
         {}
         < . 1(0) ack 20001 win 60000
         {}",
        sent(0, 5),
        sent(5, 10),
        sent(10, 20),
        sent(20, 40),
    ));
}

/// RFC 5681, 3.1: after a timeout slow start leads to seven tenths of what was in flight, one
/// segment more for each acknowledged; there congestion avoidance begins, without a jump.
#[test]
fn rfc9438_4_8_from_a_timeout_through_slow_start_to_congestion_avoidance() {
    let mut script = format!(
        "open bare 65535
         write 10000
         {}
         +0.12 > . 1(1000) ack 1
         +0.01 {}
         {}
         write 40000\n",
        sent(0, 10),
        ack(1),
        sent(1, 3),
    );
    for acked in 2..=6 {
        script += &(ack(acked) + &sent(2 * acked - 1, 2 * acked + 1));
    }
    for acked in 7..=13 {
        script += &(ack(acked) + &sent(acked + 6, acked + 7));
    }
    play(&script);
}

/// RFC 9937, 5, with two bursts lost of thirty segments: as long as more than 21 are in flight, seven
/// tenths of what is delivered leave; when the second loss has brought them below, one for one,
/// and one more where an acknowledgment advances and tells of no further loss.
#[test]
fn rfc9937_5_two_bursts_lost_of_thirty() {
    let range = |from: u64, to: u64| format!("{}-{}", from * 1000 + 1, to * 1000 + 1);
    let take = |una: u64, blocks: &[String]| {
        format!("< . 1(0) ack {} sack {}\n", una * 1000 + 1, blocks.join(","))
    };
    let again = |n: u64| sent(n, n + 1);
    // Lost are the segments 30 to 33 and 40 to 45.
    let upper = |last: u64| [range(46, last + 1), range(34, 40)];
    let mut script = format!(
        "open 65535
         write 60000
         {}{}{}{}{}
         +0.0005 {}{}
         write 30000\n",
        sent(0, 10),
        ack(10),
        sent(10, 30),
        ack(30),
        sent(30, 60),
        take(30, &[range(34, 35)]),
        again(30),
    );
    let mut next = 31;
    for last in 35..40 {
        script += &take(30, &[range(34, last + 1)]);
        // Of 2, 3, 4, 5 and 6 delivered 1.4, 2.1, 2.8, 3.5 and 4.2 may leave.
        if matches!(last, 36 | 38 | 39) {
            script += &again(next);
            next += 1;
        }
    }
    // Six more are lost: seventeen are in flight, and of seven delivered four have left.
    script += &(take(30, &upper(46)) + &sent(40, 43));
    for last in 47..50 {
        script += &(take(30, &upper(last)) + &again(last - 4));
    }
    for last in 50..60 {
        script += &(take(30, &upper(last)) + &again(last + 10));
    }
    // The repairs arrive: each lets two leave until 21 are in flight, then one.
    script += &take(31, &upper(59));
    script += &sent(70, 72);
    script += &(take(32, &upper(59)) + &again(72));
    script += &(take(33, &upper(59)) + &again(73));
    script += &(take(40, &[range(46, 60)]) + &again(74));
    play(&script);
}

/// RFC 5681, 4.1: after an idle time the window is the initial one again.
#[test]
fn rfc5681_4_1_restart_after_idle() {
    let segments = |from: u64, to: u64| {
        (from..to).map(|n| format!("> . {}(1000) ack 1\n", n * 1000 + 1)).collect::<String>()
    };
    play(&format!(
        "open 65535
         write 30000
         {}
         < . 1(0) ack 10001
         {}
         < . 1(0) ack 30001
         +10 write 30000
         {}",
        segments(0, 10),
        segments(10, 30),
        segments(30, 40),
    ));
}

/// RFC 5681, 4.1: it makes no difference whether we had nothing to send or the peer's window was closed.
#[test]
fn rfc5681_4_1_restart_behind_a_closed_window() {
    play(&format!(
        "open 65535
         write 30000
         {}
         < . 1(0) ack 10001
         {}
         < . 1(0) ack 30001 win 0
         write 30000
         +0.12~0.13 > . 30000(0) ack 1
         < . 1(0) ack 30001 win 0
         +0.24~0.25 > . 30000(0) ack 1
         < . 1(0) ack 30001
         {}
         < . 1(0) ack 40001
         {}",
        sent(0, 10),
        sent(10, 30),
        sent(30, 40),
        sent(40, 60),
    ));
}

/// RFC 9438, 5.8, and RFC 7661, 4.2: who sends less than the window allows does not earn a larger one.
#[test]
fn rfc9438_5_8_a_window_that_is_not_used_does_not_grow() {
    let calls: String = (0..12)
        .map(|n| {
            format!(
                "write 1000\n> . {}(1000) ack 1\n< . 1(0) ack {}\n",
                n * 1000 + 1,
                n * 1000 + 1001
            )
        })
        .collect();
    let flight: String = (12..22).map(|n| format!("> . {}(1000) ack 1\n", n * 1000 + 1)).collect();
    play(&format!(
        "open 65535
         {calls}
         write 20000
         {flight}"
    ));
}

/// RFC 9438, 5.8, and RFC 7661, 4.2: what pacing holds back for some milliseconds does not fill the
/// window: three segments in each round trip leave a window of ten as it is.
#[test]
fn rfc7661_4_2_what_is_paced_does_not_fill_the_window() {
    let paced = |from: u64, to: u64| -> String {
        (from..to).map(|n| format!("+0~0.01 > . {}(1000) ack 1\n", n * 1000 + 1)).collect()
    };
    let mut script = String::from("open far 65535\n");
    for n in (0..60).step_by(3) {
        script += &format!("write 3000\n{}", sent(n, n + 1));
        if n > 0 {
            script += &format!("+0.001 {}", ack(n));
        }
        script += &format!("{}+0.08 > nothing\n", paced(n + 1, n + 3));
    }
    script += &format!("+0.02 {}write 60000\n{}+0.05 > nothing\n", ack(60), paced(60, 70));
    play(&script);
}

/// RFC 6928, 2: ten segments, but no more than 14,600 octets, unless that is less than two; the same
/// after an idle time (RFC 5681, 4.1).
#[test]
fn rfc6928_2_the_first_window_of_large_segments() {
    let flight = |from: u64, count: u64, mss: u64| {
        let segment = |n| format!("> . {}({mss}) ack 1\n", from + n * mss);
        (0..count).map(segment).collect::<String>()
    };
    for (mss, segments) in [(1000, 10), (1460, 10), (1825, 8), (2000, 7), (8000, 2), (8960, 2)] {
        let behind = 1 + segments * mss;
        play_with(
            |config| config.mtu = 9000,
            &format!(
                "connect
                 > S 0(0) mss 8960 ws 7 sackok ts:0
                 < S. 0(0) ack 1 mss {mss} sackok
                 > . 1(0) ack 1
                 event opened
                 write {}
                 {}
                 < . 1(0) ack {behind}
                 > . {behind}({mss}) ack 1
                 < . 1(0) ack {}
                 +10 write 40000
                 {}",
                (segments + 1) * mss,
                flight(1, segments, mss),
                behind + mss,
                flight(behind + mss, segments, mss),
            ),
        );
    }
}
