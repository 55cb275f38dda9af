//! The one place that reports a failure: what happened, and what to do about it.

use std::fmt;
use std::process::ExitCode;

use gantry_proto::exit::EXIT_CODE_HEADER;

use crate::exit::Code;
use crate::output::error_bytes;
use crate::output::human::harmless;

/// A failure as its reader sees it.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: Code,
    /// Nobody is left to read it.
    silent: bool,
    not_found: bool,
}

/// The result of everything that can fail.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: Code::FAILURE, silent: false, not_found: false }
    }

    /// An end without a word, such as when the reader of our output went away.
    pub fn silent(code: Code) -> Self {
        Self { message: String::new(), hint: None, code, silent: true, not_found: false }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Leaves with another code.
    #[must_use]
    pub fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }

    /// The same failure, said of a larger operation.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The same failure where a container was to be run: 125, unless the program itself is at fault.
    #[must_use]
    pub fn of_run(mut self) -> Self {
        if self.code == Code::FAILURE {
            self.code = Code::DAEMON;
        }
        self
    }

    /// Whether the daemon does not have what was named.
    pub fn is_not_found(&self) -> bool {
        self.not_found
    }

    /// Says it on standard error.
    pub fn print(&self) {
        if self.silent {
            return;
        }
        say(format_args!("gantry: {}", self.message));
        if let Some(text) = &self.hint {
            hint(text);
        }
    }

    /// Says it and gives the exit code.
    pub fn report(&self) -> ExitCode {
        self.print();
        self.code.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Says something that is not a failure but should not be missed.
pub fn warn(message: impl fmt::Display) {
    say(format_args!("gantry: warning: {message}"));
}

/// Says what to do about a mistake that has been shown.
pub(crate) fn hint(hint: &str) {
    say(format_args!("hint: {hint}"));
}

/// What ends with a line on standard error.
fn say(text: fmt::Arguments<'_>) {
    error_bytes(shown(&format!("{text}\n")).as_bytes());
}

/// What a terminal shows of `text` and does not act on: the daemon repeats what strangers wrote.
fn shown(text: &str) -> String {
    text.split('\n').map(harmless).collect::<Vec<_>>().join("\n")
}

/// What the daemon answers when it refuses or fails.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let program = status.metadata().get(EXIT_CODE_HEADER).and_then(|code| code.to_str().ok()?.parse().ok());
        if let Some(code) = program {
            return Self::new(status.message()).code(Code(code));
        }
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::Unknown if is_transport(&status) => {
                Self::new("lost the connection to gantryd").hint("containers keep running; see whether gantryd does")
            }
            tonic::Code::Unimplemented if status.message().is_empty() => {
                Self::new("this gantryd does not know the command").hint("gantry and gantryd should be of one version")
            }
            tonic::Code::NotFound => Self { not_found: true, ..Self::new(status.message()) },
            _ => Self::new(status.message()),
        }
    }
}

/// Whether the status was made here, of a broken connection, and not by the daemon.
pub(crate) fn is_transport(status: &tonic::Status) -> bool {
    std::error::Error::source(status).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_does_not_act_on_what_strangers_wrote() {
        assert_eq!(shown("import \u{1b}[31ma:\nb\r\n"), "import \u{fffd}[31ma:\nb\u{fffd}\n");
    }

    #[test]
    fn the_daemon_decides_the_code_of_a_program_that_cannot_run() {
        let mut status = tonic::Status::not_found("exec: nope: not found");
        status.metadata_mut().insert(EXIT_CODE_HEADER, "127".parse().unwrap());
        assert_eq!(Failure::from(status).of_run().code, Code(127));
        assert_eq!(Failure::from(tonic::Status::not_found("image x")).of_run().code, Code::DAEMON);
        assert_eq!(Failure::from(tonic::Status::not_found("image x")).code, Code::FAILURE);
    }
}
