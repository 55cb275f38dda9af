//! Points in time for `--since` and `--until`: a date, seconds since 1970, or how long ago.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::error::Failure;

/// Parses `2026-01-02T03:04:05Z`, `2026-01-02`, `1767322800.5` or `10m` (ago).
///
/// # Errors
/// Where it is none of these.
pub fn point(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let bad =
        || format!("{text:?} is not a time; write 2026-01-02T03:04:05Z, seconds since 1970, or how long ago: 10m");
    if text.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let nanos = format!("{fraction:0<9}");
        let nanos = nanos.get(..9).and_then(|digits| digits.parse().ok()).ok_or_else(bad)?;
        return seconds.parse().ok().and_then(|seconds| Timestamp::new(seconds, nanos).ok()).ok_or_else(bad);
    }
    if let Some(ago) = duration(text) {
        return now.checked_sub(ago).map_err(|_| bad());
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local = text.parse::<DateTime>().map_err(|_| bad())?;
    local.to_zoned(TimeZone::system()).map(|zoned| zoned.timestamp()).map_err(|_| bad())
}

/// What an option says of a point in time, as the daemon takes it.
///
/// # Errors
/// Names the option, where it says none.
pub fn wire_point(option: &str, text: Option<&str>) -> crate::error::Result<Option<prost_types::Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    let time = point(text, Timestamp::now()).map_err(|error| Failure::new(format!("{option}: {error}")))?;
    Ok(Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }))
}

/// A length such as `1h30m`, `90s`, `250ms` or `1.5h`.
pub fn duration(text: &str) -> Option<SignedDuration> {
    let mut rest = text;
    let mut total = SignedDuration::ZERO;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let unit = match &rest[..letters] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[letters..];
        total = total.checked_add(SignedDuration::try_from_secs_f64(number * unit).ok()?)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let at = |text| point(text, now).unwrap().to_string();
        assert_eq!(at("10m"), "2026-01-01T23:50:00Z");
        assert_eq!(at("1h30m"), "2026-01-01T22:30:00Z");
        assert_eq!(at("1.5h"), "2026-01-01T22:30:00Z");
        assert_eq!(at("0.5"), "1970-01-01T00:00:00.5Z");
        assert_eq!(at("1767312000"), "2026-01-02T00:00:00Z");
        assert_eq!(at("2026-01-02T01:00:00+01:00"), "2026-01-02T00:00:00Z");
        assert_eq!(at("10"), "1970-01-01T00:00:10Z");
        for bad in ["", "x", "10x", "m", "1..5"] {
            assert!(point(bad, now).is_err(), "{bad}");
        }
    }
}
