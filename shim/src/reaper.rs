//! Collects dead processes and tells whoever claimed them.
//!
//! The shim is the subreaper of everything it started, so that a container's processes become its children when the
//! runtime that made them exits. A process may die before anybody knows its number: while a runtime call is under way,
//! exits nobody claimed are held for it.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use rung_sys::process::{self, Pid, Target};
use tokio::sync::oneshot;

use crate::{Error, Result};

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// The exit code, or 128 plus the signal's number.
    pub status: u32,
    /// When the shim collected it.
    pub at: SystemTime,
}

impl Exited {
    /// The end, just now, of a process whose status nobody can know.
    pub fn unseen() -> Self {
        Self { status: UNSEEN, at: SystemTime::now() }
    }
}

/// What containerd says for an unknown status.
const UNSEEN: u32 = 255;

/// The process number of a program that was just started.
pub(crate) fn number_of(child: &Child) -> Result<i32> {
    i32::try_from(child.id()).map_err(|_| Error::internal("process number out of range"))
}

/// True where the process is ours to collect.
fn is_child(pidfd: BorrowedFd<'_>) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::PIDFd(pidfd), flags), Err(Errno::ECHILD))
}

type Claim = Box<dyn FnOnce(Exited) + Send>;

/// The one collector of a shim.
#[derive(Clone, Default)]
pub struct Reaper {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    claims: HashMap<i32, Claim>,
    early: HashMap<i32, Exited>,
    expecting: usize,
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reaper").field("claims", &self.lock().claims.len()).finish_non_exhaustive()
    }
}

/// While one of these lives, exits of unknown processes are held.
#[derive(Debug)]
pub struct Expecting(Reaper);

impl Drop for Expecting {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.expecting -= 1;
        if state.expecting == 0 {
            state.early = HashMap::new();
        }
    }
}

impl Reaper {
    /// Announces that processes are about to be made whose numbers come later.
    pub fn expect(&self) -> Expecting {
        self.lock().expecting += 1;
        Expecting(self.clone())
    }

    /// Whether `pid` is there and ours to collect.
    pub fn collects(pid: i32) -> bool {
        pid > 0 && rung_sys::pidfd::open(Pid::from_raw(pid)).is_ok_and(|pidfd| is_child(pidfd.as_fd()))
    }

    /// Runs `claim` when `pid` has ended; at once where it has already.
    ///
    /// A process that is not a child of ours (a runtime may keep what it makes) is watched by its descriptor: that it
    /// ended is then known, and its status is not.
    pub fn claim(&self, pid: i32, claim: impl FnOnce(Exited) + Send + 'static) {
        let _hold = self.expect();
        // Collect first: whoever has died by now is in `early`, and a number that is still taken afterwards belongs to
        // a living process, never to one in `early` that had the same number before.
        self.collect();
        let alive = rung_sys::pidfd::open(Pid::from_raw(pid));
        let early = self.lock().early.remove(&pid);
        match (alive, early) {
            (Err(_), Some(exited)) => claim(exited),
            (Err(_), None) => claim(Exited::unseen()),
            (Ok(pidfd), _) => {
                self.lock().claims.insert(pid, Box::new(claim));
                if !is_child(pidfd.as_fd()) {
                    self.watch(pid, pidfd);
                }
            }
        }
    }

    fn watch(&self, pid: i32, pidfd: OwnedFd) {
        tracing::warn!(pid, "the process is not a child of the shim; its exit status cannot be known");
        let reaper = self.clone();
        tokio::spawn(async move {
            if let Ok(pidfd) = crate::io::watch(pidfd) {
                let _ = pidfd.readable().await;
            }
            let claim = reaper.lock().claims.remove(&pid);
            if let Some(claim) = claim {
                claim(Exited::unseen());
            }
        });
    }

    /// The exit of a direct child that was just made.
    pub fn child(&self, pid: i32) -> oneshot::Receiver<Exited> {
        let (sender, receiver) = oneshot::channel();
        let claim = move |exited| {
            // Whoever asked may have stopped waiting.
            let _ = sender.send(exited);
        };
        self.lock().claims.insert(pid, Box::new(claim));
        receiver
    }

    /// Collects every dead child. Signals merge, so that one SIGCHLD may stand for many.
    pub fn collect(&self) {
        while let Ok(Some((pid, exit))) = process::wait(Target::Any, false) {
            let exited = Exited { status: u32::from(exit.shell_code()), at: SystemTime::now() };
            let claim = {
                let mut state = self.lock();
                let claim = state.claims.remove(&pid.as_raw());
                if claim.is_none() && state.expecting > 0 {
                    state.early.insert(pid.as_raw(), exited);
                }
                claim
            };
            if let Some(claim) = claim {
                claim(exited);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
