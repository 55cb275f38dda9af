//! The `gantry` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry::run(std::env::args_os())
}
