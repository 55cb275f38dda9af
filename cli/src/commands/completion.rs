//! `gantry completion` and `gantry man`: what shells and man(1) know of us, made from the command line's own definition.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Gantry;
use crate::client::reason;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;

/// `gantry completion`.
#[derive(Debug, clap::Args)]
#[command(after_help = "For bash: gantry completion bash > /usr/share/bash-completion/completions/gantry")]
pub struct Args {
    /// Shell to complete in
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Args {
    pub(super) fn run(self) -> Result<Code> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Gantry::command(), "gantry", &mut script);
        output::bytes(&script)?;
        Ok(Code::SUCCESS)
    }
}

/// `gantry man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Directory to write the pages to, one for each command
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

impl ManArgs {
    pub(super) fn run(self) -> Result<Code> {
        clap_mangen::generate_to(Gantry::command(), &self.directory).map_err(|error| {
            Failure::new(format!("write man pages to {}: {}", self.directory.display(), reason(&error)))
        })?;
        Ok(Code::SUCCESS)
    }
}
