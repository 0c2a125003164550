//! Closing a connection: RFC 9293, 3.6 and 3.10.7.4.

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

/// RFC 9293, 3.6.1 (SHLD-3): what the peer sends after our close nobody reads, and a RST tells it so.
#[test]
fn rfc9293_3_6_1_data_after_our_close_is_answered_by_a_reset() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < . 1(0) ack 2
         < . 1(1000) ack 2
         > R. 2(0) ack 1
         < . 1001(0) ack 2 => no-connection
         > R 2(0)",
    );
}

/// The same, but not before the peer has what we had sent before the close: a RST would keep a lost
/// segment from coming again.
#[test]
fn rfc9293_3_6_1_the_reset_waits_until_the_peer_has_everything() {
    play(
        "open 1000
         write 1500
         > . 1(1000) ack 1
         close
         event closed local-closed
         < . 1(1000) ack 1 win 1000
         < F. 1001(0) ack 1 win 1000
         < . 1001(0) ack 1001 win 1000
         > F. 1001(500) ack 1
         < . 1002(0) ack 1502
         > R. 1502(0) ack 1",
    );
}

/// RFC 9293, 3.8.6.1 (MUST-37): a peer that answers the probes of its closed window is alive, after our
/// close too, and gets what was written before. One probe may be lost, and what tells of the window.
#[test]
fn rfc9293_3_8_6_1_a_closed_window_opens_late_after_our_close() {
    play(&format!(
        "{CLOSED_BEHIND_A_CLOSED_WINDOW}
         +5~5.2 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +5~5.2 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +5~5.2 > . 1000(0) ack 1
         +5~5.2 > . 1000(0) ack 1          # 28 s after the close
         < . 1(0) ack 1001 win 1000
         > F. 1001(500) ack 1
         < . 1(0) ack 1502
         < F. 1(0) ack 1502
         > . 1502(0) ack 2"
    ));
}

/// But not for longer than the user timeout: nobody reads there any more.
#[test]
fn rfc9293_3_8_6_1_a_window_that_stays_closed_after_our_close() {
    let answered = "+5~5.2 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0\n";
    play(&format!(
        "{CLOSED_BEHIND_A_CLOSED_WINDOW}
         {}
         +3 < . 1(0) ack 1001 win 0 => no-connection # 120 s after the close
         > R 1001(0)",
        answered.repeat(22),
    ));
}

/// 500 octets wait for a closed window, and our FIN behind them. It is probed at growing distances, and
/// answers for 8 s.
const CLOSED_BEHIND_A_CLOSED_WINDOW: &str = "open 1000
         write 1500
         > . 1(1000) ack 1
         < . 1(0) ack 1001 win 0
         close
         event closed local-closed
         +0.12 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.24~0.25 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.48~0.5 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.96~1 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +1.92~2 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +3.84~4 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0";

/// A retransmission of what was read before the close is nothing new.
#[test]
fn rfc9293_3_6_1_old_data_after_our_close() {
    play(
        "open 65535
         < . 1(1000) ack 1
         > . 1(0) ack 1001
         close
         > F. 1(0) ack 1001
         event closed local-closed
         < . 1(1000) ack 2
         > . 2(0) ack 1001 sack 1-1001
         < F. 1001(0) ack 2
         > . 2(0) ack 1002",
    );
}

/// RFC 9293, 3.6.1 (SHLD-3): data that waits to be read at the close.
#[test]
fn rfc9293_3_6_1_a_close_with_unread_data_resets() {
    play(
        "lazy
         open 65535
         < . 1(1000) ack 1
         > . 1(0) ack 1001
         close
         > R. 1(0) ack 1001
         event closed local-closed",
    );
    // After the peer's FIN as well.
    play(
        "lazy
         open 65535
         < F. 1(1000) ack 1
         > . 1(0) ack 1002
         close
         > R. 1(0) ack 1002
         event closed local-closed",
    );
}

/// RFC 9293, 3.10.4: a close waits until everything written has been sent.
#[test]
fn rfc9293_3_10_4_a_close_with_data_waiting() {
    play(
        "open 1000
         write 2500
         > . 1(1000) ack 1
         close
         event closed local-closed
         < . 1(0) ack 1001 win 1000
         > . 1001(1000) ack 1
         < . 1(0) ack 2001 win 1000
         > F. 2001(500) ack 1
         < . 1(0) ack 2502
         < F. 1(0) ack 2502
         > . 2502(0) ack 2",
    );
}

/// RFC 9293, 3.10.4: a close in SYN-SENT; the peer, who knows nothing of it, is refused.
#[test]
fn rfc9293_3_10_4_a_close_in_syn_sent() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         close
         event closed local-closed
         +0.01 < S. 0(0) ack 1 mss 1000 => no-connection
         > R 1(0)
         +10 > nothing",
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

/// RFC 9293, 3.10.7.4: our FIN and the peer's cross, and the peer's acknowledgment of ours overtakes its
/// own FIN, which still acknowledges less.
#[test]
fn rfc9293_3_10_7_4_a_fin_that_was_overtaken_by_an_acknowledgment() {
    play(
        "open 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         < . 2(0) ack 2 => accepted
         < F. 1(0) ack 1 => accepted
         > . 2(0) ack 2
         +59 < . 2(0) ack 2 => accepted
         +2 < . 2(0) ack 2 => no-connection
         > R 2(0)",
    );
}

/// RFC 9293, 3.10.7.4: our FIN was lost and the peer closes by itself: CLOSING, until it comes again.
#[test]
fn rfc6298_5_4_a_fin_lost_in_closing() {
    play(
        "open bare 65535
         close
         > F. 1(0) ack 1
         event closed local-closed
         +0.05 < F. 1(0) ack 1
         > . 2(0) ack 2
         +0.07 > F. 1(0) ack 2
         < . 2(0) ack 2 => accepted
         +59 < . 2(0) ack 2 => accepted
         +2 < . 2(0) ack 2 => no-connection
         > R 2(0)",
    );
}

/// RFC 5961, 3.2: a RST may carry text (RFC 9293, 3.5.2, SHLD-2), and is judged by its place alone.
#[test]
fn rfc9293_3_5_2_a_reset_with_text() {
    play(
        "open 65535
         < . 1(100) ack 1
         > . 1(0) ack 101
         < R 51(100) => challenged
         > . 1(0) ack 101
         < R. 101(20) ack 1 => accepted
         event closed peer-reset
         < . 101(0) ack 1 => no-connection
         > R 1(0)",
    );
}
