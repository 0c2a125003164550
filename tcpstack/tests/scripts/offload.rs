//! Segmentation by the device: several segments leave in one packet, and arrive so.

use culvert_tcpstack::{SEGMENTATION_BYTES_MAX, TxChecksum};

use crate::play::{play, play_with};

fn play_offloaded(script: &str) {
    play_with(
        |config| {
            config.tx_checksum = TxChecksum::Device;
            config.segmentation_bytes = SEGMENTATION_BYTES_MAX;
        },
        script,
    );
}

/// As many segments as the window allows leave as one packet, of whole segments unless it is all
/// there is (RFC 9293, 3.8.6.2.1).
#[test]
fn what_may_leave_leaves_in_one_packet() {
    play_offloaded(
        "open 65535
         write 20000
         > . 1(10000) ack 1 cut 1000
         < . 1(0) ack 10001
         > . 10001(10000) ack 1 cut 1000
         < . 1(0) ack 20001
         write 2500
         > . 20001(2500) ack 1 cut 1000
         write 700
         > . 22501(700) ack 1",
    );
}

/// The peer's window bounds it, and a rest that is no whole segment waits.
#[test]
fn rfc9293_3_8_6_2_1_the_window_bounds_the_packet() {
    play_offloaded(
        "open 4500
         write 20000
         > . 1(4000) ack 1 cut 1000
         < . 1(0) ack 4001 win 4500
         > . 4001(4000) ack 1 cut 1000",
    );
}

/// The FIN is not the device's to place.
#[test]
fn a_fin_leaves_by_itself_behind_the_packet() {
    play_offloaded(
        "open 65535
         write 3500
         > . 1(3500) ack 1 cut 1000
         close
         > F. 3501(0) ack 1
         event closed local-closed
         < F. 1(0) ack 3502
         > . 3502(0) ack 2",
    );
}

/// RFC 2018 and RFC 8985: a hole in what left as one packet is repaired by the one segment that is
/// missing.
#[test]
fn rfc8985_6_2_one_lost_segment_of_many() {
    play_offloaded(
        "open timestamps 65535
         write 10000
         > . 1(9880) ack 1 ts:1 cut 988
         < . 1(0) ack 1977 ts=20 sack 2965-6917
         > . 1977(988) ack 1 ts:20
         > . 9881(120) ack 1 ts:20",
    );
}

/// The same where only the last segment of the packet arrived.
#[test]
fn rfc8985_6_2_the_last_segment_of_a_packet_sacked() {
    play_offloaded(
        "open 65535
         write 4000
         > . 1(4000) ack 1 cut 1000
         +0.001 < . 1(0) ack 1 sack 3001-4001
         > . 1(1000) ack 1
         < . 1(0) ack 1001 sack 3001-4001
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 1(0) ack 4001",
    );
}

/// A connection is not held to its pacing rate one segment at a time, but no more leaves at once
/// than the rate allows in a millisecond or two.
#[test]
fn pacing_bounds_the_packet() {
    play_offloaded(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         +0.01 < S. 0(0) ack 1 win 65535 mss 1000 sackok
         > . 1(0) ack 1
         event opened
         write 60000
         > . 1(5000) ack 1 cut 1000",
    );
}

/// RFC 5681, 4.2 and RFC 9293, 3.8.6.3: what a device has put together is as many segments as went
/// into it. Two full ones are acknowledged at once, and the quick acknowledgments at the start are
/// used up.
#[test]
fn rfc5681_4_2_segments_put_together_count_one_by_one() {
    play(
        "open 65535
         < . 1(1000) ack 1
         > . 1(0) ack 1001
         < . 1001(20000) ack 1
         > . 1(0) ack 21001
         < . 21001(1000) ack 1
         +0.02 < . 22001(100) ack 1
         +0.005 > . 1(0) ack 22101
         < . 22101(1999) ack 1
         +0.025 > . 1(0) ack 24100
         < . 24100(2000) ack 1
         > . 1(0) ack 26100",
    );
}

/// Behind a hole, and over its end.
#[test]
fn rfc2018_4_segments_put_together_out_of_order() {
    play(
        "open 65535
         < . 10001(20000) ack 1
         > . 1(0) ack 1 sack 10001-30001
         < . 1(15000) ack 1
         > . 1(0) ack 30001 sack 10001-15001",
    );
}
