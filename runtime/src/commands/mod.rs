//! One file a command: arguments in, one call, output.

mod checkpoint;
mod completion;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod info;
mod kill;
mod list;
mod mounts;
mod pause;
mod ps;
mod restore;
mod run;
mod spec;
mod start;
mod state;
mod state_json;
mod update;
mod version;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use rung_sys::beneath::lexical;
use rung_sys::regex::Regex;

use crate::cli::{Command, Global};
use crate::container::Settings;
use crate::container::id::ContainerId;
use crate::container::store::Store;
use crate::error::{Doing as _, Error, Result};

/// Carries a command out; the answer is the exit code.
pub fn dispatch(global: &Global, command: Option<Command>) -> Result<u8> {
    if global.version {
        return version::run().map(|()| 0);
    }
    let Some(command) = command else {
        let help = crate::cli::Cli::whole().render_help();
        return print(&help.to_string()).map(|()| 0);
    };
    let settings = settings(global)?;
    match command {
        Command::Checkpoint(args) => checkpoint::run(&settings, &args).map(|()| 0),
        Command::Completion(args) => completion::completion(&args).map(|()| 0),
        Command::Create(args) => create::run(&settings, args).map(|()| 0),
        Command::Delete(args) => delete::run(&settings, &args).map(|()| 0),
        Command::Events(args) => events::run(&settings, &args).map(|()| 0),
        Command::Exec(args) => exec::run(&settings, args),
        Command::Features => features::run().map(|()| 0),
        Command::Info => info::run().map(|()| 0),
        Command::Kill(args) => kill::run(&settings, &args).map(|()| 0),
        Command::List(args) => list::run(&settings, &args, global.root.is_some()).map(|()| 0),
        Command::Man(args) => completion::man(&args).map(|()| 0),
        Command::Mounts(args) => mounts::run(&settings, &args).map(|()| 0),
        Command::Pause(args) => pause::pause(&settings, &args).map(|()| 0),
        Command::Ps(args) => ps::run(&settings, &args).map(|()| 0),
        Command::Restore(args) => restore::run(&settings, *args),
        Command::Resume(args) => pause::resume(&settings, &args).map(|()| 0),
        Command::Run(args) => run::run(&settings, args),
        Command::Spec(args) => spec::run(&args).map(|()| 0),
        Command::Start(args) => start::run(&settings, &args).map(|()| 0),
        Command::State(args) => state::run(&settings, &args).map(|()| 0),
        Command::Update(args) => update::run(&settings, &args).map(|()| 0),
    }
}

fn settings(global: &Global) -> Result<Settings> {
    // Root of a user namespace is an ordinary user of the host.
    let rootless = !nix::unistd::geteuid().is_root() || rung_sys::namespace::in_user_namespace();
    let systemd = match global.cgroup_manager.as_deref() {
        None => global.systemd_cgroup,
        Some("systemd") => true,
        Some("cgroupfs" | "disabled") => false,
        Some(other) => {
            let known = "use cgroupfs, systemd or disabled";
            return Err(Error::invalid(format!("invalid --cgroup-manager value {other:?} ({known})")));
        }
    };
    let root = match &global.root {
        Some(root) => root.clone(),
        None => default_root(rootless)?,
    };
    let root = std::path::absolute(&root).doing(|| format!("--root {}", root.display()))?;
    // As with runc, `..` takes away the word before it.
    let root = Path::new("/").join(lexical(&root));
    if root == Path::new("/") {
        return Err(Error::invalid("Option --root argument should not be set to /"));
    }
    let lenient = match global.rootless.as_str() {
        "auto" | "" => rootless && !(systemd && nix::unistd::geteuid().is_root() && runs_system()),
        other => crate::cli::boolean(other)
            .ok_or_else(|| Error::invalid(format!("invalid --rootless value {other:?} (use true, false or auto)")))?,
    };
    let without_cgroup = global.cgroup_manager.as_deref() == Some("disabled");
    Ok(Settings { store: Store::new(&root), systemd, without_cgroup, rootless: lenient })
}

/// Whether root of a user namespace has the service manager of a whole system in there, as in a system container. A
/// session bus that belongs to an ordinary user of the host says that it has not.
fn runs_system() -> bool {
    !crate::cgroups::session_of_ordinary_user()
}

/// The state directory without `--root`: `$XDG_RUNTIME_DIR/runc` for an ordinary user, `/run/runc` for root. As with
/// runc, root of a user namespace counts as root where `USER` is `root`.
fn default_root(rootless: bool) -> Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let plays_root = nix::unistd::geteuid().is_root() && std::env::var_os("USER").is_some_and(|user| user == "root");
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
    let Some(runtime) = runtime.filter(|_| rootless && !plays_root) else { return Ok(PathBuf::from("/run/runc")) };
    let root = PathBuf::from(runtime).join("runc");
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root)
        .and_then(|()| {
            // The sticky bit keeps cleaners of temporary directories away.
            std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o1700))
        })
        .doing(|| format!("make state directory {}", root.display()))?;
    Ok(root)
}

/// Does something with one container or, as crun does, with each whose name a regular expression matches. A failure
/// does not stop it: the first one is returned, the others are logged.
fn each(settings: &Settings, id: &str, regex: bool, mut act: impl FnMut(&ContainerId) -> Result<()>) -> Result<()> {
    if !regex {
        return act(&ContainerId::parse(id)?);
    }
    let wanted = Regex::new(id).map_err(|_| Error::invalid(format!("--regex: {id:?} is no regular expression")))?;
    let mut outcome = Ok(());
    for name in settings.store.names()?.iter().filter(|name| wanted.matches(name.as_str())) {
        let acted = act(name).doing(|| format!("container {name}"));
        if let (Err(error), Err(_)) = (&acted, &outcome) {
            crate::log::warning(&error.to_string());
        }
        outcome = outcome.and(acted);
    }
    outcome
}

/// Everything a command prints goes through here.
fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).doing(|| "write to stdout")
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::invalid(error.to_string()))
}

/// Opens the log of `--log` where the command line could not be parsed: callers look for the error there. So the flags
/// are searched for by hand.
fn open_log() {
    let arguments: Vec<_> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let value = |flag: &str| {
        let mut found = None;
        for (at, argument) in arguments.iter().enumerate() {
            match argument.strip_prefix(flag) {
                Some("") => found = arguments.get(at + 1).cloned(),
                Some(rest) => found = rest.strip_prefix('=').map(str::to_owned).or(found),
                None => {}
            }
        }
        found
    };
    let format = crate::log::Format::parse(&value("--log-format").unwrap_or_default());
    if let (Some(path), Ok(format)) = (value("--log"), format) {
        // Without the log stderr has it.
        drop(crate::log::open(Some(Path::new(&path)), format, crate::log::Level::Warning));
    }
}

/// The exit code of runc where no command has that name.
const UNKNOWN_COMMAND: u8 = 3;

/// What the argument parser has to say: help and version on stdout with success, anything else as an error of ours.
pub fn usage(error: &clap::Error) -> std::process::ExitCode {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    open_log();
    // A closed stdout is no reason for another error.
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        drop(print(&error.to_string()));
        return std::process::ExitCode::SUCCESS;
    }
    if let (ErrorKind::InvalidSubcommand, Some(name)) = (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
        crate::log::error(&Error::invalid(format!("unknown command: No help topic for '{name}'")));
        return std::process::ExitCode::from(UNKNOWN_COMMAND);
    }
    let text = error.to_string();
    drop(print(&format!("Incorrect Usage.\n\n{text}")));
    // The first paragraph: what is missing stands in lines of its own below what is wrong.
    let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let line = lines.join(" ");
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(flag)) if error.kind() == ErrorKind::UnknownArgument => flag.strip_prefix('-'),
        _ => None,
    };
    // Callers that try a flag look for these words; with one hyphen, as Go's parser says them.
    let unknown = unknown.map(|flag| format!("flag provided but not defined: -{}", flag.trim_start_matches('-')));
    let miscounted = crate::cli::miscounted(error, &std::env::args_os().collect::<Vec<_>>());
    let line = unknown.or(miscounted).unwrap_or_else(|| line.strip_prefix("error: ").unwrap_or(&line).to_owned());
    crate::log::error(&Error::invalid(line));
    std::process::ExitCode::FAILURE
}
