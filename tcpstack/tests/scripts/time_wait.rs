//! TIME-WAIT (RFC 9293, 3.6 and 3.10.7.4), and what may end it early (RFC 6191).

use crate::play::play;

/// RFC 9293, 3.10.7.4, eighth check: a repeated FIN in TIME-WAIT is acknowledged, and the wait
/// begins anew.
#[test]
fn rfc9293_3_10_7_4_a_repeated_fin_restarts_time_wait() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < F. 1(0) ack 2
         > . 2(0) ack 2
         +40 < F. 1(0) ack 2
         > . 2(0) ack 2
         +40 < . 2(0) ack 2 => accepted
         +21 < . 2(0) ack 2 => no-connection
         > R 2(0)",
    );
}

/// RFC 5961, 1: who knows only addresses and ports does not keep a connection in TIME-WAIT: a FIN that
/// is not the peer's, by its place or by its acknowledgment, is answered and no more.
#[test]
fn rfc9293_3_10_7_4_only_the_peers_own_fin_restarts_time_wait() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < F. 1(0) ack 2
         > . 2(0) ack 2
         +40 < F. -500(0) ack 2
         > . 2(0) ack 2
         +1 < F. 1(0) ack 900000
         > . 2(0) ack 2
         +20 < . 2(0) ack 2 => no-connection
         > R 2(0)",
    );
}

/// RFC 6191, 2: a SYN with a younger timestamp takes the place of a connection in TIME-WAIT, with
/// an older one it does not.
#[test]
fn rfc6191_2_time_wait_gives_way_by_timestamp() {
    let end = "open timestamps 65535
         close
         > F. 1(0) ack 1 ts:1
         event closed local-closed
         < F. 1(0) ack 2 ts=50
         > . 2(0) ack 2 ts:50";
    // Whether the port is listened on decides the answer: here it is not.
    play(&format!(
        "{end}
         < S 100(0) mss 1000 ts=51 => port-closed
         > R. =0(0) ack 101 ts=0:51"
    ));
    play(&format!(
        "{end}
         < S 100000(0) mss 1000 ts=49 => challenged
         > . 2(0) ack 2 ts:50"
    ));
    // An equal timestamp: the sequence number decides.
    play(&format!(
        "{end}
         < S 2(0) mss 1000 ts=50 => port-closed
         > R. =0(0) ack 3 ts=0:50"
    ));
    play(&format!(
        "{end}
         < S 1(0) mss 1000 ts=50 => challenged
         > . 2(0) ack 2 ts:50"
    ));
}

/// RFC 6191, 2: the old connection had no timestamps, the new one has.
#[test]
fn rfc6191_2_time_wait_without_timestamps_gives_way_to_a_connection_with() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < F. 1(0) ack 2
         > . 2(0) ack 2
         < S -1000(0) mss 1000 ts=1 => port-closed
         > R. =0(0) ack -999 ts=0:1",
    );
}

/// RFC 6191, 2, on a port that is listened on: the new connection gets a cookie, opens and carries
/// data.
#[test]
fn rfc6191_2_a_connection_that_takes_the_place_of_time_wait_works() {
    play(
        "listen
         < S 0(0) mss 1000 ws 7 sackok ts=1
         > S. 0(0) ack 1 mss 1460 ws 7 sackok ts:1
         < . 1(0) ack 1 ts=2
         event opened
         close
         > F. 1(0) ack 1 ts:2
         event closed local-closed
         < F. 1(0) ack 2 ts=3
         > . 2(0) ack 2 ts:3
         +1 < S -5000(0) mss 1000 ws 7 sackok ts=1000 => accepted
         > S. 0(0) ack -4999 mss 1460 ws 7 sackok ts:1000
         < . -4999(0) ack 1 ts=1001
         event opened
         write 500
         > . 1(500) ack -4999 ts:1001
         < . -4999(0) ack 501 ts=1002",
    );
}

/// RFC 9293, 3.6.1 (MAY-2): without timestamps nothing keeps our old segments from the new
/// connection, so that it gets no cookie. A peer that means it ends TIME-WAIT itself.
#[test]
fn rfc9293_3_6_1_time_wait_does_not_give_way_without_timestamps() {
    play(
        "listen
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < . 1(0) ack 1
         event opened
         close
         > F. 1(0) ack 1
         event closed local-closed
         < F. 1(0) ack 2
         > . 2(0) ack 2
         +1 < S 5000(0) mss 1000 => challenged
         > . 2(0) ack 2
         < R 2(0)
         +1 < S 5000(0) mss 1000 => accepted
         > S. 0(0) ack 5001 mss 1460",
    );
}

/// RFC 9293, 3.10.7.4: a RST that fits ends TIME-WAIT, one beside it is challenged (RFC 5961, 3.2).
#[test]
fn rfc9293_3_10_7_4_resets_in_time_wait() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < F. 1(0) ack 2
         > . 2(0) ack 2
         +0.01 < R 50(0)
         > . 2(0) ack 2
         +1 < R 2(0)
         < . 2(0) ack 2 => no-connection
         > R 2(0)",
    );
}
