//! `binary://`: a logger program that reads the process's output itself.
//!
//! The program gets standard output as descriptor 3, standard error as 4 and a pipe as 5, on which it says that it is
//! ready: by closing it, or with `binary-v2` by writing one byte.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use rung_sys::process::{CStringArray, Pid};
use rung_sys::spawn::Program;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::Kind;
use crate::io::Owner;
use crate::{Doing, Error, Result};

/// How long a logger may take to become ready.
const READY: Duration = Duration::from_secs(10);
/// How long a logger may go on after SIGTERM.
const GRACE: Duration = Duration::from_secs(12);

/// A running logger.
#[derive(Debug)]
pub struct Logger {
    pid: Pid,
    ended: Arc<AtomicBool>,
    ready: Option<(AsyncFd<OwnedFd>, bool)>,
}

impl Logger {
    /// Starts the program of `uri`. `guard` is dropped when the program has ended.
    ///
    /// # Errors
    /// Where the address is malformed or the program cannot be started.
    pub fn start(
        uri: &str,
        owner: &Owner<'_>,
        stdout: OwnedFd,
        stderr: OwnedFd,
        guard: Option<watch::Sender<()>>,
    ) -> Result<Self> {
        let (byte, rest) = match uri.strip_prefix("binary-v2://") {
            Some(rest) => (true, rest),
            None => (false, uri.strip_prefix("binary://").ok_or_else(|| Error::invalid(format!("{uri:?}")))?),
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decode(path)?;
        if !path.starts_with('/') {
            return Err(Error::invalid(format!("{uri:?}: the program's path is not absolute")));
        }
        let mut argv = vec![path.clone()];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            argv.push(decode(key)?);
            if !value.is_empty() {
                argv.push(decode(value)?);
            }
        }
        let env = [format!("CONTAINER_ID={}", owner.id), format!("CONTAINER_NAMESPACE={}", owner.namespace)];
        let (ready, ready_there) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let null = null.as_fd();
        let places =
            [(null, 0), (null, 1), (null, 2), (stdout.as_fd(), 3), (stderr.as_fd(), 4), (ready_there.as_fd(), 5)];
        let (argv, env) = (CStringArray::new(argv)?, CStringArray::new(env)?);
        let program = Program { path: Path::new(&path), argv: &argv, env: &env, no_new_privileges: false };
        let pid = rung_sys::spawn::spawn(&program, &places).doing(|| format!("start {path}"))?;
        let ended = Arc::<AtomicBool>::default();
        let flag = ended.clone();
        owner.reaper.claim(pid.as_raw(), move |_| {
            flag.store(true, Ordering::Relaxed);
            drop(guard);
        });
        Ok(Self { pid, ended, ready: Some((super::source(ready)?, byte)) })
    }

    /// Waits until the logger says that it reads.
    ///
    /// # Errors
    /// Where it ends or takes too long.
    pub async fn ready(&mut self) -> Result<()> {
        let Some((pipe, byte)) = self.ready.take() else { return Ok(()) };
        let said = async {
            loop {
                let mut guard = pipe.readable().await?;
                let mut buffer = [0];
                match nix::unistd::read(&pipe, &mut buffer) {
                    Ok(count) => return Ok::<_, Error>(count == 1 || !byte),
                    Err(Errno::EAGAIN) => guard.clear_ready(),
                    Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        match tokio::time::timeout(READY, said).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(Error::internal("logger: ended before it was ready")),
            Ok(Err(error)) => Err(error.context("logger")),
            Err(_) => Err(Error::new(Kind::DeadlineExceeded, format!("logger: not ready within {READY:?}"))),
        }
    }

    /// Asks the logger to end, and ends it where it does not.
    pub fn stop(self) {
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        let _ = rung_sys::signal::send(self.pid, nix::libc::SIGTERM);
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            // Until the reaper has set the flag the number is the logger's own.
            if !self.ended.load(Ordering::Relaxed) {
                let _ = rung_sys::signal::send(self.pid, nix::libc::SIGKILL);
            }
        });
    }
}

/// Undoes an address's escapes: `%XX` and, as in a query, `+` for a blank.
fn decode(text: &str) -> Result<String> {
    let malformed = || Error::invalid(format!("{text:?} is not a well-formed address"));
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit().ok_or_else(malformed)?, digit().ok_or_else(malformed)?);
                out.push(u8::try_from(high * 16 + low).map_err(|_| malformed())?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(decode("a%2Fb+c").expect("valid"), "a/b c");
        assert!(decode("%2").is_err());
        assert!(decode("%zz").is_err());
    }
}
