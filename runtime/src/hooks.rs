//! Hooks: programs of the configuration, run with the container's state on stdin.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use oci_spec::runtime::Hook;
use rung_sys::pidfd;
use rung_sys::poll::{self, Interest};
use rung_sys::process::{Exit, Pid, Target};
use rung_sys::spawn;
use serde::Serialize;

use crate::error::{Doing as _, Error, Kind, Result};
use crate::log;

/// What hooks are told about the container.
#[derive(Debug, Clone)]
pub struct HookState {
    /// The specification version of the bundle.
    pub version: String,
    /// The container's name.
    pub id: String,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// Annotations of the configuration.
    pub annotations: BTreeMap<String, String>,
    /// Files that get what hooks print instead of the runtime: stdout, stderr.
    pub output: [Option<Arc<OwnedFd>>; 2],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    oci_version: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    status: &'a str,
    bundle: &'a PathBuf,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// Opens the files that annotations name for the output of hooks. This is done early, because some hooks run in the
/// container, where those paths do not exist.
pub fn open_output(paths: &[Option<PathBuf>; 2]) -> Result<[Option<Arc<OwnedFd>>; 2]> {
    let open = |path: &PathBuf| {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.map(|file| Arc::new(file.into())).doing(|| format!("open {} for the output of hooks", path.display()))
    };
    let [out, err] = paths;
    Ok([out.as_ref().map(open).transpose()?, err.as_ref().map(open).transpose()?])
}

impl HookState {
    /// The descriptors of [`Self::output`].
    pub fn outputs(&self) -> Vec<BorrowedFd<'_>> {
        self.output.iter().flatten().map(|file| file.as_fd()).collect()
    }

    /// The state document, as hooks and seccomp agents read it.
    pub fn to_json(&self, status: &str, pid: Option<i32>) -> Result<Vec<u8>> {
        let message = Message {
            oci_version: &self.version,
            id: &self.id,
            pid,
            status,
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        serde_json::to_vec(&message).map_err(|error| Error::new(Kind::Internal, error.to_string()))
    }
}

/// At most this much of a hook's output is kept for the error text.
const MAX_OUTPUT: usize = 16 * 1024;

/// Runs hooks of the runtime's side in order; the first failure ends it.
pub fn run(name: &str, hooks: &[Hook], state: &HookState, status: &str, pid: Option<i32>) -> Result<()> {
    run_list(name, hooks, state, status, pid, Place::Outside(&state.bundle))
}

/// Runs all hooks of a container that is gone, whatever one of them says; failures are only warned of.
pub fn run_last(hooks: Option<&[Hook]>, state: &HookState) -> Result<()> {
    let hooks = hooks.unwrap_or_default();
    if hooks.is_empty() {
        return Ok(());
    }
    let message = state.to_json("stopped", None)?;
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(error) = run_one(hook, &message, Place::Outside(&state.bundle), &state.output) {
            log::warning(&error.while_doing(numbered("poststop", index)).to_string());
        }
    }
    Ok(())
}

fn numbered(name: &str, index: usize) -> String {
    format!("error running {name} hook #{index}")
}

/// Runs hooks inside the container's namespaces, where the process number is another one. A hook without an
/// environment of its own gets `env`.
pub fn run_inside(name: &str, hooks: &[Hook], state: &HookState, status: &str, env: Option<&[String]>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    run_list(name, hooks, state, status, Some(Pid::this().as_raw()), Place::Inside(env.unwrap_or_default()))
}

fn run_list(
    name: &str,
    hooks: &[Hook],
    state: &HookState,
    status: &str,
    pid: Option<i32>,
    place: Place<'_>,
) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    let message = state.to_json(status, pid)?;
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, &message, place, &state.output).doing(|| numbered(name, index))?;
    }
    Ok(())
}

/// Where a hook runs, which decides what it gets where the configuration says nothing.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// Beside the runtime: as with runc and crun in the bundle, with the runtime's own environment.
    Outside(&'a Path),
    /// In the container's namespaces, where it is already, with these variables.
    Inside(&'a [String]),
}

impl Place<'_> {
    fn prepare(self, command: &mut Command, env: Option<&[String]>) {
        let own = match (env, self) {
            (Some(own), _) if !own.is_empty() => own,
            (_, Place::Inside(env)) => env,
            // An empty list is an empty environment.
            (own, Place::Outside(_)) => own.unwrap_or_default(),
        };
        if env.is_some() || matches!(self, Place::Inside(_)) {
            command.env_clear().envs(own.iter().filter_map(|entry| entry.split_once('=')));
        }
        // A bundle may be gone when its container is deleted.
        if let Place::Outside(bundle) = self
            && bundle.is_dir()
        {
            command.current_dir(bundle);
        }
    }
}

fn run_one(hook: &Hook, message: &[u8], place: Place<'_>, files: &[Option<Arc<OwnedFd>>; 2]) -> Result<()> {
    if !hook.path().is_absolute() {
        return Err(Error::invalid(format!("hook path {} is not absolute", hook.path().display())));
    }
    let timeout = match hook.timeout() {
        Some(seconds) => Some(Duration::from_secs(
            u64::try_from(seconds)
                .ok()
                .filter(|seconds| *seconds > 0)
                .ok_or_else(|| Error::invalid("hook timeout must be greater than zero"))?,
        )),
        None => None,
    };
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(rest);
    }
    place.prepare(&mut command, hook.env().as_deref());
    let (reader, writer) = std::io::pipe().doing(|| "make a pipe")?;
    let errors = writer.try_clone().doing(|| "make a pipe")?;
    let [out, err] = files;
    let to = |file: &Option<Arc<OwnedFd>>, pipe: std::io::PipeWriter| -> Result<Stdio> {
        Ok(match file {
            Some(file) => file.try_clone().doing(|| "copy a descriptor")?.into(),
            None => pipe.into(),
        })
    };
    command.stdin(readable(message)?).stdout(to(out, writer)?).stderr(to(err, errors)?);
    let child = spawn::cleanly(&mut command).spawn().doing(|| format!("start {}", hook.path().display()))?;
    // The command holds copies of the pipe's writing end, which would keep it open.
    drop(command);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(-1));
    let (exit, output) = wait(pid, &reader.into(), timeout)?;
    let output = String::from_utf8_lossy(&output);
    let complain = |what: String| {
        let detail =
            if output.trim().is_empty() { String::new() } else { format!(", stdout/stderr: {}", output.trim()) };
        Err(Error::new(Kind::Internal, format!("{what}{detail}")))
    };
    match exit {
        Some(Exit::Code(0)) => Ok(()),
        Some(Exit::Code(code)) => complain(format!("exit status {code}")),
        Some(Exit::Signal(signal)) => {
            complain(format!("signal: {} ({})", signal_text(signal), rung_sys::signal::name(signal)))
        }
        None => {
            complain(format!("hook ran past specified timeout of {:.1}s", timeout.unwrap_or_default().as_secs_f64()))
                .map_err(|error: Error| error.with_kind(Kind::Timeout))
        }
    }
}

/// What a hook reads the state from: a file, for one that reads late or not at all holds up nobody then. The filter of a
/// container, which its own hooks run under, may forbid files in memory; then a pipe, which has room for less.
fn readable(message: &[u8]) -> Result<OwnedFd> {
    let Ok(made) = memfd_create(c"state", MFdFlags::MFD_CLOEXEC) else {
        let (reader, mut writer) = std::io::pipe().doing(|| "make a pipe")?;
        if let Ok(size) = i32::try_from(message.len()) {
            // What it has is mostly enough.
            let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(size));
        }
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        writer.write_all(message).doing(|| "write the state")?;
        return Ok(reader.into());
    };
    let mut file = std::fs::File::from(made);
    file.write_all(message).and_then(|()| file.rewind()).doing(|| "write the state")?;
    Ok(file.into())
}

/// The words of a signal's usual meaning, where they tell more than its name.
fn signal_text(signal: i32) -> &'static str {
    match signal {
        libc::SIGSYS => "bad system call",
        libc::SIGKILL => "killed",
        libc::SIGTERM => "terminated",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGABRT => "aborted",
        _ => "ended",
    }
}

/// How many times what is read at once a pipe holds.
const PIPE: usize = 16;

/// How often a hook is looked at that no descriptor stands for.
const SLICE: Duration = Duration::from_millis(10);

/// Waits for a hook while its output is read, so that a talkative one does not block on a full pipe.
fn wait(pid: Pid, output: &OwnedFd, timeout: Option<Duration>) -> Result<(Option<Exit>, Vec<u8>)> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    // A filter may forbid the call.
    let process = pidfd::open(pid).ok();
    let slice = if process.is_none() { Some(SLICE) } else { None };
    fcntl(output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut kept = Vec::new();
    let mut reader = std::fs::File::from(output.try_clone()?);
    let mut open = true;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let watched = process.iter().chain(open.then_some(output)).map(|file| (file.as_fd(), Interest::Read));
        poll::wait(&watched.collect::<Vec<_>>(), left.into_iter().chain(slice).min())?;
        let ended = rung_sys::process::wait(Target::Pid(pid), false)?;
        if ended.is_none() && left.is_some_and(|left| left.is_zero()) {
            // It is not reaped yet, so the number is its own still.
            let _ = kill(pid, Signal::SIGKILL);
            rung_sys::process::wait(Target::Pid(pid), true)?;
            return Ok((None, kept));
        }
        let mut buffer = [0; 4096];
        // Once a wake-up: a hook that never stops printing has its time, too. At its end all that the pipe holds.
        for _ in 0..if ended.is_some() { PIPE } else { 1 } {
            match reader.read(&mut buffer) {
                Ok(0) => {
                    open = false;
                    break;
                }
                Ok(length) => {
                    let room = MAX_OUTPUT.saturating_sub(kept.len()).min(length);
                    kept.extend_from_slice(&buffer[..room]);
                }
                Err(_) => break,
            }
        }
        if let Some((_, exit)) = ended {
            return Ok((Some(exit), kept));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(json: &str) -> Hook {
        serde_json::from_str(json).expect("valid JSON")
    }

    fn beside() -> Place<'static> {
        Place::Outside(Path::new("/usr"))
    }

    #[test]
    fn output_and_status_are_told() {
        let failing = hook(r#"{"path":"/bin/sh","args":["sh","-c","cat; echo oops >&2; exit 3"]}"#);
        let error = run_one(&failing, b"{state}", beside(), &[None, None]).expect_err("fails").to_string();
        assert!(error.contains("exit status 3") && error.contains("oops") && error.contains("{state}"), "{error}");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let slow = hook(r#"{"path":"/bin/sleep","args":["sleep","100"],"timeout":1}"#);
        // More than a pipe holds, and nobody reads it.
        let error = run_one(&slow, &[b' '; 1 << 20], beside(), &[None, None]).expect_err("killed");
        assert_eq!(error.kind(), Kind::Timeout);
    }

    #[test]
    fn a_talkative_hook_is_killed_in_time() {
        let talkative = hook(r#"{"path":"/bin/sh","args":["sh","-c","yes"],"timeout":1}"#);
        let begun = Instant::now();
        assert_eq!(run_one(&talkative, b"", beside(), &[None, None]).expect_err("killed").kind(), Kind::Timeout);
        assert!(begun.elapsed() < Duration::from_secs(60));
        let patient = hook(r#"{"path":"/bin/true","timeout":9223372036854775807}"#);
        run_one(&patient, b"", beside(), &[None, None]).expect("a time that no clock has is no limit");
    }

    #[test]
    fn a_hook_starts_cleanly() {
        // Of its thread, the harness's others are not concerned.
        nix::sys::signal::SigSet::all().thread_block().expect("block");
        let null = std::fs::File::open("/dev/null").expect("open");
        // One that every program would inherit.
        let inherited = fcntl(&null, FcntlArg::F_DUPFD(70)).expect("duplicate");
        let script = "grep -q 'SigBlk:[^1-9a-f]*$' /proc/self/status && ! test -e /proc/self/fd/";
        let check = hook(&format!(r#"{{"path":"/bin/sh","args":["sh","-c","{script}{inherited}"]}}"#));
        run_one(&check, b"", beside(), &[None, None]).expect("nothing blocked, nothing open");
    }

    #[test]
    fn the_runtimes_environment_and_the_bundle_are_what_a_hook_has_unless_it_says_otherwise() {
        let run = |env: &str, script: &str, place| {
            let check = hook(&format!(r#"{{"path":"/bin/sh","args":["sh","-c","{script}"]{env}}}"#));
            run_one(&check, b"", place, &[None, None])
        };
        let (has_path, has_none) = ("grep -qz ^PATH= /proc/self/environ", "! grep -qz ^PATH= /proc/self/environ");
        run("", has_path, beside()).expect("inherited");
        run("", "test $PWD = /usr", beside()).expect("in the bundle");
        run("", "true", Place::Outside(Path::new("/nowhere"))).expect("without the bundle");
        run(r#","env":[]"#, has_none, beside()).expect("empty");
        run(r#","env":["A=b"]"#, "test $A = b && ! grep -qz ^PATH= /proc/self/environ", beside()).expect("its own");
        run("", has_none, Place::Inside(&[])).expect("nothing of the runtime's");
        run(r#","env":[]"#, "test $A = b", Place::Inside(&["A=b".to_owned()])).expect("the container's");
    }
}
