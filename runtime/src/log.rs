//! The log of one run: text or JSON lines, to stderr or to the file of `--log`, or to a log of the system.
//!
//! Callers such as the containerd shim read the last line of level `error` as the reason of a failure; ours carries a
//! `kind` beside the text, so that nobody has to match on words.

mod daemon;

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::clock;
use crate::error::{Doing as _, Error, Result};
use daemon::Daemon;

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

/// The least severe messages that are logged.
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

/// Where the log goes.
#[derive(Debug)]
enum Place {
    Stderr,
    File(std::fs::File),
    Daemon(Daemon),
}

#[derive(Debug)]
struct Log {
    place: Place,
    format: Format,
    level: Level,
    hints: bool,
    /// An error that the log has taken is not printed to stderr as well.
    is_all: bool,
}

/// Environment variable: when it is set, stderr belongs to a container. Errors then go to the log alone, if it takes
/// them.
const LOG_ALONE: &str = "RUNG_LOG_ALONE";

static LOG: OnceLock<Log> = OnceLock::new();

/// Opens the log; without a path it is stderr. As with crun `file:PATH` is a path, and `journald:NAME` and `syslog:NAME`
/// are the logs of the system, where the lines have that name.
pub fn open(path: Option<&Path>, format: Format, level: Level) -> Result<()> {
    let place = match path.filter(|path| !path.as_os_str().is_empty()) {
        None => Place::Stderr,
        Some(path) => match path.to_str().and_then(|text| text.split_once(':')) {
            Some(("journald", name)) => Place::Daemon(Daemon::journald(name)?),
            Some(("syslog", name)) => Place::Daemon(Daemon::syslog(name)?),
            Some(("file", path)) => Place::File(open_file(Path::new(path))?),
            _ => Place::File(open_file(path)?),
        },
    };
    // Asked here: what is stderr to the process of a container may be a terminal of its own.
    let hints = !matches!(place, Place::Stderr) || std::io::stderr().is_terminal();
    // A second call keeps the first log: there is one log a run.
    let is_all = matches!(place, Place::Stderr) || std::env::var_os(LOG_ALONE).is_some_and(|it| !it.is_empty());
    let _ = LOG.set(Log { place, format, level, hints, is_all });
    Ok(())
}

fn open_file(path: &Path) -> Result<std::fs::File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(libc::O_CLOEXEC | libc::O_SYNC)
        .open(path)
        .doing(|| format!("open log file {}", path.display()))
}

/// Reports the error that ends the run: to the log and, unless the log is stderr or [`LOG_ALONE`] is set, to stderr too.
pub fn error(error: &Error) {
    let is_written = write("error", &error.to_string(), Some(error.kind().name()));
    if !(is_written && LOG.get().is_none_or(|log| log.is_all)) {
        to_stderr(&format!("{error}\n"));
    }
}

/// Reports that the program of a container could not be executed, to whoever reads its output: the bare line that a
/// shell would print there.
pub fn program_error(error: &Error) {
    to_stderr(&format!("{error}\n"));
}

/// Whether errors are read by a person or go to a log. Then they may say more than the kernel's answer.
pub fn takes_hints() -> bool {
    LOG.get().is_some_and(|log| log.hints)
}

/// Something that was ignored and perhaps should not have been.
pub fn warning(message: &str) {
    if LOG.get().is_none_or(|log| log.level <= Level::Warning) {
        let _ = write("warning", message, None);
    }
}

/// Several of them, a line each.
pub fn warnings(messages: &str) {
    messages.lines().for_each(warning);
}

/// Only with `--debug`; the text is not made otherwise.
pub fn debug(message: impl FnOnce() -> String) {
    if is_debug() {
        let _ = write("debug", &message(), None);
    }
}

/// Whether `--debug` was given.
pub fn is_debug() -> bool {
    LOG.get().is_some_and(|log| log.level == Level::Debug)
}

/// Writes a line; `false` where the log has not taken it, or may not have.
fn write(level: &str, message: &str, kind: Option<&str>) -> bool {
    let format = LOG.get().map_or(Format::Text, |log| log.format);
    match LOG.get().map(|log| &log.place) {
        // A full disk must not hide the error itself, which still reaches stderr.
        Some(Place::File(file)) => {
            let mut file = file;
            file.write_all(line(format, level, message, kind).as_bytes()).is_ok()
        }
        Some(Place::Daemon(daemon)) => {
            daemon.write(level, message);
            false
        }
        Some(Place::Stderr) | None => {
            to_stderr(&line(format, level, message, kind));
            true
        }
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
