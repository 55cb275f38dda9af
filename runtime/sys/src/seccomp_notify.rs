//! System calls that a filter hands to a listener: who makes them waits until the listener has answered, or is gone.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use crate::error::{Error, Result, check};

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// By which it is answered.
    pub id: u64,
    /// Thread that makes it, as this process sees it; 0: it does not.
    pub tid: u32,
    /// Number of the call.
    pub number: u32,
    /// Architecture, as the kernel shows it to filters.
    pub architecture: u32,
}

/// Takes the next call. None where its thread has ended meanwhile.
///
/// This waits where there is none. After poll(2) has said that there is one, a listener's only reader does not wait, whatever
/// becomes of the thread: the kernel counts a call until it is taken.
pub fn receive(listener: BorrowedFd<'_>) -> Result<Option<Call>> {
    // SAFETY: the struct is plain data, for which all zeroes is a value, and the one that the kernel wants.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such struct, whose size is part of the request.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    match check(result, "ioctl", || format!("{}, SECCOMP_IOCTL_NOTIF_RECV", listener.as_raw_fd())) {
        Ok(_) => Ok(Some(Call {
            id: call.id,
            tid: call.pid,
            number: u32::from_ne_bytes(call.data.nr.to_ne_bytes()),
            architecture: call.data.arch,
        })),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets a call fail with `errno`. One whose thread has ended meanwhile needs no answer.
pub fn refuse(listener: BorrowedFd<'_>, call: Call, errno: i32) -> Result<()> {
    let answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: -errno, flags: 0 };
    // SAFETY: the kernel reads one such struct, whose size is part of the request.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
    match check(result, "ioctl", || format!("{}, SECCOMP_IOCTL_NOTIF_SEND", listener.as_raw_fd())) {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(error.errno(), libc::ENOENT | libc::EINTR)
}
