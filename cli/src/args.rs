//! The command line as a value: global options and the verbs, in docker's spelling.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::exit::Code;

mod hints;
mod trailing;

/// Run and look after containers.
#[derive(Debug, Parser)]
#[command(
    name = "gantry",
    version,
    about = "Run and look after containers",
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 120,
    after_help = "The daemon's socket is taken from --address, else GANTRY_ADDRESS, else /run/gantry/gantryd.sock."
)]
pub struct Gantry {
    /// Socket of gantryd
    #[arg(
        long,
        short = 'H',
        global = true,
        help_heading = "Global options",
        value_name = "SOCKET",
        visible_alias = "host"
    )]
    pub address: Option<String>,
    /// Namespace to work in: GANTRY_NAMESPACE, else "default"
    #[arg(long, global = true, help_heading = "Global options", value_name = "NAME")]
    pub namespace: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Why there is nothing to do: the command line is wrong, or asks for help.
#[derive(Debug)]
pub struct Stop {
    error: clap::Error,
    hint: Option<String>,
}

impl Stop {
    /// Says it and gives the exit code: 0 for help, 125 for a mistake.
    pub fn report(&self) -> ExitCode {
        // Nobody is left to tell if even this cannot be written.
        let _ = self.error.print();
        if let Some(hint) = &self.hint {
            crate::error::hint(hint);
        }
        match self.error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Code::SUCCESS.into(),
            _ => Code::DAEMON.into(),
        }
    }
}

/// Parses a command line, with its program's name first.
///
/// # Errors
/// What clap says, with a hint where the mistake is a known one.
pub fn parse(args: &[OsString]) -> Result<Gantry, Stop> {
    let stop = |mut error: clap::Error| {
        let hint = hints::of(&error, args);
        if hint.is_some() {
            // Ours is the better tip.
            error.remove(ContextKind::Suggested);
        }
        Stop { hint, error }
    };
    let mut gantry = Gantry::command();
    let matches = gantry.try_get_matches_from_mut(trailing::protected(args, &gantry)).map_err(stop)?;
    Gantry::from_arg_matches(&matches).map_err(|error| stop(error.format(&mut gantry)))
}

#[cfg(test)]
mod tests;
