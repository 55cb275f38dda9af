//! Installing system call filters, and asking what the kernel can do with them.

use std::os::fd::{FromRawFd, OwnedFd};

use crate::error::{Error, Result, check};

/// One classic BPF instruction, as the kernel reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the comparison holds.
    pub when_true: u8,
    /// Instructions to skip when it does not.
    pub when_false: u8,
    /// Operand.
    pub operand: u32,
}

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

const SET_MODE_FILTER: libc::c_uint = 1;

/// Puts all threads of the process under the filter.
pub const FLAG_TSYNC: u32 = 1;
/// Logs every action but allowing.
pub const FLAG_LOG: u32 = 2;
/// Leaves speculative store bypass as it is.
pub const FLAG_SPEC_ALLOW: u32 = 4;
/// Returns a descriptor that receives notifications.
pub const FLAG_NEW_LISTENER: u32 = 8;
/// With TSYNC and a listener: says ESRCH for a thread that cannot be put under the filter.
pub const FLAG_TSYNC_ESRCH: u32 = 16;
/// A notified call can only be killed once its notification is received.
pub const FLAG_WAIT_KILLABLE_RECV: u32 = 32;

/// The longest program the kernel takes.
pub const LONGEST: usize = 4096;

/// Puts this process under a filter, for good; the listener when `flags` ask for one. Needs no-new-privileges or
/// `CAP_SYS_ADMIN`.
pub fn install(program: &[Instruction], flags: u32) -> Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).unwrap_or(u16::MAX);
    let raw = Program { length, instructions: program.as_ptr() };
    // SAFETY: the program and its instructions are live for the call, laid out as `sock_fprog` and `sock_filter`.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const raw) };
    let arguments = || format!("SECCOMP_SET_MODE_FILTER, {flags:#x}, {length} instructions");
    let fd = check(result, "seccomp", arguments)?;
    if flags & FLAG_NEW_LISTENER == 0 {
        // With TSYNC alone, a positive result is the thread that could not be put under the filter.
        return if fd == 0 { Ok(None) } else { Err(Error::new("seccomp", arguments(), libc::ESRCH)) };
    }
    let fd = i32::try_from(fd).map_err(|_| Error::new("seccomp", arguments(), libc::EBADF))?;
    // SAFETY: the kernel has just made this descriptor for the listener; nothing else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}
