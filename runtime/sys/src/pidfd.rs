//! Process descriptors: they keep naming the same process after its number was given to another.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::error::{Error, Result, check};
use crate::poll::{self, Interest};
use crate::process::Pid;

/// Opens the process `pid`; `ESRCH` when there is none.
pub fn open(pid: Pid) -> Result<OwnedFd> {
    // SAFETY: the call takes two numbers and returns a new descriptor or an error.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    owned(check(returned, "pidfd_open", || pid.to_string())?, "pidfd_open")
}

/// Sends a signal; zero only checks that the process is there.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo asks the kernel to fill one in; the descriptor is open for the borrow.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, null, 0) };
    check(returned, "pidfd_send_signal", || format!("{}, {signal}", pidfd.as_raw_fd())).map(drop)
}

/// Waits until the process has ended; `false` when the time ran out first.
pub fn wait_exit(pidfd: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    Ok(!poll::wait(&[(pidfd.as_fd(), Interest::Read)], Some(timeout))?.is_empty())
}

/// Copies descriptor number `number` of the process into this one.
pub fn get_fd(pidfd: BorrowedFd<'_>, number: i32) -> Result<OwnedFd> {
    // SAFETY: the call takes numbers only and returns a new descriptor or an error.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    owned(check(returned, "pidfd_getfd", || format!("{}, {number}", pidfd.as_raw_fd()))?, "pidfd_getfd")
}

pub(crate) fn owned(raw: std::ffi::c_long, call: &'static str) -> Result<OwnedFd> {
    let raw = i32::try_from(raw).map_err(|_| Error::new(call, raw.to_string(), libc::EBADF))?;
    // SAFETY: the callers pass the return value of a call that just made a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_alive_and_a_child_ends() {
        let own = open(nix::unistd::getpid()).expect("open");
        send_signal(own.as_fd(), 0).expect("alive");
        assert!(!wait_exit(own.as_fd(), Duration::ZERO).expect("poll"));
        let mut child = std::process::Command::new("true").spawn().expect("spawn");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        let fd = open(pid).expect("open child");
        assert!(wait_exit(fd.as_fd(), Duration::from_secs(10)).expect("poll"));
        child.wait().expect("reap");
        assert_eq!(send_signal(fd.as_fd(), 0).expect_err("gone").errno(), libc::ESRCH);
    }
}
