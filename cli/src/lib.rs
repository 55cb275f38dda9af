//! `gantry`: the command line people type. It needs no privilege of its own and reads nothing of the daemon's but its
//! socket.
//!
//! `args` parses, `commands` has one file for each verb, `client` speaks to gantryd, `session` is a terminal attached to
//! a process, `output` prints, `error` is the one place that reports a failure.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod args;
pub mod client;
pub mod commands;
pub mod credentials;
pub mod error;
pub mod exit;
pub mod files;
pub mod output;
pub mod parse;
pub mod session;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::error::Failure;

/// Parses, does what was asked, reports, and gives the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let outcome = match args::parse(&args) {
        Ok(parsed) => dispatch(parsed),
        Err(stop) => return stop.report(),
    };
    match outcome {
        Ok(code) => code.into(),
        Err(failure) => failure.report(),
    }
}

/// One thread is enough to wait on a socket and a terminal, and starts quicker than many.
fn dispatch(parsed: args::Gantry) -> Result<exit::Code, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("start: {error}")))?;
    let context = commands::Context::new(parsed.global.address, parsed.global.namespace)?;
    let outcome = runtime.block_on(parsed.command.run(&context));
    // A thread may still wait for input that nobody will read; it ends with the process, and so does all else.
    std::mem::forget(runtime);
    outcome
}
