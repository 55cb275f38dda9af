//! Dispatch: parse, run, one line on failure.

use std::io::Write;
use std::process::ExitCode;

use containerd_shim_rung_v2::args::{self, Command};
use containerd_shim_rung_v2::{bootstrap, cleanup, compress, info};

fn main() -> ExitCode {
    let run = || match args::parse(std::env::args().skip(1))? {
        Command::Version => info::version(),
        Command::Info => info::describe(),
        Command::Start(flags) => bootstrap::start(flags),
        Command::Delete(flags) => cleanup::delete(&flags),
        Command::Compress => compress::run().map(|()| Vec::new()),
    };
    // Daemons read both outputs as one, so that on success nothing but the answer may be written.
    let outcome = run().and_then(|answer| Ok(std::io::stdout().write_all(&answer)?));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "containerd-shim-rung-v2: {error}");
            ExitCode::FAILURE
        }
    }
}
