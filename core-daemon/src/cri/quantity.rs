//! Numbers as Kubernetes writes them.

/// A number as Kubernetes writes quantities: `10M`, `1.5Gi`, `2e6`, `500`. What is not whole is rounded up.
pub(super) fn quantity(text: &str) -> Option<u64> {
    let at = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let (mut factor, mut divisor) = (1_u128, 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?);
    let position = |units: &[&str]| units.iter().position(|one| *one == unit).and_then(|at| u32::try_from(at).ok());
    if let Some(power) = position(&["", "k", "M", "G", "T", "P", "E"]) {
        factor = 1000_u128.pow(power);
    } else if let Some(power) = position(&["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]) {
        factor = 1024_u128.pow(power);
    } else if let Some(power) = position(&["", "m", "u", "n"]) {
        divisor = divisor.checked_mul(1000_u128.pow(power))?;
    } else {
        let exponent: i32 = unit.strip_prefix(['e', 'E'])?.parse().ok()?;
        let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
        match exponent < 0 {
            true => divisor = divisor.checked_mul(power)?,
            false => factor = power,
        }
    }
    u64::try_from(digits.checked_mul(factor)?.div_ceil(divisor)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, value) in [
            ("500", 500),
            ("10M", 10_000_000),
            ("1Gi", 1 << 30),
            ("1.5M", 1_500_000),
            ("1e6", 1_000_000),
            ("1Pi", 1 << 50),
            ("1500m", 2),
            ("25e-1", 3),
            (".5k", 500),
        ] {
            assert_eq!(quantity(text), Some(value));
        }
        for text in ["", "M", ".", "1.2.3", "-1", "1X", "1e", "1ee3", "1e99", "99999999999T"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }
}
