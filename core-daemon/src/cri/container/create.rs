//! `CreateContainer`: image, root file system, volumes, configuration; the record comes last, so a container that is there
//! is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_proto::any;
use gantry_proto::containerd::runc::v1::Options as RuncOptions;
use gantry_proto::containerd::services::containers::v1::container;
use gantry_proto::gantry::cri::v1::{ContainerRecord, SandboxRecord};
use gantry_proto::runtime::v1;
use prost::Message as _;
use rung_sys::beneath::lexical;
use rung_sys::idmap::Range;

use super::log::log_path;
use super::restored::Source;
use crate::blocking::blocking;
use crate::config::CgroupDriver;
use crate::cri::flights::Stage;
use crate::cri::granted::{Forbidden, namespace_options};
use crate::cri::host::MountTable;
use crate::cri::sandbox::check::{self, Namespaces};
use crate::cri::spec::{self, Making, Volume};
use crate::cri::store::now;
use crate::cri::{Cri, Sandbox, host, selinux};
use crate::error::{Doing as _, Error, Kind, Result};
use crate::failpoint;
use crate::id;
use crate::image::Resolved;
use crate::labels::{GC_ROOT, Labels};
use crate::signals;
use crate::snapshots::Mount as SnapshotMount;

/// On a snapshot: it belongs to a container of a pod, or to one whose creation was cut short.
pub(in crate::cri) const OURS: &str = "gantry.cri/container";
/// On a snapshot: whose ids those of its files are outside of the container.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
/// What asks a container to stop whose image and configuration say nothing.
const TERM: u32 = 15;

/// A container that is about to be made.
pub(super) struct Draft {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) record: Arc<SandboxRecord>,
    pub(super) config: v1::ContainerConfig,
    pub(super) namespaces: Namespaces,
    pub(super) image: Resolved,
    /// It goes on from a checkpoint, which is unpacked.
    restored: bool,
    sources: Vec<Option<PathBuf>>,
    volumes: Vec<Volume>,
    profile: Option<String>,
    pid_of: Option<u32>,
}

impl Cri {
    pub(in crate::cri) async fn create_container(
        &self,
        request: v1::CreateContainerRequest,
    ) -> Result<v1::CreateContainerResponse> {
        let config = request.config.clone().ok_or_else(|| Error::invalid("config: is required"))?;
        let metadata = check_config("config", &config)?.clone();
        let sandbox = self.store().sandbox(&request.pod_sandbox_id)?;
        let name = container_name(&metadata, &sandbox);
        let (cri, asked, reserved) = (self.clone(), request.encode_to_vec(), name.clone());
        let work = |stage| async move { cri.create_named(reserved, sandbox, config, stage).await };
        let container_id = self.shared.flights.join(&format!("container/{name}"), &asked, work).await?;
        Ok(v1::CreateContainerResponse { container_id })
    }

    async fn create_named(
        &self,
        name: String,
        sandbox: Arc<Sandbox>,
        config: v1::ContainerConfig,
        stage: Stage,
    ) -> Result<String> {
        let there = self.store().containers_of(sandbox.id().as_str()).into_iter();
        if let Some(there) = there.into_iter().find(|container| container.record().name == name) {
            let same = there.record().config.as_ref() == Some(&config);
            // The answer to an earlier request was lost.
            if same && there.state() == v1::ContainerState::ContainerCreated {
                return Ok(there.id().to_string());
            }
            return Err(Error::precondition(format!("name {name}: is the container {}", there.id())));
        }
        self.make_named(name, sandbox, config, None, &stage).await
    }

    /// Makes a container whose name nobody else has, from a checkpoint where there is one.
    pub(in crate::cri) async fn make_named(
        &self,
        name: String,
        sandbox: Arc<Sandbox>,
        config: v1::ContainerConfig,
        from: Option<Source>,
        stage: &Stage,
    ) -> Result<String> {
        let shown = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        let (id, pod) = (id::random::<32>()?, sandbox.id().clone());
        let made = self.make_container(id.clone(), name, sandbox, config, from, stage).await;
        if let Err(error) = made {
            let (cri, left) = (self.clone(), id.clone());
            if let Err(error) = blocking(move || cri.remove_container_dir(&left)).await {
                tracing::warn!(id, %error, "remove the files of a container that could not be made");
            }
            return Err(error.context(format!("create container {shown}")));
        }
        self.announce(&id, pod.as_str(), v1::ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    async fn make_container(
        &self,
        id: String,
        name: String,
        sandbox: Arc<Sandbox>,
        config: v1::ContainerConfig,
        from: Option<Source>,
        stage: &Stage,
    ) -> Result<()> {
        let record = sandbox.record();
        let namespaces = self.agreed_namespaces(&sandbox, &record, &config)?;
        stage.enter("image")?;
        let wanted = config.image.clone().unwrap_or_default().image;
        if wanted.is_empty() {
            return Err(Error::invalid("config.image: is required"));
        }
        let (cri, text) = (self.clone(), wanted.clone());
        let found = match from {
            Some(source) => Err(source),
            None => blocking(move || cri.image_or_checkpoint(&text)).await?,
        };
        let (image, restored) = match found {
            Ok(image) => {
                stage.unless_cancelled(self.check_policies(record.config.as_ref(), &config)).await?;
                (image, false)
            }
            Err(source) => {
                if namespaces.user.is_some() {
                    return Err(Error::unimplemented("restore a checkpoint in a pod with users of its own"));
                }
                let (cri, id) = (self.clone(), id.clone());
                let unpacked = blocking(move || cri.unpack_checkpoint(&id, source)).await;
                (unpacked.doing(|| format!("image {wanted:?}"))?, true)
            }
        };
        stage.enter("seccomp profile")?;
        let profile = stage.unless_cancelled(self.annotated_profile(&record, &config, &image)).await?;
        stage.enter("host paths")?;
        let sources = stage.unless_cancelled(self.host_paths(&config)).await?;
        stage.enter("process to share with")?;
        let pid_of = self.pid_to_join(&sandbox, &namespaces, &config)?;
        stage.enter("volumes")?;
        let volumes = self.image_mounts(&sandbox, &config, &namespaces).await?;
        let draft =
            Draft { id, name, sandbox, record, config, namespaces, image, restored, sources, volumes, profile, pid_of };
        stage.enter("root file system")?;
        let cri = self.clone();
        // Whoever stops the pod meanwhile takes the turn after this, and finds the container.
        let sandbox = draft.sandbox.clone();
        let _turn = sandbox.turn.lock().await;
        ready(&sandbox)?;
        blocking(move || cri.make_now(&draft)).await
    }

    fn make_now(&self, draft: &Draft) -> Result<()> {
        let settings = self.config();
        let handler = settings.handler(&draft.record.runtime_handler)?;
        let snapshotter = self.snapshotter(handler)?;
        let parent = draft.image.chain_id.as_ref().map_or("", |chain| chain.as_str());
        let prepare = || snapshotter.prepare(self.context(), &draft.id, parent, snapshot_labels(&draft.namespaces));
        let prepared = match prepare() {
            // Pulled for another handler, or by a client that unpacked nothing.
            Err(error) if error.kind() == Kind::NotFound => {
                let (images, name) = (&self.parts().images, &draft.image.name);
                images.unpack(self.context(), name, None, &handler.snapshotter).and_then(|_| prepare())
            }
            prepared => prepared,
        };
        let rootfs = prepared.doing(|| format!("root file system of image {}", draft.image.name))?;
        failpoint::hit("cri.snapshot");
        let changed = match draft.restored {
            true => self.apply_checkpoint(&draft.id, &rootfs).doing(|| "apply the checkpoint's changes"),
            false => Ok(()),
        };
        let made = changed.and_then(|()| self.record_now(draft, &rootfs));
        if made.is_err()
            && let Err(left) = snapshotter.remove(self.context(), &draft.id)
        {
            tracing::warn!(id = draft.id, error = %left, "remove the snapshot of a container that could not be made");
        }
        made
    }

    fn record_now(&self, draft: &Draft, rootfs: &[SnapshotMount]) -> Result<()> {
        let mut volumes = draft.volumes.clone();
        volumes.extend(self.image_volumes(&draft.id, &draft.image, &draft.config, rootfs, &draft.namespaces)?);
        let settings = self.config();
        let handler = settings.handler(&draft.record.runtime_handler)?;
        let places = self.places(draft.sandbox.id().as_str());
        let pod = draft.record.config.clone().unwrap_or_default();
        let context = draft.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = context.and_then(|context| context.selinux_options.as_ref());
        let labels = self.shared.selinux.container(options, &draft.record);
        let granted = self.granted(handler, &pod.annotations)?;
        let container = draft.config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
        let wanted = draft.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let limits = self.limits_of(&draft.record, container, &granted, wanted)?;
        // A checkpoint's processes have the filters that they had.
        let watches = granted.forbidden_calls.is_some() && !draft.restored;
        let made = spec::make(&Making {
            id: &draft.id,
            sandbox_id: draft.sandbox.id().as_str(),
            config: &draft.config,
            limits: limits.as_ref().unwrap_or(&v1::LinuxContainerResources::default()),
            granted: &granted,
            listener: watches.then(|| self.calls_socket(&draft.id)),
            users_by_annotation: draft.record.users.is_some(),
            labels: &labels,
            pod: &pod,
            namespaces: &draft.namespaces,
            places: &places,
            image: &draft.image,
            rootfs,
            sources: &draft.sources,
            volumes: &volumes,
            handler,
            recursive_read_only: self.features(handler).recursive_read_only_mounts,
            settings: &settings,
            profile: draft.profile.as_deref(),
            pid_of: draft.pid_of,
            host: &self.shared.host,
        })?;
        self.label_files(draft, &labels.mount, &volumes, granted.keeps_labels)?;
        let log_path = log_path(&pod, &draft.config)?;
        if let Some(volume) = &granted.link_logs {
            self.link_log(&draft.record, volume, &draft.id, &log_path)?;
        }
        let user = v1::LinuxContainerUser {
            uid: made.user.uid.into(),
            gid: made.user.gid.into(),
            supplemental_groups: made.user.additional_gids.iter().map(|group| i64::from(*group)).collect(),
        };
        let record = ContainerRecord {
            name: draft.name.clone(),
            sandbox_id: draft.sandbox.id().to_string(),
            config: Some(draft.config.clone()),
            image_id: draft.image.config_digest.to_string(),
            log_path,
            created_at: now(),
            stop_signal: stop_signal(&draft.config, &draft.image)?,
            mounts: self.reported_mounts(&draft.config)?,
            user: Some(user),
            resources: limits,
            calls_watched: made.listens,
            ended_for_calls: made.listens && granted.forbidden_calls == Some(Forbidden::Stop),
            ..ContainerRecord::default()
        };
        tokio::runtime::Handle::current().block_on(self.store_made(draft, made.spec, record))
    }

    /// Gives what the container sees of the host, and is to have for itself, its label; with `keeps_labels` it is taken that
    /// everything in a directory of the kubelet's has it that has it itself.
    fn label_files(&self, draft: &Draft, label: &str, volumes: &[Volume], keeps_labels: bool) -> Result<()> {
        if label.is_empty() {
            return Ok(());
        }
        let mounts = draft.config.mounts.iter().zip(&draft.sources);
        let wished = mounts.filter(|(mount, _)| mount.selinux_relabel).filter_map(|(_, source)| source.as_deref());
        for source in wished.filter(|source| !keeps_labels || !selinux::is_labelled(source, label)) {
            selinux::relabel(source, label).doing(|| "config.mounts.selinux_relabel")?;
        }
        let places = self.places(draft.sandbox.id().as_str());
        let of_pod = [places.hosts(), places.hostname(), places.resolv_conf(), places.localtime(), places.shm()];
        // An image that is a volume is read-only, and the same for the whole pod.
        let own = volumes.iter().filter(|volume| !volume.read_only).map(|volume| volume.source.clone());
        for path in of_pod.into_iter().chain(own).filter(|path| path.exists()) {
            selinux::relabel(&path, label)?;
        }
        Ok(())
    }

    /// The runtime of a handler, and its options for what has these users: its pipes are those of their root, so that they
    /// can be opened again.
    pub(in crate::cri) fn runtime(
        &self,
        handler: &crate::config::RuntimeHandler,
        users: Option<&(Vec<Range>, Vec<Range>)>,
    ) -> container::Runtime {
        let name = match handler.runtime.as_str() {
            "" => self.parts().config.runtime.default.clone(),
            name => name.to_owned(),
        };
        let systemd = self.config().cgroup_driver == CgroupDriver::Systemd;
        let root = |ranges: &[Range]| ranges.iter().find(|range| range.inside == 0).map_or(0, |range| range.outside);
        let (io_uid, io_gid) = users.map_or((0, 0), |(users, groups)| (root(users), root(groups)));
        let options = (systemd || !handler.binary.is_empty() || users.is_some()).then(|| {
            any::pack(&RuncOptions {
                systemd_cgroup: systemd,
                binary_name: handler.binary.clone(),
                io_uid,
                io_gid,
                ..RuncOptions::default()
            })
        });
        container::Runtime { name, options }
    }

    /// The container's namespaces: the pod's, but for its view of processes.
    fn agreed_namespaces(
        &self,
        sandbox: &Sandbox,
        record: &SandboxRecord,
        config: &v1::ContainerConfig,
    ) -> Result<Namespaces> {
        ready(sandbox)?;
        let pod_context = record.config.as_ref().and_then(|pod| pod.linux.as_ref()?.security_context.as_ref());
        let pod = check::namespaces(namespace_options(record).as_ref())?;
        let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        if context.is_some_and(|context| context.privileged) && !pod_context.is_some_and(|pod| pod.privileged) {
            return Err(Error::invalid("config.linux.security_context.privileged: its pod is not privileged"));
        }
        let options = context.and_then(|context| context.namespace_options.as_ref());
        let own = check::namespaces(options)?;
        // The kubelet knows nothing of users that the pod has by annotation.
        let is_unsaid = record.users.is_some() && own.user.is_none();
        if own.user != pod.user && !is_unsaid {
            let field = "config.linux.security_context.namespace_options.userns_options";
            return Err(Error::invalid(format!("{field}: is not that of its pod")));
        }
        if options.is_none() {
            return Ok(pod);
        }
        let field = "config.linux.security_context.namespace_options.pid";
        match own.pid {
            v1::NamespaceMode::Pod if pod.pid != v1::NamespaceMode::Pod => {
                Err(Error::invalid(format!("{field}: its pod has no view of processes to share")))
            }
            // Whoever may make containers in a pod gets no more of the machine than the pod was given.
            v1::NamespaceMode::Node if pod.pid != v1::NamespaceMode::Node => {
                Err(Error::invalid(format!("{field}: its pod does not see the machine's processes")))
            }
            pid => Ok(Namespaces { pid, ..pod }),
        }
    }

    async fn host_paths(&self, config: &v1::ContainerConfig) -> Result<Vec<Option<PathBuf>>> {
        let mut sources = Vec::with_capacity(config.mounts.len());
        if config.mounts.is_empty() {
            return Ok(sources);
        }
        let table = blocking(MountTable::read).await?;
        for mount in &config.mounts {
            if mount.image.is_some() {
                sources.push(None);
                continue;
            }
            let path = mount.host_path.as_str();
            if !path.starts_with('/') || path.contains('\0') {
                return Err(Error::invalid(format!("config.mounts.host_path: {path:?} is not an absolute path")));
            }
            let daemon = &self.parts().tasks.launcher().daemon;
            let settings = self.config();
            let (prefix, refused) = (&settings.bind_mount_prefix, &settings.absent_mount_sources_to_reject);
            let named = [Path::new(path).to_owned(), host::below(prefix, Path::new(path))].map(|path| lexical(&path));
            let may_make = !refused.iter().any(|refused| named.contains(&lexical(refused)));
            let found = host::resolve(Path::new(path), (prefix, may_make), &table, daemon).await?;
            sources.push(Some(found));
        }
        Ok(sources)
    }

    /// The process whose view of processes the container shares.
    fn pid_to_join(
        &self,
        sandbox: &Sandbox,
        namespaces: &Namespaces,
        config: &v1::ContainerConfig,
    ) -> Result<Option<u32>> {
        match namespaces.pid {
            v1::NamespaceMode::Pod => Ok(sandbox.pid()),
            v1::NamespaceMode::Target => {
                let field = "config.linux.security_context.namespace_options.target_id";
                let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
                let options = context.and_then(|context| context.namespace_options.as_ref());
                let target = self.store().container(options.map_or("", |options| options.target_id.as_str()))?;
                if target.record().sandbox_id != sandbox.id().as_str() {
                    return Err(Error::invalid(format!("{field}: {} is not in this pod", target.id())));
                }
                Ok(Some(target.task().doing(|| field)?.pid()))
            }
            v1::NamespaceMode::Container | v1::NamespaceMode::Node => Ok(None),
        }
    }
}

/// Refuses what no container can be made of, whatever its pod, and answers with its metadata.
pub(in crate::cri) fn check_config<'config>(
    field: &str,
    config: &'config v1::ContainerConfig,
) -> Result<&'config v1::ContainerMetadata> {
    let metadata = config.metadata.as_ref().ok_or_else(|| Error::invalid(format!("{field}.metadata: is required")))?;
    check::part(&format!("{field}.metadata.name"), &metadata.name, true)?;
    check::line(&format!("{field}.log_path"), &config.log_path)?;
    let context = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = context.and_then(|context| context.selinux_options.as_ref());
    selinux::check(&format!("{field}.linux.security_context.selinux_options"), options)?;
    Ok(metadata)
}

/// What a container's name is reserved under.
pub(in crate::cri) fn container_name(metadata: &v1::ContainerMetadata, sandbox: &Sandbox) -> String {
    format!("{}_{}_{}", metadata.name, metadata.attempt, sandbox.record().name)
}

/// A pod in which containers can be made.
pub(in crate::cri) fn ready(sandbox: &Sandbox) -> Result<()> {
    match sandbox.state() {
        v1::PodSandboxState::SandboxReady => Ok(()),
        v1::PodSandboxState::SandboxNotready => {
            Err(Error::new(Kind::FailedPrecondition, format!("pod sandbox {}: is not ready", sandbox.id())))
        }
    }
}

/// Labels of a snapshot for a container in a pod with these namespaces.
pub(super) fn snapshot_labels(namespaces: &Namespaces) -> Labels {
    let mut labels =
        Labels::from([(GC_ROOT.to_owned(), (now() / 1_000_000_000).to_string()), (OURS.to_owned(), "yes".to_owned())]);
    if let Some((users, groups)) = &namespaces.user {
        for (label, ranges) in [(UID_MAPPING, users), (GID_MAPPING, groups)] {
            let ranges: Vec<String> =
                ranges.iter().map(|range| format!("{}:{}:{}", range.inside, range.outside, range.count)).collect();
            labels.insert(label.to_owned(), ranges.join(","));
        }
    }
    labels
}

/// What asks the container to stop: the configuration's signal, else the image's.
fn stop_signal(config: &v1::ContainerConfig, image: &Resolved) -> Result<u32> {
    let wished = v1::Signal::try_from(config.stop_signal)
        .map_err(|_| Error::invalid(format!("config.stop_signal: {} is unknown", config.stop_signal)))?;
    if wished != v1::Signal::RuntimeDefault {
        return signals::parse(&signal_name(wished));
    }
    match image.config.config.stop_signal.as_str() {
        "" => Ok(TERM),
        // An image that names no signal that there is does not keep its containers from being stopped.
        text => Ok(signals::parse(text).unwrap_or(TERM)),
    }
}

/// `SIGNAL_SIGRTMINPLUS3` is `RTMIN+3`.
pub(super) fn signal_name(signal: v1::Signal) -> String {
    let name = signal.as_str_name().trim_start_matches("SIGNAL_SIG");
    match name {
        "CLD" => "CHLD".to_owned(),
        "IOT" => "ABRT".to_owned(),
        "POLL" => "IO".to_owned(),
        name => name.replace("PLUS", "+").replace("MINUS", "-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_interface_is_known() {
        for number in 1..=65 {
            let signal = v1::Signal::try_from(number).expect("number");
            assert!(signals::parse(&signal_name(signal)).is_ok(), "{}", signal.as_str_name());
        }
        assert_eq!(signals::parse(&signal_name(v1::Signal::Sigrtminplus3)).expect("plus"), 37);
        assert_eq!(signals::parse(&signal_name(v1::Signal::Sigrtmaxminus1)).expect("minus"), 63);
    }
}
