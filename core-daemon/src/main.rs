//! The daemon's program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    gantryd::run(gantryd::args::Args::parse())
}
