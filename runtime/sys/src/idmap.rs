//! Writing the id maps of a user namespace.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use crate::error::{Error, Result, check};
use crate::process::{Pid, pid_of};

/// One range: ids from `inside` on, as seen in the namespace, are the ids from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl Range {
    /// Reads ranges as mount options have them: `inside:outside:count`, joined by commas.
    pub fn parse_all(text: &str) -> Option<Vec<Self>> {
        let one = |range: &str| {
            let mut numbers = range.split(':').map(|part| part.parse::<u32>().ok());
            let range = Self { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? };
            (numbers.next().is_none() && range.count > 0).then_some(range)
        };
        text.split(',').map(one).collect()
    }
}

/// The kernel takes at most this many ranges.
pub const MAX_RANGES: usize = 340;

/// Ranges in the kernel's text form.
pub fn to_text(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, range| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.count);
        text
    })
}

/// Writes the user id map of a process.
pub fn write_uids(pid: Pid, ranges: &[Range]) -> Result<()> {
    write(pid, "uid_map", &to_text(ranges))
}

/// Writes the group id map of a process.
pub fn write_gids(pid: Pid, ranges: &[Range]) -> Result<()> {
    write(pid, "gid_map", &to_text(ranges))
}

/// A user namespace with these maps and nobody in it, for mounts that translate ids. Works in a process with threads.
///
/// To whoever is root of this user namespace, a process of a new one is his, even without a capability. So the process,
/// which has this one's memory, descriptors and root, is not dumpable before it is in there, unless it is an ordinary
/// user's, who could not write its maps then.
pub fn empty_namespace(uids: &[Range], gids: &[Range]) -> Result<OwnedFd> {
    let (made, makes) = std::io::pipe().map_err(|error| Error::from_io("pipe2", "", &error))?;
    // SAFETY: `clone_args` is plain integers, for which all zeroes is a value.
    // Without an exit signal the child is invisible to whoever waits for this process's other children.
    let args: libc::clone_args = unsafe { std::mem::zeroed() };
    let maker = std::process::id().cast_signed();
    // SAFETY: CLONE_VM is not set, so the child has its own memory; until it ends it only makes the calls of `hold`,
    // which touch no memory that another thread of this process may have left locked or half-written.
    let returned = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    let pid = pid_of(check(returned, "clone3", || "0".into())?);
    if returned == 0 {
        hold(maker, makes.as_raw_fd());
    }
    drop(makes);
    let mut errno = [0; size_of::<i32>()];
    let answer = (&made).read_exact(&mut errno).map_err(|error| Error::from_io("read", "the maker's answer", &error));
    let unshared = answer.and_then(|()| match i32::from_ne_bytes(errno) {
        0 => Ok(()),
        errno => Err(Error::new("unshare", "CLONE_NEWUSER", errno)),
    });
    let mapped = unshared.and_then(|()| write_uids(pid, uids));
    let opened = mapped.and_then(|()| write_gids(pid, gids)).and_then(|()| {
        let path = format!("/proc/{pid}/ns/user");
        File::open(&path).map(OwnedFd::from).map_err(|error| Error::from_io("open", format!("{path:?}"), &error))
    });
    // SAFETY: the child is ours and not waited for, so its number is still its own; a null status is allowed.
    unsafe {
        libc::kill(pid.as_raw(), libc::SIGKILL);
        while libc::waitpid(pid.as_raw(), std::ptr::null_mut(), libc::__WALL) < 0 && last_was_interrupted() {}
    }
    opened
}

/// The child of [`empty_namespace`]: makes the namespace, says so, and stays until it is killed.
fn hold(maker: i32, answer: i32) -> ! {
    // SAFETY: all take numbers only. The first makes the child end with its maker, whatever happens to that; a maker that
    // ended before it is no parent any more.
    let made = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != maker {
            libc::_exit(0);
        }
        if libc::geteuid() == 0 {
            libc::prctl(libc::PR_SET_DUMPABLE, 0);
        }
        libc::unshare(libc::CLONE_NEWUSER)
    };
    let errno = if made == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL) };
    // SAFETY: the buffer is an integer that outlives the call.
    unsafe { libc::write(answer, (&raw const errno).cast(), size_of::<i32>()) };
    loop {
        // SAFETY: pause takes nothing.
        unsafe { libc::pause() };
    }
}

fn last_was_interrupted() -> bool {
    std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted
}

/// Takes setgroups(2) away from a user namespace, which an unprivileged group map demands.
pub fn deny_setgroups(pid: Pid) -> Result<()> {
    write(pid, "setgroups", "deny")
}

fn write(pid: Pid, name: &'static str, text: &str) -> Result<()> {
    // The kernel takes a map in one write only.
    let path = format!("/proc/{pid}/{name}");
    let written =
        OpenOptions::new().write(true).open(Path::new(&path)).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| Error::from_io("write", format!("{path:?}, {text:?}"), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_whole_or_not_at_all() {
        let range = |inside, outside, count| Range { inside, outside, count };
        assert_eq!(Range::parse_all("0:1000:1,1:100000:5"), Some(vec![range(0, 1000, 1), range(1, 100_000, 5)]));
        for wrong in ["", "0:1", "0:1:0", "0:1:2:3", "a:1:1", "0:1:1,", "-1:0:1"] {
            assert_eq!(Range::parse_all(wrong), None, "{wrong}");
        }
    }
}
