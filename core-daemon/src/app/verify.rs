//! Reading the metadata in a process of its own, before it is opened: what reads it may panic where it is damaged.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Doing as _, Error, Kind, Result};
use crate::metadata::{self, Condition};

/// Exit codes of the process. Any other code means that it crashed or was killed.
const WHOLE: u8 = 0;
const FAILED: u8 = 10;
const MENDED: u8 = 11;
const DAMAGED: u8 = 12;

/// How long the process may read: damaged pages may refer to each other in circles.
const DEADLINE: Duration = Duration::from_secs(600);

/// Reads the database at `path` and says by the exit code how it is.
pub fn verify_metadata(path: &Path) -> ExitCode {
    let verified = metadata::verify(path);
    if let Err(error) = &verified {
        let _ = writeln!(std::io::stdout(), "{error}");
    }
    ExitCode::from(match verified {
        Ok(Condition::Whole) => WHOLE,
        Ok(Condition::Mended) => MENDED,
        Err(error) if error.kind() == Kind::DataLoss => DAMAGED,
        Err(_) => FAILED,
    })
}

/// Runs [`verify_metadata`] in another process.
pub(super) fn in_process(path: &Path) -> Result<Condition> {
    let doing = || format!("verify {}", path.display());
    let program = std::env::current_exe().doing(doing)?;
    let mut command = Command::new(program);
    command.arg(metadata::VERIFY).arg(path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn().doing(doing)?;
    let end = Instant::now() + DEADLINE;
    let status = loop {
        match process.try_wait().doing(doing)? {
            Some(status) => break Some(status),
            None if Instant::now() > end => {
                let _ = process.kill();
                let _ = process.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut said = String::new();
    // A line or nothing: it fits the pipe.
    let _ = process.stdout.take().map(|mut stdout| stdout.read_to_string(&mut said));
    let code = status.and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
    match code {
        Some(WHOLE) => Ok(Condition::Whole),
        Some(MENDED) => Ok(Condition::Mended),
        Some(FAILED) => Err(Error::precondition(said.trim())),
        Some(DAMAGED) => Err(Error::new(Kind::DataLoss, said.trim())),
        _ => Err(Error::new(Kind::DataLoss, format!("open {}: damaged: it cannot be read", path.display()))),
    }
}
