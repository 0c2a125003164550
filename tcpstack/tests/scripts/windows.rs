//! Windows: RFC 9293, 3.8.6; silly windows; acknowledgments that are delayed; urgent data.

use crate::play::{play, play_with};

/// RFC 9293, 3.8.6.1: a closed window is probed, further and further apart, and the connection stays open
/// as long as the peer answers (MUST-37).
#[test]
fn rfc9293_3_8_6_1_a_closed_window_is_probed() {
    play_with(
        |config| config.user_timeout = std::time::Duration::from_secs(5),
        "open 1000
         write 3000
         > . 1(1000) ack 1
         < . 1(0) ack 1001 win 0
         +0.12~0.13 > . 1000(0) ack 1      # below what was sent: the peer must answer
         < . 1(0) ack 1001 win 0
         +0.24~0.25 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.48~0.49 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +0.96~0.97 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +1.92~1.93 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 0
         +3.84~3.86 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 1000
         > . 1001(1000) ack 1
         < . 1(0) ack 2001 win 1000
         > . 2001(1000) ack 1
         < . 1(0) ack 3001 win 1000",
    );
}

/// A peer that does not answer the probes is given up after the user timeout.
#[test]
fn rfc9293_3_8_3_a_closed_window_of_a_silent_peer() {
    play_with(
        |config| config.user_timeout = std::time::Duration::from_secs(1),
        "open 1000
         write 3000
         > . 1(1000) ack 1
         < . 1(0) ack 1001 win 0
         +0.12~0.13 > . 1000(0) ack 1
         +0.24~0.25 > . 1000(0) ack 1
         +0.48~0.49 > . 1000(0) ack 1
         +0.2 > nothing
         event closed timeout",
    );
}

/// RFC 9293, 3.8.6.2.1: a window too small for a segment is not used until the override timeout.
#[test]
fn rfc9293_3_8_6_2_1_the_sender_avoids_silly_windows() {
    play(
        "open 2000
         write 4000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         < . 1(0) ack 2001 win 400
         +0.1 > nothing
         +0.02~0.03 > . 2000(0) ack 1
         > . 2001(400) ack 1
         < . 1(0) ack 2401 win 1000        # half of the largest window is worth it
         > . 2401(1000) ack 1
         < . 1(0) ack 3401 win 700
         > . 3401(600) ack 1               # all there is is worth it too",
    );
}

/// The same with a peer that sends all the time: the timeout runs from when sending was blocked.
#[test]
fn rfc9293_3_8_6_2_1_a_talkative_peer_does_not_hold_the_override_back() {
    play(
        "open 2000
         write 4000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         < . 1(0) ack 2001 win 400
         +0.05 < . 1(100) ack 2001 win 400
         > . 2001(0) ack 101
         +0.05 < . 101(100) ack 2001 win 400
         > . 2001(0) ack 201
         +0.02~0.03 > . 2000(0) ack 201
         > . 2001(400) ack 201",
    );
}

/// The same while the window is closed, with no answer to the probe: it is asked again in time.
#[test]
fn rfc9293_3_8_6_1_a_talkative_peer_does_not_hold_the_probe_back() {
    play(
        "open 1000
         write 3000
         > . 1(1000) ack 1
         < . 1(0) ack 1001 win 0
         +0.1 < . 1(100) ack 1001 win 0
         > . 1001(0) ack 101
         +0.02~0.03 > . 1000(0) ack 101
         +0.2 < . 101(100) ack 1001 win 0
         > . 1001(0) ack 201
         +0.04~0.05 > . 1000(0) ack 201",
    );
}

/// RFC 9293, 3.8.6.2.1: a window that was closed and opens by a little is no better for that.
#[test]
fn rfc9293_3_8_6_2_1_a_closed_window_that_opens_by_a_little() {
    play(
        "open 1000
         write 3000
         > . 1(1000) ack 1
         < . 1(0) ack 1001 win 0
         +0.12~0.13 > . 1000(0) ack 1
         < . 1(0) ack 1001 win 10
         +0.1 > nothing
         +0.02~0.03 > . 1000(0) ack 1      # the override timeout
         > . 1001(10) ack 1",
    );
}

/// RFC 9293, 3.10.7.4, fifth check: the window is that of the newest segment.
#[test]
fn rfc9293_3_10_7_4_an_old_segment_does_not_change_the_window() {
    play(
        "open 1000
         write 3000
         > . 1(1000) ack 1
         < . 11(10) ack 1001 win 0
         > . 1001(0) ack 1 sack 11-21
         < . 1(10) ack 1 win 5000          # sent before: SND.WL1 is newer
         > . 1001(0) ack 21
         +0.1 > nothing
         < . 21(0) ack 1001 win 1000
         > . 1001(1000) ack 21",
    );
}

/// RFC 9293, 3.8.6: who acknowledges more than anybody before tells of the newest window, though what it
/// carries was lost and leaves again.
#[test]
fn rfc9293_3_8_6_a_retransmission_that_acknowledges_more_changes_the_window() {
    play(
        "open 1000
         write 3000
         > . 1(1000) ack 1
         < . 101(100) ack 1 win 1000
         > . 1001(0) ack 1 sack 101-201
         < . 1(100) ack 1001 win 1000
         > . 1001(1000) ack 201
         < . 201(0) ack 2001 win 500
         > . 2001(500) ack 201",
    );
}

/// The same undoes what somebody has guessed: a closed window from far ahead in the stream, which every
/// true segment would lie before.
#[test]
fn rfc9293_3_8_6_a_forged_window_lasts_until_the_next_progress() {
    play(
        "open 3000
         write 6000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 60001(10) ack 1 win 0
         > . 3001(0) ack 1 sack 60001-60011
         < . 1(0) ack 3001 win 0           # true
         +0.05 < . 1(0) ack 3001 win 3000
         > . 3001(1000) ack 1
         > . 4001(1000) ack 1
         > . 5001(1000) ack 1",
    );
}

/// RFC 9293, 3.8.6: a peer may take its window back; nothing more is sent into it.
#[test]
fn rfc9293_3_8_6_a_shrunk_window() {
    play(
        "open 3000
         write 5000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 1(0) ack 1001 win 1000        # 3001 would have been the edge
         +0.001 > nothing
         < . 1(0) ack 3001 win 1000
         > . 3001(1000) ack 1",
    );
}

/// RFC 9293, 3.8.6 (MUST-34 and MUST-35): a window that is taken back altogether is probed by what is in
/// flight. When it opens that leaves at once, however far apart the probes have become.
#[test]
fn rfc9293_3_8_6_a_window_taken_back_to_nothing() {
    play_with(
        |config| config.user_timeout = std::time::Duration::from_secs(2),
        "open bare 3000
         write 3000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 1(0) ack 1 win 0
         +0.12 > . 1(1000) ack 1
         < . 1(0) ack 1 win 0
         +0.24 > . 1(1000) ack 1
         < . 1(0) ack 1 win 0
         +0.48 > . 1(1000) ack 1
         < . 1(0) ack 1 win 0
         +0.96 > . 1(1000) ack 1
         < . 1(0) ack 1 win 0
         +0.1 < . 1(0) ack 1 win 3000
         > . 1(1000) ack 1
         +0.01 < . 1(0) ack 1001 win 3000
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         < . 1(0) ack 3001",
    );
}

/// RFC 9293, 3.8.6.2.2: our window closes as nobody reads, and opens in steps worth a segment.
#[test]
fn rfc9293_3_8_6_2_2_the_receiver_avoids_silly_windows() {
    play_with(
        |config| config.rx_buffer_bytes = 65_536,
        "lazy
         open 65535
         < . 1(30000) ack 1
         > . 1(0) ack 30001 win 35535
         < . 30001(35535) ack 1
         > . 1(0) ack 65536 win 0
         read 400
         +0.1 > nothing
         < . 65536(1) ack 1                # a probe
         > . 1(0) ack 65536 win 0
         read 40000
         > . 1(0) ack 65536 win 40400",
    );
}

/// RFC 9293, 3.10.7.4: a closed window still lets an acknowledgment through.
#[test]
fn rfc9293_3_10_7_4_acknowledgments_pass_a_closed_window() {
    play_with(
        |config| config.rx_buffer_bytes = 65_536,
        "lazy
         open 65535
         < . 1(40000) ack 1
         > . 1(0) ack 40001 win 25535
         < . 40001(25535) ack 1
         > . 1(0) ack 65536 win 0
         write 500
         > . 1(500) ack 65536 win 0
         < . 65536(1) ack 501              # a probe that acknowledges
         > . 501(0) ack 65536 win 0
         +0.3 > nothing",
    );
}

/// A peer that has filled our window acknowledges from its edge, though octets below it are lost.
#[test]
fn rfc9293_3_10_7_4_acknowledgments_from_the_edge_count() {
    play_with(
        |config| config.rx_buffer_bytes = 65_536,
        "open 65535
         < . 30001(35535) ack 1
         > . 1(0) ack 1 sack 30001-65536
         write 500
         > . 1(500) ack 1
         < . 65536(0) ack 501 => accepted
         +0.3 > nothing",
    );
}

/// RFC 9293, 3.8.6.3: acknowledgments are delayed, by no more than two segments and 500 ms.
#[test]
fn rfc9293_3_8_6_3_acknowledgments_are_delayed() {
    let mut start = String::from("open 65535\n");
    for n in 0..16 {
        // The first segments are acknowledged at once: the peer may be in slow start.
        start += &format!("< . {}(100) ack 1\n> . 1(0) ack {}\n", n * 100 + 1, n * 100 + 101);
    }
    play(&format!(
        "{start}
         < . 1601(100) ack 1
         +0.025~0.028 > . 1(0) ack 1701
         < . 1701(1000) ack 1
         +0.001 < . 2701(1000) ack 1
         > . 1(0) ack 3701
         < . 3701(100) ack 1
         write 10                          # takes the acknowledgment along
         > . 1(10) ack 3801
         < . 3801(0) ack 11
         +0.1 > nothing"
    ));
}

/// RFC 9293, 3.8.5, and RFC 6093: urgent data is data.
#[test]
fn rfc9293_3_8_5_urgent_data_is_data() {
    play(
        "lazy
         open 65535
         < U. 1(10) ack 1
         > . 1(0) ack 11
         < PU. 11(10) ack 1
         > . 1(0) ack 21
         read 20",
    );
}

/// RFC 7323, 2.3: the window is scaled, but not that of a SYN.
#[test]
fn rfc7323_2_3_windows_are_scaled() {
    play(
        "open timestamps 500
         write 2000
         > . 1(500) ack 1 ts:1             # 500 octets: a SYN's window is not scaled
         < . 1(0) ack 501 win 100 ts=2
         > . 501(988) ack 1 ts:2
         > . 1489(512) ack 1 ts:2",
    );
}

/// RFC 7323, 2.3: a shift above 14 is taken as 14.
#[test]
fn rfc7323_2_3_the_greatest_shift_is_14() {
    play(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 100 ws 200 win 0
         > . 1(0) ack 1
         < . 1(0) ack 1 win 1              # 16,384 octets
         event opened
         write 300
         > . 1(216) ack 1
         > . 217(84) ack 1",
    );
}

/// RFC 7323, 2.2: no scaling unless both SYNs have the option.
#[test]
fn rfc7323_2_2_scaling_needs_both_sides() {
    play(
        "open 65535
         < . 1(535) ack 1
         > . 1(0) ack 536 win 65000",
    );
}

/// The receive window grows with what the peer sends, on a path with a long round trip too.
#[test]
fn the_window_grows_on_a_long_path() {
    let mut script = String::from(
        "connect
         > S 0(0) mss 1460 ws 7 sackok ts:0
         < S. 0(0) ack 1 mss 1460 ws 7
         > . 1(0) ack 1
         event opened\n",
    );
    // 64 KiB over 400 ms, evenly.
    for n in 0..32 {
        script += &format!("+0.0125 < . {}(2048) ack 1\n", n * 2048 + 1);
        // Each is two segments put together, as the first acknowledgments are counted.
        if n < 8 || n % 2 == 1 {
            let window = if n == 31 { "win 1024" } else { "" }; // Twice as much, scaled by 7.
            script += &format!("> . 1(0) ack {} {window}\n", (n + 1) * 2048 + 1);
        }
    }
    play(&script);
}

/// A peer whose first segment is lost and that goes on: what waits behind the hole counts, or the
/// window would hold the peer for as long as losses follow each other. Without SACK the window is left
/// alone, as the peer counts acknowledgments that say nothing else (RFC 5681, 2).
#[test]
fn rfc5681_2_the_window_grows_behind_a_hole_if_the_peer_knows_sack() {
    for sack in [true, false] {
        let mut script = format!(
            "connect
             > S 0(0) mss 1460 ws 7 sackok ts:0
             < S. 0(0) ack 1 mss 1460 ws 7 {}
             > . 1(0) ack 1
             event opened\n",
            if sack { "sackok" } else { "" },
        );
        for n in 1..=17 {
            let end = (n + 1) * 2048 + 1;
            let block = if sack { format!("sack 2049-{end}") } else { String::new() };
            // Scaled by 7: of 65,535 octets more than half have come.
            let window = if sack && n == 17 { 1024 } else { 511 };
            script += &format!("< . {}(2048) ack 1\n", n * 2048 + 1);
            script += &format!("> . 1(0) ack 1 win {window} {block}\n");
        }
        play(&script);
    }
}

/// RFC 9293, 3.8.6.2.2: half of the buffer is enough to be told of, also where that is less than two
/// segments: a peer would else learn by its probes only that its window has opened.
#[test]
fn rfc9293_3_8_6_2_2_a_window_of_few_large_segments_opens_too() {
    play_with(
        |config| (config.rx_buffer_bytes, config.mtu) = (65_536, 40_040),
        "lazy
         connect
         > S 0(0) mss 40000 ws 1 sackok ts:0
         < S. 0(0) ack 1 win 65535 mss 40000
         > . 1(0) ack 1
         event opened
         < . 1(39000) ack 1
         > . 1(0) ack 39001
         < . 39001(26535) ack 1
         > . 1(0) ack 65536 win 0
         read 65535
         > . 1(0) ack 65536 win 65535",
    );
}
