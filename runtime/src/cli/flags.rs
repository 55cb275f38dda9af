//! Where the flags of a command line end.
//!
//! The arguments of `exec`, `kill` and `ps` after the container's id are the program's, the signal, or for ps(1), whatever
//! they look like. To the argument parser a word with a hyphen that it knows is a flag wherever it stands, so it is told.

use std::ffi::OsString;

/// Flags that take the next argument as their value: those of every command, and those of the three.
const WITH_VALUE: &[&str] = &[
    "--additional-gids",
    "--apparmor",
    "--cap",
    "--cgroup",
    "--console-socket",
    "--criu",
    "--cwd",
    "--env",
    "--format",
    "--log",
    "--log-format",
    "--pid-file",
    "--pidfd-socket",
    "--preserve-fds",
    "--process",
    "--process-label",
    "--root",
    "--rootless",
    "--user",
];

/// Their short forms.
const WITH_VALUE_SHORT: &str = "cefgpu";

/// The line with `--` after the id of a container, when its command is one of the three.
pub(super) fn end_after_id(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let mut rest = arguments.iter().enumerate().skip(1);
    let mut command_seen = false;
    while let Some((at, argument)) = rest.next() {
        let argument = argument.to_str()?;
        if argument == "--" {
            return None;
        }
        if takes_next(argument) {
            rest.next();
        } else if argument.starts_with('-') && argument.len() > 1 {
            // A flag that has its value with it, or none.
        } else if !command_seen {
            if !matches!(argument, "exec" | "kill" | "ps") {
                return None;
            }
            command_seen = true;
        } else {
            let after = at + 1;
            let ended = arguments.get(after).is_none_or(|next| next == "--");
            return (!ended).then(|| {
                let mut line = arguments[..after].to_vec();
                line.push("--".into());
                line.extend_from_slice(&arguments[after..]);
                line
            });
        }
    }
    None
}

/// Whether the next argument belongs to this one.
fn takes_next(argument: &str) -> bool {
    if argument.starts_with("--") {
        return WITH_VALUE.contains(&argument);
    }
    let Some(cluster) = argument.strip_prefix('-') else { return false };
    // In `-tu 0` the last letter takes it; in `-u0` the rest of the word is the value.
    cluster.find(|letter| WITH_VALUE_SHORT.contains(letter)).is_some_and(|at| at + 1 == cluster.len())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_lists_are_those_of_the_parser() {
        let whole = Cli::command();
        let commands = ["exec", "kill", "ps"].map(|name| whole.find_subcommand(name).expect(name));
        let arguments = || whole.get_arguments().chain(commands.iter().flat_map(|command| command.get_arguments()));
        let takes = |argument: &&clap::Arg| {
            !argument.is_positional() && argument.get_action().takes_values() && !argument.is_require_equals_set()
        };
        let mut long: Vec<_> = arguments().filter(takes).filter_map(|a| Some(format!("--{}", a.get_long()?))).collect();
        long.sort();
        assert_eq!(long, WITH_VALUE);
        let mut short: Vec<_> = arguments().filter(takes).filter_map(clap::Arg::get_short).collect();
        short.sort_unstable();
        assert_eq!(short.into_iter().collect::<String>(), WITH_VALUE_SHORT);
    }

    #[test]
    fn flags_end_at_the_id() {
        let ended = |line: &str| {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let line = end_after_id(&arguments)?;
            Some(line.join(std::ffi::OsStr::new(" ")).into_string().expect("text"))
        };
        for (line, told) in [
            ("rung --root /r exec -u 0 web -u", "rung --root /r exec -u 0 web -- -u"),
            (
                "rung --debug exec -tu0 --cwd=/ -e exec web sh --cwd",
                "rung --debug exec -tu0 --cwd=/ -e exec web -- sh --cwd",
            ),
            ("rung ps web -f x", "rung ps web -- -f x"),
            ("rung kill --all web -a", "rung kill --all web -- -a"),
        ] {
            assert_eq!(ended(line).as_deref(), Some(told));
        }
        for line in
            ["rung exec web", "rung exec web -- sh -u", "rung exec -- web -u", "rung run web -d", "rung exec -u"]
        {
            assert_eq!(ended(line), None, "{line}");
        }
    }
}
