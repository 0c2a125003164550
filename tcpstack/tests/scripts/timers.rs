//! Keepalive and the user timeout (RFC 9293, 3.8.3 and 3.8.4).

use std::time::Duration;

use crate::play::{play, play_with};

/// RFC 9293, 3.8.4: silence is probed one octet below what is expected; five unanswered ones end
/// the connection.
#[test]
fn rfc9293_3_8_4_keepalive() {
    play_with(
        |config| config.keepalive = Some(Duration::from_secs(60)),
        "open 65535
         +60 > . 0(0) ack 1
         < . 1(0) ack 1
         +60 > . 0(0) ack 1
         +10 > . 0(0) ack 1
         +10 > . 0(0) ack 1
         +10 > . 0(0) ack 1
         +10 > . 0(0) ack 1
         +10.1 > nothing
         event closed timeout",
    );
}

/// RFC 9293, 3.8.4 (MUST-26): off unless asked for.
#[test]
fn rfc9293_3_8_4_no_keepalive_by_default() {
    play(
        "open 65535
         +100000 > nothing
         event none
         < . 1(10) ack 1
         > . 1(0) ack 11",
    );
}

/// A keepalive of the peer's is answered.
#[test]
fn rfc9293_3_8_4_a_peers_keepalive_is_answered() {
    play(
        "open 65535
         < . 1(10) ack 1
         > . 1(0) ack 11
         +60 < . 10(0) ack 1
         > . 1(0) ack 11
         +60 < . 10(1) ack 1               # with an octet, as old ones have it
         > . 1(0) ack 11 sack 10-11",
    );
}

/// RFC 9293, 3.8.4: a peer that asks whether we live, lives, also where its answers to our own
/// keepalives are lost.
#[test]
fn rfc9293_3_8_4_a_peers_keepalive_is_a_sign_of_life() {
    play_with(
        |config| config.keepalive = Some(Duration::from_secs(60)),
        "open 65535
         < . 1(10) ack 1
         > . 1(0) ack 11
         +60 > . 0(0) ack 11
         +10 > . 0(0) ack 11
         +10 > . 0(0) ack 11
         +10 > . 0(0) ack 11
         +5 < . 10(0) ack 1
         > . 1(0) ack 11
         +60 > . 0(0) ack 11
         +5 < . 10(1) ack 1                # with an octet, as old ones have it
         > . 1(0) ack 11 sack 10-11
         +60 > . 0(0) ack 11
         event none",
    );
}

/// RFC 5961, 7: a keepalive with numbers that somebody guessed is answered, but keeps nothing alive.
#[test]
fn rfc5961_7_a_guessed_keepalive_is_no_sign_of_life() {
    play_with(
        |config| config.keepalive = Some(Duration::from_secs(60)),
        "open 65535
         < . 1(10) ack 1
         > . 1(0) ack 11
         +60 > . 0(0) ack 11
         +10 > . 0(0) ack 11
         +10 > . 0(0) ack 11
         +10 > . 0(0) ack 11
         +5 < . 9(0) ack 1
         > . 1(0) ack 11
         +1 < . 10(0) ack 100
         > . 1(0) ack 11
         +4 > . 0(0) ack 11
         +10.1 > nothing
         event closed timeout",
    );
}

/// RFC 9293, 3.8.3: data that is not acknowledged in time ends the connection.
#[test]
fn rfc9293_3_8_3_the_user_timeout() {
    play_with(
        |config| config.user_timeout = Duration::from_secs(1),
        "open bare 65535
         write 10
         > . 1(10) ack 1
         +0.12 > . 1(10) ack 1
         +0.24 > . 1(10) ack 1
         +0.48 > . 1(10) ack 1
         +0.17 > nothing
         event closed timeout
         < . 1(0) ack 11 => no-connection
         > R 11(0)",
    );
}

/// RFC 6298, 3 and 5: without timestamps the acknowledgment of what was sent twice measures nothing, and
/// the RTO stays backed off until something was sent once: a path that has become slow is found so.
#[test]
fn rfc6298_5_a_back_off_ends_with_a_measurement() {
    play(
        "open bare 65535
         write 1000
         > . 1(1000) ack 1
         +0.12 > . 1(1000) ack 1
         +0.08 < . 1(0) ack 1001           # of the first transmission, or of the second
         write 1000
         > . 1001(1000) ack 1
         +0.2 < . 1(0) ack 2001
         write 1000
         > . 2001(1000) ack 1
         +0.22~0.23 > . 2001(1000) ack 1   # SRTT 25 ms, RTTVAR 50 ms
         +0.01 < . 1(0) ack 3001",
    );
}

/// RFC 6298, 5.3, and RFC 8985, 7.2: the timer of a segment that pacing sent later runs from the last
/// progress, not from the flight's start.
#[test]
fn rfc6298_5_3_progress_restarts_the_timer_of_what_was_paced() {
    play(
        "open far 65535
         write 2000
         > . 1(1000) ack 1
         +0.002~0.02 > . 1001(1000) ack 1
         +0.1 < . 1(0) ack 1001
         +0.2 > nothing                    # the probe of RFC 8985 is not due before
         +0~0.2 > . 1001(1000) ack 1
         +0.1 < . 1(0) ack 2001
         +5 > nothing",
    );
}

/// RFC 6298, 5.7: after a lost SYN data has three seconds, until there is a measurement.
#[test]
fn rfc6298_5_7_three_seconds_after_a_lost_syn() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         +1 > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1000
         > . 1(0) ack 1
         event opened
         write 10
         > . 1(10) ack 1
         +3 > . 1(10) ack 1
         +6 > . 1(10) ack 1
         +0.05 < . 1(0) ack 11
         write 10
         > . 11(10) ack 1
         +0.05 < . 1(0) ack 21             # a measurement
         write 10
         > . 21(10) ack 1
         +0.15~0.18 > . 21(10) ack 1",
    );
}

/// RFC 6298, 5.3: each acknowledgment of new data starts the timer anew.
#[test]
fn rfc6298_5_3_progress_restarts_the_timer() {
    play(
        "open bare 65535
         write 3000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         +0.1 < . 1(0) ack 1001
         +0.1 < . 1(0) ack 2001
         +0.1 > nothing
         +0.1~0.5 > . 2001(1000) ack 1",
    );
}

/// RFC 6298, 5.4: the device is full when the timer fires, and before there is room everything is
/// acknowledged: nothing is repeated, and new data leaves.
#[test]
fn rfc6298_5_4_a_full_device_at_the_retransmission_timer() {
    play(
        "open bare 65535
         write 2000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         full
         +0.15 > nothing
         write 1000
         < . 1(0) ack 2001
         empty
         > . 2001(1000) ack 1
         < . 1(0) ack 3001",
    );
}

/// RFC 7323, 4.3: the acknowledgment of a duplicate echoes what came before it. When all others were
/// lost the time since then is no round trip, or a short outage would slow every later repair.
#[test]
fn rfc7323_4_3_lost_acknowledgments_are_no_round_trip() {
    play(
        "open timestamps 65535
         write 988
         > . 1(988) ack 1 ts
         +0.027 > . 1(988) ack 1 ts
         +0.12 > . 1(988) ack 1 ts
         +0.24 > . 1(988) ack 1 ts
         +0.48 > . 1(988) ack 1 ts
         < . 1(0) ack 989 ts=2:0 sack 1-989
         write 988
         > . 989(988) ack 1 ts
         +0.12 > . 989(988) ack 1 ts",
    );
}

/// RFC 9293, 3.8.3: the user timeout is that of data in flight. A peer that has kept its window closed
/// for longer has said all the time that it lives, and what leaves when the window opens has its
/// own time.
#[test]
fn rfc9293_3_8_3_the_user_timeout_begins_when_a_window_opens() {
    play_with(
        |config| config.user_timeout = Duration::from_secs(1),
        "open bare 1000
         write 2000
         > . 1(1000) ack 1
         < . 1(0) ack 1001 win 0
         +0.12~0.13 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.24~0.25 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.48~0.49 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.96~0.97 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 1000
         > . 1001(1000) ack 1
         +0.12 > . 1001(1000) ack 1
         event none
         < . 1(0) ack 2001
         +5 > nothing",
    );
}

/// The same of a FIN: it has not waited since the data before it was acknowledged.
#[test]
fn rfc9293_3_8_3_the_user_timeout_of_a_fin_begins_at_the_close() {
    play(
        "open bare 65535
         +3600 close
         > F. 1(0) ack 1
         event closed local-closed
         +0.12 > F. 1(0) ack 1
         +0.05 < . 1(0) ack 2 => accepted
         < F. 1(0) ack 2 => accepted
         > . 2(0) ack 2",
    );
    play(
        "open bare 65535
         +3600 < F. 1(0) ack 1
         > F. 1(0) ack 2
         event closed peer-closed
         +0.12 > F. 1(0) ack 2
         +0.05 < . 2(0) ack 2 => accepted",
    );
    play(
        "open bare 10
         write 10
         > . 1(10) ack 1
         < . 1(0) ack 11 win 0
         +3600 close
         event closed local-closed
         +0.12~0.13 > . 10(0) ack 1
         < . 1(0) ack 11 win 10
         > F. 11(0) ack 1
         +0.12 > F. 11(0) ack 1",
    );
}
