//! Loss and its repair: SACK, RACK (RFC 8985), PRR (RFC 9937), NewReno (RFC 6582), limited
//! transmit (RFC 3042).

use crate::play::play;

/// Ten segments of 1000 octets, as many as the first window takes, and ten that wait.
pub(crate) const FLIGHT: &str = "write 20000
    > . 1(1000) ack 1
    > . 1001(1000) ack 1
    > . 2001(1000) ack 1
    > . 3001(1000) ack 1
    > . 4001(1000) ack 1
    > . 5001(1000) ack 1
    > . 6001(1000) ack 1
    > . 7001(1000) ack 1
    > . 8001(1000) ack 1
    > . 9001(1000) ack 1";

/// RFC 8985, 6.2, step 4: three segments SACKed above a hole, and no reordering seen: no waiting.
#[test]
fn rfc8985_6_2_three_sacked_segments_prove_a_loss() {
    play(
        "open far 65535
         write 4000
         > . 1(1000) ack 1
         +0.002~0.006 > . 1001(1000) ack 1
         +0.002~0.006 > . 2001(1000) ack 1
         +0.002~0.006 > . 3001(1000) ack 1
         +0.1 < . 1(0) ack 1 sack 1001-4001
         > . 1(1000) ack 1
         +0.1 < . 1(0) ack 4001",
    );
}

/// RFC 2018, 3: without timestamps there is room for four blocks, and all of them count.
#[test]
fn rfc2018_3_four_blocks() {
    play(&format!(
        "open 65535
         {FLIGHT}
         < . 1(0) ack 1 sack 7001-8001,5001-6001,3001-4001,1001-2001
         > . 1(1000) ack 1
         > . 2001(1000) ack 1
         > . 4001(1000) ack 1
         > . 6001(1000) ack 1"
    ));
}

/// RFC 8985, 6.2, step 5: with fewer, a quarter of the round trip is given to reordering.
#[test]
fn rfc8985_6_2_the_reordering_timer() {
    play(
        "open far 65535
         write 2000
         > . 1(1000) ack 1
         +0.002~0.006 > . 1001(1000) ack 1
         +0.1 < . 1(0) ack 1 sack 1001-2001
         +0.018~0.026 > . 1(1000) ack 1
         +0.1 < . 1(0) ack 2001",
    );
}

/// What arrives within that time is not sent again, and once reordering was seen three segments
/// prove nothing (RFC 8985, 6.2, steps 3 and 4).
#[test]
fn rfc8985_6_2_reordering_is_remembered() {
    play(
        "open far 65535
         write 2000
         > . 1(1000) ack 1
         +0.002~0.006 > . 1001(1000) ack 1
         +0.1 < . 1(0) ack 1 sack 1001-2001
         +0.01 < . 1(0) ack 2001
         write 4000
         +0~0.006 > . 2001(1000) ack 1
         +0~0.006 > . 3001(1000) ack 1
         +0~0.006 > . 4001(1000) ack 1
         +0~0.006 > . 5001(1000) ack 1
         +0.1 < . 1(0) ack 2001 sack 3001-6001
         +0.005 > nothing
         +0.005~0.03 > . 2001(1000) ack 1
         +0.1 < . 1(0) ack 6001",
    );
}

/// Blocks come with the one that grew last in front (RFC 2018, 4); if several are new, that is no
/// reordering (RFC 8985, 6.2, step 3).
#[test]
fn rfc2018_4_the_order_of_blocks_is_not_that_of_arrival() {
    play(
        "open far 65535
         write 5000
         > . 1(1000) ack 1
         +0.002~0.006 > . 1001(1000) ack 1
         +0.002~0.006 > . 2001(1000) ack 1
         +0.002~0.006 > . 3001(1000) ack 1
         +0.002~0.006 > . 4001(1000) ack 1
         +0.1 < . 1(0) ack 1 sack 4001-5001,1001-3001
         > . 1(1000) ack 1                 # three came: no waiting
         +0.001~0.03 > . 3001(1000) ack 1
         +0.1 < . 1(0) ack 5001",
    );
}

/// RFC 8985, 6: a retransmission that is lost is found by time as well.
#[test]
fn rfc8985_6_a_lost_retransmission() {
    play(&format!(
        "open 65535
         {FLIGHT}
         < . 1(0) ack 1 sack 1001-4001
         > . 1(1000) ack 1
         +0.01 < . 1(0) ack 1 sack 1001-5001
         > . 10001(1000) ack 1
         +0.01 < . 1(0) ack 1 sack 1001-5001,10001-11001
         > . 1(1000) ack 1                 # the newer segment arrived, the older did not
         > . 5001(1000) ack 1
         > . 6001(1000) ack 1"
    ));
}

/// RFC 6582, 3.2, and RFC 3042: without SACK the third repetition means a loss; before it, each
/// lets a new segment leave.
#[test]
fn rfc6582_3_2_fast_retransmit_without_sack() {
    play(&format!(
        "open bare 65535
         {FLIGHT}
         < . 1(0) ack 1
         > . 10001(1000) ack 1             # limited transmit
         < . 1(0) ack 1
         > . 11001(1000) ack 1
         < . 1(0) ack 1
         > . 1(1000) ack 1                 # fast retransmit
         < . 1(0) ack 2001                 # a partial acknowledgment
         > . 2001(1000) ack 1
         < . 1(0) ack 12001
         > . 12001(1000) ack 1
         > . 13001(1000) ack 1
         > . 14001(1000) ack 1
         > . 15001(1000) ack 1
         > . 16001(1000) ack 1
         > . 17001(1000) ack 1
         > . 18001(1000) ack 1"
    ));
}

/// RFC 5681, 2: what changes the window or carries data is no repetition.
#[test]
fn rfc5681_2_what_is_no_repetition() {
    play(&format!(
        "open bare 65535
         {FLIGHT}
         < . 1(0) ack 1 win 65534
         < . 1(0) ack 1 win 65533
         < . 1(0) ack 1 win 65532
         < . 1(0) ack 1 win 65531
         +0.05 > nothing
         < . 1(100) ack 1 win 65531
         > . 10001(0) ack 101
         < . 101(0) ack 10001
         > . 10001(1000) ack 101
         > . 11001(1000) ack 101
         > . 12001(1000) ack 101
         > . 13001(1000) ack 101
         > . 14001(1000) ack 101
         > . 15001(1000) ack 101
         > . 16001(1000) ack 101
         > . 17001(1000) ack 101
         > . 18001(1000) ack 101
         > . 19001(1000) ack 101"
    ));
}

/// RFC 9937: of what is delivered, seven tenths leave again, up to the new window of seven.
#[test]
fn rfc9937_proportional_rate_reduction() {
    play(&format!(
        "open 65535
         {FLIGHT}
         < . 1(0) ack 1 sack 1001-2001
         > . 1(1000) ack 1                 # the retransmission, always
         < . 1(0) ack 1 sack 1001-3001     # 1.4 of 2 may leave
         < . 1(0) ack 1 sack 1001-4001     # seven are in flight
         < . 1(0) ack 1 sack 1001-5001
         > . 10001(1000) ack 1
         < . 1(0) ack 1 sack 1001-6001
         > . 11001(1000) ack 1
         < . 1(0) ack 12001                # done: the window is seven
         > . 12001(1000) ack 1
         > . 13001(1000) ack 1
         > . 14001(1000) ack 1
         > . 15001(1000) ack 1
         > . 16001(1000) ack 1
         > . 17001(1000) ack 1
         > . 18001(1000) ack 1"
    ));
}

/// RFC 6298, 5.4 to 5.6: the timer repeats the first segment only, doubles, and after it slow start
/// begins with one segment (RFC 5681, 3.1).
#[test]
fn rfc6298_5_the_retransmission_timer() {
    play(
        "open bare 65535
         write 4000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1
         +0.12 > . 1(1000) ack 1
         +0.24 > . 1(1000) ack 1
         +0.48 > . 1(1000) ack 1
         < . 1(0) ack 1001
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 1(0) ack 3001
         > . 3001(1000) ack 1
         < . 1(0) ack 4001",
    );
}

/// RFC 2018, 8: a peer that takes its SACKs back gets everything again after a timeout.
#[test]
fn rfc2018_8_reneging() {
    play(
        "open 65535
         write 3000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 1(0) ack 1 sack 1001-3001
         > . 1(1000) ack 1
         < . 1(0) ack 1001
         +0.1~0.15 > . 1001(1000) ack 1
         < . 1(0) ack 2001
         > . 2001(1000) ack 1
         < . 1(0) ack 3001",
    );
}

/// RFC 8985, 7.3: the tail loss probe sends new data where there is some.
#[test]
fn rfc8985_7_3_a_probe_of_new_data() {
    play(&format!(
        "open 65535
         {FLIGHT}
         +0.002~0.004 > . 10001(1000) ack 1
         +0.12 > . 1(1000) ack 1           # one probe only: the timer follows"
    ));
}

/// RFC 8985, 7.3: else the last segment. If the probe is lost too, the timer follows.
#[test]
fn rfc8985_7_3_a_probe_of_the_last_segment() {
    play(
        "open 65535
         write 2000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         +0.002~0.004 > . 1001(1000) ack 1
         +0.12 > . 1(1000) ack 1
         +0.24 > . 1(1000) ack 1
         < . 1(0) ack 2001",
    );
}

/// RFC 8985, 7.2: a single segment's acknowledgment may be delayed.
#[test]
fn rfc8985_7_2_a_single_segment_waits_longer() {
    play(
        "open 65535
         write 1000
         > . 1(1000) ack 1
         +0.02 > nothing
         +0.005~0.008 > . 1(1000) ack 1
         < . 1(0) ack 1001 sack 1-1001     # both arrived: no loss
         +1 > nothing",
    );
}

/// RFC 8985, 7.1: the probe's SACK shows what was lost before it.
#[test]
fn rfc8985_7_1_the_probe_shows_the_loss() {
    play(
        "open 65535
         write 3000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         +0.002~0.004 > . 2001(1000) ack 1
         +0.001 < . 1(0) ack 1 sack 2001-3001
         > . 1(1000) ack 1
         < . 1(0) ack 1001 sack 2001-3001  # RFC 9937: one for one
         > . 1001(1000) ack 1
         < . 1(0) ack 3001",
    );
}

/// RFC 3042 with SACK: while the reordering timer decides, each segment that has left the network lets
/// a new one follow.
#[test]
fn rfc3042_2_limited_transmit_with_sack() {
    let paced: String =
        (1..10).map(|n| format!("+0~0.012 > . {}(1000) ack 1\n", n * 1000 + 1)).collect();
    play(&format!(
        "open far 65535
         write 12000
         > . 1(1000) ack 1
         {paced}
         +0.02 < . 1(0) ack 1 sack 1001-2001
         +0~0.012 > . 10001(1000) ack 1
         < . 1(0) ack 1 sack 1001-3001
         +0~0.012 > . 11001(1000) ack 1
         +0.001~0.03 > . 1(1000) ack 1"
    ));
}

/// RFC 8985, 6.2: the device is full when the reordering timer fires: the retransmission leaves as soon
/// as there is room, and the timer goes on from there.
#[test]
fn rfc8985_6_2_a_full_device_at_the_reordering_timer() {
    play(
        "open far 65535
         write 2000
         > . 1(1000) ack 1
         +0.002~0.006 > . 1001(1000) ack 1
         +0.1 < . 1(0) ack 1 sack 1001-2001
         full
         +0.05 > nothing
         empty
         > . 1(1000) ack 1
         +0.25~0.32 > . 1(1000) ack 1
         +0.1 < . 1(0) ack 2001",
    );
}

/// RFC 2018, 5: a block on an old acknowledgment, overtaken by a newer one, counts like any other, and
/// what left the network is replaced (RFC 9937, 5).
#[test]
fn rfc9937_5_a_block_on_an_old_acknowledgment() {
    play(&format!(
        "open 65535
         {FLIGHT}
         < . 1(0) ack 1001
         > . 10001(1000) ack 1
         > . 11001(1000) ack 1
         +0.001 < . 1(0) ack 1001 sack 2001-3001
         > . 1001(1000) ack 1              # of eleven in flight nine are left, and this
         < . 1(0) ack 3001
         < . 1(0) ack 1001 sack 4001-5001  # eleven become 7.7; seven are in flight
         < . 1(0) ack 2001 sack 5001-9001  # three are
         > . 3001(1000) ack 1
         > . 12001(1000) ack 1
         > . 13001(1000) ack 1
         > . 14001(1000) ack 1"
    ));
}

/// Of a segment of which the peer has only the last octet the rest is missing: it does not count as
/// delivered, and the tail loss probe finds out.
#[test]
fn rfc8985_7_a_part_of_a_segment_sacked() {
    play(
        "open 65535
         write 4000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1
         +0.001 < . 1(0) ack 1 sack 4000-4001
         +0.001~0.004 > . 3001(1000) ack 1
         +0.001 < . 1(0) ack 1 sack 3001-4001
         > . 1(1000) ack 1
         < . 1(0) ack 1001 sack 3001-4001
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 1(0) ack 4001",
    );
}
