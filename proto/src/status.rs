//! One status for both wires: gRPC's codes, which ttrpc uses too.

use std::fmt;

use prost_types::Any;

use crate::google::rpc;

/// gRPC's status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are gRPC's own")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    const ALL: [Self; 17] = [
        Self::Ok,
        Self::Cancelled,
        Self::Unknown,
        Self::InvalidArgument,
        Self::DeadlineExceeded,
        Self::NotFound,
        Self::AlreadyExists,
        Self::PermissionDenied,
        Self::ResourceExhausted,
        Self::FailedPrecondition,
        Self::Aborted,
        Self::OutOfRange,
        Self::Unimplemented,
        Self::Internal,
        Self::Unavailable,
        Self::DataLoss,
        Self::Unauthenticated,
    ];

    /// The code of a number on the wire; numbers nobody defined are `Unknown`.
    pub fn from_number(number: i32) -> Self {
        usize::try_from(number).ok().and_then(|index| Self::ALL.get(index).copied()).unwrap_or(Self::Unknown)
    }

    /// The number on the wire.
    pub fn number(self) -> i32 {
        i32::from(self as u8)
    }
}

/// Why a call failed: a code for programs, a message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What a client branches on.
    pub code: Code,
    /// What a person reads.
    pub message: String,
    /// More for programs; ttrpc carries them, tonic's status here does not.
    pub details: Vec<Any>,
}

impl Status {
    /// A status of `code` that says `message`.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// The thing is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// Not offered; the message names the feature.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// The other end is not there now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { write!(f, "{:?}", self.code) } else { f.write_str(&self.message) }
    }
}

impl std::error::Error for Status {}

impl From<Status> for rpc::Status {
    fn from(status: Status) -> Self {
        Self { code: status.code.number(), message: status.message, details: status.details }
    }
}

impl From<rpc::Status> for Status {
    fn from(status: rpc::Status) -> Self {
        Self { code: Code::from_number(status.code), message: status.message, details: status.details }
    }
}

impl From<Status> for tonic::Status {
    fn from(status: Status) -> Self {
        Self::new(tonic::Code::from_i32(status.code.number()), status.message)
    }
}

impl From<tonic::Status> for Status {
    fn from(status: tonic::Status) -> Self {
        Self::new(Code::from_number(i32::from(status.code())), status.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for number in 0..17 {
            assert_eq!(Code::from_number(number).number(), number);
            let tonic = tonic::Status::from(Status::new(Code::from_number(number), "x"));
            assert_eq!(Status::from(tonic).code.number(), number);
        }
        assert_eq!(Code::from_number(17), Code::Unknown);
        assert_eq!(Code::from_number(-1), Code::Unknown);
    }
}
