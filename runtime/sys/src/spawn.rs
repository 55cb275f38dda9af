//! Starting a program with descriptors at chosen numbers, which the standard library cannot.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::fcntl::OFlag;

use crate::error::{Error, Result, check};
use crate::namespace;
use crate::pidfd::owned;
use crate::process::{self, CStringArray, CloneRequest, Forked, Pid};
use crate::signal;

/// Lets this process start programs without fork(2), which would copy its page tables and take longer than the start
/// itself. For a program in another directory the standard library can use posix_spawn(3) only if the C library has
/// this function, and a static program contains it only if something refers to it, as this does.
pub fn without_copying() {
    #[cfg(target_env = "gnu")]
    std::hint::black_box(libc::posix_spawn_file_actions_addchdir_np as *const ());
}

/// Has `command` start its program as a new one expects to be started: no signal is blocked or ignored, and no descriptor
/// is open but the standard three, whatever the caller's caller had left open or the caller waits for.
pub fn cleanly(command: &mut Command) -> &mut Command {
    let prepare = || {
        // A system call filter that is in force may forbid either, which is no reason not to start.
        let _ = process::close_on_exec_from(3);
        let _ = signal::reset_all();
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls only. Where one fails, it asks for memory for the error's text:
    // that is under a filter, in a process of one thread, whose memory nobody else had locked.
    unsafe { command.pre_exec(prepare) }
}

/// Has `command` start its program with `source` as its descriptor 3.
///
/// # Errors
/// Where there is no descriptor left.
pub fn with_descriptor_3<'a>(command: &'a mut Command, source: BorrowedFd<'_>) -> Result<&'a mut Command> {
    const NUMBER: i32 = 3;
    // Where nobody has that number, the copy has it, so that what the standard library opens to hear of failures does not.
    let copy = park(source, NUMBER)?;
    let prepare = move || {
        let from = copy.as_raw_fd();
        // SAFETY: this is a forked child about to exec; what is at the number in its copy of memory is never dropped.
        let returned =
            unsafe { if from == NUMBER { libc::fcntl(NUMBER, libc::F_SETFD, 0) } else { libc::dup2(from, NUMBER) } };
        if returned < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec it makes one system call and asks for no memory.
    Ok(unsafe { command.pre_exec(prepare) })
}

/// A program to start.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its arguments, its own name first.
    pub argv: &'a CStringArray,
    /// Its environment.
    pub env: &'a CStringArray,
    /// Whether it and all that it starts give up gaining privileges by executing programs.
    pub no_new_privileges: bool,
}

/// Starts a program with the descriptors of `places` (source, number in the program). What is not named is closed from the
/// highest of these numbers on; below it, the caller names all. The caller must be single-threaded.
pub fn spawn(program: &Program<'_>, places: &[(BorrowedFd<'_>, u16)]) -> Result<Pid> {
    spawn_prepared(program, places, 0, |_| Ok(()))
}

/// As [`spawn`], in new `namespaces` (`CLONE_NEW…`). What `prepare` does with the process comes before anything that it does
/// itself, the namespaces included; where that fails, the program is not started.
pub fn spawn_prepared<E: From<Error>>(
    program: &Program<'_>,
    places: &[(BorrowedFd<'_>, u16)],
    namespaces: u64,
    prepare: impl FnOnce(Pid) -> std::result::Result<(), E>,
) -> std::result::Result<Pid, E> {
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::new("pipe2", "", errno as i32));
    let (read, write) = pipe()?;
    let (held, go) = pipe()?;
    match process::clone(&CloneRequest::default())? {
        Forked::Child => {
            drop(go);
            // Ends with one byte when the parent is done with its part, and without one when that has failed.
            if !matches!(nix::unistd::read(&held, &mut [0]), Ok(1)) {
                process::exit_now(127)
            }
            let above = places.iter().map(|(_, number)| i32::from(*number)).max().unwrap_or(0).saturating_add(1);
            // The report's own number may be somebody's target. A successful exec closes it, so that the parent reads an
            // error number and the name of the call, or nothing.
            if let Ok(report) = park(write.as_fd(), above) {
                let error = become_program(program, places, namespaces, above);
                let _ =
                    nix::unistd::write(&report, &[&error.errno().to_ne_bytes()[..], error.call().as_bytes()].concat());
            }
            process::exit_now(127)
        }
        Forked::Parent { pid, .. } => {
            drop((write, held));
            let prepared = prepare(pid);
            if prepared.is_ok() {
                let _ = nix::unistd::write(&go, &[0]);
            }
            drop(go);
            let mut report = [0; 64];
            let length = nix::unistd::read(&read, &mut report).unwrap_or(0);
            let refused = report[..length].split_first_chunk();
            if refused.is_some() || prepared.is_err() {
                let _ = process::wait(process::Target::Pid(pid), true);
            }
            prepared?;
            if let Some((errno, call)) = refused {
                let arguments = format!("{:?}, {}", program.path, String::from_utf8_lossy(call));
                return Err(Error::new("start", arguments, i32::from_ne_bytes(*errno)).into());
            }
            Ok(pid)
        }
    }
}

fn become_program(program: &Program<'_>, places: &[(BorrowedFd<'_>, u16)], namespaces: u64, above: i32) -> Error {
    let prepare = || -> Result<()> {
        // First out of the way of every target, then into place: a source may have the number of another's target.
        let parked = places.iter().map(|(source, _)| park(*source, above)).collect::<Result<Vec<_>>>()?;
        for (source, (_, number)) in parked.iter().zip(places) {
            // SAFETY: this is a forked child about to exec; whatever Rust value owns the target number in the parent's
            // copy of memory is never dropped here, because this function ends in exec or _exit.
            let returned = unsafe { libc::dup2(source.as_raw_fd(), i32::from(*number)) };
            check(returned, "dup2", || number.to_string())?;
        }
        process::close_on_exec_from(u32::try_from(above).unwrap_or(0))?;
        if namespaces != 0 {
            namespace::leave(namespaces)?;
        }
        if program.no_new_privileges {
            process::set_no_new_privileges()?;
        }
        signal::reset_all()
    };
    match prepare() {
        Ok(()) => process::exec(program.path, program.argv, program.env),
        Err(error) => error,
    }
}

fn park(fd: BorrowedFd<'_>, above: i32) -> Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number and returns a new descriptor or an error.
    let returned = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
    owned(check(returned, "fcntl", || "F_DUPFD_CLOEXEC".into())?, "fcntl")
}
