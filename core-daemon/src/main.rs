//! The daemon's program.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    rung_sys::signal::keep_children();
    gantryd::run(gantryd::args::Args::parse())
}
