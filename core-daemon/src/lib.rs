//! gantryd: content, snapshots, images, containers and tasks behind containerd's gRPC API and Gantry's own.
//!
//! Layers, lowest first; a module uses only lower ones (ARCHITECTURE.md has the table):
//! 0 `error`, `context`, `labels`, `id`, `signals`, `filter`, `config`, `blocking`, `failpoint`,
//!   `program`, `init` ·
//! 1 `metadata`, `events`, `erofs` ·
//! 2 `content`, `snapshots`, `mounts`, `diff`, `registry` ·
//! 3 `records`, `image`, `tasks`, `shims`, `net`, `gc`, `storage` ·
//! 4 `grpc`, `engine`, `cri`, `ttrpc`, `observe` · 5 `app`, `serve`, `args`, `hook`.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod app;
pub mod args;
pub mod blocking;
pub mod config;
pub mod content;
pub mod context;
pub mod cri;
pub mod diff;
pub mod engine;
pub mod erofs;
pub mod error;
pub mod events;
pub mod failpoint;
pub mod filter;
pub mod gc;
pub mod grpc;
pub mod hook;
pub mod id;
pub mod image;
pub mod init;
pub mod labels;
pub mod metadata;
pub mod mounts;
pub mod net;
pub mod observe;
pub mod oom_score;
pub mod program;
pub mod records;
pub mod registry;
pub mod serve;
pub mod shims;
pub mod signals;
pub mod snapshots;
pub mod storage;
pub mod tasks;
pub mod ttrpc;

use std::io::Write as _;
use std::process::ExitCode;

use args::{Args, Command, ConfigCommand};
use config::{Config, Log, LogFormat, Overrides};
use error::{Doing as _, Error, Result};
use tracing_subscriber::EnvFilter;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version of containerd whose API this is; clients choose what they ask by it.
pub const CONTAINERD_VERSION: &str = "v2.3.0";

/// Does what the command line asks.
pub fn run(args: Args) -> ExitCode {
    let Args { daemon, command } = args;
    match command {
        None => {
            keep_others_out();
            let flags = daemon.clone();
            configured(&daemon, |config, level| runtime()?.block_on(app::run(config, flags, level)).map_err(wants_root))
        }
        Some(Command::Publish { topic, namespace }) => configured(&daemon, |config, _| {
            runtime()?.block_on(ttrpc::publish(&config.grpc.address, &namespace, topic))
        }),
        Some(Command::Config { which }) => configured(&daemon, |config, _| match which {
            ConfigCommand::Default => print(&Config::default()),
            ConfigCommand::Dump => print(&config),
        }),
        // The daemon, a runtime or a container runs these. They read no configuration.
        Some(Command::HoldNamespaces { flags }) => helper(net::namespaces::hold(flags)),
        Some(Command::LookAtPath { path, prefix, existing }) => {
            helper(cri::host::look_at_path(&path, &prefix.unwrap_or_default(), !existing))
        }
        Some(Command::OciHook { words }) => helper(hook::run(&words)),
        Some(Command::VerifyMetadata { path }) => app::verify_metadata(&path),
        Some(Command::Init { words }) => init::run(&words),
    }
}

/// Whatever started the daemon, what it makes is nobody else's to write: a socket would be open to all until its mode is
/// set. Shims and runtimes inherit this.
fn keep_others_out() {
    use nix::sys::stat::{Mode, umask};
    let given = umask(Mode::from_bits_truncate(0o077));
    umask(given | Mode::S_IWGRP | Mode::S_IWOTH);
}

/// Has something else logged from now on.
pub type SetLevel = Box<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>;

/// Runs `act` with the configuration, after the log has been started as that says. An error is logged.
fn configured(overrides: &Overrides, act: impl FnOnce(Config, SetLevel) -> Result<()>) -> ExitCode {
    let config = Config::load(overrides);
    let log = config.as_ref().map_or_else(|_| Log::default(), |config| config.log.clone());
    let note = |config: &Config| config.notes.iter().for_each(|note| tracing::warn!("configuration: {note}"));
    // A log that cannot be as it should be still has to say so.
    let started = start_log(&log).inspect_err(|_| drop(start_log(&Log::default())));
    let started = started.and_then(|level| Ok((config.inspect(note)?, level)));
    match started.and_then(|(config, level)| act(config, level)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("gantryd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What an ordinary user lacks is root's rights, whatever it was that was refused.
fn wants_root(error: Error) -> Error {
    if error.kind() != error::Kind::PermissionDenied || nix::unistd::geteuid().is_root() {
        return error;
    }
    Error::new(error.kind(), format!("{error}; gantryd must be started as root"))
}

/// The end of a command without a log: whoever ran it reads the error from standard error.
fn helper(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn print(config: &Config) -> Result<()> {
    std::io::stdout().write_all(config.to_commented_toml()?.as_bytes()).doing(|| "print configuration")
}

/// The threads of the daemon. They are few: it mostly passes messages on, and each thread takes memory even while idle.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let cpus = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    // One heap for each thread that runs at once. More would only hold unused memory.
    rung_sys::footprint::limit_heaps(u8::try_from(cpus).unwrap_or(2));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cpus)
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .thread_name("gantryd")
        .enable_all()
        .build()
        .doing(|| "start threads")
}

fn start_log(log: &Log) -> Result<SetLevel> {
    let filter = filter(&log.level).doing(|| format!("log level {:?}", log.level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // The formats are of different types, as are the handles by which their filters are changed.
    macro_rules! start {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let set: SetLevel = Box::new(move |filter| {
                handle.reload(filter).map_err(|error| Error::internal(format!("change the log: {error}")))
            });
            (builder.try_init(), set)
        }};
    }
    let (started, set) = match log.format {
        LogFormat::Text => start!(builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))),
        LogFormat::Json => start!(builder.json()),
    };
    started.map(|()| set).map_err(|error| Error::internal(format!("start log: {error}")))
}

/// What is logged. A word alone would be a part of the program, of which everything were logged and of all others nothing:
/// it is far more likely a level with a typo.
fn filter(level: &str) -> Result<EnvFilter> {
    let parts = level.split(',').map(str::trim).filter(|part| !part.is_empty() && !part.contains(['=', '[']));
    for part in parts {
        if part.parse::<tracing_subscriber::filter::LevelFilter>().is_err() {
            let levels = "error, warn, info, debug, trace or off, or a part's such as gantryd::tasks=debug";
            return Err(Error::invalid(format!("{part:?} is no level; write {levels}")));
        }
    }
    EnvFilter::try_new(level).map_err(|error| Error::invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_with_a_typo_is_no_level() {
        for good in ["info", "off", "warn,gantryd::tasks=debug", "gantryd[call]=debug", ""] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["inof", "warn, gantryd", "gantryd=inof"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
