//! Amounts on the command line: `30s`, `10G`, `64MiB`.

use std::time::Duration;

/// Longer is a mistake, or "never", which nothing here may be.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A duration with its unit, such as `500ms`, `30s` or `1m 30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text);
    let duration =
        parsed.map_err(|_| "not a duration: write a number and a unit, such as 500ms, 30s or 5m".to_owned())?;
    if duration > DURATION_MAX { Err("more than a year".into()) } else { Ok(duration) }
}

/// How long ago something was, or how long it is kept: also years.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "not a duration: write a number and a unit, such as 12h, 90d or 10y".to_owned())
}

/// A number of units of fuel: `5000`, `50M`, `10G`.
pub(crate) fn fuel(text: &str) -> Result<u64, String> {
    let units = [("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000)];
    amount(text, &units).ok_or_else(|| "not an amount of fuel: write a number, or one with k, M, G or T".into())
}

/// A number of bytes: `65536`, `64KiB`, `64MiB`, `1GiB`, or decimal `64MB`.
pub(crate) fn bytes(text: &str) -> Result<usize, String> {
    let units = [
        ("", 1),
        ("B", 1),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
    let bytes = amount(text, &units).and_then(|bytes| usize::try_from(bytes).ok());
    bytes.ok_or_else(|| "not a size: write a number of bytes, or one with KiB, MiB or GiB".into())
}

fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_their_units() {
        assert_eq!(fuel("10G"), Ok(10_000_000_000));
        assert_eq!(fuel("50M"), Ok(50_000_000));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("64 MiB"), Ok(64 << 20));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
    }

    #[test]
    fn nonsense_is_refused_and_nothing_overflows() {
        for text in ["", "soon", "-1", "1.5G", "99999999999999999999", "18446744073709551615T", "10 parsecs"] {
            assert!(fuel(text).is_err(), "{text}");
            assert!(bytes(text).is_err(), "{text}");
        }
        for text in ["", "soon", "30", "-1s", "99999999999y"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
