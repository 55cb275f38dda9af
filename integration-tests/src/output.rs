//! Running a program to its end with a deadline, and showing what it said when it was not what a test wanted.
//!
//! Output goes to unnamed files, not pipes: a container that outlives the command that made it keeps what it inherited
//! open, and must neither block the test nor be killed by it.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::{Result, wait};

/// A program that has ended: what it was, how it ended and what it said.
#[derive(Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it wrote to standard output.
    pub stdout: String,
    /// Everything it wrote to standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Ran {
    /// The exit code; 128 + signal number for a program that a signal ended.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Itself if the program ended with 0, else an error that shows all it said.
    pub fn ok(self) -> Result<Self> {
        self.exits(0)
    }

    /// Itself if the program ended with `code`, else an error that shows all it said.
    pub fn exits(self, code: i32) -> Result<Self> {
        if self.code() != code {
            bail!("wanted exit code {code}: {self}");
        }
        Ok(self)
    }

    /// Standard error of a program that failed (any code but 0); an error if it succeeded.
    pub fn fails(self) -> Result<String> {
        if self.status.success() {
            bail!("wanted a failure: {self}");
        }
        Ok(self.stderr)
    }

    /// Standard output without the white space around it.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ended with {} after {:.2} s", self.command, self.code(), self.took.as_secs_f64())?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                write!(f, "\n--- {name}\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Runs a command to its end within a minute (patient machines: longer). Standard input is empty.
pub fn run(command: Command) -> Result<Ran> {
    run_within(command, wait::seconds(60), "")
}

/// Runs a command to its end with `input` on its standard input.
pub fn run_with_input(command: Command, input: &str) -> Result<Ran> {
    run_within(command, wait::seconds(60), input)
}

/// Runs a command to its end within `limit`; kills it and fails when it takes longer.
pub fn run_within(mut command: Command, limit: Duration, input: &str) -> Result<Ran> {
    let shown = show(&command);
    let mut stdin = tempfile::tempfile().context("make a file for standard input")?;
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut stdout = tempfile::tempfile().context("make a file for standard output")?;
    let mut stderr = tempfile::tempfile().context("make a file for standard error")?;
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone()?))
        .stderr(Stdio::from(stderr.try_clone()?))
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    let ended = wait::until_within(limit, &shown, || child.try_wait().transpose());
    let took = begun.elapsed();
    let status = match ended {
        Ok(status) => status.with_context(|| format!("wait for `{shown}`"))?,
        Err(late) => {
            child.kill()?;
            child.wait()?;
            bail!("{late}\n--- stdout\n{}\n--- stderr\n{}", read(&mut stdout)?, read(&mut stderr)?);
        }
    };
    Ok(Ran { command: shown, status, stdout: read(&mut stdout)?, stderr: read(&mut stderr)?, took })
}

/// The command as a person would type it.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

fn read(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a line to standard output. A closed output is not an error of the tests.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn shows_what_a_failing_program_said() {
        let error = run(shell("echo out; echo err >&2; exit 3")).unwrap().ok().unwrap_err().to_string();
        for part in ["ended with 3", "out", "err"] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(run(shell("kill -9 $$")).unwrap().code(), 137);
        assert_eq!(run_with_input(shell("cat"), "in").unwrap().text(), "in");
    }

    #[test]
    fn kills_what_runs_too_long() {
        let error = run_within(shell("echo begun; exec sleep 60"), Duration::from_millis(200), "").unwrap_err();
        assert!(error.to_string().contains("begun"), "{error}");
    }
}
