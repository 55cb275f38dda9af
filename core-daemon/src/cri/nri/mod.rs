//! Plugins of the node resource interface, which see pods and containers come and go, and may change containers.
//!
//! A plugin connects to a socket, or is started with one. Over that socket it registers, says which events it wants, is told
//! all pods and containers that there are, and from then on what happens to them, in the order of the plugins' indices and one
//! event at a time. A plugin that refuses fails what it was asked about; one that is gone, hangs or answers nonsense is
//! dropped, and everything goes on without it.
//!
//! So that a plugin neither misses a pod or container nor hears of it twice, it is told what there is only outside of every
//! [`Window`]: the time from when plugins are asked about something until that is stored. Nobody waits for the turn of a
//! container or pod within a window, and whoever has such a turn may enter one.

mod apply;
mod attend;
mod events;
mod launch;
mod listen;
mod merge;
mod message;
mod plugin;
mod subject;
mod update;
mod validate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use gantry_proto::nri::pkg::api::v1alpha1::Event;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};
use tokio_util::task::TaskTracker;

use super::Cri;
use crate::config;
use crate::error::{Error, Result};
use plugin::Plugin;

pub(in crate::cri) use events::{Limits, Making as MakingContainer};

/// How long all that is under way may keep a plugin from being told what there is, at a time and in all. New work waits
/// meanwhile, for the shorter time.
const ALONE: Duration = Duration::from_secs(1);
const ALONE_TRIES: u32 = 30;
/// Pause between two tries, in which new work goes on.
const ALONE_PAUSE: Duration = Duration::from_millis(100);

/// All plugins.
pub(in crate::cri) struct Nri {
    settings: config::Nri,
    /// Those that are asked, in their order.
    plugins: RwLock<Arc<Vec<Arc<Plugin>>>>,
    /// Read by windows; written by whoever tells a plugin what there is.
    window: Arc<tokio::sync::RwLock<()>>,
    /// Plugins are asked about one event at a time.
    turn: tokio::sync::Mutex<()>,
    /// The pods and containers that plugins know of.
    told: Mutex<HashMap<String, Told>>,
    /// What serves plugins.
    tasks: TaskTracker,
}

/// How a pod or container is, as far as plugins know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Live,
    Stopped,
}

/// Time in which no plugin is told what there is; see the head of this module.
pub(in crate::cri) struct Window {
    plugins: Arc<Vec<Arc<Plugin>>>,
    open: Option<OwnedRwLockReadGuard<()>>,
}

impl Window {
    /// Whether no plugin wants to know of such events.
    fn idle(&self, event: Event) -> bool {
        !self.plugins.iter().any(|plugin| plugin.wants(event))
    }

    /// Leaves the window; the plugins are still those of it.
    fn close(&mut self) {
        self.open = None;
    }

    /// Whether there is no plugin.
    fn is_empty(&self) -> bool {
        self.plugins.is_empty()
    }
}

impl Nri {
    pub(in crate::cri) fn new(settings: config::Nri) -> Self {
        Self {
            settings,
            plugins: RwLock::default(),
            window: Arc::default(),
            turn: tokio::sync::Mutex::default(),
            told: Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    fn registration(&self) -> Duration {
        Duration::from_secs(self.settings.registration_timeout)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.settings.request_timeout)
    }

    fn plugins(&self) -> Arc<Vec<Arc<Plugin>>> {
        self.plugins.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Enters a window.
    async fn enter(&self) -> Window {
        let open = match self.settings.enable {
            true => Some(self.window.clone().read_owned().await),
            false => None,
        };
        Window { plugins: self.plugins(), open }
    }

    /// Waits until there is no window.
    async fn alone(&self) -> Result<OwnedRwLockWriteGuard<()>> {
        for _ in 0..ALONE_TRIES {
            if let Ok(alone) = tokio::time::timeout(ALONE, self.window.clone().write_owned()).await {
                return Ok(alone);
            }
            tokio::time::sleep(ALONE_PAUSE).await;
        }
        Err(Error::unavailable("pods or containers are being made or removed all the time; connect again"))
    }

    /// The plugin is asked from now on.
    fn add(&self, plugin: Arc<Plugin>) {
        let mut plugins = self.plugins.write().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::clone(&plugins);
        // Of two with the same index, the one that came first.
        let at = all.partition_point(|other| other.name.index <= plugin.name.index);
        all.insert(at, plugin);
        *plugins = Arc::new(all);
    }

    fn remove(&self, plugin: &Arc<Plugin>) {
        let mut plugins = self.plugins.write().unwrap_or_else(PoisonError::into_inner);
        let others = plugins.iter().filter(|other| !Arc::ptr_eq(other, plugin)).cloned().collect::<Vec<_>>();
        if others.is_empty() {
            // Nobody remembers, and nobody hears of removals.
            self.told().clear();
        }
        *plugins = Arc::new(others);
    }

    fn told(&self) -> MutexGuard<'_, HashMap<String, Told>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cri {
    fn nri(&self) -> &Nri {
        &self.shared.nri
    }

    /// Enters a window, for what plugins may be asked about.
    pub(in crate::cri) async fn nri_window(&self) -> Window {
        self.nri().enter().await
    }

    /// Starts the plugins that are to be started, and listens for others. Returns once the former have registered, or cannot.
    pub async fn start_nri(&self) {
        if !self.nri().settings.enable {
            return;
        }
        self.launch_plugins().await;
        if self.nri().settings.external {
            self.listen_for_plugins().await;
        }
    }

    /// Waits until plugins have been told that the daemon stops, which they are then, for as long as that may take.
    pub async fn stop_nri(&self) {
        let tasks = &self.nri().tasks;
        tasks.close();
        if tokio::time::timeout(attend::FAREWELL * 2, tasks.wait()).await.is_err() {
            tracing::warn!("plugins of the node resource interface are left behind");
        }
    }
}
