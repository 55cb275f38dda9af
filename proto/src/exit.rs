//! How gantryd's engine says that a program could not be run at all.

/// Header of the status that ends `Run`, `Start` or `Exec` where the program itself is at fault: the exit code that a
/// shell gives then, in decimal. [`CANNOT_RUN`] or [`NOT_FOUND`]; absent for every other failure.
pub const EXIT_CODE_HEADER: &str = "gantry-exit-code";

/// The program is there, but the kernel will not execute it.
pub const CANNOT_RUN: u8 = 126;
/// There is no such program in the container.
pub const NOT_FOUND: u8 = 127;
