//! `--version`, in the lines that dockerd and podman look for.

use crate::error::Result;

pub(super) fn run() -> Result<()> {
    super::print(&format!("rung version {}\ncommit: {}\nspec: {}\n", VERSION, VERSION, super::features::SPEC_VERSION))
}

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
