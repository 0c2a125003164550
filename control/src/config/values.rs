//! How times and amounts are written: as numbers, or with swanctl's units.

use std::fmt;
use std::time::Duration;

use culvert_shm::Dscp;
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A time: seconds, or a text such as `"90s"`, `"30m"`, `"4h"`, `"1d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time(pub(super) Duration);

/// An amount: a number, or a text with `K`, `M`, `G` or `T` for powers of 1024, such as `"500M"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount(pub(super) u64);

/// A code point as swanctl writes it: six binary digits.
pub(super) fn dscp(text: &str) -> Option<Dscp> {
    let digits = text.len() == 6 && text.bytes().all(|digit| matches!(digit, b'0' | b'1'));
    u8::from_str_radix(text, 2).ok().filter(|_| digits).and_then(Dscp::new)
}

/// A number with a unit, of which each stands for so many.
fn with_unit(text: &str, units: &[(char, u64)]) -> Option<u64> {
    let number = text.trim_end_matches(|c: char| units.iter().any(|(unit, _)| *unit == c));
    let scale = match text.get(number.len()..)? {
        "" => 1,
        suffix => units.iter().find(|(unit, _)| suffix.chars().eq([*unit]))?.1,
    };
    let digits = !number.is_empty() && number.bytes().all(|octet| octet.is_ascii_digit());
    number.parse::<u64>().ok().filter(|_| digits)?.checked_mul(scale)
}

/// Reads an integer or a text, which `read` understands.
struct Measured {
    expecting: &'static str,
    units: &'static [(char, u64)],
}

impl Visitor<'_> for Measured {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        let number = with_unit(text, self.units);
        number.ok_or_else(|| E::custom(format_args!("{text:?} is not {}", self.expecting)))
    }
}

const TIME: Measured = Measured {
    expecting: "a time: seconds, or a text such as \"90s\", \"30m\", \"4h\" or \"1d\"",
    units: &[('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)],
};
const AMOUNT: Measured = Measured {
    expecting: "an amount: a number, or a text such as \"500K\", \"64M\" or \"2G\"",
    units: &[('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)],
};

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TIME).map(|seconds| Self(Duration::from_secs(seconds)))
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AMOUNT).map(Self)
    }
}

/// A time as [`Time`] reads it, in the largest unit that fits.
pub(super) fn time_text(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "m")];
    let fitting = units.iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
    fitting
        .map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_amounts_have_units() {
        let time = |text| with_unit(text, TIME.units);
        let texts = ["0", "90", "90s", "30m", "4h", "30d"];
        let seconds = [0, 90, 90, 1800, 14_400, 2_592_000].map(Some);
        assert_eq!(texts.map(time), seconds);
        for wrong in
            ["", "h", "-1", "+1", "1.5h", "4hh", "1h30m", "4 h", "4w", "18446744073709551615d"]
        {
            assert_eq!(time(wrong), None, "{wrong}");
        }
        let amount = |text| with_unit(text, AMOUNT.units);
        assert_eq!(["7", "2K", "1M", "3G"].map(amount), [7, 2048, 1 << 20, 3 << 30].map(Some));
        assert_eq!(amount("1k"), None);
    }

    #[test]
    fn code_points_are_six_binary_digits() {
        assert_eq!(["000000", "101110", "111111"].map(dscp), [0, 46, 63].map(Dscp::new));
        for wrong in ["", "46", "10111", "1011100", "101112", "+10111", "0b1011", "ef"] {
            assert_eq!(dscp(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        for text in ["0s", "90s", "5m", "4h", "30d"] {
            let seconds = with_unit(text, TIME.units).expect(text);
            assert_eq!(time_text(Duration::from_secs(seconds)), text);
        }
    }
}
