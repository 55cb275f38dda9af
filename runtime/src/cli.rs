//! The command line, word for word runc's, so that every caller of runc can call this.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches, Parser, Subcommand};

mod flags;
mod images;
mod mounts;

pub use flags::{Given, boolean};
pub use images::{CheckpointArgs, ImageArgs, RestoreArgs};
pub use mounts::{MountsArgs, MountsVerb};

/// Open Container Initiative runtime: runs containers from bundles
#[derive(Debug, Parser)]
#[command(name = "rung", disable_version_flag = true, disable_help_subcommand = true, args_override_self = true)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags that stand before the command.
#[derive(Debug, Args)]
pub struct Global {
    /// Write debug messages to the log
    #[arg(long)]
    pub debug: bool,
    /// Write the log to this file instead of stderr, or to journald:NAME or syslog:NAME
    #[arg(long, value_name = "PATH")]
    pub log: Option<PathBuf>,
    /// Write the log to systemd's journal; youki's way to say --log journald:
    #[arg(long, conflicts_with = "log")]
    pub systemd_log: bool,
    /// Format of the log: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: String,
    /// Directory of the containers' state (below /run, not kept over a reboot)
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Let systemd make the cgroups; cgroupsPath is then slice:prefix:name
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Who makes the cgroups: cgroupfs, systemd (crun's way to say --systemd-cgroup), or disabled: nobody
    #[arg(long, value_name = "MANAGER")]
    pub cgroup_manager: Option<String>,
    /// What is logged: debug, warning or error; warning unless --debug says more
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Ignore permission errors of cgroups: true, false or auto
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub rootless: String,
    /// Print the version
    #[arg(short = 'v', long)]
    pub version: bool,
    /// Ignored, as in runc: the criu program is found in PATH
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the processes of a container to disk, with criu
    Checkpoint(Box<CheckpointArgs>),
    /// Print the script that completes command lines in a shell
    Completion(CompletionArgs),
    /// Create a container; `start` lets its program run
    Create(CreateArgs),
    /// Delete a container that has stopped, and what belongs to it
    Delete(DeleteArgs),
    /// Print counters and out-of-memory events of a container as JSON lines
    Events(EventsArgs),
    /// Run another process in a running container
    Exec(ExecArgs),
    /// Print what this build can do
    Features,
    /// Print what this build and this host are, for reports of faults
    Info,
    /// Send a signal to a container (default: SIGTERM)
    Kill(KillArgs),
    /// List the containers below --root
    List(ListArgs),
    /// Write man pages, one for each command
    Man(ManArgs),
    /// Add mounts to a container that runs, or remove them, as crun does
    Mounts(MountsArgs),
    /// Freeze the processes of a container
    Pause(OneContainer),
    /// List the processes of a container
    Ps(PsArgs),
    /// Let the processes of a paused container go on
    Resume(OneContainer),
    /// Bring a container back from disk, with criu
    Restore(Box<RestoreArgs>),
    /// Create and start a container
    Run(RunArgs),
    /// Write a new config.json
    Spec(SpecArgs),
    /// Start the program of a created container
    Start(OneContainer),
    /// Print the state of a container
    State(OneContainer),
    /// Change the limits of a container
    Update(Box<UpdateArgs>),
}

impl Cli {
    /// Reads a command line.
    ///
    /// Describing all commands to the parser costs more than the parsing, and a start uses one. So the commands of a
    /// container's life are first read with a description of that command alone; whatever that does not understand,
    /// help and mistakes included, is read again with the whole description.
    pub fn read(arguments: &[OsString]) -> Result<Self, clap::Error> {
        let settled = flags::settle(arguments);
        let arguments = settled.as_deref().unwrap_or(arguments);
        let known = arguments.iter().skip(1).find_map(|argument| match argument.to_str()? {
            "create" => Some(one::<CreateArgs>("create", arguments, Command::Create)),
            "delete" => Some(one::<DeleteArgs>("delete", arguments, Command::Delete)),
            "exec" => Some(one::<ExecArgs>("exec", arguments, Command::Exec)),
            "kill" => Some(one::<KillArgs>("kill", arguments, Command::Kill)),
            "run" => Some(one::<RunArgs>("run", arguments, Command::Run)),
            "start" => Some(one::<OneContainer>("start", arguments, Command::Start)),
            "state" => Some(one::<OneContainer>("state", arguments, Command::State)),
            "--version" | "-v" => Some(none(arguments)),
            _ => None,
        });
        match known {
            Some(Ok(cli)) => Ok(cli),
            _ => Self::from_arg_matches(&Self::whole().try_get_matches_from(arguments)?),
        }
    }

    /// The whole description, with help laid out as runc's.
    pub fn whole() -> clap::Command {
        let page = |title: &str| {
            format!("NAME:\n   {title} - {{about}}\n\nUSAGE:\n   {{usage}}\n\n{{all-args}}{{after-help}}")
        };
        let program = program();
        let title = if program == RUNC { program.clone() } else { format!("{program}, like {RUNC}") };
        let described = Self::command().bin_name(program.clone()).help_template(page(&title));
        described.mut_subcommands(|command| {
            let title = format!("{program} {}", command.get_name());
            command.help_template(page(&title))
        })
    }
}

/// What is wrong with a number of arguments, in the words that callers of runc look for. `None` where something else is
/// wrong.
pub fn miscounted(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let about = match error.get(ContextKind::InvalidArg)? {
        ContextValue::String(one) => vec![one.clone()],
        ContextValue::Strings(many) => many.clone(),
        _ => return None,
    };
    let counts = matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::UnknownArgument);
    if !counts || about.iter().any(|argument| argument.starts_with('-')) {
        return None;
    }
    let whole = Cli::command();
    let command = arguments.iter().skip(1).find_map(|argument| whole.find_subcommand(argument))?;
    let (mut least, mut most) = (0, Some(0_usize));
    for positional in command.get_positionals() {
        least += usize::from(positional.is_required_set());
        let many = positional.get_num_args().is_some_and(|range| range.max_values() > 1)
            || matches!(positional.get_action(), clap::ArgAction::Append);
        most = most.filter(|_| !many).map(|most| most + 1);
    }
    let (how, number) = match most {
        Some(most) if most == least => ("exactly", most),
        Some(most) if error.kind() == ErrorKind::UnknownArgument => ("a maximum of", most),
        _ => ("a minimum of", least),
    };
    Some(format!("{}: {:?} requires {how} {number} argument(s)", program(), command.get_name()))
}

/// The program whose command line this is.
pub const RUNC: &str = "runc";

/// The name this program was called by: installed as `runc`, it is runc.
pub fn program() -> String {
    let name = std::env::args_os().next().map(PathBuf::from);
    let name = name.as_ref().and_then(|path| path.file_name()).and_then(|name| name.to_str());
    name.unwrap_or("rung").to_owned()
}

/// Without a command.
fn none(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let program = clap::Command::new("rung").disable_help_flag(true).disable_version_flag(true);
    let matches = Global::augment_args(program).try_get_matches_from(arguments)?;
    Ok(Cli { global: Global::from_arg_matches(&matches)?, command: None })
}

fn one<A: Args + FromArgMatches>(
    name: &'static str,
    arguments: &[OsString],
    wrap: fn(A) -> Command,
) -> Result<Cli, clap::Error> {
    let command = A::augment_args(clap::Command::new(name).disable_help_flag(true));
    let program = clap::Command::new("rung").disable_help_flag(true).disable_version_flag(true);
    let matches = Global::augment_args(program).subcommand(command).try_get_matches_from(arguments)?;
    let inner = matches.subcommand_matches(name).map(A::from_arg_matches).transpose()?;
    Ok(Cli { global: Global::from_arg_matches(&matches)?, command: inner.map(wrap) })
}

/// Flags of `completion`.
#[derive(Debug, Args)]
#[command(after_help = "For bash: rung completion bash > /usr/share/bash-completion/completions/rung")]
pub struct CompletionArgs {
    /// Shell to complete in
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// Flags of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Directory to write the pages to, one for each command
    #[arg(value_name = "DIRECTORY")]
    pub directory: PathBuf,
}

/// A command that takes a container and nothing else.
#[derive(Debug, Args)]
pub struct OneContainer {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Flags of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Directory with config.json and the root file system
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub bundle: PathBuf,
    /// Another configuration than the bundle's config.json
    #[arg(short = 'f', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Unix socket that gets the master of the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a descriptor of the first process
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// File that gets the number of the first process
    #[arg(long, value_name = "PATH")]
    pub pid_file: Option<PathBuf>,
    /// Change the root without pivot_root, for roots in an initial ramdisk
    #[arg(long)]
    pub no_pivot: bool,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Pass this many descriptors after the first three
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Flags it shares with `create`.
    #[command(flatten)]
    pub create: CreateArgs,
    /// Return once the program runs
    #[arg(short, long)]
    pub detach: bool,
    /// Keep the container's state when it has ended
    #[arg(long)]
    pub keep: bool,
    /// Do not adopt orphaned processes of the container
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Flags of `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Kill it if it runs; succeed if it is gone
    #[arg(short, long)]
    pub force: bool,
    /// CONTAINER-ID is a regular expression for the names of containers
    #[arg(short, long)]
    pub regex: bool,
}

/// Flags of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Signal every process of the container
    #[arg(short, long, hide = true)]
    pub all: bool,
    /// CONTAINER-ID is a regular expression for the names of containers
    #[arg(short, long)]
    pub regex: bool,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Name or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM", allow_hyphen_values = true)]
    pub signal: String,
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// Print names only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Flags of `spec`.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Where to write it
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// For a container made without root
    #[arg(long)]
    pub rootless: bool,
}

/// Flags of `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Unix socket that gets the master of the terminal
    #[arg(long, value_name = "PATH")]
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a descriptor of the process
    #[arg(long, value_name = "PATH")]
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Environment variable, NAME=VALUE
    #[arg(short, long, value_name = "VARIABLE")]
    pub env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// Supplementary group
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// File with the process as JSON
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Return once the process runs
    #[arg(short, long)]
    pub detach: bool,
    /// File that gets the number of the process
    #[arg(long, value_name = "PATH")]
    pub pid_file: Option<PathBuf>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// Never gain privileges
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub no_new_privs: Option<bool>,
    /// Capability to add
    #[arg(short, long, value_name = "CAPABILITY")]
    pub cap: Vec<String>,
    /// Pass this many descriptors after the first three
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Cgroup below the container's, [CONTROLLER,…:]PATH
    #[arg(long, value_name = "CGROUP")]
    pub cgroup: Vec<String>,
    /// Do it in a paused container too
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Program and arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Flags of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: String,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
    /// Options of ps(1)
    #[arg(value_name = "PS-OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

/// Flags of `update`.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// File with the limits as JSON, or - for stdin; all other flags are ignored then
    #[arg(short, long, value_name = "FILE")]
    pub resources: Option<PathBuf>,
    /// Weight of block device access, 10 to 1000
    #[arg(long, allow_hyphen_values = true, value_parser = flags::given::<u16>)]
    pub blkio_weight: Option<Given<u16>>,
    /// Period of the processor quota in microseconds
    #[arg(long, value_parser = flags::given::<u64>)]
    pub cpu_period: Option<Given<u64>>,
    /// Processor time a period in microseconds
    #[arg(long, allow_hyphen_values = true, value_parser = flags::given::<i64>)]
    pub cpu_quota: Option<Given<i64>>,
    /// Processor time that may be saved up, in microseconds
    #[arg(long, value_parser = flags::given::<u64>)]
    pub cpu_burst: Option<Given<u64>>,
    /// Weight of processor time
    #[arg(long, value_parser = flags::given::<u64>)]
    pub cpu_share: Option<Given<u64>>,
    /// Period of realtime scheduling in microseconds
    #[arg(long, value_parser = flags::given::<u64>)]
    pub cpu_rt_period: Option<Given<u64>>,
    /// Realtime processor time a period in microseconds
    #[arg(long, allow_hyphen_values = true, value_parser = flags::given::<i64>)]
    pub cpu_rt_runtime: Option<Given<i64>>,
    /// Processors to use, as 0-3,7
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use, as 0-3,7
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// 1 runs the container only when nothing else wants the processor
    #[arg(long, allow_hyphen_values = true, value_parser = flags::given::<i64>)]
    pub cpu_idle: Option<Given<i64>>,
    /// Obsolete, ignored by kernels
    #[arg(long, hide = true)]
    pub kernel_memory: Option<String>,
    /// Obsolete, ignored by kernels
    #[arg(long, hide = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Memory limit, as 512m; -1 for none
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Memory to keep under pressure
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Number of processes; -1 for no limit
    #[arg(long, allow_hyphen_values = true, value_parser = flags::given::<i64>)]
    pub pids_limit: Option<Given<i64>>,
    /// Level 3 cache schema of Intel RDT
    #[arg(long)]
    pub l3_cache_schema: Option<String>,
    /// Memory bandwidth schema of Intel RDT
    #[arg(long)]
    pub mem_bw_schema: Option<String>,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

/// Flags of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Time between two sets of counters
    #[arg(long, value_name = "DURATION", default_value = "5s", allow_hyphen_values = true)]
    pub interval: String,
    /// Print the counters once
    #[arg(long)]
    pub stats: bool,
    /// The container
    #[arg(value_name = "CONTAINER-ID")]
    pub id: String,
}

#[cfg(test)]
mod tests;
