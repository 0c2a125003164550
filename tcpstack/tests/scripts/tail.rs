//! The tail of a flight: the probe of RFC 8985, 7, and its timeout.

use crate::play::play;
use crate::recovery::FLIGHT;

/// Two segments, of which the second leaves again as a probe, and their acknowledgment.
const PROBED: &str = "open 65535
    write 2000
    > . 1(1000) ack 1
    > . 1001(1000) ack 1
    +0.002~0.004 > . 1001(1000) ack 1
    +0.001 < . 1(0) ack 2001";

/// A full window behind it, and the acknowledgment of its first segment.
const BEHIND: &str = "write 20000
    > . 2001(1000) ack 1
    > . 3001(1000) ack 1
    > . 4001(1000) ack 1
    > . 5001(1000) ack 1
    > . 6001(1000) ack 1
    > . 7001(1000) ack 1
    > . 8001(1000) ack 1
    > . 9001(1000) ack 1
    > . 10001(1000) ack 1
    > . 11001(1000) ack 1
    < . 1(0) ack 3001";

/// What may leave if that is no sign of a loss: slow start goes on.
const FREE: &str = "> . 12001(1000) ack 1
    > . 13001(1000) ack 1";

/// RFC 8985, 7.2: what is less than two full segments the peer may acknowledge late (RFC 9293,
/// 3.8.6.3), in however many segments it came; ours would do so. What is more it answers at once.
#[test]
fn rfc8985_7_2_the_probe_waits_for_a_delayed_acknowledgment() {
    play(
        "open 65535
         write 1999
         > . 1(1000) ack 1
         > . 1001(999) ack 1
         +0.026 < . 1(0) ack 2000
         write 2000
         > . 2000(1000) ack 1
         > . 3000(1000) ack 1
         +0.002~0.012 > . 3000(1000) ack 1
         +0.001 < . 1(0) ack 4000 sack 3000-4000
         write 10
         > . 4000(10) ack 1
         < . 1(0) ack 4010                 # a round trip is measured (7.3)
         write 1999
         > . 4010(1000) ack 1
         > . 5010(999) ack 1
         +0.027~0.04 > . 5010(999) ack 1",
    );
}

/// RFC 8985, 7.4.2: nothing shows that both arrived: the probe has repaired a loss, and the window falls
/// to seven.
#[test]
fn rfc8985_7_4_2_a_loss_that_the_probe_repaired() {
    play(&format!(
        "{PROBED}
         {BEHIND}
         +0.001 > nothing
         < . 1(0) ack 5001
         +0.001 > nothing
         < . 1(0) ack 6001
         > . 12001(1000) ack 1"
    ));
}

/// Case 1: a D-SACK of the probe, with the acknowledgment or after it.
#[test]
fn rfc8985_7_4_2_case_1_both_arrived() {
    for both in ["ack 2001 sack 1001-2001", "ack 2001\n< . 1(0) ack 2001 sack 1001-2001"] {
        let probed = PROBED.replace("ack 2001", both);
        play(&format!("{probed}\n{BEHIND}\n{FREE}"));
    }
}

/// A D-SACK of another segment does not match: the network has doubled that.
#[test]
fn rfc8985_7_4_2_a_duplicate_of_something_else() {
    let probed = PROBED.replace("ack 2001", "ack 2001 sack 1-1001");
    play(&format!(
        "{probed}
         < . 1(0) ack 2001 sack 1-1001
         {BEHIND}
         +0.001 > nothing"
    ));
}

/// Case 2: from a peer without D-SACK a duplicate acknowledgment.
#[test]
fn rfc8985_7_4_2_case_2_both_arrived_without_dsack() {
    play(&format!(
        "{PROBED}
         < . 1(0) ack 2001
         {BEHIND}
         {FREE}"
    ));
}

/// What carries data or another window is no duplicate acknowledgment.
#[test]
fn rfc8985_7_4_2_what_is_no_duplicate_acknowledgment() {
    let behind = BEHIND.replace("ack 1\n", "ack 101\n").replace("< . 1(0)", "< . 101(0)");
    play(&format!(
        "{PROBED}
         < . 1(100) ack 2001
         > . 2001(0) ack 101
         {behind}
         +0.001 > nothing"
    ));
    play(&format!(
        "{PROBED}
         < . 1(0) ack 2001 win 60000
         {BEHIND}
         +0.001 > nothing"
    ));
}

/// A probe of new data repairs nothing.
#[test]
fn rfc8985_7_4_2_a_probe_of_new_data() {
    play(&format!(
        "open 65535
         {FLIGHT}
         +0.002~0.004 > . 10001(1000) ack 1
         +0.001 < . 1(0) ack 11001
         > . 11001(1000) ack 1
         > . 12001(1000) ack 1
         > . 13001(1000) ack 1
         > . 14001(1000) ack 1
         > . 15001(1000) ack 1
         > . 16001(1000) ack 1
         > . 17001(1000) ack 1
         > . 18001(1000) ack 1
         > . 19001(1000) ack 1"
    ));
}

/// RFC 8985, 7.3, the second condition: no probe leaves before a round trip was measured since the last
/// one. Else no segment that leaves alone would ever be measured where the path has become slow.
#[test]
fn rfc8985_7_3_no_probe_before_the_round_trip_is_measured() {
    play(
        "open 65535
         write 1000
         > . 1(1000) ack 1
         +0.025~0.028 > . 1(1000) ack 1
         +0.05 < . 1(0) ack 1001 sack 1-1001
         write 1000
         > . 1001(1000) ack 1
         +0.08 < . 1(0) ack 2001           # measured: SRTT 10 ms
         write 1000
         > . 2001(1000) ack 1
         +0.047~0.05 > . 2001(1000) ack 1",
    );
}

/// RFC 8985, 6.3: the timer takes for lost what should have been acknowledged by then. What left just
/// before it is in the network, and its acknowledgment shows nothing but that.
#[test]
fn rfc8985_6_3_a_timeout_leaves_what_is_young() {
    play(
        "open far 65535
         write 1000
         > . 1(1000) ack 1
         +0.2 write 1000
         > . 1001(1000) ack 1
         +0.09~0.11 > . 1001(1000) ack 1   # the probe
         +0.15 write 1000
         > . 2001(1000) ack 1
         +0.1 write 1000
         > . 3001(1000) ack 1
         +0.04~0.06 > . 1(1000) ack 1      # the timer
         +0.05 < . 1(0) ack 1 sack 3001-4001
         +0~0.05 > . 1001(1000) ack 1
         +0.02 < . 1(0) ack 1001 sack 3001-4001
         +0~0.05 > . 2001(1000) ack 1
         +0.1 < . 1(0) ack 4001
         +1 > nothing",
    );
}

/// A probe of which nothing is left to ask when the device takes it, because all was acknowledged
/// meanwhile, does not keep the timer of the closed window from being set (RFC 9293, 3.8.6.1,
/// MUST-36): the update of that may be lost, and no other comes.
#[test]
fn rfc9293_3_8_6_1_a_probe_that_came_too_late_leaves_the_closed_window_to_its_timer() {
    play(
        "open 2000
         write 3000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         full
         +0.01 < . 1(0) ack 2001 win 0
         empty
         +0.1~0.3 > . 2000(0) ack 1",
    );
}

/// Nor does a probe leave when a loss was found before the device took it: it would repeat what the peer
/// holds, and its acknowledgment narrow the window a second time (RFC 8985, 7.2: the timer is stopped).
#[test]
fn rfc8985_7_2_no_probe_leaves_in_a_recovery() {
    play(
        "open 65535
         write 5000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1
         > . 4001(1000) ack 1
         full
         +0.01 < . 1(0) ack 1 sack 1001-5001
         empty
         > . 1(1000) ack 1
         +0.001 > nothing",
    );
}
