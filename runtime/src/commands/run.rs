//! `run`.

use std::os::fd::AsFd as _;

use rung_sys::process::{Exit, Target};

use super::create::options;
use crate::cli::RunArgs;
use crate::container::create::{self, Made};
use crate::container::foreground::Foreground;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings, delete};
use crate::error::{Doing as _, Kind, Result};
use crate::{hooks, launch, log};

pub(super) fn run(settings: &Settings, args: RunArgs) -> Result<u8> {
    let attempt = || -> Result<u8> {
        let id = ContainerId::parse(&args.create.id)?;
        let mut options = options(args.create)?;
        options.detached = args.detach;
        let foreground = if args.detach { None } else { Some(Foreground::prepare(!args.no_subreaper)?) };
        let mut made = create::make(settings, &id, &options)?;
        let executed = made.started.executed().doing(|| launch::IN_INIT).doing(|| launch::NOT_STARTED);
        let refused = matches!(executed, Ok(Some(_)));
        if let Err(error) = executed.and_then(|refusal| refusal.map_or_else(|| begin(&made), Err)) {
            made.started.abort();
            give_up(made);
            let program = matches!(error.kind(), Kind::ProgramNotFound | Kind::CannotExecute);
            if refused && program && !log::takes_hints() {
                log::program_error(&error);
                return Ok(1);
            }
            return Err(error);
        }
        let Some(foreground) = foreground else {
            let pid = made.started.pid.as_raw();
            let told = made.readiness.as_ref().map(|ready| ready.proxy(made.started.pidfd.as_fd(), pid)).transpose();
            return told.map(|_| 0).inspect_err(|_| {
                made.started.abort();
                give_up(made);
            });
        };
        let exit = stay(&foreground, made, args.keep)?;
        Ok(exit.shell_code())
    };
    attempt().doing(|| "runc run failed").map_err(|error| error.with_exit_code(1))
}

/// What follows the execution of the program.
fn begin(made: &Made) -> Result<()> {
    let poststart = made.spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref());
    let pid = Some(made.started.pid.as_raw());
    hooks::run("poststart", poststart.map(Vec::as_slice).unwrap_or_default(), &made.state, "running", pid)
}

/// Stays with a container until it ends, and removes it then.
pub(super) fn stay(foreground: &Foreground, mut made: Made, keep: bool) -> Result<Exit> {
    match foreground.stay(&mut made.started, made.readiness.as_ref()) {
        Ok(exit) => {
            // What the program ended with is what counts.
            if let Err(error) = finish(made, !keep) {
                log::warning(&error.to_string());
            }
            Ok(exit)
        }
        Err(error) => {
            give_up(made);
            Err(error)
        }
    }
}

/// Removes a container whose process was ended after a failure, which is what is reported.
fn give_up(made: Made) {
    if let Err(error) = finish(made, true) {
        log::warning(&error.to_string());
    }
}

fn finish(made: Made, remove: bool) -> Result<()> {
    // Reaped already in the foreground; after a failure it may still be there.
    let _: Option<(rung_sys::process::Pid, Exit)> =
        rung_sys::process::wait(Target::Pid(made.started.pid), false).unwrap_or_default();
    // The process ends now. To free a configuration with hundreds of system calls in its profile would only take time.
    std::mem::forget(made.spec);
    if remove { delete::destroy(&Container { entry: made.entry, record: made.record }) } else { Ok(()) }
}
