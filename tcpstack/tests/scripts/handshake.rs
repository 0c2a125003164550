//! Opening a connection: RFC 9293, 3.5 and 3.10.7, and SYN cookies.

use crate::play::{play, play_over, play_with};
use crate::wire::Family;

#[test]
fn rfc9293_3_5_the_three_way_handshake() {
    play(
        "connect
         > S 0(0) win 65535 mss 1460 ws 7 sackok ts:0
         +0.02 < S. 0(0) ack 1 win 1000 mss 1000 sackok ws 7 ts=1
         > . 1(0) ack 1 ts:1
         event opened",
    );
}

/// RFC 4987, 3.6: the answer is a cookie; RFC 9293, 3.5, figure 6.
#[test]
fn rfc4987_3_6_a_syn_is_answered_by_a_cookie_that_keeps_its_options() {
    play(
        "listen
         < S 0(0) win 60000 mss 1400 sackok ws 7 ts=1
         > S. 0(0) ack 1 win 65535 mss 1460 ws 7 sackok ts:1
         event none
         +0.02 < . 1(0) ack 1 win 100 ts=20
         event opened
         write 5000                        # 12,800 octets of window: the scale was kept
         > . 1(1388) ack 1 ts:20
         > . 1389(1388) ack 1 ts:20
         > . 2777(1388) ack 1 ts:20
         > . 4165(836) ack 1 ts:20
         < . 101(100) ack 1 win 100 ts=21
         > . 5001(0) ack 1 ts:20 sack 101-201",
    );
}

/// What cannot come back in a timestamp is not agreed on.
#[test]
fn rfc4987_3_6_a_cookie_without_timestamps_offers_no_scale_and_no_sack() {
    play(
        "listen
         < S 0(0) win 60000 mss 1400 sackok ws 7
         > S. 0(0) ack 1 win 65535 mss 1460
         +0.02 < . 1(0) ack 1 win 1500
         event opened
         write 3000
         > . 1(1400) ack 1
         < . 101(100) ack 1 win 1500
         > . 1401(0) ack 1",
    );
}

#[test]
fn rfc4987_3_6_a_cookie_ages() {
    play(
        "listen
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         +30 < . 1(0) ack 1 => accepted
         event opened",
    );
    play(
        "listen
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         +64 < . 1(0) ack 1 => no-connection
         > R 1(0)
         event none",
    );
}

/// RFC 4987, 3.6: an acknowledgment that has opened a connection opens no second one, as long as
/// its cookie lives: whoever has seen it could else fill the places of connections with it.
#[test]
fn rfc4987_3_6_a_cookie_is_spent_once() {
    for later in ["+0", "+20", "+40"] {
        play(&format!(
            "listen
             < S 0(0) mss 1000
             > S. 0(0) ack 1 mss 1460
             < . 1(0) ack 1 => accepted
             event opened
             < R 1(0) => accepted
             event closed peer-reset
             {later} < . 1(0) ack 1 => no-connection
             > R 1(0)
             < P. 1(100) ack 1 => no-connection
             > R 1(0)
             event none"
        ));
    }
}

/// RFC 9293, 3.10.7.2: an acknowledgment in LISTEN that is of no cookie is answered by RST, a RST
/// is ignored.
#[test]
fn rfc9293_3_10_7_2_listen_resets_what_is_no_syn() {
    play(
        "listen
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < . 1(0) ack 2000003 => no-connection
         > R 2000003(0)
         < R 1(0) => no-connection
         < R. 1(0) ack 1 => no-connection
         event none",
    );
}

/// RFC 9293, 3.10.7.2: data may come with the acknowledgment, and a FIN.
#[test]
fn rfc9293_3_10_7_2_the_last_segment_of_the_handshake_may_carry_data() {
    play(
        "listen
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < F. 1(10) ack 1 => accepted
         > F. 1(0) ack 12
         event opened
         event closed peer-closed
         < . 12(0) ack 2",
    );
}

/// RFC 7413, 3: data in a SYN of who tries Fast Open is not acknowledged, since nothing is kept of a
/// SYN, and comes again behind the handshake; a closed port acknowledges it with its RST
/// (RFC 9293, 3.10.7.1).
#[test]
fn rfc7413_3_data_in_a_syn_comes_again() {
    play(
        "listen
         < S 0(100) mss 1000 sackok ws 7 ts=5 => accepted
         > S. 0(0) ack 1 mss 1460 ws 7 sackok ts:5
         event none
         < . 1(100) ack 1 ts=6 => accepted
         event opened
         > . 1(0) ack 101 ts:6",
    );
    play(
        "open 65535
         < R 1(0)
         event closed peer-reset
         < S 0(100) mss 1000 => port-closed
         > R. =0(0) ack 101",
    );
}

/// RFC 9293, 3.7.1 (MUST-15): without the option the peer's MSS is 536, over IPv6 1220.
#[test]
fn rfc9293_3_7_1_the_default_mss() {
    for (family, mss) in [(Family::V4, 536), (Family::V6, 1220)] {
        play_over(
            family,
            &format!(
                "connect
                 > S 0(0) mss 1460 ws 7 sackok ts:0
                 < S. 0(0) ack 1
                 > . 1(0) ack 1
                 write {}
                 > . 1({mss}) ack 1
                 > . {}(64) ack 1
                 event opened",
                mss + 64,
                mss + 1,
            ),
        );
    }
}

/// RFC 9293, 3.7.1 (MUST-16): never more than the peer's MSS, through a cookie either.
#[test]
fn rfc9293_3_7_1_a_small_mss_survives_the_cookie() {
    play(
        "listen
         < S 0(0) mss 399
         > S. 0(0) ack 1 mss 1460
         < . 1(0) ack 1
         event opened
         write 300
         > . 1(216) ack 1
         > . 217(84) ack 1",
    );
}

/// CVE-2019-11479: a tiny MSS is not obeyed.
#[test]
fn a_tiny_mss_does_not_make_us_work() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 8
         > . 1(0) ack 1
         write 300
         > . 1(216) ack 1
         > . 217(84) ack 1
         event opened",
    );
}

/// RFC 9293, 3.7.1: the MSS follows from the interface's MTU.
#[test]
fn rfc9293_3_7_1_the_mss_follows_from_the_interface() {
    play_with(
        |config| config.mtu = 1280,
        "connect
         > S 0(0) mss 1240 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 9000
         > . 1(0) ack 1
         write 1300
         > . 1(1240) ack 1
         > . 1241(60) ack 1
         event opened",
    );
}

/// RFC 6298, 5.5 and 5.7: a lost SYN leaves again after 1 s, then 2 s; then it is over.
#[test]
fn rfc6298_5_5_a_syn_is_repeated_with_back_off() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         +1 > S 0(0) mss 1460 ws 7 sackok ts:0
         +2 > S 0(0) mss 1460 ws 7 sackok ts:0
         +4 > S 0(0) mss 1460 ws 7 sackok ts:0
         +3.1 > nothing
         event closed connect-timeout
         +20 > nothing",
    );
}

/// RFC 5681, 3.1: after a lost SYN the first window is one segment.
#[test]
fn rfc5681_3_1_the_window_after_a_lost_syn() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         +1 > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1000 sackok
         > . 1(0) ack 1
         event opened
         write 5000
         > . 1(1000) ack 1
         < . 1(0) ack 1001
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1",
    );
}

#[test]
fn rfc9293_3_10_7_3_a_reset_in_syn_sent_must_acknowledge_our_syn() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < R 0(0) => bad-acknowledgment
         < R. 0(0) ack 0 => bad-acknowledgment
         < R. 0(0) ack 2 => bad-acknowledgment
         event none
         < R. 0(0) ack 1 => accepted
         event closed refused",
    );
}

/// RFC 9293, 3.5.3, figure 9: an old connection of the peer's is half open.
#[test]
fn rfc9293_3_10_7_3_a_wrong_acknowledgment_in_syn_sent_is_reset() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < . 300(0) ack 100 => bad-acknowledgment
         > R 100(0)
         < S. 300(0) ack 2 => bad-acknowledgment
         > R 2(0)
         < . 300(0) ack 1
         < S. 0(0) ack 1 mss 1000
         > . 1(0) ack 1
         event opened",
    );
}

/// RFC 9293, 3.10.7.3: text and a FIN in the answer to our SYN are taken.
#[test]
fn rfc9293_3_10_7_3_text_in_the_answer_to_our_syn() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(100) ack 1 mss 1000 => accepted
         > . 1(0) ack 101
         event opened
         read 100
         < . 101(10) ack 1 => accepted
         > . 1(0) ack 111",
    );
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < SF. 0(100) ack 1 mss 1000 => accepted
         > . 1(0) ack 102
         event opened
         event none
         read 100
         > F. 1(0) ack 102
         event closed peer-closed
         < . 102(0) ack 2 => accepted",
    );
}

/// RFC 9293, 3.10.7.3: beside a SYN that does not answer ours they come again.
#[test]
fn rfc9293_3_10_7_3_text_beside_a_simultaneous_syn() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(100) mss 1000 => accepted
         > S. 0(0) ack 1 mss 1460
         < . 1(100) ack 1 => accepted
         > . 1(0) ack 101
         event opened",
    );
}

/// RFC 4987, 3.6: the answer to a SYN is not repeated. The peer repeats its SYN, and gets the same
/// cookie; an answer that comes late opens the connection as well.
#[test]
fn rfc4987_3_6_a_repeated_syn_gets_the_same_cookie() {
    play(
        "listen
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         +0.9 > nothing
         +0.1 < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < . 1(0) ack 1 => accepted
         event opened
         < S 0(0) mss 1000 => challenged
         > . 1(0) ack 1",
    );
}

/// RFC 9293, 3.10.7.4, SYN-RECEIVED: where the last acknowledgment of the handshake is lost the data behind
/// it opens the connection; data that overtakes both is neither taken nor refused.
#[test]
fn rfc9293_3_10_7_4_a_lost_last_acknowledgment_of_the_handshake() {
    play(
        "listen
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < . 1001(1000) ack 1 => handshake-unfinished
         event none
         < . 1(1000) ack 1 => accepted
         event opened
         > . 1(0) ack 1001
         < . 1001(1000) ack 1 => accepted
         > . 1(0) ack 2001",
    );
}

/// RFC 9293, 3.10.7.4: our own last acknowledgment was lost, and the peer repeats its SYN.
#[test]
fn rfc9293_3_10_7_4_a_repeated_answer_to_our_syn_is_acknowledged() {
    play(
        "open 65535
         +1 < S. 0(0) ack 1 mss 1000 => challenged
         > . 1(0) ack 1
         < . 1(10) ack 1 => accepted
         > . 1(0) ack 11",
    );
}

/// RFC 9293, 3.10.5: ABORT in SYN-RECEIVED sends a RST, in SYN-SENT nothing.
#[test]
fn rfc9293_3_10_5_abort_while_opening() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         abort
         > R. 1(0) ack 1
         event closed local-aborted",
    );
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         abort
         event closed local-aborted
         +30 > nothing",
    );
}

/// RFC 9329, 9.5, and RFC 3168, 6.1.1: outer packets are Not-ECT, so ECN is not agreed on: the answer
/// to a SYN that asks for it has neither ECE nor CWR, and our own SYN does not ask. That holds
/// for every segment of every script.
#[test]
fn rfc9329_9_5_ecn_is_not_agreed_on() {
    play(
        "listen
         < SEW 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < . 1(0) ack 1 => accepted
         event opened",
    );
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S.E 0(0) ack 1 mss 1000 sackok
         > . 1(0) ack 1
         event opened",
    );
}

/// RFC 3168, 6.1.1: where it was not agreed on, ECE and CWR mean nothing: no window falls, and nothing is
/// echoed.
#[test]
fn rfc3168_6_1_1_ecn_flags_mean_nothing() {
    let flight = |from: u64, to: u64| {
        (from..to).map(|n| format!("> . {}(1000) ack 101\n", n * 1000 + 1)).collect::<String>()
    };
    play(&format!(
        "open 65535
         < .EW 1(100) ack 1 => accepted
         > . 1(0) ack 101
         write 40000
         {}
         < .E 101(0) ack 10001
         {}",
        flight(0, 10),
        flight(10, 30),
    ));
}
