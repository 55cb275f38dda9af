//! `delete`.

use crate::cli::DeleteArgs;
use crate::container::id::ContainerId;
use crate::container::{Settings, delete};
use crate::error::Result;

pub(super) fn run(settings: &Settings, args: &DeleteArgs) -> Result<()> {
    delete::delete(&settings.store, &ContainerId::parse(&args.id)?, args.force)
}
