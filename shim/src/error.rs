//! One error type for the shim, and its one conversion to a ttrpc status.

use std::fmt;

use gantry_proto::exit;
use gantry_proto::status::Status;

pub use gantry_proto::status::Code as Kind;

/// A failed operation of the shim.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    /// Where a program could not be run at all: what a shell would exit with.
    exit_code: Option<u8>,
    /// Of a program that was ended, and could neither say why nor clean up.
    cut_short: bool,
}

/// The shim's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), exit_code: None, cut_short: false }
    }

    /// What went wrong, for decisions.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error, of a program that could not be run at all.
    #[must_use]
    pub fn with_exit_code(mut self, code: u8) -> Self {
        self.exit_code = Some(code);
        self
    }

    /// The same error, of a program that was ended before it was done.
    #[must_use]
    pub fn of_cut_short(mut self) -> Self {
        self.cut_short = true;
        self
    }

    /// Whether the program was ended, so that what it had made by then may be there.
    pub fn is_cut_short(&self) -> bool {
        self.cut_short
    }

    /// The same error, said of a larger operation: `doing: message`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The thing is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// The thing is already there.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self::new(Kind::AlreadyExists, message)
    }

    /// The request itself is wrong; the message names the field.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidArgument, message)
    }

    /// The request is right, but not in the present state.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Kind::FailedPrecondition, message)
    }

    /// The shim's own fault, or the machine's.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::AlreadyExists => Kind::AlreadyExists,
            ErrorKind::PermissionDenied => Kind::PermissionDenied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
            ErrorKind::TimedOut => Kind::DeadlineExceeded,
            ErrorKind::InvalidInput => Kind::InvalidArgument,
            _ => Kind::Internal,
        };
        let text = match error.raw_os_error() {
            Some(errno) => rung_sys::error::describe(errno),
            None => error.to_string(),
        };
        Self::new(kind, text)
    }
}

impl From<rung_sys::Error> for Error {
    fn from(error: rung_sys::Error) -> Self {
        let kind = Self::from(std::io::Error::from_raw_os_error(error.errno())).kind;
        Self::new(kind, error.to_string())
    }
}

impl From<nix::errno::Errno> for Error {
    fn from(errno: nix::errno::Errno) -> Self {
        std::io::Error::from_raw_os_error(errno as i32).into()
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let status = Self::new(error.kind, error.message);
        match error.exit_code {
            Some(code) => exit::attach(status, code),
            None => status,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::new(status.code, status.message)
    }
}

/// Says of a failure what was being done.
pub trait Doing<T> {
    /// Puts `doing` before the error's message. `doing` is only called on failure.
    ///
    /// # Errors
    /// The same error, said of the larger operation.
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(doing()))
    }
}
