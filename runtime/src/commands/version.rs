//! `--version`, in the lines that dockerd and podman look for.

use crate::error::Result;

pub(super) fn run() -> Result<()> {
    let program = crate::cli::program();
    super::print(&format!("{program} version {VERSION}\ncommit: {COMMIT}\nspec: {}\n", super::features::SPEC_VERSION))
}

/// What `scripts/build.sh` was run on; of another build only the version is known.
pub(super) const COMMIT: &str = match option_env!("GANTRY_COMMIT") {
    Some(commit) => commit,
    None => VERSION,
};

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
