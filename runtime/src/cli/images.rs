//! Flags of the commands that write and read checkpoints.

use std::path::PathBuf;

use clap::Args;

/// What both have in common.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Directory of the images
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub image_path: PathBuf,
    /// Directory of logs and other files of work, if not that of the images
    #[arg(long, value_name = "DIR")]
    pub work_path: Option<PathBuf>,
    /// Allow open connections of TCP
    #[arg(long)]
    pub tcp_established: bool,
    /// Allow connections to unix sockets outside
    #[arg(long)]
    pub ext_unix_sk: bool,
    /// Allow the caller's terminal
    #[arg(long)]
    pub shell_job: bool,
    /// Handle locks of files
    #[arg(long)]
    pub file_locks: bool,
    /// What to do with cgroups: soft, full, strict or ignore
    #[arg(long, value_name = "MODE", default_value = "", hide_default_value = true)]
    pub manage_cgroups_mode: String,
    /// Bring a namespace back without what was in it: network, which is always so
    #[arg(long, value_name = "NAMESPACE")]
    pub empty_ns: Vec<String>,
    /// Drop pages of older images that newer ones have too
    #[arg(long)]
    pub auto_dedup: bool,
    /// Fetch pages of memory when they are touched
    #[arg(long)]
    pub lazy_pages: bool,
}

/// Flags of `checkpoint`.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Flags it shares with `restore`.
    #[command(flatten)]
    pub images: ImageArgs,
    /// Older images to which these add, relative to the directory of the images
    #[arg(long, value_name = "DIR")]
    pub parent_path: Option<String>,
    /// Let the container go on
    #[arg(long)]
    pub leave_running: bool,
    /// Leave connections out that are just being made
    #[arg(long)]
    pub tcp_skip_in_flight: bool,
    /// Give files that have lost their name one again
    #[arg(long)]
    pub link_remap: bool,
    /// Descriptor that gets a zero byte once pages can be asked for
    #[arg(long, value_name = "FD", allow_hyphen_values = true)]
    pub status_fd: Option<i32>,
    /// Where pages are sent to, ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub page_server: Option<String>,
    /// Write memory only, and let the container go on
    #[arg(long)]
    pub pre_dump: bool,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Flags of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Flags it shares with `checkpoint`.
    #[command(flatten)]
    pub images: ImageArgs,
    /// Unix socket that gets the master of the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Directory with config.json and the root file system
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Return once the container runs
    #[arg(short, long)]
    pub detach: bool,
    /// File that gets the number of the first process
    #[arg(long, value_name = "PATH")]
    pub pid_file: Option<PathBuf>,
    /// Do not adopt orphaned processes of the container
    #[arg(long)]
    pub no_subreaper: bool,
    /// Accepted as runc does: criu changes the root by itself
    #[arg(long)]
    pub no_pivot: bool,
    /// Another profile of the security module, TYPE:NAME
    #[arg(long, value_name = "TYPE:NAME")]
    pub lsm_profile: Option<String>,
    /// Another SELinux label of mounts
    #[arg(long, value_name = "LABEL")]
    pub lsm_mount_context: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}
