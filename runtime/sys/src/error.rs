//! The error of a failed kernel call, printed like a line of strace.

use std::ffi::c_long;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// What every function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// A kernel call that failed: its name, its arguments as text, and the error number.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    call: &'static str,
    arguments: Box<str>,
    errno: i32,
}

impl Error {
    /// An error of `call` with an explicit error number.
    pub fn new(call: &'static str, arguments: impl Into<String>, errno: i32) -> Self {
        Self { call, arguments: arguments.into().into_boxed_str(), errno }
    }

    /// An error of `call` that keeps the cause of an I/O error.
    pub fn from_io(call: &'static str, arguments: impl Into<String>, cause: &std::io::Error) -> Self {
        Self::new(call, arguments, cause.raw_os_error().unwrap_or(libc::EIO))
    }

    /// The kernel's error number.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The name of the call that failed.
    pub fn call(&self) -> &'static str {
        self.call
    }

    /// The error number as the standard library's kind.
    pub fn kind(&self) -> std::io::ErrorKind {
        std::io::Error::from_raw_os_error(self.errno).kind()
    }

    /// Whether the error number is one of `numbers`.
    pub fn is(&self, numbers: &[i32]) -> bool {
        numbers.contains(&self.errno)
    }

    /// The cause alone, lower case: `no such file or directory`.
    pub fn cause(&self) -> String {
        describe(self.errno)
    }
}

/// The text of an error number in the house's voice: lower case, no full stop.
pub fn describe(errno: i32) -> String {
    // Of a cgroup's file it says that the machine has no such processor, which is no matter of mathematics.
    if errno == libc::ERANGE {
        return "numerical result out of range".to_owned();
    }
    let text = Errno::from_raw(errno).desc();
    let mut characters = text.chars();
    match (characters.next(), characters.clone().next()) {
        // Acronyms such as "RFS specific error" keep their capitals.
        (Some(first), Some(second)) if second.is_lowercase() || second.is_whitespace() => {
            first.to_lowercase().collect::<String>() + characters.as_str()
        }
        _ => text.to_owned(),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}): {}", self.call, self.arguments, describe(self.errno))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::from_raw_os_error(error.errno)
    }
}

/// Turns a raw return value into a result; the arguments are only described when the call failed.
pub(crate) fn check(
    returned: impl Into<c_long>,
    call: &'static str,
    arguments: impl FnOnce() -> String,
) -> Result<c_long> {
    let returned = returned.into();
    if returned >= 0 {
        return Ok(returned);
    }
    // First of all: describing the arguments makes calls of its own, which may fail too.
    let errno = Errno::last_raw();
    Err(Error::new(call, arguments(), errno))
}

/// A descriptor as `7</path>`: the number alone would mean nothing to a reader.
pub fn describe_fd(fd: BorrowedFd<'_>) -> String {
    let number = fd.as_raw_fd();
    match std::fs::read_link(format!("/proc/self/fd/{number}")) {
        Ok(path) => format!("{number}<{}>", path.display()),
        Err(_) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn describing_the_arguments_does_not_change_the_error() {
        Errno::EINVAL.set();
        let describe = || std::fs::read_to_string("/does/not/exist").unwrap_or_default();
        assert!(check(-1, "call", describe).unwrap_err().is(&[libc::EINVAL]));
    }

    #[test]
    fn reads_like_strace() {
        let error = Error::new("mount", "\"proc\", \"/proc\"", libc::EPERM);
        assert_eq!(error.to_string(), "mount(\"proc\", \"/proc\"): operation not permitted");
        assert!(error.is(&[libc::EACCES, libc::EPERM]));
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn what_a_cgroup_refuses_is_out_of_range() {
        assert_eq!(describe(libc::ERANGE), "numerical result out of range");
    }

    #[test]
    fn acronyms_keep_their_capitals() {
        assert_eq!(describe(libc::ENOENT), "no such file or directory");
        assert_eq!(describe(libc::EIO), "I/O error");
    }
}
