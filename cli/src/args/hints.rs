//! What people mean when they mistype, and what docker has that Gantry does not have yet.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Options of docker's `run` and `create` that are not built; said by name, so that nobody looks for a typo.
const NOT_BUILT: &[&str] = &[
    "--attach",
    "--blkio-weight-device",
    "--cpu-rt-period",
    "--cpu-rt-runtime",
    "--device-read-bps",
    "--device-read-iops",
    "--device-write-bps",
    "--device-write-iops",
    "--disable-content-trust",
    "--domainname",
    "--expose",
    "--gpus",
    "--ip",
    "--ip6",
    "--isolation",
    "--kernel-memory",
    "--link",
    "--link-local-ip",
    "--mac-address",
    "--net-alias",
    "--network-alias",
    "--oom-kill-disable",
    "--publish",
    "--publish-all",
    "--storage-opt",
    "--volume-driver",
    "-P",
    "-a",
    "-p",
];

/// Docker's commands that are not built.
const NO_VERBS: &[&str] = &[
    "build",
    "builder",
    "buildx",
    "checkpoint",
    "compose",
    "config",
    "context",
    "manifest",
    "network",
    "node",
    "plugin",
    "port",
    "scout",
    "search",
    "secret",
    "service",
    "stack",
    "swarm",
    "trust",
    "volume",
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
        (ErrorKind::InvalidSubcommand, _) if NO_VERBS.contains(&verb) => {
            Some(format!("gantry does not have docker's {verb:?} yet"))
        }
        _ => None,
    }
}

/// The verb among the words: `run` of `container run` and of `run`.
fn verb<'a>(words: &[&'a str]) -> &'a str {
    let mut words = words.iter();
    let mut plain = std::iter::from_fn(|| {
        loop {
            match words.next()? {
                // Their values are no verbs.
                &"-H" | &"--address" | &"--host" | &"--namespace" => drop(words.next()),
                word if word.starts_with('-') => {}
                word => return Some(word),
            }
        }
    });
    match plain.next() {
        Some(&"container" | &"image" | &"registry" | &"system") => plain.next().copied().unwrap_or_default(),
        Some(word) => word,
        None => "",
    }
}
