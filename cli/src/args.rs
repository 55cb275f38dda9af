//! The command line as a value: global options and the verbs, in docker's spelling.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args as _, CommandFactory, FromArgMatches, Parser};

use crate::commands::{Command, create, exec, ps, rm, run, start};
use crate::exit::Code;

mod hints;
mod lenient;
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
    args_override_self = true,
    after_help = "The daemon's socket is taken from --address, else GANTRY_ADDRESS, else /run/gantry/gantryd.sock."
)]
pub struct Gantry {
    /// Where the daemon is.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The options of every verb.
#[derive(Debug, clap::Args)]
pub struct Global {
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
}

/// Why there is nothing to do: the command line is wrong, or asks for help.
#[derive(Debug)]
pub struct Stop {
    error: clap::Error,
    hint: Option<String>,
}

impl Stop {
    /// Prints the help or the error, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        // Nobody is left to tell if even this cannot be written.
        let _ = self.error.print();
        if let Some(hint) = &self.hint {
            crate::error::hint(hint);
        }
        self.code().into()
    }

    /// Docker's exit codes: 0 for help, 125 for a wrong option, 1 for a wrong command and for missing or surplus
    /// arguments.
    fn code(&self) -> Code {
        match self.error.kind() {
            ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Code::SUCCESS,
            ErrorKind::InvalidSubcommand | ErrorKind::MissingSubcommand | ErrorKind::MissingRequiredArgument => {
                Code::FAILURE
            }
            ErrorKind::UnknownArgument if !self.is_option() => Code::FAILURE,
            _ => Code::DAEMON,
        }
    }

    /// Whether it is about an option.
    fn is_option(&self) -> bool {
        let invalid = self.error.get(ContextKind::InvalidArg);
        matches!(invalid, Some(ContextValue::String(text)) if text.starts_with('-'))
    }
}

/// Parses a command line, with its program's name first.
///
/// # Errors
/// What clap says, with a hint where the mistake is a known one.
pub fn parse(args: &[OsString]) -> Result<Gantry, Stop> {
    if let Some(mut gantry) = only(args)
        && let Ok(matches) = gantry.try_get_matches_from_mut(trailing::protected(args, &gantry))
        && let Ok(parsed) = Gantry::from_arg_matches(&matches)
    {
        return Ok(parsed);
    }
    let stop = |mut error: clap::Error| {
        let hint = hints::of(&error, args);
        if hint.is_some() || error.kind() == ErrorKind::UnknownArgument {
            // Our hint replaces clap's suggestion. Of an option it has only that it may be meant as a value, which it is
            // not in any command of ours.
            error.remove(ContextKind::Suggested);
        }
        Stop { hint, error }
    };
    let mut gantry = Gantry::command();
    match gantry.try_get_matches_from_mut(trailing::protected(args, &gantry)) {
        Ok(matches) => Gantry::from_arg_matches(&matches).map_err(|error| stop(error.format(&mut gantry))),
        Err(error) if error.exit_code() == 0 => Err(stop(error)),
        Err(error) => lenient::parse(args).map_err(|other| match other.kind() {
            // It has understood which option the value was for.
            ErrorKind::ValueValidation => stop(other),
            _ => stop(error),
        }),
    }
}

/// The command line with a single verb, for verbs that scripts call often: to build the definition of all sixty verbs
/// takes longer than a call of the daemon. Whatever this refuses is parsed again with the whole definition, for its
/// error messages.
fn only(args: &[OsString]) -> Option<clap::Command> {
    let gantry = clap::Command::new("gantry").subcommand_required(true).args_override_self(true);
    let gantry = Global::augment_args(gantry);
    let command = match trailing::verb(args, &gantry)? {
        "run" => run::Args::augment_args(clap::Command::new("run")),
        "create" => create::Args::augment_args(clap::Command::new("create")),
        "start" => start::Args::augment_args(clap::Command::new("start")),
        "exec" => exec::Args::augment_args(clap::Command::new("exec")),
        "ps" => ps::Args::augment_args(clap::Command::new("ps")),
        "rm" => rm::Args::augment_args(clap::Command::new("rm")),
        _ => return None,
    };
    Some(gantry.subcommand(command))
}

#[cfg(test)]
mod tests;
