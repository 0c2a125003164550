//! Segments of which only a part came before (RFC 2883, 4.2), and duplicates where they matter less:
//! beside a FIN, and with an old timestamp (RFC 2883, 4.3).

use crate::play::play;

/// RFC 2883, 4.2.1 and 4.2.2: of a segment that repeats what was acknowledged and what was held behind a
/// hole, the first part is reported.
#[test]
fn rfc2883_4_2_2_two_parts_below_the_acknowledgment() {
    play(
        "open 65535
         < . 201(100) ack 1
         > . 1(0) ack 1 sack 201-301
         < . 1(100) ack 1
         > . 1(0) ack 101 sack 201-301
         < . 401(100) ack 1
         > . 1(0) ack 101 sack 401-501,201-301
         < . 1(300) ack 1                  # 1 to 100 and 201 to 300 twice
         > . 1(0) ack 301 sack 1-101,401-501",
    );
}

/// RFC 2883, 4.2.1: the part that was held behind the hole that the segment fills.
#[test]
fn rfc2883_4_2_1_a_part_that_was_held() {
    play(
        "open 65535
         < . 101(100) ack 1
         > . 1(0) ack 1 sack 101-201
         < . 301(100) ack 1
         > . 1(0) ack 1 sack 301-401,101-201
         < . 501(100) ack 1
         > . 1(0) ack 1 sack 501-601,301-401,101-201
         < . 1(450) ack 1                  # both runs, of which the first is told
         > . 1(0) ack 451 sack 101-201,501-601
         < . 451(150) ack 1
         > . 1(0) ack 601 sack 501-601
         < . 601(10) ack 1
         > . 1(0) ack 611",
    );
}

/// RFC 2883, 4.2.3: above the acknowledgment the run that holds the part follows.
#[test]
fn rfc2883_4_2_3_a_part_behind_a_hole() {
    play(
        "open 65535
         < . 501(100) ack 1
         > . 1(0) ack 1 sack 501-601
         < . 201(100) ack 1
         > . 1(0) ack 1 sack 201-301,501-601
         < . 151(300) ack 1
         > . 1(0) ack 1 sack 201-301,151-451,501-601
         < . 401(100) ack 1
         > . 1(0) ack 1 sack 401-451,151-601",
    );
}

/// Without SACK nothing is reported.
#[test]
fn rfc2883_4_without_sack_a_duplicate_is_only_acknowledged() {
    play(
        "open bare 65535
         < . 101(100) ack 1
         > . 1(0) ack 1
         < . 1(150) ack 1
         > . 1(0) ack 201
         < . 1(150) ack 1
         > . 1(0) ack 201",
    );
}

/// RFC 9293, 3.10.7.4, first and eighth check: old octets with a new FIN. Only the FIN is new, and
/// nothing that nobody read is lost by our close.
#[test]
fn rfc9293_3_10_7_4_a_fin_behind_what_came_before() {
    play(
        "open 65535
         < . 1(100) ack 1
         > . 1(0) ack 101
         < F. 1(100) ack 1 => accepted
         > F. 1(0) ack 102
         event closed peer-closed
         < . 102(0) ack 2",
    );
}

/// RFC 2018, 4: as long as there are holes each acknowledgment tells of what lies behind them, however
/// many there are.
#[test]
fn rfc2018_4_all_of_many_holes_are_told_of() {
    const RUNS: u64 = 300;
    let start = |n: u64| 300 * n + 2;
    let run = |n: u64| format!("{}-{}", start(n), start(n) + 299);
    let newest = |n: u64| (n.saturating_sub(2)..=n).rev().map(run).collect::<Vec<_>>().join(",");
    let mut script = "open timestamps 512\n".to_owned();
    for n in 0..RUNS {
        script +=
            &format!("< . {}(299) ack 1 ts=2\n> . 1(0) ack 1 ts sack {}\n", start(n), newest(n));
    }
    for n in 0..RUNS - 3 {
        let end = start(n) + 299;
        script += &format!("< . {}(1) ack 1 ts=2\n", start(n) - 1);
        script += &format!("> . 1(0) ack {end} ts sack {}\n", newest(RUNS - 1));
    }
    play(&script);
}
