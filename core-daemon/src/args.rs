//! The command line of gantryd.

use clap::{Parser, Subcommand};

use crate::config::Overrides;

/// The Gantry container daemon: containerd's API and Gantry's own on one socket.
#[derive(Debug, Parser)]
#[command(name = "gantryd", version = crate::VERSION, about)]
pub struct Args {
    /// Flags over the configuration file.
    #[command(flatten)]
    pub daemon: Overrides,
    /// Without one, the daemon runs.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What gantryd does besides being the daemon.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Publish an event whose payload, an encoded google.protobuf.Any, is on standard input
    Publish {
        /// Topic, such as /tasks/exit
        #[arg(long)]
        topic: String,
        /// Namespace of the event
        #[arg(long, short)]
        namespace: String,
    },
    /// Run a program as a hook of an OCI runtime: {{id}}, {{pid}}, {{status}}, {{bundle}}, {{rootfs}} and
    /// {{annotation "NAME"}} in its words and its environment stand for what the container's state on standard input says
    OciHook {
        /// Program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run a command as the first process of a container does: hand signals on to it, and collect what others leave
    #[command(name = crate::init::VERB, hide = true)]
    Init {
        /// Program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<std::ffi::OsString>,
    },
    /// Make the namespaces that the flags name and keep them until the input ends; the daemon runs this for pods
    #[command(name = crate::net::namespaces::HOLD, hide = true)]
    HoldNamespaces {
        /// Flags of the kernel
        flags: u64,
    },
    /// Print where a path leads; the daemon runs this where the path may not answer
    #[command(name = crate::cri::host::LOOK, hide = true)]
    LookAtPath {
        /// Path
        path: std::path::PathBuf,
        /// Directory below which it is
        #[arg(long)]
        prefix: Option<std::path::PathBuf>,
        /// Make nothing where there is nothing
        #[arg(long)]
        existing: bool,
    },
    /// Read all of the metadata and say by the exit code how it is; the daemon runs this before it opens it
    #[command(name = crate::metadata::VERIFY, hide = true)]
    VerifyMetadata {
        /// Path
        path: std::path::PathBuf,
    },
    /// Print the configuration
    Config {
        /// Which configuration
        #[command(subcommand)]
        which: ConfigCommand,
    },
}

/// Which configuration to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// The built-in defaults
    Default,
    /// What the daemon would run with: file and flags over the defaults
    #[command(visible_alias = "migrate")]
    Dump,
}
