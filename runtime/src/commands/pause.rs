//! `pause` and `resume`.

use crate::cli::OneContainer;
use crate::container::id::ContainerId;
use crate::container::status::Status;
use crate::container::{Container, Settings};
use crate::error::{Error, Kind, Result};
use crate::launch::cgroup_error;

pub(super) fn pause(settings: &Settings, args: &OneContainer) -> Result<()> {
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    match container.status() {
        Status::Running | Status::Created => container.cgroup().freeze().map_err(cgroup_error),
        Status::Paused => Err(Error::new(Kind::Paused, "container paused")),
        status => Err(Error::new(Kind::NotRunning, format!("container not running or created: {status}"))),
    }
}

pub(super) fn resume(settings: &Settings, args: &OneContainer) -> Result<()> {
    let container = Container::load(&settings.store, &ContainerId::parse(&args.id)?)?;
    match container.status() {
        Status::Paused => container.cgroup().thaw().map_err(cgroup_error),
        _ => Err(Error::new(Kind::WrongState, "container not paused")),
    }
}
