//! A process's log and the clients attached to it, as one destination.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::stdio::{FrameKind, LogPolicy, LogUri};

use crate::Result;
use crate::io::Owner;
use crate::io::attach::Hub;
use crate::io::input::Input;
use crate::io::journal::Journal;
use crate::io::log_file::LogFile;

/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// One of the two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    fn frame(self) -> FrameKind {
        match self {
            Self::Stdout => FrameKind::Stdout,
            Self::Stderr => FrameKind::Stderr,
        }
    }
}

/// Where a `log://` process's output goes.
#[derive(Debug)]
pub struct Output {
    policy: LogPolicy,
    log: Option<Mutex<LogFile>>,
    journal: Option<Mutex<Journal>>,
    hub: Option<Arc<Hub>>,
}

impl Output {
    /// Opens the log and the attach socket of `uri`. Without a runtime to run on nobody is served.
    ///
    /// # Errors
    /// Where either cannot be opened.
    pub fn open(uri: LogUri, input: Option<Arc<Input>>, owner: &Owner<'_>) -> Result<Arc<Self>> {
        let hub = (!uri.attach.is_empty()).then(|| Hub::listen(&uri.attach, uri.policy, input)).transpose()?;
        let policy = uri.policy;
        let journal = (!uri.journal.is_empty()).then(|| Journal::new(owner.id, &uri.journal, uri.max_line));
        let log = (!uri.path.is_empty()).then(|| LogFile::open(uri, owner.reaper.clone())).transpose()?;
        Ok(Arc::new(Self { policy, log: log.map(Mutex::new), journal: journal.map(Mutex::new), hub }))
    }

    /// Takes a chunk; `false` where the process must wait for [`Output::settle`] before it may write more.
    pub fn push(&self, stream: Stream, chunk: &[u8]) -> bool {
        if let Some(mut journal) = self.journal() {
            journal.push(stream, chunk);
        }
        let logged = self.lock().is_none_or(|mut log| log.push(stream, chunk));
        let sent = self.hub.as_ref().is_none_or(|hub| hub.send(stream.frame(), chunk));
        logged && sent
    }

    /// Waits until the log and the clients have taken what was pushed.
    pub async fn settle(&self) {
        while !self.lock().is_none_or(|mut log| log.flush()) {
            if self.policy == LogPolicy::Drop {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        if let Some(hub) = &self.hub {
            hub.flush().await;
        }
    }

    /// Writes what is left of unfinished lines and ends the clients' output after their last byte.
    pub async fn finish(&self) {
        if let Some(mut log) = self.lock() {
            log.end_lines();
        }
        if let Some(mut journal) = self.journal() {
            journal.end_lines();
        }
        self.settle().await;
        if let Some(hub) = &self.hub {
            hub.end_output();
        }
    }

    /// Closes the clients' connections: the process is gone.
    pub fn close(&self) {
        if let Some(hub) = &self.hub {
            hub.close();
        }
    }

    /// Serves everybody whose connection waits to be accepted.
    pub fn accept_waiting(&self) {
        if let Some(hub) = &self.hub {
            hub.accept_waiting();
        }
    }

    /// Opens the log file again under its path.
    ///
    /// # Errors
    /// Where there is no log file, or it cannot be opened.
    pub fn reopen(&self) -> Result<()> {
        match self.lock() {
            Some(mut log) => log.reopen(),
            None => Err(crate::Error::precondition("the process keeps no log file")),
        }
    }

    fn journal(&self) -> Option<MutexGuard<'_, Journal>> {
        self.journal.as_ref().map(|journal| journal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lock(&self) -> Option<MutexGuard<'_, LogFile>> {
        self.log.as_ref().map(|log| log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
    }
}
