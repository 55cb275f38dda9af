//! The log of one run: text or JSON lines, to stderr or to the file of `--log`.
//!
//! Callers such as the containerd shim read the last line of level `error` as the reason of a failure; ours carries a
//! `kind` beside the text, so that nobody has to match on words.

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::clock;
use crate::error::{Doing as _, Error, Result};

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    Text,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// `text` or `json`.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "text" | "" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Error::invalid(format!("invalid log-format: {other}"))),
        }
    }
}

/// What is logged: this and all that is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The phases of a start too.
    Debug,
    /// What was ignored and perhaps should not have been.
    Warning,
    /// Why the run failed.
    Error,
}

impl Level {
    /// `debug`, `warning` or `error`.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "debug" => Ok(Self::Debug),
            "warning" => Ok(Self::Warning),
            "error" => Ok(Self::Error),
            other => Err(Error::invalid(format!("invalid log-level: {other} (use debug, warning or error)"))),
        }
    }
}

#[derive(Debug)]
struct Log {
    file: Option<std::fs::File>,
    format: Format,
    level: Level,
    hints: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the log; without a path it is stderr.
pub fn open(path: Option<&Path>, format: Format, level: Level) -> Result<()> {
    let path = path.map(backend).transpose()?;
    let file = match path {
        None => None,
        Some(path) if path.as_os_str().is_empty() => None,
        Some(path) => Some(
            OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o644)
                .custom_flags(libc::O_CLOEXEC | libc::O_SYNC)
                .open(path)
                .doing(|| format!("open log file {}", path.display()))?,
        ),
    };
    // Asked here: what is stderr to the process of a container may be a terminal of its own.
    let hints = file.is_some() || std::io::stderr().is_terminal();
    // A second call keeps the first log: there is one log a run.
    let _ = LOG.set(Log { file, format, level, hints });
    Ok(())
}

/// The file of crun's `file:PATH`. Its other backends have daemons behind them that a runtime should not wait for.
fn backend(path: &Path) -> Result<&Path> {
    match path.to_str().and_then(|text| text.split_once(':')) {
        Some(("file", file)) => Ok(Path::new(file)),
        Some(("journald" | "syslog", _)) => {
            Err(Error::unsupported(format!("--log {}: not supported (use a file)", path.display())))
        }
        _ => Ok(path),
    }
}

/// Reports the error that ends the run. It goes to the log, and to stderr too when the log is a file.
pub fn error(error: &Error) {
    write("error", &error.to_string(), Some(error.kind().name()));
    if LOG.get().is_some_and(|log| log.file.is_some()) {
        to_stderr(&line(Format::Text, "error", &error.to_string(), None));
    }
}

/// Reports that the program of a container could not be executed, to whoever reads its output: the bare line that a
/// shell would print there.
pub fn program_error(error: &Error) {
    to_stderr(&format!("{error}\n"));
}

/// Whether an error goes where a person or a log of its own is, and may be longer than the kernel's answer.
pub fn takes_hints() -> bool {
    LOG.get().is_some_and(|log| log.hints)
}

/// Something that was ignored and perhaps should not have been.
pub fn warning(message: &str) {
    if LOG.get().is_none_or(|log| log.level <= Level::Warning) {
        write("warning", message, None);
    }
}

/// Several of them, a line each.
pub fn warnings(messages: &str) {
    messages.lines().for_each(warning);
}

/// Only with `--debug`; the text is not made otherwise.
pub fn debug(message: impl FnOnce() -> String) {
    if is_debug() {
        write("debug", &message(), None);
    }
}

/// Whether `--debug` was given.
pub fn is_debug() -> bool {
    LOG.get().is_some_and(|log| log.level == Level::Debug)
}

fn write(level: &str, message: &str, kind: Option<&str>) {
    let (file, format) = LOG.get().map_or((None, Format::Text), |log| (log.file.as_ref(), log.format));
    let text = line(format, level, message, kind);
    match file {
        // A full disk must not hide the error itself, which still reaches stderr.
        Some(mut file) => drop(file.write_all(text.as_bytes())),
        None => to_stderr(&text),
    }
}

fn to_stderr(text: &str) {
    // Nobody is left to tell when stderr is closed.
    drop(std::io::stderr().lock().write_all(text.as_bytes()));
}

fn line(format: Format, level: &str, message: &str, kind: Option<&str>) -> String {
    let time = clock::rfc3339(SystemTime::now());
    match format {
        Format::Text => format!("time={} level={level} msg={}\n", quote(&time), quote(message)),
        Format::Json => {
            let kind = kind.map(|kind| format!(",\"kind\":{}", quote(kind))).unwrap_or_default();
            format!("{{\"level\":\"{level}\",\"msg\":{},\"time\":\"{time}\"{kind}}}\n", quote(message))
        }
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_carry_the_kind() {
        let text = line(Format::Json, "error", "a \"b\"\n", Some("not-found"));
        let value: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "a \"b\"\n");
        assert_eq!(value["kind"], "not-found");
        assert!(value["time"].as_str().is_some_and(|time| time.ends_with('Z')));
    }

    #[test]
    fn other_formats_are_refused() {
        assert_eq!(Format::parse("xml").expect_err("refused").to_string(), "invalid log-format: xml");
    }
}
