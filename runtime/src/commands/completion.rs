//! `completion` and `man`: what shells and man(1) know of us, made from the command line's own definition.

use clap::CommandFactory as _;

use crate::cli::{Cli, CompletionArgs, ManArgs};
use crate::error::{Doing as _, Result};

pub(super) fn completion(args: &CompletionArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rung", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(args: &ManArgs) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .doing(|| format!("write man pages to {}", args.directory.display()))
}
