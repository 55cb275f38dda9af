//! What people mean when they mistype, and what docker has that Gantry does not have yet.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Options of docker's `run` and `create` that are not built; said by name, so that nobody looks for a typo.
const NOT_BUILT: &[&str] = &[
    "--blkio-weight",
    "--cgroup-parent",
    "--dns",
    "--expose",
    "--gpus",
    "--init",
    "--ip",
    "--link",
    "--mac-address",
    "--network-alias",
    "--oom-kill-disable",
    "--publish",
    "--publish-all",
    "--volumes-from",
    "-P",
    "-p",
];

/// A hint for `error`, which came of `args`.
pub(super) fn of(error: &clap::Error, args: &[OsString]) -> Option<String> {
    let words: Vec<&str> = args.iter().skip(1).filter_map(|word| word.to_str()).collect();
    let verb = verb(&words);
    let invalid = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.split('=').next().unwrap_or_default(),
        _ => "",
    };
    match (error.kind(), verb) {
        (ErrorKind::UnknownArgument, "run" | "create") if invalid == "-n" => {
            Some("a container is named with --name".to_owned())
        }
        (ErrorKind::UnknownArgument, "run" | "create") if NOT_BUILT.contains(&invalid) => {
            Some(format!("gantry does not have docker's {invalid} yet"))
        }
        (ErrorKind::MissingRequiredArgument, "exec") => {
            Some("exec needs a command to run, such as: gantry exec -it NAME sh".to_owned())
        }
        (ErrorKind::MissingRequiredArgument, "run" | "create") => {
            Some(format!("{verb} needs an image, such as: gantry {verb} alpine"))
        }
        (ErrorKind::InvalidSubcommand, _)
            if matches!(
                verb,
                "build"
                    | "network"
                    | "volume"
                    | "compose"
                    | "port"
                    | "search"
                    | "context"
                    | "manifest"
                    | "checkpoint"
                    | "plugin"
                    | "trust"
            ) =>
        {
            Some(format!("gantry does not have docker's {verb:?} yet"))
        }
        _ => None,
    }
}

/// The verb among the words: `run` of `container run` and of `run`.
fn verb<'a>(words: &[&'a str]) -> &'a str {
    let mut plain = words.iter().filter(|word| !word.starts_with('-'));
    match plain.next() {
        Some(&"container" | &"image" | &"registry" | &"system") => plain.next().copied().unwrap_or_default(),
        Some(word) => word,
        None => "",
    }
}
