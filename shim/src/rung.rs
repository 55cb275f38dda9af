//! Runs the runtime's program, one verb at a time, and reads what it says went wrong.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_proto::exit;
use rung_sys::process::{Pid, Target};
use serde::Deserialize;

use crate::error::Kind;
use crate::options::{LOG, Options};
use crate::reaper::{self, Reaper};
use crate::{Doing, Error, Result, memory_file};

/// Deadline of the commands that run hooks: `create`, `start` and `exec`.
const LONG: Duration = Duration::from_secs(300);
/// Deadline of all others but `checkpoint` and `restore`, which have none: how long criu takes depends on the
/// container's memory.
const SHORT: Duration = Duration::from_secs(60);
/// Bytes of a log or of standard error that are read to find out why a command failed.
const MAX_READ: u64 = 1 << 20;
/// Characters of standard error that become part of an error message.
const MAX_COMPLAINT: usize = 4096;

/// How to run the runtime for one container.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: PathBuf,
    global_flags: Vec<OsString>,
    log: PathBuf,
    bundle: PathBuf,
    reaper: Reaper,
}

/// What a verb's process gets as its standard streams; `None` is the null device.
#[derive(Debug, Default)]
pub struct Ends {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error; `None` keeps complaints for the error message.
    pub stderr: Option<OwnedFd>,
    /// The other end of standard error, which nobody reads before the program has ended: it has its complaints then.
    pub complaints: Option<OwnedFd>,
}

/// A line of the runtime's JSON log.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
    /// What went wrong, as a word for programs. Only `rung` writes it.
    kind: Option<String>,
}

/// The running program of a command. It is killed when this is dropped before the program has ended.
struct Running(Option<Pid>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // It has not been reaped, so the number is still its own.
            let _ = rung_sys::signal::send(pid, nix::libc::SIGKILL);
        }
    }
}

impl Runtime {
    /// The runtime that `options` choose, for the container in `bundle`.
    pub fn new(options: &Options, namespace: &str, bundle: &Path, reaper: Reaper) -> Self {
        let global_flags = options.global_flags(namespace, bundle);
        let (log, bundle) = (bundle.join(LOG), bundle.to_owned());
        Self { program: options.program(), global_flags, log, bundle, reaper }
    }

    /// Runs a verb. Its standard streams are `ends`, dropped here as soon as the program has them.
    ///
    /// # Errors
    /// What the runtime's log says, with the kind it gives.
    pub async fn run<S: AsRef<OsStr>>(&self, arguments: &[S], ends: Ends) -> Result<()> {
        let verb = arguments.first().map(|verb| verb.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        let doing = || format!("run {} {verb}", self.name());
        let complaints = match &ends.stderr {
            None => Some(memory_file::empty(c"stderr").doing(doing)?),
            Some(_) => ends.complaints.map(File::from),
        };
        let log_from = std::fs::metadata(&self.log).map_or(0, |meta| meta.len());
        let mut command = Command::new(&self.program);
        // A program that runs before the runtime itself may look for the bundle's files here. A container whose bundle is
        // gone is still ended.
        if self.bundle.is_dir() {
            command.current_dir(&self.bundle);
        }
        command.args(&self.global_flags).args(arguments);
        // A service manager's, from which the daemon inherited it: the runtime would wait for the container to be ready.
        command.env_remove("NOTIFY_SOCKET");
        command.stdin(ends.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(ends.stdout.map_or_else(Stdio::null, Stdio::from));
        if ends.stderr.is_some() {
            // Standard error is the container's, and a logger program reads it at once: an error there would be taken for the
            // container's own output. The client that asked for the command is told instead.
            command.env("RUNG_LOG_ALONE", "1");
        }
        command.stderr(match (ends.stderr, &complaints) {
            (Some(stderr), _) => Stdio::from(stderr),
            (None, Some(file)) => Stdio::from(file.try_clone().doing(doing)?),
            (None, None) => Stdio::null(),
        });
        let status = self.finish(command, &verb).await?;
        if status == 0 {
            return Ok(());
        }
        // The words that users of any runtime know, and search for.
        Err(self.explain(log_from, complaints, status, &format!("OCI runtime {verb} failed")))
    }

    /// Runs a verb and returns what it writes.
    ///
    /// # Errors
    /// As [`Runtime::run`].
    pub async fn output<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Vec<u8>> {
        let mut file = memory_file::empty(c"stdout")?;
        let ends = Ends { stdout: Some(file.try_clone()?.into()), ..Ends::default() };
        self.run(arguments, ends).await?;
        memory_file::read_all(&mut file)
    }

    /// The program's name for messages.
    pub fn name(&self) -> String {
        self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy().into_owned()
    }

    /// Spawns and waits. The wait is the reaper's, so that nobody else may wait for children.
    async fn finish(&self, mut command: Command, verb: &str) -> Result<u32> {
        let child = command.spawn().map_err(|error| self.not_started(error))?;
        let pid = reaper::number_of(&child)?;
        let exit = self.reaper.child(pid);
        let mut running = Running(Some(Pid::from_raw(pid)));
        // The pipes and files of the command are the program's now; ours would keep its readers waiting.
        drop(command);
        let exited = match verb {
            "checkpoint" | "restore" => exit.await,
            _ => {
                let deadline = if matches!(verb, "create" | "exec" | "start") { LONG } else { SHORT };
                tokio::time::timeout(deadline, exit).await.map_err(|_| {
                    let text = format!("{} {verb}: not done within {deadline:?}", self.name());
                    Error::new(Kind::DeadlineExceeded, text).of_cut_short()
                })?
            }
        };
        running.0 = None;
        exited
            .map(|exited| exited.status)
            .map_err(|_| Error::internal(format!("{} {verb}: its exit was lost", self.name())))
    }

    /// For a program that is not on `PATH` the error has the words and the code that containerd's clients look for.
    fn not_started(&self, error: std::io::Error) -> Error {
        let name = self.program.to_string_lossy();
        if error.kind() == std::io::ErrorKind::NotFound && !name.contains('/') {
            return Error::new(Kind::Unknown, format!("exec: {name:?}: executable file not found in $PATH"));
        }
        Error::from(error).context(format_args!("start {name}"))
    }

    /// The last error in the log since `from`, else what the program wrote, else its exit status.
    fn explain(&self, from: u64, complaints: Option<File>, status: u32, doing: &str) -> Error {
        let read = |mut file: File, from: u64| {
            let mut text = Vec::new();
            // A pipe has no places, and is read as far as that goes without waiting.
            let _ = file.seek(SeekFrom::Start(from));
            let _ = file.take(MAX_READ).read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        };
        let log = File::open(&self.log).map(|file| read(file, from)).unwrap_or_default();
        let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        if let Some(line) = lines.into_iter().find(|line| line.level == "error" && !line.msg.is_empty()) {
            return match line.kind {
                // `rung` itself says what it was doing.
                Some(kind) => failure(&kind, line.msg),
                None => failure("", line.msg).context(doing),
            };
        }
        let complaint = complaints.map(|file| read(file, 0)).unwrap_or_default();
        let complaint = complaint.trim();
        if complaint.is_empty() {
            let silent = Error::new(Kind::Unknown, format!("{doing}: exit status {status}"));
            // Above 128: a signal has ended the program.
            return if status > 128 { silent.of_cut_short() } else { silent };
        }
        let short: String = complaint.chars().take(MAX_COMPLAINT).collect();
        Error::new(Kind::Unknown, short.replace('\n', "; ")).context(doing)
    }
}

/// What a program run by [`run_alone`] left.
#[derive(Debug)]
pub struct Finished {
    /// It exited with zero.
    pub success: bool,
    /// What it wrote.
    pub output: Vec<u8>,
    /// What it complained.
    pub complaints: String,
}

/// Runs a program where there is no reaper: in the one-shot actions of this program.
///
/// # Errors
/// Where it cannot be started or is not done within `deadline`; then it is ended.
pub fn run_alone(mut command: Command, deadline: Duration) -> Result<Finished> {
    let doing = format!("start {}", Path::new(command.get_program()).display());
    let (mut output, mut complaints) = (memory_file::empty(c"stdout")?, memory_file::empty(c"stderr")?);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(complaints.try_clone()?);
    let child = command.spawn().doing(|| doing.clone())?;
    let pid = Pid::from_raw(reaper::number_of(&child)?);
    let pidfd = rung_sys::pidfd::open(pid)?;
    let ended = rung_sys::pidfd::wait_exit(pidfd.as_fd(), deadline)?;
    if !ended {
        rung_sys::pidfd::send_signal(pidfd.as_fd(), nix::libc::SIGKILL)?;
    }
    let exit = rung_sys::process::wait(Target::Pidfd(pidfd.as_fd()), true)?;
    if !ended {
        return Err(Error::new(Kind::DeadlineExceeded, format!("{doing}: not done within {deadline:?}")));
    }
    let success = exit.is_some_and(|(_, exit)| exit.shell_code() == 0);
    let complaints = memory_file::read_all(&mut complaints)?;
    let complaints = String::from_utf8_lossy(&complaints).trim().replace('\n', "; ");
    Ok(Finished { success, output: memory_file::read_all(&mut output)?, complaints })
}

/// An error of one of the kinds of `rung`'s log.
fn failure(kind: &str, message: String) -> Error {
    let code = match kind {
        "not-found" => Kind::NotFound,
        "already-exists" => Kind::AlreadyExists,
        "not-running" | "paused" | "wrong-state" => Kind::FailedPrecondition,
        "invalid" => Kind::InvalidArgument,
        "permission" => Kind::PermissionDenied,
        "unsupported" => Kind::Unimplemented,
        "timeout" => Kind::DeadlineExceeded,
        "internal" => Kind::Internal,
        // containerd's code for whatever a runtime reports, which its clients expect here too.
        "program-not-found" => return Error::new(Kind::Unknown, message).with_exit_code(exit::NOT_FOUND),
        "cannot-execute" => return Error::new(Kind::Unknown, message).with_exit_code(exit::CANNOT_RUN),
        _ => Kind::Unknown,
    };
    Error::new(code, message)
}

/// Arguments of different types in one list.
#[macro_export]
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        vec![$(std::ffi::OsString::from($argument)),*]
    };
}

/// Adds `flag` where `wanted`.
pub fn flag(arguments: &mut Vec<OsString>, wanted: bool, flag: &str) {
    if wanted {
        arguments.push(flag.into());
    }
}
