//! One error type for the daemon, and its one conversion to a gRPC status.
//!
//! Clients branch on the code, people read the message: operation, object, cause, in lower case.

use std::fmt;

/// What went wrong, as a client distinguishes it; each kind is the gRPC code of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are gRPC's own")]
pub enum Kind {
    Canceled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// A failed operation of the daemon.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    /// Where a container's program could not be run at all: what a shell would exit with.
    exit_code: Option<u8>,
    /// Somebody decided against it, whoever asks.
    refused: bool,
}

/// The daemon's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), exit_code: None, refused: false }
    }

    /// What went wrong, for decisions.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What a shell would exit with, where a container's program could not be run at all.
    pub fn exit_code(&self) -> Option<u8> {
        self.exit_code
    }

    /// The same error, said of a larger operation: `doing: message`.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Somebody who decides about such things decided against this one, whoever asks: `PermissionDenied`.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { refused: true, ..Self::new(Kind::PermissionDenied, message) }
    }

    /// Whether it is such a decision.
    pub fn is_refusal(&self) -> bool {
        self.refused
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

    /// Something outside is not there now; trying again may help.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// The daemon's own fault, or the machine's.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Not offered.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Kind::Unimplemented, message)
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
            // The disk, or the kernel that checks what it reads, has lost it.
            _ if error.raw_os_error() == Some(nix::errno::Errno::EIO as i32) => Kind::DataLoss,
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::AlreadyExists => Kind::AlreadyExists,
            ErrorKind::PermissionDenied => Kind::PermissionDenied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
            ErrorKind::TimedOut => Kind::DeadlineExceeded,
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Kind::Unavailable,
            _ => Kind::Internal,
        };
        if kind == Kind::ResourceExhausted {
            let remedy = "free some, for example with `gantry rmi` of an image that nothing uses, and try again";
            return Self::new(kind, format!("no space left on device: {remedy}"));
        }
        Self::new(kind, plain(&error.to_string()))
    }
}

/// A cause as a part of a sentence: without Rust's "(os error 2)", and without a capital unless it is a name's.
pub fn plain(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or(text);
    let mut letters = text.chars();
    match letters.next() {
        Some(first) if !text.chars().nth(1).is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Says of a failure what was being done.
pub trait Doing<T> {
    /// Puts `doing` before the error's message. `doing` is only called on failure.
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(doing()))
    }
}

impl From<gantry_proto::status::Status> for Error {
    fn from(status: gantry_proto::status::Status) -> Self {
        use gantry_proto::status::Code;
        let kind = match status.code {
            Code::Cancelled => Kind::Canceled,
            Code::InvalidArgument => Kind::InvalidArgument,
            Code::DeadlineExceeded => Kind::DeadlineExceeded,
            Code::NotFound => Kind::NotFound,
            Code::AlreadyExists => Kind::AlreadyExists,
            Code::PermissionDenied => Kind::PermissionDenied,
            Code::ResourceExhausted => Kind::ResourceExhausted,
            Code::FailedPrecondition => Kind::FailedPrecondition,
            Code::Aborted => Kind::Aborted,
            Code::OutOfRange => Kind::OutOfRange,
            Code::Unimplemented => Kind::Unimplemented,
            Code::Internal => Kind::Internal,
            Code::Unavailable => Kind::Unavailable,
            Code::DataLoss => Kind::DataLoss,
            Code::Unauthenticated => Kind::Unauthenticated,
            // No failure is called a success, whatever the peer says.
            Code::Ok | Code::Unknown => Kind::Unknown,
        };
        let exit_code = gantry_proto::exit::of(&status);
        Self { exit_code, ..Self::new(kind, status.message) }
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::Canceled => tonic::Code::Cancelled,
            Kind::Unknown => tonic::Code::Unknown,
            Kind::InvalidArgument => tonic::Code::InvalidArgument,
            Kind::DeadlineExceeded => tonic::Code::DeadlineExceeded,
            Kind::NotFound => tonic::Code::NotFound,
            Kind::AlreadyExists => tonic::Code::AlreadyExists,
            Kind::PermissionDenied => tonic::Code::PermissionDenied,
            Kind::ResourceExhausted => tonic::Code::ResourceExhausted,
            Kind::FailedPrecondition => tonic::Code::FailedPrecondition,
            Kind::Aborted => tonic::Code::Aborted,
            Kind::OutOfRange => tonic::Code::OutOfRange,
            Kind::Unimplemented => tonic::Code::Unimplemented,
            Kind::Internal => tonic::Code::Internal,
            Kind::Unavailable => tonic::Code::Unavailable,
            Kind::DataLoss => tonic::Code::DataLoss,
            Kind::Unauthenticated => tonic::Code::Unauthenticated,
        };
        let mut status = tonic::Status::new(code, error.message);
        if let Some(exit_code) = error.exit_code {
            status.metadata_mut().insert(gantry_proto::exit::EXIT_CODE_HEADER, u64::from(exit_code).into());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_becomes_a_part_of_a_sentence() {
        let error = std::io::Error::from_raw_os_error(nix::libc::ENOENT);
        assert_eq!(Error::from(error).context("read a").to_string(), "read a: no such file or directory");
        assert_eq!(plain("TLS is wanted"), "TLS is wanted");
    }
}
