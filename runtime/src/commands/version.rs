//! `--version`, in the lines that dockerd and podman look for.

use crate::error::Result;

pub(super) fn run() -> Result<()> {
    let program = crate::cli::program();
    super::print(&format!("{program} version {VERSION}\ncommit: {VERSION}\nspec: {}\n", super::features::SPEC_VERSION))
}

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
