//! `run`, `create` and `exec` stop looking for their own options at the image or container: what follows is the
//! command's, even where it looks like an option. clap has no such rule, so `--` is put there for it.

use std::ffi::OsString;

use clap::{ArgAction, Command};

/// The verbs whose first operand ends the options.
const VERBS: &[&str] = &["run", "create", "exec"];

/// `args` with `--` after the first operand of such a verb.
pub(super) fn protected(args: &[OsString], gantry: &Command) -> Vec<OsString> {
    let mut args = args.to_vec();
    if let Some(place) = first_operand(&args, gantry) {
        args.insert(place + 1, "--".into());
    }
    args
}

/// The first word that is no option, before which `gantry` has only its global ones.
pub(super) fn verb<'a>(args: &'a [OsString], gantry: &Command) -> Option<&'a str> {
    let mut place = 1;
    loop {
        let word = args.get(place)?.to_str()?;
        if !word.starts_with('-') {
            return Some(word);
        }
        place += if takes_next(word, gantry, gantry)? { 2 } else { 1 };
    }
}

/// Where the verb's first operand is; `None` for other verbs, and for what clap will refuse anyway.
fn first_operand(args: &[OsString], gantry: &Command) -> Option<usize> {
    let mut command = gantry;
    let mut verb = "";
    let mut place = 1;
    while let Some(word) = args.get(place) {
        let word = word.to_str()?;
        if word == "--" {
            return None;
        }
        if word.starts_with('-') && word != "-" {
            place += if takes_next(word, command, gantry)? { 2 } else { 1 };
        } else if command.has_subcommands() {
            command = command.find_subcommand(word)?;
            verb = command.get_name();
            place += 1;
        } else {
            return VERBS.contains(&verb).then_some(place);
        }
    }
    None
}

/// Whether the option or options in `word` have their value in the next word; `None` where one is unknown.
fn takes_next(word: &str, command: &Command, gantry: &Command) -> Option<bool> {
    let known = || command.get_arguments().chain(gantry.get_arguments());
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(name, value)| (name, Some(value)));
        let option = known().find(|option| {
            option.get_long() == Some(name) || option.get_all_aliases().unwrap_or_default().contains(&name)
        })?;
        return Some(value.is_none() && takes_value(option));
    }
    let mut letters = word[1..].chars();
    while let Some(letter) = letters.next() {
        let option = known().find(|option| option.get_short() == Some(letter))?;
        if takes_value(option) {
            return Some(letters.as_str().is_empty());
        }
    }
    Some(false)
}

fn takes_value(option: &clap::Arg) -> bool {
    matches!(option.get_action(), ArgAction::Set | ArgAction::Append) && !option.is_require_equals_set()
}
