//! When the shim ends: when it is told to, or when it has had neither a container nor a client for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How long a shim without containers waits for a client. A daemon that was killed between starting the shim and
/// talking to it leaves nobody else who would end it.
const LONELY: Duration = Duration::from_secs(30);

/// Counts what keeps the shim alive.
#[derive(Debug, Clone)]
pub struct Lifetime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    counts: watch::Sender<Counts>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    containers: usize,
    clients: usize,
    stopping: bool,
}

/// One client or one container, until dropped.
#[derive(Debug)]
pub struct Hold {
    inner: Arc<Inner>,
    client: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.inner.counts.send_modify(|counts| *counts.of(self.client) -= 1);
    }
}

impl Counts {
    fn of(&mut self, client: bool) -> &mut usize {
        if client { &mut self.clients } else { &mut self.containers }
    }
}

impl Default for Lifetime {
    fn default() -> Self {
        Self { inner: Arc::new(Inner { counts: watch::Sender::default() }) }
    }
}

impl Lifetime {
    /// A connection is open.
    pub fn client(&self) -> Hold {
        self.hold(true)
    }

    /// A container or a sandbox exists.
    pub fn container(&self) -> Hold {
        self.hold(false)
    }

    fn hold(&self, client: bool) -> Hold {
        self.inner.counts.send_modify(|counts| *counts.of(client) += 1);
        Hold { inner: self.inner.clone(), client }
    }

    /// True while no container exists.
    pub fn is_empty(&self) -> bool {
        self.inner.counts.borrow().containers == 0
    }

    /// Open connections.
    pub fn clients(&self) -> usize {
        self.inner.counts.borrow().clients
    }

    /// Ends the shim as soon as possible.
    pub fn stop(&self) {
        self.inner.counts.send_modify(|counts| counts.stopping = true);
    }

    /// Returns when the shim shall end. Between changes nothing wakes up, except once after the last of them.
    pub async fn over(&self) {
        let mut counts = self.inner.counts.subscribe();
        loop {
            let now = *counts.borrow_and_update();
            if now.stopping {
                return;
            }
            let changed = counts.changed();
            if now.containers == 0 && now.clients == 0 {
                if tokio::time::timeout(LONELY, changed).await.is_err() {
                    return;
                }
            } else if changed.await.is_err() {
                return;
            }
        }
    }
}
