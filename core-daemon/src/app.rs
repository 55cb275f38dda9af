//! The composition root: every part of the daemon is made here, from those below it, in order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::containerd::services::containers::v1::containers_server::ContainersServer;
use gantry_proto::containerd::services::content::v1::content_server::ContentServer;
use gantry_proto::containerd::services::diff::v1::diff_server::DiffServer;
use gantry_proto::containerd::services::events::v1::events_server::EventsServer;
use gantry_proto::containerd::services::images::v1::images_server::ImagesServer;
use gantry_proto::containerd::services::introspection::v1::introspection_server::IntrospectionServer;
use gantry_proto::containerd::services::leases::v1::leases_server::LeasesServer;
use gantry_proto::containerd::services::mounts::v1::mounts_server::MountsServer;
use gantry_proto::containerd::services::namespaces::v1::namespaces_server::NamespacesServer;
use gantry_proto::containerd::services::sandbox::v1::controller_server::ControllerServer;
use gantry_proto::containerd::services::sandbox::v1::store_server::StoreServer;
use gantry_proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use gantry_proto::containerd::services::streaming::v1::streaming_server::StreamingServer;
use gantry_proto::containerd::services::tasks::v1::tasks_server::TasksServer;
use gantry_proto::containerd::services::transfer::v1::transfer_server::TransferServer;
use gantry_proto::containerd::services::version::v1::version_server::VersionServer;
use gantry_proto::containerd::types::Platform;
use gantry_proto::gantry::engine::v1::engine_server::EngineServer;
use gantry_proto::gantry::images::v1::images_server::ImagesServer as GantryImagesServer;
use gantry_proto::gantry::system::v1::system_server::SystemServer;
use gantry_proto::runtime::v1::image_service_server::ImageServiceServer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;
use tonic::service::{Routes, RoutesBuilder};

use crate::SetLevel;
use crate::config::{self, Config, Overrides, SharingPolicy, Timeouts};
use crate::content::{Content, Pace};
use crate::cri::{self, Cri};
use crate::diff::Processors;
use crate::engine::{self, Engine};
use crate::error::{Doing as _, Error, Result};
use crate::events::Events;
use crate::gc::{Gc, Schedule};
use crate::grpc;
use crate::image::{self, AtOnce, Images, Policies, Verifiers};
use crate::metadata::Db;
use crate::mounts::Mounts;
use crate::observe::{self, Observer};
use crate::oom_score;
use crate::records::{Containers, ImageRecords, Leases, Namespaces, Pods, Sandboxes};
use crate::registry::Registry;
use crate::serve::{self, Socket};
use crate::shims::{self, Launcher};
use crate::snapshots::erofs::Erofs;
use crate::snapshots::native::Native;
use crate::snapshots::overlay::Overlay;
use crate::snapshots::proxy::Proxy;
use crate::snapshots::{Driver, Local, Snapshotter, Snapshotters, Unpacking};
use crate::storage::{self, Logs, Storage};
use crate::tasks::{self, Bundles, Parts, Restored, Tasks};
use crate::ttrpc::events::ForwardService;

mod idle;
mod reload;
mod verify;
use reload::Reload;
pub use verify::verify_metadata;

/// Runs the daemon until it is told to stop. `flags` and `set_level` are for reading the configuration again.
///
/// # Errors
/// Names what cannot be opened, or which address is taken.
pub async fn run(config: Config, flags: Overrides, set_level: SetLevel) -> Result<()> {
    // First of all: until the signals are watched they kill, and a client that gets an answer may already send one.
    let (signals, reloads) = (serve::stop_signals()?, reload::requests()?);
    let _claim = serve::claim(&config)?;
    // Before anything is started that inherits it.
    oom_score::set(config.oom_score)?;
    shims::raise_open_files();
    rung_sys::spawn::without_copying();
    let stopping = CancellationToken::new();
    let daemon = Daemon::build(&config, &stopping)?;
    // Before tasks are restored: their shims send events as soon as the daemon connects to them.
    let ttrpc = Socket::bind(&config.ttrpc.address, &config.grpc)?;
    let ttrpc = tokio::spawn(serve::ttrpc(ttrpc, ForwardService::new(daemon.tasks.clone()), stopping.clone()));
    daemon.restore().await?;
    daemon.cri.listen().await?;
    // Before anybody can ask for a pod: they may have to have their say.
    daemon.cri.start_nri().await;
    let grpc = Socket::bind(&config.grpc.address, &config.grpc)?;
    let remote = serve::Remote::bind(&config.grpc.remote).await?;
    let routes = daemon.routes(&config, &stopping)?;
    let observer = Observer::new(&config)?;
    let (config_now, in_force) = watch::channel(config.clone());
    let debug = &config.debug;
    if !debug.address.as_os_str().is_empty() {
        let socket = Socket::bind_for(&debug.address, (debug.uid, debug.gid))?;
        tokio::spawn(serve::debug(socket, observer.clone(), in_force, stopping.clone()));
    }
    let gc = tokio::spawn(daemon.gc.clone().run(Schedule::default(), stopping.clone()));
    daemon.gc.changed();
    let cri = daemon.cri.clone();
    let (counters, others) = ((&daemon.gc, &daemon.logs), Arc::new(move |out: &mut String| cri.write_metrics(out)));
    if let Some(metrics) = observe::Listener::bind(&config.metrics.address, &observer, counters, others).await? {
        tokio::spawn(metrics.run(stopping.clone()));
    }
    tokio::spawn(daemon.tasks.clone().keep_as_labelled(stopping.clone()));
    tokio::spawn(daemon.engine.clone().keep_logs_small());
    tokio::spawn(daemon.cri.clone().adopt_images());
    let pace = Pace {
        rate: config.content.verify_rate.saturating_mul(1 << 20),
        interval: Duration::from_secs(config.content.verify_interval.max(1)),
    };
    tokio::spawn(daemon.images.content.clone().keep_verified(pace, stopping.clone()));
    tokio::spawn(idle::give_back(observer.clone(), stopping.clone()));
    let grpc = serve::grpc(grpc, remote, routes, &observer, stopping.clone(), &config);
    let (cri, images) = (daemon.cri.clone(), daemon.images.clone());
    let reload = Reload { config: config_now, flags, set_level, cri, images };
    let reload = tokio::spawn(reload.keep(reloads));
    serve::notify_ready();
    tracing::info!(version = crate::VERSION, address = %config.grpc.address.display(), "ready");
    let stop = async {
        signals.await;
        stopping.cancel();
    };
    let (served, ()) = tokio::join!(grpc, stop);
    reload.abort();
    let _ = tokio::join!(ttrpc, gc, observer.flush(), daemon.cri.stop_nri());
    daemon.snapshots.iter().for_each(|(_, snapshotter)| snapshotter.close());
    served
}

/// The daemon's parts, lowest first.
struct Daemon {
    snapshots: Snapshotters,
    mounts: Mounts,
    images: Images,
    namespaces: Namespaces,
    storage: Storage,
    gc: Gc,
    logs: Logs,
    events: Events,
    sandboxes: Sandboxes,
    containers: Containers,
    tasks: Tasks,
    engine: Engine,
    cri: Cri,
}

impl Daemon {
    fn build(config: &Config, stopping: &CancellationToken) -> Result<Self> {
        let events = Events::new();
        let content = config.root.join("io.containerd.content.v1.content");
        let db = metadata(config, &content)?;
        let snapshots = snapshotters(config, &db, &events)?;
        let content = Content::open(&content, db.clone(), events.clone())?;
        let content = content.isolated(config.content.sharing_policy == SharingPolicy::Isolated);
        let mounts = Mounts::open(&config.state, &config.root)?;
        let gc = Gc::new(db.clone(), content.clone(), snapshots.clone(), mounts.clone(), events.clone());
        let logs = Logs::new(config.root.join(engine::DIRECTORY), config.container_log.max_total);
        let storage = Storage::new(storage::Parts {
            db: db.clone(),
            content: content.clone(),
            snapshotters: snapshots.clone(),
            gc: gc.clone(),
            logs: logs.clone(),
        });
        let images = images(config, &db, content, &snapshots, &gc, &events);
        let (namespaces, sandboxes) = (Namespaces::new(db.clone(), events.clone()), Sandboxes::new(db.clone()));
        let containers = Containers::new(db.clone(), events.clone());
        let tasks = Tasks::new(Parts {
            containers: containers.clone(),
            content: images.content.clone(),
            mounts: mounts.clone(),
            snapshots: snapshots.clone(),
            bundles: Bundles::open(&config.state, &config.root)?,
            launcher: launcher(config)?,
            events: events.clone(),
            runtime: config.runtime.clone(),
            timeouts: config.timeouts.clone(),
        });
        tasks.warn_of_aliases();
        let engine = Engine::new(engine::Parts {
            config: config.clone(),
            containers: containers.clone(),
            tasks: tasks.clone(),
            images: images.clone(),
            snapshotters: snapshots.clone(),
            gc: gc.clone(),
            logs: logs.clone(),
            events: events.clone(),
            stopping: stopping.clone(),
        })?;
        let cri = Cri::new(cri::Parts {
            config: config.clone(),
            containers: containers.clone(),
            sandboxes: sandboxes.clone(),
            tasks: tasks.clone(),
            images: images.clone(),
            snapshotters: snapshots.clone(),
            gc: gc.clone(),
            events: events.clone(),
            stopping: stopping.clone(),
        })?;
        Ok(Self {
            snapshots,
            mounts,
            images,
            namespaces,
            storage,
            gc,
            logs,
            events,
            sandboxes,
            containers,
            tasks,
            engine,
            cri,
        })
    }

    /// Finds what an earlier daemon left running.
    async fn restore(&self) -> Result<()> {
        self.images.leases.end_all_temporary()?;
        let (report, mut found) = mpsc::unbounded_channel();
        let ((to_engine, for_engine), (to_cri, for_cri)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        self.engine.learn_names()?;
        self.tasks.restore(report).await?;
        let pass_on = move |restored: Restored| {
            let to = if restored.namespace().as_str() == cri::NAMESPACE { &to_cri } else { &to_engine };
            // This fails only while the daemon ends, when nobody listens any more.
            let _ = to.send(restored);
        };
        while let Ok(restored) = found.try_recv() {
            pass_on(restored);
        }
        tokio::spawn(async move {
            while let Some(restored) = found.recv().await {
                pass_on(restored);
            }
        });
        self.engine.restore(for_engine).await?;
        self.cri.restore(for_cri).await
    }

    fn routes(&self, config: &Config, stopping: &CancellationToken) -> Result<Routes> {
        let mut routes = RoutesBuilder::default();
        let max = config.grpc.max_message;
        macro_rules! serve {
            ($($server:ident($service:expr)),* $(,)?) => {
                $(routes.add_service(
                    $server::new($service)
                        .accept_compressed(CompressionEncoding::Gzip)
                        .max_decoding_message_size(max)
                        .max_encoding_message_size(max),
                );)*
            };
        }
        let pods: Arc<dyn Pods> = Arc::new(self.cri.clone());
        let (tasks, gc, streams) = (self.tasks.clone(), &self.gc, grpc::streams::Streams::default());
        let plugins =
            grpc::introspection::plugins(&platform(), &self.snapshots, &grpc::introspection::opt(&config.root)?);
        serve!(
            ContainersServer(grpc::containers::ContainersService::new(
                self.containers.clone(),
                pods.clone(),
                gc.clone()
            )),
            ContentServer(grpc::content::ContentService::new(self.images.content.clone(), gc.clone())),
            ControllerServer(grpc::sandbox_controller::SandboxControllerService::new(
                tasks::Sandboxes::new(tasks.clone()),
                stopping.clone(),
            )),
            DiffServer(grpc::diff::DiffService::new(self.images.clone())),
            EngineServer(grpc::engine::EngineService::new(self.engine.clone())),
            GantryImagesServer(grpc::engine_images::GantryImagesService::new(self.engine.clone())),
            EventsServer(grpc::events::EventsService::new(self.events.clone(), stopping.clone())),
            IntrospectionServer(grpc::introspection::IntrospectionService::new(&config.root, plugins, tasks.clone())?),
            ImageServiceServer(cri::ImageService::new(self.cri.clone())),
            ImagesServer(grpc::images::ImagesService::new(self.images.records.clone(), gc.clone())),
            LeasesServer(grpc::leases::LeasesService::new(self.images.leases.clone(), gc.clone())),
            MountsServer(grpc::mounts::MountsService::new(self.mounts.clone())),
            NamespacesServer(grpc::namespaces::NamespacesService::new(self.namespaces.clone())),
            SnapshotsServer(grpc::snapshots::SnapshotsService::new(self.snapshots.clone(), gc.clone())),
            StoreServer(grpc::sandboxes::SandboxStoreService::new(self.sandboxes.clone())),
            StreamingServer(grpc::streams::StreamingService::new(streams.clone())),
            SystemServer(grpc::engine_system::SystemService::new(
                self.storage.clone(),
                gc.clone(),
                self.engine.clone()
            )),
            TasksServer(grpc::tasks::TasksService::new(tasks, pods, stopping.clone())),
            TransferServer(grpc::transfer::TransferService::new(self.images.clone(), streams)),
            VersionServer(grpc::version::VersionService),
        );
        routes.add_service(cri::Lists::new(self.cri.clone(), max));
        let (_, health) = tonic_health::server::health_reporter();
        routes.add_service(health);
        Ok(routes.routes())
    }
}

/// The records, with the directories by which damaged ones are rebuilt.
fn metadata(config: &Config, content: &Path) -> Result<Db> {
    let overlay = config.root.join("io.containerd.snapshotter.v1.overlayfs");
    let described = [content.join("blobs/sha256"), overlay.join("snapshots")];
    Db::open_beside(&config.root.join("meta.redb"), &described, &verify::in_process)
}

/// Every snapshotter that this machine can have. One that it cannot have is listed with the reason, and is an error only
/// for whoever asks for it.
fn snapshotters(config: &Config, db: &Db, events: &Events) -> Result<Snapshotters> {
    let root = |name: &str| config.root.join(format!("io.containerd.snapshotter.v1.{name}"));
    let settings = &config.snapshotters.overlayfs;
    let overlay = Overlay::open(&root("overlayfs"));
    let overlay = overlay.map(|it| it.volatile(settings.volatile).upperdir_label(settings.upperdir_label));
    let opened = [
        ("overlayfs", local("overlayfs", overlay, db, events)),
        ("native", local("native", Native::open(&root("native")), db, events)),
        ("erofs", local("erofs", Erofs::open(&root("erofs")), db, events)),
    ];
    let proxies = config
        .proxy_plugins
        .iter()
        .map(|(name, plugin)| (name.as_str(), local(name, Proxy::open(&root(name), name, plugin), db, events)));
    let (mut all, mut failed) = (BTreeMap::new(), BTreeMap::new());
    for (name, snapshotter) in opened.into_iter().chain(proxies) {
        match snapshotter {
            Ok(snapshotter) => drop(all.insert(name.to_owned(), snapshotter)),
            Err(error) => {
                tracing::info!(snapshotter = name, %error, "not available");
                failed.insert(name.to_owned(), error.to_string());
            }
        }
    }
    Snapshotters::with_failed(all, failed, &config.runtime.snapshotter)
}

fn local<D: Driver + 'static>(name: &str, driver: Result<D>, db: &Db, events: &Events) -> Result<Arc<dyn Snapshotter>> {
    Ok(Arc::new(Local::open(name, driver?, db.clone(), events.clone())?))
}

fn processors(config: &Config) -> Processors {
    Processors::new(&config.stream_processors).taking_images(config.snapshotters.erofs.trust_images)
}

fn images(config: &Config, db: &Db, content: Content, snapshotters: &Snapshotters, gc: &Gc, events: &Events) -> Images {
    Images::new(image::Parts {
        records: ImageRecords::new(db.clone(), events.clone()),
        content,
        snapshotters: snapshotters.clone(),
        leases: Leases::new(db.clone(), snapshotters.clone()),
        registry: registry(config),
        at_once: at_once(&config.registry),
        policies: Policies::new(&config.image_policy),
        verifiers: Verifiers::new(&config.image_verifier),
        processors: processors(config),
        features: features(config, snapshotters),
        wake: gc.waker(),
    })
}

/// What images may need of this machine: an image that is here is for all snapshotters that something may run on.
fn features(config: &Config, snapshotters: &Snapshotters) -> Vec<String> {
    let of_handlers = config.cri.runtimes.values().map(|handler| handler.snapshotter.as_str());
    let takes = |name: &str| snapshotters.get(name).is_ok_and(|it| it.unpacking() == Unpacking::Converted);
    let takes_images = config.snapshotters.erofs.trust_images && [""].into_iter().chain(of_handlers).all(takes);
    takes_images.then(|| image::EROFS.to_owned()).into_iter().collect()
}

fn at_once(registry: &config::Registry) -> AtOnce {
    AtOnce {
        downloads: registry.max_downloads,
        uploads: registry.max_uploads,
        slices: registry.max_layer_connections,
        large: registry.large_layer.saturating_mul(1 << 20),
    }
}

fn registry(config: &Config) -> Registry {
    let accounts = Some(&config.registry.auth_file).filter(|path| !path.as_os_str().is_empty());
    let names = Some(&config.registry.registries_conf).filter(|path| !path.as_os_str().is_empty());
    let registry = Registry::new(config.registry.config_path.clone()).with_accounts(accounts.cloned());
    let registry = registry.with_registries_conf(names.cloned());
    registry.with_patience(Timeouts::of(config.registry.timeout))
}

fn launcher(config: &Config) -> Result<Launcher> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Ok(Launcher {
        grpc_address: config.grpc.address.to_string_lossy().into_owned(),
        ttrpc_address: config.ttrpc.address.to_string_lossy().into_owned(),
        opt: config.root.join("opt"),
        daemon: std::env::current_exe().map_err(Error::from).doing(|| "find the daemon's own program")?,
        env: config.runtime.shim_env.iter().filter_map(|it| it.split_once('=')).map(owned).collect(),
        debug: config.log.level == "debug" || config.log.level == "trace",
        start_timeout: Timeouts::of(config.timeouts.shim_start),
        cleanup_timeout: Timeouts::of(config.timeouts.shim_cleanup),
        old: Arc::default(),
    })
}

/// The machine's platform, as clients compare it.
fn platform() -> Platform {
    let host = rung_spec::platform::Platform::host();
    // The levels of x86-64 are none of containerd's platforms.
    let variant = host.variant.filter(|_| host.architecture != "amd64").unwrap_or_default();
    Platform { os: host.os, architecture: host.architecture, variant, ..Platform::default() }
}
