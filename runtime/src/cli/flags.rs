//! What runc's command line allows and the argument parser does not: values of switches, `help`, and where flags end.
//!
//! The arguments of `exec`, `kill` and `ps` after the container's id are the program's, the signal, or for ps(1), whatever
//! they look like. To the argument parser a word with a hyphen that it knows is a flag wherever it stands, so it is told.

use std::ffi::OsString;

use clap::CommandFactory as _;

use super::Cli;

/// Flags that take the next argument as their value: those of every command, and those of the three.
const WITH_VALUE: &[&str] = &[
    "--additional-gids",
    "--apparmor",
    "--cap",
    "--cgroup",
    "--cgroup-manager",
    "--console-socket",
    "--criu",
    "--cwd",
    "--env",
    "--format",
    "--log",
    "--log-format",
    "--log-level",
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

/// Flags that are there or not. To runc they are also `--flag=true` and `--flag=false`.
const SWITCHES: &[&str] = &[
    "--all",
    "--auto-dedup",
    "--debug",
    "--detach",
    "--ext-unix-sk",
    "--file-locks",
    "--force",
    "--ignore-paused",
    "--keep",
    "--lazy-pages",
    "--leave-running",
    "--link-remap",
    "--no-new-keyring",
    "--no-pivot",
    "--no-subreaper",
    "--pre-dump",
    "--quiet",
    "--regex",
    "--rootless",
    "--shell-job",
    "--stats",
    "--systemd-cgroup",
    "--systemd-log",
    "--tcp-established",
    "--tcp-skip-in-flight",
    "--tty",
    "--version",
];

/// Short forms of switches that may be given a value too.
const SHORT_SWITCHES: &[(&str, &str)] = &[("-a", "--all"), ("-d", "--detach"), ("-q", "--quiet"), ("-t", "--tty")];

/// Flags with a path that callers pass with nothing in it, as a variable that may be empty, and mean as left out.
const EMPTY_IS_NONE: &[&str] = &[
    "--bundle",
    "--console-socket",
    "--criu",
    "--cwd",
    "--image-path",
    "--log",
    "--parent-path",
    "--pid-file",
    "--pidfd-socket",
    "--process",
    "--root",
    "--work-path",
];

/// A number, or nothing: callers pass a variable that may be empty, and mean that nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given<T>(pub Option<T>);

pub(super) fn given<T: std::str::FromStr>(text: &str) -> Result<Given<T>, T::Err> {
    if text.is_empty() { Ok(Given(None)) } else { text.parse().map(|number| Given(Some(number))) }
}

/// A truth value as Go's flags take it.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The line as the parser takes it, where that is another one: without values of switches, with `help COMMAND` as
/// `COMMAND --help`, and with `--` after the id of a container when the command is one of the three.
pub(super) fn settle(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let mut line: Vec<OsString> = Vec::with_capacity(arguments.len() + 1);
    let mut rest = arguments.iter();
    line.extend(rest.next().cloned());
    let mut command: Option<String> = None;
    while let Some(argument) = rest.next() {
        let long = spelled_long(argument.to_str()?);
        let argument = long.as_ref().unwrap_or(argument);
        let text = argument.to_str()?;
        if text == "--" {
            line.push(argument.clone());
            break;
        }
        match switch(text, command.as_deref()) {
            Some((name, true)) => {
                line.push(name.into());
                continue;
            }
            Some((_, false)) => continue,
            None => {}
        }
        match text.split_once('=') {
            Some((flag, "")) if EMPTY_IS_NONE.contains(&flag) => continue,
            None if EMPTY_IS_NONE.contains(&text) && rest.as_slice().first().is_some_and(|next| next.is_empty()) => {
                rest.next();
                continue;
            }
            _ => {}
        }
        if command.is_none() && matches!(text, "help" | "h") {
            line.extend(rest.next().cloned());
            line.push("--help".into());
            return Some(line);
        }
        if takes_next(text, command.as_deref()) {
            line.extend(joined(argument, &mut rest));
            continue;
        }
        line.push(argument.clone());
        if text.starts_with('-') && text.len() > 1 {
            // A flag that has its value with it, or none.
        } else if command.is_none() {
            command = Some(text.to_owned());
        } else if command.as_deref().is_some_and(has_program) {
            if rest.as_slice().first().is_some_and(|next| next != "--") {
                line.push("--".into());
            }
            break;
        }
    }
    line.extend(rest.cloned());
    (line != arguments).then_some(line)
}

/// Whether what follows a command's first argument is not the runtime's to read.
fn has_program(command: &str) -> bool {
    matches!(command, "exec" | "kill" | "ps")
}

/// A long flag that has one hyphen, as Go's flags may, with two.
fn spelled_long(text: &str) -> Option<OsString> {
    let name = text.strip_prefix('-')?;
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    if name.len() < 2 || name.starts_with('-') {
        return None;
    }
    let whole = Cli::command();
    let mut all = whole.get_arguments().chain(whole.get_subcommands().flat_map(clap::Command::get_arguments));
    all.any(|argument| argument.get_long() == Some(name)).then(|| format!("-{text}").into())
}

/// A flag and its value, which may begin with a hyphen.
fn joined(flag: &OsString, rest: &mut std::slice::Iter<'_, OsString>) -> Vec<OsString> {
    match rest.next() {
        Some(value) if value.as_encoded_bytes().starts_with(b"-") => {
            let mut both = flag.clone();
            both.push("=");
            both.push(value);
            vec![both]
        }
        value => [Some(flag), value].into_iter().flatten().cloned().collect(),
    }
}

/// The name and value of a switch that is given one. Before the command `--rootless` takes three, and is none.
fn switch<'a>(text: &'a str, command: Option<&str>) -> Option<(&'a str, bool)> {
    let (name, value) = text.split_once('=')?;
    let name = SHORT_SWITCHES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| *long);
    let known = SWITCHES.contains(&name) && (name != "--rootless" || command.is_some());
    known.then(|| boolean(value).map(|value| (name, value)))?
}

/// Whether the next argument belongs to this one, which stands before the command or after it.
fn takes_next(argument: &str, command: Option<&str>) -> bool {
    if argument.starts_with("--") {
        // Of `spec` this one is a switch.
        return WITH_VALUE.contains(&argument) && (argument != "--rootless" || command.is_none());
    }
    // Of other commands the same letters are switches: `delete -f`.
    if command.is_some_and(|name| !has_program(name)) {
        return false;
    }
    let Some(cluster) = argument.strip_prefix('-') else { return false };
    // In `-tu 0` the last letter takes it; in `-u0` the rest of the word is the value.
    cluster.find(|letter| WITH_VALUE_SHORT.contains(letter)).is_some_and(|at| at + 1 == cluster.len())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let switches = |command: &clap::Command| {
            let set = |argument: &&clap::Arg| matches!(argument.get_action(), clap::ArgAction::SetTrue);
            let names = command.get_arguments().filter(set).filter_map(clap::Arg::get_long);
            names.map(|name| format!("--{name}")).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = whole.get_subcommands().flat_map(switches).chain(switches(&whole)).collect();
        all.sort();
        all.dedup();
        assert_eq!(all, SWITCHES);
        let every = whole.get_subcommands().flat_map(clap::Command::get_arguments).chain(whole.get_arguments());
        let every: Vec<_> = every.filter(takes).filter_map(clap::Arg::get_long).collect();
        assert!(EMPTY_IS_NONE.iter().all(|flag| flag.strip_prefix("--").is_some_and(|name| every.contains(&name))));
        let mut short: Vec<_> = arguments().filter(takes).filter_map(clap::Arg::get_short).collect();
        short.sort_unstable();
        assert_eq!(short.into_iter().collect::<String>(), WITH_VALUE_SHORT);
    }

    #[test]
    fn lines_are_settled() {
        let settled = |line: &str| {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let line = settle(&arguments)?;
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
            ("rung delete --force=true web", "rung delete --force web"),
            ("rung --debug=0 run --detach=false web", "rung run web"),
            ("rung --root  create --pid-file= --bundle  web", "rung create web"),
            ("rung help run", "rung run --help"),
            ("rung --root /r h", "rung --root /r --help"),
            ("rung -root=/r exec -env -x -detach=true -u -1 web", "rung --root=/r exec --env=-x --detach -u=-1 web"),
            ("rung run -d=1 -bundle /b web", "rung run --detach --bundle /b web"),
            ("rung --rootless -x spec", "rung --rootless=-x spec"),
        ] {
            assert_eq!(settled(line).as_deref(), Some(told));
        }
        for line in [
            "rung exec web",
            "rung exec web -- sh -u",
            "rung exec -- web -u",
            "rung run web -d",
            "rung exec -u",
            "rung spec --rootless --bundle /b",
            "rung delete -f --force web",
        ] {
            assert_eq!(settled(line), None, "{line}");
        }
    }
}
