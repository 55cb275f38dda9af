//! `kill`.

use rung_sys::signal;

use crate::cli::KillArgs;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings, kill};
use crate::error::{Error, Result};

pub(super) fn run(settings: &Settings, args: &KillArgs) -> Result<()> {
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    let number = signal::parse(&args.signal)
        .ok_or_else(|| Error::invalid(format!("unable to parse signal: unknown signal {:?}", args.signal)))?;
    kill::kill(&container, number, args.all)
}
