//! Runs a command and prints, on standard error, the most memory it and what it waited for had resident, in kilobytes.
//!
//! A program of its own because it must be small: until a child has replaced itself it counts with its parent's size.

use std::io::Write;
use std::process::{Command, ExitCode};

use nix::sys::resource::{UsageWho, getrusage};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else { return ExitCode::from(2) };
    let ended = Command::new(program).args(args).status();
    let (Ok(status), Ok(usage)) = (ended, getrusage(UsageWho::RUSAGE_CHILDREN)) else { return ExitCode::from(125) };
    let _ = writeln!(std::io::stderr(), "{}", usage.max_rss());
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
