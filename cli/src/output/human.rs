//! Amounts and times in words, as docker's users read them.

use jiff::Timestamp;

/// A point in time as how long ago it was: `3 minutes`, `About an hour`.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    seconds(now.as_second().saturating_sub(then.as_second()))
}

/// A length of time in its largest unit.
pub fn seconds(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Bytes in decimal units with three digits: `8.31MB`.
pub fn decimal_size(bytes: u64) -> String {
    scaled(bytes, 1000, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Bytes in binary units with four digits: `1.944GiB`.
pub fn binary_size(bytes: u64) -> String {
    scaled(bytes, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(bytes: u64, base: u64, units: &[&str]) -> String {
    let digits: usize = if base == 1000 { 3 } else { 4 };
    let (mut place, mut unit) = (0, 1_u64);
    while place + 1 < units.len() && bytes / unit >= base {
        unit *= base;
        place += 1;
    }
    let whole = (bytes / unit).to_string();
    let decimals = digits.saturating_sub(whole.len());
    let scale = 10_u128.pow(u32::try_from(decimals).unwrap_or(0));
    let rounded = (u128::from(bytes) * scale + u128::from(unit) / 2) / u128::from(unit);
    let (whole, fraction) = (rounded / scale, rounded % scale);
    let fraction = format!("{fraction:0decimals$}");
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() || decimals == 0 {
        return format!("{whole}{}", units[place]);
    }
    format!("{whole}.{fraction}{}", units[place])
}

/// `text` in at most `width` characters, the last an ellipsis where it is cut.
pub fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// `text` in double quotes, with what a terminal would act on shown instead of done.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `text` without characters that a terminal would act on; names and labels come from strangers.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (length, words) in [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (125, "2 minutes"),
            (3600, "About an hour"),
            (3 * 3600, "3 hours"),
            (50 * 3600, "2 days"),
            (15 * 86400, "2 weeks"),
            (70 * 86400, "2 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(seconds(length), words, "{length}");
        }
    }

    #[test]
    fn sizes() {
        for (bytes, words) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (8_311_000, "8.31MB"),
            (77_800_000, "77.8MB"),
            (1_500_000_000, "1.5GB"),
        ] {
            assert_eq!(decimal_size(bytes), words);
        }
        assert_eq!(binary_size(2_087_000_000), "1.944GiB");
        assert_eq!(binary_size(64 << 20), "64MiB");
        assert!(decimal_size(u64::MAX).ends_with("EB"));
    }

    #[test]
    fn text() {
        assert_eq!(ellipsis("sleep 1000", 20), "sleep 1000");
        assert_eq!(ellipsis("/bin/sh -c 'while true'", 20), "/bin/sh -c 'while t…");
        assert_eq!(quoted("a\"b\n\u{1b}[31m"), "\"a\\\"b\\n\\x1b[31m\"");
        assert_eq!(harmless("a\u{1b}b"), "a\u{fffd}b");
    }
}
