//! Every change that a process makes to files below a directory, as it makes it; and its end before one of them.
//!
//! ```text
//! test ── starts ──► `integration changes PID DIR [KIND NTH]` ── traces every thread ──► the process
//!      ◄── a line for each change ──
//! ```
//!
//! Nobody keeps a list of the steps at which something may die: whatever call of the kernel changes a file is one. Its kind
//! is the call and the path, without what is another one each time.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Result;

/// What the watcher says once it sees everything.
const READY: &str = "ready";

/// Watches a process from another one.
#[derive(Debug)]
pub struct Changes {
    watcher: Child,
    said: BufReader<ChildStdout>,
}

impl Changes {
    /// Watches what process `pid` changes below `dir`. With `fatal`, a kind of change and its how-many-eth it is, the
    /// process is killed before that one.
    ///
    /// # Errors
    /// When the process cannot be traced.
    pub fn watch(pid: u32, dir: &Path, fatal: Option<(&str, usize)>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("changes").arg(pid.to_string()).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        command.args(fatal.iter().flat_map(|(kind, nth)| [(*kind).to_owned(), nth.to_string()]));
        let mut watcher = command.spawn().context("start the watcher")?;
        let mut said = BufReader::new(watcher.stdout.take().context("the watcher has no output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.trim_end() == READY, "the watcher of {pid} says {line:?}");
        Ok(Self { watcher, said })
    }

    /// The kinds of all changes, in their order, once the process has ended.
    ///
    /// # Errors
    /// When the watcher failed.
    pub fn all(mut self) -> Result<Vec<String>> {
        let mut text = String::new();
        self.said.read_to_string(&mut text)?;
        ensure!(self.watcher.wait()?.success(), "the watcher failed");
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

/// The watcher's own program.
///
/// # Errors
/// When the process cannot be traced.
pub(crate) fn main(args: &[String]) -> Result<bool> {
    let [pid, dir, fatal @ ..] = args else { bail!("changes wants a process and a directory") };
    let fatal = match fatal {
        [] => None,
        [kind, nth] => Some((kind.as_str(), nth.parse()?)),
        _ => bail!("changes wants a kind and a number"),
    };
    let process = Pid::from_raw(pid.parse()?);
    let memory = File::open(format!("/proc/{process}/mem")).context("open the process's memory")?;
    Watcher { process, dir: PathBuf::from(dir), memory, inside: HashSet::new() }.run(fatal)?;
    Ok(true)
}

struct Watcher {
    process: Pid,
    dir: PathBuf,
    memory: File,
    /// Threads that are in a call.
    inside: HashSet<Pid>,
}

impl Watcher {
    fn run(mut self, fatal: Option<(&str, usize)>) -> Result<()> {
        self.seize()?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{READY}")?;
        out.flush()?;
        let mut before = 0;
        loop {
            let (thread, signal) = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    if let Some(kind) = self.begins(thread).then(|| self.change(thread)).flatten() {
                        if let Some((fatal, nth)) = fatal.filter(|(fatal, _)| *fatal == kind) {
                            before += 1;
                            if before == nth {
                                kill(self.process, Signal::SIGKILL).with_context(|| format!("kill before {fatal}"))?;
                            }
                        }
                        writeln!(out, "{kind}")?;
                    }
                    (thread, None)
                }
                Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
                Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
                Ok(WaitStatus::Exited(thread, _) | WaitStatus::Signaled(thread, ..)) if thread == self.process => break,
                Ok(_) => continue,
                Err(error) => return Err(error).context("wait for a change"),
            };
            match ptrace::syscall(thread, signal) {
                // It was killed meanwhile.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).context("let a thread go on"),
            }
        }
        Ok(out.flush()?)
    }

    /// Traces every thread, and those that they make.
    fn seize(&self) -> Result<()> {
        let mut known = HashSet::new();
        loop {
            let mut is_new = false;
            for entry in fs::read_dir(format!("/proc/{}/task", self.process))?.flatten() {
                let thread = Pid::from_raw(entry.file_name().to_string_lossy().parse()?);
                if !known.insert(thread) {
                    continue;
                }
                is_new = true;
                match ptrace::seize(thread, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE) {
                    Ok(()) => ptrace::interrupt(thread).context("interrupt a thread")?,
                    // Gone already, or made by one that is traced.
                    Err(Errno::ESRCH | Errno::EPERM) if thread != self.process => {}
                    Err(error) => return Err(error).context("trace a thread"),
                }
            }
            if !is_new {
                return Ok(());
            }
        }
    }

    /// Whether a thread that stops at a call begins it; else it has come to its end.
    fn begins(&mut self, thread: Pid) -> bool {
        let begins = self.inside.insert(thread);
        if !begins {
            self.inside.remove(&thread);
        }
        begins
    }

    /// The kind of change that the call is which a thread begins; `None` if it changes nothing below the directory.
    fn change(&self, thread: Pid) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
        let mut words = text.split_whitespace();
        let number: libc::c_long = words.next()?.parse().ok()?;
        let (_, name, names) = CALLS.iter().find(|(known, ..)| *known == number)?;
        let args: Vec<u64> = words.filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()).collect();
        let arg = |at: usize| args.get(at).copied();
        let path = match names {
            Names::File(at) => self.open_file(arg(*at)?)?,
            Names::Path(path) => self.path(None, arg(*path)?)?,
            Names::At(dir, path) => self.path(Some(arg(*dir)?), arg(*path)?)?,
            Names::Opens if changes(arg(2)?) => self.path(Some(arg(0)?), arg(1)?)?,
            Names::OpensHow if changes(self.number(arg(2)?)?) => self.path(Some(arg(0)?), arg(1)?)?,
            Names::Opens | Names::OpensHow => return None,
        };
        Some(format!("{name} {}", pattern(path.strip_prefix(&self.dir).ok()?)))
    }

    /// The path of an open file.
    fn open_file(&self, number: u64) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/fd/{number}", self.process)).ok()
    }

    /// The path at an address, from a directory on; that directory itself where there is none.
    fn path(&self, dir: Option<u64>, address: u64) -> Option<PathBuf> {
        let name = if address == 0 { Vec::new() } else { self.text(address)? };
        let name = Path::new(OsStr::from_bytes(&name));
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix("/proc/self/fd/")) {
            return self.open_file(number.parse().ok()?);
        }
        // The lower half of what means the working directory is a negative number.
        let here = || fs::read_link(format!("/proc/{}/cwd", self.process)).ok();
        match dir.filter(|number| *number <= i32::MAX as u64) {
            _ if name.is_absolute() => Some(name.to_owned()),
            Some(number) => Some(self.open_file(number)?.join(name)),
            None => Some(here()?.join(name)),
        }
    }

    /// A text in the memory of the process.
    fn text(&self, address: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        let length = self.memory.read_at(&mut bytes, address).ok()?;
        bytes.truncate(bytes[..length].iter().position(|byte| *byte == 0)?);
        Some(bytes)
    }

    fn number(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, address).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }
}

/// Whether opening with these flags may make or empty a file.
fn changes(flags: u64) -> bool {
    let made = u64::try_from(libc::O_CREAT | libc::O_TRUNC).unwrap_or(0);
    flags & made != 0
}

/// A path without names that are others each time. What is in a layer is all the same.
fn pattern(path: &Path) -> String {
    let mut all: Vec<String> = Vec::new();
    for part in path.iter().map(|part| part.to_string_lossy()) {
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit());
        let is_digest = part.len() >= 32 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if all.last().is_some_and(|last| last == "fs") {
            all.push("...".to_owned());
            break;
        }
        all.push(if is_number || is_digest { "*".to_owned() } else { part.into_owned() });
    }
    all.join("/")
}

/// Where a call says what it changes: which of its arguments.
enum Names {
    /// An open file.
    File(usize),
    /// A directory and a path.
    At(usize, usize),
    /// A path.
    Path(usize),
    /// As `openat` does, and what for.
    Opens,
    /// As `openat2` does.
    OpensHow,
}

type Call = (libc::c_long, &'static str, Names);

macro_rules! calls {
    ($($constant:ident $name:literal $names:expr),* $(,)?) => { [$((libc::$constant, $name, $names)),*] };
}

/// Calls that change files.
static CALLS: std::sync::LazyLock<Vec<Call>> = std::sync::LazyLock::new(|| {
    use Names::{At, File, Opens, OpensHow, Path};
    let mut all = Vec::from(calls![
        SYS_write "write" File(0), SYS_pwrite64 "write" File(0), SYS_writev "write" File(0), SYS_pwritev "write" File(0),
        SYS_pwritev2 "write" File(0), SYS_sendfile "write" File(0), SYS_copy_file_range "write" File(2),
        SYS_splice "write" File(2), SYS_ftruncate "truncate" File(0), SYS_fallocate "allocate" File(0),
        SYS_fsync "sync" File(0), SYS_fdatasync "sync" File(0), SYS_syncfs "syncfs" File(0),
        SYS_fchmod "chmod" File(0), SYS_fchown "chown" File(0), SYS_fsetxattr "setxattr" File(0),
        SYS_openat "make" Opens, SYS_openat2 "make" OpensHow, SYS_mkdirat "mkdir" At(0, 1), SYS_mknodat "mknod" At(0, 1),
        SYS_unlinkat "remove" At(0, 1), SYS_fchmodat "chmod" At(0, 1), SYS_fchownat "chown" At(0, 1),
        SYS_utimensat "settime" At(0, 1), SYS_symlinkat "symlink" At(1, 2), SYS_linkat "link" At(2, 3),
        SYS_renameat "rename" At(2, 3), SYS_renameat2 "rename" At(2, 3), SYS_setxattr "setxattr" Path(0),
        SYS_lsetxattr "setxattr" Path(0), SYS_truncate "truncate" Path(0),
    ]);
    #[cfg(target_arch = "x86_64")]
    all.extend(calls![
        SYS_open "make" Path(0), SYS_mkdir "mkdir" Path(0), SYS_rmdir "remove" Path(0), SYS_unlink "remove" Path(0),
        SYS_rename "rename" Path(1), SYS_chmod "chmod" Path(0), SYS_chown "chown" Path(0), SYS_lchown "chown" Path(0),
        SYS_symlink "symlink" Path(1), SYS_link "link" Path(1), SYS_mknod "mknod" Path(0),
    ]);
    all
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_only_what_stays() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(pattern(Path::new(&format!("content/ingest/{hex}/data"))), "content/ingest/*/data");
        assert_eq!(pattern(Path::new("snapshots/12/fs/etc/passwd")), "snapshots/*/fs/...");
        assert_eq!(pattern(Path::new("snapshots/12/fs")), "snapshots/*/fs");
    }
}
