//! Numbers as people read them.

/// Octets with a binary prefix and three digits: `1.24 MiB`.
pub(crate) fn octets(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    // What is left of the unit before, of 1024.
    let (mut whole, mut rest) = (count, 0);
    while whole >= 1000 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    match whole {
        _ if unit == 0 => format!("{whole} {name}"),
        0..=9 => format!("{whole}.{:02} {name}", rest * 100 / 1024),
        10..=99 => format!("{whole}.{} {name}", rest * 10 / 1024),
        _ => format!("{whole} {name}"),
    }
}

/// A span of time in its two largest units: `3h07m`.
pub(crate) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days}d{:02}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h{:02}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m{:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

/// A time in UTC: `2026-11-23 12:30:43.250`.
pub(crate) fn time(since_1970_ms: u64) -> String {
    let (seconds, millis) = (since_1970_ms / 1000, since_1970_ms % 1000);
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}")
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is a year's last.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_keep_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.97 KiB"),
            (1024, "1.00 KiB"),
            (1_300_000, "1.23 MiB"),
            (107_374_182_400, "100 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(octets(count), text);
        }
    }

    #[test]
    fn spans_have_two_units() {
        let spans = [0, 59, 60, 3599, 3600, 86_399, 90_000].map(span);
        assert_eq!(spans, ["0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d01h"]);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01 00:00:00.000");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00.000");
        assert_eq!(time(1_795_437_043_250), "2026-11-23 12:30:43.250");
        assert_eq!(time(4_107_542_399_999), "2100-02-28 23:59:59.999");
    }
}
