//! Kubernetes' container runtime interface: what a kubelet asks for.
//!
//! A pod sandbox is a sandbox record, a container is a container record, both in containerd's namespace `k8s.io`; what
//! only this module knows of them is an extension of the record (`gantry.cri.v1`). [`Store`] has all of them in memory, with
//! what does not outlive the daemon. One file for each family of calls; `runtime.rs` and `image.rs` are the services. A call is
//! carried out to its end without its client, but for those that `serve` names: nothing here needs to see to that.

mod apparmor;
mod calls;
mod container;
mod events;
mod exec;
mod flights;
mod granted;
pub mod host;
mod image;
mod inside;
mod interrupts;
mod labels;
mod lists;
mod metrics;
mod nri;
mod process;
mod quantity;
mod restore;
mod runtime;
mod sandbox;
mod selinux;
mod session;
mod settings;
mod shown;
mod spec;
mod stats;
mod status;
mod store;
mod streaming;
mod template;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use gantry_proto::namespace::Namespace;
use tokio_util::sync::CancellationToken;

pub use image::ImageService;
pub use lists::Lists;
pub use store::{Container, Sandbox, Store};

use flights::Flights;

use crate::config::{Config, RuntimeHandler};
use crate::context::Context;
use crate::error::{Doing as _, Result};
use crate::events::Events;
use crate::gc::Gc;
use crate::id::ContainerId;
use crate::image::Images;
use crate::net::cni::{Cni, Source};
use crate::records::{Containers, Sandboxes};
use crate::snapshots::{Snapshotter, Snapshotters};
use crate::tasks::Tasks;

/// containerd's namespace of pods, their containers and images.
pub const NAMESPACE: &str = "k8s.io";

/// The container runtime interface; clones are the same.
#[derive(Clone)]
pub struct Cri {
    shared: Arc<Shared>,
}

/// What [`Cri`] is made of.
pub struct Parts {
    /// The daemon's configuration.
    pub config: Config,
    /// Container records.
    pub containers: Containers,
    /// Sandbox records.
    pub sandboxes: Sandboxes,
    /// Tasks.
    pub tasks: Tasks,
    /// Images.
    pub images: Images,
    /// Where root file systems come from.
    pub snapshotters: Snapshotters,
    /// Frees what nothing refers to any more.
    pub gc: Gc,
    /// What happens to tasks.
    pub events: Events,
    /// Cancelled when the daemon stops.
    pub stopping: CancellationToken,
}

struct Shared {
    parts: Parts,
    /// The part of the configuration that is in force.
    config: RwLock<Arc<crate::config::Cri>>,
    context: Context,
    store: Store,
    flights: Flights,
    cni: Cni,
    images: image::Known,
    lists: lists::Answers,
    stats: stats::Stats,
    subscribers: events::Subscribers,
    streaming: OnceLock<streaming::Streaming>,
    host: host::Host,
    selinux: selinux::Selinux,
    users: granted::Users,
    calls: calls::Calls,
    interrupts: interrupts::Interrupts,
    nri: nri::Nri,
}

impl Cri {
    /// The interface over these parts; [`Cri::restore`] finds pods of an earlier daemon.
    ///
    /// # Errors
    /// When its directories cannot be made, or a handler's snapshotter is not there.
    pub fn new(parts: Parts) -> Result<Self> {
        check_snapshotters(&parts.config.cri, &parts.snapshotters)?;
        sandbox::localtime::read(&parts.config.cri.timezone)?;
        let namespace = Namespace::parse(NAMESPACE)
            .map_err(|error| crate::error::Error::internal(format!("namespace {NAMESPACE}: {error}")))?;
        let store = Store::new(namespace.clone(), parts.sandboxes.clone(), parts.containers.clone());
        let mut cni = parts.config.cri.cni.clone();
        if cni.cache_dir.as_os_str().is_empty() {
            cni.cache_dir = parts.config.root.join("cni");
        }
        let others = networks(&parts.config.cri, &cni);
        let host = host::Host::look(&[&parts.config.root, &parts.config.state]);
        let labels = selinux::Selinux::look(parts.config.cri.selinux, parts.config.cri.selinux_category_range);
        let images = image::Known::new(&parts.config.cri.pinned_images);
        let plugins = nri::Nri::new(parts.config.cri.nri.clone());
        let config = RwLock::new(Arc::new(parts.config.cri.clone()));
        let shared = Shared {
            parts,
            config,
            context: Context::new(namespace),
            store,
            flights: Flights::default(),
            cni: Cni::new(cni, others),
            host,
            selinux: labels,
            nri: plugins,
            images,
            lists: lists::Answers::default(),
            stats: stats::Stats::default(),
            subscribers: events::Subscribers::default(),
            streaming: OnceLock::new(),
            users: granted::Users::default(),
            calls: calls::Calls::default(),
            interrupts: interrupts::Interrupts::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn parts(&self) -> &Parts {
        &self.shared.parts
    }

    /// The settings in force. A call that asks twice may get two, where they are changed in between.
    fn config(&self) -> Arc<crate::config::Cri> {
        self.shared.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether other settings can be taken over on this machine.
    ///
    /// # Errors
    /// `NotFound` for a handler's snapshotter that is not there, `FailedPrecondition` for such a time zone.
    pub fn check(&self, config: &crate::config::Cri) -> Result<()> {
        check_snapshotters(config, &self.parts().snapshotters)?;
        sandbox::localtime::read(&config.timezone).map(drop)
    }

    /// Takes over other settings that were checked, for what begins from now on. They differ only in what a running daemon can
    /// change.
    pub fn reconfigure(&self, config: &crate::config::Cri) {
        self.shared.images.pin(&config.pinned_images);
        self.shared.cni.set_others(networks(config, &config.cni));
        *self.shared.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config.clone());
    }

    /// In whose name everything is done.
    fn context(&self) -> &Context {
        &self.shared.context
    }

    /// Where a handler's root file systems come from.
    fn snapshotter(&self, handler: &RuntimeHandler) -> Result<Arc<dyn Snapshotter>> {
        self.parts().snapshotters.get(&handler.snapshotter)
    }

    /// The same for a pod, whose handler may be gone from the configuration.
    fn snapshotter_of_pod(&self, handler: &str) -> Result<Arc<dyn Snapshotter>> {
        match self.config().handler(handler) {
            Ok(handler) => self.snapshotter(handler),
            Err(_) => self.parts().snapshotters.get(""),
        }
    }

    /// Where the root file system of a container is that was made.
    fn snapshotter_of(&self, id: &ContainerId) -> Result<Arc<dyn Snapshotter>> {
        let stored = self.parts().containers.get(&self.context().namespace, id)?;
        self.parts().snapshotters.get(&stored.snapshotter)
    }

    /// All that handlers use, the default one first.
    fn all_snapshotters(&self) -> Result<Vec<Arc<dyn Snapshotter>>> {
        let mut names = vec![self.parts().snapshotters.default_name()];
        let settings = self.config();
        let others = settings.runtimes.values().map(|handler| handler.snapshotter.as_str());
        for name in others.filter(|name| !name.is_empty()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.into_iter().map(|name| self.parts().snapshotters.get(name)).collect()
    }

    fn known_images(&self) -> &image::Known {
        &self.shared.images
    }

    fn stats(&self) -> &stats::Stats {
        &self.shared.stats
    }

    fn subscribers(&self) -> &events::Subscribers {
        &self.shared.subscribers
    }

    /// All sandboxes and containers.
    fn store(&self) -> &Store {
        &self.shared.store
    }
}

/// An error where a handler is to have its root file systems from what is not there.
fn check_snapshotters(config: &crate::config::Cri, snapshotters: &Snapshotters) -> Result<()> {
    config.runtimes.iter().try_for_each(|(name, handler)| {
        snapshotters.get(&handler.snapshotter).map(drop).doing(|| format!("cri.runtimes.{name}.snapshotter"))
    })
}

/// The networks of all handlers that have some of their own.
fn networks(config: &crate::config::Cri, usual: &crate::config::Cni) -> Vec<Source> {
    config.runtimes.values().filter_map(|handler| network_of(handler, usual)).collect()
}

/// The networks of pods of a handler that has some of its own.
fn network_of(handler: &RuntimeHandler, usual: &crate::config::Cni) -> Option<Source> {
    let (dir, max) = (&handler.cni_conf_dir, handler.cni_max_networks);
    let own_dir = !dir.as_os_str().is_empty();
    (own_dir || max != 0).then(|| Source {
        dir: if own_dir { dir.clone() } else { usual.conf_dir.clone() },
        max: if max != 0 { max } else { usual.max_networks },
    })
}

/// Whether labels have everything that a selector names.
fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
