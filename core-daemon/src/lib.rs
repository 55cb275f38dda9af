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
use config::{Config, Log, LogFormat};
use error::{Doing as _, Error, Result};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The version of containerd whose API this is; clients choose what they ask by it.
pub const CONTAINERD_VERSION: &str = "v2.3.0";

/// Does what the command line asks.
pub fn run(args: Args) -> ExitCode {
    // These serve the daemon or a runtime, and the daemon's configuration is none of their business.
    let served = match &args.command {
        Some(Command::HoldNamespaces { flags }) => Some(net::namespaces::hold(*flags)),
        Some(Command::LookAtPath { path }) => Some(cri::host::look_at_path(path)),
        Some(Command::Init { words }) => return init::run(words),
        Some(Command::VerifyMetadata { path }) => return app::verify_metadata(path),
        Some(Command::OciHook { words }) => Some(hook::run(words)),
        _ => None,
    };
    if let Some(served) = served {
        return said(served);
    }
    let config = Config::load(&args.daemon);
    let log = config.as_ref().map_or_else(|_| Log::default(), |config| config.log.clone());
    let note = |config: &Config| config.notes.iter().for_each(|note| tracing::warn!("configuration: {note}"));
    if let Err(error) = start_log(&log).and(config).inspect(note).and_then(|config| dispatch(config, args.command)) {
        tracing::error!("gantryd: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// What the daemon reads of a process that serves it.
fn said(served: Result<()>) -> ExitCode {
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(config: Config, command: Option<Command>) -> Result<()> {
    match command {
        // What is not here was served above.
        None
        | Some(
            Command::HoldNamespaces { .. }
            | Command::LookAtPath { .. }
            | Command::Init { .. }
            | Command::VerifyMetadata { .. }
            | Command::OciHook { .. },
        ) => runtime()?.block_on(app::run(config)),
        Some(Command::Publish { topic, namespace }) => {
            runtime()?.block_on(ttrpc::publish(&config.grpc.address, &namespace, topic))
        }
        Some(Command::Config { which }) => {
            let config = if which == ConfigCommand::Default { Config::default() } else { config };
            let text = toml::to_string(&config).map_err(|error| Error::internal(format!("configuration: {error}")))?;
            std::io::stdout().write_all(text.as_bytes()).doing(|| "print configuration")
        }
    }
}

/// Few threads: the daemon mostly passes messages on, and every thread costs an idle daemon memory.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let cpus = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    // As many as run at once are enough; what lies unused in the heaps of others is nobody's.
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

fn start_log(log: &Log) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.level)
        .map_err(|error| Error::invalid(format!("log level {:?}: {error}", log.level)))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    started.map_err(|error| Error::internal(format!("start log: {error}")))
}
