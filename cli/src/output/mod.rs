//! All printing to standard output. A reader that goes away ends the program quietly, as it would any other.

pub mod human;
pub mod json;
pub mod listing;
pub mod progress;
pub mod table;
pub mod template;

use std::fmt::Display;
use std::io::{self, Write};

use crate::client::reason;
use crate::error::{Failure, Result};
use crate::exit::Code;

/// Writes one line.
///
/// # Errors
/// Where it cannot be written; silent where nobody reads.
pub fn line(text: impl Display) -> Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes bytes as they are, at once.
///
/// # Errors
/// As [`line`].
pub fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| write_failure(&error))
}

/// Writes bytes to standard error, where a program's own errors go.
pub fn error_bytes(bytes: &[u8]) {
    // Whoever closes standard error does not want to read it.
    let _ = io::stderr().lock().write_all(bytes);
}

pub(crate) fn write_failure(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Failure::silent(Code::BROKEN_PIPE);
    }
    Failure::new(format!("write standard output: {}", reason(error)))
}
