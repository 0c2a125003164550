//! Repairs that were for nothing: Eifel (RFC 3522), F-RTO (RFC 5682), D-SACK (RFC 3708).

use crate::play::play;
use crate::recovery::FLIGHT;

/// Four segments, a timeout, and the acknowledgment of the first: it may be for either transmission.
const FORWARD: &str = "open bare 65535
    write 4000
    > . 1(1000) ack 1
    > . 1001(1000) ack 1
    > . 2001(1000) ack 1
    > . 3001(1000) ack 1
    +0.12 > . 1(1000) ack 1
    write 2000
    < . 1(0) ack 1001
    > . 4001(1000) ack 1
    > . 5001(1000) ack 1";

/// Eifel, RFC 3522 (instead of it RFC 5682 where there are no timestamps): the acknowledgment of
/// the first transmission shows that the timeout was needless.
#[test]
fn rfc3522_3_2_a_timeout_that_was_needless() {
    play(
        "open timestamps 65535
         write 3952
         > . 1(988) ack 1 ts
         > . 989(988) ack 1 ts
         > . 1977(988) ack 1 ts
         > . 2965(988) ack 1 ts
         +0.002~0.004 > . 2965(988) ack 1 ts
         +0.12 > . 1(988) ack 1 ts
         < . 1(0) ack 989 ts=2:0           # echoes the first transmission
         +0.01 > nothing                   # the others are in the network still
         < . 1(0) ack 3953 ts=2:0",
    );
}

/// RFC 5682, 3.1: a SACK of what was sent before the timeout and not again.
#[test]
fn rfc5682_3_1_a_timeout_that_was_needless_by_sack() {
    play(
        "open 65535
         write 4000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1
         +0.002~0.004 > . 3001(1000) ack 1
         +0.12 > . 1(1000) ack 1
         < . 1(0) ack 1 sack 1001-2001
         +0.01 > nothing
         < . 1(0) ack 4001",
    );
}

/// The opposite: without SACK an acknowledgment that the retransmission explains proves nothing.
#[test]
fn rfc5682_2_1_a_timeout_that_was_needed() {
    play(
        "open bare 65535
         write 12000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1
         > . 4001(1000) ack 1
         > . 5001(1000) ack 1
         > . 6001(1000) ack 1
         > . 7001(1000) ack 1
         > . 8001(1000) ack 1
         > . 9001(1000) ack 1
         +0.12 > . 1(1000) ack 1
         < . 1(0) ack 10001                # the hole is filled
         > . 10001(1000) ack 1
         > . 11001(1000) ack 1",
    );
}

/// RFC 5682, 2.1: without SACK and timestamps two new segments show it: the second acknowledgment is
/// for what was sent before the timeout only.
#[test]
fn rfc5682_2_1_new_data_shows_that_a_timeout_was_needless() {
    play(&format!(
        "{FORWARD}
         < . 1(0) ack 2001                 # the original came after all
         +0.01 > nothing                   # nothing else is repeated
         < . 1(0) ack 6001
         +0.01 write 8000                  # and the window is that of before, and more
         > . 6001(1000) ack 1
         > . 7001(1000) ack 1
         +0~0.05 > . 8001(1000) ack 1
         +0~0.05 > . 9001(1000) ack 1
         +0~0.05 > . 10001(1000) ack 1
         +0~0.05 > . 11001(1000) ack 1
         +0~0.05 > . 12001(1000) ack 1
         +0~0.05 > . 13001(1000) ack 1"
    ));
}

/// Step 3a: a repetition shows that the rest is lost too.
#[test]
fn rfc5682_2_1_new_data_shows_that_a_timeout_was_needed() {
    play(&format!(
        "{FORWARD}
         < . 1(0) ack 1001
         > . 1001(1000) ack 1
         < . 1(0) ack 6001                 # only that was missing
         +0.01 > nothing"
    ));
}

/// If the timer fires once more, the rest is sent again as usual.
#[test]
fn rfc5682_2_1_new_data_that_is_lost_too() {
    play(&format!(
        "{FORWARD}
         +0.22~0.25 > . 1001(1000) ack 1
         < . 1(0) ack 2001
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1"
    ));
}

/// RFC 5682, 3.1: with SACK a block above the new data's start proves nothing, one below does.
#[test]
fn rfc5682_3_1_new_data_with_sack() {
    let start = FORWARD.replace("open bare", "open").replace(
        "+0.12 > . 1(1000) ack 1",
        "+0.002~0.004 > . 3001(1000) ack 1
         +0.12 > . 1(1000) ack 1",
    );
    play(&format!(
        "{start}
         < . 1(0) ack 1001 sack 4001-5001
         > . 1001(1000) ack 1"
    ));
    play(&format!(
        "{start}
         < . 1(0) ack 1001 sack 2001-3001
         +0.001 > nothing"
    ));
}

/// RFC 5682, 3.1, step 2: a repetition that tells nothing decides nothing.
#[test]
fn rfc5682_3_1_a_repetition_before_the_first_segment_is_acknowledged() {
    let start = FORWARD
        .replace("open bare", "open")
        .replace(
            "+0.12 > . 1(1000) ack 1",
            "+0.002~0.004 > . 3001(1000) ack 1
             +0.12 > . 1(1000) ack 1",
        )
        .replace("< . 1(0) ack 1001", "< . 1(0) ack 1\n< . 1(0) ack 1001");
    play(&format!(
        "{start}
         < . 1(0) ack 1001 sack 2001-3001
         +0.01 > nothing"
    ));
}

/// RFC 5682, 3.1, steps 1 and 2: a timeout out of a fast recovery is repaired as usual; that something
/// sent once comes late does not undo it.
#[test]
fn rfc5682_3_1_not_after_a_timeout_out_of_fast_recovery() {
    play(&format!(
        "open 65535
         {FLIGHT}
         < . 1(0) ack 1 sack 1001-4001
         > . 1(1000) ack 1
         +0.1~0.13 > . 1(1000) ack 1       # which was lost too
         < . 1(0) ack 1 sack 1001-5001
         > . 5001(1000) ack 1              # slow start: the window is two
         +0.01 > nothing"
    ));
}

/// RFC 3708: all retransmissions reported as duplicates.
#[test]
fn rfc3708_a_repair_that_was_needless_by_dsack() {
    play(&format!(
        "open 65535
         {FLIGHT}
         < . 1(0) ack 1 sack 1001-2001
         > . 1(1000) ack 1
         < . 1(0) ack 2001
         < . 1(0) ack 2001 sack 1-1001     # the window is that of before: ten, not seven
         > . 10001(1000) ack 1
         > . 11001(1000) ack 1"
    ));
}

/// RFC 3708, 3: what the network has doubled was not sent again, and shows nothing.
#[test]
fn rfc3708_3_a_duplicate_that_the_network_made() {
    for duplicate in ["1001-2001", "501-1501"] {
        play(&format!(
            "open 65535
             {FLIGHT}
             < . 1(0) ack 1 sack 1001-2001
             > . 1(1000) ack 1
             < . 1(0) ack 2001
             < . 1(0) ack 2001 sack {duplicate}
             +0.01 > nothing               # eight are in flight, the window is seven
             < . 1(0) ack 2001 sack 1-1001
             > . 10001(1000) ack 1         # that one was
             > . 11001(1000) ack 1"
        ));
    }
}

/// RFC 3708: one of two retransmissions reported: the other was needed.
#[test]
fn rfc3708_a_repair_of_which_one_half_was_needless() {
    play(&format!(
        "open 65535
         {FLIGHT}
         < . 1(0) ack 1 sack 1001-2001,3001-4001,5001-6001
         > . 1(1000) ack 1
         > . 2001(1000) ack 1
         > . 4001(1000) ack 1
         < . 1(0) ack 4001 sack 1-1001,5001-6001
         > . 10001(1000) ack 1
         > . 11001(1000) ack 1             # seven are in flight
         < . 1(0) ack 4001 sack 2001-3001,5001-6001
         +0.01 > nothing
         < . 1(0) ack 6001 sack 4001-5001
         > . 12001(1000) ack 1             # now all were: ten again, and slow start goes on
         > . 13001(1000) ack 1
         > . 14001(1000) ack 1
         > . 15001(1000) ack 1
         > . 16001(1000) ack 1"
    ));
}

/// RFC 3522, 3.2: a hole that an earlier recovery left, repaired by its retransmission, is none of
/// this one's doing: what echoes it is older than this recovery's retransmissions, and yet no first
/// transmission.
#[test]
fn rfc3522_3_2_the_repair_of_an_earlier_recovery() {
    play(
        "open timestamps 65535
         write 98800
         > . 1(988) ack 1 ts
         > . 989(988) ack 1 ts
         > . 1977(988) ack 1 ts
         > . 2965(988) ack 1 ts
         > . 3953(988) ack 1 ts
         > . 4941(988) ack 1 ts
         > . 5929(988) ack 1 ts
         > . 6917(988) ack 1 ts
         > . 7905(988) ack 1 ts
         > . 8893(988) ack 1 ts
         +0.002~0.004 > . 9881(988) ack 1 ts
         +0.01 < . 1(0) ack 1 ts=2:0 sack 989-10869
         > . 1(988) ack 1 ts             # the first recovery, up to 10869
         +0~0.05 > . 10869(988) ack 1 ts
         +0~0.05 > . 11857(988) ack 1 ts
         +0~0.05 > . 12845(988) ack 1 ts
         +0~0.05 > . 13833(988) ack 1 ts
         +0~0.05 > . 14821(988) ack 1 ts
         +0~0.05 > . 15809(988) ack 1 ts
         +0.01 < . 1(0) ack 1 ts=2:0 sack 11857-14821,989-10869
         > . 1(988) ack 1 ts
         > . 10869(988) ack 1 ts         # a hole above it
         > . 16797(988) ack 1 ts
         > . 17785(988) ack 1 ts
         > . 18773(988) ack 1 ts
         +0.01 < . 1(0) ack 10869 ts=2:22 sack 11857-14821
         > . 14821(988) ack 1 ts         # the second recovery
         +0.005 < . 1(0) ack 14821 ts=2:22    # echoes the repair of the first one
         +0.005 > nothing
         < . 1(0) ack 14821 ts=2:22 sack 16797-19761
         > . 15809(988) ack 1 ts
         > . 19761(988) ack 1 ts",
    );
}
