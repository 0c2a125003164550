//! Options: timestamps (RFC 7323), SACK that we send (RFC 2018) and D-SACK (RFC 2883).

use crate::play::play;

/// RFC 7323, 4.3: the echo is that of the segment at the left edge, not of one behind a hole.
#[test]
fn rfc7323_4_3_which_timestamp_is_echoed() {
    play(
        "open timestamps 65535
         < . 1(100) ack 1 ts=10
         > . 1(0) ack 101 ts:10
         < . 201(100) ack 1 ts=12          # a hole
         > . 1(0) ack 101 ts:10 sack 201-301
         < . 101(100) ack 1 ts=11          # fills it
         > . 1(0) ack 301 ts:11
         < . 301(100) ack 1 ts=13
         > . 1(0) ack 401 ts:13",
    );
}

/// RFC 7323, 5.3, R1: what has an old timestamp is acknowledged and dropped, unless it is a RST.
#[test]
fn rfc7323_5_3_paws() {
    play(
        "open timestamps 65535
         < . 1(100) ack 1 ts=30            # the peer's clock wrapped before 16
         > . 1(0) ack 101 ts:30
         +1 < . 101(100) ack 1 ts=29 => old-timestamp
         > . 1(0) ack 101 ts:30
         +1 < . 101(100) ack 1 ts=30 => accepted
         > . 1(0) ack 201 ts:30
         < R 201(0) ts=2 => accepted
         event closed peer-reset",
    );
}

/// RFC 7323, 5.5: after 24 days a timestamp says nothing any more.
#[test]
fn rfc7323_5_5_old_timestamps_are_forgotten() {
    play(
        "open timestamps 65535
         < . 1(100) ack 1 ts=30
         > . 1(0) ack 101 ts:30
         +2073601 < . 101(100) ack 1 ts=29 => accepted
         > . 1(0) ack 201 ts:29",
    );
}

/// RFC 7323, 3.2: a segment without the option that was agreed on is dropped, a RST is not.
#[test]
fn rfc7323_3_2_a_missing_timestamp() {
    play(
        "open timestamps 65535
         < . 1(100) ack 1 => old-timestamp
         > nothing
         < R 1(0) => accepted
         event closed peer-reset",
    );
}

/// RFC 7323, 3.2: not agreed on, not sent; what the peer sends all the same is ignored.
#[test]
fn rfc7323_3_2_timestamps_need_both_sides() {
    play(
        "open 65535
         < . 1(100) ack 1 ts=5
         > . 1(0) ack 101",
    );
}

/// RFC 2018, 4: the block that grew last is the first; the others follow, three with timestamps.
#[test]
fn rfc2018_4_the_newest_block_comes_first() {
    play(
        "open timestamps 65535
         < . 101(100) ack 1 ts=2
         > . 1(0) ack 1 ts:1 sack 101-201
         < . 301(100) ack 1 ts=2
         > . 1(0) ack 1 ts:1 sack 301-401,101-201
         < . 501(100) ack 1 ts=2
         > . 1(0) ack 1 ts:1 sack 501-601,301-401,101-201
         < . 701(100) ack 1 ts=2
         > . 1(0) ack 1 ts:1 sack 701-801,501-601,301-401
         < . 201(50) ack 1 ts=2
         > . 1(0) ack 1 ts:1 sack 101-251,701-801,501-601
         < . 401(100) ack 1 ts=2           # joins two
         > . 1(0) ack 1 ts:1 sack 301-601,101-251,701-801
         < . 1(100) ack 1 ts=2
         > . 1(0) ack 251 ts:2 sack 301-601,701-801",
    );
}

/// RFC 2018, 4: no block stays untold because a batch brought more than one acknowledgment can
/// carry. The last one begins with the newest; duplicates are reported there (RFC 2883, 4).
#[test]
fn rfc2018_4_a_batch_with_many_holes_is_answered_by_several() {
    play(
        "open timestamps 65535
         < . 101(100) ack 1 ts=2 | . 301(100) ack 1 ts=2 | . 501(100) ack 1 ts=2 \
           | . 701(100) ack 1 ts=2 | . 901(100) ack 1 ts=2 | . 401(10) ack 1 ts=2
         > . 1(0) ack 1 ts:1 sack 501-601,101-201
         > . 1(0) ack 1 ts:1 sack 301-411,901-1001,701-801
         < . 1101(100) ack 1 ts=2 | . 1301(100) ack 1 ts=2 | . 1101(100) ack 1 ts=2
         > . 1(0) ack 1 ts:1 sack 1101-1201,1101-1201,1301-1401
         < . 1501(100) ack 1 ts=2 | . 1(100) ack 1 ts=2
         > . 1(0) ack 201 ts:2 sack 1501-1601,1101-1201,1301-1401",
    );
}

/// RFC 5681, 4.2: without SACK the peer counts repetitions, and each segment out of order is one.
#[test]
fn rfc5681_4_2_without_sack_a_batch_is_answered_by_as_many_repetitions() {
    play(
        "open bare 65535
         < . 1(100) ack 1 | . 201(100) ack 1 | . 301(100) ack 1 | . 401(100) ack 1
         > . 1(0) ack 101
         > . 1(0) ack 101
         > . 1(0) ack 101
         > . 1(0) ack 101
         write 10
         > . 1(10) ack 101
         < . 501(100) ack 1
         > . 11(0) ack 101
         < . 101(100) ack 1
         > . 11(0) ack 601",
    );
}

/// RFC 2018, 2: without the permission no blocks.
#[test]
fn rfc2018_2_sack_needs_the_permission() {
    play(
        "open bare 65535
         < . 101(100) ack 1
         > . 1(0) ack 1",
    );
}

/// RFC 2883, 4.1: a duplicate below the acknowledgment is the first block, once.
#[test]
fn rfc2883_4_1_a_duplicate_is_reported() {
    play(
        "open 65535
         < . 1(100) ack 1
         > . 1(0) ack 101
         < . 1(100) ack 1
         > . 1(0) ack 101 sack 1-101
         < . 51(100) ack 1                 # half of it
         > . 1(0) ack 151 sack 51-101
         < . 151(100) ack 1
         > . 1(0) ack 251",
    );
}

/// RFC 2883, 4.1.2 and 4.2: above the acknowledgment the block that holds it follows.
#[test]
fn rfc2883_4_2_a_duplicate_behind_a_hole() {
    play(
        "open 65535
         < . 101(100) ack 1
         > . 1(0) ack 1 sack 101-201
         < . 201(100) ack 1
         > . 1(0) ack 1 sack 101-301
         < . 401(100) ack 1
         > . 1(0) ack 1 sack 401-501,101-301
         < . 201(100) ack 1
         > . 1(0) ack 1 sack 201-301,101-301,401-501",
    );
}

/// A duplicate is reported even if data could have taken the acknowledgment along.
#[test]
fn rfc2883_4_a_duplicate_is_reported_beside_data() {
    play(
        "open 65535
         < . 1(100) ack 1
         > . 1(0) ack 101
         write 10
         > . 1(10) ack 101
         < . 1(100) ack 1
         > . 11(0) ack 101 sack 1-101",
    );
}

/// RFC 5681, 4.2: what fills a hole is acknowledged at once.
#[test]
fn rfc5681_4_2_a_hole_filled_is_acknowledged_at_once() {
    let mut start = String::from("open 65535\n");
    for n in 0..16 {
        start += &format!("< . {}(100) ack 1\n> . 1(0) ack {}\n", n * 100 + 1, n * 100 + 101);
    }
    play(&format!(
        "{start}
         < . 1701(100) ack 1
         > . 1(0) ack 1601 sack 1701-1801
         < . 1901(100) ack 1
         > . 1(0) ack 1601 sack 1901-2001,1701-1801
         < . 1601(100) ack 1
         > . 1(0) ack 1801 sack 1901-2001"
    ));
}

/// RFC 7323, 4.3 and 5.2: a FIN's timestamp is echoed as any other.
#[test]
fn rfc7323_4_3_the_timestamp_of_a_fin() {
    play(
        "open timestamps 65535
         < F. 1(0) ack 1 ts=60
         > F. 1(0) ack 2 ts:60
         event closed peer-closed",
    );
}

/// RFC 9293, 3.10.7.4, and RFC 7323, 4.3: a segment whose acknowledgment is impossible is dropped
/// before its timestamp is looked at, so that it ages no other.
#[test]
fn rfc7323_4_3_a_bad_acknowledgment_leaves_the_timestamp() {
    play(
        "open timestamps 65535
         < . 1(10) ack 5000 ts=1000 => bad-acknowledgment
         > . 1(0) ack 1 ts:1
         < . 1(10) ack 1 ts=50 => accepted
         > . 1(0) ack 11 ts:50",
    );
}

/// RFC 7323, 5.2: a RST of ours carries a timestamp if the segment that it answers does, or if
/// timestamps were agreed on.
#[test]
fn rfc7323_5_2_a_reset_carries_a_timestamp() {
    play(
        "open timestamps 65535
         abort
         > R. 1(0) ack 1 ts:1
         event closed local-aborted
         < . 1(10) ack 1 ts=70 => no-connection
         > R 1(0) ts=0:70
         < . 1(10) ack 1 => no-connection
         > R 1(0)",
    );
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < . 1(0) ack 5 ts=9 => bad-acknowledgment
         > R 5(0) ts=0:9",
    );
}

/// RFC 7323, 5.2: the timestamp of a RST is not subject to PAWS.
#[test]
fn rfc7323_5_2_the_timestamp_of_a_reset_does_not_matter() {
    play(
        "open timestamps 65535
         < . 1(10) ack 1 ts=1000
         > . 1(0) ack 11 ts:1000
         < R 11(0) ts=5 => accepted
         event closed peer-reset",
    );
}

/// RFC 7323, 5.2 and 5.3: an acknowledgment that was overtaken has an old timestamp and is answered,
/// which is all that comes of it; the half of the clock's circle is the boundary.
#[test]
fn rfc7323_5_2_old_is_half_of_the_circle() {
    play(
        "open timestamps 65535
         write 988
         > . 1(988) ack 1 ts
         < . 1(0) ack 501 ts=200
         < . 1(0) ack 989 ts=100 => old-timestamp
         > . 989(0) ack 1 ts:200
         +0.001 < . 1(0) ack 989 ts=200 => accepted
         +1 < . 1(10) ack 989 ts=-2147483448 => old-timestamp  # 2^31 before
         > . 989(0) ack 1 ts:200
         < . 1(10) ack 989 ts=-2147483449 => accepted          # one more is 2^31 - 1 after
         > . 989(0) ack 11 ts:-2147483449",
    );
}

/// RFC 7323, 2.2: options that belong to a SYN mean nothing in another segment.
#[test]
fn rfc7323_2_2_options_of_a_syn_elsewhere() {
    play(
        "open 1000
         write 2000
         > . 1(1000) ack 1
         < . 1(10) ack 1001 win 500 mss 100 ws 7 sackok
         > . 1001(500) ack 11",
    );
}
