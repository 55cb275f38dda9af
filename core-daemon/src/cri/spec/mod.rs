//! From what the kubelet wants of a container, and its image, to a runtime configuration.
//!
//! Everything is decided here, before anything is done; only the machine's devices and mounts are looked at.

mod annotations;
mod base;
mod cdi;
mod classes;
mod devices;
mod hooks;
mod mounts;
mod namespaces;
mod notify;
mod process;
mod resources;
mod security;

use std::path::PathBuf;

use gantry_proto::runtime::v1;
use oci_spec::runtime::{Linux, Root, Spec};
use rung_spec::defaults;
use rung_spec::user::User;

pub(super) use annotations::sandbox as sandbox_annotations;
pub(super) use cdi::add as add_vendor_devices;
pub(super) use classes::{block_io, cache_group};
pub(super) use namespaces::ranges;
pub(super) use resources::{
    cgroup_name, cgroup_of, counts_swap, update as updated_resources, validate as check_resources,
};
pub(super) use security::{
    DEFAULT_APPARMOR, PARSER as APPARMOR_PARSER, Room, as_container, check as check_security,
    is_loaded as apparmor_is_loaded, room_for_profile, seccomp_of_pod, wants_default_apparmor,
};

use super::granted::Granted;
use super::sandbox::check::Namespaces;
use super::sandbox::places::Places;
use super::selinux::Labels;
use crate::config;
use crate::error::{Error, Result};
use crate::image::Resolved;
use crate::snapshots::Mount as SnapshotMount;

/// All that a runtime configuration is made from.
pub(super) struct Making<'a> {
    /// The container.
    pub(super) id: &'a str,
    /// Its pod.
    pub(super) sandbox_id: &'a str,
    /// What the kubelet wants.
    pub(super) config: &'a v1::ContainerConfig,
    /// The pod's configuration.
    pub(super) pod: &'a v1::PodSandboxConfig,
    /// Its limits: the kubelet's, or what stands over them.
    pub(super) limits: &'a v1::LinuxContainerResources,
    /// What the pod's annotations give it.
    pub(super) granted: &'a Granted,
    /// Where somebody listens for calls that its filter forbids.
    pub(super) listener: Option<PathBuf>,
    /// The pod has its users by annotation, so that the kubelet says nothing of them.
    pub(super) users_by_annotation: bool,
    /// Its labels under SELinux.
    pub(super) labels: &'a Labels,
    /// What this container's are.
    pub(super) namespaces: &'a Namespaces,
    /// Where the pod has its files.
    pub(super) places: &'a Places,
    /// The image.
    pub(super) image: &'a Resolved,
    /// Its layers and the writable one, as they are mounted.
    pub(super) rootfs: &'a [SnapshotMount],
    /// Where the kubelet's mounts come from, by their place in the list; none for an image.
    pub(super) sources: &'a [Option<PathBuf>],
    /// Mounts beside the kubelet's: images and volumes of the image, by the place in the container.
    pub(super) volumes: &'a [Volume],
    /// How the pod is run.
    pub(super) handler: &'a config::RuntimeHandler,
    /// Mounts can be read-only with everything below them.
    pub(super) recursive_read_only: bool,
    /// How all pods are run.
    pub(super) settings: &'a config::Cri,
    /// Process whose view of processes it joins.
    pub(super) pid_of: Option<u32>,
    /// The filter of system calls that annotations name, for a container that names none itself.
    pub(super) profile: Option<&'a str>,
    /// Kernel capabilities and the like that this daemon has to give.
    pub(super) host: &'a super::host::Host,
}

/// A directory that is mounted into the container, beside those the kubelet names by path.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    /// On the host.
    pub(super) source: PathBuf,
    /// In the container.
    pub(super) destination: String,
    /// Not to be written.
    pub(super) read_only: bool,
    /// Its files are the daemon's or an image's, and are to appear as those of the pod's root, where that is another.
    pub(super) map_ids: bool,
}

/// The configuration, and what the status says of it.
pub(super) struct Made {
    /// For the runtime.
    pub(super) spec: Spec,
    /// Whom it runs as.
    pub(super) user: User,
    /// Somebody has to listen for calls that its filter forbids.
    pub(super) listens: bool,
}

impl Making<'_> {
    /// The context of the container's security, empty where nothing is said.
    fn context(&self) -> v1::LinuxContainerSecurityContext {
        let context = self.config.linux.as_ref().and_then(|linux| linux.security_context.clone());
        let mut context = context.unwrap_or_default();
        context.readonly_rootfs |= self.settings.read_only;
        context
    }

    /// Its name in the pod.
    fn name(&self) -> &str {
        self.config.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
    }

    fn privileged(&self) -> bool {
        self.context().privileged
    }
}

/// Makes the configuration.
///
/// # Errors
/// `InvalidArgument` naming the field that is wrong.
pub(super) fn make(making: &Making<'_>) -> Result<Made> {
    let context = making.context();
    let (process, user) = process::make(making, &context)?;
    let bounding = process.capabilities().as_ref().and_then(|sets| sets.bounding().clone()).unwrap_or_default();
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(context.readonly_rootfs));
    let mut linux = Linux::default();
    for (field, paths) in [("masked_paths", &context.masked_paths), ("readonly_paths", &context.readonly_paths)] {
        // No path at all would be the root.
        if let Some(path) = paths.iter().find(|path| path.is_empty() || path.contains('\0')) {
            return Err(invalid(&format!("linux.security_context.{field}"), format!("{path:?} is not a path")));
        }
    }
    let (mounts, propagation) = mounts::make(making, &context)?;
    let mut filter = security::seccomp(&context, making.settings, &bounding, making.profile)?;
    if let (Some(filter), Some(listener)) = (&mut filter, &making.listener) {
        notify::watch(filter, listener);
    }
    linux
        .set_namespaces(Some(namespaces::make(making)?))
        .set_cgroups_path(Some(resources::cgroups_path(making)))
        .set_resources(Some(resources::make(making)?))
        .set_seccomp(filter)
        .set_masked_paths((!context.privileged).then(|| context.masked_paths.clone()))
        .set_readonly_paths((!context.privileged).then(|| context.readonly_paths.clone()))
        .set_rootfs_propagation(propagation)
        .set_mount_label(Some(making.labels.mount.clone()).filter(|label| !label.is_empty()));
    if let Some((users, groups)) = &making.namespaces.user {
        linux.set_uid_mappings(Some(ranges(users))).set_gid_mappings(Some(ranges(groups)));
    }
    devices::add(making, &mut linux)?;
    let mut spec = Spec::default();
    spec.set_version(defaults::OCI_VERSION.to_owned())
        .set_root(Some(root))
        // The pod's namespace has the name already.
        .set_hostname(None)
        .set_process(Some(process))
        .set_mounts(Some(mounts))
        .set_annotations(Some(annotations::make(making)))
        .set_linux(Some(linux));
    if !making.handler.base_runtime_spec.as_os_str().is_empty() {
        base::add(base::read(&making.handler.base_runtime_spec)?, &mut spec);
    }
    classes::apply(making, &mut spec)?;
    cdi::apply(making, &mut spec)?;
    hooks::apply(making, &mut spec)?;
    let filter = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()?.listener_path().clone());
    let listens = making.listener.is_some() && filter == making.listener;
    Ok(Made { spec, user, listens })
}

/// An error about a field of the container's configuration.
fn invalid(field: &str, what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("config.{field}: {what}"))
}
