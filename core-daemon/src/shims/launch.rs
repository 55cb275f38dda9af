//! Running a shim's program: `start`, `delete` and `-info`.
//!
//! Any shim will do: ours, containerd's, or another that follows the same conventions. The program is found by the
//! runtime's name; standard input carries containerd 2.3's bootstrap parameters, while flags and environment say the same
//! to older ones.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use gantry_proto::containerd::runtime::bootstrap::v1::{BootstrapParams, Extension, LogLevel};
use gantry_proto::containerd::task::v3::DeleteResponse;
use gantry_proto::containerd::types::RuntimeInfo;
use gantry_proto::namespace::Namespace;
use prost::Message as _;
use prost_types::Any;
use tokio::process::Command;

use super::address::Address;
use crate::error::{Doing, Error, Kind, Result};
use crate::id::ContainerId;
use crate::program;

/// What every shim is told of the daemon.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// The API's socket.
    pub grpc_address: String,
    /// The socket for events.
    pub ttrpc_address: String,
    /// The daemon's program, which shims may run as `publish`.
    pub daemon: PathBuf,
    /// The directory that clients install programs into.
    pub opt: PathBuf,
    /// More variables of their environment.
    pub env: Vec<(String, String)>,
    /// Whether shims should log debug messages.
    pub debug: bool,
    /// How long `start` may take.
    pub start_timeout: Duration,
    /// How long `delete` and `-info` may take.
    pub cleanup_timeout: Duration,
    /// Shims that take nothing but runtime options on standard input.
    pub old: Arc<Mutex<HashSet<PathBuf>>>,
}

/// Which shim is run, for which container.
#[derive(Debug, Clone, Copy)]
pub struct Instance<'a> {
    /// The shim's program.
    pub program: &'a Path,
    /// The container's namespace.
    pub namespace: &'a Namespace,
    /// The container.
    pub id: &'a ContainerId,
    /// The container's bundle, in which the program runs.
    pub bundle: &'a Path,
}

/// This project's shim.
const OURS: &str = "containerd-shim-rung-v2";

/// The program of a runtime: an absolute path is its own name, and `io.containerd.NAME.VERSION` is
/// `containerd-shim-NAME-VERSION`, on `PATH`, beside the daemon, or where clients install programs.
///
/// # Errors
/// `InvalidArgument` for a name of another form, `NotFound` with the places where the program was looked for.
pub fn locate(runtime: &str, daemon: &Path, opt: &Path) -> Result<PathBuf> {
    if runtime.starts_with('/') {
        return match Path::new(runtime) {
            path if path.is_file() => Ok(path.to_owned()),
            _ => Err(Error::not_found(format!("runtime {runtime}: no such program"))),
        };
    }
    let name = program_name(runtime)
        .ok_or_else(|| Error::invalid(format!("runtime {runtime:?}: expected io.containerd.NAME.VERSION or a path")))?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = daemon.parent().map(Path::to_owned);
    let mut places =
        std::env::split_paths(&path).filter(|place| place.is_absolute()).chain(beside).chain([opt.join("bin")]);
    places.by_ref().map(|place| place.join(&name)).find(|program| program.is_file()).ok_or_else(|| {
        let path = path.to_string_lossy();
        let (daemon, opt) = (daemon.display(), opt.display());
        Error::not_found(format!(
            "runtime {runtime}: {name} is neither on PATH {path}, beside {daemon} nor in {opt}/bin"
        ))
    })
}

/// The limit of open files that this process was started with.
static OPEN_FILES: OnceLock<(u64, u64)> = OnceLock::new();

/// Lets the daemon open as many files as it may. Shims get the limits that the daemon was started with, because
/// containers inherit theirs.
pub fn raise_open_files() {
    let (number, hard) = match files_limit() {
        Ok((number, limit)) => (number, OPEN_FILES.get_or_init(|| limit).1),
        Err(error) => return tracing::warn!(%error, "limit of open files"),
    };
    if let Err(error) = rung_sys::rlimit::set(0, number, hard, hard) {
        tracing::warn!(%error, "limit of open files");
    }
}

fn files_limit() -> std::io::Result<(u32, (u64, u64))> {
    let number = rung_sys::rlimit::number("RLIMIT_NOFILE").ok_or(std::io::ErrorKind::Unsupported)?;
    Ok((number, rung_sys::rlimit::get(0, number)?))
}

fn lower_open_files(pid: u32) -> std::io::Result<()> {
    let Some((soft, hard)) = OPEN_FILES.get() else { return Ok(()) };
    let (number, _) = files_limit()?;
    Ok(rung_sys::rlimit::set(pid.cast_signed(), number, *soft, *hard)?)
}

/// Whether a program is the shim of this project, which knows the bootstrap parameters.
pub fn is_ours(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == OURS)
}

fn program_name(runtime: &str) -> Option<String> {
    if runtime.contains('/') {
        return None;
    }
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    (!version.is_empty() && !name.is_empty()).then(|| format!("containerd-shim-{name}-{version}"))
}

impl Launcher {
    /// Runs `start` and returns where the shim listens.
    ///
    /// Shims older than containerd 2.3 take the bootstrap parameters on standard input for runtime options, and fail before
    /// they have done anything; such a program is asked again in the old way, and remembered.
    ///
    /// # Errors
    /// What the program printed when it fails or answers nonsense, `DeadlineExceeded` when it does not answer.
    pub async fn start(&self, instance: Instance<'_>, options: Option<&Any>) -> Result<Address> {
        let old = || options.map(prost::Message::encode_to_vec).unwrap_or_default();
        if self.lock_old().contains(instance.program) {
            return self.start_with(instance, &old()).await;
        }
        match self.start_with(instance, &self.parameters(instance, options)).await {
            Err(error) if error.kind() == Kind::Unknown && !is_ours(instance.program) => {
                let address = self.start_with(instance, &old()).await?;
                tracing::debug!(program = %instance.program.display(), %error, "shim of an old kind");
                self.lock_old().insert(instance.program.to_owned());
                Ok(address)
            }
            answer => answer,
        }
    }

    async fn start_with(&self, instance: Instance<'_>, input: &[u8]) -> Result<Address> {
        let mut command = self.command(instance);
        command.arg("start");
        let doing = || format!("{} start", instance.program.display());
        let output = run(command, input, self.start_timeout).await.doing(doing)?;
        Address::parse(&output).doing(doing)
    }

    fn lock_old(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.old.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `delete`, which cleans up after a shim that is gone, and returns how the container ended.
    ///
    /// # Errors
    /// As [`Launcher::start`].
    pub async fn delete(&self, instance: Instance<'_>) -> Result<DeleteResponse> {
        let mut command = self.command(instance);
        command.arg("-bundle").arg(instance.bundle).arg("delete");
        let doing = || format!("{} delete", instance.program.display());
        let output = run(command, &[], self.cleanup_timeout).await.doing(doing)?;
        DeleteResponse::decode(output.as_slice())
            .map_err(|error| Error::new(Kind::Unknown, format!("answer: {error}")))
            .doing(doing)
    }

    /// Asks the program what it is and what its runtime can do.
    ///
    /// # Errors
    /// As [`Launcher::start`].
    pub async fn info(&self, program: &Path, options: Option<&Any>) -> Result<RuntimeInfo> {
        let mut command = Command::new(program);
        command.arg("-info");
        let input = options.map(prost::Message::encode_to_vec).unwrap_or_default();
        let doing = || format!("{} -info", program.display());
        let output = run(command, &input, self.cleanup_timeout).await.doing(doing)?;
        RuntimeInfo::decode(output.as_slice())
            .map_err(|error| Error::new(Kind::Unknown, format!("answer: {error}")))
            .doing(doing)
    }

    fn command(&self, instance: Instance<'_>) -> Command {
        let mut command = Command::new(instance.program);
        command
            .current_dir(instance.bundle)
            .args(["-namespace", instance.namespace.as_str(), "-address", &self.grpc_address])
            .arg("-publish-binary")
            .arg(&self.daemon)
            .args(["-id", instance.id.as_str()])
            // As containerd sets them: the threads of a shim written in Go, and the newest form of an answer for shims
            // that do not know the bootstrap parameters.
            .env("GOMAXPROCS", "2")
            .env("MAX_SHIM_VERSION", "2")
            .env("TTRPC_ADDRESS", &self.ttrpc_address)
            .env("GRPC_ADDRESS", &self.grpc_address)
            .env("NAMESPACE", instance.namespace.as_str())
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if self.debug {
            command.arg("-debug");
        }
        command
    }

    fn parameters(&self, instance: Instance<'_>, options: Option<&Any>) -> Vec<u8> {
        BootstrapParams {
            instance_id: instance.id.to_string(),
            namespace: instance.namespace.to_string(),
            log_level: (if self.debug { LogLevel::Debug } else { LogLevel::Info }).into(),
            containerd_version: crate::CONTAINERD_VERSION.to_owned(),
            containerd_ttrpc_address: self.ttrpc_address.clone(),
            containerd_grpc_address: self.grpc_address.clone(),
            containerd_binary: self.daemon.to_string_lossy().into_owned(),
            extensions: options.map(|options| Extension { value: Some(options.clone()) }).into_iter().collect(),
            socket_dir: None,
        }
        .encode_to_vec()
    }
}

/// Runs a program with `input` and returns its output; what it wrote to standard error becomes the error.
async fn run(command: Command, input: &[u8], timeout: Duration) -> Result<Vec<u8>> {
    // The program waits for its input, so it has not started anything yet that would inherit the daemon's limit.
    let begun = |id| {
        if let Err(error) = lower_open_files(id) {
            tracing::warn!(%error, "limit of a shim's open files");
        }
    };
    let answer = program::ask(command, input, timeout, begun).await?;
    if answer.status.success() {
        return Ok(answer.output);
    }
    let message = match answer.said() {
        said if said.is_empty() => format!("failed with {}", answer.status),
        said => format!("{said} ({})", answer.status),
    };
    Err(Error::new(Kind::Unknown, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_names_stand_for_programs() {
        assert_eq!(program_name("io.containerd.runc.v2").as_deref(), Some("containerd-shim-runc-v2"));
        assert_eq!(program_name("rung.v2").as_deref(), Some("containerd-shim-rung-v2"));
        for name in ["runc", "", "io.containerd.", "../x.v2", "a/b.v2"] {
            assert_eq!(program_name(name), None, "{name}");
        }
    }

    #[tokio::test]
    async fn shims_have_the_limit_of_files_that_the_daemon_was_started_with() {
        let (number, (soft, hard)) = files_limit().expect("limit");
        // Lower than it may be, in any case.
        let soft = soft.min(hard / 2);
        rung_sys::rlimit::set(0, number, soft, hard).expect("lower");
        raise_open_files();
        assert_eq!(files_limit().expect("raised").1, (hard, hard));
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read line; ulimit -Sn"]);
        let output = run(command, b"\n", Duration::from_secs(10)).await.expect("sh");
        assert_eq!(String::from_utf8_lossy(&output).trim(), soft.to_string());
    }

    #[tokio::test]
    async fn a_failing_program_is_quoted() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat; echo 'no cgroup' >&2; exit 3"]);
        let error = run(command, b"", Duration::from_secs(10)).await.expect_err("exit 3");
        assert!(error.to_string().contains("no cgroup") && error.to_string().contains('3'), "{error}");
    }
}
