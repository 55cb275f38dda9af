//! The `rung` program: parse, log, dispatch, exit code.

use std::process::ExitCode;

use rung::cli::Cli;
use rung::error::Result;
use rung::{commands, exe, log};

fn main() -> ExitCode {
    let cli = match Cli::read(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => cli,
        Err(error) => return commands::usage(&error),
    };
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<u8> {
    exe::refuse_inside_containers()?;
    let format = log::Format::parse(&cli.global.log_format)?;
    let level = match &cli.global.log_level {
        _ if cli.global.debug => log::Level::Debug,
        Some(word) => log::Level::parse(word)?,
        None => log::Level::Warning,
    };
    log::open(cli.global.log.as_deref(), format, level)?;
    commands::dispatch(&cli.global, cli.command)
}
