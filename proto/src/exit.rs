//! How gantryd's engine says that a program could not be run at all.

use crate::any;
use crate::gantry::shim::v1::ExitCode;
use crate::status::Status;

/// Header of the status that ends `Run`, `Start` or `Exec` where the program itself is at fault: the exit code that a
/// shell gives then, in decimal. [`CANNOT_RUN`] or [`NOT_FOUND`]; absent for every other failure.
pub const EXIT_CODE_HEADER: &str = "gantry-exit-code";

/// ttrpc metadata key of a call whose caller reads [`ExitCode`] in the details of a status.
pub const EXIT_CODE_TTRPC: &str = "gantry-reads-exit-code";

/// The program is there, but the kernel will not execute it.
pub const CANNOT_RUN: u8 = 126;
/// There is no such program in the container.
pub const NOT_FOUND: u8 = 127;

/// A shim's status that says so to the daemon.
#[must_use]
pub fn attach(mut status: Status, code: u8) -> Status {
    status.details.push(any::pack(&ExitCode { code: code.into() }));
    status
}

/// The exit code in a shim's status; none where the failure was another.
pub fn of(status: &Status) -> Option<u8> {
    let code = status.details.iter().find_map(|detail| any::unpack::<ExitCode>(detail).ok())?;
    u8::try_from(code.code).ok()
}
