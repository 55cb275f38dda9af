//! The `rung` program: parse, log, dispatch, exit code.

use std::path::Path;
use std::process::ExitCode;

use rung::cli::Cli;
use rung::error::Result;
use rung::{commands, exe, log};
use rung_sys::allocator::Allocator;
use rung_sys::{footprint, signal};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator::new();

/// What a start uses of the heap and of the stack, in bytes (docs/decisions/0019-hot-functions.md).
const HEAP: usize = 64 << 10;
const STACK: usize = 80 << 10;

fn main() -> ExitCode {
    ALLOCATOR.expect(HEAP);
    footprint::expect_stack(STACK);
    signal::keep_children();
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.iter().skip(1).any(|argument| argument == "exec") {
        exe::protect_early();
    }
    let cli = match Cli::read(&arguments) {
        Ok(cli) => cli,
        Err(error) => return commands::usage(&error),
    };
    let code = run(cli).unwrap_or_else(|error| {
        log::error(&error);
        error.exit_code()
    });
    // Everything printed was flushed; what is left to be given back goes with the process.
    rung_sys::process::exit_now(code)
}

fn run(cli: Cli) -> Result<u8> {
    exe::refuse_inside_containers()?;
    let format = log::Format::parse(&cli.global.log_format)?;
    let level = match &cli.global.log_level {
        _ if cli.global.debug => log::Level::Debug,
        Some(word) => log::Level::parse(word)?,
        None => log::Level::Warning,
    };
    let journal = cli.global.systemd_log.then_some(Path::new("journald:"));
    log::open(cli.global.log.as_deref().or(journal), format, level)?;
    commands::dispatch(&cli.global, cli.command)
}
