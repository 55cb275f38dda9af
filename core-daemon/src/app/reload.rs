//! Reading the configuration again while the daemon runs, when it is sent SIGHUP.
//!
//! What can be taken over holds for whatever begins after it; calls under way and containers go on as they are. Whatever is
//! wrong with the file, the daemon goes on as it was.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::SetLevel;
use crate::blocking::blocking;
use crate::config::{Config, Overrides, Reloaded};
use crate::cri::Cri;
use crate::error::{Doing as _, Result};
use crate::image::Images;
use crate::serve;

/// Watches for the signal. Until then, and without this, it ends the daemon.
///
/// # Errors
/// When it cannot be watched.
pub(super) fn requests() -> Result<Signal> {
    signal(SignalKind::hangup()).doing(|| "watch for SIGHUP")
}

/// What is configured, and how to change it.
pub(super) struct Reload {
    pub(super) config: watch::Sender<Config>,
    pub(super) flags: Overrides,
    pub(super) set_level: SetLevel,
    pub(super) cri: Cri,
    pub(super) images: Images,
}

impl Reload {
    /// Reads the configuration whenever the signal comes. Signals that come while it is read are one.
    pub(super) async fn keep(self, mut requests: Signal) {
        while requests.recv().await.is_some() {
            serve::notify_reloading();
            match self.once().await {
                Ok(Reloaded { changed, waiting, .. }) if changed.is_empty() && waiting.is_empty() => {
                    tracing::info!("configuration read again: nothing has changed");
                }
                Ok(Reloaded { changed, waiting, .. }) => {
                    if !changed.is_empty() {
                        tracing::info!(settings = changed.join(", "), "configuration read again: taken over");
                    }
                    if !waiting.is_empty() {
                        let settings = waiting.join(", ");
                        tracing::warn!(settings, "configuration read again: needs a restart of gantryd to take effect");
                    }
                }
                Err(error) => tracing::error!(%error, "configuration read again: nothing is changed"),
            }
            serve::notify_ready();
        }
    }

    async fn once(&self) -> Result<Reloaded> {
        let before = self.config.borrow().clone();
        let flags = self.flags.clone();
        let new = blocking(move || Config::load(&flags)).await?;
        new.notes.iter().filter(|note| !before.notes.contains(note)).for_each(|note| {
            tracing::warn!("configuration: {note}");
        });
        let reloaded = before.reloaded(&new)?;
        // What may fail comes first, and leaves no trace then.
        let level = crate::filter(&reloaded.config.log.level).doing(|| "log.level")?;
        self.cri.check(&reloaded.config.cri)?;
        (self.set_level)(level)?;
        self.cri.reconfigure(&reloaded.config.cri);
        self.images.set_features(super::features(&reloaded.config, &self.images.snapshotters));
        self.config.send_replace(Config { notes: new.notes, ..reloaded.config.clone() });
        Ok(reloaded)
    }
}
