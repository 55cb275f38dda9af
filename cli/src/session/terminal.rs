//! Our own terminal: raw while a session lasts, and its size.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use gantry_proto::gantry::engine::v1::Size;
use nix::sys::termios::{self, SetArg, Termios};

use crate::error::{Failure, Result};

/// The terminal hands on every key as typed, until this is dropped.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Makes standard input raw; `None` where it is not a terminal.
    pub(super) fn enter() -> Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let failed = |error: nix::Error| Failure::new(format!("set up the terminal: {}", error.desc().to_lowercase()));
        let before = termios::tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that has gone needs no restoring.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

/// Columns and rows of our terminal, if we have one.
pub fn size() -> Option<Size> {
    let (width, height) = terminal_size::terminal_size_of(io::stdout().as_fd())
        .or_else(|| terminal_size::terminal_size_of(io::stdin().as_fd()))?;
    Some(Size { width: width.0.into(), height: height.0.into() })
}

/// Refuses `-it` where there is nobody to type.
///
/// # Errors
/// Where standard input is not a terminal.
pub fn check_input_is_terminal(stdin: bool, terminal: bool) -> Result<()> {
    if stdin && terminal && !io::stdin().is_terminal() {
        return Err(Failure::new("the input device is not a terminal, so -t cannot show one")
            .hint("leave -t out when input comes from a pipe or a file"));
    }
    Ok(())
}
