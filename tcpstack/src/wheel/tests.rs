//! The wheel against the obvious: a map from key to deadline.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const KEYS: u32 = 24;
const TICK: u64 = 1 << TICK_BITS;

/// What happens to the wheel.
#[derive(Debug, Clone)]
enum Step {
    Set(u32, Option<u64>),
    Pass(u64),
}

/// Times from a tick to past the wheel's reach, each magnitude as likely as the next.
fn time() -> impl Strategy<Value = u64> {
    (0u32..44, any::<u64>()).prop_map(|(bits, noise)| noise & ((1 << bits) - 1))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..KEYS, time()).prop_map(|(key, time)| Step::Set(key, Some(time))),
        (0..KEYS, time()).prop_map(|(key, time)| Step::Set(key, Some(time))),
        (0..KEYS).prop_map(|key| Step::Set(key, None)),
        time().prop_map(Step::Pass),
        time().prop_map(Step::Pass),
    ]
}

/// The tick at which a timer that is due at this time expires.
fn tick(due: u64) -> u64 {
    due.div_ceil(TICK)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is set, put off and stopped and however time jumps, exactly those timers expire
    /// whose time has come, in the order of their ticks, and `next_expiry` is never too late.
    #[test]
    fn behaves_as_a_map(epoch in time(), steps in prop::collection::vec(step(), 1..80)) {
        let mut wheel = Wheel::new(Instant(epoch), KEYS);
        wheel.grow(KEYS as usize);
        let mut now = epoch;
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Set(key, after) => {
                    wheel.set(key, after.map(|after| Instant(now + after)));
                    match after {
                        Some(after) => model.insert(key, tick(now + after)),
                        None => model.remove(&key),
                    };
                }
                Step::Pass(time) => {
                    now += time;
                    let mut last = 0;
                    while let Some(key) = wheel.expire(Instant(now)) {
                        let due = model.remove(&key);
                        prop_assert!(due.is_some_and(|due| due <= now / TICK), "early: {key}");
                        let due = due.unwrap_or(0);
                        prop_assert!(last <= due, "out of order: {last} {due}");
                        last = due;
                    }
                    let late = model.values().find(|due| **due <= now / TICK);
                    prop_assert_eq!(late, None);
                }
            }
            let next = wheel.next_expiry().map(|next| next.0 / TICK);
            if let Some(first) = model.values().min().copied() {
                let next = next.unwrap_or(u64::MAX);
                prop_assert!(next <= first, "{next} is later than {first}");
            }
        }
    }
}

/// Whoever sleeps until `next_expiry` each time gets to a timer in at most one step for each
/// level, however far away it is: the way through empty time is short.
#[test]
fn sleeping_until_the_next_expiry_gets_there() {
    for due in [1, 63, 64, 65, 4_095, 4_096, 1 << 20, (1 << 30) - 1] {
        let mut wheel = Wheel::new(Instant(77 * TICK), 1);
        wheel.grow(1);
        let due = Instant((77 + due) * TICK);
        wheel.set(0, Some(due));
        let mut naps = 0;
        let woken = loop {
            let now = wheel.next_expiry().unwrap();
            assert!(now <= due);
            naps += 1;
            if wheel.expire(now).is_some() {
                break now;
            }
        };
        assert_eq!(woken, due);
        assert!(naps <= LEVELS, "{naps} naps");
    }
}

#[test]
fn a_timer_never_expires_before_its_time() {
    let mut wheel = Wheel::new(Instant::ZERO, 1);
    wheel.grow(1);
    wheel.set(0, Some(Instant(TICK + 1)));
    assert_eq!(wheel.expire(Instant(TICK)), None);
    assert_eq!(wheel.expire(Instant(2 * TICK - 1)), None);
    assert_eq!(wheel.expire(Instant(2 * TICK)), Some(0));
    assert_eq!(wheel.next_expiry(), None);
}

/// What is put off, however often, is looked at once where it lay, and what is stopped not again.
#[test]
fn what_is_put_off_moves_once() {
    let mut wheel = Wheel::new(Instant::ZERO, 2);
    wheel.grow(2);
    for due in 2..50 {
        wheel.set(0, Some(Instant(due * TICK)));
        wheel.set(1, Some(Instant(due * TICK)));
    }
    wheel.set(1, None);
    assert_eq!(wheel.next_expiry(), Some(Instant(2 * TICK)));
    assert_eq!(wheel.expire(Instant(2 * TICK)), None);
    assert_eq!(wheel.next_expiry(), Some(Instant(49 * TICK)));
    assert_eq!(wheel.expire(Instant(49 * TICK)), Some(0));
    assert_eq!(wheel.next_expiry(), None);
}
