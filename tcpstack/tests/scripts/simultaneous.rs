//! Both ends open at once: SYN-RECEIVED after an active open (RFC 9293, 3.5).

use culvert_tcpstack::EphemeralPorts;

use crate::play::{play, play_with};

/// RFC 9293, 3.5, figure 7. The answer names no window scale, since the SYN had none (RFC 7323, 2.2).
#[test]
fn rfc9293_3_5_simultaneous_open() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < S. 0(0) ack 1 => accepted
         > . 1(0) ack 1
         event opened
         write 10
         > . 1(10) ack 1",
    );
}

/// The same with all options, ended by a plain acknowledgment.
#[test]
fn rfc9293_3_5_simultaneous_open_with_options() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000 ws 2 sackok ts=1
         > S. 0(0) ack 1 mss 1460 ws 7 sackok ts:1
         < . 1(0) ack 1 ts=2 => accepted
         event opened",
    );
}

/// RFC 9293, 3.10.7.4, fifth check in SYN-RECEIVED: only an acknowledgment of our SYN counts.
#[test]
fn rfc9293_3_10_7_4_syn_received_needs_our_syn_acknowledged() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < . 1(5) ack 0 => bad-acknowledgment
         > R 0(0)
         event none
         < . 1(5) ack 1 => accepted
         > . 1(0) ack 6
         event opened",
    );
}

/// RFC 9293, 3.10.7.4: a RST in SYN-RECEIVED after an active open refuses it. As in SYN-SENT it must
/// acknowledge our SYN: its place in the stream is known to whoever sent the other SYN.
#[test]
fn rfc9293_3_10_7_4_a_reset_in_syn_received() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         < R 1(0) => bad-acknowledgment
         < R. 1(0) ack 0 => bad-acknowledgment
         event none
         < R. 1(0) ack 1 => accepted
         event closed refused",
    );
}

/// RFC 5961, 1: a SYN that somebody else has sent, who does not know our number, does not keep the peer's
/// answer from being believed, nor does it cost its options.
#[test]
fn rfc5961_1_a_forged_syn_does_not_keep_us_from_connecting() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 700000(0) mss 300
         > S. 0(0) ack 700001 mss 1460
         < R 700001(0) => bad-acknowledgment     # the peer's, or whoever's
         < S. 0(0) ack 2 mss 1000 => challenged
         > . 1(0) ack 700001
         < S. 0(0) ack 1 win 20 mss 1000 ws 7 sackok ts=5:0 => accepted
         > . 1(0) ack 1 ts:5
         event opened
         write 2000
         > . 1(20) ack 1 ts:5
         < . 1(0) ack 21 win 1000 ts=6
         > . 21(988) ack 1 ts:6
         > . 1009(988) ack 1 ts:6
         > . 1997(4) ack 1 ts:6
         < . 101(10) ack 2001 ts=7
         > . 2001(0) ack 1 ts:6 sack 101-111",
    );
}

/// RFC 7323, 2.2: the window of a SYN is not scaled, of the one with an acknowledgment neither.
#[test]
fn rfc7323_2_2_the_window_of_a_simultaneous_syn_is_not_scaled() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) win 1000 mss 1000 ws 7
         > S. 0(0) ack 1 mss 1460 ws 7
         < S. 0(0) ack 1 win 1000 mss 1000 ws 7
         > . 1(0) ack 1
         event opened
         write 2000
         > . 1(1000) ack 1
         +0.001 > nothing
         < . 1(0) ack 1001 win 100
         > . 1001(1000) ack 1",
    );
}

/// RFC 9293, 3.10.4: a close in SYN-RECEIVED; the FIN follows when our SYN has been acknowledged.
#[test]
fn rfc9293_3_10_4_a_close_in_syn_received() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         close
         event closed local-closed
         < . 1(0) ack 1 => accepted
         > F. 1(0) ack 1
         < F. 1(0) ack 2 => accepted
         > . 2(0) ack 2",
    );
}

/// The same where the peer's SYN comes again with the acknowledgment (RFC 9293, 3.5, figure 7).
#[test]
fn rfc9293_3_10_4_a_close_in_syn_received_before_the_peers_answer() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         close
         event closed local-closed
         < S. 0(0) ack 1 mss 1000 => accepted
         > F. 1(0) ack 1
         < F. 1(0) ack 2 => accepted
         > . 2(0) ack 2",
    );
}

/// RFC 6298, 5.5, in SYN-RECEIVED: our SYN leaves again with the acknowledgment, until there is no time
/// left to connect. The peer's own repetition gets the acknowledgment only.
#[test]
fn rfc6298_5_5_a_syn_is_repeated_in_syn_received() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S 0(0) mss 1000
         > S. 0(0) ack 1 mss 1460
         +1 > S. 0(0) ack 1 mss 1460
         < S 0(0) mss 1000 => challenged
         > . 1(0) ack 1
         +2 > S. 0(0) ack 1 mss 1460
         +4 > S. 0(0) ack 1 mss 1460
         +3.1 > nothing
         event closed connect-timeout
         < . 1(0) ack 1 => no-connection
         > R 1(0)",
    );
}

/// The peer's SYN may come while ours still waits for room in the device: ours leaves with the
/// acknowledgment, and again until it is answered.
#[test]
fn rfc9293_3_5_a_syn_comes_before_ours_has_left() {
    let ports = EphemeralPorts { first: 4500, last: 4500, ..EphemeralPorts::default() };
    play_with(
        |config| config.ephemeral_ports = ports,
        "listen
         full
         connect
         < S 0(0) mss 1000
         empty
         > S. 0(0) ack 1 mss 1460
         +1 > S. 0(0) ack 1 mss 1460
         < . 1(0) ack 1
         event opened",
    );
}
