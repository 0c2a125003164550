//! The states and bounds of the draft (its appendix lists such cases), told round trip by round
//! trip: each acknowledgment here delivers what was in flight at the one before.

use super::*;

const MSS: u64 = 1000;
const BASE: Duration = Duration::from_millis(50);
/// Octets a second: 100 segments in flight fill the path.
const RATE: u64 = 2_000_000;
const PRODUCT: u64 = 100 * MSS;

struct Feed {
    bbr: Bbr,
    now: Instant,
    delivered: u64,
    app_limited: bool,
}

impl Feed {
    fn new(seed: u32) -> Self {
        let now = Instant::from_micros(1_000_000);
        Self { bbr: Bbr::new(MSS, seed, now), now, delivered: 0, app_limited: false }
    }

    /// A round trip of `rtt` that delivers `rate` octets a second and leaves `pipe` in flight.
    fn round_of(&mut self, rate: u64, rtt: Duration, pipe: u64) -> Mode {
        let octets = rate * u64::try_from(rtt.as_micros()).unwrap() / 1_000_000;
        self.now = self.now + rtt;
        let sample = AckSample {
            now: self.now,
            newly_delivered: octets,
            delivered: self.delivered + octets,
            prior_delivered: self.delivered,
            interval: rtt,
            rtt: Some(rtt),
            smoothed_rtt: Some(rtt),
            pipe,
            prior_pipe: pipe,
            app_limited: self.app_limited,
            window_limited: true,
            una: 0,
            nxt: pipe,
            newest_in_flight: pipe,
            newest_lost: 0,
            sack: true,
            recovering: false,
            timed_out: false,
        };
        self.delivered += octets;
        self.bbr.on_ack(&sample);
        self.bbr.mode
    }

    fn round(&mut self, pipe: u64) -> Mode {
        self.round_of(RATE, BASE, pipe)
    }

    /// One of the segments in flight is lost, apart from the others.
    fn lose(&mut self, number: u64, in_flight: u64) {
        let start = self.delivered + 2 * number * MSS;
        let segment = LostSegment {
            range: start..start + MSS,
            in_flight,
            lost_since: (number + 1) * MSS,
            delivered: self.delivered,
            app_limited: false,
            sack: true,
        };
        self.bbr.on_segment_lost(&segment, self.now);
    }

    /// Startup and Drain are over.
    fn cruising(seed: u32) -> Self {
        let mut feed = Self::new(seed);
        for _ in 0..10 {
            feed.round(PRODUCT / 2);
        }
        assert_eq!(feed.bbr.mode, Mode::Cruise);
        feed
    }

    /// Rounds until it is in `mode`; none takes longer than the longest wait and `ProbeRTT`.
    fn until(&mut self, mode: Mode) -> &mut Self {
        let end = self.now + Duration::from_secs(5);
        while self.bbr.mode != mode {
            let drains = self.bbr.mode == Mode::ProbeRtt;
            self.round(if drains { PRODUCT / 4 } else { PRODUCT });
            assert!(self.now < end, "{mode:?} never came");
        }
        self
    }
}

#[test]
fn startup_ends_when_the_rate_grows_no_more() {
    let mut feed = Feed::new(1);
    for rate in [100_000, 200_000, 400_000, 800_000, 1_600_000] {
        assert_eq!(feed.round_of(rate, BASE, PRODUCT), Mode::Startup);
    }
    assert_eq!(feed.round(2 * PRODUCT), Mode::Startup, "a quarter more: it grows still");
    assert_eq!(feed.round(2 * PRODUCT), Mode::Startup);
    assert_eq!(feed.round(2 * PRODUCT), Mode::Startup);
    assert_eq!(feed.round(2 * PRODUCT), Mode::Drain, "the third round without growth");
    assert_eq!(feed.round(2 * PRODUCT), Mode::Drain);
    assert_eq!(feed.round(PRODUCT), Mode::Cruise, "no more in flight than the path holds");
}

#[test]
fn startup_of_a_slow_application_goes_on() {
    let mut feed = Feed::new(1);
    feed.app_limited = true;
    for _ in 0..50 {
        assert_eq!(feed.round(PRODUCT), Mode::Startup);
    }
}

#[test]
fn drain_ends_after_three_rounds_at_the_latest() {
    let mut feed = Feed::new(1);
    while feed.round(3 * PRODUCT) != Mode::Drain {}
    for _ in 0..3 {
        assert_eq!(feed.round(3 * PRODUCT), Mode::Drain);
    }
    assert_eq!(feed.round(3 * PRODUCT), Mode::Down);
}

#[test]
fn the_cycle_probes_after_two_to_three_seconds_of_its_own() {
    let mut starts = Vec::new();
    for seed in 1..=8 {
        let mut feed = Feed::cruising(seed);
        let start = feed.now;
        feed.until(Mode::Refill);
        let waited = feed.now.since(start);
        assert!((1.5..3.1).contains(&waited.as_secs_f64()), "{waited:?}");
        starts.push(waited);
        assert_eq!(feed.round(PRODUCT), Mode::Up);
        let gain = feed.bbr.pacing_rate() as f64 / RATE as f64;
        assert!((1.22..1.25).contains(&gain), "{gain}");
        feed.until(Mode::Down).until(Mode::Cruise);
    }
    starts.sort();
    starts.dedup();
    assert!(starts.len() >= 4, "not in step: {starts:?}");
}

/// `HandleInflightTooHigh`: the queue that was too long is given up as CUBIC does, and what the path
/// holds without one is kept.
#[test]
fn a_probe_that_loses_more_than_two_percent_ends_and_sets_a_bound() {
    let mut feed = Feed::cruising(1);
    feed.until(Mode::Up);
    let in_flight = 2 * PRODUCT;
    for number in 0..4 {
        feed.lose(number, in_flight);
        assert_eq!(feed.bbr.mode, Mode::Up, "{} of 200 lost", number + 1);
    }
    feed.lose(4, in_flight);
    assert_eq!(feed.bbr.mode, Mode::Down);
    let bound = feed.bbr.long_inflight;
    assert!((13 * PRODUCT / 10..=14 * PRODUCT / 10).contains(&bound), "{bound}");
    feed.round(PRODUCT);
    feed.until(Mode::Cruise).round(PRODUCT);
    assert!(feed.bbr.window() <= bound * 85 / 100 + 1, "headroom for others");
}

/// Losses while cruising: with a queue they lower the bounds until the next probe, and without one
/// they do only where they are more than a probe bears.
#[test]
fn losses_with_a_queue_hold_the_sender_down_until_the_next_probe() {
    let mut feed = Feed::cruising(1);
    feed.lose(0, PRODUCT);
    feed.round(PRODUCT);
    feed.round(PRODUCT);
    assert_eq!(feed.bbr.short_inflight, UNBOUNDED, "1 % and no queue");
    let before = feed.bbr.window();
    for _ in 0..3 {
        (0..3).for_each(|number| feed.lose(number, PRODUCT));
        feed.round_of(RATE / 2, 2 * BASE, PRODUCT);
    }
    assert!(feed.bbr.window() <= before * 7 / 10, "{}", feed.bbr.window());
    assert!(feed.bbr.rate() < 0.8 * RATE as f32, "{}", feed.bbr.rate());
    feed.until(Mode::Refill);
    assert_eq!(feed.bbr.short_inflight, UNBOUNDED);
    assert!(feed.bbr.rate() > 0.9 * RATE as f32);
}

#[test]
fn what_a_path_loses_with_an_empty_queue_is_no_congestion() {
    let mut feed = Feed::cruising(1);
    while feed.bbr.mode != Mode::Up {
        (0..5).for_each(|number| feed.lose(number, PRODUCT));
        feed.round_of(RATE * 95 / 100, BASE, PRODUCT);
    }
    assert!((0.04..0.06).contains(&feed.bbr.background), "{}", feed.bbr.background);
    (0..8).for_each(|number| feed.lose(number, PRODUCT));
    assert_eq!(feed.bbr.mode, Mode::Up, "8 % of what loses 5 % anyway");
    (8..18).for_each(|number| feed.lose(number, PRODUCT));
    assert_eq!(feed.bbr.mode, Mode::Down, "18 % is more");
}

/// In startup an acknowledgment of `delivered` octets within a recovery ends a round of losses,
/// six of them, after one whose round trips took `rtt`.
fn lossy_round(background: f32, rtt: Duration, delivered: u64) -> Feed {
    let mut feed = Feed::new(1);
    feed.round_of(RATE / 4, BASE, PRODUCT);
    feed.round_of(RATE / 2, rtt, PRODUCT);
    feed.bbr.background = background;
    (0..6).for_each(|number| feed.lose(number, PRODUCT));
    let mut sample = AckSample {
        now: feed.now + BASE,
        newly_delivered: MSS,
        delivered: feed.delivered + MSS,
        prior_delivered: feed.delivered,
        interval: BASE,
        rtt: None,
        smoothed_rtt: Some(BASE),
        pipe: PRODUCT,
        prior_pipe: PRODUCT,
        app_limited: true,
        window_limited: true,
        una: 0,
        nxt: PRODUCT,
        // The peer's window is full: only holes are in flight.
        newest_in_flight: 12 * MSS,
        newest_lost: 6 * MSS,
        sack: true,
        recovering: false,
        timed_out: false,
    };
    feed.bbr.on_ack(&sample);
    assert_eq!(feed.bbr.mode, Mode::Startup, "the recovery has lasted no round trip");
    (6..12).for_each(|number| feed.lose(number, PRODUCT));
    sample.recovering = true;
    sample.newly_delivered = delivered;
    sample.delivered += delivered;
    sample.prior_delivered = sample.delivered;
    feed.bbr.on_ack(&sample);
    feed
}

#[test]
fn startup_ends_at_a_round_of_heavy_losses() {
    let mut feed = lossy_round(0.0, 2 * BASE, PRODUCT);
    assert_eq!(feed.bbr.mode, Mode::Drain);
    assert_ne!(feed.bbr.long_inflight, UNBOUNDED);
    feed.bbr.on_spurious();
    assert_eq!((feed.bbr.mode, feed.bbr.long_inflight), (Mode::Startup, UNBOUNDED));
}

#[test]
fn startup_goes_on_at_the_losses_of_the_path_itself() {
    let feed = lossy_round(0.05, 2 * BASE, 2 * PRODUCT);
    assert_eq!(feed.bbr.mode, Mode::Startup, "6 of 206 is what it always loses");
    let feed = lossy_round(0.05, 2 * BASE, PRODUCT / 4);
    assert_eq!(feed.bbr.mode, Mode::Drain, "6 of 31 is more");
}

#[test]
fn startup_without_a_queue_goes_on_at_what_a_path_may_lose() {
    let feed = lossy_round(0.0, BASE, PRODUCT);
    assert_eq!(feed.bbr.mode, Mode::Startup, "6 of 106");
    let feed = lossy_round(0.0, BASE, PRODUCT / 10);
    assert_eq!(feed.bbr.mode, Mode::Drain, "6 of 16: none loses so much by itself");
}

#[test]
fn probe_rtt_comes_every_five_seconds_with_half_the_product() {
    let mut feed = Feed::cruising(1);
    let start = feed.now;
    while feed.round_of(RATE, BASE + Duration::from_millis(1), PRODUCT) != Mode::ProbeRtt {}
    let waited = feed.now.since(start).as_secs_f64();
    assert!((4.0..5.2).contains(&waited), "{waited}");
    let window = feed.bbr.window();
    assert!((PRODUCT * 4 / 10..PRODUCT * 6 / 10).contains(&window), "{window}");
    let drained = feed.now;
    while feed.round(PRODUCT * 4 / 10) == Mode::ProbeRtt {}
    let held = feed.now.since(drained).as_secs_f64();
    assert!((0.2..0.4).contains(&held), "{held}");
    assert_eq!(feed.bbr.mode, Mode::Cruise);
    assert!(feed.bbr.rate() > 0.9 * RATE as f32, "slow rounds of its own doing do not count");
}

#[test]
fn an_idle_connection_has_drained_the_path_already() {
    let mut feed = Feed::cruising(1);
    feed.now = feed.now + Duration::from_secs(6);
    feed.bbr.on_restart(feed.now);
    assert_ne!(feed.round(PRODUCT), Mode::ProbeRtt);
    let rate = feed.bbr.pacing_rate() as f64 / RATE as f64;
    assert!((0.85..1.3).contains(&rate), "{rate}");
}
