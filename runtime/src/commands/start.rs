//! `start`.

use crate::cli::OneContainer;
use crate::container::id::ContainerId;
use crate::container::{Settings, start};
use crate::error::Result;

pub(super) fn run(settings: &Settings, args: &OneContainer) -> Result<()> {
    start::start(&settings.store, &ContainerId::parse(&args.id)?)
}
