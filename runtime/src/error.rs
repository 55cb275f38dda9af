//! The error of the runtime: a kind that callers may match on, and a chain of text for people.

use std::fmt;

/// What every operation of the runtime returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation failed, in the words the JSON log carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No such container, process, file or bundle.
    NotFound,
    /// The container is there already.
    AlreadyExists,
    /// The container or process is not running (any more).
    NotRunning,
    /// The container is paused and must not be.
    Paused,
    /// The container is not in the state the operation needs.
    WrongState,
    /// The configuration or an argument is wrong.
    Invalid,
    /// The program of the container is there and cannot be started.
    CannotExecute,
    /// There is no such program in the container.
    ProgramNotFound,
    /// The caller may not do that.
    Permission,
    /// The kernel or this build cannot do that.
    Unsupported,
    /// It took too long.
    Timeout,
    /// Anything else.
    Internal,
}

impl Kind {
    /// Every kind, in the order of its code between processes.
    const ALL: [Self; 12] = [
        Self::NotFound,
        Self::AlreadyExists,
        Self::NotRunning,
        Self::Paused,
        Self::WrongState,
        Self::Invalid,
        Self::CannotExecute,
        Self::ProgramNotFound,
        Self::Permission,
        Self::Unsupported,
        Self::Timeout,
        Self::Internal,
    ];

    /// The word in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::NotRunning => "not-running",
            Self::Paused => "paused",
            Self::WrongState => "wrong-state",
            Self::Invalid => "invalid",
            Self::CannotExecute => "cannot-execute",
            Self::ProgramNotFound => "program-not-found",
            Self::Permission => "permission",
            Self::Unsupported => "unsupported",
            Self::Timeout => "timeout",
            Self::Internal => "internal",
        }
    }

    /// A byte for the socket between the runtime and a container's first process.
    pub fn code(self) -> u8 {
        let index = Self::ALL.iter().position(|kind| *kind == self).unwrap_or(Self::ALL.len() - 1);
        u8::try_from(index).unwrap_or(u8::MAX)
    }

    /// The kind behind such a byte.
    pub fn from_code(code: u8) -> Self {
        Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Internal)
    }
}

/// A failed operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
    exit_code: u8,
}

impl Error {
    /// A new error.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), exit_code: 1 }
    }

    /// Something in the configuration or on the command line is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// A feature that this build or this kernel does not have.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message)
    }

    /// Why it failed.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The code the program ends with.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// The same error, ending the program with another code.
    #[must_use]
    pub fn with_exit_code(mut self, code: u8) -> Self {
        self.exit_code = code;
        self
    }

    /// The same error of another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Puts what was being done in front.
    #[must_use]
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

fn kind_of(errno: i32) -> Kind {
    match errno {
        libc::EPERM | libc::EACCES => Kind::Permission,
        libc::ENOSYS | libc::EOPNOTSUPP => Kind::Unsupported,
        libc::ETIMEDOUT => Kind::Timeout,
        libc::ESRCH => Kind::NotRunning,
        _ => Kind::Internal,
    }
}

impl From<rung_sys::Error> for Error {
    fn from(error: rung_sys::Error) -> Self {
        Self::new(kind_of(error.errno()), error.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::new(kind_of(errno), rung_sys::error::describe(errno)),
            None => Self::new(Kind::Internal, error.to_string()),
        }
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::new(kind_of(errno as i32), rung_sys::error::describe(errno as i32))
    }
}

/// Adds what was being done to a failure.
pub trait Doing<T> {
    /// `mount /proc: operation not permitted`; the text is only made when there is a failure.
    fn doing<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: fmt::Display>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().while_doing(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), kind);
        }
        assert_eq!(Kind::from_code(200), Kind::Internal);
    }

    #[test]
    fn a_chain_reads_from_the_outside_in() {
        let error = Err::<(), _>(nix::errno::Errno::EPERM).doing(|| "mount /proc").doing(|| "create web");
        let error = error.expect_err("an error");
        assert_eq!(error.to_string(), "create web: mount /proc: operation not permitted");
        assert_eq!(error.kind(), Kind::Permission);
    }
}
