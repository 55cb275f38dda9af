//! What shims log: lines that come out of the FIFO `log` in their bundle and go into the daemon's log.

use std::io::ErrorKind;
use std::path::Path;

use gantry_proto::namespace::Namespace;
use nix::sys::stat::Mode;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::unix::pipe;
use tracing::Level;

use crate::error::{Doing, Result};
use crate::id::ContainerId;

/// Longest line that is passed on whole.
const MAX_LINE: u64 = 8 * 1024;

/// The reading end of a shim's log.
#[derive(Debug)]
pub struct ShimLog(BufReader<pipe::Receiver>);

impl ShimLog {
    /// Opens the log in `bundle`, which is made if it is not there: shims open it when they start, and some insist on it.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(bundle: &Path) -> Result<Self> {
        let path = bundle.join("log");
        let doing = || format!("shim log {}", path.display());
        match nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)) {
            Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(std::io::Error::from(error)).doing(doing),
        }
        // Open for both directions, it has no end while no shim has it open.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path).doing(doing)?;
        Ok(Self(BufReader::with_capacity(512, receiver)))
    }

    /// Passes lines on until `until` is ready.
    pub async fn pass_on(mut self, namespace: &Namespace, id: &ContainerId, until: impl Future<Output = ()>) {
        tokio::pin!(until);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = (&mut self.0).take(MAX_LINE);
            let read = tokio::select! {
                read = limited.read_until(b'\n', &mut line) => read,
                () = &mut until => return,
            };
            match read {
                Ok(_) => {
                    let text = String::from_utf8_lossy(&line);
                    let text = text.trim_end();
                    match level_of(text) {
                        Level::ERROR => tracing::error!(target: "shim", %namespace, %id, "{text}"),
                        Level::WARN => tracing::warn!(target: "shim", %namespace, %id, "{text}"),
                        _ => tracing::debug!(target: "shim", %namespace, %id, "{text}"),
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%namespace, %id, %error, "read a shim's log");
                    return;
                }
            }
        }
    }
}

/// The level of a line. Shims write `time="…" level=…` and a message. Any other line is a warning: it may be the stack
/// trace of a shim that crashed.
fn level_of(line: &str) -> Level {
    if line.is_empty() {
        return Level::DEBUG;
    }
    let level = line.strip_prefix("time=").and_then(|rest| rest.split_once(" level=")).map(|(_, rest)| rest);
    match level.and_then(|rest| rest.split(' ').next()).map(|level| level.trim_matches('"')) {
        Some("panic" | "fatal" | "error") => Level::ERROR,
        Some("warn" | "warning") | None => Level::WARN,
        Some(_) => Level::DEBUG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_bad_they_are() {
        assert_eq!(level_of("time=\"2026-01-01T00:00:00Z\" level=info msg=\"level=error\""), Level::DEBUG);
        assert_eq!(level_of("time=\"2026-01-01T00:00:00Z\" level=warn msg=full"), Level::WARN);
        assert_eq!(level_of("time=\"2026-01-01T00:00:00Z\" level=error"), Level::ERROR);
        assert_eq!(level_of("goroutine 1 [running]:"), Level::WARN);
        assert_eq!(level_of(""), Level::DEBUG);
    }
}
