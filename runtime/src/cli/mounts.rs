//! The arguments of `mounts`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Flags of `mounts`.
#[derive(Debug, Args)]
pub struct MountsArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: MountsVerb,
}

/// What `mounts` does.
#[derive(Debug, Subcommand)]
pub enum MountsVerb {
    /// Add the mounts of a file, a list as in config.json: bind mounts and tmpfs
    Add {
        /// The container
        #[arg(value_name = "CONTAINER-ID")]
        id: String,
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove the mounts at the destinations that a file names
    Remove {
        /// The container
        #[arg(value_name = "CONTAINER-ID")]
        id: String,
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}
