//! `init`: the first process of a container that asked for one. It runs the command, hands signals on to it, collects
//! whatever ends in the container, and ends as the command does.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rung_sys::poll::{self, Interest};
use rung_sys::process::{Target, set_child_subreaper, wait};
use rung_sys::signal::{self, Signals};

/// What the command line calls it.
pub const VERB: &str = "init";
/// Exit codes of a shell for a program that does not exist, or that cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Runs the command in `words` until it ends.
pub fn run(words: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = words.split_first() else { return failed("no command", NOT_FOUND) };
    // In the host's PID namespace it is not the first process, and gets the container's orphans only as a subreaper.
    let signals = signal::block_all().and_then(|()| set_child_subreaper(true)).and_then(|()| Signals::open());
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => return failed(error, NOT_EXECUTABLE),
    };
    let mut command = Command::new(program);
    command.args(arguments).process_group(0);
    let child = match rung_sys::spawn::cleanly(&mut command).spawn() {
        Ok(child) => child.id(),
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            let (program, cause) =
                (program.display(), Errno::from_raw(error.raw_os_error().unwrap_or_default()).desc());
            return failed(format_args!("execute {program}: {}", cause.to_lowercase()), code);
        }
    };
    let child = Pid::from_raw(i32::try_from(child).unwrap_or(-1));
    to_foreground(child);
    match until_end(&signals, child) {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(error, NOT_EXECUTABLE),
    }
}

/// Gives a terminal to the command, and continues it: it may have been stopped because it read before that.
fn to_foreground(child: Pid) {
    let input = std::io::stdin();
    if rung_sys::tty::is_terminal(input.as_fd()) && nix::unistd::tcsetpgrp(input.as_fd(), child).is_ok() {
        let _ = nix::sys::signal::kill(child, Signal::SIGCONT);
    }
}

fn until_end(signals: &Signals, child: Pid) -> rung_sys::error::Result<u8> {
    loop {
        while let Some((pid, exit)) = collected() {
            if pid == child {
                return Ok(exit.shell_code());
            }
        }
        poll::wait(&[(signals.as_fd(), Interest::Read)], None)?;
        while let Some(number) = signals.next()? {
            if number != Signal::SIGCHLD as i32 {
                // It may have ended just now.
                let _ = signal::send(child, number);
            }
        }
    }
}

/// A child that has ended, and how.
fn collected() -> Option<(Pid, rung_sys::process::Exit)> {
    wait(Target::Any, false).ok().flatten()
}

fn failed(what: impl std::fmt::Display, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "init: {what}");
    ExitCode::from(code)
}
