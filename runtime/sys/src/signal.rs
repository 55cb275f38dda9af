//! Signal names and numbers, masks, and signals as a descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::error::{Error, Result, check};
use crate::pidfd::owned;

const NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The first real-time signal as every program outside the C library counts it.
const REALTIME_FIRST: i32 = 34;
const REALTIME_LAST: i32 = 64;

/// `SIGTERM`, `term`, `15`, `RTMIN+2`: the number, or `None` for what is no signal. Zero, which only asks whether a
/// process is there, is one.
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (0..=REALTIME_LAST).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = match name {
        "RTMIN" => REALTIME_FIRST,
        "RTMAX" => REALTIME_LAST,
        _ if name.starts_with("RTMIN+") => REALTIME_FIRST.checked_add(name[6..].parse::<u8>().ok()?.into())?,
        _ if name.starts_with("RTMAX-") => REALTIME_LAST.checked_sub(name[6..].parse::<u8>().ok()?.into())?,
        _ => return None,
    };
    (REALTIME_FIRST..=REALTIME_LAST).contains(&number).then_some(number)
}

/// `SIGTERM` for 15; numbers without a name come back as `SIGRTMIN+n` or the number itself.
pub fn name(signal: i32) -> String {
    match NAMES.iter().find(|(_, number)| *number == signal) {
        Some((name, _)) => format!("SIG{name}"),
        None if (REALTIME_FIRST..=REALTIME_LAST).contains(&signal) => format!("SIGRTMIN+{}", signal - REALTIME_FIRST),
        None => signal.to_string(),
    }
}

/// Every signal but the two that all C libraries keep to themselves. Not what sigfillset(3) says: musl leaves out the
/// first real-time signal too.
fn all_signals() -> libc::sigset_t {
    const OWN: u64 = 1 << (32 - 1) | 1 << (33 - 1);
    const { assert!(size_of::<libc::sigset_t>() >= size_of::<u64>()) };
    // SAFETY: `sigset_t` is plain data for which all zeroes is a value, at least as large and as aligned as a word, and
    // in its first word bit n stands for signal n + 1, as the kernel has it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        (&raw mut set).cast::<u64>().write_unaligned(!OWN);
        set
    }
}

/// Blocks every signal that can be blocked, for a program that reads them from [`Signals`].
pub fn block_all() -> Result<()> {
    let set = all_signals();
    // SAFETY: `set` outlives the call, and a null old set is allowed.
    let returned = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
    check(returned, "sigprocmask", || "SIG_SETMASK, all".into()).map(drop)
}

/// Unblocks every signal and gives all of them their default action again, as a new program expects.
pub fn reset_all() -> Result<()> {
    for signal in 1..=REALTIME_LAST {
        match signal {
            // There is no action to set.
            libc::SIGKILL | libc::SIGSTOP => {}
            // The C library keeps these to itself: it refuses to touch them, and ignores them in what it spawns.
            32 | 33 => kernels_default(signal),
            // SAFETY: SIG_DFL is always a valid disposition.
            _ => drop(unsafe { libc::signal(signal, libc::SIG_DFL) }),
        }
    }
    unblock_all()
}

/// Has the kernel keep ended children until they are waited for, and tell of them. It does neither for a program whose
/// caller ignores SIGCHLD, as a shell after `trap '' CHLD` does, until that program takes it back.
pub fn keep_children() {
    // SAFETY: SIG_DFL is always a valid disposition.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Gives a signal its default action without the C library.
fn kernels_default(signal: i32) {
    // The default action, no flags, no restorer and an empty mask are zeroes, however they are laid out.
    let action = [0_u64; 8];
    let none = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads an action from memory that is large enough for one on every machine, and writes none.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), none, size_of::<u64>()) };
}

/// Unblocks every signal.
pub fn unblock_all() -> Result<()> {
    // SAFETY: `sigset_t` is plain data and all zeroes is the empty set; it outlives the call.
    let returned = unsafe {
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    check(returned, "sigprocmask", || "SIG_SETMASK, none".into()).map(drop)
}

/// Makes `signal` end this process even where the kernel would not: the first process of a process number namespace is
/// spared by default. An exec gives the default action back.
pub fn end_on(signal: i32) -> Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: _exit may be called in a signal handler.
        unsafe { libc::_exit(128 + signal) }
    }
    // SAFETY: `end` calls nothing but _exit, which a handler may do at any moment.
    if unsafe { libc::signal(signal, end as extern "C" fn(libc::c_int) as libc::sighandler_t) } == libc::SIG_ERR {
        return Err(Error::new("signal", name(signal), nix::errno::Errno::last_raw()));
    }
    Ok(())
}

/// Blocked signals, to be read like bytes.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Opens a descriptor for every signal; they must be blocked with [`block_all`] first.
    pub fn open() -> Result<Self> {
        let set = all_signals();
        // SAFETY: `set` outlives the call; -1 asks for a new descriptor.
        let returned = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        Ok(Self(owned(check(returned, "signalfd", || "all".into())?, "signalfd")?))
    }

    /// The next waiting signal.
    pub fn next(&self) -> Result<Option<i32>> {
        // SAFETY: `signalfd_siginfo` is plain integers, for which all zeroes is a value.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the buffer is exactly one signalfd_siginfo, which the kernel fills whole or not at all.
        let returned = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) };
        let Ok(returned) = std::ffi::c_long::try_from(returned) else { return Ok(None) };
        match check(returned, "read", || "signalfd".into()) {
            Ok(_) => Ok(i32::try_from(info.ssi_signo).ok()),
            Err(error) if error.is(&[libc::EAGAIN, libc::EINTR]) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sends `signal` to a process by number; prefer [`crate::pidfd::send_signal`] where a descriptor is at hand.
pub fn send(pid: crate::process::Pid, signal: i32) -> Result<()> {
    // SAFETY: kill takes two numbers and has no memory precondition.
    check(unsafe { libc::kill(pid.as_raw(), signal) }, "kill", || format!("{pid}, {}", name(signal))).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_all_spellings() {
        for text in ["SIGTERM", "term", "Sigterm", "15"] {
            assert_eq!(parse(text), Some(15), "{text}");
        }
        assert_eq!(parse("RTMIN+3"), Some(37));
        assert_eq!(parse("SIGRTMAX-1"), Some(63));
        for text in ["", "65", "-1", "SIGFOO", "RTMIN+99", "SIG"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_round_trip() {
        for signal in (1..=31).chain(34..=64) {
            assert_eq!(parse(&name(signal)), Some(signal));
        }
    }
}
