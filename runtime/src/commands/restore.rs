//! `restore`.

use super::{checkpoint, run};
use crate::cli::RestoreArgs;
use crate::container::Settings;
use crate::container::create::Options;
use crate::container::foreground::Foreground;
use crate::container::id::ContainerId;
use crate::container::restore::{self, Wanted};
use crate::error::Result;
use crate::plan::Wishes;

pub(super) fn run(settings: &Settings, args: RestoreArgs) -> Result<u8> {
    let id = ContainerId::parse(&args.id)?;
    let wanted = Wanted {
        common: checkpoint::options(&args.images)?,
        lsm_profile: args.lsm_profile,
        lsm_mount_context: args.lsm_mount_context,
    };
    let options = Options {
        bundle: args.bundle,
        console_socket: args.console_socket,
        pid_file: args.pid_file,
        wishes: Wishes { no_pivot: args.no_pivot, ..Wishes::default() },
        detached: args.detach,
        ..Options::default()
    };
    let foreground = if args.detach { None } else { Some(Foreground::prepare(!args.no_subreaper)?) };
    let made = restore::restore(settings, &id, &options, &wanted)?;
    let Some(foreground) = foreground else { return Ok(0) };
    Ok(run::stay(&foreground, made, false)?.shell_code())
}
