//! What passes our closed window, and what only seems to (RFC 9293, 3.10.7.4, first check, and A.2).

use crate::play::play_with;

/// Our window is closed: 65,535 octets have come and nobody reads.
const CLOSED: &str = "lazy
     open 65535
     < . 1(40000) ack 1
     > . 1(0) ack 40001 win 25535
     < . 40001(25535) ack 1
     > . 1(0) ack 65536 win 0";

fn play_closed(script: &str) {
    play_with(|config| config.rx_buffer_bytes = 65_536, &format!("{CLOSED}\n{script}"));
}

/// The peer's probe carries an octet that the peer counts as sent: what it says from then on comes from
/// behind that octet. Its acknowledgments and windows count all the same, or neither side could
/// go on.
#[test]
fn rfc9293_a_2_acknowledgments_behind_a_probe_of_our_closed_window() {
    play_closed(
        "write 500
         > . 1(500) ack 65536 win 0
         < . 65536(1) ack 1 win 0
         > . 501(0) ack 65536 win 0
         < . 65537(0) ack 501 win 0 => accepted
         write 10
         +0.1 > nothing
         +0.02~0.03 > . 500(0) ack 65536 win 0
         < . 65537(0) ack 501 win 1000 => accepted
         > . 501(10) ack 65536 win 0
         < . 65538(0) ack 511 => out-of-window
         > . 511(0) ack 65536 win 0",
    );
}

/// A FIN takes no memory: it passes a closed window, so that who waits for our acknowledgment of it
/// does not send it for ever.
#[test]
fn rfc9293_3_10_7_4_a_fin_passes_a_closed_window() {
    play_closed(
        "< F. 65536(0) ack 1 => accepted
         > . 1(0) ack 65537 win 0
         event none
         read 65535
         > F. 1(0) ack 65537
         event closed peer-closed",
    );
}

/// But not before the octet in front of it.
#[test]
fn rfc9293_3_10_7_4_a_fin_behind_text_waits_for_a_closed_window() {
    play_closed(
        "< F. 65536(10) ack 1 => no-memory
         > . 1(0) ack 65536 win 0
         event none
         read 65535
         > . 1(0) ack 65536 win 65535
         < F. 65536(10) ack 1 => accepted
         > . 1(0) ack 65547
         read 10
         > F. 1(0) ack 65547
         event closed peer-closed",
    );
}

/// A RST passes it, exactly at the edge; that of a peer which has probed is challenged.
#[test]
fn rfc5961_3_2_a_reset_passes_a_closed_window() {
    play_closed(
        "< R 65538(0) => out-of-window
         < R 65537(0) => challenged
         > . 1(0) ack 65536 win 0
         < R 65536(0) => accepted
         event closed peer-reset",
    );
}

/// Of a segment that goes beyond the window what lies within is taken.
#[test]
fn rfc9293_3_10_7_4_a_segment_over_the_edge_is_cut() {
    play_with(
        |config| config.rx_buffer_bytes = 65_536,
        "lazy
         open 65535
         < . 1(40000) ack 1
         > . 1(0) ack 40001 win 25535
         < F. 40001(30000) ack 1 => accepted
         > . 1(0) ack 65536 win 0
         read 65535
         > . 1(0) ack 65536 win 65535
         < F. 65536(4465) ack 1 => accepted
         > . 1(0) ack 70002
         read 4465
         > F. 1(0) ack 70002
         event closed peer-closed",
    );
}
