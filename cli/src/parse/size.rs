//! Amounts: bytes such as `64m`, processors such as `1.5`.

/// Parses a number of bytes with an optional `b`, `k`, `m`, `g` or `t`, each 1024 times the one before.
///
/// # Errors
/// Where it is not a number, negative, or too large.
pub fn bytes(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is not a size; write a number with b, k, m or g after it, such as 64m");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    let (whole, fraction) = decimal(digits, 9).ok_or_else(bad)?;
    let unit = 1_i128 << shift;
    let total = whole * unit + fraction * unit / 1_000_000_000;
    i64::try_from(total).map_err(|_| format!("{text:?} is too large"))
}

/// As [`bytes`], or `-1` for no limit.
///
/// # Errors
/// As [`bytes`].
pub fn bytes_or_any(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { bytes(text) }
}

/// Parses a number of processors into billionths of one.
///
/// # Errors
/// Where it is not a number, negative, or finer than a billionth.
pub fn nano_cpus(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is not a number of processors, such as 2 or 0.5");
    let (whole, fraction) = decimal(text, 9).ok_or_else(bad)?;
    i64::try_from(whole * 1_000_000_000 + fraction).map_err(|_| bad())
}

/// A decimal number as its whole part and its fraction in units of `10^-places`.
fn decimal(text: &str, places: usize) -> Option<(i128, i128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let number = |digits: &str| -> Option<i128> {
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        if digits.is_empty() { Some(0) } else { digits.parse().ok().filter(|_| all_digits && digits.len() <= 20) }
    };
    if (whole.is_empty() && fraction.is_empty()) || fraction.len() > places {
        return None;
    }
    Some((number(whole)?, number(&format!("{fraction:0<places$}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("0", 0),
            ("100", 100),
            ("1k", 1024),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5G", 3 << 29),
            ("2TB", 2 << 40),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for bad in ["", "m", ".", "-1", "1x", "1 m", "1e3", "0x10", "99999999t", "+1", "1.m5"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(bytes_or_any("-1"), Ok(-1));
        assert!(bytes_or_any("-2").is_err());
    }

    #[test]
    fn processors() {
        assert_eq!(nano_cpus("2"), Ok(2_000_000_000));
        assert_eq!(nano_cpus("0.5"), Ok(500_000_000));
        assert_eq!(nano_cpus(".25"), Ok(250_000_000));
        for bad in ["", ".", "-1", "x", "1.0000000001", "99999999999999"] {
            assert!(nano_cpus(bad).is_err(), "{bad}");
        }
    }
}
