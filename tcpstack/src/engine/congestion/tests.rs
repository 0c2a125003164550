//! The controllers alone, on a path made of arithmetic: one acknowledgment for each segment.

use super::*;

const MSS: u64 = 1000;

/// Runs a controller over a path of `rate` octets a second and `base` round trip, whose queue never
/// overflows.
struct Path {
    controller: Controller,
    now: Instant,
    base: Duration,
    rate: u64,
    delivered: u64,
    /// The round-trip time that the queue makes.
    rtt: Duration,
}

impl Path {
    fn new(kind: CongestionControl, base: Duration, rate: u64) -> Self {
        let now = Instant::from_micros(1_000_000);
        let controller = Controller::new(kind, MSS, 1, now);
        Self { controller, now, base, rate, delivered: 0, rtt: base }
    }

    /// After `pause`, the acknowledgment of a segment that was alone in flight.
    fn trickle(&mut self, pause: Duration) {
        self.now = self.now + pause;
        self.delivered += MSS;
        let sample = AckSample { app_limited: true, window_limited: false, ..self.sample(MSS, 0) };
        self.controller.on_ack(&sample);
    }

    /// The acknowledgment of a segment, with `window` in flight before it.
    fn sample(&self, window: u64, n: u64) -> AckSample {
        AckSample {
            now: self.now,
            newly_delivered: MSS,
            delivered: self.delivered,
            prior_delivered: self.delivered.saturating_sub(window),
            interval: self.rtt,
            rtt: Some(self.rtt),
            smoothed_rtt: Some(self.rtt),
            pipe: window - MSS,
            prior_pipe: window,
            app_limited: false,
            window_limited: true,
            una: self.delivered,
            nxt: self.delivered + window - n.min(1),
            newest_in_flight: window,
            newest_lost: 0,
            sack: true,
            recovering: false,
            timed_out: false,
        }
    }

    /// One round trip with as much in flight as window and pacing allow.
    fn round(&mut self) {
        let paced = self.controller.pacing_rate(Some(self.rtt)).unwrap_or(u64::MAX) as f64;
        let paced = (paced * self.rtt.as_secs_f64()) as u64;
        let window = self.controller.window().min(paced).max(MSS);
        let drain = Duration::from_secs_f64(window as f64 / self.rate as f64);
        self.rtt = self.base.max(drain);
        let segments = window / MSS;
        for n in 0..segments {
            self.now = self.now + self.rtt / u32::try_from(segments).unwrap();
            self.delivered += MSS;
            let sample = self.sample(window, n);
            self.controller.on_ack(&sample);
        }
    }

    fn rounds(&mut self, count: usize) -> &mut Self {
        (0..count).for_each(|_| self.round());
        self
    }

    /// Has the other controller go on.
    fn succeed(&mut self) {
        self.controller = self.controller.successor(MSS, 1, Some(self.rtt), self.now);
    }

    fn window(&self) -> u64 {
        self.controller.window() / MSS
    }

    fn lose(&mut self) {
        let flight = self.controller.window();
        self.controller.on_loss(self.now, flight);
        self.controller.on_recovered();
    }
}

const FAST: u64 = 1 << 40;

fn cubic() -> Path {
    Path::new(CongestionControl::Cubic, Duration::from_millis(100), FAST)
}

#[test]
fn rfc5681_3_1_slow_start_doubles() {
    let mut path = cubic();
    assert_eq!(path.window(), 10);
    assert_eq!(path.rounds(1).window(), 20);
    assert_eq!(path.rounds(2).window(), 80);
}

#[test]
fn rfc9438_4_6_a_loss_takes_three_tenths() {
    let mut path = cubic();
    path.rounds(4);
    path.lose();
    assert_eq!(path.window(), 112);
}

/// RFC 9438, 4.2: after K seconds the window of before the loss is there again, not much sooner,
/// and then it grows faster and faster.
#[test]
fn rfc9438_4_2_the_cubic() {
    let mut path = cubic();
    path.rounds(6);
    let before = path.window();
    path.lose();
    let start = path.now;
    let k = ((before - path.window()) as f64 / 0.4).cbrt();
    while path.window() < before {
        path.round();
        assert!(path.now.since(start).as_secs_f64() < 1.2 * k + 0.5, "{}", path.window());
    }
    assert!(path.now.since(start).as_secs_f64() > 0.8 * k, "{:?}", path.now.since(start));
    let (first, second) = (path.rounds(10).window(), path.rounds(10).window());
    assert!(second - first > first - before, "convex: {before} {first} {second}");
}

/// RFC 9438, 4.2, figure 1, through the concave and into the convex region: the window is never more
/// than a round trip before or behind the curve.
#[test]
fn rfc9438_4_2_the_curve() {
    let mut path = cubic();
    path.rounds(6);
    let before = path.window() as f64;
    path.lose();
    let (start, lowest) = (path.now, path.window() as f64);
    let k = ((before - lowest) / 0.4).cbrt();
    let curve = |t: f64| 0.4 * (t - k).powi(3) + before;
    loop {
        path.round();
        let t = path.now.since(start).as_secs_f64();
        let window = path.window() as f64;
        assert!(window >= curve(t - 0.1) - 1.0, "{window} after {t} s, behind {}", curve(t - 0.1));
        assert!(window <= curve(t + 0.1) + 1.0, "{window} after {t} s, before {}", curve(t + 0.1));
        if t > 1.5 * k {
            break;
        }
    }
}

/// RFC 9438, 4.3: where the round trip is short the window grows as Reno's would, by 9/17 of a segment
/// in each until that of before the loss is reached, then by one.
#[test]
fn rfc9438_4_3_as_fast_as_reno() {
    let mut path = Path::new(CongestionControl::Cubic, Duration::from_millis(1), FAST);
    path.rounds(1);
    path.lose();
    assert_eq!(path.window(), 14);
    assert_eq!(
        path.rounds(11).window(),
        19,
        "11 times 9/17, and a little of the growth within a round"
    );
    let full = path.window();
    assert!((9..=11).contains(&(path.rounds(10).window() - full)), "{}", path.window());
}

/// RFC 9438, 4.3: there the window is Reno's after every acknowledgment, not only on its way to it:
/// where a window is a few segments, half a segment is much.
#[test]
fn rfc9438_4_3_the_window_is_renos_at_once() {
    let mut path = Path::new(CongestionControl::Cubic, Duration::from_millis(1), FAST);
    path.controller.set_initial_window(7 * MSS);
    path.lose();
    let mut expected = 4.9;
    for _ in 0..8 {
        let segments = path.window();
        for _ in 0..segments {
            let alpha = if expected < 7.0 { 9.0 / 17.0 } else { 1.0 };
            expected += alpha / expected;
        }
        path.round();
        let window = path.controller.window() as f64 / MSS as f64;
        assert!((expected - window).abs() < 0.01, "{window} instead of {expected}");
    }
}

/// RFC 9438, 4.3: the window that Reno's growth has to reach is that of before the last reduction, also
/// where a maximum that was not reached again makes room for others.
#[test]
fn rfc9438_4_3_renos_growth_is_slow_up_to_the_last_window() {
    let mut path = Path::new(CongestionControl::Cubic, Duration::from_millis(1), FAST);
    path.rounds(1);
    path.lose();
    path.rounds(4);
    path.lose();
    let (before, rounds) = (path.window(), 8);
    assert_eq!(before, 11, "16 before, and 13.6 is the maximum");
    let grown = path.rounds(rounds).window() - before;
    assert_eq!(grown, 4, "{rounds} times 9/17");
}

/// RFC 9293, 3.7.5: what the path carries is octets. Where it is found to take larger segments, or only
/// smaller ones, the window neither jumps nor stands still.
#[test]
fn rfc9293_3_7_5_another_segment_size_does_not_change_the_window() {
    for (mss, least, most) in [(MSS * 3 / 2, 1, 1000), (MSS / 2, 1, 300)] {
        let mut path = Path::new(CongestionControl::Cubic, Duration::from_millis(1), FAST);
        path.rounds(1);
        path.lose();
        path.rounds(2);
        let before = path.controller.window();
        path.controller.set_mss(mss);
        let sample = path.sample(path.window() * MSS, 0);
        path.controller.on_ack(&sample);
        let grown = path.controller.window() - before;
        assert!((least..=most).contains(&grown), "{grown} octets, segments of {mss}");
    }
}

/// RFC 9438, 4.6: what is in flight is whole segments. A window that nothing more fits in was used; one
/// that was not is not what the path has shown to carry.
#[test]
fn rfc9438_4_6_a_full_window_counts_with_its_fraction() {
    for (flight, threshold) in [(5_000, 3_850), (5_500, 3_850), (4_501, 3_850), (4_500, 3_150)] {
        let mut path = cubic();
        path.controller.set_initial_window(5_500);
        path.controller.on_loss(path.now, flight);
        let window = path.controller.window();
        assert!(window.abs_diff(threshold) <= 1, "{window} after {flight} in flight");
    }
}

/// RFC 9438, 4.8: after a timeout the growth behind slow start begins with K = 0: slowly, as nothing is
/// known any more of what the path carries.
#[test]
fn rfc9438_4_8_after_a_timeout_growth_begins_slowly() {
    let mut path = cubic();
    path.rounds(6);
    let before = path.window();
    path.controller.on_timeout(before * MSS, 0);
    path.controller.on_timeout_repaired();
    let threshold = before * 7 / 10;
    while path.window() < threshold {
        path.round();
    }
    let grown = path.rounds(20).window() - threshold;
    assert!((3..=15).contains(&grown), "0.4 times 2 s cubed, or Reno: {grown}");
}

/// RFC 9406, 4.2: a round trip that grows by an eighth leads to conservative slow start, a quarter as
/// fast; five rounds of it, and slow start is over.
#[test]
fn rfc9406_4_2_conservative_slow_start() {
    let mut path = cubic();
    assert_eq!(path.rounds(2).window(), 40);
    path.base = Duration::from_millis(113);
    let first = path.rounds(1).window();
    assert!((50..=58).contains(&first), "eight samples, then a quarter of the rest: {first}");
    let mut window = first;
    for round in 0..4 {
        let next = path.rounds(1).window();
        let growth = next as f64 / window as f64;
        assert!((1.2..1.3).contains(&growth), "round {round}: {window} to {next}");
        window = next;
    }
    window = path.rounds(1).window();
    let next = path.rounds(1).window();
    assert!(next <= window + window / 20, "congestion avoidance: {window} to {next}");
}

/// RFC 9406, 4.2: if the round trip shortens again it was no queue, and slow start goes on.
#[test]
fn rfc9406_4_2_back_to_slow_start() {
    let mut path = cubic();
    path.rounds(2);
    path.base = Duration::from_millis(120);
    path.rounds(2);
    path.base = Duration::from_millis(100);
    path.rounds(1);
    let window = path.window();
    let next = path.rounds(1).window();
    assert!(next >= window * 19 / 10, "{window} to {next}");
}

/// RFC 9406, 4.3: the slow start behind a timeout goes up to the threshold that was found, whatever the
/// round-trip times are.
#[test]
fn rfc9406_4_3_only_the_first_slow_start_ends_as_the_round_trip_grows() {
    let mut path = cubic();
    let before = path.rounds(6).window();
    path.controller.on_timeout(before * MSS, 0);
    path.controller.on_timeout_repaired();
    assert_eq!(path.rounds(5).window(), 32);
    path.base = Duration::from_millis(120);
    assert_eq!(path.rounds(3).window(), 256);
    let threshold = before * 7 / 10;
    let window = path.rounds(1).window();
    assert!((threshold..threshold + 5).contains(&window), "{window}");
}

/// RFC 9406, 4.2: growth by less than an eighth, or than 4 ms, is noise, and so is any before there are
/// eight samples.
#[test]
fn rfc9406_4_2_what_is_no_queue() {
    for (before, after) in [(100, 112), (10, 13), (200, 215)] {
        let base = Duration::from_millis(before);
        let mut path = Path::new(CongestionControl::Cubic, base, FAST);
        path.rounds(2);
        path.base = Duration::from_millis(after);
        assert_eq!(path.rounds(1).window(), 80, "{before} ms to {after} ms");
    }
}

/// RFC 9438, 4.7: a second loss below the last maximum makes room for others.
#[test]
fn rfc9438_4_7_fast_convergence() {
    let (mut one, mut two) = (cubic(), cubic());
    for path in [&mut one, &mut two] {
        path.rounds(6);
        path.lose();
    }
    two.lose();
    one.rounds(40);
    two.rounds(40);
    assert!(two.window() < one.window(), "{} {}", two.window(), one.window());
}

#[test]
fn rfc9438_4_9_a_needless_reduction_is_undone() {
    let mut path = cubic();
    path.rounds(3);
    let before = path.window();
    path.controller.on_timeout(before * MSS, 0);
    assert_eq!(path.window(), 1);
    path.controller.on_timeout(MSS, 0);
    path.controller.on_spurious();
    assert_eq!(path.window(), before);
}

/// RFC 9438, 5.8, and RFC 7661: a window that is not used does not grow.
#[test]
fn rfc9438_5_8_growth_needs_use() {
    let mut path = cubic();
    path.trickle(Duration::from_millis(100));
    assert_eq!(path.window(), 10);
}

/// RFC 9438, 4.2 and 5.8: time in which the window was not used, with a little traffic or with
/// none, is no time of growth: the window goes on where it was.
#[test]
fn rfc9438_5_8_growth_does_not_jump_after_little_use() {
    let after_a_loss = || {
        let mut path = cubic();
        path.rounds(6);
        path.lose();
        path.rounds(10);
        path
    };
    let (mut busy, mut quiet, mut idle) = (after_a_loss(), after_a_loss(), after_a_loss());
    for _ in 0..1200 {
        quiet.trickle(Duration::from_millis(100));
        idle.now = idle.now + Duration::from_millis(100);
        idle.controller.on_restart(
            Duration::from_millis(100),
            Duration::from_millis(300),
            idle.now,
        );
    }
    busy.rounds(5);
    assert_eq!(quiet.rounds(5).window(), busy.window(), "two minutes of light traffic");
    assert_eq!(idle.rounds(5).window(), busy.window(), "two minutes of pauses");
}

/// RFC 9406, 4.3: slow start ends as the queue grows, long before a loss.
#[test]
fn rfc9406_4_3_slow_start_ends_as_the_queue_grows() {
    // 100 segments are the path's product.
    let mut path = Path::new(CongestionControl::Cubic, Duration::from_millis(100), 1_000_000);
    path.rounds(30);
    let Controller::Cubic(cubic) = &path.controller else { unreachable!() };
    let threshold = cubic.slow_start_threshold() / MSS;
    assert!((100..800).contains(&threshold), "{threshold}");
}

/// BBR finds rate and round trip, and keeps no more in flight than about two products.
#[test]
fn bbr_finds_the_path() {
    let mut path = Path::new(CongestionControl::Bbr, Duration::from_millis(100), 1_000_000);
    path.rounds(30);
    let window = path.window();
    assert!((150..320).contains(&window), "{window}");
    let rate = path.controller.pacing_rate(None).unwrap();
    assert!((700_000..1_300_000).contains(&rate), "{rate}");
}

/// However bad the estimates, the least window may leave in each round trip.
#[test]
fn bbr_never_stands_still() {
    let mut path = Path::new(CongestionControl::Bbr, Duration::from_millis(100), 1_000_000);
    path.rounds(10);
    path.rate = 1000;
    path.rounds(40);
    assert!(path.window() >= 4);
    let a_round_trip = path.rtt.as_secs_f64();
    let rate = path.controller.pacing_rate(None).unwrap() as f64;
    assert!(rate * a_round_trip >= 0.9 * 4.0 * MSS as f64, "{rate} for {a_round_trip} s");
}

/// A successor begins with the window of before, and grows from it as its predecessor would.
#[test]
fn before_the_path_is_full_the_search_goes_on() {
    for kind in [CongestionControl::Cubic, CongestionControl::Bbr] {
        let mut path = Path::new(kind, Duration::from_millis(100), FAST);
        let window = path.rounds(3).window();
        path.succeed();
        assert_ne!(path.controller.kind(), kind);
        assert_eq!(path.window(), window);
        assert!(path.rounds(2).window() >= 3 * window, "{kind:?}: {window}, {}", path.window());
    }
}

/// Where BBR knows what the path holds, CUBIC needs no slow start to find it, nor BBR's second
/// window of it in the queue.
#[test]
fn rfc9438_4_10_a_known_path_is_not_searched_again() {
    let base = Duration::from_millis(100);
    let mut path = Path::new(CongestionControl::Bbr, base, 2_000_000);
    path.rounds(40).succeed();
    let window = path.window();
    assert!((190..=260).contains(&window), "200 segments fill the path: {window}");
    let grown = path.rounds(3).window();
    assert!((window..window + 20).contains(&grown), "{window} to {grown}");
}
