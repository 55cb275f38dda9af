//! Signals by name and number.

use std::str::FromStr as _;

use nix::sys::signal::Signal;

use crate::error::{Error, Result};

/// The signal that asks a process to end, as a number of the wire.
pub const SIGTERM: u32 = 15;
/// The signal that ends a process, as a number of the wire.
pub const SIGKILL: u32 = 9;

/// Highest signal of the kernel.
const MAX: u32 = 64;
/// First and last real-time signal as the C library counts them.
const REAL_TIME: (u32, u32) = (34, 64);

/// The number of a signal written as `TERM`, `SIGTERM`, `sigterm`, `RTMIN+1` or `15`.
///
/// # Errors
/// `InvalidArgument` for a text that names no signal.
pub fn parse(text: &str) -> Result<u32> {
    let invalid = || Error::invalid(format!("signal {text:?}: no such signal"));
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=MAX).contains(number)).ok_or_else(invalid);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (first, last) = REAL_TIME;
    let real_time = |offset: &str, up: bool| {
        let offset: u32 = if offset.is_empty() { 0 } else { offset.get(1..)?.parse().ok()? };
        let number = if up { first.checked_add(offset)? } else { last.checked_sub(offset)? };
        (first..=last).contains(&number).then_some(number)
    };
    if let Some(offset) = name.strip_prefix("RTMIN").filter(|rest| rest.is_empty() || rest.starts_with('+')) {
        return real_time(offset, true).ok_or_else(invalid);
    }
    if let Some(offset) = name.strip_prefix("RTMAX").filter(|rest| rest.is_empty() || rest.starts_with('-')) {
        return real_time(offset, false).ok_or_else(invalid);
    }
    let signal = Signal::from_str(&format!("SIG{name}")).map_err(|_| invalid())?;
    u32::try_from(signal as i32).map_err(|_| invalid())
}

/// What a signal is called; its number where it has no name.
pub fn name(number: u32) -> String {
    let known = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok());
    known.map_or_else(|| number.to_string(), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in
            [("TERM", 15), ("sigkill", 9), ("SIGHUP", 1), ("2", 2), ("RTMIN+1", 35), ("SIGRTMAX", 64), ("rtmax-1", 63)]
        {
            assert_eq!(parse(text).expect(text), number);
        }
        assert_eq!((name(15), name(35)), ("SIGTERM".to_owned(), "35".to_owned()));
        for text in ["", "0", "65", "SIGNOPE", "RTMIN+99", "-9", "RTMIN1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
