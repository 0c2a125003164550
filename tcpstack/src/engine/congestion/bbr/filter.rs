//! The largest value of the last rounds.

/// Three candidates in falling order, each with its round (Kathleen Nichols' windowed filter).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundMax {
    best: [(u32, f32); 3],
}

impl RoundMax {
    pub(super) const fn new() -> Self {
        Self { best: [(0, 0.0); 3] }
    }

    /// Takes the value of `round`; those older than `window` rounds are forgotten.
    pub(super) fn update(&mut self, round: u32, window: u32, value: f32) {
        let best = &mut self.best;
        let age = |of: u32| round.wrapping_sub(of);
        if value >= best[0].1 || age(best[2].0) > window {
            *best = [(round, value); 3];
            return;
        }
        if value >= best[1].1 {
            best[1] = (round, value);
            best[2] = (round, value);
        } else if value >= best[2].1 {
            best[2] = (round, value);
        }
        if age(best[0].0) > window {
            *best = [best[1], best[2], (round, value)];
            if age(best[0].0) > window {
                *best = [best[1], best[2], (round, value)];
            }
        } else if best[1].0 == best[0].0 && age(best[1].0) > window / 4 {
            best[1] = (round, value);
            best[2] = (round, value);
        } else if best[2].0 == best[1].0 && age(best[2].0) > window / 2 {
            best[2] = (round, value);
        }
    }

    pub(super) fn get(&self) -> f32 {
        self.best[0].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_the_window_stands_and_then_gives_way() {
        let mut filter = RoundMax::new();
        filter.update(1, 10, 100.0);
        for round in 2..=11 {
            filter.update(round, 10, 50.0);
            assert!(filter.get() > 99.0, "round {round}");
        }
        filter.update(12, 10, 40.0);
        assert!((filter.get() - 50.0).abs() < 1.0, "{}", filter.get());
        filter.update(13, 10, 70.0);
        assert!(filter.get() > 69.0);
    }
}
