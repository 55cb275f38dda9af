//! `delete`.

use crate::cli::DeleteArgs;
use crate::container::{Settings, delete};
use crate::error::Result;

pub(super) fn run(settings: &Settings, args: &DeleteArgs) -> Result<()> {
    super::each(settings, &args.id, args.regex, |id| delete::delete(&settings.store, id, args.force))
}
