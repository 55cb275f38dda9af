//! `start`.

use crate::cli::OneContainer;
use crate::container::id::ContainerId;
use crate::container::{Container, Settings, start};
use crate::error::Result;

pub(super) fn run(settings: &Settings, args: &OneContainer) -> Result<()> {
    start::start(&Container::load(&settings.store, &ContainerId::parse(&args.id)?)?)
}
