//! Closing a connection: RFC 9293, 3.6 and 3.10.7.4, and TIME-WAIT (RFC 6191).

use crate::play::play;

/// RFC 9293, 3.6, figure 12: FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT.
#[test]
fn rfc9293_3_6_close_from_our_side() {
    play(
        "open 65535
         write 10
         > . 1(10) ack 1
         close
         > F. 11(0) ack 1
         event closed local-closed
         < . 1(0) ack 12
         < F. 1(0) ack 12
         > . 12(0) ack 2
         +59 < . 2(0) ack 12 => accepted   # TIME-WAIT is still there
         +2 < . 2(0) ack 12 => no-connection
         > R 12(0)",
    );
}

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

/// RFC 9293, 3.6, figure 13: CLOSING.
#[test]
fn rfc9293_3_6_simultaneous_close() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < F. 1(0) ack 1                   # crossed ours
         > . 2(0) ack 2
         < . 2(0) ack 2
         +59 < . 2(0) ack 2 => accepted",
    );
}

/// RFC 9293, 3.6, case 2: CLOSE-WAIT, LAST-ACK. The caller knows no half-closed connection, so the
/// FIN is answered by ours.
#[test]
fn rfc9293_3_6_close_from_the_peers_side() {
    play(
        "open 65535
         < F. 1(100) ack 1
         event closed peer-closed
         > F. 1(0) ack 102
         < . 102(0) ack 2 => accepted
         < . 102(0) ack 2 => no-connection # CLOSED, without TIME-WAIT
         > R 2(0)",
    );
}

/// RFC 9293, 3.6: what came before the FIN is read before the connection ends.
#[test]
fn rfc9293_3_6_data_before_a_fin_is_not_lost() {
    play(
        "lazy
         open 65535
         < F. 1(100) ack 1
         > . 1(0) ack 102
         event none
         write 50                          # CLOSE-WAIT: we may still send
         > . 1(50) ack 102
         < . 102(0) ack 51
         read 100
         > F. 51(0) ack 102
         event closed peer-closed",
    );
}

/// RFC 9293, 3.10.7.4: a FIN before a hole waits until the hole is filled.
#[test]
fn rfc9293_3_10_7_4_a_fin_out_of_order() {
    play(
        "open 65535
         < F. 101(10) ack 1
         > . 1(0) ack 1 sack 101-111
         event none
         < . 1(100) ack 1
         > F. 1(0) ack 112
         event closed peer-closed",
    );
}

/// RFC 9293, 3.6.1: what the peer still sends after our close is acknowledged and discarded.
#[test]
fn rfc9293_3_6_half_close_of_ours() {
    play(
        "lazy
         open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < . 1(0) ack 2
         < . 1(1000) ack 2
         > . 2(0) ack 1001
         < F. 1001(0) ack 2
         > . 2(0) ack 1002",
    );
}

/// A lost FIN is sent again, and is no longer than one octet of sequence space.
#[test]
fn rfc6298_5_4_a_lost_fin_is_repeated() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         +0.02~0.03 > F. 1(0) ack 1        # the tail loss probe
         +0.12~0.13 > F. 1(0) ack 1
         +0.24~0.25 > F. 1(0) ack 1
         < . 1(0) ack 2",
    );
}

/// RFC 9293, 3.10.5: ABORT sends a RST that the peer accepts, and forgets the rest.
#[test]
fn rfc9293_3_10_5_abort() {
    play(
        "open 1000
         write 3000
         > . 1(1000) ack 1
         abort
         > R. 1001(0) ack 1
         event closed local-aborted
         +1 < . 1(0) ack 1001 => no-connection
         > R 1001(0)",
    );
}

/// RFC 9293, 3.10.7.1: CLOSED answers anything but a RST with a RST.
#[test]
fn rfc9293_3_10_7_1_closed() {
    play(
        "open 65535
         < R 1(0)
         event closed peer-reset
         < . 1(7) ack 1 => no-connection
         > R 1(0)
         < P 1(7) => no-connection
         > R. =0(0) ack 8
         < R 1(0) => no-connection",
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
         > R. =0(0) ack 101"
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
         > R. =0(0) ack 3"
    ));
    play(&format!(
        "{end}
         < S 1(0) mss 1000 ts=50 => challenged
         > . 2(0) ack 2 ts:50"
    ));
}

/// RFC 6191, 2, and RFC 9293, 3.6.1: without timestamps a greater sequence number is needed.
#[test]
fn rfc6191_2_time_wait_gives_way_by_sequence_number() {
    let end = "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < F. 1(0) ack 2
         > . 2(0) ack 2";
    play(&format!(
        "{end}
         < S 3(0) mss 1000 => port-closed
         > R. =0(0) ack 4"
    ));
    play(&format!(
        "{end}
         < S -1000(0) mss 1000 => challenged
         > . 2(0) ack 2"
    ));
    // The old connection had no timestamps, the new one has.
    play(&format!(
        "{end}
         < S -1000(0) mss 1000 ts=1 => port-closed
         > R. =0(0) ack -999"
    ));
}

/// A peer that never answers our FIN does not hold the connection for ever (FIN-WAIT-2 has no end
/// in RFC 9293).
#[test]
fn fin_wait_2_ends() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < . 1(0) ack 2
         +19 < . 1(0) ack 2 => accepted
         +2 < . 1(0) ack 2 => no-connection
         > R 2(0)",
    );
}

/// RFC 6298, 5.4, in LAST-ACK: our FIN is repeated until it is acknowledged.
#[test]
fn rfc6298_5_4_a_fin_lost_in_last_ack() {
    play(
        "open bare 65535
         < F. 1(0) ack 1
         > F. 1(0) ack 2
         event closed peer-closed
         +0.12 > F. 1(0) ack 2
         +0.24 > F. 1(0) ack 2
         < . 2(0) ack 2
         +60 > nothing",
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
