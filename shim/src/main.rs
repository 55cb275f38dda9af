//! Dispatch: parse, run, one line on failure.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use containerd_shim_rung_v2::args::{self, Command};
use containerd_shim_rung_v2::{Error, Result, bootstrap, cleanup, compress, info};

/// The command line, without the program's name.
fn words() -> Result<Vec<String>> {
    let text = |word: OsString| word.into_string().map_err(|word| Error::invalid(format!("{word:?} is no text")));
    std::env::args_os().skip(1).map(text).collect()
}

fn main() -> ExitCode {
    rung_sys::signal::keep_children();
    let run = || match args::parse(words()?)? {
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
