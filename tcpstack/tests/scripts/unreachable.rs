//! What the network says of a peer that it cannot reach (RFC 9293, 3.9.2.2; RFC 5927).

use std::time::Duration;

use crate::play::{play, play_with};

/// RFC 9293, 3.9.2.2, SHLD-26: a hard error about our SYN ends the attempt at once, so that the
/// caller may try another address.
#[test]
fn rfc9293_3_9_2_2_a_hard_error_ends_an_open_that_has_not_been_answered() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         +.05 unreachable 0 hard yes
         event closed unreachable
         +10 > nothing",
    );
}

/// RFC 5927, 4.1: it must quote the SYN's own number, which nobody who does not see it knows.
#[test]
fn rfc5927_4_1_a_guess_ends_nothing() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         unreachable 1 hard no
         unreachable 4294967295 hard no
         unreachable 70000 hard no
         +.05 < S. 0(0) ack 1 mss 1460 sackok
         > . 1(0) ack 1
         event opened
         unreachable 0 hard no                 # acknowledged",
    );
}

/// RFC 9293, 3.9.2.2, MUST-56 and SHLD-25: a soft error ends nothing; it is the reason if the peer
/// stays silent.
#[test]
fn rfc9293_3_9_2_2_a_soft_error_is_told_at_the_end() {
    play_with(
        |config| config.connect_timeout = Duration::from_secs(2),
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         unreachable 0 soft yes
         event none
         +1 > S 0(0) mss 1460 ws 7 sackok ts:0
         +1.01 > nothing
         event closed unreachable",
    );
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         unreachable 0 soft yes
         +.05 < S. 0(0) ack 1 mss 1460 sackok
         > . 1(0) ack 1
         event opened",
    );
}

/// RFC 5927, 5.2: in a synchronized state a hard error counts for no more than a soft one.
#[test]
fn rfc5927_5_2_no_error_ends_an_open_connection() {
    let change = |config: &mut culvert_tcpstack::StackConfig| {
        config.user_timeout = Duration::from_secs(1);
    };
    play_with(
        change,
        "open 65535
         write 500
         > . 1(500) ack 1
         unreachable 1 hard yes
         event none
         < . 1(0) ack 501
         write 500
         > . 501(500) ack 1
         unreachable 1 hard no                 # acknowledged
         unreachable 1001 hard no              # not sent yet",
    );
    let end = |said: &str, reason: &str| {
        let script = format!(
            "open 65535
             write 500
             > . 1(500) ack 1
             {said}
             +.02~.1 > . 1(500) ack 1
             +.1~.2 > . 1(500) ack 1
             +.2~.4 > . 1(500) ack 1
             +.4~.6 > . 1(500) ack 1
             +.3 > nothing
             event closed {reason}"
        );
        play_with(change, &script);
    };
    end("unreachable 1 hard yes", "unreachable");
    end("write 0", "timeout");
}
