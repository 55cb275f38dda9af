//! Making, waiting for and marking processes.
//!
//! Gantry's runtime is single-threaded, which is what makes forking with an allocator in use sound; [`clone`] refuses
//! to fork while a second thread exists that is not [`crate::parked`].

use std::ffi::{CString, c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub use nix::unistd::Pid;

use crate::error::{Error, Result, check};

/// What to give a new process beyond a copy of the caller.
#[derive(Debug, Default, Clone, Copy)]
pub struct CloneRequest<'fd> {
    /// `CLONE_NEW*` flags, possibly with `CLONE_PARENT`.
    pub flags: u64,
    /// A cgroup v2 directory the process is born into.
    pub into_cgroup: Option<BorrowedFd<'fd>>,
}

/// The two returns of [`clone`].
#[derive(Debug)]
pub enum Forked {
    /// In the caller: the new process, and a descriptor that stays right when the number is used again.
    Parent {
        /// The new process, in the caller's process namespace.
        pid: Pid,
        /// Its process descriptor.
        pidfd: OwnedFd,
    },
    /// In the new process.
    Child,
}

/// Forks with clone3.
pub fn clone(request: &CloneRequest<'_>) -> Result<Forked> {
    // Changes nothing for a process of one thread, and is refused to any other.
    let refused = nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD) == Err(nix::errno::Errno::EINVAL);
    if refused && !crate::parked::only_others() {
        return Err(Error::new("clone3", "from a process with threads", libc::EBUSY));
    }
    let mut pidfd: c_int = -1;
    // SAFETY: `clone_args` is plain integers, for which all zeroes is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = request.flags | flag(libc::CLONE_PIDFD);
    args.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    // With CLONE_PARENT the kernel takes the exit signal of the caller and refuses one given here.
    if request.flags & flag(libc::CLONE_PARENT) == 0 {
        args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    }
    if let Some(cgroup) = request.into_cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: no other thread of this process has to do with its memory (checked above), so the child owns a whole copy of
    // the address space with no lock held by a thread that does not exist in it; `args` and `pidfd` outlive the call; CLONE_VM is not set.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    let pid = check(returned, "clone3", || format!("flags {:#x}", args.flags))?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: CLONE_PIDFD was asked for and the call succeeded, so `pidfd` is a new descriptor that nobody else owns.
    Ok(Forked::Parent { pid: pid_of(pid), pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const fn flag(value: c_int) -> u64 {
    // CLONE_* constants are bit patterns; the sign bit is CLONE_IO, which nobody here uses.
    value.cast_unsigned() as u64
}

pub(crate) fn pid_of(raw: c_long) -> Pid {
    Pid::from_raw(c_int::try_from(raw).unwrap_or(-1))
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The code a shell would report: the exit code, or 128 plus the signal.
    pub fn shell_code(self) -> u8 {
        let code = match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128_i32.saturating_add(signal),
        };
        u8::try_from(code & 0xff).unwrap_or(u8::MAX)
    }
}

/// Whom to wait for.
#[derive(Debug, Clone, Copy)]
pub enum Target<'fd> {
    /// Any child.
    Any,
    /// The child with this number.
    Pid(Pid),
    /// The child behind this process descriptor.
    Pidfd(BorrowedFd<'fd>),
}

/// Reaps one child. With `block` unset, `None` means that none has ended yet.
pub fn wait(target: Target<'_>, block: bool) -> Result<Option<(Pid, Exit)>> {
    let (kind, id) = match target {
        Target::Any => (libc::P_ALL, 0),
        Target::Pid(pid) => (libc::P_PID, pid.as_raw().unsigned_abs()),
        Target::Pidfd(fd) => (libc::P_PIDFD, fd.as_raw_fd().unsigned_abs()),
    };
    let options = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: `siginfo_t` is plain data, for which all zeroes is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: `info` outlives the call; the kernel writes at most one siginfo_t to it.
        let returned = unsafe { libc::waitid(kind, id, &raw mut info, options) };
        match check(returned, "waitid", || format!("{target:?}")) {
            Err(error) if error.errno() == libc::EINTR => continue,
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        // SAFETY: waitid succeeded, so the SIGCHLD members of the union are the ones that were filled in.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        if pid == 0 {
            return Ok(None);
        }
        let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
        return Ok(Some((Pid::from_raw(pid), exit)));
    }
}

/// Makes this process the parent of its orphaned descendants.
pub fn set_child_subreaper(on: bool) -> Result<()> {
    prctl("PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, u64::from(on)).map(drop)
}

/// Asks for `signal` when the parent ends; zero takes the wish back.
pub fn set_parent_death_signal(signal: i32) -> Result<()> {
    prctl("PR_SET_PDEATHSIG", libc::PR_SET_PDEATHSIG, u64::from(signal.unsigned_abs())).map(drop)
}

/// Allows or forbids others to read this process's memory, descriptors and executable through /proc.
pub fn set_dumpable(on: bool) -> Result<()> {
    prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, u64::from(on)).map(drop)
}

/// Gives up gaining privileges through exec, for good and for all descendants.
pub fn set_no_new_privileges() -> Result<()> {
    prctl("PR_SET_NO_NEW_PRIVS", libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Names this process as `ps` shows it; at most 15 bytes are kept.
pub fn set_name(name: &str) -> Result<()> {
    let name = CString::new(name).map_err(|_| Error::new("prctl", "PR_SET_NAME", libc::EINVAL))?;
    // SAFETY: the kernel reads at most 16 bytes and stops at the terminating zero of `name`, which outlives the call.
    let returned = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    check(returned, "prctl", || "PR_SET_NAME".into()).map(drop)
}

fn prctl(name: &'static str, option: c_int, value: u64) -> Result<c_long> {
    // SAFETY: only options whose argument is a plain number are passed here (see the callers above).
    let returned = unsafe { libc::prctl(option, value, 0_u64, 0_u64, 0_u64) };
    check(returned, "prctl", || format!("{name}, {value}"))
}

/// A list of C strings with the terminating null pointer that exec wants, built before it is needed.
#[derive(Debug, Clone)]
pub struct CStringArray(Vec<CString>);

impl CStringArray {
    /// Refuses strings with a zero byte inside.
    pub fn new<S: AsRef<[u8]>>(strings: impl IntoIterator<Item = S>) -> Result<Self> {
        strings
            .into_iter()
            .map(|text| CString::new(text.as_ref()))
            .collect::<std::result::Result<_, _>>()
            .map(Self)
            .map_err(|_| Error::new("execve", "a string with a zero byte", libc::EINVAL))
    }

    fn pointers(&self) -> Vec<*const libc::c_char> {
        self.0.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    }
}

/// Replaces this program; returns only on failure.
pub fn exec(path: &std::path::Path, argv: &CStringArray, env: &CStringArray) -> Error {
    use std::os::unix::ffi::OsStrExt;
    let Ok(program) = CString::new(path.as_os_str().as_bytes()) else {
        return Error::new("execve", format!("{path:?}"), libc::EINVAL);
    };
    let (argv, env) = (argv.pointers(), env.pointers());
    // SAFETY: both arrays end in null, and they and the strings they point to outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    let errno = nix::errno::Errno::last_raw();
    Error::new("execve", format!("{path:?}"), errno)
}

/// Replaces this program by an opened one; returns only on failure.
pub fn exec_fd(program: BorrowedFd<'_>, argv: &CStringArray, env: &CStringArray) -> Error {
    let (argv, env) = (argv.pointers(), env.pointers());
    // SAFETY: the path is an empty C string, both arrays end in null, and all of them outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    let errno = nix::errno::Errno::last_raw();
    Error::new("execveat", crate::error::describe_fd(program), errno)
}

/// Ends this process without running exit handlers: what a forked child must use.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: _exit has no precondition.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// Starts a new session, leaving the controlling terminal.
pub fn new_session() -> Result<()> {
    // SAFETY: setsid has no precondition.
    check(unsafe { libc::setsid() }, "setsid", String::new).map(drop)
}

/// Marks every descriptor from `first` on to be closed at exec.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: the call only sets a flag on descriptors; no memory is involved.
    let returned = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(returned, "close_range", || format!("{first}, CLOSE_RANGE_CLOEXEC")).map(drop)
}

/// Closes every descriptor from `first` on but those in `keep`, for a process that is about to execute its program and
/// until then must not hold a way to what it has used before. Objects that own a closed descriptor must not be dropped
/// after new ones were opened; a forked child that only executes or exits drops none.
pub fn close_others(first: u32, keep: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut from = first;
    for end in kept.into_iter().map(Some).chain([None]) {
        let last = end.map_or(Some(u32::MAX), |end| end.checked_sub(1).filter(|last| *last >= from));
        if let Some(last) = last {
            // SAFETY: the call touches no memory; the doc comment says what it asks of the owners of descriptors.
            let returned = unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
            check(returned, "close_range", || format!("{from}, {last}"))?;
        }
        from = end.map_or(u32::MAX, |end| end.saturating_add(1));
    }
    Ok(())
}

/// Makes descriptor `number` (0 to 2) refer to what `fd` refers to; it stays open over exec.
pub fn replace_descriptor(fd: BorrowedFd<'_>, number: u8) -> Result<()> {
    let number = c_int::from(number.min(2));
    // SAFETY: 0, 1 and 2 belong to no object of Rust's: the standard streams use the bare numbers each time.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }, "dup2", || format!("{}, {number}", fd.as_raw_fd())).map(drop)
}

/// Sets the NIS domain name of the UTS namespace.
pub fn set_domain_name(name: &str) -> Result<()> {
    // SAFETY: the kernel reads exactly the given number of bytes, which `name` has.
    let returned = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    check(returned, "setdomainname", || format!("{name:?}")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_codes() {
        assert_eq!(Exit::Code(3).shell_code(), 3);
        assert_eq!(Exit::Signal(9).shell_code(), 137);
    }

    #[test]
    fn strings_with_zero_bytes_are_refused() {
        assert!(CStringArray::new(["a\0b"]).is_err());
    }

    #[test]
    fn clone_refuses_threads() {
        // The test harness runs tests in threads, which is the case that must be refused.
        std::thread::spawn(|| ()).join().expect("thread");
        assert!(clone(&CloneRequest::default()).is_err());
    }
}
