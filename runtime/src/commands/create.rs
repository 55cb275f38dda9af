//! `create`.

use crate::cli::CreateArgs;
use crate::container::Settings;
use crate::container::create::{self, Options};
use crate::container::id::ContainerId;
use crate::container::readiness;
use crate::error::{Doing as _, Error, Result};
use crate::plan::Wishes;

pub(super) fn run(settings: &Settings, args: CreateArgs) -> Result<()> {
    let attempt = || -> Result<()> {
        let id = ContainerId::parse(&args.id)?;
        let mut options = options(args)?;
        options.gated = true;
        options.detached = true;
        create::make(settings, &id, &options).map(drop)
    };
    attempt().doing(|| "runc create failed").map_err(|error| error.with_exit_code(1))
}

/// What `create` and `run` have in common.
pub(super) fn options(args: CreateArgs) -> Result<Options> {
    let listen_fds = listen_fds()?;
    let preserve_fds = args.preserve_fds.saturating_add(listen_fds.unwrap_or(0));
    for number in 3..preserve_fds.saturating_add(3) {
        require_open(number)?;
    }
    let wishes = Wishes { no_pivot: args.no_pivot, no_new_keyring: args.no_new_keyring, preserve_fds, listen_fds };
    Ok(Options {
        bundle: args.bundle,
        config: args.config,
        console_socket: args.console_socket,
        pidfd_socket: args.pidfd_socket,
        pid_file: args.pid_file,
        wishes,
        readiness: readiness::manager(),
        detached: false,
        gated: false,
    })
}

/// How many sockets a service manager opened for this process (`LISTEN_FDS`). Where `LISTEN_PID` names another process,
/// the variables were inherited and the descriptors were not, so there are none.
fn listen_fds() -> Result<Option<u32>> {
    let Ok(text) = std::env::var("LISTEN_FDS") else { return Ok(None) };
    if std::env::var("LISTEN_PID").is_ok_and(|pid| pid != std::process::id().to_string()) {
        return Ok(None);
    }
    // What is no number is ignored, as by every other reader of the variable.
    Ok(text.parse().ok().filter(|count| *count > 0))
}

/// Whether the caller has passed a descriptor of this number. Only those have no close-on-exec flag: they came through
/// an exec, while everything that this process opens has the flag.
pub(super) fn is_passed(number: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
    let flags = text.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC == 0)
}

/// A descriptor to pass must be there now, or the program would get whatever this run opens next.
pub(super) fn require_open(number: u32) -> Result<()> {
    if is_passed(number) {
        return Ok(());
    }
    Err(Error::invalid(format!("please check that preserved-fd {number} (of --preserve-fds or LISTEN_FDS) exists")))
}
