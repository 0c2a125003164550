//! Segments that the peer did not send: RFC 5961, and peers that want us to work.

use crate::play::play;

/// RFC 5961, 3.2: a RST exactly at the next octet is believed.
#[test]
fn rfc5961_3_2_an_exact_reset() {
    play(
        "open 65535
         < R 1(0) => accepted
         event closed peer-reset",
    );
}

/// RFC 5961, 3.2: in the window it is challenged, outside it is dropped.
#[test]
fn rfc5961_3_2_other_resets() {
    play(
        "open 65535
         < R 2(0) => challenged
         > . 1(0) ack 1
         +1 < R. 60000(0) ack 1 => challenged
         > . 1(0) ack 1
         +1 < R 0(0) => out-of-window
         < R 70000(0) => out-of-window
         < R -100000(0) => out-of-window
         +1 > nothing
         event none
         < R. 1(0) ack 99999999 => accepted
         event closed peer-reset",
    );
}

/// RFC 5961, 4.2: a SYN is challenged whatever its number, before our first octet too.
#[test]
fn rfc5961_4_2_a_syn_is_challenged() {
    for seq in [-2_000_000_000i64, -100_000, -1, 0, 1, 2, 60_000, 2_000_000_000] {
        play(&format!(
            "open 65535
             < S {seq}(0) mss 1000 => challenged
             > . 1(0) ack 1
             +1 < S. {seq}(0) ack 1 mss 1000 => challenged
             > . 1(0) ack 1
             event none"
        ));
    }
}

/// RFC 9293, 3.5.3, figure 10: a peer that has started anew learns so, and its RST ends the old
/// connection.
#[test]
fn rfc9293_3_5_3_a_peer_that_restarted() {
    play(
        "open timestamps 65535
         < S 500(0) mss 1000 sackok ws 7 ts=9 => challenged
         > . 1(0) ack 1 ts:1
         < R 1(0) => accepted
         event closed peer-reset",
    );
}

/// RFC 5961, 5.2: data whose acknowledgment is of nothing in flight, or of long ago.
#[test]
fn rfc5961_5_2_data_with_an_impossible_acknowledgment() {
    play(
        "open 65535
         < . 1(10) ack 2 => bad-acknowledgment
         > . 1(0) ack 1
         +1 < . 1(10) ack -70000 => bad-acknowledgment
         > . 1(0) ack 1
         +1 < . 1(10) ack 2000000000 => bad-acknowledgment
         > . 1(0) ack 1
         +1 < P 1(10) => malformed
         < . 1(10) ack 1 => accepted
         > . 1(0) ack 11",
    );
}

/// RFC 9293, 3.10.7.4, first check: what lies outside the window is acknowledged and dropped.
#[test]
fn rfc9293_3_10_7_4_outside_the_window() {
    play(
        "open 65535
         < . 70000(10) ack 1 => out-of-window
         > . 1(0) ack 1
         +1 < . 70000(0) ack 1 => out-of-window
         > . 1(0) ack 1
         +1 < . -10(5) ack 1 => out-of-window
         > . 1(0) ack 1
         +1 < . -2000000000(5) ack 1 => out-of-window
         > . 1(0) ack 1",
    );
}

/// RFC 5961, 7: challenges are limited, for each connection.
#[test]
fn rfc5961_7_challenges_are_limited() {
    let mut flood = String::new();
    for n in 0..100 {
        flood += &format!("+0.0001 < R {}(0) => challenged\n", n + 3);
        flood += &format!("+0.0001 < S {}(0) => challenged\n", n + 3);
        flood += "+0.0001 < . 1(10) ack 5000 => bad-acknowledgment\n";
    }
    play(&format!(
        "open 65535
         < R 2(0) => challenged
         > . 1(0) ack 1
         {flood}
         +0.2 < R 2(0) => challenged
         > . 1(0) ack 1"
    ));
}

/// RFC 5961, 5.2 and 7: so is the answer to old data whose acknowledgment cannot be the peer's; and
/// it is not reported as a duplicate, which the peer would take for a needless retransmission.
/// The peer's own is reported each time.
#[test]
fn rfc5961_7_old_data_does_not_get_around_the_limit() {
    let flood = "+0.0001 < . 1(100) ack 2000000000 => out-of-window\n".repeat(100);
    play(&format!(
        "open 65535
         < . 1(100) ack 1
         > . 1(0) ack 101
         +1 < . 1(100) ack 2000000000 => out-of-window
         > . 1(0) ack 101
         {flood}
         < . 1(100) ack 1 => out-of-window
         > . 1(0) ack 101 sack 1-101
         +0.0001 < . 1(100) ack 1 => out-of-window
         > . 1(0) ack 101 sack 1-101"
    ));
}

/// Forged data whose FIN lies elsewhere does not keep the peer from closing.
#[test]
fn a_forged_fin_is_overruled() {
    play(
        "open 65535
         < F. 5001(10) ack 1
         > . 1(0) ack 1 sack 5001-5011
         < F. 1(10) ack 1
         > F. 1(0) ack 12
         event closed peer-closed",
    );
}

/// CVE-2019-11477, SACK Panic, and its kin: blocks of single octets, overlapping and absurd ones cost
/// nothing and change nothing that they should not.
#[test]
fn sack_blocks_of_a_hostile_peer() {
    let mut blocks = String::new();
    for n in 0..200 {
        let (a, b) = (n * 10 + 3, n * 10 + 4);
        blocks += &format!("< . 1(0) ack 1 sack {a}-{b}\n");
    }
    play(&format!(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 8 sackok
         > . 1(0) ack 1
         event opened
         write 2160
         {}
         {blocks}
         < . 1(0) ack 1 sack 5000-6000,100-90,2161-2162
         +0.001 > nothing
         < . 1(0) ack 2161",
        (0..10).map(|n| format!("> . {}(216) ack 1\n", n * 216 + 1)).collect::<String>()
    ));
}

/// Single octets behind holes: the list of runs stays short, and the stream stays whole.
#[test]
fn reassembly_is_bounded() {
    let mut script = String::from("open bare 65535\n");
    for n in 0..300 {
        script += &format!("< . {}(1) ack 1\n> . 1(0) ack 1\n", n * 2 + 2);
    }
    script += "< . 801(1) ack 1 => no-memory\n> . 1(0) ack 1\n";
    script += "< . 1(900) ack 1 => accepted\n> . 1(0) ack 901\n";
    play(&script);
}

/// What nobody sent cannot be acknowledged, selectively neither: nothing is taken as delivered.
#[test]
fn optimistic_acknowledgments() {
    play(
        "open 65535
         write 1000
         > . 1(1000) ack 1
         < . 1(0) ack 1 sack 2001-3001
         < . 1(0) ack 1002 => bad-acknowledgment
         > . 1001(0) ack 1
         < . 1(0) ack 1001 => accepted",
    );
}

/// Many small segments of which every second one is lost look the same, until the others come again.
/// What is in order is taken however many holes there are, whether it is read at once or later: else
/// the first of them would never be filled.
#[test]
fn what_is_in_order_is_taken_in_front_of_any_number_of_holes() {
    let mut script = "lazy\nopen bare 65535\n".to_owned();
    for n in 1..=65 {
        script += &format!("< . {}(10) ack 1\n> . 1(0) ack 1\n", 20 * n + 1);
    }
    script += "< . 1341(10) ack 1 => no-memory\n> . 1(0) ack 1\n";
    script += "< . 1(20) ack 1 => accepted\n> . 1(0) ack 31\n";
    script += "< . 31(10) ack 1 => accepted\n> . 1(0) ack 51\nread 50\n";
    play(&script);
}
