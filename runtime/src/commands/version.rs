//! `--version`, in the lines that dockerd and podman look for.

use crate::cli::{RUNC, program};
use crate::error::Result;

/// That of runc whose command line and texts are the model.
const MODEL: &str = "1.5.0";

pub(super) fn run() -> Result<()> {
    let program = program();
    // Called by its own name it says whose command line it has: there are callers that look for that.
    let like = if program == RUNC { "" } else { &format!(", with the command line of {RUNC} version {MODEL}") };
    super::print(&format!(
        "{program} version {VERSION}{like}\ncommit: {COMMIT}\nspec: {}\n",
        super::features::SPEC_VERSION
    ))
}

/// What `scripts/build.sh` was run on; of another build only the version is known.
pub(super) const COMMIT: &str = match option_env!("GANTRY_COMMIT") {
    Some(commit) => commit,
    None => VERSION,
};

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
