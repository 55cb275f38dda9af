//! When the shim ends: when it is told to, or when it has had neither a container nor a client for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How long a shim without containers waits for its first client. A daemon that was killed between starting the shim and
/// talking to it leaves nobody else who would end it.
const EXPECTANT: Duration = Duration::from_secs(30);
/// How long it waits for another client after its last one left: nobody comes back for a shim without containers.
const LONELY: Duration = Duration::from_secs(1);

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
    /// There has been a client.
    met: bool,
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
        self.inner.counts.send_modify(|counts| {
            *counts.of(client) += 1;
            counts.met |= client;
        });
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

    /// Returns once fewer than `most` connections are open.
    pub async fn room_below(&self, most: usize) {
        // It cannot fail: the sender is here.
        let _ = self.inner.counts.subscribe().wait_for(|counts| counts.clients < most).await;
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
                let patience = if now.met { LONELY } else { EXPECTANT };
                if tokio::time::timeout(patience, changed).await.is_err() {
                    return;
                }
            } else if changed.await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_when_the_last_client_has_left() {
        let lifetime = Lifetime::default();
        let (container, client) = (lifetime.container(), lifetime.client());
        let early = tokio::time::timeout(LONELY * 2, lifetime.over()).await;
        assert!(early.is_err(), "it ends although it has both");
        drop(container);
        drop(client);
        tokio::time::timeout(LONELY * 5, lifetime.over()).await.expect("it ends");
    }

    #[tokio::test]
    async fn it_ends_when_it_is_told_to() {
        let lifetime = Lifetime::default();
        let _container = lifetime.container();
        lifetime.stop();
        tokio::time::timeout(LONELY, lifetime.over()).await.expect("it ends");
    }
}
