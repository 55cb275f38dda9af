//! Docker's rarer forms, which clap's definition would show in every help: flags with a value (`--rm=false`), and
//! values that begin with a hyphen (`--name -x`). They are tried where the usual definition refuses a line, whose error
//! stands where they do not help either.

use std::ffi::OsString;

use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};

use super::{Gantry, trailing};

/// The command line in these forms.
///
/// # Errors
/// What clap says.
pub(super) fn parse(args: &[OsString]) -> Result<Gantry, clap::Error> {
    let mut gantry = command(Gantry::command());
    let matches = gantry.try_get_matches_from_mut(trailing::protected(args, &gantry))?;
    Gantry::from_arg_matches(&matches)
}

fn command(command: Command) -> Command {
    command.mut_args(option).mut_subcommands(self::command)
}

fn option(option: Arg) -> Arg {
    match option.get_action() {
        ArgAction::SetTrue => option
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .value_parser(truth)
            .default_value("false")
            .default_missing_value("true"),
        ArgAction::Set | ArgAction::Append if !option.is_positional() => option.allow_hyphen_values(true),
        _ => option,
    }
}

/// A truth value in Go's spellings.
fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is neither true nor false")),
    }
}
